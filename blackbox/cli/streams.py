"""Standard output and standard error of the command, whose readers may go away."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

__all__ = ["EXIT_OUTPUT_CLOSED", "flush_output", "watch_streams"]

EXIT_OUTPUT_CLOSED = 141
"""The exit code when the reader of standard output is gone: 128 and the number of SIGPIPE."""


class _Pipe(io.FileIO):
    """A file descriptor that ends the process, or is written no more, when its reader is gone."""

    def __init__(self, descriptor: int, exit_code: int | None) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._exit_code = exit_code
        self._gone = False

    def write(self, data: Any) -> int:
        """Write what can be written; raise `SystemExit` where that is the end."""
        if not self._gone:
            try:
                return super().write(data)
            except BrokenPipeError:
                self._gone = True
                if self._exit_code is not None:
                    raise SystemExit(self._exit_code) from None
            except OSError as error:  # a full disk
                self._gone = True
                if self._exit_code is not None:
                    said = f"blackbox: standard output can't be written: {error.strerror}\n"
                    sys.stderr.write(said)
                    raise SystemExit(1) from None
        return memoryview(data).nbytes


def watch_streams() -> None:
    """End with `EXIT_OUTPUT_CLOSED` when standard output is closed, as `head` does.

    It is done where the bytes are written: a `BrokenPipeError` from anywhere else is an error. A
    closed standard error is no reason to end a run that may have cost money.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    if sys.platform == "win32":
        return
    for name, exit_code in (("stdout", EXIT_OUTPUT_CLOSED), ("stderr", None)):
        stream = getattr(sys, name)
        try:
            descriptor = stream.fileno()
        except (AttributeError, OSError):
            continue  # closed, or no file
        stream.flush()
        pipe = io.BufferedWriter(_Pipe(descriptor, exit_code))
        buffering = stream.line_buffering or name == "stderr"
        watched = io.TextIOWrapper(
            pipe, encoding=stream.encoding, errors=stream.errors, line_buffering=buffering
        )
        setattr(sys, name, watched)


def flush_output() -> None:
    """Write what waits for standard output; raise `SystemExit` if its reader is gone."""
    if sys.stdout is not None:
        sys.stdout.flush()
