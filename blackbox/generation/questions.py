"""Questions as candidates: about the classes of a task, and those of no particular task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from blackbox.generation.task import SearchState, Task, Writer
from blackbox.prompts.question import MAX_LETTERED, MAX_OPTIONS, Question
from blackbox.prompts.template import Prompt
from blackbox.protocol import Limits

__all__ = ["Questions", "class_questions"]

_MAX_PREDICATES = 40  # classes up to which each has a predicate
_SHOWN = {"text": "the text", "pair": "the two texts", "image": "the picture"}
_WHICH = "Which of these describes {texts} best?"


class Questions:
    """Questions about the classes, then the built-in ones in a random order."""

    improves = False

    def propose(
        self, task: Task, state: SearchState, write: Writer, rng: np.random.Generator
    ) -> Iterator[Prompt]:
        """See `blackbox.generation.sources.Source`."""
        from blackbox.generation.builtin import read_templates

        named = class_questions(
            task.readable_names or (), task.description, kind=task.kind, limits=task.limits
        )
        yield from named
        general = read_templates("questions", kind=task.kind, limits=task.limits)
        for number in rng.permutation(len(general)):
            yield general[number]


def class_questions(
    names: Sequence[str], description: str | None, *, kind: str = "text", limits: Limits
) -> list[Question]:
    """Return the choice among the classes, in both orders, and a predicate for each class.

    A choice has as many options as the LM takes; with more classes than that there is none, and
    with many there are no predicates.

    Parameters
    ----------
    names : sequence of str
        The classes in words; none gives no questions.
    description : str or None
        One line that says what is asked of a text.
    kind : str
        The kind of input: ``"text"``, ``"pair"`` or ``"image"``.
    limits : Limits
        What the LM serves.
    """
    texts = _SHOWN[kind]
    asked: list[Question] = []
    if 2 <= len(names) <= (MAX_OPTIONS if limits.questions else MAX_LETTERED):
        choice = Question.of("choice", description or _WHICH.format(texts=texts), names, about=kind)
        asked += [choice, choice.opposite()]
    if len(names) <= _MAX_PREDICATES:
        asked += [
            Question.of("predicate", f'"{name}" describes {texts}.', about=kind) for name in names
        ]
    return [question for question in asked if question.is_served(limits)]
