"""A trained ensemble: what prediction needs, as arrays.

Built once from what boosting found over all candidate prompts and tokens, it keeps only the prompts
and tokens that the ensemble reads, so that prediction asks the LM for nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import Matrix
from blackbox.boosting import samme
from blackbox.boosting.early_stopping import (
    EarlyStopping,
    as_decision,
    clip_contributions,
    no_bounds,
)
from blackbox.boosting.logit import Scaling, class_scores, coefficients_of
from blackbox.boosting.weak_learner import WeakLearner, softmax

__all__ = ["Ensemble", "Reading", "prune_unused"]


@dataclass(frozen=True)
class Reading:
    """What the ensemble reads of one prompt's answers.

    Parameters
    ----------
    token_ids : int32 array of shape (V,)
        In ascending order; the columns that `WeakLearner.columns` counts.
    floor : float
        Least log-probability; see `blackbox.answers.features`.
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
    early_stopping : EarlyStopping
        What a prompt may add to the score of a class, and when the rest needn't be asked.
    """

    algorithm: str
    learners: list[WeakLearner]
    readings: list[Reading]
    initial: NDArray[np.float64]
    early_stopping: EarlyStopping

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.initial)

    def decision(self, matrices: Sequence[Matrix]) -> NDArray[np.float64]:
        """Scores of all learners together: (n, n_classes), or (n,) for two classes.

        Classes that only rounding tells apart are level, so that scores and probabilities have the
        same first class, which is the label.
        """
        if self.algorithm == "samme":
            return samme.decision(self.learners, matrices, self.n_classes)
        return as_decision(self.initial + self.contributions(matrices).sum(axis=0))

    def contributions(self, matrices: Sequence[Matrix]) -> NDArray[np.float64]:
        """What each prompt adds to the scores, within its limits: (P, n, n_classes)."""
        return np.stack(
            [self.contribution(prompt, matrix) for prompt, matrix in enumerate(matrices)]
        )

    def contribution(self, prompt: int, matrix: Matrix) -> NDArray[np.float64]:
        """What one prompt adds to the scores, within its limits: (n, n_classes)."""
        if self.algorithm == "samme":
            added = np.zeros((len(matrix), self.n_classes))
            for learner in self.learners:
                if learner.prompt != prompt:
                    continue
                chosen = matrix[:, learner.columns[:, 0]].argmax(axis=1)
                mine = chosen[:, None] == np.arange(self.n_classes)
                added += np.where(mine, learner.weight, -learner.weight / (self.n_classes - 1))
            return added / self._total_weight
        # row by row in one order of summation, so that a row's answer is its own
        standardised = self.readings[prompt].scaling.apply(matrix).astype(np.float64)
        added = np.einsum("nv,vk->nk", standardised, self._coefficients[prompt])
        limits = self.early_stopping.low[prompt], self.early_stopping.high[prompt]
        return np.asarray(np.clip(added, *limits))

    def token_weights(self, prompt: int) -> NDArray[np.float64]:
        """What each token of a prompt's reading says for and against each class: (V, n_classes)."""
        if self.algorithm == "logit":
            return self._coefficients[prompt]
        found = np.zeros((len(self.readings[prompt].token_ids), self.n_classes))
        for learner in self.learners:
            if learner.prompt == prompt:
                found[learner.columns[:, 0], np.arange(self.n_classes)] += learner.weight
        return found

    def vote_bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Under SAMME, the least and the most that each prompt can add: (P, n_classes) both."""
        weights = np.zeros((len(self.readings), 1))
        for learner in self.learners:
            weights[learner.prompt] += learner.weight / self._total_weight
        high = np.tile(weights, self.n_classes)
        return -high / (self.n_classes - 1), high

    def staged_decision(self, matrices: Sequence[Matrix]) -> Iterator[NDArray[np.float64]]:
        """The same after each learner."""
        if self.algorithm == "samme":
            yield from samme.staged_decision(self.learners, matrices, self.n_classes)
            return
        standardised = [
            reading.scaling.apply(matrix)
            for reading, matrix in zip(self.readings, matrices, strict=True)
        ]
        said = np.zeros((len(standardised), len(standardised[0]), self.n_classes))
        for learner in self.learners:
            votes = learner.weight * class_scores(learner, standardised[learner.prompt])
            said[learner.prompt] += votes - votes.mean(axis=1, keepdims=True)
            within = clip_contributions(said, self.early_stopping.low, self.early_stopping.high)
            yield as_decision(self.initial + within.sum(axis=0))

    def probabilities(self, decision: NDArray[np.float64]) -> NDArray[np.float64]:
        """Class probabilities of shape (n, n_classes) from what `decision` returned."""
        if self.algorithm == "samme":
            return samme.probabilities(decision, self.n_classes)
        if decision.ndim == 1:
            decision = np.column_stack([np.zeros_like(decision), decision])
        return softmax(decision)

    def votes(self, matrices: Sequence[Matrix], learner: WeakLearner) -> NDArray[np.float64]:
        """What one learner says of each class, before limits and normalisation: (n, n_classes)."""
        if self.algorithm == "samme":
            chosen = samme.votes(learner, matrices)
            return np.asarray(np.eye(self.n_classes)[chosen] * learner.weight)
        standardised = self.readings[learner.prompt].scaling.apply(matrices[learner.prompt])
        said = learner.weight * class_scores(learner, standardised)
        return np.asarray(said - said.mean(axis=1, keepdims=True))

    @cached_property
    def _coefficients(self) -> list[NDArray[np.float64]]:
        widths = [len(reading.token_ids) for reading in self.readings]
        return coefficients_of(self.learners, widths, self.n_classes)

    @cached_property
    def _total_weight(self) -> float:
        return sum(learner.weight for learner in self.learners)


def prune_unused(
    algorithm: str,
    learners: Sequence[WeakLearner],
    readings: Sequence[Reading],
    initial: NDArray[np.float64],
) -> tuple[Ensemble, list[int]]:
    """Keep what the learners read; also return the prompts kept, by their old numbers.

    The ensemble has no limits yet.
    """
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
    free = no_bounds(len(fewer), len(initial))
    return Ensemble(algorithm, moved, fewer, initial, free), prompts
