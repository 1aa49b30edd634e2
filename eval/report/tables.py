"""The tables of a report: accuracy, calibration and cost, comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from blackbox.metrics import expected_calibration_error
from eval.report.comparisons import paired_difference
from eval.run.results import Results

__all__ = ["Cells", "accuracy_table", "comparison_table", "quality_table", "values_of"]

Cells = list[dict[str, Any]]


def accuracy_table(cells: Cells, reported_only: Sequence[str]) -> list[str]:
    """Methods by data sets."""
    data = values_of(cells, "data")
    counted = [name for name in data if name not in reported_only]
    heads = [f"{name} (apart)" if name in reported_only else name for name in data]
    rows = []
    for name in values_of(cells, "name"):
        of_name = [cell for cell in cells if cell["name"] == name]
        shown = [
            _spread([100 * cell["accuracy"] for cell in of_name if cell["data"] == one], 1)
            for one in data
        ]
        means = [100 * mean for mean in _means_of_seeds(of_name, "accuracy", counted)]
        rows.append([name, *shown, _spread(means, 1)])
    return _table(["method", *heads, "mean"], rows)


def quality_table(cells: Cells, reported_only: Sequence[str], results: Results) -> list[str]:
    """Calibration and cost: means over data sets and seeds."""
    counted = [cell for cell in cells if cell["data"] not in reported_only] or cells
    data = values_of(counted, "data")
    with_memory = any(cell["peak_mb"] for cell in counted)
    rows = []
    for name in values_of(counted, "name"):
        of_name = [cell for cell in counted if cell["name"] == name]
        per_text = [cell["passes_to_predict"] / cell["n_test"] for cell in of_name]
        row = [
            name,
            _spread(_means_of_seeds(of_name, "log_loss", data), 3) or _mean(of_name, "log_loss", 3),
            _spread(_means_of_seeds(of_name, "brier", data), 3) or _mean(of_name, "brier", 3),
            f"{_pooled_error(of_name, results):.3f}",
            _range(cell["labels"] for cell in of_name),
            _range(cell["passes_to_train"] for cell in of_name),
            _mean(of_name, "tokens_to_train", 0),
            _mean(of_name, "lm_seconds_to_train", 0),
            _mean(of_name, "seconds_to_fit", 2),
            f"{np.mean(per_text):.1f}",
            _per_text(of_name, "tokens_to_predict", 1, 0),
            _per_text(of_name, "lm_seconds_to_predict", 1000, 0),
            _per_text(of_name, "seconds_to_predict", 1000, 2),
            _mean(of_name, "cost", 4),
        ]
        if with_memory:
            row.append(_mean(of_name, "peak_mb", 0) if of_name[0]["peak_mb"] else "–")
        rows.append(row)
    heads = [
        "method",
        "log-loss",
        "Brier",
        "ECE",
        "labels",
        "passes to train",
        "tokens to train",
        "LM seconds to train",
        "other seconds",
        "passes a text",
        "tokens a text",
        "LM ms a text",
        "other ms a text",
        "US$",
        *(["peak MB"] if with_memory else []),
    ]
    return _table(heads, rows)


def comparison_table(cells: Cells, name: str, reported_only: Sequence[str]) -> list[str]:
    """The method in question against each other one, paired over data sets and seeds."""
    lines = []
    for figure, unit, factor, digits in (
        ("accuracy", "points", 100, 1),
        ("log_loss", "nats", 1, 3),
    ):
        rows = []
        for other in values_of(cells, "name"):
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
                rows.append(
                    [
                        other,
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
            *_table(["method", "difference", "95% interval", "more / less", "sign test p"], rows),
            "",
        ]
    return lines[:-1]


def values_of(cells: Cells, key: str) -> list[Any]:
    """What the cells have there, each once, in their order."""
    return list(dict.fromkeys(cell[key] for cell in cells))


def _means_of_seeds(cells: Cells, key: str, data: Sequence[str]) -> list[float]:
    """For each seed the mean over the data sets; none unless it has all of them."""
    found = []
    for seed in values_of(cells, "seed"):
        of_seed = {cell["data"]: cell[key] for cell in cells if cell["seed"] == seed}
        if data and of_seed.keys() >= set(data):
            found.append(float(np.mean([of_seed[name] for name in data])))
    return found


def _pooled_error(cells: Cells, results: Results) -> float:
    """The calibration error of all seeds' predictions together, as the mean over data sets."""
    errors = []
    for data in values_of(cells, "data"):
        kept = [results.probabilities(c["digest"]) for c in cells if c["data"] == data]
        codes = np.concatenate([codes for _, codes in kept]).astype(np.intp)
        pooled = np.concatenate([given for given, _ in kept]).astype(np.float64)
        errors.append(expected_calibration_error(codes, pooled))
    return float(np.mean(errors))


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def _mean(cells: Cells, key: str, digits: int) -> str:
    values = [cell[key] for cell in cells]
    return "unknown" if None in values else f"{np.mean(values):,.{digits}f}"


def _per_text(cells: Cells, key: str, factor: float, digits: int) -> str:
    if any(cell[key] is None for cell in cells):
        return "unknown"
    return f"{factor * np.mean([cell[key] / cell['n_test'] for cell in cells]):,.{digits}f}"


def _range(values: Iterable[int]) -> str:
    several = sorted(set(values))
    return f"{several[0]:,}" if len(several) == 1 else f"{several[0]:,} to {several[-1]:,}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    escape: Callable[[str], str] = lambda text: text.replace("|", "\\|")  # noqa: E731
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return lines + ["| " + " | ".join(map(escape, row)) + " |" for row in rows]
