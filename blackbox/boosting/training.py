"""The step of `fit` from forward passes to an ensemble. It sees training rows only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers import features
from blackbox.answers.features import Matrix
from blackbox.answers.passes import Answers
from blackbox.boosting import early_stopping, logit, samme
from blackbox.boosting.calibration import (
    Calibration,
    FoldFit,
    calibrate,
    fit_folds,
    held_out_contributions,
)
from blackbox.boosting.early_stopping import EarlyStopping
from blackbox.boosting.ensemble import Ensemble, Reading, prune_unused
from blackbox.boosting.label_words import NamePrior, name_prior
from blackbox.boosting.splits import stratified_folds, stratified_split
from blackbox.boosting.weak_learner import one_blas_thread

__all__ = ["TrainingOptions", "TrainingResult", "boost", "default_n_estimators"]

_BLOCK = 1024  # rows in double precision at a time
_ROUNDS, _ROWS_PER_ROUND, _MOST_ROUNDS, _MOST_ROUNDS_BY_CLASSES = 100, 5, 1000, 100_000
_ROUNDS_SAMME = 200


def default_n_estimators(algorithm: str, weight: float, n_classes: int) -> int:
    """Rounds where nobody says how many: those of ``"logit"`` grow with what there is to learn.

    Parameters
    ----------
    algorithm : {"logit", "samme"}
        Which.
    weight : float
        Summed weight of the training rows.
    n_classes : int
        Number of classes; a round of many takes room in the saved model.
    """
    if algorithm == "samme":
        return _ROUNDS_SAMME
    most = min(_MOST_ROUNDS, _MOST_ROUNDS_BY_CLASSES // n_classes)
    return max(_ROUNDS, min(int(weight) // _ROWS_PER_ROUND, most))


@dataclass(frozen=True)
class TrainingOptions:
    """The estimator's parameters that boosting needs; see `PromptBoostingClassifier`."""

    algorithm: str
    n_classes: int
    n_estimators: int | None
    learning_rate: float
    tokens_per_class: int
    cv: int | None
    validation_fraction: float
    min_token_share: float
    label_words: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class TrainingResult:
    """What `boost` made.

    Parameters
    ----------
    ensemble : Ensemble
        The ensemble, over the prompts that it reads.
    prompts : list of int
        Those prompts, by their numbers in the answers.
    coverage : float
        Mean probability that the top k hold.
    summary : dict
        Rounds and losses, as JSON data.
    """

    ensemble: Ensemble
    prompts: list[int]
    coverage: float
    summary: dict[str, Any]


def boost(
    answers: Answers,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    plan: TrainingOptions,
    rng: np.random.Generator,
    calibration_weight: NDArray[np.float64] | None = None,
) -> TrainingResult:
    """Grow an ensemble out of answers on training rows.

    Parameters
    ----------
    answers : Answers
        Of n rows under P prompts, all answered.
    y : int array of shape (n,)
        Classes from 0.
    sample_weight : float array of shape (n,)
        Weights above 0.
    plan : TrainingOptions
        What to do.
    rng : numpy Generator
        For the folds, and the draws of ``"samme"``.
    calibration_weight : float array of shape (n,), optional
        What each row counts when ``"logit"`` calibrates; by default its weight. Where it is given,
        the prompts were chosen out of many by some of the rows, which look too good then: the
        probabilities are made no surer than boosting made them.
    """
    coverage = _coverage(answers.log_probs)
    with one_blas_thread():
        if plan.algorithm == "logit":
            grown = _boost_logit(answers, y, sample_weight, plan, rng, calibration_weight)
        else:
            grown = _boost_samme(answers, y, sample_weight, plan, rng)
    ensemble, prompts, summary = grown
    return TrainingResult(ensemble, prompts, coverage, summary)


