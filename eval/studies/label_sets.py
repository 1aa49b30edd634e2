"""Texts with several labels, made of texts with one: the data sets of `several_labels`.

No data set of the benchmark has several labels per text, so they are put together, by a rule and
not by hand. A text of *banking* is one to three customer messages of different intents in a row,
and its labels are those of ten intents that it has: every seventh of the 77 in alphabetical order.
One text in five is a message of another intent, and has no label. A text of *agnews* is one news
item, or two of different topics in random order, and its labels are the topics.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blackbox.tables import LabelledExamples, read_examples

__all__ = ["DATA_SETS", "LabelSetRows", "draw_label_sets"]

DATA_SETS = ("banking", "agnews")

_FOLDER = {"banking": "banking77", "agnews": "agnews"}
_EVERY = 7
_WITHOUT_LABEL = 0.2
_MOST = {"banking": 3, "agnews": 2}


@dataclass(frozen=True)
class LabelSetRows:
    """Texts, and the labels of each."""

    texts: list[str]
    labels: list[list[str]]

    def first(self, n: int) -> LabelSetRows:
        """Return the first n rows."""
        return LabelSetRows(self.texts[:n], self.labels[:n])


def draw_label_sets(data_dir: Path, data: str, split: str, seed: int, n: int) -> LabelSetRows:
    """Return n texts with their labels.

    Parameters
    ----------
    data_dir : Path
        The folder of the benchmark.
    data : str
        One of `DATA_SETS`.
    split : {"train", "development", "test"}
        The messages to draw from: a half of the training rows, the other half, or the test rows.
    seed, n : int
        What is drawn, and how much; more rows begin with the same ones.
    """
    name = "test" if split == "test" else "train"
    rows = read_examples(data_dir / _FOLDER[data] / f"{name}.csv")
    kept = np.random.default_rng(0).permutation(len(rows.texts))
    if split != "test":
        half = len(kept) // 2
        kept = kept[:half] if split == "train" else kept[half:]
    return _Messages(rows, kept.tolist(), data).draw(np.random.default_rng([seed, 1]), n)


class _Messages:
    """Single messages by label, of which texts are made."""

    def __init__(self, rows: LabelledExamples, kept: list[int], data: str) -> None:
        names = sorted(set(rows.labels))
        self._labels = names[::_EVERY][:10] if data == "banking" else names
        self._most = _MOST[data]
        self._by_label = {
            label: [str(rows.texts[row]) for row in kept if rows.labels[row] == label]
            for label in self._labels
        }
        known = set(self._labels)
        self._others = [str(rows.texts[row]) for row in kept if rows.labels[row] not in known]

    def draw(self, rng: np.random.Generator, n: int) -> LabelSetRows:
        texts: list[str] = []
        labels: list[list[str]] = []
        for _ in range(n):
            if self._others and rng.random() < _WITHOUT_LABEL:
                texts.append(self._others[rng.integers(len(self._others))])
                labels.append([])
                continue
            count = int(rng.integers(1, self._most + 1))
            chosen = rng.choice(self._labels, count, replace=False).tolist()
            parts = [self._by_label[c][rng.integers(len(self._by_label[c]))] for c in chosen]
            texts.append(" ".join(parts))
            labels.append(sorted(chosen))
        return LabelSetRows(texts, labels)
