"""Backends: one file per kind of language model, reached by name through `load`.

Importing this package loads no model software; a backend imports its own when it is constructed.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import os
import threading
from importlib.metadata import entry_points
from typing import Any

from backends.catalogue import CATALOGUE
from blackbox.backend import BaseBackend, as_backend
from blackbox.errors import BackendError
from blackbox.protocol import BackendIdentity

__all__ = ["ENTRY_POINT_GROUP", "load", "names", "of_catalogue"]

ENTRY_POINT_GROUP = "promptboosting.backends"
"""Entry points of this group add backends by name: ``name = module:Class``."""

_BUILTIN = {
    "deterministic": "backends.deterministic:DeterministicBackend",
    "llamacpp": "backends.llamacpp:LlamaCppBackend",
    "onnx": "backends.onnx:OnnxBackend",
    "openai": "backends.openai:OpenAIBackend",
    "sampling": "backends.sampling:SamplingBackend",
    "transformers": "backends.transformers:TransformersBackend",
    "vllm": "backends.vllm:VllmBackend",
}

_loaded: dict[str, BaseBackend] = {}
_lock = threading.RLock()  # one backend may be made around another


def names() -> list[str]:
    """Names that `load` knows."""
    return sorted({*_BUILTIN, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def load(name: str, **options: Any) -> BaseBackend:
    """Return the backend of that name, started once per process for the same name and options.

    A class that reads the environment names its variables in an attribute `environment`; other
    values of them are another backend.

    Parameters
    ----------
    name : str
        One of `names()`, or ``"module:Class"`` for a class of the caller's own.
    **options
        Passed to the backend's constructor.

    Raises
    ------
    BackendError
        If there is no such backend, or it is not one.
    """
    made = _import(name, _target(name))
    read = {variable: os.environ.get(variable) for variable in getattr(made, "environment", ())}
    settings = json.dumps([name, options, read], sort_keys=True, default=repr)
    key = hashlib.sha256(settings.encode()).hexdigest()  # a key of an API is among them
    with _lock:
        if key not in _loaded:
            _loaded[key] = _construct(name, made, options)
        return _loaded[key]


def of_catalogue(identity: BackendIdentity) -> tuple[str, str | None] | None:
    """Backend and model that may be started on the word of a saved model alone, if any.

    These are the LMs of our own catalogue and the offline stand-in: they run on this machine, and
    nothing of a text leaves it.
    """
    if identity.provider == "deterministic":
        return "deterministic", None
    if identity.provider in ("onnx", "llamacpp") and identity.model in CATALOGUE:
        return identity.provider, identity.model
    return None


def _target(name: str) -> str:
    if ":" in name:
        return name
    if name in _BUILTIN:
        return _BUILTIN[name]
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == name:
            return point.value
    near = difflib.get_close_matches(name, names(), 1)
    hint = f"did you mean {near[0]!r}?" if near else "or give module:Class"
    raise BackendError(f"no backend named {name!r}: there are {', '.join(names())}; {hint}")


def _import(name: str, target: str) -> Any:
    module_name, _, class_name = target.partition(":")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise BackendError(f"backend {name!r} can't be imported: {error}") from error


def _construct(name: str, made: Any, options: dict[str, Any]) -> BaseBackend:
    try:
        backend = made(**options)
    except TypeError as error:
        raise BackendError(f"backend {name!r} can't be made with these options: {error}") from error
    try:
        return as_backend(backend)
    except TypeError as error:
        raise BackendError(
            f"{name!r} makes no backend: it needs identity, limits and next_token (or embed)"
        ) from error
