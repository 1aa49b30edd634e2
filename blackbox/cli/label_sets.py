"""Several labels per text, in the commands that read labels or show them."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from typing import Any

import click

from blackbox.cli import common
from blackbox.cli.options import empty_texts
from blackbox.plurals import counted

__all__ = [
    "describe",
    "keep_separator",
    "label_counts",
    "labelled_rows",
    "labelled_texts",
    "show_evaluation",
    "show_labels",
]

_log = logging.getLogger(__name__)

_WIDEST = 40  # characters of a label in a table


def labelled_texts(data: str, params: dict[str, Any]) -> Any:
    """Return the `LabelledExamples` to train on, with a list of labels for each text."""
    from blackbox.tables import read_examples

    if params["labels"] == "none":
        raise click.UsageError("--labels none learns one label per text: drop --label-separator")
    if params["shots"] is not None:
        raise click.UsageError(
            "--shots draws rows of one class each, and texts have several labels here: drop it"
        )
    if params["label_separator"] is not None and len(params["label_columns"]) > 1:
        raise click.UsageError(
            "--label-separator splits the cells of one --label-column, and several are named; drop "
            "one of them"
        )
    examples = read_examples(
        data,
        **common.input_columns(
            params["text_column"], params["text_pair_column"], params["image_column"]
        ),
        label_column=params["label_columns"],
        label_separator=params["label_separator"],
        group_column=params["group_column"],
        format=params["format_"],
        empty=empty_texts(params["on_row_error"]),
        defer=True,
        delimiter=params["delimiter"],
        encoding=params["encoding"],
    )
    named = params["classes"]
    # of labels that were named none is left out
    fewest = 1 if named else params["min_class_rows"]
    examples = _usable_labels(examples, common.table_name(data), params, fewest)
    if named:
        _check_named(examples, named, common.table_name(data))
    examples.check()
    return examples


def _usable_labels(examples: Any, name: str, params: dict[str, Any], fewest: int) -> Any:
    """Return the rows without labels that can't be learned; raise where no label can be."""
    from blackbox.errors import DataError

    n, counts = len(examples.labels), _counts(examples)
    if len(params["label_columns"]) > 1:  # also where no row has it
        counts.update(dict.fromkeys(params["label_columns"], 0))
    rare = [label for label, count in counts.items() if count < fewest]
    usable = [label for label, count in counts.items() if fewest <= count < n]
    where = f"{name}, column {', '.join(map(repr, params['label_columns']))}"
    if not usable:
        few = f", and {fewest} rows or more" if rare else ""
        hint = ""
        if counts and params["label_separator"] is not None and n > 1:
            most = counts.most_common(1)[0][0]
            hint = (
                f" (most often there is {most!r}); is {params['label_separator']!r} between them?"
            )
        raise DataError(
            f"{where}: a classifier needs a label that some rows have and others have not"
            f"{few}, and there is none{hint}"
        )
    if rare:
        _log.warning(
            "%s: labels of fewer than %d rows are left out, and their rows stay: %s; add rows with "
            "them, correct them, or keep them with --min-class-rows 1",
            *(where, fewest, common.some_labels(rare)),
        )
        left_out = set(rare)
        labels = [[one for one in some if one not in left_out] for some in examples.labels]
        examples = replace(examples, labels=labels)
    return examples


def _check_named(examples: Any, named: list[str], name: str) -> None:
    from blackbox.errors import DataError

    known = set(named)
    for number, labels in zip(examples.numbers, examples.labels, strict=True):
        for label in labels:
            if label not in known:
                raise DataError(
                    f"{name}, row {number}: the label {label!r} is none of --classes "
                    f"({', '.join(named[:20])})"
                )


def _counts(examples: Any) -> Counter[str]:
    return Counter(label for labels in examples.labels for label in labels)


def label_counts(examples: Any) -> str:
    """Return how many rows there are, and how many have each label, in words."""
    from blackbox.model.display import printable
    from blackbox.model.summary import describe_counts

    n = len(examples.labels)
    without = sum(not labels for labels in examples.labels)
    beside = f"; {without} without any label" if without else ""
    counts = describe_counts(_counts(examples).items(), "labels")
    return printable(f"{counted(n, 'row')}{counts}{beside}")


