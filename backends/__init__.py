"""Backends: one file per kind of language model, reached by name through `load`.

Embedding models have names of their own and are reached through `load_embeddings`.

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

from backends.catalogue import CATALOGUE, EMBEDDING_MODELS
from backends.contract import check_backend
from blackbox.backend import BaseBackend, as_backend
from blackbox.errors import BackendError
from blackbox.protocol import BackendIdentity

__all__ = [
    "EMBEDDINGS_GROUP",
    "ENTRY_POINT_GROUP",
    "check_backend",
    "default_for",
    "embedding_names",
    "embeddings_of_catalogue",
    "find_embeddings",
    "forget",
    "image_option",
    "load",
    "load_embeddings",
    "names",
    "of_catalogue",
]

ENTRY_POINT_GROUP = "promptboosting.backends"
"""Entry points of this group add backends by name: ``name = module:Class``."""

EMBEDDINGS_GROUP = "promptboosting.embeddings"
"""Entry points of this group add embedding models by name: ``name = module:Class``."""

_BUILTIN = {
    "decisions": "backends.decisions:DecisionsBackend",
    "deterministic": "backends.deterministic:DeterministicBackend",
    "llamacpp": "backends.llamacpp:LlamaCppBackend",
    "onnx": "backends.onnx:OnnxBackend",
    "openai": "backends.openai:OpenAIBackend",
    "sampling": "backends.sampling:SamplingBackend",
    "transformers": "backends.transformers:TransformersBackend",
    "vllm": "backends.vllm:VllmBackend",
}

_EMBEDDINGS = {
    "deterministic": "backends.deterministic:DeterministicBackend",
    "onnx": "backends.onnx_embeddings:OnnxEmbeddings",
    "openai": "backends.openai_embeddings:OpenAIEmbeddings",
    "transformers": "backends.transformers_embeddings:TransformersEmbeddings",
    "vllm": "backends.vllm_embeddings:VllmEmbeddings",
}

_OF_CATALOGUE = ("onnx", "llamacpp", "transformers")  # the backends that load its models by name

_loaded: dict[str, BaseBackend] = {}
_lock = threading.RLock()  # one backend may be made around another


def names() -> list[str]:
    """Names that `load` knows."""
    return _names(_BUILTIN, ENTRY_POINT_GROUP)


def embedding_names() -> list[str]:
    """Names that `load_embeddings` knows, beside the embedding models of the catalogue."""
    return _names(_EMBEDDINGS, EMBEDDINGS_GROUP)


def default_for(model: Any = None) -> str:
    """Return the name of the backend that runs a model where none is named.

    llama.cpp for the path of a ``.gguf`` file, ONNX Runtime for the catalogue's models.
    """
    return "llamacpp" if str(model or "").lower().endswith(".gguf") else "onnx"


def find_embeddings(name: str) -> Any:
    """Return the class of the embedding model of that name, without starting one.

    Raises
    ------
    BackendError
        If there is no such model.
    """
    name = "onnx" if name in EMBEDDING_MODELS else name
    return _import(name, _target(name, _EMBEDDINGS, EMBEDDINGS_GROUP))


def load(name: str | None = None, **options: Any) -> BaseBackend:
    """Return the backend of that name, started once per process for the same name and options.

    A class that reads the environment names its variables in an attribute `environment`, or takes
    their names as options that end in ``_env``; other values of them are another backend.

    Parameters
    ----------
    name : str, optional
        One of `names()`, or ``"module:Class"`` for a class of the caller's own; by default that of
        `default_for` the model.
    **options
        Passed to the backend's constructor.

    Raises
    ------
    BackendError
        If there is no such backend, or it is not one.
    """
    name = name or default_for(options.get("model"))
    return _load(name, _target(name, _BUILTIN, ENTRY_POINT_GROUP), options)


def image_option(name: str) -> str:
    """Return the option by which a backend is told that images will be asked about, if any."""
    made = _import(name, _target(name, _BUILTIN, ENTRY_POINT_GROUP))
    return str(getattr(made, "image_option", ""))


def load_embeddings(name: str, **options: Any) -> BaseBackend:
    """Return the embedding model of that name, started once as by `load`.

    Parameters
    ----------
    name : str
        One of `embedding_names()`, an embedding model of the catalogue, or ``"module:Class"`` for a
        class of the caller's own.
    **options
        Passed to the backend's constructor.

    Raises
    ------
    BackendError
        If there is no such model, or it makes no embeddings.
    """
    if name in EMBEDDING_MODELS:
        name, options = "onnx", {"model": name, **options}
    backend = _load(name, _target(name, _EMBEDDINGS, EMBEDDINGS_GROUP), options)
    if not backend.limits.embedding_size:
        raise BackendError(f"{name!r} makes no embeddings: its limits have no embedding_size")
    return backend


def _forget_engines() -> None:
    """Let a process that was forked load engines of its own, whose threads stayed in the other."""
    for key in [key for key, one in _loaded.items() if not one.survives_fork]:
        del _loaded[key]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_engines)


def forget(backend: BaseBackend) -> None:
    """Forget a backend that was loaded: the next call of `load` starts another."""
    with _lock:
        for key in [key for key, one in _loaded.items() if one is backend]:
            del _loaded[key]


def _load(name: str, target: str, options: dict[str, Any]) -> BaseBackend:
    made = _import(name, target)
    variables = {*getattr(made, "environment", ()), *_named_variables(options)}
    read = {variable: os.environ.get(variable) for variable in sorted(variables)}
    settings = json.dumps([target, options, read], sort_keys=True, default=repr)
    key = hashlib.sha256(settings.encode()).hexdigest()  # a key of an API is among them
    with _lock:
        if key not in _loaded:
            _loaded[key] = _construct(name, made, options)
        return _loaded[key]


def _named_variables(options: dict[str, Any]) -> list[str]:
    """Return the environment variables that options name, such as that of a key."""
    return [str(value) for name, value in options.items() if name.endswith("_env")]


def of_catalogue(identity: BackendIdentity) -> tuple[str, str | None] | None:
    """Backend and model that may be started on the word of a saved model alone, if any.

    These are the LMs of our own catalogue and the offline stand-in: they run on this machine, and
    nothing of a text leaves it.
    """
    if identity.provider == "deterministic":
        return "deterministic", None
    if identity.provider in _OF_CATALOGUE and identity.model in CATALOGUE:
        return identity.provider, identity.model
    return None


def embeddings_of_catalogue(identity: BackendIdentity) -> tuple[str, str | None] | None:
    """Name and model of embeddings that may be started on the word of a saved model alone, if any.

    See `of_catalogue`.
    """
    if identity.provider == "deterministic":
        return "deterministic", None
    if identity.provider == "onnx" and identity.model in EMBEDDING_MODELS:
        return "onnx", identity.model
    return None


def _names(builtin: dict[str, str], group: str) -> list[str]:
    return sorted({*builtin, *(point.name for point in entry_points(group=group))})


def _target(name: str, builtin: dict[str, str], group: str) -> str:
    if ":" in name:
        return name
    if name in builtin:
        return builtin[name]
    for point in entry_points(group=group):
        if point.name == name:
            return point.value
    known = _names(builtin, group)
    what = "backend"
    if group == EMBEDDINGS_GROUP:
        what, known = "embeddings", [*known, *EMBEDDING_MODELS]
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else "or give module:Class"
    raise BackendError(f"no {what} named {name!r}: there are {', '.join(known)}; {hint}")


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
