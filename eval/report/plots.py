"""Plots of the results of a configuration, as PNG and SVG."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from blackbox.plotting import reliability
from eval.report.section import Section
from eval.run.results import Results

__all__ = ["KINDS", "write_plots"]

_MAX_DIAGRAMS = 6
_PREFERRED_METHODS = (
    "ours",
    "joint regression",
    "product of regressions",
    "linear discriminant",
    "PromptBoosting",
)


KINDS = {
    "labels": "Accuracy by labels per class",
    "passes": "Accuracy by forward passes to train",
    "reliability": "Reliability: accuracy by confidence",
    "seconds": "Seconds to fit, without the LM",
}
"""The plots, and their titles."""


def write_plots(
    out: Path, section: Section, kinds: Collection[str] = tuple(KINDS)
) -> list[tuple[str, Path]]:
    """Draw the plots that the section has data for, per LM; return titles and PNG paths."""
    lms = list(dict.fromkeys(cell["lm"] for cell in section.cells))
    if len(lms) == 1:
        return _write_plots(out, section, section.name, kinds)
    drawn = []
    for lm in lms:
        cells = [cell for cell in section.cells if cell["lm"] == lm]
        name = f"{section.name}-{re.sub(r'[^A-Za-z0-9.]+', '_', lm)}"
        drawn += [
            (f"{title}, {lm}", path)
            for title, path in _write_plots(out, replace(section, cells=cells), name, kinds)
        ]
    return drawn


def _write_plots(
    out: Path, section: Section, name: str, kinds: Collection[str]
) -> list[tuple[str, Path]]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    draws = {
        "labels": _plot_by_labels,
        "passes": _plot_by_passes,
        "reliability": _plot_reliability,
        "seconds": _plot_seconds,
    }
    drawn = []
    for kind in kinds:
        figure = pyplot.figure(figsize=(9, 6), layout="constrained")
        if draws[kind](figure, section, Results(out)):
            figure.suptitle(f"{KINDS[kind]} ({name})")
            for suffix in ("png", "svg"):
                figure.savefig(out / f"{name}-{kind}.{suffix}", dpi=120)
            drawn.append((KINDS[kind], out / f"{name}-{kind}.png"))
        pyplot.close(figure)
    return drawn


def _mean_by_shots(section: Section, key: str) -> dict[str, dict[Any, tuple[float, float]]]:
    """Return per method and number of shots the mean of a figure and of the accuracy."""
    counted = [c for c in section.cells if c["data"] not in section.reported_only]
    grouped: dict[str, dict[Any, list[tuple[float, float]]]] = {}
    for cell in counted or section.cells:
        if cell[key] is not None and cell["shots"] is not None:
            by_shots = grouped.setdefault(cell["name"], {})
            by_shots.setdefault(cell["shots"], []).append((cell[key], cell["accuracy"]))
    return {
        name: {
            shots: (float(np.mean([x for x, _ in some])), float(np.mean([y for _, y in some])))
            for shots, some in sorted(by_shots.items())
        }
        for name, by_shots in grouped.items()
    }


def _alike(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the cells of data sets that have the same numbers of labels as most.

    A method has none at a number of labels where it lacks one of these data sets. Otherwise the
    points of a curve, and of two curves, would be means over different data sets.
    """
    shots: dict[str, set[Any]] = {}
    for cell in cells:
        shots.setdefault(cell["data"], set()).add(cell["shots"])
    usual = Counter(map(frozenset, shots.values())).most_common(1)
    alike = [cell for cell in cells if usual and shots[cell["data"]] == usual[0][0]]
    data: dict[tuple[str, Any], set[str]] = {}
    for cell in alike:
        data.setdefault((cell["name"], cell["shots"]), set()).add(cell["data"])
    most = max(map(len, data.values()), default=0)
    return [cell for cell in alike if len(data[cell["name"], cell["shots"]]) == most]


def _at_most_labels(section: Section, key: str) -> dict[str, tuple[float, float]]:
    """Return per method the mean of a figure and of the accuracy, where labels are most.

    Methods that lack one of the data sets there are left out.
    """
    by_shots = _mean_by_shots(replace(section, cells=_alike(section.cells)), key)
    most = max((max(found) for found in by_shots.values()), default=None)
    return {name: found[most] for name, found in by_shots.items() if most in found}


