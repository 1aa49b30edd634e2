"""A whole evaluation: configuration, data sets, resuming, report."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("yaml", reason="the evaluation needs the `eval` extra")
from click.testing import CliRunner

from blackbox.errors import BackendError, DataError
from blackbox.sampling import draw_shots
from eval import data_sets
from eval.__main__ import main
from eval.comparisons import paired_difference
from eval.configuration import read_configuration
from eval.results import Results
from eval.running import Runner

CONFIGS = sorted((Path(__file__).parent.parent / "eval" / "configs").glob("*.yaml"))
POSITIVE, NEGATIVE = ("lovely", "great", "fine", "good"), ("dull", "bad", "poor", "sad")
SMALL = """
title: Small
lms: [{name: stand-in, backend: deterministic}]
data: [films]
shots: [2, 4]
seeds: [1, 2]
n_test: 8
top_k: 50
prompts: POOL
compare: ours
methods:
  - majority
  - label words
  - {method: demonstrations, options: {n_per_class: 1}}
  - kNN prompting
  - PromptBoosting
  - ours
  - {method: ours, name: top 5, top_k: 5}
  - TF-IDF
"""


def prepare(tmp_path):
    data = tmp_path / "data" / "films"
    data.mkdir(parents=True)
    things = [f"thing {number}" for number in range(9)]
    rows = [(f"{w} {t}", "positive" if w in POSITIVE else "negative")
            for t in things for w in POSITIVE + NEGATIVE]  # fmt: skip
    for name, some in (("train", rows[:48]), ("test", rows[48:])):
        with (data / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *some])
    pool = tmp_path / "pool.txt"
    pool.write_text("{text} It was {mask}\n{text}\\nSentiment: {mask}\n")
    (tmp_path / "small.yaml").write_text(SMALL.replace("POOL", str(pool)))
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    """A folder with a data set, a pool and a configuration."""
    return prepare(tmp_path)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    folder = prepare(tmp_path_factory.mktemp("once"))
    found = run(folder)
    assert found.exit_code == 0, found.output
    assert "32 cells" in found.output
    return folder


@pytest.fixture
def ran(once, tmp_path):
    """The same, run."""
    shutil.copytree(once, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run(folder, *more):
    return CliRunner().invoke(
        main,
        ["run", str(folder / "small.yaml"), "--out", str(folder / "out"), "--data-dir",
         str(folder / "data"), "--jobs", "1", *more],
        catch_exceptions=False,
    )  # fmt: skip


def test_a_run_makes_all_cells_and_a_second_one_none(ran):
    folder = ran
    lines = (folder / "out" / "cells.jsonl").read_text().splitlines()
    assert len(lines) == 32
    again = run(folder)
    assert again.exit_code == 0
    assert (folder / "out" / "cells.jsonl").read_text().splitlines() == lines


def test_what_is_charged_is_what_a_method_asks_for_whoever_paid(ran):
    folder = ran
    cells = list(Results(folder / "out").cells().values())
    by_name = {cell["name"]: cell for cell in cells if cell["shots"] == 4 and cell["seed"] == 1}
    for name in ("ours", "kNN prompting"):
        assert by_name[name]["passes_to_train"] == 8 * 2
        assert by_name[name]["passes_to_predict"] == 8 * 2
        assert by_name[name]["tokens_to_train"] > 8 * 2 * 3
        assert by_name[name]["labels"] == 8
        assert by_name[name]["cost"] == 0.0
    assert by_name["top 5"]["passes_to_train"] == 8 * 2
    assert by_name["label words"]["passes_to_train"] == by_name["label words"]["labels"] == 0
    assert by_name["label words"]["passes_to_predict"] == 8
    assert by_name["demonstrations"]["labels"] == 2
    assert by_name["majority"]["passes_to_predict"] == 0
    assert by_name["TF-IDF"]["tokens_to_predict"] == 0
    assert all(cell["n_test"] == 8 for cell in cells)


def test_a_changed_option_is_another_cell_and_others_stay(ran):
    folder = ran
    path = folder / "small.yaml"
    path.write_text(path.read_text().replace("top_k: 5}", "top_k: 6}"))
    assert run(folder).exit_code == 0
    assert len((folder / "out" / "cells.jsonl").read_text().splitlines()) == 32 + 4


def test_a_run_that_was_killed_goes_on_and_half_a_line_is_no_cell(ran):
    folder = ran
    file = folder / "out" / "cells.jsonl"
    before = Results(folder / "out").cells()
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:10]) + lines[10][:40])
    assert len(Results(folder / "out").cells()) == 10
    assert run(folder).exit_code == 0
    after = Results(folder / "out").cells()
    assert set(after) == set(before)
    same = ("accuracy", "log_loss", "passes_to_train", "tokens_to_predict")
    for digest, cell in before.items():
        assert [after[digest][key] for key in same] == [cell[key] for key in same]


@pytest.mark.slow
def test_processes_find_the_same(ran):
    folder = ran
    one = Results(folder / "out").cells()
    runner = Runner(folder / "parallel", folder / "data", n_jobs=2)
    other = {c["digest"]: c for c in runner.run(read_configuration(folder / "small.yaml"))}
    assert set(one) == set(other)
    for digest, cell in one.items():
        assert other[digest]["accuracy"] == cell["accuracy"]
        assert other[digest]["log_loss"] == pytest.approx(cell["log_loss"])


def test_a_report_has_tables_comparisons_plots_and_a_csv(ran):
    folder = ran
    found = CliRunner().invoke(main, ["report", str(folder / "out")], catch_exceptions=False)
    assert found.exit_code == 0
    text = (folder / "out" / "report.md").read_text()
    for said in ("## Small", "2 labels a class", "| ours |", "log-loss", "95% interval", "sign"):
        assert said in text
    with (folder / "out" / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 32
    mean = np.mean([float(r["accuracy"]) for r in rows if (r["name"], r["shots"]) == ("ours", "4")])
    assert f"{100 * mean:.1f}" in next(
        line for line in text.split("4 labels a class")[1].splitlines() if line.startswith("| ours")
    )
    for kind in ("labels", "passes", "reliability", "seconds"):
        for suffix in ("png", "svg"):
            assert (folder / "out" / f"small-{kind}.{suffix}").stat().st_size > 2000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("- majority", "- majorty"), "no method 'majorty'"),
        (("title: Small", "titel: Small"), "no 'titel'"),
        (("seeds: [1, 2]", "seeds: []"), "seeds must be a list"),
        (("compare: ours", "compare: theirs"), "compare names 'theirs'"),
        (("name: top 5", "name: ours"), "two methods are called 'ours'"),
        (("shots: [2, 4]", "shots: [0]"), "positive numbers"),
        (("backend: deterministic", "model: x"), "an LM needs a backend"),
        (("title: Small", "title: [Small"), "no YAML"),
        (("backend: deterministic", "backend: determinstic"), "did you mean 'deterministic'"),
        (("data: [films]", "data: [flims]"), "no such folder"),
        (("data: [films]", "data: ['zip:films']"), "none of glue, raft, hub"),
        (("shots: [2, 4]", "shots: [2, 400]"), "lower --shots"),
        (("options: {n_per_class: 1}", "optoins: {}"), "no 'optoins'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(folder, change, said):
    path = folder / "small.yaml"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises((DataError, BackendError), match=said):
        run(folder)


def test_the_command_says_mistakes_without_a_traceback(folder):
    (folder / "small.yaml").write_text("nothing")
    found = subprocess.run(
        [sys.executable, "-m", "eval", "run", str(folder / "small.yaml")],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 1
    assert found.stderr.startswith("Error: ")
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configurations_in_the_repository_can_be_read(path):
    configuration = read_configuration(path)
    assert configuration.time != "unknown"
    assert list(configuration.cells())


def test_nothing_to_report_is_said(tmp_path):
    with pytest.raises(DataError, match="no results"):
        CliRunner().invoke(main, ["report", str(tmp_path)], catch_exceptions=False)


def test_a_paired_difference_by_hand():
    one = {("a", 1): 3.0, ("a", 2): 5.0, ("b", 1): 2.0, ("b", 2): 2.0, ("c", 9): 50.0}
    other = {("a", 1): 1.0, ("a", 2): 1.0, ("b", 1): 2.0, ("b", 2): 4.0, ("d", 9): 0.0}
    found = paired_difference(one, other)
    # a: (2 + 4) / 2 = 3, b: (0 − 2) / 2 = −1; the mean of both is 1
    assert found.mean == pytest.approx(1.0)
    assert (found.ahead, found.behind, found.n) == (2, 1, 4)
    # two of three heads or more extreme, on both sides: certain
    assert found.sign_p == pytest.approx(1.0)
    # the least and the most that draws of seeds can give: (2 − 2) / 2 and (4 + 0) / 2
    assert found.low == pytest.approx(0.0)
    assert found.high == pytest.approx(2.0)
    assert paired_difference(one, {("e", 1): 1.0}) is None


def test_an_interval_of_equal_gaps_is_a_point():
    one = {("a", seed): 5.0 + seed for seed in range(5)}
    other = {("a", seed): 3.0 + seed for seed in range(5)}
    found = paired_difference(one, other)
    assert (found.low, found.mean, found.high) == pytest.approx((2.0, 2.0, 2.0))
    assert found.sign_p == pytest.approx(2 * 0.5**5)


class TestDataSets:
    def test_local_rows_are_drawn_as_the_package_draws_them(self, folder):
        data = data_sets.load("films", folder / "data")
        assert (len(data.train), len(data.test), data.classes) == (48, 24, ["negative", "positive"])
        rows = draw_shots(data.train.labels, 3, 7)
        assert data.draw(3, 7).texts == [data.train.texts[row] for row in rows]
        assert data.draw(None, 7) is data.train
        assert data.test_rows(5) == data.test_rows(5)
        assert len(data.test_rows(5)) == 5
        assert data.test_rows(1000) is data.test
        assert data.words() == {"negative": "negative", "positive": "positive"}

    def test_duplicates_are_found_whatever_their_case_and_punctuation(self, tmp_path):
        train = data_sets.Rows(
            ["How far is the moon?", "Who wrote this long book about whales?"], ["a", "b"]
        )
        test = data_sets.Rows(
            ["how far, is the MOON", "Who wrote this long book about whales, then?", "no"],
            ["b", "b", "a"],
        )
        data = data_sets.DataSet("x", train, test, data_sets.Card())
        found = data_sets.find_duplicates(data, threshold=0.8)
        assert found.same == [(0, 0)]
        assert found.contradicting == 1
        assert [(row, other) for row, other, _ in found.near] == [(1, 1)]
        assert str(found).startswith("1 of 3 test rows")

    def test_glue_has_no_quoting(self, tmp_path):
        folder = tmp_path / "RTE"
        folder.mkdir()
        row = '0\tHe said "no.\tHe said no.\tentailment\n1\tA cat\tA dog\tnot_entailment\n'
        for name in ("train", "dev"):
            (folder / f"{name}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n" + row)
        data = data_sets.load("glue:RTE", tmp_path)
        assert data.train.texts[0] == ('He said "no.', "He said no.")
        assert data.train.labels == ["entailment", "not_entailment"]
        (tmp_path / "XYZ").mkdir()
        with pytest.raises(DataError, match="isn't known"):
            data_sets.load("glue:XYZ", tmp_path)
        (folder / "dev.tsv").write_text("index\tsentence\tlabel\n0\tA cat\tentailment\n")
        with pytest.raises(DataError, match="lacks the column"):
            data_sets.load("glue:RTE", tmp_path)

    def test_raft_joins_its_columns_and_cuts_its_labelled_rows(self, tmp_path):
        folder = tmp_path / "ade"
        folder.mkdir()
        rows = "".join(f'Title {n},"Body, {n}",{n},{"yes" if n % 2 else "no"}\n' for n in range(50))
        (folder / "train.csv").write_text("Title,Text,ID,Label\n" + rows)
        data = data_sets.load("raft:ade", tmp_path)
        assert len(data.train) == len(data.test) == 25
        assert not set(data.train.texts) & set(data.test.texts)
        assert "Title 3. Body, 3" in data.train.texts + data.test.texts
        (folder / "train.csv").write_text("Title,ID\na,1\n")
        with pytest.raises(DataError, match="column Label"):
            data_sets.load("raft:ade", tmp_path)

    def test_the_hub_needs_its_library(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(DataError, match=r"promptboosting\[hub\]"):
            data_sets.load("hub:owner/name", None)

    @pytest.mark.transformers
    def test_the_hubs_library_reads_tables_with_and_without_named_labels(
        self, tmp_path, monkeypatch
    ):
        hub = pytest.importorskip("datasets")
        monkeypatch.chdir(tmp_path)  # owner/name may be a folder
        monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(hub.config, "HF_HUB_OFFLINE", True)
        named = hub.Features(
            {"text": hub.Value("string"), "label": hub.ClassLabel(names=["bad", "good"])}
        )
        pairs = {"premise": ["A cat", "A dog"], "hypothesis": ["An animal", "A fish"],
                 "label": ["yes", "no"]}  # fmt: skip
        for folder, split, table, features in (
            ("films", "train", {"text": ["dull", "fine"], "label": [0, 1]}, named),
            ("films", "validation", {"text": ["sad", "great"], "label": [0, 1]}, named),
            ("films", "test", {"text": ["hidden"], "label": [-1]}, named),
            ("pairs", "train", pairs, None),
            ("pairs", "test", pairs, None),
            ("hidden", "train", {"text": ["dull", "fine"], "label": [0, 1]}, named),
            ("hidden", "test", {"text": ["hidden"], "label": [-1]}, named),
        ):
            place = tmp_path / "owner" / folder
            place.mkdir(parents=True, exist_ok=True)
            made = hub.Dataset.from_dict(table, features=features)
            made.to_parquet(place / f"{split}-00000-of-00001.parquet")
        films = data_sets.load("hub:owner/films", None)
        assert films.train.labels == ["bad", "good"]
        assert films.test.texts == ["sad", "great"]  # the labels of test are hidden
        both = data_sets.load("hub:owner/pairs", None)
        assert both.test.texts == [("A cat", "An animal"), ("A dog", "A fish")]
        assert both.test.labels == ["yes", "no"]
        with pytest.raises(DataError, match="with labels"):
            data_sets.load("hub:owner/hidden", None)
        with pytest.raises(DataError, match="can't be loaded"):
            data_sets.load("hub:owner/nothing", None)

    def test_a_class_without_training_rows_is_said(self, folder):
        path = folder / "data" / "films" / "test.csv"
        path.write_text(path.read_text() + "odd,neutral\n")
        with pytest.raises(DataError, match="no training row of class 'neutral'"):
            data_sets.load("films", folder / "data")

    def test_every_card_names_source_licence_and_prompts_that_parse(self):
        for name, card in data_sets.known().items():
            assert card.source
            assert card.licence
            assert name in ("sst2", "agnews", "trec", "rte", "banking77")
            assert len(card.pool()) == 10

    @pytest.mark.data
    def test_the_command_tells_of_the_benchmark_data(self, benchmark_data):
        found = CliRunner().invoke(
            main, ["data", "rte", "--data-dir", str(benchmark_data)], catch_exceptions=False
        )
        assert "2127 training and 277 test rows, 2 classes" in found.output
        assert "test rows stand in the training split" in found.output


def test_methods_are_listed():
    found = CliRunner().invoke(main, ["methods"], catch_exceptions=False)
    assert "ours: LM, the pool's prompts" in found.output
    assert "label words: LM, prompts of its own, no labels" in found.output
