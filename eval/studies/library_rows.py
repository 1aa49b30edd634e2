"""The data sets of the study of libraries: which rows are answered, and the models of sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.answers.passes import Answers, next_tokens
from blackbox.answers.texts import check_texts
from blackbox.boosting.label_words import texts_of_names
from blackbox.model.model import Model
from blackbox.store.stored_backend import StoredBackend
from eval.data import data_sets
from eval.studies.experts import draw_pool

__all__ = ["DATA", "TOP_K", "TaskRows", "Vectors", "draw_rows", "joined", "read_task"]

DATA = (
    "sst2",
    "tweet_sentiment",
    "tweet_emotion",
    "agnews",
    "sib200_eng",
    "tweet_irony",
    "tweet_hate",
    "rte",
    "trec",
    "banking77",
)

OF_SOURCE = {"banking77": 8}
OF_SOURCE_ELSEWHERE = 32
"""Training rows per class that a source is trained on."""

N_FURTHER = {"tweet_irony": 100, "tweet_hate": 100, "rte": 100, "trec": 100, "banking77": 100}
N_FURTHER_ELSEWHERE = 200
"""Further training rows that are answered."""

TOP_K = 200


@dataclass(frozen=True)
class TaskRows:
    """A data set: its answered training and test rows and class names, and its model as a source.

    The first `n_source` training rows are those that the model was trained on.
    """

    train: Answers
    y: NDArray[np.intp]
    n_source: int
    test: Answers
    test_y: NDArray[np.intp]
    classes: list[str]
    names: Answers
    model: Model
    vectors: Vectors | None = None


@dataclass(frozen=True)
class Vectors:
    """The sentence embeddings of a data set: of training rows, test rows and class names."""

    train: NDArray[np.float32]
    test: NDArray[np.float32]
    names: NDArray[np.float32]


def draw_rows(name: str, data: data_sets.DataSet) -> tuple[list[int], list[int]]:
    """Return the training rows of a source, and the further ones that are answered."""
    train = data.train
    source = draw_pool(train.labels, train.texts, OF_SOURCE.get(name, OF_SOURCE_ELSEWHERE))
    taken = {train.texts[row] for row in source}
    free = [row for row in range(len(train)) if train.texts[row] not in taken]
    n = min(N_FURTHER.get(name, N_FURTHER_ELSEWHERE), len(free))
    return source, sorted(np.random.default_rng(0).choice(free, n, replace=False).tolist())


def joined(texts: Sequence[Any]) -> list[str]:
    """Return texts, with the two of a pair made one."""
    return [text if isinstance(text, str) else " ".join(text) for text in texts]


def read_task(
    name: str,
    data_dir: Path,
    lm: StoredBackend,
    prompts: PromptPool,
    n_test: int,
    embedder: StoredBackend | None = None,
) -> TaskRows:
    """Return a data set, whose missing answers are asked for.

    The shared prompts show one text, so the two of a pair are joined.
    """
    data = data_sets.read_data_set(name, data_dir)
    of_source, further = draw_rows(name, data)
    rows, test = data.train.take([*of_source, *further]), data.test_rows(n_test)
    texts, test_texts = joined(rows.texts), joined(test.texts)
    n_source = len(of_source)
    source = PromptBoostingClassifier(
        lm, prompts=prompts, embeddings=None, store=False, random_state=0, top_k=TOP_K
    )
    source.fit(texts[:n_source], rows.labels[:n_source])
    names = texts_of_names(data.classes, pair=False)
    of_train, of_test = (
        next_tokens(lm, prompts, check_texts(one), TOP_K) for one in (texts, test_texts)
    )
    of_names = next_tokens(lm, prompts, names, TOP_K)
    y, test_y = (np.searchsorted(data.classes, one.labels) for one in (rows, test))
    vectors = None
    if embedder is not None:
        words = [name for name, _ in names]
        vectors = Vectors(*(embedder.embed(one).vectors for one in (texts, test_texts, words)))
    return TaskRows(
        of_train, y, n_source, of_test, test_y, data.classes, of_names, source.model_, vectors
    )
