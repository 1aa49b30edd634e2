"""Demonstrations that are retrieved: which rows prompts show, leakage, cost and files."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from serving import served

from backends.deterministic import DeterministicBackend
from blackbox import PromptBoostingClassifier, load_model
from blackbox.cli import main as cli
from blackbox.errors import ModelFileError, PromptError
from blackbox.experts.examples import KeptExamples
from blackbox.generation import Task, show_nearest_rows
from blackbox.model.file import read_model, write_model
from blackbox.prompts.pool import PromptPool
from blackbox.prompts.template import Prompt
from blackbox.service.models import Query

TOPICS = {
    "sport": ["match", "goal", "team", "coach", "league", "score"],
    "money": ["bank", "market", "shares", "profit", "loan", "price"],
}
SLOT = "{nearest: 1}{text}\nTopic: {mask}"
EMBEDDINGS = {"embeddings": "deterministic", "embeddings_options": {"seed": 7}}


def rows(n, seed):
    rng = np.random.default_rng(seed)
    every = [word for words in TOPICS.values() for word in words]
    labels = [list(TOPICS)[number % 2] for number in range(n)]
    texts = [
        " ".join(rng.permutation([*rng.choice(TOPICS[label], 2), *rng.choice(every, 3)]))
        for label in labels
    ]
    return texts, labels


TEXTS, LABELS = rows(40, 0)
NEW = rows(15, 1)[0]


class Recorder(DeterministicBackend):
    """The deterministic backend; keeps what it was sent."""

    def __init__(self):
        super().__init__()
        self.sent = []

    def next_token(self, prompts, top_k):
        self.sent += [prompt.text for prompt in prompts]
        return super().next_token(prompts, top_k)


def classifier(lm=None, **options):
    given = {"prompts": [SLOT, "{text} It was {mask}"], "random_state": 0, "store": False}
    return PromptBoostingClassifier(lm or "deterministic", **given | EMBEDDINGS | options)


class TestSlot:
    def test_each_text_gets_its_own_examples_written_as_the_template(self):
        prompt = Prompt("{nearest: 2}Text: {text}\nTopic: {mask}.")
        text, pair = ("a goal", None), ("a loan", None)
        shown = prompt.showing({text: [(("the bank", None), "money"), (("a team", None), "sport")]})
        assert shown.render(*text).text == (
            "Text: the bank\nTopic: money.\n\nText: a team\nTopic: sport.\n\nText: a goal\nTopic:"
        )
        assert shown.render(*pair).text == "Text: a loan\nTopic:"
        # a text that was cut has the examples of the whole one
        assert shown.render("a", row=text).text.endswith("\n\nText: a\nTopic:")
        assert shown == prompt
        assert len(PromptPool([shown, prompt])) == 1
        assert prompt.nearest == 2

    def test_pairs_and_masked_lms_are_served(self):
        prompt = Prompt("{nearest: 1}{text} and {text_pair}: {mask}!")
        shown = prompt.showing({("a", "b"): [(("c", "d"), "yes")]})
        rendered = shown.render("a", "b", masked=True)
        assert (rendered.text, rendered.after_mask) == ("c and d: yes!\n\na and b: ", "!")

    @pytest.mark.parametrize(
        "template",
        [
            "{text}{nearest: 1} {mask}",
            "{nearest: 1}{nearest: 1}{text} {mask}",
            "{nearest: 0}{text} {mask}",
            "{nearest: 9}{text} {mask}",
            "{nearest}{text} {mask}",
            "<user>{nearest: 1}{text}<assistant>{mask}",
            "{nearest: 1}{example: a || b} x\n\n{text} {mask}",
        ],
    )
    def test_other_places_and_numbers_are_errors(self, template):
        with pytest.raises(PromptError, match="nearest"):
            Prompt(template)


def examples(vectors, codes, texts=None):
    texts = texts or [(f"text {n}", None) for n in range(len(codes))]
    vectors = np.array(vectors, np.float32)
    return KeptExamples(texts, np.array(codes), vectors, ["a", "b"])


class TestNearest:
    def test_the_nearest_of_each_class_come_last_and_copies_once(self):
        angles = np.radians([0, 0, 20, 40, 10, 50, 60])
        kept = examples(
            np.stack([np.cos(angles), np.sin(angles)], axis=1),
            [0, 0, 0, 0, 1, 1, 1],
            [(text, None) for text in ("same", "same ", "a2", "a3", "b1", "b2", "b3")],
        )
        pool = PromptPool(
            ["{nearest: 2}{text} {mask}", "{nearest: 1}{text} {mask}", "{text} {mask}"]
        )
        text = ("new", None)
        limits = DeterministicBackend().limits
        two, one, none = kept.bind(pool, [text], np.array([[1, 0]], np.float32), limits)
        assert [t[0] for t, _ in two.shown[text]] == ["b2", "a2", "b1", "same"]
        assert [t[0] for t, _ in one.shown[text]] == ["b1", "same"]
        assert none.shown == {}

    def test_a_text_is_never_shown_to_itself(self):
        kept = examples(np.eye(4), [0, 0, 1, 1])
        pool = PromptPool(["{nearest: 1}{text} {mask}"])
        limits = DeterministicBackend().limits
        text = (" text  2", None)
        (prompt,) = kept.bind(pool, [text], np.eye(4, dtype=np.float32)[2:3], limits)
        assert sorted(t[0] for t, _ in prompt.shown[text]) == ["text 0", "text 3"]

    def test_long_examples_are_cut_to_fit_the_context(self):
        kept = examples(np.eye(2), [0, 1], [("é" * 5000, None), ("word " * 5000, None)])
        pool = PromptPool(["{nearest: 1}{text} {mask}"])
        limits = replace(DeterministicBackend().limits, context_length=500)
        (prompt,) = kept.bind(pool, [("x", None)], np.ones((1, 2), np.float32), limits)
        assert all(len(t[0].encode()) <= 200 for t, _ in prompt.shown["x", None])


def task_of(texts, y, groups=None):
    limits = DeterministicBackend().limits
    names = [f"class {code}" for code in range(int(max(y)) + 1)]
    examples = [(text, None) for text in texts]
    return Task(examples, np.array(y), np.ones(len(y)), names, None, limits, None, groups)


def shown_to(pool, task, number):
    (prompt,) = pool
    return [text[0] for text, _ in prompt.shown[task.examples[number]]]


class TestLeakage:
    POOL = PromptPool(["{nearest: 1}{text} {mask}"])

    def test_no_row_is_shown_itself_or_a_row_of_its_group(self):
        rng = np.random.default_rng(0)
        groups = np.repeat(np.arange(30), 3)
        # rows of a group are all but the same, under one label
        y = rng.permutation(np.arange(30) % 2)[groups]
        vectors = rng.normal(size=(30, 16))[groups] + 0.01 * rng.normal(size=(90, 16))
        task = task_of([f"text {n}" for n in range(90)], y, groups)
        pool, _ = show_nearest_rows(self.POOL, task, vectors.astype(np.float32), rng)
        for number in range(90):
            group_of = {int(text.split()[1]) // 3 for text in shown_to(pool, task, number)}
            assert number // 3 not in group_of
            assert len(group_of) == 2

    def test_which_class_is_nearest_gives_no_random_label_away(self):
        # of 8 rows per class a row that leaves out itself alone finds its own class nearest in
        # 7 of 15 cases, so that the opposite of the nearest class is the label in 53%
        right = []
        for seed in range(150):
            rng = np.random.default_rng(seed)
            y = rng.permutation(np.arange(20) % 2)
            vectors = rng.normal(size=(20, 32)).astype(np.float32)
            task = task_of([f"text {n}" for n in range(20)], y)
            pool, _ = show_nearest_rows(self.POOL, task, vectors, rng)
            right += [
                y[int(shown_to(pool, task, number)[-1].split()[1])] == y[number]
                for number in range(20)
            ]
        assert np.mean(right) == pytest.approx(0.5, abs=3 * 0.5 / np.sqrt(len(right)))

    def test_random_labels_are_not_learned(self):
        texts = [
            f"{' '.join(words)}"
            for words in np.random.default_rng(0).choice([f"word{n}" for n in range(200)], (60, 6))
        ]
        labels = np.random.default_rng(1).permutation(np.arange(60) % 2)
        fitted = classifier(prompts=[SLOT]).fit(texts, labels)
        assert fitted.training_summary_["cv_log_loss"] > np.log(2) - 0.05

    def test_too_few_rows_of_a_class_are_an_error(self):
        task = task_of(["a", "b", "c", "d"], [0, 0, 0, 1])
        with pytest.raises(ValueError, match="class 'class 1' has 0"):
            show_nearest_rows(
                self.POOL, task, np.eye(4, dtype=np.float32), np.random.default_rng(0)
            )


@pytest.fixture(scope="module")
def trained():
    return classifier(class_names={"money": "finance"}).fit(TEXTS, LABELS)


class TestModel:
    def test_new_texts_are_shown_the_nearest_rows_of_each_class(self, trained):
        lm = Recorder()
        trained.model_.predict(lm, NEW, embedder=trained.connect_embedder())
        shown = [text for text in lm.sent if text.count("Topic:") == 3]
        assert len(shown) == len(NEW)
        for text in shown:
            first, second, own = text.split("\n\n")
            assert own.removesuffix("\nTopic:") in NEW
            named = dict(part.split("\nTopic: ")[::-1] for part in (first, second))
            assert set(named) == {"sport", "finance"}
            assert set(named.values()) <= set(TEXTS)

    def test_it_holds_the_texts_and_predicts_the_same_when_loaded(self, trained, tmp_path):
        trained.save(tmp_path / "m.zip")
        loaded = load_model(tmp_path / "m.zip", **EMBEDDINGS)
        assert loaded.model_.examples.texts == [(text, None) for text in TEXTS]
        assert (loaded.predict_proba(NEW) == trained.predict_proba(NEW)).all()
        assert (loaded.predict(NEW) == trained.predict(NEW)).all()
        nearest = loaded.explain(NEW[0])["nearest"]
        assert len(nearest) == 3
        early = load_model(tmp_path / "m.zip", early_stop="exact", **EMBEDDINGS)
        assert (early.predict(NEW) == trained.predict(NEW)).all()

    def test_without_an_expert_the_embedding_model_is_read_for_the_prompts(self, tmp_path):
        fitted = classifier(algorithm="samme").fit(TEXTS, LABELS)
        if not fitted.model_.shows_examples:
            pytest.fail("boosting dropped the prompt")
        assert fitted.model_.ensemble.experts == ()
        fitted.save(tmp_path / "m.zip")
        loaded = load_model(tmp_path / "m.zip", **EMBEDDINGS)
        assert (loaded.predict(NEW) == fitted.predict(NEW)).all()

    def test_a_plan_foresees_what_training_and_prediction_take(self):
        untrained = classifier()
        plan = untrained.plan(TEXTS, LABELS)
        assert plan.passes == 40 * 3 + 2  # two prompts, the embedding, and the two names
        untrained.fit(TEXTS, LABELS)
        assert untrained.usage_.passes_made == plan.passes
        used = untrained.model_.predict(
            DeterministicBackend(), NEW, embedder=untrained.connect_embedder()
        ).usage
        assert used.passes_made == len(NEW) * (len(untrained.prompts_) + 1)

    def test_the_service_shows_the_rows_too_and_gives_the_nearest(self, tmp_path):
        fitted = classifier(embeddings_options=None).fit(TEXTS, LABELS)
        fitted.save(tmp_path / "m.zip")
        lm = Recorder()
        model = served(tmp_path / "m.zip", lm=lm)
        (reply,), usage = model.answer(model.loaded, [Query(NEW[0], explain=True)])
        assert reply.label == fitted.predict([NEW[0]])[0]
        assert usage.passes_made == model.loaded.n_prompts
        assert sum(text.count("Topic:") == 3 for text in lm.sent) == 1
        assert len(reply.explanation["nearest"]) == 3

    def test_without_embeddings_there_is_an_error_that_says_so(self):
        with pytest.raises(ValueError, match="name an embedding model"):
            classifier(embeddings="none").fit(TEXTS, LABELS)

    def test_prompts_without_the_slot_show_nothing_and_keep_nothing(self):
        fitted = classifier(prompts=["{text} It was {mask}"]).fit(TEXTS, LABELS)
        assert fitted.model_.examples is None

    def test_a_file_without_the_texts_is_refused(self, trained, tmp_path):
        path = tmp_path / "m.zip"
        write_model(path, trained.model_)
        with zipfile.ZipFile(path) as archive:
            described = json.loads(archive.read("model.json"))
            arrays = archive.read("arrays.npz")
        del described["examples"]
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model.json", json.dumps(described))
            archive.writestr("arrays.npz", arrays)
        with pytest.raises(ModelFileError, match="shows texts of the training"):
            read_model(path)

    def test_commands_say_that_the_file_holds_texts(self, tmp_path):
        table, pool, out = tmp_path / "t.csv", tmp_path / "p", tmp_path / "m.zip"
        pairs = zip(TEXTS, LABELS, strict=True)
        table.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in pairs))
        pool.write_text("{nearest: 1}{text}\\nTopic: {mask}\n")
        backend = ["--backend", "deterministic", "--embeddings", "deterministic"]
        run = CliRunner().invoke(
            cli,
            ["train", str(table), "--prompts", str(pool), "--out", str(out), *backend],
            catch_exceptions=False,
        )
        assert run.exit_code == 0, run.output
        assert "holds the 40 training texts" in run.stderr
        shown = CliRunner().invoke(cli, ["inspect", str(out)], catch_exceptions=False)
        assert "40 of the training are in the file" in shown.stdout
        card = tmp_path / "card.md"
        written = CliRunner().invoke(
            cli,
            ["report", str(out), "--format", "card", "--out", str(card)],
            catch_exceptions=False,
        )
        assert written.exit_code == 0, written.output
        assert "shown to the language model" in card.read_text()
