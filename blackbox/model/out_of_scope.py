"""Out-of-scope texts: those of none of the classes, noticed by what a model makes of them.

Measures of how little a text is like those of the training are added up, each standardised over
training rows that the model had not seen:

- *score*: how little its best class stands out, the largest log-probability less the mean over the
  classes. Close relatives: the largest probability (Hendrycks and Gimpel, "A baseline for detecting
  misclassified and out-of-distribution examples", ICLR 2017), the largest logit and the energy
  (Liu, Wang, Owens and Li, "Energy-based out-of-distribution detection", NeurIPS 2020).
- *distance*: how far its scores of all classes are from those of any class, relative Mahalanobis
  distance (Lee, Lee, Lee and Shin, "A simple unified framework for detecting out-of-distribution
  samples and adversarial attacks", NeurIPS 2018; Ren et al., "A simple fix to Mahalanobis distance
  for improving near-OOD detection", 2021). Scores are linear in the answers of the language model.
- *neighbours*: how far its sentence embedding is from its nearest training rows (Sun, Ming, Zhu and
  Li, "Out-of-distribution detection with deep nearest neighbors", ICML 2022).
- *like outside answers*, *like outside embeddings*: how near its answers, and its embedding, are to
  those of the nearest training row of none of the classes, where there are such rows.

A text is of none of the classes if few of the unseen training rows look as unusual: a conformal
p-value (Vovk, Gammerman and Shafer, "Algorithmic learning in a random world", 2005; for outliers
Bates, Candès, Lei, Romano and Sesia, "Testing for outliers with conformal p-values", 2023). So the
share of texts of known classes that are taken for others is promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FALSE_ALARMS",
    "FEWEST_KNOWN",
    "MEASURES",
    "Distances",
    "OutOfScope",
    "OutOfScopeDetector",
    "TextEvidence",
    "centred_log",
    "similarity",
    "unit",
]

FALSE_ALARMS = 0.05
"""The promised share of texts of the known classes that are taken for none of them."""

FEWEST_KNOWN = round(1 / FALSE_ALARMS) - 1
"""With fewer held-out rows no text could be that unusual."""

MEASURES = ("score", "distance", "neighbours", "like_outside_answers", "like_outside_embeddings")
"""The measures, in order."""

_NEIGHBOURS = 3  # the nearest training rows whose mean cosine similarity counts

_TINY = 1e-12  # of a probability
_DIGITS = 6  # of a similarity: its last digits depend on how many texts are compared at once


@dataclass(frozen=True)
class OutOfScope:
    """The degree to which n texts are unusual, and which are of none of the classes.

    Parameters
    ----------
    label : str, int, float or bool
        The label of such texts.
    scores : float64 array of shape (n,)
        The larger, the less a text is like those of the classes; NaN without an answer.
    p_known : float64 array of shape (n,)
        The share of texts of known classes that look at least as unusual; NaN without an answer.
    false_alarms : float
        The p-value below which a text is of none of the classes.
    """

    label: Any
    scores: NDArray[np.float64]
    p_known: NDArray[np.float64]
    false_alarms: float = FALSE_ALARMS

    @property
    def rejected(self) -> NDArray[np.bool_]:
        """Which texts are of none of the classes: (n,)."""
        return np.asarray(self.p_known < self.false_alarms)

    def describe(self, row: int) -> str:
        """Return how unusual a text is, in words."""
        fewer = f", fewer than {self.false_alarms:.0%}" if self.rejected[row] else ""
        share = np.floor(1000 * self.p_known[row]) / 1000  # so that less than a limit looks less
        return f"{share:.1%} of the texts of known classes look as unusual{fewer}"


@dataclass(frozen=True)
class Distances:
    """Normal distributions of the scores of texts: one per class, with one covariance, and of all.

    Parameters
    ----------
    mean : float64 array of shape (n_classes,)
        Mean of the centred log-probabilities of held-out rows.
    axes : float64 array of shape (n_classes, r)
        Directions along which all rows have variance 1, and those of a class are uncorrelated.
    centres : float64 array of shape (n_classes, r)
        The mean of each class along these directions.
    variances : float64 array of shape (r,)
        The variance within classes along each.
    """

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]
    centres: NDArray[np.float64]
    variances: NDArray[np.float64]

    def measure(self, logs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the distance to the nearest class, less that to all rows: (n,).

        Parameters
        ----------
        logs : float64 array of shape (n, n_classes)
            From `centred_log`.
        """
        # row by row in one order of summation, so that a row's distance is its own
        places = np.einsum("nk,kr->nr", logs - self.mean, self.axes)
        nearest = np.full(len(places), np.inf)
        for centre in self.centres:
            steps = (places - centre) ** 2 / self.variances
            nearest = np.minimum(nearest, steps.sum(axis=1))
        return np.asarray(nearest - (places**2).sum(axis=1))


@dataclass(frozen=True)
class TextEvidence:
    """A model's results for n texts.

    Parameters
    ----------
    probabilities : float64 array of shape (n, n_classes)
        Class probabilities; NaN without an answer.
    answers : float array of shape (n, V), optional
        The standardised log-probabilities that the ensemble reads, of all prompts.
    vectors : float32 array of shape (n, d), optional
        Sentence embeddings.
    """

    probabilities: NDArray[np.float64]
    answers: NDArray[Any] | None = None
    vectors: NDArray[np.float32] | None = None

    def take(self, rows: NDArray[Any]) -> TextEvidence:
        """Return the evidence of some of the texts."""
        return TextEvidence(
            self.probabilities[rows],
            None if self.answers is None else self.answers[rows],
            None if self.vectors is None else self.vectors[rows],
        )


