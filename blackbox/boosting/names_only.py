"""Training without labels: the class names are the verbalizers, and agreement weighs the prompts.

The tokens that spell a class name score the class under each prompt. Standardised over unlabelled
texts, and less the median of each class over these, they are free of what the LM likes to say
anyway (batch calibration: Zhou et al., ICLR 2024, by means). Prompts whose scores vary together
with those of the others count more: their weights are the first principal component of the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from blackbox.answers import features
from blackbox.answers.passes import Answers
from blackbox.boosting import logit
from blackbox.boosting.calibration import NAME_PRIOR
from blackbox.boosting.early_stopping_fit import fit_early_stopping
from blackbox.boosting.ensemble import Reading, prune_unused
from blackbox.boosting.label_words import agreement, name_votes
from blackbox.boosting.training import TrainingOptions, TrainingResult, top_k_coverage
from blackbox.boosting.weak_learner import one_blas_thread
from blackbox.experts.base import Expert, ExpertInput
from blackbox.experts.embeddings import EmbeddingReadout
from blackbox.experts.source_readout import SourceReadout

__all__ = ["NAME_WEIGHT", "SourcesRead", "nearest_name", "train_on_names"]

NAME_WEIGHT = NAME_PRIOR[0]
"""The weight of the scores by name, once they have variance 1, and of those of embeddings."""

_WEIGHTS = {EmbeddingReadout.name: NAME_WEIGHT, SourceReadout.name: SourceReadout.weight_prior[0]}
_NO_SPREAD = 1e-6  # of scores: they are the same for all texts


@dataclass(frozen=True)
class SourcesRead:
    """The expert of source models, and what it says of n texts without labels.

    Parameters
    ----------
    readout : SourceReadout
        The expert, with the weight that it has before any label.
    scores : float64 array of shape (n, n_classes)
        Its scores.
    prompts : tuple of int
        The prompts that the sources read.
    """

    readout: SourceReadout
    scores: NDArray[np.float64]
    prompts: tuple[int, ...]

    @classmethod
    def of(cls, readout: SourceReadout, given: ExpertInput) -> SourcesRead | None:
        """Return a readout and its scores; None if all texts get the same.

        Parameters
        ----------
        readout : SourceReadout
            The expert.
        given : ExpertInput
            Its evidence of the texts.
        """
        spread = float(readout.scores(given.evidence).std())
        if spread <= _NO_SPREAD:
            return None
        weighted = readout.scaled(SourceReadout.weight_prior[0] / spread)
        return cls(weighted, weighted.scores(given.evidence), given.prompts)


ReadSources = Callable[[NDArray[np.float64]], SourcesRead | None]
"""From the scores of n texts by the class names, with variance 1: (n, n_classes)."""


def train_on_names(
    answers: Answers,
    options: TrainingOptions,
    vectors: NDArray[np.float32] | None = None,
    names: NDArray[np.float32] | None = None,
    max_prompts: int | None = None,
    read_sources: ReadSources | None = None,
) -> TrainingResult:
    """Return an ensemble of the verbalizers of the class names, without any label.

    Parameters
    ----------
    answers : Answers
        Of n texts under P prompts, all answered.
    options : TrainingOptions
        Whose label words score the classes.
    vectors : float32 array of shape (n, d), optional
        Embeddings of the texts; an expert compares them with those of the names.
    names : float32 array of shape (n_classes, d), optional
        Embeddings of the names.
    max_prompts : int, optional
        Keep so many prompts, those that agree best, and those that sources read.
    read_sources : callable, optional
        Makes an expert of source models out of what the names say of the texts.

    Raises
    ------
    ValueError
        If nothing scores the classes: no token spells a name, and there are no embeddings.
    """
    n = answers.token_ids.shape[1]
    weight = np.ones(n)
    with one_blas_thread():
        matrices, tokens, floors = features.frequent_matrices(
            answers.token_ids, answers.log_probs, weight, options.min_token_share
        )
        scalings = [logit.scaling_of(matrix, weight) for matrix in matrices]
        learners, votes, unspelled = name_votes(
            range(len(tokens)),
            tokens,
            answers.token_bytes,
            matrices,
            scalings,
            options.label_words,
            options.n_classes,
        )
        shares = agreement(votes)
        if max_prompts is not None:
            shares[np.argsort(-shares, kind="stable")[max_prompts:]] = 0
        spread = float(np.tensordot(shares, votes, 1).std()) if len(votes) else 0.0
        if spread <= _NO_SPREAD and names is None:
            raise ValueError(
                "no token that the LM answers spells a class name, so nothing tells the classes "
                "apart without labels: give usual words for them (label_words, --label-word "
                "LABEL=WORD), label some texts, or use embeddings"
            )
        kept = [place for place, share in enumerate(shares) if share * spread > _NO_SPREAD**2]
        factors = NAME_WEIGHT * shares / max(spread, _NO_SPREAD)
        weighted = [replace(learners[place], weight=float(factors[place])) for place in kept]
        readings = [Reading(*part) for part in zip(tokens, floors, scalings, strict=True)]
        expert = None if names is None or vectors is None else nearest_name(vectors, names)
        experts: tuple[Expert, ...] = () if expert is None else (expert,)
        read = None
        if read_sources is not None and weighted:
            read = read_sources(np.tensordot(shares, votes, 1) / spread)
        late, late_bounds = None, None
        needed: set[int] = set()
        if read is not None:
            experts += (read.readout,)
            late, late_bounds = read.scores, read.readout.bounds()
            needed = set(read.prompts)
        if not weighted:  # embeddings alone take a prompt too, as a model has one
            needed.add(0)
        ensemble, prompts = prune_unused(
            options.algorithm, weighted, readings, np.zeros(options.n_classes), needed
        )
        added = np.zeros((len(prompts), n, options.n_classes))
        for place in kept:
            added[prompts.index(learners[place].prompt)] += factors[place] * votes[place]
        spoken = np.zeros((n, options.n_classes))
        if expert is not None and vectors is not None:
            spoken = expert.scores(vectors)
        # a frequent class moves its mean more than its median
        middle = np.median(added.sum(axis=0) + spoken + (0 if late is None else late), axis=0)
        ensemble = replace(ensemble, initial=middle.mean() - middle)
        stopping = fit_early_stopping(
            added,
            ensemble.initial + spoken,
            added.min(axis=1),
            added.max(axis=1),
            weight,
            late=late,
            late_bounds=late_bounds,
        )
    summary = {"labels": "none", "n_rounds": 0, "n_names": len(weighted)}
    summary |= {
        "names_unspelled": unspelled,
        "experts": {one.name: _WEIGHTS[one.name] for one in experts},
    }
    return TrainingResult(
        replace(ensemble, early_stopping=stopping, experts=experts),
        prompts,
        top_k_coverage(answers.log_probs),
        summary,
    )


def nearest_name(
    vectors: NDArray[np.float32], names: NDArray[np.float32]
) -> EmbeddingReadout | None:
    """Return the expert that scores each class by how near a text is to its name.

    Parameters
    ----------
    vectors : float32 array of shape (n, d)
        Embeddings of texts: over them each class has the mean score 0, and `NAME_WEIGHT` is the
        standard deviation.
    names : float32 array of shape (n_classes, d)
        Embeddings of the names.

    Returns
    -------
    EmbeddingReadout or None
        None if all texts are equally near to all names.
    """
    coefficients = names.T.astype(np.float64)
    coefficients = coefficients - coefficients.mean(axis=1, keepdims=True)
    scores = vectors.astype(np.float64) @ coefficients
    intercept = -scores.mean(axis=0)
    spread = float((scores + intercept).std())
    if spread <= _NO_SPREAD:
        return None
    readout = EmbeddingReadout(coefficients.astype(np.float32), intercept)
    return readout.scaled(NAME_WEIGHT / spread)
