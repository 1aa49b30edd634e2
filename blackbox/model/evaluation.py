"""Evaluation of predictions on labelled rows, those of none of the classes included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blackbox.metrics import Detection, Evaluation, evaluate, evaluate_detection
from blackbox.model.ordered import OrderedEvaluation, evaluate_order
from blackbox.model.predictions import NONE_OF_THESE, Predictions

__all__ = ["EvaluatedPredictions", "evaluate_predictions"]


@dataclass(frozen=True)
class EvaluatedPredictions:
    """Measures of predictions.

    Parameters
    ----------
    evaluation : Evaluation
        Of all rows. Of a model that notices texts of none of its classes, these are one more
        class, the last.
    detection : Detection or None
        How well such texts are told from others.
    ordered : OrderedEvaluation or None
        How far predictions are from the truth, of classes with an order.
    """

    evaluation: Evaluation
    detection: Detection | None = None
    ordered: OrderedEvaluation | None = None


def evaluate_predictions(
    predictions: Predictions, codes: NDArray[np.intp], order: NDArray[np.intp] | None = None
) -> EvaluatedPredictions:
    """Return measures of predictions against labels.

    Parameters
    ----------
    predictions : Predictions
        Of n rows, with probabilities.
    codes : int array of shape (n,)
        Their true classes, `NONE_OF_THESE` for those of none.
    order : int array of shape (n_classes,), optional
        The order of the classes; see `Model.order`.

    Raises
    ------
    ValueError
        If there are no rows, or no probabilities.
    """
    if predictions.probabilities is None:
        raise ValueError("an evaluation takes probabilities: predict without early stopping")
    labels, found = predictions.classes.tolist(), predictions.out_of_scope
    ordered = None if order is None else evaluate_order(codes, predictions.codes, order)
    if found is None:
        measured = evaluate(codes, predictions.probabilities, labels, predictions.codes)
        return EvaluatedPredictions(measured, None, ordered)
    truth, given = (
        np.where(one == NONE_OF_THESE, len(labels), one) for one in (codes, predictions.codes)
    )
    return EvaluatedPredictions(
        evaluate(truth, predictions.probabilities, [*labels, found.label], given),
        evaluate_detection(codes == NONE_OF_THESE, found.scores, found.rejected),
        ordered,
    )
