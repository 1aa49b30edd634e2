"""Logs of a service: one configuration for all of its loggers, as text or as lines of JSON.

No text, token, path or query of a client is in a line.
"""

from __future__ import annotations

import json
import logging
import logging.config
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from blackbox.telemetry import trace_ids

__all__ = [
    "ACCESS_LOG",
    "UNREADABLE_LOG",
    "JsonFormatter",
    "RequestWork",
    "TextFormatter",
    "configure_logging",
    "request_work",
]

ACCESS_LOG = "blackbox.service.access"
"""The logger of one line per request, at level INFO."""

UNREADABLE_LOG = "uvicorn.error.requests"
"""The logger of requests that are no readable HTTP, which are counted and not logged."""

_OURS = ("blackbox", "backends", "uvicorn")


@dataclass
class RequestWork:
    """The rows of a request, and the forward passes that their predictions rest on.

    A pass counts wherever it came from: the LM, shared with the rows of other requests, or the
    store.
    """

    rows: int = 0
    passes: int = 0


request_work: ContextVar[RequestWork | None] = ContextVar("request_work", default=None)
"""The work of the request in hand."""


class TextFormatter(logging.Formatter):
    """Formats a record as text, with the ids of its trace, if there is one, after the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s%(trace)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, and those of its traceback."""
        record.trace = "".join(f" {name}={value}" for name, value in trace_ids().items())
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object on one line, with the values of its message by name."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if isinstance(record.args, Mapping):
            fields |= record.args
        fields |= trace_ids()
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def configure_logging(level: str, form: str, *, access: bool, announcing: str) -> None:
    """Configure the loggers of this process: one handler, which writes to standard error.

    Parameters
    ----------
    level : {"debug", "info", "warning", "error"}
        The least level of what this package and the web server log. Other packages log warnings
        and errors: at a lower level, clients of APIs log texts.
    form : {"text", "json"}
        The format of a line.
    access : bool
        Whether there is a line per request.
    announcing : str
        A logger whose INFO is shown whatever the level.
    """
    levels = dict.fromkeys(_OURS, level.upper())
    levels[ACCESS_LOG] = "INFO" if access else "WARNING"
    levels[announcing] = "INFO"
    # a provider's words about a failed request may repeat a text
    levels["backends.api.retries"] = "ERROR"
    levels[UNREADABLE_LOG] = "ERROR"
    formatter = JsonFormatter if form == "json" else TextFormatter
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {form: {"()": formatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": form}},
            "root": {
                "level": "ERROR" if level == "error" else "WARNING",
                "handlers": ["stderr"],
            },
            "loggers": {name: {"level": one} for name, one in levels.items()},
        }
    )
