"""Vision-language models of Hugging Face: images as tokens and tensors, and their forward passes.

An image is put into a prompt as its processor does it: one token of the chat template stands for
the image, and becomes as many as the image takes. All prompts of one image share its prefix: what
they begin with, the image included, is evaluated once, where the model's cache takes that (found by
trying).
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any

from backends.hf.forward import EqualForward, largest_difference
from backends.hf.likeliest import LogitPart
from backends.hf.tokenizer import PromptTokenizer
from backends.image_tokens import image_token_line
from backends.prefixes import common_prefix_length
from backends.trees import distinct_tokens
from blackbox.errors import BackendError
from blackbox.images import Image, plain_image
from blackbox.protocol import RenderedPrompt

__all__ = ["ImageForward", "ImageIds", "ImageReader", "load_processor"]

_log = logging.getLogger(__name__)

_TOLERANCE = 0.05  # of a log-probability, in half precision too; a wrong position is off by more
_BATCH = 16  # prompts of one image that are evaluated together


class ImageIds(list[int]):
    """The token ids of a prompt with an image, those of the image included.

    Parameters
    ----------
    ids : sequence of int
        The ids.
    image : Image
        The image.
    unspliced : sequence of int
        The same with one token in the place of the image, for an engine that replaces it.
    """

    def __init__(self, ids: Sequence[int], image: Image, unspliced: Sequence[int] = ()) -> None:
        super().__init__(ids)
        self.image = image
        self.unspliced = unspliced

    def shared_with(self, other: Sequence[int]) -> int:
        """Return the number of first ids that another prompt has, too: a prompt of another image
        shares none of this image's.
        """
        n_shared = common_prefix_length(self, other)
        if isinstance(other, ImageIds) and other.image == self.image:
            return n_shared
        return min(n_shared, common_prefix_length(self, self.unspliced))


def load_processor(name: str, **options: Any) -> Any:
    """Load the processor of a model that sees; None where what it needs isn't installed."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(name, **options)
    except (ImportError, AttributeError, ValueError) as error:
        _log.warning("this model is used without images: %s", " ".join(str(error).split())[:200])
        return None


