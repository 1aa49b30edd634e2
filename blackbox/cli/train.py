"""`blackbox train`, and what `blackbox plan` shares with it."""

from __future__ import annotations

import logging
import reprlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from blackbox.cli import common, label_sets
from blackbox.cli.continuing import continue_option, continued, refuse_another_lm
from blackbox.cli.help import Command, option
from blackbox.cli.options import empty_texts
from blackbox.cli.spending_options import SpendingOptions
from blackbox.cli.training_options import training_options, untrained
from blackbox.plurals import counted
from blackbox.progress import ProgressDisplay

_log = logging.getLogger(__name__)


@click.command("train", cls=Command, example="blackbox train messages.csv --out messages.blackbox")
@option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    group="Output",
    help="File of the trained model.  [required without --dry-run]",
)
@option(
    "--dry-run",
    is_flag=True,
    group="Limits and cost",
    help="Train nothing, only estimate the cost, as `blackbox plan` does.",
)
@continue_option
@training_options
def command(
    data: str,
    params: dict[str, Any],
    continued_path: Path | None,
    out: Path | None,
    dry_run: bool,
    spending: SpendingOptions,
    as_json: bool,
) -> None:
    """Train a classifier on DATA, a table of labelled texts; or of texts alone, with --classes.

    A table is a CSV, TSV, JSONL, Parquet, Feather or Excel file, or an export of an annotation
    tool; "-" is standard input. If the run is killed, the
    same command continues from the store; with `--no-store` it starts anew.
    """
    if dry_run:
        show_plan(data, params, continued_path, spending, as_json)
        return
    if out is None:
        raise click.UsageError("Missing option '--out'.")
    common.check_target(out, data, params["prompts"])
    params = continued(params, continued_path)
    examples = labelled_texts(data, params)
    progress = ProgressDisplay()
    classifier = untrained(params, spending, progress)
    started = time.perf_counter()
    # an LM that can't be started is the first that is said
    refuse_another_lm(params, continued_path, classifier.connect())
    classifier.set_params(**spending.parameters())  # less the seconds until here
    if not as_json:
        common.say(f"training on {class_counts(examples, params['none_of_these'])}")
    try:
        with common.table_rows(data, examples.numbers, main_column(params)):
            classifier.fit(examples.texts, labels_of(examples), groups=examples.groups)
    finally:
        progress.close()
    classifier.usage_.seconds_total = time.perf_counter() - started
    if examples.several:
        label_sets.keep_separator(classifier, examples, params["label_separator"])
    classifier.save(out)
    _report(classifier, examples, out, as_json)


def labelled_texts(data: str, params: dict[str, Any]) -> Any:
    """Return the `LabelledExamples` to train on."""
    from blackbox.tables import read_examples

    common.refuse_model(data)
    shots, columns = params["shots"], params["label_columns"]
    ignored, named = params["labels"] == "none", params["classes"] is not None
    if ignored and not named:
        raise click.UsageError("--labels none takes --classes, the names to train on")
    if params["label_separator"] is not None or len(columns) > 1:
        return label_sets.labelled_texts(data, params)
    (column,) = columns
    examples = read_examples(
        data,
        **common.input_columns(
            params["text_column"], params["text_pair_column"], params["image_column"]
        ),
        label_column=None if ignored else column,
        group_column=params["group_column"],
        format=params["format_"],
        empty=empty_texts(params["on_row_error"]),
        defer=True,
        keep_unlabelled=named,
        delimiter=params["delimiter"],
        encoding=params["encoding"],
    )
    rest = None
    if named:
        labelled = [place for place, label in enumerate(examples.labels) if label]
        if not labelled:
            return _without_labels(examples, shots)
        rest = examples.take([place for place, label in enumerate(examples.labels) if not label])
        examples = replace(examples.take(labelled), n_unlabelled=0)
    outside, none = None, params["none_of_these"]
    if none is not None:
        places = enumerate(examples.labels)
        outside = examples.take([place for place, label in places if label == none])
        places = enumerate(examples.labels)
        examples = examples.take([place for place, label in places if label != none])
    if named:  # none of them is left out
        _check_labels(examples, common.table_name(data), column, params["classes"])
    else:
        fewest = min(params["min_class_rows"], shots or params["min_class_rows"])
        examples = _usable_classes(examples, common.table_name(data), column, fewest)
    if shots is not None:
        from blackbox.boosting.splits import draw_shots

        examples = examples.take(draw_shots(examples.labels, examples.texts, shots, params["seed"]))
    for more in (outside, rest):
        if more is not None:
            examples = examples.join(more)
    examples.check()
    return examples


def main_column(params: Mapping[str, Any]) -> str:
    """Return the column that errors of rows name: of images, else of texts."""
    return str(params["image_column"] or params["text_column"])


