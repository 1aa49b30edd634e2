"""Greedy forward selection of prompts, by the held-out loss of their ensemble.

The ensemble is the simplest `logit` model of several prompts: one small model per prompt, scores
added. So each candidate is fitted once, out of fold, and the loss of any ensemble of candidates is
a matter of adding scores: greedy forward selection (Caruana et al., "Ensemble selection from
libraries of models", ICML 2004) can look at hundreds of candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from blackbox.answers import features
from blackbox.answers.passes import Answers
from blackbox.boosting import calibration, logit
from blackbox.boosting.splits import stratified_folds
from blackbox.boosting.weak_learner import one_blas_thread

__all__ = ["EnsembleSelection", "best_prompts", "out_of_fold_scores"]

_MODEL = logit.Settings(n_estimators=12, learning_rate=0.3, tokens_per_class=16)
_FOLDS, _REPEATS = 4, 2
_MIN_TOKEN_SHARE = 0.1  # of rows that must report a token before it is read
_TEMPERATURES = np.geomspace(0.3, 30, 15)
_MIN_SIZE = 1e-3
_MIN_OF_ORIGIN = 4  # candidates that have a mean of their own


def out_of_fold_scores(
    answers: Answers,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_classes: int,
    seed: int,
    groups: NDArray[np.intp] | None = None,
) -> NDArray[np.float64]:
    """Return the scores of each prompt's own small model on rows that it was not fitted on.

    Parameters
    ----------
    answers : Answers
        Of n rows under P prompts, all answered.
    y : int array of shape (n,)
        Classes from 0.
    sample_weight : float array of shape (n,)
        Weights above 0.
    n_classes : int
        Number of classes.
    seed : int
        Seed of the folds.
    groups : int array of shape (n,), optional
        The groups of the rows; see `blackbox.boosting.splits`.

    Returns
    -------
    float64 array of shape (P, n, n_classes)
        Scores that sum to 0 over the classes and have a root mean square of 1; all 0 where the rows
        are too few for folds.
    """
    rng = np.random.default_rng(seed)
    repeats = [stratified_folds(y, _FOLDS, rng, groups) for _ in range(_REPEATS)]
    scores = np.zeros((len(answers.token_ids), len(y), n_classes))
    matrices, _, _ = features.frequent_matrices(
        answers.token_ids, answers.log_probs, sample_weight, _MIN_TOKEN_SHARE
    )
    with one_blas_thread():
        for number, matrix in enumerate(matrices):
            for folds in filter(None, repeats):
                scores[number] += calibration.held_out_scores(
                    [matrix], y, sample_weight, n_classes, folds, _MODEL
                )
    scores -= scores.mean(axis=2, keepdims=True)
    # prompts weigh the same, as in boosting, where they take turns: a weak one harms an ensemble
    size = np.sqrt((scores**2).mean(axis=(1, 2), keepdims=True))
    return np.asarray(scores / np.maximum(size, _MIN_SIZE))


class EnsembleSelection:
    """Greedy forward selection among candidates.

    Parameters
    ----------
    scores : float64 array of shape (P, n, n_classes)
        Of P candidates and n rows, from `out_of_fold_scores`.
    y : int array of shape (n,)
        Classes from 0.
    sample_weight : float array of shape (n,)
        Weights above 0.
    costs : float array of shape (P,), optional
        A penalty for each candidate, in nats; none by default.
    origins : sequence of P str, optional
        The source of each candidate, for `selection_bias`; by default all are of one.
    groups : int array of shape (n,), optional
        The groups of the rows; see `blackbox.boosting.splits`.
    """

    def __init__(
        self,
        scores: NDArray[np.float64],
        y: NDArray[np.intp],
        sample_weight: NDArray[np.float64],
        costs: NDArray[np.float64] | None = None,
        origins: Sequence[str] | None = None,
        groups: NDArray[np.intp] | None = None,
    ) -> None:
        self._scores = scores
        self._y = y
        self._share = sample_weight / sample_weight.sum()
        self._costs = np.zeros(len(scores)) if costs is None else costs
        self._origins = [""] * len(scores) if origins is None else origins
        self._groups = np.arange(len(y)) if groups is None else groups

    @cached_property
    def single_losses(self) -> NDArray[np.float64]:
        """The held-out log-loss of each candidate alone."""
        return self._losses(np.zeros(self._scores.shape[1:]), range(len(self._scores)))

    @cached_property
    def selection_bias(self) -> NDArray[np.float64]:
        """The expected optimism of each candidate's loss, in nats.

        The best of many candidates look better than they are. So each loss is shrunk towards the
        mean of its source, the more the less two halves of the rows agree on which candidates are
        good: shrinkage as by Efron and Morris, "Data analysis using Stein's estimator and its
        generalizations" (1975).
        """
        losses = self.single_losses
        if len(losses) < _MIN_OF_ORIGIN:
            return np.zeros(len(losses))
        means = np.full(len(losses), losses.mean())
        for origin in set(self._origins):
            members = [number for number, name in enumerate(self._origins) if name == origin]
            if len(members) >= _MIN_OF_ORIGIN:
                means[members] = losses[members].mean()
        return np.asarray((1 - self._reliability()) * (means - losses))

    def select(self, n: int) -> tuple[list[int], list[float]]:
        """Select up to n candidates, each time the one that lowers the penalised loss most.

        Returns
        -------
        selected : list of int
            Numbers of candidates, in the order of selection.
        gains : list of float
            By how much the log-loss fell with each of them.
        """
        remaining = list(range(len(self._scores)))
        ensemble = np.zeros(self._scores.shape[1:])
        loss = float(np.log(self._scores.shape[2]))  # of equal probabilities
        selected: list[int] = []
        gains: list[float] = []
        while remaining and len(selected) < n:
            losses = self._losses(ensemble, remaining)
            # one of m + 1 members brings that share of its bias to the ensemble
            bias = self.selection_bias[remaining] / (len(selected) + 1)
            place = int(np.argmin(losses + self._costs[remaining] + bias))
            number = remaining.pop(place)
            gains.append(float(loss - losses[place]))
            loss = float(losses[place])
            ensemble += self._scores[number]
            selected.append(number)
        return selected, gains

    def rank_alone(self) -> list[int]:
        """Return all candidates by the penalised loss of each alone, the best first."""
        losses = self.single_losses + self._costs + self.selection_bias
        return [int(number) for number in np.argsort(losses, kind="stable")]

    def typical_rows(self, selected: Sequence[int]) -> list[list[int]]:
        """Return the rows of each class by their margin in an ensemble, the largest first."""
        scores = self._scores[list(selected)].sum(axis=0)
        margins = scores[np.arange(len(self._y)), self._y] - np.where(
            np.eye(scores.shape[1], dtype=bool)[self._y], -np.inf, scores
        ).max(axis=1)
        return [
            sorted(np.flatnonzero(self._y == label).tolist(), key=lambda row: (-margins[row], row))
            for label in range(scores.shape[1])
        ]

    def _losses(
        self, ensemble: NDArray[np.float64], candidates: Sequence[int]
    ) -> NDArray[np.float64]:
        """Return the log-loss of an ensemble with each candidate added, at its best temperature.

        Parameters
        ----------
        ensemble : float64 array of shape (n, n_classes)
            The sum of its members' scores.
        candidates : sequence of int
            Numbers of candidates.
        """
        scores = ensemble + self._scores[list(candidates)]
        best = np.full(len(scores), np.inf)
        for temperature in _TEMPERATURES:
            scaled = scores / temperature
            highest = scaled.max(axis=2)
            log_total = highest + np.log(np.exp(scaled - highest[:, :, None]).sum(axis=2))
            of_label = scaled[:, np.arange(len(self._y)), self._y]
            best = np.minimum(best, (log_total - of_label) @ self._share)
        return best

    def _reliability(self) -> float:
        """Return the reliability of the single losses, in [0, 1]; 1 where it can't be measured.

        The groups of each class are split into halves. The correlation of their losses is that of
        half of the rows; the Spearman-Brown formula gives that of all.
        """
        half_of = np.full(self._groups.max() + 1, -1)
        for label in np.unique(self._y):
            of_class = dict.fromkeys(self._groups[self._y == label].tolist())
            new = [group for group in of_class if half_of[group] < 0]
            half_of[new] = np.arange(len(new)) % 2
        halves = []
        for half in (0, 1):
            rows = half_of[self._groups] == half
            part = EnsembleSelection(self._scores[:, rows], self._y[rows], self._share[rows])
            halves.append(part.single_losses)
        if not all(np.ptp(half) > 0 for half in halves):
            return 1.0
        correlation = float(np.asarray(np.corrcoef(halves))[0, 1])
        return float(np.clip(2 * correlation / (1 + max(correlation, 0.0)), 0.0, 1.0))


def best_prompts(
    answers: Answers,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_classes: int,
    n: int,
    rng: np.random.Generator,
    groups: NDArray[np.intp] | None = None,
) -> list[int]:
    """Select the n prompts of the best ensemble, in the order of their numbers.

    Parameters
    ----------
    answers, y, sample_weight, n_classes
        As for `out_of_fold_scores`.
    n : int
        How many.
    rng : numpy Generator
        For the folds.
    groups : int array of shape (n,), optional
        The groups of the rows; see `blackbox.boosting.splits`.
    """
    seed = int(rng.integers(2**31))
    scores = out_of_fold_scores(answers, y, sample_weight, n_classes, seed, groups)
    return sorted(EnsembleSelection(scores, y, sample_weight, groups=groups).select(n)[0])
