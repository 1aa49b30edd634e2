"""Templates that an LM proposes out of a few labelled training rows.

A causal LM sees texts that are followed by some words and the label, and writes what follows
another text: what stands there before the label is a cue. This is the idea of Gao, Fisch and Chen,
"Making pre-trained language models better few-shot learners" (ACL 2021), which fills that place in
with T5. An LM that converses is also asked for such a sentence, and which instruction leads from
the texts to the labels, after Zhou et al., "Large language models are human-level prompt engineers"
(ICLR 2023).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from blackbox.generation.task import SearchState, Task, Writer
from blackbox.prompts.template import Example, Prompt, literal
from blackbox.protocol import Message, RenderedPrompt

__all__ = ["Written", "cues_in", "instruction_in"]

_CONTEXTS, _DRAWS = 8, 3  # of cues
_CUE_TOKENS = 8
_ASKED, _ASKED_DRAWS, _ASKED_TOKENS = 3, 3, 28
_MOST_SHOWN = 6  # labelled texts in one context
_LONGEST_TEXT = 300  # characters of a text that is shown
_MOST_WORDS, _MOST_INSTRUCTION_WORDS = 6, 30
_LEADS = (" It is ", "\nTopic: ", " This is about ", "\nAnswer: ", " All in all, ", "\nLabel: ")
_BLANK = "___"


class Written:
    """Cues and instructions that the LM writes."""

    improves = False

    def propose(
        self, task: Task, found: SearchState, write: Writer, rng: np.random.Generator
    ) -> Iterator[Prompt]:
        """See `blackbox.generation.sources.Source`."""
        cues: list[str] = []
        if write.limits.raw_text and not write.limits.mask:
            requests = [RenderedPrompt(text=_context(task, rng)) for _ in range(_CONTEXTS)]
            drawn = [draw for of_one in write(requests, _DRAWS, _CUE_TOKENS) for draw in of_one]
            cues += cues_in(drawn, task.names)
        instructions: list[str] = []
        if write.limits.chat:
            sentences = write(
                [_sentence(task, rng) for _ in range(_ASKED)], _ASKED_DRAWS, _ASKED_TOKENS
            )
            cues += [
                cue
                for of_one in sentences
                for draw in of_one
                for cue in cues_in([draw], task.names, blank=True)
            ]
            asked = write(
                [_instruction(task, rng) for _ in range(_ASKED)], _ASKED_DRAWS, _ASKED_TOKENS
            )
            shown = {word for example in task.examples for word in (example[0], example[1] or "")}
            found_in = [instruction_in(draw) for of_one in asked for draw in of_one]
            instructions = [some for some in found_in if some and some not in shown]
        proposed = [_with_cue(task, literal_cue(cue)) for cue in cues]
        proposed += [_with_instruction(task, literal(some)) for some in instructions]
        for template in dict.fromkeys(proposed):
            prompt = Prompt(template)
            if task.serves(prompt):
                yield prompt


def _with_cue(task: Task, cue: str) -> str:
    """A template of a cue, as the LM that reads is asked, whichever one writes."""
    if task.limits.raw_text or task.limits.mask:
        return f"{_slots(task)}{cue} {{mask}}"
    return f"<user>{_slots(task)}\n\nComplete with one word:{cue}<assistant>{{mask}}"


def _with_instruction(task: Task, instruction: str) -> str:
    """A template of an instruction, as the LM that reads is asked."""
    if task.limits.mask or not task.limits.chat:
        return f"{_slots(task)}\n{instruction} {{mask}}"
    begun = "The answer is " if task.limits.answer_prefix else ""
    return f"<user>{_slots(task)}\n\n{instruction}<assistant>{begun}{{mask}}"


def _slots(task: Task) -> str:
    return "{text} {text_pair}" if task.pair else "{text}"


def cues_in(draws: list[str], names: Any, *, blank: bool = False) -> list[str]:
    """Cues in what an LM wrote after texts, those that it wrote most often first.

    A cue ends before a class name, or before `___` where it was asked to write that (`blank`; a
    draw with neither is no answer then). Elsewhere its first words are cues, one, two and three,
    if other draws begin so too: what stands once goes on with the text rather than leading away.
    """
    ends = [re.escape(name.replace("_", " ")) for name in names if name.strip()]
    end = re.compile("|".join([_BLANK, *(rf"\b{name}\b" for name in ends)]), re.IGNORECASE)
    counted: Counter[str] = Counter()
    for draw in draws:
        lead = "\n" if draw.startswith("\n") else " "
        line = next((some for some in draw.splitlines() if some.strip()), "").strip().strip('"“”')
        stop = end.search(line)
        words = (line[: stop.start()] if stop else line).split()
        if stop and 0 < len(words) <= 2 * _MOST_WORDS:
            counted[lead + " ".join(words)] += 2
        elif not stop and not blank:
            for n in range(1, min(len(words), 4)):
                # a sentence that has ended leads nowhere
                if not words[n - 1].endswith((".", "!", "?", ",")):
                    counted[lead + " ".join(words[:n])] += 1
    ranked = sorted(counted.items(), key=lambda entry: (-entry[1], len(entry[0]), entry[0]))
    return [
        cue
        for cue, count in ranked
        if count > 1 and any(map(str.isalpha, cue)) and not set("<{}") & set(cue)
    ]


def instruction_in(draw: str) -> str | None:
    """The instruction in what an LM wrote, or None where there is none."""
    line = next((some for some in draw.splitlines() if some.strip()), "").strip().strip('"“”*')
    line = re.sub(r"^(the )?instruction( was)?:?\s*", "", line, flags=re.IGNORECASE).strip('"“” ')
    words = line.split()
    if not 3 <= len(words) <= _MOST_INSTRUCTION_WORDS or "<" in line:
        return None
    return line if line.endswith((".", "?", "!", ":")) else None


def literal_cue(cue: str) -> str:
    """A cue as a template has it, with the space or new line that it begins with."""
    return cue[0] + literal(cue[1:])


def _context(task: Task, rng: np.random.Generator) -> str:
    """Texts with words and labels behind them, and one text more."""
    *shown, last = _draw(task, rng, _MOST_SHOWN + 1)
    leads = rng.permutation(len(_LEADS))
    parts = [
        f"{_text_of(task.examples[row])}{_LEADS[leads[place % len(leads)]]}"
        f"{task.names[task.y[row]]}\n\n"
        for place, row in enumerate(shown)
    ]
    return "".join(parts) + _text_of(task.examples[last])


def _sentence(task: Task, rng: np.random.Generator) -> RenderedPrompt:
    asked = (
        f"{_labelled(task, rng)}\nWrite one short sentence that could stand after any of these "
        f"texts and ends with its label. Write {_BLANK} in the place of the label, and nothing "
        "but the sentence."
    )
    return RenderedPrompt(messages=(Message("user", asked),))


def _instruction(task: Task, rng: np.random.Generator) -> RenderedPrompt:
    asked = (
        f"{_labelled(task, rng)}\nSomebody wrote these labels because of one instruction. Write "
        "that instruction in one sentence, and nothing else."
    )
    return RenderedPrompt(messages=(Message("user", asked),))


def _labelled(task: Task, rng: np.random.Generator) -> str:
    lines = [
        f"Text: {_text_of(task.examples[row])}\nLabel: {task.names[task.y[row]]}\n"
        for row in _draw(task, rng, _MOST_SHOWN)
    ]
    return "\n".join(lines)


def _draw(task: Task, rng: np.random.Generator, n: int) -> list[int]:
    """Rows of as many classes as there are, short ones rather than long ones."""
    rows: list[int] = []
    for label in rng.permutation(task.n_classes).tolist() * n:
        of_class = np.setdiff1d(np.flatnonzero(task.y == label), rows)
        if len(rows) < n and len(of_class):
            some = rng.choice(of_class, min(3, len(of_class)), replace=False).tolist()
            rows.append(min(some, key=lambda row: len(_text_of(task.examples[row]))))
    return rows


def _text_of(example: Example) -> str:
    return " ".join(" ".join(filter(None, example)).split())[:_LONGEST_TEXT]
