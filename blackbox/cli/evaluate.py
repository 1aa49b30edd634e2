"""`blackbox evaluate`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from blackbox.cli import common, label_sets
from blackbox.cli.help import Command
from blackbox.cli.lm_options import LmOptions, lm_options
from blackbox.cli.options import (
    column_options,
    empty_texts,
    encoding_options,
    format_option,
    json_option,
    labels_options,
    max_error_option,
    promise_of,
    row_policy_option,
)
from blackbox.cli.spending_options import SpendingOptions, spending_options
from blackbox.plurals import counted
from blackbox.progress import ProgressDisplay


@click.command("evaluate", cls=Command, example="blackbox evaluate messages.blackbox held-out.csv")
@click.argument("model_path", metavar="MODEL", type=click.Path(path_type=Path))
@click.argument("data")
@column_options
@labels_options
@format_option
@encoding_options
@lm_options
@row_policy_option
@max_error_option
@spending_options
@json_option
def command(
    model_path: Path,
    data: str,
    text_column: str,
    text_pair_column: str | None,
    image_column: str | None,
    label_columns: tuple[str, ...],
    label_separator: str | None,
    format_: str | None,
    delimiter: str | None,
    encoding: str | None,
    lm: LmOptions,
    on_row_error: str,
    max_error: float | None,
    as_json: bool,
    spending: SpendingOptions,
) -> None:
    """Evaluate MODEL on DATA, a table of labelled texts.

    Prints accuracy with its 95% interval, macro F1, log-loss, Brier score, calibration error and
    the confusion matrix; of a model of several labels per text micro and macro F1, subset accuracy,
    Hamming loss, and precision and recall of each label. Rows without a prediction count as errors.
    With `--max-error`, it prints also how many labels are given under that promise, and how many of
    those are wrong. Of a model with `--none-of-these LABEL`, rows with that label show how well
    such texts are noticed.
    """
    from blackbox.errors import RowError

    trained = common.read_trained(model_path, data)
    promise = promise_of(trained, max_error)
    examples, truth = labelled_rows(
        trained,
        data,
        **common.input_columns(text_column, text_pair_column, image_column),
        label_column=label_columns,
        label_separator=label_separator,
        format=format_,
        empty=empty_texts(on_row_error),
        delimiter=delimiter,
        encoding=encoding,
    )
    client, embedder = spending.clients(
        lambda: lm.connect(trained, model_path), lambda: lm.connect_embedder(trained, model_path)
    )
    progress = ProgressDisplay()
    try:
        predictions = trained.predict(
            client,
            examples.texts,
            embedder=embedder,
            on_row_error=on_row_error,
            progress=progress,
        )
    except RowError as error:
        first, n_more = min(error.reasons), len(error.reasons) - 1
        name, reason = common.table_name(data), error.reasons[first]
        raise common.row_error(
            name, examples.numbers[first], image_column or text_column, reason, n_more
        ) from None
    finally:
        progress.close()
    result, found = _result(trained, truth, predictions)
    n_seen = int(trained.trained_on(examples.texts, with_sources=True).sum())
    if as_json:
        more = {"n_rows_trained_on": n_seen, "usage": predictions.usage.as_dict()}
        if promise is not None:
            more["promise"] = promise.as_dict() | asdict(_kept(predictions, promise, truth))
        if found is not None and found.detection is not None:
            more["none_of_these"] = asdict(found.detection)
        if found is not None and found.ordered is not None:
            more["ordered"] = asdict(found.ordered)
        common.echo_json(asdict(result) | more)
    else:
        label_sets.show_evaluation(result) if trained.several_labels else _show(result)
        if found is not None:
            _show_further(found)
        if promise is not None:
            click.echo(f"\n{_describe(promise, _kept(predictions, promise, truth))}")
        say_trained_on(n_seen, result.n)
        if predictions.truncated_rows:
            context = client.describe_context()
            common.say(common.truncated(len(predictions.truncated_rows), context))
        common.say_usage(predictions.usage)


def _result(trained: Any, truth: Any, predictions: Any) -> Any:
    """Return the measures of predictions of one label per text, or of several.

    Beside them, of one label per text, all `EvaluatedPredictions`.
    """
    from blackbox.metrics import evaluate_label_sets
    from blackbox.model.evaluation import evaluate_predictions

    if trained.several_labels:
        labels, chosen = trained.classes.tolist(), predictions.codes == 1
        return evaluate_label_sets(truth, chosen, predictions.probabilities, labels), None
    found = evaluate_predictions(predictions, truth, trained.order)
    return found.evaluation, found


@dataclass(frozen=True)
class _Kept:
    """The outcome of a promise on labelled rows."""

    n_given: int
    n_wrong: int
    n_withheld: int


def _kept(predictions: Any, promise: Any, truth: Any) -> _Kept:
    kept = predictions.keeping(promise)
    given = kept.codes >= 0
    n_wrong = int((kept.codes[given] != truth[given]).sum())
    return _Kept(int(given.sum()), n_wrong, len(kept.withheld))


def _describe(promise: Any, kept: _Kept) -> str:
    """Return a promise and what came of it, in words."""
    n = kept.n_given + kept.n_withheld
    share = f", {kept.n_wrong / kept.n_given:.1%}" if kept.n_given else ""
    return (
        f"promised: at most {promise.max_error:.1%} of the labels given are wrong\n"
        f"here: {kept.n_given} of {n} rows get a label, {kept.n_wrong} of them wrong{share}\n"
        f"training: {promise.describe()}"
    )


def _show_further(found: Any) -> None:
    """Print how far ordered classes are off, and how well texts of no class are noticed."""
    if found.ordered is not None:
        error, kappa = found.ordered.mean_absolute_error, found.ordered.quadratic_kappa
        shown = ["–" if value is None else f"{value:.3f}" for value in (error, kappa)]
        click.echo(f"\nmean abs. error    {shown[0]} steps; quadratic kappa {shown[1]}")
    if found.detection is not None:
        click.echo(f"\n{describe_detection(found.evaluation.classes[-1], found.detection)}")


def describe_detection(label: str, found: Any) -> str:
    """Return how well texts of none of the classes are noticed, in words."""
    from blackbox.model.display import printable

    def share(value: float | None) -> str:
        return "–" if value is None else common.percent(value)

    auroc = "–" if found.auroc is None else f"{found.auroc:.3f}"
    return (
        f"none of these      {counted(found.n_outside, 'row')} with the label {printable(label)}\n"
        f"noticed            {share(found.recall)}; of the other rows "
        f"{share(found.false_alarms)} get that label too\n"
        f"AUROC              {auroc}; to notice 95%, {share(found.false_alarms_at_95)} of the "
        "other rows would get it"
    )


def say_trained_on(n_seen: int, n: int) -> None:
    """Warn of rows that the model was trained on."""
    if n_seen:
        common.say(
            f"warning: the model was trained on the texts of {n_seen} of {counted(n, 'row')}, so "
            "these figures are better than on new texts; evaluate on others"
        )


def labelled_rows(trained: Any, data: str, **columns: Any) -> tuple[Any, Any]:
    """Return the rows of a table, and their classes as indices into the model's.

    `columns` are those of `read_examples`. Of a model of several labels per text, a bool array of
    which text has which label.

    Raises
    ------
    DataError
        If the table can't be read, or a label is not a class of the model.
    """
    from blackbox.cli.predict import check_kind
    from blackbox.tables import read_examples

    check_kind(trained, columns["text_pair_column"], columns.get("image_column"))
    if trained.several_labels:
        return label_sets.labelled_rows(trained, data, **columns)
    if columns["label_separator"] is not None or len(columns["label_column"]) > 1:
        raise click.UsageError(
            "this model gives one label per text: name one --label-column, without "
            "--label-separator"
        )
    examples = read_examples(data, **columns)
    (column,) = columns["label_column"]
    return examples, _true_codes(trained, examples, column, common.table_name(data))


def _true_codes(trained: Any, examples: Any, label_column: str, name: str) -> Any:
    import numpy as np

    from blackbox.errors import DataError
    from blackbox.model.predictions import NONE_OF_THESE
    from blackbox.tables import label_of

    codes = {str(label): code for code, label in enumerate(trained.classes.tolist())}
    if trained.out_of_scope is not None:
        codes[str(trained.out_of_scope.label)] = NONE_OF_THESE
    known = ", ".join(list(codes)[:20])
    for code, label in enumerate(trained.classes.tolist()):
        if isinstance(label, bool) or (isinstance(label, float) and label.is_integer()):
            # a table spells true and 1 what Python spells True and 1.0
            codes[label_of(label, row=0, column=label_column, name=name)] = code
    for number, label in zip(examples.numbers, examples.labels, strict=True):
        if label not in codes:
            raise DataError(
                f"{name}, row {number}, column {label_column!r}: {label!r} is not a class of the "
                f"model; its classes are {known}"
            )
    return np.array([codes[label] for label in examples.labels], np.intp)


def _show(result: Any) -> None:
    from blackbox.model.display import printable

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    click.echo(f"rows               {result.n}")
    answered = round(result.coverage * result.n)
    if answered < result.n:
        click.echo(f"without an answer  {result.n - answered}, which count as wrong")
    click.echo(
        f"accuracy           {common.percent(result.accuracy)}  (95% interval "
        f"{common.percent(result.accuracy_low)} to {common.percent(result.accuracy_high)})"
    )
    click.echo(f"macro F1           {number(result.macro_f1)}")
    click.echo(f"log-loss           {number(result.log_loss)}")
    click.echo(f"Brier score        {number(result.brier)}")
    click.echo(
        f"calibration error  {number(result.ece)}  (mean gap between confidence and accuracy)"
    )
    if len(result.classes) > 12:
        click.echo("confusion matrix: --json has all of it")
        return
    names = [printable(name) for name in result.classes]
    width = max(6, *(len(name) for name in names))
    click.echo("\nconfusion (rows: truth, columns: prediction)")
    click.echo(" " * width + "".join(f"  {name:>{width}}" for name in names))
    for name, row in zip(names, result.confusion, strict=True):
        click.echo(f"{name:>{width}}" + "".join(f"  {count:>{width}}" for count in row))
