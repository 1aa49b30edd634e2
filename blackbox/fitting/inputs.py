"""Validation of the rows to train on."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets

from blackbox.answers.labels import label_array
from blackbox.answers.texts import CheckedTexts, check_texts, in_digest_order, raise_row_errors
from blackbox.boosting.algorithms import ALGORITHMS
from blackbox.boosting.label_words import check_labels
from blackbox.boosting.splits import (
    FEW_IN_ALL,
    FEW_PER_CLASS,
    are_few_labels,
    groups_per_class,
)
from blackbox.errors import ModelFileError, RowError
from blackbox.fitting.given_labels import is_same, split_labels
from blackbox.fitting.options import FitOptions
from blackbox.generation import generator_of, named_prompts
from blackbox.model.file.checks import classes_as_json
from blackbox.model.out_of_scope import FEWEST_KNOWN
from blackbox.plurals import counted
from blackbox.prompts.inputs import Example
from blackbox.sklearn_compat import check_sample_weight

__all__ = [
    "TrainingRows",
    "check_groups",
    "check_rows",
    "check_weights",
    "groups_of",
    "warn_of_unsaved",
]

_NO_WEIGHTS = "all sample weights are zero: nothing to train on"
_LEAST_WEIGHT, _MOST_WEIGHT = 1e-9, 1e9  # of all rows together, and of one
_LOW_MEAN = 0.1  # weight of a row, below which a user is told what weights are
_MAX_OUTSIDE = 200  # texts of none of the classes
_MAX_UNLABELLED = 100  # texts that tell what an LM says anyway: more of them change little


@dataclass(frozen=True)
class TrainingRows:
    """Labelled texts that can be trained on.

    Parameters
    ----------
    texts : list of Example
        n texts, or pairs.
    positions : int array of shape (n,)
        Their rows in what was given.
    codes : int array of shape (n,)
        Their classes, as indices into `classes`.
    weights : float64 array of shape (n,)
        Their weights, above 0.
    groups : int array of shape (n,)
        Their groups; see `blackbox.boosting.splits`.
    classes : array of shape (n_classes,)
        The labels.
    row_errors : dict of int to str
        Rows that were given and can't be used, with the reasons.
    n_given : int
        Rows that were given.
    is_labelled : bool, default=True
        Whether the rows have labels; without them `codes` are 0.
    unlabelled : tuple of Example, default=()
        Further texts, without labels.
    outside : tuple of Example, default=()
        Texts of none of the classes, without copies.
    may_lack : bool, default=False
        Whether a class may have no row, as its name speaks for it.
    """

    texts: list[Example]
    positions: NDArray[np.intp]
    codes: NDArray[np.intp]
    weights: NDArray[np.float64]
    groups: NDArray[np.intp]
    classes: NDArray[Any]
    row_errors: dict[int, str]
    n_given: int
    is_labelled: bool = True
    unlabelled: tuple[Example, ...] = ()
    outside: tuple[Example, ...] = ()
    may_lack: bool = False

    @property
    def fewest_groups(self) -> int:
        """The number of groups of the class that has fewest."""
        return int(groups_per_class(self.codes, self.groups).min())

    @property
    def n_models(self) -> int:
        """The number of models that are boosted on the rows."""
        return 1

    @property
    def unseen(self) -> NDArray[np.intp]:
        """The classes that no row has, as indices into `classes`."""
        counts = np.bincount(self.codes, minlength=len(self.classes))
        return np.flatnonzero(counts == 0) if self.is_labelled else np.arange(len(counts))

    @property
    def reads_names(self) -> bool:
        """Whether class names are evidence for classes that have few rows, or none."""
        return bool(self.unlabelled) or bool(len(self.unseen))

    @property
    def has_few_labels(self) -> bool:
        """Whether there are labels, too few to weigh what names say by."""
        return (
            self.is_labelled
            and self.reads_names
            and are_few_labels(self.codes, len(self.classes), self.groups)
        )

    def enough(self) -> TrainingRows:
        """Return these rows; of many texts without labels, or of no class, as many as help.

        They are taken in the order of their digests, so that texts that get labels later leave the
        others the same, and their answers are known.
        """
        if self.is_labelled:
            n = max(_MAX_UNLABELLED - len(self.texts), 0)
            kept = in_digest_order(self.unlabelled)[:n]
            outside = np.sort(in_digest_order(self.outside)[:_MAX_OUTSIDE])
            return replace(
                self,
                unlabelled=tuple(self.unlabelled[place] for place in kept),
                outside=tuple(self.outside[place] for place in outside),
            )
        if len(self.texts) <= _MAX_UNLABELLED:
            return self
        drawn = np.sort(in_digest_order(self.texts)[:_MAX_UNLABELLED])
        return replace(
            self,
            texts=[self.texts[row] for row in drawn],
            positions=self.positions[drawn],
            codes=self.codes[drawn],
            weights=self.weights[drawn],
            groups=self.groups[drawn],
            n_given=self.n_given - len(self.texts) + len(drawn),
        )

    def check_classes(self, kept: NDArray[np.bool_], row_errors: Mapping[int, str]) -> None:
        """Raise `RowError` if a class has no row left among those that are kept."""
        if not self.is_labelled:
            if not kept.any():
                raise RowError(
                    "no text is left: all of them are empty or were refused by the LM",
                    dict(row_errors),
                )
            return
        left = np.bincount(self.codes[kept], minlength=len(self.classes)) > 0
        if not (left.any() if self.may_lack else left.all()):
            empty = self.classes[int(np.argmin(left))]
            raise RowError(
                f"class {str(empty)!r} has no usable row left: all of them are empty or were "
                "refused by the LM",
                dict(row_errors),
            )


def check_rows(
    X: Any,
    y: ArrayLike | None,
    sample_weight: ArrayLike | None,
    groups: ArrayLike | None,
    options: FitOptions,
) -> TrainingRows:
    """Check what was handed to `fit`, and return the rows to train on.

    Parameters
    ----------
    X, y, sample_weight, groups
        As for `PromptBoostingClassifier.fit`.
    options : FitOptions
        How to train.

    Raises
    ------
    ValueError, TypeError
        On texts that aren't texts, labels that aren't labels, and fewer than two classes.
    RowError
        On empty rows, under ``on_row_error="raise"``, or if a class has no usable row.
    """
    examples = check_texts(X)
    raise_row_errors(examples.refused, options.on_row_error)
    if y is None:
        if options.classes is None:
            raise ValueError(
                "requires y to be passed, but the target y is None: give the labels, or name the "
                "classes (classes) to train without labels"
            )
        return _unlabelled(examples, sample_weight, groups, options)
    given_labels, missing, outside = split_labels(y, options.classes, options.none_of_these)
    if missing.all():
        return _unlabelled(examples, sample_weight, groups, options)
    labels = _check_labels(given_labels, examples)
    weights = check_weights(sample_weight, len(labels))
    left_out = weights == 0
    weights = weights * compute_sample_weight(_class_weights(labels, options), labels)
    outside &= ~left_out
    weights[missing] = 0
    usable = weights > 0
    if not usable.any():
        raise ValueError(_NO_WEIGHTS)
    named = check_groups(groups, len(labels))
    classes = _classes_of(labels[usable], options)
    usable[list(examples.refused)] = False
    positions = np.flatnonzero(usable)
    codes = np.searchsorted(classes, labels[positions])
    texts = [examples[row] for row in positions]
    rows = TrainingRows(
        texts,
        positions,
        codes,
        weights[positions],
        groups_of(texts, [named[row] for row in positions]),
        classes,
        dict(examples.refused),
        len(examples) - int(missing.sum()),
        unlabelled=tuple(
            examples[row]
            for row in np.flatnonzero(missing & ~outside & ~left_out)
            if row not in examples.refused
        )
        if ALGORITHMS[options.algorithm].uses_label_words and options.label_words is not None
        else (),
        outside=tuple(
            dict.fromkeys(
                examples[row] for row in np.flatnonzero(outside) if row not in examples.refused
            )
        ),
        may_lack=options.classes is not None and _why_names_are_silent(options) is None,
    )
    rows.check_classes(np.ones(len(positions), bool), rows.row_errors)
    warn_of_unsaved(classes)
    options.boosting(classes)  # names and words of unknown labels are an error before any pass
    options.order(classes)
    if options.none_of_these is not None:
        _check_none_of_these(rows, options)
    return rows


def warn_of_unsaved(classes: NDArray[Any]) -> None:
    """Warn if a model of such classes can't be saved, before anything is paid for it."""
    try:
        classes_as_json(classes)
    except ModelFileError as error:
        warnings.warn(f"a model of these labels can't be saved: {error}", stacklevel=5)


