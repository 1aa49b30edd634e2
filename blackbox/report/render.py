"""Facts as HTML, with nothing from outside, and as a model card for Hugging Face."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from typing import Any

from blackbox import plotting
from blackbox.errors import MissingDependencyError
from blackbox.report.facts import Facts

__all__ = ["render_card", "render_html"]

_INK = "#010203"  # stands for the colour of the page's text
_LINE = "#040506"  # stands for its accent
_MOST_CLASSES = 30  # of which a confusion matrix is drawn


def render_html(facts: Facts) -> str:
    """One self-contained page, light and dark."""
    return str(_template("report.html", autoescape=True).render(
        facts=facts, charts=_charts(facts), percent=_percent,
    ))  # fmt: skip


def render_card(facts: Facts) -> str:
    """A model card: Markdown, with the metadata that the hub reads on top."""
    template = _template("card.md", autoescape=False)
    return str(template.render(facts=facts, percent=_percent, code=_code, quoted=json.dumps,
                               cell=_cell))  # fmt: skip


def _template(name: str, *, autoescape: bool) -> Any:
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "a report needs jinja2 and matplotlib: pip install 'promptboosting[report]'"
        ) from error
    environment = jinja2.Environment(  # a card is Markdown; what goes in is quoted
        loader=jinja2.PackageLoader("blackbox.report"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _charts(facts: Facts) -> dict[str, str]:
    """The pictures, as SVG in the colours of the page."""
    measured = facts.measured
    if measured is None:
        return {}
    charts = {
        "reliability": _svg(
            lambda ax: plotting.plot_reliability(measured.codes, measured.probabilities, ax),
            (4.2, 4.2),
        )
    }
    if len(measured.by_round) > 1:
        charts["rounds"] = _svg(lambda ax: plotting.plot_rounds(measured.by_round, ax), (4.2, 4.2))
    return charts


def _svg(draw: Callable[[Any], Any], size: tuple[float, float]) -> str:
    try:
        import matplotlib as mpl
        from cycler import cycler
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "a report needs jinja2 and matplotlib: pip install 'promptboosting[report]'"
        ) from error
    plain: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "report", "font.family": "sans-serif",
        "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK, "xtick.color": _INK,
        "ytick.color": _INK, "axes.prop_cycle": cycler(color=[_LINE]),
        "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    with mpl.rc_context(plain):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    picture = out.getvalue()
    picture = picture[picture.index("<svg") :]
    picture = re.sub(r"<metadata>.*?</metadata>", "", picture, flags=re.DOTALL)
    # what names a standard is no outside resource, but HTML needs none of it
    picture = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", picture, count=2)
    return picture.replace(_INK, "currentColor").replace(_LINE, "var(--strong)")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _code(text: str) -> str:
    """Text as a code span of Markdown, whatever is in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _cell(text: str) -> str:
    """A code span that stands in a table."""
    return _code(text).replace("|", "\\|")
