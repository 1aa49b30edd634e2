"""Weak learners and predictions in a form that people can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blackbox.model.display import word_of

if TYPE_CHECKING:
    from blackbox.answers.features import Matrix
    from blackbox.boosting.weak_learner import WeakLearner
    from blackbox.estimator import PromptBoostingClassifier

__all__ = [
    "describe_learner",
    "describe_learners",
    "explain",
    "explain_matrices",
    "matrices_of",
    "n_names",
]


def describe_learners(
    classifier: PromptBoostingClassifier, n: int | None = None
) -> list[dict[str, Any]]:
    """The n strongest weak learners, by weight; all of them by default.

    Returns
    -------
    list of dict
        ``round`` (from 1; 0 where the names of the classes speak), ``weight``, ``prompt`` (the
        template), and ``tokens``: for each class a list of (token, weight), where a weight below 0
        speaks against the class.
    """
    learners = classifier.ensemble_.learners
    order = sorted(range(len(learners)), key=lambda i: (-learners[i].weight, i))
    return [
        {
            "round": _round_of(classifier, number),
            **describe_learner(classifier, learners[number]),
        }
        for number in order[:n]
    ]


def describe_learner(classifier: PromptBoostingClassifier, learner: WeakLearner) -> dict[str, Any]:
    """One weak learner; see `describe_learners`."""
    reading = classifier.ensemble_.readings[learner.prompt]
    tokens = {}
    for label, columns, weights in zip(
        classifier.classes_.tolist(), learner.columns, learner.token_weights, strict=True
    ):
        tokens[str(label)] = [
            (word_of(classifier.token_bytes_, int(reading.token_ids[column])), float(weight))
            for column, weight in zip(columns, weights, strict=True)
            if weight
        ]
    return {
        "weight": float(learner.weight),
        "prompt": classifier.prompts_[learner.prompt].template,
        "tokens": tokens,
    }


def explain(classifier: PromptBoostingClassifier, text: Any) -> dict[str, Any]:
    """Why one text gets its label.

    Parameters
    ----------
    text : str or (str, str)
        The text, or the pair.

    Returns
    -------
    dict
        ``prediction``; ``probabilities`` by class; ``prompts``, for each prompt what it adds to
        each class (its learners together, within the limits of `blackbox.boosting.early_stopping`);
        ``learners``, for each weak learner, the largest vote first, its ``round`` (0 for the names
        of the classes), ``prompt``, ``votes`` by class before limits, and the ``tokens`` behind it:
        class, token, its weight, its log-probability, and what it ``adds`` to the score of its
        class for this text. Under ``"logit"`` the other classes lose as much, in equal parts; under
        ``"samme"`` only the likeliest token adds.
    """
    return explain_matrices(classifier, matrices_of(classifier, classifier.transform([text])))


def matrices_of(
    classifier: PromptBoostingClassifier, transformed: NDArray[np.float32]
) -> list[Matrix]:
    """What `transform` gave, prompt by prompt: float32 arrays of shape (n, V_p)."""
    widths = [len(reading.token_ids) for reading in classifier.ensemble_.readings]
    return np.split(transformed, np.cumsum(widths)[:-1], axis=1)


def explain_matrices(
    classifier: PromptBoostingClassifier, matrices: Sequence[Matrix]
) -> dict[str, Any]:
    """The same of an answer that is there: for each prompt what was read, of shape (1, V_p)."""
    names = [str(label) for label in classifier.classes_.tolist()]
    decision = classifier.ensemble_.decision(matrices)
    probabilities = classifier.ensemble_.probabilities(decision)
    learners: list[dict[str, Any]] = []
    for number, learner in enumerate(classifier.ensemble_.learners):
        votes = classifier.ensemble_.votes(matrices, learner)[0]
        ids = classifier.ensemble_.readings[learner.prompt].token_ids
        adds = classifier.ensemble_.token_contributions(matrices, learner)[0]
        learners.append(
            {
                "round": _round_of(classifier, number),
                "prompt": classifier.prompts_[learner.prompt].template,
                "votes": dict(zip(names, votes.tolist(), strict=True)),
                "tokens": [
                    {
                        "class": name,
                        "token": word_of(classifier.token_bytes_, int(ids[column])),
                        "weight": float(weight),
                        "log_prob": float(matrices[learner.prompt][0, column]),
                        "adds": float(added),
                    }
                    for name, columns, weights, some in zip(
                        names, learner.columns, learner.token_weights, adds, strict=True
                    )
                    for column, weight, added in zip(columns, weights, some, strict=True)
                    if weight
                ],
            }
        )
    by_prompt = classifier.ensemble_.prompt_votes(matrices)[:, 0]
    learners.sort(key=lambda entry: -np.ptp(list(entry["votes"].values())))
    return {
        "prediction": classifier.labels_from_proba(probabilities)[0],
        "probabilities": dict(zip(names, probabilities[0].tolist(), strict=True)),
        "prompts": [
            {"prompt": prompt.template, "votes": dict(zip(names, votes.tolist(), strict=True))}
            for prompt, votes in zip(classifier.prompts_, by_prompt, strict=True)
        ],
        "learners": learners,
    }


def n_names(classifier: PromptBoostingClassifier) -> int:
    """How many learners, the first ones, are the names of the classes and were not boosted."""
    # a file may say anything
    told = classifier.training_summary_.get("n_names")
    if not isinstance(told, int):
        return 0
    return min(max(told, 0), len(classifier.ensemble_.learners))


def _round_of(classifier: PromptBoostingClassifier, number: int) -> int:
    return max(number + 1 - n_names(classifier), 0)
