"""Baseline: the best single prompt and verbalizer of the same LM, without boosting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers import features
from blackbox.answers.features import Matrix
from blackbox.answers.gatherer import Gatherer
from blackbox.answers.passes import Answers
from blackbox.backend import BaseBackend
from blackbox.boosting import samme
from blackbox.boosting.tuples import best_tuple
from blackbox.boosting.verbalizers import candidate_tokens
from blackbox.boosting.weak_learner import WeakLearner, one_blas_thread
from blackbox.prompts.pool import PromptPool

__all__ = ["best_single_learner", "best_tuples", "training_errors"]


def training_errors(
    answers: Answers, y: NDArray[np.intp], sample_weight: NDArray[np.float64], n_classes: int
) -> NDArray[np.float64]:
    """Return the training error of each prompt with its best verbalizer of one token per class.

    Parameters
    ----------
    answers : Answers
        Of n rows under P prompts, all answered.
    y : int array of shape (n,)
        Classes from 0.
    sample_weight : float array of shape (n,)
        Weights above 0.

    Returns
    -------
    float64 array of shape (P,)
    """
    share = sample_weight / sample_weight.sum()
    matrices, _, _ = features.frequent_matrices(answers.token_ids, answers.log_probs, share, 0.0)
    return np.array([error for _, error in best_tuples(matrices, y, share, n_classes)])


def best_single_learner(
    backend: BaseBackend,
    pool: PromptPool,
    texts: Sequence[str],
    labels: Sequence[Any],
    new_texts: Sequence[str],
    top_k: int,
) -> NDArray[Any]:
    """Return the labels of the best single prompt and verbalizer: the baseline to beat.

    Of all prompts, and verbalizers of one token per class, the pair with the least training error.

    Parameters
    ----------
    backend : Backend
        The LM.
    pool : PromptPool
        The prompts.
    texts, labels : sequences of the same length
        Training rows.
    new_texts : sequence of str
        Texts to label.
    top_k : int
        Next tokens to read of each answer.

    Returns
    -------
    array of shape (len(new_texts),)
        Labels.
    """
    classes, y = np.unique(np.array(labels), return_inverse=True)
    weights = np.full(len(y), 1 / len(y))
    answers = Gatherer(backend, [(text, None) for text in texts], top_k).answers(pool)
    matrices, tokens, floors = features.frequent_matrices(
        answers.token_ids, answers.log_probs, weights, 0.0
    )
    tuples = best_tuples(matrices, y, weights, len(classes))
    prompt = int(np.argmin([error for _, error in tuples]))
    columns = tuples[prompt][0]
    unseen = Gatherer(backend, [(text, None) for text in new_texts], top_k).answers(
        PromptPool([pool[prompt]])
    )
    matrix = features.gather(
        unseen.token_ids[0], unseen.log_probs[0], tokens[prompt], floors[prompt]
    )
    learner = WeakLearner(0, columns[:, None], np.ones((len(classes), 1), np.float32), 1.0)
    return classes[samme.votes(learner, [matrix])]


def best_tuples(
    matrices: Sequence[Matrix], y: NDArray[np.intp], share: NDArray[np.float64], n_classes: int
) -> list[tuple[NDArray[np.intp], float]]:
    """Return per prompt the columns of its best verbalizer of one token per class, and its error.

    Parameters
    ----------
    matrices : sequence of float32 arrays of shape (n, V_p)
        Log-probabilities, one matrix per prompt.
    y : int array of shape (n,)
        Classes from 0.
    share : float array of shape (n,)
        Weights that sum to 1.
    n_classes : int
        Number of classes.

    Returns
    -------
    list of (int array of shape (n_classes,), float)
    """
    rng = np.random.default_rng(0)
    k = samme.candidates_per_class(n_classes)
    with one_blas_thread():
        candidates = [candidate_tokens(matrix, y, share, n_classes, k) for matrix in matrices]
        return [
            best_tuple(matrix, y, share, columns, rng=rng)
            for matrix, columns in zip(matrices, candidates, strict=True)
        ]
