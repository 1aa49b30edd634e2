"""`blackbox predict`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

from blackbox.cli import common
from blackbox.cli.cluster import (
    ClusterOptions,
    cluster_options,
    predict_on_cluster,
    say_job,
)
from blackbox.cli.help import Command, option
from blackbox.cli.lm_options import LmOptions, lm_options
from blackbox.cli.options import (
    FiniteRange,
    check_early_stop,
    column_options,
    early_stop_option,
    encoding_options,
    escape_formulas_option,
    format_option,
    json_option,
    max_error_option,
    promise_of,
)
from blackbox.cli.spending_options import SpendingOptions, spending_options
from blackbox.plurals import counted
from blackbox.progress import ProgressDisplay

if TYPE_CHECKING:
    from blackbox.model.columns import PredictionColumns
    from blackbox.protocol import Usage

_CHUNK = 256


@click.command(
    "predict", cls=Command, example="blackbox predict messages.blackbox new.csv --out labelled.csv"
)
@click.argument("model_path", metavar="MODEL", type=click.Path(path_type=Path))
@click.argument("data")
@option(
    "--out",
    required=True,
    metavar="FILE",
    group="Output",
    help='The table with predictions; "-" is standard output. With --ray, a folder.',
)
@escape_formulas_option
@option(
    "--fill",
    metavar="COLUMN",
    group="Output",
    help="Write predictions into this column of DATA where it is empty, and ask the LM about those "
    "rows only.",
)
@column_options
@format_option
@encoding_options
@lm_options
@option(
    "--on-row-error",
    type=click.Choice(["raise", "abstain"]),
    group="Data",
    help="On a text that is empty, or that the LM refuses: stop with an error, or write why into a "
    "column.  [default: leave its prediction empty, and go on]",
)
@max_error_option
@option(
    "--sets",
    "set_coverage",
    type=FiniteRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    group="Output",
    help="Add a column `prediction_set`: the fewest labels that hold the right one with this "
    "probability, such as 0.9.",
)
@early_stop_option
@spending_options
@cluster_options
@json_option
def command(
    model_path: Path,
    data: str,
    out: str,
    escape_formulas: bool,
    fill: str | None,
    text_column: str,
    text_pair_column: str | None,
    image_column: str | None,
    format_: str | None,
    delimiter: str | None,
    encoding: str | None,
    lm: LmOptions,
    on_row_error: str | None,
    max_error: float | None,
    set_coverage: float | None,
    early_stop: str | None,
    as_json: bool,
    spending: SpendingOptions,
    cluster: ClusterOptions | None,
) -> None:
    """Predict the labels of the texts in DATA with MODEL; any size of table.

    Adds a column `prediction` and a column `probability_CLASS` per class (with `--early-stop` a
    column `prompts_asked` instead). A row whose text is empty, or refused by the LM, has no
    prediction; with `--on-row-error abstain`, a column `reason` says why. With `--max-error`, a row
    that is too uncertain has none either, and `reason` says so. A model with `--none-of-these`
    gives that label to texts of none of its classes, and a column `p_known`: the share of texts of
    its classes that look as unusual. With `--fill label`, a table that is partly labelled gets its
    other labels. A MODEL of several labels per text writes them as it found them in the table of
    its training, and [] for none.

    If the run is killed, the same command continues from the store;
    with `--no-store` it starts anew. With `--ray`, the files of Parquet that are written are kept
    in any case, and a column `row_id` in them tells their rows apart.
    """
    if cluster is not None and "-" in (out, data):
        raise click.UsageError("--ray reads files, and writes into a folder: - is none")
    if as_json and out == "-":
        raise click.UsageError("--json and --out - would both write to standard output")
    if out != "-" and cluster is None:
        common.check_folder(out, model_path)
    trained = common.read_trained(model_path, data)
    named = common.input_columns(text_column, text_pair_column, image_column)
    check_kind(trained, text_pair_column, image_column)
    check_early_stop(trained, model_path, early_stop)
    texts = [column for column in named.values() if column is not None]
    added = prediction_columns(
        trained,
        texts,
        image_column=image_column,
        fill=fill,
        early_stop=early_stop,
        on_row_error=on_row_error,
        max_error=max_error,
        set_coverage=set_coverage,
    )
    if cluster is not None:
        from blackbox.cluster.source import SourceTable

        table = SourceTable(data, added.text_columns, format_, delimiter, encoding)
        finished = predict_on_cluster(cluster, added, model_path, table, out, lm, spending)
        say_job(finished, out, as_json)
        return
    done = _predict_table(
        added,
        _Table(data, format_, delimiter, encoding, out, escape_formulas),
        lambda: spending.clients(
            lambda: lm.connect(trained, model_path),
            lambda: lm.connect_embedder(trained, model_path),
        ),
        first_column=image_column or texts[0],
    )
    if as_json:
        common.echo_json(_as_json(done, added) | {"out": out, "usage": done.usage.as_dict()})
    else:
        _say(done, added, out)


class _Table(NamedTuple):
    """The table to read, and the one to write."""

    data: str
    format: str | None
    delimiter: str | None
    encoding: str | None
    out: str
    escape_formulas: bool


class _Done(NamedTuple):
    """The outcome for the rows of a table."""

    totals: Counter[str]
    first_failure: str
    usage: Usage
    context: str


def _predict_table(
    added: PredictionColumns,
    table: _Table,
    connect: Callable[[], Sequence[Any]],
    *,
    first_column: str,
) -> _Done:
    """Predict a table, a chunk at a time; connect once it is known to have the columns."""
    from blackbox.errors import RowError
    from blackbox.tables import TableReader, TableWriter
    from blackbox.tables.labels import is_list

    names, fill, texts = list(added.types), added.fill, added.text_columns
    totals = Counter[str]()
    first_failure, n_read = "", 0
    typed: dict[str, Any] = {}
    progress = ProgressDisplay()
    started = time.perf_counter()
    with TableReader(
        table.data, format=table.format, delimiter=table.delimiter, encoding=table.encoding
    ) as reader:
        reader.require(*texts, *([fill] if fill and reader.format != "jsonl" else []))
        common.refuse_taken(names, reader.columns, reader.name)
        chunks = _chunks(reader)
        if fill and reader.format == "jsonl":
            first = next(chunks, [])
            reader.require_in(first, fill)
            chunks = chain([first], chunks)
        client, embedder = connect()
        lists = False if fill is None else _is_of_lists(reader.schema, fill)
        columns = [*dict.fromkeys([*reader.columns, *([fill] if fill else [])]), *names]
        with TableWriter(
            table.out, columns, like=reader, escape_formulas=table.escape_formulas
        ) as writer:
            for chunk in chunks:
                lists = lists or any(is_list(row.values.get(fill)) for row in chunk if fill)
                if fill and reader.format == "jsonl":
                    typed |= _typed_labels(chunk, fill, reader.name)
                try:
                    part = added.predict(client, chunk, reader.name, embedder=embedder, lists=lists)
                except RowError as error:
                    _raise_for(error.reasons, chunk, first_column, reader.name)
                if part.failures and not first_failure:
                    place = min(part.failures)
                    first_failure = f"row {chunk[place].number}: {part.failures[place]}"
                totals.update(part.counts)
                for row, more in zip(chunk, part.columns, strict=True):
                    if fill and more.get(fill):
                        more[fill] = _typed(more[fill], typed)
                    # the objects of JSONL have keys of their own
                    common.refuse_taken(names, row.values, f"{reader.name}, row {row.number}")
                    writer.write(more, row)
                writer.flush()
                n_read += len(chunk)
                progress("rows", n_read, n_read + 1)
            reader.close()  # --out may be DATA, and Windows replaces no file that is open
    progress.close()
    took = client.usage if embedder is None else client.usage + embedder.usage
    usage = replace(took, seconds_total=time.perf_counter() - started)
    return _Done(totals, first_failure, usage, client.describe_context())


def _as_json(done: _Done, added: PredictionColumns) -> dict[str, Any]:
    """Return the counts of rows, for `--json`."""
    totals = done.totals
    counted_as = ("rows", "abstained", "truncated", *(["labelled"] if added.fill else []))
    counts: dict[str, Any] = {name: totals[name] for name in counted_as}
    if added.promise is not None:
        counts |= {"withheld": totals["withheld"], "promise": added.promise.as_dict()}
    if added.model.out_of_scope is not None:
        counts["none_of_these"] = totals["none_of_these"]
    if added.set_coverage is not None:
        counts["labels_in_sets"] = totals["in_sets"]
    return counts


def _say(done: _Done, added: PredictionColumns, out: str) -> None:
    """Say what became of the rows, for people."""
    from blackbox.model.display import printable

    totals = done.totals
    n_answered = totals["rows"] - totals["abstained"]
    extra = f", {totals['labelled']} had a label" if added.fill else ""
    n_predicted = counted(n_answered - totals["withheld"], "row")
    common.say(f"{n_predicted} predicted{extra}; written to {out}")
    if added.model.out_of_scope is not None:
        label = printable(str(added.model.out_of_scope.label))
        common.say(f"{counted(totals['none_of_these'], 'row')} of none of the classes: {label}")
    if added.promise is not None:
        left = counted(totals["withheld"], "row")
        common.say(f"{left} left to a person: {added.promise.describe()}")
    if added.set_coverage is not None and n_answered:
        common.say(f"{totals['in_sets'] / n_answered:.2f} labels in a prediction set on average")
    if done.first_failure:
        common.say(_of_failures(totals, done.first_failure, added.on_row_error))
    if totals["truncated"]:
        common.say(common.truncated(totals["truncated"], done.context))
    common.say_usage(done.usage)


def _typed_labels(rows: list[Any], column: str, name: str) -> dict[str, Any]:
    """Return the labels of rows that are whole numbers or truth values, by their names."""
    from blackbox.tables import label_of

    cells = ((row.number, row.values.get(column)) for row in rows)
    return {
        label_of(value, row=number, column=column, name=name): value
        for number, cell in cells
        for value in (cell if isinstance(cell, list) else [cell])
        if isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    }


def _typed(cell: Any, typed: dict[str, Any]) -> Any:
    """Return a label, or a list of them, with the values that `_typed_labels` found."""
    if isinstance(cell, list):
        return [typed.get(label, label) for label in cell]
    return typed.get(cell, cell)


def _is_of_lists(schema: Any, column: str) -> bool:
    """Return whether the type of a column says that it holds lists."""
    from blackbox.tables.parquet import is_list_type

    return schema is not None and is_list_type(schema.field(column).type)


def _chunks(reader: Any) -> Iterator[list[Any]]:
    rows = iter(reader)
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk


def _of_failures(totals: Counter[str], first: str, on_row_error: str | None) -> str:
    """Return one line about the rows without a prediction."""
    n, n_all = totals["abstained"], totals["rows"]
    rows = f"{n} of {n_all} rows have" if n != 1 else f"1 of {n_all} rows has"
    more = "" if on_row_error else "; --on-row-error abstain writes why into a column"
    return f"warning: {rows} no prediction, the first is {first}{more}"


def _raise_for(reasons: dict[int, str], chunk: list[Any], column: str, name: str) -> NoReturn:
    first = min(reasons)
    number, n_more = chunk[first].number, len(reasons) - 1
    raise common.row_error(name, number, column, reasons[first], n_more) from None


def prediction_columns(
    trained: Any,
    texts: list[str],
    *,
    image_column: str | None = None,
    fill: str | None = None,
    early_stop: str | None = None,
    on_row_error: str | None = None,
    max_error: float | None = None,
    set_coverage: float | None = None,
) -> Any:
    """Return the `PredictionColumns` that options ask for; raise, before anything is spent."""
    from blackbox.model.columns import PredictionColumns

    for name, value in (("--max-error", max_error), ("--sets", set_coverage)):
        if value is not None and early_stop is not None:
            raise click.UsageError(
                f"{name} takes probabilities, and --early-stop gives none: drop one of them"
            )
    promise = promise_of(trained, max_error)
    try:
        return PredictionColumns(
            trained,
            tuple(texts),
            fill,
            early_stop,
            on_row_error,
            promise,
            set_coverage,
            image_column,
        )
    except ValueError as error:
        raise click.UsageError(f"--sets {set_coverage:g}: {error}") from None


def check_kind(trained: Any, text_pair_column: str | None, image_column: str | None) -> None:
    """Raise if the columns that are named are of another kind of input than the model takes."""
    if trained.input_kind == "image" and image_column is None:
        raise click.UsageError("this model was trained on images: give --image-column")
    if trained.input_kind != "image" and image_column is not None:
        raise click.UsageError("this model was trained on texts: drop --image-column")
    if trained.takes_pair and text_pair_column is None:
        raise click.UsageError("this model was trained on pairs: give --text-pair-column")
    if not trained.takes_pair and text_pair_column is not None:
        raise click.UsageError("this model was trained on single texts: drop --text-pair-column")
