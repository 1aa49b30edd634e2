"""Choose learning rate and epochs of each baseline of `eval/methods/gradients.py`.

    python -m eval.studies.rates --data-dir DIR [--out results]

Trains on 32 rows per class of other seeds and judges on further rows of `train.csv`, all outside of
the rows that the seeds of the tables draw: test rows decide nothing. Every finished cell is written
at once, and a second run computes only what is missing.
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from eval.data.data_sets import card_of
from eval.methods.gradients import FineTuned
from eval.studies.common import DATA_SETS, SEEDS, draw_study_rows

GRID = {
    "full": (2e-5, 5e-5, 1e-4),
    "lora": (3e-4, 1e-3, 3e-3),
    "ia3": (2e-3, 5e-3, 1e-2),
    "prompt": (3e-3, 1e-2, 3e-2),
    "prefix": (1e-3, 3e-3, 1e-2),
    "adapters": (3e-4, 1e-3, 3e-3),
    "compacter": (1e-3, 3e-3, 1e-2),
    "mix-and-match": (3e-4, 1e-3, 3e-3),
    "ladder": (1e-3, 3e-3, 1e-2),
}
"""Learning rates that are usual for each method, and their neighbours."""


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--out", default=Path("results"), type=click.Path(file_okay=False, path_type=Path))
@click.option("--data", multiple=True, type=click.Choice(DATA_SETS), default=DATA_SETS)
@click.option("--method", multiple=True, type=click.Choice(list(GRID)), default=list(GRID))
@click.option("--epochs", multiple=True, type=int, default=(10,), show_default=True)
@click.option("--seed", multiple=True, type=int, default=SEEDS["development"][:1])
@click.option("--n-test", default=200, show_default=True)
@click.option("--bare", is_flag=True, help="Read bare texts, without the manual prompt.")
def main(
    data_dir: Path,
    out: Path,
    data: tuple[str, ...],
    method: tuple[str, ...],
    epochs: tuple[int, ...],
    seed: tuple[int, ...],
    n_test: int,
    bare: bool,
) -> None:
    """Print accuracies; cells go to OUT/rates.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "rates.jsonl"
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    done = {tuple(key): value for key, value in map(json.loads, lines)}

    def accuracy(*key: Any) -> float:
        if key not in done:
            done[key] = _measure_accuracy(data_dir, *key)
            with file.open("a", encoding="utf-8") as writer:
                writer.write(json.dumps([key, done[key]]) + "\n")
        return float(done[key])

    click.echo("| method | learning rate | epochs | " + " | ".join(data) + " | mean |")
    click.echo("|---" * (4 + len(data)) + "|")
    settings = ((name, rate, count) for name in method for rate in GRID[name] for count in epochs)
    for name, rate, count in settings:
        means = [
            100 * np.mean([accuracy(name, rate, count, one, s, n_test, bare) for s in seed])
            for one in data
        ]
        shown = " | ".join(f"{mean:.1f}" for mean in (*means, np.mean(means)))
        click.echo(f"| {name} | {rate:g} | {count} | {shown} |")
    click.echo(f"\n{platform.machine()}, {os.cpu_count()} cores")


def _measure_accuracy(
    data_dir: Path,
    method: str,
    rate: float,
    epochs: int,
    data: str,
    seed: int,
    n_test: int,
    bare: bool,
) -> float:
    started = time.perf_counter()
    texts, labels, test = draw_study_rows(data_dir, data, "development", seed, n_test)
    model = FineTuned(
        prompt=None if bare else card_of(data).manual_prompt,
        method=method,
        learning_rate=rate,
        epochs=epochs,
        random_state=seed,
    )
    accuracy = float((model.fit(texts, labels).predict(test.texts) == np.array(test.labels)).mean())
    click.echo(
        f"{method:8} {rate:g} {epochs} epochs {data:7} seed {seed}  {accuracy:.3f}  "
        f"{time.perf_counter() - started:.0f} s",
        err=True,
    )
    return accuracy


if __name__ == "__main__":
    main()