class ImageReader:
    """A model's processor of images.

    Parameters
    ----------
    processor : transformers.ProcessorMixin
        The model's own.
    max_side : int
        Pixels of the longest side to which a larger image is resized first; 0 for none.

    Attributes
    ----------
    token : str
        What stands for an image in a text.
    """

    def __init__(self, processor: Any, max_side: int = 0) -> None:
        self._processor = processor
        self.max_side = max_side
        self.token: str = getattr(processor, "boi_token", None) or processor.image_token
        self.token_id = int(processor.tokenizer.convert_tokens_to_ids(self.token))
        self._ids = lru_cache(maxsize=65_536)(self._ids_of)

    @property
    def chat_template(self) -> Any:
        """The chat template, if there is one."""
        own = getattr(self._processor, "chat_template", None)
        return own or getattr(self._processor.tokenizer, "chat_template", None)

    def conversation(self, turns: Sequence[tuple[str, Sequence[str | None]]]) -> str:
        """Return a conversation by the chat template.

        Parameters
        ----------
        turns : sequence of (str, sequence of (str or None))
            Roles, and the texts of what is said; None is an image.
        """
        written = [
            {
                "role": role,
                "content": [
                    {"type": "image"} if part is None else {"type": "text", "text": part}
                    for part in parts
                    if part is None or part
                ],
            }
            for role, parts in turns
        ]
        text: str = self._processor.apply_chat_template(
            written, chat_template=self.chat_template, add_generation_prompt=True, tokenize=False
        )
        return text

    @cached_property
    def in_raw_text(self) -> str:
        """Return the placeholder of an image in raw text: as in a conversation, with its marks."""
        if not self.chat_template:
            return self.token
        without = self.conversation([("user", ["a"])])
        with_image = self.conversation([("user", [None, "a"])])
        start = common_prefix_length(without, with_image)
        end = common_prefix_length(without[start:][::-1], with_image[start:][::-1])
        inserted = with_image[start : len(with_image) - end]
        return inserted if inserted.count(self.token) == 1 else self.token

    def splice(self, ids: Sequence[int], image: Image) -> ImageIds:
        """Return the ids of a prompt with those of the image in the place of its one token."""
        if ids.count(self.token_id) != 1:
            raise BackendError(
                f"the chat template puts {ids.count(self.token_id)} images into a prompt of one"
            )
        place = ids.index(self.token_id)
        return ImageIds([*ids[:place], *self._ids(image), *ids[place + 1 :]], image, ids)

    def tensors(self, sequence: ImageIds, device: Any, dtype: Any) -> dict[str, Any]:
        """Return what the model takes beside the ids of a whole prompt: its image."""
        import torch

        made = self._made(sequence.image)
        ids = made.pop("input_ids")
        made.pop("attention_mask", None)
        start = _place_of(ids[0].tolist(), sequence)
        found = {}
        for name, value in made.items():
            if tuple(value.shape) == tuple(ids.shape):  # a number for each token
                row = torch.zeros((1, len(sequence)), dtype=value.dtype)
                row[0, start : start + ids.shape[1]] = value[0]
                value = row
            is_float = value.is_floating_point()
            found[name] = value.to(device, dtype) if is_float else value.to(device)
        return found

    def end_of_image(self, sequence: ImageIds) -> int:
        """Return the number of ids of a prompt up to the end of its image."""
        ids = self._ids(sequence.image)
        return _place_of(ids, sequence) + len(ids)

    def tokens(self) -> tuple[float, float]:
        """Return about how many tokens an image takes: so many, and so many per megapixel."""
        return image_token_line(lambda image: len(self._ids(image)), self.max_side)

    def identity(self) -> dict[str, str]:
        """Return how images are prepared, for an identity: the SHA-256 of the settings."""
        settings = self._processor.image_processor.to_json_string()
        found = {"image_processor": hashlib.sha256(settings.encode()).hexdigest()}
        return found | ({"max_image_side": str(self.max_side)} if self.max_side else {})

    def limits(self) -> dict[str, Any]:
        """Return the fields of `Limits` that are about images."""
        per_image, per_megapixel = self.tokens()
        return {
            "images": True,
            "max_image_side": self.max_side,
            "tokens_per_image": per_image,
            "tokens_per_megapixel": per_megapixel,
        }

    def _made(self, image: Image) -> dict[str, Any]:
        made = self._processor(
            text=[self.token],
            images=[image.pixels(self.max_side)],
            return_tensors="pt",
            add_special_tokens=False,
        )
        return dict(made)

    def _ids_of(self, image: Image) -> tuple[int, ...]:
        return tuple(self._made(image)["input_ids"][0].tolist())


