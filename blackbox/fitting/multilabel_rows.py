"""Validation of the rows to train on where a text may have several labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blackbox.answers.label_sets import LabelSets, read_label_sets
from blackbox.answers.texts import check_texts, raise_row_errors
from blackbox.boosting.algorithms import ALGORITHMS
from blackbox.boosting.label_words import check_labels, given_words
from blackbox.boosting.splits import groups_per_class
from blackbox.errors import RowError
from blackbox.fitting.evidence import shows_nearest
from blackbox.fitting.inputs import (
    TrainingRows,
    check_groups,
    check_weights,
    groups_of,
    warn_of_unsaved,
)
from blackbox.fitting.options import FitOptions
from blackbox.plurals import counted

__all__ = ["MultilabelRows", "check_multilabel_rows"]

_NO_LABEL = "none"


@dataclass(frozen=True)
class MultilabelRows(TrainingRows):
    """Texts to train on, of which each has any number of labels.

    For all that takes one class per text, such as the choice of prompts and the drawing of rows,
    `codes` and `classes` are the rarest label of each text, or that it has none.

    Parameters
    ----------
    labels : array of shape (n_labels,)
        The labels.
    names : list of str
        A readable name for each.
    words : list of list of str
        Label words for each; empty lists where none shall be used.
    targets : bool array of shape (n, n_labels)
        Which text has which label.
    indicator : bool
        Whether an indicator matrix was given.
    given : FitOptions, optional
        The options as they were given, for a training that goes on from the model.
    """

    labels: NDArray[Any] = field(default_factory=lambda: np.empty(0))
    names: list[str] = field(default_factory=list)
    words: list[list[str]] = field(default_factory=list)
    targets: NDArray[np.bool_] = field(default_factory=lambda: np.empty((0, 0), bool))
    indicator: bool = False
    given: FitOptions | None = None

    @property
    def fewest_groups(self) -> int:
        """The number of groups with, or without, the label for which that is largest."""
        return max(self._groups_of_label(label) for label in range(len(self.labels)))

    @property
    def n_models(self) -> int:
        """One for each label."""
        return len(self.labels)

    def _groups_of_label(self, label: int) -> int:
        codes = self.targets[:, label].astype(np.intp)
        return int(groups_per_class(codes, self.groups).min()) if 0 < codes.mean() < 1 else 0

    def check_classes(self, kept: NDArray[np.bool_], row_errors: Mapping[int, str]) -> None:
        """Raise `RowError` if no label is left that some rows have and others have not."""
        with_label = self.targets[kept].sum(axis=0)
        if not ((with_label > 0) & (with_label < kept.sum())).any():
            raise RowError(
                "no label is left that some texts have and others have not: the rest is empty or "
                "was refused by the LM",
                dict(row_errors),
            )


def check_multilabel_rows(
    X: Any,
    y: Any,
    sample_weight: ArrayLike | None,
    groups: ArrayLike | None,
    options: FitOptions,
) -> tuple[MultilabelRows, FitOptions]:
    """Check what was handed to `fit` with several labels per text.

    Parameters
    ----------
    X, y, sample_weight, groups
        As for `PromptBoostingClassifier.fit`; `y` as for `read_label_sets`.
    options : FitOptions
        How to train.

    Returns
    -------
    rows : MultilabelRows
        The rows to train on, with the names and the label words of the options.
    options : FitOptions
        The options without those.

    Raises
    ------
    ValueError, TypeError
        On texts that aren't texts, labels that aren't labels, labels that all texts have alike, and
        options that take one label per text.
    RowError
        On empty rows, under ``on_row_error="raise"``.
    """
    _check_options(options)
    examples = check_texts(X)
    raise_row_errors(examples.refused, options.on_row_error)
    found = read_label_sets(y, options.classes)
    if len(found.targets) != len(examples):
        raise ValueError(
            "Found input variables with inconsistent numbers of samples: "
            f"{counted(len(examples), 'text')} and the labels of "
            f"{counted(len(found.targets), 'text')}"
        )
    weights = check_weights(sample_weight, len(examples))
    named = check_groups(groups, len(examples))
    usable = weights > 0
    if not usable.any():
        raise ValueError("all sample weights are zero: nothing to train on")
    with_label = found.targets[usable].sum(axis=0)
    if not ((with_label > 0) & (with_label < usable.sum())).any():
        raise ValueError(
            "no label tells the texts apart: each of them is on all texts or on none; a classifier "
            "needs a label that some have and others have not"
        )
    usable[list(examples.refused)] = False
    positions = np.flatnonzero(usable)
    texts = [examples[row] for row in positions]
    names, words = _names_and_words(found, options)
    codes, classes = _rarest(found.targets[positions], names)
    rows = MultilabelRows(
        texts,
        positions,
        codes,
        weights[positions],
        groups_of(texts, [named[row] for row in positions]),
        classes,
        dict(examples.refused),
        len(examples),
        labels=found.labels,
        names=names,
        words=words,
        targets=found.targets[positions],
        indicator=found.indicator,
        given=options,
    )
    rows.check_classes(np.ones(len(positions), bool), rows.row_errors)
    warn_of_unsaved(found.labels)
    return rows, replace(options, class_names=None, label_words=None, classes=None)


def _check_options(options: FitOptions) -> None:
    """Raise on options that make no sense, or are not there, for several labels per text."""
    reasons = {
        "class_weight takes 'balanced' alone, by which texts with a label weigh as those without": (
            options.class_weight not in (None, "balanced")
        ),
        "a library has models for one label per text: train without": options.library is not None,
        "there is no order of sets of labels: train without ordered": options.ordered,
        "none_of_these is no label of its own: a text without a label has none": (
            options.none_of_these is not None
        ),
        "keep_examples keeps texts of one label: train without": options.keep_examples,
        "no expert reads names or class_descriptions: train without": (
            options.class_descriptions is not None
        ),
        "prompts with {nearest: K} show texts of one label: use others": shows_nearest(options),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"with several labels per text {reason}")


def _names_and_words(found: LabelSets, options: FitOptions) -> tuple[list[str], list[list[str]]]:
    """Return the readable names of the labels, and their label words."""
    labels = found.labels.tolist()
    given = options.class_names or {}
    check_labels("class_names", given, labels)
    names = [str(given.get(label, label)) for label in labels]
    if options.label_words is None or not ALGORITHMS[options.algorithm].uses_label_words:
        return names, [[] for _ in labels]
    words = {} if isinstance(options.label_words, str) else options.label_words
    return names, given_words(words, labels, names)


def _rarest(targets: NDArray[np.bool_], names: list[str]) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Return the rarest label of each row as a code, and the names of the codes.

    A row without any label has a code of its own. A label that is the rarest of no row has none.
    """
    without = _NO_LABEL
    while without in names:
        without = f"no {without}"
    counts = targets.sum(axis=0)
    by_rarity = np.argsort(counts, kind="stable")
    ranked = targets[:, by_rarity]
    first = np.where(ranked.any(axis=1), by_rarity[ranked.argmax(axis=1)], len(names))
    present, codes = np.unique(first, return_inverse=True)
    named = np.array([*names, without], object)[present]
    return codes.astype(np.intp), named.astype(str)