def _check_labels(given: ArrayLike, examples: CheckedTexts) -> NDArray[Any]:
    """Return one label for each text; raise `ValueError` on what can't be labels of these."""
    labels = label_array(given)
    if len(labels) != len(examples):
        raise ValueError(
            "Found input variables with inconsistent numbers of samples: "
            f"{counted(len(examples), 'text')} and {counted(len(labels), 'label')}"
        )
    check_classification_targets(labels)
    if examples.kind == "pair" and all(
        second == str(label) for (_, second), label in zip(examples, labels, strict=True)
    ):
        raise ValueError(
            "the second column of X is the labels, which a text to classify doesn't have: give "
            "the column of texts alone, such as X['text']"
        )
    return labels


def _class_weights(labels: NDArray[Any], options: FitOptions) -> dict[Any, float] | None:
    """Return the given weights of the labels that occur; None where no class has its own."""
    given = options.class_weight
    if not isinstance(given, Mapping):
        return None  # balanced over the rows that get an answer, once these are known
    found = np.unique(labels).tolist()
    check_labels("class_weight", given, found if options.classes is None else options.classes)
    return {label: given[label] for label in found if label in given}


def _classes_of(labels: NDArray[Any], options: FitOptions) -> NDArray[Any]:
    """Return the classes to train, sorted: those that were named, or those of the labels."""
    if any(is_same(one, options.none_of_these) for one in options.classes or ()):
        raise ValueError(
            f"the classes hold {options.none_of_these!r}, which is to stand for none of them "
            "(none_of_these): leave it out of the classes"
        )
    classes = np.unique(labels)
    if options.classes is not None:
        classes = _check_known(classes, options)
    if len(classes) < 2:
        raise ValueError(
            f"the training rows hold only one class ({classes.tolist()[0]!r}); a classifier needs "
            "at least two"
        )
    return np.asarray(classes)