def labels_of(examples: Any) -> list[Any] | None:
    """Return the labels to train with, None where a row has none; None if no row has one."""
    if examples.several:
        return list(examples.labels)
    return [label or None for label in examples.labels] or None


def _without_labels(examples: Any, shots: int | None) -> Any:
    """Return texts to train on by the names of the classes."""
    if shots is not None:
        raise click.UsageError("--shots draws labelled rows, and there is no label")
    examples = replace(examples, labels=[])
    examples.check()
    return examples


def _check_labels(examples: Any, name: str, column: str, classes: list[str]) -> None:
    """Raise if a label is none of the classes that were named."""
    from blackbox.errors import DataError

    for number, label in zip(examples.numbers, examples.labels, strict=True):
        if label not in classes:
            raise DataError(
                f"{name}, row {number}, column {column!r}: {reprlib.repr(label)} is none of the "
                f"classes {common.some_labels(classes)}; correct it, or name all classes "
                "(--classes), without --continue"
            )


def _usable_classes(examples: Any, name: str, column: str, fewest: int) -> Any:
    """Return the rows whose classes can be learned; raise where that are too few.

    What looks wrong with the labels is logged, before anything is spent.
    """
    from blackbox.errors import DataError
    from blackbox.tables import similar_labels

    counts = Counter(examples.labels)
    rare = [label for label, count in counts.items() if count < fewest]
    places = [place for place, label in enumerate(examples.labels) if counts[label] >= fewest]
    n_rare = len(examples.labels) - len(places)
    if len(counts) > 2 and n_rare > len(places):
        raise DataError(
            f"{name}, column {column!r}: most rows have a label of their own, such as "
            f"{reprlib.repr(rare[0])}, so this is no column of classes; are --text-column and "
            "--label-column swapped?"
        )
    if len(counts) - len(rare) < 2:
        few = f" that {fewest} rows or more have" if rare else ""
        kept = next((reprlib.repr(label) for label in counts if counts[label] >= fewest), None)
        found = "no label has as many" if kept is None else f"there is only {kept}"
        raise DataError(
            f"{name}, column {column!r}: a classifier needs two labels{few}, and {found}; add "
            "rows, or name another --label-column"
        )
    if rare:
        first = examples.labels.index(rare[0])
        alike = [pair for pair in similar_labels(counts) if not set(rare).isdisjoint(pair)]
        of_case = "".join(
            f" ({a!r} and {b!r} differ by case or blanks alone)" for a, b in alike[:1]
        )
        _log.warning(
            "%s, row %d, column %r: classes of fewer than %d rows are left out: %s%s; add rows "
            "with them, correct them, or keep them with --min-class-rows 1",
            *(name, examples.numbers[first], column, fewest, common.some_labels(rare), of_case),
        )
    return replace(examples.take(places), n_rare=n_rare)


def class_counts(examples: Any, none: str | None = None) -> str:
    """Return how many rows there are of each class, and of none of them, in words."""
    from blackbox.model.display import printable
    from blackbox.model.summary import describe_counts

    if examples.several:
        return label_sets.label_counts(examples)
    if not examples.labels:
        return f"{len(examples.texts)} texts without labels, by the names of the classes"
    counts = Counter(label for label in examples.labels if label)
    more = len(examples.labels) - counts.total()
    beside = f", and {counted(more, 'text')} without a label" if more else ""
    if none is not None:
        beside += f", and {counted(counts.pop(none, 0), 'row')} of none of them"
    n = counts.total()
    return printable(f"{counted(n, 'row')}{describe_counts(counts.items())}{beside}")


def show_plan(
    data: str,
    params: dict[str, Any],
    continued_path: Path | None,
    spending: SpendingOptions,
    as_json: bool,
) -> None:
    """Print what a training would take."""
    from blackbox.lm.prices import price_advice
    from blackbox.model.display import printable

    params = continued(params, continued_path)
    examples = labelled_texts(data, params)
    classifier = untrained(params, spending)
    if continued_path is not None:
        refuse_another_lm(params, continued_path, classifier.connect())
    with common.table_rows(data, examples.numbers, main_column(params)):
        plan = classifier.plan(examples.texts, labels_of(examples), groups=examples.groups)
    if as_json:
        common.echo_json(plan.as_dict())
        return
    click.echo(f"training on     {class_counts(examples, params['none_of_these'])}")
    how = "counted" if plan.tokens_counted else "an estimate"
    most = "at most " if plan.at_most else ""
    click.echo(f"forward passes  {most}{plan.passes}")
    click.echo(f"  in the store  {plan.passes_from_store}")
    click.echo(f"  to make       {most}{plan.passes_to_make}")
    click.echo(f"tokens          {describe_range(plan.tokens, '{}')} ({how})")
    if plan.seconds is None:
        click.echo(f"time            unknown: {printable(plan.seconds_source)}")
    else:
        seconds = describe_range(plan.seconds, "{:.0f} s")
        click.echo(f"time            {seconds} (with loading; {printable(plan.seconds_source)})")
    if plan.cost is None:
        lm = classifier.connect().identity
        advice = printable(price_advice(lm.provider, lm.model))
        click.echo(f"cost            unknown: there is no price for this LM; {advice}")
    else:
        cached = f"; {counted(plan.tokens_cached, 'token')} as cached" if plan.tokens_cached else ""
        cost = describe_range(plan.cost, "${:.4f}") if plan.cost[2] else "$0"
        click.echo(f"cost            {cost} ({plan.price_source}{cached})")
    click.echo("one prompt, as it is sent")
    for line in plan.example.splitlines():
        click.echo(f"  {printable(line)}")
    if plan.example_token_ids is not None:
        click.echo(f"  token ids {' '.join(map(str, plan.example_token_ids))}")


