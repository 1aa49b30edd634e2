"""Options that several commands share."""

from __future__ import annotations

import copy
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from blackbox.cli.common import parse_backend_options
from blackbox.cli.help import option

__all__ = [
    "FORMATS",
    "JOB_FOLDER",
    "STORE",
    "LmOptions",
    "SpendingOptions",
    "backend_options",
    "check_early_stop",
    "column_options",
    "early_stop_option",
    "embeddings_model_options",
    "empty_texts",
    "encoding_options",
    "find_classes_here",
    "format_option",
    "json_option",
    "label_column_option",
    "labels_options",
    "lm_options",
    "row_policy_option",
    "seed_option",
    "spending_options",
    "together",
]

F = TypeVar("F", bound=Callable[..., Any])

STORE = "blackbox.cli.options.store"
"""Where a context's `meta` has the store of a command; see `find_store`."""

JOB_FOLDER = "blackbox.cli.options.job_folder"
"""Where it has the folder that a job on a cluster writes, once that is claimed."""

FORMATS = ("csv", "tsv", "jsonl", "parquet", "feather", "excel")
"""Those that `blackbox.tables` reads, which is not imported for a help."""


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Return a decorator that adds several options, the first one on top."""

    def add(function: F) -> F:
        for one in reversed(options):
            function = one(function)
        return function

    return add


json_option = option(
    "--json", "as_json", is_flag=True, group="Output", help="Print the result as JSON."
)
format_option = option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    group="Data",
    advanced=True,
    help="Format of DATA.  [default: by its file extension]",
)


def _delimiter(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return "\t" if value in ("tab", "\\t") else value


def _separator(value: str | None) -> str | None:
    """Return a separator of labels, of which one is a character."""
    if value is not None and not value.strip():
        raise click.BadParameter('blanks are in labels too; give a character such as ";"')
    return value


encoding_options = together(
    option(
        "--delimiter",
        metavar="CHARACTER",
        callback=_delimiter,
        group="Data",
        advanced=True,
        help='What stands between the columns of a CSV file; "tab" is a tab.  [default: as its '
        "first line shows]",
    ),
    option(
        "--encoding",
        group="Data",
        advanced=True,
        help="Encoding of DATA, such as windows-1252 or utf-16.  [default: UTF-8, or what DATA "
        "shows]",
    ),
)
escape_formulas_option = option(
    "--escape-formulas",
    is_flag=True,
    group="Output",
    advanced=True,
    help="In CSV and TSV, write a ' before each cell that a spreadsheet program would run as a "
    "formula: one that begins with =, +, -, @, a tab or CR and is no number.",
)
label_column_option = option(
    "--label-column",
    metavar="COLUMN",
    default="label",
    show_default=True,
    group="Data",
    help="Column of labels.",
)
labels_options = together(
    option(
        "--label-column",
        "label_columns",
        metavar="COLUMN",
        default=("label",),
        multiple=True,
        show_default=True,
        group="Data",
        help="Column of labels. Repeated, each is a label that a text may have, with 0 or 1 in its "
        "column.",
    ),
    option(
        "--label-separator",
        metavar="TEXT",
        callback=lambda ctx, parameter, value: _separator(value),
        group="Data",
        help='Texts have several labels: this stands between them in a cell, such as ";"; lists '
        "are read too. A text without any has [].",
    ),
)
_other_lm_option = option(
    "--allow-other-lm",
    is_flag=True,
    group="Language model",
    advanced=True,
    help="Accept another LM than the one that the model was trained with.",
)
row_policy_option = option(
    "--on-row-error",
    type=click.Choice(["raise", "abstain"]),
    default="raise",
    show_default=True,
    group="Data",
    help="On a text that the LM refuses, or that is empty: stop with an error, or go on without "
    "an answer to it. Without this option, empty texts of a labelled table are left out.",
)


def empty_texts(on_row_error: str) -> str:
    """Return what `read_examples` does with an empty text: by default, it is left out.

    Parameters
    ----------
    on_row_error : str
        The value of `--on-row-error`: an error only where somebody asked for it.
    """
    if on_row_error == "abstain":
        return "keep"
    source = click.get_current_context().get_parameter_source("on_row_error")
    return "drop" if source in (None, ParameterSource.DEFAULT) else "raise"


early_stop_option = option(
    "--early-stop",
    type=click.Choice(["exact", "risk"]),
    group="Limits and cost",
    help="Early stopping: ask prompt after prompt only until the label is certain (exact), or "
    "would change with a probability of about 0.5% (risk). Gives labels without probabilities.",
)


def _check_seed(ctx: click.Context, param: click.Parameter, seed: int) -> int:
    if not 0 <= seed < 2**32:
        raise click.BadParameter(f"{seed} is not from 0 to {2**32 - 1}")
    return seed


seed_option = option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    callback=_check_seed,
    group="Learning",
    help="Random seed.",
)


column_options = together(
    option(
        "--text-column",
        metavar="COLUMN",
        default="text",
        show_default=True,
        group="Data",
        help="Column of texts.",
    ),
    option(
        "--text-pair-column",
        metavar="COLUMN",
        group="Data",
        advanced=True,
        help="Column of the second texts, to classify pairs of texts.",
    ),
    option(
        "--image-column",
        metavar="COLUMN",
        group="Data",
        advanced=True,
        help="Column of images, to classify them: paths, relative to the table. With --text-column "
        "there is a text beside each.",
    ),
)


def _backend(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Forget the settings for another backend, and find a class of the current folder."""
    settings = ctx.default_map or {}
    if value != settings.get("backend", value):
        ctx.default_map = {
            k: v for k, v in settings.items() if k not in ("model", "backend_option")
        }
    return find_classes_here(ctx, param, value)


