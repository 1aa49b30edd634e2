"""Compare API forms: completions, chats with answers begun, and chats without.

    python -m eval.studies.api_forms --data-dir DIR [--base-url URL] [--out results]

TREC, 16 labels per class, 100 test rows, top 20, five prompts that the program chooses for each
form by itself. Without --base-url the server is llama.cpp's own with the embedded LM. Needs the
extras `local` and `openai`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
import numpy as np

import backends
from backends.openai import OpenAIBackend
from blackbox import PromptBoostingClassifier
from blackbox.boosting.splits import draw_shots
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from blackbox.tables import read_examples

SHOTS, N_TEST, TOP_K, N_PROMPTS = 16, 100, 20, 5
FORMS: dict[str, dict[str, Any]] = {
    "completions and chats": {},
    "chats, answers begun": {"endpoint": "chat"},
    "chats, answers not begun": {"endpoint": "chat", "begin_answers": False},
}


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--base-url", help="An OpenAI-compatible server; its key is OPENAI_API_KEY.")
@click.option("--out", default=Path("results"), type=click.Path(file_okay=False, path_type=Path))
@click.option("--seed", multiple=True, type=int, default=(13, 21))
def main(data_dir: Path, base_url: str | None, out: Path, seed: tuple[int, ...]) -> None:
    """Print accuracy for each form, and the prompts that were chosen."""
    out.mkdir(parents=True, exist_ok=True)
    train = read_examples(data_dir / "trec" / "train.csv")
    test = read_examples(data_dir / "trec" / "test.csv")
    test_rows = np.random.default_rng(0).permutation(len(test.texts))[:N_TEST].tolist()
    texts, truth = [test.texts[row] for row in test_rows], [test.labels[row] for row in test_rows]
    if base_url is None:
        lm: Any = backends.load("llamacpp")
        os.environ["OPENAI_API_KEY"] = lm._server.key
        base_url = f"{lm._server.address}/v1"
    click.echo("| form | accuracy | passes | tokens |\n|---|---|---|---|")
    for form, options in FORMS.items():
        backend = OpenAIBackend(base_url=base_url, largest_top_k=TOP_K, **options)
        stored = StoredBackend(backend, open_store(out / "passes.sqlite"))
        accuracies, passes, tokens = [], 0, 0
        for number in seed:
            rows = draw_shots(train.labels, train.texts, SHOTS, number)
            classifier = PromptBoostingClassifier(
                stored,
                n_prompts=N_PROMPTS,
                top_k=TOP_K,
                random_state=number,
                label_words=None,
                embeddings=None,
            )
            classifier.fit([train.texts[row] for row in rows], [train.labels[row] for row in rows])
            accuracies.append(float(np.mean(classifier.predict(texts) == np.array(truth))))
            usage = classifier.usage_ + classifier.prediction_usage_
            passes, tokens = passes + usage.passes_made, tokens + usage.tokens
            shown = json.dumps([prompt.template for prompt in classifier.prompts_])
            click.echo(f"{form}, seed {number}: {accuracies[-1]:.3f} {shown}", err=True)
        each = " ".join(f"{100 * accuracy:.0f}" for accuracy in accuracies)
        click.echo(f"| {form} | {100 * np.mean(accuracies):.1f} ({each}) | {passes} | {tokens} |")


if __name__ == "__main__":
    main()
