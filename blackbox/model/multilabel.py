"""`MultilabelModel`: a trained classifier of several labels per text, and its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import RowError
from blackbox.model.heads import Head, Heads
from blackbox.model.model import Evidence, Model
from blackbox.model.predictions import NO_ANSWER, Predictions
from blackbox.model.reliability import HeldOutRows, Promise
from blackbox.plurals import counted
from blackbox.prompts.pool import PromptPool

__all__ = ["DEFAULT_SEPARATOR", "MultilabelModel", "MultilabelPredictions", "labels_of_sets"]

DEFAULT_SEPARATOR = ";"
"""The separator of the labels of a text in one cell of a table."""

_FIGURES = ("precision", "recall", "f1")

_NO_PROMISE = (
    "errors are promised, and prediction sets made, for one label per text, and this model gives "
    "several: choose by their probabilities"
)


@dataclass(frozen=True)
class MultilabelPredictions(Predictions):
    """Predicted labels, scores and probabilities of n texts, of which each has any number.

    As `Predictions`, with one column per label: `codes` are 1 for the labels that a text has, 0 for
    the others, and `NO_ANSWER` in rows without an answer; each probability is of its own.

    Parameters
    ----------
    indicator : bool
        Whether `labels` are an indicator matrix, as the training was given.
    separator : str or None
        What stands between labels in a cell of a table; None for cells that are lists.
    """

    indicator: bool = False
    separator: str | None = DEFAULT_SEPARATOR

    def keeping(self, promise: Promise) -> NoReturn:
        """Raise, as no error of several labels is promised."""
        raise ValueError(_NO_PROMISE)

    def labels(self, abstain_label: Any = None) -> Any:
        """Return the labels of each row; see `labels_of_sets`."""
        return labels_of_sets(
            self.classes, self.codes, abstain_label, self.row_errors, indicator=self.indicator
        )

    def label_of(self, row: int) -> list[Any] | None:
        """Return the labels of one row; None without an answer."""
        if self.codes[row, 0] == NO_ANSWER:
            return None
        return list(self.classes[self.codes[row] == 1].tolist())

    def cells(self) -> list[Any]:
        """Return what a table has for each row: labels joined, or a list; empty without an answer.

        The labels of a text that has none are ``[]``, so that it isn't taken for one without an
        answer.
        """
        return [self._cell(self.label_of(row)) for row in range(len(self.codes))]

    def _cell(self, labels: list[Any] | None) -> Any:
        names = None if labels is None else [str(label) for label in labels]
        if self.separator is None:
            return names
        return "" if names is None else self.separator.join(names) or "[]"


def labels_of_sets(
    classes: NDArray[Any],
    codes: NDArray[np.intp],
    abstain_label: Any,
    row_errors: dict[int, str],
    *,
    indicator: bool,
) -> Any:
    """Return the labels of rows of an indicator matrix.

    Parameters
    ----------
    classes : array of shape (n_labels,)
        The labels.
    codes : int array of shape (n, n_labels)
        1, 0, or `NO_ANSWER`.
    abstain_label : object
        What stands for the labels of a row without an answer; with `indicator` a whole number,
        which fills the row.
    row_errors : dict of int to str
        The reasons of rows without an answer.
    indicator : bool
        Whether to return an int matrix of shape (n, n_labels), or a list of n tuples.

    Raises
    ------
    RowError
        If there is a row without an answer and no `abstain_label`.
    ValueError
        If that doesn't fit into an indicator matrix.
    """
    missing = codes[:, 0] == NO_ANSWER
    if missing.any() and abstain_label is None:
        raise RowError(
            f"{counted(int(missing.sum()), 'row')} got no answer (the first is row "
            f"{int(np.flatnonzero(missing)[0])}): set abstain_label to label them",
            dict(row_errors),
        )
    if indicator:
        filled = codes.astype(np.int64)
        if missing.any():
            if not isinstance(abstain_label, int | np.integer):
                raise ValueError(
                    "abstain_label fills a row of an indicator matrix: give a whole number such "
                    f"as -1, not {abstain_label!r}"
                )
            filled[missing] = abstain_label
        return filled
    named = classes.tolist()
    return [
        abstain_label
        if missing[row]
        else tuple(named[code] for code in np.flatnonzero(codes[row]).tolist())
        for row in range(len(codes))
    ]


@dataclass(frozen=True)
class MultilabelModel(Model):
    """A trained classifier that gives each text any number of labels.

    A `Model` whose classes are the labels and whose ensemble are `Heads`: each label has a binary
    model of its own, with its own calibration, and they share prompts, answers and embeddings.

    Parameters
    ----------
    heads : tuple of n_labels Model or None
        The binary models; None for a label that all training texts had, or none of them.
    thresholds : float64 array of shape (n_labels,)
        A text has the labels whose probability is above theirs.
    shares : float64 array of shape (n_labels,)
        The share of the training texts with each label.
    indicator : bool
        Whether predictions are an indicator matrix, as the training was given, or lists.
    separator : str or None
        What stood between the labels of a text in a cell of the training table; None for lists.
    """

    heads: tuple[Model | None, ...] = ()
    thresholds: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    shares: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    indicator: bool = False
    separator: str | None = DEFAULT_SEPARATOR

    @classmethod
    def of(
        cls,
        labels: NDArray[Any],
        heads: Sequence[Model | None],
        thresholds: NDArray[np.float64],
        shares: NDArray[np.float64],
        prompts: PromptPool,
        *,
        summary: dict[str, Any],
        row_digests: NDArray[np.uint64] | None = None,
        indicator: bool = False,
        separator: str | None = DEFAULT_SEPARATOR,
    ) -> Self:
        """Return the model of binary models over shared prompts.

        Parameters
        ----------
        labels : array of shape (n_labels,)
            The labels.
        heads : sequence of n_labels Model or None
            At least one is a model.
        thresholds : float64 array of shape (n_labels,)
            See the class.
        shares : float64 array of shape (n_labels,)
            See the class; in (0, 1), as they are the probabilities of labels without a model.
        prompts : PromptPool
            The prompts that some head reads, in the order to ask them.
        summary, row_digests, indicator, separator
            See the class, and `Model`.
        """
        numbers = {prompt: number for number, prompt in enumerate(prompts)}
        models = [one for one in heads if one is not None]
        ensemble = Heads.over(
            [None if one is None else one.ensemble for one in heads],
            [[] if one is None else [numbers[p] for p in one.prompts] for one in heads],
            len(prompts),
            np.log(shares / (1 - shares)),
        )
        first = models[0]
        return cls(
            classes=labels,
            prompts=prompts,
            ensemble=ensemble,
            token_bytes={t: data for one in models for t, data in one.token_bytes.items()},
            identity=first.identity,
            top_k=first.top_k,
            summary=summary,
            embedder_identity=next(
                (one.embedder_identity for one in models if one.embedder_identity), None
            ),
            row_digests=row_digests,
            heads=tuple(heads),
            thresholds=thresholds,
            shares=shares,
            indicator=indicator,
            separator=separator,
        )

    @property
    def several_labels(self) -> bool:
        """Whether a text may have several labels."""
        return True

    @property
    def cell_type(self) -> type:
        """The type of `MultilabelPredictions.cells`."""
        return list if self.separator is None else str

    def __repr__(self) -> str:
        return (
            f"<Model of {counted(len(self.classes), 'label')}, any number per text: "
            f"{self.ensemble.algorithm.name} over {counted(len(self.prompts), 'prompt')}, LM "
            f"{self.identity.model!r}>"
        )

    def check_early_stop(self, early_stop: str | None) -> None:
        """Raise, as prompts are not left out for several labels."""
        if early_stop is not None:
            raise ValueError(
                "early stopping settles one label per text, and this model gives several: predict "
                "without early_stop"
            )

    def codes_of(self, scores: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return which labels each row of scores has: (n, n_labels), as in predictions."""
        return self.codes_of_probabilities(self.ensemble.probabilities(scores))

    def codes_of_probabilities(self, probabilities: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return which labels each row of probabilities has: (n, n_labels)."""
        missing = np.isnan(probabilities).any(axis=1)
        codes = (np.nan_to_num(probabilities) > self.thresholds).astype(np.intp)
        codes[missing] = NO_ANSWER
        return codes

    def labels_of(
        self, codes: NDArray[np.intp], abstain_label: Any, row_errors: dict[int, str]
    ) -> Any:
        """Return the labels of codes; see `labels_of_sets`."""
        return labels_of_sets(
            self.classes, codes, abstain_label, row_errors, indicator=self.indicator
        )

    def evidence_of(self, label: int, evidence: Evidence) -> tuple[Model, Evidence] | None:
        """Return the binary model of a label and its part of evidence; None if it has no model."""
        model = self.heads[label]
        if model is None:
            return None
        head = next(one for one in self._heads if one.label == label)
        scores = head.of_expert(evidence.expert_scores)[: len(model.ensemble.experts)]
        return model, Evidence(head.matrices(evidence.matrices), scores, evidence.vectors)

    @property
    def _heads(self) -> tuple[Head, ...]:
        assert isinstance(self.ensemble, Heads)
        return self.ensemble.heads

    def _held_out(self) -> HeldOutRows:
        raise ValueError(_NO_PROMISE)

    def _predictions(self, predicted: Predictions) -> Predictions:
        fields = {name: getattr(predicted, name) for name in predicted.__dataclass_fields__}
        return MultilabelPredictions(**fields, indicator=self.indicator, separator=self.separator)

    def describe_labels(self) -> list[dict[str, Any]]:
        """Return what is known of each label, as JSON data.

        Returns
        -------
        list of n_labels dict
            ``label``, ``n_rows`` of the training with it (None where that is unknown),
            ``threshold``, and on held-out rows ``precision``, ``recall`` and ``f1``, where there
            are any.
        """
        counts = self.summary.get("class_counts")
        if not isinstance(counts, list) or len(counts) != len(self.classes):
            counts = [None] * len(self.classes)  # a file may hold anything
        described = []
        for label, n, threshold, head in zip(
            self.classes.tolist(), counts, self.thresholds.tolist(), self.heads, strict=True
        ):
            found = {} if head is None else head.summary
            figures = {
                name: found[name] for name in _FIGURES if type(found.get(name)) in (int, float)
            }
            n_rows = n if type(n) is int else None
            described.append(
                {"label": str(label), "n_rows": n_rows, "threshold": threshold, **figures}
            )
        return described

    def with_separator(self, separator: str | None) -> Self:
        """Return the model with another separator of the labels in a cell."""
        return replace(self, separator=separator)
