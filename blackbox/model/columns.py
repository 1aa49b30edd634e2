"""Columns of predictions: what a prediction adds to the rows of a table, however they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.backend import BaseBackend
from blackbox.errors import RowError
from blackbox.model.model import Model
from blackbox.model.predictions import NONE_OF_THESE, Predictions
from blackbox.model.reliability import Promise
from blackbox.protocol import Usage
from blackbox.tables import Row, is_open, texts_of_rows

__all__ = ["PredictedRows", "PredictionColumns"]


@dataclass(frozen=True)
class PredictedRows:
    """The new columns of some rows, and what became of them.

    Parameters
    ----------
    columns : list of dict
        The new columns of each row: with empty values where there is no prediction, and none where
        the row had a label.
    failures : dict of int to str
        The reasons of rows without an answer, by their places.
    counts : dict of str to int
        Numbers of `rows` that were predicted or failed, and of `labelled` ones that had a label;
        of the former, `abstained` ones without an answer, `withheld` ones, whose label a promised
        error rules out, `truncated` ones, and those of `none_of_these` classes; and `in_sets`, the
        labels in all prediction sets.
    usage : Usage
        Passes, tokens and time of the prediction.
    """

    columns: list[dict[str, Any]]
    failures: dict[int, str]
    counts: dict[str, int]
    usage: Usage


@dataclass(frozen=True)
class PredictionColumns:
    """The columns that predictions of a model add to a table.

    Parameters
    ----------
    model : Model
        The model.
    text_columns : tuple of str
        The column of texts; of pairs, both; and that of images.
    fill : str, optional
        A column of the table that takes the labels, instead of a new column `prediction`; rows that
        have one there are left as they are.
    early_stop : {"exact", "risk"}, optional
        As for `Model.predict`; a column `prompts_asked` takes the place of the probabilities then.
    on_row_error : {"raise", "abstain"}, optional
        How to handle a row that is empty or that the LM refuses; ``"abstain"`` adds a column
        `reason`, and None leaves such rows without a prediction.
    promise : Promise, optional
        Withhold labels to keep a promised error; adds `reason` too.
    set_coverage : float, optional
        The coverage of prediction sets, which are added then.
    image_column : str, optional
        Which of the columns is the one of images.

    Raises
    ------
    ValueError
        If the model can't give such columns; nothing was spent.
    """

    model: Model
    text_columns: tuple[str, ...] = ("text",)
    fill: str | None = None
    early_stop: str | None = None
    on_row_error: str | None = None
    promise: Promise | None = None
    set_coverage: float | None = None
    image_column: str | None = None

    def __post_init__(self) -> None:
        self.model.check_early_stop(self.early_stop)
        if self.set_coverage is not None:
            self.model.prediction_sets(np.empty((0, len(self.model.classes))), self.set_coverage)

    @property
    def types(self) -> dict[str, type]:
        """The new columns, in order, and the type of their values that are not missing."""
        found: dict[str, type] = {} if self.fill else {"prediction": self.model.cell_type}
        if self.early_stop is None:
            found |= {f"probability_{label}": float for label in self.model.classes.tolist()}
        else:
            found["prompts_asked"] = int
        if self.set_coverage is not None:
            found["prediction_set"] = list
        noticing = self.model.out_of_scope is not None
        if noticing:
            found["p_known"] = float
        if noticing or self.on_row_error == "abstain" or self.promise is not None:
            found["reason"] = str
        return found

    def predict(
        self,
        lm: BaseBackend,
        rows: Sequence[Row],
        name: str,
        *,
        embedder: BaseBackend | None = None,
        lists: bool = False,
    ) -> PredictedRows:
        """Return the new columns of some rows of a table.

        Parameters
        ----------
        lm, embedder
            As for `Model.predict`.
        rows : sequence of Row
            Rows of the table.
        name : str
            Its name, for messages.
        lists : bool, default=False
            Whether the column to fill holds lists of labels; what is filled is one then, too.

        Raises
        ------
        DataError
            If a text can't be used, under ``on_row_error="raise"``.
        RowError
            If a row got no answer, under ``on_row_error="raise"``.
        """
        raises = self.on_row_error == "raise"
        several = self.model.several_labels
        places = [
            place
            for place, row in enumerate(rows)
            if not self.fill or is_open(row, self.fill, several=several)
        ]
        open_rows = [rows[place] for place in places]
        texts, unusable = texts_of_rows(
            open_rows, self.text_columns, name, image_column=self.image_column, raises=raises
        )
        if not texts:
            counts = {"rows": 0, "labelled": len(rows)}
            return PredictedRows([{} for _ in rows], {}, counts, Usage())
        try:
            predictions = self.model.predict(
                lm,
                texts,
                self.early_stop,
                embedder=embedder,
                on_row_error=self.on_row_error or "abstain",
            )
        except RowError as error:
            at = {places[row]: reason for row, reason in error.reasons.items()}
            raise RowError(str(error), at) from error
        predictions.row_errors.update(unusable)
        if self.promise is not None:
            predictions = predictions.keeping(self.promise)
        sets = None
        if self.set_coverage is not None and predictions.probabilities is not None:
            sets = self.model.prediction_sets(predictions.probabilities, self.set_coverage)
        columns: list[dict[str, Any]] = [{} for _ in rows]
        for place, found in zip(places, self._columns(predictions, sets, lists), strict=True):
            columns[place] = found
        failures = {places[row]: reason for row, reason in predictions.row_errors.items()}
        counts = {
            "rows": len(places),
            "labelled": len(rows) - len(places),
            "abstained": len(failures),
            "withheld": len(predictions.withheld),
            "truncated": len(predictions.truncated_rows),
            "none_of_these": int((predictions.codes == NONE_OF_THESE).sum()),
            "in_sets": 0 if sets is None else int(sets.sum()),
        }
        return PredictedRows(columns, failures, counts, predictions.usage)

    def _columns(
        self, predictions: Predictions, sets: NDArray[np.bool_] | None, lists: bool
    ) -> list[dict[str, Any]]:
        """Return the new columns of each row, empty where there is no prediction."""
        classes, found = predictions.classes.tolist(), []
        added = self.types
        cells = predictions.lists() if lists else predictions.cells()
        for row, cell in enumerate(cells):
            columns: dict[str, Any] = {self.fill or "prediction": cell}
            missing = row in predictions.row_errors
            if predictions.probabilities is None:
                columns["prompts_asked"] = int(predictions.prompts_asked[row])
            else:
                shares = predictions.probabilities[row].tolist()
                for name, share in zip(classes, shares, strict=True):
                    columns[f"probability_{name}"] = None if missing else round(share, 6)
            if sets is not None:
                names = [str(one) for one in predictions.set_labels(row, sets[row])]
                columns["prediction_set"] = names or None
            if predictions.out_of_scope is not None:
                share = float(predictions.out_of_scope.p_known[row])
                columns["p_known"] = None if missing else round(share, 6)
            if "reason" in added:
                columns["reason"] = predictions.reason(row) or ""
            found.append(columns)
        return found
