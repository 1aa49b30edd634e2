"""Fits the detector of texts of none of the classes, on rows that a model had not seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers import features
from blackbox.answers.features import Matrix
from blackbox.answers.passes import Answers
from blackbox.boosting.ensemble import Ensemble
from blackbox.boosting.training import TrainingResult
from blackbox.experts.vectors import Vectors
from blackbox.model.out_of_scope import (
    FALSE_ALARMS,
    MEASURES,
    Distances,
    OutOfScopeDetector,
    TextEvidence,
    centred_log,
    similarity,
    unit,
)
from blackbox.model.reliability import HeldOutRows

__all__ = [
    "FittedDetector",
    "OutsideRows",
    "TrainedRows",
    "fit_detector",
    "fit_distances",
    "fit_weights",
    "notice_outside",
]

PRIOR = (1.0, 0.5, 1.0, 0.5, 0.5)
"""The weights of `MEASURES` before any row of none of the classes is seen."""

_STRENGTH = 10.0  # of the prior that draws weights towards these, beside the summed log-loss
_MAX_AXES = 32
_SHRINKAGE = 0.1  # of variances towards their mean
_FOLDS = 5
_MAX_ROWS = 2000  # of known classes
_MAX_NUMBERS = 2**20  # of the embeddings in a model
_NO_SPREAD = 1e-9
_FLAT = 1e-6  # curvature of the intercept's penalty


@dataclass(frozen=True)
class TrainedRows:
    """Rows that a model was trained on.

    Parameters
    ----------
    answers : Answers
        Their answers, under the prompts that the ensemble was chosen from.
    codes, groups : int arrays of shape (n,)
        Their classes and groups.
    weights : float64 array of shape (n,)
        Their weights.
    vectors : float32 array of shape (n, d), optional
        Their embeddings.
    """

    answers: Answers
    codes: NDArray[np.intp]
    groups: NDArray[np.intp]
    weights: NDArray[np.float64]
    vectors: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class OutsideRows:
    """Rows of none of the classes: the answers to m of them, and their embeddings, if any."""

    answers: Answers
    vectors: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, answers: Answers | None, vectors: Vectors | None) -> OutsideRows | None:
        """Return the rows that were not refused; None where there are none."""
        if answers is None:
            return None
        refused = answers.row_errors | ({} if vectors is None else vectors.row_errors)
        n = answers.token_ids.shape[1]
        kept = np.array([row for row in range(n) if row not in refused], np.intp)
        if not len(kept):
            return None
        return cls(answers.take_rows(kept), None if vectors is None else vectors.values[kept])


@dataclass(frozen=True)
class FittedDetector:
    """A detector, and how it does on rows of none of the classes.

    Parameters
    ----------
    detector : OutOfScopeDetector
        The detector.
    auroc, recall : float or None
        The area under the ROC curve between these rows and those of classes, and the share of them
        that are noticed, both cross-validated; None with fewer than two of them.
    """

    detector: OutOfScopeDetector
    auroc: float | None = None
    recall: float | None = None


def notice_outside(
    label: Any,
    ensemble: Ensemble,
    result: TrainingResult,
    trained: TrainedRows,
    weights: NDArray[np.float64],
    outside: OutsideRows | None,
) -> tuple[OutOfScopeDetector, dict[str, Any]]:
    """Return the detector of a training, and what the summary says of it.

    Parameters
    ----------
    label : str, int, float or bool
        The label of texts of none of the classes.
    ensemble : Ensemble
        The trained ensemble.
    result : TrainingResult
        Its training, with held-out rows.
    trained : TrainedRows
        The rows of the training.
    weights : float64 array of shape (n,)
        Their weights as they were given: shares of texts are promised, to which class weights are
        nothing.
    outside : OutsideRows, optional
        Rows of none of the classes.

    Raises
    ------
    ValueError
        If too few rows were held out.
    """
    held_out = result.held_out
    rows = np.empty(0, np.intp) if held_out is None else held_out.rows
    y, groups, weights = trained.codes[rows], trained.groups[rows], weights[rows]
    vectors = None if trained.vectors is None else trained.vectors[rows]
    n_classes = ensemble.n_classes
    shares = np.empty((0, n_classes)) if held_out is None else held_out.probabilities
    answers, seen = None, None
    if outside is not None:
        # how alike answers are matters beside such rows alone
        answers = ensemble.standardised(
            _matrices(ensemble, result, trained.answers.take_rows(rows))
        )
        seen = _evidence(ensemble, _matrices(ensemble, result, outside.answers), outside.vectors)
    size = HeldOutRows.of(shares, y, weights / max(weights.mean(), _NO_SPREAD), groups).size
    fitted = fit_detector(
        label,
        TextEvidence(shares, answers, vectors),
        y,
        groups,
        weights * (size / max(weights.sum(), _NO_SPREAD)),
        seen,
    )
    detector = fitted.detector
    return detector, {
        "label": label,
        "n_known": len(detector.known),
        "n_outside": 0 if outside is None else outside.answers.token_ids.shape[1],
        "false_alarms": FALSE_ALARMS,
        "weights": dict(
            zip(detector.measures, np.round(detector.weights, 4).tolist(), strict=True)
        ),
        **({} if fitted.auroc is None else {"auroc": round(fitted.auroc, 4)}),
        **({} if fitted.recall is None else {"recall": round(fitted.recall, 4)}),
    }


def _matrices(ensemble: Ensemble, result: TrainingResult, answers: Answers) -> list[Matrix]:
    """Return the matrices that the ensemble reads of some answers."""
    return [
        features.gather(
            answers.token_ids[prompt], answers.log_probs[prompt], reading.token_ids, reading.floor
        )
        for prompt, reading in zip(result.prompts, ensemble.readings, strict=True)
    ]


def _evidence(
    ensemble: Ensemble, matrices: list[Matrix], vectors: NDArray[np.float32] | None
) -> TextEvidence:
    """Return what a model makes of texts that it has not seen."""
    n = len(matrices[0])
    spoken = np.zeros((len(ensemble.experts), n, ensemble.n_classes))
    for number, expert in enumerate(ensemble.experts):
        if not expert.reads_answers and vectors is not None:
            spoken[number] = expert.scores(vectors)
    initial = np.broadcast_to(ensemble.initial_scores(spoken), (n, ensemble.n_classes))
    probabilities = ensemble.probabilities(ensemble.decision(matrices, initial))
    return TextEvidence(probabilities, ensemble.standardised(matrices), vectors)


def fit_detector(
    label: Any,
    known: TextEvidence,
    y: NDArray[np.intp],
    groups: NDArray[np.intp],
    weight: NDArray[np.float64],
    outside: TextEvidence | None = None,
) -> FittedDetector:
    """Return the detector of texts of none of the classes.

    Without rows of none of the classes the measures have fixed weights; with some, a logistic
    regression between these and the others, drawn towards the fixed weights, fits them. Both were
    chosen on training rows (docs/none-of-these.md).

    Parameters
    ----------
    label : str, int, float or bool
        The label of such texts.
    known : TextEvidence
        n rows of the classes, with probabilities by models that had not seen them.
    y : int array of shape (n,)
        Their classes.
    groups : int array of shape (n,)
        Their groups: rows of one are not compared with each other.
    weight : float64 array of shape (n,)
        Their weights, whose sum is the number of independent rows that they are worth.
    outside : TextEvidence, optional
        Rows of none of the classes, without copies, which the model had not seen.

    Raises
    ------
    ValueError
        If there are too few rows for the promised share of false alarms.
    """
    if weight.sum() < 1 / FALSE_ALARMS - 1 - 1e-6:
        raise ValueError(
            f"none_of_these takes {round(1 / FALSE_ALARMS - 1)} independent rows of known classes "
            f"that can be held out, and here are {weight.sum():.0f}: label more texts"
        )
    rows = _drawn(len(y), _MAX_ROWS)
    weight = weight[rows] * (weight.sum() / weight[rows].sum())
    known, y, groups = known.take(rows), y[rows], groups[rows]
    logs = centred_log(known.probabilities)
    near = None
    if known.vectors is not None:
        near = _drawn(len(y), _MAX_NUMBERS // known.vectors.shape[1])
    nothing = np.empty(0)
    detector = OutOfScopeDetector(
        label,
        nothing,
        nothing,
        nothing,
        fit_distances(logs, y),
        np.empty(0, np.float32),
        np.empty(0, np.float32),
        None if near is None or known.vectors is None else _compact(known.vectors[near]),
        None if outside is None else _compact(outside.answers),
        None if outside is None else _compact(outside.vectors),
    )
    found = detector.measure(known)
    found[:, 1] = _held_out_distances(logs, y, groups)
    if near is not None and detector.vectors is not None and known.vectors is not None:
        same = groups[:, None] == groups[near]
        found[:, 2] = -similarity(unit(known.vectors), detector.vectors, same)
    shares = weight / weight.sum()
    means = shares @ found
    scales = np.maximum(np.sqrt(shares @ (found - means) ** 2), _NO_SPREAD)
    weights = np.array([PRIOR[MEASURES.index(name)] for name in detector.measures])
    detector = replace(detector, weights=weights, means=means, scales=scales)
    judged: tuple[float, float] | tuple[None, None] = (None, None)
    if outside is not None and len(outside.probabilities) > 1:
        standard = detector.standardise(found)
        others = detector.standardise(_measure_outside(detector, outside))
        judged = _cross_validated(standard, others, weights)
        detector = replace(detector, weights=fit_weights(standard, others, weights))
    scores = detector.combine(found).astype(np.float32)
    order = np.argsort(scores, kind="stable")
    detector = replace(detector, known=scores[order], known_weight=weight[order].astype(np.float32))
    return FittedDetector(detector, *judged)


def fit_distances(logs: NDArray[np.float64], y: NDArray[np.intp]) -> Distances:
    """Return the distributions of the scores of each class and of all rows.

    Parameters
    ----------
    logs : float64 array of shape (n, n_classes)
        From `centred_log`, of held-out rows.
    y : int array of shape (n,)
        Their classes; those without a row have no distribution.
    """
    mean = logs.mean(axis=0)
    _, lengths, directions = np.linalg.svd(logs - mean, full_matrices=False)
    variances = lengths**2 / len(logs)
    r = max(1, min(_MAX_AXES, int((variances > _FLAT * variances[0]).sum())))
    axes = directions[:r].T / np.sqrt(_shrunk(variances[:r]))
    places = (logs - mean) @ axes
    classes, codes = np.unique(y, return_inverse=True)
    centres = np.stack([places[codes == code].mean(axis=0) for code in range(len(classes))])
    rest = places - centres[codes]
    within, turned = np.linalg.eigh(rest.T @ rest / max(len(y) - len(classes), 1))
    return Distances(mean, axes @ turned, centres @ turned, _shrunk(within))


def fit_weights(
    known: NDArray[np.float64], outside: NDArray[np.float64], prior: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the weights of measures by a logistic regression with a prior: (J,).

    Parameters
    ----------
    known : float64 array of shape (n, J)
        The standardised measures of rows of known classes.
    outside : float64 array of shape (m, J)
        Those of rows of none of the classes.
    prior : float64 array of shape (J,)
        The weights that they are drawn to.
    """
    from scipy.optimize import minimize

    inputs = np.concatenate([known, outside])
    sign = np.append(np.full(len(known), 1.0), np.full(len(outside), -1.0))
    start = np.append(prior, np.log(len(outside) / len(known)))
    stiffness = np.append(np.full(len(prior), _STRENGTH), _FLAT)

    def objective(found: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = sign * (inputs @ found[:-1] + found[-1])
        loss = np.logaddexp(0.0, margins).sum() + (stiffness * (found - start) ** 2).sum() / 2
        slopes = sign / (1 + np.exp(-np.clip(margins, -500, 500)))
        gradient = np.append(slopes @ inputs, slopes.sum()) + stiffness * (found - start)
        return float(loss), gradient

    optimum = minimize(objective, start, jac=True, method="L-BFGS-B")
    return np.asarray(optimum.x[:-1])


def _cross_validated(
    known: NDArray[np.float64], outside: NDArray[np.float64], prior: NDArray[np.float64]
) -> tuple[float, float]:
    """Return the AUROC and the recall of outside rows, by weights that were fitted on others."""
    n_folds = min(_FOLDS, len(outside))
    rng = np.random.default_rng(0)
    folds = [rng.permutation(len(one)) % n_folds for one in (known, outside)]
    right, caught = 0.0, 0
    for fold in range(n_folds):
        rest, others = known[folds[0] != fold], outside[folds[1] != fold]
        weights = fit_weights(rest, others, prior)
        threshold = np.quantile(rest @ weights, 1 - FALSE_ALARMS)
        scores = np.sort(known[folds[0] == fold] @ weights)
        found = outside[folds[1] == fold] @ weights
        below, upto = (np.searchsorted(scores, found, side) for side in ("left", "right"))
        right += float((below + upto).sum()) / 2 / len(scores)
        caught += int((found > threshold).sum())
    return right / len(outside), caught / len(outside)


def _measure_outside(detector: OutOfScopeDetector, outside: TextEvidence) -> NDArray[np.float64]:
    """Return the measures of rows of none of the classes, none compared with itself."""
    found = detector.measure(outside)
    itself = np.eye(len(found), dtype=bool)
    for name, values, others in (
        ("like_outside_answers", outside.answers, detector.outside_answers),
        ("like_outside_embeddings", outside.vectors, detector.outside_vectors),
    ):
        if values is not None and others is not None:
            column = detector.measures.index(name)
            found[:, column] = similarity(unit(values), others, itself, n_nearest=1)
    return found


def _held_out_distances(
    logs: NDArray[np.float64], y: NDArray[np.intp], groups: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return the distance of each row by distributions of rows of other groups."""
    found = np.zeros(len(y))
    numbers, places = np.unique(groups, return_inverse=True)
    folds = (np.random.default_rng(0).permutation(len(numbers)) % _FOLDS)[places]
    for fold in np.unique(folds):
        rest = folds != fold
        found[~rest] = fit_distances(logs[rest], y[rest]).measure(logs[~rest])
    return found


def _drawn(n: int, most: int) -> NDArray[np.intp]:
    """Return at most so many of n rows, ascending."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, most, replace=False))


def _compact(vectors: NDArray[Any] | None) -> NDArray[np.float16] | None:
    """Return vectors of length 1 in a quarter of the bytes."""
    return None if vectors is None else unit(vectors).astype(np.float16)


def _shrunk(variances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return variances drawn towards their mean, none of them 0."""
    return np.asarray(
        (1 - _SHRINKAGE) * np.maximum(variances, 0)
        + _SHRINKAGE * max(float(variances.mean()), _NO_SPREAD)
    )
