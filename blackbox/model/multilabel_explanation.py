"""Explanations of several labels per text: those of the labels' binary models, side by side.

They have the form of `blackbox.explain`, with labels for classes. What counts for a label counts
against not having it, so one vote per label says both: the difference of the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from blackbox.model.model import Evidence, Model
from blackbox.model.multilabel import MultilabelModel

__all__ = ["describe_learners_of_labels", "explain_labels"]

_SAID = 3  # labels that the sentence about an expert names


def describe_learners_of_labels(
    model: MultilabelModel, describe: Callable[[Model], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Return the weak learners of all labels, the strongest first, each with its ``label``."""
    described = [
        {"label": str(label), **learner}
        for label, head in zip(model.classes.tolist(), model.heads, strict=True)
        if head is not None
        for learner in describe(head)
    ]
    return sorted(described, key=lambda one: -one["weight"])


def explain_labels(
    model: MultilabelModel,
    evidence: Evidence,
    explain: Callable[[Model, Evidence], dict[str, Any]],
) -> dict[str, Any]:
    """Return an explanation from the evidence of a single text.

    Parameters
    ----------
    model : MultilabelModel
        The trained model.
    evidence : Evidence
        Of one text.
    explain : callable
        Explains the prediction of one binary model.

    Returns
    -------
    dict
        As of `blackbox.explain.explain`: ``prediction`` is a list of labels, ``thresholds`` the
        probability of each above which it is given, and a learner has votes for its own label only.
    """
    names = [str(label) for label in model.classes.tolist()]
    decision = model.ensemble.decision(
        evidence.matrices, model.ensemble.initial_scores(evidence.expert_scores)
    )
    probabilities = model.ensemble.probabilities(decision)
    codes = model.codes_of_probabilities(probabilities)[0]
    prompts = {prompt.template: dict.fromkeys(names, 0.0) for prompt in model.prompts}
    experts: dict[str, dict[str, Any]] = {}
    learners: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        found = model.evidence_of(number, evidence)
        if found is None:
            continue
        head = found[0]
        explained = explain(*found)
        without, with_label = head.classes.tolist()
        for one in explained["prompts"]:
            prompts[one["prompt"]][name] = one["votes"][with_label] - one["votes"][without]
        for one, expert in zip(explained["experts"], head.ensemble.experts, strict=True):
            known = experts.setdefault(
                one["name"], {"title": expert.title, "votes": dict.fromkeys(names, 0.0)}
            )
            known["votes"][name] = one["votes"][with_label] - one["votes"][without]
        learners += [_learner(one, name, without, with_label) for one in explained["learners"]]
    learners.sort(key=lambda one: -abs(one["votes"][one["label"]]))
    return {
        "prediction": model.classes[codes == 1].tolist(),
        "probabilities": dict(zip(names, probabilities[0].tolist(), strict=True)),
        "thresholds": dict(zip(names, model.thresholds.tolist(), strict=True)),
        "experts": [
            {"name": name, "votes": one["votes"], "says": _sentence(one["title"], one["votes"])}
            for name, one in experts.items()
        ],
        "prompts": [{"prompt": prompt, "votes": votes} for prompt, votes in prompts.items()],
        "learners": learners,
    }


def _learner(one: dict[str, Any], name: str, without: str, with_label: str) -> dict[str, Any]:
    """Return a learner with what it adds to its label alone, and each of its tokens once."""
    tokens: dict[str, dict[str, Any]] = {}
    for token in one["tokens"]:
        sign = 1 if token["class"] == with_label else -1
        known = tokens.setdefault(
            token["token"], {**token, "class": name, "weight": 0.0, "adds": 0.0}
        )
        known["weight"] += sign * token["weight"] / 2
        # what one of two classes gains, the other loses
        known["adds"] += sign * 2 * token["adds"]
    return {
        "label": name,
        "round": one["round"],
        "prompt": one["prompt"],
        "votes": {name: one["votes"][with_label] - one["votes"][without]},
        "tokens": list(tokens.values()),
    }


def _sentence(title: str, votes: dict[str, float]) -> str:
    """Return what an expert says of a text, in words."""
    names, values = list(votes), np.array(list(votes.values()))
    order = np.argsort(-values, kind="stable")[:_SAID].tolist()
    said = ", ".join(f"{names[place]} ({values[place]:+.2f})" for place in order)
    return f"{title}: most for {said}"
