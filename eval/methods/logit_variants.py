"""Reimplementation of `logit` with switches for choices that are fixed in the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.model_selection import StratifiedKFold

from blackbox.answers import features
from blackbox.answers.features import Matrix
from blackbox.answers.passes import Answers
from blackbox.boosting.algorithms import ALGORITHMS
from blackbox.boosting.calibration import NAME_PRIOR, SCORE_PRIOR, calibrate
from blackbox.boosting.early_stopping import clip_contributions
from blackbox.boosting.early_stopping_fit import contribution_bounds
from blackbox.boosting.weak_learner import one_blas_thread, softmax
from blackbox.experts.base import ExpertScores
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import NO_TOKEN
from eval.methods.base import Codes, PromptedClassifier, Scores
from eval.methods.name_prior import NameScores, name_coefficients, scale_name_scores

__all__ = ["Variant", "VariantClassifier"]

_FOLDS = 5


@dataclass(frozen=True)
class _BoostedScores:
    """Result of boosting: coefficients per prompt and class, and the bounds of contributions."""

    initial: NDArray[np.float64]
    coefficients: list[NDArray[np.float64]]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    standardise: Callable[[list[Matrix]], list[NDArray[np.float64]]]
    clip: bool

    def predict(
        self, others: list[Matrix], temperature: float = 1.0, names: NameScores | None = None
    ) -> Scores:
        """Return scores of shape (n, n_classes)."""
        matrices = self.standardise(others)
        added = np.stack([m @ c for m, c in zip(matrices, self.coefficients, strict=True)])
        added /= temperature
        added -= added.mean(axis=2, keepdims=True)
        low, high = self.low / temperature, self.high / temperature
        if names:
            added += np.stack([m @ c for m, c in zip(matrices, names.coefficients, strict=True)])
            low, high = low + names.low, high + names.high
        if self.clip:
            added = clip_contributions(added, low, high)
        return np.asarray(self.initial / temperature + added.sum(axis=0))


@dataclass(frozen=True)
class Variant:
    """Settings of the boosting; the defaults are the package's.

    Parameters
    ----------
    rounds, rate, tokens : number
        As `n_estimators`, `learning_rate` and `tokens_per_class`.
    own_share : float
        As in `blackbox.boosting.logit.Settings`.
    token_share : float
        As `min_token_share`.
    soft : bool
        Whether a token's weight is its correlation less that of the strongest token left out; if
        False, all tokens have equal weights.
    offset : float or None
        Added to a token's standard deviation before dividing by it; None doesn't standardise.
    centred : bool
        Whether the row's mean over the tokens is subtracted first.
    subsample : float
        Share of the rows that each round selects tokens by (Friedman 2002).
    exact : bool
        Whether the curvature of a step is the variance of the scores under the probabilities; if
        False, it lacks the square of their mean.
    clip : bool
        Whether the contribution of a prompt is clipped (`blackbox.boosting.early_stopping`).
    row_floor : bool
        Whether a missing token has the row's least log-probability, less the margin, and not the
        prompt's floor.
    use_names : bool
        Whether class names are used as label words.
    name_prior : (float, float)
        The `prior` of `blackbox.boosting.calibration.calibrate`.
    """

    rounds: int | None = None
    rate: float = 1.0
    tokens: int = 32
    own_share: float = 0.3
    token_share: float = 0.1
    soft: bool = True
    offset: float | None = 0.6
    centred: bool = False
    subsample: float = 1.0
    exact: bool = True
    clip: bool = True
    row_floor: bool = False
    use_names: bool = True
    name_prior: tuple[float, float] = NAME_PRIOR

    def fit(
        self, train: Answers, y: Codes, seed: int, names: Sequence[str] = ()
    ) -> Callable[[Answers], Scores]:
        """Return a function from answers to log-probabilities, calibrated as in the package.

        Parameters
        ----------
        train : Answers
            Of the training rows.
        y : int array of shape (n,)
            Their classes.
        seed : int
            Of the folds.
        names : sequence of str
            The class names.
        """
        _, tokens, floors = features.frequent_matrices(
            train.token_ids, train.log_probs, np.ones(len(y)), self.token_share
        )

        def read(answers: Answers) -> list[Matrix]:
            parts = zip(answers.token_ids, answers.log_probs, tokens, floors, strict=True)
            return [self._matrix(*part) for part in parts]

        matrices, n_classes = read(train), int(y.max()) + 1
        used_names = names if self.use_names else ()
        coefficients = name_coefficients(tokens, train, used_names, n_classes)
        name_scores = scale_name_scores(coefficients, self._standardiser(matrices)(matrices))
        boosted = self._boost(matrices, y, seed)
        n_folds = min(_FOLDS, int(np.bincount(y).min()))
        temperature = 1.0
        if n_folds < 2:
            name_scores = None
        else:
            temperature, name_scores = self._calibrate(matrices, y, seed, n_folds, name_scores)
        return lambda answers: np.asarray(
            log_softmax(boosted.predict(read(answers), temperature, name_scores), axis=1)
        )

    def _calibrate(
        self,
        matrices: list[Matrix],
        y: Codes,
        seed: int,
        n_folds: int,
        name_scores: NameScores | None,
    ) -> tuple[float, NameScores | None]:
        """Cross-validate; return the temperature and the weighted name scores."""
        n_rounds = self._n_rounds(y)
        folds = []
        for fit, rest in StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(y, y):
            some, left = ([m[part] for m in matrices] for part in (fit, rest))
            folds.append((self._boost(some, y[fit], seed, n_rounds), left, rest))

        def held_out(temperature: float, names: NameScores | None) -> Scores:
            scores = np.zeros((len(y), int(y.max()) + 1))
            for of_fold, left, rest in folds:
                scores[rest] = of_fold.predict(left, temperature, names)
            return scores

        ones = np.ones(len(y))
        experts = (
            [ExpertScores("names", name_scores.scores, *self.name_prior)] if name_scores else []
        )
        temperature, weights, _ = calibrate(held_out(1.0, None), y, ones, experts=experts)
        if not name_scores or weights[0] <= 0:
            return temperature, None
        weight = weights[0]
        clipped = held_out(temperature, name_scores.scaled(weight))
        more = calibrate(
            clipped,
            y,
            ones,
            min_temperature=0.5 / temperature,
            prior=(float(clipped.std()), SCORE_PRIOR[1]),
        ).temperature
        return temperature * more, name_scores.scaled(weight / more)

    def _n_rounds(self, y: Codes) -> int:
        return self.rounds or ALGORITHMS["logit"].default_n_estimators(len(y), int(y.max()) + 1)

    def _matrix(
        self, ids: NDArray[np.int32], values: Matrix, tokens: NDArray[np.int32], floor: float
    ) -> Matrix:
        if self.row_floor:
            matrix = features.gather(ids, values, tokens, -np.inf)
            least = np.where(ids == NO_TOKEN, np.inf, values).min(axis=1, keepdims=True)
            matrix = np.where(np.isneginf(matrix), least - features.FLOOR_MARGIN, matrix)
        else:
            matrix = features.gather(ids, values, tokens, floor)
        return matrix - matrix.mean(axis=1, keepdims=True) if self.centred else matrix

    def _standardiser(
        self, train: list[Matrix]
    ) -> Callable[[list[Matrix]], list[NDArray[np.float64]]]:
        means = [matrix.mean(axis=0) for matrix in train]
        scales: list[Any] = [1.0] * len(train)
        if self.offset is not None:
            scales = [matrix.std(axis=0) + self.offset for matrix in train]
        return lambda some: [
            (m - mean) / scale for m, mean, scale in zip(some, means, scales, strict=True)
        ]

    def _boost(
        self, train: list[Matrix], y: Codes, seed: int, n_rounds: int | None = None
    ) -> _BoostedScores:
        rng = np.random.default_rng(seed)
        standardise = self._standardiser(train)
        matrices = standardise(train)
        n_classes = int(y.max()) + 1
        target = np.eye(n_classes)[y]
        initial = np.log(target.mean(axis=0))
        scores = np.zeros((len(matrices), len(y), n_classes))
        coefficients = [np.zeros((matrix.shape[1], n_classes)) for matrix in matrices]
        for number in range(n_rounds or self._n_rounds(y)):
            prompt = number % len(matrices)
            matrix = matrices[prompt]
            mixed = (1 - self.own_share) * scores.sum(axis=0)
            mixed += self.own_share * len(matrices) * scores[prompt]
            probabilities = softmax(initial + mixed)
            residual = target - probabilities
            drawn = np.ones(len(y), bool)
            if self.subsample < 1:
                drawn = rng.random(len(y)) < self.subsample
            verbalizer = self._verbalizer((residual * drawn[:, None]).T @ matrix)
            votes = matrix @ verbalizer.T
            if self.exact:
                spread = votes - (probabilities * votes).sum(axis=1, keepdims=True)
                curvature = (probabilities * spread**2).sum()
            else:
                curvature = (probabilities * (1 - probabilities) * votes**2).sum()
            step = self.rate * (residual * votes).sum() / (curvature + 1)
            step /= 1 - self.own_share + self.own_share * len(matrices)
            scores[prompt] += step * votes
            coefficients[prompt] += step * verbalizer.T
        scores -= scores.mean(axis=2, keepdims=True)
        low, high = contribution_bounds(scores, y, np.ones(len(y)))
        return _BoostedScores(initial, coefficients, low, high, standardise, self.clip)

    def _verbalizer(self, correlation: NDArray[np.float64]) -> NDArray[np.float64]:
        strength = np.abs(correlation)
        place = max(strength.shape[1] - self.tokens, 0)
        least = np.sort(strength, axis=1)[:, place, None]
        if self.soft:
            below = np.sort(strength, axis=1)[:, place - 1, None] if place else 0.0
            weights = np.maximum(strength - below, 0.0)
        else:
            weights = (strength >= least).astype(np.float64)
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
        return np.asarray(weights * np.sign(correlation))


class VariantClassifier(PromptedClassifier):
    """Classifier that boosts with the settings of a `Variant`.

    Parameters
    ----------
    backend, prompts, top_k, random_state
        As for `PromptedClassifier`.
    variant : Variant, optional
        The settings.
    """

    def __init__(
        self,
        backend: Any,
        prompts: PromptPool,
        *,
        top_k: int = 200,
        random_state: int = 0,
        variant: Variant | None = None,
    ) -> None:
        super().__init__(backend, prompts, top_k=top_k, random_state=random_state)
        self.variant = variant

    def _learn(self, answers: Answers, codes: Codes) -> None:
        with one_blas_thread():
            names = [str(label) for label in self.classes_.tolist()]
            self._model = (self.variant or Variant()).fit(answers, codes, self.random_state, names)

    def _scores(self, answers: Answers) -> Scores:
        return self._model(answers)
