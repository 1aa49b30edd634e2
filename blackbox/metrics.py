"""Evaluation measures of labels, and of sets of labels: accuracy, F1, log-loss, calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score

__all__ = [
    "Detection",
    "Evaluation",
    "LabelEvaluation",
    "MultilabelEvaluation",
    "brier_score",
    "evaluate",
    "evaluate_detection",
    "evaluate_label_sets",
    "expected_calibration_error",
    "f1_scores",
    "wilson_interval",
]

_BINS = 15
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Evaluation:
    """Evaluation measures over n rows; rows without an answer count as errors in accuracy and F1.

    Parameters
    ----------
    n : int
        Number of rows.
    accuracy, accuracy_low, accuracy_high : float
        Share of correct predictions, and its Wilson 95% interval.
    macro_f1 : float
        F1 score, unweighted mean over classes.
    log_loss : float or None
        Mean −ln p of the true class over answered rows; None where there are none.
    brier : float or None
        Mean over answered rows of the squared distance between probabilities and truth, in [0, 2].
    ece : float or None
        Expected calibration error over answered rows: top label, 15 bins of equal width.
    coverage : float
        Share of rows that got an answer.
    confusion : list of list of int
        Answered rows: true class by row, predicted class by column.
    classes : list of str
        The labels, in the order of rows and columns of `confusion`.
    """

    n: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    macro_f1: float
    log_loss: float | None
    brier: float | None
    ece: float | None
    coverage: float
    confusion: list[list[int]]
    classes: list[str]


def evaluate(
    codes: NDArray[np.intp],
    probabilities: NDArray[np.float64],
    classes: list[Any],
    predicted: NDArray[np.intp] | None = None,
) -> Evaluation:
    """Return evaluation measures of predictions against labels.

    Parameters
    ----------
    codes : int array of shape (n,)
        True classes, as indices into `classes`.
    probabilities : float array of shape (n, n_classes)
        Class probabilities; NaN in rows without an answer.
    classes : list
        The labels; one more than there are probabilities where the last one is that of texts of
        none of the classes. Rows of it count in accuracy and F1, and not in what is measured of
        probabilities.
    predicted : int array of shape (n,), optional
        Predicted classes, of rows with an answer; by default the most probable ones.

    Raises
    ------
    ValueError
        If there are no rows.
    """
    n, n_classes = len(probabilities), len(classes)
    if not n:
        raise ValueError("there are no rows to measure")
    answered = ~np.isnan(probabilities).any(axis=1)
    truth, given = codes[answered], probabilities[answered]
    top = given.argmax(axis=1) if len(given) else np.empty(0, np.intp)
    if predicted is not None:
        top = predicted[answered]
    right = int((top == truth).sum())
    low, high = wilson_interval(right, n)
    # an abstention is a prediction of no class, so it counts as an error
    named = np.full(n, n_classes)
    named[answered] = top
    # a label of no class that no row has, and none gets, is no class of the table
    in_use = range(max(probabilities.shape[1], 1 + max(codes.max(), top.max(initial=0))))
    f1 = f1_score(codes, named, labels=in_use, average="macro", zero_division=0.0)
    of_class = truth < probabilities.shape[1]
    known, shares = truth[of_class], given[of_class]
    losses = -np.log(np.maximum(shares[np.arange(len(known)), known], 1e-15))
    return Evaluation(
        n=n,
        accuracy=right / n,
        accuracy_low=low,
        accuracy_high=high,
        macro_f1=float(f1),
        log_loss=float(losses.mean()) if len(known) else None,
        brier=brier_score(known, shares) if len(known) else None,
        ece=expected_calibration_error(known, shares) if len(known) else None,
        coverage=float(answered.mean()),
        confusion=confusion_matrix(truth, top, labels=range(n_classes)).tolist()
        if len(given)
        else [[0] * n_classes for _ in range(n_classes)],
        classes=[str(label) for label in classes],
    )


@dataclass(frozen=True)
class Detection:
    """The quality of telling texts of none of the classes from others, over answered rows.

    Parameters
    ----------
    n_outside : int
        Rows of none of the classes.
    auroc : float or None
        Area under the ROC curve: how often such a row is more unusual than one of a class; None
        without rows of both kinds.
    recall : float or None
        Share of these rows that get the label of none of the classes.
    false_alarms : float or None
        Share of the rows of classes that get it.
    false_alarms_at_95 : float or None
        That share at a threshold above which 95% of the rows of none of the classes are.
    """

    n_outside: int
    auroc: float | None
    recall: float | None
    false_alarms: float | None
    false_alarms_at_95: float | None


def evaluate_detection(
    outside: NDArray[np.bool_], scores: NDArray[np.float64], rejected: NDArray[np.bool_]
) -> Detection:
    """Return how well texts of none of the classes are noticed.

    Parameters
    ----------
    outside : bool array of shape (n,)
        Which rows are of none of the classes.
    scores : float64 array of shape (n,)
        The larger, the more unusual; NaN without an answer.
    rejected : bool array of shape (n,)
        Which rows were taken for such.
    """
    answered = ~np.isnan(scores)
    is_out, found, given = outside[answered], scores[answered], rejected[answered]
    n_outside = int(is_out.sum())
    auroc = at_95 = None
    if 0 < n_outside < len(is_out):
        auroc = float(roc_auc_score(is_out, found))
        threshold = np.quantile(found[is_out], 1 - 0.95, method="lower")
        at_95 = float((found[~is_out] >= threshold).mean())
    return Detection(
        n_outside,
        auroc,
        float(given[is_out].mean()) if n_outside else None,
        float(given[~is_out].mean()) if n_outside < len(is_out) else None,
        at_95,
    )


def wilson_interval(successes: float, n: float, z: float = _Z95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson 1927), 95% by default."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return low, high


def brier_score(codes: NDArray[np.intp], probabilities: NDArray[np.float64]) -> float:
    """Return the Brier score in [0, 2]: mean squared distance to the one-hot truth (Brier 1950)."""
    truth = np.eye(probabilities.shape[1])[codes]
    return float(((probabilities - truth) ** 2).sum(axis=1).mean())


def expected_calibration_error(
    codes: NDArray[np.intp], probabilities: NDArray[np.float64], bins: int = _BINS
) -> float:
    """Return the mean gap between confidence and accuracy of the top label, over equal-width bins.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017. A confidence on an
    edge belongs to the bin below it.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == codes
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(codes))


