"""Prior scores of the classes, from the tokens that spell their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.passes import Answers
from blackbox.boosting.label_words import name_learner, words_of
from blackbox.boosting.logit import coefficients_of
from eval.methods.base import Scores, TokenReader

__all__ = ["NameScores", "name_coefficients", "name_scores", "scale_name_scores"]

_MIN_SPREAD = 1e-6  # standard deviation below which the scores don't depend on the text


@dataclass(frozen=True)
class NameScores:
    """Scores by the class names, of the training rows and of tokens.

    Parameters
    ----------
    coefficients : list of arrays of shape (V_p, n_classes)
        Of the tokens of each prompt.
    scores : array of shape (n, n_classes)
        Of the training rows, summed over the prompts.
    low, high : arrays of shape (P, n_classes)
        Least and greatest score of any training row, per prompt.
    """

    coefficients: list[NDArray[np.float64]]
    scores: Scores
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def scaled(self, weight: float) -> NameScores:
        """Return the scores times a weight."""
        coefficients = [weight * one for one in self.coefficients]
        return NameScores(coefficients, weight * self.scores, weight * self.low, weight * self.high)


def name_coefficients(
    tokens: Sequence[NDArray[np.int32]], train: Answers, names: Sequence[str], n_classes: int
) -> list[NDArray[np.float64]]:
    """Return per prompt the score of each token for each class by its name: (V_p, n_classes)."""
    words = [words_of(name) for name in names]
    found = [name_learner(p, ids, train.token_bytes, words) for p, ids in enumerate(tokens)]
    learners = [learner for learner in found if learner is not None]
    return coefficients_of(learners, [len(ids) for ids in tokens], n_classes)


def scale_name_scores(
    coefficients: list[NDArray[np.float64]], matrices: Sequence[NDArray[np.float64]]
) -> NameScores | None:
    """Scale to variance 1 over the training rows; None if the scores don't vary.

    Parameters
    ----------
    coefficients
        Of `name_coefficients`.
    matrices : sequence of arrays of shape (n, V_p)
        Standardised log-probabilities of the training rows.
    """
    by_prompt = np.stack([m @ c for m, c in zip(matrices, coefficients, strict=True)])
    total = by_prompt.sum(axis=0)
    spread = total.std()
    if spread <= _MIN_SPREAD:
        return None
    unscaled = NameScores(coefficients, total, by_prompt.min(axis=1), by_prompt.max(axis=1))
    return unscaled.scaled(1 / spread)


def name_scores(train: Answers, names: Sequence[str]) -> Callable[[Answers], Scores]:
    """Return a function to the scores by class names alone, of variance 1 on the training rows."""
    reader = TokenReader(train)
    coefficients = name_coefficients(reader.tokens, train, names, len(names))

    def unscaled(answers: Answers) -> Scores:
        parts = [m @ c for m, c in zip(reader.read(answers), coefficients, strict=True)]
        return np.asarray(np.sum(parts, axis=0))

    spread = max(float(unscaled(train).std()), _MIN_SPREAD)
    return lambda answers: unscaled(answers) / spread
