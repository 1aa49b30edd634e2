"""A whole evaluation: configuration, data sets, resuming, report."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import RefusingBackend

pytest.importorskip("yaml", reason="the evaluation needs the `eval` extra")
from click.testing import CliRunner

from backends.deterministic import DeterministicBackend
from blackbox import PromptPool
from blackbox.answers.passes import next_tokens
from blackbox.answers.texts import check_texts
from blackbox.boosting.splits import draw_shots
from blackbox.errors import BackendError, DataError, MissingDependencyError
from blackbox.protocol import RenderedPrompt
from blackbox.store.file import StoreFile, open_store
from blackbox.store.stored_backend import StoredBackend
from eval.__main__ import main
from eval.data import data_sets
from eval.data.duplicates import find_duplicates
from eval.data.hub import text_columns
from eval.methods import METHODS
from eval.methods.registry import Method
from eval.methods.without_lm import TfIdf
from eval.perf import cluster
from eval.report import plots
from eval.report.comparisons import paired_difference
from eval.report.markdown import format_section
from eval.report.publish import marks, publish, read_mark
from eval.report.section import Section, read_sections
from eval.report.tables import calibration_table, labels_table
from eval.run import cells, charging, jobs, libraries, measuring, speeds
from eval.run.charging import ChargedBackend, TokenCounts, shared_stored_answers
from eval.run.configuration import Cell, Lm, MethodEntry
from eval.run.configuration_file import read_configuration
from eval.run.results import Results
from eval.run.runner import Runner
from eval.studies.prompt_pools import differences

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "eval" / "configs").glob("*.yaml"))
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
    rows = [
        (f"{w} {t}", "positive" if w in POSITIVE else "negative")
        for t in things
        for w in POSITIVE + NEGATIVE
    ]
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
    (folder / "output.txt").write_text(found.output)
    return folder


@pytest.fixture
def ran(once, tmp_path):
    """The same, run."""
    shutil.copytree(once, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run(folder, *more):
    return CliRunner().invoke(
        main,
        [
            "run",
            str(folder / "small.yaml"),
            "--out",
            str(folder / "out"),
            "--data-dir",
            str(folder / "data"),
            "--jobs",
            "1",
            *more,
        ],
        catch_exceptions=False,
    )


def test_a_run_makes_all_cells_and_a_second_one_none(ran):
    folder = ran
    lines = (folder / "out" / "cells.jsonl").read_text().splitlines()
    assert len(lines) == 32
    again = run(folder)
    assert again.exit_code == 0
    assert (folder / "out" / "cells.jsonl").read_text().splitlines() == lines


def test_what_is_charged_is_what_a_method_asks_for_whoever_paid(ran):
    folder = ran
    known = list(Results(folder / "out").cells().values())
    by_name = {cell["name"]: cell for cell in known if cell["shots"] == 4 and cell["seed"] == 1}
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
    assert by_name["majority"]["labels"] == 0
    assert by_name["majority"]["passes_to_predict"] == 0
    assert by_name["TF-IDF"]["tokens_to_predict"] == 0
    assert all(cell["n_test"] == 8 for cell in known)


def test_demonstrations_of_a_seed_are_the_same_at_every_number_of_labels(folder):
    configuration = read_configuration(folder / "small.yaml")
    runner = Runner(folder / "out", folder / "data")
    given = {}
    for job in runner.jobs(configuration):
        train, _ = jobs.draw_rows(job)
        given.setdefault((job.cell.entry.name, job.cell.seed), []).append(train.texts)
    for (name, _), (two, four) in given.items():
        assert (two == four) == (name == "demonstrations"), name
    assert len(given["demonstrations", 1][0]) == 2
    assert given["demonstrations", 1] != given["demonstrations", 2]


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
    half = lines[10][:40].encode() + "³".encode()[:1]
    file.write_bytes("".join(lines[:10]).encode() + half)
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
    jobs = runner.jobs(read_configuration(folder / "small.yaml"))
    other = {c["digest"]: c for c in runner.run(jobs)}
    assert set(one) == set(other)
    for digest, cell in one.items():
        assert other[digest]["accuracy"] == cell["accuracy"]
        assert other[digest]["log_loss"] == pytest.approx(cell["log_loss"])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.posix
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
def test_a_run_on_a_cluster_has_the_same_figures_and_goes_on(ran):
    def figures(out):
        cells = Results(ran / out).cells()
        own = ("written", "machine")
        return {
            digest: {key: cell[key] for key in cell if "seconds" not in key and key not in own}
            for digest, cell in cells.items()
        }

    with cluster.nodes() as two:
        options = ["--out", str(ran / "far"), "--ray", two.address, "--actors", "2"]
        assert run(ran, *options, "--block-rows", "20").exit_code == 0
        assert figures("far") == figures("out")
        for digest in figures("out"):
            one, other = (Results(ran / out).read_probabilities(digest) for out in ("out", "far"))
            assert (one[0] == other[0]).all()
        file = ran / "far" / "cells.jsonl"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:20]))
        runner = Runner(ran / "far", ran / "data")
        pooled = [
            job for job in runner.jobs(read_configuration(ran / "small.yaml")) if job.identity
        ]
        shared = [job for job in pooled if job.cell.entry.name in ("ours", "top 5")]
        assert list(runner._missing(runner._stored(shared), shared)) == []
        assert run(ran, *options).exit_code == 0
    assert figures("far") == figures("out")


def test_a_report_has_tables_comparisons_plots_and_a_csv(ran):
    folder = ran
    found = CliRunner().invoke(main, ["report", str(folder / "out")], catch_exceptions=False)
    assert found.exit_code == 0
    text = (folder / "out" / "report.md").read_text()
    for said in (
        "## Small",
        "2 labels per class",
        "| ours |",
        "log-loss",
        "95% interval",
        "sign",
        "tokens per text",
        "- films: 0 of 24 test rows stand in the training split",
    ):
        assert said in text
    with (folder / "out" / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 32
    assert {row["configuration"] for row in rows} == {"small"}
    tables = [
        line
        for line in text.split("4 labels per class")[1].splitlines()
        if line.startswith("| ours")
    ]
    ours = [float(r["accuracy"]) for r in rows if (r["name"], r["shots"]) == ("ours", "4")]
    spread = np.std(ours, ddof=1)
    # the mean column has its spread over seeds, and so have log-loss and Brier score
    assert tables[0].endswith(f"| {100 * np.mean(ours):.1f} ± {100 * spread:.1f} |")
    assert tables[1].count("±") == 2
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
        (("shots: [2, 4]", "shots: [-1]"), "shots are numbers from 0"),
        (("shots: [2, 4]", "shots: [0]"), "'demonstrations': it needs labels"),
        (("shots: [2, 4]", "shots: [2]\nshots_of: {films: 2}"), "films must be a list"),
        (("top_k: 50", "against: {films: flims}"), "against is a mapping"),
        (("top_k: 50", "frame: [films]"), "a frame is a mapping"),
        (("data: [films]", "data: ['shift:films']"), "say shift:TRAINED>TESTED"),
        (("name: top 5, top_k: 5", "name: top 5, alone: maybe"), "alone is true or false"),
        (("backend: deterministic", "model: x"), "an LM needs a backend"),
        (("title: Small", "title: [Small"), "no YAML"),
        (("backend: deterministic", "backend: determinstic"), "did you mean 'deterministic'"),
        (("data: [films]", "data: [flims]"), "no such folder"),
        (("data: [films]", "data: ['zip:films']"), "none of glue, raft, fifty, hub"),
        (("shots: [2, 4]", "shots: [2, 400]"), "400 are wanted: take fewer shots"),
        (("options: {n_per_class: 1}", "optoins: {}"), "no 'optoins'"),
        (("options: {n_per_class: 1}", "options: null"), "options are a mapping"),
        (("options: {n_per_class: 1}", "options: {n_per_clas: 1}"), "'n_per_clas'"),
        (("options: {n_per_class: 1}", "shots: 2"), "shots must be a list"),
        (("data: [films]", "data: films"), "data must be a list"),
        (("data: [films]", "data: [1]"), "data are names"),
        (("seeds: [1, 2]", "seeds: [a]"), "seeds are different whole numbers from 0"),
        (("seeds: [1, 2]", "seeds: [-1]"), "seeds are different whole numbers from 0"),
        (("seeds: [1, 2]", "seeds: [1, 1]"), "seeds are different whole numbers from 0"),
        (("data: [films]", "data: [films, films]"), "a data set stands there twice"),
        (("shots: [2, 4]", "shots: [2, 2]"), "a number of shots stands there twice"),
        (
            ("data: [films]\nshots: [2, 4]", "data: ['noisy:films']\nshots: [all]"),
            "give a number of shots",
        ),
        (("top_k: 50", "top_k: many"), "top_k is a positive number"),
        (("top_k: 50", "top_k: 0"), "top_k is a positive number"),
        (("n_test: 8", "n_test: 0"), "n_test is a positive number"),
        (("n_test: 8", "n_test: -3"), "n_test is a positive number"),
        (("n_test: 8", "n_test: all"), "leave it out for all rows"),
        (("top_k: 50", "reported_only: films"), "reported_only is a list"),
        (("top_k: 50", "reported_only: [flims]"), "got \\['flims'\\]"),
        (("title: Small", "title: Small\nprompts: own"), "'ours, own pool'"),
        (("title: Small", "title: Small\nprompts: 'pool-{x}.txt'"), "{data} may stand"),
        (
            (
                "backend: deterministic}]",
                "backend: deterministic}, {backend: deterministic, name: stand-in}]",
            ),
            "two LMs are called 'stand-in'",
        ),
        (("- majority", "- LoRA"), "needs the LM's weights, not to be had of 'stand-in'"),
    ],
)
def test_a_mistake_is_one_line(folder, change, said):
    path = folder / "small.yaml"
    text = path.read_text()
    if "prompts: " in change[1]:  # a key may stand once
        text = "\n".join(line for line in text.split("\n") if not line.startswith("prompts: "))
    path.write_text(text.replace(*change))
    with pytest.raises((DataError, BackendError), match=said) as raised:
        run(folder)
    assert "\n" not in str(raised.value)
    assert not (folder / "out" / "cells.jsonl").exists()


def test_a_folder_without_its_tables_is_said(folder):
    (folder / "data" / "films" / "train.csv").unlink()
    with pytest.raises(DataError, match=r"train\.csv: No such file"):
        run(folder)


def test_a_row_that_the_lm_refuses_leaves_the_other_cells(folder):
    path = folder / "small.yaml"
    few = path.read_text().replace("seeds: [1, 2]", "seeds: [1]")
    path.write_text(few.replace("deterministic", "test_eval_run:Refusing"))
    with pytest.raises(DataError) as raised:
        run(folder)
    said = r"\d+ of 16 cells have no figures, the others are written: .*row \d+.*content filter"
    assert re.match(said, str(raised.value))
    assert "on films, 2 labels per class, seed" in str(raised.value)
    found = Results(folder / "out").cells().values()
    assert {"majority", "TF-IDF"} <= {cell["name"] for cell in found}
    assert CliRunner().invoke(main, ["report", str(folder / "out")]).exit_code == 0
    assert "cells are missing" in (folder / "out" / "report.md").read_text()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_lm_that_fails_leaves_the_cells_that_need_none(folder, jobs):
    path = folder / "small.yaml"
    path.write_text(path.read_text().replace("deterministic", "test_eval_run:Gone"))
    with pytest.raises(BackendError, match="it is gone"):
        run(folder, "--jobs", jobs)
    found = Results(folder / "out").cells().values()
    assert {cell["name"] for cell in found} == {"majority", "TF-IDF"}
    assert len(found) == 2 * 4


def test_methods_without_a_pool_need_no_hand_written_prompts(folder):
    path = folder / "small.yaml"
    lines = [line for line in path.read_text().split("\n") if not line.startswith("prompts: ")]
    only = "\n".join(lines).split("methods:")[0].replace("compare: ours\n", "")
    path.write_text(f"{only}methods: [majority, label words, demonstrations, 'ours, own pool']\n")
    Runner(folder / "out", folder / "data").jobs(read_configuration(path))
    path.write_text(f"{only}methods: [ours]\n")
    with pytest.raises(DataError, match="no hand-written prompts"):
        run(folder)


def test_what_decides_a_figure_decides_the_cell(folder, monkeypatch):
    def digests():
        jobs.load_data.cache_clear()
        jobs._data_digest.cache_clear()
        found = Runner(folder / "out", folder / "data").jobs(read_configuration(path))
        jobs.load_data.cache_clear()
        return {(job.cell.entry.name, job.cell.shots, job.cell.seed): job.digest for job in found}

    path = folder / "small.yaml"
    before = digests()
    assert len(set(before.values())) == 32
    words = {"label words", "demonstrations"}
    pooled = {"kNN prompting", "PromptBoosting", "ours", "top 5"}

    def changed():
        after = digests()
        return {key[0] for key in before if before[key] != after[key]}

    with monkeypatch.context() as patch:
        for card in ({"words": {"positive": "superb"}}, {"manual_prompt": "{text} So {mask}"}):
            patch.setattr(data_sets, "_cards", lambda card=card: {"films": card})
            assert changed() == words
    pool = folder / "pool.txt"
    text = pool.read_text()
    pool.write_text(text.replace("It was", "It is"))
    assert changed() == pooled
    pool.write_text(text)
    train = folder / "data" / "films" / "train.csv"
    rows = train.read_text()
    train.write_text(rows + "a last thing,positive\n")
    assert changed() == {key[0] for key in before}
    train.write_text(rows)
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "SCHEMA", jobs.SCHEMA + 1)
        assert changed() == {key[0] for key in before}
    assert changed() == set()


class Gone(DeterministicBackend):
    def next_token(self, prompts, top_k):
        raise BackendError("it is gone")


class Refusing(RefusingBackend):
    """Refuses one training row."""

    def __init__(self):
        super().__init__("thing 7")


class Slow(DeterministicBackend):
    """Says that each pass took half a second."""

    def next_token(self, prompts, top_k):
        found = super().next_token(prompts, top_k)
        return found.with_usage(replace(found.usage, seconds_lm=0.5 * len(prompts)))


def test_seconds_of_the_lm_are_its_own_and_none_are_counted_twice(folder, monkeypatch):
    monkeypatch.setattr(speeds, "_MIN_TIMED_PASSES", 1)
    path = folder / "small.yaml"
    few = path.read_text().replace("seeds: [1, 2]", "seeds: [1]").replace("[2, 4]", "[4]")
    more = "  - {method: 'label words, contextual calibration'}\n"
    path.write_text(few.replace("deterministic", "test_eval_run:Slow") + more)
    assert run(folder).exit_code == 0

    def of(name):
        known = Results(folder / "out").cells().values()
        return next(c for c in known if (c["name"], c["shots"], c["seed"]) == (name, 4, 1))

    words, calibrated, ours = map(
        of, ("label words", "label words, contextual calibration", "ours")
    )
    assert words["lm_seconds_to_train"] == 0
    assert words["lm_seconds_to_predict"] == 8 * 0.5
    # its three passes by themselves; those that the store had, at the speed of such passes
    assert (calibrated["lm_seconds_to_train"], calibrated["lm_seconds_to_predict"]) == (1.5, 4.0)
    assert ours["lm_seconds_to_train"] == ours["passes_to_train"] * 0.5
    # the passes didn't take that long, and what they did take is not part of the fit
    assert words["seconds_to_predict"] == 0
    assert 0 < ours["seconds_to_fit"] < ours["lm_seconds_to_train"]
    # the larger answers served it, and nobody measured smaller ones
    assert of("top 5")["lm_seconds_to_train"] is None
    assert of("majority")["lm_seconds_to_train"] == 0
    kept = (folder / "out" / "passes.sqlite.speeds.jsonl").read_text().splitlines()
    assert {kind.split(", ")[1] for _, kind, _ in map(json.loads, kept)} == {"top 50"}


def test_a_speed_of_few_passes_is_unknown(tmp_path):
    known = speeds.Speeds(tmp_path / "store")
    known.record("lm", "kind", speeds.LmWork(made=199, seconds=10))
    from_store = speeds.LmWork(known=100)
    assert known.seconds("lm", "kind", 100, from_store) is None
    known.record("lm", "kind", speeds.LmWork(made=200, seconds=10))
    assert known.seconds("lm", "kind", 100, from_store) == 5
    assert known.seconds("lm", "another", 100, from_store) is None
    assert known.seconds("another", "kind", 100, from_store) is None
    assert known.seconds("lm", "kind", 0, from_store) == 0
    # some were made now, and some were known
    assert known.seconds("lm", "kind", 100, speeds.LmWork(made=50, known=50, seconds=1)) == 5
    # another run measures into the same file, and the last measurement holds
    with (tmp_path / "store.speeds.jsonl").open("a") as file:
        file.write('["lm", "ki\n')  # cut off by a crash
    another = speeds.Speeds(tmp_path / "store")
    another.record("lm", "another", speeds.LmWork(made=200, seconds=20))
    known.record("lm", "kind", speeds.LmWork(made=200, seconds=40))
    assert another.seconds("lm", "kind", 100, from_store) == 20
    assert known.seconds("lm", "another", 100, from_store) == 10


def test_money_is_for_a_token_out_a_pass_and_at_the_lms_share(folder, monkeypatch):
    prices = folder / "prices.json"
    prices.write_text(
        json.dumps(
            {"prices": [{"provider": "deterministic", "model": "*", "input": 2, "output": 10}]}
        )
    )
    monkeypatch.setenv("PROMPTBOOSTING_PRICES", str(prices))
    (job, *_) = (
        job
        for job in Runner(folder / "out", folder / "data").jobs(
            read_configuration(folder / "small.yaml")
        )
        if job.cell.entry.name == "ours"
    )
    train, predict = (cells._Step(speeds.LmWork(), 0.0, *spent) for spent in ((3, 40), (5, 60)))
    assert cells._cost(job, train, predict) == pytest.approx((2 * 100 + 10 * 8) / 1e6)
    half = replace(job, limits=replace(job.limits, price_share=0.5))
    assert cells._cost(half, train, predict) == pytest.approx((2 * 100 + 10 * 8) / 2e6)
    assert cells._cost(job, replace(train, tokens=None), predict) is None


def test_texts_that_were_drawn_are_charged_the_same_from_an_empty_and_a_full_store(tmp_path):
    def charged(n=3):
        stored = StoredBackend(DeterministicBackend(), open_store(tmp_path / "passes.sqlite"))
        backend = ChargedBackend(stored, TokenCounts(tmp_path / "tokens.sqlite"))
        for _ in range(2):  # asked for twice, charged once
            backend.generate([RenderedPrompt("one two three")], n, max_tokens=5)
        return backend.settle()

    empty, full = charged(), charged()
    assert empty == full == (3 * 5, 3 * 3)
    assert charged(n=4) == (4 * 5, 4 * 3)


def test_a_process_reads_an_answer_out_of_the_store_once(tmp_path, monkeypatch):
    lm, store = DeterministicBackend(), tmp_path / "passes.sqlite"
    wanted = [RenderedPrompt(f"text {number}") for number in range(6)]
    stored = StoredBackend(lm, open_store(store))
    stored.next_token(wanted[:4], 5)
    read = shared_stored_answers(lm.identity, lm.limits, store)
    assert read is shared_stored_answers(lm.identity, lm.limits, store)
    looked = []
    get = StoreFile.get
    monkeypatch.setattr(StoreFile, "get", lambda *args: looked.append(len(args[2])) or get(*args))
    for some in (wanted[:3], wanted[3:0:-1], [wanted[0], wanted[0], wanted[3]]):
        found, expected = read.next_token(some, 5), lm.next_token(some, 5)
        assert np.array_equal(found.token_ids, expected.token_ids)
        assert np.array_equal(found.log_probs, expected.log_probs)
        tokens = np.unique(expected.token_ids).tolist()
        assert found.token_bytes == {token: expected.token_bytes[token] for token in tokens}
        assert found.usage.passes_from_store == len(some)
    assert sum(looked) == 4
    read.next_token(wanted[:2], 3)  # fewer of an answer is another one
    assert sum(looked) == 6
    with pytest.raises(BackendError, match="not in the store"):
        read.next_token(wanted, 5)
    stored.next_token(wanted, 5)  # another process made it meanwhile
    assert len(read.next_token(wanted, 5)) == 6


def test_what_a_process_remembers_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(charging, "_MAX_CACHED_TOKENS", 5 * 8)
    monkeypatch.setattr(charging, "_MAX_CACHED_COUNTS", 8)
    lm, store = DeterministicBackend(), tmp_path / "passes.sqlite"
    wanted = [RenderedPrompt(f"text {number}") for number in range(12)]
    StoredBackend(lm, open_store(store)).next_token(wanted, 5)
    read, counts = (
        shared_stored_answers(lm.identity, lm.limits, store),
        TokenCounts(tmp_path / "n.sqlite"),
    )
    for some in (wanted[:4], wanted[2:8], wanted[:8], wanted, wanted):
        assert np.array_equal(read.next_token(some, 5).token_ids, lm.next_token(some, 5).token_ids)
        assert counts.count(lm, some) == sum(lm.count_tokens(some))
        assert len(read._kept) <= 8
        assert len(counts._kept) <= 8
    read.next_token(wanted[:8], 5)
    assert len(read._kept) == 8


@pytest.mark.posix
def test_peak_memory_is_that_of_the_step_and_of_no_parent():
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system doesn't tell")
    ballast = np.ones(50_000_000)
    high = measuring.peak_memory()
    asks = "from eval.run.measuring import peak_memory; print(peak_memory())"
    child = subprocess.run(
        [sys.executable, "-c", asks],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(child.stdout) < high - 300
    del ballast
    measuring.reset_peak_memory()
    assert measuring.peak_memory() < high - 300


def test_methods_with_gradients_train_the_lm_of_the_configuration(folder):
    path = folder / "small.yaml"

    def models(lm):
        text = path.read_text().split("methods:")[0].replace("compare: ours\n", "")
        text = re.sub(r"lms: .*", f"lms: [{lm}]", text)
        (folder / "tuned.yaml").write_text(f"{text}methods: [LoRA]\n")
        jobs = Runner(folder / "out", folder / "data").jobs(
            read_configuration(folder / "tuned.yaml")
        )
        return {job.model for job in jobs}

    assert models("{backend: llamacpp}") == models("{backend: onnx}") == {"smollm2-135m"}
    assert models("{backend: llamacpp, model: smollm2-135m}") == {"smollm2-135m"}
    assert models("{backend: transformers, model: some/folder}") == {"some/folder"}
    for lm in (
        "{backend: llamacpp, model: x.gguf}",
        "{backend: transformers, model: x.gguf}",
        "{backend: openai, model: gpt}",
        "{backend: transformers}",
    ):
        with pytest.raises(DataError, match="'LoRA' needs the LM's weights"):
            models(lm)


def spelled_words(n):
    """Words that the stand-in answers to many texts."""
    pool = PromptPool(["{text} It was {mask}", "{text}\nSentiment: {mask}"])
    texts = check_texts([f"{word} thing" for word in POSITIVE + NEGATIVE])
    answers = next_tokens(DeterministicBackend(), pool, texts, 50)
    ids, counts = np.unique(answers.token_ids, return_counts=True)
    ordered = ids[np.argsort(-counts, kind="stable")].tolist()
    words = [answers.token_bytes[token].decode().strip() for token in ordered]
    return [word for word in words if len(word) >= 3][:n]


def test_without_labels_texts_are_drawn_and_other_methods_have_no_cell(folder):
    path = folder / "small.yaml"
    text = path.read_text().replace("shots: [2, 4]", "shots: [2]\nshots_of: {films: [0, 4]}")
    words = dict(zip(("positive", "negative"), spelled_words(2), strict=True))
    text = text.replace("  - ours\n", f"  - {{method: ours, options: {{label_words: {words}}}}}\n")
    text = text.replace("  - {method: ours, name: top 5, top_k: 5}\n", "")
    path.write_text(text.replace("seeds: [1, 2]", "seeds: [1]"))
    assert run(folder).exit_code == 0
    known = {(c["name"], c["shots"]): c for c in Results(folder / "out").cells().values()}
    at_none = {name for name, shots in known if shots == 0}
    assert at_none == {"majority", "label words", "ours"}
    assert {shots for _, shots in known} == {0, 4}
    assert known["ours", 0]["labels"] == 0
    assert known["ours", 0]["passes_to_train"] == 48 * 2  # all texts, as there are fewer than 100
    assert known["ours", 4]["labels"] == 8
    assert CliRunner().invoke(main, ["report", str(folder / "out")]).exit_code == 0
    report = (folder / "out" / "report.md").read_text()
    no_labels, labels = report.split("### ")[1:]
    assert no_labels.startswith("stand-in, no labels per class")
    assert "| kNN prompting | – | – |" in no_labels
    assert "| kNN prompting | – " not in labels


def test_texts_without_labels_are_read_beside_the_labelled_rows(folder):
    import yaml

    path = folder / "small.yaml"
    words = dict(zip(("positive", "negative"), spelled_words(2), strict=True))
    options = {"label_words": words, "prompts": ["{text} It was {mask}"], "embeddings": None}
    rows = [
        {"method": method, "name": name, "options": options}
        for method, name in (
            ("ours, own pool", "labels"),
            ("ours, with texts without labels", "labels and texts"),
        )
    ]
    given = yaml.safe_load(path.read_text())
    given |= {"data": ["films"], "shots": [4], "seeds": [1], "methods": rows, "compare": "labels"}
    path.write_text(yaml.safe_dump(given))
    assert run(folder).exit_code == 0
    known = {cell["name"]: cell for cell in Results(folder / "out").cells().values()}
    assert [cell["labels"] for cell in known.values()] == [8, 8]
    assert known["labels"]["passes_to_train"] == 8
    assert known["labels and texts"]["passes_to_train"] == 48  # all, as there are fewer than 100


@pytest.mark.parametrize(
    ("data", "sources"),
    [
        ("sst2", ["trec", "fifty:trec"]),
        ("noisy:sst2", ["trec", "fifty:trec"]),
        ("shift:sst2>trec", []),
        ("fifty:trec", ["sst2", "typos:sst2"]),
    ],
)
def test_a_library_has_no_rows_of_its_own_task(data, sources):
    every = ("sst2", "typos:sst2", "trec", "fifty:trec")
    entry = MethodEntry("a", "ours, with a library", (data,), (8,), (1,), 5, "", {}, sources=every)
    assert jobs.sources_of(Cell(Lm("lm", "onnx"), data, 8, 1, entry)) == sources


def test_equal_cells_have_the_names_of_each_configuration(ran):
    path = ran / "small.yaml"
    shutil.copytree(ran / "data" / "films", ran / "data" / "same")
    (ran / "other.yaml").write_text(
        path.read_text().replace("name: stand-in", "name: other").replace("[films]", "[same]")
    )
    lines = (ran / "out" / "cells.jsonl").read_text().splitlines()
    command = ["run", str(ran / "other.yaml"), "--out", str(ran / "out"), "--data-dir"]
    told = CliRunner().invoke(main, [*command, str(ran / "data"), "--method", "ours"])
    assert told.exit_code == 0, told.output
    assert (ran / "out" / "cells.jsonl").read_text().splitlines() == lines
    other, small = read_sections(ran / "out")
    assert {(c["lm"], c["data"]) for c in other.cells} == {("other", "same")}
    assert {(c["lm"], c["data"]) for c in small.cells} == {("stand-in", "films")}


def test_fifty_rows_and_all_of_them_are_two_cells(folder):
    (folder / "small.yaml").write_text(
        (folder / "small.yaml")
        .read_text()
        .replace("[films]", "[films, 'fifty:films']")
        .replace("[2, 4]", "[all]")
    )
    planned = Runner(folder / "out", folder / "data").jobs(
        read_configuration(folder / "small.yaml")
    )
    assert len({job.digest for job in planned}) == len(planned)


def test_loading_is_no_part_of_training(folder, monkeypatch):
    class SlowToLoad(TfIdf):
        def load(self):
            time.sleep(0.5)

    slow = Method(lambda setting: SlowToLoad(random_state=setting.seed), "nothing")
    monkeypatch.setitem(METHODS, "TF-IDF", slow)
    assert run(folder, "--method", "TF-IDF").exit_code == 0
    seconds = [cell["seconds_to_fit"] for cell in Results(folder / "out").cells().values()]
    assert min(seconds) < 0.5


def test_missing_software_is_a_cell_without_figures(folder, monkeypatch):
    class Missing(TfIdf):
        def fit(self, X, y):
            raise MissingDependencyError("it needs more: pip install more")

    missing = Method(lambda setting: Missing(random_state=setting.seed), "nothing")
    monkeypatch.setitem(METHODS, "TF-IDF", missing)
    with pytest.raises(DataError, match=r"4 of 32 cells have no figures, .* pip install more"):
        run(folder)
    assert len(Results(folder / "out").cells()) == 28


def test_a_library_is_made_once_of_the_other_data_sets(folder, monkeypatch):
    shutil.copytree(folder / "data" / "films", folder / "data" / "books")
    for table in ("train.csv", "test.csv"):
        text = (folder / "data" / "books" / table).read_text()
        (folder / "data" / "books" / table).write_text(text.replace("thing", "book"))
    path = folder / "small.yaml"
    text = path.read_text().split("methods:")[0].replace("data: [films]", "data: [films, books]")
    path.write_text(
        text.replace("compare: ours\n", "").replace("[2, 4]", "[0, 4]").replace("[1, 2]", "[1]")
        + "methods: [{method: 'ours, with a library', options: {embeddings: null, label_words: "
        + f"{dict(zip(('positive', 'negative'), spelled_words(2), strict=True))}}}}}]\n"
    )
    assert run(folder, "--data", "films").exit_code == 0  # its library is of all other data sets
    models = sorted(path.name for path in (folder / "out" / "libraries").glob("*.blackbox"))
    assert [name.split("-")[0] for name in models] == ["books"]
    cells = list(Results(folder / "out").cells().values())
    assert [cell["passes_to_train"] for cell in cells] == [48 * 2 + 2 * 2, 8 * 2 + 2 * 2]
    monkeypatch.setattr(libraries.PromptBoostingClassifier, "save", None)  # none is made again
    path.write_text(path.read_text().replace("seeds: [1]", "seeds: [2]"))
    assert run(folder, "--data", "films").exit_code == 0


def test_rows_and_the_lm_can_be_chosen_by_the_command(folder):
    path = folder / "small.yaml"
    path.write_text(path.read_text() + "  - LoRA\n")
    options = ["--method", "ours", "--method", "k*", "--method", "LoRA"]
    told = run(folder, *options, "--backend", "deterministic", "--backend-option", "seed=3")
    assert told.exit_code == 0, told.output
    assert "left out, as they need weights: LoRA" in told.output
    cells = Results(folder / "out").cells().values()
    assert {(cell["name"], cell["lm"]) for cell in cells} == {
        ("ours", "deterministic"),
        ("kNN prompting", "deterministic"),
    }
    (section,) = (folder / "out" / "configurations").iterdir()
    assert section.name == "small-deterministic.json"
    command = json.loads(section.read_text())["command"]
    assert command.endswith(
        "small.yaml --data-dir DIR --method ours --method 'k*' --method LoRA "
        "--backend deterministic --backend-option seed=3"
    )
    with pytest.raises(DataError, match="need --backend"):
        run(folder, "--model", "x")
    with pytest.raises(DataError, match="no row of the configuration matches 'oars'; it has"):
        run(folder, "--method", "ours", "--method", "oars")


@pytest.mark.slow
@pytest.mark.posix
def test_a_cell_alone_makes_all_its_passes_and_has_its_memory(ran):
    folder = ran
    path = folder / "small.yaml"
    text = path.read_text().split("methods:")[0].replace("[2, 4]", "[4]")
    alone = "methods: [{method: ours, alone: true}, kNN prompting]\n"
    path.write_text(text.replace("seeds: [1, 2]", "seeds: [1]") + alone)
    before = {c["name"]: c for c in Results(folder / "out").cells().values() if c["shots"] == 4}
    known = set(Results(folder / "out").cells())
    assert run(folder).exit_code == 0
    found = Results(folder / "out").cells()
    (cell,) = (found[digest] for digest in set(found) - known)  # the other one was there
    assert cell["name"] == "ours"
    assert cell["peak_mb"] > 50
    assert before["ours"]["peak_mb"] is None
    assert cell["passes_to_train"] == 8 * 2
    assert CliRunner().invoke(main, ["report", str(folder / "out")]).exit_code == 0
    assert "peak MB" in (folder / "out" / "report.md").read_text()


def test_a_frame_has_a_row_for_each_combination_and_says_what_each_part_is_worth(folder):
    path = folder / "small.yaml"
    text = path.read_text().split("methods:")[0].replace("compare: ours\n", "")
    path.write_text(
        text.replace("[2, 4]", "[4]")
        + """frame:
  read: {top 50: {top_k: 50}, top 5: {top_k: 5}}
  aggregation:
    logit: {method: ours, options: {label_words: null}}
    kNN: {method: kNN prompting}
  experts:
    none: {}
    names: {options: {label_words: names}, unless: [kNN]}
