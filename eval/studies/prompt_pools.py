"""What a generated prompt pool is worth, beside hand-written ones and simpler choices.

    python -m eval.studies.prompt_pools --data-dir DIR [--out results] [--split development]

TREC, AG News and SST-2 with 32 labels a class and 200 test rows, the embedded LM by default. Every
finished cell is written at once, and a second run computes only what is missing. On the development
split, training and test rows alike come from `train.csv`, outside of all rows that the seeds of the
table draw; whatever was decided was decided there. Passes are counted whether or not the store had
them. The cells of another LM, or of another one that writes, are other cells.
"""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

import backends
from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.boosting.splits import draw_shots
from blackbox.generation import SOURCES, PromptGenerator, builtin_pool
from blackbox.metrics import evaluate
from blackbox.store.file import StoreFile, open_store
from blackbox.store.stored_backend import StoredBackend
from blackbox.tables import LabelledExamples, read_examples
from eval.data.data_sets import PROMPTS
from eval.report.comparisons import paired_difference

DATA_SETS = ("trec", "agnews", "sst2")
SEEDS = {"test": (13, 21, 42, 87, 100), "development": (1, 2)}
SHOTS, N_TEST = 32, 200
POOLS = (
    "hand-written",
    "random ten",
    "screen",
    "generated",
    "generated, three",
    "generated for three",
)
ALONE = (*(f"only {name}" for name in SOURCES), "refinement")
KEY = ("data", "split", "method", "seed", "n_test", "lm", "writer")
"""What makes a cell another one."""


def classifier_of(
    method: str,
    lm: Any,
    labels: list[str],
    data: str,
    seed: int,
    generated: list[str] | None,
    writer: Any = None,
) -> Any:
    """An untrained classifier for one row of the table; `writer` is another LM that writes."""
    prompts: Any = None
    if method == "generated, three":
        # prompts stand in the order in which they were picked for what they add
        prompts = PromptPool((generated or [])[:3])
    elif method == "hand-written":
        prompts = PromptPool.read(PROMPTS / f"{data}.txt")
    elif method == "random ten":
        pool = builtin_pool(pair=False, limits=lm.limits, class_names=sorted(set(labels)))
        drawn = np.random.default_rng(seed).choice(len(pool), 10, replace=False)
        prompts = PromptPool(pool[number] for number in sorted(drawn.tolist()))
    elif method in ("generated", "generated for three"):
        prompts = PromptGenerator(writer=writer)
    elif method.startswith("only "):
        prompts = PromptGenerator(sources=(method.removeprefix("only "),), writer=writer)
    elif method == "refinement":
        prompts = PromptGenerator(method="refinement", writer=writer)
    n_prompts = 3 if method == "generated for three" else 10
    return PromptBoostingClassifier(
        lm, prompts=prompts, n_prompts=n_prompts, random_state=seed, top_k=200, label_words=None
    )


def rows_of(
    data_dir: Path, data: str, split: str, seed: int, n_test: int
) -> tuple[list[Any], list[str], LabelledExamples]:
    """Training texts and labels, and the rows to test on."""
    train = read_examples(data_dir / data / "train.csv")
    if split == "test":
        test = read_examples(data_dir / data / "test.csv")
        drawn = draw_shots(train.labels, SHOTS, seed)
        kept = np.random.default_rng(0).permutation(len(test.texts))[:n_test].tolist()
        return _texts(train, drawn), _labels(train, drawn), _taken(test, kept)
    used = {row for number in SEEDS["test"] for row in draw_shots(train.labels, SHOTS, number)}
    free = [row for row in range(len(train.texts)) if row not in used]
    order = np.random.default_rng(0).permutation(free).tolist()
    rest = _taken(train, order[n_test:])
    # a rare class of TREC has fewer rows left than that
    rows: dict[str, list[int]] = {}
    for row in np.random.default_rng(seed).permutation(len(rest.texts)).tolist():
        rows.setdefault(rest.labels[row], []).append(row)
    drawn = sorted(row for of_label in rows.values() for row in of_label[:SHOTS])
    return _texts(rest, drawn), _labels(rest, drawn), _taken(train, order[:n_test])


