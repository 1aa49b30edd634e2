"""The `blackbox` command: what it prints and where, its exit codes, one clear line on errors."""

from __future__ import annotations

import csv
import importlib
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import blackbox.fitting.fit
from blackbox import PromptBoostingClassifier, load_model
from blackbox.boosting.splits import draw_shots
from blackbox.cli import _COMMANDS, main
from blackbox.cli.messages import SignedLines
from blackbox.errors import BlackboxError, DataError
from blackbox.model.file import read_model
from blackbox.tables import TableReader, TableWriter, read_examples
from tests.serving import train

SAMPLES = Path(blackbox.__file__).parent / "samples"
TRAIN, TEST = str(SAMPLES / "train.csv"), str(SAMPLES / "test.csv")
COMMAND = str(Path(sys.executable).with_name("blackbox"))
CLASSES = ["account", "delivery", "product", "refund"]
OFFLINE = ["--backend", "deterministic"]
LIGHT = [*OFFLINE, "--n-estimators", "8"]
SDKS = [
    "xllamacpp",
    "onnxruntime",
    "tokenizers",
    "onnx",
    "openai",
    "vllm",
    "torch",
    "transformers",
    "fastapi",
]
EVALUATION = {
    "n",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "macro_f1",
    "log_loss",
    "brier",
    "ece",
    "coverage",
    "confusion",
    "classes",
    "n_rows_trained_on",
    "usage",
}


@pytest.fixture(autouse=True)
def _global_state() -> Iterator[None]:
    """The command sets up logging for its process, which here is that of all tests."""
    format_, show = warnings.formatwarning, warnings.showwarning
    yield
    logging.captureWarnings(False)
    warnings.formatwarning, warnings.showwarning = format_, show
    forget_help()


def forget_help() -> None:
    """Click keeps the names of the help option from the first call, for whoever asks next."""
    commands = [main, *filter(None, (main.get_command(None, name) for name in _COMMANDS))]
    for command in [*commands, *commands[-1].commands.values()]:
        command._help_option = None


def run(*arguments: object, input: str | bytes | None = None, **options: Any) -> Result:
    result = CliRunner(**options).invoke(main, [str(a) for a in arguments], input, color=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def done(*arguments: object, **options: Any) -> Result:
    result = run(*arguments, **options)
    assert result.exit_code == 0, result.stderr
    return result


def refused(*arguments: object, **options: Any) -> str:
    """The one line of a command that ends in an error."""
    result = run(*arguments, **options)
    assert result.exit_code == 1, result.stdout + result.stderr
    assert result.stdout == ""
    # the classes are counted before anything is paid
    lines = [one for one in result.stderr.splitlines() if not one.startswith("training on ")]
    (message,) = lines
    assert message.startswith("blackbox: ")
    assert result.stderr.endswith("\n")
    assert "Traceback" not in result.stderr
    return f"{message}\n"


def misused(*arguments: object, **options: Any) -> str:
    """Return what a command says of wrong usage."""
    result = run(*arguments, **options)
    assert result.exit_code == 2, result.stdout + result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("Usage: ")
    assert "Traceback" not in result.stderr
    return result.stderr


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with TableWriter(path, list(rows[0])) as writer:
        for row in rows:
            writer.write(row)
    return path


def rows_of(path: Path | str, **options: Any) -> list[dict[str, Any]]:
    with TableReader(path, **options) as reader:
        return [row.values for row in reader]


def csv_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "two.txt"
    path.write_text("# two\n{text} It was {mask}\n{text}\\nTopic: {mask}\n")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, prompts: Path) -> Path:
    """A model trained on the sample data by the command."""
    path = tmp_path_factory.mktemp("model") / "sample.blackbox"
    done("train", TRAIN, "--out", path, "--prompts", prompts, *LIGHT)
    return path


class TestHelp:
    @pytest.mark.parametrize(
        "command",
        [[], *([name] for name in _COMMANDS), ["models", "list"], ["models", "pull"]],
        ids=" ".join,
    )
    @pytest.mark.parametrize("option", ["--help", "-h"])
    def test_every_command_has_help(self, command: list[str], option: str) -> None:
        result = done(*command, option)
        assert result.stdout.startswith("Usage: ")
        assert result.stderr == ""

    def test_the_version_is_that_of_the_package(self) -> None:
        from importlib.metadata import version

        assert done("--version").stdout == f"blackbox, version {version('promptboosting')}\n"

    @pytest.mark.parametrize(
        "arguments",
        [
            ["nonsense"],
            ["--nonsense"],
            ["train"],
            ["train", TRAIN],
            ["train", TRAIN, "--out", "m", "--algorithm", "magic"],
            ["train", TRAIN, "--out", "m", "--shots", "0"],
            ["train", TRAIN, "--out", "m", "--top-k", "0"],
            ["train", TRAIN, "--out", "m", "--format", "xlsx"],
            ["predict", "m", TEST],
            ["predict", "m", TEST, "--out", "-", "--json"],
            ["evaluate", "m"],
            ["inspect"],
            ["inspect", "m", "--text-pair", "only one"],
            ["models", "nonsense"],
            ["models", "pull"],
        ],
        ids=" ".join,
    )
    def test_wrong_usage_ends_with_2(self, arguments: list[str]) -> None:
        misused(*arguments)

    def test_the_models_are_listed_for_people_and_programs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BLACKBOX_CACHE", str(tmp_path))
        assert "smollm2-135m" in done("models", "list").stdout
        listed = {one["name"]: one for one in json.loads(done("models", "list", "--json").stdout)}
        assert not listed["smollm2-135m"]["ready"]
        assert "smollm2-135m" in refused("models", "pull", "no-such-model")


class TestImports:
    def test_help_loads_no_numpy_or_scikit_learn(self) -> None:
        loaded = modules_after(
            "from blackbox.cli import _COMMANDS, main\n"
            "main(['--help'], standalone_mode=False)\n"
            "for name in _COMMANDS:\n"
            "    main([name, '--help'], standalone_mode=False)\n"
        )
        assert "click" in loaded
        assert not {"numpy", "scipy", "sklearn", "joblib", "pyarrow", "tqdm", *SDKS} & loaded

    def test_the_package_imports_its_names_when_asked_and_no_lm_software_or_command_line(
        self,
    ) -> None:
        loaded = modules_after(
            "import blackbox\n"
            "assert 'numpy' not in sys.modules\n"
            "assert set(blackbox.__all__) <= set(dir(blackbox))\n"
            "assert blackbox.load_model.__module__ == 'blackbox.loading'\n"
            "from blackbox import Prompt, PromptBoostingClassifier, PromptPool\n"
            "from blackbox import *\n"
            "assert load_model is blackbox.load_model\n"
        )
        assert {"sklearn", "blackbox.estimator"} <= loaded
        assert not {"click", "backends", "tqdm", *SDKS} & loaded

    def test_importing_the_backends_loads_no_lm_software(self) -> None:
        loaded = modules_after("import backends\nbackends.names()")
        assert "numpy" in loaded
        assert not {"click", "sklearn", *SDKS} & loaded

    def test_a_prediction_loads_no_scikit_learn(self) -> None:
        """It takes longer to import than all else, and each actor of a cluster would."""
        loaded = modules_after(
            "import blackbox.cli.predict, blackbox.model.file\n"
            "import blackbox.cluster.folder, blackbox.cluster.predictor\n"
        )
        assert "blackbox.model.model" in loaded
        assert not {"sklearn", "scipy", "pandas", *SDKS} & loaded

    def test_names_that_the_package_does_not_have_are_errors(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
            blackbox.nonsense  # noqa: B018
        assert blackbox._HOMES.keys() == set(blackbox.__all__)
        for name in blackbox.__all__:
            assert getattr(blackbox, name).__module__ == blackbox._HOMES[name]


def modules_after(code: str) -> set[str]:
    """Top-level modules, and ours, that a fresh interpreter has loaded after some code."""
    listing = "\nprint('MODULES', *sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", "import sys\n" + code + listing], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.rpartition("MODULES ")[2].split())


