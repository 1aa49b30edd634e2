"""Parsing options, checking outputs and printing, as several commands do it."""

from __future__ import annotations

import json
import reprlib
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from blackbox.plurals import counted

__all__ = [
    "check_folder",
    "check_target",
    "describe_tokens",
    "echo_json",
    "is_model",
    "parse_backend_options",
    "percent",
    "read_trained",
    "refuse_model",
    "refuse_taken",
    "row_error",
    "say",
    "say_training_facts",
    "say_usage",
    "some_labels",
    "table_name",
    "table_rows",
]


_SHOWN = 5  # labels in a message

_SQLITE = b"SQLite format 3\0"


def truncated(n: int, context: str) -> str:
    """Return words for texts that were cut to fit a context, as `describe_context` has it."""
    return f"{counted(n, 'text')} truncated to fit the LM's context of {context}"


def say_training_facts(classifier: Any) -> None:
    """Print how good a model is on held-out rows, beside baselines, on standard error.

    The rows and classes, which come first among the facts, are shown before anything is paid.
    """
    from blackbox.model.display import printable
    from blackbox.model.summary import training_facts

    facts = training_facts(classifier.classes_.tolist(), classifier.training_summary_)
    for name, words in facts[1:]:
        say(f"{name:<20} {printable(words)}")


def say_usage(usage: Any) -> None:
    """Print one line about forward passes, tokens, cost and time, on standard error."""
    parts = [counted(usage.passes_made, "forward pass")]
    if usage.passes_from_store:
        parts.append(f"{usage.passes_from_store} more from the store")
    parts.append(counted(usage.tokens, "token"))
    if usage.tokens:
        parts[-1] += f" ({usage.tokens_evaluated} evaluated)"
    if usage.cost is None:
        parts.append("cost unknown")
    elif usage.cost:
        parts.append(f"${usage.cost:.4f}")
    parts.append(f"{usage.seconds_total:.0f} s")
    say(", ".join(parts))


def parse_backend_options(
    pairs: tuple[str, ...], option: str = "--backend-option"
) -> dict[str, Any]:
    """Return the options in NAME=VALUE pairs; a value that is JSON is parsed."""
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


def check_folder(out: str | Path, *inputs: str | Path | None) -> None:
    """Raise if an output's folder is missing or it is an input, before anything is spent."""
    from blackbox.tables.messages import is_address, public

    if is_address(str(out)):
        raise click.UsageError(
            f"--out {public(str(out))}: an address, for predict and collect with --ray; name a file"
        )
    if not Path(out).parent.is_dir():
        raise click.UsageError(f"--out {out}: there is no folder {Path(out).parent}")
    for read in inputs:
        if read not in (None, "-") and _is_same_file(out, Path(str(read))):
            raise click.UsageError(f"--out {out} is an input of this command: give another file")
    if _is_database(Path(out)):
        raise click.UsageError(
            f"--out {out} is a database, as stores of answers are, which it would replace: give "
            "another file"
        )


def _is_database(path: Path) -> bool:
    if not path.is_file():  # to open a pipe would wait for its other end
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError:
        return False  # it can't be read


def check_target(out: str | Path, *inputs: str | Path | None) -> None:
    """Raise if an output can't be written or is an input, before anything is spent."""
    check_folder(out, *inputs)
    try:
        target = Path(out).resolve()
        if target.exists() and not target.is_file():
            raise click.UsageError(f"--out {out}: it exists and is not a file")
        # only writing a file shows whether a folder is writable; its name is as long as that of
        # the one which is written later
        prefix, suffix = f".{target.name}.00000000", ".partial"
        with tempfile.NamedTemporaryFile(prefix=prefix, suffix=suffix, dir=target.parent):
            pass
    except OSError as error:
        raise click.UsageError(f"--out {out}: can't be written: {error.strerror}") from error


def _is_same_file(out: str | Path, read: Path) -> bool:
    try:
        return read.samefile(out)
    except OSError:
        return False  # one of them isn't there


