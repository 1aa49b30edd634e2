"""Texts of none of the classes: how well they are noticed, with classes withheld.

    python -m eval.studies.none_of_these --data-dir DIR [--data banking77] [--split test]
        [--embeddings none] [--store FILE]

Of Banking77 five draws of 17 of the 77 classes are withheld, of other sets each class in turn. A
model is trained on the other classes of the rows that `eval.studies.library_rows` answers for a
source (8 rows per class of Banking77, 32 elsewhere), under the same ten prompts; rows of the
withheld classes are of none. With ``--outside N`` N rows of the withheld classes, at random, are
training rows with the label of none of the classes. ``--split development`` judges on the
further training rows and on the other rows of the withheld classes: by them the measures and their
weights were chosen. Test rows decide nothing. What is in the store isn't asked again.
"""

from __future__ import annotations

import functools
import os
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.metrics import Detection, evaluate_detection
from blackbox.model.out_of_scope import MEASURES, OutOfScopeDetector
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from eval.data import data_sets
from eval.studies.common import load_stored_embeddings, load_stored_lm
from eval.studies.library_rows import draw_rows, joined

DATA = ("banking77", "trec", "sib200_eng", "agnews")
N_WITHHELD, N_DRAWS = 17, 5
LABEL = "none of these"
VARIANTS: Mapping[str, Sequence[str]] = {
    "score": ("score",),
    "score, distance": ("score", "distance"),
    "score, neighbours": ("score", "neighbours"),
}
"""Parts of the measures, with their weights as they are without rows of none of the classes."""


def withheld(name: str, classes: Sequence[str], split: str) -> Iterator[list[str]]:
    """Yield the classes that are withheld, draw by draw."""
    if name != "banking77":
        yield from ([label] for label in classes)
        return
    for draw in range(N_DRAWS):
        rng = np.random.default_rng(draw if split == "test" else 1000 + draw)
        drawn = rng.choice(len(classes), N_WITHHELD, replace=False)
        yield [classes[code] for code in sorted(drawn.tolist())]


def only(detector: OutOfScopeDetector, kept: Sequence[str]) -> OutOfScopeDetector:
    """Return a detector by some of its measures alone, without its threshold."""
    weights = [
        weight if name in kept else 0.0
        for name, weight in zip(detector.measures, detector.weights.tolist(), strict=True)
    ]
    return replace(detector, weights=np.array(weights))


def judge(
    classifier: PromptBoostingClassifier, texts: list[str], outside: NDArray[np.bool_], title: str
) -> dict[str, Detection]:
    """Return how well texts of none of the classes are noticed, by each variant."""
    model = classifier.model_
    detector = model.out_of_scope
    assert detector is not None
    predictions, evidence = model.read(
        classifier.connect(), texts, embedder=classifier.connect_embedder()
    )
    found = predictions.out_of_scope
    assert found is not None
    assert predictions.probabilities is not None
    results = {title: evaluate_detection(outside, found.scores, found.rejected)}
    if title != "all":
        return results
    alone = -predictions.probabilities.max(axis=1)
    none = np.zeros(len(texts), bool)
    results["largest probability"] = evaluate_detection(outside, alone, none)
    seen = model.scope_evidence(predictions.scores, evidence.matrices, evidence.vectors)
    for name, kept in VARIANTS.items():
        if set(kept) <= set(detector.measures):
            scores = only(detector, kept).scores(seen)
            results[name] = evaluate_detection(outside, scores, none)
    return results


def run_draw(
    lm: StoredBackend,
    embedder: StoredBackend | None,
    prompts: PromptPool,
    train: tuple[list[str], NDArray[Any]],
    judged: tuple[list[str], NDArray[Any]],
    classes: Sequence[str],
    n_outside: Sequence[int],
    seed: int,
    *,
    add_rest: bool,
    shown: Sequence[str] | None = None,
) -> dict[str, Detection]:
    """Return the results of one draw of classes.

    The training rows of none of the classes are of those `shown`, by default of all that are
    withheld.
    """
    texts, labels = train
    is_out = np.isin(labels, classes)
    is_shown = is_out if shown is None else np.isin(labels, shown)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(is_shown))
    # the same rows judge, however many are trained on
    rest = order[max(n_outside) :] if add_rest else order[:0]
    judged_texts = [*judged[0], *(texts[row] for row in rest)]
    outside = np.append(np.isin(judged[1], classes), np.ones(len(rest), bool))
    results: dict[str, Detection] = {}
    for n in (0, *n_outside):
        rows = np.append(np.flatnonzero(~is_out), order[:n])
        classifier = PromptBoostingClassifier(
            lm,
            prompts=prompts,
            embeddings=embedder,
            none_of_these=LABEL,
            store=False,
            random_state=seed,
        )
        given = np.where(is_out, LABEL, labels)[rows]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            classifier.fit([texts[row] for row in rows], given)
        title = "all" if not n else f"all, {n} rows of none"
        results |= judge(classifier, judged_texts, outside, title)
    return results


