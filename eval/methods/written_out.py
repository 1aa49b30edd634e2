"""`logit` written out once more, with switches for what the package has settled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.model_selection import StratifiedKFold

from blackbox import features
from blackbox.boosting import Matrix, one_blas_thread, softmax
from blackbox.passes import Answers
from blackbox.prompts import PromptPool
from blackbox.protocol import NO_TOKEN
from blackbox.stopping import limited, limits_of
from eval.methods.base import Codes, PromptedClassifier, Scores, best_temperature

__all__ = ["Variant", "WrittenOut"]

_FOLDS = 5

Boosted = Callable[[list[Matrix]], Scores]
"""From matrices to scores of shape (n, n_classes)."""


@dataclass(frozen=True)
class Variant:
    """A way to boost; the defaults are the package's.

    Parameters
    ----------
    rounds, rate, tokens : number
        As `n_estimators`, `learning_rate` and `tokens_per_class`.
    own_share : float
        As in `blackbox.logit.Settings`.
    token_share : float
        As `min_token_share`.
    soft : bool
        Whether tokens weigh what they have over the strongest that is left out, or all the same.
    offset : float or None
        Added to a token's standard deviation before dividing by it; None divides by nothing.
    centred : bool
        Whether the row's mean over the tokens is taken off first.
    rows : float
        Share of the rows that each round looks for tokens in (Friedman 2002).
    limits : bool
        Whether what a prompt adds is limited (`blackbox.stopping`).
    own_floor : bool
        Whether a missing token has the row's least log-probability, less the margin, and not the
        prompt's floor.
    """

    rounds: int = 100
    rate: float = 1.0
    tokens: int = 32
    own_share: float = 0.3
    token_share: float = 0.1
    soft: bool = True
    offset: float | None = 0.6
    centred: bool = False
    rows: float = 1.0
    limits: bool = True
    own_floor: bool = False

    def fit(self, train: Answers, y: Codes, seed: int) -> Callable[[Answers], Scores]:
        """From answers to log-probabilities of the classes, calibrated as in the package."""
        _, tokens, floors = features.frequent_matrices(
            train.token_ids, train.log_probs, np.ones(len(y)), self.token_share
        )

        def read(answers: Answers) -> list[Matrix]:
            parts = zip(answers.token_ids, answers.log_probs, tokens, floors, strict=True)
            return [self._matrix(*part) for part in parts]

        matrices = read(train)
        temperature, n_folds = 1.0, min(_FOLDS, int(np.bincount(y).min()))
        if n_folds >= 2:
            held_out = np.zeros((len(y), y.max() + 1))
            folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
            for fit, rest in folds.split(y, y):
                some, left = ([m[part] for m in matrices] for part in (fit, rest))
                held_out[rest] = self._boosted(some, y[fit], seed)(left)
            temperature, _ = best_temperature(held_out, y)
        boosted = self._boosted(matrices, y, seed)
        return lambda answers: np.asarray(log_softmax(boosted(read(answers)) / temperature, axis=1))

    def _matrix(
        self, ids: NDArray[np.int32], values: Matrix, tokens: NDArray[np.int32], floor: float
    ) -> Matrix:
        if self.own_floor:
            matrix = features.gather(ids, values, tokens, -np.inf)
            least = np.where(ids == NO_TOKEN, np.inf, values).min(axis=1, keepdims=True)
            matrix = np.where(np.isneginf(matrix), least - features.FLOOR_MARGIN, matrix)
        else:
            matrix = features.gather(ids, values, tokens, floor)
        return matrix - matrix.mean(axis=1, keepdims=True) if self.centred else matrix

    def _boosted(self, train: list[Matrix], y: Codes, seed: int) -> Boosted:
        rng = np.random.default_rng(seed)
        means = [matrix.mean(axis=0) for matrix in train]
        scales: list[Any] = [1.0] * len(train)
        if self.offset is not None:
            scales = [matrix.std(axis=0) + self.offset for matrix in train]

        def standardised(some: list[Matrix]) -> list[NDArray[np.float64]]:
            return [(m - mean) / scale for m, mean, scale in zip(some, means, scales, strict=True)]

        seen = standardised(train)
        n_classes = int(y.max()) + 1
        target = np.eye(n_classes)[y]
        initial = np.log(target.mean(axis=0))
        said = np.zeros((len(seen), len(y), n_classes))
        spoken = [np.zeros((matrix.shape[1], n_classes)) for matrix in seen]
        for number in range(self.rounds):
            prompt = number % len(seen)
            matrix = seen[prompt]
            mixed = (1 - self.own_share) * said.sum(axis=0)
            mixed += self.own_share * len(seen) * said[prompt]
            probabilities = softmax(initial + mixed)
            residual = target - probabilities
            looked = rng.random(len(y)) < self.rows if self.rows < 1 else np.ones(len(y), bool)
            verbalizer = self._verbalizer((residual * looked[:, None]).T @ matrix)
            votes = matrix @ verbalizer.T
            spread = (probabilities * (1 - probabilities) * votes**2).sum()
            step = self.rate * (residual * votes).sum() / (spread + 1)
            step /= 1 - self.own_share + self.own_share * len(seen)
            said[prompt] += step * votes
            spoken[prompt] += step * verbalizer.T
        said -= said.mean(axis=2, keepdims=True)
        bounds = limits_of(said, y, np.ones(len(y)))

        def scores(others: list[Matrix]) -> Scores:
            added = np.stack([m @ s for m, s in zip(standardised(others), spoken, strict=True)])
            added -= added.mean(axis=2, keepdims=True)
            if self.limits:
                added = limited(added, *bounds)
            return np.asarray(initial + added.sum(axis=0))

        return scores

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


class WrittenOut(PromptedClassifier):
    """Ours, as a `Variant` has it.

    Parameters
    ----------
    backend, prompts, top_k, random_state
        As for `PromptedClassifier`.
    variant : Variant, optional
        What is switched.
    """

    def __init__(
        self, backend: Any, prompts: PromptPool, *, top_k: int = 200, random_state: int = 0,
        variant: Variant | None = None,
    ) -> None:  # fmt: skip
        super().__init__(backend, prompts, top_k=top_k, random_state=random_state)
        self.variant = variant

    def _learn(self, answers: Answers, codes: Codes) -> None:
        with one_blas_thread():
            self._model = (self.variant or Variant()).fit(answers, codes, self.random_state)

    def _scores(self, answers: Answers) -> Scores:
        return self._model(answers)
