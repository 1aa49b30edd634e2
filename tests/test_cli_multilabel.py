"""The command with several labels per text: tables, training, prediction, evaluation, reports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import f1_score

from blackbox import load_model
from blackbox.model.file import read_model
from blackbox.tables import TableReader, TableWriter, read_examples
from blackbox.tables.labels import label_set
from tests.test_cli import OFFLINE, done, misused, refused
from tests.test_multilabel import BINARIZER, LABELS, NEW, NEW_SETS, SETS, TEXTS

LIGHT = [*OFFLINE, "--n-estimators", "20"]
SEPARATED = ["--label-separator", ";"]
COLUMNS = [word for label in LABELS for word in ("--label-column", label)]


def write(path: Path, texts: list[str], sets: list[list[str]], form: str = "cell") -> Path:
    """Write a table with labels joined in a cell, in columns of 0 and 1, or as lists."""
    rows: list[dict[str, Any]] = []
    for text, labels in zip(texts, sets, strict=True):
        if form == "columns":
            rows.append({"text": text, **{one: int(one in labels) for one in LABELS}})
        else:
            cell = labels if form == "list" else ";".join(labels) or "[]"
            rows.append({"text": text, "label": cell})
    with TableWriter(path, list(rows[0])) as writer:
        for row in rows:
            writer.write(row)
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    with TableReader(path) as reader:
        return [dict(row.values) for row in reader]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "three.txt"
    path.write_text("{text} It was {mask}\n{text}\\nTopic: {mask}\n{text} about {mask}\n")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tables")
    write(path / "train.csv", TEXTS, SETS)
    write(path / "columns.csv", TEXTS, SETS, "columns")
    write(path / "train.jsonl", TEXTS, SETS, "list")
    write(path / "test.csv", NEW, NEW_SETS)
    write(path / "test_columns.csv", NEW, NEW_SETS, "columns")
    write(path / "test.jsonl", NEW, NEW_SETS, "list")
    return path


@pytest.fixture(scope="module")
def model(folder, prompts) -> Path:
    path = folder / "m.blackbox"
    done("train", folder / "train.csv", *SEPARATED, "--out", path, "--prompts", prompts, *LIGHT)
    return path


class TestTraining:
    def test_it_tells_the_labels_before_and_their_quality_after(self, folder, prompts):
        result = done(
            *("train", folder / "train.csv", *SEPARATED, "--prompts", prompts, *LIGHT),
            *("--out", folder / "said.blackbox"),
        )
        n, without = len(SETS), SETS.count([])
        counts = {label: sum(label in some for some in SETS) for label in LABELS}
        ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        shown = ", ".join(f"{label} {count}" for label, count in ranked)
        assert f"training on {n} rows: {shown}; {without} without any label\n" in result.stderr
        assert re.search(r"micro F1 +\d+\.\d% on 60 held-out rows, cross-validated", result.stderr)
        assert "TF-IDF, no LM" in result.stderr

    def test_json_has_each_label(self, folder, prompts):
        result = done(
            *("train", folder / "train.csv", *SEPARATED, "--prompts", prompts, *LIGHT, "--json"),
            *("--out", folder / "json.blackbox"),
        )
        found = json.loads(result.stdout)
        assert found["classes"] == LABELS
        assert [one["label"] for one in found["labels"]] == LABELS
        assert set(found["labels"][0]) == {
            *("label", "n_rows", "threshold", "precision", "recall", "f1")
        }
        assert found["training"]["held_out_labels"]["n_rows"] == len(TEXTS)

    @pytest.mark.parametrize(
        ("table", "options"), [("columns.csv", COLUMNS), ("train.jsonl", SEPARATED)]
    )
    def test_columns_and_lists_give_the_same_model(self, folder, prompts, model, table, options):
        other = folder / f"{table}.blackbox"
        done("train", folder / table, *options, "--out", other, "--prompts", prompts, *LIGHT)
        one, two = (load_model(path, backend="deterministic") for path in (model, other))
        assert one.classes_.tolist() == two.classes_.tolist() == LABELS
        assert (one.predict_proba(NEW) == two.predict_proba(NEW)).all()

    def test_a_plan_is_that_of_the_training(self, folder, prompts):
        data = [folder / "train.csv", *SEPARATED, "--prompts", prompts, *LIGHT]
        plan = json.loads(done("plan", *data, "--json").stdout)
        assert plan["passes_to_make"] == len(TEXTS) * 3
        assert "without any label" in done("plan", *data).stdout
        dry = json.loads(done("train", *data, "--dry-run", "--json").stdout)
        assert dry["passes"] == plan["passes"]

    def test_rare_labels_are_left_out_and_their_rows_stay(self, tmp_path, prompts, caplog):
        sets = [[*some, "rare"] if number == 1 else some for number, some in enumerate(SETS)]
        data = write(tmp_path / "data.csv", TEXTS, sets)
        options = [*SEPARATED, "--prompts", prompts, *LIGHT, "--out", tmp_path / "m"]
        found = json.loads(done("train", data, *options, "--json").stdout)
        assert found["classes"] == LABELS
        assert found["training"]["n_rows"] == len(TEXTS)
        assert (
            "labels of fewer than 2 rows are left out, and their rows stay: 'rare'" in caplog.text
        )
        with pytest.warns(UserWarning, match="label 'rare': on a single text"):
            kept = done("train", data, *options, "--min-class-rows", "1", "--json")
        assert "rare" in json.loads(kept.stdout)["classes"]

    def test_rows_without_labels_yet_are_left_out_and_the_way_to_say_none_is_told(
        self, tmp_path, prompts, caplog
    ):
        sets = ["" if number < 2 else ";".join(some) or ";" for number, some in enumerate(SETS)]
        data = tmp_path / "data.csv"
        with TableWriter(data, ["text", "label"]) as writer:
            for text, cell in zip(TEXTS, sets, strict=True):
                writer.write({"text": text, "label": cell})
        options = [*SEPARATED, "--prompts", prompts, *LIGHT, "--out", tmp_path / "m", "--json"]
        found = json.loads(done("train", data, *options).stdout)
        assert found["rows_left_out"]["without_label"] == 2
        assert found["training"]["n_rows"] == len(TEXTS) - 2
        assert "write [] into the cell" in caplog.text

    def test_classes_name_the_labels_in_their_order(self, folder, prompts, tmp_path):
        options = [*SEPARATED, "--prompts", prompts, *LIGHT, "--out", tmp_path / "m"]
        named = ["--classes", "refund,defect,delivery"]
        done("train", folder / "train.csv", *options, *named)
        assert read_model(tmp_path / "m").classes.tolist() == ["refund", "defect", "delivery"]
        said = refused("train", folder / "train.csv", *options, "--classes", "refund,defect")
        assert "the label 'delivery' is none of --classes (refund, defect)" in said

    def test_settings_of_a_project_name_columns(self, folder, prompts, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("blackbox.toml").write_text(f"label-column = {json.dumps(LABELS)}\n")
        done(
            *("train", folder / "columns.csv", "--prompts", prompts, *LIGHT),
            *("--out", tmp_path / "m"),
        )
        assert read_model(tmp_path / "m").several_labels


class TestWhatDoesNotFit:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--shots", "2"], "--shots draws rows of one class each"),
            (["--labels", "none", "--classes", "a,b"], "--labels none learns one label per text"),
            (["--label-column", "a", "--label-column", "b"], "splits the cells of one"),
            (["--label-separator", " "], "blanks are in labels too"),
        ],
    )
    def test_options_that_contradict(self, folder, prompts, tmp_path, options, words):
        said = misused(
            *("train", folder / "train.csv", *SEPARATED, *options, "--prompts", prompts, *LIGHT),
            *("--out", tmp_path / "m"),
        )
        assert words in " ".join(said.split())

    @pytest.mark.parametrize(
        ("cells", "words"),
        [
            (["a", "a", "a"], "needs a label that some rows have and others have not"),
            (["a,b", "c,d", "e,f"], "is ';' between them?"),
            ([["a"], ["b", 1.5], []], "row 2, column 'label': a label is needed, not the number"),
            ([["a"], ["b", None], []], "row 2, column 'label': a label is needed, not null"),
        ],
        ids=range(4),
    )
    def test_labels_that_are_none(self, tmp_path, prompts, cells, words):
        data = tmp_path / "data.jsonl"
        lines = [json.dumps({"text": f"t{n}", "label": one}) for n, one in enumerate(cells)]
        data.write_text("\n".join(lines))
        said = refused("train", data, *SEPARATED, "--prompts", prompts, *LIGHT, "--out", "m")
        assert words in said

    @pytest.mark.parametrize(
        ("cell", "words"),
        [
            ("2", "row 2, column 'b': '2' is neither 0 nor 1, true nor false"),
            ("", "row 2, column 'b': is empty, and other columns of labels in this row aren't"),
            ("yes", "'yes' is neither 0 nor 1"),
        ],
    )
    def test_columns_that_are_neither_0_nor_1(self, tmp_path, prompts, cell, words):
        data = tmp_path / "data.csv"
        data.write_text(f"text,a,b\none,1,0\ntwo,0,{cell}\nthree,1,1\n")
        options = ["--label-column", "a", "--label-column", "b", *LIGHT]
        assert words in refused("train", data, *options, "--prompts", prompts, "--out", "m")

    def test_a_missing_column_names_its_option(self, folder, prompts):
        options = ["--label-column", "refund", "--label-column", "delivry", *LIGHT]
        said = refused("train", folder / "columns.csv", *options, "--out", "m")
        assert "did you mean 'delivery'?; name the right one with --label-column" in said

    def test_several_labels_without_a_separator_tell_of_it(self, folder, prompts, tmp_path):
        said = refused("train", folder / "train.jsonl", "--out", tmp_path / "m", *LIGHT)
        assert "--label-separator ';'" in said
        assert "docs/several-labels.md" in said

    def test_what_gives_one_label_per_text_is_refused(self, folder, model, tmp_path):
        data, out = folder / "test.csv", tmp_path / "out.csv"
        for command, words in (
            (
                ["predict", model, data, "--out", out, "--early-stop", "exact"],
                "settles one: drop it",
            ),
            (
                ["predict", model, data, "--out", out, "--early-stop", "risk"],
                "settles one: drop it",
            ),
            (
                ["predict", model, data, "--out", out, "--max-error", "0.1"],
                "for one label per text",
            ),
            (["predict", model, data, "--out", out, "--sets", "0.9"], "for one label per text"),
            (["evaluate", model, data, "--max-error", "0.1"], "for one label per text"),
            (["suggest", model, data], "suggested for one label per text"),
            (["serve", model, "--early-stop", "exact", "--port", "0"], "settles one: drop it"),
        ):
            said = misused(*command, "--backend", "deterministic")
            assert words in " ".join(said.split())
        said = refused("merge", model, model, "--out", tmp_path / "merged")
        assert "one gives several labels per text" in said

    def test_one_label_per_text_takes_no_separator(self, folder, prompts, tmp_path):
        single = write(tmp_path / "one.csv", TEXTS, [some[:1] or ["none"] for some in SETS])
        done("train", single, "--out", tmp_path / "m", "--prompts", prompts, *LIGHT)
        options = [*SEPARATED, "--backend", "deterministic"]
        said = misused("evaluate", tmp_path / "m", single, *options)
        assert "this model gives one label per text" in " ".join(said.split())


class TestPredicting:
    def test_labels_are_joined_and_each_has_a_probability(self, folder, model, tmp_path):
        out = tmp_path / "out.csv"
        done("predict", model, folder / "test.csv", "--out", out, "--backend", "deterministic")
        rows = rows_of(out)
        classifier = load_model(model, backend="deterministic")
        expected = [";".join(labels) or "[]" for labels in classifier.predict(NEW)]
        assert [row["prediction"] for row in rows] == expected
        probabilities = classifier.predict_proba(NEW)
        for row, shares in zip(rows, probabilities, strict=True):
            found = [float(row[f"probability_{label}"]) for label in LABELS]
            assert found == pytest.approx(shares, abs=1e-6)

    def test_a_model_of_lists_writes_lists(self, folder, prompts, tmp_path):
        path, out = tmp_path / "lists.blackbox", tmp_path / "out.jsonl"
        options = ["--out", path, "--prompts", prompts, *LIGHT]
        done("train", folder / "train.jsonl", *SEPARATED, *options)
        options = ["--out", out, "--backend", "deterministic"]
        done("predict", path, folder / "test.jsonl", *options)
        expected = load_model(path, backend="deterministic").predict(NEW)
        assert [tuple(row["prediction"]) for row in rows_of(out)] == expected

    def test_a_row_without_a_text_is_no_row_without_labels(self, model, tmp_path):
        data, out = tmp_path / "data.csv", tmp_path / "out.csv"
        data.write_text('text\nhello there 5\n""\n')
        options = ["--out", out, "--backend", "deterministic", "--on-row-error", "abstain"]
        done("predict", model, data, *options)
        first, second = rows_of(out)
        assert first["prediction"] == "[]"
        assert second["prediction"] == second["probability_refund"] == ""
        assert second["reason"] == "empty text"

    def test_a_partly_labelled_table_is_filled(self, folder, model, tmp_path):
        data, out = tmp_path / "data.csv", tmp_path / "out.csv"
        cells = [";".join(some) or "[]" for some in NEW_SETS]
        with TableWriter(data, ["text", "label"]) as writer:
            for number, (text, cell) in enumerate(zip(NEW, cells, strict=True)):
                writer.write({"text": text, "label": "" if number % 2 else cell})
        options = ["--out", out, "--backend", "deterministic", "--fill", "label", "--json"]
        counts = json.loads(done("predict", model, data, *options).stdout)
        assert counts["labelled"] == (len(NEW) + 1) // 2
        predicted = load_model(model, backend="deterministic").predict(NEW)
        for number, row in enumerate(rows_of(out)):
            expected = ";".join(predicted[number]) or "[]" if number % 2 else cells[number]
            assert row["label"] == expected

    def test_a_column_of_lists_is_filled_with_the_labels(self, model, tmp_path):
        data, out = tmp_path / "data.parquet", tmp_path / "out.parquet"
        none = pa.nulls(len(NEW), pa.list_(pa.string()))
        pq.write_table(pa.table({"text": NEW, "label": none}), data)
        done("predict", model, data, "--out", out, "--backend", "deterministic", "--fill", "label")
        predicted = load_model(model, backend="deterministic").predict(NEW)
        assert [row["label"] for row in rows_of(out)] == list(map(list, predicted))

    def test_predictions_are_labels_to_train_on(self, folder, model, prompts, tmp_path):
        out = tmp_path / "out.csv"
        done("predict", model, folder / "train.csv", "--out", out, "--backend", "deterministic")
        options = ["--label-column", "prediction", *SEPARATED, "--prompts", prompts, *LIGHT]
        done("train", out, *options, "--out", tmp_path / "again.blackbox")
        assert read_model(tmp_path / "again.blackbox").classes.tolist() == LABELS


class TestEvaluating:
    def test_measures_are_those_of_scikit_learn(self, folder, model):
        options = ["--backend", "deterministic", "--json"]
        found = json.loads(done("evaluate", model, folder / "test.csv", *options).stdout)
        predicted = BINARIZER.transform(load_model(model, backend="deterministic").predict(NEW))
        truth = BINARIZER.transform(NEW_SETS)
        for average in ("micro", "macro"):
            assert found[f"{average}_f1"] == pytest.approx(
                f1_score(truth, predicted, average=average)
            )
        assert found["subset_accuracy"] == pytest.approx((truth == predicted).all(axis=1).mean())
        assert found["hamming_loss"] == pytest.approx((truth != predicted).mean())
        assert [one["label"] for one in found["labels"]] == LABELS
        assert [one["support"] for one in found["labels"]] == truth.sum(axis=0).tolist()

    @pytest.mark.parametrize(
        ("table", "options"),
        [("test_columns.csv", COLUMNS), ("test.jsonl", []), ("test.csv", SEPARATED)],
    )
    def test_each_form_of_labels_is_read(self, folder, model, table, options):
        common = ["--backend", "deterministic", "--json"]
        expected = json.loads(done("evaluate", model, folder / "test.csv", *common).stdout)
        found = json.loads(done("evaluate", model, folder / table, *options, *common).stdout)
        del found["usage"], expected["usage"]
        assert found == expected

    def test_people_read_a_table_of_the_labels(self, folder, model):
        said = done("evaluate", model, folder / "test.csv", "--backend", "deterministic").stdout
        for words in ("micro F1", "macro F1", "subset accuracy", "Hamming loss", "precision"):
            assert words in said
        assert re.search(r"refund +\d\.\d{3} +\d\.\d{3} +\d\.\d{3} +\d+ +\d+", said)

    def test_rows_without_an_answer_are_counted(self, model, tmp_path):
        data = tmp_path / "data.csv"
        data.write_text('text,label\nmoney back please,refund\n"",[]\n')
        options = ["--backend", "deterministic", "--on-row-error", "abstain"]
        said = done("evaluate", model, data, *options).stdout
        assert "without an answer  1, which count as wrong" in said

    @pytest.mark.parametrize(
        ("cell", "options", "words"),
        [
            ("refund;other", [], "row 1, column 'label': 'other' is not a label of the model"),
            ("1", ["--label-column", "label", "--label-column", "text"], "is named twice"),
            ("1", ["--label-column", "label", "--label-column", "b"], "not a label of the model"),
        ],
    )
    def test_labels_that_the_model_does_not_know(self, model, tmp_path, cell, options, words):
        data = tmp_path / "data.csv"
        data.write_text(f"text,label,b\nhello,{cell},0\n")
        said = refused("evaluate", model, data, *options, "--backend", "deterministic")
        assert words in said or "not a label of the model" in said

    def test_a_label_without_a_column_is_named(self, folder, model):
        options = ["--label-column", "refund", "--label-column", "defect"]
        said = refused(
            *("evaluate", model, folder / "test_columns.csv", *options),
            *("--backend", "deterministic"),
        )
        assert "names no column for the label 'delivery' of the model" in said


class TestInspecting:
    def test_a_model_shows_its_labels(self, model):
        said = done("inspect", model).stdout
        assert "labels, with their rows in training" in said
        assert re.search(r"refund +\d+ +0\.\d{3} +\d\.\d{3} +\d\.\d{3} +\d\.\d{3}", said)
        assert re.search(r"(defect|delivery|refund), round 1, weight", said)
        found = json.loads(done("inspect", model, "--json").stdout)
        assert [one["label"] for one in found["labels"]] == LABELS
        assert {one["label"] for one in found["learners"]} == set(LABELS)

    def test_a_prediction_is_explained_label_by_label(self, model):
        text = ["--text", "it is broken, I want a refund 7", "--backend", "deterministic"]
        said = done("inspect", model, *text, "--learners", "3").stdout
        assert said.startswith("prediction  defect, refund\n")
        assert "(given above 0." in said
        found = json.loads(done("inspect", model, *text, "--json").stdout)
        assert found["prediction"] == ["defect", "refund"]
        assert set(found["probabilities"]) == set(found["thresholds"]) == set(LABELS)
        none = ["--text", "hello there 5", "--backend", "deterministic"]
        assert done("inspect", model, *none).stdout.startswith("prediction  no label\n")


class TestReporting:
    @pytest.mark.parametrize("name", ["r.html", "r.md"])
    def test_a_report_has_a_table_of_the_labels(self, folder, model, tmp_path, name):
        pytest.importorskip("jinja2", reason="reports need the `report` extra")
        out = tmp_path / name
        options = ["--out", out, "--backend", "deterministic", "--include-texts"]
        done("report", model, folder / "test.csv", *options)
        page = out.read_text()
        for words in ("subset accuracy", "hamming loss", "threshold", "micro f1", "predicted"):
            assert words in page.casefold()
        assert "Promised errors" not in page
        assert "Confusion" not in page
        alone = tmp_path / f"alone_{name}"
        done("report", model, "--out", alone)
        assert "threshold" in alone.read_text().casefold()
        assert "subset accuracy" not in alone.read_text().casefold()

    def test_mistakes_are_shown_on_request_alone(self, folder, model, tmp_path):
        pytest.importorskip("jinja2", reason="reports need the `report` extra")
        wrong = write(tmp_path / "wrong.csv", NEW, [["refund"]] * len(NEW))
        for options in ([], ["--include-texts"]):
            out = tmp_path / "r.html"
            done("report", model, wrong, "--out", out, "--backend", "deterministic", *options)
            assert ("hello there" in out.read_text()) == bool(options)
            assert ("no label" in out.read_text()) == bool(options)


class TestCells:
    @pytest.mark.parametrize(
        ("value", "labels"),
        [
            ("a;b", ["a", "b"]),
            (" a ; b;", ["a", "b"]),
            ("a;a", ["a"]),
            ("a,b", ["a,b"]),
            ("[]", []),
            (";", []),
            (" ; ;", []),
            ("", None),
            ("  ", None),
            (None, None),
            (float("nan"), None),
            ([], []),
            (["a", 2, True], ["a", "2", "true"]),
            ({"choices": ["a", "b"]}, ["a", "b"]),
            ('["a;b", "c"]', ["a;b", "c"]),
            (7, ["7"]),
        ],
        ids=range(16),
    )
    def test_what_a_cell_holds(self, value, labels):
        assert label_set(value, ";", row=1, column="label", name="t.csv") == labels

    def test_exports_of_annotation_tools_are_read(self, tmp_path):
        data = tmp_path / "data.jsonl"
        rows = [{"text": "x", "label": {"choices": ["a", "b"]}}, {"text": "y", "label": []}]
        data.write_text("\n".join(map(json.dumps, rows)))
        examples = read_examples(data, label_separator=";")
        assert examples.labels == [["a", "b"], []]
        assert examples.several
        assert examples.are_lists
