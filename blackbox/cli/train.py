"""`blackbox train`, and what `blackbox plan` shares with it."""

from __future__ import annotations

import functools
import reprlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from blackbox.boosting import ALGORITHM_NAMES
from blackbox.cli import common

_Command = Callable[..., None]

_OF_AUTO = (
    "generation_budget",
    "prompt_sources",
    "writer_backend",
    "writer_model",
    "writer_option",
)


def training_options(function: _Command) -> _Command:
    """Add the options that say what is trained, on what; the command gets them as `params`."""

    @functools.wraps(function)
    def collected(data: str, **kwargs: Any) -> None:
        own = {name: kwargs.pop(name) for name in _OF_COMMANDS if name in kwargs}
        function(data, params=kwargs, **own)

    for option in reversed(
        (
            click.argument("data"),
            common.column_options,
            click.option(
                "--label-column",
                metavar="COLUMN",
                default="label",
                show_default=True,
                help="Column of labels.",
            ),
            common.format_option,
            common.backend_options,
            click.option(
                "--batch-api",
                is_flag=True,
                help="Send requests through the API's batch endpoint: cheaper, within a day. "
                "Leave it with Ctrl-C; the same command goes on.",
            ),
            click.option(
                "--prompts",
                metavar="FILE|auto",
                help="A file of prompts, one a line; or auto: prompts are made for the task. "
                "By default the program chooses among built-in ones.",
            ),
            click.option(
                "--generation-budget",
                type=click.IntRange(min=1),
                metavar="N",
                help="Forward passes that making prompts may take, training included; by "
                "default 4000.",
            ),
            click.option(
                "--prompt-source",
                "prompt_sources",
                multiple=True,
                type=click.Choice(
                    ["templates", "instructions", "written", "mutations", "demonstrations"]
                ),
                help="Make prompts from this source alone; may be repeated. Demonstrations "
                "put training texts into prompts.  [default: all]",
            ),
            click.option(
                "--writer-backend",
                metavar="NAME",
                help="Another LM that writes prompts; what runs it.  [default: --backend]",
            ),
            click.option(
                "--writer-model", metavar="NAME|PATH", help="Another LM that writes prompts."
            ),
            click.option(
                "--writer-option",
                multiple=True,
                metavar="NAME=VALUE",
                help="One more argument for the backend that writes; may be repeated. If it "
                "is the one of --backend, those of --backend-option hold for it too.",
            ),
            click.option("--task", help="One line that says what is asked of a text."),
            click.option(
                "--label-word",
                "label_words",
                multiple=True,
                metavar="LABEL=WORD",
                help="A word that speaks for a class from the start, in place of its name; "
                "may be repeated.",
            ),
            click.option(
                "--no-label-words",
                is_flag=True,
                help="Let neither names nor words speak for the classes.",
            ),
            click.option(
                "--algorithm",
                type=click.Choice(ALGORITHM_NAMES),
                default="logit",
                show_default=True,
                help="How weak learners are boosted.",
            ),
            click.option(
                "--shots",
                type=click.IntRange(min=1),
                metavar="K",
                help="Use K rows a class, drawn with the seed.",
            ),
            click.option(
                "--n-prompts",
                type=click.IntRange(min=1),
                default=10,
                show_default=True,
                help="Prompts to choose.",
            ),
            click.option(
                "--max-prompts",
                type=click.IntRange(min=1),
                metavar="N",
                help="Keep the N prompts that add most: fewer passes for each text.",
            ),
            click.option(
                "--n-estimators", type=click.IntRange(min=1), help="Rounds of boosting at most."
            ),
            click.option(
                "--top-k",
                type=click.IntRange(min=1),
                default=200,
                show_default=True,
                help="Next tokens to read of each answer.",
            ),
            click.option(
                "--balanced", is_flag=True, help="Weigh classes so that each counts the same."
            ),
            common.seed_option,
            common.row_policy_option,
            common.spending_options,
            common.json_option,
        )
    ):
        collected = option(collected)
    return collected


_OF_COMMANDS = ("out", "dry_run", "spending", "as_json")


