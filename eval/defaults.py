"""How the defaults of `logit` were chosen: on training rows alone.

    python -m eval.defaults --data-dir DIR [--out results] [--store FILE]

For each data set the training rows that the five seeds of the tables draw are answered once under
its hand-written prompts. A model is trained on the rows of one seed and judged on those of the
others, so that no test row is looked at and some hundred rows judge each model. Beside the settings
of the package stand variants that were tried and left out, and the plain rivals.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.model_selection import StratifiedKFold

import backends
from blackbox import features
from blackbox.boosting import Matrix, one_blas_thread, softmax
from blackbox.passes import Answers, next_tokens
from blackbox.sampling import draw_shots
from blackbox.stopping import limited, limits_of
from blackbox.store import StoredBackend
from blackbox.store_file import open_store
from eval import data_sets
from eval.methods.base import Codes, Scores, best_temperature
from eval.methods.linear import JointRegression, LinearDiscriminant, ProductOfRegressions
from eval.methods.neighbours import KnnPrompting

DATA_SETS = ("sst2", "agnews", "trec")
SEEDS = (13, 21, 42, 87, 100)
SHOTS = 32

Fitted = Callable[[Answers, Codes, Answers, int], Scores]
"""From answers and classes of the training rows, and answers of others, to log-probabilities."""


@dataclass(frozen=True)
class Variant:
    """A way to boost; the defaults are the package's.

    Parameters
    ----------
    rounds, rate, tokens : number
        As `n_estimators`, `learning_rate` and `tokens_per_class`.
    own_share : float
        As in `blackbox.logit.Settings`.
    token_share : float
        As `min_token_share`.
    soft : bool
        Whether tokens weigh what they have over the strongest that is left out, or all the same.
    offset : float or None
        Added to a token's standard deviation before dividing by it; None divides by nothing.
    centred : bool
        Whether the row's mean over the tokens is taken off first.
    rows : float
        Share of the rows that each round looks for tokens in (Friedman 2002).
    limits : bool
        Whether what a prompt adds is limited (`blackbox.stopping`).
    """

    rounds: int = 100
    rate: float = 1.0
    tokens: int = 32
    own_share: float = 0.3
    token_share: float = 0.1
    soft: bool = True
    offset: float | None = 0.6
    centred: bool = False
    rows: float = 1.0
    limits: bool = True

    def __call__(self, train: Answers, y: Codes, test: Answers, seed: int) -> Scores:
        """Log-probabilities of the test rows, calibrated as in the package."""
        weights = np.ones(len(y))
        matrices, tokens, floors = features.frequent_matrices(
            train.token_ids, train.log_probs, weights, self.token_share
        )
        others = [
            features.gather(*parts)
            for parts in zip(test.token_ids, test.log_probs, tokens, floors, strict=True)
        ]
        if self.centred:
            matrices, others = (
                [matrix - matrix.mean(axis=1, keepdims=True) for matrix in some]
                for some in (matrices, others)
            )
        held_out = np.zeros((len(y), y.max() + 1))
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        for fit, rest in folds.split(matrices[0], y):
            some, left = ([m[part] for m in matrices] for part in (fit, rest))
            held_out[rest] = self._boost(some, y[fit], left, seed)
        temperature, _ = best_temperature(held_out, y)
        scores = self._boost(matrices, y, others, seed)
        return np.asarray(log_softmax(scores / temperature, axis=1))

    def _boost(self, train: list[Matrix], y: Codes, test: list[Matrix], seed: int) -> Scores:
        rng = np.random.default_rng(seed)
        pairs = [self._standardised(a, b) for a, b in zip(train, test, strict=True)]
        n_classes = int(y.max()) + 1
        target = np.eye(n_classes)[y]
        initial = np.log(target.mean(axis=0))
        said = np.zeros((len(pairs), len(y), n_classes))
        unseen = np.zeros((len(pairs), len(test[0]), n_classes))
        for number in range(self.rounds):
            prompt = number % len(pairs)
            matrix, other = pairs[prompt]
            mixed = (1 - self.own_share) * said.sum(axis=0)
            mixed += self.own_share * len(pairs) * said[prompt]
            probabilities = softmax(initial + mixed)
            residual = target - probabilities
            looked = rng.random(len(y)) < self.rows if self.rows < 1 else np.ones(len(y), bool)
            verbalizer = self._verbalizer((residual * looked[:, None]).T @ matrix)
            votes = matrix @ verbalizer.T
            spread = (probabilities * (1 - probabilities) * votes**2).sum()
            step = self.rate * (residual * votes).sum() / (spread + 1)
            step /= 1 - self.own_share + self.own_share * len(pairs)
            said[prompt] += step * votes
            unseen[prompt] += step * (other @ verbalizer.T)
        if self.limits:
            for one in (said, unseen):
                one -= one.mean(axis=2, keepdims=True)
            unseen = limited(unseen, *limits_of(said, y, np.ones(len(y))))
        return np.asarray(initial + unseen.sum(axis=0))

    def _standardised(
        self, train: Matrix, test: Matrix
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        mean, scale = train.mean(axis=0), 1.0
        if self.offset is not None:
            scale = train.std(axis=0) + self.offset
        return (train - mean) / scale, (test - mean) / scale

    def _verbalizer(self, correlation: NDArray[np.float64]) -> NDArray[np.float64]:
        strength = np.abs(correlation)
        place = max(strength.shape[1] - self.tokens, 0)
        least = np.sort(strength, axis=1)[:, place, None]
        if self.soft:
            below = np.sort(strength, axis=1)[:, place - 1, None] if place else 0.0
            weights = np.maximum(strength - below, 0.0)
        else:
            weights = (strength >= least).astype(np.float64)
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
        return np.asarray(weights * np.sign(correlation))


def shipped(train: Answers, y: Codes, test: Answers, seed: int) -> Scores:
    """What the package itself does."""
    from blackbox import training

    plan = training.Plan("logit", int(y.max()) + 1, 100, 1.0, 32, 5, 0.5, 0.1)
    boosted = training.boost(train, y, np.ones(len(y)), plan, np.random.default_rng(seed))
    some = test.take_prompts(boosted.prompts)
    matrices = [
        features.gather(ids, values, reading.token_ids, reading.floor)
        for ids, values, reading in zip(
            some.token_ids, some.log_probs, boosted.ensemble.readings, strict=True
        )
    ]
    given = boosted.ensemble.probabilities(boosted.ensemble.decision(matrices))
    return np.log(np.maximum(given, 1e-15))


def _rival(kind: Any) -> Fitted:
    def fitted(train: Answers, y: Codes, test: Answers, seed: int) -> Scores:
        model = kind(None, None, random_state=seed)
        model.classes_ = np.arange(y.max() + 1)
        model._learn(train, y)
        return np.asarray(log_softmax(model._scores(test), axis=1))

    return fitted


VARIANTS: dict[str, Fitted] = {
    "the package": shipped,
    "the same, written out": Variant(),
    **{f"own share {share}": Variant(own_share=share) for share in (0.0, 0.15, 0.5, 0.7, 1.0)},
    "all tokens weigh the same": Variant(soft=False),
    "the prototype": Variant(
        soft=False, tokens=16, own_share=0.0, offset=0.3, rate=0.3, limits=False
    ),
    **{f"{n} tokens a class": Variant(tokens=n) for n in (1, 4, 8, 16, 64)},
    **{f"{n} rounds": Variant(rounds=n) for n in (20, 50, 200)},
    **{f"learning rate {rate}": Variant(rate=rate) for rate in (0.1, 0.3, 0.5)},
    **{f"tokens of {s:.0%} of rows": Variant(token_share=s) for s in (0.05, 0.2, 0.3)},
    **{f"scale offset {offset}": Variant(offset=offset) for offset in (0.1, 0.3, 1.0)},
    "not standardised": Variant(offset=None),
    "row means taken off": Variant(centred=True),
    "half of the rows a round": Variant(rows=0.5),
    "no limits": Variant(limits=False),
    "joint regression": _rival(JointRegression),
    "product of regressions": _rival(ProductOfRegressions),
    "linear discriminant": _rival(LinearDiscriminant),
    "kNN prompting": _rival(KnnPrompting),
}


@dataclass(frozen=True)
class Bench:
    """A data set's rows, those of all seeds, answered."""

    name: str
    answers: Answers
    y: Codes
    draws: dict[int, NDArray[np.intp]]

    def splits(self, shots: int) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.intp]]]:
        """Seed, training rows and judging rows."""
        for seed, rows in self.draws.items():
            rng = np.random.default_rng(seed)
            few = [rng.permutation(rows[self.y[rows] == c])[:shots] for c in np.unique(self.y)]
            yield (
                seed, np.sort(np.concatenate(few)), np.setdiff1d(np.arange(len(self.y)), rows),
            )  # fmt: skip


