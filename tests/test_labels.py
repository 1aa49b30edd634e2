"""Labels handed to `fit`: refused in words that name the row, and taken as pandas has them."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import cross_val_score

from blackbox import PromptBoostingClassifier
from blackbox.answers.labels import label_array
from blackbox.answers.texts import check_texts
from blackbox.fitting.run import usable_top_k

TEXTS = [f"text number {n}" for n in range(8)]


def classifier(**options: Any) -> PromptBoostingClassifier:
    return PromptBoostingClassifier(
        "deterministic", prompts=["{text} {mask}"], n_estimators=2, **options
    )


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (np.array([1, 2] * 4, object), "i"),
        (pd.Series([1, 2] * 4, dtype=object), "i"),
        (np.array([np.int8(1), np.int64(2)] * 4, object), "i"),
        (np.array([True, False] * 4, object), "b"),
        (pd.Series(["a", "b"] * 4, dtype="category"), "O"),
        (pd.Series(["a", "b"] * 4, dtype="string"), "O"),
        (["a", "b"] * 4, "U"),
        ([1, 2] * 4, "i"),
    ],
    ids=range(8),
)
def test_columns_of_pandas_are_labels(labels: Any, kind: str) -> None:
    trained = classifier().fit(TEXTS, labels)
    assert trained.classes_.dtype.kind == kind
    assert set(trained.predict(TEXTS)) <= set(labels)


@pytest.mark.parametrize(
    "labels",
    [
        pd.Series(["a", None, "b"]),
        pd.Series(["a", np.nan, "b"]),
        pd.Series(["a", pd.NA, "b"], dtype="string"),
        pd.Series(["a", pd.NA, "b"], dtype="category"),
        pd.Series([1, pd.NA, 2], dtype="Int64"),
        np.array([1.0, np.nan, 2.0]),
        np.array(["a", None, "b"], object),
        ["a", None, "b"],
        ["a", float("nan"), "b"],
        (1, None, 2),
    ],
    ids=range(10),
)
def test_a_missing_label_is_named_by_its_row(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"^row 1: the label is missing .*keep_default_na=False"):
        classifier().fit(TEXTS[:3], labels)


@pytest.mark.parametrize(
    "labels", [[{"a"}, {"b"}], [["a"], ["a", "b"]], [[], ["a"]], np.array([{"a": 1}, "b"], object)]
)
def test_several_labels_point_to_the_page_about_them(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"^row \d: .*docs/several-labels\.md"):
        label_array(labels)


def test_labels_of_two_types_name_both_rows() -> None:
    with pytest.raises(ValueError, match="label of row 2 is of type str and that of row 0 of type"):
        label_array(np.array([1, 2, "a"], object))


def test_labels_that_look_alike_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    labels = np.array(["Yes!", "yes!", "n\u00f6", "no\u0308"] * 2)
    for _ in range(3):
        assert label_array(labels) is not None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "'Yes!' and 'yes!'" in record.getMessage()
    # by code points, as both look the same
    assert r"'no\u0308' and 'n\xf6'" in record.getMessage()


def test_a_top_k_that_is_lowered_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    cross_val_score(classifier(top_k=1_234), TEXTS, ["a", "b"] * 4, cv=2)
    usable_top_k(classifier().connect(), 1_234)
    (record,) = (one for one in caplog.records if "lowered" in one.getMessage())
    assert record.getMessage().startswith("top_k=1234 lowered to 512")


class Table:
    """The attributes of a data set of the Hugging Face hub."""

    column_names = ("text", "label")


@pytest.mark.parametrize("X", [{"text": TEXTS, "label": TEXTS}, Table()], ids=["dict", "dataset"])
def test_a_table_as_x_is_refused_with_its_columns(X: Any) -> None:
    with pytest.raises(TypeError, match=r"columns 'text', 'label'; .*X\['text'\]"):
        check_texts(X)


def test_texts_with_their_labels_as_x_are_refused() -> None:
    labels = ["a", "b"] * 4
    rows = list(zip(TEXTS, labels, strict=True))
    with pytest.raises(ValueError, match=r"second column of X is the labels"):
        PromptBoostingClassifier("deterministic", store=False).fit(rows, labels)
