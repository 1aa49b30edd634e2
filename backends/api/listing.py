"""Reads a server's list of models, in whatever shape it comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from backends.api.responses import BadAnswerError

__all__ = ["ListedModel", "find", "models_in"]

_LONGEST_CONTEXT = 10**9


@dataclass(frozen=True)
class ListedModel:
    """A model as a server's list describes it.

    Parameters
    ----------
    model : str
        Its name.
    server : str
        What the server calls itself, if it does.
    context_length : int or None
        Tokens that a prompt may have, where the list has it.
    facts : mapping
        Properties that tell its weights from others of that name; never a path.
    answered : bool
        Whether the server answered with a list, and so took the key.
    """

    model: str
    server: str = ""
    context_length: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    answered: bool = False


def models_in(data: Any) -> list[dict[str, Any]]:
    """Return the entries of a list of models, each with an ``id``.

    Raises
    ------
    BadAnswerError
        If there is no list in it.
    """
    if isinstance(data, Mapping):
        data = next((data[key] for key in ("data", "models") if isinstance(data.get(key), list)), 0)
    if not isinstance(data, list):
        raise BadAnswerError("its list of models can't be read")
    found = []
    for entry in data:
        if isinstance(entry, str):
            found.append({"id": entry})
        elif isinstance(entry, Mapping):
            names = (entry.get(key) for key in ("id", "name", "model"))
            name = next((name for name in names if isinstance(name, str)), None)
            if name is not None:
                found.append({**entry, "id": name})
    return found


def find(name: str, models: list[dict[str, Any]], *, answered: bool) -> ListedModel:
    """Return the entry of a model; a server of one model takes any name for it."""
    entry = next((m for m in models if m["id"] in (name, f"models/{name}")), None)
    if entry is None:
        entry = models[0] if len(models) == 1 else {}
    meta = entry.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    lengths = (entry.get("max_model_len"), meta.get("n_ctx"), entry.get("context_length"))
    facts = {
        key: meta[key]
        for key in ("n_vocab", "n_params", "size")
        if isinstance(meta.get(key), int | float | str)
    }
    if entry.get("root"):
        facts["root"] = PurePath(str(entry["root"])).name
    return ListedModel(
        model=name,
        server=str(entry.get("owned_by") or ""),
        context_length=next((length for length in lengths if _is_length(length)), None),
        facts=facts,
        answered=answered,
    )


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < _LONGEST_CONTEXT
