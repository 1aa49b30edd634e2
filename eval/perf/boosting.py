"""Measure the time of boosting: `samme` against plain numpy and by classes, `logit` by rows.

    python -m eval.perf.boosting [--rows 10000]

`samme` takes turns with a plain vectorised version of the same rounds (below) on the same random
distributions, so that whatever else the machine does slows both; both must choose the same tokens.
Then it is trained with more classes, which also take turns.
`logit` is timed with the package's defaults, calibration included, beside one logistic regression
of scikit-learn on the same answers, and its memory measured in a process of its own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from blackbox.answers.features import frequent_matrices
from blackbox.answers.passes import Answers
from blackbox.boosting import training
from blackbox.boosting.algorithms import ALGORITHMS
from blackbox.boosting.logit import scaling_of
from blackbox.boosting.samme import candidates_per_class, fit_samme
from blackbox.boosting.weak_learner import one_blas_thread

CASES = ((32, 2, 50_265), (64, 4, 50_265), (96, 6, 50_265), (1024, 2, 50_265))
"""Rows, classes, tokens: the first and the last are those of the paper's published code."""
_CLASSES, _ROWS, _ROUNDS = (2, 6, 20), 192, 60


def run_plain_samme(
    log_probs: NDArray[np.float32], y: NDArray[np.intp], n_classes: int, n_rounds: int
) -> list[tuple[int, ...]]:
    """Run SAMME over one prompt in plain numpy; return the verbalizer tuple of each round."""
    probabilities = np.exp(log_probs)
    weights = np.full(len(y), 1 / len(y))
    signs = 2.0 * np.eye(n_classes)[y] - 1
    chosen: list[tuple[int, ...]] = []
    for _ in range(n_rounds):
        scores = (signs * weights[:, None]).T @ probabilities
        owner = scores.argmax(axis=0)
        candidates = []
        for label in range(n_classes):
            mine = np.where(owner == label, scores[label], -np.inf)
            order = np.argsort(-mine, kind="stable")[: candidates_per_class(n_classes)]
            candidates.append(np.sort(order[np.isfinite(mine[order])]))
        tuples = np.array(list(product(*candidates)))
        if n_classes == 2:
            tuples = np.concatenate([tuples, tuples[:, ::-1]])
        predicted = log_probs[:, tuples].argmax(axis=2)
        errors = weights @ (predicted != y[:, None])
        equal = np.flatnonzero(errors <= errors.min() + 1e-12)
        best = equal[np.lexsort(tuples[equal].T[::-1])[0]]
        error = min(max(float(errors[best]), 1e-10), 1 - 1e-10)
        alpha = np.log((1 - error) / error) + np.log(n_classes - 1)
        weights = weights * np.exp(alpha * (predicted[:, best] != y))
        weights /= weights.sum()
        chosen.append(tuple(tuples[best].tolist()))
    return chosen


def make_distributions(
    n: int, n_classes: int, n_tokens: int, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Return log-probabilities of n rows over all tokens, some correlated with the classes."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    logits = rng.standard_normal((n, n_tokens), np.float32) * 2
    logits[:, :300] += rng.standard_normal((n_classes, 300), np.float32)[y]
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), y


def compare_samme(n: int, n_classes: int, n_tokens: int, repeats: int, n_rounds: int) -> str:
    """Return a table row: milliseconds per round of both, and the range of their ratio."""
    log_probs, y = make_distributions(n, n_classes, n_tokens)
    ones = np.ones(n)
    ratios, ours, theirs = [], [], []
    for _ in range(repeats):
        started = time.perf_counter()
        expected = run_plain_samme(log_probs, y, n_classes, n_rounds)
        theirs.append((time.perf_counter() - started) / n_rounds)
        started = time.perf_counter()
        with one_blas_thread():
            learners = fit_samme(
                [log_probs],
                y,
                ones,
                n_classes,
                n_estimators=n_rounds,
                rng=np.random.default_rng(0),
            )
        ours.append((time.perf_counter() - started) / n_rounds)
        ratios.append(theirs[-1] / ours[-1])
    found = [tuple(learner.columns[:, 0].tolist()) for learner in learners]
    same = sum(a == b for a, b in zip(found, expected, strict=False))
    return (
        f"| {n:,} × {n_tokens:,}, {n_classes} classes | {1000 * np.median(theirs):.1f} | "
        f"{1000 * np.median(ours):.1f} | {np.median(ratios):.1f} ({min(ratios):.1f} to "
        f"{max(ratios):.1f}) | {same} of {n_rounds} |"
    )


