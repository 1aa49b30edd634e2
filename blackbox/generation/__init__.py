"""Prompt pools: those that come with the package, and those that are made for a task."""

from __future__ import annotations

from blackbox.generation.builtin import builtin_pool
from blackbox.generation.choose import Prompts, candidates, generator_of
from blackbox.generation.ensemble_selection import best_prompts
from blackbox.generation.generate import Generated, PromptGenerator, generate_pool
from blackbox.generation.sources import SOURCES, Source
from blackbox.generation.task import SearchState, Task

__all__ = [
    "SOURCES",
    "Generated",
    "PromptGenerator",
    "Prompts",
    "SearchState",
    "Source",
    "Task",
    "best_prompts",
    "builtin_pool",
    "candidates",
    "generate_pool",
    "generator_of",
]