@dataclass(frozen=True)
class LabelEvaluation:
    """Measures of one label: of those given how many are right, and of the right ones how many.

    Parameters
    ----------
    label : str
        The label.
    precision, recall, f1 : float
        0 where nothing is given, or nothing is right to give.
    support : int
        Rows that have it.
    predicted : int
        Rows that are given it.
    """

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


@dataclass(frozen=True)
class MultilabelEvaluation:
    """Evaluation measures over n rows of any number of labels each.

    Rows without an answer count as rows without a label, and as wrong.

    Parameters
    ----------
    n : int
        Number of rows.
    micro_f1 : float
        F1 score of all decisions together.
    macro_f1 : float
        F1 score, unweighted mean over the labels.
    subset_accuracy, subset_accuracy_low, subset_accuracy_high : float
        Share of rows whose labels are all right, and its Wilson 95% interval.
    hamming_loss : float
        Share of wrong decisions, one per row and label.
    log_loss : float or None
        Mean −ln p of the right decision, over answered rows and labels; None where there are none.
    coverage : float
        Share of rows that got an answer.
    labels : list of LabelEvaluation
        Each label alone.
    """

    n: int
    micro_f1: float
    macro_f1: float
    subset_accuracy: float
    subset_accuracy_low: float
    subset_accuracy_high: float
    hamming_loss: float
    log_loss: float | None
    coverage: float
    labels: list[LabelEvaluation]


def evaluate_label_sets(
    truth: NDArray[np.bool_],
    chosen: NDArray[np.bool_],
    probabilities: NDArray[np.float64],
    labels: list[Any],
) -> MultilabelEvaluation:
    """Return evaluation measures of predicted sets of labels.

    Parameters
    ----------
    truth : bool array of shape (n, n_labels)
        Which labels are right.
    chosen : bool array of shape (n, n_labels)
        Which are predicted.
    probabilities : float array of shape (n, n_labels)
        Of each label; NaN in rows without an answer.
    labels : list
        The labels.

    Raises
    ------
    ValueError
        If there are no rows.
    """
    n = len(truth)
    if not n:
        raise ValueError("there are no rows to measure")
    answered: NDArray[np.bool_] = np.asarray(~np.isnan(probabilities).any(axis=1))
    chosen = chosen & answered[:, None]
    counts: NDArray[np.float64] = np.stack([truth & chosen, chosen, truth]).sum(axis=1) * 1.0
    right, given, support = counts
    whole = int(((truth == chosen).all(axis=1) & answered).sum())
    low, high = wilson_interval(whole, n)
    some = probabilities[answered]
    losses = -np.log(np.maximum(np.where(truth[answered], some, 1 - some), 1e-15))
    f1 = np.atleast_1d(f1_scores(right, given, support))
    return MultilabelEvaluation(
        n=n,
        micro_f1=float(f1_scores(right.sum(), given.sum(), support.sum())),
        macro_f1=float(f1.mean()),
        subset_accuracy=whole / n,
        subset_accuracy_low=low,
        subset_accuracy_high=high,
        hamming_loss=float(((truth != chosen) | ~answered[:, None]).mean()),
        log_loss=float(losses.mean()) if len(some) else None,
        coverage=float(answered.mean()),
        labels=[
            LabelEvaluation(
                str(label),
                float(right[k] / max(given[k], 1)),
                float(right[k] / max(support[k], 1)),
                float(f1[k]),
                int(support[k]),
                int(given[k]),
            )
            for k, label in enumerate(labels)
        ],
    )


def f1_scores(right: Any, given: Any, support: Any) -> NDArray[np.float64]:
    """Return F1 scores of (weighted) numbers of right, given and existing labels; 0 of nothing."""
    both = np.asarray(given + support, np.float64)
    return np.asarray(2 * right / np.where(both > 0, both, 1.0))
