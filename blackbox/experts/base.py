"""The interface of an expert, and its scores of rows that it was not fitted on.

The score of a text is the boosted score over a temperature, plus the scores of each expert times a
weight. Calibration (`blackbox.boosting.calibration`) finds the temperature and the weights on
held-out rows, so an expert that was fitted on labels is judged by scores of rows that it was not
fitted on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Expert", "ExpertInput", "ExpertScores", "Folds", "cross_fit"]

_NO_SPREAD = 1e-6  # of scores: they are the same for all rows

Folds = Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]


class Expert(ABC):
    """A fitted expert: scores the classes of texts from evidence that no prompt gives.

    Evidence is an array with one row per text, such as sentence embeddings. An expert keeps no
    text and no evidence of the rows that it was fitted on.

    Attributes
    ----------
    name : str
        The name by which summaries and model files refer to its kind.
    title : str
        What people call it.
    reads_answers : bool
        Whether its evidence comes from the answers to prompts, and not from an embedding model.
    weight_prior : (float, float)
        Mean and strength of the Gaussian prior on its weight. With a mean of 0 it must earn its
        place, by a test (`blackbox.boosting.expert_selection`).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    reads_answers: ClassVar[bool] = False
    weight_prior: ClassVar[tuple[float, float]] = (0.0, 3.0)

    @classmethod
    @abstractmethod
    def fit(
        cls,
        evidence: NDArray[Any],
        y: NDArray[np.intp],
        sample_weight: NDArray[np.float64],
        n_classes: int,
    ) -> Self:
        """Return an expert fitted on labelled rows.

        Parameters
        ----------
        evidence : array of shape (n, …)
            What it reads of each text.
        y : int array of shape (n,)
            Classes from 0; not each needs a row.
        sample_weight : float64 array of shape (n,)
            Weights above 0; a weight of 2 is a row that occurs twice.
        n_classes : int
            Number of classes.
        """

    @abstractmethod
    def scores(self, evidence: NDArray[Any]) -> NDArray[np.float64]:
        """Return the scores of n texts, whose sum over the classes is 0: (n, n_classes)."""

    @abstractmethod
    def scaled(self, factor: float) -> Self:
        """Return the expert with its scores multiplied by a factor."""

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what a model file keeps of it; the last axis of each array is the classes."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, read: Callable[[str, Any, int], NDArray[Any]]) -> Self:
        """Return an expert from the arrays of a model file.

        Parameters
        ----------
        read : callable
            Returns an array by its name, type and number of dimensions, checked to be finite.
        """


@dataclass(frozen=True)
class ExpertInput:
    """A kind of expert, and its evidence of n training rows.

    Parameters
    ----------
    kind : type of Expert
        The expert to fit.
    evidence : array of shape (n, …)
        What it reads of each row.
    prompts : tuple of int, default=()
        The prompts whose answers it reads, by their numbers in the pool.
    names : array of shape (n_classes, …), optional
        What it reads of the name of each class: a labelled row that is in every fit.
    """

    kind: type[Expert]
    evidence: NDArray[Any]
    prompts: tuple[int, ...] = ()
    names: NDArray[Any] | None = None

    def take(self, rows: NDArray[np.intp]) -> Self:
        """Return the same of some of the rows."""
        return replace(self, evidence=self.evidence[rows])

    def fit(
        self, y: NDArray[np.intp], sample_weight: NDArray[np.float64], n_classes: int
    ) -> Expert:
        """Return the expert fitted on all rows, and on the names."""
        evidence = self.evidence
        if self.names is not None:
            evidence = np.concatenate([evidence, self.names])
            y = np.concatenate([y, np.arange(n_classes)])
            sample_weight = np.concatenate([sample_weight, np.ones(n_classes)])
        return self.kind.fit(evidence, y, sample_weight, n_classes)

    def held_out_scores(
        self,
        y: NDArray[np.intp],
        sample_weight: NDArray[np.float64],
        n_classes: int,
        folds: Folds,
        groups: NDArray[np.intp] | None,
    ) -> NDArray[np.float64]:
        """Return the scores of each row by an expert fitted without it; see `cross_fit`."""
        scores = np.zeros((len(y), n_classes))
        for train, test in folds:
            expert = self.take(train).fit(y[train], sample_weight[train], n_classes)
            scores[test] = expert.scores(self.evidence[test])
        return scores


@dataclass(frozen=True)
class ExpertScores:
    """The scores of an expert on n held-out rows, and the prior of its weight.

    Parameters
    ----------
    name : str
        The expert's name.
    scores : float64 array of shape (n, n_classes)
        With sum 0 over the classes and variance 1 over the rows.
    mean, strength : float
        Mean of the Gaussian prior on the weight, and the curvature of its penalty beside the
        summed loss of the rows.
    spread : float
        The divisor that gave the scores variance 1.
    reads_answers : bool
        As for `Expert`.
    """

    name: str
    scores: NDArray[np.float64]
    mean: float
    strength: float
    spread: float = 1.0
    reads_answers: bool = False


def cross_fit(
    given: ExpertInput,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_classes: int,
    folds: Folds,
    groups: NDArray[np.intp] | None = None,
) -> ExpertScores | None:
    """Return the scores of each row by an expert that was not fitted on it.

    Parameters
    ----------
    given : ExpertInput
        The kind of expert, and its evidence.
    y, sample_weight, n_classes
        As for `Expert.fit`.
    folds : sequence of (training rows, held-out rows)
        Each row is held out once. Rows of one group are in one fold.
    groups : int array of shape (n,), optional
        The groups of the rows, for an expert that holds out by itself.

    Returns
    -------
    ExpertScores or None
        None if all rows get the same scores.
    """
    scores = given.held_out_scores(y, sample_weight, n_classes, folds, groups)
    spread = float(np.sqrt((sample_weight @ scores**2).mean() / sample_weight.sum()))
    if not np.isfinite(spread) or spread <= _NO_SPREAD:
        return None
    kind = given.kind
    return ExpertScores(kind.name, scores / spread, *kind.weight_prior, spread, kind.reads_answers)
