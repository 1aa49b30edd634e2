"""Suggestions: which texts to label next, by what their labels would teach a model.

The texts without labels are clustered by k-means into as many clusters as labels are wanted, and of
each the text nearest to its centre is suggested, so that near-copies fall into one cluster. First
comes the cluster of which the model is most uncertain. Source of the choice: Hacohen, Dekel and
Weinshall, "Active learning on a budget: opposite strategies suit high and low budgets", ICML 2022;
of uncertainty by the margin of the two most probable classes: Scheffer, Decomain and Wrobel,
"Active hidden Markov models for information extraction", IDA 2001. Choosing by uncertainty itself
brought nothing on the two data sets where it was tried: `eval/studies/suggest.py`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from blackbox.answers.texts import CheckedTexts, check_texts
from blackbox.backend import BaseBackend
from blackbox.model.model import Evidence, Model, Progress
from blackbox.model.out_of_scope import unit
from blackbox.model.predictions import NO_ANSWER
from blackbox.protocol import Usage

__all__ = [
    "NO_SEVERAL",
    "Suggestions",
    "choose_spread",
    "evidence_vectors",
    "suggest",
    "uncertainty",
]

NO_SEVERAL = (
    "texts to label next are suggested for one label per text, and this model gives several"
)


@dataclass(frozen=True)
class Suggestions:
    """Which k of n texts to label next.

    Parameters
    ----------
    rows : int array of shape (k,)
        Indices of the texts, first the one to label first.
    labels : array of shape (k,)
        Their labels by the model so far.
    probabilities : float64 array of shape (k,)
        The probabilities of these labels.
    n_candidates : int
        Number of texts that they were chosen from.
    n_trained_on : int
        Number of texts that were left out, as the model was trained on their labels.
    n_copies : int
        Number of texts that were left out, as they are copies of others.
    row_errors : dict of int to str
        Texts that were left out without an answer, with the reasons.
    truncated_rows : set of int
        Texts that were truncated to fit the LM's context.
    usage : Usage
        Passes, tokens and time.
    """

    rows: NDArray[np.intp]
    labels: NDArray[Any]
    probabilities: NDArray[np.float64]
    n_candidates: int
    n_trained_on: int
    n_copies: int
    row_errors: dict[int, str]
    truncated_rows: set[int]
    usage: Usage


def suggest(
    model: Model,
    lm: BaseBackend,
    texts: Any,
    n: int,
    *,
    embedder: BaseBackend | None = None,
    on_row_error: str = "abstain",
    progress: Progress | None = None,
) -> Suggestions:
    """Return which texts to label next.

    Texts without an answer, copies, and those of whose labels the model learned are left out.

    Parameters
    ----------
    model : Model
        The trained model; it may have seen no label.
    lm, texts, embedder, on_row_error, progress
        As for `Model.predict`.
    n : int
        Number of texts to choose; fewer if there are no more.

    Raises
    ------
    ValueError
        If `n` is below 1, the model gives several labels per text, or as `Model.predict`.
    RowError
        If a row got no answer, under ``on_row_error="raise"``.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n!r}")
    if model.several_labels:
        raise ValueError(NO_SEVERAL)
    examples = check_texts(texts)
    unseen = np.flatnonzero(~model.trained_on(examples)).tolist()
    first: dict[Any, int] = {}
    for row in unseen:
        first.setdefault(row if row in examples.refused else examples[row], row)
    rows = np.array(list(first.values()), np.intp)
    predictions, evidence = model.read(
        lm,
        CheckedTexts([examples[row] for row in rows], kind=examples.kind),
        embedder=embedder,
        on_row_error=on_row_error,
        progress=progress,
    )
    assert predictions.probabilities is not None
    answered = np.flatnonzero(predictions.codes != NO_ANSWER)
    probabilities = predictions.probabilities[answered]
    vectors = evidence_vectors(model, evidence.take_rows(answered))
    chosen = choose_spread(uncertainty(probabilities), vectors, n)
    return Suggestions(
        rows=rows[answered[chosen]],
        labels=predictions.labels(abstain_label="")[answered[chosen]],
        probabilities=predictions.label_probabilities()[answered[chosen]],
        n_candidates=len(answered),
        n_trained_on=len(examples) - len(unseen),
        n_copies=len(unseen) - len(rows),
        row_errors={int(rows[place]): why for place, why in predictions.row_errors.items()},
        truncated_rows={int(rows[place]) for place in predictions.truncated_rows},
        usage=predictions.usage,
    )


def uncertainty(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 less the margin between the two most probable classes: (n,), from 0 to 1.

    Parameters
    ----------
    probabilities : float64 array of shape (n, n_classes)
        Class probabilities.
    """
    second, first = np.partition(probabilities, -2, axis=1)[:, -2:].T
    return np.asarray(1 - (first - second))


def evidence_vectors(model: Model, evidence: Evidence) -> NDArray[np.float64]:
    """Return vectors of length 1 of texts: the embeddings that a model reads, else its answers.

    Parameters
    ----------
    model : Model
        The model.
    evidence : Evidence
        From `Model.read`, of n answered texts.

    Returns
    -------
    float64 array of shape (n, d)
        A vector of zeros stays one.
    """
    vectors = evidence.vectors
    if vectors is None:
        vectors = model.ensemble.standardised(evidence.matrices)
    return unit(vectors)


def choose_spread(
    weights: NDArray[np.float64], vectors: NDArray[np.float64], n: int
) -> NDArray[np.intp]:
    """Return the row nearest to each centre of k-means, the heaviest cluster first: (n,).

    Where k-means finds fewer clusters, as among copies, the other rows are clustered again.

    Parameters
    ----------
    weights : float64 array of shape (m,)
        By which clusters are ordered, not negative.
    vectors : float64 array of shape (m, d)
        What is clustered.
    n : int
        Number of rows; all m if there are no more.
    """
    chosen: list[int] = []
    free = np.arange(len(weights))
    while len(chosen) < min(n, len(weights)):
        some = _nearest_to_centres(weights[free], vectors[free], min(n - len(chosen), len(free)))
        chosen += free[some].tolist()
        free = np.delete(free, some)
    return np.array(chosen, np.intp)


def _nearest_to_centres(
    weights: NDArray[np.float64], vectors: NDArray[np.float64], n: int
) -> NDArray[np.intp]:
    """Return the row nearest to each of at most n centres, the heaviest cluster first."""
    from sklearn.cluster import KMeans

    means = KMeans(n, n_init=1, random_state=0)
    # with one thread, sums have one order
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters
        distances = means.fit_transform(vectors)
    groups = [np.flatnonzero(means.labels_ == group) for group in range(n)]
    groups = sorted((own for own in groups if len(own)), key=lambda own: -weights[own].sum())
    return np.array(
        [own[distances[own, means.labels_[own[0]]].argmin()] for own in groups], np.intp
    )
