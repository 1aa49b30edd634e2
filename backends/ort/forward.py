"""Forward passes of a prepared language model over token sequences, in prefix trees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.ort.segments import Layout, layout_of, layout_of_paths
from backends.trees import Distribution, PrefixTrees, Tree, tree_of

__all__ = ["OrtForward"]

_BATCH_TOKENS = 256  # more makes attention, which is quadratic, dearer than larger products gain

Array = NDArray[Any]
Top = tuple[Array, Array]
"""Likeliest tokens (n, k) and their log-probabilities."""


class OrtForward(PrefixTrees[Top]):
    """Runs the graph of `backends.ort.llama`.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
        The model.
    end_token_id : int or None
        The token at which writing stops.
    """

    def __init__(self, session: Any, end_token_id: int | None) -> None:
        super().__init__(_BATCH_TOKENS)
        self._session = session
        self._end = end_token_id
        (past,) = (given for given in session.get_inputs() if given.name == "past")
        self._no_past = np.zeros(
            [size if isinstance(size, int) else 0 for size in past.shape], np.float32
        )
        self._top_k = 1

    def top(
        self, sequences: Sequence[list[int]], top_k: int
    ) -> Iterator[tuple[list[int], Array, Array, int]]:
        """Yield numbers of sequences, their likeliest tokens and values, and tokens evaluated."""
        self._top_k = top_k
        for rows, (ids, values), evaluated in self.run(sequences):
            yield rows, ids, values, evaluated

    def evaluate(self, tree: Tree, kept: Any, keep: int) -> tuple[Top, Any]:
        """See `PrefixTrees`."""
        past = self._no_past if kept is None else kept
        out = self._run(
            ["ids", "values", *(["present"] if keep else [])],
            tree.tokens[tree.n_stem :],
            layout_of(tree),
            np.array(tree.ends) - tree.n_stem,
            past,
            self._top_k,
        )
        # rounding may leave a likeliest token's value a little above zero
        top = out[0].astype(np.int32), np.minimum(out[1], 0)
        if not keep:
            return top, None
        everything = np.concatenate([past, out[2]], axis=3)
        return top, np.ascontiguousarray(everything[:, :, :, tree.path[:keep]])

    def write(
        self, sequence: list[int], seeds: Sequence[int], max_tokens: int, temperature: float
    ) -> list[list[int]]:
        """Return the continuation of a sequence, once for each seed.

        All are branches of one tree, whose keys and values are kept: each step evaluates one token
        of each branch that is still open.
        """
        rngs = [np.random.default_rng(seed % 2**63) for seed in seeds]
        written: list[list[int]] = [[] for _ in seeds]
        names = ["log_probs", "present"]
        tree = tree_of([], [sequence])
        scores, past = self._run(
            names, sequence, layout_of(tree), np.array(tree.ends), self._no_past
        )
        scores = np.repeat(scores, len(seeds), axis=0)
        branches = list(range(len(seeds)))
        paths = [tree.path] * len(seeds)
        n_past = len(sequence)
        for step in range(max_tokens):
            drawn = [
                Distribution(row, temperature).draw(rngs[branch])
                for row, branch in zip(scores, branches, strict=True)
            ]
            is_open = [token != self._end for token in drawn]
            branches = [
                branch for branch, goes_on in zip(branches, is_open, strict=True) if goes_on
            ]
            tokens = [token for token in drawn if token != self._end]
            for branch, token in zip(branches, tokens, strict=True):
                written[branch].append(token)
            if not tokens or step + 1 == max_tokens:
                break
            paths = [[*path, n_past + place] for place, path in enumerate(compress(paths, is_open))]
            n_past += len(tokens)
            layout = layout_of_paths([[place] for place in range(len(tokens))], paths)
            scores, present = self._run(names, tokens, layout, np.arange(len(tokens)), past)
            past = np.concatenate([past, present], axis=3)
        return written

    def _run(
        self,
        names: list[str],
        tokens: Sequence[int],
        layout: Layout,
        rows: Array,
        past: Array,
        top_k: int = 1,
    ) -> list[Array]:
        outputs: list[Array] = self._session.run(
            names,
            {
                "tokens": np.array(tokens, np.int64),
                "rows": rows.astype(np.int64),
                "k": np.array([top_k], np.int64),
                "past": past,
                **layout.inputs(),
            },
        )
        return outputs
