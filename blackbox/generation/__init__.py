"""Prompt pools: built-in ones, and those that are generated for a task."""

from __future__ import annotations

from blackbox.generation.builtin import builtin_pool
from blackbox.generation.choose import Prompts, candidates, generator_of, named_prompts
from blackbox.generation.ensemble_selection import best_prompts
from blackbox.generation.generate import GeneratedPool, PromptGenerator
from blackbox.generation.retrieval import show_nearest_rows
from blackbox.generation.sources import SOURCES, Source
from blackbox.generation.task import SearchState, Task

__all__ = [
    "SOURCES",
    "GeneratedPool",
    "PromptGenerator",
    "Prompts",
    "SearchState",
    "Source",
    "Task",
    "best_prompts",
    "builtin_pool",
    "candidates",
    "generator_of",
    "named_prompts",
    "show_nearest_rows",
]
