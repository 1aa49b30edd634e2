"""A bank of prompts: what the prompts of earlier tasks save, in forward passes and accuracy.

    python -m eval.studies.prompt_bank --data-dir DIR [--data sst2] [--n-judged 60]

A model of each task is trained on 16 labels per class with the default screen; its ten prompts are
the bank for the others. A new task with 8 labels per class then takes its prompts from the default
screen, from the bank without a screen (the prompts that most of the other models chose, those of
the best model first), or at random among the built-in ones. The LM alone; further training rows
judge. The passes are those of the training, found in the store or not.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np

from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.backend import BaseBackend
from blackbox.generation.builtin import builtin_pool
from blackbox.model.model import Model
from blackbox.store.file import open_store
from eval.data import data_sets
from eval.studies.common import load_stored_lm
from eval.studies.experts import draw_labels
from eval.studies.library_rows import joined

DATA = ("sst2", "tweet_sentiment", "agnews", "sib200_eng")
SEEDS = (13, 21)
N_SOURCE, N_SHOTS, N_PROMPTS = 16, 8, 10


def train(
    lm: BaseBackend, rows: data_sets.Rows, prompts: Any, seed: int
) -> PromptBoostingClassifier:
    """Return a classifier of the LM alone."""
    classifier = PromptBoostingClassifier(
        lm, prompts=prompts, n_prompts=N_PROMPTS, embeddings=None, store=False, random_state=seed
    )
    return classifier.fit(joined(rows.texts), rows.labels)


def bank_of(models: list[Model]) -> PromptPool:
    """Return the prompts that most models have, and of these the first."""
    counts = Counter(prompt for model in models for prompt in model.prompts)
    return PromptPool(prompt for prompt, _ in counts.most_common(N_PROMPTS))


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--data", multiple=True, default=DATA, type=click.Choice(DATA))
@click.option("--n-judged", default=60, show_default=True)
@click.option("--backend", default="onnx", show_default=True)
@click.option(
    "--store",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("prompt_bank.sqlite"),
    show_default=True,
)
def main(data_dir: Path, data: tuple[str, ...], n_judged: int, backend: str, store: Path) -> None:
    """Print a row for each data set and way."""
    lm = load_stored_lm(open_store(store), backend)
    sets = {name: data_sets.read_data_set(name, data_dir) for name in data}
    models: dict[str, Model] = {}
    for name, found in sets.items():
        rows = found.train.take(draw_labels(np.array(found.train.labels), N_SOURCE, 0).tolist())
        models[name] = train(lm, rows, None, 0).model_
    click.echo("| data | prompts | passes of a training | accuracy | of each seed |")
    click.echo("|---|---|---|---|---|")
    for name, found in sets.items():
        bank = bank_of([model for other, model in models.items() if other != name])
        results: dict[str, list[tuple[int, float]]] = {}
        for seed in SEEDS:
            given = draw_labels(np.array(found.train.labels), N_SHOTS, seed).tolist()
            rows = found.train.take(given)
            known = set(given)
            free = [row for row in range(len(found.train)) if row not in known]
            drawn = np.random.default_rng(0).choice(free, n_judged, replace=False)
            judged = found.train.take(drawn.tolist())
            built_in = builtin_pool(limits=lm.limits, class_names=found.classes)
            order = np.random.default_rng(seed).permutation(len(built_in))[:N_PROMPTS]
            ways = {
                "screened": None,
                "bank, no screen": bank,
                "at random, no screen": PromptPool(built_in[number] for number in order),
            }
            for way, prompts in ways.items():
                classifier = train(lm, rows, prompts, seed)
                right = classifier.predict(joined(judged.texts)) == np.array(judged.labels)
                passes = classifier.training_summary_["forward_passes"]
                results.setdefault(way, []).append((passes, 100 * float(right.mean())))
        for way, cells in results.items():
            passes, accuracy = np.mean(cells, axis=0)
            each = ", ".join(f"{one:.0f}" for _, one in cells)
            click.echo(f"| {name} | {way} | {passes:.0f} | {accuracy:.1f} | {each} |")
    click.echo(f"\n{platform.machine()}, {os.cpu_count()} cores, {n_judged} rows judge")


if __name__ == "__main__":
    main()