def half_of(classes: Sequence[str], seed: int) -> list[str]:
    """Return half of the withheld classes, at random."""
    order = np.random.default_rng(seed).permutation(len(classes)).tolist()
    return [classes[place] for place in order[: len(classes) // 2]]


def show(name: str, found: Mapping[str, list[Detection]]) -> None:
    """Print a table of means over draws, with the standard deviation of the AUROC."""
    click.echo(f"\n**{name}**\n")
    click.echo(
        "| measures | AUROC | false alarms to notice 95% | noticed | false alarms |\n"
        "|---|---|---|---|---|"
    )
    for title, some in found.items():
        auroc = 100 * np.array([one.auroc for one in some])
        at_95 = 100 * float(np.mean([one.false_alarms_at_95 or 0.0 for one in some]))
        cells = ["–", "–"]
        if title.startswith("all"):
            pairs = np.array([(one.recall or 0.0, one.false_alarms or 0.0) for one in some])
            cells = [f"{share:.1f}" for share in 100 * pairs.mean(axis=0)]
        first = f"{auroc.mean():.1f} ± {auroc.std(ddof=1):.1f}"
        click.echo(f"| {title} | {first} | {at_95:.1f} | " + " | ".join(cells) + " |")


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--data", multiple=True, default=DATA, type=click.Choice(DATA))
@click.option("--split", type=click.Choice(["development", "test"]), default="development")
@click.option("--n-test", default=300, show_default=True, help="Test rows of each set.")
@click.option("--outside", multiple=True, type=int, default=(20,), show_default=True)
@click.option("--backend", default="onnx", show_default=True)
@click.option("--embeddings", default="onnx", show_default=True, help='Or "none".')
@click.option(
    "--store",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("none_of_these.sqlite"),
    show_default=True,
)
def main(
    data_dir: Path,
    data: tuple[str, ...],
    split: str,
    n_test: int,
    outside: tuple[int, ...],
    backend: str,
    embeddings: str,
    store: Path,
) -> None:
    """Print a table for each data set."""
    file = open_store(store)
    lm = load_stored_lm(file, backend)
    embedder = None
    if embeddings != "none":
        embedder = load_stored_embeddings(file, embeddings)
    prompts = PromptPool.read(data_sets.PROMPTS / "shared.txt")
    for name in data:
        found = data_sets.read_data_set(name, data_dir)
        of_source, further = draw_rows(name, found)
        train = found.train.take(of_source)
        judged = found.test_rows(n_test) if split == "test" else found.train.take(further)
        table: dict[str, list[Detection]] = {}
        learned, tested = ((joined(one.texts), np.array(one.labels)) for one in (train, judged))
        for draw, classes in enumerate(withheld(name, found.classes, split)):
            run = functools.partial(run_draw, lm, embedder, prompts, learned)
            parts = run(tested, classes, outside, draw, add_rest=split == "development")
            if len(classes) > 1:
                shown = half_of(classes, draw)
                kept = np.flatnonzero(~np.isin(tested[1], shown))
                some = [tested[0][row] for row in kept], tested[1][kept]
                elsewhere = run(some, classes, outside, draw, add_rest=False, shown=shown)
                parts |= {f"{title}, of other kinds": one for title, one in elsewhere.items()}
            for title, one in parts.items():
                if one.auroc is not None:
                    table.setdefault(title, []).append(one)
        show(name, table)
    click.echo(f"\nmeasures: {', '.join(MEASURES)}; {platform.machine()}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
