"""Prompts with demonstrations: one labelled training row of each class before the text.

The rows are typical ones: those with the largest out-of-fold margin under the prompts tried so far.
Each has a spare of the same class that takes its place where the text is that very row, so that no
row ever stands beside its own label. For the same reason a row is no example if its group has other
texts: they would stand beside the label of one of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import PromptError
from blackbox.generation.task import SearchState, Task, Writer
from blackbox.prompts.inputs import Example, texts_of
from blackbox.prompts.pieces import literal
from blackbox.prompts.template import Prompt

__all__ = ["Demonstrations"]

_log = logging.getLogger(__name__)

_MAX_CLASSES = 12
_SETS, _CUES = 3, 4
_LENGTH_QUANTILE = 0.8  # of the training texts; longer ones are no examples
_MAX_SHARE = 0.4  # of the context, for examples; texts that don't fit behind them are truncated
_FORBIDDEN = ("{", "}", "||", "<user>", "<system>", "<assistant>")


class Demonstrations:
    """The best cues behind demonstrations of all classes."""

    improves = True

    def propose(
        self, task: Task, state: SearchState, write: Writer, rng: np.random.Generator
    ) -> Iterator[Prompt]:
        """See `blackbox.generation.sources.Source`."""
        if missing := _missing(task):
            _log.warning("no prompts with labelled examples are tried: %s", missing)
            return
        text = "{text} {text_pair}" if task.kind == "pair" else "{text}"
        cues = []
        for prompt in state.best:
            cue = prompt.template.removeprefix(text).removesuffix(" {mask}")
            if prompt.template == f"{text}{cue} {{mask}}":
                cues.append(cue)
        room = task.limits.context_length * _MAX_SHARE
        chosen = [_rows(task, state.typical_rows, number) for number in range(_SETS)]
        for pairs in chosen:
            order = rng.permutation(len(pairs)).tolist()
            for cue in cues[:_CUES] if pairs else ():
                shown = "".join(_shown(task, pairs[place], cue) for place in order)
                template = f"{shown}{text}{cue} {{mask}}"
                try:
                    prompt = Prompt(template)
                except PromptError:  # a text with something in it that a template can't hold
                    continue
                if task.serves(prompt) and task.size(prompt) <= room:
                    yield prompt


def _missing(task: Task) -> str | None:
    """Return why a task gets no demonstrations, or None if it does."""
    if task.kind == "image":
        return "they are for texts, and there are images"
    if task.limits.mask or not task.limits.raw_text:
        return "the LM serves no raw text that it continues"
    if task.n_classes > _MAX_CLASSES:
        return f"they are for {_MAX_CLASSES} classes at most, and there are {task.n_classes}"
    return None


def _rows(task: Task, typical_rows: list[list[int]], number: int) -> list[tuple[int, int]]:
    """Return an example and its spare per class, of set `number`; none if a class has too few."""
    lengths = [len(" ".join(texts_of(example))) for example in task.examples]
    longest = np.quantile(lengths, _LENGTH_QUANTILE)
    alone = _alone(task)
    pairs = []
    for of_class in typical_rows:
        usable = [
            row
            for row in of_class
            if alone[row]
            and lengths[row] <= longest
            and _fits(task, row)
            and task.examples[row][0].strip()
        ]
        different = {" ".join(task.examples[row][0].split()): row for row in reversed(usable)}
        rows = sorted(different.values(), key=usable.index)
        if len(rows) < 2 * number + 2:
            return []
        pairs.append((rows[2 * number], rows[2 * number + 1]))
    return pairs


def _alone(task: Task) -> NDArray[np.bool_]:
    """Return which rows are of a group with no other text."""
    if task.groups is None:
        return np.ones(len(task.examples), bool)
    texts: dict[int, set[Example]] = {}
    for group, example in zip(task.groups.tolist(), task.examples, strict=True):
        texts.setdefault(group, set()).add(example)
    return np.array([len(texts[group]) == 1 for group in task.groups.tolist()])


def _fits(task: Task, row: int) -> bool:
    whole = " ".join(texts_of(task.examples[row]))
    return not any(part in whole for part in _FORBIDDEN)


def _shown(task: Task, pair: tuple[int, int], cue: str) -> str:
    """Return the template of one example, with its spare, its cue and its label."""
    row, spare = pair
    first, second = task.examples[row], task.examples[spare]
    slots = f"{{example: {first[0].strip()} || {second[0].strip()}}}"
    if task.kind == "pair":
        shown, spare_shown = (texts_of(one)[-1].strip() for one in (first, second))
        slots += f" {{example_pair: {shown} || {spare_shown}}}"
    return f"{slots}{cue} {literal(task.names[task.y[row]])}\n\n"
