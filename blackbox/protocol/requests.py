"""Requests for one forward pass: prompts with their texts filled in."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from blackbox.images import Image

_FRAME_BYTES, _OPTION_BYTES = 80, 16  # what a request adds to a question, and to each option


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is ``"system"``, ``"user"`` or ``"assistant"``."""

    role: str
    content: str


@dataclass(frozen=True)
class ClosedQuestion:
    """A question with a closed set of options, for an LM that takes questions as they are.

    Parameters
    ----------
    kind : str
        ``"predicate"`` (yes or no), ``"choice"``, or ``"scale"``, whose options are ordered.
    instructions : str
        What is asked.
    options : tuple of str
        The options, in the order in which they are listed.
    """

    kind: str
    instructions: str
    options: tuple[str, ...]

    @property
    def words(self) -> str:
        """The question and its options as one text."""
        return "\n".join([self.instructions, *self.options])

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of the question in a request, an upper bound for its tokens."""
        return _n_bytes(self.words) + _FRAME_BYTES + _OPTION_BYTES * len(self.options)


@dataclass(frozen=True)
class RenderedPrompt:
    """A request for one forward pass: a prompt with its text filled in.

    Parameters
    ----------
    text : str or None
        Raw text that the LM continues. None for a chat.
    messages : tuple of Message
        The conversation, for a chat; empty for raw text.
    answer_prefix : str
        Beginning of the assistant's answer, for a chat; the LM continues it.
    after_mask : str or None
        None for a causal LM. For a masked LM the text after the masked token; the backend puts its
        own mask token between `text` and this.
    question : ClosedQuestion or None
        A question about `text`, for an LM that takes questions as they are (`Limits.questions`).
    choices : tuple of str
        The only texts that `generate` should write; a backend may hold the LM to them.
    image : Image or None
        An image, for an LM that takes images (`Limits.images`).
    image_at : int
        Where it stands: the number of characters of `text`, or of the user's message, before it.
    """

    text: str | None = None
    messages: tuple[Message, ...] = ()
    answer_prefix: str = ""
    after_mask: str | None = None
    question: ClosedQuestion | None = None
    choices: tuple[str, ...] = ()
    image: Image | None = None
    image_at: int = 0

    @classmethod
    def of_text(cls, text: str) -> RenderedPrompt:
        """Return the request of raw text alone, in a fraction of the time that the class takes.

        Only the text is set: the other fields are read from the class, which has their defaults.
        """
        prompt = object.__new__(cls)
        prompt.__dict__["text"] = text
        return prompt

    @classmethod
    def of_chat(cls, messages: tuple[Message, ...], answer_prefix: str) -> RenderedPrompt:
        """Return the request of a conversation alone, as `of_text` does."""
        prompt = object.__new__(cls)
        prompt.__dict__.update(messages=messages, answer_prefix=answer_prefix)
        return prompt

    @property
    def masked(self) -> bool:
        """Whether the prompt is for a masked LM."""
        return self.after_mask is not None

    def as_dict(self) -> dict[str, Any]:
        """Return the request as JSON data."""
        data: dict[str, Any] = {
            "text": self.text,
            "messages": [{"role": m.role, "content": m.content} for m in self.messages],
            "answer_prefix": self.answer_prefix,
            "after_mask": self.after_mask,
        }
        if self.question is not None:  # without one, a request has the digest it always had
            data["question"] = asdict(self.question) | {"options": list(self.question.options)}
        if self.choices:
            data["choices"] = list(self.choices)
        if self.image is not None:
            data["image"] = {"at": self.image_at, "digest": self.image.digest}
        return data

    def around_image(self, text: str) -> tuple[str, str]:
        """Return `text`, the one in which the image stands, before and after it."""
        return text[: self.image_at], text[self.image_at :]

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of all text: an upper bound for its tokens of byte-level tokenizers."""
        total = _n_bytes(self.text or "")
        if self.messages or self.after_mask or self.answer_prefix:  # few requests have one
            parts = (self.answer_prefix, self.after_mask, *(m.content for m in self.messages))
            total += sum(_n_bytes(part) for part in parts if part)
        return total + (self.question.n_bytes if self.question else 0)


def _n_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
