"""What a report says, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.estimator import PromptBoostingClassifier
from blackbox.explain import matrices_of, n_names
from blackbox.metrics import Evaluation, evaluate
from blackbox.model.display import printable, prompt_tokens
from blackbox.prompts.template import Example

__all__ = ["MeasuredModel", "Mistake", "ReportData", "TokenWeight", "collect_report_data"]

_TOKENS = 12
_SIZES = 5
_MISTAKES = 20
_COST = ("passes_made", "passes_from_store", "tokens", "cost")


@dataclass(frozen=True)
class TokenWeight:
    """A token of a verbalizer: its text, its weight, and its size from 1 to 5."""

    text: str
    weight: float
    size: int


@dataclass(frozen=True)
class Mistake:
    """A text that got another label than it has."""

    text: str
    truth: str
    prediction: str
    confidence: float


@dataclass(frozen=True)
class MeasuredModel:
    """What a model is worth on labelled rows.

    Parameters
    ----------
    name : str
        Where the rows come from.
    evaluation : Evaluation
        Accuracy, calibration, confusion.
    codes : int array of shape (n,)
        True classes.
    probabilities : float array of shape (n, n_classes)
        What the model says.
    by_round : list of float
        Accuracy after each round.
    usage : dict
        What it took.
    mistakes : list of Mistake
        The most confident ones; empty without leave to show texts.
    """

    name: str
    evaluation: Evaluation
    codes: NDArray[np.intp]
    probabilities: NDArray[np.float64]
    by_round: list[float]
    usage: dict[str, Any]
    mistakes: list[Mistake]


@dataclass(frozen=True)
class ReportData:
    """What a report says.

    Parameters
    ----------
    name : str
        What the model is called.
    classes : list of str
        Its classes.
    takes_pair : bool
        Whether it labels pairs.
    algorithm : str
        ``"logit"`` or ``"samme"``.
    n_learners, top_k : int
        Weak learners; next tokens that are read.
    language_model : dict
        The LM's identity.
    training : dict
        How training went, in whole numbers.
    cost : dict or None
        What training took, as `Usage.as_dict` tells it; None where that isn't known.
    prompts : list of (template, {class: list of TokenWeight})
        Prompts and verbalizers.
    measured : MeasuredModel or None
        On labelled rows, where there are some.
    """

    name: str
    classes: list[str]
    takes_pair: bool
    algorithm: str
    n_learners: int
    top_k: int
    language_model: dict[str, Any]
    training: dict[str, Any]
    cost: dict[str, Any] | None
    prompts: list[tuple[str, dict[str, list[TokenWeight]]]]
    measured: MeasuredModel | None = None


def collect_report_data(
    classifier: PromptBoostingClassifier,
    name: str,
    rows: tuple[str, Sequence[Example], NDArray[np.intp]] | None = None,
    *,
    include_texts: bool = False,
) -> ReportData:
    """Look at a model, and measure it where there are labelled rows.

    Parameters
    ----------
    classifier : PromptBoostingClassifier
        A trained one.
    name : str
        What to call it.
    rows : (str, sequence of (text, text_pair), int array), optional
        Where rows come from, their texts and true classes.
    include_texts : bool, default=False
        Whether texts may stand in the report.
    """
    ensemble = classifier.ensemble_
    prompts = [
        (
            printable(prompt.template),
            {
                printable(label): _sized(tokens)
                for label, tokens in prompt_tokens(
                    ensemble, number, classifier.classes_.tolist(), classifier.token_bytes_
                ).items()
            },
        )
        for number, prompt in enumerate(classifier.prompts_)
    ]
    return ReportData(
        name=name,
        classes=_names(classifier),
        takes_pair=classifier.prompts_[0].takes_pair,
        algorithm=ensemble.algorithm.name,
        n_learners=len(ensemble.learners),
        top_k=classifier.top_k_,
        language_model=classifier.lm_identity_.as_dict(),
        training={
            name: value
            for name, value in classifier.training_summary_.items()
            if isinstance(value, int)
        },
        cost=_cost(classifier),
        prompts=prompts,
        measured=None if rows is None else _measured(classifier, *rows, include_texts),
    )


def _measured(
    classifier: PromptBoostingClassifier,
    name: str,
    texts: Sequence[Example],
    codes: NDArray[np.intp],
    include_texts: bool,
) -> MeasuredModel:
    pair = classifier.prompts_[0].takes_pair
    inputs: list[Any] = [text if pair else text[0] for text in texts]
    transformed = classifier.transform(inputs)
    answered = ~np.isnan(transformed[:, 0])
    ensemble = classifier.ensemble_
    seen = matrices_of(classifier, transformed[answered])
    probabilities = np.full((len(texts), ensemble.n_classes), np.nan)
    probabilities[answered] = ensemble.probabilities(ensemble.decision(seen))
    by_round = []
    for scores in islice(ensemble.staged_decision(seen), n_names(classifier), None):
        predicted = scores > 0 if scores.ndim == 1 else scores.argmax(axis=1)
        by_round.append(float((predicted == codes[answered]).sum() / len(codes)))
    labels = _names(classifier)
    mistakes: list[Mistake] = []
    if include_texts:
        top = np.where(answered, np.nan_to_num(probabilities).argmax(axis=1), codes)
        wrong = np.flatnonzero(top != codes)
        confidence = np.nan_to_num(probabilities).max(axis=1)
        for row in wrong[np.argsort(-confidence[wrong], kind="stable")][:_MISTAKES].tolist():
            text, other = texts[row]
            mistakes.append(
                Mistake(
                    printable(text if other is None else f"{text} ⏐ {other}"),
                    labels[codes[row]],
                    labels[top[row]],
                    float(confidence[row]),
                )
            )
    return MeasuredModel(
        printable(name),
        evaluate(codes, probabilities, labels),
        codes,
        probabilities,
        by_round,
        classifier.prediction_usage_.as_dict(),
        mistakes,
    )


def _names(classifier: PromptBoostingClassifier) -> list[str]:
    return [printable(str(label)) for label in classifier.classes_.tolist()]


def _cost(classifier: PromptBoostingClassifier) -> dict[str, Any] | None:
    """What training took, where it took place just now: a file tells the passes alone."""
    usage = getattr(classifier, "usage_", None)
    if usage is None:
        return None
    told = usage.as_dict()
    return {name: told[name] for name in _COST}


def _sized(tokens: Sequence[tuple[str, float]]) -> list[TokenWeight]:
    most = max((abs(weight) for _, weight in tokens), default=1.0) or 1.0
    return [
        TokenWeight(printable(token), weight, max(1, round(_SIZES * abs(weight) / most)))
        for token, weight in tokens[:_TOKENS]
    ]
