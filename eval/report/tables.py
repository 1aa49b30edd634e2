"""Tables of a report: accuracy, calibration and cost, comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.metrics import expected_calibration_error
from blackbox.plurals import counted
from eval.report.comparisons import paired_difference
from eval.run.results import Results

__all__ = [
    "Cells",
    "accuracy_table",
    "calibration_table",
    "comparison_table",
    "distinct_values",
    "format_table",
    "labels_table",
    "quality_table",
    "seeds_of",
]

Cells = list[dict[str, Any]]

_DRAWS_IF_EXACT = 20


def accuracy_table(
    cells: Cells, reported_only: Sequence[str], names: Sequence[str] = ()
) -> list[str]:
    """Return the accuracy of each method on each data set; a dash where it has none.

    `names` are the methods to show; by default those that have cells. One with fewer seeds than
    another says so.
    """
    n_seeds = seeds_of(cells)
    data = distinct_values(cells, "data")
    in_mean = [name for name in data if name not in reported_only]
    heads = [f"{name} (apart)" if name in reported_only else name for name in data]
    rows = []
    for name in names or distinct_values(cells, "name"):
        of_name = [cell for cell in cells if cell["name"] == name]
        shown = [
            _format_mean_and_sd(
                [100 * cell["accuracy"] for cell in of_name if cell["data"] == one], 1
            )
            for one in data
        ]
        means = [100 * mean for mean in _seed_means(of_name, "accuracy", in_mean)]
        shown.append(_format_mean_and_sd(means, 1))
        n = n_seeds.get(name, 0)
        fewer = f" ({counted(n, 'seed')})" if 0 < n < max(n_seeds.values()) else ""
        rows.append([name + fewer, *(text or "–" for text in shown)])
    return format_table(["method", *heads, "mean"], rows)


def seeds_of(cells: Cells) -> dict[str, int]:
    """Return the number of seeds of each method."""
    seeds: dict[str, set[int]] = {}
    for cell in cells:
        seeds.setdefault(cell["name"], set()).add(cell["seed"])
    return {name: len(some) for name, some in seeds.items()}


def labels_table(cells: Cells, reported_only: Sequence[str]) -> list[str]:
    """Return the mean accuracy of each method over data sets, by labels per class.

    The head names the data sets where a number of labels has not all of them. A dash stands where a
    method lacks one of those.
    """
    in_mean = [cell for cell in cells if cell["data"] not in reported_only]
    every = distinct_values(in_mean, "data")
    shots = sorted(distinct_values(in_mean, "shots"), key=lambda n: (n is None, n))
    counted_at = {one: [cell for cell in in_mean if cell["shots"] == one] for one in shots}
    measured = {one: distinct_values(some, "data") for one, some in counted_at.items()}
    rows = []
    for name in distinct_values(cells, "name"):
        row = [name]
        for one, data in measured.items():
            of_name = [c for c in counted_at[one] if c["name"] == name]
            means = _seed_means(of_name, "accuracy", data)
            text = _format_mean_and_sd([100 * mean for mean in means], 1) or "–"
            fewer = len(means) < len({c["seed"] for c in counted_at[one]})
            row.append(f"{text} ({counted(len(means), 'seed')})" if means and fewer else text)
        rows.append(row)
    heads = [_format_shots(one, measured[one], every) for one in shots]
    return format_table(["method", *heads], rows)


def _format_shots(shots: int | None, data: Sequence[str], every: Sequence[str]) -> str:
    """Return the head of a column; with the data sets in it, or those that it lacks."""
    head = "all" if shots is None else str(shots)
    lacking = [name for name in every if name not in data]
    if not lacking:
        return head
    return (
        f"{head} (without {', '.join(lacking)})"
        if len(lacking) < len(data)
        else (f"{head} ({', '.join(data)})")
    )


def quality_table(cells: Cells, reported_only: Sequence[str], results: Results) -> list[str]:
    """Return calibration and cost per method, as means over data sets and seeds.

    A method that was measured on some of the data sets says so, as its means are of these.
    """
    in_mean = [cell for cell in cells if cell["data"] not in reported_only] or cells
    data = distinct_values(in_mean, "data")
    columns = _quality_columns(data, results)
    if any(cell["peak_mb"] for cell in in_mean):
        columns["peak MB"] = lambda some: (
            _format_mean(some, "peak_mb", 0) if some[0]["peak_mb"] else "–"
        )
    rows = []
    for name in distinct_values(in_mean, "name"):
        of_name = [cell for cell in in_mean if cell["name"] == name]
        n_data = len(distinct_values(of_name, "data"))
        some = "" if n_data == len(data) else f" ({n_data} of {len(data)} data sets)"
        rows.append([name + some, *(column(of_name) for column in columns.values())])
    return format_table(["method", *columns], rows)


def _quality_columns(data: Sequence[str], results: Results) -> dict[str, Callable[[Cells], str]]:
    """Return for each column a function from the cells of a method to its text."""

    def passes_per_text(cells: Cells) -> str:
        return f"{np.mean([cell['passes_to_predict'] / cell['n_test'] for cell in cells]):.1f}"

    def over_seeds(key: str) -> Callable[[Cells], str]:
        return lambda cells: (
            _format_mean_and_sd(_seed_means(cells, key, data), 3) or _format_mean(cells, key, 3)
        )

    return {
        "macro-F1": lambda cells: f"{100 * np.mean([cell['macro_f1'] for cell in cells]):.1f}",
        "log-loss": over_seeds("log_loss"),
        "Brier": over_seeds("brier"),
        "ECE": lambda cells: f"{_pooled_calibration_error(cells, results):.3f}",
        "labels": lambda cells: _format_range(cell["labels"] for cell in cells),
        "passes to train": lambda cells: _format_range(cell["passes_to_train"] for cell in cells),
        "tokens to train": lambda cells: _format_mean(cells, "tokens_to_train", 0),
        "LM seconds to train": lambda cells: _format_mean(cells, "lm_seconds_to_train", 0),
        "other seconds": lambda cells: _format_mean(cells, "seconds_to_fit", 2),
        "passes per text": passes_per_text,
        "tokens per text": lambda cells: _format_per_text(cells, "tokens_to_predict", 1, 0),
        "LM ms per text": lambda cells: _format_per_text(cells, "lm_seconds_to_predict", 1000, 0),
        "other ms per text": lambda cells: _format_per_text(cells, "seconds_to_predict", 1000, 2),
        "US$": lambda cells: _format_mean(cells, "cost", 4),
    }


def comparison_table(cells: Cells, name: str, reported_only: Sequence[str]) -> list[str]:
    """Compare a method with each other one, paired over data sets and seeds.

    Where these are fewer data sets than the method has, it says so.
    """
    n_data = len({c["data"] for c in cells if c["name"] == name and c["data"] not in reported_only})
    lines = []
    for figure, unit, factor, digits in (
        ("accuracy", "points", 100, 1),
        ("log_loss", "nats", 1, 3),
    ):
        rows = []
        for other in distinct_values(cells, "name"):
            if other == name:
                continue
            one, two = (
                {
                    (cell["data"], cell["seed"]): factor * cell[figure]
                    for cell in cells
                    if cell["name"] == method and cell["data"] not in reported_only
                }
                for method in (name, other)
            )
            found = paired_difference(one, two)
            if found:
                n_both = len({data for data, _ in one.keys() & two.keys()})
                some = "" if n_both == n_data else f" ({n_both} of {n_data} data sets)"
                rows.append(
                    [
                        other + some,
                        f"{found.mean:+.{digits}f}",
                        found.interval(digits),
                        f"{found.ahead} / {found.behind} of {found.n}",
                        f"{found.sign_p:.3f}",
                    ]
                )
        what = figure.replace("_", "-")
        lines += [
            f"*{name}* less each other method, {what} in {unit}:",
            "",
            *format_table(
                ["method", "difference", "95% interval", "more / less", "sign test p"], rows
            ),
            "",
        ]
    return lines[:-1]


def distinct_values(cells: Cells, key: str) -> list[Any]:
    """Return the distinct values of a key, in the order of the cells."""
    return list(dict.fromkeys(cell[key] for cell in cells))


def _seed_means(cells: Cells, key: str, data: Sequence[str]) -> list[float]:
    """Return the mean over data sets of each seed that has all of them."""
    found = []
    for seed in distinct_values(cells, "seed"):
        of_seed = {cell["data"]: cell[key] for cell in cells if cell["seed"] == seed}
        if data and of_seed.keys() >= set(data):
            found.append(float(np.mean([of_seed[name] for name in data])))
    return found


def calibration_table(cells: Cells, results: Results) -> list[str]:
    """Return the ECE of each method on each data set, the rows of all seeds pooled.

    In brackets: what the same probabilities would have if they were exact, as a finite sample has
    an error too; the mean over labels that are drawn from them. A test row has one label in all
    seeds, so it has one draw.
    """
    data = distinct_values(cells, "data")
    rows = []
    for name in distinct_values(cells, "name"):
        row = [name]
        for one in data:
            some = [cell for cell in cells if cell["name"] == name and cell["data"] == one]
            if not some:
                row.append("–")
                continue
            codes, pooled = _pool_seeds(some, results)
            n_rows = len(codes) // len(some)
            rng = np.random.default_rng(0)  # a cell's figure is the same in a table of fewer rows
            exact = np.mean([_error_if_exact(pooled, n_rows, rng) for _ in range(_DRAWS_IF_EXACT)])
            row.append(f"{expected_calibration_error(codes, pooled):.3f} ({exact:.3f})")
        rows.append(row)
    return format_table(["method", *data], rows)


def _error_if_exact(
    probabilities: NDArray[np.float64], n_rows: int, rng: np.random.Generator
) -> float:
    """Return the ECE against labels drawn from the probabilities of `n_rows` rows in each seed."""
    edges = np.cumsum(probabilities, axis=1)
    edges[:, -1] = np.inf  # whatever rounding has left of the sum
    of_row = np.tile(rng.random(n_rows), len(edges) // n_rows)
    drawn = (of_row[:, None] > edges).sum(axis=1)
    return expected_calibration_error(drawn, probabilities)


def _pool_seeds(cells: Cells, results: Results) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the true classes and the probabilities of all cells of one data set together."""
    parts = [results.read_probabilities(cell["digest"]) for cell in cells]
    codes = np.concatenate([codes for _, codes in parts]).astype(np.intp)
    return codes, np.concatenate([given for given, _ in parts]).astype(np.float64)


def _pooled_calibration_error(cells: Cells, results: Results) -> float:
    """Return the ECE of the pooled predictions of all seeds, averaged over data sets."""
    errors = []
    for data in distinct_values(cells, "data"):
        codes, pooled = _pool_seeds([c for c in cells if c["data"] == data], results)
        errors.append(expected_calibration_error(codes, pooled))
    return float(np.mean(errors))


def _format_mean_and_sd(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def _format_mean(cells: Cells, key: str, digits: int) -> str:
    values = [cell[key] for cell in cells]
    return "unknown" if None in values else f"{np.mean(values):,.{digits}f}"


def _format_per_text(cells: Cells, key: str, factor: float, digits: int) -> str:
    if any(cell[key] is None for cell in cells):
        return "unknown"
    return f"{factor * np.mean([cell[key] / cell['n_test'] for cell in cells]):,.{digits}f}"


def _format_range(values: Iterable[int]) -> str:
    several = sorted(set(values))
    return f"{several[0]:,}" if len(several) == 1 else f"{several[0]:,} to {several[-1]:,}"


def format_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    escape: Callable[[str], str] = lambda text: text.replace("|", "\\|")  # noqa: E731
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return lines + ["| " + " | ".join(map(escape, row)) + " |" for row in rows]
