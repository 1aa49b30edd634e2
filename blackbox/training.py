"""The step of `fit` from forward passes to an ensemble. It sees training rows only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox import features, label_words, logit, samme, stopping
from blackbox.boosting import Matrix, WeakLearner, one_blas_thread
from blackbox.ensemble import Ensemble, Reading, compact
from blackbox.passes import Answers
from blackbox.sampling import stratified_folds, stratified_split
from blackbox.stopping import Stopping

__all__ = ["Boosted", "Plan", "boost", "usual_rounds"]

_BLOCK = 1024  # rows in double precision at a time
_ROUNDS, _ROWS_A_ROUND, _MOST_ROUNDS = 100, 5, 1000
_ROUNDS_SAMME = 200
_NO_SPREAD = 1e-6  # of what names say: they say the same of all rows


def usual_rounds(algorithm: str, n_rows: int) -> int:
    """Rounds where nobody says how many: those of ``"logit"`` grow with what there is to learn."""
    if algorithm == "samme":
        return _ROUNDS_SAMME
    return min(max(_ROUNDS, n_rows // _ROWS_A_ROUND), _MOST_ROUNDS)


@dataclass(frozen=True)
class Plan:
    """The estimator's parameters that boosting needs; see `PromptBoostingClassifier`."""

    algorithm: str
    n_classes: int
    n_estimators: int
    learning_rate: float
    tokens_per_class: int
    cv: int | None
    validation_fraction: float
    min_token_share: float
    label_words: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Boosted:
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
    plan: Plan,
    rng: np.random.Generator,
    calibration_weight: NDArray[np.float64] | None = None,
) -> Boosted:
    """Grow an ensemble out of answers on training rows.

    Parameters
    ----------
    answers : Answers
        Of n rows under P prompts, all answered.
    y : int array of shape (n,)
        Classes from 0.
    sample_weight : float array of shape (n,)
        Weights above 0.
    plan : Plan
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
    return Boosted(ensemble, prompts, coverage, summary)


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
    plan: Plan,
    rng: np.random.Generator,
    calibration_weight: NDArray[np.float64] | None,
) -> tuple[Ensemble, list[int], dict[str, Any]]:
    matrices, tokens, floors = features.frequent_matrices(
        answers.token_ids, answers.log_probs, sample_weight, plan.min_token_share
    )
    settings = logit.Settings(plan.n_estimators, plan.learning_rate, plan.tokens_per_class)
    scalings = [logit.scaling_of(matrix, sample_weight) for matrix in matrices]
    names, votes = _name_learners(
        tokens, answers.token_bytes, matrices, scalings, sample_weight, plan
    )
    temperature, summary = 1.0, dict[str, Any]()
    folds = stratified_folds(y, plan.cv, rng)
    if folds:
        fits = logit.fit_folds(matrices, y, sample_weight, plan.n_classes, folds, settings)
        unseen = logit.held_out_contributions(fits, matrices, y, sample_weight)
        temperature, name_weight, loss = logit.calibrate(
            unseen[0] + unseen[1].sum(axis=0), y,
            sample_weight if calibration_weight is None else calibration_weight,
            least=0.5 if calibration_weight is None else 1.0, votes=votes,
        )  # fmt: skip
        summary = {
            "temperature": round(temperature, 4),
            "name_weight": round(name_weight, 4),
            "cv_log_loss": round(loss, 4),
            "cv_folds": len(folds),
        }
        weighed = [replace(name, weight=name.weight * name_weight) for name in names]
        names = weighed if name_weight > 0 else []
    else:
        names = []  # nothing says what they are worth beside scores that are too sure
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
    readings = [Reading(*parts) for parts in zip(tokens, floors, scalings, strict=True)]
    learners = [*names, *logit.cooled(fit.learners, temperature)]
    ensemble, prompts = compact("logit", learners, readings, fit.initial / temperature)
    said = ensemble.contributions(_read(ensemble, prompts, matrices, tokens))
    low, high = stopping.limits_of(said, y, sample_weight)
    if not folds:
        initial, added = ensemble.initial, stopping.limited(said, low, high)
    elif names:
        initial, added = logit.held_out_contributions(
            fits, matrices, y, sample_weight, temperature=temperature, names=names
        )
        added = added[prompts]
    else:
        initial, added = unseen[0] / temperature, unseen[1][prompts] / temperature
    ensemble = replace(
        ensemble, stopping=_stopping(added, initial, low, high, sample_weight, risk=bool(folds))
    )
    return ensemble, prompts, {"n_rounds": len(fit.learners), "n_names": len(names), **summary}


def _name_learners(
    tokens: list[NDArray[np.int32]],
    token_bytes: Mapping[int, bytes],
    matrices: list[Matrix],
    scalings: list[logit.Scaling],
    sample_weight: NDArray[np.float64],
    plan: Plan,
) -> tuple[list[WeakLearner], NDArray[np.float64] | None]:
    """What the names of the classes say under each prompt, and of each row, with variance 1.

    No learners and None where they say nothing.
    """
    names = []
    votes = np.zeros((len(matrices[0]), plan.n_classes))
    for prompt, ids in enumerate(tokens):
        learner = label_words.name_learner(prompt, ids, token_bytes, plan.label_words)
        if learner is None:
            continue
        names.append(learner)
        alone = replace(learner, prompt=0)
        (spoken,) = logit.coefficients_of([alone], [len(ids)], plan.n_classes)
        votes += scalings[prompt].apply(matrices[prompt]) @ spoken
    # their mean is zero, as each token's is
    spread = float(np.sqrt((sample_weight @ votes**2).mean() / sample_weight.sum()))
    if spread <= _NO_SPREAD:
        return [], None
    return [replace(learner, weight=1 / spread) for learner in names], votes / spread


def _boost_samme(
    answers: Answers,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    plan: Plan,
    rng: np.random.Generator,
) -> tuple[Ensemble, list[int], dict[str, Any]]:
    train, held_out = stratified_split(y, plan.validation_fraction, rng)
    seen = answers.take_rows(train)
    matrices, tokens, floors = features.frequent_matrices(
        seen.token_ids, seen.log_probs, sample_weight[train], 0.0
    )
    validation = None
    if len(held_out):
        unseen = answers.take_rows(held_out)
        others = [
            features.gather(unseen.token_ids[p], unseen.log_probs[p], tokens[p], floors[p])
            for p in range(len(tokens))
        ]
        validation = (others, y[held_out], sample_weight[held_out])
    learners = samme.fit_samme(
        matrices, y[train], sample_weight[train], plan.n_classes,
        n_estimators=plan.n_estimators, rng=rng, validation=validation,
    )  # fmt: skip
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
    ensemble, prompts = compact("samme", learners, readings, initial)
    # a vote is its weight and no more: that is the limit
    low, high = ensemble.vote_limits()
    said = ensemble.contributions(_read(ensemble, prompts, matrices, tokens))
    ensemble = replace(
        ensemble, stopping=_stopping(said, initial, low, high, sample_weight[train], risk=False)
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
) -> Stopping:
    """When prediction may stop; at a risk only where contributions are those of held-out rows."""
    order = stopping.order_of(contributions, initial, low, high, sample_weight)
    known = replace(stopping.unlimited(*low.shape), low=low, high=high, order=order)
    if risk:
        leads = stopping.risk_leads(contributions, initial, order, sample_weight)
        known = replace(known, leads=leads)
    return stopping.with_waiting(known, contributions, initial, sample_weight)


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
