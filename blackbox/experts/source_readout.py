"""The expert of source models: trained models of other tasks, read through this task's classes.

P(class | source class) is counted on the training rows, so that a text that a source takes for
*positive* counts as most such rows do. Source: Nguyen et al., "LEEP: a new measure to evaluate
transferability of learned representations", ICML 2020. The name of a class, read as a text, counts
as further rows. Several sources are mixed, with the weights under which the labels of rows that
were not counted are most likely.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from blackbox.experts.base import Expert, ExpertInput, Folds

__all__ = ["SourceInput", "SourceReadout", "leave_one_out", "transfer_score"]

_PRIOR_ROWS = 4.0  # per source class, spread over the classes by their shares
_NAME_ROWS = 8.0  # as which the name of a class counts
_UNSEEN = 1.0  # rows as which a class without any counts
_STEPS = 50  # of the weights of sources, which are then good to about a percent
_LEAST_WEIGHT = 0.01  # a source with less is left out


def leave_one_out(
    probabilities: NDArray[np.float64],
    target: NDArray[np.float64],
    sample_weight: NDArray[np.float64],
    names: NDArray[np.float64] | None = None,
    groups: NDArray[np.intp] | None = None,
) -> NDArray[np.float64]:
    """Return the probabilities of each row's classes, by P(class | source class) of other rows.

    Parameters
    ----------
    probabilities : float64 array of shape (n, Z)
        Of a source's classes.
    target : float64 array of shape (n, n_classes)
        How likely each class is for a row: 1 and 0 where it is labelled.
    sample_weight : float64 array of shape (n,)
        Weights of the rows.
    names : float64 array of shape (n_classes, Z), optional
        What the source makes of the names of the classes.
    groups : int array of shape (n,), optional
        Rows of the same group are left out too.

    Returns
    -------
    float64 array of shape (n, n_classes)
    """
    counts = _counts(probabilities, target, sample_weight, names)
    group = np.arange(len(target)) if groups is None else np.unique(groups, return_inverse=True)[1]
    weighted = probabilities * sample_weight[:, None]
    own = np.zeros((int(group.max()) + 1, len(counts)))
    np.add.at(own, group, weighted)
    shares = probabilities / (counts.sum(axis=1) - own[group])
    left = shares @ counts
    for label in range(counts.shape[1]):
        of_label = np.zeros_like(own)
        np.add.at(of_label, group, weighted * target[:, label, None])
        left[:, label] -= (shares * of_label[group]).sum(axis=1)
    return np.asarray(left)


def transfer_score(
    left_out: NDArray[np.float64], target: NDArray[np.float64], sample_weight: NDArray[np.float64]
) -> float:
    """Return the leave-one-out LEEP score: the mean gain in log-likelihood over the class shares.

    Parameters
    ----------
    left_out : float64 array of shape (n, n_classes)
        The probabilities of the rows' classes, from `leave_one_out`.
    target, sample_weight
        As there.
    """
    gains = (target * (np.log(left_out) - np.log(_shares(target, sample_weight)))).sum(axis=1)
    return float(gains @ sample_weight / sample_weight.sum())


def _counts(
    probabilities: NDArray[np.float64],
    target: NDArray[np.float64],
    sample_weight: NDArray[np.float64],
    names: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """Return how much of each class falls on each source class, prior included: (Z, n_classes)."""
    counts = probabilities.T @ (target * sample_weight[:, None])
    counts += _PRIOR_ROWS * _shares(target, sample_weight)
    return np.asarray(counts if names is None else counts + _NAME_ROWS * names.T)


def _shares(target: NDArray[np.float64], sample_weight: NDArray[np.float64]) -> NDArray[np.float64]:
    counts = sample_weight @ target
    counts = np.where(counts > 0, counts, _UNSEEN)
    return np.asarray(counts / counts.sum())


@dataclass(frozen=True)
class SourceInput(ExpertInput):
    """The expert of source models, and its evidence of n training rows.

    Parameters
    ----------
    kind, evidence, prompts
        As for `ExpertInput`: evidence is of shape (n, S, Z).
    names : float64 array of shape (n_classes, S, Z), optional
        What the sources make of the names of the classes.
    """

    def fit(
        self, y: NDArray[np.intp], sample_weight: NDArray[np.float64], n_classes: int
    ) -> SourceReadout:
        """Return the readout fitted on all rows, and on the names."""
        return SourceReadout.fit(self.evidence, y, sample_weight, n_classes, self.names)

    def held_out_scores(
        self,
        y: NDArray[np.intp],
        sample_weight: NDArray[np.float64],
        n_classes: int,
        folds: Folds,
        groups: NDArray[np.intp] | None,
    ) -> NDArray[np.float64]:
        """Return the scores of each row, by counts of the rows of other groups.

        With two rows per class, folds would leave half of them to count.
        """
        target = np.eye(n_classes)[y]
        each = _each_left_out(self.evidence, target, sample_weight, self.names, groups)
        weights = _mixture_weights(each, target, sample_weight)
        likely = np.log(np.einsum("s,snk->nk", weights, each))
        return np.asarray(likely - likely.mean(axis=1, keepdims=True))


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
    weight_prior: ClassVar[tuple[float, float]] = (0.5, 10.0)

    tables: NDArray[np.float64]
    factor: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        evidence: NDArray[Any],
        y: NDArray[np.intp],
        sample_weight: NDArray[np.float64],
        n_classes: int,
        names: NDArray[np.float64] | None = None,
    ) -> Self:
        """Return a readout of source probabilities of shape (n, S, Z); see `Expert.fit`.

        `names`, of shape (n_classes, S, Z), is what the sources make of the names of the classes.
        """
        target = np.eye(n_classes)[y]
        each = _each_left_out(evidence, target, sample_weight, names)
        weights = _mixture_weights(each, target, sample_weight)
        return cls._of(evidence, target, sample_weight, names, weights)

    @classmethod
    def of_names(
        cls, evidence: NDArray[Any], names: NDArray[np.float64], likely: NDArray[np.float64]
    ) -> Self:
        """Return a readout without labelled rows: P(class | source class) by the names alone.

        Parameters
        ----------
        evidence : float64 array of shape (n, S, Z)
            The probabilities of source classes of n texts without labels.
        names : float64 array of shape (n_classes, S, Z)
            Those of the names of the classes.
        likely : float64 array of shape (n, n_classes)
            How likely each class is for a text, by which the sources are weighed.
        """
        nothing = np.zeros(len(evidence))
        each = _each_left_out(evidence, likely, nothing, names)
        weights = _mixture_weights(each, likely, np.ones(len(evidence)))
        return cls._of(evidence, likely, nothing, names, weights)

    @classmethod
    def _of(
        cls,
        evidence: NDArray[Any],
        target: NDArray[np.float64],
        sample_weight: NDArray[np.float64],
        names: NDArray[np.float64] | None,
        weights: NDArray[np.float64],
    ) -> Self:
        counts = np.stack(
            [
                _counts(one, target, sample_weight, None if names is None else names[:, number])
                for number, one in enumerate(np.moveaxis(evidence, 1, 0))
            ]
        )
        tables = counts / counts.sum(axis=2, keepdims=True)
        return cls(tables * weights[:, None, None], np.ones(target.shape[1]))

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


def _each_left_out(
    evidence: NDArray[Any],
    target: NDArray[np.float64],
    sample_weight: NDArray[np.float64],
    names: NDArray[np.float64] | None,
    groups: NDArray[np.intp] | None = None,
) -> NDArray[np.float64]:
    """Return `leave_one_out` of each source: (S, n, n_classes)."""
    each = []
    for number, one in enumerate(np.moveaxis(evidence, 1, 0)):
        of_names = None if names is None else names[:, number]
        each.append(leave_one_out(one, target, sample_weight, of_names, groups))
    return np.stack(each)


def _mixture_weights(
    each: NDArray[np.float64], target: NDArray[np.float64], sample_weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the weights of S sources of the greatest likelihood, by expectation maximisation.

    Parameters
    ----------
    each : float64 array of shape (S, n, n_classes)
        The probabilities of each row's classes by each source, from `leave_one_out`.
    target, sample_weight
        As there.
    """
    likelihoods = np.einsum("snk,nk->ns", each, target)
    weights = np.full(likelihoods.shape[1], 1 / likelihoods.shape[1])
    for _ in range(_STEPS):
        shares = likelihoods * weights
        shares /= shares.sum(axis=1, keepdims=True)
        weights = sample_weight @ shares / sample_weight.sum()
    weights[weights < _LEAST_WEIGHT] = 0.0
    return np.asarray(weights / weights.sum())
