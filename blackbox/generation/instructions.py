"""Instruction templates in many phrasings, with class names and a task description when given."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from blackbox.generation.task import SearchState, Task, Writer, join_names
from blackbox.prompts.pieces import literal
from blackbox.prompts.template import Prompt

__all__ = ["Instructions"]

_OF_A_TEXT = (
    "What is this text about?",
    "What is the topic of this text?",
    "What kind of text is this?",
    "Which category does this belong to?",
    "How does the writer feel?",
    "What does the writer want?",
    "What is being asked for?",
    "What is the main subject?",
    "How would you label this?",
    "Describe this in one word.",
)
_OF_A_PAIR = (
    "How are the two texts related?",
    "Does the second text follow from the first?",
    "Do the two texts agree?",
    "Do the two texts mean the same?",
    "Is the second text true if the first one is?",
    "How would you label the two?",
    "What do the two texts have in common?",
)
_OF_AN_IMAGE = (
    "What is in this picture?",
    "What does this picture show?",
    "What is the subject of this picture?",
    "Describe this picture in one word.",
    "How would you label this picture?",
    "Which category does this picture belong to?",
    "What kind of picture is this?",
    "What stands out in this picture?",
)
_OF_KIND = {"text": _OF_A_TEXT, "pair": _OF_A_PAIR, "image": _OF_AN_IMAGE}
_SLOTS = {"text": "{text}", "pair": "{text}\n{text_pair}", "image": "{image}{text}"}
_WITH_NAMES = (
    "Is this {classes}?",
    "Which of these fits best: {classes}?",
    "Choose one: {classes}.",
    "Would you call this {classes}?",
    "Label this as {classes}.",
)
_BEGUN = (
    "",
    "The answer is ",
    "It is ",
    "This is ",
    "This is about ",
    "I would say ",
    "The best word for this is ",
)
_ONE_WORD = (" Answer with one word.", " One word only.")


class Instructions:
    """All combinations of a question, its place and how the answer begins, in a random order."""

    improves = False

    def propose(
        self, task: Task, state: SearchState, write: Writer, rng: np.random.Generator
    ) -> Iterator[Prompt]:
        """See `blackbox.generation.sources.Source`."""
        names = task.listed_names
        asked = [literal(task.description)] if task.description else []
        if names:
            asked += [question.replace("{classes}", join_names(names)) for question in _WITH_NAMES]
            if task.description:
                asked.append(f"{literal(task.description)} Choose from {join_names(names)}.")
        asked += _OF_KIND[task.kind]
        shapes = _shapes(task)
        combinations = list(itertools.product(range(len(asked)), range(len(shapes))))
        # each question once in a random shape before any twice, those about the task first
        order = rng.permutation(len(combinations)).tolist()
        turn: dict[int, int] = {}
        ranked = []
        for number in order:
            question, shape = combinations[number]
            turn[question] = turn.get(question, 0) + 1
            ranked.append((turn[question], question, shape))
        for _, question, shape in sorted(ranked, key=lambda entry: entry[:2]):
            prompt = Prompt(shapes[shape].replace("{question}", asked[question]))
            if task.serves(prompt):
                yield prompt


def _shapes(task: Task) -> list[str]:
    """Return templates with a slot `{question}`."""
    text = _SLOTS[task.kind]
    if not task.limits.chat or task.limits.mask:
        raw = [f"{text}\n{{question}} {begun}{{mask}}" for begun in _BEGUN]
        return raw + [f"{text}\nQuestion: {{question}}\nAnswer: {b}{{mask}}" for b in _BEGUN]
    orders = (f"<user>{text}\n\n{{question}}", f"<user>{{question}}\n\n{text}")
    if not task.limits.answer_prefix:
        ends = [f"{short}<assistant>{{mask}}" for short in _ONE_WORD]
    else:
        ends = [f"<assistant>{begun}{{mask}}" for begun in _BEGUN]
    return [order + end for order in orders for end in ends]