def _coverage(log_probs: NDArray[np.float32]) -> float:
    """Mean probability that the top k hold, without a copy of all in double precision."""
    n_rows = log_probs.shape[1]
    held = np.empty((len(log_probs), n_rows))
    for start in range(0, n_rows, _BLOCK):
        block = log_probs[:, start : start + _BLOCK].astype(np.float64)
        held[:, start : start + _BLOCK] = np.exp(block).sum(axis=2)
    return float(held.mean())


def _boost_logit(
    answers: Answers,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    plan: TrainingOptions,
    rng: np.random.Generator,
    calibration_weight: NDArray[np.float64] | None,
) -> tuple[Ensemble, list[int], dict[str, Any]]:
    matrices, tokens, floors = features.frequent_matrices(
        answers.token_ids, answers.log_probs, sample_weight, plan.min_token_share
    )
    rounds = plan.n_estimators or default_n_estimators("logit", sample_weight.sum(), plan.n_classes)
    settings = logit.Settings(rounds, plan.learning_rate, plan.tokens_per_class)
    scalings = [logit.scaling_of(matrix, sample_weight) for matrix in matrices]
    fit = logit.fit_logit(
        [scaling.apply(matrix) for scaling, matrix in zip(scalings, matrices, strict=True)],
        y,
        sample_weight,
        plan.n_classes,
        settings,
    )
    if not fit.learners:
        raise ValueError(
            "no token tells the classes apart: the LM answers all training texts alike; use other "
            "prompts, more rows, or a higher top_k"
        )
    names = NamePrior([], None, *np.zeros((2, len(matrices), plan.n_classes)))
    folds = stratified_folds(y, plan.cv, rng)
    held_out = None
    if folds:
        # names shall cost no pass: they speak under the prompts that boosting reads
        names = name_prior(
            sorted({learner.prompt for learner in fit.learners}),
            tokens,
            answers.token_bytes,
            matrices,
            scalings,
            sample_weight,
            plan.label_words,
            plan.n_classes,
        )
        fits = list(fit_folds(matrices, y, sample_weight, plan.n_classes, folds, settings))
        held_out = _held_out(fits, matrices, y, sample_weight, names, calibration_weight)
    temperature = held_out.found.temperature if held_out else 1.0
    names = names.scaled(held_out.found.name_weight if held_out else 0.0)
    boosted = logit.scale_by_temperature(fit.learners, temperature)
    readings = [Reading(*parts) for parts in zip(tokens, floors, scalings, strict=True)]
    ensemble, prompts = prune_unused(
        "logit", [*names.learners, *boosted], readings, fit.initial / temperature
    )
    spoken = logit.coefficients_of(boosted, [len(ids) for ids in tokens], plan.n_classes)
    said = np.stack([scalings[p].apply(matrices[p]) @ spoken[p] for p in prompts])
    low, high = early_stopping.contribution_bounds(said, y, sample_weight)
    low, high = low + names.low[prompts], high + names.high[prompts]
    if held_out:
        initial, added = held_out.initial, held_out.contributions[prompts]
    else:
        initial, added = ensemble.initial, early_stopping.clip_contributions(said, low, high)
    ensemble = replace(
        ensemble,
        early_stopping=_stopping(added, initial, low, high, sample_weight, risk=bool(folds)),
    )
    summary: dict[str, Any] = {"n_rounds": len(fit.learners)}
    if held_out:
        summary |= {
            "temperature": round(temperature, 4),
            "name_weight": round(held_out.found.name_weight, 4),
            "cv_log_loss": round(held_out.found.loss, 4),
            "cv_folds": len(folds),
        }
    summary |= {"n_names": len(names.learners), "names_unspelled": names.unspelled}
    return ensemble, prompts, summary


@dataclass(frozen=True)
class _HeldOut:
    """Calibration, and the calibrated scores of rows that were held out.

    `initial` is of shape (n, n_classes), `contributions` of shape (P, n, n_classes).
    """

    found: Calibration
    initial: NDArray[np.float64]
    contributions: NDArray[np.float64]