def _plot_by_labels(figure: Any, section: Section, results: Results) -> bool:
    """Plot accuracy by labels; a method without labels is a horizontal line."""
    cells = [c | {"labels per class": c["labels"] / c["classes"]} for c in _alike(section.cells)]
    curves = {}
    for name, found in _mean_by_shots(replace(section, cells=cells), "labels per class").items():
        points: dict[float, list[float]] = {}
        for x, y in found.values():
            points.setdefault(round(x, 2), []).append(100 * y)
        curves[name] = {x: float(np.mean(some)) for x, some in sorted(points.items())}
    ticks = sorted({x for found in curves.values() if list(found) != [0] for x in found})
    if len(ticks) < 2:
        return False
    axes = figure.add_subplot()
    for number, (name, curve) in enumerate(curves.items()):
        style: dict[str, Any] = {
            "color": f"C{number % 10}",
            "linewidth": 3 if name == section.compare else 1,
            "label": name,
        }
        if list(curve) == [0]:
            axes.axhline(curve[0], linestyle=":", **style)
        else:
            axes.plot(list(curve), list(curve.values()), marker="os^Dv"[number % 5], **style)
    # 0 labels stand beside 1; from there on it is a logarithmic scale
    axes.set_xscale("symlog", base=2, linthresh=1)
    ticks = [int(x) if x == int(x) else x for x in ticks]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("labels per class")
    axes.set_ylabel("accuracy in %, mean over data sets and seeds")
    figure.legend(fontsize=7, ncols=3, loc="outside lower center")
    return True


def _plot_by_passes(figure: Any, section: Section, results: Results) -> bool:
    found = _at_most_labels(section, "passes_to_train")
    means = {name: point for name, point in found.items() if point[0] > 0}
    if not means:
        return False
    axes = figure.add_subplot()
    for number, (name, (passes, accuracy)) in enumerate(means.items()):
        axes.scatter(
            [passes], [100 * accuracy], color=f"C{number % 10}", marker="os^Dv"[number % 5]
        )
        axes.annotate(
            name, (passes, 100 * accuracy), xytext=(4, 4), fontsize=7, textcoords="offset points"
        )
    axes.set_xscale("log")
    axes.set_xlabel("forward passes to train")
    axes.set_ylabel("accuracy in %, at the most labels")
    return True


def _plot_reliability(figure: Any, section: Section, results: Results) -> bool:
    most = max((c["shots"] for c in section.cells if c["shots"] is not None), default=None)
    of_method = {c["method"]: c["name"] for c in reversed(section.cells)}
    first = [of_method.get(method) for method in _PREFERRED_METHODS]
    measured = [c["name"] for c in section.cells if c["shots"] == most]
    names = [name for name in (section.compare, *first) if name in measured]
    chosen = list(dict.fromkeys([*names, *measured]))[:_MAX_DIAGRAMS]
    if not chosen:
        return False
    axes = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
    for place, name in zip(axes, chosen, strict=False):
        cells = [c for c in section.cells if c["name"] == name and c["shots"] == most]
        for number, data in enumerate(dict.fromkeys(cell["data"] for cell in cells)):
            parts = [results.read_probabilities(c["digest"]) for c in cells if c["data"] == data]
            codes = np.concatenate([codes for _, codes in parts])
            given = np.concatenate([given for given, _ in parts])
            bins = reliability(codes, given)
            confidence, accuracy = [one[0] for one in bins], [one[1] for one in bins]
            place.plot(confidence, accuracy, label=data, marker="os^Dv"[number % 5])
        place.plot([0, 1], [0, 1], color="grey", linestyle=":")
        place.set_title(name, fontsize=9)
        place.set_aspect("equal")
    axes[0].legend(fontsize=7)
    figure.supxlabel("confidence")
    figure.supylabel("accuracy")
    return True


def _plot_seconds(figure: Any, section: Section, results: Results) -> bool:
    found = _at_most_labels(section, "seconds_to_fit")
    means = {name: seconds for name, (seconds, _) in found.items()}
    if not means:
        return False
    axes = figure.add_subplot()
    order = sorted(means, key=lambda name: means[name])
    axes.barh(order, [max(means[name], 1e-3) for name in order])
    axes.set_xscale("log")
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("seconds to fit at the most labels, without the LM's")
    return True
