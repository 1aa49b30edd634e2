"""Sources of candidates: one small strategy each, behind one interface."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from blackbox.generation import demonstrations, instructions, mutations, questions, written
from blackbox.generation.builtin import builtin_pool, read_templates
from blackbox.generation.task import SearchState, Task, Writer
from blackbox.prompts.template import Prompt

__all__ = ["SOURCES", "Source"]


class Source(Protocol):
    """A source of candidates.

    `propose` yields candidates, the most promising first, as many as it has, and may have the LM
    write (`write`). A source that makes variants of the best candidates so far (`state`) has
    `improves` set, and is asked once some were tried.
    """

    improves: bool

    def propose(
        self, task: Task, state: SearchState, write: Writer, rng: np.random.Generator
    ) -> Iterator[Prompt]:
        """Yield candidates for a task."""


class _Templates:
    """The bank of the task, then the package's templates, those of the built-in pool first."""

    improves = False

    def propose(
        self, task: Task, state: SearchState, write: Writer, rng: np.random.Generator
    ) -> Iterator[Prompt]:
        if task.limits.questions:
            return
        names, described = task.listed_names, task.description
        chosen = {"kind": task.kind, "limits": task.limits}
        yield from filter(task.serves, task.bank)
        languages = task.languages
        yield from builtin_pool(class_names=names, task=described, languages=languages, **chosen)  # type: ignore[arg-type]
        if "en" not in languages:
            return
        more = read_templates("more", class_names=names, task=described, **chosen)  # type: ignore[arg-type]
        for number in rng.permutation(len(more)):
            yield more[number]


SOURCES: dict[str, Source] = {
    "templates": _Templates(),
    "instructions": instructions.Instructions(),
    "questions": questions.Questions(),
    "written": written.Written(),
    "mutations": mutations.Mutations(),
    "demonstrations": demonstrations.Demonstrations(),
}
"""All sources by name."""
