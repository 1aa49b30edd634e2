"""Prompt templates: each turns a text into a request for one forward pass.

A template has a slot `{text}` for the text (and `{text_pair}` for pairs) and one slot `{mask}` for
the token that the LM predicts. With `{image}` it is for images, with or without a text. Literal
braces are written `{{` and `}}`. A template that begins with `<user>` or `<system>` is a
conversation and ends with the answer that the LM continues (`{<}user>` is literal text and not a
turn):

    {text} It was {mask}
    <user>What is this about?\\n{text}<assistant>This is about {mask}
    <user>{image}What is in this picture?<assistant>This is a picture of a {mask}

A labelled example (demonstration) is written with a spare one, which replaces it where the text is
the example itself: `{example: A fine film || What a joy} It was great`; for pairs
`{example_pair: …}` follows with the second texts.

`{nearest: K}` at the beginning of raw text stands for the K labelled texts of each class that are
nearest to the text, the nearest last, each written as the rest of the template with its label:

    {nearest: 1}{text}\\nTopic: {mask}

They differ from text to text, and are given to a prompt by `Prompt.showing`.

`blackbox.prompts.question` has prompts of another kind, questions with a closed set of options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

from blackbox.errors import PromptError
from blackbox.images import Image
from blackbox.prompts.inputs import Example, Labelled, Second, sample_second
from blackbox.prompts.pieces import LITERAL, ROLES, SLOTS, Piece, pieces_of, quoted
from blackbox.protocol import Limits, Message, RenderedPrompt

__all__ = ["Prompt"]

_MAX_REPEATS = 8  # places of one text: a longer prompt than the text by that factor at most


@dataclass(frozen=True)
class Prompt:
    """A prompt template.

    Parameters
    ----------
    template : str
        The template; see the module docstring for its syntax.
    shown : mapping of Example to sequence of Labelled
        The labelled texts that `{nearest: K}` stands for, by the text that is classified; no part
        of the prompt's equality. See `showing`.

    Raises
    ------
    PromptError
        If a brace is neither a known slot nor doubled, `{text}` or `{mask}` is missing, `{mask}`
        or `{image}` occurs twice or a text more than eight times, a conversation has its turns in
        another order than system, user, assistant, `{nearest: K}` is not the beginning of raw text,
        or `{image}` stands beside labelled examples or outside of what the user says.
    """

    template: str
    shown: Mapping[Example, Sequence[Labelled]] = field(
        default_factory=dict, compare=False, repr=False
    )

    _kind_errors: ClassVar[tuple[str, str]] = (
        "takes {text_pair} but there is one text",
        "has no {text_pair} but the texts are pairs",
    )

    def __post_init__(self) -> None:
        if not isinstance(self.template, str):
            raise PromptError(f"a prompt is a str, got {type(self.template).__name__}")
        slots = [piece.kind for _, piece in self._turn_pieces]
        if "{text}" not in slots and "{image}" not in slots:
            raise PromptError(
                f"{quoted(self.template)} has no {{text}}, the place of the text: add it"
            )
        if "{image}" in slots:
            self._check_image(slots)
        if slots.count("{mask}") != 1:
            raise PromptError(
                f"{quoted(self.template)} needs one {{mask}}, the place of the predicted token; "
                f"it has {slots.count('{mask}')}"
            )
        most = max(slots.count("{text}"), slots.count("{text_pair}"))
        if most > _MAX_REPEATS:
            raise PromptError(
                f"{quoted(self.template)} has {most} places for one text; {_MAX_REPEATS} are the "
                "most, as each repeats the whole text"
            )
        if "example_pair" in slots and slots.count("example_pair") != slots.count("example"):
            raise PromptError(
                f"{quoted(self.template)}: each {{example_pair}} follows its {{example}}"
            )
        if slots.count("nearest") and (
            self.is_chat
            or slots.count("nearest") > 1
            or slots[0] != "nearest"
            or "example" in slots
        ):
            raise PromptError(
                f"{quoted(self.template)}: {{nearest: K}} stands once, at the beginning of raw "
                "text, and without other examples"
            )
        if self.is_chat:
            self._check_turns()

    @cached_property
    def is_chat(self) -> bool:
        """Whether the prompt is a conversation."""
        return self.template.startswith(("<user>", "<system>"))

    @cached_property
    def takes_pair(self) -> bool:
        """Whether the prompt has a slot for the second text of a pair."""
        return any(piece.kind == "{text_pair}" for _, piece in self._turn_pieces)

    @cached_property
    def takes_image(self) -> bool:
        """Whether the prompt has a slot for an image."""
        return any(piece.kind == "{image}" for _, piece in self._turn_pieces)

    @property
    def input_kind(self) -> str:
        """The kind of input that the prompt takes: ``"text"``, ``"pair"`` or ``"image"``."""
        return "image" if self.takes_image else "pair" if self.takes_pair else "text"

    @property
    def has_examples(self) -> bool:
        """Whether the prompt contains labelled examples."""
        return bool(self._example_places)

    @cached_property
    def nearest(self) -> int:
        """The number of labelled texts of each class that `{nearest: K}` shows; 0 without it."""
        return next((int(p.words[0]) for _, p in self._turn_pieces if p.kind == "nearest"), 0)

    def showing(self, shown: Mapping[Example, Sequence[Labelled]]) -> Prompt:
        """Return the prompt with the labelled texts that stand before each text, in order.

        Parameters
        ----------
        shown : mapping of Example to sequence of Labelled
            By the text that is classified. None are shown before a text that it doesn't have.
        """
        return replace(self, shown=shown)

    @property
    def has_cue(self) -> bool:
        """Whether words before the mask ask for the token, with no labelled examples beside."""
        return not self.has_examples

    def render(
        self,
        text: str,
        second: Second = None,
        *,
        masked: bool = False,
        row: Example | None = None,
    ) -> RenderedPrompt:
        """Return the request with a text, and what stands beside it, filled in.

        For a causal LM everything after `{mask}` is left out, and so are spaces before it: the next
        token starts with its own. For a masked LM both sides of the mask are kept. An example that
        is the text itself is replaced by its spare; `row` is the full text where it was truncated.

        Raises
        ------
        PromptError
            If the template takes a pair or an image and there is none (or the other way round), a
            slot is after the mask of a causal LM, or the template is a conversation and the LM is
            masked.
        """
        if self._around_text and second is None and not masked:
            return RenderedPrompt.of_text(text.join(self._around_text).rstrip(" \t"))
        self.check_kind(second)
        if masked and self.is_chat:
            raise PromptError(
                f"{quoted(self.template)} is a conversation: a masked LM needs a raw-text template"
            )
        parts: dict[str, list[str]] = {}
        after_mask = ""
        after = False
        row = row or (text, second)
        spares = self._spares(row)
        image_at = 0
        slots = {"{text}": text, "{text_pair}": second if isinstance(second, str) else ""}
        for place, (role, piece) in enumerate(self._turn_pieces):
            kind = piece.kind
            if kind == LITERAL:
                filled = piece.words[0]
            elif kind == "{mask}":
                after = True
                continue
            elif after and not masked and kind in SLOTS:
                raise PromptError(
                    f"{quoted(self.template)}: {kind} comes after {{mask}}, where a causal "
                    "LM never sees it"
                )
            elif kind == "{image}":
                image_at = sum(map(len, parts.get(role, ())))
                continue
            elif kind == "nearest":
                filled = "".join(map(self._labelled, self.shown.get(row, ())))
            else:
                filled = slots[kind] if kind in slots else piece.words[place in spares]
            if after:
                after_mask += filled
            else:
                parts.setdefault(role, []).append(filled)
        turns = {role: "".join(of_role) for role, of_role in parts.items()}
        if masked:
            return RenderedPrompt(text=turns.get("", ""), after_mask=after_mask)
        if isinstance(second, Image):
            return self._with_image(turns, second, image_at)
        if not self.is_chat:
            return RenderedPrompt.of_text(turns.get("", "").rstrip(" \t"))
        return RenderedPrompt.of_chat(*_conversation(turns))

    def render_for(
        self,
        limits: Limits,
        text: str,
        second: Second = None,
        *,
        row: Example | None = None,
    ) -> RenderedPrompt:
        """Return the request with a text, as an LM of these limits takes it; see `render`."""
        return self.render(text, second, masked=limits.mask, row=row)

    def is_served(self, limits: Limits) -> bool:
        """Return whether an LM of these limits serves the prompt."""
        if limits.mask and (self.is_chat or self.takes_image):
            return False
        return limits.serves(self.render_for(limits, "a", sample_second(self.input_kind)))

    def check_kind(self, second: Second) -> None:
        """Raise if the prompt is for another kind of input."""
        if isinstance(second, Image):
            if not self.takes_image:
                raise PromptError(f"{quoted(self.template)} has no {{image}} but there is one")
        elif self.takes_image:
            raise PromptError(f"{quoted(self.template)} takes an image but there is none")
        elif self.takes_pair != (second is not None):
            one, pairs = self._kind_errors
            raise PromptError(f"{quoted(self.template)} {one if self.takes_pair else pairs}")

    def bare(self, limits: Limits) -> list[RenderedPrompt]:
        """Return the requests without a text: with all examples, and with each replaced."""
        pair = sample_second(self.input_kind)
        rows: list[Example] = [("", pair)]
        for places in self._example_places:
            first, *second = (self._turn_pieces[place][1].words[0] for place in places)
            rows.append((first, second[0] if second else pair))
        return [self.render_for(limits, "", pair, row=row) for row in rows]

    def _with_image(self, turns: dict[str, str], image: Image, at: int) -> RenderedPrompt:
        """Return the request of what is said, with an image after `at` characters of it."""
        if not self.is_chat:
            raw = turns.get("", "").rstrip(" \t")
            return RenderedPrompt(text=raw, image=image, image_at=min(at, len(raw)))
        said = turns.setdefault("user", "")
        messages, answer = _conversation(turns)
        at = min(max(at - len(said) + len(said.lstrip()), 0), len(messages[-1].content))
        return RenderedPrompt(messages=messages, answer_prefix=answer, image=image, image_at=at)

    def _labelled(self, labelled: Labelled) -> str:
        """Return a labelled text as it stands before the text, which follows after a blank line."""
        (text, pair), label = labelled
        second = pair if isinstance(pair, str) else ""
        slots = {"{text}": text, "{text_pair}": second, "{mask}": label, "nearest": ""}
        written = (slots.get(p.kind, p.words[0] if p.words else "") for _, p in self._turn_pieces)
        return "".join(written).strip() + "\n\n"

    def _spares(self, row: Example) -> set[int]:
        """Return the places of the examples that are this row itself."""
        if not self._example_places:
            return set()
        # a single text is compared with the first text alone, and both texts give way together
        texts = [_folded(text) for text in row if isinstance(text, str)]
        spares: set[int] = set()
        for some in self._example_places:
            theirs = [_folded(self._turn_pieces[place][1].words[0]) for place in some]
            if all(one == other for one, other in zip(theirs, texts, strict=False)):
                spares.update(some)
        return spares

    @cached_property
    def _example_places(self) -> list[tuple[int, ...]]:
        """The places of each example: one, or two for a pair."""
        places: dict[str, list[int]] = {}
        for place, (_, piece) in enumerate(self._turn_pieces):
            places.setdefault(piece.kind, []).append(place)
        firsts, seconds = places.get("example", []), places.get("example_pair")
        if seconds:
            return list(zip(firsts, seconds, strict=True))
        return [(place,) for place in firsts]

    @cached_property
    def _around_text(self) -> list[str]:
        """The literal texts between which a single text stands, before the mask of a causal LM.

        Empty where there is more to fill in.
        """
        kinds = [piece.kind for _, piece in self._turn_pieces]
        before, after = kinds[: kinds.index("{mask}")], kinds[kinds.index("{mask}") :]
        if (
            self.is_chat
            or {"{text}", "{text_pair}", "{image}"} & {*after}
            or not {*before} <= {"{text}", LITERAL}
        ):
            return []
        around = [""]
        for _, piece in self._turn_pieces[: len(before)]:
            if piece.kind == LITERAL:
                around[-1] += piece.words[0]
            else:
                around.append("")
        return around

    @cached_property
    def _turn_pieces(self) -> list[tuple[str, Piece]]:
        """The pieces with their roles, in order."""
        if not self.is_chat:
            return [("", piece) for piece in pieces_of(self.template)]
        marks = list(ROLES.finditer(self.template))
        ends = [mark.start() for mark in marks[1:]] + [len(self.template)]
        return [
            (mark[1], piece)
            for mark, end in zip(marks, ends, strict=True)
            for piece in pieces_of(self.template[mark.end() : end], self.template, mark.end())
        ]

    def _check_turns(self) -> None:
        roles = [mark[1] for mark in ROLES.finditer(self.template)]
        if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
            raise PromptError(
                f"{quoted(self.template)}: turns must be <user>…<assistant>…, with or without "
                f"a <system> turn first; they are {' '.join(f'<{role}>' for role in roles)}"
            )
        if not any(r == "assistant" and piece.kind == "{mask}" for r, piece in self._turn_pieces):
            raise PromptError(
                f"{quoted(self.template)}: {{mask}} belongs into the <assistant> turn"
            )

    def _check_image(self, slots: Sequence[str]) -> None:
        if slots.count("{image}") > 1:
            raise PromptError(f"{quoted(self.template)} has {{image}} twice: an input has one")
        for kind in ("{text_pair}", "example", "nearest"):
            if kind in slots:
                raise PromptError(
                    f"{quoted(self.template)}: {{image}} stands without pairs and labelled examples"
                )
        if self.is_chat and any(
            role != "user" and piece.kind == "{image}" for role, piece in self._turn_pieces
        ):
            raise PromptError(f"{quoted(self.template)}: {{image}} belongs into the <user> turn")

    def __str__(self) -> str:
        return self.template


def _conversation(turns: Mapping[str, str]) -> tuple[tuple[Message, ...], str]:
    """Return the messages of a conversation, and the beginning of the answer."""
    said = [Message(role, turns[role].strip()) for role in ("system", "user") if role in turns]
    return (*said,), turns.get("assistant", "").strip(" \t")


def _folded(text: str | None) -> str:
    return " ".join((text or "").split())
