"""The steps of `fit` between the forward passes and the ensemble.

`Gatherer` runs passes and never runs one twice; `screen` chooses prompts; `boost` grows the
ensemble. Everything here sees training rows only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit
from threadpoolctl import threadpool_limits

from blackbox import features, logit, samme
from blackbox.boosting import Matrix, WeakLearner
from blackbox.ensemble import Ensemble, Reading, compact
from blackbox.passes import Answers, next_tokens
from blackbox.prompts import Example, Prompt, PromptPool
from blackbox.protocol import NO_TOKEN, Backend, Usage
from blackbox.verbalizers import best_tuple, candidate_tokens

__all__ = ["Boosted", "Gatherer", "Plan", "best_single_learner", "boost", "screen"]

_MOST_TOKENS = 4096  # tokens kept a prompt, so that memory stays bounded by the rows
_SCREENING = logit.Settings(n_estimators=12, learning_rate=0.3, tokens_per_class=16)
_SCREENING_FOLDS = 4
_SCREENING_SHARE = 0.2


class Gatherer:
    """Forward passes over one set of texts, each made once.

    Parameters
    ----------
    backend : Backend
        The LM.
    examples : sequence of Example
        The texts.
    top_k : int
        Next tokens to read of each answer.
    callback : callable, optional
        Called with (stage, done, total).

    Attributes
    ----------
    usage : Usage
        What the passes took so far.
    """

    def __init__(
        self,
        backend: Backend,
        examples: Sequence[Example],
        top_k: int,
        callback: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self._backend = backend
        self._examples = examples
        self._top_k = top_k
        self._callback = callback
        self._known: dict[Prompt, tuple[NDArray[np.bool_], NDArray[np.int32], Matrix]] = {}
        self._token_bytes: dict[int, bytes] = {}
        self._row_errors: dict[int, str] = {}
        self._truncated: set[int] = set()
        self.usage = Usage()

    def answers(
        self,
        pool: PromptPool,
        rows: NDArray[np.intp] | None = None,
        stage: str = "forward passes",
    ) -> Answers:
        """Answers of all the pool's prompts, for all rows or some, in the order given."""
        rows = np.arange(len(self._examples)) if rows is None else rows
        missing: dict[bytes, list[Prompt]] = {}
        for prompt in pool:
            known = self._slot(prompt)[0]
            missing.setdefault(np.packbits(~known[rows]).tobytes(), []).append(prompt)
        jobs = [(prompts, rows[~self._slot(prompts[0])[0][rows]]) for prompts in missing.values()]
        total = sum(len(prompts) * len(wanted) for prompts, wanted in jobs)
        done = 0

        def count(passes: int) -> None:
            nonlocal done
            done += passes
            if self._callback:
                self._callback(stage, done, total)

        for prompts, wanted in jobs:
            if len(wanted):
                self._run(prompts, wanted, count)
        place = {int(row): number for number, row in enumerate(rows)}
        ids = np.stack([self._slot(prompt)[1][rows] for prompt in pool])
        # what another prompt was refused is no matter here
        refused = np.flatnonzero((ids[:, :, 0] == NO_TOKEN).any(axis=0))
        return Answers(
            ids,
            np.stack([self._slot(prompt)[2][rows] for prompt in pool]),
            self._token_bytes,
            {int(number): self._row_errors[int(rows[number])] for number in refused},
            {place[row] for row in self._truncated if row in place},
            self.usage,
        )

    def _slot(self, prompt: Prompt) -> tuple[NDArray[np.bool_], NDArray[np.int32], Matrix]:
        if prompt not in self._known:
            shape = (len(self._examples), self._top_k)
            self._known[prompt] = (
                # untouched zeros take no memory: most candidates are tried on few rows only
                np.zeros(shape[0], bool),
                np.zeros(shape, np.int32),
                np.zeros(shape, np.float32),
            )
        return self._known[prompt]

    def _run(
        self, prompts: list[Prompt], rows: NDArray[np.intp], count: Callable[[int], None]
    ) -> None:
        examples = [self._examples[row] for row in rows]
        answers = next_tokens(self._backend, prompts, examples, self._top_k, count)
        for number, prompt in enumerate(prompts):
            known, ids, values = self._slot(prompt)
            known[rows] = True
            ids[rows], values[rows] = answers.token_ids[number], answers.log_probs[number]
        self._token_bytes.update(answers.token_bytes)
        self._row_errors.update({int(rows[p]): why for p, why in answers.row_errors.items()})
        self._truncated |= {int(rows[place]) for place in answers.truncated}
        self.usage += answers.usage


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
    """
    coverage = float(np.exp(answers.log_probs.astype(np.float64)).sum(axis=2).mean())
    make = _boost_logit if plan.algorithm == "logit" else _boost_samme
    with _one_blas_thread():
        learners, readings, initial, summary = make(answers, y, sample_weight, plan, rng)
    ensemble, prompts = compact(plan.algorithm, learners, readings, initial)
    return Boosted(ensemble, prompts, coverage, {"n_rounds": len(learners), **summary})


def _boost_logit(
    answers: Answers,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    plan: Plan,
    rng: np.random.Generator,
) -> tuple[list[WeakLearner], list[Reading], NDArray[np.float64], dict[str, Any]]:
    matrices, tokens, floors = _matrices(answers, sample_weight, plan.min_token_share)
    settings = logit.Settings(plan.n_estimators, plan.learning_rate, plan.tokens_per_class)
    temperature, summary = 1.0, dict[str, Any]()
    folds = _folds(y, plan.cv, rng)
    if folds:
        temperature, loss = logit.calibrate(
            matrices, y, sample_weight, plan.n_classes, folds, settings
        )
        summary = {
            "temperature": round(temperature, 4),
            "cv_log_loss": round(loss, 4),
            "cv_folds": len(folds),
        }
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
    readings = [Reading(*parts) for parts in zip(tokens, floors, scalings, strict=True)]
    learners = [
        dataclasses.replace(learner, weight=learner.weight / temperature)
        for learner in fit.learners
    ]
    return learners, readings, fit.initial / temperature, summary


def _boost_samme(
    answers: Answers,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    plan: Plan,
    rng: np.random.Generator,
) -> tuple[list[WeakLearner], list[Reading], NDArray[np.float64], dict[str, Any]]:
    train, held_out = _split(y, plan.validation_fraction, rng)
    seen = answers.take_rows(train)
    matrices, tokens, floors = _matrices(seen, sample_weight[train], 0.0)
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
    summary = {"n_rows_boosted": len(train), "n_rows_validation": len(held_out)}
    return learners, readings, np.zeros(plan.n_classes), summary


def screen(
    gatherer: Gatherer,
    pool: PromptPool,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_prompts: int,
    n_rows: int,
    rng: np.random.Generator,
) -> tuple[list[int], NDArray[np.float64]]:
    """Choose prompts by how well each alone predicts training rows that it wasn't fitted on.

    Parameters
    ----------
    gatherer : Gatherer
        Runs the passes that are needed: those of all candidates on the screening rows.
    pool : PromptPool
        The candidates.
    y : int array of shape (n,)
        Classes of the training rows.
    sample_weight : float array of shape (n,)
        Their weights.
    n_prompts : int
        How many to choose.
    n_rows : int
        Most rows to try them on, drawn evenly from the classes.

    Returns
    -------
    chosen : list of int
        Numbers of the prompts, in the order of the pool.
    losses : float64 array of shape (len(pool),)
        Cross-validated log-loss of each.
    """
    rows = _balanced(y, n_rows, rng)
    answers = gatherer.answers(pool, rows, stage="trying prompts")
    kept = np.array([place for place in range(len(rows)) if place not in answers.row_errors], int)
    codes, weights = y[rows][kept], sample_weight[rows][kept]
    n_classes = int(y.max()) + 1
    folds = _folds(codes, _SCREENING_FOLDS, rng)
    losses = np.zeros(len(pool))
    if folds:
        matrices, _, _ = _matrices(answers.take_rows(kept), weights, _SCREENING_SHARE)
        with _one_blas_thread():
            for number, matrix in enumerate(matrices):
                curve = logit.cross_validated_losses(
                    [matrix], codes, weights, n_classes, folds, _SCREENING
                )
                losses[number] = curve.min()
    best = np.argsort(losses, kind="stable")[:n_prompts]
    return sorted(best.tolist()), losses


def _one_blas_thread() -> threadpool_limits:
    """The products of a round are small: threads would wait for each other more than work."""
    return threadpool_limits(1, user_api="blas")


def _matrices(
    answers: Answers, sample_weight: NDArray[np.float64], share: float
) -> tuple[list[Matrix], list[NDArray[np.int32]], list[float]]:
    """For each prompt the matrix of its frequent tokens, those tokens, and the floor."""
    matrices, tokens, floors = [], [], []
    for ids, values in zip(answers.token_ids, answers.log_probs, strict=True):
        floors.append(features.floor_of(ids, values, sample_weight))
        tokens.append(
            features.frequent_tokens(ids, sample_weight, share=share, at_most=_MOST_TOKENS)
        )
        matrices.append(features.gather(ids, values, tokens[-1], floors[-1]))
    return matrices, tokens, floors


def _folds(
    y: NDArray[np.intp], cv: int | None, rng: np.random.Generator
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Stratified folds, fewer where a class is small; none where a class has a single row."""
    n_splits = min(cv or 0, int(np.bincount(y)[np.unique(y)].min())) if len(y) else 0
    if n_splits < 2:
        return []
    folds = StratifiedKFold(n_splits, shuffle=True, random_state=int(rng.integers(2**31)))
    return list(folds.split(np.empty((len(y), 0)), y))


