"""Loading a backend by name, and the identity check of a saved model's language model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from blackbox.backend import BaseBackend, as_backend
from blackbox.errors import BackendError, BackendIdentityError, MissingDependencyError
from blackbox.protocol import BackendIdentity

__all__ = [
    "check_identity",
    "choose_embeddings",
    "connect",
    "connect_embeddings",
    "default_backend",
    "default_embeddings",
]

EMBEDDED = "all-minilm-l6-v2"
"""The embedding model of the catalogue that is used by default."""

_IN_PROCESS = ("llamacpp", "onnx", "transformers", "vllm")

_log = logging.getLogger(__name__)


def connect(
    backend: Any,
    model: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    images: bool = False,
) -> BaseBackend:
    """Return a backend from its name or object; see `PromptBoostingClassifier`.

    Parameters
    ----------
    backend : str, Backend or None
        A name of `backends.names()`, ``"module:Class"``, or a backend; None for
        `backends.default_for` the model.
    model : str or Path, optional
        The LM, for a backend given by name.
    options : mapping, optional
        Further arguments of a backend given by name.
    images : bool, default=False
        Whether it will be asked about images, which some are told (`BaseBackend.image_option`).

    Raises
    ------
    TypeError
        If it is neither a name nor a backend.
    BackendError
        If there is no such backend, or it can't be started.
    """
    if backend is not None and not isinstance(backend, str):
        return as_backend(backend)
    import backends

    given = dict(options or {})
    if model is not None:
        given["model"] = str(model)
    told = backends.image_option(backend) if images and backend is not None else ""
    if told:
        given.setdefault(told, True)
    return as_backend(backends.load(backend, **given))


def default_backend(
    identity: BackendIdentity, where: str, model: str | Path | None = None
) -> tuple[str, str | Path | None]:
    """Return names of the backend and LM that a saved model may load without being given any.

    A saved model never decides where texts are sent: only an LM of the catalogue is loaded so.

    Parameters
    ----------
    identity : BackendIdentity
        The LM of the training.
    where : str
        The model's file, for the message.
    model : str or Path, optional
        Another LM to use.

    Raises
    ------
    BackendError
        If the LM is not in the catalogue.
    MissingDependencyError
        If the engine of the training is not installed.
    """
    import backends

    known = (
        backends.of_catalogue(identity) if model is None else (backends.default_for(model), model)
    )
    if known == ("llamacpp", identity.model) and find_spec("xllamacpp") is None:
        raise MissingDependencyError(
            f"{where} was trained with llama.cpp, which ran the embedded LM before: "
            "pip install 'promptboosting[llamacpp]', or train again"
        )
    if known is None:
        raise BackendError(
            f"{where} was trained with {identity.provider} {identity.model!r}, which doesn't load "
            "by itself: give backend and model (--backend, --model)"
        )
    return known


def connect_embeddings(
    embeddings: Any, model: str | Path | None = None, options: Mapping[str, Any] | None = None
) -> BaseBackend:
    """Return an embedding model from its name or object.

    Parameters
    ----------
    embeddings : str or Backend
        A name of `backends.embedding_names()` or of the catalogue, ``"module:Class"``, or a backend
        that makes embeddings.
    model : str or Path, optional
        The model, for embeddings given by name.
    options : mapping, optional
        Further arguments of embeddings given by name.

    Raises
    ------
    TypeError
        If it is neither a name nor a backend.
    BackendError
        If there is no such model, it makes no embeddings, or it can't be started.
    """
    if isinstance(embeddings, str):
        import backends

        given = dict(options or {})
        if model is not None:
            given["model"] = str(model)
        return as_backend(backends.load_embeddings(embeddings, **given))
    backend = as_backend(embeddings)
    if not backend.limits.embedding_size:
        raise BackendError(f"{backend!r} makes no embeddings")
    return backend


def choose_embeddings(embeddings: Any, lm: BaseBackend) -> Any:
    """Return the name or object of the embeddings that a parameter asks for; None for none.

    ``"auto"`` depends on the LM alone, not on what is installed: an LM that runs in this process
    costs nothing, and neither do the embedded embeddings; any other may cost money, and texts would
    go to another place. None and ``"none"`` are none.

    Parameters
    ----------
    embeddings : str, Backend or None
        As of `PromptBoostingClassifier`.
    lm : BaseBackend
        The LM.
    """
    if not isinstance(embeddings, str):
        return embeddings
    if embeddings == "auto":
        return EMBEDDED if lm.identity.provider in _IN_PROCESS else None
    return None if embeddings == "none" else embeddings


def default_embeddings(
    identity: BackendIdentity, where: str, model: str | Path | None = None
) -> tuple[str, str | Path | None]:
    """Return names of the embeddings that a saved model may load without being given any.

    As `default_backend`: only an embedding model of the catalogue is loaded so.

    Parameters
    ----------
    identity : BackendIdentity
        The embedding model of the training.
    where : str
        The model's file, for the message.
    model : str or Path, optional
        Another embedding model of the catalogue to use.

    Raises
    ------
    BackendError
        If the embedding model is not in the catalogue.
    """
    import backends

    known = backends.embeddings_of_catalogue(identity) if model is None else ("onnx", model)
    if known is None:
        raise BackendError(
            f"{where} reads embeddings of {identity.provider} {identity.model!r}, which doesn't "
            "load by itself: give embeddings (--embeddings, --embeddings-model)"
        )
    return known


def check_identity(trained: BackendIdentity, lm: BaseBackend, what: str = "LM") -> None:
    """Raise if the LM, or the embedding model, is not the one that a model was trained with.

    Another version of its engine is a warning: the answers differ in the last digits at most, as
    long as the engine has no error.

    Raises
    ------
    BackendIdentityError
        If the two identities differ; the message has the fields that differ.
    """
    differences = trained.differences(lm.identity)
    if differences:
        raise BackendIdentityError(
            f"another {what} answers than the one this model was trained with ("
            + "; ".join(differences)
            + f"): give the same {what}, or allow another (allow_other_lm, --allow-other-lm)"
        )
    now = lm.identity.engine
    if trained.engine and now and trained.engine != now:
        _log.warning(
            "this model was trained on the answers of %r, and %r answers now: last digits may "
            "differ; evaluate it again, or train it again, where that matters",
            trained.engine,
            now,
        )
