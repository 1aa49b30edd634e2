"""Baselines without boosting: the best single weak learner, and the average of all prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp

from blackbox.answers import features
from blackbox.answers.passes import Answers
from blackbox.boosting.baseline import best_tuples
from blackbox.prompts.pool import PromptPool
from eval.methods.base import Codes, PromptedClassifier, Scores, one_hot_votes, read_answers

__all__ = ["BestWeakLearner", "UniformAverage"]


class _TokenPerClass(PromptedClassifier):
    """Base class: each prompt with its best verbalizer of one token per class."""

    def _learn(self, answers: Answers, codes: Codes) -> None:
        share = np.full(len(codes), 1 / len(codes))
        matrices, self._tokens, self._floors = features.frequent_matrices(
            answers.token_ids, answers.log_probs, share, 0.0
        )
        self._tuples = best_tuples(matrices, codes, share, len(self.classes_))
        self._n_rows = len(codes)

    def _log_probs(self, answers: Answers, prompt: int) -> Scores:
        """Return the log-probability of each class's token, of shape (n, n_classes)."""
        matrix = features.gather(
            answers.token_ids[prompt],
            answers.log_probs[prompt],
            self._tokens[prompt],
            self._floors[prompt],
        )
        return matrix[:, self._tuples[prompt][0]].astype(np.float64)


class BestWeakLearner(_TokenPerClass):
    """Weak learner (prompt and verbalizer) with the least training error.

    The probability of its class is its training accuracy, with one more row of each outcome.
    Prediction uses only its prompt.
    """

    def _learn(self, answers: Answers, codes: Codes) -> None:
        super()._learn(answers, codes)
        self._best = int(np.argmin([error for _, error in self._tuples]))
        one = slice(self._best, self._best + 1)
        self._tokens, self._floors = self._tokens[one], self._floors[one]
        self._tuples = self._tuples[one]

    def _new_answers(self, X: Any) -> Answers:
        return read_answers(self.backend, PromptPool([self.prompts[self._best]]), X, self.top_k)

    def _scores(self, answers: Answers) -> Scores:
        votes = self._log_probs(answers, 0).argmax(axis=1)
        n, error = self._n_rows, self._tuples[0][1]
        confidence = (n * (1 - error) + 1) / (n + 2)
        return one_hot_votes(votes, len(self.classes_), confidence)


class UniformAverage(_TokenPerClass):
    """Average over prompts of the probabilities that their verbalizers give."""

    def _scores(self, answers: Answers) -> Scores:
        each = [
            log_softmax(self._log_probs(answers, prompt), axis=1)
            for prompt in range(len(self._tuples))
        ]
        return np.asarray(logsumexp(each, axis=0) - np.log(len(each)))