@dataclass(frozen=True)
class OutOfScopeDetector:
    """Notices texts of none of the classes.

    Parameters
    ----------
    label : str, int, float or bool
        The label of such texts.
    weights, means, scales : float64 arrays of shape (J,)
        The weight of each measure that it has, and its mean and standard deviation over rows of
        known classes.
    distances : Distances
        Of the scores of all classes.
    known : float32 array of shape (n,)
        The scores of training rows that the model had not seen, ascending.
    known_weight : float32 array of shape (n,)
        Their weights, whose sum is the number of independent rows that they are worth.
    vectors : float16 array of shape (m, d), optional
        The embeddings of training rows, of length 1.
    outside_answers : float16 array of shape (q, V), optional
        The standardised answers to training rows of none of the classes, of length 1.
    outside_vectors : float16 array of shape (q, d), optional
        Their embeddings, of length 1.
    """

    label: Any
    weights: NDArray[np.float64]
    means: NDArray[np.float64]
    scales: NDArray[np.float64]
    distances: Distances
    known: NDArray[np.float32]
    known_weight: NDArray[np.float32]
    vectors: NDArray[np.float16] | None = None
    outside_answers: NDArray[np.float16] | None = None
    outside_vectors: NDArray[np.float16] | None = None

    @property
    def reads_vectors(self) -> bool:
        """Whether it needs the sentence embedding of a text."""
        return self.vectors is not None

    @property
    def measures(self) -> list[str]:
        """The names of the measures that it has, of `MEASURES`."""
        has = (True, True, *(one is not None for one in self._compared()))
        return [name for name, there in zip(MEASURES, has, strict=True) if there]

    def scores(self, evidence: TextEvidence) -> NDArray[np.float64]:
        """Return how unusual texts are: (n,), NaN without an answer."""
        answered = np.flatnonzero(~np.isnan(evidence.probabilities).any(axis=1))
        scores = np.full(len(evidence.probabilities), np.nan)
        if len(answered):
            scores[answered] = self.combine(self.measure(evidence.take(answered)))
        return scores

    def judge(self, scores: NDArray[np.float64]) -> OutOfScope:
        """Return which texts with these scores are of none of the classes."""
        p_known = np.where(np.isnan(scores), np.nan, self.p_values(scores))
        return OutOfScope(self.label, scores, p_known)

    def measure(self, evidence: TextEvidence) -> NDArray[np.float64]:
        """Return the measures of answered texts, before they are standardised: (n, J)."""
        logs = centred_log(evidence.probabilities)
        columns = [-logs.max(axis=1), self.distances.measure(logs)]
        near, *like = self._compared()
        if near is not None and evidence.vectors is not None:
            columns.append(-similarity(unit(evidence.vectors), near))
        read = (evidence.answers, evidence.vectors)
        for outside, values in zip(like, read, strict=True):
            if outside is not None and values is not None:
                columns.append(similarity(unit(values), outside, n_nearest=1))
        return np.stack(columns, axis=1)

    def standardise(self, measures: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return measures in standard deviations of known rows: (n, J).

        That a text is not like the rows of none of the classes is no sign that it is of one: they
        may be of other kinds. So these measures are never below 0.
        """
        standard = (measures - self.means) / self.scales
        n_like = sum(one is not None for one in (self.outside_answers, self.outside_vectors))
        first = standard.shape[1] - n_like
        standard[:, first:] = np.maximum(standard[:, first:], 0.0)
        return np.asarray(standard)

    def combine(self, measures: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the scores of texts with these measures: (n,); the larger, the more unusual."""
        return np.asarray((self.standardise(measures) * self.weights).sum(axis=1))

    def p_values(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the conformal p-value of each score, as one of a text of a known class: (n,)."""
        weight = self.known_weight.astype(np.float64)
        above = np.append(np.cumsum(weight[::-1])[::-1], 0.0)
        # compared in the precision of the known rows
        places = np.searchsorted(self.known, scores.astype(np.float32), side="left")
        return np.asarray((1 + above[places]) / (1 + weight.sum()))

    def _compared(self) -> Sequence[NDArray[np.float16] | None]:
        """Return the rows that each of the last three measures compares a text with."""
        return self.vectors, self.outside_answers, self.outside_vectors


def centred_log(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log-probabilities less their mean over the classes: (n, n_classes)."""
    logs = np.log(np.maximum(probabilities, _TINY))
    return np.asarray(logs - logs.mean(axis=1, keepdims=True))


def unit(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """Return vectors of length 1; a vector of zeros stays one."""
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(lengths > 0, lengths, 1.0))


def similarity(
    vectors: NDArray[np.float64],
    others: NDArray[np.float16],
    excluded: NDArray[np.bool_] | None = None,
    n_nearest: int = _NEIGHBOURS,
) -> NDArray[np.float64]:
    """Return the mean cosine similarity of texts to their nearest rows: (n,).

    Parameters
    ----------
    vectors : float64 array of shape (n, d)
        Of length 1.
    others : float16 array of shape (m, d)
        The rows, of length 1.
    excluded : bool array of shape (n, m), optional
        Rows that a text is not compared with.
    n_nearest : int, default=3
        How many of the nearest rows count.
    """
    cosines = np.round(vectors @ others.astype(np.float64).T, _DIGITS)
    if excluded is not None:
        cosines[excluded] = -1.0
    k = min(n_nearest, cosines.shape[1])
    nearest = np.sort(np.partition(cosines, cosines.shape[1] - k, axis=1)[:, -k:], axis=1)
    return np.asarray(nearest.mean(axis=1))
