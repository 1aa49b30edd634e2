"""Options and output that several commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = [
    "Progress",
    "backend_options",
    "check_folder",
    "column_options",
    "describe_tokens",
    "echo_json",
    "format_option",
    "json_option",
    "open_model",
    "other_lm_option",
    "parse_backend_options",
    "percent",
    "row_policy_option",
    "say",
    "seed_option",
    "shown_model",
    "table_name",
]

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
format_option = click.option(
    "--format", "format_", type=click.Choice(["csv", "tsv", "jsonl", "parquet"]),
    help="Format of DATA; by default its ending says it.",
)  # fmt: skip
other_lm_option = click.option(
    "--allow-other-lm", is_flag=True, help="Accept another LM than the one of the training."
)
row_policy_option = click.option(
    "--on-row-error", type=click.Choice(["raise", "abstain"]), default="raise", show_default=True,
    help="Rows that are empty or that the LM refuses: stop, or go on without an answer.",
)  # fmt: skip


def _check_seed(ctx: click.Context, param: click.Parameter, seed: int) -> int:
    if not 0 <= seed < 2**32:
        raise click.BadParameter(f"{seed} is not from 0 to {2**32 - 1}")
    return seed


seed_option = click.option(
    "--seed", type=int, default=0, show_default=True, callback=_check_seed,
    help="Seed of all that is drawn.",
)  # fmt: skip


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
        "--backend-option", "backend_option", multiple=True, metavar="NAME=VALUE",
        help="One more argument for the backend; may be repeated.",
    )(function)  # fmt: skip
    function = click.option(
        "--model", metavar="NAME|PATH", help="The LM: a name of the catalogue, or a .gguf file."
    )(function)
    return click.option("--backend", metavar="NAME", help="What runs the LM.  [default: llamacpp]")(
        function
    )


def parse_backend_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE pairs; a value that is JSON (a number, true, null) is taken as such."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--backend-option takes NAME=VALUE, got {pair!r}")
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
    on_row_error: str = "raise",
) -> Any:
    """A trained model; its LM is reached when it is used."""
    from blackbox import load_model

    return load_model(
        path,
        backend=backend,
        model=model,
        backend_options=parse_backend_options(backend_option),
        allow_other_lm=allow_other_lm,
        on_row_error=on_row_error,
    )


def check_folder(out: str | Path) -> None:
    """Refuse an output whose folder is missing, before anything is spent."""
    if not Path(out).parent.is_dir():
        raise click.UsageError(f"--out {out}: there is no folder {Path(out).parent}")


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
    from blackbox.explain import printable

    shown = [f"{'−' if sign < 0 else ''}“{printable(token)}”" for token, sign in tokens[:most]]
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
