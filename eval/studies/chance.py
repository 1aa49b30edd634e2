"""Chance: what a model says of itself where labels were drawn at random, so half of them are wrong.

    python -m eval.studies.chance [--rows 40] [--draws 20]

Texts are random words, the LM is a seeded function of them (`--backend deterministic`), and two
classes have as many rows each. Held-out figures that are honest say 50%, and an error of 45% can't
be promised; what they say more is what the choice of prompts brings in, by the rows that judge.
"""

from __future__ import annotations

import logging
import platform
from typing import Any

import click
import numpy as np

from blackbox import PromptBoostingClassifier

WORDS = [f"w{number}" for number in range(400)]
PROMPTS = [f"{{text}} cue{number} {{mask}}" for number in range(40)]
PROMISED = 0.45
WAYS: dict[str, dict[str, Any]] = {
    "10 named": {"prompts": PROMPTS[:10]},
    "10 screened from the program's own": {"prompts": None},
    "3 of 40 named, by `max_prompts`": {"prompts": PROMPTS, "max_prompts": 3},
}


def fit_at_random(n_rows: int, seed: int, **options: Any) -> PromptBoostingClassifier:
    """Return a classifier of n random texts, whose labels are drawn at random."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(n_rows)]
    labels = rng.permutation(np.arange(n_rows) % 2)
    classifier = PromptBoostingClassifier(
        "deterministic",
        label_words=None,
        embeddings=None,
        random_state=seed,
        store=False,
        **options,
    )
    return classifier.fit(texts, labels)


def is_promised(classifier: PromptBoostingClassifier) -> bool:
    """Return whether a model promises less errors than there are."""
    try:
        classifier.model_.promise(PROMISED)
    except ValueError:
        return False
    return True


@click.command()
@click.option("--rows", type=int, default=40, show_default=True, help="Rows of a draw.")
@click.option("--draws", type=int, default=20, show_default=True, help="Draws of texts and labels.")
def main(rows: int, draws: int) -> None:
    """Print a table of the ways to choose prompts."""
    logging.getLogger("blackbox").setLevel(logging.ERROR)  # each model says that it is at chance
    print(f"\n{rows} rows, {draws} draws\n")
    print(f"| prompts | held-out accuracy | an error of {PROMISED:.0%} is promised |")
    print("|---|---|---|")
    for name, options in WAYS.items():
        models = [fit_at_random(rows, seed, **options) for seed in range(draws)]
        said = [100 * model.training_summary_["held_out"]["accuracy"] for model in models]
        spread = np.std(said, ddof=1) / np.sqrt(draws) if draws > 1 else float("nan")
        promised = sum(map(is_promised, models))
        print(f"| {name} | {np.mean(said):.1f} ± {spread:.1f} | {promised} of {draws} |")
    print(f"\n± is the standard error; on {platform.machine()}, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
