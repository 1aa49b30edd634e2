"""`blackbox suggest`."""

from __future__ import annotations

import difflib
import math
import random
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from blackbox.cli import common
from blackbox.cli.help import Command, option
from blackbox.cli.lm_options import LmOptions, lm_options
from blackbox.cli.options import (
    column_options,
    encoding_options,
    escape_formulas_option,
    format_option,
    json_option,
    label_column_option,
)
from blackbox.cli.predict import check_kind
from blackbox.cli.spending_options import SpendingOptions, spending_options
from blackbox.plurals import counted
from blackbox.progress import ProgressDisplay

_NEAR = 0.8  # likeness of two names, from 0 to 1


@click.command(
    "suggest",
    cls=Command,
    example="blackbox suggest messages.blackbox new.csv --n 20 --out to-label.csv",
)
@click.argument("model_path", metavar="MODEL", type=click.Path(path_type=Path))
@click.argument("data")
@option(
    "--n",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    metavar="N",
    group="Output",
    help="Number of texts to suggest.",
)
@option(
    "--out",
    metavar="FILE",
    group="Output",
    help='The table to label.  [default: standard output, also "-"]',
)
@escape_formulas_option
@option(
    "--candidates",
    "n_candidates",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    metavar="N",
    group="Limits and cost",
    help="Ask the LM about so many rows without a label, drawn at random where DATA has more.",
)
@label_column_option
@column_options
@format_option
@encoding_options
@lm_options
@spending_options
@json_option
def command(
    model_path: Path,
    data: str,
    n: int,
    out: str | None,
    escape_formulas: bool,
    n_candidates: int,
    label_column: str,
    text_column: str,
    text_pair_column: str | None,
    image_column: str | None,
    format_: str | None,
    delimiter: str | None,
    encoding: str | None,
    lm: LmOptions,
    as_json: bool,
    spending: SpendingOptions,
) -> None:
    """Suggest which texts in DATA to label next, so that MODEL learns most from them.

    Writes their rows, first the text to label first, with an empty column of labels, the
    `prediction` of MODEL and its `probability`. Each stands for a cluster of texts, so near-copies
    aren't suggested together, and clusters of which MODEL is uncertain come first. Rows that have a
    label, and texts that MODEL was trained on with one, are left out. MODEL may be one that saw no
    label.
    """
    from blackbox.model.suggestion import NO_SEVERAL, suggest
    from blackbox.tables import TableReader, TableWriter

    if as_json and out == "-":
        raise click.UsageError("--json and --out - would both write to standard output")
    target = out or "-"
    if target != "-":
        common.check_folder(target, model_path, data)
    trained = common.read_trained(model_path, data)
    if trained.several_labels:
        raise click.UsageError(f"{model_path}: {NO_SEVERAL}")
    named = common.input_columns(text_column, text_pair_column, image_column)
    check_kind(trained, text_pair_column, image_column)
    texts = [column for column in named.values() if column is not None]
    added = ["prediction", "probability"]
    started = time.perf_counter()
    with TableReader(data, format=format_, delimiter=delimiter, encoding=encoding) as reader:
        reader.require(*texts)
        common.refuse_taken(added, reader.columns, reader.name, "suggest")
        _check_label_column(reader, label_column)
        drawn = _draw(reader, texts, label_column, n_candidates, image_column)
        for row in drawn.rows:  # before anything is paid
            common.refuse_taken(added, row.values, f"{reader.name}, row {row.number}", "suggest")
        client, embedder = spending.clients(
            lambda: lm.connect(trained, model_path),
            lambda: lm.connect_embedder(trained, model_path),
        )
        columns = [*dict.fromkeys([*reader.columns, label_column]), *added]
        writer = None
        with ExitStack() as open_files:
            if not as_json or target != "-":  # what can't be written is known before it is paid
                writer = open_files.enter_context(
                    TableWriter(target, columns, like=reader, escape_formulas=escape_formulas)
                )
            progress = ProgressDisplay()
            found = suggest(trained, client, drawn.texts, n, embedder=embedder, progress=progress)
            progress.close()
            rows = [drawn.rows[place] for place in found.rows.tolist()]
            answers = list(zip(found.labels.tolist(), found.probabilities.tolist(), strict=True))
            if writer is not None:
                for row, (label, share) in zip(rows, answers, strict=True):
                    empty = {} if label_column in row.values else {label_column: None}
                    new = {"prediction": str(label), "probability": _rounded(share)}
                    writer.write(empty | new, row)
    usage = replace(found.usage, seconds_total=time.perf_counter() - started)
    if as_json:
        suggestions = [
            {
                "row": row.number,
                **{c: row.values[c] for c in texts if not isinstance(row.values[c], bytes)},
                "prediction": str(label),
                "probability": _rounded(share),
            }
            for row, (label, share) in zip(rows, answers, strict=True)
        ]
        counts = {
            "rows": drawn.n_open,
            "labelled": drawn.n_labelled,
            "candidates": found.n_candidates,
            "trained_on": found.n_trained_on,
            "copies": drawn.n_copies + found.n_copies,
            "abstained": len(found.row_errors),
            "truncated": len(found.truncated_rows),
        }
        common.echo_json(
            {"suggestions": suggestions, **counts, "out": out, "usage": usage.as_dict()}
        )
        return
    _say(found, drawn, target, label_column)
    if found.truncated_rows:
        common.say(common.truncated(len(found.truncated_rows), client.describe_context()))
    common.say_usage(usage)


