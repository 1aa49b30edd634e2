"""Experts: whatever else than the prompts scores the classes of a text."""

from __future__ import annotations

from blackbox.experts.base import Expert
from blackbox.experts.embeddings import EmbeddingReadout
from blackbox.experts.source_readout import SourceReadout

__all__ = ["EXPERTS"]

EXPERTS: dict[str, type[Expert]] = {kind.name: kind for kind in (EmbeddingReadout, SourceReadout)}
"""The experts that a model file may hold, by name."""
