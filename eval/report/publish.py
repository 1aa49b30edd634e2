"""Write tables and pictures of results into the pages of the documentation.

A page marks where: what stands between these lines is replaced, and nothing else::

    <!-- results: {of: main, table: accuracy, shots: 32, rows: [ours, TF-IDF]} -->
    <!-- end of results -->

`of` is a configuration, or ``CONFIGURATION-LM`` where it was run with another LM by ``--backend``.
`table` is one of `TABLES`, or ``all``, its whole report; `shots`, `data` and `rows` choose of it,
by default all. `picture` in place of `table` is a kind of plot, which goes into ``docs/images``.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from blackbox.errors import DataError
from eval.report.contrasts import frame_table, loss_table
from eval.report.markdown import format_section
from eval.report.plots import KINDS, write_plots
from eval.report.section import Section, read_sections
from eval.report.tables import (
    accuracy_table,
    calibration_table,
    comparison_table,
    labels_table,
    quality_table,
)
from eval.run.results import Results

__all__ = ["TABLES", "marks", "publish", "read_mark"]

_MARK = re.compile(r"(<!-- results: (\{[^}]*\}) -->\n)(.*?)(<!-- end of results -->)", re.DOTALL)
_KEYS = {"of", "table", "picture", "shots", "data", "rows"}

TABLES: dict[str, Callable[[Section, Results], list[str]]] = {
    "accuracy": lambda section, _: accuracy_table(section.cells, section.reported_only),
    "labels": lambda section, _: labels_table(section.cells, section.reported_only),
    "quality": lambda section, results: quality_table(
        section.cells, section.reported_only, results
    ),
    "calibration": lambda section, results: calibration_table(section.cells, results),
    "comparison": lambda section, _: comparison_table(
        section.cells, section.compare or "", section.reported_only
    ),
    "losses": lambda section, _: loss_table(section.cells, section.against),
    "frame": lambda section, _: frame_table(section.cells, section.reported_only),
    "all": lambda section, results: format_section(section, results).split("\n")[2:],
}
"""The tables by their names."""

_OF_ONE = ("accuracy", "quality", "calibration", "comparison")  # number of labels, and LM


def publish(out: Path, root: Path) -> tuple[list[str], list[str]]:
    """Replace the marked parts of ``README.md`` and ``docs/*.md`` by what the results say.

    A configuration whose whole report has no place yet gets a page of its own, ``docs/NAME.md``.

    Parameters
    ----------
    out : Path
        A folder of results.
    root : Path
        The checkout.

    Returns
    -------
    written : list of str
        Pages that changed.
    left : list of str
        Configurations that are named and were left as they are, with the reason.

    Raises
    ------
    DataError
        If a mark can't be read, or names what there isn't.
    """
    sections = {section.name: section for section in read_sections(out)}
    written, left = [], dict[str, None]()
    placed = set()
    for page in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:

        def fill(found: re.Match[str], page: Path = page) -> str:
            asked = read_mark(page, found[2])
            if asked.get("table") == "all":
                placed.add(asked["of"])
            section = sections.get(asked["of"])
            reason = _why_unready(section)
            if section is None or reason:
                left[f"{asked['of']}: {reason}"] = None
                return found[0]
            return found[1] + _content(asked, section, out, root, page) + "\n" + found[4]

        before = page.read_text("utf-8")
        after = _MARK.sub(fill, before)
        if after != before:
            page.write_text(after, "utf-8")
            written.append(page.relative_to(root).as_posix())
    for name, section in sections.items():
        page = root / "docs" / f"{name}.md"
        if name not in placed and not _why_unready(section) and not page.exists():
            mark = f"<!-- results: {{of: {name}, table: all}} -->"
            body = "\n".join(TABLES["all"](section, Results(out)))
            page.write_text(
                f"# {section.title}\n\nWhat `python -m eval publish` wrote; how it was made stands "
                f"in [evaluation.md](evaluation.md).\n\n{mark}\n{body}\n<!-- end of results -->\n",
                "utf-8",
            )
            written.append(page.relative_to(root).as_posix())
    return written, list(left)


def _why_unready(section: Section | None) -> str:
    """Return why results can't be published; "" if they can."""
    if section is None:
        return "no results"
    if section.is_part:
        return "run for some of its rows or data sets last; run the whole file"
    return f"{section.missing} cells are missing" if section.missing else ""


def marks(text: str) -> list[str]:
    """Return what the marks of a page ask for, unread."""
    return [found[2] for found in _MARK.finditer(text)]


def read_mark(page: Path, text: str) -> dict[str, Any]:
    """Return what a mark asks for.

    Raises
    ------
    DataError
        If it can't be read.
    """
    asked = yaml.safe_load(text)
    if set(asked) - _KEYS or "of" not in asked or ("table" in asked) == ("picture" in asked):
        raise DataError(f"{page}: a mark has `of`, and `table` or `picture`, got {text}")
    if "table" in asked and asked["table"] not in TABLES:
        raise DataError(f"{page}: no table {asked['table']!r}; there are {', '.join(TABLES)}")
    if "picture" in asked and asked["picture"] not in KINDS:
        raise DataError(f"{page}: no picture {asked['picture']!r}; there are {', '.join(KINDS)}")
    return dict(asked)


def _content(asked: dict[str, Any], section: Section, out: Path, root: Path, page: Path) -> str:
    """Return the lines between two marks."""
    if "picture" in asked:
        return _picture(asked, section, out, root, page)
    for key, name in (("shots", "shots"), ("data", "data"), ("rows", "name")):
        wanted = asked.get(key)
        if wanted is None:
            continue
        wanted = wanted if isinstance(wanted, list) else [wanted]
        known = {cell[name] for cell in section.cells}
        if not set(wanted) <= known:
            raise DataError(f"{page}: {section.name} has no {key} {sorted(set(wanted) - known)}")
        cells = [cell for one in wanted for cell in section.cells if cell[name] == one]
        section = replace(section, cells=cells)
    for key in ("shots", "lm") if asked["table"] in _OF_ONE else ():
        several = list(dict.fromkeys(cell[key] for cell in section.cells))
        if len(several) > 1:
            raise DataError(f"{page}: {section.name} has several {key}, {several}: choose one")
    return "\n".join(TABLES[asked["table"]](section, Results(out)))


def _picture(asked: dict[str, Any], section: Section, out: Path, root: Path, page: Path) -> str:
    drawn = write_plots(out, section, [asked["picture"]])
    if len(drawn) != 1:
        raise DataError(f"{page}: {section.name} has no data for the picture {asked['picture']!r}")
    ((title, path),) = drawn
    images = root / "docs" / "images"
    images.mkdir(exist_ok=True)
    shutil.copyfile(path, images / path.name)
    return f"![{title}]({(images / path.name).relative_to(page.parent).as_posix()})"
