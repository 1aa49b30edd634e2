"""Images: `Image`, an image that was checked; the one place where images are decoded (Pillow).

An image is known by a digest, so that requests, stores and models hold no pixels: its bytes are
read again from its file when they are sent. No address is ever fetched: an image is a file on this
machine, or bytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blackbox.errors import ImageError, MissingDependencyError

__all__ = ["MAX_BYTES", "MAX_PIXELS", "NO_IMAGE", "DataUrl", "Image", "checked_side", "plain_image"]

MAX_BYTES = 20_000_000
"""Bytes of an image's file, at most."""

MAX_PIXELS = 64_000_000
"""Pixels of an image, at most: they are decoded into four bytes each."""

_FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
_KINDS = "PNG, JPEG, WebP or GIF"
_QUALITY = 95  # of a photograph that is resized
_DATA_URL = re.compile(r"data:image/[a-z.+-]+;base64,", re.IGNORECASE)
_THUMBNAIL_QUALITY = 80
# tokens of the dearest way of counting that is published (OpenAI's gpt-4o-mini)
_TOKENS_AT_MOST, _TOKENS_OF_TILE, _TILE = 2833, 5667, 512


class DataUrl(str):
    """The address of an image that holds the image itself, for a request to an API.

    Attributes
    ----------
    max_tokens : int
        Tokens that the image takes in any model, about, at most.
    """

    max_tokens: int

    def __new__(cls, url: str, max_tokens: int) -> DataUrl:  # noqa: D102
        self = super().__new__(cls, url)
        self.max_tokens = max_tokens
        return self