class TestWorkflow:
    def test_train_tells_people_what_it_did_and_prints_no_data(
        self, tmp_path: Path, prompts: Path
    ) -> None:
        result = done("train", TRAIN, "--out", tmp_path / "m", "--prompts", prompts, *LIGHT)
        assert result.stdout == ""
        assert "160 rows: account 40, delivery 40, product 40, refund 40" in result.stderr
        assert "44.4% on 160 held-out rows" in result.stderr
        assert "320 forward passes" in result.stderr
        assert str(tmp_path / "m") in result.stderr

    def test_train_gives_programs_json_alone(self, tmp_path: Path, prompts: Path) -> None:
        result = done(
            "train", TRAIN, "--out", tmp_path / "m", "--prompts", prompts, *LIGHT, "--json"
        )
        told = json.loads(result.stdout)
        assert set(told) == {
            "model_path",
            "classes",
            "prompts",
            "training",
            "rows_left_out",
            "usage",
        }
        assert result.stderr == ""
        assert told["classes"] == CLASSES
        assert told["usage"]["passes_made"] == 320
        assert told["prompts"] == [
            prompt.template for prompt in load_model(tmp_path / "m").prompts_
        ]

    @pytest.mark.parametrize("algorithm", ["logit", "samme"])
    def test_the_command_trains_what_the_library_trains(
        self, tmp_path: Path, prompts: Path, algorithm: str
    ) -> None:
        out = tmp_path / "m"
        done(
            "train",
            TRAIN,
            "--out",
            out,
            "--prompts",
            prompts,
            *LIGHT,
            "--algorithm",
            algorithm,
            "--seed",
            3,
            "--balanced",
            "--top-k",
            50,
        )
        examples = read_examples(TRAIN)
        PromptBoostingClassifier(
            "deterministic",
            prompts=prompts,
            algorithm=algorithm,
            n_estimators=8,
            random_state=3,
            class_weight="balanced",
            top_k=50,
        ).fit(examples.texts, examples.labels).save(tmp_path / "library")
        assert out.read_bytes() == (tmp_path / "library").read_bytes()

    def test_prompts_are_chosen_when_none_are_given(self, tmp_path: Path) -> None:
        few = table(tmp_path / "few.csv", rows_of(TRAIN)[:24])
        options = ["--n-prompts", 2, "--task", "What is it about?", *LIGHT, "--json"]
        told = json.loads(done("train", few, "--out", tmp_path / "m", *options).stdout)
        assert 1 <= len(told["prompts"]) <= 2
        assert told["training"]["n_prompts_tried"] > 20

    def test_evaluate_prints_exactly_the_measures_as_json(self, model: Path) -> None:
        result = done("evaluate", model, TEST, "--json")
        told = json.loads(result.stdout)
        assert result.stderr == ""
        assert set(told) == EVALUATION
        assert told["n"] == 80
        assert told["coverage"] == 1
        assert told["classes"] == CLASSES
        assert np.array(told["confusion"]).sum(axis=1).tolist() == [20] * 4
        assert told["accuracy"] == np.trace(told["confusion"]) / 80
        assert told["accuracy_low"] < told["accuracy"] < told["accuracy_high"]
        truth = read_examples(TEST)
        score = load_model(model).score(truth.texts, truth.labels)
        assert told["accuracy"] == pytest.approx(score)

    def test_evaluate_prints_measures_for_people(self, model: Path) -> None:
        result = done("evaluate", model, TEST)
        for word in (
            "accuracy",
            "95% interval",
            "macro F1",
            "log-loss",
            "calibration error",
            *CLASSES,
        ):
            assert word in result.stdout
        assert "160 forward passes" in result.stderr

    def test_predict_adds_its_columns_behind_those_of_the_table(
        self, tmp_path: Path, model: Path
    ) -> None:
        out = tmp_path / "out.csv"
        result = done("predict", model, TEST, "--out", out)
        assert result.stdout == ""
        assert result.stderr.startswith(f"80 rows predicted; written to {out}\n160 forward passes")
        before, after = rows_of(TEST), rows_of(out)
        added = ["prediction", *(f"probability_{name}" for name in CLASSES)]
        assert list(after[0]) == ["text", "label", *added]
        assert [{key: row[key] for key in ("text", "label")} for row in after] == before
        classifier = load_model(model)
        texts = [row["text"] for row in before]
        assert [row["prediction"] for row in after] == classifier.predict(texts).tolist()
        written = [[float(row[name]) for name in added[1:]] for row in after]
        np.testing.assert_allclose(written, classifier.predict_proba(texts), atol=1e-6)

    def test_predict_gives_programs_json_alone(self, tmp_path: Path, model: Path) -> None:
        out = tmp_path / "out.csv"
        result = done("predict", model, TEST, "--out", out, "--json")
        told = json.loads(result.stdout)
        assert told.pop("usage")["passes_made"] == 160
        assert told == {
            "rows": 80,
            "abstained": 0,
            "truncated": 0,
            "out": str(out),
        }
        assert result.stderr == ""

    def test_inspect_shows_the_model_without_reaching_an_lm(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("backends.load", lambda *a, **k: pytest.fail("reached an LM"))
        result = done("inspect", model, "--learners", 2)
        assert result.stderr == ""
        for word in ("deterministic", "logit", *CLASSES, "{text} It was {mask}", "strongest"):
            assert word in result.stdout
        assert result.stdout.count("\n  round ") == 2
        told = json.loads(done("inspect", model, "--json").stdout)
        assert set(told) == {
            "language_model",
            "algorithm",
            "classes",
            "order",
            "top_k",
            "training",
            "prompts",
            "experts",
            "learners",
            "n_training_texts",
        }
        assert told["classes"] == CLASSES

    def test_inspect_says_nothing_twice_where_there_are_two_classes(self, tmp_path: Path) -> None:
        path = train(tmp_path / "two.blackbox")
        shown = done("inspect", path, "--learners", 3).stdout
        assert "−“" not in shown  # what counts against one class counts for the other
        explained = done("inspect", path, "--text", "match goal", *OFFLINE).stdout
        assert "to the score of sport (money: the opposite)" in explained
        assert explained.count("money") == 2  # its probability, and the line above

    def test_inspect_explains_one_prediction(self, model: Path) -> None:
        text = "where is my parcel?"
        told = json.loads(done("inspect", model, "--text", text, "--json").stdout)
        assert set(told) == {
            "prediction",
            "probabilities",
            "experts",
            "prompts",
            "learners",
            "usage",
        }
        assert told["prediction"] == load_model(model).predict([text])[0]
        shown = done("inspect", model, "--text", text).stdout
        assert f"prediction  {told['prediction']}\n" in shown
        assert "contribution of each prompt" in shown

    def test_pairs_go_through_all_commands(self, tmp_path: Path) -> None:
        rows = [
            {"premise": f"it is {a} {n}", "claim": f"so {b}", "same": "yes" if a == b else "no"}
            for a in ("wet", "dry")
            for b in ("wet", "dry")
            for n in range(3)
        ]
        data, out, model = table(tmp_path / "p.jsonl", rows), tmp_path / "o.csv", tmp_path / "m"
        columns = ["--text-column", "premise", "--text-pair-column", "claim"]
        done("train", data, "--out", model, *columns, "--label-column", "same", *LIGHT)
        done("evaluate", model, data, *columns, "--label-column", "same")
        done("predict", model, data, "--out", out, *columns)
        assert [row["claim"] for row in rows_of(out)] == [row["claim"] for row in rows]
        done("inspect", model, "--text", "it is wet", "--text-pair", "so dry")
        assert "--text-pair" in misused("inspect", model, "--text", "it is wet")
        assert "--text-pair-column" in misused(
            "predict", model, data, "--out", out, "--text-column", "claim"
        )

    def test_a_model_of_single_texts_refuses_pairs(self, tmp_path: Path, model: Path) -> None:
        pair = ["--text-pair-column", "label"]
        assert "single texts" in misused("evaluate", model, TEST, *pair)
        assert "single texts" in misused("predict", model, TEST, "--out", tmp_path / "o.csv", *pair)
        assert "single texts" in misused("inspect", model, "--text", "a", "--text-pair", "b")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("labels", "cells"),
        [
            ([True, False], [True, False]),
            ([True, False], ["True", "False"]),
            ([1.0, 2.0], [1.0, 2.0]),
            ([1.0, 2.0], ["1.0", "2.0"]),
            ([1, 2], [1, 2]),
        ],
    )
    def test_evaluate_takes_labels_as_tables_spell_them(
        self, tmp_path: Path, labels: list[Any], cells: list[Any]
    ) -> None:
        texts = [f"a {word} day {n}" for n in range(4) for word in ("lovely", "dull")]
        classifier = PromptBoostingClassifier(
            "deterministic", prompts=["{text} It was {mask}"], n_estimators=3
        ).fit(texts, labels * 4)
        classifier.save(tmp_path / "m")
        rows = [{"text": text, "label": cells[n % 2]} for n, text in enumerate(texts)]
        data = table(tmp_path / "data.jsonl", rows)
        told = json.loads(done("evaluate", tmp_path / "m", data, "--json").stdout)
        assert told["accuracy"] == classifier.score(texts, labels * 4)