def keep_separator(classifier: Any, examples: Any, separator: str | None) -> None:
    """Let a model write its labels into cells as it found them."""
    from blackbox.model.multilabel import DEFAULT_SEPARATOR

    kept = None if examples.are_lists else separator or DEFAULT_SEPARATOR
    classifier.model_ = classifier.model_.with_separator(kept)


def describe(trained: Any) -> dict[str, Any]:
    """Return what is known of each label of a model that gives several, as JSON data."""
    if not trained.several_labels:
        return {}
    return {"labels": trained.describe_labels()}


def show_labels(labels: list[dict[str, Any]]) -> None:
    """Print a table of the labels of a model."""
    from blackbox.model.display import printable

    names = [printable(one["label"])[:_WIDEST] for one in labels]
    width = max(5, *map(len, names))
    click.echo("\nlabels, with their rows in training, and quality on held-out rows")
    click.echo(f"{'label':<{width}}  rows  threshold  precision  recall     F1")
    for name, one in zip(names, labels, strict=True):
        found = [one.get(figure) for figure in ("precision", "recall", "f1")]
        shown = ["–" if value is None else f"{value:.3f}" for value in found]
        n = "–" if one["n_rows"] is None else one["n_rows"]
        click.echo(
            f"{name:<{width}}  {n:>4}  {one['threshold']:9.3f}  {shown[0]:>9}  {shown[1]:>6}  "
            f"{shown[2]:>5}"
        )


def labelled_rows(trained: Any, data: str, **columns: Any) -> tuple[Any, Any]:
    """Return the rows of a table, and a bool array of which have which label of a model.

    `columns` are those of `read_examples`.

    Raises
    ------
    DataError
        If the table can't be read, or a label is not one of the model.
    """
    import numpy as np

    from blackbox.errors import DataError
    from blackbox.model.multilabel import DEFAULT_SEPARATOR
    from blackbox.tables import read_examples

    codes = {str(label): code for code, label in enumerate(trained.classes.tolist())}
    name, of_labels = common.table_name(data), columns["label_column"]
    known = ", ".join(list(codes)[:20])
    if len(of_labels) > 1:
        for label in of_labels:
            if label not in codes:
                raise DataError(
                    f"--label-column {label}: not a label of the model; its labels are {known}"
                )
        missing = [label for label in codes if label not in of_labels]
        if missing:
            raise DataError(
                f"--label-column names no column for the label {missing[0]!r} of the model: name "
                "one for each of its labels"
            )
    elif columns["label_separator"] is None:
        columns["label_separator"] = trained.separator or DEFAULT_SEPARATOR
    examples = read_examples(data, **columns)
    truth = np.zeros((len(examples.labels), len(codes)), bool)
    for row, (number, labels) in enumerate(zip(examples.numbers, examples.labels, strict=True)):
        for label in labels:
            if label not in codes:
                raise DataError(
                    f"{name}, row {number}, column {of_labels[0]!r}: {label!r} is not a label of "
                    f"the model; its labels are {known}"
                )
            truth[row, codes[label]] = True
    return examples, truth


def show_evaluation(result: Any) -> None:
    """Print an evaluation of several labels per text."""
    from blackbox.model.display import printable

    click.echo(f"rows               {result.n}")
    answered = round(result.coverage * result.n)
    if answered < result.n:
        click.echo(f"without an answer  {result.n - answered}, which count as wrong")
    click.echo(f"micro F1           {result.micro_f1:.3f}")
    click.echo(f"macro F1           {result.macro_f1:.3f}")
    click.echo(
        f"subset accuracy    {common.percent(result.subset_accuracy)}  (rows whose labels are all "
        f"right; 95% interval {common.percent(result.subset_accuracy_low)} to "
        f"{common.percent(result.subset_accuracy_high)})"
    )
    click.echo(f"Hamming loss       {result.hamming_loss:.3f}  (share of wrong decisions)")
    loss = "–" if result.log_loss is None else f"{result.log_loss:.3f}"
    click.echo(f"log-loss           {loss}")
    names = [printable(one.label)[:_WIDEST] for one in result.labels]
    width = max(5, *map(len, names))
    click.echo(f"\n{'label':<{width}}  precision  recall     F1  rows  predicted")
    for name, one in zip(names, result.labels, strict=True):
        click.echo(
            f"{name:<{width}}  {one.precision:9.3f}  {one.recall:6.3f}  {one.f1:5.3f}  "
            f"{one.support:4d}  {one.predicted:9d}"
        )
