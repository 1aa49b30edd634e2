"""The tokenizer and chat template of a prepared language model.

Byte-level BPE by the `tokenizers` library. It knows no control tokens, so none is read in a text;
those of a chat template are put in by their ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from backends.byte_level import bytes_of_piece
from backends.control_tokens import ControlTokens
from blackbox.errors import BackendError, MissingDependencyError
from blackbox.protocol import RenderedPrompt

__all__ = ["OrtTokenizer"]


class OrtTokenizer:
    """Token ids of prompts, and the bytes of tokens.

    Parameters
    ----------
    vocabulary : str
        JSON of pieces, merges, ids of control tokens, of the beginning and end of a text, and the
        chat template, as `backends.ort.llama` writes it.

    Attributes
    ----------
    start_piece : str
        The document start that is put before raw text.
    end_token_id : int or None
        The token that ends a text.
    """

    def __init__(self, vocabulary: str) -> None:
        known: dict[str, Any] = json.loads(vocabulary)
        self._pieces: list[str] = known["pieces"]
        self._control = {self._pieces[token]: token for token in known["control"]}
        self._controls = ControlTokens(map(re.escape, self._control))
        self._template: str = known["chat_template"]
        self._special = {
            f"{name}_token": self._pieces[known[name]] if known[name] is not None else ""
            for name in ("bos", "eos")
        }
        self._tokenizer = _byte_level_bpe(self._pieces, known["merges"])
        self.end_token_id: int | None = known["eos"]
        # attention needs a first token that means nothing: else the first word takes its place
        starts = ("<|endoftext|>", *self._special.values())
        self.start_piece = next((piece for piece in starts if piece in self._control), "")

    @property
    def has_chat(self) -> bool:
        """Whether there is a chat template."""
        return bool(self._template)

    def text_of(self, prompt: RenderedPrompt) -> str:
        """Return the text that is tokenised, control tokens included."""
        if not prompt.messages:
            return self.start_piece + (prompt.text or "")
        turns = [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
        conversation: str = self._compiled.render(
            messages=turns, add_generation_prompt=True, **self._special
        )
        return conversation + prompt.answer_prefix

    def encode(self, prompt: RenderedPrompt) -> list[int]:
        """Return the token ids of a prompt."""
        if not prompt.messages:
            start = [self._control[self.start_piece]] if self.start_piece else []
            return start + self._encode(prompt.text or "")
        hidden, restore = self._controls.hide(prompt)
        ids: list[int] = []
        for piece, is_control in self._controls.split(self.text_of(hidden)):
            ids += [self._control[piece]] if is_control else self._encode(restore(piece))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated tokens, without control tokens."""
        parts = [self.bytes_of(token) for token in ids if self._pieces[token] not in self._control]
        return b"".join(parts).decode("utf-8", "replace")

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token, also where they are half a character."""
        piece = self._pieces[token]
        known = None if piece in self._control else bytes_of_piece(piece)
        return piece.encode("utf-8", "surrogatepass") if known is None else known

    def _encode(self, text: str) -> list[int]:
        # UTF-8, which the library reads, has no half surrogates
        clean = text.encode("utf-8", "replace").decode()
        ids: list[int] = self._tokenizer.encode(clean).ids
        return ids

    @cached_property
    def _compiled(self) -> Any:
        try:
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise MissingDependencyError(
                "chat templates need jinja2: pip install 'promptboosting[local]'"
            ) from error

        def refuse(message: str) -> None:
            raise BackendError(f"the chat template refuses these messages: {message}")

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = refuse
        return environment.from_string(self._template)


def _byte_level_bpe(pieces: list[str], merges: list[str]) -> Any:
    """Return a tokenizer like GPT-2's, with each digit apart (SmolLM's)."""
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers
    except ImportError as error:
        raise MissingDependencyError(
            "the embedded LM needs tokenizers: pip install 'promptboosting[local]'"
        ) from error
    numbered = {piece: token for token, piece in enumerate(pieces)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(numbered, pairs))
    steps = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return tokenizer
