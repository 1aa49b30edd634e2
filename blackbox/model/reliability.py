"""Reliability: which predictions can be trusted, by training rows that a model had not seen.

From the probabilities of held-out rows follow a threshold above which at most a promised share of
the labels is wrong, and prediction sets that hold the right label with a promised probability. Both
are promises about texts of the kind of the training rows, with the classes in the same shares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEVEL", "SMALLEST", "HeldOutRows", "Promise", "prediction_sets"]

LEVEL = 0.95
"""The confidence of the upper bound of an error rate."""

SMALLEST = 1e-6
"""The smallest share that can be promised: less takes more rows than anyone has."""

_THRESHOLDS = 10  # that are tried for a promise, each with a larger coverage


@dataclass(frozen=True)
class Promise:
    """A least probability of the predicted class, and what was found above it on held-out rows.

    Parameters
    ----------
    max_error : float
        The promised share of wrong labels.
    threshold : float
        The least probability of a label that is given.
    coverage : float
        Share of the held-out rows whose label is given.
    expected_error : float
        Share of these labels that are wrong.
    error_bound : float
        The upper end of its one-sided 95% interval (Clopper and Pearson 1934).
    n_rows : int
        Number of held-out rows.
    """

    max_error: float
    threshold: float
    coverage: float
    expected_error: float
    error_bound: float
    n_rows: int

    def withheld(self, probabilities: NDArray[np.float64]) -> dict[int, str]:
        """Return the rows whose label the promise rules out, with the reason.

        Parameters
        ----------
        probabilities : float64 array of shape (n, n_classes)
            Class probabilities; NaN rows have no label anyway.
        """
        # compared in the precision of the threshold
        confidence = probabilities.max(axis=1).astype(np.float32)
        return {
            row: _below(float(confidence[row]), self.threshold)
            for row in np.flatnonzero(confidence < np.float32(self.threshold)).tolist()
        }

    def as_dict(self) -> dict[str, float]:
        """Return the figures as JSON data."""
        rounded = {
            "threshold": self.threshold,
            "coverage": self.coverage,
            "expected_error": self.expected_error,
            "error_bound": self.error_bound,
        }
        return {
            "max_error": self.max_error,
            **{name: round(value, 6) for name, value in rounded.items()},
            "n_rows": self.n_rows,
        }

    def describe(self) -> str:
        """Return one line for people."""
        return (
            f"labels of a probability of at least {self.threshold:.3f} are given: on {self.n_rows} "
            f"held-out rows {self.coverage:.1%} of them, {self.expected_error:.1%} of those wrong, "
            f"with 95% confidence at most {self.error_bound:.1%}"
        )


def _below(probability: float, threshold: float) -> str:
    """Return that a probability is below a threshold, in digits that tell them apart."""
    digits = 3 if f"{probability:.3f}" != f"{threshold:.3f}" else 7
    return f"its probability {probability:.{digits}f} is below {threshold:.{digits}f}"


@dataclass(frozen=True)
class HeldOutRows:
    """The results for n training rows of models that were trained on others.

    Parameters
    ----------
    confidence : float32 array of shape (n,)
        The probability of the predicted class.
    truth : float32 array of shape (n,)
        The probability of the right class; the same as `confidence` only where they are one class.
    weight : float32 array of shape (n,)
        The weight of each row: 1 on average, but for rows by which prompts were chosen, which are
        worth less.
    group : int32 array of shape (n,)
        Rows of one group are not independent, and count as one.
    """

    confidence: NDArray[np.float32]
    truth: NDArray[np.float32]
    weight: NDArray[np.float32]
    group: NDArray[np.int32]

    @classmethod
    def of(
        cls,
        probabilities: NDArray[np.float64],
        y: NDArray[np.intp],
        weight: NDArray[np.float64],
        group: NDArray[np.intp],
    ) -> HeldOutRows:
        """Return the rows with these class probabilities: (n, n_classes).

        Parameters
        ----------
        probabilities : float64 array of shape (n, n_classes)
            From models that had not seen the rows.
        y : int array of shape (n,)
            The right classes.
        weight : float64 array of shape (n,)
            Weights, above 0; see `HeldOutRows`.
        group : int array of shape (n,)
            Groups.
        """
        single = probabilities.astype(np.float32)
        confidence, truth = single.max(axis=1), single[np.arange(len(y)), y]
        # of classes that tie, the first is predicted
        tied = (truth == confidence) & (probabilities.argmax(axis=1) != y)
        truth[tied] = np.nextafter(confidence[tied], np.float32(0))
        return cls(
            confidence,
            truth,
            weight.astype(np.float32),
            np.unique(group, return_inverse=True)[1].astype(np.int32),
        )

    @property
    def size(self) -> float:
        """The number of independent rows that tell as much as these weighted ones."""
        return float(self._ranked.sizes[-1]) if len(self.weight) else 0.0

    def promise(self, max_error: float) -> Promise:
        """Return the threshold with the largest coverage that keeps a promise.

        Ten thresholds are tried, whose coverage grows by a constant factor. A threshold is kept if
        the 95% upper bound of the error of the held-out rows above it (Clopper and Pearson 1934),
        and their expected error by the model's own probabilities, are both at most `max_error`.
        Selective classification by such a bound: Geifman and El-Yaniv, "Selective classification
        for deep neural networks", NeurIPS 2017.

        Parameters
        ----------
        max_error : float
            The share of wrong labels, from `SMALLEST` to 1 less that.

        Raises
        ------
        ValueError
            If the promise is out of reach; with the lowest one that isn't, and what is missing.
        """
        _check_share("max_error", max_error)
        for found in reversed(self._candidates(max_error)):
            if found.error_bound <= max_error and self._own_error(found) <= max_error:
                return found
        raise ValueError(self._out_of_reach(max_error))

    def set_threshold(self, coverage: float) -> float:
        """Return the probability from which on a class is in the prediction set of a text.

        Split-conformal prediction with the probability of the right class as the score, which gives
        the smallest sets on average (Vovk, Gammerman and Shafer 2005; Sadinle, Lei and Wasserman,
        "Least ambiguous set-valued classifiers with bounded error levels", JASA 2019); its scores
        are those of cross-validation (Vovk, "Cross-conformal predictors", 2015).

        Parameters
        ----------
        coverage : float
            The share of texts whose set holds the right class, from `SMALLEST` to 1 less that.

        Raises
        ------
        ValueError
            If there are too few held-out rows.
        """
        _check_share("coverage", coverage)
        allowed = (1 - coverage) * (self.size + 1) - 1
        if allowed < -1e-9:
            needed = math.ceil(coverage / (1 - coverage) - 1e-6)
            raise ValueError(
                f"sets that hold the right label with probability {coverage:g} take at least "
                f"{needed} independent held-out rows, and this model has {self.size:.0f}; train on "
                "more labels, or ask for a lower probability"
            )
        order = np.argsort(self.truth, kind="stable")
        weight = self.weight[order].astype(np.float64)
        below = (np.cumsum(weight) - weight) / weight.sum()
        last = int(np.searchsorted(below, allowed / self.size + 1e-9, side="right")) - 1
        return float(self.truth[order[last]])

    def _candidates(self, max_error: float) -> list[Promise]:
        """Return the thresholds to try, in order of growing coverage."""
        if not len(self.weight):
            return []
        ranked = self._ranked
        # fewer rows can't keep the promise even if all of their labels are right
        fewest = math.log(1 - LEVEL) / math.log1p(-max_error)
        if self.size < fewest:
            return []
        found = []
        for size in np.geomspace(fewest, self.size, _THRESHOLDS):
            place = min(int(np.searchsorted(ranked.sizes, size - 1e-9)), len(self.weight) - 1)
            threshold = ranked.confidence[place]
            # rows of the same probability are given or not together
            last = int(np.searchsorted(-ranked.confidence, -threshold, side="right")) - 1
            error = float(ranked.wrong[last] / ranked.total[last])
            found.append(
                Promise(
                    max_error,
                    float(threshold),
                    float(ranked.total[last] / ranked.total[-1]),
                    error,
                    _upper_bound(error, float(ranked.sizes[last])),
                    len(self.weight),
                )
            )
        return found

    def _own_error(self, found: Promise) -> float:
        """Return the expected error above a threshold by the probabilities themselves."""
        given = self.confidence >= np.float32(found.threshold)
        return float(1 - np.average(self.confidence[given], weights=self.weight[given]))

    @cached_property
    def _ranked(self) -> _Ranked:
        order = np.argsort(-self.confidence, kind="stable")
        confidence, weight = self.confidence[order], self.weight[order].astype(np.float64)
        wrong = np.cumsum(weight * (self.truth[order] < confidence))
        return _Ranked(confidence, np.cumsum(weight), wrong, self._sizes(order))

    def _sizes(self, order: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return how many independent rows the first ones in an order are worth: (n,).

        Unequal weights are worth fewer rows than there are (Kish, "Survey sampling", 1965), and no
        more than they sum to.
        """
        of_group = np.zeros(int(self.group.max()) + 1)
        squares, total = 0.0, 0.0
        sizes = np.empty(len(order))
        for place, row in enumerate(order.tolist()):
            weight, group = float(self.weight[row]), self.group[row]
            squares += weight * (2 * of_group[group] + weight)
            of_group[group] += weight
            total += weight
            sizes[place] = min(total * total / squares, total)
        return np.maximum.accumulate(sizes)

    def _out_of_reach(self, max_error: float) -> str:
        fewest = math.ceil(math.log(1 - LEVEL) / math.log1p(-max_error))
        start = f"an error of at most {max_error:g} can't be promised"
        if self.size < fewest:
            return (
                f"{start}: that takes {fewest} independent held-out rows whose labels are all "
                f"right, and this model has {self.size:.0f}{self._instead(max_error)}"
            )
        best = min(self._candidates(max_error), key=lambda one: one.error_bound)
        return (
            f"{start}: of the {best.coverage:.0%} surest of {best.n_rows} held-out rows "
            f"{best.expected_error:.1%} are wrong, with 95% confidence at most "
            f"{best.error_bound:.1%}; the model's probabilities say "
            f"{self._own_error(best):.1%}{self._instead(max_error)}"
        )

    def _instead(self, max_error: float) -> str:
        for percent in (1, 2, 5, 10, 15, 20, 25, 30, 40, 50):
            error = percent / 100
            if error > max_error:
                try:
                    kept = self.promise(error)
                except ValueError:
                    continue
                return (
                    f". {error:g} can be promised, for {kept.coverage:.0%} of the texts; for less, "
                    "train on more labels"
                )
        return "; train on more labels"