def _held_out(
    fits: Sequence[FoldFit],
    matrices: list[Matrix],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    names: NamePrior,
    calibration_weight: NDArray[np.float64] | None,
) -> _HeldOut:
    """Find the temperature and what names are worth; see `boost` for the weight."""
    judged = sample_weight if calibration_weight is None else calibration_weight
    coldest = 0.5 if calibration_weight is None else 1.0
    initial, added = held_out_contributions(fits, matrices, y, sample_weight)
    found = calibrate(
        initial + added.sum(axis=0), y, judged, min_temperature=coldest, expert_scores=names.votes
    )
    if not found.name_weight:
        return _HeldOut(found, initial / found.temperature, added / found.temperature)
    initial, added = held_out_contributions(
        fits,
        matrices,
        y,
        sample_weight,
        temperature=found.temperature,
        names=names.scaled(found.name_weight),
    )
    # limited together they are not quite what was weighed apart
    more = calibrate(
        initial + added.sum(axis=0), y, judged, min_temperature=coldest / found.temperature
    )
    both = Calibration(
        found.temperature * more.temperature, found.name_weight / more.temperature, more.loss
    )
    return _HeldOut(both, initial / more.temperature, added / more.temperature)


def _boost_samme(
    answers: Answers,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    plan: TrainingOptions,
    rng: np.random.Generator,
) -> tuple[Ensemble, list[int], dict[str, Any]]:
    train, held_out = stratified_split(y, plan.validation_fraction, rng)
    ids, values = answers.token_ids, answers.log_probs
    matrices, tokens, floors = features.frequent_matrices(
        ids, values, sample_weight[train], 0.0, train
    )
    validation = None
    if len(held_out):
        others = [
            features.gather(ids[p, held_out], values[p, held_out], tokens[p], floors[p])
            for p in range(len(tokens))
        ]
        validation = (others, y[held_out], sample_weight[held_out])
    learners = samme.fit_samme(
        matrices,
        y[train],
        sample_weight[train],
        plan.n_classes,
        n_estimators=plan.n_estimators or default_n_estimators("samme", len(train), plan.n_classes),
        rng=rng,
        validation=validation,
    )
    plain = [
        logit.Scaling(np.zeros(len(ids), np.float32), np.ones(len(ids), np.float32))
        for ids in tokens
    ]
    readings = [Reading(*parts) for parts in zip(tokens, floors, plain, strict=True)]
    summary = {
        "n_rounds": len(learners),
        "n_rows_boosted": len(train),
        "n_rows_validation": len(held_out),
    }
    initial = np.zeros(plan.n_classes)
    ensemble, prompts = prune_unused("samme", learners, readings, initial)
    # a vote is its weight and no more: that is the limit
    low, high = ensemble.vote_bounds()
    said = ensemble.contributions(_read(ensemble, prompts, matrices, tokens))
    ensemble = replace(
        ensemble,
        early_stopping=_stopping(said, initial, low, high, sample_weight[train], risk=False),
    )
    return ensemble, prompts, summary


def _stopping(
    contributions: NDArray[np.float64],
    initial: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    sample_weight: NDArray[np.float64],
    *,
    risk: bool,
) -> EarlyStopping:
    """When prediction may stop; at a risk only where contributions are those of held-out rows."""
    order = early_stopping.prompt_order(contributions, initial, low, high, sample_weight)
    known = replace(early_stopping.no_bounds(*low.shape), low=low, high=high, order=order)
    if risk:
        leads = early_stopping.risk_leads(contributions, initial, order, sample_weight)
        known = replace(known, leads=leads)
    return early_stopping.with_survival(known, contributions, initial, sample_weight)


def _read(
    ensemble: Ensemble,
    prompts: list[int],
    matrices: list[Matrix],
    tokens: list[NDArray[np.int32]],
) -> list[Matrix]:
    """The columns that the ensemble reads."""
    return [
        matrices[prompt][:, np.searchsorted(tokens[prompt], reading.token_ids)]
        for prompt, reading in zip(prompts, ensemble.readings, strict=True)
    ]
