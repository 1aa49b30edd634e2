"""Choose the defaults of `logit`, on training rows alone.

    python -m eval.studies.defaults --data-dir DIR [--out results] [--store FILE] [--data banking77]
        [--backend transformers --model smollm2-135m --dtype auto] [--n-prompts 3]
        [--top-k 20] [--draws 8] [--prompts FILE] [--seed 13]

For each data set the training rows that the five seeds of the tables draw are answered once under
its hand-written prompts. A model is trained on the rows of one seed and judged on those of the
others, so that no test row is looked at and some hundred rows judge each model. Beside the settings
of the package it judges variants that were tried and rejected, and simpler baselines.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from blackbox import PromptPool
from blackbox.answers import features
from blackbox.answers.passes import Answers, next_tokens
from blackbox.answers.texts import check_texts
from blackbox.boosting.calibration import NAME_PRIOR
from blackbox.boosting.label_words import words_of
from blackbox.boosting.splits import draw_shots
from blackbox.boosting.weak_learner import one_blas_thread
from blackbox.protocol import NO_TOKEN
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from eval.data import data_sets
from eval.methods.base import Codes, Scores
from eval.methods.linear import JointRegression, LinearDiscriminant, ProductOfRegressions
from eval.methods.logit_variants import Variant
from eval.methods.name_prior import name_scores
from eval.methods.neighbours import KnnPrompting
from eval.studies.common import load_stored_lm

SHOTS = {
    "sst2": 32,
    "agnews": 32,
    "trec": 32,
    "rte": 32,
    "banking77": 8,
    "tweet_sentiment": 32,
    "tweet_emotion": 32,
    "sib200_eng": 32,
}
"""The data sets, and how many rows per class are answered; seventy-seven classes have fewer."""

CHOSEN_ON = ("sst2", "agnews", "trec")
SEEDS = (13, 21, 42, 87, 100)

FitAndScore = Callable[[Answers, Codes, Answers, int, Sequence[str]], Scores]
"""From answers and classes of the training rows, answers of others, a seed, and what the classes
are called, to log-probabilities."""


def fit_package(
    train: Answers,
    y: Codes,
    test: Answers,
    seed: int,
    names: Sequence[str],
    token_share: float = 0.1,
) -> Scores:
    """Train and score with the package itself."""
    from blackbox.boosting import training
    from blackbox.boosting.algorithms import ALGORITHMS

    words = [words_of(name) for name in names]
    options = training.TrainingOptions(
        ALGORITHMS["logit"], int(y.max()) + 1, None, 1.0, 32, 5, 0.5, token_share, words
    )
    boosted = training.boost(train, y, np.ones(len(y)), options, np.random.default_rng(seed))
    some = test.take_prompts(boosted.prompts)
    matrices = [
        features.gather(ids, values, reading.token_ids, reading.floor)
        for ids, values, reading in zip(
            some.token_ids, some.log_probs, boosted.ensemble.readings, strict=True
        )
    ]
    given = boosted.ensemble.probabilities(boosted.ensemble.decision(matrices))
    return np.log(np.maximum(given, 1e-15))


def _tenth_of_rows(
    train: Answers, y: Codes, test: Answers, seed: int, names: Sequence[str]
) -> Scores:
    """Score by tokens of a tenth of the rows, however short the answers."""
    length = np.count_nonzero(train.token_ids != NO_TOKEN, axis=-1).mean()
    return fit_package(train, y, test, seed, names, 0.1 * 200 / min(length, 200))


def _variant(**switches: Any) -> FitAndScore:
    def fit_and_score(
        train: Answers, y: Codes, test: Answers, seed: int, names: Sequence[str]
    ) -> Scores:
        return Variant(**switches).fit(train, y, seed, names)(test)

    return fit_and_score


def _baseline(kind: Any) -> FitAndScore:
    def fit_and_score(
        train: Answers, y: Codes, test: Answers, seed: int, _: Sequence[str]
    ) -> Scores:
        model = kind(None, None, random_state=seed)
        model.classes_ = np.arange(y.max() + 1)
        model._learn(train, y)
        return np.asarray(log_softmax(model._scores(test), axis=1))

    return fit_and_score


def _with_name_prior(plain: FitAndScore) -> FitAndScore:
    """Return a baseline with the name prior added, at its prior weight in `logit`."""

    def fit_and_score(
        train: Answers, y: Codes, test: Answers, seed: int, names: Sequence[str]
    ) -> Scores:
        scores = plain(train, y, test, seed, names) + NAME_PRIOR[0] * name_scores(train, names)(
            test
        )
        return np.asarray(log_softmax(scores, axis=1))

    return fit_and_score


def _name_prior_alone(
    train: Answers, y: Codes, test: Answers, seed: int, names: Sequence[str]
) -> Scores:
    """Score by the name prior alone; training rows only scale it."""
    return np.asarray(log_softmax(name_scores(train, names)(test), axis=1))


VARIANTS: dict[str, FitAndScore] = {
    "the package": fit_package,
    "tokens of 10% of rows, short answers too": _tenth_of_rows,
    "the same, written out": _variant(),
    **{f"own share {share}": _variant(own_share=share) for share in (0.0, 0.15, 0.5, 0.7, 1.0)},
    "all tokens weigh the same": _variant(soft=False),
    "the prototype": _variant(
        soft=False, tokens=16, own_share=0.0, offset=0.3, rate=0.3, clip=False
    ),
    **{f"{n} tokens per class": _variant(tokens=n) for n in (1, 4, 8, 16, 64)},
    **{f"{n} rounds": _variant(rounds=n) for n in (20, 50, 200)},
    **{f"learning rate {rate}": _variant(rate=rate) for rate in (0.1, 0.3, 0.5)},
    **{f"tokens of {s:.0%} of rows": _variant(token_share=s) for s in (0.05, 0.2, 0.3)},
    **{f"scale offset {offset}": _variant(offset=offset) for offset in (0.1, 0.3, 1.0)},
    "not standardised": _variant(offset=None),
    "row means taken off": _variant(centred=True),
    "half of the rows per round": _variant(subsample=0.5),
    "no names": _variant(use_names=False),
    **{
        f"prior mean {weight}": _variant(name_prior=(weight, NAME_PRIOR[1]))
        for weight in (0.0, 0.8)
    },
    **{
        f"prior strength {rows:g}": _variant(name_prior=(NAME_PRIOR[0], rows))
        for rows in (0.0, 3.0, 30.0)
    },
    "no clipping": _variant(clip=False),
    "a missing token has the row's least": _variant(row_floor=True),
    "joint regression": _baseline(JointRegression),
    "product of regressions": _baseline(ProductOfRegressions),
    "linear discriminant": _baseline(LinearDiscriminant),
    "kNN prompting": _baseline(KnnPrompting),
    "joint regression, and name prior": _with_name_prior(_baseline(JointRegression)),
    "product of regressions, and name prior": _with_name_prior(_baseline(ProductOfRegressions)),
    "name prior alone": _name_prior_alone,
}


@dataclass(frozen=True)
class AnsweredData:
    """Answered training rows of all seeds of a data set."""

    name: str
    answers: Answers
    y: Codes
    draws: dict[int, NDArray[np.intp]]
    classes: list[str]

    @property
    def shots(self) -> int:
        """Rows per class that a seed drew."""
        return len(next(iter(self.draws.values()))) // int(self.y.max() + 1)

    def answers_of_seed(self, n_prompts: int, seed: int) -> Answers:
        """Return the answers under `n_prompts` prompts, drawn anew for each seed."""
        n = len(self.answers.token_ids)
        some = np.random.default_rng(seed).permutation(n)[:n_prompts]
        return self.answers.take_prompts(sorted(some.tolist())) if n_prompts < n else self.answers

    def splits(self, shots: int) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.intp]]]:
        """Yield the seed, training rows and validation rows of each split."""
        for seed, rows in self.draws.items():
            rng = np.random.default_rng(seed)
            few = [rng.permutation(rows[self.y[rows] == c])[:shots] for c in np.unique(self.y)]
            yield (
                seed,
                np.sort(np.concatenate(few)),
                np.setdiff1d(np.arange(len(self.y)), rows),
            )


def answer_data(
    data_dir: Path,
    lm: StoredBackend,
    names: Sequence[str],
    *,
    seeds: Sequence[int] = SEEDS,
    prompts: PromptPool | None = None,
    top_k: int = 200,
    draws: int | None = None,
) -> Iterator[AnsweredData]:
    """Answer the training rows of each data set, by default under its hand-written prompts.

    Of each answer `top_k` tokens are read, or `draws` are drawn and counted.
    """
    for name in names:
        data = data_sets.read_data_set(name, data_dir)
        drawn = {
            seed: draw_shots(data.train.labels, data.train.texts, SHOTS[name], seed)
            for seed in seeds
        }
        union = sorted({row for rows in drawn.values() for row in rows})
        some = data.train.take(union)
        found = next_tokens(lm, prompts or data.card.pool(), check_texts(some.texts), 200)
        # the same answers, cut
        answers = replace(
            found,
            token_ids=found.token_ids[..., :top_k],
            log_probs=found.log_probs[..., :top_k],
        )
        answers = answers if draws is None else _draw(answers, draws)
        classes, y = np.unique(some.labels, return_inverse=True)
        places = {seed: np.searchsorted(union, rows) for seed, rows in drawn.items()}
        yield AnsweredData(name, answers, y, places, classes.tolist())


def _draw(answers: Answers, n: int) -> Answers:
    """Return answers as an LM without log-probabilities gives them: shares of n drawn tokens."""
    rng = np.random.default_rng(0)
    given = np.exp(answers.log_probs.astype(np.float64))
    counts = rng.multinomial(n, given / given.sum(axis=-1, keepdims=True))
    order = np.argsort(-counts, axis=-1, kind="stable")[..., :n]
    kept = np.take_along_axis(counts, order, axis=-1)
    ids = np.take_along_axis(answers.token_ids, order, axis=-1)
    shares = np.log(np.maximum(kept, 1) / n).astype(np.float32)
    return replace(
        answers,
        token_ids=np.where(kept > 0, ids, NO_TOKEN),
        log_probs=np.where(kept > 0, shares, np.float32(-np.inf)),
    )


def judge(variant: FitAndScore, data_set: AnsweredData, shots: int, n_prompts: int | None) -> Any:
    """Return accuracy in percent and log-loss of a variant, as means over the seeds."""
    found = []
    for seed, train, test in data_set.splits(shots):
        answers = data_set.answers_of_seed(n_prompts, seed) if n_prompts else data_set.answers
        with one_blas_thread():
            scores = variant(
                answers.take_rows(train),
                data_set.y[train],
                answers.take_rows(test),
                seed,
                data_set.classes,
            )
        truth = data_set.y[test]
        right = (scores.argmax(axis=1) == truth).mean()
        found.append((100 * right, -scores[np.arange(len(truth)), truth].mean()))
    return np.mean(found, axis=0)


def print_table(
    data: Sequence[AnsweredData], shots: int, n_prompts: int | None, variants: Sequence[str]
) -> None:
    """Print one row per variant."""
    heads = ["variant", *(data_set.name for data_set in data), "mean", "log-loss", "seconds"]
    click.echo(f"\n{shots} labels per class\n\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name in variants:
        started = time.perf_counter()
        found = [judge(VARIANTS[name], data_set, shots, n_prompts) for data_set in data]
        accuracy, losses = np.transpose(found)
        row = [
            name,
            *(f"{a:.1f}" for a in accuracy),
            f"{np.mean(accuracy):.2f}",
            f"{np.mean(losses):.4f}",
            f"{time.perf_counter() - started:.0f}",
        ]
        click.echo(f"| {' | '.join(row)} |")


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--out", default=Path("results"), type=click.Path(file_okay=False, path_type=Path))
@click.option("--store", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--backend", default="onnx", show_default=True)
@click.option("--model", help="As for the backend.")
@click.option("--dtype", help="Of transformers and vLLM, as for the backend.")
@click.option("--data", multiple=True, type=click.Choice(list(SHOTS)), default=CHOSEN_ON)
@click.option("--shots", multiple=True, type=int, default=(32, 8), show_default=True)
@click.option("--n-prompts", type=click.IntRange(1), help="So many drawn with the seed, not all.")
@click.option("--top-k", type=click.IntRange(1, 200), default=200, show_default=True)
@click.option("--draws", type=click.IntRange(1), help="Draw so many tokens instead.")
@click.option("--prompts", type=click.Path(dir_okay=False, path_type=Path), help="For all data.")
@click.option("--seed", multiple=True, type=int, default=SEEDS, show_default=True)
@click.option("--variant", multiple=True, type=click.Choice(list(VARIANTS)), default=VARIANTS)
def main(
    data_dir: Path,
    out: Path,
    store: Path | None,
    backend: str,
    model: str | None,
    dtype: str | None,
    data: tuple[str, ...],
    shots: tuple[int, ...],
    n_prompts: int | None,
    top_k: int,
    draws: int | None,
    prompts: Path | None,
    seed: tuple[int, ...],
    variant: tuple[str, ...],
) -> None:
    """Print a table per number of labels per class: accuracy in percent, and log-loss."""
    out.mkdir(parents=True, exist_ok=True)
    lm = load_stored_lm(
        open_store(store or out / "passes.sqlite"), backend, model=model, dtype=dtype
    )
    pool = PromptPool.read(prompts) if prompts else None
    everything = list(
        answer_data(data_dir, lm, data, seeds=seed, prompts=pool, top_k=top_k, draws=draws)
    )
    for k in shots:
        # a data set of many classes has fewer answered rows per class
        answered = [data_set for data_set in everything if data_set.shots >= k]
        if answered:
            print_table(answered, k, n_prompts, variant)
    click.echo(
        f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()
