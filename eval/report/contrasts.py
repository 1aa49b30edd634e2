"""Tables of contrasts: what a data set costs against another, and what each part is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from eval.report.comparisons import paired_difference
from eval.report.tables import Cells, distinct_values, format_table
from eval.run.frame import SEPARATOR

__all__ = ["frame_table", "loss_table"]


def loss_table(cells: Cells, against: Mapping[str, str]) -> list[str]:
    """Return for each row how its accuracy differs between pairs of data sets, in points."""
    data = set(distinct_values(cells, "data"))
    pairs = {one: other for one, other in against.items() if {one, other} <= data}
    if not pairs:
        return []
    rows = []
    for name in distinct_values(cells, "name"):
        row = [name]
        for one, other in pairs.items():
            first, second = (
                {
                    ("", int(cell["seed"])): 100 * float(cell["accuracy"])
                    for cell in cells
                    if cell["name"] == name and cell["data"] == data_set
                }
                for data_set in (one, other)
            )
            found = paired_difference(first, second)
            row.append("–" if found is None else f"{found.mean:+.1f} {found.interval(1)}")
        rows.append(row)
    heads = [f"{one} − {other}" for one, other in pairs.items()]
    return [
        "Difference in accuracy, points, with its 95% interval over seeds:",
        "",
        *format_table(["method", *heads], rows),
    ]


def frame_table(cells: Cells, reported_only: Sequence[str]) -> list[str]:
    """Return what each level of each factor is worth: rows named by levels, the first the base.

    The difference is that to the base with this level alone changed, and its mean over all other
    levels that both have.
    """
    counted = [c for c in cells if c["data"] not in reported_only and SEPARATOR in c["name"]]
    names = [tuple(name.split(SEPARATOR)) for name in distinct_values(counted, "name")]
    if not names or len({len(name) for name in names}) > 1:
        return []
    found = {
        name: {
            (cell["data"], cell["seed"]): 100 * cell["accuracy"]
            for cell in counted
            if cell["name"] == SEPARATOR.join(name)
        }
        for name in names
    }
    base, rows = names[0], []
    for factor, first in enumerate(base):
        levels = dict.fromkeys(name[factor] for name in names)
        for level in levels:
            if level == first:
                continue
            alone = paired_difference(
                found.get((*base[:factor], level, *base[factor + 1 :]), {}), found[base]
            )
            over_all = [
                paired_difference(some, found[(*name[:factor], first, *name[factor + 1 :])])
                for name, some in found.items()
                if name[factor] == level and (*name[:factor], first, *name[factor + 1 :]) in found
            ]
            means = [one.mean for one in over_all if one is not None]
            rows.append(
                [
                    first,
                    level,
                    "–" if alone is None else f"{alone.mean:+.1f} {alone.interval(1)}",
                    f"{np.mean(means):+.1f} ({len(means)})" if means else "–",
                ]
            )
    heads = ["instead of", "this", "from the first row", "mean over the other parts (pairs)"]
    return [
        "Difference in accuracy when one part is replaced, points, with its 95% interval:",
        "",
        *format_table(heads, rows),
    ]
