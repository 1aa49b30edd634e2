"""The experts of a model that are asked about new texts before the first prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from blackbox.backend import BaseBackend
from blackbox.boosting.ensemble import Ensemble
from blackbox.experts.vectors import read_vectors
from blackbox.prompts.inputs import Example
from blackbox.protocol import Usage

__all__ = ["ExpertAnswers", "ask_experts"]


@dataclass(frozen=True)
class ExpertAnswers:
    """The scores of J experts on n texts.

    Parameters
    ----------
    scores : float64 array of shape (J, n, n_classes)
        Times their weights; NaN for refused texts, and 0 of experts that read answers, which are
        known once all prompts are asked.
    vectors : float32 array of shape (n, d), or None
        The embeddings, NaN for refused texts; None where none were asked for.
    row_errors : dict of int to str
        Texts that an embedding model refused, with the reasons.
    usage : Usage
        Usage of the embedding model.
    """

    scores: NDArray[np.float64]
    vectors: NDArray[np.float32] | None = None
    row_errors: dict[int, str] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)


def ask_experts(
    ensemble: Ensemble,
    embedder: BaseBackend | None,
    examples: Sequence[Example],
    *,
    for_others: bool = False,
) -> ExpertAnswers:
    """Return the scores of an ensemble's experts on texts, and the embeddings that they read.

    Parameters
    ----------
    ensemble : Ensemble
        The trained ensemble.
    embedder : BaseBackend or None
        The embedding model, behind its store and its budget; asked only if vectors are needed.
    examples : sequence of Example
        n texts, or pairs.
    for_others : bool, default=False
        Whether something else needs the embeddings, so that they are asked for without an expert.

    Raises
    ------
    ValueError
        If vectors are needed and there is no embedding model.
    """
    scores = np.zeros((len(ensemble.experts), len(examples), ensemble.n_classes))
    if not ensemble.reads_vectors and not for_others:
        return ExpertAnswers(scores)
    if embedder is None:
        raise ValueError("this model reads sentence embeddings: give the embedding model too")
    vectors = read_vectors(embedder, examples)
    answered = vectors.answered
    scores[:, ~answered] = np.nan
    for number, expert in enumerate(ensemble.experts):
        if not expert.reads_answers:
            scores[number, answered] = expert.scores(vectors.values[answered])
    return ExpertAnswers(scores, vectors.values, vectors.row_errors, vectors.usage)
