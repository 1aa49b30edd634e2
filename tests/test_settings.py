"""Options that come from `blackbox.toml` or from the environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from backends.deterministic import DeterministicBackend
from blackbox.cli import main
from blackbox.model.file import read_model

ROWS = "text,verdict\n" + "\n".join(
    f"{text} {n},{label}" for n in range(4) for text, label in (("fine", "up"), ("dull", "down"))
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text(ROWS)
    return tmp_path


def run(*args: str, code: int = 0, **env: str) -> str:
    result = CliRunner().invoke(main, args, env=env)
    assert result.exit_code == code, result.output
    return result.output


def test_a_file_in_the_folder_gives_options_and_says_so(folder):
    Path("blackbox.toml").write_text(
        'backend = "deterministic"\nlabel_column = "verdict"\nstore = "here.sqlite"\n'
        "[train]\nseed = 7\n"
    )
    said = run("train", "rows.csv", "--out", "m.blackbox")
    assert "from blackbox.toml: --label-column --backend --seed --store" in said
    assert Path("here.sqlite").exists()
    predicted = run("evaluate", "m.blackbox", "rows.csv", "--json")
    assert json.loads(predicted[predicted.index("{") :])["accuracy"] >= 0
    assert "here.sqlite" in run("store", "info")


def test_what_the_command_line_says_wins(folder):
    Path("blackbox.toml").write_text('backend = "deterministic"\nlabel-column = "none"\n')
    said = run(
        "train", "rows.csv", "--label-column", "verdict", "--no-store", "--out", "m.blackbox"
    )
    assert "--label-column" not in said.splitlines()[0]


def test_no_store_on_the_command_line_wins_over_a_store_in_the_file(folder):
    Path("blackbox.toml").write_text('backend = "deterministic"\nstore = "here.sqlite"\n')
    run("train", "rows.csv", "--label-column", "verdict", "--no-store", "--out", "m.blackbox")
    assert not Path("here.sqlite").exists()


def test_another_backend_forgets_the_settings_of_the_first(folder):
    Path("blackbox.toml").write_text(
        'backend = "openai"\nmodel = "gpt"\nlabel-column = "verdict"\n'
        '[backend-option]\nbase_url = "http://127.0.0.1:9/v1"\n'
    )
    run("train", "rows.csv", "--backend", "deterministic", "--no-store", "--out", "m.blackbox")
    other = ["--backend-option", "vocabulary_size=300", "--backend", "deterministic"]
    run("train", "rows.csv", *other, "--no-store", "--out", "m.blackbox")


def test_other_embeddings_forget_the_settings_of_the_first(folder):
    Path("blackbox.toml").write_text(
        'backend = "deterministic"\nlabel-column = "verdict"\nembeddings = "openai"\n'
        'embeddings-model = "e5"\nembeddings-option = ["base_url=http://127.0.0.1:9/v1"]\n'
    )
    other = ["--embeddings-option", "vocabulary_size=300", "--embeddings", "deterministic"]
    run("train", "rows.csv", *other, "--no-store", "--out", "m.blackbox")
    run("evaluate", "m.blackbox", "rows.csv", *other, "--no-store")
    run("train", "rows.csv", "--embeddings", "none", "--no-store", "--out", "m.blackbox")


def test_options_of_the_backend_are_added_to_those_of_the_file(folder):
    Path("blackbox.toml").write_text(
        'backend = "deterministic"\nlabel-column = "verdict"\n'
        "[backend-option]\nvocabulary_size = 300\n"
    )
    given = ["--backend-option", "seed=3", "--no-store", "--out"]
    run("train", "rows.csv", *given, "m.blackbox")
    identity = read_model("m.blackbox").identity
    assert identity == DeterministicBackend(3, vocabulary_size=300).identity


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('beckend = "x"', "'beckend' is no option of a command: did you mean 'backend'?"),
        ("[train]\nsead = 1", "[train] 'sead' is no option of a command: did you mean 'seed'?"),
        ("[store.prune]\nport = 1", "[store.prune] 'port' is no option of a command"),
        ("[backend]\nname = 1", "'backend' is a table"),
        ("seed = 1979-05-27", "'seed' takes text, a number"),
        ("seed = ", "blackbox.toml is not TOML"),
        ("seed = 'x'", "Invalid value for '--seed'"),
    ],
)
def test_a_mistake_in_the_file_is_one_clear_error(folder, written, said):
    Path("blackbox.toml").write_text(written)
    assert said in run("train", "rows.csv", "--out", "m.blackbox", code=2)


def test_a_missing_file_of_settings_is_an_error(folder):
    assert "can't be read" in run("--settings", "none.toml", "train", "rows.csv", code=2)


def test_the_environment_sets_options_by_their_long_names(folder):
    said = run("train", "rows.csv", "--out", "m.blackbox", code=2, BLACKBOX_TRAIN_SEED="x")
    assert "'x' is not a valid integer" in said
    said = run(
        *("serve", "m.blackbox"), code=2, BLACKBOX_SERVE_HOST="0.0.0.0", BLACKBOX_SERVE_PORT="0"
    )
    assert "--host 0.0.0.0" in said
    said = run("serve", "m", code=2, BLACKBOX_SERVE_ALLOWED_HOST="a b", BLACKBOX_SERVE_PORT="-1")
    assert "--port" in said


@pytest.mark.parametrize("option", ["--backend", "--embeddings"])
def test_a_backend_of_the_current_folder_is_found(folder, option):
    (folder / "mine.py").write_text(
        "from backends.deterministic import DeterministicBackend\n"
        "class Mine(DeterministicBackend): pass\n"
    )
    command = "import sys; sys.path.remove('') if '' in sys.path else None; "
    command += "from blackbox.cli import main; main()"
    arguments = ["train", "rows.csv", "--label-column", "verdict"]
    arguments += ["--backend", "deterministic", option, "mine:Mine"]
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments, "--no-store", "--out", "m.blackbox"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ('[train]\nbackend = "helper:LM"', "backend = 'helper:LM'"),
        ('embeddings = "helper:LM"', "embeddings = 'helper:LM'"),
        ('[train]\nwriter_backend = "helper:LM"', "writer_backend = 'helper:LM'"),
        ('[prompts.generate]\nbackend = "helper:LM"', "backend = 'helper:LM'"),
        ("[backend-option]\ntrust_remote_code = true", "trust_remote_code = True"),
        ('embeddings_option = ["trust_remote_code=true"]', "trust_remote_code=true"),
        ('[backend-option]\ninner = "helper:LM"', "inner = 'helper:LM'"),
        ('backend_option = "inner=helper:LM"', "inner=helper:LM"),
    ],
)
def test_code_runs_only_from_a_file_that_is_named(folder, setting, shown):
    (folder / "helper.py").write_text("raise SystemExit('it ran')\n")
    (folder / "blackbox.toml").write_text(setting + "\n")
    arguments = ["train", "rows.csv", "--label-column", "verdict", "--out", "m.blackbox"]
    refused = run(*arguments, code=2)
    assert "names code" in refused
    assert shown in refused
    assert "it ran" not in refused
    named = CliRunner().invoke(main, ["--settings", "blackbox.toml", *arguments, "--no-store"])
    assert "names code" not in named.output


def test_where_texts_go_by_the_file_is_said_without_a_password(folder):
    address = "http://me:secret-word@127.0.0.1:9/v1"
    (folder / "blackbox.toml").write_text(
        'backend = "openai"\nmodel = "m"\nembeddings = "openai"\nembeddings_model = "m"\n'
        f'embeddings_option = ["base_url={address}2"]\n[backend-option]\nbase_url = "{address}"\n'
    )
    said = run("train", "rows.csv", "--label-column", "verdict", "--out", "m.blackbox", code=1)
    assert "127.0.0.1:9/v1" in said.splitlines()[0]
    assert "127.0.0.1:9/v12" in said.splitlines()[0]
    assert "secret-word" not in said


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("balanced = 1", "'balanced' takes true or false, not 1"),
        ('no_store = "yes"', "'no-store' takes true or false"),
        ('task = ["a", "b"]', "'task' takes one value, not a list"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_one_line(folder, setting, said):
    Path("blackbox.toml").write_text(f"[train]\n{setting}\n")
    told = run("train", "rows.csv", "--label-column", "verdict", "--out", "m.blackbox", code=2)
    assert said in told


def test_a_list_of_classes_is_one(folder):
    listed = json.dumps(["down", "up", "a, b"])
    Path("blackbox.toml").write_text(
        f'backend = "deterministic"\n[train]\nclasses = {listed}\nlabel-column = "verdict"\n'
    )
    run("train", "rows.csv", "--no-store", "--embeddings", "none", "--out", "m.blackbox")
    assert read_model(Path("m.blackbox")).classes.tolist() == ["a, b", "down", "up"]
