"""Compare the time around the LM between two or more versions of the code.

    python -m eval.perf.around_lm --code OLD_CHECKOUT --code . [--texts 20000] [--rounds 5]

With every answer already in the forward-pass store: training and prediction with given prompts,
training with the default ones, and a grid search; answers written to a new store by an LM that
takes no time, and read; boosting alone, `logit` with many rows and `samme` with twenty classes;
`blackbox --help` and `import blackbox`. The LM is the deterministic stand-in. Each measurement is a
process of its own, started with ``PYTHONPATH`` set to the checkout that is measured; in every round
the versions take turns. Only the public API is used, so that old checkouts run, too. A checkout
gets a store of its own (about 1 MB for 700 answers), filled before the first round. The first
checkout is the reference of the ratios.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

TEMPLATES = (
    "{text}\nTopic: {mask}",
    "{text} This is about {mask}",
    "Text: {text}\nLabel: {mask}",
    "{text} In one word: {mask}",
    "Here is a message. {text} It concerns {mask}",
    "{text}\nCategory: {mask}",
    "Question: what is the subject of: {text}\nAnswer: {mask}",
    "{text} The theme is {mask}",
    "Read this: {text} It belongs to {mask}",
    "{text}\nKeyword: {mask}",
)
N_CLASSES = 4
COMMANDS = {
    "blackbox --help": ("-m", "blackbox", "--help"),
    "import blackbox": ("-c", "import blackbox"),
}
GRID = {
    "learning_rate": [0.3, 1.0],
    "tokens_per_class": [8, 16, 32],
    "min_token_share": [0.05, 0.1],
}
_FEW = 160  # rows of the default training and the grid search
_BOOSTED_PROMPTS, _SAMME_ROWS, _SAMME_CLASSES, _SAMME_ROUNDS = 10, 192, 20, 60
MEASUREMENTS = (
    "training",
    "prediction",
    "default training",
    "grid search",
    "writing",
    "reading",
    "logit",
    "samme",
    *COMMANDS,
)

Times = dict[str, list[dict[str, float]]]
"""For each measurement the wall and CPU seconds of each round."""


def make_texts(n: int, seed: int) -> tuple[list[str], list[str]]:
    """Return n distinct texts of a small vocabulary (they end in digits) and their labels."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % N_CLASSES
    common, typical = rng.integers(0, 200, (n, 6)), rng.integers(0, 5, (n, 2))
    texts = [
        " ".join(
            [
                *(f"topic{code}word{word}" for word in typical[row]),
                *(f"word{word}" for word in common[row]),
                *str(row),
            ]
        )
        for row, code in enumerate(codes)
    ]
    return texts, [f"class{code}" for code in codes]


def measure_store(folder: Path, texts: int, prompts: int) -> dict[str, Any]:
    """Measure answers written to a new store and read, for an LM that answers at once."""
    import backends
    from blackbox.answers.passes import next_tokens
    from blackbox.backend import WrappedBackend
    from blackbox.prompts.template import Prompt
    from blackbox.protocol import RenderedPrompt, TokenLogProbs, Usage
    from blackbox.store.file import StoreFile
    from blackbox.store.stored_backend import StoredBackend

    lm = backends.load("deterministic")
    answer = lm.next_token([RenderedPrompt(f"word{number} topic") for number in range(64)], 200)

    class InstantBackend(WrappedBackend):
        def iter_next_token(self, prompts: Any, top_k: int) -> Any:
            for start in range(0, len(prompts), 64):
                n = min(64, len(prompts) - start)
                usage = Usage(passes_made=n)
                ids, values = answer.token_ids[:n], answer.log_probs[:n]
                yield (
                    list(range(start, start + n)),
                    TokenLogProbs(ids, values, answer.token_bytes, {}, usage),
                )

    file = StoreFile(folder / f"new-{os.getpid()}.sqlite")
    pool = [Prompt(template) for template in TEMPLATES[:prompts]]
    examples = [(text, None) for text in make_texts(texts, seed=2)[0]]
    found = {}
    for name in ("writing", "reading"):
        stored = StoredBackend(InstantBackend(lm), file)
        started = _now()
        next_tokens(stored, pool, examples, 200)
        found[name] = _since(started)
    file.close()
    for path in folder.glob("new-*"):
        path.unlink()
    return found


