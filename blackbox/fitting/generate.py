"""Making a prompt pool for a task, as training would."""

from __future__ import annotations

import numpy as np

from blackbox.backend import BaseBackend
from blackbox.fitting.inputs import TrainingRows
from blackbox.fitting.options import FitOptions
from blackbox.fitting.run import Run, usable_top_k
from blackbox.generation import (
    GeneratedPool,
    PromptGenerator,
    generator_of,
)
from blackbox.model.model import Progress
from blackbox.spending import stopping_at_refusals

__all__ = ["generate_prompts"]


def generate_prompts(
    rows: TrainingRows,
    lm: BaseBackend,
    options: FitOptions,
    rng: np.random.Generator,
    *,
    writer: BaseBackend | None = None,
    progress: Progress | None = None,
) -> GeneratedPool:
    """Make a prompt pool for the task of some rows.

    Parameters
    ----------
    rows, lm, options, rng, writer, progress
        As for `fit`.
    """
    top_k = usable_top_k(lm, options.top_k)
    run = Run(rows, lm, top_k, options, writer, progress)
    run.gatherer.are_candidates = True
    generator = generator_of(options.prompts) or PromptGenerator()
    with stopping_at_refusals(options.on_row_error):
        made = generator.generate(
            run.gatherer, run.task, options.n_prompts, rng, prefix_price=run.prefix_price
        )
    return made.first(options.max_prompts)
