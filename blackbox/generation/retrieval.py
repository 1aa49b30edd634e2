"""Demonstrations that are retrieved: the training rows that prompts with `{nearest: K}` show.

A training row is shown rows of other folds only. So its label stands nowhere before its own text,
nor do the labels of its group; and as folds are stratified, each class has about as many rows to be
found in, whatever the row's own class is. Where a row left out itself alone, its class would have
one row less than the others, and on average be a little further away: that gives labels away too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blackbox.boosting.splits import groups_per_class, stratified_folds
from blackbox.experts.examples import KeptExamples
from blackbox.generation.task import Task
from blackbox.prompts.pool import PromptPool

__all__ = ["show_nearest_rows"]

_FOLDS = 5


def show_nearest_rows(
    pool: PromptPool, task: Task, vectors: NDArray[np.float32], rng: np.random.Generator
) -> tuple[PromptPool, KeptExamples]:
    """Return a pool whose prompts show each training row the nearest rows, and those for new texts.

    Parameters
    ----------
    pool : PromptPool
        Prompts, some of them with `{nearest: K}`.
    task : Task
        n training rows.
    vectors : float32 array of shape (n, d)
        Their embeddings; NaN for rows that the embedding model refused, which are not shown.
    rng : numpy Generator
        Draws the folds.

    Raises
    ------
    ValueError
        If a class has too few rows.
    """
    k = max(prompt.nearest for prompt in pool)
    groups = np.arange(len(task.y)) if task.groups is None else task.groups
    folds = stratified_folds(task.y, _FOLDS, rng, groups)
    fold_of = np.zeros(len(task.y), np.intp)
    for number, (_, held_out) in enumerate(folds):
        fold_of[held_out] = number
    rows = np.flatnonzero(~np.isnan(vectors[:, 0]))
    found = [_texts_per_class(task, rows[fold_of[rows] != number]) for number in range(len(folds))]
    counts = np.min(found, axis=0) if found else groups_per_class(task.y, groups) - 1
    if counts.min() < k:
        raise ValueError(
            f"{{nearest: {k}}} shows each row {k} different texts of each class, none of its own "
            f"group or fold, and class {task.names[int(counts.argmin())]!r} has {counts.min()} for "
            "some rows: give more labelled texts, or a smaller number"
        )
    # half the digits: they only have to find neighbours, and take half the bytes in a file
    rounded = vectors[rows].astype(np.float16).astype(np.float32)
    texts = [task.examples[row] for row in rows.tolist()]
    kept = KeptExamples(texts, task.y[rows], rounded, list(task.names))
    known = np.nan_to_num(vectors)
    return kept.bind(pool, task.examples, known, task.limits, (fold_of, fold_of[rows])), kept


def _texts_per_class(task: Task, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return how many different texts of each class there are among some rows."""
    different = {(task.y[row], task.examples[row]) for row in rows.tolist()}
    return np.bincount([code for code, _ in different], minlength=task.n_classes)
