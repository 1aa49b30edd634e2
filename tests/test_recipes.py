"""The recipes of docs/recipes.md, and what the page says about the containers of other packages."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.model_selection import cross_val_score, learning_curve

from backends.deterministic import DeterministicBackend
from blackbox import PromptBoostingClassifier
from blackbox.answers.frames import label_names, to_rows
from blackbox.answers.texts import check_texts
from blackbox.errors import RowError
from blackbox.loading import load_model
from tests.fakes import CountingBackend
from tests.serving import LABELS, TEXTS
from tests.test_docs import ROOT, examples

PAIRS = [(text, f"{text} {number}") for number, text in enumerate(TEXTS)]
PROMPTS = ["{text} It is about {mask}", "{text} The topic is {mask}"]
PAIR_PROMPTS = ["{text} So {text_pair} {mask}"]


def classifier(backend="deterministic", **options):
    options = {"prompts": PROMPTS, "n_estimators": 5, "random_state": 0, "store": False} | options
    return PromptBoostingClassifier(backend, **options)


@pytest.fixture
def requests(monkeypatch, tmp_path):
    """The requests that were made, over one store."""
    made = []
    answer = DeterministicBackend.next_token

    def next_token(self, prompts, top_k):
        made.extend(prompts)
        return answer(self, prompts, top_k)

    monkeypatch.setattr(DeterministicBackend, "next_token", next_token)
    monkeypatch.setenv("PROMPTBOOSTING_STORE", str(tmp_path / "store.sqlite"))
    return made


def run_recipes(codes, names):
    for code in codes:
        exec(compile(code, "recipes.md", "exec"), names)
    return names


def test_the_recipes_run_and_make_no_request_twice(requests, capsys):
    *codes, _, _ = examples(ROOT / "docs" / "recipes.md")
    names = run_recipes(codes, {})
    assert len(requests) == len(set(requests)) > 60
    assert names["both"].score(names["X"], names["y"]) == 1
    assert names["p_value"] < 0.5
    assert "prompt0_" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.frames
def test_the_recipes_over_other_frames_run_and_make_no_request_anew(requests, capsys):
    first, clean, *_, polars, hub = examples(ROOT / "docs" / "recipes.md")
    names = run_recipes([first, clean, "from sklearn.base import clone"], {})
    before = len(requests)
    names = run_recipes([polars, hub], names)
    assert len(requests) == before
    assert names["named"].feature_names_in_.tolist() == ["message"]
    assert names["known"].classes_.tolist() == [0, 1]
    assert names["known"].training_summary_["options"]["class_names"] == ["delivery", "refund"]


def test_a_learning_curve_makes_a_pass_per_row_and_prompt(tmp_path):
    backend = CountingBackend()
    texts = [f"{text} {number}" for number, text in enumerate(TEXTS)]
    learner = classifier(backend, store=tmp_path / "store.sqlite")
    learning_curve(learner, texts, LABELS, train_sizes=[6, 12], cv=2)
    assert len(backend.asked) == len(texts) * len(PROMPTS)


# --- tables and columns

COLUMNS = [
    pa.array,
    lambda values: pa.chunked_array([values[:5], values[5:]]),
    lambda values: pa.array(values).dictionary_encode(),
    lambda values: pa.array(values, pa.large_string()),
]
TABLES = [pa.table, pa.record_batch]


@pytest.mark.parametrize("form", COLUMNS)
def test_columns_of_arrow_are_texts_and_labels(form):
    expected = classifier().fit(TEXTS, LABELS).predict_proba(TEXTS)
    model = classifier().fit(form(TEXTS), form(LABELS), sample_weight=pa.array([1] * 24))
    assert np.array_equal(model.predict_proba(form(TEXTS)), expected)
    assert model.classes_.dtype.kind == "U"
    assert model.score(form(TEXTS), form(LABELS)) == 1


@pytest.mark.parametrize("form", TABLES)
def test_tables_of_arrow_are_texts_or_pairs_with_their_names(form):
    one = classifier().fit(form({"text": TEXTS}), form({"label": LABELS}))
    assert np.array_equal(
        one.predict_proba(form({"text": TEXTS})),
        classifier().fit(TEXTS, LABELS).predict_proba(TEXTS),
    )
    first, second = (list(texts) for texts in zip(*PAIRS, strict=True))
    two = classifier(prompts=PAIR_PROMPTS).fit(form({"a": first, "b": second}), LABELS)
    pairs = classifier(prompts=PAIR_PROMPTS).fit(PAIRS, LABELS)
    assert two.feature_names_in_.tolist() == ["a", "b"]
    assert np.array_equal(
        two.predict_proba(form({"a": first, "b": second})), pairs.predict_proba(PAIRS)
    )


def test_a_table_of_arrow_is_an_indicator_matrix_that_names_its_labels():
    targets = [int(label == "sport") for label in LABELS]
    table = pa.table({"sport": targets, "money": [1 - one for one in targets]})
    model = classifier().fit(TEXTS, table)
    assert model.classes_.tolist() == ["sport", "money"]
    assert model.predict(TEXTS[:2]).tolist() == [[1, 0], [0, 1]]
    assert model.score(TEXTS, table) == 1
    lists = classifier().fit(pa.array(TEXTS), pa.array([[label] for label in LABELS]))
    assert lists.predict(TEXTS[:1]) == [("sport",)]


def test_nulls_of_arrow_are_missing():
    with pytest.raises(RowError, match="row 1: empty text"):
        classifier().fit(pa.array(["a", None]), ["a", "b"])
    for labels in (pa.array(["a", None]), pa.array([1, None])):
        with pytest.raises(ValueError, match=r"^row 1: the label is missing"):
            classifier().fit(["a", "b"], labels)
    model = classifier(classes=["sport", "money"]).fit(TEXTS, pa.array([*LABELS[:20], *[None] * 4]))
    assert model.training_summary_["n_rows"] == 20


@pytest.mark.parametrize(
    ("table", "advice"),
    [
        (pd.DataFrame([["x"] * 3], columns=["a", "b", "c"]), r"X\['a'\] or X\[\['a', 'b'\]\]"),
        (pa.table({name: ["x"] for name in "abc"}), r"X\['a'\] or X.select\(\['a', 'b'\]\)"),
    ],
)
def test_too_many_columns_are_named_and_the_error_says_how_to_select(table, advice):
    with pytest.raises(ValueError, match=rf"3 columns \('a', 'b', 'c'\).*{advice}$"):
        check_texts(table)


@pytest.mark.parametrize("form", [pd.DataFrame, pa.table])
def test_a_second_column_that_is_no_text_is_named(form):
    with pytest.raises(TypeError, match=r"got int; X has the columns 'text' and 'label': .*'text'"):
        check_texts(form({"text": ["a"], "label": [1]}))


def test_images_of_a_table_are_bytes_or_paths(tmp_path):
    cells = [None, {"bytes": b"a", "path": None}, {"bytes": None, "path": str(tmp_path)}]
    assert to_rows(pa.array(cells)) == [None, b"a", tmp_path]


def test_a_first_image_that_is_missing_leaves_the_others_images():
    pictures = pytest.importorskip("PIL.Image", reason="needs the `images` extra")
    picture = pictures.new("RGB", (2, 2))
    checked = check_texts([None, picture])
    assert (checked.kind, checked.refused) == ("image", {0: "no image"})


# --- names of columns


def frame(*names):
    return pd.DataFrame(dict(zip(names, zip(*PAIRS, strict=True), strict=False)))


def test_names_of_columns_are_kept_also_in_a_file_and_compared(tmp_path):
    model = classifier(prompts=PAIR_PROMPTS).fit(frame("question", "answer"), LABELS)
    model.save(tmp_path / "model.blackbox")
    loaded = load_model(tmp_path / "model.blackbox", backend="deterministic")
    for one in (model, loaded):
        assert one.feature_names_in_.tolist() == ["question", "answer"]
        assert (one.predict(frame("question", "answer")) == LABELS).mean() > 0.5
        with pytest.raises(ValueError, match="must be in the same order"):
            one.predict(frame("question", "answer")[["answer", "question"]])
        with pytest.raises(ValueError, match="unseen at fit time:\n- reply"):
            one.predict_proba(frame("question", "reply"))
        with pytest.warns(UserWarning, match="does not have valid feature names"):
            one.predict(PAIRS)


def test_without_names_in_fit_there_are_none_to_compare(tmp_path):
    model = classifier().fit(frame("text"), LABELS).fit(TEXTS, LABELS)
    assert not hasattr(model, "feature_names_in_")
    assert "columns" not in model.training_summary_
    assert model.predict(frame("text")).tolist() == model.predict(TEXTS).tolist()


@pytest.mark.parametrize("columns", [5, "text", [1], {}])
def test_names_in_a_file_that_are_none_are_ignored(columns, tmp_path):
    model = classifier().fit(TEXTS, LABELS)
    model.model_.summary["columns"] = columns
    model.save(tmp_path / "model.blackbox")
    loaded = load_model(tmp_path / "model.blackbox", backend="deterministic")
    assert not hasattr(loaded, "feature_names_in_")


def test_a_plan_leaves_the_names_of_a_trained_classifier():
    model = classifier().fit(frame("text"), LABELS)
    model.plan(frame("other"), LABELS)
    assert model.feature_names_in_.tolist() == ["text"]


def test_looking_at_containers_imports_none_of_their_packages():
    assert to_rows(TEXTS) is TEXTS
    assert label_names(LABELS, LABELS) == {}


# --- polars and data sets, which only CI's slow part installs


@pytest.fixture
def pl():
    import polars

    return polars


@pytest.fixture
def hub():
    import datasets

    datasets.disable_progress_bars()
    return datasets


@pytest.mark.slow
@pytest.mark.frames
class TestPolars:
    def test_series_and_frames(self, pl):
        expected = classifier().fit(TEXTS, LABELS).predict_proba(TEXTS)
        enum = pl.Series(LABELS, dtype=pl.Enum(["sport", "money"]))
        for X, y in [
            (pl.Series(TEXTS), pl.Series(LABELS)),
            (pl.Series(TEXTS, dtype=pl.Categorical), enum),
            (pl.DataFrame({"text": TEXTS}), pl.DataFrame({"label": LABELS})),
        ]:
            model = classifier().fit(X, y, sample_weight=pl.Series([1] * 24))
            assert np.array_equal(model.predict_proba(X), expected)
            assert model.score(X, y) == 1
            assert cross_val_score(classifier(), X, pl.Series(LABELS), cv=2).mean() == 1
        assert model.feature_names_in_.tolist() == ["text"]
        with pytest.raises(ValueError, match="feature names should match"):
            model.predict(pl.DataFrame({"other": TEXTS}))

    def test_missing_values_and_what_is_no_text(self, pl):
        with pytest.raises(RowError, match="row 1: empty text"):
            classifier().fit(pl.Series(["a", None]), ["a", "b"])
        with pytest.raises(ValueError, match=r"^row 1: the label is missing"):
            classifier().fit(["a", "b"], pl.Series([1, None]))
        with pytest.raises(TypeError, match=r"LazyFrame: collect\(\) it first"):
            check_texts(pl.LazyFrame({"text": TEXTS}))

    def test_several_labels_and_output(self, pl):
        targets = [int(label == "sport") for label in LABELS]
        matrix = pl.DataFrame({"sport": targets, "money": [1 - one for one in targets]})
        assert classifier().fit(TEXTS, matrix).classes_.tolist() == ["sport", "money"]
        lists = classifier().fit(TEXTS, pl.Series([[label] for label in LABELS]))
        assert lists.predict(TEXTS[:1]) == [("sport",)]
        features = classifier().set_output(transform="polars").fit(TEXTS, LABELS).transform(TEXTS)
        assert isinstance(features, pl.DataFrame)


@pytest.mark.slow
@pytest.mark.frames
class TestDataSets:
    @pytest.fixture
    def data(self, hub):
        feature = hub.ClassLabel(names=["money", "sport", "other"])
        features = hub.Features({"text": hub.Value("string"), "label": feature})
        codes = [feature.str2int(label) for label in LABELS]
        return hub.Dataset.from_dict({"text": TEXTS, "label": codes}, features=features)

    def test_columns_and_data_sets(self, data):
        expected = classifier().fit(TEXTS, LABELS).predict_proba(TEXTS)
        for texts in (
            data["text"],
            data.select_columns(["text"]),
            data.with_format("numpy")["text"],
        ):
            model = classifier().fit(texts, data["label"])
            assert np.array_equal(model.predict_proba(texts), expected)
            assert model.classes_.tolist() == [0, 1]
            assert model.training_summary_["options"]["class_names"] == ["money", "sport"]
            assert model.score(texts, data["label"]) == 1
        assert cross_val_score(classifier(), data["text"], data["label"], cv=2).mean() == 1
        given = classifier(class_names={0: "cash", 1: "games"}).fit(data["text"], data["label"])
        assert given.training_summary_["options"]["class_names"] == ["cash", "games"]

    def test_names_stand_for_classes_without_rows_and_none_for_no_label(self, data, hub):
        named = classifier(classes=[0, 1, 2]).fit(data["text"], data["label"])
        assert named.training_summary_["options"]["class_names"] == ["money", "sport", "other"]
        codes = [*data["label"][:20], *[-1] * 4]
        data = hub.Dataset.from_dict({"text": TEXTS, "label": codes}, features=data.features)
        with pytest.raises(ValueError, match=r"^row 20: the label is missing"):
            classifier().fit(data["text"], data["label"])
        weights = [label == 0 or label == 1 for label in codes]
        partly = classifier(classes=[0, 1]).fit(data["text"], data["label"], weights)
        assert partly.training_summary_["n_rows"] == 20

    def test_several_labels(self, hub):
        feature = hub.List(hub.ClassLabel(names=["money", "sport"]))
        data = hub.Dataset.from_dict(
            {"labels": [[int(label == "sport")] for label in LABELS]},
            features=hub.Features({"labels": feature}),
        )
        model = classifier().fit(TEXTS, data["labels"])
        assert model.predict(TEXTS[:2]) == [(1,), (0,)]

    def test_what_is_no_column_of_texts_is_told_how_to_be_one(self, data, hub):
        with pytest.raises(TypeError, match=r"'text' and 'label': .*X\['text'\]"):
            classifier().fit(data, data["label"])
        with pytest.raises(TypeError, match=r"the splits 'train'; .*X\['train'\]"):
            check_texts(hub.DatasetDict(train=data))
        with pytest.raises(TypeError, match=r"IterableDataset with the columns 'text', 'label'"):
            check_texts(data.to_iterable_dataset())
        three = data.add_column("more", TEXTS)
        with pytest.raises(ValueError, match=r"X.select_columns\(\['text', 'label'\]\)"):
            check_texts(three)

    def test_pairs_have_names(self, hub):
        first, second = (list(texts) for texts in zip(*PAIRS, strict=True))
        data = hub.Dataset.from_dict({"a": first, "b": second})
        model = classifier(prompts=PAIR_PROMPTS).fit(data, LABELS)
        with pytest.raises(ValueError, match="must be in the same order"):
            model.predict(data.select_columns(["b", "a"]))

    def test_images_are_their_files(self, hub, tmp_path):
        from PIL import Image

        for number in range(3):
            Image.new("RGB", (4, 4), (number * 60, 0, 0)).save(tmp_path / f"{number}.png")
        paths = [tmp_path / f"{number}.png" for number in range(3)]
        data = hub.Dataset.from_dict({"image": [*map(str, paths), None], "text": list("abcd")})
        data = data.cast_column("image", hub.Image())
        for X in (data["image"], data.select_columns(["image"]), data):
            checked = check_texts(X)
            assert checked.kind == "image"
            assert checked.refused == {3: "no image"}
            assert [image for _, image in checked][:3] == [one for _, one in check_texts(paths)]
