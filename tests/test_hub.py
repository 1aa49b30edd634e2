"""Models on the Hugging Face hub: pushed to and fetched from one on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub", reason="the `hub` extra")

from blackbox import PromptBoostingClassifier
from blackbox.errors import HubError
from blackbox.hub import FILE, local_path
from tests.hub_server import TOKEN, running_hub

pytestmark = pytest.mark.slow  # each test runs the command several times

TEXTS = ["match goal", "bank loan", "goal team", "loan market"] * 4
LABELS = ["sport", "money"] * 8


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("hub") / "topics.blackbox"
    classifier = PromptBoostingClassifier(
        "deterministic", n_prompts=2, random_state=0, store=False, embeddings=None
    )
    classifier.fit(TEXTS, LABELS).save(path)
    return path


@pytest.fixture
def hub():
    with running_hub() as one:
        yield one


@pytest.fixture
def blackbox(hub, tmp_path):
    """Run the command against the hub; its cache is empty at first."""

    def run(*arguments, token=TOKEN, **variables):
        environment = os.environ | {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_TOKEN": token,
            "PROMPTBOOSTING_STORE": "off",
            **variables,
        }
        return subprocess.run(
            [sys.executable, "-m", "blackbox", *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def pushed(blackbox, model, name="owner/topics", *options):
    done = blackbox("push", model, name, "--json", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_model_is_pushed_fetched_and_pinned(hub, blackbox, model, tmp_path):
    first = pushed(blackbox, model)
    commit, files = hub.commits["owner/topics"][0]
    assert first["commit"] == commit
    assert first["model"] == f"hf:owner/topics@{commit}"
    assert hub.private["owner/topics"]
    assert files[FILE] == model.read_bytes()
    card = files["README.md"].decode()
    assert "load_model('hf:owner/topics')" in card
    assert "blackbox predict hf:owner/topics new.csv" in card
    assert "library_name: promptboosting" in card
    table = tmp_path / "new.csv"
    table.write_text("text\nmatch team\n")
    lm = ("--backend", "deterministic")
    lm += ("--out", "-")
    local = blackbox("predict", model, table, *lm)
    assert local.returncode == 0, local.stderr
    fetched = blackbox("predict", "hf:owner/topics", table, *lm)
    assert fetched.returncode == 0, fetched.stderr
    assert fetched.stdout == local.stdout
    again = blackbox("push", "hf:owner/topics", "owner/copy")
    assert again.returncode == 0, again.stderr
    assert hub.commits["owner/copy"][0][1][FILE] == model.read_bytes()
    # another model is pushed over it: a commit still gives the first one
    hub.commit("owner/topics", {FILE: b"something else"})
    assert blackbox("predict", first["model"], table, *lm).stdout == local.stdout
    moved = blackbox("predict", "hf:owner/topics", table, *lm)
    assert moved.returncode == 1
    assert moved.stderr.startswith("blackbox: hf:owner/topics: ")
    # without a network the cache serves both
    hub.requests.clear()
    offline = blackbox("predict", first["model"], table, *lm, HF_HUB_OFFLINE="1")
    assert offline.stdout == local.stdout
    assert hub.requests == []


def test_a_fetched_model_is_a_model_everywhere(hub, blackbox, model, tmp_path):
    pushed(blackbox, model, "hf:owner/topics", "--public")
    assert not hub.private["owner/topics"]
    shown = blackbox("inspect", "hf:owner/topics", "--json", token="")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["classes"] == ["money", "sport"]
    (tmp_path / "new.csv").write_text("text\nmatch team\n")
    more = ["--out", tmp_path / "answers", "--ray", "nowhere"]
    collected = blackbox("collect", "hf:owner/topics", tmp_path / "new.csv", *more, token="")
    assert "Ray" in collected.stderr  # the model was read: the cluster is what is missing
    code = (
        "from blackbox import load_model; "
        "c = load_model('hf:owner/topics', backend='deterministic'); print(c.classes_.tolist())"
    )
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_TOKEN": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "['money', 'sport']\n"


def test_only_the_model_file_is_fetched(hub, blackbox, model):
    pushed(blackbox, model)
    hub.commit("owner/topics", {"evil.py": b"raise SystemExit", "model.pkl": b"x"})
    hub.requests.clear()
    assert blackbox("inspect", "hf:owner/topics").returncode == 0
    resolved = [line.partition("/resolve/")[2] for line in hub.requests if "/resolve/" in line]
    assert {name.partition("/")[2] for name in resolved} == {FILE}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:owner/nothing", "there is no such model, or you may not see it; to log in"),
        ("hf:owner/topics@v9", "there is no such branch, tag or commit"),
        ("hf:owner/empty", f"it has no file {FILE}, which blackbox push writes"),
        ("hf:owner", "is no model of the hub: write hf:owner/name"),
        ("hf:../../etc/passwd", "is no model of the hub: write hf:owner/name"),
        ("hf:owner/large", "is larger than any model: "),
    ],
)
def test_what_can_not_be_fetched_is_one_line(hub, blackbox, model, name, said):
    pushed(blackbox, model)
    for repo, files in (("empty", {}), ("large", {FILE: b"x" * (65 << 20)})):
        hub.commits[f"owner/{repo}"], hub.private[f"owner/{repo}"] = [], False
        hub.commit(f"owner/{repo}", {"README.md": b"", **files})
    done = blackbox("inspect", name)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("blackbox: ")
    assert said in line
    assert TOKEN not in line


def test_a_private_model_needs_a_token(hub, blackbox, model):
    pushed(blackbox, model)
    done = blackbox("inspect", "hf:owner/topics", token="hf_ofSomebodyElse")
    assert done.returncode == 1
    assert "or you may not see it" in done.stderr
    assert "hf_ofSomebodyElse" not in done.stderr


def test_a_hub_that_can_not_be_reached_is_one_line(blackbox):
    done = blackbox("inspect", "hf:owner/topics", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    *retries, line = done.stderr.splitlines()
    assert "hf:owner/topics: the hub can't be reached and the cache has no such file" in line
    assert sum("Retry 1/" in one for one in retries) <= 1


def test_a_push_to_a_hub_that_can_not_be_reached_is_one_line(blackbox, model):
    done = blackbox("push", model, "owner/topics", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "blackbox: hf:owner/topics: the hub can't be reached"
    )
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stderr


def test_a_push_that_is_refused_says_what_the_hub_said(hub, blackbox, model):
    done = blackbox("push", model, "other/topics")
    assert done.returncode == 1
    assert "You don't have the rights to create a model here" in done.stderr
    done = blackbox("push", model, "owner/topics", token="hf_wrong")
    assert done.returncode == 1
    assert "Invalid username or password" in done.stderr
    assert "hf auth login" in done.stderr
    assert "hf_wrong" not in done.stderr
    assert hub.commits == {}


def test_training_texts_are_pushed_on_purpose_only(hub, blackbox, tmp_path):
    path = tmp_path / "m.blackbox"
    classifier = PromptBoostingClassifier(
        "deterministic",
        n_prompts=2,
        random_state=0,
        store=False,
        embeddings="deterministic",
        keep_examples=True,
    )
    classifier.fit(TEXTS, LABELS).save(path)
    assert classifier.model_.examples is not None
    done = blackbox("push", path, "owner/m")
    assert done.returncode == 1
    assert "holds the texts and vectors of 16 training rows" in done.stderr
    assert hub.commits == {}
    pushed(blackbox, path, "owner/m", "--include-texts")


def test_labelled_texts_in_prompts_are_pushed_on_purpose_only(hub, blackbox, tmp_path):
    path = tmp_path / "m.blackbox"
    shown = "{example: It broke after two days || What a joy} It was bad\n\n{text} It was {mask}"
    prompts = [shown, "{text} This is {mask}"]
    classifier = PromptBoostingClassifier("deterministic", prompts=prompts, store=False)
    classifier.fit(TEXTS, LABELS).save(path)
    done = blackbox("push", path, "owner/m")
    assert done.returncode == 1
    assert "labelled texts in its prompts" in done.stderr
    assert hub.commits == {}
    pushed(blackbox, path, "owner/m", "--include-texts")
    card = hub.commits["owner/m"][0][1]["README.md"]
    assert b"the model file holds labelled texts in its prompts, shown to the" in bytes(card)


def test_a_card_of_ones_own_is_pushed(hub, blackbox, model, tmp_path):
    card = tmp_path / "card.md"
    card.write_text("# Mine\n")
    pushed(blackbox, model, "owner/topics", "--card", card)
    assert hub.commits["owner/topics"][0][1]["README.md"] == b"# Mine\n"


def test_a_path_stays_a_path(tmp_path):
    assert local_path(tmp_path / "m", 1) == tmp_path / "m"
    assert local_path("m@v1", 1) == Path("m@v1")
    with pytest.raises(HubError, match="is no model of the hub"):
        local_path(Path("hf:owner/name@"), 1)
