"""Every error that this package raises on purpose.

    BlackboxError
    ├── DataError                 a table or a text that can't be used (file, row, column), or more
    │                             rows than memory holds
    ├── PromptError               a template that can't be parsed or rendered (also ValueError)
    ├── ModelFileError            a saved model that is damaged, hostile or of another format
    ├── StoreError                the file of the forward-pass store can't be used
    ├── BudgetError               a budget was reached; everything paid for is kept
    ├── RowError                  rows that the LM could not answer, under on_row_error="raise"
    └── BackendError              anything about the language model
        ├── MissingDependencyError   its software is not installed (also ImportError)
        ├── ModelNotFoundError       no such model, or it could not be fetched
        ├── UnservedPromptError      the backend can't serve such a request; nothing was spent
        ├── BackendIdentityError     another LM answers than the one a model was trained with
        └── BackendResponseError     an answer that breaks the contract of `TokenLogProbs`

Bad arguments stay `ValueError` and `TypeError`, as scikit-learn's users expect.
Messages are one line: what is wrong, where, and what to do.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BackendIdentityError",
    "BackendResponseError",
    "BlackboxError",
    "BudgetError",
    "DataError",
    "MissingDependencyError",
    "ModelFileError",
    "ModelNotFoundError",
    "PromptError",
    "RowError",
    "StoreError",
    "UnservedPromptError",
]


class BlackboxError(Exception):
    """Base of all errors raised on purpose."""


class DataError(BlackboxError):
    """A table or a text that can't be used; the message names file, row and column.

    Also rows whose answers don't fit in memory.
    """


class PromptError(BlackboxError, ValueError):
    """A template that can't be parsed or rendered; the message shows the place."""


class ModelFileError(BlackboxError):
    """A saved model that is damaged, hostile, or of a format this version doesn't read."""


class StoreError(BlackboxError):
    """The file of the forward-pass store can't be used; the message names it."""


class BudgetError(BlackboxError):
    """A budget was reached; no request beyond it was sent, and what was answered is stored."""


class RowError(BlackboxError):
    """Rows that the LM could not answer.

    Attributes
    ----------
    reasons : dict of int to str
        For each refused row, counted from 0 in the input, why.
    """

    def __init__(self, message: str, reasons: dict[int, str]) -> None:
        super().__init__(message)
        self.reasons = reasons

    def __reduce__(self) -> tuple[type[RowError], tuple[str, dict[int, str]]]:
        return type(self), (str(self), self.reasons)


class BackendError(BlackboxError):
    """Anything about the language model or the software that runs it."""


class MissingDependencyError(BackendError, ImportError):
    """The software of a backend is not installed; the message has the command that installs it."""


class ModelNotFoundError(BackendError):
    """No such model, or it could not be fetched."""


class UnservedPromptError(BackendError):
    """The backend can't serve such a request; nothing was sent and nothing spent."""


class BackendIdentityError(BackendError):
    """The LM that answers is not the one that the model was trained with."""


class BackendResponseError(BackendError):
    """The LM's answer breaks the contract of `TokenLogProbs`."""
