"""`blackbox store`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from blackbox.cli import common

_store_option = click.option(
    "--store",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The store's file.  [default: in the cache directory]",
)


@click.group("store", short_help="Look after the answers that were paid for.")
def command() -> None:
    """Look after the answers that were paid for. Texts are not among them, only digests."""


def _existing(store: Path | None) -> Any:
    """The store that is there; none is made here."""
    from blackbox.errors import StoreError

    if store is not None and not store.exists():
        raise StoreError(f"{store}: no such file")
    return _opened(store)


def _opened(store: Path | None) -> Any:
    from blackbox.errors import StoreError
    from blackbox.lm.client import find_store

    file = find_store(store if store is not None else True)
    if file is None:
        raise StoreError("the environment switches the store off: name its file by --store")
    return file


@command.command("info")
@_store_option
@common.json_option
def info(store: Path | None, as_json: bool) -> None:
    """Say what the store holds."""
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


@command.command("verify")
@_store_option
@common.json_option
def verify(store: Path | None, as_json: bool) -> None:
    """Check every answer; drop what is damaged. Damaged answers are asked for again."""
    total, dropped = _existing(store).verify()
    if as_json:
        common.echo_json({"passes": total, "dropped": dropped})
    else:
        click.echo(f"{total} answers read, {dropped} damaged and dropped")


@command.command("prune")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    required=True,
    metavar="DAYS",
    help="Drop answers that were not used for so many days.",
)
@_store_option
@common.json_option
def prune(older_than: float, store: Path | None, as_json: bool) -> None:
    """Drop answers that were not used for a while, and give their space back."""
    dropped = _existing(store).prune(older_than)
    if as_json:
        common.echo_json({"dropped": dropped})
    else:
        click.echo(f"{dropped} answers dropped")


@command.command("export")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@_store_option
def export(out: Path, store: Path | None) -> None:
    """Write all answers to OUT, a Parquet file: identity, key, token ids, log-probabilities."""
    from blackbox.store.exchange import export_store

    common.check_folder(out)
    common.say(f"{export_store(_existing(store), out)} answers written to {out}")


@command.command("import")
@click.argument("source", type=click.Path(dir_okay=False, path_type=Path))
@_store_option
def import_(source: Path, store: Path | None) -> None:
    """Take over answers that `blackbox store export` wrote. Import only what you trust."""
    from blackbox.store.exchange import import_store

    common.say(f"{import_store(_opened(store), source)} answers taken over from {source}")
