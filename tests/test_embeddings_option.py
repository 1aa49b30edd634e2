"""Embeddings as a parameter: of the estimator, its plan, its files, and the command."""

from __future__ import annotations

import json
import pickle
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner
from serving import served
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from backends.deterministic import DeterministicBackend
from blackbox import PromptBoostingClassifier, load_model
from blackbox.cli import main as cli
from blackbox.errors import (
    BackendError,
    BackendIdentityError,
    BudgetError,
    ModelFileError,
)
from blackbox.lm.connect import choose_embeddings
from blackbox.model.file import read_model, write_model
from blackbox.protocol import BackendIdentity
from blackbox.service.models import Query

TOPICS = {
    "sport": ["match", "goal", "team", "coach", "league", "score"],
    "money": ["bank", "market", "shares", "profit", "loan", "price"],
}
EMBEDDINGS = {"embeddings": "deterministic", "embeddings_options": {"seed": 7}}


def rows(n, seed):
    """Texts with one word of their topic among some of any, and their topics."""
    rng = np.random.default_rng(seed)
    every = [word for words in TOPICS.values() for word in words]
    labels = [list(TOPICS)[number % 2] for number in range(n)]
    texts = [
        " ".join(rng.permutation([*rng.choice(TOPICS[label], 2), *rng.choice(every, 2)]))
        for label in labels
    ]
    return texts, labels


TEXTS, LABELS = rows(60, 0)
NEW = rows(20, 1)[0]


def classifier(**options):
    given = {"prompts": ["{text} It was {mask}"], "random_state": 0, "store": False}
    return PromptBoostingClassifier("deterministic", **given | options)


@pytest.fixture(scope="module")
def trained():
    """A classifier whose model reads embeddings."""
    fitted = classifier(**EMBEDDINGS).fit(TEXTS, LABELS)
    assert fitted.model_.embedder_identity is not None
    return fitted


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "rows.csv"
    lines = (f"{text},{label}" for text, label in zip(TEXTS, LABELS, strict=True))
    path.write_text("\n".join(["text,label", *lines]))
    return path


def saved(fitted, path):
    write_model(path, fitted.model_)
    return path.read_bytes()


