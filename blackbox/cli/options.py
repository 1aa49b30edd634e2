"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from blackbox.cli.help import option

__all__ = [
    "FORMATS",
    "JOB_FOLDER",
    "STORE",
    "FiniteRange",
    "check_early_stop",
    "column_options",
    "early_stop_option",
    "empty_texts",
    "encoding_options",
    "format_option",
    "json_option",
    "label_column_option",
    "labels_options",
    "row_policy_option",
    "seed_option",
    "together",
]

F = TypeVar("F", bound=Callable[..., Any])

STORE = "blackbox.cli.options.store"
"""Where a context's `meta` has the store of a command; see `find_store`."""

JOB_FOLDER = "blackbox.cli.options.job_folder"
"""Where it has the folder that a job on a cluster writes, once that is claimed."""

FORMATS = ("csv", "tsv", "jsonl", "parquet", "feather", "excel")
"""Those that `blackbox.tables` reads, which is not imported for a help."""


class FiniteRange(click.FloatRange):
    """A range of finite numbers: NaN is below no minimum and above no maximum."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return float(found)


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


def max_error_option(function: F) -> F:
    """Add `--max-error`."""
    return option(
        "--max-error",
        type=FiniteRange(0, 1, min_open=True, max_open=True),
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
