"""A starter library: models of public data sets whose licence allows it, for the embedded LM.

    python -m eval.starter_library --data-dir DIR [--library starter] [--store FILE]

Of the data sets that `eval/data/cards.yaml` describes, those are taken whose licence lets a model
of them be passed on, and which lie in DIR. Each is trained on a few rows per class under the ten
prompts of ``eval/data/prompts/shared.txt``, so that a task that asks these prompts
(``blackbox train --prompts shared.txt --library starter``) needs none of a source's own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.errors import DataError
from blackbox.library.folder import Library
from blackbox.store.file import open_store
from eval.data import data_sets
from eval.studies.common import load_stored_lm

LICENCES = ("CC BY 4.0", "CC0", "Apache-2.0", "MIT")
"""Licences that let models be passed on, with the source named."""

SHOTS = 32


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--library", "folder", default=Path("starter"), type=click.Path(path_type=Path))
@click.option("--store", default=Path("results/passes.sqlite"), type=click.Path(path_type=Path))
@click.option("--backend", default="onnx", show_default=True)
@click.option("--shots", default=SHOTS, show_default=True, help="Rows per class, at most.")
@click.option("--data", multiple=True, help="Only these data sets.")
def main(
    data_dir: Path, folder: Path, store: Path, backend: str, shots: int, data: tuple[str, ...]
) -> None:
    """Train a starter library, and print what is in it."""
    store.parent.mkdir(parents=True, exist_ok=True)
    lm = load_stored_lm(open_store(store), backend)
    prompts = PromptPool.read(data_sets.PROMPTS / "shared.txt")
    library = Library.open(folder)
    for name, card in data_sets.all_cards().items():
        if data and name not in data:
            continue
        if card.licence not in LICENCES:
            click.echo(f"{name}: left out, as its licence is {card.licence!r}")
            continue
        try:
            read = data_sets.read_data_set(name, data_dir)
        except DataError as error:
            click.echo(f"{name}: left out: {error}")
            continue
        if not isinstance(read.train.texts[0], str):
            click.echo(f"{name}: left out, as the shared prompts show one text, and it has pairs")
            continue
        rows = read.draw(shots, 0)
        classifier = PromptBoostingClassifier(
            lm, prompts=prompts, embeddings=None, store=False, random_state=0
        )
        classifier.fit(rows.texts, rows.labels)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / f"{name}.blackbox"
            classifier.save(path)
            note = f"{card.title}: {card.source}"
            library = library.add(path, licence=card.licence, note=note)
        size = (folder / f"{name}.blackbox").stat().st_size
        click.echo(f"{name}: {len(rows)} rows, {len(read.classes)} classes, {size:,} bytes")


if __name__ == "__main__":
    main()