def described(path):
    """Return what a model file says beside its arrays."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("model.json"))


def run(*arguments):
    result = CliRunner().invoke(cli, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_without_embeddings_the_model_is_that_of_the_lm_alone(tmp_path, trained):
    files = [
        saved(classifier(embeddings=given).fit(TEXTS, LABELS), tmp_path / f"{given}.zip")
        # with this LM, "auto" is none
        for given in (None, "none", "auto")
    ]
    assert files[0] == files[1] == files[2]
    assert files[0] != saved(trained, tmp_path / "with.zip")


@pytest.mark.parametrize(
    ("given", "provider", "expected"),
    [
        ("auto", "llamacpp", "all-minilm-l6-v2"),
        ("auto", "onnx", "all-minilm-l6-v2"),
        ("auto", "vllm", "all-minilm-l6-v2"),
        ("auto", "transformers", "all-minilm-l6-v2"),
        ("auto", "openai", None),
        ("auto", "openai-compatible", None),
        ("auto", "mine", None),
        ("openai", "llamacpp", "openai"),
        ("none", "llamacpp", None),
        (None, "llamacpp", None),
    ],
)
def test_the_default_depends_on_the_lm_alone(given, provider, expected):
    lm = DeterministicBackend()
    lm.identity = BackendIdentity(provider, "", "a model")
    assert choose_embeddings(given, lm) == expected


def test_the_plan_counts_what_is_embedded_and_usage_has_it(tmp_path):
    store = tmp_path / "passes.sqlite"
    plan = classifier(**EMBEDDINGS, store=store).plan(TEXTS, LABELS)
    alone = classifier(store=store).plan(TEXTS, LABELS)
    n_texts, n_names = len(set(TEXTS)), 2
    assert plan.passes_to_make == alone.passes_to_make + n_texts + n_names
    fitted = classifier(**EMBEDDINGS, store=store).fit(TEXTS, LABELS)
    assert fitted.usage_.passes_made == plan.passes_to_make
    assert fitted.usage_.tokens == plan.tokens[1]
    again = classifier(**EMBEDDINGS, store=store)
    assert again.plan(TEXTS, LABELS).passes_to_make == 0
    assert again.fit(TEXTS, LABELS).usage_.passes_made == 0
    assert saved(again, tmp_path / "a.zip") == saved(fitted, tmp_path / "b.zip")
    # where no expert can be weighed, nothing is embedded
    assert classifier(**EMBEDDINGS, cv=None).plan(TEXTS, LABELS).passes_to_make == n_texts
    samme = classifier(**EMBEDDINGS, algorithm="samme").plan(TEXTS, LABELS)
    assert samme.passes_to_make == n_texts


def test_a_budget_holds_for_embeddings_too():
    with pytest.raises(BudgetError, match="50 forward passes is used up"):
        classifier(**EMBEDDINGS, max_forward_passes=50).fit(TEXTS, LABELS)


def test_a_saved_model_finds_its_embeddings_by_itself(tmp_path, trained):
    trained.save(tmp_path / "m.zip")
    loaded = load_model(tmp_path / "m.zip", embeddings="deterministic", allow_other_lm=True)
    with pytest.raises(BackendIdentityError, match="another embedding model answers"):
        # the catalogue's is not the one of the training
        load_model(tmp_path / "m.zip").predict(NEW)
    same = load_model(tmp_path / "m.zip", **EMBEDDINGS)
    assert (same.predict_proba(NEW) == trained.predict_proba(NEW)).all()
    assert (loaded.predict_proba(NEW) != trained.predict_proba(NEW)).any()
    assert same.prediction_usage_.passes_made == 2 * len(NEW)
    trained_by_default = classifier(embeddings="deterministic").fit(TEXTS, LABELS)
    trained_by_default.save(tmp_path / "n.zip")
    found = load_model(tmp_path / "n.zip")
    assert (found.predict_proba(NEW) == trained_by_default.predict_proba(NEW)).all()


def test_a_model_without_the_embeddings_that_it_reads_says_which(trained):
    without = pickle.loads(pickle.dumps(trained)).set_params(embeddings=None)
    with pytest.raises(BackendError, match="reads embeddings of deterministic 'seed-7"):
        without.predict(NEW)


def test_a_classifier_with_embeddings_is_cloned_pickled_and_searched(trained):
    embedder = DeterministicBackend(seed=7)
    given = classifier(embeddings=embedder)
    assert clone(given).embeddings is embedder
    again = pickle.loads(pickle.dumps(trained))
    assert (again.predict_proba(NEW) == trained.predict_proba(NEW)).all()
    assert (given.fit(TEXTS, LABELS).predict_proba(NEW) == trained.predict_proba(NEW)).all()
    search = GridSearchCV(classifier(), {"embeddings": [None, embedder]}, cv=2)
    search.fit(TEXTS, LABELS)
    assert search.cv_results_["param_embeddings"][1] is embedder
    assert not np.isnan(search.cv_results_["mean_test_score"]).any()


def test_an_explanation_and_the_service_ask_the_embeddings_too(tmp_path, trained):
    explained = trained.explain(NEW[0])
    assert [expert["name"] for expert in explained["experts"]] == ["embeddings"]
    fitted = classifier(embeddings="deterministic").fit(TEXTS, LABELS)
    fitted.save(tmp_path / "m.zip")
    model = served(tmp_path / "m.zip")
    assert model.loaded.n_prompts == 2
    for explain in (False, True):
        replies, usage = model.answer(model.loaded, [Query(text, explain=explain) for text in NEW])
        assert [reply.label for reply in replies] == fitted.predict(NEW).tolist()
        assert usage.passes_made == model.loaded.passes_made / (2 if explain else 1) == 40


def test_the_command_trains_plans_and_predicts_with_embeddings(tmp_path, table):
    (tmp_path / "prompts.txt").write_text("{text} It was {mask}\n")
    store = ("--store", tmp_path / "passes.sqlite")
    lm = ("--backend", "deterministic", "--prompts", tmp_path / "prompts.txt")
    with_them = ("--embeddings", "deterministic", "--embeddings-option", "seed=7")
    plan = json.loads(run("plan", table, *lm, *with_them, *store, "--json"))
    run("train", table, *lm, *with_them, *store, "--out", tmp_path / "m.zip")
    run("train", table, *lm, "--embeddings", "none", *store, "--out", tmp_path / "alone.zip")
    alone = json.loads(run("plan", table, *lm, *store, "--json"))
    # and the names of the two classes
    assert plan["passes"] == alone["passes"] + len(set(TEXTS)) + 2
    results = [
        json.loads(run("evaluate", tmp_path / name, table, *more, *store, "--json"))
        for name, more in (("m.zip", with_them), ("alone.zip", ()))
    ]
    assert results[0]["log_loss"] != results[1]["log_loss"]
    out = tmp_path / "out.csv"
    run("predict", tmp_path / "m.zip", table, *with_them, *store, "--out", out)
    assert out.read_text().count("\n") == 61
    shown = run("inspect", tmp_path / "m.zip", "--text", NEW[0], *with_them)
    assert "sentence embeddings" in shown
    page = run(
        "report", tmp_path / "m.zip", table, *with_them, *store, "--out", tmp_path / "r.html"
    )
    assert page == ""
    assert "sentence embeddings" in (tmp_path / "r.html").read_text()


def test_a_model_keeps_its_training_texts_only_when_told_to(tmp_path, trained):
    kept = classifier(**EMBEDDINGS, keep_examples=True).fit(TEXTS, LABELS)
    kept.save(tmp_path / "kept.zip")
    trained.save(tmp_path / "plain.zip")
    assert trained.model_.examples is None
    assert TEXTS[7] not in json.dumps(described(tmp_path / "plain.zip"))
    loaded = load_model(tmp_path / "kept.zip", **EMBEDDINGS)
    assert loaded.model_.examples.texts == [(text, None) for text in TEXTS]
    assert (loaded.predict_proba(NEW) == trained.predict_proba(NEW)).all()
    assert "nearest" not in trained.explain(TEXTS[7])
    nearest = loaded.explain(TEXTS[7])["nearest"]
    assert nearest[0] == {
        "text": TEXTS[7],
        "text_pair": None,
        "label": LABELS[7],
        "similarity": pytest.approx(1, abs=1e-3),
    }
    assert len(nearest) == 3
    # without an expert there is nothing to compare with
    assert classifier(keep_examples=True).fit(TEXTS, LABELS).model_.examples is None


@pytest.mark.parametrize(
    "change",
    [
        lambda entries: entries.pop(),
        lambda entries: entries.append(["one more", None, 0]),
        lambda entries: entries[0].__setitem__(2, 2),
        lambda entries: entries[0].__setitem__(1, "a pair"),
        lambda entries: entries[0].__setitem__(0, 5),
        lambda entries: entries[0].pop(),
        lambda entries: entries.__setitem__(0, "text"),
    ],
)
def test_a_file_with_other_texts_than_vectors_is_refused(tmp_path, change):
    path = tmp_path / "m.zip"
    classifier(**EMBEDDINGS, keep_examples=True).fit(TEXTS[:20], LABELS[:20]).save(path)
    description = described(path)
    if "examples" not in description:
        pytest.fail("no texts were kept")
    change(description["examples"])
    with zipfile.ZipFile(path) as archive:
        arrays = archive.read("arrays.npz")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.json", json.dumps(description))
        archive.writestr("arrays.npz", arrays)
    with pytest.raises(ModelFileError):
        read_model(path)


def test_the_card_says_that_texts_are_in_the_file(tmp_path, table):
    (tmp_path / "prompts.txt").write_text("{text} It was {mask}\n")
    lm = ("--backend", "deterministic", "--prompts", tmp_path / "prompts.txt", "--no-store")
    with_them = ("--embeddings", "deterministic", "--embeddings-option", "seed=7")
    kept = ("--keep-examples", "--out", tmp_path / "m.zip")
    run("train", table, *lm, *with_them, *kept)
    run("report", tmp_path / "m.zip", "--format", "card", "--out", tmp_path / "card.md")
    assert "holds the texts and vectors of 60 training rows" in (tmp_path / "card.md").read_text()
    shown = run("inspect", tmp_path / "m.zip", "--text", TEXTS[3], *with_them)
    assert f"{LABELS[3]}: {TEXTS[3]}" in shown
