"""The exception hierarchy: every error that this package raises on purpose.

    BlackboxError
    ├── DataError                 a table or text that can't be used (file, row, column), or more
    │   │                         rows than memory holds
    │   └── ImageError            an image that can't be read, or isn't one
    ├── PromptError               a template that can't be parsed or rendered (also ValueError)
    ├── ModelFileError            a saved model that is damaged, malicious or of another format
    ├── HubError                  a model on the Hugging Face hub that can't be fetched or pushed
    ├── LibraryError              a library of models, or a source of it, that can't be used
    ├── StoreError                the file of the forward-pass store can't be used
    ├── BudgetError               a budget was reached; everything paid for is stored
    ├── UnknownPriceError         a cost is limited, and the LM's price is unknown
    ├── RowError                  rows that the LM could not answer, under on_row_error="raise"
    └── BackendError              an error of the language model or its software
        ├── MissingDependencyError   its software is not installed (also ImportError)
        ├── ModelNotFoundError       no such model, or it could not be fetched
        ├── UnservedPromptError      the backend can't serve such a request; nothing was spent
        ├── BackendContractError     a backend of one's own that breaks what the package relies on
        ├── BackendIdentityError     the LM is not the one that the model was trained with
        └── BackendResponseError     an answer that breaks the contract of `TokenLogProbs`

Bad arguments stay `ValueError` and `TypeError`, as scikit-learn's users expect.
Messages are one line: what is wrong, where, and what to do.
"""

from __future__ import annotations

__all__ = [
    "BackendContractError",
    "BackendError",
    "BackendIdentityError",
    "BackendResponseError",
    "BlackboxError",
    "BudgetError",
    "DataError",
    "HubError",
    "ImageError",
    "LibraryError",
    "MissingColumnError",
    "MissingDependencyError",
    "ModelFileError",
    "ModelNotFoundError",
    "PromptError",
    "RowError",
    "StoreError",
    "UnknownPriceError",
    "UnservedPromptError",
]


class BlackboxError(Exception):
    """Base of all errors raised on purpose."""


class DataError(BlackboxError):
    """A table or text that can't be used; the message names file, row and column.

    Also raised for rows whose answers don't fit in memory.
    """


class ImageError(DataError):
    """An image that can't be read, isn't one, or is too large."""


class MissingColumnError(DataError):
    """A table that lacks a column; the message lists those there are.

    Parameters
    ----------
    message : str
        The message.
    column : str
        The column that was asked for.
    """

    def __init__(self, message: str, column: str = "") -> None:
        super().__init__(message)
        self.column = column


class HubError(BlackboxError):
    """A model on the Hugging Face hub that can't be fetched or pushed; the message names it."""


class LibraryError(BlackboxError):
    """A library of trained models, or a source in it, that can't be used."""


class PromptError(BlackboxError, ValueError):
    """A template that can't be parsed or rendered; the message shows the place."""


class ModelFileError(BlackboxError):
    """A saved model that is damaged, malicious, or of a format that this version can't read."""


class StoreError(BlackboxError):
    """A forward-pass store whose file can't be used; the message names it."""


class BudgetError(BlackboxError):
    """A reached budget; no request beyond it was sent, and all answers are stored."""


class UnknownPriceError(BlackboxError):
    """A limit on the cost of an LM whose price is unknown; nothing was sent."""


class RowError(BlackboxError):
    """Rows without an answer.

    Attributes
    ----------
    reasons : dict of int to str
        The reason for each row, counted from 0 in the input.
    """

    def __init__(self, message: str, reasons: dict[int, str]) -> None:
        super().__init__(message)
        self.reasons = reasons

    def __reduce__(self) -> tuple[type[RowError], tuple[str, dict[int, str]]]:
        return type(self), (str(self), self.reasons)


class BackendError(BlackboxError):
    """An error of the language model or of the software that runs it."""


class MissingDependencyError(BackendError, ImportError):
    """Missing software of a backend; the message has the command that installs it."""


class ModelNotFoundError(BackendError):
    """A model that does not exist or could not be downloaded."""


class UnservedPromptError(BackendError):
    """A request that the backend can't serve; nothing was sent and nothing spent."""


class BackendContractError(BackendError):
    """A backend that breaks what the package relies on; `backends.check_backend` raises it."""


class BackendIdentityError(BackendError):
    """An LM other than the one that the model was trained with."""


class BackendResponseError(BackendError):
    """An answer of the LM that breaks the contract of `TokenLogProbs`."""
