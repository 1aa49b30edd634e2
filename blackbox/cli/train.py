"""`blackbox train`."""

from __future__ import annotations

import reprlib
from collections import Counter
from pathlib import Path
from typing import Any

import click

from blackbox.cli import common


@click.command("train", short_help="Train a classifier on a table of labelled texts.")
@click.argument("data")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path),
              help="Where the model goes.")  # fmt: skip
@common.column_options
@click.option("--label-column", metavar="COLUMN", default="label", show_default=True,
              help="Column of labels.")  # fmt: skip
@common.format_option
@common.backend_options
@click.option("--prompts", type=click.Path(dir_okay=False, path_type=Path),
              help="A file of prompts, one a line; by default the program chooses.")  # fmt: skip
@click.option("--task", help="One line that says what is asked of a text.")
@click.option("--algorithm", type=click.Choice(["logit", "samme"]), default="logit",
              show_default=True, help="How weak learners are boosted.")  # fmt: skip
@click.option("--shots", type=click.IntRange(min=1), metavar="K",
              help="Use K rows a class, drawn with the seed.")  # fmt: skip
@click.option("--n-prompts", type=click.IntRange(min=1), default=10, show_default=True,
              help="Prompts to choose.")  # fmt: skip
@click.option("--n-estimators", type=click.IntRange(min=1), help="Rounds of boosting at most.")
@click.option("--top-k", type=click.IntRange(min=1), default=200, show_default=True,
              help="Next tokens to read of each answer.")  # fmt: skip
@click.option("--balanced", is_flag=True, help="Weigh classes so that each counts the same.")
@common.seed_option
@common.row_policy_option
@common.json_option
def command(
    data: str, out: Path, text_column: str, text_pair_column: str | None, label_column: str,
    format_: str | None, backend: str | None, model: str | None, backend_option: tuple[str, ...],
    prompts: Path | None, task: str | None, algorithm: str, shots: int | None, n_prompts: int,
    n_estimators: int | None, top_k: int, balanced: bool, seed: int, on_row_error: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Train a classifier on DATA, a CSV, TSV, JSONL or Parquet file; "-" is standard input."""
    from blackbox import PromptBoostingClassifier
    from blackbox.sampling import draw_shots
    from blackbox.tables import read_examples

    common.check_folder(out)
    examples = read_examples(
        data, text_column=text_column, text_pair_column=text_pair_column,
        label_column=label_column, format=format_, allow_empty=on_row_error == "abstain",
    )  # fmt: skip
    rows = list(range(len(examples.texts)))
    _check_labels(examples, common.table_name(data), label_column, allow_single=shots is not None)
    if shots is not None:
        rows = draw_shots(examples.labels, shots, seed)
    progress = common.Progress()
    classifier = PromptBoostingClassifier(
        backend or "llamacpp", model=model,
        backend_options=common.parse_backend_options(backend_option), prompts=prompts,
        n_prompts=n_prompts, task=task, algorithm=algorithm, n_estimators=n_estimators,
        top_k=top_k, on_row_error=on_row_error, class_weight="balanced" if balanced else None,
        random_state=seed, callback=progress,
    )  # fmt: skip
    try:
        classifier.fit(
            [examples.texts[row] for row in rows], [examples.labels[row] for row in rows]
        )
    finally:
        progress.close()
    classifier.save(out)
    usage = classifier.usage_
    if as_json:
        common.echo_json(
            {
                "model_path": str(out),
                "classes": [str(label) for label in classifier.classes_],
                "prompts": [prompt.template for prompt in classifier.prompts_],
                "training": classifier.training_summary_,
                "forward_passes": usage.passes,
                "lm_tokens": usage.tokens,
                "lm_tokens_evaluated": usage.tokens_evaluated,
                "lm_tokens_least": usage.tokens_least,
                "seconds_lm": round(usage.seconds, 3),
            }
        )
        return
    summary = classifier.training_summary_
    common.say(
        f"trained on {summary['n_rows']} rows, {len(classifier.classes_)} classes: "
        f"{summary['n_rounds']} rounds over {len(classifier.prompts_)} prompts"
    )
    common.say(
        f"{usage.passes} forward passes, {usage.tokens} tokens ({usage.tokens_evaluated} "
        f"evaluated; a perfect prefix cache needs {usage.tokens_least}), {usage.seconds:.0f} s"
    )
    if summary["n_rows_left_out"] or summary["n_rows_truncated"]:
        common.say(
            f"{summary['n_rows_left_out']} rows left out, "
            f"{summary['n_rows_truncated']} texts cut to fit the LM"
        )
    common.say(f"saved to {out}; next: blackbox evaluate {out} DATA, blackbox inspect {out}")


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
