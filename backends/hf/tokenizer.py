"""Hugging Face tokenizers: token ids of prompts, and the bytes of tokens.

Shared by the backends that run such models. No part of a text or a message is read as a control
token; a chat template's own ones are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from backends.byte_level import bytes_of_piece
from backends.control_tokens import ControlTokens
from blackbox.protocol import Message, RenderedPrompt

if TYPE_CHECKING:
    from backends.hf.vision import ImageReader

__all__ = ["PromptTokenizer", "load_tokenizer"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def load_tokenizer(name: str, **options: Any) -> Any:
    """Load the tokenizer of a model by hub name or folder; `gguf_file` names a file in a folder."""
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
    reader : ImageReader, optional
        Reads the images of prompts, of a vision-language model.

    Attributes
    ----------
    start_piece : str
        The document start that is put before raw text, where the tokenizer adds none by itself.
    """

    def __init__(self, tokenizer: Any, *, masked: bool, reader: ImageReader | None = None) -> None:
        self._tokenizer = tokenizer
        self._masked = masked
        self._reader = reader
        self._decoder = _decoder_kinds(tokenizer)
        self._controls, self._plain_controls = _control_tokens(tokenizer, self._template)
        self._before, self._after = self._frame()
        self.start_piece = ""
        if not masked and not self._before:
            self.start_piece, self._before = self._document_start()
        if masked and tokenizer.mask_token_id is None:
            raise ValueError("this tokenizer has no mask token")

    @property
    def has_chat(self) -> bool:
        """Whether there is a chat template."""
        return not self._masked and bool(self._template)

    def text_of(self, prompt: RenderedPrompt) -> str:
        """Return the text that is tokenised, control tokens included."""
        if prompt.messages:
            return self._conversation(_divided(prompt))
        if prompt.image is not None and self._reader is not None:
            return self.start_piece + self._reader.in_raw_text.join(
                prompt.around_image(prompt.text or "")
            )
        if self._masked:
            before = (prompt.text or "").rstrip(" ")
            return f"{before} {self._tokenizer.mask_token}{prompt.after_mask or ''}".lstrip(" ")
        return self.start_piece + (prompt.text or "")

    def encode(self, prompt: RenderedPrompt) -> list[int]:
        """Return the token ids of a prompt; with an image `ImageIds`."""
        ids = self._encode_whole(prompt)
        if prompt.image is None or self._reader is None:
            return ids
        return self._reader.splice(ids, prompt.image)

    def _encode_whole(self, prompt: RenderedPrompt) -> list[int]:
        """Return the token ids of a prompt, where one token stands for an image."""
        if prompt.messages:
            ids = self._encode_chat(_divided(prompt))
            framed = ids[: len(self._before)] == self._before or bool(self.start_piece)
            return ids if framed else self._before + ids
        if prompt.image is not None and self._reader is not None:
            first, last = prompt.around_image(prompt.text or "")
            shown = self._encode(self._reader.in_raw_text, parse=True)
            start = self._encode_text(first) if first else []
            end = self._encode_text(last, is_first=False) if last else []
            return [*self._before, *start, *shown, *end]
        text = prompt.text or ""
        before = self._encode_text(text.rstrip(" ") if self._masked else text)
        if not self._masked:
            return self._before + before
        after = self._encode_text(prompt.after_mask or "")
        return [*self._before, *before, self._tokenizer.mask_token_id, *after, *self._after]

    def encode_all(self, prompts: Sequence[RenderedPrompt]) -> list[list[int]]:
        """Return the token ids of prompts: as `encode`, plain texts together and in parallel."""
        plain = []
        if not self._masked:
            plain = [
                row
                for row, prompt in enumerate(prompts)
                if prompt.text
                and not prompt.messages
                and prompt.image is None
                and len(self._pieces(prompt.text)) == 1
            ]
        together: dict[int, list[int]] = {}
        if plain:
            texts = [_clean(prompts[row].text or "") for row in plain]
            found = self._tokenizer(
                texts,
                add_special_tokens=False,
                split_special_tokens=True,
                return_attention_mask=False,
                verbose=False,
            )["input_ids"]
            together = {row: [*self._before, *ids] for row, ids in zip(plain, found, strict=True)}
        return [
            together[row] if row in together else self.encode(prompt)
            for row, prompt in enumerate(prompts)
        ]

    @property
    def mask_token_id(self) -> int:
        """The id of the mask token."""
        return int(self._tokenizer.mask_token_id)

    @property
    def end_token_id(self) -> int | None:
        """The id of the token that ends a text, if there is one."""
        found: int | None = self._tokenizer.eos_token_id
        return found

    def decode(self, ids: list[int]) -> str:
        """Return the text of generated tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token, also where they are half a character.

        A word piece that begins a word has a space before it, as byte-level tokens do.
        """
        piece: str | None = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""  # rows of the output that no token uses
        if token in self._tokenizer.all_special_ids:
            return piece.encode()
        if "ByteLevel" in self._decoder:
            known = bytes_of_piece(piece)
            if known is not None:
                return known
        elif "WordPiece" in self._decoder:
            return piece[2:].encode() if piece.startswith("##") else f" {piece}".encode()
        found = _BYTE_TOKEN.fullmatch(piece)
        if found:
            return bytes([int(found[1], 16)])
        return piece.replace("▁", " ").encode("utf-8", "surrogatepass")

    def digests(self) -> tuple[str, str]:
        """Return the SHA-256 of the tokenizer, and of the chat template where there is one."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        whole = backend.to_str() if backend is not None else json.dumps(self._tokenizer.get_vocab())
        text = json.dumps(self._template) if self._template else ""
        return _digest(whole), _digest(text) if text else ""

    @property
    def _template(self) -> Any:
        """The chat template, if there is one."""
        if self._reader is not None:
            return self._reader.chat_template
        return getattr(self._tokenizer, "chat_template", None)

    def _conversation(self, prompt: RenderedPrompt) -> str:
        """Return a conversation by the chat template; for one with an image see `_divided`."""
        turns: list[tuple[str, list[str | None]]] = [
            (turn.role, [turn.content]) for turn in prompt.messages
        ]
        if self._reader is None:
            plain = [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
            text: str = self._tokenizer.apply_chat_template(
                plain, tokenize=False, add_generation_prompt=True
            )
            return text + prompt.answer_prefix
        if prompt.image is not None:
            (role, before), (_, after) = turns[-2:]
            turns[-2:] = [(role, [*before, None, *after])]
        return self._reader.conversation(turns) + prompt.answer_prefix

    def _frame(self) -> tuple[list[int], list[int]]:
        """Return the ids that the tokenizer itself puts before and after a text."""
        bare = self._encode("a", parse=True)
        framed = self._tokenizer.encode("a", add_special_tokens=True)
        for start in range(len(framed) - len(bare) + 1):
            if framed[start : start + len(bare)] == bare:
                return framed[:start], framed[start + len(bare) :]
        return [], []

    def _document_start(self) -> tuple[str, list[int]]:
        """Return the document start and its ids, where the tokenizer adds none by itself.

        Attention needs a first token that means nothing: without one the first word of a text
        takes that place, and the predictions of a model trained on separated documents suffer much.
        """
        for piece in ("<|endoftext|>", self._tokenizer.bos_token, self._tokenizer.eos_token):
            ids = self._encode(piece, parse=True) if piece else []
            if len(ids) == 1 and piece is not None and ids[0] in self._tokenizer.all_special_ids:
                return str(piece), ids
        return "", []

    def _encode_chat(self, prompt: RenderedPrompt) -> list[int]:
        hidden, restore = self._controls.hide(prompt)
        conversation = self._conversation(hidden)
        if hidden is prompt:
            return self._encode(conversation, parse=True)
        ids: list[int] = []
        for piece, is_control in self._controls.split(conversation):
            if is_control:
                ids += self._encode(piece, parse=True)
            elif piece:
                ids += self._encode_text(restore(piece), is_first=not ids)
        return ids

    def _encode_text(self, text: str, *, is_first: bool = True) -> list[int]:
        """Return the ids of a text, none of it a control token."""
        ids: list[int] = []
        for piece in self._pieces(text):
            if is_first or not self._first_gets_space:
                ids += self._encode(piece, parse=False)
            else:
                # a line break merges with nothing in such vocabularies
                ids += self._encode(f"\n{piece}", parse=False)[
                    len(self._encode("\n", parse=False)) :
                ]
            is_first = False
        return ids

    def _pieces(self, text: str) -> list[str]:
        """Return a text in pieces that hold no control token which the tokenizer would read."""
        return self._plain_controls.cut(text)

    @cached_property
    def _first_gets_space(self) -> bool:
        """Whether a space is put before a text at the beginning, and not after a control token.

        So it is in SentencePiece vocabularies, unless they are read in the legacy way.
        """
        special = next(iter(self._tokenizer.all_special_tokens), "")
        return self._encode(f"{special}a", parse=True)[1:] != self._encode("a", parse=True)

    def _encode(self, text: str, *, parse: bool) -> list[int]:
        # verbose has the library print the length of a long text, which the backend checks
        ids: list[int] = self._tokenizer.encode(
            _clean(text), add_special_tokens=False, split_special_tokens=not parse, verbose=False
        )
        return ids


def _divided(prompt: RenderedPrompt) -> RenderedPrompt:
    """Return a conversation with what is said before its image, and after it, as two messages.

    So that either can be changed without losing the place of the image.
    """
    if prompt.image is None:
        return prompt
    *others, last = prompt.messages
    parts = (Message(last.role, part) for part in prompt.around_image(last.content))
    return replace(prompt, messages=(*others, *parts))


def _control_tokens(tokenizer: Any, chat_template: Any) -> tuple[ControlTokens, ControlTokens]:
    """Return the control tokens, and those of them that the tokenizer doesn't mark as special.

    The latter are added tokens that the chat template names.
    """
    template = json.dumps(chat_template or "", ensure_ascii=False)
    special, plain = [], []
    for token in getattr(tokenizer, "added_tokens_decoder", {}).values():
        pattern = re.escape(token.content)
        if token.special:
            left, right = r"\s*" * token.lstrip, r"\s*" * token.rstrip
            special.append(f"{left}{pattern}{right}")
        elif token.content.strip() and token.content in template:
            plain.append(pattern)
    return ControlTokens(special + plain), ControlTokens(plain)


def _clean(text: str) -> str:
    """Return a text that UTF-8, which tokenizers read, can encode: without half surrogates."""
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
