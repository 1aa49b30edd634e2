"""Options and output that several commands share."""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

__all__ = [
    "Progress",
    "SpendingOptions",
    "backend_options",
    "check_folder",
    "check_target",
    "column_options",
    "describe_tokens",
    "early_stop_option",
    "echo_json",
    "format_option",
    "json_option",
    "open_model",
    "other_lm_option",
    "parse_backend_options",
    "percent",
    "row_policy_option",
    "say",
    "say_usage",
    "seed_option",
    "shown_model",
    "spending_options",
    "table_name",
]

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
format_option = click.option(
    "--format",
    "format_",
    type=click.Choice(["csv", "tsv", "jsonl", "parquet"]),
    help="Format of DATA; by default its ending says it.",
)
other_lm_option = click.option(
    "--allow-other-lm", is_flag=True, help="Accept another LM than the one of the training."
)
row_policy_option = click.option(
    "--on-row-error",
    type=click.Choice(["raise", "abstain"]),
    default="raise",
    show_default=True,
    help="Rows that are empty or that the LM refuses: stop, or go on without an answer.",
)
early_stop_option = click.option(
    "--early-stop",
    type=click.Choice(["exact", "risk"]),
    help="Ask prompt after prompt until a label is settled: for certain, or at a risk of about "
    "half a percent. Gives labels and no probabilities.",
)


def _check_seed(ctx: click.Context, param: click.Parameter, seed: int) -> int:
    if not 0 <= seed < 2**32:
        raise click.BadParameter(f"{seed} is not from 0 to {2**32 - 1}")
    return seed


seed_option = click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    callback=_check_seed,
    help="Seed of all that is drawn.",
)


def column_options(function: F) -> F:
    """Add the options that name the text columns."""
    function = click.option(
        "--text-pair-column", metavar="COLUMN", help="Column of the second text of a pair."
    )(function)
    return click.option(
        "--text-column",
        metavar="COLUMN",
        default="text",
        show_default=True,
        help="Column of texts.",
    )(function)


def backend_options(function: F) -> F:
    """Add the options that name the LM."""
    function = click.option(
        "--backend-option",
        "backend_option",
        multiple=True,
        metavar="NAME=VALUE",
        help="One more argument for the backend; may be repeated.",
    )(function)
    function = click.option(
        "--model", metavar="NAME|PATH", help="The LM: a name of the catalogue, or a .gguf file."
    )(function)
    return click.option("--backend", metavar="NAME", help="What runs the LM.  [default: llamacpp]")(
        function
    )


class SpendingOptions:
    """What a command may spend, and where it keeps what it paid for."""

    def __init__(self, store: Any, limits: dict[str, Any]) -> None:
        self._store = store
        self._limits = limits
        self._started = time.monotonic()

    def parameters(self, spent: Any = None) -> dict[str, Any]:
        """The estimator's parameters: the budgets less what was spent so far (a `Usage`)."""
        left = dict(self._limits)
        if left["max_seconds"] is not None:
            left["max_seconds"] = max(0.0, left["max_seconds"] - (time.monotonic() - self._started))
        if spent is not None:
            for name, amount in (
                ("max_forward_passes", spent.passes_made),
                ("max_tokens", spent.tokens),
                ("max_cost", spent.cost or 0.0),
            ):
                if left[name] is not None:
                    left[name] = max(0, left[name] - amount)
        return {"store": self._store, **left}


def spending_options(function: F) -> F:
    """Add the options of the store and of budgets; the command gets them as `spending`."""

    @functools.wraps(function)
    def collected(
        *args: Any, store: Path | None, no_store: bool, store_max_bytes: int | None, **kwargs: Any
    ) -> Any:
        if no_store and store is not None:
            raise click.UsageError("--store and --no-store contradict each other")
        limits = {name: kwargs.pop(name) for name in _LIMITS}
        kept: Any = False if no_store else store
        if store_max_bytes is not None and not no_store:
            from blackbox.lm.client import find_store

            kept = find_store(store)
            if kept is not None:
                kept.max_bytes = store_max_bytes
        return function(*args, spending=SpendingOptions(kept, limits), **kwargs)

    for option in (
        click.option(
            "--max-seconds",
            type=click.FloatRange(min=0),
            metavar="S",
            help="Begin no request later than this.",
        ),
        click.option(
            "--max-cost",
            type=click.FloatRange(min=0),
            metavar="USD",
            help="Spend no more US dollars than this.",
        ),
        click.option(
            "--max-tokens",
            type=click.IntRange(min=0),
            metavar="N",
            help="Send no more tokens than this.",
        ),
        click.option(
            "--max-forward-passes",
            type=click.IntRange(min=0),
            metavar="N",
            help="Make no more forward passes than this.",
        ),
        click.option(
            "--store-max-bytes",
            type=click.IntRange(min=1),
            metavar="N",
            help="Beyond this size the least recently used answers go.  [default: 5 GB]",
        ),
        click.option("--no-store", is_flag=True, help="Keep no answers of the LM."),
        click.option(
            "--store",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Where answers of the LM are kept.  [default: the cache directory]",
        ),
    ):
        collected = option(collected)
    return cast(F, collected)


