"""Questions: prompts with a closed set of options, asked of a text.

A question is one line in a pool file and stands beside templates. There are three kinds:

    <predicate>The writer asks for a refund.
    <choice>What is this text about?<option>World<option>Sports<option>Business
    <scale>How angry is the writer?<option>not at all<option>somewhat<option>very

A predicate has the options ``yes`` and ``no``; the options of a scale are in ascending order. Where
texts are pairs, the kind is followed by ``pair``, as in ``<predicate pair>``, and for images by
``image``. Language models prefer options by their place; ``reversed``, as in ``<choice reversed>``,
lists them in the opposite order, so that a pool may ask both ways.

An LM that takes questions as they are (`Limits.questions`) gets text and question. Any other LM
gets an instruction with lettered options, and the answer is read from its next token.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from blackbox.errors import PromptError
from blackbox.images import Image
from blackbox.plurals import counted
from blackbox.prompts.inputs import Example, Second
from blackbox.prompts.pieces import literal, literal_text, quoted
from blackbox.prompts.template import Prompt
from blackbox.protocol import (
    NO_TOKEN,
    ClosedQuestion,
    Limits,
    Message,
    RenderedPrompt,
    TokenLogProbs,
    id_of_option,
)

__all__ = ["MAX_LETTERED", "MAX_OPTIONS", "Question", "parse_prompt"]

MAX_OPTIONS = 255
"""Options of a choice, at most."""

MAX_LETTERED = len(string.ascii_uppercase)
"""Options that an LM can be asked about by letters."""

_MAX_LEVELS = 10
_LINE = re.compile(r"<(predicate|choice|scale)( pair| image)?( reversed)?>")
_OPTION = "<option>"
_YES_NO = ("yes", "no")
_MARGIN = 0.5  # nats below the least likely reported token, for a letter that isn't reported
_LEAST = 1e-6  # probability of an option
_AROUND_LETTER = " \t\n(*.:)"


@dataclass(frozen=True)
class Question(Prompt):
    """A question with a closed set of options.

    Parameters
    ----------
    template : str
        The question as a line of a pool file; see the module docstring for its syntax.

    Raises
    ------
    PromptError
        If the line can't be parsed, or a kind has too few or too many options.
    """

    _kind_errors: ClassVar[tuple[str, str]] = (
        "is about pairs of texts but there is one text",
        "is about single texts but the texts are pairs: write <KIND pair>",
    )

    @classmethod
    def of(
        cls,
        kind: str,
        instructions: str,
        options: Iterable[str] = (),
        *,
        about: str = "text",
        is_reversed: bool = False,
    ) -> Question:
        """Return a question of plain texts, whatever characters they have.

        `about` is the kind of input: ``"text"``, ``"pair"`` or ``"image"``.
        """
        of_kind = "" if about == "text" else f" {about}"
        head = f"<{kind}{of_kind}{' reversed' * is_reversed}>"
        parts = [_escaped(instructions), *map(_escaped, options)]
        return cls(head + _OPTION.join(parts))

    def __post_init__(self) -> None:
        if not isinstance(self.template, str) or not _LINE.match(self.template):
            raise PromptError(
                f"{quoted(str(self.template))} is no question; it begins with <predicate>, "
                "<choice> or <scale>"
            )
        n = len(self._parts) - 1
        least, most = {"predicate": (0, 0), "choice": (2, MAX_OPTIONS), "scale": (2, _MAX_LEVELS)}[
            self.kind
        ]
        if not least <= n <= most:
            wanted = (
                "a predicate has none, as they are yes and no"
                if not most
                else f"a {self.kind} has {least} to {most}, each after an <option>"
            )
            raise PromptError(f"{quoted(self.template)} has {counted(n, 'option')}; {wanted}")
        if not all(self._parts):
            raise PromptError(
                f"{quoted(self.template)} has an empty question or option: fill it in"
            )
        folded = {option.casefold() for option in self.options}
        if len(folded) < len(self.options):
            raise PromptError(f"{quoted(self.template)} has an option twice: remove one")

    @cached_property
    def kind(self) -> str:
        """The kind of question: ``"predicate"``, ``"choice"`` or ``"scale"``."""
        return self._head[1]

    @cached_property
    def takes_pair(self) -> bool:
        """Whether the question is about a pair of texts."""
        return self._head[2] == " pair"

    @cached_property
    def takes_image(self) -> bool:
        """Whether the question is about an image, with or without a text."""
        return self._head[2] == " image"

    @cached_property
    def is_reversed(self) -> bool:
        """Whether the options are listed in the opposite order."""
        return bool(self._head[3])

    @cached_property
    def is_chat(self) -> bool:
        """False: a question is written as a conversation only for LMs that have them."""
        return False

    @property
    def has_cue(self) -> bool:
        """False: a question has no mask."""
        return False

    @cached_property
    def instructions(self) -> str:
        """The question that is asked."""
        return self._parts[0]

    @cached_property
    def options(self) -> tuple[str, ...]:
        """The options in the order of the line."""
        return tuple(self._parts[1:]) or _YES_NO

    @cached_property
    def option_ids(self) -> tuple[int, ...]:
        """The token id of each option."""
        return tuple(id_of_option(option) for option in self.options)

    def opposite(self) -> Question:
        """Return the same question with its options in the opposite order."""
        return Question.of(
            self.kind,
            self.instructions,
            self._parts[1:],
            about=self.input_kind,
            is_reversed=not self.is_reversed,
        )

    def is_served(self, limits: Limits) -> bool:
        """Return whether an LM of these limits can be asked."""
        if limits.questions:
            return True
        return len(self.options) <= MAX_LETTERED and super().is_served(limits)

    def render_for(
        self,
        limits: Limits,
        text: str,
        second: Second = None,
        *,
        row: Example | None = None,
    ) -> RenderedPrompt:
        """Return the request with a text, as an LM of these limits takes questions.

        Raises
        ------
        PromptError
            If the question takes a pair and there is none, or the other way round; or an LM that
            answers by letters is asked about more options than there are letters.
        """
        image = second if isinstance(second, Image) else None
        if limits.questions:
            listed = tuple(self._listed)
            asked = ClosedQuestion(self.kind, self.instructions, listed)
            return RenderedPrompt(text=self._state(text, second), question=asked, image=image)
        if limits.chat and not limits.mask:
            asked_text = self._asked(text, second)
            if limits.answer_prefix:
                return RenderedPrompt(
                    messages=(Message("user", asked_text),), answer_prefix="Answer:", image=image
                )
            only = f"{asked_text}\nAnswer with the letter only."
            return RenderedPrompt(messages=(Message("user", only),), image=image)
        return self.render(text, second, masked=limits.mask, row=row)

    def render(
        self,
        text: str,
        second: Second = None,
        *,
        masked: bool = False,
        row: Example | None = None,
    ) -> RenderedPrompt:
        """Return the request with a text, as raw text with lettered options."""
        asked = f"{self._asked(text, second)}\nAnswer:"
        image = second if isinstance(second, Image) else None
        if masked:
            return RenderedPrompt(f"{asked} ", after_mask="", image=image)
        return RenderedPrompt(asked, image=image)

    def read(self, answers: TokenLogProbs) -> TokenLogProbs:
        """Return what answers by letters say of the options, as a distribution over them.

        The tokens of a letter (``A``, `` A``, ``(A``, …) are added up, and the options' shares
        scaled to a sum of 1. A letter that is not among the reported tokens counts as less likely
        than the last of these; where no letter is reported, all options are equally likely.

        Parameters
        ----------
        answers : TokenLogProbs
            The next tokens of n requests of this question.

        Returns
        -------
        TokenLogProbs
            The ids are those of `option_ids`; every row that has an answer has all of them.
        """
        ids, n_options = answers.token_ids, len(self.options)
        place_of = _letters_of(
            {t: answers.token_bytes.get(t, b"") for t in np.unique(ids).tolist()}
        )
        answered = (ids != NO_TOKEN).any(axis=1)
        probabilities = np.exp(answers.log_probs.astype(np.float64))
        listed = np.zeros((len(ids), n_options))
        for token, place in place_of.items():
            if place < n_options:
                listed[:, place] += np.where(ids == token, probabilities, 0.0).sum(axis=1)
        reported = np.where(ids == NO_TOKEN, np.inf, probabilities)
        least = reported.min(axis=1, initial=np.inf) * np.exp(-_MARGIN)
        absent = listed == 0
        rest = np.maximum(1 - probabilities.sum(axis=1), 0) / np.maximum(absent.sum(axis=1), 1)
        unseen = np.where(absent.all(axis=1), 1.0, np.minimum(least, np.maximum(rest, _LEAST)))
        shares = np.maximum(np.where(absent, unseen[:, None], listed), _LEAST)
        rows = [row if known else None for row, known in zip(shares, answered, strict=True)]
        options = [self._listed] * len(rows)
        return TokenLogProbs.of_options(options, rows, answers.row_errors, answers.usage)

    @property  # not cached, as a match can't be pickled
    def _head(self) -> re.Match[str]:
        found = _LINE.match(self.template)
        assert found is not None
        return found

    @cached_property
    def _parts(self) -> list[str]:
        """The question and its options, without escapes."""
        parts = self.template[self._head.end() :].split(_OPTION)
        return [" ".join(literal_text(part, self.template).split()) for part in parts]

    @property
    def _listed(self) -> tuple[str, ...]:
        """The options in the order in which they are listed."""
        return self.options[::-1] if self.is_reversed else self.options

    def _state(self, text: str, second: Second) -> str:
        """Return the text that the question is about; an image stands before it."""
        self.check_kind(second)
        return f"Text 1: {text}\nText 2: {second}" if isinstance(second, str) else text

    def _asked(self, text: str, second: Second) -> str:
        """Return the question with lettered options, below what it is about."""
        state = self._state(text, second)
        only_image = self.takes_image and not state
        return self._lettered() if only_image else f"{state}\n\n{self._lettered()}"

    def _lettered(self) -> str:
        lines = (
            f"{letter}. {option}"
            for letter, option in zip(string.ascii_uppercase, self._listed, strict=False)
        )
        if len(self.options) > MAX_LETTERED:
            raise PromptError(
                f"{quoted(self.template)} has {len(self.options)} options, and an LM that answers "
                f"by letters takes {MAX_LETTERED}: use fewer, or a decision endpoint "
                "(--backend decisions)"
            )
        return "\n".join([self.instructions, *lines])


def parse_prompt(template: str) -> Prompt:
    """Return the prompt that a line of a pool file holds, without its escapes: of either kind.

    Raises
    ------
    PromptError
        If it can't be parsed.
    """
    is_question = isinstance(template, str) and _LINE.match(template)
    return Question(template) if is_question else Prompt(template)


def _letters_of(token_bytes: Mapping[int, bytes]) -> dict[int, int]:
    """Return the place in the alphabet of each token that is a letter.

    A small letter is one only where no capital is reported: ``a`` is a word, and an LM whose
    answers are drawn and counted tells small letters alone.
    """
    names = {
        token: name.decode("utf-8", "replace").strip(_AROUND_LETTER)
        for token, name in token_bytes.items()
    }
    capitals = {
        token: string.ascii_uppercase.index(name)
        for token, name in names.items()
        if len(name) == 1 and name in string.ascii_uppercase
    }
    return capitals or {
        token: string.ascii_lowercase.index(name)
        for token, name in names.items()
        if len(name) == 1 and name in string.ascii_lowercase
    }


def _escaped(text: str) -> str:
    return literal(text).replace(_OPTION, "{<}option>")
