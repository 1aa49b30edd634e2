"""Demonstrations in prompts: fixed ones, and retrieved ones by embeddings or by answers.

    python -m eval.studies.retrieval --data-dir DIR [--out results] [--store FILE]
        [--data sst2] [--shots 8] [--k 1] [--cues 1] [--n-test 200] [--split test]

A few of a data set's hand-written cues are answered without demonstrations, behind the most typical
row of each class (the one nearest to the mean of its class's embeddings), and behind the nearest
rows of each class (`{nearest: K}`), so that the three kinds of demonstrations take about the same
tokens. Near by answers are the rows whose standardised log-probabilities under the plain cues are
most alike; near by answers to the question, those under the data set's prompt that asks what the
task wants to know. Rows are shown rows of other folds only. Of each kind, and of the plain cues
together with those behind retrieved rows, a model is boosted, without experts.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import frequent_matrices, gather
from blackbox.answers.passes import Answers, next_tokens
from blackbox.backend import BaseBackend
from blackbox.boosting.logit import scaling_of
from blackbox.boosting.splits import draw_shots, stratified_folds
from blackbox.boosting.weak_learner import one_blas_thread
from blackbox.experts.examples import KeptExamples
from blackbox.generation import Task, show_nearest_rows
from blackbox.prompts.inputs import Example
from blackbox.prompts.pool import PromptPool
from blackbox.prompts.template import Prompt
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from eval.data import data_sets
from eval.methods.expert_variants import Boosted
from eval.studies.common import load_stored_embeddings, load_stored_lm
from eval.studies.expert_tables import interval_of
from eval.studies.experts import measure

TOP_K = 200
N_FREE = 400
"""Training rows to judge on with ``--split development``, of which those drawn are left out."""

Vectors = NDArray[np.float32]
Bound = tuple[PromptPool, PromptPool]
"""Prompts with the demonstrations of training rows, and with those of judged rows."""


def cues_of(pool: Sequence[Prompt], n: int) -> PromptPool:
    """Return the first cues that follow a text."""
    return PromptPool([prompt for prompt in pool if prompt.template.startswith("{text}")][:n])


def answer_vectors(train: Answers, judged: Answers) -> tuple[Vectors, Vectors]:
    """Return the log-probabilities of training rows and judged rows, standardised by the first."""
    n = train.token_ids.shape[1]
    weight = np.ones(n)
    matrices, tokens, floors = frequent_matrices(train.token_ids, train.log_probs, weight, 0.1)
    parts: tuple[list[Vectors], list[Vectors]] = ([], [])
    for number, (matrix, ids, floor) in enumerate(zip(matrices, tokens, floors, strict=True)):
        scaling = scaling_of(matrix, weight, np.arange(n))
        other = gather(judged.token_ids[number], judged.log_probs[number], ids, floor)
        parts[0].append(scaling.apply(matrix))
        parts[1].append(scaling.apply(other))
    first, second = (np.concatenate(some, axis=1).astype(np.float32) for some in parts)
    return first, second


def retrieve(
    pool: PromptPool, task: Task, judged: Sequence[Example], vectors: tuple[Vectors, Vectors]
) -> Bound:
    """Return prompts with the rows that are nearest by some vectors."""
    seen, kept = show_nearest_rows(pool, task, vectors[0], np.random.default_rng(0))
    return seen, kept.bind(pool, judged, vectors[1], task.limits)


def fix(
    pool: PromptPool, task: Task, judged: Sequence[Example], vectors: tuple[Vectors, Vectors]
) -> Bound:
    """Return prompts with the rows that are nearest to the means of their classes."""
    means = np.stack([vectors[0][task.y == code].mean(axis=0) for code in range(task.n_classes)])
    typical = (vectors[0] * means[task.y]).sum(axis=1) / np.linalg.norm(means, axis=1)[task.y]
    # by this coordinate alone all texts have the same neighbours
    heights = np.stack([typical, np.sqrt(np.maximum(1 - typical**2, 0))], axis=1)
    ahead = np.tile(np.array([[1, 0]], np.float32), (max(len(task.y), len(judged)), 1))
    limits = task.limits
    folds = show_folds(pool, task, vectors[0])
    kept = KeptExamples(task.examples, task.y, heights.astype(np.float32), list(task.names))
    seen = kept.bind(pool, task.examples, ahead[: len(task.y)], limits, (folds, folds))
    return seen, kept.bind(pool, judged, ahead[: len(judged)], limits)


def show_folds(pool: PromptPool, task: Task, vectors: Vectors) -> NDArray[np.intp]:
    """Return the folds that `show_nearest_rows` draws."""
    folds = np.zeros(len(task.y), np.intp)
    drawn = stratified_folds(task.y, 5, np.random.default_rng(0), task.groups)
    for number, (_, held_out) in enumerate(drawn):
        folds[held_out] = number
    return folds


def run_draw(
    name: str,
    data_dir: Path,
    lm: StoredBackend,
    embedder: BaseBackend,
    *,
    seed: int,
    shots: int,
    k: int,
    cues: int,
    n_test: int,
    split: str,
) -> dict[str, tuple[float, float, float]]:
    """Return accuracy, log-loss and tokens per text of each kind of demonstrations."""
    data = data_sets.read_data_set(name, data_dir)
    drawn = draw_shots(data.train.labels, data.train.texts, shots, seed)
    train = data.train.take(drawn)
    if split == "test":
        judged = data.test_rows(n_test)
    else:
        order = np.random.default_rng(0).permutation(len(data.train.labels))[:N_FREE]
        judged = data.train.take([row for row in order.tolist() if row not in set(drawn)][:n_test])
    y, truth = (np.searchsorted(data.classes, rows.labels) for rows in (train, judged))
    seen, unseen = ([(str(text), None) for text in rows.texts] for rows in (train, judged))
    names = [label.replace("_", " ") for label in data.classes]
    limits = lm.limits
    task = Task(seen, y, np.ones(len(y)), names, None, limits, lm.count_tokens)
    plain = cues_of(data.card.pool(), cues)
    slotted = PromptPool(f"{{nearest: {k}}}{prompt.template}" for prompt in plain)
    embedded = (embedder.embed(train.texts).vectors, embedder.embed(judged.texts).vectors)
    bound: dict[str, Bound] = {"no demonstrations": (plain, plain)}
    bound["fixed"] = fix(slotted, task, unseen, embedded)
    bound["retrieved by embeddings"] = retrieve(slotted, task, unseen, embedded)
    found: dict[str, tuple[float, float, float]] = {}
    both: dict[str, tuple[Answers, Answers]] = {}

    def answers_to(pools: Bound) -> tuple[Answers, Answers]:
        return next_tokens(lm, pools[0], seen, TOP_K), next_tokens(lm, pools[1], unseen, TOP_K)

    asked = PromptPool([one for one in data.card.pool() if one.template.startswith("<user>")])
    spaces: dict[str, Bound] = {
        "retrieved by answers": (plain, plain),
        "retrieved by answers to the question": (asked, asked),
    }
    for kind in (*bound, *spaces):
        if kind not in bound:
            vectors = answer_vectors(*answers_to(spaces[kind]))
            bound[kind] = retrieve(slotted, task, unseen, vectors)
        tokens = lm.usage.tokens
        both[kind] = answers_to(bound[kind])
        sent = bound[kind][1]
        requests = [prompt.render(*text) for prompt in sent for text in unseen]
        size = float(np.sum(lm.count_tokens(requests))) / len(unseen)
        found[kind] = (*judge(both[kind], y, truth, names, seed), size)
        click.echo(f"{name}, seed {seed}, {kind}: {lm.usage.tokens - tokens} tokens", err=True)
    plain_answers, shown_answers = both["no demonstrations"], both["retrieved by embeddings"]
    joined = (
        join(plain_answers[0], shown_answers[0]),
        join(plain_answers[1], shown_answers[1]),
    )
    size = found["no demonstrations"][2] + found["retrieved by embeddings"][2]
    found["none, and retrieved by embeddings"] = (*judge(joined, y, truth, names, seed), size)
    return found


def join(one: Answers, other: Answers) -> Answers:
    """Return the answers to the prompts of two pools over the same texts."""
    return Answers(
        np.concatenate([one.token_ids, other.token_ids]),
        np.concatenate([one.log_probs, other.log_probs]),
        one.token_bytes | other.token_bytes,
    )


def judge(
    answers: tuple[Answers, ...],
    y: NDArray[np.intp],
    truth: NDArray[np.intp],
    names: Sequence[str],
    seed: int,
) -> tuple[float, float]:
    """Return accuracy in percent and log-loss on judged rows of a model of training rows."""
    with one_blas_thread():
        boosted = Boosted(answers[0], y, names, seed)
        accuracy, loss, _ = measure(boosted.scores(boosted.calibrate([]), answers[1]), truth)
    return accuracy, loss


def print_table(found: Mapping[str, list[dict[str, tuple[float, float, float]]]]) -> None:
    """Print accuracy ± standard deviation over draws, log-loss and tokens, by data set.

    The last columns are the differences to fixed demonstrations over the draws of all data sets,
    each with an interval of 95% by Student's t.
    """
    heads = [f"{name}: {what}" for name in found for what in ("accuracy", "log-loss", "tokens")]
    heads += ["accuracy over fixed", "log-loss over fixed"]
    click.echo(f"\n| demonstrations | {' | '.join(heads)} |\n|---{'|---' * len(heads)}|")
    for kind in next(iter(found.values()))[0]:
        row = []
        for draws in found.values():
            each = np.array([draw[kind] for draw in draws])
            mean, spread = each.mean(axis=0), each.std(axis=0, ddof=1) if len(each) > 1 else [0]
            row += [f"{mean[0]:.1f} ± {spread[0]:.1f}", f"{mean[1]:.3f}", f"{mean[2]:.0f}"]
        over = np.array(
            [np.subtract(one[kind], one["fixed"]) for draws in found.values() for one in draws]
        )
        row += [interval_of(over[:, 0], 1), interval_of(over[:, 1], 3)]
        click.echo(f"| {kind} | {' | '.join(row)} |")


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--out", default=Path("results"), type=click.Path(file_okay=False, path_type=Path))
@click.option("--store", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--backend", default="onnx", show_default=True)
@click.option("--data", multiple=True, default=("sst2", "trec", "agnews"), show_default=True)
@click.option("--seed", "seeds", multiple=True, type=int, default=(13, 21, 42), show_default=True)
@click.option("--shots", default=8, show_default=True, help="Labels per class.")
@click.option("--k", default=1, show_default=True, help="Demonstrations per class.")
@click.option("--cues", default=1, show_default=True, help="Number of cues.")
@click.option("--n-test", default=200, show_default=True, help="Rows to judge on.")
@click.option(
    "--split", type=click.Choice(["development", "test"]), default="development", show_default=True
)
def main(
    data_dir: Path,
    out: Path,
    store: Path | None,
    backend: str,
    data: tuple[str, ...],
    seeds: tuple[int, ...],
    shots: int,
    k: int,
    cues: int,
    n_test: int,
    split: str,
) -> None:
    """Print accuracy, log-loss and tokens of each kind of demonstrations."""
    out.mkdir(parents=True, exist_ok=True)
    file = open_store(store or out / "passes.sqlite")
    lm = load_stored_lm(file, backend)
    embedder = load_stored_embeddings(file, "all-minilm-l6-v2")
    sizes = {"shots": shots, "k": k, "cues": cues, "n_test": n_test}
    found = {
        name: [
            run_draw(name, data_dir, lm, embedder, seed=seed, split=split, **sizes)
            for seed in seeds
        ]
        for name in data
    }
    print_table(found)
    click.echo(
        f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"{lm.usage.passes_made} passes made, {lm.usage.passes_from_store} from the store"
    )


if __name__ == "__main__":
    main()
