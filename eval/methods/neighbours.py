"""kNN prompting: the nearest training rows by the LM's next-token distributions."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils._param_validation import Interval

from blackbox.answers import features
from blackbox.answers.passes import Answers
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import NO_TOKEN
from eval.methods.base import Codes, PromptedClassifier, Scores

__all__ = ["KnnPrompting", "kl_divergences"]

_MIN_REST = 1e-6  # least probability of the tokens that an answer leaves out: the sum is rounded
_TIE = 1e-6  # of a vote, for each neighbour that is nearer than the class's nearest


def kl_divergences(test: Scores, anchors: Scores) -> Scores:
    """Return KL(test ‖ anchor) in nats, of shape (n_test, n_anchors)."""
    p = np.exp(test)
    return np.asarray((p * test).sum(axis=1)[:, None] - p @ anchors.T)


class KnnPrompting(PromptedClassifier):
    """k nearest neighbours by KL divergence averaged over prompts.

    Source: Xu et al., "kNN prompting", ICLR 2023: KL(test ‖ anchor) over the distribution of the
    next token, and the majority of the k nearest; of classes with as many, the one with the nearest
    row. All tokens beyond those seen in training are one. The probability that an answer leaves out
    is shared evenly among the tokens that it doesn't report, each at most as likely as the last
    one reported.

    Parameters
    ----------
    backend, prompts, top_k, random_state
        As for `PromptedClassifier`.
    k : int, default=5
        Neighbours; fewer where there are fewer training rows.
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012
        "k": [Interval(Integral, 1, None, closed="left")]
    }

    def __init__(
        self,
        backend: Any,
        prompts: PromptPool,
        *,
        k: int = 5,
        top_k: int = 200,
        random_state: int = 0,
    ) -> None:
        super().__init__(backend, prompts, top_k=top_k, random_state=random_state)
        self.k = k

    def _learn(self, answers: Answers, codes: Codes) -> None:
        _, self._tokens, _ = features.frequent_matrices(
            answers.token_ids, answers.log_probs, np.ones(len(codes)), 0.0
        )
        self._anchors = self._distributions(answers)
        self._codes = codes

    def _distributions(self, answers: Answers) -> list[Scores]:
        """Return log-probabilities per prompt: of the known tokens, and of all others in one."""
        found = []
        for ids, values, tokens in zip(
            answers.token_ids, answers.log_probs, self._tokens, strict=True
        ):
            reported = np.exp(values.astype(np.float64))
            known = np.exp(features.gather(ids, values, tokens, -np.inf).astype(np.float64))
            missing = known == 0
            rest = np.maximum(1 - reported.sum(axis=1), _MIN_REST)
            last = np.where(ids == NO_TOKEN, 1.0, reported).min(axis=1)
            each = np.minimum(rest / (missing.sum(axis=1) + 1), last)
            known += missing * each[:, None]
            # with what was reported and isn't known; not below 0 by rounding
            other = np.maximum(1 - known.sum(axis=1), each)
            together = np.column_stack([known, other])
            found.append(np.log(together / together.sum(axis=1, keepdims=True)))
        return found

    def _scores(self, answers: Answers) -> Scores:
        distances = np.mean(
            [
                kl_divergences(test, anchors)
                for test, anchors in zip(self._distributions(answers), self._anchors, strict=True)
            ],
            axis=0,
        )
        k = min(self.k, len(self._codes))
        nearest = np.argsort(distances, axis=1, kind="stable")[:, :k]
        n_classes = len(self.classes_)
        votes = np.zeros((len(distances), n_classes))
        np.add.at(votes, (np.arange(len(votes))[:, None], self._codes[nearest]), 1.0)
        first = np.full(votes.shape, k)
        for rank in reversed(range(k)):
            first[np.arange(len(votes)), self._codes[nearest[:, rank]]] = rank
        votes -= _TIE * first
        return np.log((votes + 1 / n_classes) / (k + 1))