def cell(
    lm: Any,
    data_dir: Path,
    data: str,
    split: str,
    method: str,
    seed: int,
    n_test: int,
    generated: list[str] | None = None,
    writer: Any = None,
) -> dict[str, Any]:
    """One result; `generated` are the prompts that were made for the same rows."""
    texts, labels, test = rows_of(data_dir, data, split, seed, n_test)
    started = time.perf_counter()
    classifier = classifier_of(method, lm, labels, data, seed, generated, writer)
    classifier.fit(texts, labels)
    spent = classifier.usage_
    fitted = time.perf_counter() - started
    probabilities = classifier.predict_proba(test.texts)
    codes = np.searchsorted(classifier.classes_, test.labels)
    measured = evaluate(codes, probabilities, classifier.classes_.tolist())
    summary = classifier.training_summary_
    return {
        "data": data,
        "split": split,
        "method": method,
        "seed": seed,
        "n_test": n_test,
        "accuracy": measured.accuracy,
        "log_loss": measured.log_loss,
        "passes": spent.passes_made + spent.passes_from_store,
        "prompts": [prompt.template for prompt in classifier.prompts_],
        "generation": summary.get("generation"),
        "cv_log_loss": summary.get("cv_log_loss"),
        "seconds_to_fit": round(fitted, 1),
    }


def _texts(examples: LabelledExamples, rows: list[int]) -> list[Any]:
    return [examples.texts[row] for row in rows]


def _labels(examples: LabelledExamples, rows: list[int]) -> list[str]:
    return [examples.labels[row] for row in rows]


def _taken(examples: LabelledExamples, rows: list[int]) -> LabelledExamples:
    return replace(
        examples,
        texts=_texts(examples, rows),
        labels=_labels(examples, rows),
        numbers=[examples.numbers[row] for row in rows],
    )


