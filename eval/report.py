"""Tables, comparisons and plots out of a folder of results."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blackbox.errors import DataError
from blackbox.metrics import expected_calibration_error
from eval.comparisons import paired_difference
from eval.results import Results

__all__ = ["Section", "read_sections", "write_report", "write_section"]

Cells = list[dict[str, Any]]


@dataclass(frozen=True)
class Section:
    """What one configuration made.

    Parameters
    ----------
    name, title, time : str
        Its file's name, and what it says of itself.
    command : str
        What was run.
    compare : str or None
        The method that the others are compared with.
    reported_only : tuple of str
        Data sets that stay out of means and comparisons.
    cells : list of dict
        Its cells, in its order.
    """

    name: str
    title: str
    time: str
    command: str
    compare: str | None
    reported_only: tuple[str, ...]
    cells: Cells


def write_section(out: Path, name: str, about: dict[str, Any], cells: Cells) -> None:
    """Note which cells a configuration is made of."""
    folder = out / "configurations"
    folder.mkdir(exist_ok=True)
    text = json.dumps(about | {"cells": [cell["digest"] for cell in cells]}, indent=1)
    (folder / f"{name}.json").write_text(text + "\n", "utf-8")


def read_sections(out: Path) -> list[Section]:
    """What was run into a folder.

    Raises
    ------
    DataError
        If nothing was.
    """
    known = Results(out).cells()
    sections = []
    for path in sorted((out / "configurations").glob("*.json")):
        about = json.loads(path.read_text("utf-8"))
        cells = [known[digest] for digest in about.pop("cells") if digest in known]
        about["reported_only"] = tuple(about["reported_only"])
        if cells:
            sections.append(Section(name=path.stem, cells=cells, **about))
    if not sections:
        raise DataError(f"{out}: no results; make some with: python -m eval run CONFIG --out {out}")
    return sections


def write_report(out: Path) -> Path:
    """Write `report.md`, `cells.csv` and the plots; gives the report's path."""
    from eval.plots import write_plots

    sections = read_sections(out)
    _write_csv(out / "cells.csv", [cell for section in sections for cell in section.cells])
    parts = []
    for section in sections:
        plots = write_plots(out, section)
        parts.append(markdown(section, Results(out)))
        parts += [f"![{title}]({path.name})\n" for title, path in plots]
    report = out / "report.md"
    report.write_text("\n".join(parts), "utf-8")
    return report


def markdown(section: Section, results: Results) -> str:
    """One configuration's tables."""
    lines = [f"## {section.title}", ""]
    for lm in _values(section.cells, "lm"):
        of_lm = [cell for cell in section.cells if cell["lm"] == lm]
        for shots in _values(of_lm, "shots"):
            cells = [cell for cell in of_lm if cell["shots"] == shots]
            n_seeds = len(_values(cells, "seed"))
            tests = sorted({cell["n_test"] for cell in cells})
            some = "all training rows" if shots is None else f"{shots} labels a class"
            lines += [f"### {lm}, {some}", ""]
            lines += [
                f"{n_seeds} seeds, {' or '.join(map(str, tests))} test rows. Accuracy in percent, "
                "mean ± standard deviation over seeds.",
                "",
                *accuracy_table(cells, section.reported_only),
                "",
                *quality_table(cells, section.reported_only, results),
                "",
            ]
            if section.compare in _values(cells, "name"):
                lines += [*comparison_table(cells, section), ""]
    machines = ", ".join(_values(section.cells, "machine"))
    dates = sorted({cell["written"][:10] for cell in section.cells})
    lines += [f"By `{section.command}`, {dates[0]} to {dates[-1]}, on {machines}.", ""]
    return "\n".join(lines)


def accuracy_table(cells: Cells, reported_only: Sequence[str]) -> list[str]:
    """Methods by data sets."""
    data = _values(cells, "data")
    heads = [f"{name} (apart)" if name in reported_only else name for name in data]
    rows = []
    for name in _values(cells, "name"):
        shown, means = [], []
        for one in data:
            some = _of(cells, name, one, "accuracy")
            shown.append(_spread(some, 100, 1))
            if some and one not in reported_only:
                means.append(float(np.mean(some)))
        whole = len(means) == len([one for one in data if one not in reported_only])
        rows.append([name, *shown, f"{100 * np.mean(means):.1f}" if whole and means else ""])
    return _table(["method", *heads, "mean"], rows)


