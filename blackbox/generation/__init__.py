"""Prompt pools: those that come with the package, and those that are made for a task."""

from __future__ import annotations

from blackbox.generation.builtin import builtin_pool
from blackbox.generation.choice import Prompts, candidates, choose, generator_of
from blackbox.generation.screening import screen
from blackbox.generation.search import Generated, PromptGenerator, generate_pool
from blackbox.generation.sources import SOURCES, Source
from blackbox.generation.task import Found, Task
from blackbox.generation.worth import best_prompts

__all__ = [
    "SOURCES",
    "Found",
    "Generated",
    "PromptGenerator",
    "Prompts",
    "Source",
    "Task",
    "best_prompts",
    "builtin_pool",
    "candidates",
    "choose",
    "generate_pool",
    "generator_of",
    "screen",
]
