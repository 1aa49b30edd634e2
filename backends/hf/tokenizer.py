"""Hugging Face tokenizers, used so that token ids are exactly those that a model should see.

Shared by the backends that run such models. What a user writes is text: special tokens are read out
of chat templates only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from blackbox.protocol import RenderedPrompt

__all__ = ["PromptTokenizer", "load_tokenizer"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def load_tokenizer(name: str, **options: Any) -> Any:
    """The tokenizer of a model, by hub name or folder; `gguf_file` reads one out of a GGUF file."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, **options)


class PromptTokenizer:
    """Token ids of rendered prompts, and the bytes of tokens.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        The model's own.
    masked : bool
        Whether it is a masked LM's.

    Attributes
    ----------
    start_piece : str
        The document start that raw text gets here, where the tokenizer adds none by itself.
    """

    def __init__(self, tokenizer: Any, *, masked: bool) -> None:
        self._tokenizer = tokenizer
        self._masked = masked
        self._decoder = _decoder_kinds(tokenizer)
        self._before, self._after = self._frame()
        self.start_piece = ""
        if not masked and not self._before:
            self.start_piece, self._before = self._document_start()
        if masked and tokenizer.mask_token_id is None:
            raise ValueError("this tokenizer has no mask token")

    @property
    def has_chat(self) -> bool:
        """Whether there is a chat template."""
        return not self._masked and bool(getattr(self._tokenizer, "chat_template", None))

    def text_of(self, prompt: RenderedPrompt) -> str:
        """The text that is tokenised, special tokens included."""
        if prompt.messages:
            turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
            text: str = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
            return text + prompt.answer_prefix
        if self._masked:
            before = (prompt.text or "").rstrip(" ")
            return f"{before} {self._tokenizer.mask_token}{prompt.after_mask or ''}".lstrip(" ")
        return self.start_piece + (prompt.text or "")

    def encode(self, prompt: RenderedPrompt) -> list[int]:
        """The token ids of a prompt."""
        if prompt.messages:
            ids = self._encode(self.text_of(prompt), parse=True)
            framed = ids[: len(self._before)] == self._before or bool(self.start_piece)
            return ids if framed else self._before + ids
        text = self._encode(
            _clean(prompt.text or "").rstrip(" ") if self._masked else _clean(prompt.text or ""),
            parse=False,
        )
        if not self._masked:
            return self._before + text
        after = self._encode(_clean(prompt.after_mask or ""), parse=False)
        return [*self._before, *text, self._tokenizer.mask_token_id, *after, *self._after]

    @property
    def mask_token_id(self) -> int:
        """The id of the masked token."""
        return int(self._tokenizer.mask_token_id)

    @property
    def end_token_id(self) -> int | None:
        """The id of the token that ends a text."""
        found: int | None = self._tokenizer.eos_token_id
        return found

    def decode(self, ids: list[int]) -> str:
        """The text of generated tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token, also where they are half a character.

        A word piece that begins a word has a space before it, as byte-level tokens do.
        """
        piece: str | None = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""  # rows of the output that no token uses
        if token in self._tokenizer.all_special_ids:
            return piece.encode()
        if "ByteLevel" in self._decoder:
            known = _byte_of_character()
            if all(character in known for character in piece):
                return bytes(known[character] for character in piece)
        elif "WordPiece" in self._decoder:
            return piece[2:].encode() if piece.startswith("##") else f" {piece}".encode()
        found = _BYTE_TOKEN.fullmatch(piece)
        if found:
            return bytes([int(found[1], 16)])
        return piece.replace("▁", " ").encode("utf-8", "surrogatepass")

    def digests(self) -> tuple[str, str]:
        """SHA-256 of the tokenizer, and of the chat template where there is one."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        whole = backend.to_str() if backend is not None else json.dumps(self._tokenizer.get_vocab())
        template = getattr(self._tokenizer, "chat_template", None)
        text = json.dumps(template) if template else ""
        return _digest(whole), _digest(text) if text else ""

    def _frame(self) -> tuple[list[int], list[int]]:
        """What the tokenizer itself puts before and after a text."""
        bare = self._encode("a", parse=True)
        framed = self._tokenizer.encode("a", add_special_tokens=True)
        for start in range(len(framed) - len(bare) + 1):
            if framed[start : start + len(bare)] == bare:
                return framed[:start], framed[start + len(bare) :]
        return [], []

    def _document_start(self) -> tuple[str, list[int]]:
        """The token that a document begins with, where the tokenizer adds none by itself.

        Attention needs a first token that means nothing: without one the first word of a text
        takes that place, and the predictions of a model trained on separated documents suffer much.
        """
        for piece in ("<|endoftext|>", self._tokenizer.bos_token, self._tokenizer.eos_token):
            ids = self._encode(piece, parse=True) if piece else []
            if len(ids) == 1 and piece is not None and ids[0] in self._tokenizer.all_special_ids:
                return str(piece), ids
        return "", []

    def _encode(self, text: str, *, parse: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=not parse
        )
        return ids


def _clean(text: str) -> str:
    """Half surrogates have no place in UTF-8, in which tokenizers read."""
    return text.encode("utf-8", "replace").decode()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _decoder_kinds(tokenizer: Any) -> set[str]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return set()

    def kinds(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            yield str(part.get("type"))
            for inner in part.get("decoders", []):
                yield from kinds(inner)

    return set(kinds(json.loads(backend.to_str()).get("decoder")))


def _byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's table).

    Printable bytes stand for themselves; the others are numbered from 256 on, in order.
    """
    if not _TABLE:
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        _TABLE.update({chr(byte): byte for byte in printable})
        _TABLE.update({chr(256 + place): byte for place, byte in enumerate(others)})
    return _TABLE


_TABLE: dict[str, int] = {}
