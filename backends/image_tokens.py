"""Estimates of how many tokens an image takes, from those of a few squares."""

from __future__ import annotations

from collections.abc import Callable

from blackbox.images import Image, plain_image

__all__ = ["image_token_line"]

_SIDES = (64, 512, 1024)  # of the squares


def image_token_line(count: Callable[[Image], int], max_side: int = 0) -> tuple[float, float]:
    """Return about how many tokens an image takes: so many, and so many per megapixel.

    A line that is above the tokens of images of three sizes.

    Parameters
    ----------
    count : callable
        Counts the tokens of an image.
    max_side : int
        Pixels of the longest side to which a larger image is resized first; 0 for none.
    """
    images = [plain_image(128, 128, 128, side=side) for side in _SIDES]
    sizes = [image.size_within(max_side) for image in images]
    pixels = [width * height for width, height in sizes]
    counts = [count(image) for image in images]
    slope = max(0.0, (counts[-1] - counts[0]) / max(pixels[-1] - pixels[0], 1))
    start = max(n - slope * size for n, size in zip(counts, pixels, strict=True))
    return max(start, 0.0), slope * 1_000_000
