"""A model as the JSON data and the arrays of its file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.boosting.ensemble import Ensemble
from blackbox.model.file.checks import classes_as_json
from blackbox.model.file.multilabel import describe_heads
from blackbox.model.file.out_of_scope import scope_arrays
from blackbox.model.file.sources import describe_sources, source_arrays
from blackbox.model.model import Model
from blackbox.model.multilabel import MultilabelModel

__all__ = ["contents_of"]


def contents_of(model: Model) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return all of a model that a file keeps, as JSON data and named arrays."""
    if not isinstance(model, MultilabelModel):
        return _describe(model), _arrays_of(model)
    heads, arrays = describe_heads(model, _describe, _arrays_of)
    prompts = {"prompts": [prompt.template for prompt in model.prompts]}
    return _describe_shared(model) | prompts | heads, arrays | _row_arrays(model)


def _describe_shared(model: Model) -> dict[str, Any]:
    """Return what is the same for all labels of a model that gives several, as JSON data."""
    return {
        "language_model": model.identity.as_dict(),
        "algorithm": model.ensemble.algorithm.name,
        "classes": classes_as_json(model.classes),
        "top_k": model.top_k,
        "tokens": {
            str(token): {"text": data.decode("utf-8", "replace"), "bytes": data.hex()}
            for token, data in sorted(model.token_bytes.items())
        },
        "training": model.summary,
    }


def _describe(model: Model) -> dict[str, Any]:
    """Return all of a model but its arrays, as JSON data."""
    description = _describe_shared(model) | {
        "prompts": [
            {"template": prompt.template, "floor": reading.floor}
            for prompt, reading in zip(model.prompts, model.ensemble.readings, strict=True)
        ],
        "experts": [expert.name for expert in model.ensemble.experts],
        "sources": describe_sources(model.ensemble.sources),
        "embedding_model": (
            None if model.embedder_identity is None else model.embedder_identity.as_dict()
        ),
    }
    if model.examples is not None:
        description["examples"] = [
            [*texts, code]
            for texts, code in zip(model.examples.texts, model.examples.codes.tolist(), strict=True)
        ]
        description["example_names"] = list(model.examples.names)
    if model.out_of_scope is not None:
        description["none_of_these"] = model.out_of_scope.label
    if model.order is not None:
        description["order"] = model.order.tolist()
    return description


def _arrays_of(model: Model) -> dict[str, NDArray[Any]]:
    named = _ensemble_arrays(model.ensemble)
    if model.examples is not None:
        named["example_vectors"] = model.examples.vectors
    if model.held_out is not None:
        kept = model.held_out
        named["held_out"] = np.stack([kept.confidence, kept.truth, kept.weight], axis=1)
        named["held_out_groups"] = kept.group
    if model.out_of_scope is not None:
        named |= scope_arrays(model.out_of_scope)
    return named | _row_arrays(model)


def _row_arrays(model: Model) -> dict[str, NDArray[Any]]:
    """Return the arrays by which training texts are recognised."""
    digests = {"row_digests": model.row_digests, "source_digests": model.source_digests}
    return {
        name: values.view(np.int32).reshape(-1, 2)
        for name, values in digests.items()
        if values is not None
    }


def _ensemble_arrays(ensemble: Ensemble) -> dict[str, NDArray[Any]]:
    learners = ensemble.learners
    arrays: dict[str, NDArray[Any]] = {
        "prompt": np.array([learner.prompt for learner in learners], np.int32),
        "columns": _stacked([learner.columns for learner in learners], ensemble.n_classes).astype(
            np.int32
        ),
        "token_weights": _stacked(
            [learner.token_weights for learner in learners], ensemble.n_classes
        ),
        "weight": np.array([learner.weight for learner in learners], np.float64),
        "initial": np.asarray(ensemble.initial, np.float64),
        "low": ensemble.early_stopping.low,
        "high": ensemble.early_stopping.high,
        "order": ensemble.early_stopping.order.astype(np.int32),
        "leads": ensemble.early_stopping.leads,
        "waiting": ensemble.early_stopping.survival,
    }
    for number, expert in enumerate(ensemble.experts):
        for name, array in expert.arrays().items():
            arrays[f"expert_{number}_{name}"] = array
    arrays |= source_arrays(ensemble.sources)
    for number, reading in enumerate(ensemble.readings):
        arrays[f"token_ids_{number}"] = reading.token_ids.astype(np.int32)
        arrays[f"mean_{number}"] = reading.scaling.mean.astype(np.float32)
        arrays[f"scale_{number}"] = reading.scaling.scale.astype(np.float32)
    return arrays


def _stacked(arrays: list[NDArray[Any]], n_classes: int) -> NDArray[Any]:
    """Return arrays of shape (n_classes, m) as one, padded with zeros, which have no weight."""
    if not arrays:  # experts alone
        return np.zeros((0, n_classes, 1), np.float32)
    widest = max(array.shape[1] for array in arrays)
    return np.stack([np.pad(a, ((0, 0), (0, widest - a.shape[1]))) for a in arrays])