def check_weights(sample_weight: ArrayLike | None, n_rows: int) -> NDArray[np.float64]:
    """Return the weight of each row; 1 by default.

    Raises
    ------
    ValueError
        If one is negative or not finite, or they can't be numbers of rows.
    """
    weights: NDArray[np.float64] = check_sample_weight(
        sample_weight, np.empty((n_rows, 0)), dtype=np.float64, ensure_non_negative=True
    )
    total, heaviest = float(weights.sum()), float(weights.max(initial=0.0))
    if not np.isfinite(total) or 0 < total < _LEAST_WEIGHT or heaviest > _MOST_WEIGHT:
        raise ValueError(
            f"sample_weight from {weights[weights > 0].min():.3g} to {heaviest:.3g}: a weight is "
            "the number of times that a row counts; scale them to a mean of 1"
        )
    if 0 < total < _LOW_MEAN * n_rows:
        warnings.warn(
            f"the weights of {n_rows} rows sum to {total:.3g}: a weight is the number of times "
            "that a row counts, so little can be learned from so few; scale them to a mean of 1",
            stacklevel=4,
        )
    return weights


def _check_none_of_these(rows: TrainingRows, options: FitOptions) -> None:
    """Raise unless texts of none of the classes can be noticed, before anything is asked."""
    label, boosting = options.none_of_these, options.boosting(rows.classes)
    if type(label) not in (str, int, float, bool) or label == "":
        raise ValueError(f"none_of_these must be a label, a str, int, float or bool, got {label!r}")
    if label in rows.classes.tolist():
        raise ValueError(f"none_of_these is {label!r}, which equals the label of a class")
    if not boosting.algorithm.uses_experts:
        raise ValueError(
            f"none_of_these takes the calibrated probabilities of logit, not {options.algorithm}"
        )
    each = "2 or more of each class"
    if rows.reads_names:
        each = f"one of each class, {FEW_PER_CLASS} per class on average and {FEW_IN_ALL} in all"
    fewest = 0 if len(rows.unseen) else rows.fewest_groups
    n_groups = len(np.unique(rows.groups))
    few = rows.has_few_labels if rows.reads_names else fewest < 2
    if boosting.cv is None or few or not fewest or n_groups < FEWEST_KNOWN:
        raise ValueError(
            "none_of_these notices texts by rows that are held out in cross-validation (cv): that "
            f"takes {FEWEST_KNOWN} texts with a label of a class or more, {each}, and here are "
            f"{n_groups}, of one class {fewest}"
        )
    if rows.outside and any(prompt.nearest for prompt in named_prompts(options.prompts) or ()):
        raise ValueError(
            f"prompts with {{nearest: K}} show labelled texts of the classes: leave the rows with "
            f"the label {label!r} out, or use other prompts"
        )


