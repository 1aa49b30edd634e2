"""Templates and predicates that an LM writes, given a few labelled training rows.

A causal LM continues texts that are each followed by a few words and the label: what it writes
before a label is a cue. This is the idea of Gao, Fisch and Chen, "Making pre-trained language
models better few-shot learners" (ACL 2021), where T5 fills in the cue. An LM that converses is also
asked for such a sentence, and for the instruction that leads from the texts to the labels, after
Zhou et al., "Large language models are human-level prompt engineers" (ICLR 2023); and for a
statement that is true of some of the texts only, which becomes a predicate.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest

import numpy as np

from blackbox.generation.task import SearchState, Task, Writer
from blackbox.prompts.inputs import Example, texts_of
from blackbox.prompts.pieces import literal
from blackbox.prompts.question import Question
from blackbox.prompts.template import Prompt
from blackbox.protocol import Message, RenderedPrompt

__all__ = ["Written", "cues_in", "instruction_in", "predicate_in"]

_CONTEXTS, _DRAWS = 8, 3  # of cues
_CUE_TOKENS = 8
_ASKED, _ASKED_DRAWS, _ASKED_TOKENS = 3, 3, 28
_MAX_SHOWN = 6  # labelled texts in one context
_MAX_TEXT = 300  # characters of a text that is shown
_MAX_WORDS, _MAX_INSTRUCTION_WORDS, _MAX_STATEMENT_WORDS = 6, 30, 20
_ABOUT_TEXT = ("the text", "the writer", "it ", "text 1", "text 2", "both texts", "the texts")
_LEADS = (" It is ", "\nTopic: ", " This is about ", "\nAnswer: ", " All in all, ", "\nLabel: ")
_BLANK = "___"


class Written:
    """Cues, instructions and predicates that the LM writes."""

    improves = False

    def propose(
        self, task: Task, state: SearchState, write: Writer, rng: np.random.Generator
    ) -> Iterator[Prompt]:
        """See `blackbox.generation.sources.Source`."""
        if task.kind == "image":
            return  # an LM that writes is shown texts
        texts = {text for example in task.examples for text in texts_of(example)}
        templates: list[Prompt] = []
        if not task.limits.questions:
            templates = self._templates(task, write, rng, texts)
        predicates: list[Question] = []
        if write.limits.chat:
            requests = [_statement(task, rng) for _ in range(_ASKED)]
            draws = _flat(write(requests, _ASKED_DRAWS, _ASKED_TOKENS))
            said = [some for draw in draws if (some := predicate_in(draw)) and some not in texts]
            predicates = [Question.of("predicate", some, about=task.kind) for some in said]
        # some of each, as few candidates of a source are tried
        mixed = chain.from_iterable(zip_longest(templates, dict.fromkeys(predicates)))
        yield from (prompt for prompt in mixed if prompt is not None and task.serves(prompt))

    @staticmethod
    def _templates(
        task: Task, write: Writer, rng: np.random.Generator, texts: set[str]
    ) -> list[Prompt]:
        """Return templates with cues and instructions that the LM writes."""
        cues: list[str] = []
        if write.limits.raw_text and not write.limits.mask:
            requests = [RenderedPrompt(text=_context(task, rng)) for _ in range(_CONTEXTS)]
            cues += cues_in(_flat(write(requests, _DRAWS, _CUE_TOKENS)), task.names)
        instructions: list[str] = []
        if write.limits.chat:
            requests = [_sentence(task, rng) for _ in range(_ASKED)]
            for draw in _flat(write(requests, _ASKED_DRAWS, _ASKED_TOKENS)):
                cues += cues_in([draw], task.names, blank=True)
            requests = [_instruction(task, rng) for _ in range(_ASKED)]
            draws = _flat(write(requests, _ASKED_DRAWS, _ASKED_TOKENS))
            instructions = [
                found for draw in draws if (found := instruction_in(draw)) and found not in texts
            ]
        templates = [_with_cue(task, _literal_cue(cue)) for cue in cues]
        templates += [_with_instruction(task, literal(some)) for some in instructions]
        return [Prompt(template) for template in dict.fromkeys(templates)]


def _flat(draws: list[list[str]]) -> list[str]:
    return [draw for of_request in draws for draw in of_request]


def _with_cue(task: Task, cue: str) -> str:
    """Return the template of a cue for the LM that reads, whichever one writes."""
    if task.limits.raw_text or task.limits.mask:
        return f"{_slots(task)}{cue} {{mask}}"
    return f"<user>{_slots(task)}\n\nComplete with one word:{cue}<assistant>{{mask}}"


def _with_instruction(task: Task, instruction: str) -> str:
    """Return the template of an instruction for the LM that reads."""
    if task.limits.mask or not task.limits.chat:
        return f"{_slots(task)}\n{instruction} {{mask}}"
    begun = "The answer is " if task.limits.answer_prefix else ""
    return f"<user>{_slots(task)}\n\n{instruction}<assistant>{begun}{{mask}}"


def _slots(task: Task) -> str:
    return "{text} {text_pair}" if task.kind == "pair" else "{text}"


def cues_in(draws: list[str], names: Sequence[str], *, blank: bool = False) -> list[str]:
    """Return the cues in draws of an LM, the most frequent first.

    A cue ends before a class name, or before `___` where the LM was asked to write that (`blank`; a
    draw with neither is ignored then). Otherwise the first one, two and three words are cues, if
    other draws begin with them too: words that occur once continue the text.
    """
    ends = [re.escape(name.replace("_", " ")) for name in names if name.strip()]
    end = re.compile("|".join([_BLANK, *(rf"\b{name}\b" for name in ends)]), re.IGNORECASE)
    counted: Counter[str] = Counter()
    for draw in draws:
        lead = "\n" if draw.startswith("\n") else " "
        line = next((some for some in draw.splitlines() if some.strip()), "").strip().strip('"“”')
        stop = end.search(line)
        words = (line[: stop.start()] if stop else line).split()
        if stop and 0 < len(words) <= 2 * _MAX_WORDS:
            counted[lead + " ".join(words)] += 2
        elif not stop and not blank:
            for n in range(1, min(len(words), 4)):
                # a cue doesn't end a sentence
                if not words[n - 1].endswith((".", "!", "?", ",")):
                    counted[lead + " ".join(words[:n])] += 1
    ranked = sorted(counted.items(), key=lambda entry: (-entry[1], len(entry[0]), entry[0]))
    return [
        cue
        for cue, count in ranked
        if count > 1 and any(map(str.isalpha, cue)) and not set("<{}") & set(cue)
    ]


def instruction_in(draw: str) -> str | None:
    """Return the instruction in a draw of an LM, or None where there is none."""
    line = next((some for some in draw.splitlines() if some.strip()), "").strip().strip('"“”*')
    line = re.sub(r"^(the )?instruction( was)?:?\s*", "", line, flags=re.IGNORECASE).strip('"“” ')
    words = line.split()
    if not 3 <= len(words) <= _MAX_INSTRUCTION_WORDS or "<" in line:
        return None
    return line if line.endswith((".", "?", "!", ":")) else None


def predicate_in(draw: str) -> str | None:
    """Return the statement about a text in a draw of an LM, or None where there is none."""
    line = next((some for some in draw.splitlines() if some.strip()), "")
    line = re.sub(r"^[\s\-*•\d.)]*(statement:)?\s*", "", line, flags=re.IGNORECASE)
    line = " ".join(line.strip('"“”* ').split())
    if not 3 <= len(line.split()) <= _MAX_STATEMENT_WORDS or not line.endswith("."):
        return None
    begins = line.casefold().startswith(_ABOUT_TEXT)
    return line if begins and not set("<{}") & set(line) else None


def _literal_cue(cue: str) -> str:
    """Return a cue as part of a template, with its leading space or new line."""
    return cue[0] + literal(cue[1:])


def _context(task: Task, rng: np.random.Generator) -> str:
    """Return labelled texts and one text more, for the LM to continue."""
    *shown, last = _draw(task, rng, _MAX_SHOWN + 1)
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


def _statement(task: Task, rng: np.random.Generator) -> RenderedPrompt:
    asked = (
        f"{_labelled(task, rng)}\nWrite one short statement that is true of some of these texts "
        "and false of the others, and helps to tell their labels apart, such as: The writer asks "
        "for a date. Begin with The text or The writer, name no label, and write nothing but the "
        "statement."
    )
    return RenderedPrompt(messages=(Message("user", asked),))


def _labelled(task: Task, rng: np.random.Generator) -> str:
    lines = [
        f"Text: {_text_of(task.examples[row])}\nLabel: {task.names[task.y[row]]}\n"
        for row in _draw(task, rng, _MAX_SHOWN)
    ]
    return "\n".join(lines)


def _draw(task: Task, rng: np.random.Generator, n: int) -> list[int]:
    """Draw n rows of as many classes as there are, each of another group, short ones first."""
    groups = np.arange(len(task.y)) if task.groups is None else task.groups
    rows: list[int] = []
    for label in rng.permutation(task.n_classes).tolist() * n:
        of_class = np.flatnonzero((task.y == label) & ~np.isin(groups, groups[rows]))
        if len(rows) < n and len(of_class):
            some = rng.choice(of_class, min(3, len(of_class)), replace=False).tolist()
            rows.append(min(some, key=lambda row: len(_text_of(task.examples[row]))))
    return rows


def _text_of(example: Example) -> str:
    return " ".join(" ".join(texts_of(example)).split())[:_MAX_TEXT]
