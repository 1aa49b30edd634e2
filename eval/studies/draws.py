"""Compare sampling with exact distributions: accuracy from n one-word continuations.

    python -m eval.studies.draws --data-dir DIR [--model FOLDER] [--out results]

TREC, five hand-written prompts, 16 labels per class, 100 test rows, the embedded LM through
transformers (extra `transformers`). A draw is one token here, so that all draws of a prompt take
one evaluation of it on this machine; an API would be paid for each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

import backends
from backends.sampling import SamplingBackend
from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.boosting.splits import draw_shots
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from blackbox.tables import read_examples
from eval.data.data_sets import PROMPTS

SHOTS, N_TEST = 16, 100
DRAWS = (1, 5, 20, 100)


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--model", default="smollm2-135m", help="As for the transformers backend.")
@click.option("--out", default=Path("results"), type=click.Path(file_okay=False, path_type=Path))
@click.option("--seed", multiple=True, type=int, default=(13, 21))
@click.option("--draws", multiple=True, type=int, default=DRAWS)
def main(
    data_dir: Path, model: str, out: Path, seed: tuple[int, ...], draws: tuple[int, ...]
) -> None:
    """Print the table."""
    out.mkdir(parents=True, exist_ok=True)
    train = read_examples(data_dir / "trec" / "train.csv")
    test = read_examples(data_dir / "trec" / "test.csv")
    test_rows = np.random.default_rng(0).permutation(len(test.texts))[:N_TEST].tolist()
    texts, truth = [test.texts[row] for row in test_rows], [test.labels[row] for row in test_rows]
    hand = PromptPool.read(PROMPTS / "trec.txt")[:5]
    lm = StoredBackend(
        backends.load("transformers", model=model), open_store(out / "passes.sqlite")
    )
    # the largest number first: the store serves the smaller ones out of its draws
    kinds: list[tuple[str, Any, int]] = [("top 200, exact", lm, 200), ("top 20, exact", lm, 20)]
    kinds += [
        (f"{n} draws", SamplingBackend(lm, n_draws=n, max_tokens=1), n)
        for n in sorted(draws, reverse=True)
    ]
    click.echo("| what is read | accuracy | passes per text and prompt |\n|---|---|---|")
    for name, backend, top_k in kinds:
        accuracies = []
        for number in seed:
            rows = draw_shots(train.labels, train.texts, SHOTS, number)
            classifier = PromptBoostingClassifier(
                backend,
                prompts=hand,
                top_k=top_k,
                random_state=number,
                store=False,
                label_words=None,
                embeddings=None,
            )
            classifier.fit([train.texts[row] for row in rows], [train.labels[row] for row in rows])
            accuracies.append(float(np.mean(classifier.predict(texts) == np.array(truth))))
        most = backend.limits.passes_per_prompt
        each = " ".join(f"{100 * accuracy:.0f}" for accuracy in accuracies)
        click.echo(f"| {name} | {100 * np.mean(accuracies):.1f} ({each}) | {most} |")


if __name__ == "__main__":
    main()