@click.command("train", short_help="Train a classifier on a table of labelled texts.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the model goes.  [required, but for --dry-run]",
)
@click.option("--dry-run", is_flag=True, help="Only say what it will cost, as `blackbox plan`.")
@training_options
def command(
    data: str,
    params: dict[str, Any],
    out: Path | None,
    dry_run: bool,
    spending: common.SpendingOptions,
    as_json: bool,
) -> None:
    """Train a classifier on DATA, a CSV, TSV, JSONL or Parquet file; "-" is standard input."""
    if dry_run:
        show_plan(data, params, spending, as_json)
        return
    if out is None:
        raise click.UsageError("Missing option '--out'.")
    common.check_folder(out)
    texts, labels = labelled_texts(data, params)
    progress = common.Progress()
    classifier = untrained(params, spending, progress)
    try:
        classifier.fit(texts, labels)
    finally:
        progress.close()
    classifier.save(out)
    _report(classifier, out, as_json)


def labelled_texts(data: str, params: dict[str, Any]) -> tuple[list[Any], list[str]]:
    """The rows to train on."""
    from blackbox.boosting.splits import draw_shots
    from blackbox.tables import read_examples

    shots, column = params["shots"], params["label_column"]
    examples = read_examples(
        data,
        text_column=params["text_column"],
        text_pair_column=params["text_pair_column"],
        label_column=column,
        format=params["format_"],
        allow_empty=params["on_row_error"] == "abstain",
    )
    _check_labels(examples, common.table_name(data), column, allow_single=shots is not None)
    rows = list(range(len(examples.texts)))
    if shots is not None:
        rows = draw_shots(examples.labels, shots, params["seed"])
    return [examples.texts[row] for row in rows], [examples.labels[row] for row in rows]


def untrained(
    params: dict[str, Any], spending: common.SpendingOptions, progress: Any = None
) -> Any:
    """The classifier that the options ask for."""
    from blackbox import PromptBoostingClassifier

    same = (
        "model",
        "n_prompts",
        "max_prompts",
        "task",
        "algorithm",
        "n_estimators",
        "top_k",
        "on_row_error",
    )
    return PromptBoostingClassifier(
        params["backend"] or "llamacpp",
        backend_options=_backend_options(params),
        prompts=_prompts(params),
        label_words=_label_words(params),
        class_weight="balanced" if params["balanced"] else None,
        random_state=params["seed"],
        callback=progress,
        **{name: params[name] for name in same},
        **spending.parameters(),
    )


def _label_words(params: dict[str, Any]) -> Any:
    given = params["label_words"]
    if params["no_label_words"]:
        if given:
            raise click.UsageError("--label-word and --no-label-words exclude each other")
        return None
    if not given:
        return "names"
    _check_label_words_are_used(params["algorithm"])
    words: dict[str, list[str]] = {}
    for one in given:
        label, equals, word = one.rpartition("=")
        if not (label and equals and word):
            raise click.BadParameter(f"{one!r} is not LABEL=WORD", param_hint="'--label-word'")
        words.setdefault(label, []).append(word)
    return words


def _check_label_words_are_used(algorithm: str) -> None:
    from blackbox.boosting.algorithms import ALGORITHMS

    if not ALGORITHMS[algorithm].uses_label_words:
        using = " or ".join(name for name, one in ALGORITHMS.items() if one.uses_label_words)
        raise click.UsageError(f"--label-word goes with --algorithm {using}")


def _prompts(params: dict[str, Any]) -> Any:
    from blackbox.generation import PromptGenerator

    given = [name for name in _OF_AUTO if params[name]]
    if params["prompts"] == "auto":
        asked = {
            "budget": params["generation_budget"],
            "sources": params["prompt_sources"],
            "writer": _writer(params),
        }
        return PromptGenerator(**{name: value for name, value in asked.items() if value})
    if given:
        option = given[0].removesuffix("s").replace("_", "-")
        raise click.UsageError(f"--{option} goes with --prompts auto")
    return None if params["prompts"] is None else Path(params["prompts"])


def _writer(params: dict[str, Any]) -> Any:
    """The LM that writes, if it is another one."""
    if not any(params[name] for name in ("writer_backend", "writer_model", "writer_option")):
        return None
    import backends

    reader = params["backend"] or "llamacpp"
    name = params["writer_backend"] or reader
    options: dict[str, Any] = {}
    if name == reader:
        # the same place answers: texts go nowhere else
        options = common.parse_backend_options(params["backend_option"])
        options |= {} if params["model"] is None else {"model": params["model"]}
    options |= common.parse_backend_options(params["writer_option"], "--writer-option")
    options |= {} if params["writer_model"] is None else {"model": params["writer_model"]}
    return backends.load(name, **options)


