"""Prefix trees of token sequences: what sequences share is one place of one input of a model.

An input holds many sequences. Positions are depths in the tree, and a token sees its ancestors
only, so one forward pass answers all of them and evaluates each distinct prefix once. What the next
input begins with is kept: the *stem*, whose keys and values are taken out of this one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from backends.prefixes import common_prefix_length

__all__ = ["Distribution", "PrefixTrees", "Tree", "distinct_tokens", "tree_of"]

Answers = TypeVar("Answers")


@dataclass(frozen=True)
class Tree:
    """Tokens of a prefix tree, parents first.

    Parameters
    ----------
    tokens, parents : list of int
        Of each place; the parent of a root is -1.
    ends : list of int
        The place of each sequence's last token.
    path : list of int
        The places of the last sequence.
    n_stem : int
        The number of places at the beginning that were evaluated before.
    """

    tokens: list[int]
    parents: list[int]
    ends: list[int]
    path: list[int]
    n_stem: int = 0

    def depths(self) -> NDArray[np.int64]:
        """Return the depth of each place: its position in its sequences."""
        depths = np.zeros(len(self.tokens), np.int64)
        for place, parent in enumerate(self.parents):  # parents come before their children
            depths[place] = depths[parent] + 1 if parent >= 0 else 0
        return depths

    def subtree_ends(self) -> NDArray[np.int64]:
        """Return the first place behind each place's subtree.

        Places are numbered in the order of a walk, so place i sees place j, itself or an ancestor,
        where j <= i and i is before the end of j's subtree.
        """
        ends = np.arange(1, len(self.tokens) + 1)
        for place in range(len(self.tokens) - 1, -1, -1):
            parent = self.parents[place]
            if parent >= 0:
                ends[parent] = max(ends[parent], ends[place])
        return ends


def tree_of(stem: list[int], sequences: Sequence[list[int]]) -> Tree:
    """Return the prefix tree of sorted sequences, with the stem in its first places."""
    tokens: list[int] = []
    parents: list[int] = []
    ends: list[int] = []
    path: list[int] = []
    before: list[int] = []
    for sequence in [stem, *sequences]:
        known = common_prefix_length(before, sequence)
        path = path[:known]
        for token in sequence[known:]:
            parents.append(path[-1] if path else -1)
            path.append(len(tokens))
            tokens.append(token)
        ends.append(path[-1] if path else -1)
        before = sequence
    return Tree(tokens, parents, ends[1:], path, len(stem))


def distinct_tokens(sequences: Sequence[list[int]]) -> int:
    """Return the number of tokens that a perfect prefix cache would evaluate."""
    total, before = 0, list[int]()
    for sequence in sorted(sequences):
        # the last token is evaluated anew even when all of it is known: its answer is wanted
        total += max(len(sequence) - common_prefix_length(before, sequence), 1)
        before = sequence
    return total


class PrefixTrees(ABC, Generic[Answers]):
    """Evaluates token sequences as prefix trees; a subclass runs a model on one of them.

    Parameters
    ----------
    batch_tokens : int
        Tokens of one input; a longer sequence has one of its own.
    least_stem : int
        Tokens that are worth keeping; 0 keeps nothing.
    max_answers : int
        Sequences of one input.
    """

    def __init__(self, batch_tokens: int, least_stem: int = 16, max_answers: int = 64) -> None:
        self.batch_tokens = batch_tokens
        self.least_stem = least_stem
        self.max_answers = max_answers

    @abstractmethod
    def evaluate(self, tree: Tree, kept: Any, keep: int) -> tuple[Answers, Any]:
        """Return the answers at a tree's ends, and what is kept of it.

        Parameters
        ----------
        tree : Tree
            Its first `n_stem` places are those of `kept`.
        kept : object or None
            Keys and values of the stem, as an earlier call returned them.
        keep : int
            Tokens at the beginning of the last sequence whose keys and values are to be kept.
        """

    def run(self, sequences: Sequence[list[int]]) -> Iterator[tuple[list[int], Answers, int]]:
        """Yield numbers of sequences, the answers at their ends, and tokens evaluated, in parts."""
        order = sorted(range(len(sequences)), key=sequences.__getitem__)
        stem, kept = list[int](), None
        for rows, keep in self._bins(order, sequences):
            some = [sequences[row] for row in rows]
            tree = tree_of(stem, some)
            answers, kept = self.evaluate(tree, kept, keep)
            stem = some[-1][:keep]
            yield rows, answers, len(tree.tokens) - tree.n_stem

    def _bins(
        self, order: list[int], sequences: Sequence[list[int]]
    ) -> Iterator[tuple[list[int], int]]:
        """Yield neighbours in the tree's walk that go into one input, and the next one's stem."""
        rows: list[int] = []
        size, before = 0, list[int]()
        for row in order:
            shared = common_prefix_length(before, sequences[row])
            more = len(sequences[row]) - shared
            if rows and (size + more > self.batch_tokens or len(rows) == self.max_answers):
                # the last token is always evaluated: its answer is what is asked for
                stem = min(shared, len(sequences[row]) - 1)
                stem = stem if 0 < self.least_stem <= stem else 0
                yield rows, stem
                rows, size, more = [], 0, len(sequences[row]) - stem
            rows.append(row)
            size += more
            before = sequences[row]
        if rows:
            yield rows, 0


class Distribution:
    """A distribution to draw from, by one uniform number per draw; at temperature 0 its mode."""

    def __init__(self, log_probs: NDArray[np.float32], temperature: float) -> None:
        self._likeliest = int(np.argmax(log_probs)) if temperature == 0 else None
        if temperature:
            scaled = log_probs.astype(np.float64) / temperature
            self._running = np.cumsum(np.exp(scaled - scaled.max()))

    def draw(self, rng: np.random.Generator) -> int:
        """Return one token."""
        if self._likeliest is not None:
            return self._likeliest
        place = np.searchsorted(self._running, rng.random() * self._running[-1], side="right")
        return min(int(place), len(self._running) - 1)