@dataclass(frozen=True)
class Image:
    """An image that was decoded once, and so can be decoded.

    Parameters
    ----------
    digest : str
        SHA-256 of its file, in hexadecimal. Images are equal where their digests are.
    width, height : int
        Its size in pixels, upright.
    media_type : str
        Such as ``"image/png"``.
    source : Path or bytes
        Its file, or what is in it.
    is_upright : bool
        Whether its pixels need no turning; a camera may note that they do.
    """

    digest: str
    width: int = field(compare=False)
    height: int = field(compare=False)
    media_type: str = field(compare=False)
    source: Path | bytes = field(compare=False, repr=False)
    is_upright: bool = field(default=True, compare=False, repr=False)

    @classmethod
    def of(cls, value: Any) -> Image:
        """Return the image of a path, of a file's bytes, or of a `PIL.Image.Image`.

        A text is no path: give a `pathlib.Path`.

        Raises
        ------
        ImageError
            If it can't be read, is no image, or is too large; the message is one line.
        TypeError
            If it is something else.
        """
        if isinstance(value, Image):
            return value
        if isinstance(value, os.PathLike):
            return cls._read(Path(value))
        if isinstance(value, bytes | bytearray | memoryview):
            try:
                return cls._checked(bytes(value), bytes(value))
            except ImageError as error:
                raise ImageError(f"{error} (bytes are an image; a text is a str)") from error
        if cls.is_one(value):
            return cls._of_pixels(value)
        raise TypeError(f"an image is a Path, bytes or PIL.Image, got {type(value).__name__}")

    @staticmethod
    def is_one(value: Any) -> bool:
        """Return whether `of` takes a value as an image."""
        if isinstance(value, Image | os.PathLike | bytes | bytearray | memoryview):
            return True
        # an object of Pillow can only be one where Pillow was imported
        return any(f"{t.__module__}.{t.__name__}" == "PIL.Image.Image" for t in type(value).__mro__)

    @classmethod
    def of_data_url(cls, url: str, max_pixels: int = MAX_PIXELS) -> Image:
        """Return the image that a ``data:`` address holds; no other address is taken.

        One of more than `max_pixels` is refused, before a pixel is decoded.

        Raises
        ------
        ImageError
            If it isn't such an address, or holds no image that can be used.
        """
        head = _DATA_URL.match(url[:64])
        if head is None:
            raise ImageError(
                "an image is given as a data URL (data:image/png;base64,…); addresses are not "
                "fetched"
            )
        if len(url) - head.end() > MAX_BYTES // 3 * 4 + 4:
            raise ImageError(f"the image has more than {MAX_BYTES // 10**6} MB: send a smaller one")
        try:
            data = base64.b64decode(url[head.end() :], validate=True)
        except (binascii.Error, ValueError) as error:
            raise ImageError("the image's data URL is not base64") from error
        return cls._checked(data, data, max_pixels)

    @property
    def n_pixels(self) -> int:
        """Number of pixels."""
        return self.width * self.height

    def size_within(self, max_side: int = 0) -> tuple[int, int]:
        """Return the width and height after resizing to a longest side; 0 leaves it as it is."""
        longest = max(self.width, self.height)
        if not max_side or longest <= max_side:
            return self.width, self.height
        return tuple(max(1, round(side * max_side / longest)) for side in (self.width, self.height))  # type: ignore[return-value]

    def data(self) -> bytes:
        """Return the bytes of the image's file.

        Raises
        ------
        ImageError
            If the file can't be read any more, or isn't what it was.
        """
        if isinstance(self.source, bytes):
            return self.source
        data = _bytes_of(self.source)
        if hashlib.sha256(data).hexdigest() != self.digest:
            raise ImageError(f"{self.source}: the file was changed while it was in use")
        return data

    def pixels(self, max_side: int = 0) -> Any:
        """Return the image as a `PIL.Image.Image`: upright, in RGB, resized to a longest side.

        What is transparent becomes white. Of several pictures in a file the first is taken.
        """
        picture = _upright(_decoded(self.data()))
        size = self.size_within(max_side)
        return (
            picture if picture.size == size else picture.resize(size, _pillow().Resampling.BICUBIC)
        )

    def encoded(self, max_side: int = 0) -> tuple[str, bytes]:
        """Return the media type and the bytes of the image as it is sent.

        These are the file's own unless it has to be resized or turned; then they are a PNG, or of a
        JPEG a JPEG.
        """
        if self.is_upright and self.size_within(max_side) == (self.width, self.height):
            return self.media_type, self.data()
        if self.media_type == "image/jpeg":
            return self.media_type, _saved(self.pixels(max_side), "JPEG", quality=_QUALITY)
        return "image/png", _saved(self.pixels(max_side), "PNG")

    def data_url(self, max_side: int = 0) -> DataUrl:
        """Return the image as it is sent, as a ``data:`` address."""
        media_type, data = self.encoded(max_side)
        width, height = self.size_within(max_side)
        tiles = -(-width // _TILE) * -(-height // _TILE)
        url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
        return DataUrl(url, _TOKENS_AT_MOST + _TOKENS_OF_TILE * tiles)

    def png(self, max_side: int = 0) -> bytes:
        """Return the image as a PNG of what `pixels` returns, whatever its file is."""
        return _saved(self.pixels(max_side), "PNG")

    def thumbnail(self, side: int = 96) -> str:
        """Return a small copy as a ``data:`` address for a page: drawn anew, nothing else in it."""
        small = _saved(self.pixels(side), "JPEG", quality=_THUMBNAIL_QUALITY)
        return f"data:image/jpeg;base64,{base64.b64encode(small).decode()}"

    @classmethod
    def _read(cls, path: Path) -> Image:
        data = _bytes_of(path)
        try:
            return cls._checked(data, path)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error

    @classmethod
    def _checked(cls, data: bytes, source: Path | bytes, max_pixels: int = MAX_PIXELS) -> Image:
        """Return the image in a file's bytes, which are decoded to know that they can be."""
        if len(data) > MAX_BYTES:
            raise ImageError(_too_many_bytes(len(data)))
        picture = _decoded(data, max_pixels)
        turned = _orientation(picture) in range(2, 9)
        width, height = _upright(picture).size if turned else picture.size
        digest = hashlib.sha256(data).hexdigest()
        return cls(digest, width, height, _FORMATS[picture.format], source, not turned)

    @classmethod
    def _of_pixels(cls, picture: Any) -> Image:
        """Return the image of a picture in memory, whose digest is that of its pixels."""
        if picture.width * picture.height > MAX_PIXELS or not picture.width * picture.height:
            raise ImageError(_wrong_size(*picture.size))
        try:
            drawn = _upright(picture)
        except Exception as error:
            raise ImageError(f"the picture can't be read ({_words(error)})") from error
        digest = hashlib.sha256(f"RGB {drawn.width} {drawn.height}\n".encode() + drawn.tobytes())
        data = _saved(drawn, "PNG")
        return cls(digest.hexdigest(), drawn.width, drawn.height, "image/png", data)


_ORIENTATION = 0x0112  # of EXIF


NO_IMAGE = Image("", 1, 1, "", b"")
"""The stand-in for an image that is missing."""


def checked_side(side: Any) -> int:
    """Return the longest side of images that a user gives, 0 for none; raise if it can't be one."""
    if side is None:
        return 0
    if isinstance(side, bool) or not isinstance(side, int) or side < 1:
        raise ValueError(f"max_image_side must be a whole number from 1, got {side!r}")
    return side


def plain_image(red: int, green: int, blue: int, side: int = 32) -> Image:
    """Return a square of one colour, made without Pillow, for where any image will do."""
    rows = (b"\0" + bytes((red, green, blue)) * side) * side
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    )
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    digest = hashlib.sha256(f"plain {red} {green} {blue} {side}".encode()).hexdigest()
    return Image(digest, side, side, "image/png", data)


