"""The expert of source models: trained models of other tasks, read through this task's classes.

A source model scores a text for classes of its own, from answers to prompts that are asked anyway.
P(class | source class) is counted on the training rows, so that a text that a source takes for
*positive* counts as most such rows do. Source: Nguyen et al., "LEEP: a new measure to evaluate
transferability of learned representations", ICML 2020. Several sources are mixed, with the weights
under which the labels of rows that were not counted are most likely.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import Matrix
from blackbox.experts.base import Expert, ExpertInput

__all__ = [
    "MAX_SOURCES",
    "SourceInput",
    "SourceModel",
    "SourceReadout",
    "leave_one_out",
    "same_names",
    "stack_probabilities",
    "transfer_score",
]

MAX_SOURCES = 5
"""Source models that a model keeps, at most."""

_PRIOR_ROWS = 1.0  # per source class, spread over the classes by their shares
_NAMED_ROWS = 3.0  # of a source class with the name of a class, that count for that class
_STEPS = 50  # of the weights of sources, which are then good to about a percent
_LEAST_WEIGHT = 0.01  # a source with less is left out


@dataclass(frozen=True)
class SourceModel:
    """What a trained model of another task makes of the answers to some prompts.

    Its score of a class is linear in the log-probabilities of tokens, and what a prompt adds is
    within bounds, as in the model that it was taken from.

    Parameters
    ----------
    name : str
        Its name in the library.
    classes : tuple of str
        Its Z classes.
    prompts : tuple of R int
        The prompts that it reads, by their numbers in the pool of the new task.
    token_ids : tuple of R int32 arrays of shape (V_r,)
        The tokens that it reads of each, in ascending order.
    coefficients : tuple of R float16 arrays of shape (V_r, Z)
        What a unit of log-probability adds to each score.
    offsets, low, high : float64 arrays of shape (R, Z)
        The constant and the bounds of what each prompt adds.
    floors : float64 array of shape (R,)
        The least log-probability under each prompt; see `blackbox.answers.features`.
    initial : float64 array of shape (Z,)
        Scores before the first prompt.
    """

    name: str
    classes: tuple[str, ...]
    prompts: tuple[int, ...]
    token_ids: tuple[NDArray[np.int32], ...]
    coefficients: tuple[NDArray[np.float16], ...]
    offsets: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    floors: NDArray[np.float64]
    initial: NDArray[np.float64]

    def probabilities(self, matrices: Sequence[Matrix]) -> NDArray[np.float64]:
        """Return the probabilities of its classes: (n, Z).

        Parameters
        ----------
        matrices : sequence of R float32 arrays of shape (n, V_r)
            The log-probabilities of its tokens under each of its prompts.
        """
        scores = np.tile(self.initial, (len(matrices[0]), 1))
        for number, matrix in enumerate(matrices):
            values = np.maximum(matrix, self.floors[number]).astype(np.float64)
            # row by row in one order of summation, so that a row's scores are its own
            added = np.einsum("nv,vz->nz", values, self.coefficients[number].astype(np.float64))
            added += self.offsets[number]
            scores += np.clip(added, self.low[number], self.high[number])
        scores -= scores.max(axis=1, keepdims=True)
        exponentials = np.exp(scores)
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def stack_probabilities(each: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the probabilities of S sources as one array, 0 beyond their own classes: (n, S, Z)."""
    widest = max(one.shape[1] for one in each)
    return np.stack([np.pad(one, ((0, 0), (0, widest - one.shape[1]))) for one in each], axis=1)


def same_names(classes: Sequence[str], names: Sequence[str]) -> NDArray[np.bool_]:
    """Return which source classes are named as which classes, ignoring case: (Z, n_classes).

    Names without a letter, such as numbers, are the same as nothing.
    """
    worded = [name.casefold().strip() if any(map(str.isalpha, name)) else None for name in names]
    return np.array([[one.casefold().strip() == name for name in worded] for one in classes])


