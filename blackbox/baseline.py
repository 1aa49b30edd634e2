"""The baseline to beat: one prompt and one verbalizer of the same LM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox import features, samme
from blackbox.boosting import WeakLearner
from blackbox.gathering import Gatherer
from blackbox.prompts import PromptPool
from blackbox.protocol import Backend
from blackbox.verbalizers import best_tuple, candidate_tokens

__all__ = ["best_single_learner"]


def best_single_learner(
    backend: Backend,
    pool: PromptPool,
    texts: Sequence[str],
    labels: Sequence[Any],
    new_texts: Sequence[str],
    top_k: int,
) -> NDArray[Any]:
    """The labels that the best single prompt and verbalizer gives: the baseline to beat.

    Of all prompts and one-token-a-class verbalizers, the pair with the least training error.

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
    rng = np.random.default_rng(0)
    k = samme.candidates_per_class(len(classes))
    found = []
    for matrix in matrices:
        candidates = candidate_tokens(matrix, y, weights, len(classes), k)
        found.append(best_tuple(matrix, y, weights, candidates, rng=rng))
    prompt = int(np.argmin([error for _, error in found]))
    columns = found[prompt][0]
    unseen = Gatherer(backend, [(text, None) for text in new_texts], top_k).answers(
        PromptPool([pool[prompt]])
    )
    matrix = features.gather(
        unseen.token_ids[0], unseen.log_probs[0], tokens[prompt], floors[prompt]
    )
    learner = WeakLearner(0, columns[:, None], np.ones((len(classes), 1), np.float32), 1.0)
    return classes[samme.votes(learner, [matrix])]
