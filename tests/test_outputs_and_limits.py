"""What a command writes replaces no store, and limits that are no numbers are refused."""

import csv
import json

import pytest
from click.testing import CliRunner

from blackbox.cli import main

COMMON = ("--backend", "deterministic", "--embeddings", "none", "--seed", "0")


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, its table and its store."""
    folder = tmp_path_factory.mktemp("model")
    rows = [(f"a {word} text {n}", word) for n in range(12) for word in ("good", "bad")]
    with (folder / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    store = ("--store", folder / "s.sqlite")
    made = run("train", folder / "t.csv", *COMMON, *store, "--out", folder / "m.blackbox")
    assert made.exit_code == 0, made.output
    return folder


@pytest.mark.parametrize("command", ["train", "export", "report"])
def test_no_output_replaces_a_store(folder, command):
    store, table = folder / "s.sqlite", folder / "t.csv"
    before = store.read_bytes()
    arguments = {
        "train": ("train", table, *COMMON, "--store", store, "--out", store),
        "export": ("store", "export", store, "--store", store),
        "report": ("report", folder / "m.blackbox", "--format", "html", "--out", store),
    }
    result = run(*arguments[command])
    assert result.exit_code == 2
    assert f"--out {store} is " in result.output
    assert store.read_bytes() == before


def test_a_store_that_is_to_be_made_is_no_output(folder, tmp_path):
    new = tmp_path / "new.sqlite"
    result = run("train", folder / "t.csv", *COMMON, "--store", new, "--out", new)
    assert result.exit_code == 2
    assert "is the --store of this command" in result.output
    assert not new.exists()


def test_a_merged_model_replaces_none_of_its_sources(folder):
    model = folder / "m.blackbox"
    result = run("merge", model, model, "--out", model)
    assert result.exit_code == 2
    assert "is an input of this command" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "t.csv", "--out", "m", "--max-cost", "nan"),
        ("train", "t.csv", "--out", "m", "--max-seconds", "inf"),
        ("store", "prune", "--older-than", "nan"),
        ("serve", "m.blackbox", "--timeout", "inf"),
        ("serve", "m.blackbox", "--timeout", "1e300"),
        ("serve", "m.blackbox", "--batch-window", "nan"),
        ("predict", "m.blackbox", "t.csv", "--max-error", "nan"),
    ],
)
def test_a_limit_is_a_finite_number(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert f"Invalid value for '{arguments[-2]}'" in result.output


def test_answers_of_any_age_are_kept_by_a_limit_before_all_of_them(folder):
    result = run("store", "prune", "--older-than", "1e300", "--store", folder / "s.sqlite")
    assert (result.exit_code, result.output) == (0, "0 answers deleted\n")


def test_what_is_no_export_says_so(folder, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "t.parquet")
    for name, said in (
        ("t.parquet", "not an exported store: it lacks what an export has"),
        ("none.parquet", "there is no such file"),
    ):
        result = run("store", "import", tmp_path / name, "--store", folder / "s.sqlite")
        assert result.exit_code == 1
        assert said in result.output


def test_a_report_measures_the_rows_that_evaluate_does(folder, tmp_path):
    table = tmp_path / "some.csv"
    table.write_text("text,label\na good new text,good\n   ,bad\nanother bad one,bad\n")
    shared = (folder / "m.blackbox", table, "--no-store")
    evaluated = run("evaluate", *shared, "--json")
    found = json.loads(evaluated.stdout)
    assert found["n"] == 2
    assert run("report", *shared, "--out", tmp_path / "r.md").exit_code == 0
    assert "On 2 rows" in (tmp_path / "r.md").read_text()


def test_suggest_asks_back_for_a_column_of_labels_that_is_nearly_another(folder):
    arguments = ("suggest", folder / "m.blackbox", folder / "t.csv", "--no-store", "--out", "-")
    result = run(*arguments, "--label-column", "lable")
    assert result.exit_code == 2
    assert "did you mean 'label'?" in result.output
