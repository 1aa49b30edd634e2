"""Labels handed to `fit`: refused in words that name the row, and taken as pandas has them."""

from __future__ import annotations

import enum
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import cross_val_score

from blackbox import PromptBoostingClassifier
from blackbox.answers.labels import label_array
from blackbox.answers.texts import check_texts
from blackbox.errors import BudgetError, ModelFileError
from blackbox.fitting.run import usable_top_k

TEXTS = [f"text number {n}" for n in range(8)]


class Feeling(str, enum.Enum):  # noqa: UP042 - its str() isn't its value
    """Labels as values of an enum."""

    GOOD = "good"
    BAD = "bad"


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
        (pd.Series([1, 2] * 4, dtype="Int64"), "i"),
        (pd.Series([True, False] * 4, dtype="boolean"), "b"),
        (pd.Series([True, False] * 4, dtype="category"), "b"),
        ([Feeling.GOOD, Feeling.BAD] * 4, "U"),
    ],
    ids=range(12),
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


@pytest.mark.parametrize(
    "labels",
    [["a", "a\0"] * 4, np.array(["a", "a\0"] * 4, object), [["a"], ["a\0"]] * 4],
    ids=["list", "objects", "sets"],
)
def test_labels_that_an_array_would_merge_are_refused(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"^row 1: the label 'a\\x00' ends in a NUL"):
        classifier().fit(TEXTS, labels)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["2020-01-01", "2021-01-01"] * 4, "datetime64[D]"),
        np.array(["2020-01-01", "2021-01-01"] * 4, "datetime64[ns]"),
        np.array([2**63 + 5, 1] * 4, np.uint64),
        [[b"a"], [b"b"]] * 4,
    ],
    ids=range(4),
)
def test_labels_that_no_file_can_hold_are_a_warning_before_any_pass(
    labels: Any, tmp_path: Path
) -> None:
    model = classifier(store=False, max_forward_passes=0)
    said = pytest.warns(UserWarning, match="^a model of these labels can't be saved")
    with said, pytest.raises(BudgetError):
        model.fit(TEXTS, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.set_params(max_forward_passes=None).fit(TEXTS, labels)
    with pytest.raises(ModelFileError):
        model.save(tmp_path / "m")


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


@pytest.mark.parametrize("labels", [[1, "1"] * 4, [True, 1, 2, False] * 2, [1, 2.5] * 4])
def test_types_are_not_mixed_in_a_list_either(labels: list[Any]) -> None:
    with pytest.raises(ValueError, match="make all labels str or all int"):
        classifier().fit(TEXTS, labels)


@pytest.mark.parametrize(("dtype", "one", "other"), [("string", "a", "b"), ("Int64", 1, 2)])
def test_a_missing_label_of_pandas_is_a_text_without_one(dtype: str, one: Any, other: Any) -> None:
    labels = pd.Series([one, other] * 3 + [pd.NA] * 2, dtype=dtype)
    trained = classifier(classes=[one, other]).fit(TEXTS, labels)
    assert trained.classes_.tolist() == [one, other]
    assert trained.training_summary_["n_rows"] == 6


@pytest.mark.parametrize("form", [np.array, pd.Series, pd.Index, tuple])
def test_classes_come_in_any_container(form: Any) -> None:
    labels = ["a", "b", "a", None] * 2
    by_list = classifier(classes=["a", "b", "c"]).fit(TEXTS, labels)
    model = classifier(classes=form(["a", "b", "c"])).fit(TEXTS, labels)
    assert model.classes_.tolist() == ["a", "b", "c"]
    assert np.array_equal(model.predict_proba(TEXTS), by_list.predict_proba(TEXTS))
    numbers = classifier(classes=form([2, 1]), ordered=True).fit(TEXTS, [1, 2] * 4)
    assert numbers.model_.order.tolist() == [1, 0]


@pytest.mark.parametrize(("label", "kind"), [(-1, "i"), (0.5, "f"), ("?", "O"), (True, "O")])
def test_the_label_of_no_answer_keeps_the_type_where_it_can(label: Any, kind: str) -> None:
    trained = classifier(on_row_error="abstain", abstain_label=label).fit(TEXTS, [1, 2] * 4)
    found = trained.predict([*TEXTS[:2], ""])
    assert found.dtype.kind == kind
    assert found[-1] == label
