"""Models of several labels in a model file: as JSON and arrays, and back.

Each label's binary model is described as a model alone is, but for what all of them share: the
language model, the prompts and the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import ModelFileError
from blackbox.model.model import Model
from blackbox.model.multilabel import MultilabelModel
from blackbox.prompts.pool import PromptPool

__all__ = ["describe_heads", "n_heads", "read_heads"]

_MAX_HEADS = 1_000
_MAX_SEPARATOR = 100

_SHARED = ("language_model", "algorithm", "top_k", "tokens")
_OWN = ("experts", "sources", "embedding_model", "training")

Arrays = dict[str, NDArray[Any]]


def describe_heads(
    model: MultilabelModel,
    describe: Callable[[Model], dict[str, Any]],
    arrays_of: Callable[[Model], Arrays],
) -> tuple[dict[str, Any], Arrays]:
    """Return the JSON data of the labels' models, and their arrays.

    Parameters
    ----------
    model : MultilabelModel
        The model.
    describe, arrays_of : callable
        Return the JSON data, and the arrays, of one model alone.
    """
    numbers = {prompt.template: number for number, prompt in enumerate(model.prompts)}
    described: list[dict[str, Any] | None] = []
    arrays: Arrays = {}
    for label, head in enumerate(model.heads):
        if head is None:
            described.append(None)
            continue
        whole = describe(head)
        prompts = [
            {"prompt": numbers[one["template"]], "floor": one["floor"]} for one in whole["prompts"]
        ]
        name = str(head.classes[1])
        described.append({"name": name, "prompts": prompts} | {key: whole[key] for key in _OWN})
        arrays |= {_array_name(label, key): value for key, value in arrays_of(head).items()}
    labels = {
        "indicator": model.indicator,
        "separator": model.separator,
        "thresholds": model.thresholds.tolist(),
        "shares": model.shares.tolist(),
    }
    return {"labels": labels, "heads": described}, arrays


def n_heads(description: Any) -> int | None:
    """Return of how many labels a model file has models; None if it gives one label per text.

    Raises
    ------
    ModelFileError
        If they are too many.
    """
    if "heads" not in description:
        return None
    heads = description["heads"]
    if not isinstance(heads, list) or not 1 <= len(heads) <= _MAX_HEADS:
        raise ModelFileError("no models of labels, or too many")
    return len(heads)


def read_heads(
    description: dict[str, Any],
    arrays: Arrays,
    labels: NDArray[Any],
    row_digests: NDArray[np.uint64] | None,
    read: Callable[[dict[str, Any], Arrays], Model],
) -> MultilabelModel:
    """Return the model of a file whose version is checked.

    Parameters
    ----------
    description : dict
        The JSON data of the file.
    arrays : dict
        Its arrays, which are taken out.
    labels : array of shape (n_labels,)
        The labels, checked.
    row_digests : uint64 array, optional
        Digests of the training texts.
    read : callable
        Returns a model alone, from its JSON data and its arrays.

    Raises
    ------
    ModelFileError
        If they are not what `describe_heads` returned.
    """
    templates, described, facts = (description[key] for key in ("prompts", "heads", "labels"))
    n = len(labels)
    if len(described) != n or not any(described):
        raise ModelFileError("another number of models than labels, or none")
    heads: list[Model | None] = []
    for label, own in enumerate(described):
        prefix = _array_name(label, "")
        names = [name for name in arrays if name.startswith(prefix)]
        taken = {name.removeprefix(prefix): arrays.pop(name) for name in names}
        if own is None:
            if taken:
                raise ModelFileError("arrays of a label that has no model")
            heads.append(None)
            continue
        whole = {key: description[key] for key in _SHARED} | {key: own[key] for key in _OWN}
        whole["classes"] = {"type": "str", "values": [f"not {own['name']}", own["name"]]}
        whole["prompts"] = [
            {"template": templates[_place(one["prompt"], len(templates))], "floor": one["floor"]}
            for one in own["prompts"]
        ]
        heads.append(read(whole, taken))
    models = [one for one in heads if one is not None]
    read_prompts = {prompt.template for one in models for prompt in one.prompts}
    if read_prompts != set(templates) or len(read_prompts) != len(templates):
        raise ModelFileError("a prompt that no label reads")
    if len({prompt.takes_pair for one in models for prompt in one.prompts}) != 1:
        raise ModelFileError("its prompts are not of one kind")
    if any(one.held_out is not None or one.row_digests is not None for one in models):
        raise ModelFileError("rows of the training in the model of a label")
    separator, indicator = facts["separator"], facts["indicator"]
    is_separator = separator is None or (
        isinstance(separator, str) and 1 <= len(separator) <= _MAX_SEPARATOR
    )
    if type(indicator) is not bool or not is_separator:
        raise ModelFileError("a separator of labels that is none")
    return MultilabelModel.of(
        labels,
        heads,
        _shares(facts["thresholds"], n),
        _shares(facts["shares"], n),
        PromptPool(templates),
        summary=description["training"],
        row_digests=row_digests,
        indicator=indicator,
        separator=separator,
    )


def _array_name(label: int, name: str) -> str:
    return f"head_{label}_{name}"


def _place(number: Any, n_prompts: int) -> int:
    if type(number) is not int or not 0 <= number < n_prompts:
        raise ModelFileError("the model of a label reads an unknown prompt")
    return number


def _shares(values: Any, n: int) -> NDArray[np.float64]:
    """Return numbers between 0 and 1, one for each label."""
    if not isinstance(values, list) or len(values) != n:
        raise ModelFileError("another number of thresholds or shares than labels")
    if not all(type(value) is float and 0 < value < 1 for value in values):
        raise ModelFileError("a threshold or a share that is not between 0 and 1")
    return np.array(values, np.float64)
