"""`blackbox prompts`: pools of prompts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from blackbox.cli import common, train
from blackbox.cli.help import Group, option
from blackbox.cli.lm_options import backend_options
from blackbox.cli.options import json_option
from blackbox.cli.spending_options import SpendingOptions
from blackbox.cli.training_options import training_options, untrained
from blackbox.plurals import counted
from blackbox.progress import ProgressDisplay

_file = click.Path(dir_okay=False, path_type=Path)


@click.group("prompts", cls=Group, example="blackbox prompts show prompts.txt")
def command() -> None:
    """Generate, show and merge pools of prompts: text files with one prompt per line."""


def _without_prompts(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `train`, without those that name prompts or are about boosting."""

    @functools.wraps(function)
    def given(data: str, **kwargs: Any) -> None:
        function(data, **kwargs)

    wrapped = training_options(given)
    unwanted = {
        "prompts",
        "algorithm",
        "n_estimators",
        "label_words",
        "class_descriptions",
        "no_label_words",
        "library_prompts",
    }
    kept = [option for option in wrapped.__click_params__ if option.name not in unwanted]  # type: ignore[attr-defined]
    wrapped.__click_params__ = kept  # type: ignore[attr-defined]
    return wrapped


@command.command(
    "generate",
    short_help="Generate prompts for a task from labelled texts.",
    example="blackbox prompts generate messages.csv --out prompts.txt",
)
@option("--out", type=_file, required=True, group="Output", help="File of the pool.")
@_without_prompts
def generate(
    data: str, params: dict[str, Any], out: Path, spending: SpendingOptions, as_json: bool
) -> None:
    """Generate a pool of prompts for the task of DATA, from its training rows alone.

    With the same options, uses the same rows and generates the same prompts as `train --prompts
    auto`.
    """
    common.check_target(out, data)
    params |= {
        "prompts": "auto",
        "algorithm": "logit",
        "n_estimators": None,
        "label_words": (),
        "class_descriptions": (),
        "no_label_words": False,
        "library_prompts": 0,
    }
    examples = train.labelled_texts(data, params)
    progress = ProgressDisplay()
    classifier = untrained(params, spending, progress)
    try:
        with common.table_rows(data, examples.numbers, train.main_column(params)):
            generated = classifier.generate_prompts(
                examples.texts, examples.labels, groups=examples.groups
            )
    finally:
        progress.close()
    summary = generated.summary
    about = (
        f"Made from {counted(len(examples.texts), 'row')} of "
        f"{Path(common.table_name(data)).name} with {classifier.connect().identity.model}, in "
        f"{counted(summary['passes'], 'forward pass')}. The best come first."
    )
    generated.pool.write(out, generated.notes, about)
    if as_json:
        common.echo_json(
            {
                "pool_path": str(out),
                "prompts": [prompt.template for prompt in generated.pool],
                "notes": generated.notes,
                "generation": summary,
                "usage": classifier.usage_.as_dict(),
            }
        )
        return
    train.say_generation(summary)
    common.say_usage(classifier.usage_)
    common.say(
        f"saved to {out}; next: blackbox prompts show {out}, blackbox train DATA --prompts {out}"
    )


@command.command(
    "show",
    short_help="Show prompts, or the requests for a text.",
    example='blackbox prompts show prompts.txt --text "where is my parcel?"',
)
@click.argument("pool", type=_file)
@option(
    "--text", group="Data", help="A text: show what is sent for it, exactly, and its token ids."
)
@option("--text-pair", group="Data", advanced=True, help="The second text, for pairs of texts.")
@backend_options
@json_option
def show(
    pool: Path,
    text: str | None,
    text_pair: str | None,
    backend: str | None,
    model: str | None,
    backend_option: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show the prompts of POOL, or with --text exactly what the LM gets for each."""
    from blackbox.model.display import printable
    from blackbox.prompts.pool import PromptPool

    prompts = PromptPool.read(pool)
    if text is None:
        if text_pair is not None:
            raise click.UsageError("--text-pair requires --text")
        if as_json:
            common.echo_json([{"prompt": prompt.template} for prompt in prompts])
        for prompt in () if as_json else prompts:
            click.echo(printable(prompt.template))
        return
    shown = _as_sent(prompts, (text, text_pair), backend, model, backend_option)
    if as_json:
        common.echo_json(shown)
        return
    for one in shown:
        click.echo(printable(one["prompt"]))
        for line in one["text"].splitlines(keepends=True):
            click.echo(f"  {printable(line)}")  # a new line shows, as it is a token too
        ids = one["token_ids"]
        told = "unknown" if ids is None else " ".join(map(str, ids))
        click.echo(f"  token ids: {told}")


def _as_sent(
    prompts: Any,
    example: tuple[str, str | None],
    backend: str | None,
    model: str | None,
    backend_option: tuple[str, ...],
) -> list[dict[str, Any]]:
    """Return each prompt as it is sent for a text."""
    import backends
    from blackbox.answers.requests import render_requests

    options = common.parse_backend_options(backend_option)
    if model is not None:
        options["model"] = model
    lm = backends.load(backend, **options)
    shown = []
    for prompt in prompts:
        sent, ids = lm.show(render_requests(lm, [prompt], [example]).requests[0])
        shown.append({"prompt": prompt.template, "text": sent, "token_ids": ids})
    return shown


@command.command(
    "merge",
    short_help="Merge several pools into one.",
    example="blackbox prompts merge mine.txt generated.txt --out all.txt",
)
@click.argument("pools", type=_file, nargs=-1, required=True)
@option("--out", type=_file, required=True, group="Output", help="File of the merged pool.")
def merge(pools: tuple[Path, ...], out: Path) -> None:
    """Write the prompts of all POOLS to one file, without duplicates, with their comments."""
    from blackbox.prompts.pool import PromptPool, read_with_notes

    common.check_target(out)
    read = [(pool, read_with_notes(pool)) for pool in pools]
    _check_kinds(read)
    noted: dict[Any, str] = {}
    for prompt, note in (one for _, of_pool in read for one in of_pool):
        noted.setdefault(prompt, note)
    about = "Merged from " + ", ".join(pool.name for pool in pools) + "."
    PromptPool(noted).write(out, list(noted.values()), about)
    repeated = sum(len(of_pool) for _, of_pool in read) - len(noted)
    common.say(f"{counted(len(noted), 'prompt')} (duplicates removed: {repeated}); saved to {out}")


def _check_kinds(read: list[tuple[Path, list[tuple[Any, str]]]]) -> None:
    """Raise if some prompts are for pairs and some for single texts: no table has both."""
    from blackbox.errors import PromptError

    kinds = {prompt.takes_pair: pool for pool, of_pool in read for prompt, _ in of_pool}
    if len(kinds) > 1:
        raise PromptError(
            f"{kinds[True]} has prompts for pairs of texts and {kinds[False]} for single texts: "
            "merge each kind separately"
        )