def measure_boosting(rows: int) -> dict[str, Any]:
    """Measure `logit` with many rows, and `samme` with twenty classes."""
    from blackbox.boosting import training
    from blackbox.boosting.algorithms import ALGORITHMS
    from eval.perf.boosting import make_answers

    found = {}
    for name, n, n_classes, rounds in (
        ("logit", rows, 6, None),
        ("samme", _SAMME_ROWS, _SAMME_CLASSES, _SAMME_ROUNDS),
    ):
        answers = make_answers(n, _BOOSTED_PROMPTS, n_classes, 200)
        options = training.TrainingOptions(
            ALGORITHMS[name], n_classes, rounds, 1.0, 32, 5, 0.5, 0.1
        )
        y = np.arange(n) % n_classes
        started = _now()
        training.boost(answers, y, np.ones(n), options, np.random.default_rng(0))
        found[name] = _since(started)
    return found


def train_and_predict(folder: Path, rows: int, texts: int, prompts: int) -> dict[str, Any]:
    """Measure training and prediction with the `blackbox` that this process imports.

    Returns
    -------
    dict
        Wall and CPU seconds of both, the forward passes that the store didn't have, and a digest of
        the predicted probabilities.
    """
    from sklearn.model_selection import GridSearchCV

    from blackbox import PromptBoostingClassifier, load_model

    store, path = folder / "passes.sqlite", folder / "model"
    train, labels = make_texts(rows, seed=0)
    new, _ = make_texts(texts, seed=1)
    classifier = PromptBoostingClassifier(
        "deterministic", prompts=list(TEMPLATES[:prompts]), random_state=0, store=store
    )
    started = _now()
    classifier.fit(train, labels)
    found: dict[str, Any] = {"training": _since(started)}
    classifier.save(path)
    loaded = load_model(path, backend="deterministic").set_params(store=store)
    started = _now()
    probabilities = loaded.predict_proba(new)
    found["prediction"] = _since(started)
    made = classifier.usage_.passes_made + loaded.prediction_usage_.passes_made
    few, labels = make_texts(_FEW, seed=3)
    default = PromptBoostingClassifier("deterministic", random_state=0, store=store)
    started = _now()
    default.fit(few, labels)
    found["default training"] = _since(started)
    made += default.usage_.passes_made
    started = _now()
    GridSearchCV(default, GRID, cv=3).fit(few, labels)
    found["grid search"] = _since(started)
    digest = hashlib.sha256(np.ascontiguousarray(probabilities).tobytes()).hexdigest()
    return found | {"passes_made": made, "predictions": digest}


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(started: tuple[float, float]) -> dict[str, float]:
    wall, cpu = _now()
    return {"wall": wall - started[0], "cpu": cpu - started[1]}