ROWS = [
    {"id": 7, "text": "where is my parcel?", "note": 'ä,;\t"x"', "score": 0.5},
    {"id": 3, "text": "line one\nline two", "note": "", "score": 1.0},
    {"id": 5, "text": "日本語 🎁", "note": "007", "score": -2.0},
]


class TestTables:
    @pytest.mark.parametrize("target", ["csv", "tsv", "jsonl", "parquet"])
    @pytest.mark.parametrize("source", ["csv", "tsv", "jsonl", "parquet"])
    def test_predict_reads_and_writes_every_format(
        self, tmp_path: Path, model: Path, source: str, target: str
    ) -> None:
        data = table(tmp_path / f"in.{source}", ROWS)
        out = tmp_path / f"out.{target}"
        done("predict", model, data, "--out", out)
        before, after = rows_of(data), rows_of(out)
        added = ["prediction", *(f"probability_{name}" for name in CLASSES)]
        assert [list(row) for row in after] == [["id", "text", "note", "score", *added]] * 3
        as_text = target in ("csv", "tsv")
        for row, kept in zip(before, after, strict=True):
            for name, value in row.items():
                assert kept[name] == (str(value) if as_text else value)
            total = sum(float(kept[name]) for name in added[1:])
            assert total == pytest.approx(1, abs=1e-5)
            assert kept["prediction"] in CLASSES

    def test_parquet_keeps_the_types_of_its_columns(self, tmp_path: Path, model: Path) -> None:
        schema = pa.schema([("id", pa.int16()), ("text", pa.string()), ("score", pa.float32())])
        names = ("id", "text", "score")
        rows = [{name: row[name] for name in names} for row in ROWS]
        pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "in.parquet")
        done("predict", model, tmp_path / "in.parquet", "--out", tmp_path / "out.parquet")
        written = pq.read_schema(tmp_path / "out.parquet")
        assert [written.field(name).type for name in names] == schema.types
        assert written.field("prediction").type == pa.string()
        assert written.field(f"probability_{CLASSES[0]}").type == pa.float64()

    def test_predict_streams_thousands_of_rows_in_their_order(
        self, tmp_path: Path, model: Path
    ) -> None:
        rows = [{"n": n, "text": f"parcel {n % 7} is late"} for n in range(3000)]
        data, out = table(tmp_path / "in.csv", rows), tmp_path / "out.jsonl"
        result = done("predict", model, data, "--out", out)
        assert "3000 rows predicted" in result.stderr
        after = rows_of(out)
        assert [row["n"] for row in after] == [str(n) for n in range(3000)]
        expected = load_model(model).predict([row["text"] for row in rows[:7]]).tolist()
        assert [row["prediction"] for row in after] == [expected[n % 7] for n in range(3000)]

    def test_the_table_alone_is_on_standard_output(self, tmp_path: Path, model: Path) -> None:
        result = done("predict", model, TEST, "--out", "-")
        done("predict", model, TEST, "--out", tmp_path / "out.csv")
        assert result.stdout_bytes == (tmp_path / "out.csv").read_bytes()
        assert result.stderr.startswith("80 rows predicted; written to -\n")

    def test_a_dash_reads_standard_input(self, tmp_path: Path, model: Path, prompts: Path) -> None:
        train, test = Path(TRAIN).read_bytes(), Path(TEST).read_bytes()
        options = ["--prompts", prompts, *LIGHT]
        done("train", "-", "--out", tmp_path / "m", *options, input=train)
        assert (tmp_path / "m").read_bytes() == model.read_bytes()
        piped = json.loads(done("evaluate", model, "-", "--json", input=test).stdout)
        named = json.loads(done("evaluate", model, TEST, "--json").stdout)
        assert piped | {"usage": None} == named | {"usage": None}
        piped = done("predict", model, "-", "--out", "-", input=test).stdout
        assert piped == done("predict", model, TEST, "--out", "-").stdout
        objects = '{"text": "where is it?", "label": "delivery"}\n'
        assert json.loads(done("evaluate", model, "-", "--json", input=objects).stdout)["n"] == 1
        tabs = "text\tlabel\nwhere is it?\tdelivery\n"
        done("evaluate", model, "-", "--format", "tsv", input=tabs)
        message = refused("evaluate", model, "-", input="text,label\nhello,nonsense\n")
        assert message.startswith("blackbox: <stdin>, row 1, column 'label': 'nonsense'")

    def test_what_is_labelled_is_on_standard_output_before_more_is_read(self, model: Path) -> None:
        rows = [f"{n},parcel {n}\n".encode() for n in range(300)]
        with subprocess.Popen(
            [COMMAND, "predict", str(model), "-", "--out", "-", *OFFLINE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            stuck = Timer(60, process.kill)
            stuck.start()
            process.stdin.write(b"id,text\n" + b"".join(rows[:256]))
            process.stdin.flush()
            first = [process.stdout.readline() for _ in range(257)]
            stuck.cancel()
            assert first[-1].startswith(b"255,")
            process.stdin.write(b"".join(rows[256:]))
            process.stdin.close()
            assert len(process.stdout.readlines()) == 300 - 256

    def test_the_table_may_be_written_over_itself(self, tmp_path: Path, model: Path) -> None:
        data = table(tmp_path / "data.csv", ROWS)
        done("predict", model, data, "--out", data)
        assert [row["note"] for row in rows_of(data)] == [row["note"] for row in ROWS]
        assert all(row["prediction"] in CLASSES for row in rows_of(data))
        assert list(tmp_path.iterdir()) == [data]

    @pytest.mark.parametrize("taken", ["prediction", "probability_refund", "reason"])
    def test_a_column_that_predict_adds_is_not_overwritten(
        self, tmp_path: Path, model: Path, taken: str
    ) -> None:
        options = ["--on-row-error", "abstain", "--out", tmp_path / "out.csv"]
        data = table(tmp_path / "data.csv", [{"text": "a", taken: "mine"}])
        assert taken in refused("predict", model, data, *options)
        late = tmp_path / "late.jsonl"
        late.write_text(f'{{"text": "a"}}\n{{"text": "b", "{taken}": "mine"}}\n')
        message = refused("predict", model, late, *options)
        assert "row 2" in message
        assert taken in message
        assert not (tmp_path / "out.csv").exists()


class TestUnfinishedOutput:
    """The files beside an output that isn't complete."""

    @pytest.fixture
    def risky(self, tmp_path_factory: pytest.TempPathFactory, prompts: Path) -> Path:
        path = tmp_path_factory.mktemp("samme") / "m"
        done("train", TRAIN, "--out", path, "--prompts", prompts, *LIGHT, "--algorithm", "samme")
        return path

    def test_a_run_that_is_refused_leaves_nothing(
        self, tmp_path: Path, model: Path, risky: Path
    ) -> None:
        out = tmp_path / "o.csv"
        assert "use exact" in misused("predict", risky, TEST, "--out", out, "--early-stop", "risk")
        data = table(tmp_path / "data.csv", [{"text": " "}, {"text": "where is it?"}])
        assert "row 1" in refused("predict", model, data, "--out", out, "--on-row-error", "raise")
        assert "ending" in refused("predict", model, TEST, "--out", tmp_path / "o.xlsx")
        assert "too long" in refused("predict", model, TEST, "--out", tmp_path / f"{'o' * 249}.csv")
        assert list(tmp_path.iterdir()) == [data]

    @pytest.mark.posix
    def test_a_device_has_none(self, tmp_path: Path, model: Path) -> None:
        device = tmp_path / "null.csv"
        device.symlink_to("/dev/null")
        done("predict", model, TEST, "--out", device)
        assert list(tmp_path.iterdir()) == [device]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_full_disk_is_one_line(self, tmp_path: Path, model: Path) -> None:
        full = tmp_path / "full.csv"
        full.symlink_to("/dev/full")
        assert "No space left on device" in refused("predict", model, TEST, "--out", full)
        assert list(tmp_path.iterdir()) == [full]

    def test_two_runs_do_not_write_one_output(self, tmp_path: Path, model: Path) -> None:
        out = tmp_path / "o.csv"
        with TableWriter(out, ["text"]) as writer:
            writer.write({"text": "of a run that goes on"})
            writer.flush()
            assert f"{out}: another run is writing it" in refused(
                "predict", model, TEST, "--out", out
            )
            (partial,) = tmp_path.iterdir()
            assert partial.name.startswith(".o.csv.")
        assert rows_of(out) == [{"text": "of a run that goes on"}]
        done("predict", model, TEST, "--out", out)
        assert list(tmp_path.iterdir()) == [out]

    def test_a_user_s_own_file_beside_it_survives(self, tmp_path: Path, model: Path) -> None:
        own = [tmp_path / f"o.csv.{ending}" for ending in ("journal", "partial", "lock")]
        for file in own:
            file.write_text("mine")
        done("predict", model, TEST, "--out", tmp_path / "o.csv")
        assert [file.read_text() for file in own] == ["mine"] * 3

    @pytest.mark.posix
    def test_an_output_is_never_an_input(self, tmp_path: Path, model: Path, prompts: Path) -> None:
        data = tmp_path / "data.csv"
        data.write_bytes(Path(TRAIN).read_bytes())
        trained = tmp_path / "m.csv"
        trained.write_bytes(model.read_bytes())
        pool = tmp_path / "prompts.txt"
        pool.write_bytes(prompts.read_bytes())
        link = tmp_path / "link.csv"
        link.symlink_to(data)
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        for command in (
            ["train", data, "--out", data, *LIGHT],
            ["train", data, "--out", link, *LIGHT],
            ["train", data, "--out", pool, "--prompts", pool, *LIGHT],
            ["prompts", "generate", data, "--out", data, *OFFLINE],
            ["predict", trained, data, "--out", trained],
            ["report", trained, "--out", trained],
            ["report", trained, data, "--out", data],
        ):
            assert "is an input of this command" in misused(*command)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_can_t_be_written_is_refused_before_anything_is_spent(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("backends.load", lambda *a, **k: pytest.fail("reached an LM"))
        tmp_path.chmod(0o500)
        assert "can't be written" in misused("train", TRAIN, "--out", tmp_path / "m", *LIGHT)


class TestRecognisedTables:
    """Exports as spreadsheet programs and annotation tools write them."""

    @pytest.mark.parametrize(
        ("name", "delimiter", "encoding", "said"),
        [
            ("excel.csv", ";", "cp1252", ["Windows-1252", "semicolons"]),
            ("excel.csv", ";", "utf-8-sig", ["semicolons"]),
            ("unicode.txt", "\t", "utf-16", ["tabs"]),
            ("plain.csv", ",", "utf-16", []),
        ],
    )
    def test_they_are_trained_on_and_predicted(
        self,
        tmp_path: Path,
        prompts: Path,
        caplog: pytest.LogCaptureFixture,
        name: str,
        delimiter: str,
        encoding: str,
        said: list[str],
    ) -> None:
        data, out = tmp_path / name, tmp_path / "out.csv"
        lines = [f"text{delimiter}label", "Brötchen köstlich%gut", "schöner Garten%gut"]
        lines += ["Straße laut%schlecht", "Käse übel%schlecht", "ohne Urteil%"]
        text = "\r\n".join(lines).replace("%", delimiter) + "\r\n"
        data.write_bytes(text.encode(encoding))
        trained = tmp_path / "m"
        told = done("train", data, "--out", trained, "--prompts", prompts, *LIGHT, "--json").stdout
        assert json.loads(told)["classes"] == ["gut", "schlecht"]
        assert json.loads(told)["training"]["n_rows"] == 4
        of_tables = [one for one in caplog.records if one.name.startswith("blackbox.tables")]
        messages = [record.getMessage() for record in of_tables]
        for words, message in zip([*said, "left out: 1"], messages, strict=True):
            assert message.startswith(f"{data}: ")
            assert words in message
        caplog.clear()
        options = ["--delimiter", "tab" if delimiter == "\t" else delimiter, "--encoding", encoding]
        done("predict", trained, data, "--out", out, *options)
        assert [row["text"] for row in rows_of(out)][3] == "Käse übel"
        done("evaluate", trained, data, *options)
        done("report", trained, data, "--out", tmp_path / "r.html", *options)
        assert all("left out" in record.getMessage() for record in caplog.records)

    def test_several_labels_are_refused_with_the_page_about_them(self, tmp_path: Path) -> None:
        data = tmp_path / "data.json"
        rows = [{"text": "a", "label": ["x"]}, {"text": "b", "label": ["x", "y"]}]
        data.write_text(json.dumps(rows))
        message = refused("train", data, "--out", tmp_path / "m", *LIGHT)
        assert f"{data}, row 2, column 'label'" in message
        assert "docs/several-labels.md" in message

    def test_labels_that_look_alike_are_one_warning_with_both(
        self, tmp_path: Path, prompts: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        labels = ["Refund-x", "refund-x", "other", "other "] * 3
        rows = [{"text": f"text {n}", "label": label} for n, label in enumerate(labels)]
        data = table(tmp_path / "data.csv", rows)
        options = ["--prompts", prompts, *LIGHT]
        done("train", data, "--out", tmp_path / "m", *options)
        done("train", data, "--out", tmp_path / "again", *options)
        said = (one for one in caplog.records if one.name == "blackbox.answers.labels")
        (message,) = (record.getMessage() for record in said)
        assert "'other' and 'other '; 'Refund-x' and 'refund-x'" in message

    def test_formulas_are_escaped_where_that_is_asked(self, tmp_path: Path, model: Path) -> None:
        data = table(tmp_path / "data.csv", [{"text": "=1+1", "n": "-1.5"}])
        out = tmp_path / "out.csv"
        done("predict", model, data, "--out", out)
        assert rows_of(out)[0]["text"] == "=1+1"
        done("predict", model, data, "--out", out, "--escape-formulas")
        assert rows_of(out)[0]["text"] == "'=1+1"
        assert rows_of(out)[0]["n"] == "-1.5"

    def test_what_is_not_read_goes_through_untouched(self, tmp_path: Path, model: Path) -> None:
        lines = ['{"text":"where is it", "n": NaN, "big": 1e400, "i": 1234567890123456789012}']
        (tmp_path / "in.jsonl").write_text(lines[0] + "\n")
        done("predict", model, tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
        assert (tmp_path / "out.jsonl").read_text().startswith(lines[0][:-1] + ', "prediction": ')
        when = pa.array([1, 2]).cast(pa.timestamp("ns", "Asia/Tokyo"))
        rows = pa.table({"text": ["where is it", "broken"], "when": when})
        rows = rows.replace_schema_metadata({"own": "x"})
        pq.write_table(rows, tmp_path / "in.parquet")
        done("predict", model, tmp_path / "in.parquet", "--out", tmp_path / "out.parquet")
        back = pq.read_table(tmp_path / "out.parquet")
        assert back.select(["text", "when"]).equals(rows)
        assert back.schema.metadata[b"own"] == b"x"


class TestRefusedRows:
    """A row that the LM refuses is named as the table and the command name it."""

    @pytest.fixture(autouse=True)
    def _refuses_secrets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from backends.deterministic import DeterministicBackend

        real = DeterministicBackend._take

        def take(self: Any, read: Any) -> Any:
            usage, row_errors = real(self, read)
            secret = {row for row, words in enumerate(read) if "secret" in words.words}
            return usage, row_errors | dict.fromkeys(secret, "content filter")

        monkeypatch.setattr(DeterministicBackend, "_take", take)

    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        rows = [{"words": f"parcel {n}", "label": "ab"[n % 2]} for n in range(40)]
        rows[0]["label"] = ""
        for row in range(31, 40):
            rows[row]["words"] += " secret"
        return table(tmp_path / "data.csv", rows)

    def test_train_names_the_row_of_the_table(
        self, tmp_path: Path, data: Path, prompts: Path
    ) -> None:
        options = ["--text-column", "words", "--prompts", prompts, *LIGHT]
        command = ["train", data, "--out", tmp_path / "m", *options]
        told = refused(*command)
        assert f"{data}, row 32, column 'words': content filter" in told
        assert "--on-row-error abstain" in told
        assert "on_row_error" not in told

    def test_also_where_rows_are_sampled(self, tmp_path: Path, data: Path, prompts: Path) -> None:
        options = ["--text-column", "words", "--prompts", prompts, *LIGHT]
        examples = read_examples(data, text_column="words")
        for seed in range(3):
            drawn = [
                examples.numbers[row]
                for row in draw_shots(examples.labels, examples.texts, 12, seed)
            ]
            first = min(number for number in drawn if number > 31)
            shots = ["--shots", 12, "--seed", seed]
            told = refused("train", data, "--out", tmp_path / "m", *options, *shots)
            assert f"{data}, row {first}, column 'words': content filter" in told

    def test_evaluate_and_predict_name_it_alike(
        self, tmp_path: Path, data: Path, model: Path
    ) -> None:
        options = ["--text-column", "words"]
        known = tmp_path / "known.csv"
        known.write_text(
            data.read_text().replace(",a\n", ",refund\n").replace(",b\n", ",account\n")
        )
        out = tmp_path / "out.csv"
        told = [
            refused("evaluate", model, known, *options),
            refused("predict", model, known, "--out", out, "--on-row-error", "raise", *options),
        ]
        for one in told:
            assert f"{known}, row 32, column 'words': content filter" in one
            assert "--on-row-error abstain" in one

    def test_a_class_without_usable_rows_names_the_first(
        self, tmp_path: Path, prompts: Path
    ) -> None:
        rows = [{"text": "secret", "label": "a"}] * 3 + [{"text": "x", "label": "b"}] * 3
        data = table(tmp_path / "data.csv", rows)
        options = ["--on-row-error", "abstain", "--prompts", prompts, *LIGHT]
        told = refused("train", data, "--out", tmp_path / "m", *options)
        assert "class 'a' has no usable row left" in told
        assert f"the first is {data}, row 1, column 'text': content filter" in told


class TestShots:
    def test_shots_are_those_of_draw_shots_and_the_same_for_a_seed(
        self, tmp_path: Path, prompts: Path
    ) -> None:
        options = ["--shots", 5, "--prompts", prompts, *LIGHT]
        for name, seed in (("one", 4), ("again", 4), ("other", 5)):
            done("train", TRAIN, "--out", tmp_path / name, *options, "--seed", seed)
        examples = read_examples(TRAIN)
        rows = draw_shots(examples.labels, examples.texts, 5, 4)
        PromptBoostingClassifier(
            "deterministic", prompts=prompts, n_estimators=8, random_state=4
        ).fit([examples.texts[row] for row in rows], [examples.labels[row] for row in rows]).save(
            tmp_path / "library"
        )
        one, again, other, library = (
            (tmp_path / name).read_bytes() for name in ("one", "again", "other", "library")
        )
        assert one == again == library
        assert one != other

    def test_draw_shots_takes_as_many_of_each_class_without_repeating(self) -> None:
        labels = ["a"] * 10 + ["b"] * 3 + ["ccc"] * 5
        texts = [f"text {row}" for row in range(len(labels))]
        drawn = draw_shots(labels, texts, 3, 0)
        assert drawn == sorted(set(drawn))
        assert sorted(labels[row] for row in drawn) == ["a"] * 3 + ["b"] * 3 + ["ccc"] * 3
        assert drawn == draw_shots(labels, texts, 3, 0)
        assert len({tuple(draw_shots(labels, texts, 3, seed)) for seed in range(10)}) > 5

    @pytest.mark.parametrize("pair", [False, True])
    def test_copies_of_a_text_are_drawn_as_one(self, pair: bool) -> None:
        texts = [f"text {row % 8}" for row in range(64)] + ["text 0", "text 9"] * 8
        given = [(text, "second") for text in texts] if pair else texts
        labels = ["a"] * 64 + ["b"] * 16
        counts = Counter[int]()
        for seed in range(200):
            rows = draw_shots(labels, given, 2, seed)
            counts.update(row for row in rows if labels[row] == "a")
            assert len({(texts[row], labels[row]) for row in rows}) == len(rows) == 4
        assert set(counts) == set(range(8))
        assert min(counts.values()) > 25  # 50 are expected
        with pytest.raises(DataError, match="class 'b' has 2 different texts and 3 are wanted"):
            draw_shots(labels, given, 3, 0)

    def test_one_shot_is_enough(self, tmp_path: Path, prompts: Path) -> None:
        options = ["--shots", 1, "--prompts", prompts, *LIGHT, "--json"]
        told = json.loads(done("train", TRAIN, "--out", tmp_path / "m", *options).stdout)
        assert told["training"]["n_rows"] == 4

    def test_no_line_of_a_log_has_the_password_of_an_address(self) -> None:
        said = 'HTTP Request: GET http://me:hush@hush@host/v1/models "HTTP/1.1 200"'
        record = logging.LogRecord("httpx2", logging.INFO, "", 0, said, None, None)
        shown = SignedLines().format(record)
        assert "hush" not in shown
        assert "host/v1/models" in shown

    def test_too_few_rows_for_the_shots_are_refused(self, tmp_path: Path) -> None:
        message = refused("train", TRAIN, "--out", tmp_path / "m", "--shots", 41, *LIGHT)
        assert "'account' has 40 rows and 41 are wanted" in message
        assert "take fewer shots" in message
        assert list(tmp_path.iterdir()) == []


GOOD = "text,label\na lovely day,good\na dull day,bad\nso lovely,good\nso dull,bad\n"


class TestBadTables:
    """Each is one line that says what to do, before anything is spent or written."""

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("", ["is empty"]),
            ("text,label\n", ["no rows", "add examples"]),
            ("words,label\nhello,a\n", ["no column 'text'", "'words'"]),
            ("text,class\nhello,a\n", ["no column 'label'", "'class'"]),
            ("text,label,text\nhello,a,b\n", ["two columns", "'text'"]),
            ("text,label\nhello,\n", ["row 1", "column 'label'", "empty"]),
            (GOOD + "hello\n", ["row 5", "1 fields"]),
            (GOOD + '"never closed,good\n', ["row 5", "quote"]),
            ((GOOD + "schön,good\n").encode() + b"sch\xf6n,good\n", ["line 7", "not UTF-8"]),
            (GOOD.encode("utf-16-le"), ["UTF-16"]),
            (b"\x89PNG\r\n\x1a\n" + bytes(100), ["image"]),
            (b"PK\x03\x04" + bytes(100), ["Excel"]),
            (b"text,label\n\x00\x01\x02", ["line 2", "binary"]),
            ("words;label\na;b\n", ["no column 'text'", "'words', 'label'"]),
        ],
        ids=range(14),
    )
    @pytest.mark.parametrize("command", ["train", "evaluate"])
    def test_a_bad_table_is_refused_with_the_place(
        self, tmp_path: Path, model: Path, command: str, content: str | bytes, words: list[str]
    ) -> None:
        data = tmp_path / "data.csv"
        data.write_bytes(content if isinstance(content, bytes) else content.encode())
        rest = ["--out", tmp_path / "m", *LIGHT] if command == "train" else []
        start = [command, data] if command == "train" else [command, model, data]
        message = refused(*start, *rest)
        assert str(data) in message
        for word in words:
            assert word in message
        assert list(tmp_path.iterdir()) == [data]

    @pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
    def test_a_missing_table_is_refused(self, tmp_path: Path, model: Path, command: str) -> None:
        data, out = tmp_path / "missing.csv", tmp_path / "out.csv"
        arguments = {
            "train": ["train", data, "--out", out, *LIGHT],
            "evaluate": ["evaluate", model, data],
            "predict": ["predict", model, data, "--out", out],
        }[command]
        message = refused(*arguments)
        assert "missing.csv: no such file" in message
        assert not out.exists()

    def test_an_empty_text_that_is_an_error_leaves_no_half_table(
        self, tmp_path: Path, model: Path
    ) -> None:
        rows = [{"text": f"parcel {n}"} for n in range(600)]
        rows[555]["text"] = " "
        data = table(tmp_path / "data.csv", rows)
        asked = ["--out", tmp_path / "out.csv", "--on-row-error", "raise"]
        message = refused("predict", model, data, *asked)
        for word in (str(data), "row 556", "column 'text'", "empty"):
            assert word in message
        assert list(tmp_path.iterdir()) == [data]

    def test_one_class_is_refused(self, tmp_path: Path) -> None:
        data = table(tmp_path / "data.csv", [{"text": f"t {n}", "label": "a"} for n in range(9)])
        message = refused("train", data, "--out", tmp_path / "m", *LIGHT)
        for word in (str(data), "column 'label'", "'a'", "needs two"):
            assert word in message

    def test_a_column_of_texts_that_is_taken_for_labels_gives_a_short_line(
        self, tmp_path: Path
    ) -> None:
        options = ["--text-column", "label", "--label-column", "text"]
        message = refused("train", TRAIN, "--out", tmp_path / "m", *options, *LIGHT)
        assert "column 'text'" in message
        assert "swapped?" in message
        assert len(message) < 300

    def test_a_class_that_the_model_does_not_know_is_refused(
        self, tmp_path: Path, model: Path
    ) -> None:
        data = tmp_path / "data.csv"
        data.write_text("text,label\nwhere is it,delivery\nwhat,Delivery\n")
        message = refused("evaluate", model, data)
        for word in (str(data), "row 2", "column 'label'", "'Delivery'", ", ".join(CLASSES)):
            assert word in message


class TestBadArguments:
    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("no slots at all", ["line 3", "{text}"]),
            ("{text} and {txet} {mask}", ["line 3", "{txet}"]),
            ("{text} {mask} {mask}", ["line 3", "one {mask}"]),
            ("{text", ["line 3"]),
        ],
    )
    def test_a_bad_prompt_is_refused_by_file_and_line(
        self, tmp_path: Path, line: str, words: list[str]
    ) -> None:
        prompts = tmp_path / "prompts.txt"
        prompts.write_text(f"# mine\n{{text}} It was {{mask}}\n{line}\n")
        message = refused("train", TRAIN, "--out", tmp_path / "m", "--prompts", prompts, *LIGHT)
        for word in (str(prompts), *words):
            assert word in message

    @pytest.mark.parametrize("content", [b"", b"# nothing\n", b"\xff\xfe{text}", None])
    def test_a_prompts_file_without_prompts_is_refused_by_name(
        self, tmp_path: Path, content: bytes | None
    ) -> None:
        prompts = tmp_path / "prompts.txt"
        if content is not None:
            prompts.write_bytes(content)
        arguments = ["train", TRAIN, "--out", tmp_path / "m", "--prompts", prompts, *LIGHT]
        assert str(prompts) in refused(*arguments)

    @pytest.mark.parametrize("backend", ["nonsense", "determinstic", "no.such:Thing", "os:nothing"])
    def test_an_unknown_backend_is_refused(self, tmp_path: Path, model: Path, backend: str) -> None:
        message = refused("train", TRAIN, "--out", tmp_path / "m", "--backend", backend)
        assert backend in message
        assert backend in refused("evaluate", model, TEST, "--backend", backend)

    @pytest.mark.parametrize("option", ["seed", "=3", ""])
    def test_a_backend_option_that_is_no_pair_is_wrong_usage(
        self, tmp_path: Path, model: Path, option: str
    ) -> None:
        options = [*OFFLINE, "--backend-option", option]
        for arguments in (
            ["train", TRAIN, "--out", tmp_path / "m"],
            ["evaluate", model, TEST],
            ["predict", model, TEST, "--out", tmp_path / "o.csv"],
            ["inspect", model, "--text", "hello"],
        ):
            assert "NAME=VALUE" in misused(*arguments, *options)

    @pytest.mark.parametrize("option", ["nonsense=1", "vocabulary-size=1", "vocabulary-size=x"])
    def test_a_backend_option_that_the_backend_refuses_is_an_error(
        self, tmp_path: Path, option: str
    ) -> None:
        options = [*OFFLINE, "--backend-option", option]
        refused("train", TRAIN, "--out", tmp_path / "m", *options)

    @pytest.mark.parametrize("out", ["missing/out.csv", "missing/deeper/out.csv"])
    def test_a_missing_folder_is_wrong_usage_before_anything_is_spent(
        self, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, out: str
    ) -> None:
        # they must not be loaded with what is patched here
        for backend in ("llamacpp", "onnx"):
            importlib.import_module(f"backends.{backend}")

        monkeypatch.setattr("backends.load", lambda *a, **k: pytest.fail("reached an LM"))
        monkeypatch.setattr("backends.catalogue.pull", lambda *a, **k: pytest.fail("fetched"))
        for arguments in (["train", TRAIN], ["predict", model, TEST], ["quickstart"]):
            message = misused(*arguments, "--out", tmp_path / out)
            assert "there is no folder" in message
        assert list(tmp_path.iterdir()) == []

    def test_an_output_without_a_known_ending_is_refused(self, tmp_path: Path, model: Path) -> None:
        assert "ending" in refused("predict", model, TEST, "--out", tmp_path / "out.xlsx")
        misused("train", TRAIN, "--out", tmp_path, *LIGHT)

    @pytest.mark.parametrize("seed", ["-1", str(2**32)])
    def test_a_seed_out_of_range_is_wrong_usage(self, tmp_path: Path, seed: str) -> None:
        for command in (["train", TRAIN, *LIGHT], ["quickstart"]):
            message = misused(*command, "--out", tmp_path / "m", "--seed", seed)
            assert "'--seed'" in message

    @pytest.mark.parametrize("content", [None, b"", b"nonsense", b"PK\x05\x06" + bytes(18)])
    def test_a_model_file_that_is_none_is_refused(
        self, tmp_path: Path, content: bytes | None
    ) -> None:
        path = tmp_path / "m.blackbox"
        if content is not None:
            path.write_bytes(content)
        for arguments in (
            ["evaluate", path, TEST],
            ["predict", path, TEST, "--out", tmp_path / "o.csv"],
            ["inspect", path],
            ["inspect", path, "--text", "hello"],
        ):
            assert str(path) in refused(*arguments)

    def test_a_damaged_model_is_refused(self, tmp_path: Path, model: Path) -> None:
        data = bytearray(model.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path = tmp_path / "m.blackbox"
        path.write_bytes(data)
        assert "damaged" in refused("evaluate", path, TEST)

    def test_another_lm_is_refused_unless_it_is_allowed(self, tmp_path: Path, model: Path) -> None:
        other = [*OFFLINE, "--backend-option", "seed=1"]
        for arguments in (
            ["evaluate", model, TEST],
            ["predict", model, TEST, "--out", tmp_path / "o.csv"],
            ["inspect", model, "--text", "hello"],
        ):
            assert "--allow-other-lm" in refused(*arguments, *other)
            done(*arguments, *other, "--allow-other-lm")

    def test_an_empty_text_can_t_be_explained(self, model: Path) -> None:
        assert "empty text" in refused("inspect", model, "--text", "  ")


class TestAbstaining:
    @pytest.fixture
    def holes(self, tmp_path: Path) -> Path:
        rows = rows_of(TEST)[:20]
        for place in (2, 11, 19):
            rows[place]["text"] = ["", "  ", "\t"][place % 3]
        return table(tmp_path / "holes.csv", rows)

    def test_predict_leaves_rows_without_an_answer_empty_and_says_why(
        self, tmp_path: Path, model: Path, holes: Path
    ) -> None:
        out = tmp_path / "out.csv"
        result = done("predict", model, holes, "--out", out, "--on-row-error", "abstain")
        assert result.stdout == ""
        assert "17 rows predicted" in result.stderr
        assert "warning: 3 of 20 rows have no prediction, the first is row 3: empty text" in (
            result.stderr
        )
        rows = rows_of(out)
        assert list(rows[0])[-1] == "reason"
        for place, row in enumerate(rows):
            if place in (2, 11, 19):
                assert row["prediction"] == ""
                assert {row[f"probability_{name}"] for name in CLASSES} == {""}
                assert row["reason"] == "empty text"
            else:
                assert row["prediction"] in CLASSES
                assert row["reason"] == ""

    @pytest.mark.parametrize("ending", ["jsonl", "parquet"])
    def test_missing_texts_and_probabilities_are_null_where_a_format_has_it(
        self, tmp_path: Path, model: Path, ending: str
    ) -> None:
        rows = [{"text": "where is it?"}, {"text": None}]
        data, out = table(tmp_path / f"in.{ending}", rows), tmp_path / f"out.{ending}"
        told = done("predict", model, data, "--out", out, "--on-row-error", "abstain", "--json")
        assert json.loads(told.stdout)["abstained"] == 1
        first, second = rows_of(out)
        assert first["probability_refund"] > 0
        assert second["probability_refund"] is None
        assert second["prediction"] == ""
        assert second["text"] is None

    def test_rows_that_can_t_be_predicted_don_t_end_predict(
        self, tmp_path: Path, model: Path
    ) -> None:
        texts = ["where is it?", "", 7, "half \ud800", "nul \0", None, "it broke"]
        data, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        told = done("predict", model, data, "--out", out).stderr
        assert "2 rows predicted" in told
        assert "warning: 5 of 7 rows have no prediction, the first is row 2: empty text" in told
        rows = rows_of(out)
        assert [bool(row["prediction"]) for row in rows] == [True, *[False] * 5, True]
        assert "reason" not in rows[0]
        done("predict", model, data, "--out", out, "--on-row-error", "abstain")
        reasons = [row["reason"] for row in rows_of(out)]
        assert reasons[:3] == ["", "empty text", "a text is needed, not the number 7"]
        assert "half a character" in reasons[3]
        assert "row 2" in refused(
            *("predict", model, data, "--out", out, "--on-row-error", "raise")
        )

    def test_evaluate_counts_abstentions_as_errors(self, model: Path, holes: Path) -> None:
        options = ["--on-row-error", "abstain", "--json"]
        told = json.loads(done("evaluate", model, holes, *options).stdout)
        assert told["n"] == 20
        assert told["coverage"] == 17 / 20
        assert np.sum(told["confusion"]) == 17
        assert told["accuracy"] == np.trace(told["confusion"]) / 20
        assert "row 3" in refused("evaluate", model, holes, "--on-row-error", "raise")
        assert json.loads(done("evaluate", model, holes, "--json").stdout)["n"] == 17

    def test_evaluate_works_when_no_row_has_an_answer(self, tmp_path: Path, model: Path) -> None:
        data = table(tmp_path / "none.csv", [{"text": " ", "label": "refund"}] * 2)
        options = ["--on-row-error", "abstain"]
        told = json.loads(done("evaluate", model, data, *options, "--json").stdout)
        assert told["coverage"] == told["accuracy"] == told["macro_f1"] == 0
        assert told["log_loss"] is told["brier"] is told["ece"] is None
        shown = done("evaluate", model, data, *options).stdout
        assert "without an answer  2, which count as wrong" in shown

    def test_train_leaves_rows_without_an_answer_out(self, tmp_path: Path, prompts: Path) -> None:
        rows = rows_of(TRAIN)[:40]
        rows[3]["text"] = rows[7]["text"] = " "
        data = table(tmp_path / "data.csv", rows)
        options = ["--prompts", prompts, *LIGHT, "--on-row-error", "abstain"]
        result = done("train", data, "--out", tmp_path / "m", *options)
        assert "prompts and 38 rows" in result.stderr
        assert "2 rows left out" in result.stderr

    def test_texts_that_are_cut_are_counted(self, tmp_path: Path, model: Path) -> None:
        data = table(tmp_path / "in.csv", [{"text": "word " * 90}, {"text": "short"}])
        options = [*OFFLINE, "--backend-option", "context_length=50"]
        result = done("predict", model, data, "--out", tmp_path / "out.csv", *options)
        said = "1 text truncated to fit the LM's context of 50 tokens; --backend-option context_len"
        assert said in result.stderr
        assert rows_of(tmp_path / "out.csv")[0]["text"] == "word " * 90


class TestTerminal:
    def test_labels_and_texts_never_steer_a_terminal(self, tmp_path: Path, prompts: Path) -> None:
        evil = "\x1b[31mred\x1b]0;title\x07"
        rows = [
            {"text": f"a {word} day {n}", "label": label}
            for n in range(4)
            for word, label in (("lovely", evil), ("dull", "plain"))
        ]
        data, model = table(tmp_path / "in.csv", rows), tmp_path / "m"
        options = ["--prompts", prompts, *LIGHT]
        results = [
            done("train", data, "--out", model, *options),
            done("train", data, "--out", model, *options, "--json"),
            done("evaluate", model, data),
            done("evaluate", model, data, "--json"),
            done("inspect", model),
            done("inspect", model, "--text", f"{evil} hello"),
            done("inspect", model, "--text", f"{evil} hello", "--json"),
        ]
        bad = table(tmp_path / "bad.csv", [{"text": "a", "label": f"{evil}\x9b2J\u202e"}])
        results.append(run("evaluate", model, bad))
        for result in results:
            shown = (result.stdout + result.stderr).replace("\n", "")
            assert shown.isprintable(), shown
        assert "\\x1b[31mred" in results[2].stdout
        assert json.loads(results[3].stdout)["classes"][0] == evil

    def test_what_a_terminal_has_no_letters_for_is_escaped(self, model: Path) -> None:
        assert "\\u201c" in done("inspect", model, charset="latin-1").stdout
        assert "\\u2212" in done("inspect", model, charset="latin-1").stdout

    def test_an_interrupt_ends_in_one_line(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*args: Any, **options: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("blackbox.model.file.read_model", interrupt)
        result = run("evaluate", model, TEST)
        assert result.exit_code == 130
        assert result.stderr == "blackbox: interrupted; no answer was stored\n"
        assert result.stdout == ""

    def test_a_mistyped_command_is_answered_with_the_one_that_is_meant(self) -> None:
        said = run("trian", TRAIN)
        assert said.exit_code == 2
        assert "No such command 'trian'. Did you mean 'train'?" in said.stderr
        assert "Did you mean" not in run("xyzzy").stderr

    def test_the_quickstart_says_how_good_the_model_is_as_train_does(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import backends

        lm = backends.load("deterministic")
        monkeypatch.setattr("blackbox.cli.quickstart._fetch", lambda *_: None)
        monkeypatch.setattr("backends.load", lambda: lm)
        monkeypatch.setenv("PROMPTBOOSTING_STORE", str(tmp_path / "s.sqlite"))
        shown = run("quickstart", "--out", tmp_path / "m")
        assert shown.exit_code == 0, shown.output
        assert "customer messages: 160 rows: " in shown.stderr
        lines = shown.stderr.splitlines()
        block = [n for n, line in enumerate(lines) if line.startswith("accuracy ")]
        assert len(block) == 1, shown.stderr
        assert "held-out rows, cross-validated (95% interval" in lines[block[0]]
        assert lines[block[0] + 1].startswith("most frequent class ")
        assert lines[block[0] + 2].startswith("TF-IDF, no LM ")

    def test_an_interrupted_quickstart_says_what_is_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*args: Any, **options: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("blackbox.cli.quickstart._fetch", lambda *_: None)
        monkeypatch.setattr("blackbox.cli.quickstart._run", interrupt)
        monkeypatch.setenv("PROMPTBOOSTING_STORE", str(tmp_path / "passes.sqlite"))
        result = run("quickstart", "--out", tmp_path / "m")
        assert result.exit_code == 130
        assert "interrupted; the answers so far are in the store, and the same" in result.stderr

    @pytest.mark.filterwarnings("default")
    @pytest.mark.parametrize(
        ("file", "said"),
        [
            ("/usr/lib/python3/site-packages/sklearn/utils/x.py", "sklearn: UserWarning: look out"),
            ("/usr/lib/python3/dist-packages/six.py", "six: UserWarning: look out"),
            (blackbox.fitting.fit.__file__, "blackbox: look out"),
        ],
    )
    def test_a_warning_is_shown_as_one_line_that_says_whose_it_is(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, file: str, said: str
    ) -> None:
        def warn(*args: Any, **options: Any) -> Any:
            warnings.warn_explicit("look out", UserWarning, file, 1)
            return trained

        trained = read_model(model)
        monkeypatch.setattr("blackbox.model.file.read_model", warn)
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        lines = run("evaluate", model, TEST).stderr.splitlines()
        assert [line for line in lines if "look out" in line] == [said]

    def test_a_message_of_another_package_s_log_has_its_name(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def log(*args: Any, **options: Any) -> Any:
            logging.getLogger("transformers.loading").warning("some weights are new")
            return trained

        trained = read_model(model)
        monkeypatch.setattr("blackbox.model.file.read_model", log)
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        assert "transformers: some weights are new" in run("evaluate", model, TEST).stderr

    def test_debug_shows_where_an_error_comes_from(self, model: Path) -> None:
        with pytest.raises(BlackboxError, match=r"missing\.csv"):
            run("--debug", "evaluate", model, "missing.csv")

    @pytest.mark.parametrize("command", ["train", "predict", "evaluate"])
    def test_a_pipe_that_breaks_behind_an_lm_is_an_error(
        self, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, command: str
    ) -> None:
        from backends.deterministic import DeterministicBackend

        def gone(*_: object) -> None:
            raise BrokenPipeError(32, "Broken pipe")

        monkeypatch.setattr(DeterministicBackend, "_take", gone)
        out = tmp_path / "out.csv"
        arguments = {
            "train": ["train", TRAIN, "--out", out, *LIGHT],
            "predict": ["predict", model, TEST, "--out", out],
            "evaluate": ["evaluate", model, TEST],
        }[command]
        message = refused(*arguments)
        assert "Broken pipe" in message
        assert "--debug" in message
        assert list(tmp_path.iterdir()) == []

    def test_a_defect_keeps_its_traceback(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: Any, **options: Any) -> None:
            raise KeyError("a defect")

        monkeypatch.setattr("blackbox.model.file.read_model", fail)
        with pytest.raises(KeyError):
            run("evaluate", model, TEST)


class TestRealProcess:
    def test_the_installed_command_trains_from_a_pipe_and_logs_in_one_line(
        self, tmp_path: Path, prompts: Path
    ) -> None:
        command = [COMMAND, "train", "-", "--out", "m", "--prompts", str(prompts), *LIGHT]
        result = subprocess.run(
            [*command, "--top-k", "600", "--json"],
            input=Path(TRAIN).read_bytes(),
            capture_output=True,
            cwd=tmp_path,
        )
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["classes"] == CLASSES
        lines = result.stderr.decode().splitlines()
        assert lines[0].startswith("blackbox: top_k=600 lowered to 512")
        # a slow machine adds lines of progress
        assert all(line.startswith("blackbox: ") for line in lines if not line.endswith("%)"))
        assert (tmp_path / "m").is_file()

    def test_the_installed_command_ends_with_1_and_one_line_on_an_error(
        self, tmp_path: Path
    ) -> None:
        result = subprocess.run(
            [COMMAND, "models", "pull", "no-such-model"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert result.returncode == 1
        assert result.stdout == ""
        assert result.stderr.startswith("blackbox: no model named 'no-such-model'")
        assert len(result.stderr.splitlines()) == 1

    def test_a_reader_that_goes_away_ends_it_quietly(self, tmp_path: Path, model: Path) -> None:
        rows = [{"text": f"parcel {n % 50}", "pad": "x" * 300} for n in range(2000)]
        data = table(tmp_path / "in.csv", rows)
        with subprocess.Popen(
            [COMMAND, "predict", str(model), str(data), "--out", "-"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline().startswith(b"text,pad,prediction,")
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait() == 141

    @pytest.mark.parametrize("arguments", [["--help"], ["models", "list", "--json"]], ids=" ".join)
    def test_a_reader_that_never_was_ends_any_command_with_141(self, arguments: list[str]) -> None:
        assert run_closed("stdout", *arguments) == (141, b"")

    def test_a_training_whose_reader_is_gone_has_its_model(
        self, tmp_path: Path, prompts: Path
    ) -> None:
        command = ["train", TRAIN, "--out", str(tmp_path / "m"), "--prompts", str(prompts), *LIGHT]
        code, said = run_closed("stdout", *command, "--json")
        assert code == 141
        assert all(b"held-out rows" in one or b"spells" in one for one in said.splitlines())
        (tmp_path / "m").rename(tmp_path / "first")
        # without a word for anybody it ends as it ended
        assert run_closed("stderr", *command, "--top-k", "600") == (0, b"")
        assert read_model(tmp_path / "m").top_k == 512
        assert read_model(tmp_path / "first").top_k == 200

    def test_an_error_is_1_also_where_nobody_reads(self, tmp_path: Path) -> None:
        command = ["train", str(tmp_path / "none.csv"), "--out", str(tmp_path / "m"), *LIGHT]
        code, words = run_closed("stdout", *command)
        assert code == 1
        assert b"no such file" in words
        assert run_closed("stderr", *command) == (1, b"")

    @pytest.mark.posix
    def test_a_table_through_a_pipe_that_breaks_is_an_error(
        self, tmp_path: Path, model: Path
    ) -> None:
        pipe = tmp_path / "pipe.csv"
        os.mkfifo(pipe)
        rows = [{"text": f"parcel {n % 50}", "pad": "x" * 300} for n in range(2000)]
        data = table(tmp_path / "in.csv", rows)
        with subprocess.Popen(
            [COMMAND, "predict", str(model), str(data), "--out", str(pipe)], stderr=subprocess.PIPE
        ) as process:
            with pipe.open("rb") as reader:
                assert reader.read(10) == b"text,pad,p"
            assert process.stderr is not None
            words = process.stderr.read().decode()
            assert process.wait() == 1
        assert words.startswith(f"blackbox: {pipe}")
        assert "Broken pipe" in words
        assert len(words.splitlines()) == 1


def run_closed(stream: str, *arguments: str) -> tuple[int, bytes]:
    """The exit code of a command whose output or errors nobody reads, and what is on the other."""
    read, write = os.pipe()
    os.close(read)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: write}
    try:
        result = subprocess.run([COMMAND, *arguments], **streams)
    finally:
        os.close(write)
    return result.returncode, result.stderr or result.stdout or b""


@pytest.mark.posix
@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("2>&-", 0, ""),
        ("--out - >&-", 1, "standard output is closed: name a file (--out)"),
        ("--out - >/dev/full", 1, "standard output can't be written: No space left on device"),
        ("--out q.csv - <&-", 1, "standard input is closed: name a file"),
    ],
)
def test_a_stream_that_is_closed_or_full_is_one_line(tmp_path, ending, code, said):
    done("train", TRAIN, "--out", tmp_path / "m", *LIGHT, "--no-store")
    table = "" if " - <" in ending else f"{TEST} "
    out = "" if "--out" in ending else "--out q.csv "
    command = f"{COMMAND} predict m {table}{out}--backend deterministic --no-store {ending}"
    found = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == code, found.stderr
    if said:
        assert found.stderr.splitlines()[-1] == f"blackbox: {said}"
    else:
        assert (tmp_path / "q.csv").exists()


def test_a_missing_column_is_answered_with_the_option_for_it(tmp_path):
    (tmp_path / "t.csv").write_text("body,klass\nx,y\n")
    for command in (["train", "--out", str(tmp_path / "m")], ["plan"]):
        done = CliRunner().invoke(main, [command[0], str(tmp_path / "t.csv"), *command[1:]])
        assert done.exit_code == 1
        assert "no column 'text'; its columns are 'body', 'klass'; " in done.stderr
        assert "--text-column" in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--backend", "opnai"], "did you mean 'openai'"),
        (["--model", "none.gguf"], "none.gguf"),
        (["--embeddings", "mini", *OFFLINE], "no embeddings named 'mini'"),
        (["--prompts", "none.txt", *OFFLINE], "none.txt"),
        (["--prompts", TRAIN, *OFFLINE], "train.csv"),
    ],
)
def test_what_can_t_be_used_is_said_before_the_counts_of_classes(tmp_path, options, told):
    for command in (["train", "--out", tmp_path / "m"], ["plan"]):
        done = run(command[0], TRAIN, *command[1:], "--embeddings", "none", *options)
        (line,) = done.stderr.splitlines()
        assert done.exit_code == 1
        assert told in line