def _bytes_of(path: Path) -> bytes:
    """Return the bytes of a file, of which too many aren't read."""
    try:
        if not path.is_file():
            raise ImageError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise ImageError(f"{path}: {_too_many_bytes(os.fstat(file.fileno()).st_size)}")
            return data
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or _words(error)
        raise ImageError(f"{path}: {why}") from error


def _too_many_bytes(n_bytes: int) -> str:
    return (
        f"the image has {n_bytes / 10**6:,.1f} MB, and {MAX_BYTES // 10**6} MB are the most: "
        "make it smaller"
    )


def _wrong_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> str:
    return (
        f"the image has {width:,} × {height:,} pixels, and 1 to {max_pixels // 10**6} million are "
        "taken: make it smaller"
    )


def _pillow() -> Any:
    try:
        import PIL.Image
    except ImportError as error:
        raise MissingDependencyError(
            "images need Pillow: pip install 'promptboosting[images]'"
        ) from error
    return PIL.Image


def _decoded(data: bytes, max_pixels: int = MAX_PIXELS) -> Any:
    """Return the decoded picture of a file's bytes, which may be anything at all.

    Formats are limited to four, as Pillow knows some that start programs. The size is looked at
    before a pixel is decoded.
    """
    pillow = _pillow()
    try:
        picture = pillow.open(io.BytesIO(data), formats=tuple(_FORMATS))
    except pillow.DecompressionBombError as error:
        raise ImageError(
            f"the image has more than {max_pixels // 10**6} million pixels: make it smaller"
        ) from error
    except Exception as error:  # decoders raise many kinds at damaged files
        raise ImageError(f"not an image: {_KINDS} is needed") from error
    if not 0 < picture.width * picture.height <= max_pixels:
        raise ImageError(_wrong_size(picture.width, picture.height, max_pixels))
    try:
        picture.load()
    except Exception as error:
        raise ImageError(f"the image is damaged or cut off ({_words(error)})") from error
    return picture


def _orientation(picture: Any) -> Any:
    """Return how a picture is turned, as its EXIF says; 1, upright, where that can't be read."""
    if "exif" not in picture.info and getattr(picture, "format", None) != "JPEG":
        return 1
    try:
        return picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow's readers of TIFF raise many kinds; the pixels are fine
        return 1


def _upright(picture: Any) -> Any:
    """Return a decoded picture as it is meant to be seen, in RGB."""
    from PIL import ImageOps

    if _orientation(picture) in range(2, 9):
        picture = ImageOps.exif_transpose(picture)
    if picture.mode == "RGB":
        return picture
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        above = picture.convert("RGBA")
        white = _pillow().new("RGBA", above.size, "white")
        white.alpha_composite(above)
        picture = white
    if picture.mode.startswith(("I", "F")):  # 16 bits a pixel, of which the upper 8 are seen
        picture = picture.convert("I").point(lambda value: value / 256).convert("L")
    return picture.convert("RGB")


def _saved(picture: Any, kind: str, **options: Any) -> bytes:
    """Return a picture as a file's bytes, with nothing of its source but the pixels."""
    picture = picture.copy()
    picture.info = {}
    written = io.BytesIO()
    picture.save(written, kind, **options)
    return written.getvalue()


def _words(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:120] or type(error).__name__
