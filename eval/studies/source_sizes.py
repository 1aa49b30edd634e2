"""The part of a source that a model keeps: its size in half precision and as 8-bit integers.

    python -m eval.studies.source_sizes --data-dir DIR [--out results] [--store FILE]

Sources and rows are those of `eval.studies.library`. Integers have a factor per prompt and class.
How much they change is seen on the rows of another data set.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from blackbox import PromptPool
from blackbox.experts.source_models import SourceModel
from blackbox.library.sources import as_source, floors_of, probabilities_of
from blackbox.store.file import open_store
from eval.data import data_sets
from eval.studies.common import load_stored_lm
from eval.studies.library_rows import read_task
from eval.studies.library_tables import print_row

DATA = ("sst2", "agnews", "sib200_eng", "trec", "tweet_emotion")


def as_integers(source: SourceModel) -> tuple[list[NDArray[np.int8]], SourceModel]:
    """Return the coefficients as 8-bit integers, and the source that they give."""
    integers, restored = [], []
    for coefficients in source.coefficients:
        factor = np.abs(coefficients.astype(np.float64)).max(axis=0) / 127 + 1e-12
        integers.append(np.round(coefficients / factor).astype(np.int8))
        restored.append(integers[-1] * factor)
    return integers, replace(source, coefficients=tuple(restored))


def packed(arrays: Sequence[NDArray[Any]]) -> int:
    """Return the bytes of arrays in a compressed file."""
    file = io.BytesIO()
    np.savez_compressed(file, *arrays)
    return len(file.getvalue())


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--out", default=Path("results"), type=click.Path(file_okay=False, path_type=Path))
@click.option("--store", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--backend", default="onnx", show_default=True)
def main(data_dir: Path, out: Path, store: Path | None, backend: str) -> None:
    """Print the sizes of sources, and what integers change."""
    out.mkdir(parents=True, exist_ok=True)
    lm = load_stored_lm(open_store(store or out / "passes.sqlite"), backend)
    prompts = PromptPool.read(data_sets.PROMPTS / "shared.txt")
    tasks = {name: read_task(name, data_dir, lm, prompts, 1) for name in DATA}
    heads = ["half precision", "8 bit", "token ids", "other classes", "largest change"]
    print_row("source", heads, head=True)
    for number, name in enumerate(DATA):
        source = as_source(name, tasks[name].model, prompts)
        assert source is not None
        rows = tasks[DATA[number - 1]].train
        floors = floors_of(rows, np.ones(rows.token_ids.shape[1]))
        integers, restored = as_integers(source)
        one, other = (probabilities_of(model, rows, floors) for model in (source, restored))
        moved = (one.argmax(axis=1) != other.argmax(axis=1)).mean()
        sizes = [packed(some) for some in (source.coefficients, integers, source.token_ids)]
        changes = [f"{moved:.1%}", f"{np.abs(one - other).max():.3f}"]
        print_row(name, [*(f"{size / 1000:.1f} kB" for size in sizes), *changes])


if __name__ == "__main__":
    main()
