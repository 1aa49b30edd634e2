"""The tables of the study of libraries: accuracies, paired differences and their intervals."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence

import click
import numpy as np
from numpy.typing import NDArray

__all__ = ["SHOTS", "Cell", "Single", "interval", "print_correlations", "print_row", "print_tables"]

SHOTS = (0, 2, 4, 8, 16, 32)
RELATIVES = ("sst2", "tweet_sentiment", "tweet_emotion", "agnews", "sib200_eng")
"""The tasks that another of these is about: sentiment or topic."""

Cell = dict[str, tuple[float, float, float, float]]
"""Accuracy in percent, log-loss, calibration error, and the classes' mean recall in percent."""

Single = tuple[str, float, float, float]
"""A source, its score, and its gains in log-loss and in accuracy."""

Cells = Mapping[tuple[str, int], list[Cell]]


def interval(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean of values, and half of its 95% interval by Student's t."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return float(np.mean(values)), float("nan")
    half = t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    return float(np.mean(values)), float(half)


def _gains(
    found: Sequence[Cell], variant: str, other: str = "alone", column: int = 0
) -> list[float]:
    return [cell[variant][column] - cell[other][column] for cell in found]


def _with_interval(values: Sequence[float], digits: int) -> str:
    mean, half = interval(values)
    return f"{mean:+.{digits}f} ± {half:.{digits}f}"


def _of_tasks(cells: Cells, variant: str, other: str = "alone", column: int = 0) -> list[float]:
    """Return the mean difference of each task, over its numbers of labels."""
    by_task: dict[str, list[float]] = {}
    for (name, _), found in cells.items():
        mean = float(np.mean(_gains(found, variant, other, column)))
        by_task.setdefault(name, []).append(mean)
    return [float(np.mean(each)) for each in by_task.values()]


def print_tables(cells: Cells) -> None:
    """Print accuracy by data set and labels, and the variants beside each other."""
    click.echo("\nAccuracy without and with the library, paired 95% intervals over seeds")
    _print_columns(cells, 0)
    click.echo("\nMean recall of the classes in the same way")
    _print_columns(cells, 3)
    labelled = {key: found for key, found in cells.items() if key[1]}
    if labelled:
        _print_variants(labelled)
        if "embeddings" in next(iter(labelled.values()))[0]:
            _print_beside_embeddings(labelled)
    unlabelled = {key: found for key, found in cells.items() if not key[1]}
    if unlabelled:
        _print_without_labels(unlabelled)
    gains = {key: float(np.mean(_gains(found, "library"))) for key, found in cells.items()}
    lowest = sorted(gains, key=lambda key: gains[key])[:5]
    click.echo(
        "\nlowest differences: "
        + ", ".join(f"{gains[key]:+.1f} ({key[0]}, {key[1]} labels)" for key in lowest)
    )
    click.echo(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")


def _print_columns(cells: Cells, column: int) -> None:
    names = list(dict.fromkeys(name for name, _ in cells))
    shots = [one for one in SHOTS if any(key[1] == one for key in cells)]
    print_row("data", [str(one) for one in shots], head=True)
    for name in names:
        row = []
        for one in shots:
            found = cells.get((name, one))
            if found is None:
                row.append("–")
                continue
            alone = np.mean([cell["alone"][column] for cell in found])
            mean, half = interval(_gains(found, "library", column=column))
            row.append(f"{alone:.1f} {mean:+.1f}" + (f" ± {half:.1f}" if len(found) > 1 else ""))
        print_row(name, row)
    for title, is_related in (("tasks with a relative", True), ("the other tasks", False)):
        row = []
        for one in shots:
            keys = [k for k in cells if (k[0] in RELATIVES) == is_related and k[1] == one]
            gains = _of_tasks({key: cells[key] for key in keys}, "library", column=column)
            row.append(_with_interval(gains, 1) if keys else "–")
        print_row(f"mean of {title}", row)


def print_row(name: str, row: Sequence[str], *, head: bool = False) -> None:
    """Print a row of a table, or its head."""
    click.echo(f"| {name} | {' | '.join(row)} |")
    if head:
        click.echo(f"|---{'|---' * len(row)}|")


def _print_variants(cells: Cells) -> None:
    few = {key: found for key, found in cells.items() if key[0] in RELATIVES and key[1] <= 8}
    others = {key: found for key, found in cells.items() if key[0] not in RELATIVES}
    groups = {"relatives, to 8 labels": few, "the others": others, "all": cells}
    heads = [f"{group}: {what}" for group in groups for what in ("accuracy", "recall", "log-loss")]
    click.echo("\nGain in accuracy, mean recall and log-loss, 95% intervals over tasks")
    print_row("variant", [*heads, "library over it"], head=True)
    for variant in next(iter(cells.values()))[0]:
        row = []
        for some in groups.values():
            if some:
                row += [_with_interval(_of_tasks(some, variant, column=c), 2) for c in (0, 3)]
                row.append(f"{-np.mean(_of_tasks(some, variant, column=1)):+.3f}")
            else:
                row += ["–"] * 3
        row.append(_with_interval(_of_tasks(cells, "library", variant), 2))
        print_row(variant, row)


def _print_beside_embeddings(cells: Cells) -> None:
    groups = {
        "relatives, to 8 labels": [k for k in cells if k[0] in RELATIVES and k[1] <= 8],
        "the others": [k for k in cells if k[0] not in RELATIVES],
        "all": list(cells),
    }
    click.echo("\nGain by the library beside sentence embeddings")
    for group, keys in groups.items():
        some = {key: cells[key] for key in keys}
        if some:
            gains = _of_tasks(some, "library and embeddings", "embeddings")
            click.echo(f"{group}: {_with_interval(gains, 2)}")


def _print_without_labels(cells: Cells) -> None:
    click.echo("\nWithout labels: accuracy, and log-loss")
    variants = {"alone": "names alone", "sources alone": "sources alone", "library": "both"}
    print_row("data", list(variants.values()), head=True)
    for (name, _), found in cells.items():
        row = ["{:.1f}, {:.3f}".format(*found[0][variant][:2]) for variant in variants]
        print_row(name, row)
    means = [
        np.mean([found[0][variant] for found in cells.values()], axis=0) for variant in variants
    ]
    print_row("mean", ["{:.1f}, {:.3f}".format(*mean[:2]) for mean in means])


def print_correlations(singles: Mapping[int, Sequence[tuple[str, Single]]]) -> None:
    """Print Spearman's correlation of the LEEP score with the gains by a single source."""
    from scipy.stats import spearmanr

    click.echo("\nSpearman's correlation of the LEEP score with the gain by a single source")
    heads = ["pairs", "gain in log-loss", "gain in accuracy", "within a task, log-loss"]
    print_row("labels", heads, head=True)
    for shots, some in singles.items():
        of_pairs: dict[tuple[str, str], list[Sequence[float]]] = {}
        for target, (source, *found) in some:
            of_pairs.setdefault((target, source), []).append(found)
        if len(of_pairs) < 3:
            continue
        means = {key: np.mean(each, axis=0) for key, each in of_pairs.items()}
        values = np.array(list(means.values()))
        rho = [spearmanr(values[:, 0], values[:, column]).statistic for column in (1, 2)]
        within = []
        for name in {target for target, _ in means}:
            of_task = np.array([found for (target, _), found in means.items() if target == name])
            within.append(spearmanr(of_task[:, 0], of_task[:, 1]).statistic)
        rho.append(np.nanmean(within))
        print_row(str(shots), [str(len(values)), *(f"{one:.2f}" for one in rho)])