def _unlabelled(
    examples: CheckedTexts,
    sample_weight: ArrayLike | None,
    groups: ArrayLike | None,
    options: FitOptions,
) -> TrainingRows:
    """Return texts to train on without labels: those with a weight, which count alike."""
    assert options.classes is not None
    classes = _named_classes(options.classes)
    if options.none_of_these is not None:
        raise ValueError(
            "none_of_these notices texts by rows with labels that are held out: label some, or "
            "leave it out"
        )
    if not ALGORITHMS[options.algorithm].uses_label_words:
        raise ValueError(f"{options.algorithm} learns from labels alone: train with logit")
    if options.label_words is None:
        raise ValueError("without labels the class names are all there is: use label_words")
    if generator_of(options.prompts) is not None:
        raise ValueError("prompts are generated from labels: give prompts, or None without labels")
    usable = check_weights(sample_weight, len(examples)) > 0
    if not usable.any():
        raise ValueError(_NO_WEIGHTS)
    usable[list(examples.refused)] = False
    positions = np.flatnonzero(usable)
    texts = [examples[row] for row in positions]
    named = check_groups(groups, len(examples))
    rows = TrainingRows(
        texts,
        positions,
        np.zeros(len(texts), np.intp),
        np.ones(len(texts)),
        groups_of(texts, [named[row] for row in positions]),
        classes,
        dict(examples.refused),
        len(examples),
        is_labelled=False,
    )
    rows.check_classes(np.ones(len(texts), bool), rows.row_errors)
    warn_of_unsaved(classes)
    options.boosting(classes)
    options.order(classes)
    return rows


def _named_classes(given: Sequence[Any]) -> NDArray[Any]:
    """Return the classes that were named, sorted.

    Raises
    ------
    ValueError
        If they are fewer than two, or one occurs twice.
    """
    named = label_array(list(given))
    classes = np.unique(named)
    if len(classes) < 2 or len(classes) < len(named):
        raise ValueError(f"classes must be two or more distinct labels, got {list(named)!r}")
    return np.asarray(classes)


def _check_known(found: NDArray[Any], options: FitOptions) -> NDArray[Any]:
    """Return the classes that were named.

    Raises
    ------
    ValueError
        If a label is none of them; or if one has no label, and its name can't speak for it.
    """
    assert options.classes is not None
    classes = _named_classes(options.classes)
    known = set(classes.tolist())
    for label in found.tolist():
        if label not in known:
            some = ", ".join(map(repr, classes.tolist()[:10]))
            raise ValueError(f"y has the label {label!r}, and the classes are {some}")
    missing = sorted(known - set(found.tolist()), key=str)
    why = _why_names_are_silent(options)
    if missing and why:
        raise ValueError(
            f"no row has the label {missing[0]!r}, which is one of the classes, and {why}: label "
            "one, or leave it out of the classes"
        )
    return classes


def _why_names_are_silent(options: FitOptions) -> str | None:
    """Return why the names of classes can't stand for labels; None if they can."""
    if not ALGORITHMS[options.algorithm].uses_label_words:
        return f"{options.algorithm} learns from labels alone"
    if options.label_words is None:
        return "without label_words its name says nothing"
    if options.cv is None:
        return "without cv its name says nothing"
    if generator_of(options.prompts) is not None:
        return "prompts are generated from the labels of each class"
    return None


def check_groups(groups: ArrayLike | None, n_rows: int) -> list[Any]:
    """Return the group of each row as it was given; None for a row without one."""
    if groups is None:
        return [None] * n_rows
    given = np.asarray(groups, object)
    if given.shape != (n_rows,):
        raise ValueError(
            "Found input variables with inconsistent numbers of samples: "
            f"{counted(n_rows, 'text')} and groups of shape {given.shape}; give one group per text"
        )
    named = []
    for row, group in enumerate(given.tolist()):
        if not isinstance(group, Hashable):
            raise TypeError(f"row {row}: a group is a str or a number, got {type(group).__name__}")
        # NaN is unequal to itself, and pandas.NA can't be compared
        missing = type(group).__name__ == "NAType" or group != group
        named.append(None if missing else group)
    return named


def groups_of(texts: Sequence[Example], given: Sequence[Any]) -> NDArray[np.intp]:
    """Return the groups of rows: those of equal texts, and those given.

    Groups that share a text are one.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    same = np.concatenate([_first_rows(texts), _first_rows(given)])
    rows = np.tile(np.arange(len(texts)), 2)
    links = coo_array((np.ones(len(rows), bool), (rows, same)), (len(texts), len(texts)))
    return np.asarray(connected_components(links, directed=False)[1], np.intp)


def _first_rows(values: Sequence[Any]) -> NDArray[np.intp]:
    """Return for each row the first row of an equal value; None is equal to nothing."""
    seen: dict[Any, int] = {}
    first = [row if one is None else seen.setdefault(one, row) for row, one in enumerate(values)]
    return np.array(first, np.intp)
