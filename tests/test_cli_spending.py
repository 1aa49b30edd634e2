"""The command's plans, budgets and store, and predictions that go on after a crash."""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import blackbox
from blackbox.cli import EXIT_BUDGET, main

TRAIN = str(Path(blackbox.__file__).parent / "samples" / "train.csv")
TEST = str(Path(blackbox.__file__).parent / "samples" / "test.csv")
ROOT = Path(__file__).parents[1]
COMMAND = str(Path(sys.executable).with_name("blackbox"))
LIGHT = ["--backend", "deterministic", "--n-estimators", "8"]

LOGGING_BACKEND = '''
import os, time
from backends.deterministic import DeterministicBackend

class Logging(DeterministicBackend):
    """Writes down each pass, and takes a while for it."""

    def _note(self, prompts):
        time.sleep(0.0005 * len(prompts))
        with open(os.environ["PASSES"], "a") as file:
            file.write("x" * len(prompts))
            hangs = file.tell() >= int(os.environ.get("HANG_AFTER", 10**9))
        if hangs:
            time.sleep(3600)

    def next_token(self, prompts, top_k):
        self._note(prompts)
        return super().next_token(prompts, top_k)

    def score(self, prompts, token_ids):
        self._note(prompts)
        return super().score(prompts, token_ids)
'''


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("{text} It was {mask}\n{text} A {mask}\n")
    return path


@pytest.fixture
def model(tmp_path, prompts):
    path = tmp_path / "m"
    done("train", TRAIN, "--out", path, "--prompts", prompts, *LIGHT)
    return path


class TestPlan:
    @pytest.mark.parametrize("command", [["plan"], ["train", "--dry-run"]])
    def test_a_plan_says_what_the_training_takes(self, tmp_path, prompts, command):
        options = [TRAIN, "--prompts", prompts, *LIGHT, "--store", tmp_path / "s"]
        plan = json.loads(done(*command, *options, "--json").stdout)
        assert plan["passes_to_make"] == plan["passes"] == 320
        told = json.loads(done("train", "--out", tmp_path / "m", *options, "--json").stdout)
        assert told["usage"]["passes_made"] == 320
        assert told["usage"]["tokens"] == plan["tokens"][1]
        after = json.loads(done(*command, *options, "--json").stdout)
        assert (after["passes_to_make"], after["passes_from_store"]) == (0, 320)

    def test_a_plan_for_people_shows_a_prompt(self, prompts):
        shown = done("plan", TRAIN, "--prompts", prompts, *LIGHT).stdout
        for word in ("forward passes  320", "tokens", "time", "cost", "It was", "token ids"):
            assert word in shown

    def test_training_needs_a_place_for_the_model_and_a_plan_none(self):
        result = run("train", TRAIN, *LIGHT)
        assert result.exit_code == 2
        assert "--out" in result.stderr