def benches(data_dir: Path, store: Path) -> Iterator[Bench]:
    """Answer the training rows of each data set."""
    lm = StoredBackend(backends.load("llamacpp"), open_store(store))
    for name in DATA_SETS:
        data = data_sets.load(name, data_dir)
        drawn = {seed: draw_shots(data.train.labels, SHOTS, seed) for seed in SEEDS}
        union = sorted({row for rows in drawn.values() for row in rows})
        some = data.train.take(union)
        examples: list[Any] = [(text, None) for text in some.texts]
        answers = next_tokens(lm, data.card.pool(), examples, 200)
        _, y = np.unique(some.labels, return_inverse=True)
        draws = {seed: np.searchsorted(union, rows) for seed, rows in drawn.items()}
        yield Bench(name, answers, y, draws)


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--out", default=Path("results"), type=click.Path(file_okay=False, path_type=Path))
@click.option("--store", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--shots", multiple=True, type=int, default=(32, 8), show_default=True)
@click.option("--variant", multiple=True, type=click.Choice(list(VARIANTS)), default=VARIANTS)
def main(
    data_dir: Path, out: Path, store: Path | None, shots: tuple[int, ...], variant: tuple[str, ...]
) -> None:
    """Print a table for each number of labels a class: accuracy in percent, and log-loss."""
    out.mkdir(parents=True, exist_ok=True)
    answered = list(benches(data_dir, store or out / "passes.sqlite"))
    for k in shots:
        heads = ["variant", *DATA_SETS, "mean", "log-loss", "seconds"]
        click.echo(f"\n{k} labels a class\n\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
        for name in variant:
            started = time.perf_counter()
            accuracy, losses = [], []
            for bench in answered:
                found = []
                for seed, train, test in bench.splits(k):
                    with one_blas_thread():
                        scores = VARIANTS[name](
                            bench.answers.take_rows(train), bench.y[train],
                            bench.answers.take_rows(test), seed,
                        )  # fmt: skip
                    truth = bench.y[test]
                    right = (scores.argmax(axis=1) == truth).mean()
                    found.append((100 * right, -scores[np.arange(len(truth)), truth].mean()))
                accuracy.append(float(np.mean([a for a, _ in found])))
                losses.append(float(np.mean([loss for _, loss in found])))
            row = [name, *(f"{a:.1f}" for a in accuracy), f"{np.mean(accuracy):.2f}",
                   f"{np.mean(losses):.4f}", f"{time.perf_counter() - started:.0f}"]  # fmt: skip
            click.echo(f"| {' | '.join(row)} |")
    click.echo(
        f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()
