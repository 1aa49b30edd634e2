"""Prompts in English, in the language of the texts, and in both; and one model for all languages.

    python -m eval.studies.languages --data-dir DIR [--split test] [--model FILE.gguf]

SIB-200 has the same sentences in every language. Ten prompts in each language say the same: the
first ten of the package's built-in prompts in that language, in English those that the evaluation
shares between data sets. A seed draws 16 rows per class from the same 24 in every language; the
others judge, by which the default was chosen, or with ``--split test`` the test rows. With prompts
in the language of the texts, class names are given in it too (``--label-word``). *Transfer*: a
model that was trained on the English texts, under English prompts, predicts the texts of the other
languages.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.answers.passes import next_tokens
from blackbox.answers.texts import check_texts
from blackbox.generation.builtin import read_templates
from blackbox.protocol import Limits
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from blackbox.tables import read_examples
from eval.data import data_sets
from eval.studies.common import load_stored_embeddings, load_stored_lm
from eval.studies.experts import draw_pool

DATA = {
    "en": "sib200_eng",
    "de": "sib200_deu",
    "fr": "sib200_fra",
    "es": "sib200_spa",
    "sw": "sib200_swh",
    "hi": "sib200_hin",
    "ar": "sib200_arb",
    "zh": "sib200_zho",
}
WORDS = {
    "de": "Unterhaltung, Geografie, Gesundheit, Politik, Wissenschaft Technik, Sport, Reisen",
    "fr": "divertissement, géographie, santé, politique, science technologie, sport, voyage",
    "es": "entretenimiento, geografía, salud, política, ciencia tecnología, deportes, viajes",
    "sw": "burudani, jiografia, afya, siasa, sayansi teknolojia, michezo, safari",
    "hi": "मनोरंजन, भूगोल, स्वास्थ्य, राजनीति, विज्ञान प्रौद्योगिकी, खेल, यात्रा",
    "ar": "ترفيه, جغرافيا, صحة, سياسة, علوم تكنولوجيا, رياضة, سفر",
    "zh": "娱乐, 地理, 健康, 政治, 科学 技术, 体育, 旅游",
}
"""The class names, in the order of their English ones."""

N_POOL, SHOTS, N_PROMPTS, TOP_K = 24, 16, 10, 200
SEEDS = (13, 21, 42)

Table = dict[str, dict[str, list[float]]]


def prompts_in(language: str, limits: Limits) -> PromptPool:
    """Return the ten prompts in a language."""
    if language == "en":
        return PromptPool.read(data_sets.PROMPTS / "shared.txt")
    return PromptPool(read_templates(language, limits=limits)[:N_PROMPTS])


def words_in(language: str, classes: Sequence[str]) -> dict[str, list[str]]:
    """Return the words of each class in a language."""
    if language == "en":
        return {}
    return {
        name: words.split()
        for name, words in zip(classes, WORDS[language].split(", "), strict=True)
    }


def ways_in(language: str, classes: Sequence[str], limits: Limits) -> dict[str, dict[str, Any]]:
    """Return the ways to train in a language: their prompts and label words."""
    english, native = prompts_in("en", limits), prompts_in(language, limits)
    words = words_in(language, classes)
    both = {name: [*name.split("/"), *own] for name, own in words.items()}
    if language == "en":
        return {"English": {"prompts": english, "label_words": "names"}}
    return {
        "English": {"prompts": english, "label_words": "names"},
        "native": {"prompts": native, "label_words": words},
        "five of each": {
            "prompts": PromptPool([*english[::2], *native[::2]]),
            "label_words": both,
        },
        "ten of each": {"prompts": PromptPool([*english, *native]), "label_words": both},
    }


def fit(
    lm: StoredBackend, texts: Sequence[str], labels: Sequence[str], seed: int, **options: Any
) -> PromptBoostingClassifier:
    """Return a classifier trained on some rows."""
    classifier = PromptBoostingClassifier(lm, store=False, random_state=seed, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier.fit(list(texts), list(labels))
    return classifier


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--language", "languages", multiple=True, default=DATA, type=click.Choice(list(DATA)))
@click.option("--split", type=click.Choice(["development", "test"]), default="development")
@click.option("--model", help="A file of llama.cpp instead of the embedded LM.")
@click.option("--embeddings/--no-embeddings", default=True, show_default=True)
@click.option("--collect", is_flag=True, help="Only fill the store.")
@click.option(
    "--store",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("languages.sqlite"),
    show_default=True,
)
def main(
    data_dir: Path,
    languages: tuple[str, ...],
    split: str,
    model: str | None,
    embeddings: bool,
    collect: bool,
    store: Path,
) -> None:
    """Print accuracies in percent and their deviation, by way of training and language."""
    file = open_store(store)
    lm = load_stored_lm(file, "llamacpp" if model else "onnx", model=model)
    embedder = load_stored_embeddings(file, "onnx") if embeddings else None
    english = read_examples(data_dir / DATA["en"] / "train.csv")
    classes = sorted(set(english.labels))
    drawn = draw_pool(english.labels, english.texts, N_POOL)
    pool_labels = np.array([english.labels[row] for row in drawn])
    tested = read_examples(data_dir / DATA["en"] / "test.csv")
    pools, tests = {}, {}
    for language in languages:
        train = read_examples(data_dir / DATA[language] / "train.csv")
        pools[language] = [str(train.texts[row]) for row in drawn]
        test = read_examples(data_dir / DATA[language] / "test.csv")
        tests[language] = [str(text) for text in test.texts]
    if collect:
        for language in languages:
            asked = PromptPool([*prompts_in("en", lm.limits), *prompts_in(language, lm.limits)])
            for texts in (tests[language], pools[language]):
                next_tokens(lm, asked, check_texts(texts), TOP_K)
            click.echo(f"{language}: answered", err=True)
        return
    table: Table = {}
    kinds: Mapping[str, Any] = {"prompts alone": None}
    kinds = kinds if embedder is None else {**kinds, "with embeddings": embedder}
    for seed in SEEDS:
        rows = _draw(pool_labels, classes, seed)
        rest = [row for row in range(len(pool_labels)) if row not in rows]
        judged = pools_at(pools, rest) if split == "development" else tests
        y = pool_labels[rest] if split == "development" else np.array(tested.labels)
        for kind, experts in kinds.items():
            of_english: PromptBoostingClassifier | None = None
            for language in languages:
                texts = [pools[language][row] for row in rows]
                for way, options in ways_in(language, classes, lm.limits).items():
                    trained = fit(
                        lm, texts, pool_labels[rows].tolist(), seed, embeddings=experts, **options
                    )
                    right = np.mean(trained.predict(judged[language]) == y)
                    _note(table, f"{way}, {kind}", language, right)
                    of_english = trained if language == "en" else of_english
                if of_english is not None:
                    right = np.mean(of_english.predict(judged[language]) == y)
                    _note(table, f"trained on English, {kind}", language, right)
    click.echo("| " + " | ".join(["", *languages]) + " |")
    click.echo("|---" * (len(languages) + 1) + "|")
    for way, cells in table.items():
        shown = [_shown(cells.get(language, [])) for language in languages]
        click.echo(f"| {way} | " + " | ".join(shown) + " |")
    click.echo(f"\n{platform.machine()}, {os.cpu_count()} cores, {len(SEEDS)} seeds")


def pools_at(pools: Mapping[str, Sequence[str]], rows: Sequence[int]) -> dict[str, list[str]]:
    """Return some rows of the pool of each language."""
    return {language: [texts[row] for row in rows] for language, texts in pools.items()}


def _draw(labels: NDArray[Any], classes: Sequence[str], seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return [
        row
        for name in classes
        for row in rng.permutation(np.flatnonzero(labels == name))[:SHOTS].tolist()
    ]


def _note(table: Table, way: str, language: str, right: float) -> None:
    table.setdefault(way, {}).setdefault(language, []).append(100 * float(right))


def _shown(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" if values else "–"


if __name__ == "__main__":
    main()