@dataclass(frozen=True)
class _Ranked:
    """Held-out rows in descending order of confidence, and sums over the first ones."""

    confidence: NDArray[np.float32]
    total: NDArray[np.float64]
    wrong: NDArray[np.float64]
    sizes: NDArray[np.float64]


def prediction_sets(probabilities: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]:
    """Return which classes are in the prediction set of each text: (n, n_classes).

    The most probable class is in each set, whatever its probability; NaN rows have empty sets.

    Parameters
    ----------
    probabilities : float64 array of shape (n, n_classes)
        Class probabilities; NaN without an answer.
    threshold : float
        From `HeldOutRows.set_threshold`.
    """
    # compared in the precision of the threshold
    single = probabilities.astype(np.float32)
    chosen = single >= np.float32(threshold)
    answered = ~np.isnan(single).any(axis=1)
    chosen[answered, single[answered].argmax(axis=1)] = True
    return chosen


def _upper_bound(error: float, size: float) -> float:
    """Return the 95% upper bound of an error rate on so many rows (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv

    n_wrong = error * size
    return float(betaincinv(n_wrong + 1, size - n_wrong, LEVEL)) if n_wrong < size else 1.0


def _check_share(name: str, value: float) -> None:
    if not SMALLEST <= value <= 1 - SMALLEST:
        raise ValueError(f"{name} must be from {SMALLEST:f} to {1 - SMALLEST:f}, got {value!r}")