def quality_table(cells: Cells, reported_only: Sequence[str], results: Results) -> list[str]:
    """Calibration and cost: means over data sets and seeds."""
    counted = [cell for cell in cells if cell["data"] not in reported_only] or cells
    rows = []
    for name in _values(counted, "name"):
        of_name = [cell for cell in counted if cell["name"] == name]
        eces = []
        for data in _values(of_name, "data"):
            kept = [results.probabilities(c["digest"]) for c in of_name if c["data"] == data]
            codes = np.concatenate([codes for _, codes in kept]).astype(np.intp)
            pooled = np.concatenate([given for given, _ in kept]).astype(np.float64)
            eces.append(expected_calibration_error(codes, pooled))
        per_text = [cell["passes_to_predict"] / cell["n_test"] for cell in of_name]
        rows.append(
            [
                name,
                _mean(of_name, "log_loss", 3),
                _mean(of_name, "brier", 3),
                f"{np.mean(eces):.3f}",
                _range(cell["labels"] for cell in of_name),
                _range(cell["passes_to_train"] for cell in of_name),
                _mean(of_name, "tokens_to_train", 0),
                f"{np.mean(per_text):.1f}",
                _lm_seconds(of_name),
                _mean(of_name, "seconds_to_fit", 2),
                _mean(of_name, "cost", 4),
            ]
        )
    heads = ["method", "log-loss", "Brier", "ECE", "labels", "passes to train", "tokens to train",
             "passes a text", "LM seconds to train", "other seconds", "US$"]  # fmt: skip
    return _table(heads, rows)


def comparison_table(cells: Cells, section: Section) -> list[str]:
    """The method in question against each other one, paired over data sets and seeds."""
    name = section.compare
    lines = []
    for figure, unit, factor, digits in (
        ("accuracy", "points", 100, 1),
        ("log_loss", "nats", 1, 3),
    ):
        rows = []
        for other in _values(cells, "name"):
            if other == name:
                continue
            one, two = (
                {
                    (cell["data"], cell["seed"]): factor * cell[figure]
                    for cell in cells
                    if cell["name"] == method and cell["data"] not in section.reported_only
                }
                for method in (name, other)
            )
            found = paired_difference(one, two)
            if found:
                rows.append(
                    [
                        other, f"{found.mean:+.{digits}f}",
                        f"[{found.low:+.{digits}f}, {found.high:+.{digits}f}]",
                        f"{found.ahead} / {found.behind} of {found.n}", f"{found.sign_p:.3f}",
                    ]
                )  # fmt: skip
        what = figure.replace("_", "-")
        lines += [
            f"*{name}* less each other method, {what} in {unit}:", "",
            *_table(["method", "difference", "95% interval", "more / less", "sign test p"], rows),
            "",
        ]  # fmt: skip
    return lines[:-1]


def _values(cells: Cells, key: str) -> list[Any]:
    return list(dict.fromkeys(cell[key] for cell in cells))


def _of(cells: Cells, name: str, data: str, key: str) -> list[float]:
    return [cell[key] for cell in cells if cell["name"] == name and cell["data"] == data]


def _spread(values: Sequence[float], factor: float, digits: int) -> str:
    if not values:
        return ""
    scaled = factor * np.array(values)
    spread = f" ± {scaled.std(ddof=1):.{digits}f}" if len(scaled) > 1 else ""
    return f"{scaled.mean():.{digits}f}{spread}"


def _mean(cells: Cells, key: str, digits: int) -> str:
    values = [cell[key] for cell in cells]
    return "unknown" if None in values else f"{np.mean(values):,.{digits}f}"


def _lm_seconds(cells: Cells) -> str:
    """Passes to train by what a pass took when many were made together."""
    each = [
        0.0 if not cell["passes_to_train"] else cell["passes_to_train"] * cell["seconds_per_pass"]
        for cell in cells
        if not cell["passes_to_train"] or cell["seconds_per_pass"]
    ]
    return f"{np.mean(each):,.0f}" if len(each) == len(cells) else "unknown"


def _range(values: Iterable[int]) -> str:
    several = sorted(set(values))
    return f"{several[0]:,}" if len(several) == 1 else f"{several[0]:,} to {several[-1]:,}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    escape: Callable[[str], str] = lambda text: text.replace("|", "\\|")  # noqa: E731
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return lines + ["| " + " | ".join(map(escape, row)) + " |" for row in rows]


def _write_csv(path: Path, cells: Cells) -> None:
    keys = list(dict.fromkeys(key for cell in cells for key in cell))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        for cell in cells:
            writer.writerow(
                {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in cell.items()}
            )
