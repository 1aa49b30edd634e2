"""Probes whether an endpoint sees images, and how many tokens they take, with two requests."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from blackbox.errors import BackendError, UnservedPromptError
from blackbox.images import plain_image
from blackbox.protocol import Limits, Message, RenderedPrompt

__all__ = ["ImageTokens", "probe_images"]

_log = logging.getLogger(__name__)

_ASKED = "Which colour has this picture?"
# two that no LM that sees them takes for one, of two sizes
_SMALL, _LARGE = plain_image(220, 20, 20, side=64), plain_image(20, 40, 220, side=448)
_SAME = 0.1  # difference of a log-probability that the numerics of batches may make


@dataclass(frozen=True)
class ImageTokens:
    """About how many tokens an image takes: so many, and so many per million pixels."""

    per_image: float
    per_megapixel: float


def probe_images(
    who: str,
    ask: Callable[[RenderedPrompt], tuple[dict[bytes, float], int]],
    n_text_tokens: Callable[[RenderedPrompt], float],
) -> ImageTokens:
    """Return how many tokens images take at an endpoint that sees them.

    A line through the tokens that are reported for two sizes: where images have a fixed price it
    is flat, where they have one per patch it rises.

    Parameters
    ----------
    who : str
        Provider and model, for messages.
    ask : callable
        Sends a prompt; returns log-probabilities by token (empty where there are none), and the
        tokens that are reported for the prompt, 0 where none are.
    n_text_tokens : callable
        Estimates the tokens of a prompt less its image.

    Raises
    ------
    UnservedPromptError
        If images are refused, or change no answer.
    """
    bare = RenderedPrompt(messages=(Message("user", _ASKED),))
    try:
        (small, tokens_small), (large, tokens_large) = (
            ask(replace(bare, image=image)) for image in (_SMALL, _LARGE)
        )
    except BackendError as error:
        raise UnservedPromptError(f"{who} takes no images: {error}") from error
    if small and all(abs(large.get(token, 0.0) - value) < _SAME for token, value in small.items()):
        raise UnservedPromptError(
            f"{who} doesn't see images: it answers the same to a red one and to a blue one"
        )
    rest = n_text_tokens(bare)
    slope = max(0.0, (tokens_large - tokens_small) / (_LARGE.n_pixels - _SMALL.n_pixels))
    start = max(0.0, tokens_small - rest - slope * _SMALL.n_pixels)
    usual = Limits(1, 0, 1, deterministic=True)
    if math.isclose(start + slope, 0.0) or not tokens_small:
        _log.warning(
            "%s reports no tokens for images: %d per million pixels are assumed",
            who,
            usual.tokens_per_megapixel,
        )
        return ImageTokens(usual.tokens_per_image, usual.tokens_per_megapixel)
    return ImageTokens(start, slope * 1_000_000)