"""
    )
    entries = read_configuration(path).methods
    assert [(entry.name, entry.top_k, dict(entry.options)) for entry in entries] == [
        ("top 50 · logit · none", 50, {"label_words": None}),
        ("top 50 · logit · names", 50, {"label_words": "names"}),
        ("top 50 · kNN · none", 50, {}),
        ("top 5 · logit · none", 5, {"label_words": None}),
        ("top 5 · logit · names", 5, {"label_words": "names"}),
        ("top 5 · kNN · none", 5, {}),
    ]
    assert run(folder).exit_code == 0
    assert CliRunner().invoke(main, ["report", str(folder / "out")]).exit_code == 0
    report = (folder / "out" / "report.md").read_text()
    accuracy = {
        (cell["name"], cell["seed"]): 100 * cell["accuracy"]
        for cell in Results(folder / "out").cells().values()
    }

    def mean(first, second):
        gaps = [accuracy[second, seed] - accuracy[first, seed] for seed in (1, 2)]
        return np.mean(gaps)

    alone = mean("top 50 · logit · none", "top 5 · logit · none")
    others = [
        mean(f"top 50 · {rest}", f"top 5 · {rest}") for rest in ("logit · names", "kNN · none")
    ]
    row = f"| top 50 | top 5 | {alone:+.1f} – | {np.mean([alone, *others]):+.1f} (3) |"
    assert row in report


def test_a_run_that_was_killed_can_be_reported(folder, monkeypatch):
    finished = Runner._add_lm_seconds

    def killed(self, job, found):
        if job.cell.entry.name == "kNN prompting":
            raise KeyboardInterrupt
        return finished(self, job, found)

    monkeypatch.setattr(Runner, "_add_lm_seconds", killed)
    run(folder)
    assert CliRunner().invoke(main, ["report", str(folder / "out")]).exit_code == 0
    text = (folder / "out" / "report.md").read_text()
    assert "cells are missing: run the command below again" in text
    assert "| label words |" in text


def test_the_bar_says_that_shared_passes_come_first(ran):
    said = (ran / "output.txt").read_text()
    assert "cells (first the passes that they share)" in said


def test_hidden_labels_are_cross_validated_and_a_class_without_a_label_is_no_obstacle(folder):
    task = folder / "data" / "ade"
    task.mkdir()
    with (folder / "data" / "films" / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (task / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("Text", "ID", "Label"),
                *((row["text"], n, row["label"]) for n, row in enumerate(rows)),
            ]
        )
    with (folder / "data" / "films" / "train.csv").open("a", newline="") as file:
        csv.writer(file).writerows(
            [*((f"filler {n}", "positive") for n in range(400)), ("x", "odd")]
        )
    text = SMALL.replace("POOL", str(folder / "pool.txt")).replace(
        "[films]", "['raft:ade', 'fifty:films']"
    )
    text = text.replace("[2, 4]", "[all]").replace("[1, 2]", "[1]")
    start, end = text.index("  - majority"), text.index("  - TF-IDF")
    (folder / "small.yaml").write_text(text[:start] + "  - majority\n  - ours\n" + text[end:])
    told = run(folder)
    assert told.exit_code == 0, told.output
    found = {(c["name"], c["data"]): c for c in Results(folder / "out").cells().values()}
    assert len(found) == 6
    for name in ("ours", "TF-IDF"):
        cell = found[name, "raft:ade"]
        assert (cell["n_test"], cell["labels"]) == (48, 48)
        assert cell["accuracy"] > found["majority", "raft:ade"]["accuracy"]
        assert found[name, "fifty:films"]["labels"] == 50
        assert found[name, "fifty:films"]["classes"] == 3
    assert found["ours", "raft:ade"]["passes_to_train"] == 5 * 2 * len(rows) * 4 // 5
    assert found["ours", "raft:ade"]["passes_to_predict"] == 2 * len(rows)
    (folder / "more").mkdir()
    only = run(folder, "--data", "raft:*", "--out", str(folder / "more"))
    assert "3 cells" in only.output
    with pytest.raises(DataError, match="no data set of the configuration matches 'sst2'"):
        run(folder, "--data", "raft:*", "--data", "sst2")
    path, more = folder / "small.yaml", "{method: 'ours, with texts without labels', name: ours}"
    path.write_text(path.read_text().replace("- ours\n", f"- {more}\n"))
    with pytest.raises(DataError, match=r"raft:ade has no test rows: .* read those that judge it"):
        run(folder)


def cell_of(name, method, shots, labels, accuracy, lm="lm"):
    return {
        "name": name,
        "method": method,
        "shots": shots,
        "labels": labels,
        "classes": 2,
        "lm": lm,
        "accuracy": accuracy,
        "data": "films",
        "seed": 1,
        "digest": "0",
        "passes_to_train": 1,
        "seconds_to_fit": 1.0,
    }


def section_of(found):
    return Section("s", "S", "", "", "mine", (), {}, 0, found)


def test_methods_without_labels_are_levels_and_demonstrations_stand_at_their_own_number():
    from matplotlib.figure import Figure

    found = [
        cell_of(name, name, shots, labels, accuracy)
        for shots in (8, 32)
        for name, labels, accuracy in (
            ("mine", 2 * shots, shots / 40),
            ("label words", 0, 0.5),
            ("demonstrations", 8, 0.6),
        )
    ]
    figure = Figure(layout="constrained")
    assert plots._plot_by_labels(figure, section_of(found), None)
    mine, words, shown = figure.axes[0].get_lines()
    assert list(mine.get_xdata()) == [8, 32]
    assert list(words.get_ydata()) == [50, 50]
    assert list(words.get_xdata()) == [0, 1]  # from edge to edge
    assert (list(shown.get_xdata()), list(shown.get_ydata())) == ([4], [60])


def test_a_curve_is_of_the_data_sets_with_the_usual_numbers_of_labels():
    from matplotlib.figure import Figure

    usual = [(data, shots, shots / 40) for data in ("films", "books") for shots in (0, 8, 32)]
    found = [
        cell_of("mine", "mine", shots, 2 * shots, accuracy) | {"data": data}
        for data, shots, accuracy in [*usual, ("bank", 0, 1.0), ("bank", 16, 1.0)]
    ]
    figure = Figure(layout="constrained")
    assert plots._plot_by_labels(figure, section_of(found), None)
    (mine,) = figure.axes[0].get_lines()
    assert list(mine.get_xdata()) == [0, 8, 32]
    assert mine.get_ydata() == pytest.approx([0, 20, 80])


def test_a_method_has_no_point_where_it_lacks_a_data_set():
    from matplotlib.figure import Figure

    found = [
        cell_of(name, name, shots, 2 * shots, 0.5) | {"data": data}
        for name in ("mine", "theirs")
        for data in ("films", "books")
        for shots in (8, 32)
        if (name, data, shots) != ("theirs", "books", 32)
    ]
    figure = Figure(layout="constrained")
    assert plots._plot_by_labels(figure, section_of(found), None)
    mine, theirs = figure.axes[0].get_lines()
    assert list(mine.get_xdata()) == [8, 32]
    assert list(theirs.get_xdata()) == [8]


def test_reliability_is_shown_of_ours_and_its_strongest_rivals_first():
    from matplotlib.figure import Figure

    class Kept:
        def read_probabilities(self, digest):
            return np.array([[0.8, 0.2], [0.4, 0.6]], np.float32), np.array([0, 1], np.int16)

    others = [f"other {number}" for number in range(6)]
    rivals = ["joint regression", "product of regressions", "linear discriminant", "PromptBoosting"]
    found = [cell_of(name, name, 8, 16, 0.5) for name in [*others, *rivals, "ours"]]
    found.append(cell_of("mine", "ours", 8, 16, 0.5))
    figure = Figure()
    plots._plot_reliability(figure, section_of(found), Kept())
    assert [axes.get_title() for axes in figure.axes] == ["mine", "ours", *rivals]


def test_each_lm_has_its_plots(tmp_path):
    found = [
        cell_of("mine", "ours", shots, 2 * shots, 0.5, lm)
        for lm in ("a/b", "c")
        for shots in (8, 16)
    ]
    results = Results(tmp_path)
    results.write_probabilities("0", np.array([[0.8, 0.2]]), np.array([0]))
    written = plots.write_plots(tmp_path, section_of(found))
    assert {title.rsplit(", ")[-1] for title, _ in written} == {"a/b", "c"}
    assert (tmp_path / "s-a_b-labels.png").is_file()
    assert (tmp_path / "s-c-labels.svg").is_file()


def test_the_command_says_mistakes_without_a_traceback(folder):
    (folder / "small.yaml").write_text("nothing")
    found = subprocess.run(
        [sys.executable, "-m", "eval", "run", str(folder / "small.yaml")],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert found.stderr.startswith("Error: ")
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configurations_in_the_repository_can_be_read(path):
    configuration = read_configuration(path)
    assert configuration.time != "unknown"
    assert list(configuration.cells())


def test_marked_places_of_pages_are_written_from_results(ran, tmp_path_factory):
    root = tmp_path_factory.mktemp("checkout")
    (root / "docs").mkdir()
    mark = "<!-- results: {of: %s} -->\nolder\n<!-- end of results -->\n"
    asked = "small, table: accuracy, shots: 4, rows: [ours, TF-IDF]"
    (root / "README.md").write_text(f"before\n\n{mark % asked}\nafter\n")
    (root / "docs" / "a.md").write_text(
        mark % "small, picture: labels" + mark % "large, table: all"
    )
    (root / "docs" / "b.md").write_text(mark % "small, table: labels")
    written, left = publish(ran / "out", root)
    assert written == ["README.md", "docs/a.md", "docs/b.md", "docs/small.md"]
    page = (root / "docs" / "small.md").read_text()
    assert page.startswith("# Small\n")
    assert page.count("| ours |") > 2
    assert left == ["large: no results"]
    readme = (root / "README.md").read_text().split("\n")
    assert [readme[0], readme[-2]] == ["before", "after"]
    assert [line.split(" |")[0] for line in readme[3:7]] == [
        "| method",
        "|---|---|---|",
        "| ours",
        "| TF-IDF",
    ]
    picture, kept = (root / "docs" / "a.md").read_text().split("<!-- end of results -->\n")[:2]
    assert "![Accuracy by labels per class](images/small-labels.png)" in picture
    assert (root / "docs" / "images" / "small-labels.png").stat().st_size > 2000
    assert kept.endswith("older\n")
    known = Results(ran / "out").cells().values()
    ours = [100 * c["accuracy"] for c in known if c["name"] == "ours" and c["shots"] == 2]
    assert f"| ours | {np.mean(ours):.1f} ± " in (root / "docs" / "b.md").read_text()
    again, _ = publish(ran / "out", root)
    assert again == []
    lines = (ran / "out" / "cells.jsonl").read_text().splitlines(keepends=True)
    (ran / "out" / "cells.jsonl").write_text("".join(lines[:-1]))
    assert publish(ran / "out", root) == ([], ["small: 1 cells are missing", "large: no results"])
    assert run(ran, "--method", "ours").exit_code == 0
    part = "small: run for some of its rows or data sets last; run the whole file"
    assert publish(ran / "out", root) == ([], [part, "large: no results"])
    report = CliRunner().invoke(main, ["report", str(ran / "out")])
    assert "Some of its rows or data sets alone" in Path(report.output.strip()).read_text()
    assert run(ran).exit_code == 0
    assert publish(ran / "out", root)[1] == ["large: no results"]


def test_means_by_labels_say_which_data_sets_they_are_of():
    def cell(name, data, shots, accuracy):
        return {"name": name, "data": data, "shots": shots, "seed": 1, "accuracy": accuracy}

    measured = [cell("ours", data, 2, 0.5) for data in ("a", "b", "c")]
    measured += [cell("ours", "a", 16, 0.7), cell("ours", "b", 32, 0.8), cell("ours", "c", 32, 0.9)]
    measured += [cell("theirs", "a", 2, 0.4), cell("theirs", "c", 32, 0.4)]
    assert labels_table(measured, []) == [
        "| method | 2 | 16 (a) | 32 (without a) |",
        "|---|---|---|---|",
        "| ours | 50.0 | 70.0 | 85.0 |",
        "| theirs | – | – | – |",
    ]
    assert "| ours | 50.0 | 85.0 |" in labels_table(measured, ["a"])
    twice = [*measured, *(one | {"seed": 2} for one in measured if one["shots"] == 2)]
    twice += [cell("theirs", data, 2, 0.4) for data in ("b", "c")]
    assert "| theirs | 40.0 (1 seed) | – | – |" in labels_table(twice, [])


def test_a_report_says_which_methods_have_fewer_draws_and_data_sets(ran):
    (section,) = read_sections(ran / "out")
    on_one = [cell for cell in section.cells if cell["name"] != "TF-IDF" or cell["seed"] == 1]
    on_two = [cell | {"data": "books"} for cell in on_one if cell["name"] != "kNN prompting"]
    text = format_section(replace(section, cells=[*on_one, *on_two]), Results(ran / "out"))
    assert "2 seeds (*TF-IDF* 1), 8 test rows." in text
    costs = text.split("macro-F1")[1]
    assert "| kNN prompting (1 of 2 data sets) |" in costs
    assert "| ours |" in costs
    assert text.split("macro-F1")[0].count("| TF-IDF (1 seed) |") == 1
    assert (
        costs.split("less each other method")[1].count("| kNN prompting (1 of 2 data sets) |") == 1
    )
    plain = format_section(section, Results(ran / "out"))
    assert "2 seeds, 8 test rows." in plain
    assert "data sets)" not in plain


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("small, table: accurracy", "no table 'accurracy'; there are accuracy"),
        ("small, picture: lables", "no picture 'lables'; there are labels"),
        ("small, table: accuracy, rows: oars", "small has no rows \\['oars'\\]"),
        ("small", "a mark has `of`, and `table` or `picture`"),
        ("small, table: accuracy", "small has several shots, \\[2, 4\\]: choose one"),
    ],
)
def test_a_mark_that_names_what_there_is_not_is_an_error(ran, tmp_path_factory, asked, said):
    root = tmp_path_factory.mktemp("checkout")
    mark = f"<!-- results: {{of: {asked}}} -->\n<!-- end of results -->\n"
    (root / "README.md").write_text(mark)
    with pytest.raises(DataError, match=said):
        publish(ran / "out", root)


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")))
def test_the_marks_of_the_pages_can_be_read(page):
    for found in marks(page.read_text()):
        # with --backend the name of another LM comes behind the configuration's
        configuration, *_ = read_mark(page, found)["of"].split("-")
        assert (ROOT / "eval" / "configs" / f"{configuration}.yaml").exists()


def test_a_calibration_error_stands_beside_that_of_exact_probabilities(tmp_path):
    results, rng = Results(tmp_path), np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 2000)
    exact = np.stack([sure, 1 - sure], axis=1)
    codes = (rng.random(2000) > sure).astype(np.intp)
    bold = np.where(exact > 0.5, 0.99, 0.01)
    cells = []
    for name, given in (("exact", exact), ("bold", bold)):
        results.write_probabilities(name, given, codes)
        cells.append({"name": name, "data": "films", "digest": name})
    cells.append({"name": "bold", "data": "books", "digest": "bold"})
    _, _, first, second = calibration_table(cells, results)
    found = [float(one) for one in re.findall(r"0\.\d+", first + second)]
    assert first.startswith("| exact | ")
    assert first.endswith(" | – |")
    assert found[0] == pytest.approx(found[1], abs=0.02)
    assert found[1] < 0.04
    assert found[2] > 0.2 > 0.02 > found[3]  # 0.99 for what holds in three of four rows


def test_seeds_that_share_their_test_rows_tell_no_more_of_calibration_than_one(tmp_path):
    results, sure = Results(tmp_path), np.random.default_rng(0).uniform(0.5, 1, 200)
    given, codes = np.stack([sure, 1 - sure], axis=1), np.zeros(200, np.intp)
    for digest in ("1", "2", "3"):
        results.write_probabilities(digest, given, codes)
    one, three = (
        calibration_table([{"name": "a", "data": "films", "digest": d} for d in some], results)[2]
        for some in ("1", "123")
    )
    assert one == three


def test_nothing_to_report_is_said(tmp_path):
    with pytest.raises(DataError, match="no results"):
        CliRunner().invoke(main, ["report", str(tmp_path)], catch_exceptions=False)


def test_results_of_another_version_are_not_reported(ran):
    path = ran / "out" / "configurations" / "small.json"
    path.write_text(path.read_text().replace('"schema": ', '"schema": 1'))
    with pytest.raises(DataError, match="another version of the evaluation"):
        CliRunner().invoke(main, ["report", str(ran / "out")], catch_exceptions=False)


def test_pools_on_two_seeds_are_compared_without_an_interval():
    known = [
        {"data": "trec", "method": method, "seed": seed, "accuracy": accuracy}
        for method, accuracy in (("one", 0.5), ("two", 0.25))
        for seed in (1, 2)
    ]
    assert "one less two: +25.0 points –, ahead in 2" in differences(known, "one", "two")


def test_a_paired_difference_by_hand():
    one = {("a", 1): 3.0, ("a", 2): 5.0, ("b", 1): 2.0, ("b", 2): 2.0, ("c", 9): 50.0}
    other = {("a", 1): 1.0, ("a", 2): 1.0, ("b", 1): 2.0, ("b", 2): 4.0, ("d", 9): 0.0}
    found = paired_difference(one, other)
    # a: (2 + 4) / 2 = 3, b: (0 − 2) / 2 = −1; the mean of both is 1
    assert found.mean == pytest.approx(1.0)
    assert (found.ahead, found.behind, found.n) == (2, 1, 4)
    # two of three heads or more extreme, on both sides: certain
    assert found.sign_p == pytest.approx(1.0)
    # two seeds tell hardly anything of their spread
    assert (found.low, found.high, found.interval(1)) == (None, None, "–")
    assert paired_difference(one, {("e", 1): 1.0}) is None


def test_an_interval_of_equal_gaps_is_a_point():
    one = {("a", seed): 5.0 + seed for seed in range(5)}
    other = {("a", seed): 3.0 + seed for seed in range(5)}
    found = paired_difference(one, other)
    assert (found.low, found.mean, found.high) == pytest.approx((2.0, 2.0, 2.0))
    assert found.sign_p == pytest.approx(2 * 0.5**5)
    assert found.interval(1) == "[+2.0, +2.0]"


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        gaps = {(d, s): rng.normal(0, d + 1) for d in range(3) for s in range(5)}
        found = paired_difference(gaps, dict.fromkeys(gaps, 0.0))
        covered.append(found.low <= 0 <= found.high)
    # plain percentiles do so in 88 of 100
    assert 0.91 <= np.mean(covered) <= 0.98


class TestDataSets:
    def test_local_rows_are_drawn_as_the_package_draws_them(self, folder):
        data = data_sets.read_data_set("films", folder / "data")
        assert (len(data.train), len(data.test), data.classes) == (48, 24, ["negative", "positive"])
        rows = draw_shots(data.train.labels, data.train.texts, 3, 7)
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
        found = find_duplicates(data, threshold=0.8)
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
        data = data_sets.read_data_set("glue:RTE", tmp_path)
        assert data.train.texts[0] == ('He said "no.', "He said no.")
        assert data.train.labels == ["entailment", "not_entailment"]
        (tmp_path / "XYZ").mkdir()
        with pytest.raises(DataError, match="isn't known"):
            data_sets.read_data_set("glue:XYZ", tmp_path)
        (folder / "dev.tsv").write_text("index\tsentence\tlabel\n0\tA cat\tentailment\n")
        with pytest.raises(DataError, match="lacks the column"):
            data_sets.read_data_set("glue:RTE", tmp_path)

    def test_raft_joins_its_columns_and_has_no_test_rows(self, tmp_path):
        folder = tmp_path / "ade"
        folder.mkdir()
        rows = "".join(f'Title {n},"Body, {n}",{n},{"yes" if n % 2 else "no"}\n' for n in range(50))
        (folder / "train.csv").write_text("Title,Text,ID,Label\n" + rows)
        data = data_sets.read_data_set("raft:ade", tmp_path)
        assert (len(data.train), len(data.test)) == (50, 0)
        assert data.draw(None, 13) == data.train
        assert "Title 3. Body, 3" in data.train.texts
        (folder / "train.csv").write_text("Title,ID\na,1\n")
        with pytest.raises(DataError, match="column Label"):
            data_sets.read_data_set("raft:ade", tmp_path)

    def test_a_task_of_raft_comes_from_the_hub_where_there_is_no_folder(
        self, tmp_path, monkeypatch
    ):
        constants = pytest.importorskip("huggingface_hub.constants")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        with pytest.raises(DataError, match=r"raft:overruling: no such folder.*can't be loaded"):
            data_sets.read_data_set("raft:overruling", tmp_path)
        # what a download leaves there
        kept = tmp_path / "cache" / "datasets--ought--raft"
        folder = kept / "snapshots" / ("0" * 40) / "data" / "overruling"
        folder.mkdir(parents=True)
        (folder / "train.csv").write_text("Sentence,ID,Label\na,0,overruling\nb,1,not overruling\n")
        (kept / "refs").mkdir()
        (kept / "refs" / "main").write_text("0" * 40)
        for data_dir in (tmp_path, None):
            data = data_sets.read_data_set("raft:overruling", data_dir)
            assert data.train.texts == ["a", "b"]

    def test_fifty_rows_are_drawn_whatever_their_classes(self, folder):
        path = folder / "data" / "films" / "train.csv"
        rows = path.read_text().splitlines()
        path.write_text("\n".join([*rows, *(f"more {n},positive" for n in range(30)), "x,odd"]))
        data = data_sets.read_data_set("fifty:films", folder / "data")
        draws = [data.draw(None, seed) for seed in range(40)]
        assert {len(rows) for rows in draws} == {50}
        assert len({tuple(rows.texts) for rows in draws}) == 40
        assert {"odd" in rows.labels for rows in draws} == {True, False}
        assert data.classes == ["negative", "odd", "positive"]

    def test_a_tenth_of_the_labels_is_wrong_and_their_texts_are_the_same(self, folder):
        plain, noisy = (
            data_sets.read_data_set(name, folder / "data") for name in ("films", "noisy:films")
        )
        right, wrong = (data.draw(20, 3) for data in (plain, noisy))
        assert wrong.texts == right.texts
        assert sum(a != b for a, b in zip(wrong.labels, right.labels, strict=True)) == 4
        assert wrong.labels == noisy.draw(20, 3).labels != noisy.draw(20, 4).labels
        assert noisy.test == plain.test
        assert noisy.digest() != plain.digest()
        assert noisy.card == plain.card

    def test_a_rare_class_has_a_ninth_of_the_rows_of_the_other(self, folder):
        skewed = data_sets.read_data_set("skewed:films", folder / "data")
        drawn = skewed.draw(10, 3)
        assert [drawn.labels.count(label) for label in skewed.classes] == [2, 18]

    def test_typing_errors_swap_letters_of_test_texts_alone(self, folder):
        plain, typed = (
            data_sets.read_data_set(name, folder / "data") for name in ("films", "typos:films")
        )
        assert typed.train == plain.train
        changed = [
            (a, b) for a, b in zip(plain.test.texts, typed.test.texts, strict=True) if a != b
        ]
        assert len(changed) > 0.8 * len(plain.test)  # a swap of the same letters is none
        assert all(sorted(a) == sorted(b) for a, b in changed)
        again = data_sets.read_data_set("typos:films", folder / "data")
        assert again.test == typed.test

    def test_a_shift_keeps_the_classes_that_both_have(self, folder):
        other = folder / "data" / "tweets"
        other.mkdir()
        rows = [("so nice", "positive"), ("so so", "neutral"), ("so bad", "negative")]
        for split in ("train", "test"):
            with (other / f"{split}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([("text", "label"), *rows])
        read = data_sets.read_data_set
        there, back = (
            read(f"shift:{name}", folder / "data") for name in ("films>tweets", "tweets>films")
        )
        assert there.classes == back.classes == ["negative", "positive"]
        assert there.test.texts == back.train.texts == ["so nice", "so bad"]
        assert there.train.texts == read("films", folder / "data").train.texts
        polar = read("polar:tweets", folder / "data")
        assert polar.test.labels == ["positive", "negative"]

    def test_a_variant_has_the_prompts_and_words_of_what_it_is_tested_on(self):
        assert data_sets.card_of("noisy:trec") == data_sets.card_of("trec")
        assert data_sets.card_of("shift:sst2>agnews") == data_sets.card_of("agnews")

    def test_columns_of_the_hub_are_known_by_name_and_never_tell_the_label(self):
        class Split(dict):
            features = property(lambda self: {key: Kind() for key in self})

        class Kind:
            dtype = "string"

        def chosen(**columns):
            return text_columns("o/n", Split(columns), "label")

        label = [0, 1, 0, 1]
        texts = [f"text {number}" for number in range(4)]
        others = {"text": texts, "label": label, "label_text": ["no", "yes", "no", "yes"]}
        assert chosen(**others) == ("text",)
        assert chosen(title=texts, sentence2=texts, sentence1=texts, label=label) == (
            "sentence1",
            "sentence2",
        )
        assert chosen(hypothesis=texts, premise=texts, label=label) == ("premise", "hypothesis")
        # unknown names: what the label tells, and what comes again and tells the label, is none
        words = ["no", "yes", "no", "yes"]
        assert chosen(verdict=words, remark=texts, label=label) == ("remark",)
        fine = ["a", "b", "c", "d"] * 3
        many = {"remark": [f"text {number}" for number in range(12)], "label": label * 3}
        assert chosen(fine=fine, **many) == ("remark",)
        for columns in ({"one": texts, "two": texts}, {"verdict": words}):
            with pytest.raises(DataError, match="it isn't clear which is the text"):
                chosen(**columns, label=label)

    def test_the_hub_needs_its_library(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(DataError, match=r"promptboosting\[hub\]"):
            data_sets.read_data_set("hub:owner/name", None)

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
        pairs = {
            "premise": ["A cat", "A dog"],
            "hypothesis": ["An animal", "A fish"],
            "label": ["yes", "no"],
        }
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
        films = data_sets.read_data_set("hub:owner/films", None)
        assert films.train.labels == ["bad", "good"]
        assert films.test.texts == ["sad", "great"]  # the labels of test are hidden
        both = data_sets.read_data_set("hub:owner/pairs", None)
        assert both.test.texts == [("A cat", "An animal"), ("A dog", "A fish")]
        assert both.test.labels == ["yes", "no"]
        with pytest.raises(DataError, match="with labels"):
            data_sets.read_data_set("hub:owner/hidden", None)
        with pytest.raises(DataError, match="can't be loaded"):
            data_sets.read_data_set("hub:owner/nothing", None)

    def test_a_class_without_training_rows_is_said(self, folder):
        path = folder / "data" / "films" / "test.csv"
        path.write_text(path.read_text() + "odd,neutral\n")
        with pytest.raises(DataError, match="no training row of class 'neutral'"):
            data_sets.read_data_set("films", folder / "data")

    def test_every_card_names_source_licence_and_prompts_that_parse(self):
        cards = data_sets.all_cards()
        assert {"sst2", "agnews", "trec", "rte", "banking77"} <= set(cards)
        for card in cards.values():
            assert card.source
            assert card.licence
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