class ImageForward(EqualForward):
    """Forward passes of prompts with images, image by image.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model.
    tokenizer : PromptTokenizer
        Its tokenizer.
    reader : ImageReader
        Its processor of images.
    batch_tokens : int
        Tokens of one input, of prompts without an image.
    """

    def __init__(
        self, model: Any, tokenizer: PromptTokenizer, reader: ImageReader, batch_tokens: int
    ) -> None:
        super().__init__(model, tokenizer, batch_tokens)
        self._reader = reader
        self._shares = self._tries_sharing(tokenizer)

    def run(self, sequences: Sequence[list[int]]) -> Iterator[LogitPart]:
        """Yield the logits at the end of each prompt; all have an image."""
        for image, rows in _by_image(sequences).items():
            some = [ImageIds(sequences[row], image) for row in rows]
            n_shared = min(common_prefix_length(some[0], one) for one in some)
            n_shared = min(n_shared, min(map(len, some)) - 1)
            if self._shares and len(rows) > 1 and n_shared >= self._reader.end_of_image(some[0]):
                yield from self._run_shared(rows, some, n_shared)
            else:
                yield from self._run_alone(rows, some)

    def least(self, sequences: Sequence[list[int]]) -> int:
        """Return the tokens that a perfect prefix cache would evaluate: those of each image."""
        groups = _by_image(sequences).values()
        return sum(distinct_tokens([sequences[row] for row in rows]) for rows in groups)

    def extra_inputs(self, sequence: list[int]) -> dict[str, Any]:
        """Return what the model takes beside the ids of a prompt."""
        assert isinstance(sequence, ImageIds)
        return self._reader.tensors(sequence, self.model.device, self.model.dtype)

    def _run_alone(self, rows: Sequence[int], some: Sequence[ImageIds]) -> Iterator[LogitPart]:
        import torch

        for row, sequence in zip(rows, some, strict=True):
            with torch.inference_mode():
                ids = torch.tensor([sequence], device=self.model.device)
                more = self.extra_inputs(sequence) | self._last_only
                logits = self.model(input_ids=ids, use_cache=False, **more).logits[:, -1]
            yield [row], logits, len(sequence)

    def _run_shared(
        self, rows: Sequence[int], some: Sequence[ImageIds], n_shared: int
    ) -> Iterator[LogitPart]:
        """Yield the logits of prompts of one image, whose first ids are evaluated once.

        The rest is padded at its end, where no token before sees it.
        """
        import torch

        evaluated = n_shared
        with torch.inference_mode():
            stem = ImageIds(some[0][:n_shared], some[0].image)
            ids = torch.tensor([stem], device=self.model.device)
            more = self.extra_inputs(stem) | self._last_only
            out = self.model(input_ids=ids, use_cache=True, **more)
            kept = getattr(out, self.cache)
            for start in range(0, len(rows), _BATCH):
                places = range(start, min(start + _BATCH, len(rows)))
                ends = [some[place][n_shared:] for place in places]
                longest = max(map(len, ends))
                padded = [end + [end[-1]] * (longest - len(end)) for end in ends]
                past = copy.deepcopy(kept)
                past.batch_repeat_interleave(len(ends))
                ids = torch.tensor(padded, device=self.model.device)
                out = self.model(input_ids=ids, use_cache=True, **{self.cache: past})
                last = torch.tensor([len(end) - 1 for end in ends], device=self.model.device)
                logits = out.logits[torch.arange(len(ends), device=last.device), last]
                yield [rows[place] for place in places], logits, evaluated + sum(map(len, ends))
                evaluated = 0

    @property
    def _last_only(self) -> dict[str, int]:
        return {"logits_to_keep": 1} if self.keeps else {}

    def _tries_sharing(self, tokenizer: PromptTokenizer) -> bool:
        """Return whether prompts of one image get the same answers from a shared prefix."""
        image = plain_image(30, 200, 120, side=96)
        first, *words = tokenizer.encode(RenderedPrompt("one two three four five six seven"))[-7:]
        shown = self._reader.splice([first, self._reader.token_id, words[0]], image)
        some = [ImageIds([*shown, *end], image) for end in (words[1:2], words[2:4], words[3:])]
        rows = range(len(some))
        try:
            shared = self._run_shared(rows, some, len(shown))
            return largest_difference(self._run_alone(rows, some), shared) < _TOLERANCE
        except (ValueError, TypeError, RuntimeError, IndexError, AttributeError) as error:
            _log.debug("%s", error)
        _log.info("this model shares no prefix with an image: each prompt is evaluated in full")
        return False


def _by_image(sequences: Sequence[list[int]]) -> dict[Image, list[int]]:
    """Return the numbers of the prompts of each image."""
    rows: dict[Image, list[int]] = {}
    for row, sequence in enumerate(sequences):
        assert isinstance(sequence, ImageIds)
        rows.setdefault(sequence.image, []).append(row)
    return rows


def _place_of(part: Sequence[int], whole: Sequence[int]) -> int:
    """Return where some ids begin in others."""
    n = len(part)
    return next(
        place for place in range(len(whole) - n + 1) if list(whole[place : place + n]) == [*part]
    )
