"""The library: its folder, its ranking, models that start from it, and their files."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import shlex
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from backends.deterministic import DeterministicBackend
from blackbox import PromptBoostingClassifier, load_model
from blackbox.answers.texts import row_digests
from blackbox.boosting.early_stopping import no_bounds
from blackbox.cli import main
from blackbox.errors import LibraryError, ModelFileError
from blackbox.experts.source_models import stack_probabilities
from blackbox.experts.source_readout import (
    SourceInput,
    SourceReadout,
    leave_one_out,
    transfer_score,
)
from blackbox.explain import describe_experts
from blackbox.library import folder as folder_module
from blackbox.library.folder import Library
from blackbox.library.sources import Sources
from blackbox.model.file import read_model, write_model
from blackbox.prompts.pool import PromptPool
from blackbox.prompts.template import Prompt
from tests.test_experts import TOPICS, texts_of

PROMPTS = ["{text} It was {mask}", "{text}\nTopic: {mask}"]
OTHER_PROMPTS = ["{text} It was {mask}", "{text}\nCategory: {mask}"]
RENAMED = {"sport": "match", "money": "market", "food": "market"}


def classifier(**changes):
    given = {
        "backend": DeterministicBackend(),
        "embeddings": None,
        "prompts": PROMPTS,
        "n_estimators": 10,
        "tokens_per_class": 8,
        "top_k": 50,
        "random_state": 0,
        "store": False,
    }
    return PromptBoostingClassifier(**given | changes)


def other_task(n, seed):
    """A task of two classes over the same topics, and other texts."""
    texts, labels = texts_of(n, seed)
    return texts, [RENAMED[label] for label in labels]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Files of two models: of the three topics, and of classes without meaning."""
    folder = tmp_path_factory.mktemp("models")
    texts, labels = texts_of(90, 1)
    classifier().fit(texts, labels).save(folder / "topics.blackbox")
    rng = np.random.default_rng(0)
    texts, _ = texts_of(60, 2)
    noise = rng.permutation(["yes", "no"] * 30).tolist()
    classifier(cv=None).fit(texts, noise).save(folder / "noise.blackbox")
    return folder


@pytest.fixture
def library(models, tmp_path):
    folder = tmp_path / "library"
    Library.open(folder).add(models / "topics.blackbox", licence="CC0", note="made up").add(
        models / "noise.blackbox"
    )
    return folder


@pytest.fixture(scope="module")
def trained(models, tmp_path_factory):
    """A classifier that started from the library, and its texts."""
    folder = tmp_path_factory.mktemp("trained") / "library"
    Library.open(folder).add(models / "topics.blackbox").add(models / "noise.blackbox")
    texts, labels = other_task(24, 3)
    return classifier(library=folder).fit(texts, labels), folder


