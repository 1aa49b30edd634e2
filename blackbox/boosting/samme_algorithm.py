"""SAMME as an `Algorithm`; `blackbox.boosting.samme` has the mathematics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from blackbox.answers import features
from blackbox.answers.features import Matrix
from blackbox.answers.passes import Answers
from blackbox.boosting import samme
from blackbox.boosting.base import Algorithm
from blackbox.boosting.early_stopping_fit import fit_early_stopping
from blackbox.boosting.ensemble import Ensemble, Reading, prune_unused
from blackbox.boosting.logit import Scaling
from blackbox.boosting.prompt_choice import PromptChoice
from blackbox.boosting.splits import stratified_split
from blackbox.boosting.training import (
    HeldOutPredictions,
    TrainingOptions,
    TrainingResult,
    top_k_coverage,
)
from blackbox.boosting.weak_learner import WeakLearner
from blackbox.experts.base import ExpertInput

__all__ = ["Samme", "vote_bounds"]


@dataclass(frozen=True)
class Samme(Algorithm):
    """The algorithm of the paper: hard votes of one token per class.

    The number of rounds is chosen on a part of the training rows
    (`TrainingOptions.validation_fraction`). Probabilities are not calibrated. A contribution is
    the prompt's share of the votes, so that the scores of all prompts are weighted means.
    """

    name: ClassVar[str] = "samme"

    def default_n_estimators(self, weight: float, n_classes: int) -> int:
        """Return 200, however many rows and classes there are."""
        return 200

    def holds_out(self, options: TrainingOptions) -> bool:
        """Return whether there are validation rows."""
        return options.validation_fraction > 0

    def fit(
        self,
        answers: Answers,
        y: NDArray[np.intp],
        sample_weight: NDArray[np.float64],
        options: TrainingOptions,
        rng: np.random.Generator,
        calibration_weight: NDArray[np.float64] | None = None,
        groups: NDArray[np.intp] | None = None,
        experts: Sequence[ExpertInput] = (),
        unlabelled: Answers | None = None,
        choice: PromptChoice | None = None,
    ) -> TrainingResult:
        """Boost on one part of the rows and choose the number of rounds on the other.

        `calibration_weight`, `experts`, `unlabelled` and `choice` are not used.
        """
        train, held_out = stratified_split(y, options.validation_fraction, rng, groups)
        ids, values = answers.token_ids, answers.log_probs
        matrices, tokens, floors = features.frequent_matrices(
            ids, values, sample_weight[train], 0.0, train
        )
        validation = None
        if len(held_out):
            others = [
                features.gather(ids[p, held_out], values[p, held_out], tokens[p], floors[p])
                for p in range(len(tokens))
            ]
            validation = (others, y[held_out], sample_weight[held_out])
        learners = samme.fit_samme(
            matrices,
            y[train],
            sample_weight[train],
            options.n_classes,
            n_estimators=options.rounds(len(train)),
            rng=rng,
            validation=validation,
        )
        readings = [
            Reading(ids, floor, Scaling.identity(len(ids)))
            for ids, floor in zip(tokens, floors, strict=True)
        ]
        initial = np.zeros(options.n_classes)
        ensemble, prompts = prune_unused(self, learners, readings, initial)
        read = [
            matrices[prompt][:, np.searchsorted(tokens[prompt], reading.token_ids)]
            for prompt, reading in zip(prompts, ensemble.readings, strict=True)
        ]
        early_stopping = fit_early_stopping(
            ensemble.contributions(read), initial, *vote_bounds(ensemble), sample_weight[train]
        )
        summary = {
            "n_rounds": len(learners),
            "n_rows_boosted": len(train),
            "n_rows_validation": len(held_out),
        }
        ensemble = replace(ensemble, early_stopping=early_stopping)
        unseen = None
        if validation:
            scores = samme.decision(learners, validation[0], options.n_classes)
            found = samme.probabilities(scores, options.n_classes)
            unseen = HeldOutPredictions([(train, held_out)], held_out, found)
        coverage = top_k_coverage(answers.log_probs)
        return TrainingResult(ensemble, prompts, coverage, summary, unseen)

    def contribution(self, ensemble: Ensemble, prompt: int, matrix: Matrix) -> NDArray[np.float64]:
        """Return the prompt's share of the mean of all votes; no bound is needed."""
        added = np.zeros((len(matrix), ensemble.n_classes))
        for learner in ensemble.learners:
            if learner.prompt != prompt:
                continue
            chosen = matrix[:, learner.columns[:, 0]].argmax(axis=1)
            voted = chosen[:, None] == np.arange(ensemble.n_classes)
            added += np.where(voted, learner.weight, -learner.weight / (ensemble.n_classes - 1))
        return added / _total_weight(ensemble)

    def votes(
        self, ensemble: Ensemble, matrices: Sequence[Matrix], learner: WeakLearner
    ) -> NDArray[np.float64]:
        """Return the learner's weight for the class that it votes for, 0 for the others."""
        chosen = samme.votes(learner, matrices)
        return np.asarray(np.eye(ensemble.n_classes)[chosen] * learner.weight)

    def token_contributions(
        self, ensemble: Ensemble, matrices: Sequence[Matrix], learner: WeakLearner
    ) -> NDArray[np.float64]:
        """Return the votes: a class has one token, and only the most probable one votes."""
        return self.votes(ensemble, matrices, learner)[:, :, None]

    def token_weights(self, ensemble: Ensemble, prompt: int) -> NDArray[np.float64]:
        """Return the summed weight of the learners in which a token stands for a class."""
        weights = np.zeros((len(ensemble.readings[prompt].token_ids), ensemble.n_classes))
        for learner in ensemble.learners:
            if learner.prompt == prompt:
                weights[learner.columns[:, 0], np.arange(ensemble.n_classes)] += learner.weight
        return weights

    def staged_decision(
        self, ensemble: Ensemble, matrices: Sequence[Matrix], initial: NDArray[np.float64]
    ) -> Iterator[NDArray[np.float64]]:
        """Yield the mean of the votes so far, after each learner."""
        return samme.staged_decision(ensemble.learners, matrices, ensemble.n_classes)

    def decision(
        self, ensemble: Ensemble, matrices: Sequence[Matrix], initial: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the mean of all votes, summed as `staged_decision` does."""
        return samme.decision(ensemble.learners, matrices, ensemble.n_classes)

    def probabilities(self, decision: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return probabilities by scikit-learn's formula for SAMME."""
        return samme.probabilities(decision, 2 if decision.ndim == 1 else decision.shape[1])

    def prompt_votes(self, ensemble: Ensemble, matrices: Sequence[Matrix]) -> NDArray[np.float64]:
        """Return the summed votes of each prompt's learners."""
        summed = np.zeros((len(matrices), len(matrices[0]), ensemble.n_classes))
        for learner in ensemble.learners:
            summed[learner.prompt] += self.votes(ensemble, matrices, learner)
        return summed

    def check(self, ensemble: Ensemble) -> None:
        """Check that all weights are positive and that no vote exceeds the bounds."""
        if min(learner.weight for learner in ensemble.learners) <= 0:
            raise ValueError("a weight is not positive")
        low, high = vote_bounds(ensemble)
        if (ensemble.early_stopping.low > low).any() or (ensemble.early_stopping.high < high).any():
            raise ValueError("bounds that votes exceed")


def vote_bounds(ensemble: Ensemble) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the least and the most that each prompt can add: two arrays (P, n_classes).

    A vote adds its weight and no more, so these bounds hold for every text.
    """
    weights = np.zeros((len(ensemble.readings), 1))
    total = _total_weight(ensemble)
    for learner in ensemble.learners:
        weights[learner.prompt] += learner.weight / total
    high = np.tile(weights, ensemble.n_classes)
    return -high / (ensemble.n_classes - 1), high


def _total_weight(ensemble: Ensemble) -> float:
    return sum(learner.weight for learner in ensemble.learners)