def read_trained(model_path: Path, data: str | None = None) -> Any:
    """Return the model of a file; an error where it and the table are swapped says so."""
    from blackbox.errors import ModelFileError
    from blackbox.model.file import read_model

    try:
        return read_model(model_path)
    except ModelFileError:
        if data is not None and is_model(data):
            raise click.UsageError(
                f"{data} is the model and {model_path} isn't: the model comes first, then the table"
            ) from None
        raise


def input_columns(
    text_column: str, text_pair_column: str | None, image_column: str | None
) -> dict[str, Any]:
    """Return the columns of inputs as `read_examples` names them.

    Beside images there are texts only where their column was named.
    """
    if image_column is None:
        return {"text_column": text_column, "text_pair_column": text_pair_column}
    if text_pair_column is not None:
        raise click.UsageError("--image-column and --text-pair-column: drop one of them")
    source = click.get_current_context().get_parameter_source("text_column")
    is_named = source is not click.core.ParameterSource.DEFAULT
    return {
        "text_column": text_column if is_named else None,
        "text_pair_column": None,
        "image_column": image_column,
    }


def refuse_model(data: str) -> None:
    """Raise if a table is a trained model."""
    if is_model(data):
        raise click.UsageError(
            f"{data} is a trained model; give the table to train on, and --out for the model"
        )


def is_model(path: str | Path) -> bool:
    """Return whether a file is a trained model."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "model.json" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def some_labels(labels: Sequence[str]) -> str:
    """Return the first of some labels, for a message."""
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return ", ".join(map(reprlib.repr, labels[:_SHOWN])) + more


def table_name(data: str) -> str:
    """Return the name of a table in messages."""
    return "<stdin>" if data == "-" else data


def refuse_taken(
    added: list[str], columns: Collection[str], where: str, command: str = "predict"
) -> None:
    """Raise if a table has a column already that a command adds."""
    from blackbox.errors import DataError

    for column in added:
        if column in columns:
            raise DataError(f"{where}: column {column!r} exists, and {command} adds it; rename it")


def row_error(name: str, number: int, column: str, reason: str, n_more: int = 0) -> Exception:
    """Return the error for a row of a table that the LM could not answer."""
    from blackbox.errors import DataError

    more = f" (and {counted(n_more, 'other row')})" if n_more else ""
    return DataError(
        f"{name}, row {number}, column {column!r}: {reason}{more}; fix or remove it, or use "
        "--on-row-error abstain"
    )


@contextmanager
def table_rows(data: str, numbers: Sequence[int], column: str) -> Iterator[None]:
    """Name the row of the table where the library names one of what it was given.

    Parameters
    ----------
    data : str
        The table.
    numbers : sequence of int
        The number in the table of each row that was given.
    column : str
        The column of texts.
    """
    from blackbox.errors import DataError, RowError

    try:
        yield
    except RowError as error:
        if not error.reasons:
            raise
        first = min(error.reasons)
        reason, number, name = error.reasons[first], numbers[first], table_name(data)
        if str(error).startswith(f"row {first}: "):
            raise row_error(name, number, column, reason, len(error.reasons) - 1) from error
        at = f"{name}, row {number}, column {column!r}: {reason}"
        raise DataError(f"{error}; the first is {at}") from error


def say(message: str = "") -> None:
    """Print a line on standard error."""
    click.echo(message, err=True)


def echo_json(data: Any) -> None:
    """Print JSON on standard output, in ASCII: safe in any encoding and on any terminal."""
    click.echo(json.dumps(data, indent=2, allow_nan=False).replace("\x7f", "\\u007f"))


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * share:.1f}%"


def describe_tokens(tokens: list[tuple[str, int]], most: int = 8) -> str:
    """Return the tokens of one class as text; a minus marks those with a negative weight."""
    from blackbox.model.display import printable

    shown = [f"{'−' if weight < 0 else ''}“{printable(token)}”" for token, weight in tokens[:most]]
    more = len(tokens) - most
    return " ".join(shown) + (f" and {more} more" if more > 0 else "")
