"""Limits of a backend: the requests that it can serve, and how it bills them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from blackbox.errors import UnservedPromptError
from blackbox.protocol.requests import RenderedPrompt


@dataclass(frozen=True)
class Limits:
    """The kinds and sizes of requests that a backend can serve, and how it bills them.

    Parameters
    ----------
    max_top_k : int
        Largest `top_k` of `next_token`.
    max_score_ids : int
        Largest number of token ids per call of `score`; 0 where there is no `score`.
    context_length : int
        Context length in tokens.
    deterministic : bool
        Whether the same prompt gets the same answer to the last bit, alone and in any batch.
    raw_text, chat, answer_prefix, mask, questions : bool
        Whether it serves raw text, conversations, conversations with the beginning of an answer,
        prompts for masked LMs, and questions as they are (`RenderedPrompt.question`).
    generates : bool
        Whether it has `generate`.
    counts_tokens : bool
        Whether it has `count_tokens`, by the LM's own tokenizer.
    bytes_per_token : float
        UTF-8 bytes of a text that take one token, by a careful estimate, where no tokenizer counts;
        1 is never exceeded.
    shares_prefixes : bool
        Whether a prefix that several prompts of a call share is evaluated, and paid for, once.
    max_attempts : int
        Largest number of times that a request may be sent, and billed.
    requests_at_a_time : int or None
        Number of requests that a caller should pass in one call; None leaves it to the caller.
    price_share : float
        Share of the list price that is paid, such as 0.5 for a batch endpoint.
    api_host : str
        The host name of a public API, by which list prices are found.
    tokens_written : int
        Tokens that an answer, or a text, writes where fewer were asked for, at most; 0 where
        nothing that is written is billed.
    draws_per_prompt, passes_per_prompt : int
        Texts sampled per answer, and largest number of forward passes per answer: more than 1
        where an LM without log-probabilities is sampled.
    draws_at_once : bool
        Whether all texts sampled from a prompt are one request, whose prompt is paid for once.
    deduplicates : bool
        Whether repeated prompts are paid for once.
    charges_tries : bool
        Whether each try of a request is charged to the account in force before it is sent; see
        `blackbox.spending`.
    embedding_size : int
        Length of the vectors of `embed`; 0 where there is no `embed`.
    languages : tuple of str
        The languages that the LM knows, by their ISO 639 codes; empty where that isn't known.
    images : bool
        Whether prompts may have an image (`RenderedPrompt.image`).
    max_image_side : int
        Pixels of the longest side to which a larger image is resized; 0 where none is resized.
    tokens_per_image, tokens_per_megapixel : float
        Tokens that an image takes, about: so many, and so many per million pixels, as resized.
    """

    max_top_k: int
    max_score_ids: int
    context_length: int
    deterministic: bool
    raw_text: bool = True
    chat: bool = False
    answer_prefix: bool = False
    mask: bool = False
    questions: bool = False
    generates: bool = False
    counts_tokens: bool = False
    bytes_per_token: float = 1.0
    shares_prefixes: bool = False
    max_attempts: int = 1
    requests_at_a_time: int | None = None
    price_share: float = 1.0
    api_host: str = ""
    tokens_written: int = 1
    draws_per_prompt: int = 1
    draws_at_once: bool = False
    passes_per_prompt: int = 1
    deduplicates: bool = False
    charges_tries: bool = False
    embedding_size: int = 0
    languages: tuple[str, ...] = ()
    images: bool = False
    max_image_side: int = 0
    tokens_per_image: float = 0.0
    tokens_per_megapixel: float = 1000.0

    def tokens_of_image(self, prompt: RenderedPrompt) -> int:
        """Return about how many tokens the image of a prompt takes; 0 where there is none."""
        if prompt.image is None:
            return 0
        width, height = prompt.image.size_within(self.max_image_side)
        return math.ceil(
            self.tokens_per_image + self.tokens_per_megapixel * width * height / 1_000_000
        )

    def serves(self, prompt: RenderedPrompt) -> bool:
        """Return whether a prompt of this kind can be served (its length aside)."""
        if prompt.image is not None and not self.images:
            return False
        if prompt.question is not None:
            return self.questions
        if prompt.masked:
            return self.mask
        if prompt.messages:
            return self.chat and (self.answer_prefix or not prompt.answer_prefix)
        return self.raw_text


def check_served(limits: Limits, prompts: Sequence[RenderedPrompt], top_k: int = 0) -> None:
    """Raise if a backend can't serve the prompts, before anything is spent.

    Raises
    ------
    UnservedPromptError
        If `top_k` is over the limit or one of the prompts is of a kind that isn't served.
    """
    if top_k > limits.max_top_k:
        raise UnservedPromptError(
            f"top_k={top_k} is more than this backend gives ({limits.max_top_k}); lower top_k"
        )
    for number, prompt in enumerate(prompts):
        if not limits.serves(prompt):
            if prompt.image is not None:
                require_images(limits)
            kind = "masked" if prompt.masked else "chat" if prompt.messages else "raw text"
            begun = " whose answer is begun (prefill)" if prompt.answer_prefix else ""
            only = ", only questions (<predicate>, <choice>, <scale>)" if limits.questions else ""
            raise UnservedPromptError(
                f"request {number}: this backend serves no {kind}{begun}{only}"
            )


def require_images(limits: Limits) -> None:
    """Raise `UnservedPromptError` if a backend takes no images."""
    if not limits.images:
        raise UnservedPromptError(
            "this backend takes no images: use a model that does, and say so by the backend option "
            "images for an API, or mmproj for llama.cpp (docs/images.md)"
        )
