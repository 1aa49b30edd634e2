"""Pictures, prompts about them, and a training on them, for tests of every engine that sees."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from blackbox import PromptBoostingClassifier
from blackbox.images import Image
from blackbox.protocol import Message, RenderedPrompt

__all__ = ["asked", "check_it_learns", "halves", "picture"]


def picture(number: int, size: tuple[int, int] = (40, 30), kind: str = "") -> Image:
    """A picture that a number seeds; as a file where a kind is named."""
    import PIL.Image

    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), np.uint8)
    made = PIL.Image.fromarray(pixels)
    if not kind:
        return Image.of(made)
    written = io.BytesIO()
    made.save(written, kind)
    return Image.of(written.getvalue())


def halves(number: int, side: int = 16, noise: int = 128, brighter: int = 120) -> Any:
    """A picture of noise that is brighter above or below, as its number is even or odd."""
    import PIL.Image

    pixels = np.random.default_rng(number).integers(0, noise, (side, side), np.uint8)
    pixels[side // 2 * (number % 2) :][: side // 2] += brighter
    return PIL.Image.fromarray(pixels)


def asked(image: Image, said: str, at: int = 0, begun: str = "") -> RenderedPrompt:
    """A conversation about an image."""
    turns = (Message("user", said),)
    return RenderedPrompt(messages=turns, answer_prefix=begun, image=image, image_at=at)


def check_it_learns(lm: Any, top_k: int) -> None:
    """Train on pictures that are brighter above or below, and predict others."""
    pictures = [halves(number, 32, 100, 150) for number in range(48)]
    labels = ["above", "below"] * 24
    made = PromptBoostingClassifier(
        backend=lm,
        prompts=["{image} It was {mask}", "<user>{image}What is it?<assistant>It is {mask}"],
        store=None,
        top_k=top_k,
        label_words=None,
        random_state=0,
    ).fit(pictures[:32], labels[:32])
    assert made.score(pictures[32:], labels[32:]) > 0.8
