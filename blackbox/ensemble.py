"""A trained ensemble: what prediction needs, as arrays.

Built once from what boosting found over all candidate prompts and tokens, it keeps only the prompts
and tokens that the ensemble reads, so that prediction asks the LM for nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blackbox import samme
from blackbox.boosting import Matrix, WeakLearner, softmax
from blackbox.logit import LogitFit, Scaling, class_scores, staged_scores

__all__ = ["Ensemble", "Reading", "compact"]


@dataclass(frozen=True)
class Reading:
    """What the ensemble reads of one prompt's answers.

    Parameters
    ----------
    token_ids : int32 array of shape (V,)
        In ascending order; the columns that `WeakLearner.columns` counts.
    floor : float
        Least log-probability; see `blackbox.features`.
    scaling : Scaling
        Mean and scale of each token (0 and 1 under SAMME).
    """

    token_ids: NDArray[np.int32]
    floor: float
    scaling: Scaling


@dataclass(frozen=True)
class Ensemble:
    """Weak learners over the prompts that they read.

    Parameters
    ----------
    algorithm : str
        ``"logit"`` or ``"samme"``.
    learners : list of WeakLearner
        `WeakLearner.prompt` counts `readings`.
    readings : list of Reading
        One a prompt.
    initial : float64 array of shape (n_classes,)
        Scores before the first learner (zero under SAMME).
    """

    algorithm: str
    learners: list[WeakLearner]
    readings: list[Reading]
    initial: NDArray[np.float64]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.initial)

    def decision(self, matrices: Sequence[Matrix]) -> NDArray[np.float64]:
        """Scores of all learners together: (n, n_classes), or (n,) for two classes."""
        if self.algorithm == "samme":
            return samme.decision(self.learners, matrices, self.n_classes)
        scores = np.tile(self.initial, (len(matrices[0]), 1))
        for prompt, (reading, matrix) in enumerate(zip(self.readings, matrices, strict=True)):
            # the learners of one prompt are linear in its tokens: one product for all of them
            coefficients = np.zeros((matrix.shape[1], self.n_classes))
            for learner in self.learners:
                if learner.prompt == prompt:
                    m = learner.columns.shape[1]
                    classes = np.repeat(np.arange(self.n_classes), m)
                    weights = learner.token_weights.ravel() * learner.weight
                    np.add.at(coefficients, (learner.columns.ravel(), classes), weights)
            # row by row in one order of summation, so that a row's answer is its own
            standardised = reading.scaling.apply(matrix).astype(np.float64)
            scores += np.einsum("nv,vk->nk", standardised, coefficients)
        return _binary(scores)

    def staged_decision(self, matrices: Sequence[Matrix]) -> Iterator[NDArray[np.float64]]:
        """The same after each learner."""
        if self.algorithm == "samme":
            yield from samme.staged_decision(self.learners, matrices, self.n_classes)
            return
        standardised = [
            reading.scaling.apply(matrix)
            for reading, matrix in zip(self.readings, matrices, strict=True)
        ]
        for scores in staged_scores(LogitFit(self.learners, self.initial), standardised):
            yield _binary(scores.copy())

    def probabilities(self, decision: NDArray[np.float64]) -> NDArray[np.float64]:
        """Class probabilities of shape (n, n_classes) from what `decision` returned."""
        if self.algorithm == "samme":
            return samme.probabilities(decision, self.n_classes)
        if decision.ndim == 1:
            decision = np.column_stack([np.zeros_like(decision), decision])
        return softmax(decision)

    def votes(self, matrices: Sequence[Matrix], learner: WeakLearner) -> NDArray[np.float64]:
        """What one learner adds to each class's score, before any normalisation: (n, n_classes)."""
        if self.algorithm == "samme":
            chosen = samme.votes(learner, matrices)
            return np.asarray(np.eye(self.n_classes)[chosen] * learner.weight)
        standardised = self.readings[learner.prompt].scaling.apply(matrices[learner.prompt])
        return learner.weight * class_scores(learner, standardised)


def compact(
    algorithm: str,
    learners: Sequence[WeakLearner],
    readings: Sequence[Reading],
    initial: NDArray[np.float64],
) -> tuple[Ensemble, list[int]]:
    """Keep what the learners read; also return the prompts kept, by their old numbers."""
    prompts = sorted({learner.prompt for learner in learners})
    kept_columns: dict[int, NDArray[np.intp]] = {}
    for prompt in prompts:
        spoken = [
            learner.columns[learner.token_weights != 0]
            for learner in learners
            if learner.prompt == prompt
        ]
        kept_columns[prompt] = np.unique(np.concatenate(spoken))
    moved = []
    for learner in learners:
        kept = kept_columns[learner.prompt]
        columns = np.where(
            learner.token_weights != 0,
            np.searchsorted(kept, learner.columns).clip(max=len(kept) - 1),
            0,
        )
        moved.append(
            WeakLearner(
                prompts.index(learner.prompt), columns, learner.token_weights, learner.weight
            )
        )
    fewer = []
    for prompt in prompts:
        kept, old = kept_columns[prompt], readings[prompt]
        scaling = Scaling(old.scaling.mean[kept], old.scaling.scale[kept])
        fewer.append(Reading(old.token_ids[kept], old.floor, scaling))
    return Ensemble(algorithm, moved, fewer, initial), prompts


def _binary(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores
