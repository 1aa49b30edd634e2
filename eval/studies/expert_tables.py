"""The tables of `eval.studies.experts`: all rules, and the chosen one on test rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import click
import numpy as np
from numpy.typing import NDArray

__all__ = ["Cell", "Measures", "Seconds", "interval_of", "print_columns", "print_rules"]

Measures = tuple[float, float, float]
"""Accuracy in percent, log-loss, and expected calibration error."""

Seconds = Mapping[str, float]

TITLES = {
    "sst2": "SST-2",
    "agnews": "AG News",
    "trec": "TREC",
    "tweet_sentiment": "sentiment",
    "tweet_emotion": "emotion",
    "tweet_irony": "irony",
    "tweet_hate": "hate",
    "sib200_eng": "SIB-200",
    "banking77": "Banking77",
}
"""The names of the data sets in tables."""

RULES = {
    "LM alone": "LM alone",
    "embeddings alone": "embeddings alone",
    "words alone": "TF-IDF alone",
    "LM and embeddings, no gate": "both, no gate",
    "LM and embeddings, gate 0.5": "both",
}
"""The rules of the tables of test rows, and what those call them."""

N_PROMPTS = 10
_UNKNOWN = (np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Cell:
    """The results of one draw of labels.

    Parameters
    ----------
    measures : dict of str to Measures
        By rule.
    kept : bool
        Whether the gate kept the embeddings.
    n_train, n_judged : int
        Numbers of rows.
    seconds : dict of str to float
        Of the processor, to fit the LM's readout, each other one, and that one beside the LM.
    """

    measures: Mapping[str, Measures]
    kept: bool
    n_train: int
    n_judged: int
    seconds: Seconds


Found = Mapping[tuple[str, int], Sequence[Cell]]
"""The cells of each data set and number of labels per class."""


def print_columns(found: Found, of_texts: Mapping[str, Seconds]) -> None:
    """Print accuracy, log-loss and calibration error of each column, and what a text takes.

    Accuracy is ± the standard deviation over seeds; differences have intervals of 95% by Student's
    t, over seeds, which share their judged rows, and those of means over columns.
    """
    rules = list(RULES)
    values = {
        column: np.array([[one.measures.get(rule, _UNKNOWN) for rule in rules] for one in cells])
        for column, cells in found.items()
    }
    means = np.array([each.mean(axis=0) for each in values.values()])  # (columns, rules, measures)
    columns = [f"{TITLES[name]} | {shots}" for name, shots in found]
    heads = [*RULES.values(), "both over the LM", "both over embeddings"]
    rows = []
    for column, cells, each in zip(columns, found.values(), values.values(), strict=True):
        accuracy = each[:, :, 0]
        row = [f"{column} | {cells[0].n_judged}"]
        row += [f"{a:.1f} ± {b:.1f}" for a, b in zip(*_moments(accuracy), strict=True)]
        rows.append([*row, *(interval_of(accuracy[:, -1] - accuracy[:, n]) for n in range(2))])
    overall = means[:, :, 0]
    row = ["**mean** | | ", *(f"{value:.1f}" for value in overall.mean(axis=0))]
    rows.append([*row, *(interval_of(overall[:, -1] - overall[:, n]) for n in range(2))])
    better = overall[:, :2].max(axis=1)
    _print(["data", "labels per class", "test rows", *heads], rows)
    click.echo(
        f"\n*Both* less the better of the two: {interval_of(overall[:, -1] - better)}, least "
        f"{(overall[:, -1] - better).min():+.1f}; the better one by test rows over the LM: "
        f"{(better - overall[:, 0]).mean():+.1f}; log-loss below both in "
        f"{(means[:, -1, 1] < means[:, :2, 1].min(axis=1)).sum()} of {len(means)} columns"
    )
    shown = [0, 1, 2, 4]
    titles = [list(RULES.values())[number] for number in shown]
    heads = [f"{what}: {title}" for what in ("log-loss", "ECE") for title in titles]

    def losses(each: NDArray[np.float64]) -> list[str]:
        return [f"{value:.3f}" for value in (*each[shown, 1], *each[shown, 2])]

    rows = [[column, *losses(each)] for column, each in zip(columns, means, strict=True)]
    rows.append(["**mean** | ", *losses(means.mean(axis=0))])
    _print(["data", "labels per class", *heads], rows)
    if of_texts:
        _print_costs(found, of_texts)


def _print_costs(found: Found, of_texts: Mapping[str, Seconds]) -> None:
    """Print passes per text, and seconds of the processor to train and for 100 texts."""
    kinds = ["LM alone", "embeddings alone", "TF-IDF alone", "both"]
    heads = ["passes per text: both"]
    heads += [f"{what}, s: {kind}" for what in ("training", "100 texts") for kind in kinds]
    rows = []
    for (name, shots), cells in found.items():
        text, n = of_texts[name], cells[0].n_train
        kept = float(np.mean([cell.kept for cell in cells]))
        fits = {key: np.mean([cell.seconds[key] for cell in cells]) for key in cells[0].seconds}
        lm = n * text["LM"] + fits["LM"]
        training = [lm, n * text["embeddings"] + fits["embeddings"], fits["words"]]
        training.append(lm + n * text["embeddings"] + fits["embeddings beside the LM"])
        of_100 = [text["LM"], text["embeddings"], 0.0, text["LM"] + kept * text["embeddings"]]
        seconds = [f"{value:.1f}" for value in (*training, *(100 * value for value in of_100))]
        rows.append([f"{TITLES[name]} | {shots}", f"{N_PROMPTS + kept:.1f}", *seconds])
    _print(["data", "labels per class", *heads], rows)


def _moments(values: NDArray[np.float64]) -> Iterable[NDArray[np.float64]]:
    return values.mean(axis=0), values.std(axis=0, ddof=1)


def interval_of(differences: NDArray[np.float64], digits: int = 1) -> str:
    """Return the mean of paired differences with its interval of 95% by Student's t."""
    from scipy.stats import t

    n = len(differences)
    mean = differences.mean()
    half = t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
    low, high = (f"{mean + side:+.{digits}f}" for side in (-half, half))
    return f"{mean:+.{digits}f} [{low}, {high}]"


def _print(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    click.echo(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        click.echo(f"| {' | '.join(row)} |")


def print_rules(found: Found) -> None:
    """Print one row per rule: accuracy by data set, and the means of three measures.

    Words are no expert where there are many classes, and their means nan with such a data set.
    *Gap* is the mean distance of the accuracy to the better of LM and embeddings alone, *worst* the
    least of them; ± is the standard error of the difference to the LM alone over columns.
    """

    def means_of(rule: str) -> NDArray[np.float64]:
        return np.array(
            [
                np.mean([cell.measures.get(rule, _UNKNOWN) for cell in cells], axis=0)
                for cells in found.values()
            ]
        )

    lm = means_of("LM alone")[:, 0]
    better = np.maximum(lm, means_of("embeddings alone")[:, 0])
    rows = []
    for rule in next(iter(found.values()))[0].measures:
        each = means_of(rule)
        over, gap = each[:, 0] - lm, each[:, 0] - better
        error = over.std(ddof=1) / np.sqrt(len(over)) if len(over) > 1 else np.nan
        rows.append(
            [
                rule,
                *(f"{value:.1f}" for value in each[:, 0]),
                f"{each[:, 0].mean():.2f}",
                f"{over.mean():+.2f} ± {error:.2f}",
                f"{gap.mean():+.2f}",
                f"{gap.min():+.1f}",
                f"{each[:, 1].mean():.4f}",
                f"{each[:, 2].mean():.3f}",
            ]
        )
    columns = [f"{name} {shots}" for name, shots in found]
    _print(["rule", *columns, "mean", "over LM", "gap", "worst", "log-loss", "ECE"], rows)