def make_answers(n: int, n_prompts: int, n_classes: int, top_k: int, seed: int = 0) -> Answers:
    """Return synthetic answers with an LM's token frequencies, some tokens informative."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    n_tokens = 4 * top_k
    ids = np.empty((n_prompts, n, top_k), np.int32)
    values = np.empty((n_prompts, n, top_k), np.float32)
    for prompt in range(n_prompts):
        base = -1.2 * np.log1p(np.arange(n_tokens, dtype=np.float32))
        effects = rng.standard_normal((n_classes, n_tokens)).astype(np.float32)
        for start in range(0, n, 1000):
            rows = slice(start, min(start + 1000, n))
            size = (rows.stop - start, n_tokens)
            logits = base + 0.3 * effects[y[rows]] + 0.8 * rng.standard_normal(size, np.float32)
            log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            order = np.argsort(-log_probs, axis=1)[:, :top_k]
            ids[prompt, rows] = order
            values[prompt, rows] = np.take_along_axis(log_probs, order, axis=1)
    return Answers(ids, values, {})


def time_logit(n: int, n_prompts: int = 10, n_classes: int = 6, top_k: int = 200) -> Any:
    """Return CPU seconds of boosting and of a regression, MB added, MB of answers, and peak MB."""
    answers = make_answers(n, n_prompts, n_classes, top_k)
    options = training.TrainingOptions(ALGORITHMS["logit"], n_classes, None, 1.0, 32, 5, 0.5, 0.1)
    before = _peak_memory(reset=True)
    started = time.process_time()
    y = np.arange(n) % n_classes
    training.boost(answers, y, np.ones(n), options, np.random.default_rng(0))
    seconds = time.process_time() - started
    held = (answers.token_ids.nbytes + answers.log_probs.nbytes) / 1e6
    grown, most = _peak_memory() - before, _peak_memory()
    started = time.process_time()
    fit_regression(answers, y)
    return seconds, time.process_time() - started, grown, held, most


def fit_regression(answers: Answers, y: NDArray[np.intp]) -> LogisticRegression:
    """Fit one logistic regression on the standardised log-probabilities that `logit` reads."""
    ones = np.ones(len(y))
    matrices, _, _ = frequent_matrices(answers.token_ids, answers.log_probs, ones, 0.1)
    joint = np.concatenate([scaling_of(one, ones).apply(one) for one in matrices], axis=1)
    with one_blas_thread():
        return LogisticRegression(max_iter=1000).fit(joint, y)


def _peak_memory(*, reset: bool = False) -> float:
    """Return the peak memory of this process in MB (on Linux since the last reset)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


def logit_lines(sizes: tuple[int, ...]) -> Iterator[str]:
    """Yield a table row for each number of rows, each measured in its own process."""
    spawn = multiprocessing.get_context("spawn")
    for n in sizes:
        with spawn.Pool(1) as pool:
            seconds, regression, grown, held, most = pool.apply(time_logit, (n,))
        yield (
            f"| {n:,} | {seconds:.2f} | {regression:.2f} | {seconds / regression:.1f} | {held:.0f} "
            f"| {grown:.0f} | {most:.0f} |"
        )


def samme_lines(repeats: int) -> Iterator[str]:
    """Yield a table row for each number of classes, which take turns."""
    trainings = []
    for n_classes in _CLASSES:
        options = training.TrainingOptions(
            ALGORITHMS["samme"], n_classes, _ROUNDS, 1.0, 32, 5, 0.5, 0.1
        )
        answers = make_answers(_ROWS, 10, n_classes, 200)
        trainings.append((answers, np.arange(_ROWS) % n_classes, np.ones(_ROWS), options))
    seconds = np.zeros((repeats, len(_CLASSES)))
    for repeat in range(repeats):
        for place, given in enumerate(trainings):
            started = time.process_time()
            training.boost(*given, np.random.default_rng(0))
            seconds[repeat, place] = time.process_time() - started
    for n_classes, each, times in zip(
        _CLASSES, seconds.T, (seconds / seconds[:, :1]).T, strict=True
    ):
        yield (
            f"| {n_classes} | {np.median(each):.2f} ({each.min():.2f} to {each.max():.2f}) "
            f"| {np.median(times):.1f} ({times.min():.1f} to {times.max():.1f}) |"
        )


@click.command()
@click.option("--rows", type=int, multiple=True, default=(64, 1000, 10_000), show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--rounds", default=10, show_default=True)
def main(rows: tuple[int, ...], repeats: int, rounds: int) -> None:
    """Print the tables."""
    click.echo("| samme: rows × tokens | plain, ms per round | ours, ms | times | same tuples |")
    click.echo("|---|---|---|---|---|")
    for case in CASES:
        click.echo(compare_samme(*case, repeats, rounds))
    click.echo(
        f"\n| samme: classes, {_ROWS} rows, ten prompts, {_ROUNDS} rounds | CPU seconds | times |"
    )
    click.echo("|---|---|---|")
    for line in samme_lines(repeats):
        click.echo(line)
    click.echo(
        "\n| logit: rows, ten prompts | CPU seconds | one regression | times | MB of answers "
        "| MB added | MB in all |"
    )
    click.echo("|---|---|---|---|---|---|---|")
    for line in logit_lines(rows):
        click.echo(line)
    click.echo(
        f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()
