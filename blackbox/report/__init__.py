"""A trained model as one page of HTML, or as a model card: `blackbox report`."""

from __future__ import annotations

from blackbox.report.facts import Facts, gather
from blackbox.report.render import render_card, render_html

__all__ = ["Facts", "gather", "render_card", "render_html"]
