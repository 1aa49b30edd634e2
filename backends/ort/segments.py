"""Attention over prefix trees in segments, so that no other sequence changes an answer's bits.

A *segment* is a stretch of new tokens that follow one another, and its *path* all tokens up to its
last one, by depth. Each segment attends to its own path and to nothing else, with the token of
depth n in column n. So the sums of a token's attention have the same terms in the same order
whatever else is in the input. They must: activations are rounded to 8 bits, and a difference in the
last digit of one sum would grow to a few hundredths of a log-probability in thirty layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backends.trees import Tree

__all__ = ["SEGMENT", "Layout", "layout_of", "layout_of_paths"]

SEGMENT = 16
"""Tokens that a segment has at most."""

_COLUMNS = 48  # a multiple of what the runtime's sums take at a time, on every processor

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """The segments of an input, for n segments and paths of at most d tokens.

    Parameters
    ----------
    paths : int64 array of shape (n, d)
        Places of each path's tokens among those of the past and of the input.
    queries : int64 array of shape (n, `SEGMENT`)
        Places of each segment's tokens in the input; the rest is 0.
    depths : int64 array of shape (n, `SEGMENT`)
        Depths of these tokens.
    slots : int64 array
        The place of each token of the input in `queries`, which is read flat.
    positions : int64 array
        The depth of each token of the input.
    """

    paths: Integers
    queries: Integers
    depths: Integers
    slots: Integers
    positions: Integers

    def inputs(self) -> dict[str, NDArray[np.int64] | NDArray[np.bool_]]:
        """Return the inputs of the graph that the layout makes."""
        visible = np.arange(self.paths.shape[1]) <= self.depths[:, :, None]
        return {
            "positions": self.positions,
            "paths": self.paths,
            "queries": self.queries,
            "slots": self.slots,
            "visible": visible,
        }


def layout_of(tree: Tree) -> Layout:
    """Return the layout of a tree's places but those of its stem."""
    segments: list[list[int]] = []
    paths: list[list[int]] = []
    depths: list[int] = []
    path: list[int] = []
    for place, parent in enumerate(tree.parents):
        depth = depths[parent] + 1 if parent >= 0 else 0
        depths.append(depth)
        del path[depth:]
        path.append(place)
        if place < tree.n_stem:
            continue
        goes_on = segments and segments[-1][-1] == parent and len(segments[-1]) < SEGMENT
        if goes_on:
            segments[-1].append(place)
            paths[-1].append(place)
        else:
            segments.append([place])
            paths.append(path.copy())
    own = [[place - tree.n_stem for place in segment] for segment in segments]
    return layout_of_paths(own, paths)


def layout_of_paths(segments: Sequence[Sequence[int]], paths: Sequence[Sequence[int]]) -> Layout:
    """Return the layout of segments, each at the end of its path.

    Parameters
    ----------
    segments : sequence of sequences of int
        Places in the input, which has each of them once.
    paths : sequence of sequences of int
        Places of the past and of the input.
    """
    longest = max(map(len, paths))
    columns = -(-longest // _COLUMNS) * _COLUMNS
    layout = Layout(
        paths=np.zeros((len(paths), columns), np.int64),
        queries=np.zeros((len(paths), SEGMENT), np.int64),
        depths=np.zeros((len(paths), SEGMENT), np.int64),
        slots=np.zeros(sum(map(len, segments)), np.int64),
        positions=np.zeros(sum(map(len, segments)), np.int64),
    )
    for row, (segment, path) in enumerate(zip(segments, paths, strict=True)):
        n = len(segment)
        places = np.array(segment)
        depths = np.arange(len(path) - n, len(path))
        layout.paths[row, : len(path)] = path
        layout.queries[row, :n] = places
        layout.depths[row, :n] = depths
        layout.slots[places] = row * SEGMENT + np.arange(n)
        layout.positions[places] = depths
    return layout