def run_python(code: Path, arguments: tuple[str, ...]) -> tuple[str, dict[str, float]]:
    """Run Python on a checkout; return its output, and its wall and CPU seconds."""
    environment = os.environ | {"PYTHONPATH": str(code), "PROMPTBOOSTING_STORE": "off"}
    # -P: neither this folder nor the current one comes before the checkout
    command = [sys.executable, "-P", *arguments]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise click.ClickException(f"{code}: {' '.join(arguments)} failed:\n{done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, {"wall": wall, "cpu": cpu}


def measure_code(code: Path, folder: Path, sizes: tuple[int, int, int, int]) -> dict[str, Any]:
    """Run all measurements once on a checkout, whose store and model are in the folder."""
    arguments = (__file__, "--worker", str(folder), *_size_options(sizes))
    found: dict[str, Any] = json.loads(run_python(code, arguments)[0])
    return found | {name: run_python(code, command)[1] for name, command in COMMANDS.items()}


def _size_options(sizes: tuple[int, int, int, int]) -> list[str]:
    named = zip(("--rows", "--texts", "--prompts", "--boosted-rows"), sizes, strict=True)
    return [part for name, size in named for part in (name, str(size))]


def compare_checkouts(
    codes: list[Path], sizes: tuple[int, int, int, int], rounds: int
) -> dict[str, Any]:
    """Measure the checkouts in turns.

    Returns
    -------
    dict
        `times`: a `Times` for each checkout; `predictions`: the digests of each.
    """
    times: list[Times] = [{name: [] for name in MEASUREMENTS} for _ in codes]
    digests: list[set[str]] = [set() for _ in codes]
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / str(number) for number in range(len(codes))]
        for code, folder in zip(codes, folders, strict=True):
            folder.mkdir()
            click.echo(f"{code}: filling its store", err=True)
            measure_code(code, folder, sizes)
        for _ in range(rounds):
            for number, (code, folder) in enumerate(zip(codes, folders, strict=True)):
                found = measure_code(code, folder, sizes)
                if found["passes_made"]:
                    raise click.ClickException(f"{code}: the store lacked answers")
                digests[number].add(found["predictions"])
                for name in MEASUREMENTS:
                    times[number][name].append(found[name])
    return {"times": times, "predictions": [sorted(some) for some in digests]}


def format_table(codes: list[Path], times: list[Times]) -> str:
    """Return a Markdown table: medians with ranges, and ratios to the first checkout by round."""
    lines = ["| | code | wall s | CPU s | CPU, times the first |", "|---|---|---|---|---|"]
    for name in MEASUREMENTS:
        first = np.array([one["cpu"] for one in times[0][name]])
        for code, of_code in zip(codes, times, strict=True):
            wall, cpu = (np.array([one[k] for one in of_code[name]]) for k in ("wall", "cpu"))
            cells = [name, str(code), _spread(wall), _spread(cpu), _spread(cpu / first)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Any) -> str:
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


@click.command()
@click.option(
    "--code",
    "codes",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    default=(".",),
    help="A checkout to measure; may be given several times.",
)
@click.option("--rows", type=click.IntRange(8), default=1000, show_default=True)
@click.option("--texts", type=click.IntRange(1), default=20_000, show_default=True)
@click.option("--prompts", type=click.IntRange(1, len(TEMPLATES)), default=10, show_default=True)
@click.option("--boosted-rows", type=click.IntRange(24), default=10_000, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--worker", type=click.Path(file_okay=False, path_type=Path), hidden=True)
def main(
    codes: tuple[Path, ...],
    rows: int,
    texts: int,
    prompts: int,
    boosted_rows: int,
    rounds: int,
    worker: Path | None,
) -> None:
    """Print the times as JSON and as a table."""
    if worker is not None:
        found = train_and_predict(worker, rows, texts, prompts)
        found |= measure_store(worker, texts, prompts) | measure_boosting(boosted_rows)
        click.echo(json.dumps(found))
        return
    sizes = rows, texts, prompts, boosted_rows
    found = compare_checkouts(list(codes), sizes, rounds)
    about = {"codes": [str(code) for code in codes], "rows": rows, "texts": texts}
    about |= {"prompts": prompts, "boosted_rows": boosted_rows}
    click.echo(json.dumps(about | found))
    click.echo(f"\n{format_table(list(codes), found['times'])}\n")
    equal = len({digest for some in found["predictions"] for digest in some}) == 1
    click.echo(
        f"Predictions are {'the same to the bit' if equal else 'NOT the same'}. {rows:,} rows, "
        f"{texts:,} texts, {prompts} prompts, {boosted_rows:,} rows boosted, {rounds} rounds; "
        f"{platform.machine()}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()
