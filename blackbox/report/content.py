"""Contents of a report: verbalizers, evaluation on labelled rows, mistakes, cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.texts import CheckedTexts
from blackbox.backend import BaseBackend
from blackbox.explain import describe_experts
from blackbox.images import Image
from blackbox.metrics import (
    Detection,
    Evaluation,
    MultilabelEvaluation,
    evaluate_label_sets,
)
from blackbox.model.display import printable, prompt_tokens
from blackbox.model.evaluation import evaluate_predictions
from blackbox.model.model import Model, Progress
from blackbox.model.multilabel import MultilabelModel
from blackbox.model.ordered import OrderedEvaluation
from blackbox.model.predictions import NO_ANSWER, NONE_OF_THESE, Predictions
from blackbox.model.reliability import Promise
from blackbox.model.summary import training_facts, training_warnings
from blackbox.protocol import Usage

__all__ = [
    "HubMetadata",
    "MeasuredLabels",
    "MeasuredModel",
    "Mistake",
    "ReportData",
    "TokenWeight",
    "collect_report_data",
    "measure_labels",
    "measure_model",
]

_MAX_TOKENS = 12  # per class
_SIZES = 5
_MAX_MISTAKES = 20
_MAX_ERRORS = (0.01, 0.02, 0.05, 0.1, 0.2)
_INPUTS = {
    "text": "single texts",
    "pair": "pairs of texts",
    "image": "images, with or without a text",
}
_COST = ("passes_made", "passes_from_store", "tokens", "cost")


@dataclass(frozen=True)
class TokenWeight:
    """A token of a verbalizer: its text, its weight, and its size from 1 to 5."""

    text: str
    weight: float
    size: int


@dataclass(frozen=True)
class Mistake:
    """A text whose prediction differs from its label; of an image also a small copy of it.

    A text of none of the classes has no confidence.
    """

    text: str
    truth: str
    prediction: str
    confidence: float | None
    image: str = ""


@dataclass(frozen=True)
class MeasuredModel:
    """Evaluation of a model on labelled rows.

    Parameters
    ----------
    name : str
        Name of the data set.
    evaluation : Evaluation
        Accuracy, calibration error, confusion matrix and others.
    detection : Detection or None
        How well texts of none of the classes are noticed.
    ordered : OrderedEvaluation or None
        How far predictions are off, of classes with an order.
    codes : int array of shape (n,)
        True classes, of rows that are of one.
    probabilities : float array of shape (n, n_classes)
        Their predicted class probabilities.
    by_round : list of float
        Accuracy after each round, on the same rows.
    usage : dict
        Usage of the evaluation, as from `Usage.as_dict`.
    mistakes : list of Mistake
        The most confident ones; empty unless texts may be shown.
    """

    name: str
    evaluation: Evaluation
    detection: Detection | None
    ordered: OrderedEvaluation | None
    codes: NDArray[np.intp]
    probabilities: NDArray[np.float64]
    by_round: list[float]
    usage: dict[str, Any]
    mistakes: list[Mistake]


@dataclass(frozen=True)
class MeasuredLabels:
    """Evaluation of a model of several labels per text on labelled rows.

    Parameters
    ----------
    name : str
        Name of the data set.
    evaluation : MultilabelEvaluation
        F1 scores, subset accuracy, Hamming loss, and figures of each label.
    usage : dict
        Usage of the evaluation, as from `Usage.as_dict`.
    mistakes : list of Mistake
        Texts with wrong labels, the most confident ones first; empty unless texts may be shown.
    """

    name: str
    evaluation: MultilabelEvaluation
    usage: dict[str, Any]
    mistakes: list[Mistake]


@dataclass(frozen=True)
class HubMetadata:
    """Metadata of a model card for the Hugging Face hub; what is empty is left out.

    Parameters
    ----------
    licence : str
        The licence, as the hub names it, such as ``"apache-2.0"``.
    base_models : tuple of str
        Names on the hub of the models that the classifier works with.
    languages : tuple of str
        Languages of the texts, as ISO 639 codes.
    """

    licence: str = ""
    base_models: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportData:
    """Contents of a report on a model.

    Parameters
    ----------
    name : str
        Name of the model.
    classes : list of str
        Its classes.
    inputs : str
        What it classifies, in words.
    takes_pair : bool
        Whether it classifies pairs of texts.
    algorithm : str
        ``"logit"`` or ``"samme"``.
    n_learners, top_k : int
        Number of weak learners; number of next tokens that are read.
    language_model : dict
        The LM's identity.
    training : dict
        Figures of the training, the integers among them.
    facts : list of (str, str)
        Rows and held-out quality, as names and words.
    warnings : list of str
        What to beware of.
    cost : dict or None
        Cost of the training, as from `Usage.as_dict`; None where it is unknown.
    experts : list of str
        The experts beside the prompts, in words.
    held_texts : str
        The texts that the model file holds, and what for; "" if none.
    embeds : bool
        Whether each text is embedded.
    prompts : list of (template, {class: list of TokenWeight})
        Prompts and verbalizers.
    promises : list of Promise
        Error rates that the model can promise, and at which share of texts.
    measured : MeasuredModel, MeasuredLabels or None
        Evaluation on labelled rows, if there are any; `MeasuredLabels` where there are `labels`.
    labels : list of dict
        Of a model of several labels per text, `MultilabelModel.describe_labels`; else empty.
    hub : HubMetadata
        Licence, base models and languages, for a model card.
    """

    name: str
    classes: list[str]
    takes_pair: bool
    inputs: str
    algorithm: str
    n_learners: int
    top_k: int
    language_model: dict[str, Any]
    training: dict[str, Any]
    facts: list[tuple[str, str]]
    warnings: list[str]
    cost: dict[str, Any] | None
    experts: list[str]
    held_texts: str
    embeds: bool
    prompts: list[tuple[str, dict[str, list[TokenWeight]]]]
    promises: list[Promise]
    no_promise: str
    measured: MeasuredModel | MeasuredLabels | None = None
    labels: list[dict[str, Any]] = field(default_factory=list)
    hub: HubMetadata = HubMetadata()


def collect_report_data(
    model: Model,
    name: str,
    measured: MeasuredModel | MeasuredLabels | None = None,
    cost: Usage | None = None,
    hub: HubMetadata | None = None,
) -> ReportData:
    """Return the contents of a report on a model.

    Parameters
    ----------
    model : Model
        The trained model.
    name : str
        Name of the model in the report.
    measured : MeasuredModel or MeasuredLabels, optional
        Evaluation on labelled rows; see `measure_model` and `measure_labels`.
    cost : Usage, optional
        Usage of the training, where it is known: a model file has the passes only.
    hub : HubMetadata, optional
        Licence, base models and languages, for a model card.
    """
    prompts = [
        (
            printable(prompt.template),
            {
                printable(label): _sized(tokens)
                for label, tokens in prompt_tokens(model, number).items()
            },
        )
        for number, prompt in enumerate(model.prompts)
    ]
    promises, no_promise = _promises(model)
    return ReportData(
        name=name,
        classes=_names(model),
        takes_pair=model.takes_pair,
        inputs=_INPUTS[model.input_kind],
        algorithm=model.ensemble.algorithm.name,
        n_learners=len(model.ensemble.learners),
        top_k=model.top_k,
        language_model=model.identity.as_dict(),
        training={name: value for name, value in model.summary.items() if isinstance(value, int)},
        facts=[
            (name, printable(words)) for name, words in training_facts(_names(model), model.summary)
        ],
        warnings=[printable(line) for line in training_warnings(model.summary)],
        cost=None if cost is None else {key: cost.as_dict()[key] for key in _COST},
        held_texts=_held_texts(model),
        embeds=model.embedder_identity is not None,
        experts=[
            printable(f"{one['title']} of {one['reads']['model']}")
            for one in describe_experts(model)
        ],
        prompts=prompts,
        promises=promises,
        no_promise=no_promise,
        measured=measured,
        labels=_labels(model),
        hub=hub or HubMetadata(),
    )


def measure_model(
    model: Model,
    lm: BaseBackend,
    name: str,
    texts: CheckedTexts,
    codes: NDArray[np.intp],
    *,
    embedder: BaseBackend | None = None,
    include_texts: bool = False,
    progress: Progress | None = None,
) -> MeasuredModel:
    """Return the evaluation of a model on labelled rows.

    Parameters
    ----------
    model : Model
        The trained model.
    lm : BaseBackend
        The LM, with its store and its budget.
    name : str
        Name of the data set.
    texts : CheckedTexts
        n texts.
    codes : int array of shape (n,)
        Their true classes, as indices into the model's classes, or `NONE_OF_THESE`.
    embedder : BaseBackend, optional
        The embedding model, with its store and its budget, where the model needs one.
    include_texts : bool, default=False
        Whether the report may show texts.
    progress : callable, optional
        Called with (stage, done, total).
    """
    predictions, evidence = model.read(lm, texts, embedder=embedder, progress=progress)
    probabilities = predictions.probabilities
    assert probabilities is not None
    found = evaluate_predictions(predictions, codes, model.order)
    classes = [printable(label) for label in found.evaluation.classes]
    # a stage can't tell which texts are of none of the classes
    stages = () if model.out_of_scope else model.staged_scores(evidence)
    boosted = islice(stages, model.n_name_learners, None)
    known = codes != NONE_OF_THESE
    truth = codes[known]
    return MeasuredModel(
        printable(name),
        replace(found.evaluation, classes=classes),
        found.detection,
        found.ordered,
        truth,
        probabilities[known],
        [
            float((model.codes_of(scores)[known] == truth).sum() / max(len(truth), 1))
            for scores in boosted
        ],
        predictions.usage.as_dict(),
        _mistakes(model, texts, codes, predictions) if include_texts else [],
    )


def measure_labels(
    model: MultilabelModel,
    lm: BaseBackend,
    name: str,
    texts: CheckedTexts,
    truth: NDArray[np.bool_],
    *,
    embedder: BaseBackend | None = None,
    include_texts: bool = False,
    progress: Progress | None = None,
) -> MeasuredLabels:
    """Return the evaluation of a model of several labels per text on labelled rows.

    Parameters
    ----------
    model : MultilabelModel
        The trained model.
    truth : bool array of shape (n, n_labels)
        Which text has which label.
    lm, name, texts, embedder, include_texts, progress
        As for `measure_model`.
    """
    predictions = model.predict(lm, texts, embedder=embedder, progress=progress)
    probabilities = predictions.probabilities
    assert probabilities is not None
    chosen = predictions.codes == 1
    return MeasuredLabels(
        printable(name),
        evaluate_label_sets(truth, chosen, probabilities, _names(model)),
        predictions.usage.as_dict(),
        _label_mistakes(model, texts, truth, chosen, probabilities) if include_texts else [],
    )


def _label_mistakes(
    model: MultilabelModel,
    texts: CheckedTexts,
    truth: NDArray[np.bool_],
    chosen: NDArray[np.bool_],
    probabilities: NDArray[np.float64],
) -> list[Mistake]:
    """Return texts with wrong labels, by the confidence in the worst decision about each."""
    names = np.array(_names(model), object)
    confidence = np.where(chosen, probabilities, 1 - probabilities)
    confidence = np.nan_to_num(np.where(truth == chosen, 0.0, confidence)).max(axis=1)
    wrong = np.flatnonzero(confidence > 0)
    return [
        Mistake(
            _shown_text(texts, row),
            ", ".join(names[truth[row]]) or "no label",
            ", ".join(names[chosen[row]]) or "no label",
            float(confidence[row]),
            _thumbnail(texts, row),
        )
        for row in wrong[np.argsort(-confidence[wrong], kind="stable")][:_MAX_MISTAKES].tolist()
    ]


def _shown_text(texts: CheckedTexts, row: int) -> str:
    text, other = texts[row]
    return printable(f"{text} ⏐ {other}" if isinstance(other, str) else text)


def _labels(model: Model) -> list[dict[str, Any]]:
    """Return what is known of each label of a model that gives several."""
    if not isinstance(model, MultilabelModel):
        return []
    return [one | {"label": printable(one["label"])} for one in model.describe_labels()]


def _thumbnail(texts: CheckedTexts, row: int) -> str:
    """Return a small copy of an image as a ``data:`` address; "" where there is none."""
    second = texts[row][1]
    return second.thumbnail() if isinstance(second, Image) else ""


def _mistakes(
    model: Model, texts: CheckedTexts, codes: NDArray[np.intp], predictions: Predictions
) -> list[Mistake]:
    """Return the most confident wrong predictions, the most confident first."""
    names = dict(enumerate(_names(model)))
    if predictions.out_of_scope is not None:
        names[NONE_OF_THESE] = printable(str(predictions.out_of_scope.label))
    wrong = np.flatnonzero((predictions.codes != codes) & (predictions.codes != NO_ANSWER))
    confidence = predictions.label_probabilities()
    mistakes = []
    for row in wrong[np.argsort(-confidence[wrong], kind="stable")][:_MAX_MISTAKES].tolist():
        mistakes.append(
            Mistake(
                _shown_text(texts, row),
                names[int(codes[row])],
                names[int(predictions.codes[row])],
                None if np.isnan(confidence[row]) else float(confidence[row]),
                _thumbnail(texts, row),
            )
        )
    return mistakes


def _held_texts(model: Model) -> str:
    shown = any(prompt.has_examples or prompt.nearest for prompt in model.prompts)
    what_for = "shown to the language model" if shown else "to explain predictions"
    return f"{model.held_texts}, {what_for}" if model.held_texts else ""


def _promises(model: Model) -> tuple[list[Promise], str]:
    """Return the usual error rates that can be promised; where none can, the reason."""
    found, reason = [], ""
    for max_error in _MAX_ERRORS:
        try:
            found.append(model.promise(max_error))
        except ValueError as error:
            reason = str(error)
    return found, "" if found else printable(reason)


def _names(model: Model) -> list[str]:
    return [printable(str(label)) for label in model.classes.tolist()]


def _sized(tokens: Sequence[tuple[str, float]]) -> list[TokenWeight]:
    max_weight = max((abs(weight) for _, weight in tokens), default=1.0) or 1.0
    return [
        TokenWeight(printable(token), weight, max(1, round(_SIZES * abs(weight) / max_weight)))
        for token, weight in tokens[:_MAX_TOKENS]
    ]
