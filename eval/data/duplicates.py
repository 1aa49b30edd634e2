"""Test rows that also occur in the training split of a data set."""

from __future__ import annotations

import re
from dataclasses import dataclass

from blackbox.answers.texts import check_texts
from blackbox.prompts.inputs import texts_of
from eval.data.data_sets import DataSet, Rows

__all__ = ["Duplicates", "find_duplicates"]


@dataclass(frozen=True)
class Duplicates:
    """Test rows that also occur in the training split.

    Parameters
    ----------
    same : list of (int, int)
        Test and training row with the same words, whatever their case, spaces and punctuation.
    near : list of (int, int, float)
        Others whose character 5-grams have a cosine of at least 0.9, and that cosine.
    contradicting : int
        Number of `same` rows with another label.
    n_test : int
        Test rows.
    """

    same: list[tuple[int, int]]
    near: list[tuple[int, int, float]]
    contradicting: int
    n_test: int

    def __str__(self) -> str:
        return (
            f"{len(self.same)} of {self.n_test} test rows stand in the training split "
            f"({self.contradicting} with another label), {len(self.near)} more nearly"
        )


def find_duplicates(data: DataSet, threshold: float = 0.9) -> Duplicates:
    """Find test rows that occur in the training split, exactly or nearly."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not len(data.test):
        return Duplicates([], [], 0, 0)
    train, test = (_normalise(rows) for rows in (data.train, data.test))
    first = {text: row for row, text in reversed(list(enumerate(train)))}
    same = [(row, first[text]) for row, text in enumerate(test) if text in first]
    contradicting = sum(data.test.labels[t] != data.train.labels[r] for t, r in same)
    counts = TfidfVectorizer(analyzer="char", ngram_range=(5, 5), use_idf=False)
    known_rows = counts.fit_transform([text or " " * 5 for text in train])
    others = sorted(set(range(len(test))) - {row for row, _ in same})
    near = []
    for start in range(0, len(others), 256):
        some = others[start : start + 256]
        similar = (counts.transform([test[row] for row in some]) @ known_rows.T).toarray()
        for row, cosines in zip(some, similar, strict=True):
            best = int(cosines.argmax())
            if cosines[best] >= threshold:
                near.append((row, best, round(float(cosines[best]), 3)))
    return Duplicates(same, near, contradicting, len(test))


def _normalise(rows: Rows) -> list[str]:
    return [
        " ".join(re.sub(r"\W+", " ", " ".join(texts_of(example))).casefold().split())
        for example in check_texts(rows.texts)
    ]