def find_classes_here(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Let a class of the current folder, given as module:Class, be found; an option's callback."""
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
        callback=_backend,
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

    def described(self) -> dict[str, str]:
        """Return the names of the backend and of the LM that were given."""
        return {"backend": str(self._backend), "model": str(self._model)}

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
    callback=find_classes_here,
    group="Language model",
    advanced=True,
    help="The embedding model, where the model was trained with one that is not of the catalogue: "
    "openai, vllm, transformers.",
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


class SpendingOptions:
    """The budgets of a command, and its store of answers."""

    def __init__(self, store: Any, limits: dict[str, Any]) -> None:
        self._store = store
        self._limits = limits
        self._started = time.monotonic()

    def parameters(self) -> dict[str, Any]:
        """Return the estimator's parameters; seconds run from the start of the command."""
        left = dict(self._limits)
        if left["max_seconds"] is not None:
            left["max_seconds"] = max(0.0, left["max_seconds"] - (time.monotonic() - self._started))
        return {"store": self._store, **left}

    def clients(self, *connects: Callable[[], Any]) -> list[Any]:
        """Return what each of `connects` reaches, behind the store and one budget; None stays."""
        from blackbox.lm.budgets import Budget, Meter
        from blackbox.lm.client import with_store_and_budget

        limits = self.parameters()
        store, budget = limits.pop("store"), Budget(**limits)
        meter = Meter(budget)
        with meter.charging():  # what connecting takes is in the budget
            reached = [connect() for connect in connects]
        return [
            None if one is None else with_store_and_budget(one, store, budget, meter)
            for one in reached
        ]


_LIMITS = ("max_forward_passes", "max_tokens", "max_cost", "max_seconds")
_add_spending_options = together(
    option(
        "--max-forward-passes",
        type=click.IntRange(min=0),
        metavar="N",
        group="Limits and cost",
        help="Limit on the forward passes.",
    ),
    option(
        "--max-cost",
        type=click.FloatRange(min=0),
        metavar="USD",
        group="Limits and cost",
        help="Limit on the cost in US dollars.",
    ),
    option(
        "--max-tokens",
        type=click.IntRange(min=0),
        metavar="N",
        group="Limits and cost",
        advanced=True,
        help="Limit on the tokens sent.",
    ),
    option(
        "--max-seconds",
        type=click.FloatRange(min=0),
        metavar="S",
        group="Limits and cost",
        advanced=True,
        help="Send no request after so many seconds.",
    ),
    option(
        "--store",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        group="Limits and cost",
        advanced=True,
        help="File that stores the LM's answers, so that none is asked for twice.  [default: in "
        "the cache directory]",
    ),
    option(
        "--no-store",
        is_flag=True,
        group="Limits and cost",
        advanced=True,
        help="Store no answers; a run that is killed then starts anew.",
    ),
    option(
        "--store-max-bytes",
        type=click.IntRange(min=1),
        metavar="N",
        group="Limits and cost",
        advanced=True,
        help="Size above which the store evicts the least recently used answers.  [default: 5 GB]",
    ),
)


def max_error_option(function: F) -> F:
    """Add `--max-error`."""
    return option(
        "--max-error",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        metavar="SHARE",
        group="Output",
        help="Give only labels of which at most this share is wrong, such as 0.05, and leave the "
        "other texts to a person. The threshold comes from held-out rows of the training.",
    )(function)


def check_early_stop(trained: Any, model_path: Path, early_stop: str | None) -> None:
    """Raise if predictions of a model can't stop early by a rule."""
    if early_stop is not None and trained.several_labels:
        raise click.UsageError(
            f"{model_path} gives several labels per text, and --early-stop settles one: drop it"
        )
    if early_stop == "risk" and not trained.ensemble.early_stopping.knows_risk:
        raise click.UsageError(f"{model_path} has no thresholds for --early-stop risk: use exact")
    try:
        trained.check_early_stop(early_stop)
    except ValueError as error:
        raise click.UsageError(f"{model_path}: --early-stop {early_stop}: {error}") from None


def promise_of(trained: Any, max_error: float | None) -> Any:
    """Return the model's promise of an error rate, or None; raise where it can't be given."""
    if max_error is None:
        return None
    try:
        return trained.promise(max_error)
    except ValueError as error:
        raise click.UsageError(f"--max-error {max_error:g}: {error}") from None


def spending_options(function: F) -> F:
    """Add the options of the store and of budgets; the command gets them as `spending`."""

    @functools.wraps(function)
    def collected(
        *args: Any, store: Path | None, no_store: bool, store_max_bytes: int | None, **kwargs: Any
    ) -> Any:
        ctx = click.get_current_context()
        if no_store and store is not None:
            # from the command line, the environment or the settings: the first that has one wins
            default = ParameterSource.DEFAULT
            names = ("store", "no_store")
            found = [ctx.get_parameter_source(name) or default for name in names]
            if found[0] is found[1]:
                raise click.UsageError("--store and --no-store contradict each other")
            no_store = min(found, key=lambda source: source.value) is found[1]
        limits = {name: kwargs.pop(name) for name in _LIMITS}
        kept: Any = False if no_store else store
        if store_max_bytes is not None and not no_store:
            from blackbox.lm.client import find_store

            kept = find_store(store)
            if kept is not None:
                kept.max_bytes = store_max_bytes
        ctx.meta[STORE] = kept
        return function(*args, spending=SpendingOptions(kept, limits), **kwargs)

    return cast(F, _add_spending_options(collected))