def table(cells: list[dict[str, Any]]) -> str:
    """Markdown: mean ± standard deviation over seeds in percent, and passes to train."""
    names = [name for name in DATA_SETS if any(one["data"] == name for one in cells)]
    lines = ["| prompts | " + " | ".join(names) + " | mean | log-loss | passes to train |"]
    lines.append("|---" * (len(names) + 4) + "|")
    for method in dict.fromkeys(one["method"] for one in cells):
        of_method = [one for one in cells if one["method"] == method]
        shown, means = [], []
        for name in names:
            some = [100 * one["accuracy"] for one in of_method if one["data"] == name]
            if not some:
                shown.append("")
                continue
            means.append(float(np.mean(some)))
            spread = f" ± {np.std(some, ddof=1):.1f}" if len(some) > 1 else ""
            shown.append(f"{means[-1]:.1f}{spread}")
        loss = np.mean([one["log_loss"] for one in of_method])
        passes = [one["passes"] for one in of_method]
        row = [
            method,
            *shown,
            f"{np.mean(means):.1f}",
            f"{loss:.3f}",
            f"{min(passes)} to {max(passes)}",
        ]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def differences(cells: list[dict[str, Any]], method: str, other: str) -> str | None:
    """What `paired_difference` says of two methods' accuracies, in points."""
    one, two = (
        {(c["data"], c["seed"]): 100 * c["accuracy"] for c in cells if c["method"] == name}
        for name in (method, other)
    )
    found = paired_difference(one, two)
    if found is None:
        return None
    return (
        f"{method} less {other}: {found.mean:+.1f} points {found.interval(1)}, "
        f"ahead in {found.ahead}, behind in {found.behind} of {found.n} (sign test p = "
        f"{found.sign_p:.3f})"
    )


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--out", default=Path("results"), type=click.Path(file_okay=False, path_type=Path))
@click.option("--split", type=click.Choice(list(SEEDS)), default="test", show_default=True)
@click.option("--data", multiple=True, type=click.Choice(DATA_SETS), default=DATA_SETS)
@click.option("--method", multiple=True, type=click.Choice(POOLS + ALONE), default=POOLS)
@click.option("--seed", multiple=True, type=int, help="By default those of the split.")
@click.option("--n-test", default=N_TEST, show_default=True)
@click.option("--backend", default="llamacpp", show_default=True)
@click.option("--model", help="As for the backend.")
@click.option("--dtype", help="Of transformers and vLLM, as for the backend.")
@click.option("--writer-backend", help="Another LM that writes prompts.  [default: --backend]")
@click.option("--writer-model", help="Another LM that writes prompts.")
@click.option("--store", type=click.Path(dir_okay=False, path_type=Path))
def main(
    data_dir: Path,
    out: Path,
    split: str,
    data: tuple[str, ...],
    method: tuple[str, ...],
    seed: tuple[int, ...],
    n_test: int,
    backend: str,
    model: str | None,
    dtype: str | None,
    writer_backend: str | None,
    writer_model: str | None,
    store: Path | None,
) -> None:
    """Print the table and the paired differences; cells go to OUT/prompt_pools.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    cells_file = out / "prompt_pools.jsonl"
    done = (
        [json.loads(line) for line in cells_file.read_text().splitlines()]
        if (cells_file.exists())
        else []
    )
    known = {tuple(c.get(name) for name in KEY): c for c in done}
    writes = writer_backend or backend if writer_backend or writer_model else None
    asked = {"lm": _named(backend, model, dtype), "writer": _named(writes, writer_model)}
    lm: Any = None
    writer: Any = None
    cells = []
    for number in seed or SEEDS[split]:
        for name in data:
            for way in method:
                found = known.get((name, split, way, number, n_test, *asked.values()))
                if found is None:
                    if lm is None:
                        file = open_store(store or out / "passes.sqlite")
                        lm = kept(file, backend, model=model, dtype=dtype)
                        writer = writes and kept(file, writes, model=writer_model)
                    made = known.get(
                        (name, split, "generated", number, n_test, *asked.values()), {}
                    )
                    if way == "generated, three" and not made:
                        raise click.UsageError("make the cells of 'generated' first")
                    found = asked | cell(
                        lm, data_dir, name, split, way, number, n_test, made.get("prompts"), writer
                    )
                    known[tuple(found[part] for part in KEY)] = found
                    with cells_file.open("a", encoding="utf-8") as file_:
                        file_.write(json.dumps(found) + "\n")
                    click.echo(
                        f"{name:7} {way:22} seed {number:3}  {found['accuracy']:.3f}  log-loss "
                        f"{found['log_loss']:.3f}  {found['passes']:5} passes "
                        f"{found['seconds_to_fit']:6.1f} s",
                        err=True,
                    )
                cells.append(found)
    click.echo(table(sorted(cells, key=lambda c: (POOLS + ALONE).index(c["method"]))))
    for one, other in (
        ("generated", "random ten"),
        ("generated", "hand-written"),
        ("generated", "screen"),
        ("generated, three", "generated"),
        ("generated for three", "generated"),
        ("generated for three", "hand-written"),
    ):
        told = differences(cells, one, other)
        if told:
            click.echo(f"- {told}")
    click.echo(
        f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )


def _named(*parts: str | None) -> str | None:
    """What a cell calls an LM: the backend, the model and its type, as far as they were named."""
    return " ".join(filter(None, parts)) or None


def kept(file: StoreFile, backend: str, **options: str | None) -> StoredBackend:
    """An LM whose answers are kept."""
    given = {key: value for key, value in options.items() if value is not None}
    return StoredBackend(backends.load(backend, **given), file)


if __name__ == "__main__":
    main()
