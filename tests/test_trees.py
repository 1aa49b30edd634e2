"""Prefix trees of token sequences: what each place sees, against walks along its parents."""

from __future__ import annotations

import numpy as np
import pytest

from backends.trees import tree_of


@pytest.mark.parametrize("n_stem", [0, 3])
def test_a_place_sees_itself_and_its_ancestors(n_stem):
    rng = np.random.default_rng(n_stem)
    stem = [1, 2, 3][:n_stem]
    sequences = sorted([*stem, *rng.integers(0, 3, rng.integers(1, 7)).tolist()] for _ in range(30))
    sequences.append([2, 2])  # of another root
    tree = tree_of(stem, sequences)
    n = len(tree.tokens)
    sees = np.zeros((n, n), bool)
    for place in range(n):
        ancestor = place
        while ancestor >= 0:
            sees[place, ancestor] = True
            ancestor = tree.parents[ancestor]
    places = np.arange(n)
    by_ends = (places <= places[:, None]) & (places[:, None] < tree.subtree_ends())
    assert (by_ends == sees).all()
    assert (tree.depths() == sees.sum(axis=1) - 1).all()
    for sequence, end in zip(sequences, tree.ends, strict=True):
        assert [tree.tokens[place] for place in np.flatnonzero(sees[end])] == sequence