class TestFolder:
    def test_it_lists_what_was_added(self, library):
        read = Library.read(library)
        assert list(read.entries) == ["topics", "noise"]
        entry = read.entry("topics")
        assert entry.classes == ["food", "money", "sport"]
        assert (entry.licence, entry.note, entry.n_rows) == ("CC0", "made up", 90)
        assert entry.prompts == PROMPTS

    def test_a_removed_source_leaves_no_file(self, library):
        Library.read(library).remove("topics")
        assert sorted(path.name for path in library.iterdir()) == ["index.json", "noise.blackbox"]
        with pytest.raises(LibraryError, match="no source 'topics'"):
            Library.read(library).model("topics")

    def test_a_name_is_given_once(self, library, models):
        with pytest.raises(LibraryError, match="there is a source 'topics'"):
            Library.read(library).add(models / "topics.blackbox")

    @pytest.mark.parametrize("name", ["", "../topics", "a/b", ".hidden", "x" * 65])
    def test_a_name_that_could_be_a_path_is_refused(self, library, models, name):
        with pytest.raises(LibraryError, match="can't be the name"):
            Library.read(library).add(models / "topics.blackbox", name=name)

    def test_what_was_killed_before_the_index_is_added_again(self, models, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(folder_module, "_digest", None)  # called when the model has been written
            with pytest.raises(TypeError):
                Library.open(tmp_path / "library").add(models / "topics.blackbox")
        assert (tmp_path / "library" / "topics.blackbox").exists()
        again = Library.open(tmp_path / "library").add(models / "topics.blackbox")
        assert list(again.entries) == ["topics"]

    def test_two_that_add_at_a_time_both_add(self, models, tmp_path):
        one, other = Library.open(tmp_path / "library"), Library.open(tmp_path / "library")
        one.add(models / "topics.blackbox")
        other.add(models / "noise.blackbox")
        assert list(Library.read(tmp_path / "library").entries) == ["topics", "noise"]

    @pytest.mark.posix
    def test_of_many_processes_that_add_at_a_time_each_adds(self, models, tmp_path):
        fork = multiprocessing.get_context("fork")
        start = fork.Barrier(8)

        def add(number):
            start.wait()
            Library.open(tmp_path / "library").add(models / "noise.blackbox", name=f"m{number}")

        processes = [fork.Process(target=add, args=(number,)) for number in range(8)]
        for one in processes:
            one.start()
        for one in processes:
            one.join()
        assert {one.exitcode for one in processes} == {0}
        assert sorted(Library.read(tmp_path / "library").entries) == [f"m{n}" for n in range(8)]

    def test_removing_keeps_what_was_added_since(self, library, models):
        before = Library.read(library)
        Library.read(library).add(models / "noise.blackbox", name="later")
        assert list(before.remove("topics").entries) == ["noise", "later"]
        with pytest.raises(LibraryError, match="no source 'topics'; it has: noise, later"):
            before.remove("topics")

    def test_a_folder_that_cannot_be_made_is_one_line(self, models, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(LibraryError, match="can't be made: Not a directory"):
            Library(tmp_path / "file" / "library").add(models / "topics.blackbox")

    def test_a_replaced_file_is_refused(self, library):
        (library / "topics.blackbox").write_bytes((library / "noise.blackbox").read_bytes())
        with pytest.raises(LibraryError, match="not the file that was added"):
            Library.read(library).model("topics")

    @pytest.mark.parametrize(
        "text",
        ["", "[]", '{"format": "other"}', '{"format": "promptboosting library"}', "\ud800"],
    )
    def test_a_damaged_index_is_one_line(self, library, text):
        (library / "index.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(LibraryError, match="not the index of a library"):
            Library.read(library)

    def test_an_index_names_no_path(self, library):
        index = json.loads((library / "index.json").read_text())
        index["sources"][0]["name"] = "../../etc/passwd"
        (library / "index.json").write_text(json.dumps(index))
        with pytest.raises(LibraryError, match="a name that is none"):
            Library.read(library)

    def test_a_folder_with_other_files_is_no_library(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(LibraryError, match="no library"):
            Library.open(tmp_path)

    def test_it_holds_no_text_of_the_training(self, models, tmp_path):
        texts, labels = texts_of(30, 5)
        kept = classifier(
            embeddings=DeterministicBackend(seed=1), keep_examples=True, n_estimators=2
        ).fit(texts, labels)
        assert kept.model_.examples is not None
        kept.save(tmp_path / "kept.blackbox")
        library = Library.open(tmp_path / "library").add(tmp_path / "kept.blackbox")
        assert library.model("kept").examples is None
        for path in (tmp_path / "library").iterdir():
            data = path.read_bytes()
            if path.suffix == ".blackbox":
                with zipfile.ZipFile(path) as archive:
                    data = archive.read("model.json")
            assert texts[0].encode() not in data

    def test_models_that_show_texts_or_vote_are_refused(self, models, tmp_path):
        model = read_model(models / "topics.blackbox")
        shown = Prompt(
            "{example: It broke after two days || What a joy} It was bad\n\n{text} It was {mask}"
        )
        prompts = PromptPool([shown, *list(model.prompts)[1:]])
        write_model(tmp_path / "shown.blackbox", replace(model, prompts=prompts))
        with pytest.raises(LibraryError, match="show labelled texts"):
            Library.open(tmp_path / "library").add(tmp_path / "shown.blackbox")
        texts, labels = texts_of(30, 5)
        classifier(algorithm="samme").fit(texts, labels).save(tmp_path / "votes.blackbox")
        with pytest.raises(LibraryError, match="train it with logit"):
            Library.open(tmp_path / "library").add(tmp_path / "votes.blackbox")
        write_model(tmp_path / "old.blackbox", replace(model, row_digests=None))
        with pytest.raises(LibraryError, match="no digests of its training rows"):
            Library.open(tmp_path / "library").add(tmp_path / "old.blackbox")


class TestRanking:
    @pytest.mark.parametrize("groups", [None, np.array([5, 5, 2, 2, 2, 0, 1, 7])])
    def test_leave_one_out_is_what_counting_without_the_rows_of_a_group_gives(self, groups):
        rng = np.random.default_rng(0)
        probabilities = rng.dirichlet(np.ones(3), 8)
        y, weights = np.arange(8) % 2, 1.0 + np.arange(8) % 3
        names = rng.dirichlet(np.ones(3), 2)
        seen = leave_one_out(probabilities, np.eye(2)[y], weights, names, groups)
        prior = 4 * np.bincount(y, weights) / weights.sum() + 8 * names.T
        of_row = np.arange(8) if groups is None else groups
        for row in range(8):
            rest = of_row != of_row[row]
            counts = prior + np.stack(
                [(probabilities[rest & (y == k)].T @ weights[rest & (y == k)]) for k in (0, 1)], 1
            )
            table = counts / counts.sum(axis=1, keepdims=True)
            assert seen[row] == pytest.approx(probabilities[row] @ table, abs=1e-6)

    def test_a_related_source_ranks_above_noise(self, library):
        texts, labels = other_task(24, 3)
        fitted = classifier(library=library).fit(texts, labels)
        ranked = fitted.training_summary_["sources"]
        assert [one["name"] for one in ranked] == ["topics", "noise"]
        assert ranked[0]["score"] > 0.1 > ranked[1]["score"]

    def test_a_source_that_says_nothing_scores_below_zero(self):
        target, ones = np.eye(4)[np.arange(40) % 4], np.ones(40)
        left_out = leave_one_out(np.full((40, 3), 1 / 3), target, ones)
        assert transfer_score(left_out, target, ones) < 0

    def test_sources_of_another_lm_or_of_the_same_rows_are_refused(self, library):
        sources = Library.read(library)
        texts, _ = other_task(24, 3)
        examples = [(text, None) for text in texts]
        other = Sources.of(sources, DeterministicBackend(seed=7).identity, examples)
        assert not other.models
        assert all("another LM" in why for why in other.refused.values())
        seen = [*examples, (texts_of(90, 1)[0][4], None)]
        some = Sources.of(sources, DeterministicBackend().identity, seen)
        assert list(some.models) == ["noise"]
        assert some.refused["topics"] == "trained on 1 of these texts"
        pairs = Sources.of(sources, DeterministicBackend().identity, [("a", "b")])
        assert pairs.refused["topics"] == "for single texts"

    def test_a_source_whose_file_is_not_its_own_is_refused(self, library, models):
        sources = Library.read(library).add(models / "noise.blackbox", name="gone")
        with (library / "topics.blackbox").open("ab") as file:
            file.write(b"x")
        (library / "gone.blackbox").unlink()
        examples = [(text, None) for text in other_task(24, 3)[0]]
        found = Sources.of(sources, DeterministicBackend().identity, examples)
        assert list(found.models) == ["noise"]
        assert list(found.refused) == ["topics", "gone"]
        # it stands in the file of the new model, which names no path
        assert not any(str(library) in why for why in found.refused.values())

    def test_a_source_class_means_the_class_whose_name_it_takes_until_rows_say_otherwise(self):
        names = np.array([[0.1, 0.9], [0.9, 0.1]])[:, None]
        y, few = np.array([0, 1]), np.full((2, 2), 1 / 2)
        readout = SourceReadout.fit(few[:, None], y, np.ones(2), 2, names)
        assert readout.tables[0].argmax(axis=1).tolist() == [1, 0]
        y, many = np.arange(60) % 2, np.eye(2)[np.arange(60) % 2]
        readout = SourceReadout.fit(many[:, None], y, np.ones(60), 2, names)
        assert readout.tables[0].argmax(axis=1).tolist() == [0, 1]

    def test_digests_tell_texts_and_pairs_apart(self):
        one = row_digests([("ab", None), ("a", "b"), ("a", "b"), ("", "ab")])
        assert len(one) == 3


class TestReadout:
    def test_scores_are_within_their_bounds_but_for_a_constant(self):
        rng = np.random.default_rng(1)
        evidence = stack_probabilities(
            [rng.dirichlet(np.ones(2), 30), rng.dirichlet(np.ones(4), 30)]
        )
        readout = SourceReadout.fit(evidence, np.arange(30) % 3, np.ones(30), 3).scaled(2.0)
        extreme = np.zeros((8, 2, 4))
        for row, (first, second) in enumerate(np.ndindex(2, 4)):
            extreme[row, 0, first] = extreme[row, 1, second] = 1.0
        low, high = readout.bounds()
        for scores in (readout.scores(evidence), readout.scores(extreme)):
            assert scores.sum(axis=1) == pytest.approx(np.zeros(len(scores)), abs=1e-9)
            lead = scores[:, :, None] - scores[:, None]
            assert (lead <= high[:, None] - low[None] + 1e-9).all()

    def test_held_out_scores_give_no_label_away(self):
        rng = np.random.default_rng(2)
        y = rng.integers(0, 2, 100)
        copied, groups = np.repeat(y, 4), np.repeat(np.arange(100), 4)
        # each text is a source class of its own, so that a count of a copy is its label
        given = SourceInput(SourceReadout, np.repeat(np.eye(100), 4, axis=0)[:, None])

        def accuracy(groups):
            scores = given.held_out_scores(copied, np.ones(400), 2, [], groups)
            return (scores.argmax(axis=1) == copied).mean()

        assert accuracy(groups) < 0.5 + 4 * np.sqrt(0.25 / 100)
        assert accuracy(None) > 0.9

    def test_a_source_without_anything_to_say_gets_no_weight(self):
        y = np.arange(40) % 2
        good, flat = np.eye(2)[y] * 0.9 + 0.05, np.full((40, 2), 0.5)
        readout = SourceReadout.fit(stack_probabilities([flat, good]), y, np.ones(40), 2)
        assert readout.weights.tolist() == pytest.approx([0, 1])


class TestTraining:
    def test_it_predicts_better_with_a_related_source(self, trained):
        classifier_, _ = trained
        texts, labels = other_task(24, 3)
        alone = classifier().fit(texts, labels)
        unseen, truth = other_task(300, 4)
        assert classifier_.score(unseen, truth) > alone.score(unseen, truth) + 0.02
        assert classifier_.training_summary_["experts"]["sources"] > 0

    def test_it_asks_no_pass_more_than_for_class_names(self, trained):
        classifier_, folder = trained
        texts, labels = other_task(24, 3)
        alone = classifier().fit(texts, labels)
        assert classifier_.usage_.passes_made == alone.usage_.passes_made + 2 * len(PROMPTS)
        assert classifier_.training_summary_["forward_passes"] == classifier_.usage_.passes_made
        unnamed = classifier(library=folder, label_words=None).fit(texts, labels)
        assert unnamed.usage_.passes_made == alone.usage_.passes_made
        assert len(classifier_.prompts_) == len(alone.prompts_)

    def test_a_saved_model_predicts_the_same_without_the_library(self, trained, tmp_path):
        classifier_, _ = trained
        unseen, _ = other_task(40, 4)
        classifier_.save(tmp_path / "m.blackbox")
        loaded = load_model(tmp_path / "m.blackbox", backend=DeterministicBackend())
        assert (loaded.predict_proba(unseen) == classifier_.predict_proba(unseen)).all()
        assert [source.name for source in loaded.ensemble_.sources] == ["topics"]

    def test_exact_early_stopping_gives_the_same_labels(self, trained):
        classifier_, _ = trained
        unseen, _ = other_task(200, 6)
        every = classifier_.model_.predict(classifier_.connect(), unseen)
        some = classifier_.model_.predict(classifier_.connect(), unseen, "exact")
        assert (every.codes == some.codes).all()

    def test_early_stopping_knows_what_is_added_in_the_end(self):
        bounds = np.array([[-0.2, -0.2], [-0.2, -0.2]])
        alone = replace(no_bounds(2, 2), low=bounds, high=-bounds)
        scores = np.array([[0.0, 1.0]])
        assert alone.settled(scores, 1, "exact").all()
        together = replace(alone, late=np.array([[-0.5, -0.5], [0.5, 0.5]]))
        assert not together.settled(scores, 1, "exact").any()
        assert together.settled(2 * scores, 1, "exact").all()

    def test_staged_scores_end_in_the_scores(self, trained):
        classifier_, _ = trained
        unseen, _ = other_task(20, 4)
        *_, last = classifier_.staged_decision_function(unseen)
        # in another order of summing, in single precision
        assert last == pytest.approx(classifier_.decision_function(unseen), abs=1e-6)

    def test_an_explanation_names_the_source(self, trained):
        classifier_, _ = trained
        text = " ".join(TOPICS["sport"][:4])
        explained = classifier_.explain(text)
        [said] = explained["experts"]
        assert said["name"] == "sources"
        assert "as in topics: sport" in said["says"]
        total = sum(one["votes"]["match"] for one in explained["prompts"]) + said["votes"]["match"]
        scores = classifier_.model_.read(classifier_.connect(), [text])[0].scores
        start = classifier_.ensemble_.initial[1]
        other = sum(one["votes"]["market"] for one in explained["prompts"])
        other += said["votes"]["market"] + classifier_.ensemble_.initial[0]
        assert total + start - other == pytest.approx(float(scores[0]))
        assert describe_experts(classifier_.model_)[0]["reads"] == {"model": "topics"}

    def test_a_source_reads_the_prompts_that_are_shared(self, library):
        texts, labels = other_task(24, 3)
        shared = classifier(library=library, prompts=OTHER_PROMPTS).fit(texts, labels)
        assert [one["prompts"] for one in shared.training_summary_["sources"]] == [1, 1]
        none = classifier(library=library, prompts=["{text}\nType: {mask}"]).fit(texts, labels)
        assert none.training_summary_["sources"] == []
        assert not none.ensemble_.experts

    def test_further_prompts_are_planned_and_asked(self, library):
        texts, labels = other_task(24, 3)
        more = classifier(library=library, prompts=OTHER_PROMPTS, library_prompts=5)
        plan = more.plan(texts, labels)
        more.fit(texts, labels)
        assert plan.passes == more.usage_.passes_made == 3 * 24 + 2 * 2
        assert [one["prompts"] for one in more.training_summary_["sources"]] == [2, 2]
        assert {prompt.template for prompt in more.prompts_} == {*PROMPTS, *OTHER_PROMPTS}

    def test_a_plan_is_an_upper_bound_where_prompts_are_still_to_be_chosen(self, library):
        texts, labels = other_task(24, 3)
        more = classifier(library=library, prompts=None, n_prompts=2, library_prompts=2)
        plan = more.plan(texts, labels)
        more.fit(texts, labels)
        assert plan.at_most
        assert 0 <= plan.passes - more.usage_.passes_made <= 2 * 24 + 4 * 2

    def test_prompts_of_the_library_are_candidates(self, models, tmp_path):
        texts, labels = texts_of(60, 8)
        own = ["{text}\nThis is all about {mask}"]
        classifier(prompts=own).fit(texts, labels).save(tmp_path / "own.blackbox")
        Library.open(tmp_path / "library").add(tmp_path / "own.blackbox")
        more = {"prompts": None, "n_prompts": 40, "library": tmp_path / "library"}
        plan = classifier(**more).plan(*other_task(12, 3))
        alone = classifier(**more | {"library": None}).plan(*other_task(12, 3))
        asked = classifier(**more).fit(*other_task(12, 3)).usage_.passes_made
        assert alone.passes + 12 < plan.passes == asked

    def test_the_voting_algorithm_has_no_library(self, library):
        with pytest.raises(ValueError, match="train with logit"):
            classifier(library=library, algorithm="samme").fit(*other_task(24, 3))

    def test_texts_that_a_source_learned_are_no_new_ones(self, trained, tmp_path):
        started, _ = trained
        (source,) = started.ensemble_.sources
        assert source.name == "topics"
        own, learned = other_task(24, 3)[0], texts_of(90, 1)[0]
        of_noise = [text for text in texts_of(60, 2)[0] if text not in learned]
        started.save(tmp_path / "m.blackbox")
        for model in (started.model_, read_model(tmp_path / "m.blackbox")):
            texts = [own[0], learned[0], of_noise[0]]
            assert model.trained_on(texts).tolist() == [True, False, False]
            assert model.trained_on(texts, with_sources=True).tolist() == [True, True, False]

    def test_embeddings_and_sources_are_weighed_together(self, library, tmp_path):
        both = classifier(library=library, embeddings=DeterministicBackend(seed=1))
        both.fit(*other_task(36, 3))
        assert set(both.training_summary_["experts"]) == {"embeddings", "sources"}
        both.save(tmp_path / "m.blackbox")
        assert read_model(tmp_path / "m.blackbox").row_digests.tolist() == sorted(
            both.model_.row_digests.tolist()
        )


class TestFiles:
    def spoil(self, trained, tmp_path, change):
        """The message of reading a model whose description or arrays were changed."""
        path = tmp_path / "m.blackbox"
        trained[0].save(path)
        with zipfile.ZipFile(path) as archive:
            description = json.loads(archive.read("model.json"))
            with archive.open("arrays.npz") as file:
                arrays = dict(np.load(file))
        change(description, arrays)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model.json", json.dumps(description))
            with archive.open("arrays.npz", "w") as file:
                np.savez(file, **arrays)
        with pytest.raises(ModelFileError) as caught:
            read_model(path)
        return str(caught.value)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d, a: d.update(sources=[]), "without an expert, or that without"),
            (lambda d, a: d.update(sources=d["sources"] * 9), "too many"),
            (lambda d, a: d["sources"][0].update(name=1), "without a name"),
            (lambda d, a: a.update(source_0_prompts=a["source_0_prompts"] + 9), "an unknown one"),
            (lambda d, a: a.update(source_0_sizes=a["source_0_sizes"] * 0), "reads no token"),
            (lambda d, a: a.update(source_0_token_ids=a["source_0_token_ids"] + 1), "unknown tok"),
            (lambda d, a: a.update(source_0_low=a["source_0_low"] + 1e6), "above the upper"),
            (lambda d, a: a.update(expert_0_tables=-a["expert_0_tables"]), "badly"),
            (lambda d, a: a.update(expert_0_tables=a["expert_0_tables"] * 0), "excludes a class"),
            (lambda d, a: a.update(source_0_initial=a["source_0_initial"][:1]), "type or shape"),
        ],
    )
    def test_a_source_that_fits_badly_is_refused(self, trained, tmp_path, change, message):
        assert message in self.spoil(trained, tmp_path, change)


class TestCommand:
    def run(self, *args):
        return CliRunner().invoke(main, [str(arg) for arg in args], standalone_mode=False)

    def test_models_are_added_listed_shown_and_removed(self, models, tmp_path):
        folder = tmp_path / "library"
        at = ["--library", folder]
        added = self.run("library", "add", models / "topics.blackbox", *at, "--licence", "CC0")
        assert "1 model" in added.stderr
        assert "topics" in self.run("library", "list", *at).stdout
        assert "CC0" in self.run("library", "show", "topics", *at).stdout
        [entry] = json.loads(self.run("library", "list", *at, "--json").stdout)
        assert entry["classes"] == ["food", "money", "sport"]
        assert "0 models" in self.run("library", "remove", "topics", *at).stderr

    def test_nothing_is_removed_where_one_name_is_wrong(self, library):
        self.run("library", "remove", "topics", "wrong", "--library", library)
        assert "topics" in Library.read(library).entries

    def test_rank_and_train_agree(self, library, tmp_path):
        texts, labels = other_task(24, 3)
        table = tmp_path / "task.csv"
        rows = zip(texts, labels, strict=True)
        table.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
        lm = ["--backend", "deterministic", "--no-store", "--library", library]
        ranked = json.loads(self.run("library", "rank", table, *lm, "--json").stdout)
        assert [one["name"] for one in ranked["sources"]] == ["topics", "noise"]
        out = tmp_path / "task.blackbox"
        prompts = tmp_path / "prompts.txt"
        prompts.write_text("{text} It was {mask}\n{text}\\nTopic: {mask}\n")
        options = ["--prompts", prompts, "--embeddings", "none", "--out", out]
        found = self.run("train", table, *lm, *options)
        assert "models of the library used: topics" in found.stderr
        summary = read_model(out).summary
        assert [one["score"] for one in summary["sources"]] == [
            pytest.approx(one["score"], abs=1e-3) for one in ranked["sources"]
        ]
        shown = self.run("inspect", out).stdout
        assert "models of other tasks (topics)" in shown

    def test_library_prompts_need_a_library(self, tmp_path):
        (tmp_path / "t.csv").write_text("text,label\na,x\nb,y\nc,x\nd,y\n")
        found = self.run("plan", tmp_path / "t.csv", "--library-prompts", "2")
        assert "requires --library" in str(found.exception)


def test_the_walk_of_the_documentation_can_be_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPTBOOSTING_STORE", str(tmp_path / "passes.sqlite"))
    for command in ("TRAIN", "LIBRARY_RANK"):
        monkeypatch.setenv(f"BLACKBOX_{command}_BACKEND", "deterministic")
    monkeypatch.setenv("BLACKBOX_INSPECT_BACKEND", "deterministic")
    (tmp_path / "prompts.txt").write_text("{text} It was {mask}\n{text}\\nTopic: {mask}\n")
    given = {"EMBEDDINGS": "none", "PROMPTS": "prompts.txt", "TOP_K": "50", "N_ESTIMATORS": "10"}
    for option, value in given.items():
        monkeypatch.setenv(f"BLACKBOX_TRAIN_{option}", value)
    page = (Path(__file__).parents[1] / "docs" / "library.md").read_text("utf-8")
    walk = page.partition("## A walk")[2].partition("\n## ")[0]
    said = ""
    for block in walk.split("```sh\n")[1:]:
        lines = iter(block.partition("```")[0].splitlines())
        for line in lines:
            if line.startswith("cat > "):
                name = line.split()[2]
                rows = itertools.takewhile(lambda row: row != "END", lines)
                (tmp_path / name).write_text("".join(f"{row}\n" for row in rows))
                continue
            found = CliRunner().invoke(main, shlex.split(line)[1:])
            assert found.exit_code == 0, f"{line}: {found.output}"
            said += found.output
    assert "models of the library used" in said
    assert "library has 2 models" in said
