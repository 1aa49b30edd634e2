"""`logit` with experts taken apart, so that priors and gates share one boosting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from blackbox.answers import features
from blackbox.answers.features import Matrix
from blackbox.answers.passes import Answers
from blackbox.boosting import held_out, logit
from blackbox.boosting.algorithms import ALGORITHMS
from blackbox.boosting.calibration import (
    NAME_PRIOR,
    SCORE_PRIOR,
    calibrate,
    fit_folds,
    held_out_contributions,
    log_losses,
    with_all_rows,
)
from blackbox.boosting.early_stopping import clip_contributions
from blackbox.boosting.early_stopping_fit import contribution_bounds
from blackbox.boosting.held_out import HeldOut, calibrate_held_out
from blackbox.boosting.label_words import name_prior, words_of
from blackbox.boosting.logit_algorithm import _TrainingRows
from blackbox.boosting.splits import stratified_folds
from blackbox.boosting.training import TrainingOptions
from blackbox.boosting.weak_learner import softmax
from blackbox.experts.base import ExpertScores

__all__ = ["Boosted", "NameVotes"]

_STRENGTH = 3.0  # of the priors of `Boosted.mix_by_evidence`


class Boosted:
    """A boosted model and those of its folds, to be calibrated with any experts.

    Parameters
    ----------
    answers : Answers
        Of n training rows.
    y : int array of shape (n,)
        Their classes.
    names : sequence of str
        The names of the classes.
    seed : int
        Of the folds.
    """

    def __init__(
        self, answers: Answers, y: NDArray[np.intp], names: Sequence[str], seed: int
    ) -> None:
        self.y, self.weight = y, np.ones(len(y))
        words = [words_of(name) for name in names]
        options = TrainingOptions(
            ALGORITHMS["logit"], len(names), None, 1.0, 32, 5, 0.5, 0.1, words
        )
        settings = logit.Settings(options.rounds(len(y)), 1.0, 32)
        self._rows = _TrainingRows.read(answers, y, self.weight, options, None)
        self.folds = stratified_folds(y, 5, np.random.default_rng(seed))
        labelled = (y, self.weight, len(names))
        folds = with_all_rows(self.folds, len(y))
        whole, *self._fits = fit_folds(self._rows.matrices, *labelled, folds, settings)
        self._fit = whole.fit
        self._prior = self._rows.name_prior(self._fit, answers, words)
        self._last: tuple[Answers, list[Matrix]] | None = None

    @cached_property
    def _held_out(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return held_out_contributions(self._fits, self.y, self.weight)

    @cached_property
    def _seen(self) -> list[Matrix]:
        rows = self._rows
        return [s.apply(m) for s, m in zip(rows.scalings, rows.matrices, strict=True)]

    def _read(self, answers: Answers) -> list[Matrix]:
        """Return the standardised matrices of other rows, and remember the last ones."""
        if self._last is None or self._last[0] is not answers:
            rows = self._rows
            parts = zip(
                answers.token_ids,
                answers.log_probs,
                rows.tokens,
                rows.floors,
                rows.scalings,
                strict=True,
            )
            read = [
                scaling.apply(features.gather(ids, values, tokens, floor))
                for ids, values, tokens, floor, scaling in parts
            ]
            self._last = answers, read
        return self._last[1]

    def calibrate(
        self, experts: Sequence[ExpertScores], score_prior: tuple[float, float] = SCORE_PRIOR
    ) -> HeldOut:
        """Calibrate with all of these experts, whatever a gate would say."""

        def remembered(*args: Any, **options: Any) -> Any:
            return held_out_contributions(*args, **options) if options else self._held_out

        with (
            patch.object(held_out, "select_experts", lambda *_, **__: list(experts)),
            patch.object(held_out, "SCORE_PRIOR", score_prior),
            patch.object(held_out, "held_out_contributions", remembered),
        ):
            return calibrate_held_out(
                self._fits,
                self.y,
                self.weight,
                self.weight,
                min_temperature=0.5,
                priors=[self._prior] * len(self._fits),
                experts=experts,
            )

    def gain(self, given: Sequence[ExpertScores], more: ExpertScores) -> float:
        """Return the mean gain in held-out log-loss by one more expert, in standard errors."""
        scores = self._held_out[0] + self._held_out[1].sum(axis=0)
        votes = self._prior.votes
        names = [] if votes is None else [ExpertScores("names", votes, *NAME_PRIOR)]
        losses = []
        for experts in ([*names, *given], [*names, *given, more]):
            found = calibrate(scores, self.y, self.weight, experts=experts)
            losses.append(log_losses(found.apply(scores, experts), self.y))
        gains = losses[0] - losses[1]
        return float(gains.mean() / max(gains.std(ddof=1) / np.sqrt(len(gains)), 1e-12))

    def mix_by_evidence(
        self, expert: ExpertScores
    ) -> Callable[[Answers, NDArray[np.float64]], NDArray[np.float64]]:
        """Return a function of answers and votes that mixes both by which is better held out.

        Each is calibrated alone; s is the probability, by a paired test over held-out rows, that
        the expert alone has the lower log-loss. The weights of both have priors whose means are
        those of each alone, times 1 − s and s: a geometric mean of the two, which the held-out rows
        may correct. The weight of the LM may be 0.
        """
        from scipy.optimize import minimize
        from scipy.stats import norm

        scores = self._held_out[0] + self._held_out[1].sum(axis=0)
        votes = self._prior.votes
        names = [] if votes is None else [ExpertScores("names", votes, *NAME_PRIOR)]
        lm = calibrate(scores, self.y, self.weight, experts=names)
        free = ExpertScores(expert.name, expert.scores, 0.7, 1.0)
        nothing = np.zeros_like(scores)
        own = calibrate(nothing, self.y, self.weight, experts=[free])
        gains = log_losses(lm.apply(scores, names), self.y)
        gains -= log_losses(own.apply(nothing, [free]), self.y)
        error = gains.std(ddof=1) * np.sqrt(len(gains))
        share = float(norm.cdf(gains.sum() / max(error, 1e-12)))
        parts = np.stack([lm.apply(scores, names), expert.scores])
        mean = np.array([1 - share, share * own.weights[0]])
        target = np.eye(scores.shape[1])[self.y]

        def objective(at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            mixed = np.einsum("j,jnk->nk", at, parts)
            penalty = _STRENGTH * (at - mean)
            loss = log_losses(mixed, self.y).sum() + penalty @ (at - mean) / 2
            error = softmax(mixed) - target
            return float(loss), np.einsum("nk,jnk->j", error, parts) + penalty

        found = minimize(objective, mean, jac=True, bounds=[(0.0, 4.0)] * 2).x
        alone = self.calibrate([])

        def mix(answers: Answers, votes: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray(found[0] * self.scores(alone, answers) + found[1] * votes)

        return mix

    def scores(self, calibrated: HeldOut, answers: Answers) -> NDArray[np.float64]:
        """Return calibrated scores of other rows, without those of experts: (m, n_classes)."""
        rows = self._rows
        boosted = logit.scale_by_temperature(self._fit.learners, calibrated.temperature)
        widths = [len(ids) for ids in rows.tokens]
        coefficients = logit.coefficients_of(boosted, widths, rows.n_classes)
        low, high = contribution_bounds(
            logit.contributions(coefficients, self._seen), self.y, self.weight
        )
        prior = self._prior.scaled(calibrated.name_weight)
        coefficients = logit.coefficients_of([*prior.learners, *boosted], widths, rows.n_classes)
        added = clip_contributions(
            logit.contributions(coefficients, self._read(answers)),
            low + prior.low,
            high + prior.high,
        )
        return np.asarray(self._fit.initial / calibrated.temperature + added.sum(axis=0))


class NameVotes:
    """The votes of class names alone, by prompts that are standardised on texts without labels.

    Parameters
    ----------
    answers : Answers
        Of n texts.
    names : sequence of str
        The names of the classes.

    Attributes
    ----------
    trained : float64 array of shape (n, n_classes)
        The votes of these texts, with variance 1; 0 if no token spells a name.
    """

    def __init__(self, answers: Answers, names: Sequence[str]) -> None:
        weight = np.ones(answers.token_ids.shape[1])
        matrices, self._tokens, self._floors = features.frequent_matrices(
            answers.token_ids, answers.log_probs, weight, 0.1
        )
        self._scalings = [logit.scaling_of(matrix, weight) for matrix in matrices]
        prior = name_prior(
            range(len(matrices)),
            self._tokens,
            answers.token_bytes,
            matrices,
            self._scalings,
            weight,
            [words_of(name) for name in names],
            len(names),
        )
        widths = [len(ids) for ids in self._tokens]
        self._coefficients = logit.coefficients_of(prior.learners, widths, len(names))
        zeros = np.zeros((len(weight), len(names)))
        self.trained = zeros if prior.votes is None else prior.votes

    def of(self, answers: Answers) -> NDArray[np.float64]:
        """Return the votes of other texts: (m, n_classes)."""
        parts = zip(answers.token_ids, answers.log_probs, self._tokens, self._floors, strict=True)
        read = [features.gather(ids, values, tokens, floor) for ids, values, tokens, floor in parts]
        read = [s.apply(matrix) for s, matrix in zip(self._scalings, read, strict=True)]
        return np.asarray(logit.contributions(self._coefficients, read).sum(axis=0))
