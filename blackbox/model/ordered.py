"""Classes with an order: the median of the predicted distribution, and its error in steps.

The class that minimises the expected absolute error is the median of the predictive distribution,
as the most probable one minimises the expected share of errors (Berger, "Statistical decision
theory and Bayesian analysis", 2nd ed., Springer 1985). It takes calibrated probabilities and no
further model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "OrderedEvaluation",
    "evaluate_order",
    "mean_absolute_error",
    "median_codes",
    "order_of",
]

_LEVEL = 1e-9  # by which cumulative probabilities differ by rounding alone


def order_of(classes: NDArray[Any], named: Sequence[Any] | None) -> NDArray[np.intp]:
    """Return the codes of the classes from the lowest to the highest: (n_classes,).

    Parameters
    ----------
    classes : array of shape (n_classes,)
        The labels, sorted as scikit-learn sorts them.
    named : sequence of labels, optional
        The labels in their order; without it they must be numbers, or words for numbers.

    Raises
    ------
    ValueError
        If the order is unknown.
    """
    known = classes.tolist()
    if named is not None:
        places = {label: place for place, label in enumerate(list(named))}
        return np.array(sorted(range(len(known)), key=lambda code: places[known[code]]), np.intp)
    try:
        values = [float(label) for label in known]
    except ValueError:
        values = []
    if len(set(values)) < len(known) or not np.isfinite(values).all():
        shown = ", ".join(map(repr, known[:10]))
        raise ValueError(
            "ordered takes the order of the classes: name them from the lowest to the highest "
            f"(classes, --classes A,B,C); only numbers have one of their own, and these are {shown}"
        )
    return np.argsort(values, kind="stable")


def median_codes(probabilities: NDArray[np.float64], order: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the code of the median class of each row: (n,).

    Of two medians it is the lower one.

    Parameters
    ----------
    probabilities : float64 array of shape (n, n_classes)
        Class probabilities, without NaN.
    order : int array of shape (n_classes,)
        From `order_of`.
    """
    below = np.cumsum(probabilities[:, order], axis=1) < 0.5 - _LEVEL
    return np.asarray(order[np.minimum(below.sum(axis=1), len(order) - 1)])


def mean_absolute_error(
    truth: NDArray[np.intp],
    predicted: NDArray[np.intp],
    order: NDArray[np.intp],
    weight: NDArray[np.float64] | None = None,
) -> float:
    """Return the mean distance of predicted from true classes, in steps of the order."""
    places = np.argsort(order)
    return float(np.average(np.abs(places[truth] - places[predicted]), weights=weight))


@dataclass(frozen=True)
class OrderedEvaluation:
    """The distance of predicted classes from the true ones, over answered rows.

    Parameters
    ----------
    mean_absolute_error : float or None
        Mean distance in steps of the order; None where there are no rows.
    quadratic_kappa : float or None
        Cohen's kappa with quadratic weights (Cohen 1968), 1 for no error and 0 for chance; None
        where all rows are of one class.
    """

    mean_absolute_error: float | None
    quadratic_kappa: float | None


def evaluate_order(
    truth: NDArray[np.intp], predicted: NDArray[np.intp], order: NDArray[np.intp]
) -> OrderedEvaluation:
    """Return how far predicted classes are from the true ones.

    Parameters
    ----------
    truth, predicted : int arrays of shape (n,)
        Codes of classes; a row where one is negative, as without an answer, is not counted.
    order : int array of shape (n_classes,)
        From `order_of`.
    """
    from sklearn.metrics import cohen_kappa_score

    counted = (truth >= 0) & (predicted >= 0)
    truth, predicted = truth[counted], predicted[counted]
    if not len(truth):
        return OrderedEvaluation(None, None)
    kappa = None
    if len(np.unique([truth, predicted])) > 1:
        places = np.argsort(order)
        labels = np.arange(len(order))
        given = places[truth], places[predicted]
        kappa = float(cohen_kappa_score(*given, labels=labels, weights="quadratic"))
    return OrderedEvaluation(mean_absolute_error(truth, predicted, order), kappa)
