"""Rendering of a report: self-contained HTML, or a model card for Hugging Face."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Callable
from typing import Any

from blackbox import plotting
from blackbox.errors import MissingDependencyError
from blackbox.metrics import Detection
from blackbox.model.display import printable
from blackbox.plotting import reliability
from blackbox.plurals import counted
from blackbox.report.content import MeasuredModel, ReportData

__all__ = ["render_card", "render_html"]

_INK = "#010203"  # placeholder of the page's text colour
_LINE = "#040506"  # placeholder of its accent colour
_MAX_CLASSES = 30  # for which a confusion matrix is drawn


def render_html(data: ReportData) -> str:
    """Return the report as one self-contained HTML page, light and dark."""
    return str(
        _template("report.html", autoescape=True).render(
            data=data,
            charts=_charts(data),
            max_classes=_MAX_CLASSES,
            **_HELPERS,
        )
    )


def render_card(data: ReportData) -> str:
    """Return the report as a model card: Markdown below the metadata that the hub reads."""
    template = _template("card.md", autoescape=False)
    measured = data.measured if isinstance(data.measured, MeasuredModel) else None
    return str(
        template.render(
            data=data,
            code=_code,
            quoted=_quoted,
            cell=_cell,
            max_classes=_MAX_CLASSES,
            bins=(
                reliability(measured.codes, measured.probabilities)
                if measured and len(measured.codes)
                else []
            ),
            rounds=_some_rounds(measured.by_round) if measured else [],
            **_HELPERS,
        )
    )


def _template(name: str, *, autoescape: bool) -> Any:
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "a report needs jinja2 and matplotlib: pip install 'promptboosting[report]'"
        ) from error
    environment = jinja2.Environment(  # a card is Markdown; the template quotes all values
        loader=jinja2.PackageLoader("blackbox.report"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["counted"] = counted
    return environment.get_template(name)


def _charts(data: ReportData) -> dict[str, str]:
    """Return the charts, as SVG in the colours of the page."""
    measured = data.measured
    if not isinstance(measured, MeasuredModel):
        return {}
    charts = {}
    if len(measured.codes):
        charts["reliability"] = _svg(
            lambda ax: plotting.plot_reliability(measured.codes, measured.probabilities, ax),
            "reliability",
        )
    if len(measured.by_round) > 1:
        charts["rounds"] = _svg(lambda ax: plotting.plot_rounds(measured.by_round, ax), "rounds")
    return charts


def _svg(draw: Callable[[Any], Any], name: str) -> str:
    try:
        import matplotlib as mpl
        from cycler import cycler
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "a report needs jinja2 and matplotlib: pip install 'promptboosting[report]'"
        ) from error
    plain: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "report",
        "font.family": "sans-serif",
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.prop_cycle": cycler(color=[_LINE]),
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(plain):
        figure = Figure(figsize=(4.2, 4.2), layout="constrained")
        draw(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    picture = out.getvalue()
    picture = picture[picture.index("<svg") :]
    picture = re.sub(r"<metadata>.*?</metadata>", "", picture, flags=re.DOTALL)
    # a namespace is not an outside resource, but HTML doesn't need it
    picture = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", picture, count=2)
    # ids must differ between the pictures of a page
    picture = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", picture)
    return picture.replace(_INK, "currentColor").replace(_LINE, "var(--strong)")


def _percent(value: float) -> str:
    """Return a share in percent; only none is 0.0%, and only all are 100.0%."""
    if 0 < value < 0.0005:
        return "<0.1%"
    return ">99.9%" if 0.9995 <= value < 1 else f"{100 * value:.1f}%"


def _noticed(found: Detection, label: str) -> str:
    """Return how well texts of none of the classes are noticed, in words."""
    recall, alarms = (
        "–" if share is None else _percent(share) for share in (found.recall, found.false_alarms)
    )
    auroc = "–" if found.auroc is None else f"{found.auroc:.3f}"
    return (
        f"{recall} of {counted(found.n_outside, 'row')} with the label {label}, and {alarms} of "
        f"the others, get that label; AUROC {auroc}"
    )


def _dollars(cost: float | None) -> str:
    return "price unknown" if cost is None else f"US${cost:.4f}" if cost else "US$0"


def _some_rounds(by_round: list[float]) -> list[tuple[int, float]]:
    """Return the accuracy after a few of the rounds, including the last."""
    n = len(by_round)
    some = sorted({1, *(max(1, round(n * share)) for share in (0.1, 0.25, 0.5, 0.75, 1.0))})
    return [(number, by_round[number - 1]) for number in some if number <= n]


def _quoted(text: str) -> str:
    """Return text in YAML quotes."""
    return json.dumps(printable(text), ensure_ascii=False)


def _code(text: str) -> str:
    """Return any text as a Markdown code span; line breaks, which would end it, are escaped."""
    text = printable(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _cell(text: str) -> str:
    """Return text as a code span for a Markdown table."""
    return _code(text).replace("|", "\\|")


_HELPERS: dict[str, Any] = {
    "percent": _percent,
    "noticed": _noticed,
    "dollars": _dollars,
    "shell": shlex.quote,
    "python": repr,
}
