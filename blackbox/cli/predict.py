"""`blackbox predict`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import click

from blackbox.cli import common
from blackbox.cli.help import Command, option
from blackbox.cli.options import (
    SpendingOptions,
    backend_options,
    column_options,
    early_stop_option,
    format_option,
    json_option,
    other_lm_option,
    row_policy_option,
    spending_options,
)

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
    help='The table with predictions; "-" is standard output.',
)
@column_options
@format_option
@backend_options
@other_lm_option
@row_policy_option
@early_stop_option
@spending_options
@json_option
def command(
    model_path: Path,
    data: str,
    out: str,
    text_column: str,
    text_pair_column: str | None,
    format_: str | None,
    backend: str | None,
    model: str | None,
    backend_option: tuple[str, ...],
    allow_other_lm: bool,
    on_row_error: str,
    early_stop: str | None,
    as_json: bool,
    spending: SpendingOptions,
) -> None:
    """Predict the labels of the texts in DATA with MODEL; any size of table.

    Adds a column `prediction` and a column `probability_CLASS` per class (with `--early-stop` a
    column `prompts_asked` instead). With `--on-row-error abstain`, a column `reason` says why a row
    has no prediction.

    If the run is killed, the same command continues from the store;
    with `--no-store` it starts anew.
    """
    from blackbox.protocol import Usage
    from blackbox.tables import TableReader, TableWriter

    if as_json and out == "-":
        raise click.UsageError("--json and --out - would both write to standard output")
    if out != "-":
        common.check_folder(out)
    # abstain here; `_predict` raises where that is asked for, as it knows row numbers of the file
    classifier = common.open_model(
        model_path,
        backend=backend,
        model=model,
        backend_option=backend_option,
        allow_other_lm=allow_other_lm,
        on_row_error="abstain",
        spending=spending,
    )
    classifier.set_params(early_stop=early_stop)
    if early_stop == "risk" and not classifier.ensemble_.early_stopping.knows_risk:
        raise click.UsageError(f"{model_path} has no thresholds for --early-stop risk: use exact")
    added = ["prediction"]
    if early_stop is None:
        added += [f"probability_{label}" for label in classifier.classes_.tolist()]
    else:
        added.append("prompts_asked")
    if on_row_error == "abstain":
        added.append("reason")
    texts = [text_column] if text_pair_column is None else [text_column, text_pair_column]
    totals = Counter[str]()
    usage = Usage()
    progress = common.Progress()
    started = time.perf_counter()
    with TableReader(data, format=format_) as reader:
        reader.require(*texts)
        _refuse_taken(added, reader.columns, reader.name)
        check_kind(classifier, text_pair_column)
        with TableWriter(out, [*reader.columns, *added], like=reader) as writer:
            for chunk in _chunks(reader):
                classifier.set_params(**spending.parameters(usage))
                values, reasons = _predict(classifier, chunk, texts, reader.name, on_row_error)
                usage += classifier.prediction_usage_
                for row, more in zip(chunk, values, strict=True):
                    # the objects of JSONL have keys of their own
                    _refuse_taken(added, row.values, f"{reader.name}, row {row.number}")
                    writer.write(row.values | more)
                writer.flush()
                totals.update(
                    rows=len(chunk),
                    abstained=len(reasons),
                    truncated=len(classifier.truncated_rows_),
                )
                progress("rows", totals["rows"], totals["rows"] + 1)
    progress.close()
    usage = replace(usage, seconds_total=time.perf_counter() - started)
    if as_json:
        counts = {name: totals[name] for name in ("rows", "abstained", "truncated")}
        common.echo_json(counts | {"out": out, "usage": usage.as_dict()})
        return
    extra = f", {totals['abstained']} without a prediction" if totals["abstained"] else ""
    extra += f", {totals['truncated']} truncated to fit the LM" if totals["truncated"] else ""
    common.say(f"{totals['rows']} rows predicted{extra}; written to {out}")
    common.say_usage(usage)


def _chunks(reader: Any) -> Iterator[list[Any]]:
    rows = iter(reader)
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk


def _predict(
    classifier: Any, chunk: list[Any], texts: list[str], name: str, on_row_error: str
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Return the new columns of each row, and the reasons of rows without a prediction."""
    from blackbox.errors import DataError
    from blackbox.tables import check_text

    inputs: list[Any] = []
    for row in chunk:
        cells = [row.values.get(column) for column in texts]
        if on_row_error == "raise":
            for cell, column in zip(cells, texts, strict=True):
                check_text(cell, row=row.number, column=column, name=name)
        cells = [cell if isinstance(cell, str) else "" for cell in cells]
        inputs.append(cells[0] if len(cells) == 1 else tuple(cells))
    given = _labelled(classifier, inputs)
    reasons: dict[int, str] = dict(classifier.row_errors_)
    if reasons and on_row_error == "raise":
        first = min(reasons)
        raise DataError(
            f"{name}, row {chunk[first].number}, column {texts[0]!r}: {reasons[first]}; fix it, "
            "or use --on-row-error abstain"
        )
    if on_row_error == "abstain":
        for place, row in enumerate(given):
            row["reason"] = reasons.get(place, "")
    return given, reasons


def _labelled(classifier: Any, inputs: list[Any]) -> list[dict[str, Any]]:
    """Return the new columns of each row, empty where there is no prediction."""
    import numpy as np

    if classifier.early_stop is not None:
        classifier.set_params(abstain_label="")
        labels = classifier.predict(inputs)
        asked = classifier.prompts_asked_.tolist()
        return [
            {"prediction": str(label), "prompts_asked": n}
            for label, n in zip(labels, asked, strict=True)
        ]
    classes = classifier.classes_.tolist()
    values = []
    for probabilities in classifier.predict_proba(inputs):
        answered = bool(np.isfinite(probabilities).all())
        best = classes[int(np.argmax(probabilities))] if answered else ""
        given: dict[str, Any] = {"prediction": str(best)}
        for label, probability in zip(classes, probabilities.tolist(), strict=True):
            given[f"probability_{label}"] = round(probability, 6) if answered else None
        values.append(given)
    return values


def _refuse_taken(added: list[str], columns: Collection[str], where: str) -> None:
    from blackbox.errors import DataError

    for column in added:
        if column in columns:
            raise DataError(f"{where}: column {column!r} exists, and predict adds it; rename it")


def check_kind(classifier: Any, text_pair_column: str | None) -> None:
    """Raise if a table has pairs of texts and the model takes single texts, or vice versa."""
    takes_pair = classifier.prompts_[0].takes_pair
    if takes_pair and text_pair_column is None:
        raise click.UsageError("this model was trained on pairs: give --text-pair-column")
    if not takes_pair and text_pair_column is not None:
        raise click.UsageError("this model was trained on single texts: drop --text-pair-column")
