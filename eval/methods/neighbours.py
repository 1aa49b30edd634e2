"""kNN prompting: the nearest training rows by what the LM predicts."""

from __future__ import annotations

from typing import Any

import numpy as np

from blackbox import features
from blackbox.passes import Answers
from blackbox.prompts import PromptPool
from eval.methods.base import Codes, PromptedClassifier, Scores

__all__ = ["KnnPrompting", "divergences"]


def divergences(test: Scores, anchors: Scores) -> Scores:
    """KL(test ‖ anchor) in nats, of shape (n_test, n_anchors), from log-probabilities."""
    p = np.exp(test)
    return np.asarray((p * test).sum(axis=1)[:, None] - p @ anchors.T)


class KnnPrompting(PromptedClassifier):
    """The classes of the k nearest training rows, by KL divergence averaged over prompts.

    Source: Xu et al., "kNN prompting", ICLR 2023: KL(test ‖ anchor) over the distribution of the
    next token, and the majority of the k nearest. What isn't reported has the prompt's floor, and
    all tokens beyond those seen in training are one.

    Parameters
    ----------
    backend, prompts, top_k, random_state
        As for `PromptedClassifier`.
    k : int, default=5
        Neighbours; fewer where there are fewer training rows.
    """

    def __init__(
        self, backend: Any, prompts: PromptPool, *, k: int = 5, top_k: int = 200,
        random_state: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(backend, prompts, top_k=top_k, random_state=random_state)
        self.k = k

    def _learn(self, answers: Answers, codes: Codes) -> None:
        _, self._tokens, self._floors = features.frequent_matrices(
            answers.token_ids, answers.log_probs, np.ones(len(codes)), 0.0
        )
        self._anchors = self._distributions(answers)
        self._codes = codes

    def _distributions(self, answers: Answers) -> list[Scores]:
        """Log-probabilities of the known tokens and of all others together, for each prompt."""
        found = []
        for ids, values, tokens, floor in zip(
            answers.token_ids, answers.log_probs, self._tokens, self._floors, strict=True
        ):
            known = np.exp(features.gather(ids, values, tokens, floor).astype(np.float64))
            other = np.maximum(1 - known.sum(axis=1, keepdims=True), np.exp(floor))
            together = np.concatenate([known, other], axis=1)
            found.append(np.log(together / together.sum(axis=1, keepdims=True)))
        return found

    def _scores(self, answers: Answers) -> Scores:
        distances = np.mean(
            [
                divergences(test, anchors)
                for test, anchors in zip(self._distributions(answers), self._anchors, strict=True)
            ],
            axis=0,
        )
        k = min(self.k, len(self._codes))
        nearest = np.argsort(distances, axis=1, kind="stable")[:, :k]
        n_classes = len(self.classes_)
        votes = np.zeros((len(distances), n_classes))
        np.add.at(votes, (np.arange(len(votes))[:, None], self._codes[nearest]), 1.0)
        # of two classes with as many neighbours the one with the nearest
        first = self._codes[nearest[:, 0]]
        votes[np.arange(len(votes)), first] += 1e-6
        return np.log((votes + 1 / n_classes) / (k + 1))
