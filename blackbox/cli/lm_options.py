"""Options that name a language model, and what they connect to."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from blackbox.cli.common import parse_backend_options
from blackbox.cli.help import option
from blackbox.cli.options import together

__all__ = [
    "LmOptions",
    "backend_options",
    "embeddings_model_options",
    "lm_options",
    "read_backend",
]

F = TypeVar("F", bound=Callable[..., Any])


_BELONGING = {
    "backend": ("model", "backend_option"),
    "embeddings": ("embeddings_model", "embeddings_option"),
    "writer_backend": ("writer_model", "writer_option"),
}


def read_backend(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Forget the settings for another backend, and let a class of the current folder be found.

    The callback of an option that is eager, so that it comes before those that belong to it.
    """
    settings = ctx.default_map or {}
    if value != settings.get(str(param.name), value):
        belonging = _BELONGING[str(param.name)]
        ctx.default_map = {k: v for k, v in settings.items() if k not in belonging}
    if value and ":" in value and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    return value


def _with_settings(
    ctx: click.Context, param: click.Parameter, given: tuple[str, ...]
) -> tuple[str, ...]:
    """Add the settings' options of the backend, in front of those that are given."""
    settings = (ctx.default_map or {}).get("backend_option", ())
    return given if tuple(settings) == given else (*settings, *given)


backend_options = together(
    option(
        "--backend",
        metavar="NAME",
        callback=read_backend,
        is_eager=True,
        group="Language model",
        help="What runs the LM: onnx, llamacpp, openai, vllm, transformers.  [default: onnx, or "
        "llamacpp for a .gguf file]",
    ),
    option(
        "--model",
        metavar="NAME|PATH",
        group="Language model",
        help="The LM: its name, or a file such as .gguf.",
    ),
    option(
        "--backend-option",
        "backend_option",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_with_settings,
        group="Language model",
        help="Another argument of the backend; can be repeated. For openai: base_url=URL, "
        "api_key_env=VARIABLE, api_version=VERSION (Azure), default_headers={...}, timeout=S.",
    ),
)


embeddings_model_options = together(
    option(
        "--embeddings-model",
        metavar="NAME|PATH",
        group="Language model",
        advanced=True,
        help="The embedding model, for --embeddings of an API or an engine.",
    ),
    option(
        "--embeddings-option",
        multiple=True,
        metavar="NAME=VALUE",
        group="Language model",
        advanced=True,
        help="Another argument of the embeddings; can be repeated.",
    ),
)


class LmOptions:
    """The LM, and the embedding model, that a command was told to use with a trained model."""

    def __init__(
        self,
        backend: str | None = None,
        model: str | Path | None = None,
        backend_option: tuple[str, ...] = (),
        embeddings: str | None = None,
        embeddings_model: str | Path | None = None,
        embeddings_option: tuple[str, ...] = (),
        allow_other_lm: bool = False,
    ) -> None:
        self._backend, self._model = backend, model
        self._options = parse_backend_options(backend_option)
        self._embeddings = embeddings, embeddings_model
        self._embeddings_options = parse_backend_options(embeddings_option, "--embeddings-option")
        self._allow_other_lm = allow_other_lm

    def named(self, trained: Any, path: Path) -> tuple[str, str | Path | None]:
        """Return the names of the backend and of the LM; raise where they have to be given.

        Parameters
        ----------
        trained, path
            As for `connect`.
        """
        from blackbox.lm.connect import default_backend

        if self._backend is None:
            return default_backend(trained.identity, str(path), self._model)
        return self._backend, self._model

    def described(self, trained: Any = None, path: Path = Path()) -> dict[str, str]:
        """Return what decides which LM answers, by names for people, without a credential.

        The options of a backend are in it where no identity of a trained model's LM is checked:
        elsewhere those that change an answer are refused by that.

        Parameters
        ----------
        trained : Model, optional
            The model, where there is one.
        path : Path
            Its file, for messages.
        """
        from backends.api.credentials import without_credentials
        from blackbox.cluster.actor import RATE_LIMITS

        named = (self._backend, self._model) if trained is None else self.named(trained, path)
        found = {"language model": " ".join(map(str, named))}
        if trained is not None and not self._allow_other_lm:
            return found
        options = {k: v for k, v in self._options.items() if k not in RATE_LIMITS}
        embeddings = [*map(str, self._embeddings), self._embeddings_options]
        shown = json.dumps(without_credentials([options, embeddings]), sort_keys=True)
        return found | {
            "--allow-other-lm": str(self._allow_other_lm),
            "--backend-option": hashlib.sha256(shown.encode()).hexdigest(),
        }

    def has_rate_limit(self) -> bool:
        """Return whether a limit on the rate of requests was given."""
        from blackbox.cluster.actor import RATE_LIMITS

        return any(limit in self._options for limit in RATE_LIMITS)

    def connect_alone(self, *, images: bool = False) -> Any:
        """Return the LM that is named, without a trained model; by default the embedded one.

        Parameters
        ----------
        images : bool, default=False
            Whether it is asked about images.
        """
        from blackbox.lm.connect import connect

        return connect(self._backend, self._model, self._options, images=images)

    def shared_by(self, n: int) -> LmOptions:
        """Return these options for one of n that share the rate limits in them."""
        from blackbox.cluster.actor import with_rate_share

        one = copy.copy(self)
        for name in ("_options", "_embeddings_options"):
            setattr(one, name, with_rate_share(getattr(self, name), n))
        return one

    def connect(self, trained: Any, path: Path) -> Any:
        """Return the LM for a trained model: the one that is named, or the catalogue's.

        Parameters
        ----------
        trained : Model
            The model.
        path : Path
            Its file, for messages.
        """
        from blackbox.lm.connect import check_identity, connect

        lm = connect(
            *self.named(trained, path), self._options, images=trained.input_kind == "image"
        )
        if not self._allow_other_lm:
            check_identity(trained.identity, lm)
        return lm

    def connect_embedder(self, trained: Any, path: Path) -> Any:
        """Return the embedding model of a trained model as `connect` does; None if it reads none.

        Parameters
        ----------
        trained, path
            As for `connect`.
        """
        from blackbox.lm.connect import check_identity, connect_embeddings, default_embeddings

        if trained.embedder_identity is None:
            return None
        found = self._embeddings
        if found[0] is None:
            found = default_embeddings(trained.embedder_identity, str(path), found[1])
        embedder = connect_embeddings(*found, self._embeddings_options)
        if not self._allow_other_lm:
            check_identity(trained.embedder_identity, embedder, "embedding model")
        return embedder


_embeddings_option = option(
    "--embeddings",
    metavar="NAME",
    callback=read_backend,
    is_eager=True,
    group="Language model",
    advanced=True,
    help="The embedding model, where the model was trained with one that is not of the catalogue: "
    "openai, vllm, transformers.",
)
_other_lm_option = option(
    "--allow-other-lm",
    is_flag=True,
    group="Language model",
    advanced=True,
    help="Accept another LM than the one that the model was trained with.",
)
_add_lm_options = together(
    backend_options, _embeddings_option, embeddings_model_options, _other_lm_option
)


def lm_options(function: F) -> F:
    """Add the options that name the LM of a trained model; the command gets them as `lm`."""

    @functools.wraps(function)
    def collected(*args: Any, **kwargs: Any) -> Any:
        names = (
            "backend",
            "model",
            "backend_option",
            "embeddings",
            "embeddings_model",
            "embeddings_option",
            "allow_other_lm",
        )
        return function(*args, lm=LmOptions(*(kwargs.pop(name) for name in names)), **kwargs)

    return cast(F, _add_lm_options(collected))