class TestBudgets:
    def test_a_training_that_a_budget_stops_has_its_own_exit_code_and_goes_on(
        self, tmp_path, prompts
    ):
        options = [
            "train",
            TRAIN,
            "--out",
            tmp_path / "m",
            "--prompts",
            prompts,
            *LIGHT,
            "--store",
            tmp_path / "s",
        ]
        result = run(*options, "--max-forward-passes", 100)
        assert result.exit_code == EXIT_BUDGET == 3
        assert "the budget of 100 forward passes is used up" in result.stderr
        assert [one.startswith("training on ") for one in result.stderr.splitlines()] == [1, 0]
        assert not (tmp_path / "m").exists()
        told = json.loads(done(*options, "--json").stdout)
        assert told["usage"]["passes_made"] == 220
        assert told["usage"]["passes_from_store"] == 100

    def test_without_a_store_the_message_says_that_nothing_was_kept(self, tmp_path, model):
        budget = ["--max-forward-passes", 7]
        for options in (["--no-store"], []):  # the tests' environment switches the store off
            result = run("evaluate", model, TEST, *options, *budget)
            assert result.exit_code == EXIT_BUDGET
            assert "no answer was stored. To start anew, raise" in result.stderr
        result = run("evaluate", model, TEST, "--store", tmp_path / "s", *budget)
        assert "the answers so far are in the store. To continue, raise" in result.stderr

    def test_the_message_holds_the_command_that_goes_on(self, tmp_path, prompts):
        arguments = [
            "train",
            TRAIN,
            "--out",
            "m",
            "--prompts",
            str(prompts),
            *LIGHT,
            "--max-tokens",
            "50",
        ]
        result = subprocess.run([COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 3
        assert result.stderr.rstrip().endswith(
            f"--prompts {prompts} {' '.join(LIGHT)} --max-tokens 50"
        )

    @pytest.mark.parametrize("command", ["predict", "evaluate"])
    def test_predictions_keep_to_budgets(self, tmp_path, model, command):
        out = ["--out", tmp_path / "out.csv"] if command == "predict" else []
        options = [command, model, TEST, *out, "--store", tmp_path / "s"]
        result = run(*options, "--max-forward-passes", 70)
        assert result.exit_code == 3
        assert not (tmp_path / "out.csv").exists()
        told = json.loads(done(*options, "--json").stdout)
        assert told["usage"]["passes_made"] + told["usage"]["passes_from_store"] == 160

    def test_a_budget_holds_for_the_whole_prediction(self, tmp_path, model):
        rows = [f"text {number}" for number in range(600)]
        (tmp_path / "t.csv").write_text("\n".join(["text", *rows]) + "\n")
        result = run(
            "predict",
            model,
            tmp_path / "t.csv",
            "--out",
            tmp_path / "o.csv",
            "--max-forward-passes",
            1100,
        )
        assert result.exit_code == 3
        done(
            "predict",
            model,
            tmp_path / "t.csv",
            "--out",
            tmp_path / "o.csv",
            "--max-forward-passes",
            1200,
        )

    @pytest.mark.parametrize(
        "options", [["--max-cost", "-1"], ["--store", "a", "--no-store"], ["--max-tokens", "x"]]
    )
    def test_wrong_options_are_refused(self, options):
        assert run("plan", TRAIN, *LIGHT, *options).exit_code == 2


class TestStore:
    @pytest.fixture
    def store(self, tmp_path, prompts):
        path = tmp_path / "s"
        done("train", TRAIN, "--out", tmp_path / "m", "--prompts", prompts, *LIGHT, "--store", path)
        return path

    def test_info_and_verify(self, store):
        told = json.loads(done("store", "info", "--store", store, "--json").stdout)
        assert told["passes"] == 320
        assert told["models"][0]["identity"]["provider"] == "deterministic"
        assert "320" in done("store", "info", "--store", store).stdout
        told = json.loads(done("store", "verify", "--store", store, "--json").stdout)
        assert told == {"passes": 320, "dropped": 0}
        assert "0 damaged" in done("store", "verify", "--store", store).stdout

    def test_prune_drops_what_was_not_used(self, store):
        assert "0 answers" in done("store", "prune", "--older-than", 1, "--store", store).stdout
        told = done("store", "prune", "--older-than", 0, "--store", store, "--json").stdout
        assert json.loads(told)["dropped"] == 0  # used today

    def test_an_exported_store_serves_elsewhere(self, tmp_path, store, prompts):
        done("store", "export", tmp_path / "s.parquet", "--store", store)
        assert pq.read_table(tmp_path / "s.parquet").num_rows == 320
        done("store", "import", tmp_path / "s.parquet", "--store", tmp_path / "other")
        told = done(
            "train",
            TRAIN,
            "--out",
            tmp_path / "m2",
            "--prompts",
            prompts,
            *LIGHT,
            "--store",
            tmp_path / "other",
            "--json",
        )
        assert json.loads(told.stdout)["usage"]["passes_made"] == 0
        assert (tmp_path / "m").read_bytes() == (tmp_path / "m2").read_bytes()

    @pytest.mark.parametrize("command", [["info"], ["verify"], ["prune", "--older-than", "1"]])
    def test_a_store_that_is_not_there_is_one_line(self, tmp_path, command):
        result = run("store", *command, "--store", tmp_path / "none")
        assert result.exit_code == 1
        assert "no such file" in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert not (tmp_path / "none").exists()

    def test_what_is_no_export_is_not_imported(self, tmp_path):
        (tmp_path / "x").write_bytes(b"nonsense")
        result = run("store", "import", tmp_path / "x", "--store", tmp_path / "s")
        assert result.exit_code == 1
        assert "not an exported store" in result.stderr

    def test_no_text_stands_in_the_store(self, store):
        held = b"".join(path.read_bytes() for path in store.parent.glob("s*"))
        assert b"parcel" not in held
        assert b"It was" not in held


class TestResume:
    @pytest.fixture
    def job(self, tmp_path, prompts):
        """A prediction over 2,000 rows whose passes are written down."""
        (tmp_path / "logging_backend.py").write_text(LOGGING_BACKEND)
        rows = [
            f"message {number} about a {'parcel' if number % 3 else 'refund'}"
            for number in range(2000)
        ]
        (tmp_path / "rows.csv").write_text("\n".join(["text", *rows]) + "\n")
        (tmp_path / "some.csv").write_text("\n".join(["text", *rows[:600]]) + "\n")
        environment = os.environ | {
            "PASSES": str(tmp_path / "passes"),
            "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
        }
        backend = ["--backend", "logging_backend:Logging"]
        subprocess.run(
            [
                COMMAND,
                "train",
                TRAIN,
                "--out",
                "m",
                "--prompts",
                str(prompts),
                "--n-estimators",
                "8",
                *backend,
            ],
            cwd=tmp_path,
            env=environment,
            check=True,
        )

        def start(out, *options, data="rows.csv", **variables):
            return subprocess.Popen(
                [COMMAND, "predict", "m", data, "--out", out, *backend, *options],
                cwd=tmp_path,
                env=environment | variables,
                stderr=subprocess.DEVNULL,
            )

        (tmp_path / "passes").unlink()

        return start

    def passes(self, tmp_path):
        path = tmp_path / "passes"
        made = path.stat().st_size if path.exists() else 0
        path.unlink(missing_ok=True)
        return made

    @pytest.mark.posix
    @pytest.mark.slow
    @pytest.mark.parametrize("ending", ["csv", "parquet"])
    def test_a_prediction_killed_at_any_moment_goes_on(self, tmp_path, job, ending):
        started = time.monotonic()
        assert job(f"whole.{ending}", "--store", "whole.sqlite").wait() == 0
        took = time.monotonic() - started
        self.passes(tmp_path)
        random_ = random.Random(0)
        kills = 0
        for _ in range(20):
            process = job(f"out.{ending}", "--store", "s.sqlite")
            time.sleep(random_.uniform(0.1, 1.0) * took)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
            process.communicate()
        assert job(f"out.{ending}", "--store", "s.sqlite").wait() == 0
        assert kills
        assert self.passes(tmp_path) <= 4000 + 64 * kills
        whole = (tmp_path / f"whole.{ending}").read_bytes()
        assert (tmp_path / f"out.{ending}").read_bytes() == whole
        assert not list(tmp_path.glob("*.partial"))

    @pytest.mark.posix
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "keeping", [["--store", "s.sqlite"], ["--no-store"]], ids=["store", "no store"]
    )
    def test_what_a_killed_prediction_was_answered_is_not_asked_again(self, tmp_path, job, keeping):
        start = functools.partial(job, data="some.csv")
        assert start("whole.jsonl", "--no-store").wait() == 0
        assert self.passes(tmp_path) == 1200
        process = start("out.jsonl", *keeping, HANG_AFTER="700")
        log = tmp_path / "passes"
        while not (log.exists() and log.stat().st_size >= 700):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert self.passes(tmp_path) >= 700
        answered = 0
        if "--store" in keeping:
            info = done("store", "info", "--store", tmp_path / "s.sqlite", "--json").stdout
            answered = json.loads(info)["passes"]
            assert answered >= 512  # the first 256 rows, two prompts each
        assert start("out.jsonl", *keeping).wait() == 0
        assert self.passes(tmp_path) == 1200 - answered
        assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
        assert not list(tmp_path.glob("*.partial"))
