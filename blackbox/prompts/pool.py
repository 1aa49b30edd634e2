"""Prompt pools, and the text files that hold them.

A file holds one template or question per line, with `\\n` for a new line and `#` for a comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

from blackbox.errors import PromptError
from blackbox.files import write_whole
from blackbox.prompts.question import parse_prompt
from blackbox.prompts.template import Prompt

__all__ = ["PromptPool", "read_with_notes", "unescape"]


class PromptPool(Sequence[Prompt]):
    """A pool: the prompts that one classifier may use, without duplicates.

    Parameters
    ----------
    prompts : iterable of Prompt or str
        Templates and questions; a str is parsed.

    Raises
    ------
    PromptError
        If one of them can't be parsed, or there is none.
    """

    def __init__(self, prompts: Iterable[Prompt | str]) -> None:
        parsed = [p if isinstance(p, Prompt) else parse_prompt(p) for p in prompts]
        self._prompts = tuple(dict.fromkeys(parsed))
        if not self._prompts:
            raise PromptError("a prompt pool needs at least one prompt")

    @classmethod
    def read(cls, path: str | Path) -> PromptPool:
        """Return the pool of a text file: one template per line, `\\n` for line breaks, `#` notes.

        Raises
        ------
        PromptError
            If the file can't be read or a line can't be parsed; the message names file and line.
        """
        return cls(prompt for prompt, _ in read_with_notes(path))

    def write(self, path: str | Path, notes: Sequence[str] = (), about: str = "") -> None:
        """Write the pool to a text file that `read` reads.

        Parameters
        ----------
        path : str or Path
            The file.
        notes : sequence of str
            A comment for each prompt, written above it.
        about : str
            A comment for the whole file, which may have several lines.

        Raises
        ------
        PromptError
            If the file can't be written; its old content is kept.
        """
        lines = [f"# {line}" for line in about.splitlines()]
        for number, prompt in enumerate(self):
            note = " ".join(notes[number].split()) if notes else ""
            lines += [f"# {note}"] if note else []
            lines.append(_escape(prompt.template))
        write_whole(path, "".join(line + "\n" for line in lines).encode(), PromptError)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...

    @overload
    def __getitem__(self, index: slice) -> PromptPool: ...

    def __getitem__(self, index: int | slice) -> Prompt | PromptPool:
        if isinstance(index, slice):
            return PromptPool(self._prompts[index])
        return self._prompts[index]

    def __len__(self) -> int:
        return len(self._prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._prompts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PromptPool) and self._prompts == other._prompts

    def __hash__(self) -> int:
        return hash(self._prompts)

    def __repr__(self) -> str:
        return f"PromptPool({[prompt.template for prompt in self]!r})"


def read_with_notes(path: str | Path) -> list[tuple[Prompt, str]]:
    """Return the prompts of a file, each with the comments above it.

    Raises
    ------
    PromptError
        As for `PromptPool.read`.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise PromptError(
            f"{path}: {error.strerror}; give a file of prompts, one per line"
        ) from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: not UTF-8 at byte {error.start}; convert it") from error
    prompts, notes = [], list[str]()
    for number, line in enumerate(lines, 1):
        if line.startswith("#"):
            notes.append(line.removeprefix("#").strip())
        elif line.strip():
            try:
                prompts.append((parse_prompt(unescape(line.removesuffix("\r"))), " ".join(notes)))
            except PromptError as error:
                raise PromptError(f"{path}, line {number}: {error}") from error
            notes = []
    if not prompts:
        raise PromptError(f"{path}: no prompts in it; write one template per line")
    return prompts


def _escape(template: str) -> str:
    escaped = template.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return "\\" + escaped if escaped.startswith("#") else escaped


def unescape(line: str) -> str:
    """Return the template of a line of a pool file, without escapes."""
    known = {"n": "\n", "r": "\r", "t": "\t"}
    return re.sub(r"\\(.)", lambda match: known.get(match[1], match[1]), line)
