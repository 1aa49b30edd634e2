"""Reports on a trained model, as an HTML page or a model card: `blackbox report`."""

from __future__ import annotations

from blackbox.report.content import (
    HubMetadata,
    ReportData,
    collect_report_data,
    measure_labels,
    measure_model,
)
from blackbox.report.render import render_card, render_html

__all__ = [
    "HubMetadata",
    "ReportData",
    "collect_report_data",
    "measure_labels",
    "measure_model",
    "render_card",
    "render_html",
]
