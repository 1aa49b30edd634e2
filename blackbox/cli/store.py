"""`blackbox store`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from blackbox.cli import common
from blackbox.cli.help import Group, option
from blackbox.cli.options import FiniteRange, json_option
from blackbox.plurals import counted

_store_option = option(
    "--store",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    group="Data",
    help="File of the store.  [default: in the cache directory]",
)


@click.group("store", cls=Group, example="blackbox store info")
def command() -> None:
    """Manage the store, which caches the LM's answers.

    It holds digests of texts, and no text but what an LM wrote.
    """


def _existing(store: Path | None) -> Any:
    """Return a store that exists; none is created here."""
    from blackbox.errors import StoreError

    if store is not None and not store.exists():
        raise StoreError(f"{store}: no such file")
    return _opened(store)


def _opened(store: Path | None) -> Any:
    from blackbox.errors import StoreError
    from blackbox.lm.client import find_store

    file = find_store(store if store is not None else True)
    if file is None:
        raise StoreError("the store is switched off by the environment: give its file by --store")
    return file


@command.command("info", example="blackbox store info")
@_store_option
@json_option
def info(store: Path | None, as_json: bool) -> None:
    """Show size, number of answers and language models of the store."""
    from blackbox.model.display import printable

    found = _existing(store).info()
    for model in found["models"]:
        model["identity"] = json.loads(model["identity"])
    if as_json:
        common.echo_json(found)
        return
    click.echo(f"file      {printable(found['path'])}")
    click.echo(f"size      {found['bytes'] / 1e6:.1f} MB of at most {found['max_bytes'] / 1e6:.0f}")
    click.echo(f"passes    {found['passes']}")
    if found["passes"]:
        click.echo(f"from, to  {found['first_made']}, last used {found['last_used']}")
    for model in found["models"]:
        who = f"{model['identity'].get('provider')} {model['identity'].get('model')}"
        each = model["value_bytes"] / model["passes"]
        click.echo(f"  {model['passes']:8}  {printable(who)} ({each:.0f} bytes each)")
        if model["engines"]:
            click.echo(f"            by {printable(', '.join(model['engines']))}")


@command.command("verify", example="blackbox store verify")
@_store_option
@json_option
def verify(store: Path | None, as_json: bool) -> None:
    """Check all answers and delete damaged ones, which are then asked for again."""
    total, dropped = _existing(store).verify()
    if as_json:
        common.echo_json({"passes": total, "dropped": dropped})
    else:
        click.echo(f"{counted(total, 'answer')} read, {dropped} damaged and deleted")


@command.command("prune", example="blackbox store prune --older-than 90")
@option(
    "--older-than",
    type=FiniteRange(min=0),
    required=True,
    metavar="DAYS",
    group="Limits and cost",
    help="Delete answers that were not used for so many days.",
)
@_store_option
@json_option
def prune(older_than: float, store: Path | None, as_json: bool) -> None:
    """Delete answers that were not used for a while, and free their space."""
    dropped = _existing(store).prune(older_than)
    if as_json:
        common.echo_json({"dropped": dropped})
    else:
        click.echo(f"{counted(dropped, 'answer')} deleted")


@command.command("recover", example="blackbox store recover passes.sqlite.damaged-1")
@click.argument("damaged", type=click.Path(dir_okay=False, path_type=Path))
@_store_option
@json_option
def recover(damaged: Path, store: Path | None, as_json: bool) -> None:
    """Add every answer that can be read of DAMAGED, a damaged store, to the store.

    DAMAGED is not changed.
    """
    read, added = _opened(store).recover(damaged)
    if as_json:
        common.echo_json({"read": read, "added": added})
    else:
        click.echo(f"{counted(read, 'answer')} read, {added} of them added to the store")


@command.command("export", example="blackbox store export answers.parquet")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@_store_option
def export(out: Path, store: Path | None) -> None:
    """Export all answers to OUT, a Parquet file.

    Its columns are identity, key, token ids and log-probabilities.
    """
    from blackbox.store.exchange import export_store

    common.check_folder(out)
    n_answers = export_store(_existing(store), out)
    common.say(f"{counted(n_answers, 'answer')} exported to {out}")


@command.command("import", example="blackbox store import answers.parquet")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@_store_option
def import_(sources: tuple[Path, ...], store: Path | None) -> None:
    """Import answers from SOURCES: exported stores, or folders that `collect` wrote.

    Import only files that you trust.
    """
    from blackbox.store.exchange import exports_in, import_store

    files = [file for source in sources for file in exports_in(source)]
    n_answers = sum(import_store(_opened(store), file) for file in files)
    where = sources[0] if len(sources) == 1 else counted(len(sources), "place")
    common.say(f"{counted(n_answers, 'answer')} imported from {where}")
