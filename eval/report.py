"""A report out of a folder of results: tables, comparisons, plots, a CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blackbox.errors import DataError
from eval.results import SCHEMA, Results
from eval.tables import Cells, accuracy_table, comparison_table, quality_table, values_of

__all__ = ["Section", "read_sections", "write_report", "write_section"]


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
    duplicates : dict of str to str
        For each data set, which of its test rows stand in the training split.
    missing : int
        Cells without figures so far.
    cells : list of dict
        Its cells, in its order.
    """

    name: str
    title: str
    time: str
    command: str
    compare: str | None
    reported_only: tuple[str, ...]
    duplicates: dict[str, str]
    missing: int
    cells: Cells


def write_section(out: Path, name: str, about: dict[str, Any], digests: Sequence[str]) -> None:
    """Note which cells a configuration is made of, whether they are finished or not."""
    folder = out / "configurations"
    folder.mkdir(exist_ok=True)
    text = json.dumps({"schema": SCHEMA} | about | {"cells": list(digests)}, indent=1)
    (folder / f"{name}.json").write_text(text + "\n", "utf-8")


def read_sections(out: Path) -> list[Section]:
    """What was run into a folder.

    Raises
    ------
    DataError
        If nothing was, or by another version.
    """
    known = Results(out).cells()
    sections = []
    for path in sorted((out / "configurations").glob("*.json")):
        about = json.loads(path.read_text("utf-8"))
        if about.pop("schema", None) != SCHEMA:
            raise DataError(f"{path}: by another version of the evaluation: run it again")
        digests = about.pop("cells")
        cells = [known[digest] for digest in digests if digest in known]
        about["reported_only"] = tuple(about["reported_only"])
        if cells:
            missing = len(digests) - len(cells)
            sections.append(Section(name=path.stem, missing=missing, cells=cells, **about))
    if not sections:
        raise DataError(f"{out}: no results; make some with: python -m eval run CONFIG --out {out}")
    return sections


def write_report(out: Path) -> Path:
    """Write `report.md`, `cells.csv` and the plots; gives the report's path."""
    from eval.plots import write_plots

    sections = read_sections(out)
    _write_csv(
        out / "cells.csv",
        [{"configuration": s.name} | cell for s in sections for cell in s.cells],
    )
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
    if section.missing:
        lines += [f"**{section.missing} cells are missing: run the command below again.**", ""]
    for lm in values_of(section.cells, "lm"):
        of_lm = [cell for cell in section.cells if cell["lm"] == lm]
        for shots in values_of(of_lm, "shots"):
            cells = [cell for cell in of_lm if cell["shots"] == shots]
            n_seeds = len(values_of(cells, "seed"))
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
            if section.compare and section.compare in values_of(cells, "name"):
                lines += comparison_table(cells, section.compare, section.reported_only)
                lines.append("")
    lines += [f"- {name}: {found}" for name, found in section.duplicates.items()]
    machines = ", ".join(values_of(section.cells, "machine"))
    dates = sorted({cell["written"][:10] for cell in section.cells})
    lines += ["", f"By `{section.command}`, {dates[0]} to {dates[-1]}, on {machines}.", ""]
    return "\n".join(lines)


def _write_csv(path: Path, cells: Cells) -> None:
    keys = list(dict.fromkeys(key for cell in cells for key in cell))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        for cell in cells:
            writer.writerow(
                {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in cell.items()}
            )
