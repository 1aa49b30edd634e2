"""Make the table of `docs/results.md`: accuracy with 32 labels per class.

    python -m eval.studies.quality --data-dir DIR [--out results]

TREC, AG News and SST-2, five seeds, the same 200 test rows for all, the embedded LM, top 200.
`logit` and `samme` over ten hand-written prompts; `logit` over the pool that the program chooses by
itself; and over ten prompts drawn at random from the built-in pool. Every forward pass is kept in a
store under the output folder, so that a second run takes seconds. Choices see training rows only.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

import backends
from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.boosting.splits import draw_shots
from blackbox.generation import builtin_pool
from blackbox.metrics import evaluate
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from blackbox.tables import LabelledExamples, read_examples
from eval.data.data_sets import PROMPTS

DATA_SETS = ("trec", "agnews", "sst2")
SEEDS = (13, 21, 42, 87, 100)
SHOTS = 32
N_TEST = 200
METHODS = ("hand-written, logit", "hand-written, samme", "own pool, logit", "random ten, logit")


def make_classifier(method: str, lm: Any, labels: list[str], hand: PromptPool, seed: int) -> Any:
    """Return an untrained classifier for one row of the table."""
    prompts, algorithm = method.split(", ")
    chosen = {"hand-written": hand, "own pool": None}.get(prompts, hand)
    if prompts == "random ten":
        pool = builtin_pool(limits=lm.limits, class_names=sorted(set(labels)))
        drawn = np.random.default_rng(seed).choice(len(pool), 10, replace=False)
        chosen = PromptPool(pool[number] for number in sorted(drawn.tolist()))
    return PromptBoostingClassifier(
        lm,
        prompts=chosen,
        algorithm=algorithm,
        random_state=seed,
        top_k=200,
        label_words=None,
        embeddings=None,
    )


def cells(
    name: str, methods: tuple[str, ...], seeds: tuple[int, ...], data_dir: Path, out: Path
) -> Iterator[dict[str, Any]]:
    """Yield one result for each method and seed of a data set."""
    train = read_examples(data_dir / name / "train.csv")
    test = _test_rows(read_examples(data_dir / name / "test.csv"))
    hand = PromptPool.read(PROMPTS / f"{name}.txt")
    out.mkdir(parents=True, exist_ok=True)
    lm = StoredBackend(backends.load(), open_store(out / "passes.sqlite"))
    for method in methods:
        for seed in seeds:
            rows = draw_shots(train.labels, train.texts, SHOTS, seed)
            labels = [train.labels[row] for row in rows]
            started = time.perf_counter()
            classifier = make_classifier(method, lm, labels, hand, seed)
            classifier.fit([train.texts[row] for row in rows], labels)
            probabilities = classifier.predict_proba(test.texts)
            codes = np.searchsorted(classifier.classes_, test.labels)
            measured = evaluate(codes, probabilities, classifier.classes_.tolist())
            yield {
                "data": name,
                "method": method,
                "seed": seed,
                "labels": len(rows),
                "accuracy": measured.accuracy,
                "log_loss": measured.log_loss,
                "ece": measured.ece,
                "rounds": len(classifier.estimators_),
                "prompts": [prompt.template for prompt in classifier.prompts_],
                "seconds": round(time.perf_counter() - started, 1),
            }


def _test_rows(examples: LabelledExamples) -> LabelledExamples:
    """Return the test rows, the same for every method and seed."""
    rows = np.random.default_rng(0).permutation(len(examples.texts))[:N_TEST].tolist()
    return LabelledExamples(
        [examples.texts[row] for row in rows],
        [examples.labels[row] for row in rows],
        [examples.numbers[row] for row in rows],
    )


def table(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table: mean ± standard deviation over seeds, in percent."""
    names = [name for name in DATA_SETS if any(cell["data"] == name for cell in results)]
    lines = ["| prompts, algorithm | " + " | ".join(names) + " | mean | log-loss | ECE |"]
    lines.append("|---" * (len(names) + 4) + "|")
    for method in dict.fromkeys(cell["method"] for cell in results):
        of_method = [cell for cell in results if cell["method"] == method]
        shown, means = [], []
        for name in names:
            accuracies = [100 * c["accuracy"] for c in of_method if c["data"] == name]
            means.append(float(np.mean(accuracies)))
            shown.append(f"{np.mean(accuracies):.1f} ± {np.std(accuracies, ddof=1):.1f}")
        losses = np.mean([cell["log_loss"] for cell in of_method])
        eces = np.mean([cell["ece"] for cell in of_method])
        row = [method, *shown, f"{np.mean(means):.1f}", f"{losses:.3f}", f"{eces:.3f}"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--out", default=Path("results"), type=click.Path(file_okay=False, path_type=Path))
@click.option("--data", multiple=True, type=click.Choice(DATA_SETS), default=DATA_SETS)
@click.option("--method", multiple=True, type=click.Choice(METHODS), default=METHODS)
@click.option("--seed", multiple=True, type=int, default=SEEDS)
def main(
    data_dir: Path, out: Path, data: tuple[str, ...], method: tuple[str, ...], seed: tuple[int, ...]
) -> None:
    """Print the table, and write every result to OUT/quality.csv."""
    csv.field_size_limit(10**7)
    results = []
    for name in data:
        for cell in cells(name, method, seed, data_dir, out):
            results.append(cell)
            click.echo(
                f"{name:7} {cell['method']:22} seed {cell['seed']:3}  {cell['accuracy']:.3f}"
                f"  {cell['rounds']:3} rounds  {cell['seconds']:6.1f} s",
                err=True,
            )
    with (out / "quality.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(results[0]))
        writer.writeheader()
        writer.writerows({**cell, "prompts": json.dumps(cell["prompts"])} for cell in results)
    click.echo(table(results))
    click.echo(
        f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()
