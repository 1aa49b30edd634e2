"""Data sets made harder on purpose: wrong labels, rare classes, typing errors, another domain.

- ``noisy:sst2``: a tenth of the drawn labels are wrong;
- ``skewed:sst2``: as many labelled rows in all, of the first class a ninth as many as of another;
- ``typos:sst2``: every tenth word of the test texts has a typing error;
- ``polar:tweet_sentiment``: without the rows of the class ``neutral``;
- ``shift:sst2>tweet_sentiment``: trained on one and tested on another, on the classes of both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from blackbox.boosting.splits import draw_shots
from blackbox.errors import DataError

if TYPE_CHECKING:  # it reads these
    from eval.data.data_sets import DataSet, Rows

__all__ = ["KINDS", "base_of", "make_variant"]

_WRONG_SHARE = 0.1  # of the labels
_RARITY = 9  # rows of each other class for one of the first
_TYPO_SHARE = 0.1  # of the words
_NEUTRAL = "neutral"

KINDS = ("noisy", "skewed", "typos", "polar", "shift")
"""The prefixes of these data sets."""


def base_of(name: str) -> str:
    """Return the data set whose prompts and label words a variant has: that of its test rows."""
    return name.partition(":")[2].rpartition(">")[2]


def make_variant(name: str, read: Callable[[str], DataSet]) -> DataSet:
    """Return a variant of a data set.

    Parameters
    ----------
    name : str
        Its name, with one of `KINDS` as prefix.
    read : callable
        Reads a data set by name.

    Raises
    ------
    DataError
        If there is no such data set, or none with that.
    """
    kind, _, rest = name.partition(":")
    if kind == "shift":
        source, arrow, target = rest.partition(">")
        if not arrow:
            raise DataError(f"data set {name!r}: say shift:TRAINED>TESTED")
        return _shifted(name, read(source), read(target))
    data = replace(read(rest), name=name)
    if kind == "polar":
        kept = [label for label in data.classes if label != _NEUTRAL]
        return replace(data, train=_of_classes(data.train, kept), test=_of_classes(data.test, kept))
    if kind == "typos":
        return replace(data, test=replace(data.test, texts=[_mistype(t) for t in data.test.texts]))
    return replace(data, redraw=_draw_noisy if kind == "noisy" else _draw_skewed)


def _of_classes(rows: Rows, classes: list[str]) -> Rows:
    return rows.take(row for row, label in enumerate(rows.labels) if label in classes)


def _shifted(name: str, source: DataSet, target: DataSet) -> DataSet:
    both = [label for label in source.classes if label in target.classes]
    if len(both) < 2:
        raise DataError(f"data set {name!r}: the two have fewer than two classes in common")
    train, test = _of_classes(source.train, both), _of_classes(target.test, both)
    return replace(target, name=name, train=train, test=test)


def _draw_noisy(data: DataSet, shots: int, seed: int) -> Rows:
    """Draw rows, and give a tenth of them another label."""
    rows = data.train.take(draw_shots(data.train.labels, data.train.texts, shots, seed))
    rng = np.random.default_rng(seed)
    labels = list(rows.labels)
    for row in rng.permutation(len(rows))[: round(_WRONG_SHARE * len(rows))].tolist():
        others = [label for label in data.classes if label != labels[row]]
        labels[row] = others[int(rng.integers(len(others)))]
    return replace(rows, labels=labels)


def _draw_skewed(data: DataSet, shots: int, seed: int) -> Rows:
    """Draw as many rows as usual, few of them of the first class."""
    others = len(data.classes) - 1
    total = shots * (others + 1)
    n_first = max(round(total / (1 + _RARITY * others)), 1)
    n_other = (total - n_first) // others
    drawn = []
    for label, n in zip(data.classes, [n_first, *[n_other] * others], strict=True):
        own = [row for row, other in enumerate(data.train.labels) if other == label]
        some = data.train.take(own)
        drawn += [own[place] for place in draw_shots(some.labels, some.texts, n, seed)]
    return data.train.take(sorted(drawn))


def _mistype(text: str) -> str:
    """Return a text in which two neighbouring letters of every tenth word are swapped.

    Which, is drawn by the text, so that it is the same for all methods.
    """
    rng = np.random.default_rng(int(hashlib.sha256(text.encode()).hexdigest()[:8], 16))
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) > 3]
    n = min(max(round(_TYPO_SHARE * len(words)), 1), len(long))
    for place in rng.permutation(long)[:n].tolist():
        word = words[place]
        at = int(rng.integers(1, len(word) - 2))
        words[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)
