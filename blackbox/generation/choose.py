"""The prompts that a classifier trains on: named, screened, or made for the task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.gatherer import Gatherer
from blackbox.generation.builtin import builtin_pool
from blackbox.generation.generate import PromptGenerator, generate_pool
from blackbox.generation.screen import screen
from blackbox.generation.task import Task, none_fits
from blackbox.prompts.pool import PromptPool
from blackbox.prompts.template import Prompt

__all__ = ["AUTO", "Prompts", "candidates", "choose", "generator_of"]

AUTO = "auto"
"""What stands for prompts that are made with the generator's defaults."""

Prompts = Sequence[str | Prompt] | PromptPool | PromptGenerator | str | Path | None
"""What the estimator's `prompts` may be."""


def generator_of(prompts: Prompts) -> PromptGenerator | None:
    """The generator that was asked for, if any."""
    if isinstance(prompts, PromptGenerator):
        return prompts
    return PromptGenerator() if isinstance(prompts, str) and prompts == AUTO else None


def candidates(prompts: Prompts, task: Task) -> PromptPool:
    """The prompts that were named, or those of the built-in ones that the LM's context holds.

    Raises
    ------
    PromptError
        If it holds none of these.
    """
    if prompts is None or generator_of(prompts) is not None:
        known = builtin_pool(
            pair=task.pair,
            limits=task.limits,
            class_names=task.listed_names,
            task=task.description,
        )
        fitting = [prompt for prompt in known if task.fits(prompt)]
        if not fitting:
            raise none_fits(task)
        return PromptPool(fitting)
    if isinstance(prompts, PromptPool):
        return prompts
    if isinstance(prompts, str | Path):
        return PromptPool.read(prompts)
    return PromptPool(prompts)  # type: ignore[arg-type]


def choose(
    prompts: Prompts,
    gatherer: Gatherer,
    task: Task,
    n_prompts: int,
    n_screening_rows: int,
    rng: np.random.Generator,
    *,
    shared_prefixes: bool,
) -> tuple[PromptPool, dict[str, Any], NDArray[np.intp]]:
    """The prompts to train on, what a training summary says of their choice, and rows looked at.

    Rows by which prompts were chosen out of many look better than others do.

    Parameters
    ----------
    prompts, n_prompts, n_screening_rows
        As for `blackbox.PromptBoostingClassifier`.
    gatherer : Gatherer
        Runs the passes that are needed.
    task : Task
        The training rows.
    rng : numpy Generator
        For all that is drawn.
    shared_prefixes : bool
        See `blackbox.generation.ensemble_selection.prefix_costs`.
    """
    generator = generator_of(prompts)
    if generator is not None:
        made = generate_pool(
            gatherer, task, generator, n_prompts, rng, shared_prefixes=shared_prefixes
        )
        tried = sum(made.summary["n_tried"].values())
        return (
            made.pool,
            {
                "n_prompts_tried": tried,
                "screening_losses": None,
                "generation": made.summary,
            },
            made.looked_at,
        )
    pool = candidates(prompts, task)
    summary: dict[str, Any] = {"n_prompts_tried": len(pool), "screening_losses": None}
    if prompts is not None or len(pool) <= n_prompts:
        return pool, summary, np.empty(0, np.intp)
    gatherer.require_memory(n_prompts)  # before the passes of the screen
    chosen, losses = screen(
        gatherer, pool, task.y, task.sample_weight, n_prompts, n_screening_rows, rng
    )
    # a loss that is infinite is no JSON
    told = [round(loss, 4) if loss < np.inf else None for loss in losses.tolist()]
    summary["screening_losses"] = told
    return PromptPool(pool[number] for number in chosen), summary, np.empty(0, np.intp)
