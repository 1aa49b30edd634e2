"""Write the report of a folder of results: tables, comparisons, plots, a CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from blackbox.plurals import counted
from eval.report.contrasts import frame_table, loss_table
from eval.report.plots import write_plots
from eval.report.section import Section, read_sections
from eval.report.tables import (
    Cells,
    accuracy_table,
    calibration_table,
    comparison_table,
    distinct_values,
    quality_table,
    seeds_of,
)
from eval.run.results import Results

__all__ = ["format_section", "write_report"]


def write_report(out: Path) -> Path:
    """Write `report.md`, `cells.csv` and the plots; return the report's path."""
    sections = read_sections(out)
    _write_csv(
        out / "cells.csv",
        [{"configuration": s.name} | cell for s in sections for cell in s.cells],
    )
    parts = []
    for section in sections:
        plots = write_plots(out, section)
        parts.append(format_section(section, Results(out)))
        parts += [f"![{title}]({path.name})\n" for title, path in plots]
    report = out / "report.md"
    report.write_text("\n".join(parts), "utf-8")
    return report


def format_section(section: Section, results: Results) -> str:
    """Return the tables of one configuration."""
    lines = [f"## {section.title}", ""]
    if section.missing:
        lines += [f"**{section.missing} cells are missing: run the command below again.**", ""]
    if section.is_part:
        lines += ["**Some of its rows or data sets alone, as the command below says.**", ""]
    for lm in distinct_values(section.cells, "lm"):
        of_lm = [cell for cell in section.cells if cell["lm"] == lm]
        for shots in sorted(distinct_values(of_lm, "shots"), key=lambda n: (n is None, n)):
            cells = [cell for cell in of_lm if cell["shots"] == shots]
            tests = sorted({cell["n_test"] for cell in cells})
            some = "all training rows" if shots is None else f"{shots or 'no'} labels per class"
            lines += [f"### {lm}, {some}", ""]
            lines += [
                f"{_seeds(cells)}, {' or '.join(map(str, tests))} test rows. Accuracy in percent, "
                "mean ± standard deviation over seeds.",
                "",
                *accuracy_table(cells, section.reported_only, distinct_values(of_lm, "name")),
                "",
                *quality_table(cells, section.reported_only, results),
                "",
                "Expected calibration error of the seeds together; in brackets what exact "
                "probabilities would have on as many rows.",
                "",
                *calibration_table(cells, results),
                "",
            ]
            for table in (
                loss_table(cells, section.against),
                frame_table(cells, section.reported_only),
            ):
                lines += [*table, ""] if table else []
            if section.compare and section.compare in distinct_values(cells, "name"):
                lines += comparison_table(cells, section.compare, section.reported_only)
                lines.append("")
    lines += [f"- {name}: {found}" for name, found in section.duplicates.items()]
    machines = ", ".join(distinct_values(section.cells, "machine"))
    dates = sorted({cell["written"][:10] for cell in section.cells})
    when = " to ".join(sorted({dates[0], dates[-1]}))
    lines += ["", f"By `{section.command}`, {when}, on {machines}. Time: {section.time}.", ""]
    return "\n".join(lines)


def _seeds(cells: Cells) -> str:
    """Return the number of seeds, and the methods that have fewer."""
    n_seeds = seeds_of(cells)
    most = max(n_seeds.values())
    fewer = [f"*{name}* {n}" for name, n in n_seeds.items() if n < most]
    return counted(most, "seed") + (f" ({'; '.join(fewer)})" if fewer else "")


def _write_csv(path: Path, cells: Cells) -> None:
    keys = list(dict.fromkeys(key for cell in cells for key in cell))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        for cell in cells:
            writer.writerow(
                {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in cell.items()}
            )
