"""Lines of logs and warnings: whose they are, and without passwords in addresses."""

from __future__ import annotations

import logging
from pathlib import Path

__all__ = ["SignedLines", "signed_warning", "without_passwords"]

_HERE = Path(__file__).parents[2]
_OURS = ("blackbox", "backends", "__main__", "root")


class SignedLines(logging.Formatter):
    """Formats records so that each says whose it is: ours, or that of another package."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        text = without_passwords(super().format(record))
        if record.name == "py.warnings":
            return text.rstrip()
        package = record.name.partition(".")[0]
        return f"blackbox: {text}" if package in _OURS else f"{package}: {text}"


def without_passwords(text: str) -> str:
    """Return a text without the passwords of the addresses in it."""
    if "://" not in text:
        return text
    from backends.api.credentials import without_userinfo

    return without_userinfo(text)


def signed_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    *_args: object,
    **_kwargs: object,
) -> str:
    """Return the line of a warning, as `warnings.formatwarning` does."""
    path = Path(filename)
    if any(path.is_relative_to(_HERE / name) for name in _OURS):
        return f"blackbox: {message}"
    above, _, below = path.as_posix().rpartition("-packages/")  # site-packages, or Debian's dist-
    package = below.partition("/")[0].removesuffix(".py") if above else path.stem
    return f"{package}: {category.__name__}: {message}"