def _check_label_column(reader: Any, label_column: str) -> None:
    """Raise for a column of labels that is lacking and nearly has the name of another.

    One that is lacking is added, and all rows would count as without a label.
    """
    near = difflib.get_close_matches(label_column, reader.columns, 1, _NEAR)
    if label_column not in reader.columns and near:
        raise click.UsageError(
            f"--label-column {label_column}: {reader.name} has no such column; did you mean "
            f"{near[0]!r}?"
        )


@dataclass
class _Drawn:
    """Rows of a table without a label, drawn at random where there are many.

    Parameters
    ----------
    rows : list of Row
        The rows.
    texts : list of str, or of (str, str)
        Their texts; "" for those that can't be used.
    n_open, n_labelled : int
        Rows of the table without a label, and with one.
    n_copies : int
        Drawn rows that were left out, as their texts have a label in another row.
    """

    rows: list[Any] = field(default_factory=list)
    texts: list[Any] = field(default_factory=list)
    n_open: int = 0
    n_labelled: int = 0
    n_copies: int = 0


def _draw(
    reader: Any, columns: list[str], label_column: str, n: int, image_column: str | None
) -> _Drawn:
    """Return n rows without a label, by reservoir sampling (Vitter 1985): a table may be large.

    Those whose texts have a label in another row are left out of them.

    Raises
    ------
    DataError
        If there are none.
    """
    from blackbox.answers.texts import check_texts, row_digests
    from blackbox.errors import DataError
    from blackbox.tables import is_open, texts_of_rows

    def texts_of(rows: list[Any]) -> list[Any]:
        return texts_of_rows(rows, columns, reader.name, image_column=image_column)[0]

    def digest_of(text: Any) -> int | None:
        checked = check_texts([text])
        return None if checked.refused else int(row_digests(checked)[0])

    rng, drawn, labelled = random.Random(0), _Drawn(), set[int | None]()
    for row in reader:
        if not is_open(row, label_column):
            drawn.n_labelled += 1
            labelled.add(digest_of(texts_of([row])[0]))
            continue
        drawn.n_open += 1
        place = len(drawn.rows) if len(drawn.rows) < n else rng.randrange(drawn.n_open)
        if place == len(drawn.rows):
            drawn.rows.append(row)
        elif place < n:
            drawn.rows[place] = row
    if not drawn.rows:
        raise DataError(
            f"{reader.name}: all {drawn.n_labelled} rows have a label in column {label_column!r}"
            if drawn.n_labelled
            else f"{reader.name}: has columns but no rows; add texts"
        )
    drawn.rows.sort(key=lambda row: row.number)
    texts, n_drawn = texts_of(drawn.rows), len(drawn.rows)
    labelled.discard(None)
    new = [place for place, text in enumerate(texts) if digest_of(text) not in labelled]
    if not new:
        raise DataError(f"{reader.name}: all texts of rows without a label have one in another row")
    drawn.rows, drawn.texts = [drawn.rows[one] for one in new], [texts[one] for one in new]
    drawn.n_copies = n_drawn - len(new)
    return drawn


def _say(found: Any, drawn: _Drawn, target: str, label_column: str) -> None:
    """Print on standard error what was suggested, and which rows were left out."""
    where = "" if target == "-" else f", written to {target}"
    common.say(
        f"{counted(len(found.rows), 'text')} of {found.n_candidates} suggested{where}: fill their "
        f"column {label_column!r}, and train on them with the labels that you have"
    )
    n_drawn = len(drawn.rows) + drawn.n_copies
    if n_drawn < drawn.n_open:
        common.say(
            f"{n_drawn} of {drawn.n_open} rows without a label were drawn at random; "
            "--candidates draws more"
        )
    first = min(found.row_errors, default=-1)
    left_out = [
        f"{counted(count, noun)}{why}"
        for count, noun, why in (
            (drawn.n_labelled, "row", " with a label"),
            (found.n_trained_on, "row", " that the model was trained on"),
            (drawn.n_copies + found.n_copies, "copy", ""),
            (len(found.row_errors), "row", " without an answer"),
        )
        if count
    ]
    if found.row_errors:
        left_out[-1] += f" (row {drawn.rows[first].number}: {found.row_errors[first]})"
    if left_out:
        common.say(f"left out: {', '.join(left_out)}")


def _rounded(share: float) -> float | None:
    """Return a probability as it is written; None where a label has none."""
    return None if math.isnan(share) else round(share, 6)
