"""Heads: the ensembles of several labels over one set of answers, as one ensemble.

Each label has a binary ensemble of its own, and all of them read the same prompts: a prompt is
asked once, for the tokens that any head reads, and a text is embedded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import Matrix
from blackbox.boosting.early_stopping import no_bounds
from blackbox.boosting.ensemble import Ensemble, Reading
from blackbox.boosting.logit import Scaling
from blackbox.experts.base import Expert
from blackbox.experts.embeddings import EmbeddingReadout

__all__ = ["Head", "Heads"]


@dataclass(frozen=True)
class Head:
    """The ensemble of one label, and what it reads of shared answers.

    Parameters
    ----------
    label : int
        The label's number.
    ensemble : Ensemble
        Of two classes: texts without the label, and with it.
    prompts : tuple of int
        The shared prompt of each of its readings.
    columns : tuple of int arrays
        Where the tokens of each of its readings are among those that are shared.
    """

    label: int
    ensemble: Ensemble
    prompts: tuple[int, ...]
    columns: tuple[NDArray[np.intp], ...]

    def matrices(self, shared: Sequence[Matrix]) -> list[Matrix]:
        """Return what the head reads of the shared matrices: (n, V_p) per prompt of its own."""
        readings = zip(self.ensemble.readings, self.prompts, self.columns, strict=True)
        return [
            np.maximum(shared[prompt][:, columns], np.float32(reading.floor))
            for reading, prompt, columns in readings
        ]

    def of_expert(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the head's two classes of scores of experts: (…, 2)."""
        return scores[..., 2 * self.label : 2 * self.label + 2]


@dataclass(frozen=True)
class Heads(Ensemble):
    """The heads of several labels, whose scores are independent of each other.

    Where an `Ensemble` has classes, scores of experts and `initial` have two per label: without it,
    and with it. A decision has one score per label, which becomes a probability of its own.

    Parameters
    ----------
    heads : tuple of Head
        The heads of the labels that have one.
    constants : float64 array of shape (n_labels,)
        The score of each label that has none, as all training texts had it, or none of them.
    """

    heads: tuple[Head, ...] = ()
    constants: NDArray[np.float64] = None  # type: ignore[assignment]

    @classmethod
    def over(
        cls,
        ensembles: Sequence[Ensemble | None],
        prompts: Sequence[Sequence[int]],
        n_prompts: int,
        constants: NDArray[np.float64],
    ) -> Self:
        """Return the heads of ensembles over shared prompts.

        Parameters
        ----------
        ensembles : sequence of n_labels Ensemble or None
            Of two classes each.
        prompts : sequence of n_labels sequences of int
            The shared prompt of each of their readings.
        n_prompts : int
            Number of shared prompts, each of which an ensemble reads.
        constants : float64 array of shape (n_labels,)
            See `Heads`.
        """
        given = [
            (label, ensemble, tuple(numbers))
            for label, (ensemble, numbers) in enumerate(zip(ensembles, prompts, strict=True))
            if ensemble is not None
        ]
        readings = [
            _shared([one.readings[ps.index(p)] for _, one, ps in given if p in ps])
            for p in range(n_prompts)
        ]
        heads, learners = [], []
        initial = np.zeros((len(ensembles), 2))
        for label, ensemble, numbers in given:
            columns = tuple(
                np.searchsorted(readings[number].token_ids, reading.token_ids)
                for number, reading in zip(numbers, ensemble.readings, strict=True)
            )
            heads.append(Head(label, ensemble, numbers, columns))
            initial[label] = ensemble.initial
            learners += [
                replace(one, prompt=numbers[one.prompt], columns=columns[one.prompt][one.columns])
                for one in ensemble.learners
            ]
        return cls(
            given[0][1].algorithm,
            learners,
            readings,
            initial.ravel(),
            no_bounds(n_prompts, initial.size),
            _joint_experts(given, len(ensembles)),
            heads=tuple(heads),
            constants=constants,
        )

    def decision(
        self, matrices: Sequence[Matrix], initial: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Return the score of each label: (n, n_labels); see `Ensemble.decision`."""
        n = len(matrices[0])
        scores = np.tile(self.constants, (n, 1))
        start = np.tile(self.initial, (n, 1)) if initial is None else initial
        for head in self.heads:
            scores[:, head.label] = head.ensemble.decision(
                head.matrices(matrices), head.of_expert(start)
            )
        return scores

    def probabilities(self, decision: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the probability of each label: (n, n_labels)."""
        return np.stack(
            [self.algorithm.probabilities(scores)[:, 1] for scores in decision.T], axis=1
        )

    def empty_scores(self, n: int) -> NDArray[np.float64]:
        """Return NaN scores for n rows without an answer: (n, n_labels)."""
        return np.full((n, len(self.constants)), np.nan)

    def token_weights(self, prompt: int) -> NDArray[np.float64]:
        """Return the weight of each token of a prompt for each label: (V, n_labels)."""
        weights = np.zeros((len(self.readings[prompt].token_ids), len(self.constants)))
        for head in self.heads:
            if prompt in head.prompts:
                own = head.prompts.index(prompt)
                of_classes = head.ensemble.token_weights(own)
                weights[head.columns[own], head.label] = of_classes[:, 1] - of_classes[:, 0]
        return weights


def _shared(readings: Sequence[Reading]) -> Reading:
    """Return the reading of all tokens that some heads read of one prompt."""
    token_ids = np.unique(np.concatenate([one.token_ids for one in readings])).astype(np.int32)
    floor = min(one.floor for one in readings)
    return Reading(token_ids, floor, Scaling.identity(len(token_ids)))


def _joint_experts(
    given: Sequence[tuple[int, Ensemble, tuple[int, ...]]], n_labels: int
) -> tuple[Expert, ...]:
    """Return the experts of all heads side by side: one readout of embeddings, or none."""
    readouts = {
        label: expert
        for label, ensemble, _ in given
        for expert in ensemble.experts
        if isinstance(expert, EmbeddingReadout)
    }
    if not readouts:
        return ()
    width = len(next(iter(readouts.values())).coefficients)
    coefficients = np.zeros((width, n_labels, 2), np.float32)
    intercept = np.zeros((n_labels, 2))
    for label, readout in readouts.items():
        coefficients[:, label], intercept[label] = readout.coefficients, readout.intercept
    return (EmbeddingReadout(coefficients.reshape(width, -1), intercept.ravel()),)
