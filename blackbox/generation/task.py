"""A task, and the state of the search for prompts for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import PromptError
from blackbox.plurals import counted
from blackbox.prompts.inputs import Example, input_kind
from blackbox.prompts.pieces import literal
from blackbox.prompts.template import Prompt
from blackbox.prompts.truncation import CountTokens, holds, size_of
from blackbox.protocol import Limits, RenderedPrompt

__all__ = ["SearchState", "Task", "Writer", "join_names", "no_fitting_prompt"]

_MAX_LISTED = 20  # class names that a prompt lists
_SEPARATORS = {"ar": "، ", "zh": "、"}  # between them, where that is no comma


@dataclass(frozen=True)
class Task:
    """Training rows and what is known of them, and nothing of other rows.

    Parameters
    ----------
    examples : sequence of Example
        n texts, or pairs of texts.
    y : int array of shape (n,)
        Their classes, from 0.
    sample_weight : float array of shape (n,)
        Their weights.
    names : sequence of str
        A name for each class: the labels, or what the user calls them.
    description : str or None
        One line that says what is asked of a text.
    limits : Limits
        What the LM serves.
    count_tokens : callable, optional
        Counts the tokens of requests; without it a byte counts as one.
    groups : int array of shape (n,), optional
        The groups of the rows; see `blackbox.boosting.splits`.
    bank : sequence of Prompt, default=()
        Prompts that served other tasks, which come first among the candidates.
    languages : sequence of str, default=("en",)
        Languages of the built-in prompts among the candidates.
    """

    examples: Sequence[Example]
    y: NDArray[np.intp]
    sample_weight: NDArray[np.float64]
    names: Sequence[str]
    description: str | None
    limits: Limits
    count_tokens: CountTokens | None = None
    groups: NDArray[np.intp] | None = None
    bank: Sequence[Prompt] = ()
    languages: Sequence[str] = ("en",)

    @property
    def n_classes(self) -> int:
        """The number of classes, also where all rows of one were refused."""
        return len(self.names)

    @property
    def kind(self) -> str:
        """The kind of its rows: ``"text"``, ``"pair"`` or ``"image"``."""
        return input_kind(self.examples[0][1])

    @property
    def readable_names(self) -> list[str] | None:
        """The class names, where all of them are words and differ in more than their case."""
        words = [" ".join(name.replace("_", " ").split()) for name in self.names]
        distinct = len({name.casefold() for name in words}) == len(words)
        return words if distinct and all(any(map(str.isalpha, name)) for name in words) else None

    @property
    def listed_names(self) -> list[str] | None:
        """The class names, where they are words and few enough to stand in a prompt."""
        words = [name.replace("_", " ").strip() for name in self.names]
        readable = all(any(map(str.isalpha, name)) for name in words)
        return words if readable and len(words) <= _MAX_LISTED else None

    def serves(self, prompt: Prompt) -> bool:
        """Whether a prompt suits the rows and the LM."""
        return prompt.input_kind == self.kind and prompt.is_served(self.limits)

    def size(self, prompt: Prompt) -> int:
        """Return the tokens of a prompt without a text, whichever of its examples give way."""
        return size_of(prompt, self.limits, self.count_tokens)

    def fits(self, prompt: Prompt) -> bool:
        """Whether the LM's context holds a prompt and the token that is predicted."""
        return holds(prompt, self.limits, self.count_tokens)


@dataclass(frozen=True)
class SearchState:
    """The candidates and rows that a source may improve on.

    Parameters
    ----------
    best : list of Prompt
        Prompts that were tried, in the order of selection; none at the beginning.
    typical_rows : list of list of int
        The rows of each class that were tried, the most typical first.
    """

    best: list[Prompt] = field(default_factory=list)
    typical_rows: list[list[int]] = field(default_factory=list)


class Writer(Protocol):
    """An LM that writes.

    Called with requests, the number of draws per request and the most tokens of a draw. Returns the
    draws of the first requests, as far as its budget lasts; requests that it doesn't serve are left
    out.
    """

    @property
    def limits(self) -> Limits:
        """The requests that it serves."""

    def __call__(
        self, requests: Sequence[RenderedPrompt], n: int, max_tokens: int
    ) -> list[list[str]]:
        """Return n texts per request."""


def no_fitting_prompt(task: Task) -> PromptError:
    """Return the error for an LM whose context holds no candidate."""
    return PromptError(
        f"no prompt fits the LM's context of {counted(task.limits.context_length, 'token')}: "
        "shorten the task and the names of the classes"
    )


def join_names(names: Sequence[str], language: str = "en") -> str:
    """Return class names as a sentence lists them, for a template in a language."""
    shown = [literal(name.replace("_", " ").strip()) for name in names]
    if language != "en":
        return _SEPARATORS.get(language, ", ").join(shown)
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " or " + shown[-1]
