"""`blackbox library`: models of earlier tasks, from which the training of others starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from blackbox.cli import common, train
from blackbox.cli.help import Group, option
from blackbox.cli.lm_options import backend_options
from blackbox.cli.options import (
    column_options,
    encoding_options,
    format_option,
    json_option,
    label_column_option,
    seed_option,
    together,
)
from blackbox.cli.spending_options import SpendingOptions, spending_options
from blackbox.plurals import counted

_library = option(
    "--library",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    default=Path("library"),
    show_default=True,
    group="Data",
    help="Folder of the library.",
)


@click.group("library", cls=Group, example="blackbox library add reviews.blackbox")
def command() -> None:
    """Keep models of earlier tasks; `train --library DIR` starts from those that fit."""


@command.command(
    "add",
    short_help="Add saved models.",
    example='blackbox library add reviews.blackbox --note "reviews of products"',
)
@click.argument(
    "models", metavar="MODEL...", type=click.Path(path_type=Path), nargs=-1, required=True
)
@_library
@option("--name", group="Data", help="Name in the library.  [default: that of the file]")
@option("--licence", default="", group="Data", help="Licence of the data it was trained on.")
@option("--note", default="", group="Data", help="A note, such as where its data is from.")
def add(models: tuple[Path, ...], folder: Path, name: str | None, licence: str, note: str) -> None:
    """Copy models into a library, without texts of their training.

    A model keeps digests of its training rows, so that a task that has one of them is recognised,
    and does not start from that model.
    """
    from blackbox.library.folder import Library

    if name is not None and len(models) > 1:
        raise click.UsageError("--name requires a single model")
    library = Library.open(folder)
    for model in models:
        library = library.add(model, name=name, licence=licence, note=note)
    models_now = counted(len(library.entries), "model")
    common.say(f"{folder} has {models_now}; next: blackbox train DATA --library {folder}")


@command.command("list", short_help="List the models.", example="blackbox library list")
@_library
@json_option
def list_sources(folder: Path, as_json: bool) -> None:
    """List the models of a library, with their classes and LMs."""
    from blackbox.library.folder import Library

    entries = Library.read(folder).entries.values()
    if as_json:
        common.echo_json([asdict(entry) for entry in entries])
        return
    for entry in entries:
        licence = f"; {_line(entry.licence)}" if entry.licence else ""
        click.echo(
            f"{entry.name}  ({_line(str(entry.language_model.get('model')))}, "
            f"{counted(entry.n_rows, 'row')}"
            f"{licence})\n    {', '.join(map(_line, entry.classes[:12]))}"
        )


@command.command("show", short_help="Show a model.", example="blackbox library show reviews")
@click.argument("name")
@_library
@json_option
def show(name: str, folder: Path, as_json: bool) -> None:
    """Show what a library has of the model NAME; `blackbox inspect` shows what it learned."""
    from blackbox.library.folder import Library

    entry = Library.read(folder).entry(name)
    if as_json:
        common.echo_json(asdict(entry))
        return
    lm = entry.language_model
    click.echo(f"LM         {_line(str(lm.get('model')))} ({_line(str(lm.get('provider')))})")
    click.echo(f"classes    {', '.join(map(_line, entry.classes))}")
    click.echo(f"trained    on {counted(entry.n_rows, 'row')}")
    click.echo(f"licence    {_line(entry.licence) or 'not given'}")
    if entry.note:
        click.echo(f"note       {_line(entry.note)}")
    click.echo(f"file       {folder / name}.blackbox")
    click.echo("\nprompts")
    for prompt in entry.prompts:
        click.echo(f"  {_line(prompt)}")


@command.command("remove", short_help="Remove models.", example="blackbox library remove reviews")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_library
def remove(names: tuple[str, ...], folder: Path) -> None:
    """Remove models from a library, with their files."""
    from blackbox.library.folder import Library

    library = Library.read(folder)
    for name in names:
        library.entry(name)  # nothing is removed where one name is wrong
    for name in dict.fromkeys(names):
        library = library.remove(name)
    common.say(f"{folder} has {counted(len(library.entries), 'model')}")


_rank_options: Callable[..., Any] = together(
    click.argument("data"),
    _library,
    column_options,
    label_column_option,
    format_option,
    encoding_options,
    option(
        "--shots",
        type=click.IntRange(min=1),
        metavar="K",
        group="Data",
        help="Rank by K rows per class, sampled with the seed.",
    ),
    option(
        "--prompts",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        group="Data",
        help="A file of prompts: each model reads those that it has in common with them.  "
        "[default: all prompts of the models]",
    ),
    backend_options,
    seed_option,
    spending_options,
    json_option,
)


@command.command(
    "rank",
    short_help="Rank the models for a task.",
    example="blackbox library rank messages.csv",
)
@_rank_options
def rank(folder: Path, data: str, spending: SpendingOptions, as_json: bool, **params: Any) -> None:
    """Rank the models of a library by how well they tell the classes of DATA, labelled texts.

    The score is the mean gain in log-likelihood per text over the class shares, in nats, of a
    text's label by the labels of the other texts (leave-one-out LEEP). A model below 0 says nothing
    about these classes.
    """
    from blackbox.answers.passes import next_tokens
    from blackbox.answers.texts import check_texts
    from blackbox.boosting.label_words import texts_of_names
    from blackbox.errors import LibraryError
    from blackbox.library.folder import Library
    from blackbox.library.sources import Sources
    from blackbox.lm.connect import connect
    from blackbox.prompts.pool import PromptPool

    library = Library.read(folder)
    given = params | {"group_column": None, "on_row_error": "raise", "min_class_rows": 1}
    given |= {"labels": "column", "classes": None, "none_of_these": None, "label_separator": None}
    given["label_columns"] = (given.pop("label_column"),)
    examples = train.labelled_texts(data, given)
    options = common.parse_backend_options(params["backend_option"])
    [lm] = spending.clients(
        lambda: connect(
            params["backend"], params["model"], options, images=bool(params["image_column"])
        )
    )
    texts = check_texts(examples.texts)
    sources = Sources.of(library, lm.identity, list(texts))
    if params["prompts"] is None and not sources.models:
        raise LibraryError(f"{folder}: no model of it can be used: {_reasons(sources.refused)}")
    pool = PromptPool(
        sources.prompts() if params["prompts"] is None else PromptPool.read(params["prompts"])
    )
    top_k = min(200, lm.limits.max_top_k)
    answers = next_tokens(lm, pool, texts, top_k)
    names = texts_of_names(sorted(set(examples.labels)), pair=texts[0][1] is not None)
    shared = sources.shared(pool) if names else None
    named = None if shared is None else next_tokens(lm, shared, names, top_k)
    ranked = sources.rank_labelled(
        pool, answers, examples.labels, named if named and not named.row_errors else None
    )
    if as_json:
        common.echo_json(
            {
                "sources": [
                    {
                        "name": one.source.name,
                        "score": round(one.score, 4),
                        "prompts": len(one.source.prompts),
                    }
                    for one in ranked
                ],
                "refused": dict(sources.refused),
                "usage": lm.usage.as_dict(),
            }
        )
        return
    for one in ranked:
        click.echo(
            f"{one.score:+.3f}  {one.source.name}  ({counted(len(one.source.prompts), 'prompt')})"
        )
    for name, why in sources.refused.items():
        click.echo(f"     –  {name}  ({_line(why)})")
    common.say_usage(lm.usage)


def _reasons(refused: Any) -> str:
    return "; ".join(f"{name}: {why}" for name, why in refused.items()) or "it is empty"


def _line(text: str) -> str:
    from blackbox.model.display import printable

    return printable(text)