def leave_one_out(
    probabilities: NDArray[np.float64],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    same: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return the probability of each row's class, by P(class | source class) of the other rows.

    Parameters
    ----------
    probabilities : float64 array of shape (n, Z)
        Of a source's classes.
    y : int array of shape (n,)
        Classes from 0.
    sample_weight : float64 array of shape (n,)
        Weights of the rows.
    same : bool array of shape (Z, n_classes)
        Which classes have the same name.

    Returns
    -------
    float64 array of shape (n,)
    """
    counts = _counts(probabilities, y, sample_weight, same)
    own = probabilities * sample_weight[:, None]
    of_class, of_all = counts[:, y].T - own, counts.sum(axis=1) - own
    return np.asarray((probabilities * of_class / of_all).sum(axis=1))


def transfer_score(
    probabilities: NDArray[np.float64],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    same: NDArray[np.bool_],
) -> float:
    """Return the leave-one-out LEEP score: the mean gain in log-likelihood over the class shares.

    Parameters
    ----------
    probabilities, y, sample_weight, same
        As for `leave_one_out`.
    """
    shares = _shares(y, sample_weight, same.shape[1])
    seen = leave_one_out(probabilities, y, sample_weight, same)
    gains = np.log(seen) - np.log(shares[y])
    return float(gains @ sample_weight / sample_weight.sum())


def _counts(
    probabilities: NDArray[np.float64],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    same: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return how much of each class falls on each source class, prior included: (Z, n_classes)."""
    target = np.eye(same.shape[1])[y] * sample_weight[:, None]
    prior = _PRIOR_ROWS * _shares(y, sample_weight, same.shape[1]) + _NAMED_ROWS * same
    return np.asarray(probabilities.T @ target + prior)


def _shares(
    y: NDArray[np.intp], sample_weight: NDArray[np.float64], n_classes: int
) -> NDArray[np.float64]:
    counts = np.bincount(y, sample_weight, n_classes) + 1e-9  # a fold may miss a class
    return np.asarray(counts / counts.sum())


@dataclass(frozen=True)
class SourceInput(ExpertInput):
    """The expert of source models, and its evidence of n training rows.

    Parameters
    ----------
    kind, evidence, prompts
        As for `ExpertInput`: evidence is of shape (n, S, Z).
    same : bool array of shape (S, Z, n_classes)
        Which source classes have the name of a class.
    """

    same: NDArray[np.bool_] = field(kw_only=True)

    def fit(
        self, y: NDArray[np.intp], sample_weight: NDArray[np.float64], n_classes: int
    ) -> SourceReadout:
        """Return the readout fitted on all rows."""
        return SourceReadout.fit(self.evidence, y, sample_weight, n_classes, self.same)


@dataclass(frozen=True)
class SourceReadout(Expert):
    """A mixture of source models: P(class | text) = Σ_s weight_s Σ_z P(class | z) P_s(z | text).

    Parameters
    ----------
    tables : float64 array of shape (S, Z, n_classes)
        P(class | z) of each source, times its weight. Z is the largest number of source classes.
    factor : float64 array of shape (n_classes,)
        The factor of the scores, the same for all classes.
    """

    name: ClassVar[str] = "sources"
    title: ClassVar[str] = "models of other tasks"
    reads_answers: ClassVar[bool] = True

    tables: NDArray[np.float64]
    factor: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        evidence: NDArray[Any],
        y: NDArray[np.intp],
        sample_weight: NDArray[np.float64],
        n_classes: int,
        same: NDArray[np.bool_] | None = None,
    ) -> Self:
        """Return a readout of source probabilities of shape (n, S, Z); see `Expert.fit`.

        `same`, of shape (S, Z, n_classes), is which source classes have the name of a class.
        """
        if same is None:
            same = np.zeros((*evidence.shape[1:], n_classes), bool)
        tables, likelihoods = [], []
        for source, named in zip(np.moveaxis(evidence, 1, 0), same, strict=True):
            counts = _counts(source, y, sample_weight, named)
            tables.append(counts / counts.sum(axis=1, keepdims=True))
            likelihoods.append(leave_one_out(source, y, sample_weight, named))
        weights = _mixture_weights(np.stack(likelihoods, axis=1), sample_weight)
        return cls(np.stack(tables) * weights[:, None, None], np.ones(n_classes))

    @property
    def weights(self) -> NDArray[np.float64]:
        """The weight of each source: (S,)."""
        return np.asarray(self.tables.sum(axis=2).max(axis=1))

    def scores(self, evidence: NDArray[Any]) -> NDArray[np.float64]:
        """Return the scores of source probabilities of shape (n, S, Z): (n, n_classes)."""
        likely = np.log(np.einsum("nsz,szk->nk", evidence, self.tables))
        return np.asarray(self.factor * (likely - likely.mean(axis=1, keepdims=True)))

    def bounds(self) -> NDArray[np.float64]:
        """Return the least and the most of each score, but for a constant: (2, n_classes).

        Whatever a source takes a text for, the probability of a class is between the least and the
        most in its table.
        """
        least, most = self.tables.min(axis=1).sum(axis=0), self.tables.max(axis=1).sum(axis=0)
        return np.asarray(self.factor * np.log([least, most]))

    def of(self, kept: Sequence[tuple[int, int]]) -> Self:
        """Return the readout of some sources, each with its number of classes."""
        tables = self.tables[[number for number, _ in kept]]
        return replace(self, tables=tables[:, : max(n_classes for _, n_classes in kept)])

    def scaled(self, factor: float) -> Self:
        """Return the readout with its scores multiplied by a factor."""
        return replace(self, factor=self.factor * factor)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the tables and the factor."""
        return {"tables": self.tables, "factor": self.factor}

    @classmethod
    def from_arrays(cls, read: Callable[[str, Any, int], NDArray[Any]]) -> Self:
        """Return a readout from the arrays of a model file."""
        return cls(read("tables", np.float64, 3), read("factor", np.float64, 1))


def _mixture_weights(
    likelihoods: NDArray[np.float64], sample_weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the weights of S sources of the greatest likelihood, by expectation maximisation.

    Parameters
    ----------
    likelihoods : float64 array of shape (n, S)
        The probability of each row's class by each source, from `leave_one_out`.
    sample_weight : float64 array of shape (n,)
        Weights of the rows.
    """
    weights = np.full(likelihoods.shape[1], 1 / likelihoods.shape[1])
    for _ in range(_STEPS):
        shares = likelihoods * weights
        shares /= shares.sum(axis=1, keepdims=True)
        weights = sample_weight @ shares / sample_weight.sum()
    weights[weights < _LEAST_WEIGHT] = 0.0
    return np.asarray(weights / weights.sum())
