"""`logit` written out once more, with switches for what the package has settled."""

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
from blackbox.boosting.calibration import NAME_PRIOR, calibrate
from blackbox.boosting.early_stopping import clip_contributions
from blackbox.boosting.early_stopping_fit import contribution_bounds
from blackbox.boosting.label_words import name_learner, words_of
from blackbox.boosting.logit import coefficients_of
from blackbox.boosting.weak_learner import one_blas_thread, softmax
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import NO_TOKEN
from eval.methods.base import Codes, PromptedClassifier, Scores, TokenReader

__all__ = ["Variant", "WrittenOut", "name_votes"]

_FOLDS = 5

TrainingResult = Callable[..., Scores]
"""From matrices, and a temperature and what names say, to scores of shape (n, n_classes)."""


@dataclass(frozen=True)
class _NamesSay:
    """By prompt, what each token says of each class; of the training rows; and from where to where.

    Shapes (V_p, n_classes), (n, n_classes), (P, n_classes) twice.
    """

    spoken: list[NDArray[np.float64]]
    votes: Scores
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def times(self, weight: float) -> _NamesSay:
        spoken = [weight * one for one in self.spoken]
        return _NamesSay(spoken, weight * self.votes, weight * self.low, weight * self.high)


@dataclass(frozen=True)
class Variant:
    """A way to boost; the defaults are the package's.

    Parameters
    ----------
    rounds, rate, tokens : number
        As `n_estimators`, `learning_rate` and `tokens_per_class`.
    own_share : float
        As in `blackbox.boosting.logit.Settings`.
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
        Whether what a prompt adds is limited (`blackbox.boosting.early_stopping`).
    own_floor : bool
        Whether a missing token has the row's least log-probability, less the margin, and not the
        prompt's floor.
    names : bool
        Whether the names of the classes speak for them.
    prior : (float, float)
        As in `blackbox.boosting.calibration.calibrate`.
    """

    rounds: int | None = None
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
    names: bool = True
    prior: tuple[float, float] = NAME_PRIOR

    def fit(
        self, train: Answers, y: Codes, seed: int, names: Sequence[str] = ()
    ) -> Callable[[Answers], Scores]:
        """From answers to log-probabilities of the classes, calibrated as in the package.

        Parameters
        ----------
        train : Answers
            Of the training rows.
        y : int array of shape (n,)
            Their classes.
        seed : int
            Of the folds.
        names : sequence of str
            What the classes are called.
        """
        _, tokens, floors = features.frequent_matrices(
            train.token_ids, train.log_probs, np.ones(len(y)), self.token_share
        )

        def read(answers: Answers) -> list[Matrix]:
            parts = zip(answers.token_ids, answers.log_probs, tokens, floors, strict=True)
            return [self._matrix(*part) for part in parts]

        matrices, n_classes = read(train), int(y.max()) + 1
        names_say = self._names_of(names, tokens, train, matrices, n_classes)
        rounds = self.rounds or ALGORITHMS["logit"].default_n_estimators(len(y), n_classes)
        boosted = self._boosted(matrices, y, seed, rounds)
        n_folds = min(_FOLDS, int(np.bincount(y).min()))
        if n_folds < 2:
            return lambda answers: np.asarray(log_softmax(boosted(read(answers)), axis=1))
        folds = []
        for fit, rest in StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(y, y):
            some, left = ([m[part] for m in matrices] for part in (fit, rest))
            folds.append((self._boosted(some, y[fit], seed, rounds), left, rest))

        def held_out(temperature: float, names_say: _NamesSay | None) -> Scores:
            scores = np.zeros((len(y), n_classes))
            for of_fold, left, rest in folds:
                scores[rest] = of_fold(left, temperature, names_say)
            return scores

        ones = np.ones(len(y))
        votes = names_say.votes if names_say else None
        temperature, weight, _ = calibrate(
            held_out(1.0, None), y, ones, expert_scores=votes, prior=self.prior
        )
        if names_say and weight > 0:
            weighed = names_say.times(weight)
            more = calibrate(
                held_out(temperature, weighed), y, ones, min_temperature=0.5 / temperature
            ).temperature
            temperature, names_say = temperature * more, names_say.times(weight / more)
        else:
            names_say = None
        return lambda answers: np.asarray(
            log_softmax(boosted(read(answers), temperature, names_say), axis=1)
        )

    def _names_of(
        self,
        names: Sequence[str],
        tokens: list[NDArray[np.int32]],
        train: Answers,
        matrices: list[Matrix],
        n_classes: int,
    ) -> _NamesSay | None:
        """What names say, with variance 1 over the training rows; None where that is nothing."""
        spoken = name_coefficients(tokens, train, names if self.names else (), n_classes)
        seen = self._standardiser(matrices)(matrices)
        said = np.stack([m @ s for m, s in zip(seen, spoken, strict=True)])
        spread = said.sum(axis=0).std()
        if spread <= 1e-6:
            return None
        told = _NamesSay(spoken, said.sum(axis=0), said.min(axis=1), said.max(axis=1))
        return told.times(1 / spread)

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

    def _boosted(self, train: list[Matrix], y: Codes, seed: int, rounds: int) -> TrainingResult:
        rng = np.random.default_rng(seed)
        standardised = self._standardiser(train)
        seen = standardised(train)
        n_classes = int(y.max()) + 1
        target = np.eye(n_classes)[y]
        initial = np.log(target.mean(axis=0))
        said = np.zeros((len(seen), len(y), n_classes))
        spoken = [np.zeros((matrix.shape[1], n_classes)) for matrix in seen]
        for number in range(rounds):
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
        low, high = contribution_bounds(said, y, np.ones(len(y)))

        def scores(
            others: list[Matrix], temperature: float = 1.0, names: _NamesSay | None = None
        ) -> Scores:
            matrices = standardised(others)
            added = np.stack([m @ s for m, s in zip(matrices, spoken, strict=True)]) / temperature
            added -= added.mean(axis=2, keepdims=True)
            least, most = low / temperature, high / temperature
            if names:
                added += np.stack([m @ s for m, s in zip(matrices, names.spoken, strict=True)])
                least, most = least + names.low, most + names.high
            if self.limits:
                added = clip_contributions(added, least, most)
            return np.asarray(initial / temperature + added.sum(axis=0))

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


def name_coefficients(
    tokens: Sequence[NDArray[np.int32]], train: Answers, names: Sequence[str], n_classes: int
) -> list[NDArray[np.float64]]:
    """For each prompt what its tokens say of each class by its name: (V_p, n_classes)."""
    words = [words_of(name) for name in names]
    found = [name_learner(p, ids, train.token_bytes, words) for p, ids in enumerate(tokens)]
    learners = [learner for learner in found if learner is not None]
    return coefficients_of(learners, [len(ids) for ids in tokens], n_classes)


def name_votes(train: Answers, names: Sequence[str]) -> Callable[[Answers], Scores]:
    """What the names of the classes say by themselves, with variance 1 on the training rows."""
    reader = TokenReader(train)
    spoken = name_coefficients(reader.tokens, train, names, len(names))

    def votes(answers: Answers) -> Scores:
        said = [m @ s for m, s in zip(reader.read(answers), spoken, strict=True)]
        return np.asarray(np.sum(said, axis=0))

    spread = max(float(votes(train).std()), 1e-6)
    return lambda answers: votes(answers) / spread


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
