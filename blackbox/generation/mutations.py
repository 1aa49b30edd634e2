"""Mutations of the best prompts so far: words dropped, swapped or added, and paraphrases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest

import numpy as np

from blackbox.errors import PromptError
from blackbox.generation.task import SearchState, Task, Writer
from blackbox.prompts.pieces import literal
from blackbox.prompts.template import Prompt
from blackbox.protocol import Message, RenderedPrompt

__all__ = ["Mutations"]

_PARENTS = 8
_PARAPHRASED, _DRAWS, _TOKENS = 4, 2, 16
_MAX_WORDS = 12
_CUE = re.compile(
    r"(?P<before>.*<assistant>|.*\{(?:text|text_pair|image)\})(?P<cue>.*)\{mask\}", re.DOTALL
)
_ENDINGS = ("a", "about", "the", "very", "not")


class Mutations:
    """Variants of the best prompts, each prompt in turn."""

    improves = True

    def propose(
        self, task: Task, state: SearchState, write: Writer, rng: np.random.Generator
    ) -> Iterator[Prompt]:
        """See `blackbox.generation.sources.Source`."""
        parents = [prompt for prompt in state.best if prompt.has_cue][:_PARENTS]
        cues = [cue for parent in parents if (cue := _parts(parent)[1])]
        variants = [
            [*_paraphrases(parent, write)] * (number < _PARAPHRASED) + _variants(parent, cues, rng)
            for number, parent in enumerate(parents)
        ]
        for of_each in zip_longest(*variants):
            for template in of_each:
                prompt = _parsed(template)
                if prompt is not None and task.serves(prompt):
                    yield prompt


def _variants(parent: Prompt, cues: list[str], rng: np.random.Generator) -> list[str]:
    """Return templates that differ from a prompt in its cue, in a random order."""
    before, cue, behind = _parts(parent)
    words = cue.split()
    lead = re.match(r"\s*", cue)
    space = lead[0] if lead else ""
    made: list[str] = []
    if before.endswith("<assistant>"):
        made += ["", *(" " + other.strip() for other in cues if "\n" not in other.strip())]
    else:
        swapped = "\n" if space == " " else " "
        made += [swapped + cue.strip(), "\n\n" + cue.strip()]
        made += [space + other.strip() for other in cues if other != cue]
    if words:
        ended = words[-1].rstrip(":")
        made += [space + " ".join(words[:n] + words[n + 1 :]) for n in range(len(words))]
        made += [space + " ".join(words[: len(words) // 2]), space + " ".join(words[-2:])]
        if words[-1].endswith(":"):
            made += [space + " ".join([*words[:-1], ended, "is"])]
        else:
            made += [space + " ".join([*words, more]) for more in _ENDINGS if more != ended]
    chosen = [made[number] for number in rng.permutation(len(made))]
    return [f"{before}{other.rstrip()} {{mask}}{behind}" for other in dict.fromkeys(chosen)]


def _paraphrases(parent: Prompt, write: Writer) -> Iterator[str]:
    """Yield paraphrases of the cue by an LM that converses."""
    before, cue, behind = _parts(parent)
    if not (write.limits.chat and cue.strip()):
        return
    asked = f"Say this in other words, as short, and nothing else: {cue.strip()}"
    request = RenderedPrompt(messages=(Message("user", asked),))
    for draw in (draw for of_one in write([request], _DRAWS, _TOKENS) for draw in of_one):
        words = draw.strip().split("\n")[0].strip('"“”.').split()
        if 0 < len(words) <= _MAX_WORDS and "<" not in draw:
            space = "\n" if cue.startswith("\n") else " "
            yield f"{before}{space}{literal(' '.join(words))} {{mask}}{behind}"


def _parts(prompt: Prompt) -> tuple[str, str, str]:
    """Return the template before the cue, the cue, and the template behind the mask."""
    found = _CUE.match(prompt.template)
    if found is None:  # the text stands behind the mask, for a masked LM
        before, behind = prompt.template.split("{mask}", 1)
        return "", before, behind
    return found["before"], found["cue"], prompt.template[found.end() :]


def _parsed(template: str | None) -> Prompt | None:
    try:
        return Prompt(template) if template else None
    except PromptError:  # a text's place may have gone with a word
        return None