_LIMITS = ("max_forward_passes", "max_tokens", "max_cost", "max_seconds")


def say_usage(usage: Any) -> None:
    """What work took, in one line for people."""
    parts = [f"{usage.passes_made} forward passes"]
    if usage.passes_from_store:
        parts.append(f"{usage.passes_from_store} more from the store")
    parts.append(f"{usage.tokens} tokens")
    if usage.tokens:
        parts[-1] += (
            f" ({usage.tokens_evaluated} evaluated; a perfect prefix cache needs "
            f"{usage.tokens_least})"
        )
    if usage.cost is None:
        parts.append("cost unknown")
    elif usage.cost:
        parts.append(f"${usage.cost:.4f}")
    parts.append(f"{usage.seconds_total:.0f} s")
    say(", ".join(parts))


def parse_backend_options(
    pairs: tuple[str, ...], option: str = "--backend-option"
) -> dict[str, Any]:
    """NAME=VALUE pairs; a value that is JSON (a number, true, null) is taken as such."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{option} takes NAME=VALUE, got {pair!r}")
        try:
            options[name.replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            options[name.replace("-", "_")] = value
    return options


def open_model(
    path: Path,
    *,
    backend: str | None,
    model: str | None,
    backend_option: tuple[str, ...],
    allow_other_lm: bool,
    spending: SpendingOptions | None = None,
    on_row_error: str = "raise",
) -> Any:
    """A trained model; its LM is reached when it is used."""
    from blackbox import load_model

    classifier = load_model(
        path,
        backend=backend,
        model=model,
        backend_options=parse_backend_options(backend_option),
        allow_other_lm=allow_other_lm,
        on_row_error=on_row_error,
    )
    if spending is not None:
        classifier.set_params(**spending.parameters())
    return classifier


def check_folder(out: str | Path) -> None:
    """Refuse an output whose folder is missing, before anything is spent."""
    if not Path(out).parent.is_dir():
        raise click.UsageError(f"--out {out}: there is no folder {Path(out).parent}")


def check_target(out: Path) -> None:
    """Refuse an output that can't be written, before anything is spent."""
    check_folder(out)
    try:
        target = out.resolve()
        if target.exists() and not target.is_file():
            raise click.UsageError(f"--out {out}: it is there and is no file")
        # whether a folder takes a file is known when it has taken one
        with tempfile.NamedTemporaryFile(prefix=f".{target.name}.", dir=target.parent):
            pass
    except OSError as error:
        raise click.UsageError(f"--out {out}: can't be written: {error.strerror}") from error


def table_name(data: str) -> str:
    """What messages call a table."""
    return "<stdin>" if data == "-" else data


def say(message: str = "") -> None:
    """A line for people, on standard error."""
    click.echo(message, err=True)


def echo_json(data: Any) -> None:
    """JSON on standard output, in ASCII: no encoding spoils it, and it steers no terminal."""
    click.echo(json.dumps(data, indent=2, allow_nan=False).replace("\x7f", "\\u007f"))


def percent(share: float) -> str:
    """A share as people read it."""
    return f"{100 * share:.1f}%"


def describe_tokens(tokens: list[tuple[str, int]], most: int = 8) -> str:
    """Tokens of one class in words; a minus stands before those that speak against it."""
    from blackbox.model.display import printable

    shown = [f"{'−' if weight < 0 else ''}“{printable(token)}”" for token, weight in tokens[:most]]
    more = len(tokens) - most
    return " ".join(shown) + (f" and {more} more" if more > 0 else "")


class Progress:
    """Progress bars on standard error where that is a terminal; silent elsewhere."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is; see the estimator's `callback`."""
        if not sys.stderr.isatty():
            return
        if self._bar is None or stage != self._stage or total != self._bar.total:
            from tqdm import tqdm

            self.close()
            self._stage = stage
            self._bar = tqdm(total=total, desc=stage, file=sys.stderr, leave=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def shown_model(saved: Any) -> Any:
    """A classifier that can be looked at and not asked: it has no LM."""
    from blackbox import PromptBoostingClassifier

    classifier = PromptBoostingClassifier(prompts=saved.prompts)
    classifier.restore(saved)
    return classifier
