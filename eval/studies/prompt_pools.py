"""Compare generated prompt pools with hand-written ones and simpler choices.

    python -m eval.studies.prompt_pools --data-dir DIR [--out results] [--split development]

TREC, AG News and SST-2 with 32 labels per class, 200 test rows, the embedded LM by default. Every
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
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np

from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.generation import SOURCES, PromptGenerator, builtin_pool
from blackbox.metrics import evaluate
from blackbox.store.file import open_store
from eval.data.data_sets import PROMPTS
from eval.methods.refinement import Refinement
from eval.report.comparisons import paired_difference
from eval.studies.common import DATA_SETS, SEEDS, draw_study_rows, load_stored_lm

N_TEST = 200
POOLS = (
    "hand-written",
    "random ten",
    "screen",
    "generated",
    "generated, three",
    "generated for three",
)
ALONE = (*(f"only {name}" for name in SOURCES), "refinement")
PAIRS = (
    ("generated", "random ten"),
    ("generated", "hand-written"),
    ("generated", "screen"),
    ("generated, three", "generated"),
    ("generated for three", "generated"),
    ("generated for three", "hand-written"),
)
"""Methods whose paired difference is printed."""

KEY = ("data", "split", "method", "seed", "n_test", "lm", "writer")
"""Entries that identify a cell."""


def make_classifier(
    method: str,
    lm: Any,
    labels: list[str],
    data: str,
    seed: int,
    generated: list[str] | None,
    writer: Any = None,
) -> Any:
    """Return an untrained classifier for one row of the table; `writer` writes prompts."""
    prompts: Any = None
    if method == "generated, three":
        # prompts are in the order of their greedy selection
        prompts = PromptPool((generated or [])[:3])
    elif method == "hand-written":
        prompts = PromptPool.read(PROMPTS / f"{data}.txt")
    elif method == "random ten":
        pool = builtin_pool(limits=lm.limits, class_names=sorted(set(labels)))
        drawn = np.random.default_rng(seed).choice(len(pool), 10, replace=False)
        prompts = PromptPool(pool[number] for number in sorted(drawn.tolist()))
    elif method in ("generated", "generated for three"):
        prompts = PromptGenerator(writer=writer)
    elif method.startswith("only "):
        prompts = PromptGenerator(sources=(method.removeprefix("only "),), writer=writer)
    elif method == "refinement":
        prompts = Refinement(writer=writer)
    n_prompts = 3 if method == "generated for three" else 10
    return PromptBoostingClassifier(
        lm,
        prompts=prompts,
        n_prompts=n_prompts,
        random_state=seed,
        top_k=200,
        label_words=None,
        embeddings=None,
    )


def compute_pool_cell(
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
    """Compute one cell; `generated` are the prompts that were made for the same rows."""
    texts, labels, test = draw_study_rows(data_dir, data, split, seed, n_test)
    started = time.perf_counter()
    classifier = make_classifier(method, lm, labels, data, seed, generated, writer)
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


def table(cells: list[dict[str, Any]]) -> str:
    """Return a Markdown table: mean ± standard deviation in percent, and passes to train."""
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
    """Format the paired difference of two methods' accuracies, in points."""
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


class CellFile:
    """Finished cells in a file, one line each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self._cells = {self._key(cell): cell for cell in map(json.loads, lines)}

    def find(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """Return the cell with these values of `KEY`, or None."""
        return self._cells.get(self._key(identity))

    def append(self, cell: dict[str, Any]) -> None:
        """Write a finished cell."""
        self._cells[self._key(cell)] = cell
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(cell) + "\n")

    @staticmethod
    def _key(cell: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(cell.get(name) for name in KEY)


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--out", default=Path("results"), type=click.Path(file_okay=False, path_type=Path))
@click.option("--split", type=click.Choice(list(SEEDS)), default="test", show_default=True)
@click.option("--data", multiple=True, type=click.Choice(DATA_SETS), default=DATA_SETS)
@click.option("--method", multiple=True, type=click.Choice(POOLS + ALONE), default=POOLS)
@click.option("--seed", multiple=True, type=int, help="By default those of the split.")
@click.option("--n-test", default=N_TEST, show_default=True)
@click.option("--backend", default="onnx", show_default=True)
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
    file = CellFile(out / "prompt_pools.jsonl")
    writes = writer_backend or backend if writer_backend or writer_model else None
    names = {"lm": _lm_name(backend, model, dtype), "writer": _lm_name(writes, writer_model)}

    @cache
    def load_lms() -> tuple[Any, Any]:
        stored = open_store(store or out / "passes.sqlite")
        lm = load_stored_lm(stored, backend, model=model, dtype=dtype)
        return lm, writes and load_stored_lm(stored, writes, model=writer_model)

    cells = []
    for number, name, pool in product(seed or SEEDS[split], data, method):
        identity = {"data": name, "split": split, "seed": number, "n_test": n_test} | names
        found = file.find(identity | {"method": pool})
        if found is None:
            generated = file.find(identity | {"method": "generated"})
            if pool == "generated, three" and generated is None:
                raise click.UsageError("make the cells of 'generated' first")
            lm, writer = load_lms()
            prompts = generated["prompts"] if generated else None
            found = names | compute_pool_cell(
                lm, data_dir, name, split, pool, number, n_test, prompts, writer
            )
            file.append(found)
            _print_progress(found)
        cells.append(found)
    click.echo(table(sorted(cells, key=lambda c: (POOLS + ALONE).index(c["method"]))))
    for line in filter(None, (differences(cells, *pair) for pair in PAIRS)):
        click.echo(f"- {line}")
    click.echo(
        f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )


def _print_progress(cell: dict[str, Any]) -> None:
    click.echo(
        f"{cell['data']:7} {cell['method']:22} seed {cell['seed']:3}  {cell['accuracy']:.3f}  "
        f"log-loss {cell['log_loss']:.3f}  {cell['passes']:5} passes "
        f"{cell['seconds_to_fit']:6.1f} s",
        err=True,
    )


def _lm_name(*parts: str | None) -> str | None:
    """Return the name of an LM in a cell: backend, model and dtype, as far as given."""
    return " ".join(filter(None, parts)) or None


if __name__ == "__main__":
    main()