def _split(
    y: NDArray[np.intp], fraction: float, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to boost on, and rows to pick the number of rounds on (none if a class is small)."""
    everything = np.arange(len(y))
    n_held_out = round(fraction * len(y))
    n_classes = len(np.unique(y))
    if np.bincount(y)[np.unique(y)].min() < 2 or not n_classes <= n_held_out <= len(y) - n_classes:
        return everything, everything[:0]
    splitter = StratifiedShuffleSplit(
        1, test_size=n_held_out, random_state=int(rng.integers(2**31))
    )
    train, held_out = next(splitter.split(np.empty((len(y), 0)), y))
    return np.sort(train), np.sort(held_out)


def _balanced(y: NDArray[np.intp], n_rows: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """At most `n_rows` rows, the classes taking turns, at least two of each that has two."""
    if n_rows >= len(y):
        return np.arange(len(y))
    order = rng.permutation(len(y))
    turn = np.empty(len(y), int)
    for label in np.unique(y):
        of_class = order[y[order] == label]
        turn[of_class] = np.arange(len(of_class))
    rank = np.lexsort((rng.permutation(len(y)), turn))
    n_rows = max(n_rows, int((turn < 2).sum()))
    return np.sort(rank[:n_rows])


def best_single_learner(
    backend: Backend,
    pool: PromptPool,
    texts: Sequence[str],
    labels: Sequence[Any],
    new_texts: Sequence[str],
    top_k: int,
) -> NDArray[Any]:
    """The labels that the best single prompt and verbalizer gives: the baseline to beat.

    Of all prompts and one-token-a-class verbalizers, the pair with the least training error.

    Returns
    -------
    array of shape (len(new_texts),)
        Labels.
    """
    classes, y = np.unique(np.array(labels), return_inverse=True)
    weights = np.full(len(y), 1 / len(y))
    answers = Gatherer(backend, [(text, None) for text in texts], top_k).answers(pool)
    matrices, tokens, floors = _matrices(answers, weights, 0.0)
    rng = np.random.default_rng(0)
    k = samme.candidates_per_class(len(classes))
    found = []
    for matrix in matrices:
        candidates = candidate_tokens(matrix, y, weights, len(classes), k)
        found.append(best_tuple(matrix, y, weights, candidates, rng=rng))
    prompt = int(np.argmin([error for _, error in found]))
    columns = found[prompt][0]
    unseen = Gatherer(backend, [(text, None) for text in new_texts], top_k).answers(
        PromptPool([pool[prompt]])
    )
    matrix = features.gather(
        unseen.token_ids[0], unseen.log_probs[0], tokens[prompt], floors[prompt]
    )
    learner = WeakLearner(0, columns[:, None], np.ones((len(classes), 1), np.float32), 1.0)
    return classes[samme.votes(learner, [matrix])]
