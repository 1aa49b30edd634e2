"""A model from the JSON data and the arrays of its file, every part of which is checked."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.boosting import ALGORITHM_NAMES
from blackbox.boosting.algorithms import ALGORITHMS
from blackbox.boosting.early_stopping import RULES, EarlyStopping
from blackbox.boosting.ensemble import Ensemble, Reading
from blackbox.boosting.logit import Scaling
from blackbox.boosting.weak_learner import WeakLearner
from blackbox.errors import ModelFileError
from blackbox.experts import EXPERTS
from blackbox.experts.base import Expert
from blackbox.experts.examples import KeptExamples
from blackbox.experts.source_models import MAX_SOURCES, SourceModel
from blackbox.experts.source_readout import SourceReadout
from blackbox.model.file.checks import (
    check_plain,
    checked_array,
    checked_floor,
    checked_identity,
    checked_text,
    classes_from_json,
)
from blackbox.model.file.multilabel import read_heads
from blackbox.model.file.out_of_scope import SCOPE_ARRAYS, read_scope
from blackbox.model.file.sources import ARRAYS_PER_SOURCE, read_sources
from blackbox.model.model import Model
from blackbox.model.multilabel import MultilabelModel
from blackbox.model.reliability import HeldOutRows
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import BackendIdentity

__all__ = ["ARRAYS_PER_MODEL", "model_of", "multilabel_of"]

_MAX_PROMPTS = 1_000
_MAX_LEARNERS = 100_000
_MIN_SCALE = 1e-6

ARRAYS_PER_MODEL = (
    15 + 2 * len(EXPERTS) + ARRAYS_PER_SOURCE * MAX_SOURCES + SCOPE_ARRAYS + 3 * _MAX_PROMPTS
)
"""Arrays of a model that gives one label, at most."""


_WORTH_SINCE = 11  # the format whose held-out rows have weights as `HeldOutRows` says


def model_of(description: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Model:
    """Return a model that gives one label; `arrays` is empty afterwards.

    Raises
    ------
    ModelFileError
        If a part of it is missing, unknown, or out of range.
    """
    classes = classes_from_json(description["classes"])
    pool = _prompts(description["prompts"])
    ensemble = _ensemble(description, arrays, len(classes))
    top_k = description["top_k"]
    if type(top_k) is not int or not 1 <= top_k <= 10**6:
        raise ModelFileError("top_k is out of range")
    detector = None
    if "none_of_these" in description:
        detector = read_scope(
            description["none_of_these"],
            classes,
            sum(len(reading.token_ids) for reading in ensemble.readings),
            set(arrays),
            functools.partial(checked_array, arrays),
        )
    examples = None
    if "examples" in description:
        examples = _examples(description, arrays, classes.tolist(), pool[0].takes_pair)
    model = Model(
        classes=classes,
        prompts=pool,
        ensemble=ensemble,
        token_bytes=_token_bytes(description["tokens"], ensemble.readings),
        identity=checked_identity(description["language_model"]),
        top_k=top_k,
        summary=_summary(description),
        embedder_identity=_embedder(description),
        examples=examples,
        row_digests=_digests(arrays, "row_digests"),
        source_digests=_digests(arrays, "source_digests") if ensemble.sources else None,
        held_out=_held_out(description, arrays) if "held_out" in arrays else None,
        out_of_scope=detector,
        order=_order(description["order"], len(classes)) if "order" in description else None,
    )
    _check_vectors(model)
    if arrays:
        raise ModelFileError(f"unknown array {next(iter(arrays)):.40}")
    return model


def multilabel_of(description: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> MultilabelModel:
    """Return a model that gives several labels; `arrays` is empty afterwards.

    Raises
    ------
    ModelFileError
        If a part of it is missing, unknown, or out of range.
    """
    labels = classes_from_json(description["classes"], fewest=1)
    templates = description["prompts"]
    if not isinstance(templates, list) or not all(isinstance(one, str) for one in templates):
        raise ModelFileError("its prompts are no templates")
    _summary(description)
    digests = _digests(arrays, "row_digests")
    model = read_heads(description, arrays, labels, digests, model_of)
    if arrays:
        raise ModelFileError(f"unknown array {next(iter(arrays)):.40}")
    return model


def _prompts(described: Any) -> PromptPool:
    if not isinstance(described, list) or not 1 <= len(described) <= _MAX_PROMPTS:
        raise ModelFileError("no prompts, or too many")
    pool = PromptPool(checked_text(prompt["template"]) for prompt in described)
    if len(pool) != len(described) or len({prompt.input_kind for prompt in pool}) != 1:
        raise ModelFileError("its prompts are not of one kind, or occur twice")
    return pool


def _ensemble(
    description: dict[str, Any], arrays: dict[str, NDArray[Any]], n_classes: int
) -> Ensemble:
    """Return what predicts from answers: learners, readings, experts and models of other tasks."""
    if description["algorithm"] not in ALGORITHM_NAMES:
        raise ModelFileError("an unknown algorithm")
    algorithm = ALGORITHMS[description["algorithm"]]
    readings = [
        _reading(arrays, number, checked_floor(prompt["floor"]))
        for number, prompt in enumerate(description["prompts"])
    ]
    experts = _experts(description, arrays, n_classes)
    if experts and not algorithm.uses_experts:
        raise ModelFileError("experts beside an algorithm that has none")
    sources = read_sources(
        description.get("sources", []),
        functools.partial(checked_array, arrays),
        [reading.token_ids for reading in readings],
    )
    ensemble = Ensemble(
        algorithm,
        _learners(arrays, [len(reading.token_ids) for reading in readings], n_classes),
        readings,
        checked_array(arrays, "initial", np.float64, (n_classes,)),
        replace(_stopping(arrays, len(readings), n_classes), late=_late_bounds(experts, sources)),
        experts,
        sources,
    )
    if not (ensemble.learners or experts or sources):
        raise ModelFileError("no weak learners, and no expert")
    try:
        algorithm.check(ensemble)
    except ValueError as error:
        raise ModelFileError(str(error)) from error
    return ensemble


def _token_bytes(described: dict[str, Any], readings: Sequence[Reading]) -> dict[int, bytes]:
    """Return the bytes of each token, of all that are read at least."""
    found = {
        int(token): bytes.fromhex(checked_text(entry["bytes"]))
        for token, entry in described.items()
    }
    if not {token for reading in readings for token in reading.token_ids.tolist()} <= set(found):
        raise ModelFileError("tokens without their bytes")
    return found


def _summary(description: dict[str, Any]) -> dict[str, Any]:
    summary = description["training"]
    if not isinstance(summary, dict):
        raise ModelFileError("no training summary")
    check_plain(summary, 3)
    return summary


def _embedder(description: dict[str, Any]) -> BackendIdentity | None:
    described = description.get("embedding_model")
    return None if described is None else checked_identity(described)


def _check_vectors(model: Model) -> None:
    """Raise unless a model has an embedding model where it reads vectors, and only there."""
    if (model.embedder_identity is not None) != model.reads_vectors:
        raise ModelFileError("an embedding model that nothing reads, or readers without one")
    if model.examples is not None and model.embedder_identity is None:
        raise ModelFileError("texts of the training without an embedding model")
    if model.examples is None and model.shows_examples:
        raise ModelFileError("a prompt shows texts of the training, and there are none")


def _order(codes: Any, n_classes: int) -> NDArray[np.intp]:
    whole = isinstance(codes, list) and all(type(code) is int for code in codes)
    if not whole or sorted(codes) != list(range(n_classes)):
        raise ModelFileError("an order that is not one of its classes")
    return np.array(codes, np.intp)


def _held_out(description: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> HeldOutRows:
    figures = checked_array(arrays, "held_out", np.float32, (None, 3))
    group = checked_array(arrays, "held_out_groups", np.int32, (len(figures),))
    confidence, truth, weight = np.ascontiguousarray(figures.T)
    # a group's number is an index
    if not len(group) or group.min() < 0 or group.max() >= len(group):
        raise ModelFileError("held-out rows without a group")
    if (truth < 0).any() or (truth > confidence).any() or (confidence > 1).any():
        raise ModelFileError("held-out rows whose probabilities are none")
    if (weight <= 0).any():
        raise ModelFileError("a held-out row without a weight")
    if description["format_version"] < _WORTH_SINCE:
        weight = weight / weight.mean()  # of any scale, and worth as many rows as they are
    return HeldOutRows(confidence, truth, weight, group)


def _digests(arrays: dict[str, NDArray[Any]], name: str) -> NDArray[np.uint64] | None:
    if name not in arrays:
        return None
    halves = checked_array(arrays, name, np.int32, (None, 2))
    return np.ascontiguousarray(halves).view(np.uint64)[:, 0]


def _late_bounds(
    experts: Sequence[Expert], sources: Sequence[SourceModel]
) -> NDArray[np.float64] | None:
    """Return the bounds of what the expert of sources adds, checked against its sources."""
    readout = next((one for one in experts if isinstance(one, SourceReadout)), None)
    if (readout is not None) != bool(sources):
        raise ModelFileError("models of other tasks without an expert, or that without them")
    if readout is None:
        return None
    widest = max(len(source.classes) for source in sources)
    if readout.tables.shape[:2] != (len(sources), widest) or (readout.tables < 0).any():
        raise ModelFileError("an expert that fits its models of other tasks badly")
    # a class that no source may mean would have a score of minus infinity
    if not (readout.tables.sum(axis=0) > 0).all():
        raise ModelFileError("an expert that excludes a class")
    return readout.bounds()


def _examples(
    description: dict[str, Any],
    arrays: dict[str, NDArray[Any]],
    classes: list[Any],
    takes_pair: bool,
) -> KeptExamples:
    """Return the training texts of a model that keeps them."""
    described, n_classes = description["examples"], len(classes)
    names = description.get("example_names", [str(label) for label in classes])
    if not isinstance(described, list) or not isinstance(names, list) or len(names) != n_classes:
        raise ModelFileError("its texts of the training, or the names of classes, are no list")
    texts, codes = [], []
    for entry in described:
        text, pair, code = entry
        if type(code) is not int or not 0 <= code < n_classes or (pair is not None) != takes_pair:
            raise ModelFileError("a text of the training has no class, or is no pair")
        texts.append((checked_text(text), None if pair is None else checked_text(pair)))
        codes.append(code)
    vectors = checked_array(arrays, "example_vectors", np.float32, (len(texts), None))
    return KeptExamples(
        texts, np.array(codes, np.intp), vectors, [checked_text(name) for name in names]
    )


def _experts(
    description: dict[str, Any], arrays: dict[str, NDArray[Any]], n_classes: int
) -> tuple[Expert, ...]:
    names = description.get("experts", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelFileError("its experts are no names")
    if len(set(names)) != len(names) or set(names) - set(EXPERTS):
        raise ModelFileError("an unknown expert, or one that occurs twice")
    experts = []
    for number, name in enumerate(names):
        read = functools.partial(_expert_array, arrays, number, n_classes)
        experts.append(EXPERTS[name].from_arrays(read))
    return tuple(experts)


def _expert_array(
    arrays: dict[str, NDArray[Any]],
    number: int,
    n_classes: int,
    name: str,
    dtype: Any,
    n_dimensions: int,
) -> NDArray[Any]:
    """Return an expert's array, whose last axis is the classes."""
    shape = (*[None] * (n_dimensions - 1), n_classes)
    array = checked_array(arrays, f"expert_{number}_{name}", dtype, shape)
    if not array.size:
        raise ModelFileError("an expert that reads nothing")
    return array


