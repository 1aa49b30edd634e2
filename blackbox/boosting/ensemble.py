"""A trained ensemble: the arrays that prediction needs.

Built once from all that boosting found over candidate prompts and tokens, it keeps only the prompts
and tokens that its learners read, so that prediction asks the LM for nothing else. How learners
become scores is the `Algorithm`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import Matrix
from blackbox.boosting.base import Algorithm
from blackbox.boosting.early_stopping import EarlyStopping, no_bounds
from blackbox.boosting.logit import Scaling, coefficients_of
from blackbox.boosting.weak_learner import WeakLearner
from blackbox.experts.base import Expert
from blackbox.experts.source_models import SourceModel, stack_probabilities
from blackbox.experts.source_readout import SourceReadout

__all__ = ["Ensemble", "Reading", "prune_unused", "with_sources"]


@dataclass(frozen=True)
class Reading:
    """The tokens that the ensemble reads of one prompt's answers.

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
    algorithm : Algorithm
        The algorithm that trained it, which turns learners into scores.
    learners : list of WeakLearner
        `WeakLearner.prompt` counts `readings`.
    readings : list of Reading
        One per prompt.
    initial : float64 array of shape (n_classes,)
        Scores before the first learner (zero under SAMME).
    early_stopping : EarlyStopping
        The bounds of what a prompt adds to a score, and when the remaining ones needn't be asked.
    experts : tuple of Expert, default=()
        What else scores the classes, each with its weight in it. Those that don't read answers are
        known before the first prompt is asked, and are added to `initial` for each text; the others
        are added once all prompts are asked.
    sources : tuple of SourceModel, default=()
        The models of other tasks that an expert mixes.
    """

    algorithm: Algorithm
    learners: list[WeakLearner]
    readings: list[Reading]
    initial: NDArray[np.float64]
    early_stopping: EarlyStopping
    experts: tuple[Expert, ...] = ()
    sources: tuple[SourceModel, ...] = ()

    @property
    def reads_vectors(self) -> bool:
        """Whether an expert needs the sentence embeddings of texts."""
        return any(not expert.reads_answers for expert in self.experts)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.initial)

    def empty_scores(self, n: int) -> NDArray[np.float64]:
        """Return NaN scores for n rows without an answer, in the form of `decision`."""
        return np.full((n, self.n_classes) if self.n_classes > 2 else n, np.nan)

    def decision(
        self, matrices: Sequence[Matrix], initial: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Return the scores of all learners: (n, n_classes), or (n,) for two classes.

        Classes that differ by rounding alone are level, so that scores and probabilities have the
        same first class, which is the label.

        Parameters
        ----------
        matrices : sequence of float32 arrays of shape (n, V_p)
            Log-probabilities of the tokens of each reading, one matrix per prompt.
        initial : float64 array of shape (n, n_classes), optional
            Scores before the first learner, from `initial_scores`; by default `initial`, for an
            ensemble without experts.
        """
        start = self.initial if initial is None else initial
        return self.algorithm.decision(self, matrices, start + self.late_scores(matrices))

    def late_scores(self, matrices: Sequence[Matrix]) -> NDArray[np.float64]:
        """Return what experts add that read the answers of all prompts: (n, n_classes)."""
        readout = next((one for one in self.experts if isinstance(one, SourceReadout)), None)
        if readout is None:
            return np.zeros((len(matrices[0]), self.n_classes))
        return readout.scores(self.source_probabilities(matrices))

    def source_probabilities(self, matrices: Sequence[Matrix]) -> NDArray[np.float64]:
        """Return what each source makes of the answers: (n, S, Z), 0 beyond its own classes."""
        return stack_probabilities(
            [
                source.probabilities(
                    [
                        matrices[prompt][:, np.searchsorted(self.readings[prompt].token_ids, ids)]
                        for prompt, ids in zip(source.prompts, source.token_ids, strict=True)
                    ]
                )
                for source in self.sources
            ]
        )

    def initial_scores(self, expert_scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the scores of n texts before the first learner: (n, n_classes).

        Parameters
        ----------
        expert_scores : float64 array of shape (J, n, n_classes)
            The scores of each expert.
        """
        return np.asarray(self.initial + expert_scores.sum(axis=0))

    def standardised(self, matrices: Sequence[Matrix]) -> NDArray[np.float32]:
        """Return the standardised log-probabilities of all prompts, side by side: (n, V)."""
        return np.concatenate(
            [
                reading.scaling.apply(matrix)
                for reading, matrix in zip(self.readings, matrices, strict=True)
            ],
            axis=1,
        )

    def contributions(self, matrices: Sequence[Matrix]) -> NDArray[np.float64]:
        """Return what each prompt adds to the scores, within its bounds: (P, n, n_classes)."""
        return np.stack(
            [self.contribution(prompt, matrix) for prompt, matrix in enumerate(matrices)]
        )

    def contribution(self, prompt: int, matrix: Matrix) -> NDArray[np.float64]:
        """Return what one prompt adds to the scores, within its bounds: (n, n_classes)."""
        return self.algorithm.contribution(self, prompt, matrix)

    def staged_decision(
        self, matrices: Sequence[Matrix], initial: NDArray[np.float64] | None = None
    ) -> Iterator[NDArray[np.float64]]:
        """Yield `decision` after each learner; the scores of experts are in all of them."""
        start = self.initial if initial is None else initial
        late = self.late_scores(matrices)
        return self.algorithm.staged_decision(self, matrices, start + late)

    def probabilities(self, decision: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return class probabilities of shape (n, n_classes) for what `decision` returned."""
        return self.algorithm.probabilities(decision)

    def votes(self, matrices: Sequence[Matrix], learner: WeakLearner) -> NDArray[np.float64]:
        """Return what one learner adds, before bounds and normalisation: (n, n_classes)."""
        return self.algorithm.votes(self, matrices, learner)

    def prompt_votes(self, matrices: Sequence[Matrix]) -> NDArray[np.float64]:
        """Return what each prompt adds, on the scale of `votes`: (P, n, n_classes)."""
        return self.algorithm.prompt_votes(self, matrices)

    def token_contributions(
        self, matrices: Sequence[Matrix], learner: WeakLearner
    ) -> NDArray[np.float64]:
        """Return what each token of a learner adds to its class: (n, n_classes, m)."""
        return self.algorithm.token_contributions(self, matrices, learner)

    def token_weights(self, prompt: int) -> NDArray[np.float64]:
        """Return the weight of each token of a prompt for each class: (V, n_classes)."""
        return self.algorithm.token_weights(self, prompt)

    @cached_property
    def coefficients(self) -> list[NDArray[np.float64]]:
        """Per prompt the sum of its learners as one linear map; see `coefficients_of`."""
        widths = [len(reading.token_ids) for reading in self.readings]
        return coefficients_of(self.learners, widths, self.n_classes)


def prune_unused(
    algorithm: Algorithm,
    learners: Sequence[WeakLearner],
    readings: Sequence[Reading],
    initial: NDArray[np.float64],
    needed: Collection[int] = (),
) -> tuple[Ensemble, list[int]]:
    """Return an ensemble of only the prompts and tokens that the learners read.

    Parameters
    ----------
    algorithm, learners, initial
        As for `Ensemble`.
    readings : sequence of Reading
        Of all prompts and tokens that training looked at, which the learners count.
    needed : collection of int, default=()
        Prompts to keep, whether learners read them or not.

    Returns
    -------
    ensemble : Ensemble
        Without bounds yet.
    prompts : list of int
        The prompts kept, by their old numbers.
    """
    prompts = sorted({learner.prompt for learner in learners} | set(needed))
    kept_columns: dict[int, NDArray[np.intp]] = {}
    for prompt in prompts:
        columns = [
            learner.columns[learner.token_weights != 0]
            for learner in learners
            if learner.prompt == prompt
        ]
        kept_columns[prompt] = np.unique(np.concatenate([*columns, np.empty(0, np.intp)]))
    renumbered = []
    for learner in learners:
        kept = kept_columns[learner.prompt]
        places = np.where(
            learner.token_weights != 0,
            np.searchsorted(kept, learner.columns).clip(max=len(kept) - 1),
            0,
        )
        prompt = prompts.index(learner.prompt)
        renumbered.append(WeakLearner(prompt, places, learner.token_weights, learner.weight))
    pruned = []
    for prompt in prompts:
        kept, old = kept_columns[prompt], readings[prompt]
        scaling = Scaling(old.scaling.mean[kept], old.scaling.scale[kept])
        pruned.append(Reading(old.token_ids[kept], old.floor, scaling))
    unbounded = no_bounds(len(pruned), len(initial))
    return Ensemble(algorithm, renumbered, pruned, initial, unbounded), prompts


def with_sources(ensemble: Ensemble, sources: Sequence[SourceModel]) -> Ensemble:
    """Return the ensemble with the models of other tasks, and with the tokens that they read.

    Parameters
    ----------
    ensemble : Ensemble
        An ensemble with a `SourceReadout` of these sources.
    sources : sequence of SourceModel
        Their prompts are those of the ensemble's readings.
    """
    wanted: list[list[NDArray[np.int32]]] = [[one.token_ids] for one in ensemble.readings]
    for source in sources:
        for prompt, ids in zip(source.prompts, source.token_ids, strict=True):
            wanted[prompt].append(ids)
    readings = [
        _extended(reading, np.unique(np.concatenate(ids)))
        for reading, ids in zip(ensemble.readings, wanted, strict=True)
    ]
    learners = []
    for learner in ensemble.learners:
        old, new = (each[learner.prompt].token_ids for each in (ensemble.readings, readings))
        columns = np.searchsorted(new, old)[learner.columns]
        learners.append(replace(learner, columns=columns))
    return replace(ensemble, readings=readings, learners=learners, sources=tuple(sources))


def _extended(reading: Reading, token_ids: NDArray[np.int32]) -> Reading:
    """Return a reading of more tokens, which are not standardised."""
    columns = np.searchsorted(token_ids, reading.token_ids)
    scaling = Scaling.identity(len(token_ids))
    scaling.mean[columns], scaling.scale[columns] = reading.scaling.mean, reading.scaling.scale
    return Reading(token_ids.astype(np.int32), reading.floor, scaling)
