"""`blackbox prompts`: pools of prompts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from blackbox.cli import common, train

_file = click.Path(dir_okay=False, path_type=Path)


@click.group("prompts", short_help="Make, show and merge pools of prompts.")
def command() -> None:
    """Pools are text files, one prompt a line: read them, edit them, share them."""


def _without_prompts(function: Callable[..., None]) -> Callable[..., None]:
    """The options of `train` but those that name prompts or boost."""

    @functools.wraps(function)
    def given(data: str, **kwargs: Any) -> None:
        function(data, **kwargs)

    wrapped = train.training_options(given)
    unwanted = {
        "prompts",
        "algorithm",
        "n_estimators",
        "label_words",
        "no_label_words",
    }
    kept = [option for option in wrapped.__click_params__ if option.name not in unwanted]  # type: ignore[attr-defined]
    wrapped.__click_params__ = kept  # type: ignore[attr-defined]
    return wrapped


@command.command("generate", short_help="Make prompts for a task out of labelled texts.")
@click.option("--out", type=_file, required=True, help="Where the pool goes.")
@_without_prompts
def generate(
    data: str, params: dict[str, Any], out: Path, spending: common.SpendingOptions, as_json: bool
) -> None:
    """Make a pool of prompts for the task of DATA, out of its training rows alone.

    With the same values it uses the same rows and makes the same prompts as `train --prompts auto`.
    """
    common.check_target(out)
    params |= {
        "prompts": "auto",
        "algorithm": "logit",
        "n_estimators": None,
        "label_words": (),
        "no_label_words": False,
    }
    texts, labels = train.labelled_texts(data, params)
    progress = common.Progress()
    classifier = train.untrained(params, spending, progress)
    try:
        generated = classifier.generate_prompts(texts, labels)
    finally:
        progress.close()
    summary = generated.summary
    about = (
        f"Made from {len(texts)} rows of {Path(common.table_name(data)).name} with "
        f"{classifier.lm_identity_.model}, in {summary['passes']} forward passes. The best "
        "come first."
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


@command.command("show", short_help="Show prompts, and what is sent for a text.")
@click.argument("pool", type=_file)
@click.option("--text", help="Fill this text in, and show the exact text and token ids sent.")
@click.option("--text-pair", help="The second text of a pair.")
@common.backend_options
@common.json_option
def show(
    pool: Path,
    text: str | None,
    text_pair: str | None,
    backend: str | None,
    model: str | None,
    backend_option: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show the prompts of POOL; with --text as the LM gets them, token by token."""
    from blackbox.model.display import printable
    from blackbox.prompts.pool import PromptPool

    prompts = PromptPool.read(pool)
    if text is None:
        if text_pair is not None:
            raise click.UsageError("--text-pair goes with --text")
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
        told = "the LM doesn't tell" if ids is None else " ".join(map(str, ids))
        click.echo(f"  token ids: {told}")


def _as_sent(
    prompts: Any,
    example: tuple[str, str | None],
    backend: str | None,
    model: str | None,
    backend_option: tuple[str, ...],
) -> list[dict[str, Any]]:
    """Each prompt with a text filled in, as the LM gets it."""
    import backends
    from blackbox.answers.passes import render

    options = common.parse_backend_options(backend_option)
    if model is not None:
        options["model"] = model
    lm = backends.load(backend or "llamacpp", **options)
    shown = []
    for prompt in prompts:
        sent, ids = lm.show(render(lm, [prompt], [example]).requests[0])
        shown.append({"prompt": prompt.template, "text": sent, "token_ids": ids})
    return shown


@command.command("merge", short_help="Put several pools into one.")
@click.argument("pools", type=_file, nargs=-1, required=True)
@click.option("--out", type=_file, required=True, help="Where the pool goes.")
def merge(pools: tuple[Path, ...], out: Path) -> None:
    """Write the prompts of all POOLS to one file, each once, with the comments above them."""
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
    common.say(f"{len(noted)} prompts, {repeated} of them twice; saved to {out}")


def _check_kinds(read: list[tuple[Path, list[tuple[Any, str]]]]) -> None:
    """Refuse prompts for pairs beside prompts for single texts: no table has both."""
    from blackbox.errors import PromptError

    kinds = {prompt.takes_pair: pool for pool, of_pool in read for prompt, _ in of_pool}
    if len(kinds) > 1:
        raise PromptError(
            f"{kinds[True]} has prompts for pairs of texts and {kinds[False]} for single texts: "
            "merge each kind by itself"
        )
