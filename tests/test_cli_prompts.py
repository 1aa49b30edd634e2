"""`blackbox prompts`, and prompts that are made while training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import blackbox
from backends.deterministic import DeterministicBackend
from blackbox import PromptPool, load_model
from blackbox.cli import main
from blackbox.prompts.template import Prompt
from tests.fakes import CountingBackend

TRAIN = str(Path(blackbox.__file__).parent / "samples" / "train.csv")
OFFLINE = ["--backend", "deterministic"]
SMALL = [*OFFLINE, "--shots", "6", "--n-prompts", "3", "--generation-budget", "700", "--seed", "5"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def test_the_same_values_make_the_prompts_that_training_makes(tmp_path):
    pool, model, store = tmp_path / "p.txt", tmp_path / "m", tmp_path / "s"
    kept = ["--store", store]
    told = json.loads(
        done("prompts", "generate", TRAIN, "--out", pool, *SMALL, *kept, "--json").stdout
    )
    assert told["usage"]["passes_made"] <= 700
    assert PromptPool.read(pool) == PromptPool(told["prompts"])
    written = pool.read_text().splitlines()
    assert "Made from 24 rows of train.csv" in written[0]
    assert sum(line.startswith("# ") for line in written) == 4
    plan = json.loads(done("plan", TRAIN, "--prompts", "auto", *SMALL, *kept, "--json").stdout)
    assert plan["passes_to_make"] == 0
    trained = json.loads(
        done("train", TRAIN, "--prompts", "auto", "--out", model, *SMALL, *kept, "--json").stdout
    )
    assert trained["usage"]["passes_made"] == 0
    assert set(trained["prompts"]) <= set(told["prompts"])
    assert trained["training"]["generation"] == told["generation"]
    reused = tmp_path / "reused"
    done(
        "train",
        TRAIN,
        "--prompts",
        pool,
        "--out",
        reused,
        *OFFLINE,
        "--shots",
        6,
        "--seed",
        5,
        *kept,
    )
    assert set(load_model(reused).prompts_) <= set(PromptPool.read(pool))


def test_what_was_made_is_told_to_people_and_examples_are_named(tmp_path):
    result = done(
        "prompts",
        "generate",
        TRAIN,
        "--out",
        tmp_path / "p",
        *SMALL,
        "--no-store",
        "--prompt-source",
        "demonstrations",
    )
    assert result.stdout == ""
    assert "of 700 forward passes" in result.stderr
    assert f"blackbox train DATA --prompts {tmp_path / 'p'}" in result.stderr
    carrying = sum(prompt.has_examples for prompt in PromptPool.read(tmp_path / "p"))
    assert (f"{carrying} of the prompts contain training texts" in result.stderr) == bool(carrying)


def test_a_plan_says_what_it_takes_at_most(tmp_path):
    result = done("plan", TRAIN, "--prompts", "auto", *SMALL, "--no-store")
    assert "forward passes  at most 700" in result.stdout


def test_a_pool_is_shown_as_it_is_written_and_as_it_is_sent(tmp_path):
    path = tmp_path / "p.txt"
    PromptPool(["{text}\nTopic: {mask}", "{text} It was {mask}"]).write(path)
    assert done("prompts", "show", path).stdout == "{text}\\nTopic: {mask}\n{text} It was {mask}\n"
    assert json.loads(done("prompts", "show", path, "--json").stdout) == [
        {"prompt": "{text}\nTopic: {mask}"},
        {"prompt": "{text} It was {mask}"},
    ]
    sent = json.loads(done("prompts", "show", path, "--text", "a b", *OFFLINE, "--json").stdout)
    text, ids = DeterministicBackend().show(Prompt("{text}\nTopic: {mask}").render("a b"))
    assert sent[0] == {"prompt": "{text}\nTopic: {mask}", "text": text, "token_ids": ids}
    shown = done("prompts", "show", path, "--text", "a b", *OFFLINE).stdout
    assert f"token ids: {' '.join(map(str, ids))}" in shown


def test_pools_are_merged(tmp_path):
    for name, templates in (
        ("a", ["{text} A {mask}", "{text} B {mask}"]),
        ("b", ["{text} B {mask}", "{text} C {mask}"]),
    ):
        PromptPool(templates).write(tmp_path / name)
    result = done("prompts", "merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c")
    assert "3 prompts (duplicates removed: 1)" in result.stderr
    assert len(PromptPool.read(tmp_path / "c")) == 3


def test_a_new_line_at_the_end_of_what_is_sent_shows(tmp_path):
    PromptPool(["{text}\nTopic:\n{mask}"]).write(tmp_path / "p")
    shown = done("prompts", "show", tmp_path / "p", "--text", "a b", *OFFLINE).stdout
    assert shown.splitlines()[1:3] == ["  a b\\n", "  Topic:\\n"]


def test_comments_stay_with_their_prompts_when_pools_are_merged(tmp_path):
    PromptPool(["{text} A {mask}", "{text} B {mask}"]).write(tmp_path / "a", ["one", "two"])
    PromptPool(["{text} B {mask}", "{text} C {mask}"]).write(tmp_path / "b", ["three", "four"])
    done("prompts", "merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c")
    assert (tmp_path / "c").read_text().splitlines() == [
        "# Merged from a, b.",
        "# one",
        "{text} A {mask}",
        "# two",
        "{text} B {mask}",
        "# four",
        "{text} C {mask}",
    ]


@pytest.mark.posix
def test_an_output_that_can_not_be_written_is_refused_before_anything_is_asked():
    started = CountingBackend.constructed
    for out in ("/proc/pool", "/dev/full"):
        result = run(
            "prompts",
            "generate",
            TRAIN,
            "--out",
            out,
            "--backend",
            "tests.fakes:CountingBackend",
            "--shots",
            6,
            "--no-store",
        )
        assert result.exit_code == 2
        assert f"--out {out}" in result.stderr
        assert "Traceback" not in result.stderr
    assert CountingBackend.constructed == started


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (["--writer-model", "big"], {"base_url": "http://here", "model": "big"}),
        (
            ["--writer-backend", "reads", "--writer-model", "big"],
            {"base_url": "http://here", "model": "big"},
        ),
        (["--writer-option", "seed=3"], {"base_url": "http://here", "model": "small", "seed": 3}),
        (
            ["--writer-backend", "writes", "--writer-option", "base_url=http://there"],
            {"base_url": "http://there"},
        ),
        (["--writer-backend", "writes", "--writer-model", "big"], {"model": "big"}),
    ],
)
def test_training_texts_go_where_the_options_of_the_writer_say(monkeypatch, given, options):
    loaded = []

    def load(name, **options):
        loaded.append((name, options))
        return DeterministicBackend()

    monkeypatch.setattr("backends.load", load)
    done(
        "plan",
        TRAIN,
        "--prompts",
        "auto",
        "--shots",
        6,
        "--n-prompts",
        3,
        "--generation-budget",
        700,
        "--no-store",
        "--backend",
        "reads",
        "--model",
        "small",
        "--backend-option",
        "base_url=http://here",
        *given,
    )
    name = "writes" if "writes" in given else "reads"
    assert loaded == [(name, options), ("reads", {"base_url": "http://here", "model": "small"})]


def test_a_pool_of_fewer_prompts_is_the_one_that_training_keeps(tmp_path):
    kept = ["--store", tmp_path / "s", "--max-prompts", 1]
    told = json.loads(
        done("prompts", "generate", TRAIN, "--out", tmp_path / "p", *SMALL, *kept, "--json").stdout
    )
    assert len(told["prompts"]) == len(told["notes"]) == len(PromptPool.read(tmp_path / "p")) == 1
    trained = json.loads(
        done(
            "train", TRAIN, "--prompts", "auto", "--out", tmp_path / "m", *SMALL, *kept, "--json"
        ).stdout
    )
    assert trained["prompts"] == told["prompts"]


@pytest.mark.parametrize(
    "given",
    [
        ["--generation-budget", "900"],
        ["--prompt-source", "templates"],
        ["--writer-backend", "deterministic"],
        ["--writer-model", "x"],
        ["--writer-option", "a=1"],
    ],
)
@pytest.mark.parametrize("prompts", [[], ["--prompts", "POOL"]])
def test_options_of_made_prompts_are_refused_without_them(given, prompts):
    for command in (["plan"], ["train", "--out", "m"]):
        result = run(*command, TRAIN, *OFFLINE, *prompts, *given)
        assert result.exit_code == 2
        assert f"{given[0]} requires --prompts auto" in result.stderr


@pytest.mark.posix
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["prompts", "merge", "{pool}", "{pairs}", "--out", "{pool}"],
            "pairs has prompts for pairs of texts and ",
        ),
        (["prompts", "merge", "{pool}", "--out", "/dev/full"], "it exists and is not a file"),
        (
            ["plan", TRAIN, "--prompts", "auto", "--writer-option", "seed"],
            "--writer-option takes NAME=VALUE, got 'seed'",
        ),
        (["prompts", "show", "nowhere"], "nowhere: No such file"),
        (["prompts", "show", "{pool}", "--text-pair", "x"], "--text-pair requires --text"),
        (
            ["prompts", "show", "{pool}", "--text", "x", "--text-pair", "y", *OFFLINE],
            "has no {text_pair}",
        ),
        (["prompts", "merge", "{pool}", "--out", "nowhere/else"], "there is no folder"),
        (["prompts", "generate", TRAIN, "--out", "nowhere/else", *SMALL], "there is no folder"),
        (
            [
                "train",
                TRAIN,
                "--prompts",
                "auto",
                "--out",
                "{pool}",
                *OFFLINE,
                "--no-store",
                "--generation-budget",
                "90",
            ],
            "a generation budget of 90 forward passes is too small",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, said):
    pool = tmp_path / "p"
    PromptPool(["{text} A {mask}"]).write(pool)
    PromptPool(["{text} {text_pair} A {mask}"]).write(tmp_path / "pairs")
    named = {"{pool}": str(pool), "{pairs}": str(tmp_path / "pairs")}
    result = run(*(named.get(argument, argument) for argument in arguments))
    assert result.exit_code in (1, 2)
    assert said in result.stderr
    assert "Traceback" not in result.stderr
