"""Explanations: weak learners with their tokens, and the contributions to one prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import Matrix
from blackbox.backend import BaseBackend
from blackbox.boosting.weak_learner import WeakLearner
from blackbox.experts.base import Expert
from blackbox.experts.examples import KeptExamples
from blackbox.experts.source_readout import SourceReadout
from blackbox.model.display import word_of
from blackbox.model.model import Evidence, Model
from blackbox.model.multilabel import MultilabelModel
from blackbox.model.multilabel_explanation import describe_learners_of_labels, explain_labels
from blackbox.model.out_of_scope import OutOfScopeDetector

__all__ = [
    "describe_experts",
    "describe_learner",
    "describe_learners",
    "explain",
    "explain_evidence",
]


def describe_experts(model: Model) -> list[dict[str, Any]]:
    """Return the experts beside the prompts, whose scores are added to those of the learners.

    Returns
    -------
    list of dict
        ``name``, ``title``, ``weight`` (of scores with variance 1 over held-out training rows), and
        ``reads``, the identity of the model that it reads.
    """
    weights = model.summary.get("experts")
    return [
        {
            "name": expert.name,
            "title": expert.title,
            # a file may hold any summary
            "weight": weights.get(expert.name) if isinstance(weights, dict) else None,
            "reads": _model_read(model, expert),
        }
        for expert in model.ensemble.experts
    ]


def _model_read(model: Model, expert: Expert) -> dict[str, Any]:
    """Return what an expert reads: an embedding model, or the answers that sources read too."""
    if isinstance(expert, SourceReadout):
        return {"model": ", ".join(source.name for source in model.ensemble.sources)}
    return model.embedder_identity.as_dict() if model.embedder_identity else {}


_N_NEAREST = 3


def describe_learners(model: Model, n: int | None = None) -> list[dict[str, Any]]:
    """Return the n strongest weak learners by weight; all of them by default.

    Returns
    -------
    list of dict
        ``round`` (from 1; 0 for the class-name prior), ``weight``, ``prompt`` (the
        template), and ``tokens``: for each class a list of (token, weight), where a negative weight
        counts against the class. Of a model of several labels per text also ``label``, whose
        classes are to have it and not to have it.
    """
    if isinstance(model, MultilabelModel):
        return describe_learners_of_labels(model, describe_learners)[:n]
    learners = model.ensemble.learners
    order = sorted(range(len(learners)), key=lambda i: (-learners[i].weight, i))
    return [
        {
            "round": _round_of(model, number),
            **describe_learner(model, learners[number]),
        }
        for number in order[:n]
    ]


def describe_learner(model: Model, learner: WeakLearner) -> dict[str, Any]:
    """Return one weak learner as data; see `describe_learners`."""
    reading = model.ensemble.readings[learner.prompt]
    tokens = {}
    for label, columns, weights in zip(
        model.classes.tolist(), learner.columns, learner.token_weights, strict=True
    ):
        tokens[str(label)] = [
            (word_of(model.token_bytes, int(reading.token_ids[column])), float(weight))
            for column, weight in zip(columns, weights, strict=True)
            if weight
        ]
    return {
        "weight": float(learner.weight),
        "prompt": model.prompts[learner.prompt].template,
        "tokens": tokens,
    }


def explain(
    model: Model, lm: BaseBackend, text: Any, embedder: BaseBackend | None = None
) -> dict[str, Any]:
    """Return an explanation of the prediction for one text.

    Parameters
    ----------
    model : Model
        The trained model.
    lm : BaseBackend
        The LM, behind its store and its budget.
    text : str or (str, str)
        The text, or the pair.
    embedder : BaseBackend, optional
        The embedding model, behind its store and its budget, where the model needs one.

    Returns
    -------
    dict
        ``prediction``; ``probabilities`` by class; ``experts``, for each its ``name``, its
        ``votes`` by class, and ``says``, a sentence; ``prompts``, for each prompt its contribution
        to each class (the sum over its learners, within the bounds of
        `blackbox.boosting.early_stopping`);
        ``learners``, for each weak learner, the largest vote first, its ``round`` (0 for the
        class-name prior), ``prompt``, ``votes`` by class before bounds, and the ``tokens`` behind
        it: class, token, weight, log-probability, and ``adds``, its contribution to the score of
        its class for this text. Under ``"logit"`` the other classes lose as much, in equal parts;
        under ``"samme"`` only the most likely token contributes; of a model that keeps its
        examples also ``nearest``: the nearest labelled ones with ``text``, ``text_pair``, ``label``
        and cosine ``similarity``; of a model that notices texts of none of its classes also
        ``none_of_these``: the ``label`` of such texts, the p-value ``p_known``, ``is_none``,
        what each of the ``measures`` adds, and ``says``, a sentence. Of a model of several labels
        per text, ``prediction`` is a list, the classes are the labels, and a vote is for the label
        and against not having it; see `blackbox.model.multilabel_explanation`.
    """
    _, evidence = model.read(lm, [text], embedder=embedder, on_row_error="raise")
    return explain_evidence(model, evidence)


def _nearest(model: Model, examples: KeptExamples, evidence: Evidence) -> list[dict[str, Any]]:
    """Return the labelled examples that are nearest to a text."""
    if evidence.vectors is None:
        return []
    names = model.classes.tolist()
    return [
        {
            "text": examples.texts[number][0],
            "text_pair": examples.texts[number][1],
            "label": str(names[examples.codes[number]]),
            "similarity": cosine,
        }
        for number, cosine in examples.nearest(evidence.vectors[0], _N_NEAREST)
    ]


def explain_evidence(model: Model, evidence: Evidence) -> dict[str, Any]:
    """Return an explanation from the evidence of a single text; see `explain`."""
    if isinstance(model, MultilabelModel):
        return explain_labels(model, evidence, explain_evidence)
    matrices = evidence.matrices
    names = [str(label) for label in model.classes.tolist()]
    initial = model.ensemble.initial_scores(evidence.expert_scores)
    decision = model.ensemble.decision(matrices, initial)
    late = model.ensemble.late_scores(matrices)[0]
    probabilities = model.ensemble.probabilities(decision)
    learners: list[dict[str, Any]] = []
    for number, learner in enumerate(model.ensemble.learners):
        votes = model.ensemble.votes(matrices, learner)[0]
        ids = model.ensemble.readings[learner.prompt].token_ids
        adds = model.ensemble.token_contributions(matrices, learner)[0]
        learners.append(
            {
                "round": _round_of(model, number),
                "prompt": model.prompts[learner.prompt].template,
                "votes": dict(zip(names, votes.tolist(), strict=True)),
                "tokens": [
                    {
                        "class": name,
                        "token": word_of(model.token_bytes, int(ids[column])),
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
    by_prompt = model.ensemble.prompt_votes(matrices)[:, 0]
    learners.sort(key=lambda entry: -np.ptp(list(entry["votes"].values())))
    explained = {
        "prediction": model.classes[model.codes_of(decision)].tolist()[0],
        "probabilities": dict(zip(names, probabilities[0].tolist(), strict=True)),
        "experts": [
            {
                "name": expert.name,
                "votes": dict(zip(names, votes.tolist(), strict=True)),
                "says": _sentence(model, expert, matrices, votes),
            }
            for expert, votes in (
                (expert, late if expert.reads_answers else known)
                for expert, known in zip(
                    model.ensemble.experts, evidence.expert_scores[:, 0], strict=True
                )
            )
        ],
        "prompts": [
            {"prompt": prompt.template, "votes": dict(zip(names, votes.tolist(), strict=True))}
            for prompt, votes in zip(model.prompts, by_prompt, strict=True)
        ],
        "learners": learners,
    }
    if model.out_of_scope is not None:
        explained |= _judge_scope(model, model.out_of_scope, evidence, decision)
    if model.examples is not None:
        explained["nearest"] = _nearest(model, model.examples, evidence)
    return explained


def _judge_scope(
    model: Model,
    detector: OutOfScopeDetector,
    evidence: Evidence,
    decision: NDArray[np.float64],
) -> dict[str, Any]:
    """Return whether a text is of none of the classes, and its prediction if so."""
    seen = model.scope_evidence(decision, evidence.matrices, evidence.vectors)
    found = detector.judge(detector.scores(seen))
    standard = detector.standardise(detector.measure(seen))[0]
    added = (standard * detector.weights).tolist()
    told = {
        "label": found.label,
        "p_known": float(found.p_known[0]),
        "is_none": bool(found.rejected[0]),
        "measures": dict(zip(detector.measures, added, strict=True)),
        "says": found.describe(0),
    }
    return {"none_of_these": told} | ({"prediction": found.label} if told["is_none"] else {})


def _sentence(
    model: Model, expert: Expert, matrices: Sequence[Matrix], votes: NDArray[np.float64]
) -> str:
    """Return what an expert says of a text, in words."""
    names = [str(label) for label in model.classes.tolist()]
    first, second = np.argsort(-votes, kind="stable")[:2].tolist()
    if isinstance(expert, SourceReadout):
        probabilities = model.ensemble.source_probabilities(matrices)
        shares = probabilities[0] * expert.tables[:, :, first]
        number, source_class = np.unravel_index(int(shares.argmax()), shares.shape)
        source = model.ensemble.sources[number]
        return (
            f"{expert.title}: {names[first]} ({votes[first]:+.2f}), as in {source.name}: "
            f"{source.classes[source_class]} "
            f"({probabilities[0, number, source_class]:.0%} by that model)"
        )
    return (
        f"{expert.title}: most like the training rows of {names[first]} ({votes[first]:+.2f}), "
        f"then {names[second]} ({votes[second]:+.2f})"
    )


def _round_of(model: Model, number: int) -> int:
    return max(number + 1 - model.n_name_learners, 0)
