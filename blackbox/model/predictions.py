"""`Predictions`: the classes, scores and probabilities that a model gives texts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import RowError
from blackbox.model.out_of_scope import OutOfScope
from blackbox.model.reliability import Promise
from blackbox.plurals import counted
from blackbox.protocol import Usage

__all__ = ["NONE_OF_THESE", "NO_ANSWER", "Predictions", "labels_of"]

NO_ANSWER = -1
"""The class code of a row that got no answer."""

NONE_OF_THESE = -2
"""The class code of a text of none of the classes, as a model's `OutOfScopeDetector` finds it."""


@dataclass(frozen=True)
class Predictions:
    """Predicted classes, scores and probabilities of n texts.

    Parameters
    ----------
    classes : array of shape (n_classes,)
        The labels.
    codes : int array of shape (n,)
        Indices into `classes`; `NO_ANSWER` for rows without an answer, and `NONE_OF_THESE` for
        those of none of the classes.
    scores : float64 array of shape (n, n_classes), or (n,) for two classes
        Decision scores, NaN without an answer; with early stopping, over the prompts asked.
    probabilities : float64 array of shape (n, n_classes), or None
        Class probabilities, NaN without an answer; None with early stopping.
    prompts_asked : int array of shape (n,)
        Number of prompts asked per row.
    row_errors : dict of int to str
        The reasons of rows without an answer.
    truncated_rows : set of int
        Rows whose text was truncated to fit the LM's context.
    usage : Usage
        Passes, tokens and time of the prediction.
    withheld : dict of int to str
        The reasons of rows whose label is withheld to keep a promised error; they have scores.
    out_of_scope : OutOfScope, optional
        How unusual the texts are, of a model that notices those of none of its classes.
    """

    classes: NDArray[Any]
    codes: NDArray[np.intp]
    scores: NDArray[np.float64]
    probabilities: NDArray[np.float64] | None
    prompts_asked: NDArray[np.intp]
    row_errors: dict[int, str]
    truncated_rows: set[int]
    usage: Usage
    withheld: dict[int, str] = field(default_factory=dict)
    out_of_scope: OutOfScope | None = None

    def keeping(self, promise: Promise) -> Predictions:
        """Return these predictions without the labels that a promised error rules out.

        Texts of none of the classes stay what they are: the promise is about labels of classes.

        Parameters
        ----------
        promise : Promise
            From `Model.promise`.

        Raises
        ------
        ValueError
            If they have no probabilities, as with early stopping.
        """
        if self.probabilities is None:
            raise ValueError("a promised error takes probabilities: predict without early stopping")
        withheld = {
            row: why
            for row, why in promise.withheld(self.probabilities).items()
            if self.codes[row] != NONE_OF_THESE
        }
        codes = self.codes.copy()
        codes[list(withheld)] = NO_ANSWER
        return replace(self, codes=codes, withheld=withheld)

    def labels(self, abstain_label: Any = None) -> NDArray[Any]:
        """Return the label of each row.

        Parameters
        ----------
        abstain_label : object, optional
            The label of rows without an answer, or whose label is withheld.

        Raises
        ------
        RowError
            If there is such a row and no `abstain_label`.
        """
        reasons = {**self.row_errors, **self.withheld}
        found = self.out_of_scope
        if found is None:
            return labels_of(self.classes, self.codes, abstain_label, reasons)
        # one more class, whose code is the last
        known = self.classes.tolist()
        alike = type(found.label) is type(known[0])
        classes = np.array([*known, found.label], None if alike else object)
        codes = np.where(self.codes == NONE_OF_THESE, len(known), self.codes)
        return labels_of(classes, codes, abstain_label, reasons)

    def set_labels(self, row: int, chosen: NDArray[np.bool_]) -> list[Any]:
        """Return the labels in the prediction set of a row: of its classes, and that of no class.

        Parameters
        ----------
        row : int
            The row.
        chosen : bool array of shape (n_classes,)
            Its classes, from `Model.prediction_sets`.
        """
        labels: list[Any] = self.classes[chosen].tolist()
        if self.out_of_scope is not None and self.codes[row] == NONE_OF_THESE:
            labels.append(self.out_of_scope.label)
        return labels

    def reason(self, row: int) -> str | None:
        """Return why a row has no label of a class; None where it has one."""
        if self.out_of_scope is not None and self.codes[row] == NONE_OF_THESE:
            return self.out_of_scope.describe(row)
        return self.row_errors.get(row) or self.withheld.get(row)

    def label_probabilities(self) -> NDArray[np.float64]:
        """Return the probability of the label of each row: (n,).

        NaN where there is none: without an answer, without a label, and for texts of none of the
        classes. With classes in an order it isn't the largest one always.
        """
        assert self.probabilities is not None
        of_class = self.codes >= 0
        found = np.full(len(self.codes), np.nan)
        found[of_class] = self.probabilities[of_class, self.codes[of_class]]
        return found

    def label_of(self, row: int) -> Any:
        """Return the label of one row as a Python value; None without one."""
        code = int(self.codes[row])
        if code == NONE_OF_THESE and self.out_of_scope is not None:
            return self.out_of_scope.label
        return None if code == NO_ANSWER else self.classes[code : code + 1].tolist()[0]

    def cells(self) -> list[Any]:
        """Return what a table has for the label of each row; "" without one."""
        return [str(label) for label in self.labels(abstain_label="").tolist()]

    def lists(self) -> list[list[str] | None]:
        """Return the labels of each row, for a table whose cells are lists; None without an answer.

        A text of a model that gives one label has a list of one.
        """
        found: list[list[str] | None] = []
        for row in range(len(self.codes)):
            label = self.label_of(row)
            labels = label if isinstance(label, list) else [label]
            found.append(None if label is None else [str(one) for one in labels])
        return found


def labels_of(
    classes: NDArray[Any],
    codes: NDArray[np.intp],
    abstain_label: Any,
    row_errors: dict[int, str],
) -> NDArray[Any]:
    """Return the labels of class codes; see `Predictions.labels`."""
    missing = codes == NO_ANSWER
    if not missing.any():
        return np.asarray(classes[codes])
    if abstain_label is None:
        raise RowError(
            f"{counted(int(missing.sum()), 'row')} got no answer (the first is row "
            f"{int(np.flatnonzero(missing)[0])}): set abstain_label to label them",
            dict(row_errors),
        )
    labels = classes[np.maximum(codes, 0)]
    # of one type, so that scikit-learn's scores take them
    is_number = isinstance(abstain_label, int | float | np.number)
    alike = is_number and labels.dtype.kind in "if" and not isinstance(abstain_label, bool)
    labels = labels.astype(np.result_type(labels, type(abstain_label)) if alike else object)
    labels[missing] = abstain_label
    return np.asarray(labels)