def _reading(arrays: dict[str, NDArray[Any]], number: int, floor: float) -> Reading:
    token_ids = checked_array(arrays, f"token_ids_{number}", np.int32, (None,))
    size = (len(token_ids),)
    mean = checked_array(arrays, f"mean_{number}", np.float32, size)
    scale = checked_array(arrays, f"scale_{number}", np.float32, size)
    if (np.diff(token_ids) <= 0).any() or (token_ids < 0).any():
        raise ModelFileError("token ids are not ascending")
    if (scale < _MIN_SCALE).any():
        raise ModelFileError("a scale is not positive")
    return Reading(token_ids, floor, Scaling(mean, scale))


def _learners(
    arrays: dict[str, NDArray[Any]], widths: list[int], n_classes: int
) -> list[WeakLearner]:
    prompt = checked_array(arrays, "prompt", np.int32, (None,))
    count = len(prompt)
    columns = checked_array(arrays, "columns", np.int32, (count, n_classes, None))
    weights = checked_array(arrays, "token_weights", np.float32, columns.shape)
    weight = checked_array(arrays, "weight", np.float64, (count,))
    if count > _MAX_LEARNERS or not columns.shape[2]:
        raise ModelFileError("too many weak learners, or none of a token")
    if ((prompt < 0) | (prompt >= len(widths))).any():
        raise ModelFileError("a weak learner refers to an unknown prompt")
    n_columns = np.array(widths)[prompt][:, None, None]
    if (columns < 0).any() or (columns >= n_columns).any():
        raise ModelFileError("a weak learner refers to an unknown token")
    if (np.abs(weights) > 1 + 1e-6).any():
        raise ModelFileError("a token has a weight above 1")
    return [
        WeakLearner(
            int(prompt[number]),
            columns[number].astype(np.intp),
            weights[number].copy(),
            float(weight[number]),
        )
        for number in range(count)
    ]


def _stopping(arrays: dict[str, NDArray[Any]], n_prompts: int, n_classes: int) -> EarlyStopping:
    low = checked_array(arrays, "low", np.float64, (n_prompts, n_classes))
    high = checked_array(arrays, "high", np.float64, (n_prompts, n_classes))
    order = checked_array(arrays, "order", np.int32, (n_prompts,))
    leads = checked_array(arrays, "leads", np.float64, (n_prompts,))
    survival = checked_array(arrays, "waiting", np.float64, (len(RULES), n_prompts))
    if (low > high).any():
        raise ModelFileError("a lower limit above the upper")
    if sorted(order.tolist()) != list(range(n_prompts)):
        raise ModelFileError("the order of prompts is not a permutation")
    return EarlyStopping(low, high, order.astype(np.intp), leads, survival)
