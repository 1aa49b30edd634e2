"""Results of one configuration, as a report reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blackbox.errors import DataError
from blackbox.files import write_whole
from eval.report.tables import Cells
from eval.run.jobs import Job
from eval.run.results import SCHEMA, Results

__all__ = ["Section", "read_sections", "write_section"]


@dataclass(frozen=True)
class Section:
    """Results of one configuration.

    Parameters
    ----------
    name, title, time : str
        The file name without suffix, and title and time from the configuration.
    command : str
        The command that was run.
    compare : str or None
        The method that the others are compared with.
    reported_only : tuple of str
        Data sets that are left out of means and comparisons.
    duplicates : dict of str to str
        For each data set, how many test rows also occur in the training split.
    missing : int
        Cells without figures so far.
    cells : list of dict
        Its cells, in its order.
    against : dict of str to str
        For a data set the one that its accuracy is compared with.
    is_part : bool
        Whether the command left out rows or data sets of the configuration.
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
    against: dict[str, str] = field(default_factory=dict)
    is_part: bool = False


def write_section(out: Path, name: str, about: dict[str, Any], jobs: Sequence[Job]) -> None:
    """Record which cells a configuration consists of, finished or not."""
    folder = out / "configurations"
    folder.mkdir(exist_ok=True)
    # equal cells may have been computed for a data set or an LM of another name
    cells = {job.digest: {"lm": job.cell.lm.name, "data": job.cell.data} for job in jobs}
    text = json.dumps({"schema": SCHEMA} | about | {"cells": cells}, indent=1)
    write_whole(folder / f"{name}.json", f"{text}\n".encode(), DataError)


def read_sections(out: Path) -> list[Section]:
    """Read the results of every configuration that was run into a folder.

    Raises
    ------
    DataError
        If there are no results, or they are of another version.
    """
    known = Results(out).cells()
    sections = []
    for path in sorted((out / "configurations").glob("*.json")):
        about = json.loads(path.read_text("utf-8"))
        named = about.pop("cells")
        if about.pop("schema", None) != SCHEMA or not isinstance(named, dict):
            raise DataError(f"{path}: by another version of the evaluation: run it again")
        cells = [known[digest] | names for digest, names in named.items() if digest in known]
        about["reported_only"] = tuple(about["reported_only"])
        if cells:
            missing = len(named) - len(cells)
            sections.append(Section(name=path.stem, missing=missing, cells=cells, **about))
    if not sections:
        raise DataError(f"{out}: no results; make some with: python -m eval run CONFIG --out {out}")
    return sections
