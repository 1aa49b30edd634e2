"""Options of a training in the summary of its model, for a training that goes on from it.

Paths, backends and whatever else says where texts go or which code runs are not among them: a model
file never decides that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from blackbox.fitting.options import FitOptions
from blackbox.model.model import Model

__all__ = ["describe_options", "saved_options"]

_PARTS = ("prompts", "algorithm", "top_k", "classes", "keep_examples")  # of the model itself
_OF_A_CHOICE = ("n_prompts", "max_prompts", "n_screening_rows", "languages")  # of prompts
_OF_A_RUN = ("library", "library_prompts", "on_row_error", "embeddings")
_SAVED = {one.name for one in fields(FitOptions)} - {*_PARTS, *_OF_A_CHOICE, *_OF_A_RUN}


def describe_options(
    options: FitOptions, classes: Sequence[Any], *, embeds: bool
) -> dict[str, Any]:
    """Return the options that a model's summary keeps, as JSON data.

    Parameters
    ----------
    options : FitOptions
        How the model was trained.
    classes : sequence
        Its labels; a mapping from them becomes a list in this order, with None for those left out.
    embeds : bool
        Whether the training had an embedding model.
    """
    found: dict[str, Any] = {}
    for name in sorted(_SAVED):
        value = getattr(options, name)
        if isinstance(value, Mapping):
            found[name] = [_plain(value.get(label)) for label in classes]
        else:
            found[name] = _plain(value)
    # another embedding model is named by its identity, where the model reads it
    found["embeddings"] = "auto" if embeds and options.embeddings == "auto" else None
    return found


def saved_options(model: Model) -> dict[str, Any]:
    """Return the estimator's parameters that a model's summary keeps, as `describe_options` has it.

    Empty for a file of an older version. Values may be of any JSON type, as a file can hold any:
    the estimator checks its parameters.

    Parameters
    ----------
    model : Model
        The trained model.
    """
    given = model.summary.get("options")
    if not isinstance(given, dict):
        return {}
    labels = model.classes.tolist()
    found = {}
    for name in sorted(_SAVED & given.keys()):
        value = given[name]
        if isinstance(value, list):
            pairs = zip(labels, value, strict=False)
            value = {label: one for label, one in pairs if one is not None}
        found[name] = value
    if given.get("embeddings") == "auto":
        found["embeddings"] = "auto"
    return found


def _plain(value: Any) -> Any:
    """Return a value of an option as JSON data; several words as one text."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else None
