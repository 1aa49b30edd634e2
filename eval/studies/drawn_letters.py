"""Compare ways to draw answers from an LM without log-probabilities: orders, letters and words.

    python -m eval.studies.drawn_letters --data-dir DIR [--data trec] [--out results]

The embedded LM, four questions about the classes and 60 held-out training rows. Labels are 8 rows
per class out of a pool of 12, drawn with each seed. *One order* lists the options of a question as
they come, *several orders* is the backend's own way; the number of draws is the same. *Words* asks
the same questions without letters and counts first words. *Exact* reads the distribution over the
letters, which such an LM doesn't give: it is what more and more draws in one order come to.

A draw is one token here, so that all draws of a request take one evaluation of it on this machine;
an API is paid for each, or for each request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np

import backends
from backends.sampling import SamplingBackend
from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.backend import BaseBackend
from blackbox.generation.questions import class_questions
from blackbox.prompts.pieces import literal
from blackbox.prompts.question import Question
from blackbox.prompts.template import Prompt
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from blackbox.tables import read_examples
from eval.studies.questions import draw

DATA_SETS = ("sst2", "trec")
SHOTS, POOL, N_TEST, N_QUESTIONS = 8, 12, 60, 4
SEEDS = (13, 21, 42)
DRAWS = (32, 8)  # the store serves the smaller number out of the larger one


class OneOrder(SamplingBackend):
    """The same draws, with the options in the order in which they come."""

    max_orders = 1


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--data", multiple=True, default=DATA_SETS)
@click.option("--out", default=Path("results"), type=click.Path(file_okay=False, path_type=Path))
@click.option("--threads", type=int, default=1)
def main(data_dir: Path, data: tuple[str, ...], out: Path, threads: int) -> None:
    """Print the table."""
    out.mkdir(parents=True, exist_ok=True)
    lm = StoredBackend(
        backends.load("onnx", n_threads=threads), open_store(out / "drawn_letters.sqlite")
    )
    click.echo("| data | what is counted | accuracy (each seed) | log-loss |\n|---|---|---|---|")
    for name in data:
        for line in run(name, data_dir, lm):
            click.echo(line)


def run(data: str, data_dir: Path, lm: BaseBackend) -> Iterator[str]:
    """Yield the lines of one data set."""
    train = read_examples(data_dir / data / "train.csv")
    pool = draw(train.labels, POOL, np.random.default_rng(0))
    free = sorted(set(range(len(train.texts))) - set(pool))
    held_out = np.random.default_rng(0).permutation(free)[:N_TEST].tolist()
    names = sorted(set(train.labels))
    shown = [name.replace("_", " ") for name in names]
    asked = class_questions(shown, None, limits=lm.limits)
    questions = [question for question in asked if not question.is_reversed][:N_QUESTIONS]
    ways: list[tuple[str, BaseBackend, Sequence[Prompt], int]] = [
        ("letters, exact, one order", lm, questions, 200)
    ]
    words = [as_words(question) for question in questions]
    for n in DRAWS:
        ways += [
            (f"letters, {n} draws, one order", _drawn(OneOrder, lm, n), questions, n),
            (
                f"letters, {n} draws, several orders",
                _drawn(SamplingBackend, lm, n),
                questions,
                n,
            ),
            (f"words, {n} draws", _drawn(SamplingBackend, lm, n), words, n),
        ]
    truth = np.array([names.index(train.labels[row]) for row in held_out])
    for name, backend, prompts, top_k in ways:
        accuracies, losses = [], []
        for seed in SEEDS:
            drawn = draw([train.labels[row] for row in pool], SHOTS, np.random.default_rng(seed))
            rows = [pool[place] for place in drawn]
            classifier = PromptBoostingClassifier(
                backend,
                prompts=PromptPool(prompts),
                top_k=top_k,
                random_state=seed,
                store=False,
                embeddings=None,
            )
            classifier.fit([train.texts[row] for row in rows], [train.labels[row] for row in rows])
            found = classifier.predict_proba([train.texts[row] for row in held_out])
            accuracies.append(100 * float(np.mean(found.argmax(axis=1) == truth)))
            losses.append(-float(np.mean(np.log(found[np.arange(len(truth)), truth]))))
        each = " ".join(f"{accuracy:.0f}" for accuracy in accuracies)
        spread = np.std(accuracies, ddof=1)
        yield (
            f"| {data} | {name} | {np.mean(accuracies):.1f} ± {spread:.1f} ({each}) "
            f"| {np.mean(losses):.3f} ± {np.std(losses, ddof=1):.3f} |"
        )


def _drawn(kind: type[SamplingBackend], lm: BaseBackend, n_draws: int) -> SamplingBackend:
    return kind(lm, n_draws=n_draws, max_tokens=1)


def as_words(question: Question) -> Prompt:
    """Return the prompt that asks a question without letters."""
    options = ", ".join(question.options[:-1]) + f" or {question.options[-1]}"
    asked = literal(f"{question.instructions} {options}?")
    return Prompt(f"{{text}}\n\n{asked}\nAnswer:{{mask}}")


if __name__ == "__main__":
    main()