def _backend_options(params: dict[str, Any]) -> dict[str, Any]:
    options = common.parse_backend_options(params["backend_option"])
    if params["batch_api"]:
        if params["backend"] != "openai":
            raise click.UsageError("--batch-api goes with --backend openai")
        options["batch"] = True
    return options


def show_plan(
    data: str, params: dict[str, Any], spending: common.SpendingOptions, as_json: bool
) -> None:
    """Print what a training will take."""
    from blackbox.model.display import printable

    texts, labels = labelled_texts(data, params)
    classifier = untrained(params, spending)
    plan = classifier.plan(texts, labels)
    low, expected, worst = plan.tokens
    if as_json:
        common.echo_json(plan.as_dict())
        return
    counted = "counted" if plan.tokens_counted else "an estimate"
    most = "at most " if plan.at_most else ""
    click.echo(f"forward passes  {most}{plan.passes}")
    click.echo(f"  in the store  {plan.passes_from_store}")
    click.echo(f"  to make       {most}{plan.passes_to_make}")
    click.echo(f"tokens          {expected} expected, {low} to {worst} ({counted})")
    if plan.seconds is None:
        click.echo("time            unknown: no pass was tried, as its price isn't known to be 0")
    else:
        click.echo(
            f"time            {plan.seconds[1]:.0f} s expected, {plan.seconds[0]:.0f} to "
            f"{plan.seconds[2]:.0f} s (from a short probe)"
        )
    if plan.cost is None:
        click.echo("cost            unknown: this LM has no price in the table")
    else:
        click.echo(
            f"cost            ${plan.cost[1]:.4f} expected, ${plan.cost[0]:.4f} to "
            f"${plan.cost[2]:.4f} (prices of {plan.price_as_of})"
        )
    click.echo("one prompt, as it is sent")
    for line in plan.example.splitlines():
        click.echo(f"  {printable(line)}")
    if plan.example_token_ids is not None:
        click.echo(f"  token ids {' '.join(map(str, plan.example_token_ids))}")


def _report(classifier: Any, out: Path, as_json: bool) -> None:
    if as_json:
        common.echo_json(
            {
                "model_path": str(out),
                "classes": [str(label) for label in classifier.classes_],
                "prompts": [prompt.template for prompt in classifier.prompts_],
                "training": classifier.training_summary_,
                "usage": classifier.usage_.as_dict(),
            }
        )
        return
    summary = classifier.training_summary_
    common.say(
        f"trained on {summary['n_rows']} rows, {len(classifier.classes_)} classes: "
        f"{summary['n_rounds']} rounds over {len(classifier.prompts_)} prompts"
    )
    common.say_usage(classifier.usage_)
    if "generation" in summary:
        say_generation(summary["generation"])
    if summary["n_rows_left_out"] or summary["n_rows_truncated"]:
        common.say(
            f"{summary['n_rows_left_out']} rows left out, "
            f"{summary['n_rows_truncated']} texts cut to fit the LM"
        )
    common.say(f"saved to {out}; next: blackbox evaluate {out} DATA, blackbox inspect {out}")


def say_generation(summary: dict[str, Any]) -> None:
    """How prompts were made, in one line for people."""
    tried = ", ".join(f"{count} {name}" for name, count in summary["n_tried"].items())
    common.say(
        f"prompts made in {summary['passes']} of {summary['budget']} forward passes: {tried} tried"
    )
    carrying = summary["sources"].count("demonstrations")
    if carrying:
        common.say(
            f"training texts stand as examples in {carrying} of the prompts; leave "
            "demonstrations out of --prompt-source where that may not be"
        )


def _check_labels(examples: Any, name: str, column: str, *, allow_single: bool) -> None:
    """Refuse labels that can't be learned, before anything is spent."""
    from blackbox.errors import DataError

    counts = Counter(examples.labels)
    if len(counts) == 1:
        raise DataError(
            f"{name}, column {column!r}: all rows have the label "
            f"{reprlib.repr(examples.labels[0])}, and a classifier needs two; add rows with "
            "another, or name another --label-column"
        )
    for number, label in zip(examples.numbers, examples.labels, strict=True):
        if counts[label] == 1 and not allow_single:
            raise DataError(
                f"{name}, row {number}, column {column!r}: no other row has the label "
                f"{reprlib.repr(label)}; add rows with it, correct it, or remove the row"
            )