def describe_range(values: tuple[float, float, float], form: str) -> str:
    """Return the expected value, with the low and the high one where they differ."""
    low, expected, high = (form.format(value) for value in values)
    return expected if low == high else f"{expected} expected, {low} to {high}"


def _report(classifier: Any, examples: Any, out: Path, as_json: bool) -> None:
    from blackbox.model.display import printable

    summary = classifier.training_summary_
    if as_json:
        common.echo_json(
            {
                "model_path": str(out),
                "classes": [str(label) for label in classifier.classes_],
                "prompts": [prompt.template for prompt in classifier.prompts_],
                "training": summary,
                "rows_left_out": {
                    "without_label": examples.n_unlabelled,
                    "without_text": examples.n_empty,
                    "of_rare_classes": examples.n_rare,
                },
                **label_sets.describe(classifier.model_),
                "usage": classifier.usage_.as_dict(),
            }
        )
        return
    common.say_training_facts(classifier)
    independent = f" of {counted(summary['n_groups'], 'group')}" if "n_groups" in summary else ""
    rounds = f"{counted(summary['n_rounds'], 'round')} over " if summary["n_rounds"] else ""
    common.say(
        f"{rounds}{counted(len(classifier.prompts_), 'prompt')} and "
        f"{counted(summary['n_rows'], 'row')}{independent}"
    )
    common.say_usage(classifier.usage_)
    languages = summary.get("prompt_languages", ["en"])
    if languages != ["en"]:
        common.say(f"prompts were tried in these languages: {', '.join(languages)} (--language)")
    if "sources" in summary:
        say_sources(summary)
    if "generation" in summary:
        say_generation(summary["generation"])
    if _would_gain_by_texts(classifier, examples):
        common.say(
            "few labels: texts without one can help, too (rows with an empty label, and "
            f"--classes {printable(','.join(map(str, classifier.classes_)))})"
        )
    kept = classifier.model_.examples
    if kept is not None:
        why = "its prompts show" if classifier.model_.shows_examples else "explanations show"
        common.say(f"the model file holds the {len(kept.texts)} training texts, which {why}")
    if summary["n_rows_left_out"]:
        common.say(f"{counted(summary['n_rows_left_out'], 'row')} left out")
    if summary["n_rows_truncated"]:
        common.say(common.truncated(summary["n_rows_truncated"], summary["context"]))
    common.say(f"saved to {out}; next: blackbox evaluate {out} DATA, blackbox inspect {out}")


def _would_gain_by_texts(classifier: Any, examples: Any) -> bool:
    """Return whether labels are few, and no text without one says what the LM says anyway."""
    from blackbox.boosting.splits import FEW_PER_CLASS

    if examples.several or not examples.labels or not all(examples.labels):
        return False
    if classifier.algorithm != "logit" or classifier.label_words is None:
        return False
    return len(examples.labels) < FEW_PER_CLASS * len(classifier.classes_)


def say_sources(summary: dict[str, Any]) -> None:
    """Print one line about the models of a library, on standard error."""
    used = [one for one in summary["sources"] if one["weight"]]
    shown = ", ".join(f"{one['name']} ({one['weight']:.0%})" for one in used)
    known = len(summary["sources"]) + len(summary["sources_refused"])
    common.say(f"models of the library used: {shown or 'none'} of {known}")


def say_generation(summary: dict[str, Any]) -> None:
    """Print one line about how prompts were generated, on standard error."""
    tried = ", ".join(f"{count} {name}" for name, count in summary["n_tried"].items())
    common.say(
        f"prompts generated in {summary['passes']} of "
        f"{counted(summary['budget'], 'forward pass')}: "
        f"{tried} tried"
    )
    carrying = summary["sources"].count("demonstrations")
    if carrying:
        common.say(
            f"{carrying} of the prompts contain training texts as demonstrations; exclude "
            "demonstrations by --prompt-source if that is not allowed"
        )
