"""Several labels per text: the estimator, the model, its file, and what doesn't fit."""

from __future__ import annotations

import json
import warnings
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, csr_matrix
from sklearn.base import clone
from sklearn.metrics import accuracy_score, f1_score, hamming_loss
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.preprocessing import MultiLabelBinarizer

from blackbox import PromptBoostingClassifier, load_model
from blackbox.answers.label_sets import has_label_sets, read_label_sets
from blackbox.boosting.thresholds import best_f1_threshold
from blackbox.errors import BudgetError, LibraryError, ModelFileError, RowError
from blackbox.generation import PromptGenerator
from blackbox.library.folder import Library
from blackbox.library.merging import merge_models
from blackbox.metrics import evaluate_label_sets
from blackbox.model.display import prompt_tokens
from blackbox.model.file import FORMAT_VERSION, read_model, write_model
from blackbox.model.multilabel import MultilabelModel
from blackbox.model.summary import training_facts
from blackbox.store.file import open_store
from tests.fakes import CountingBackend, RefusingBackend

PHRASES = {
    "defect": ["it is broken", "the screen is cracked", "it stopped working"],
    "delivery": ["where is my parcel", "it came late", "the courier lost it"],
    "refund": ["money back please", "I want a refund", "pay me back"],
}
GREETINGS = ["hello there", "thanks a lot", "have a nice day"]
PROMPTS = ["{text} It was {mask}", "{text}\nTopic: {mask}", "{text} about {mask}"]
LABELS = sorted(PHRASES)


def messages(n: int, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Texts of up to three phrases, and the labels of these; a fifth of them has none."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for number in range(n):
        chosen = rng.choice(LABELS, rng.integers(0, 4) if number % 5 else 0, replace=False)
        parts = [str(rng.choice(PHRASES[label])) for label in chosen]
        texts.append(f"{', '.join(parts) or rng.choice(GREETINGS)} {number}")
        labels.append(sorted(map(str, chosen)))
    return texts, labels


TEXTS, SETS = messages(60)
NEW, NEW_SETS = messages(25, seed=1)
BINARIZER = MultiLabelBinarizer().fit(SETS)
Y, NEW_Y = BINARIZER.transform(SETS), BINARIZER.transform(NEW_SETS)


def classifier(backend: Any = None, **options: Any) -> PromptBoostingClassifier:
    defaults: dict[str, Any] = {
        "prompts": PROMPTS,
        "random_state": 0,
        "store": False,
        "n_estimators": 20,
        "embeddings": None,
    }
    return PromptBoostingClassifier(backend or CountingBackend(), **defaults | options)


@pytest.fixture(scope="module")
def trained() -> PromptBoostingClassifier:
    return classifier().fit(TEXTS, SETS)


@pytest.fixture(scope="module")
def embedded() -> PromptBoostingClassifier:
    return classifier("deterministic", embeddings="deterministic").fit(TEXTS, SETS)


class TestPredicting:
    def test_lists_give_tuples_as_the_binarizer_does(self, trained):
        predicted = trained.predict(NEW)
        assert predicted == BINARIZER.inverse_transform(BINARIZER.transform(predicted))
        assert predicted.count(()) > 0  # some texts have none
        assert trained.classes_.tolist() == LABELS
        assert f1_score(NEW_Y, BINARIZER.transform(predicted), average="micro") > 0.9

    @pytest.mark.parametrize("form", [np.array, csr_array, csr_matrix, lambda Y: Y.astype(bool)])
    def test_an_indicator_matrix_gives_one(self, form):
        # a number has no words, which lists of words have
        model = classifier(label_words=None).fit(TEXTS, form(Y))
        by_lists = classifier(label_words=None).fit(TEXTS, SETS)
        predicted = model.predict(NEW)
        assert isinstance(predicted, np.ndarray)
        assert predicted.dtype == np.int64
        assert predicted.tolist() == BINARIZER.transform(by_lists.predict(NEW)).tolist()
        assert (model.predict_proba(NEW) == by_lists.predict_proba(NEW)).all()
        assert model.classes_.tolist() == [0, 1, 2]

    def test_a_frame_and_classes_name_the_columns(self, trained):
        frame = pd.DataFrame(Y, columns=LABELS)
        by_frame = classifier().fit(TEXTS, frame)
        by_classes = classifier(classes=LABELS).fit(TEXTS, Y)
        unnamed = classifier(classes=LABELS).fit(TEXTS, pd.DataFrame(Y))
        assert unnamed.predict(NEW).tolist() == by_classes.predict(NEW).tolist()
        numbers = classifier(classes=[2, 1, 0]).fit(TEXTS, pd.DataFrame(Y))
        assert numbers.predict(NEW)[:, ::-1].tolist() == by_classes.predict(NEW).tolist()
        in_other_order = classifier(classes=LABELS[::-1]).fit(TEXTS, frame)
        assert by_frame.classes_.tolist() == by_classes.classes_.tolist() == LABELS
        assert by_frame.predict(NEW).tolist() == by_classes.predict(NEW).tolist()
        assert in_other_order.classes_.tolist() == LABELS[::-1]
        assert in_other_order.predict(NEW)[:, ::-1].tolist() == by_frame.predict(NEW).tolist()

    def test_a_label_is_given_above_its_threshold(self, trained):
        probabilities = trained.predict_proba(NEW)
        assert probabilities.shape == (len(NEW), 3)
        assert ((probabilities > 0) & (probabilities < 1)).all()
        assert not np.allclose(probabilities.sum(axis=1), 1)
        chosen = probabilities > trained.model_.thresholds
        assert trained.predict(NEW) == BINARIZER.inverse_transform(chosen)
        assert trained.labels_from_proba(probabilities) == trained.predict(NEW)

    def test_scores_are_the_log_odds_of_the_probabilities(self, trained):
        scores, probabilities = trained.decision_function(NEW), trained.predict_proba(NEW)
        assert scores == pytest.approx(np.log(probabilities / (1 - probabilities)))
        assert trained.predict_log_proba(NEW) == pytest.approx(np.log(probabilities))

    def test_the_score_is_subset_accuracy(self, trained):
        by_matrix = classifier().fit(TEXTS, Y)
        expected = accuracy_score(NEW_Y, by_matrix.predict(NEW))
        assert by_matrix.score(NEW, NEW_Y) == pytest.approx(expected)
        assert trained.score(NEW, NEW_SETS) == pytest.approx(expected)
        weights = np.arange(len(NEW)) + 1.0
        weighted = accuracy_score(NEW_Y, by_matrix.predict(NEW), sample_weight=weights)
        assert trained.score(NEW, NEW_SETS, weights) == pytest.approx(weighted)
        frame = pd.DataFrame(NEW_Y, columns=LABELS)
        assert trained.score(NEW, frame[LABELS[::-1]]) == pytest.approx(expected)
        with pytest.raises(ValueError, match="the columns of y are 'defect', 'delivery', 'other'"):
            trained.score(NEW, frame.rename(columns={"refund": "other"}))

    def test_each_label_is_predicted_as_by_its_own_model(self, embedded):
        model = embedded.model_
        lm, embedder = embedded.connect(), embedded.connect_embedder()
        joint = model.predict(lm, NEW, embedder=embedder)
        for label, head in enumerate(model.heads):
            alone = head.predict(lm, NEW, embedder=embedder)
            assert joint.probabilities[:, label] == pytest.approx(alone.probabilities[:, 1])
        assert any(head.ensemble.experts for head in model.heads)

    def test_a_text_is_predicted_alike_alone_and_among_others(self, embedded):
        together = embedded.predict_proba(NEW)
        alone = np.concatenate([embedded.predict_proba([text]) for text in NEW])
        assert (together == alone).all()

    def test_pairs_of_texts(self):
        pairs = [(text, f"number {number}") for number, text in enumerate(TEXTS)]
        prompts = ["{text} {text_pair} It was {mask}", "{text_pair}, {text} {mask}"]
        model = classifier(prompts=prompts).fit(pairs, SETS)
        assert model.predict(pairs[:5]) == [tuple(labels) for labels in SETS[:5]]
        with pytest.raises(ValueError, match="single texts but the model was trained on pairs"):
            model.predict(NEW)

    def test_images_with_several_labels(self):
        image = pytest.importorskip("PIL.Image", reason="images need the `images` extra")
        pictures, colours = [], []
        for number in range(24):
            pixels = np.zeros((16, 16, 3), np.uint8)
            pixels[:8, :, 0] = 255 * (number % 2)
            pixels[8:, :, 2] = 255 * (number % 3 == 0)
            pixels[0, 0, 1] = number
            pictures.append(image.fromarray(pixels))
            colours.append([*["red"] * (number % 2), *["blue"] * (number % 3 == 0)])
        prompts = ["{image}A picture of {mask}", "{image}It is {mask}"]
        model = classifier("deterministic", prompts=prompts).fit(pictures, colours)
        assert model.score(pictures, colours) > 0.5
        assert ("pixels, no LM") in dict(training_facts(LABELS, model.training_summary_))

    def test_labels_may_be_numbers_or_flags(self):
        numbered = [[LABELS.index(one) + 7 for one in some] for some in SETS]
        model = classifier(class_names={7: "defect", 8: "delivery", 9: "refund"})
        predicted = model.fit(TEXTS, numbered).predict(NEW)
        assert {type(label) for labels in predicted for label in labels} == {int}
        assert model.classes_.tolist() == [7, 8, 9]

    def test_one_label_alone_is_a_label_that_a_text_may_have(self):
        only = [[one for one in some if one == "refund"] for some in SETS]
        predicted = classifier().fit(TEXTS, only).predict(NEW)
        assert set(predicted) == {(), ("refund",)}


class TestPasses:
    def test_training_asks_each_prompt_about_each_text_once(self):
        lm = CountingBackend()
        model = classifier(lm).fit(TEXTS, SETS)
        assert len(lm.asked) == len(set(lm.asked)) == len(TEXTS) * len(PROMPTS)
        assert model.training_summary_["forward_passes"] == len(lm.asked)
        assert model.usage_.passes_made == len(lm.asked)

    def test_screening_is_one_for_all_labels(self):
        several, one = CountingBackend(), CountingBackend()
        options = {"prompts": None, "n_prompts": 3, "n_screening_rows": 20}
        classifier(several, **options).fit(TEXTS, SETS)
        classifier(one, **options).fit(TEXTS, [len(some) > 1 for some in SETS])
        assert len(several.asked) == len(set(several.asked))
        assert len(several.asked) < 2 * len(one.asked)

    def test_prediction_asks_what_some_label_reads_once(self, trained):
        lm = CountingBackend()
        predictions = trained.model_.predict(lm, NEW)
        assert len(lm.asked) == len(set(lm.asked)) == len(NEW) * len(trained.prompts_)
        assert predictions.prompts_asked.tolist() == [len(trained.prompts_)] * len(NEW)
        read = {prompt for head in trained.model_.heads for prompt in head.prompts}
        assert set(trained.prompts_) == read

    def test_a_text_is_embedded_once(self):
        from backends.deterministic import DeterministicBackend

        class Embedder(DeterministicBackend):
            n_texts = 0

            def embed(self, texts):
                self.n_texts += len(texts)
                return super().embed(texts)

        embedder = Embedder()
        model = classifier("deterministic", embeddings=embedder).fit(TEXTS, SETS)
        assert embedder.n_texts == len(TEXTS)
        model.predict(NEW)
        assert embedder.n_texts == len(TEXTS) + len(NEW)

    def test_the_plan_is_what_the_training_makes(self):
        for options in ({}, {"prompts": None, "n_prompts": 3, "n_screening_rows": 20}):
            model = classifier("deterministic", **options)
            plan = model.plan(TEXTS, SETS)
            model.fit(TEXTS, SETS)
            assert plan.passes_to_make == model.usage_.passes_made
            assert plan.seconds is not None

    def test_a_stopped_training_goes_on_from_the_store(self, tmp_path):
        store = open_store(tmp_path / "store.sqlite")
        lm = CountingBackend()
        with pytest.raises(BudgetError):
            classifier(lm, store=store, max_forward_passes=50).fit(TEXTS, SETS)
        classifier(lm, store=store).fit(TEXTS, SETS)
        assert len(lm.asked) == len(set(lm.asked)) == len(TEXTS) * len(PROMPTS)

    def test_prompts_are_generated_for_all_labels_together(self):
        generator = PromptGenerator(budget=400)
        model = classifier("deterministic", prompts=generator, n_prompts=2)
        pool = model.generate_prompts(TEXTS, SETS)
        assert 1 <= len(pool.pool) <= 2
        fitted = model.fit(TEXTS, SETS)
        assert fitted.training_summary_["generation"]["passes"] <= 400
        assert {prompt.template for prompt in fitted.prompts_} <= {
            prompt.template for prompt in pool.pool
        }

    def test_fewer_prompts_are_kept_on_request(self):
        model = classifier(max_prompts=1).fit(TEXTS, SETS)
        assert len(model.prompts_) == 1


class TestTraining:
    def test_a_label_is_learned_alike_whatever_others_there_are(self, trained):
        without = [[one for one in some if one != "refund"] for some in SETS]
        fewer = classifier().fit(TEXTS, without)
        assert fewer.classes_.tolist() == ["defect", "delivery"]
        assert (fewer.predict_proba(NEW) == trained.predict_proba(NEW)[:, :2]).all()

    def test_the_same_seed_gives_the_same_model(self, trained):
        again = classifier().fit(TEXTS, SETS)
        assert (again.predict_proba(NEW) == trained.predict_proba(NEW)).all()
        assert (again.model_.thresholds == trained.model_.thresholds).all()

    def test_the_summary_has_the_figures_of_held_out_rows(self, trained):
        summary = trained.training_summary_
        found = summary["held_out_labels"]
        assert found["n_rows"] == len(TEXTS)
        assert found["n_rows_whole"] == len(TEXTS)
        assert 0.7 < found["micro_f1"] <= 1
        assert 0 < found["subset_accuracy"] <= 1
        assert found["tfidf_micro_f1"] > 0.5
        assert summary["class_counts"] == Y.sum(axis=0).tolist()
        assert summary["n_rows_without_any_label"] == SETS.count([])
        described = trained.model_.describe_labels()
        assert [one["label"] for one in described] == LABELS
        assert all(0 <= one["f1"] <= 1 and 0 < one["threshold"] < 1 for one in described)

    def test_a_fold_of_scikit_learn_learns_from_a_part_of_a_matrix(self):
        model = classifier().fit(TEXTS[:40], Y[:40])
        assert model.score(TEXTS[40:], Y[40:]) > 0.3

    @pytest.mark.parametrize("algorithm", ["logit", "samme"])
    def test_both_algorithms_learn_several_labels(self, algorithm):
        model = classifier(algorithm=algorithm).fit(TEXTS, SETS)
        predicted = BINARIZER.transform(model.predict(NEW))
        assert f1_score(NEW_Y, predicted, average="micro") > 0.7

    def test_weights_count_as_repeated_rows(self):
        weights = np.where(np.arange(len(TEXTS)) % 3, 1.0, 0.0)
        kept = np.flatnonzero(weights)
        weighted = classifier(cv=None).fit(TEXTS, SETS, weights)
        fewer = classifier(cv=None).fit([TEXTS[row] for row in kept], [SETS[row] for row in kept])
        assert weighted.predict_proba(NEW) == pytest.approx(fewer.predict_proba(NEW))

    def test_balanced_labels_are_given_more_often(self):
        rare = [some if number % 4 == 0 else [] for number, some in enumerate(SETS)]
        plain = classifier(label_words=None).fit(TEXTS, rare)
        balanced = clone(plain).set_params(class_weight="balanced").fit(TEXTS, rare)
        assert balanced.predict_proba(NEW).mean() > plain.predict_proba(NEW).mean()

    @pytest.mark.parametrize("weighted", [False, True])
    def test_thresholds_of_balanced_labels_are_for_labels_as_frequent_as_they_are(self, weighted):
        rng = np.random.default_rng(0)
        rare, other = rng.random((2, 250)) < [[0.08], [0.5]]
        said = rare ^ (rng.random(250) < 0.15)  # one text in seven says the opposite
        texts = [
            f"{rng.choice(PHRASES['refund'] if is_said else GREETINGS)} {number}"
            for number, is_said in enumerate(said)
        ]
        weights = np.where(rng.random(250) < 0.5, 1.0, 3.0) if weighted else None
        model = classifier(class_weight="balanced").fit(texts, np.c_[rare, other], weights)
        assert model.model_.thresholds[0] > 0.5
        assert model.predict(texts)[:, 0].mean() < 0.4

    def test_groups_are_held_out_together(self):
        one_group = classifier()
        with pytest.warns(UserWarning, match="on a single text or group"):
            one_group.fit(TEXTS, SETS, groups=np.zeros(len(TEXTS)))
        assert "held_out_labels" not in one_group.training_summary_
        assert one_group.model_.thresholds.tolist() == [0.5] * 3

    def test_a_label_on_all_texts_or_on_none_is_predicted_so(self):
        constant = np.column_stack([Y, np.ones(len(Y), int), np.zeros(len(Y), int)])
        model = classifier(classes=[*LABELS, "all", "no"])
        with (
            pytest.warns(UserWarning, match="label 'all': on all training texts, so always pre"),
            pytest.warns(UserWarning, match="label 'no': on no training text, so never predicted"),
        ):
            model.fit(TEXTS, constant)
        predicted = model.predict(NEW)
        assert (predicted[:, 3] == 1).all()
        assert (predicted[:, 4] == 0).all()
        assert np.isfinite(model.decision_function(NEW)).all()
        assert model.model_.heads[3] is None

    def test_a_label_of_a_single_text_is_learned_without_calibration(self):
        sets = [[*some, "rare"] if number == 3 else some for number, some in enumerate(SETS)]
        with pytest.warns(UserWarning, match="label 'rare': on a single text or group"):
            model = classifier().fit(TEXTS, sets)
        assert model.model_.thresholds[model.classes_.tolist().index("rare")] == 0.5
        assert model.training_summary_["held_out_labels"]["n_labels"] == 3

    def test_progress_tells_of_the_labels(self):
        stages: dict[str, list[tuple[int, int]]] = {}

        def note(stage: str, done: int, total: int) -> None:
            stages.setdefault(stage, []).append((done, total))

        classifier(callback=note).fit(TEXTS, SETS)
        assert stages["labels"] == [(1, 3), (2, 3), (3, 3)]

    def test_label_words_are_those_of_each_label(self):
        plain = classifier(label_words=None).fit(TEXTS, SETS)
        tokens = prompt_tokens(plain.model_, 0)["defect"]
        strongest = next(token.strip() for token, weight in tokens if weight > 0)
        words = {"defect": strongest, "delivery": [], "refund": ["unheard of"]}
        with_words = classifier(label_words=words)
        model = with_words.fit(TEXTS, SETS)
        assert [head.summary["n_names"] > 0 for head in model.model_.heads] == [True, False, False]
        with pytest.raises(ValueError, match=r"label_words has \['refunds'\], which are no labels"):
            classifier(label_words={"refunds": "money"}).fit(TEXTS, SETS)

    def test_a_model_worse_than_words_says_so(self, caplog):
        texts = [f"{LABELS[number % 3]} {number}" for number in range(90)]
        noise = np.random.default_rng(0)
        sets = [[LABELS[number % 3]] for number in range(90)]
        lm = CountingBackend()
        answers = lm.next_token

        def deaf(prompts, top_k):
            return answers(
                [replace(p, text=f"{noise.integers(1_000_000)}") for p in prompts], top_k
            )

        lm.next_token = deaf
        classifier(lm, label_words=None).fit(texts, sets)
        said = "\n".join(record.getMessage() for record in caplog.records)
        assert "clearly worse than TF-IDF with a logistic regression for each label" in said
        assert "these labels can't be told from chance: 'defect', 'delivery', 'refund'" in said


class TestScikitLearn:
    def test_tags_say_several_labels(self):
        assert classifier().__sklearn_tags__().classifier_tags.multi_label

    @pytest.mark.slow
    @pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function"])
    def test_cross_val_predict(self, method):
        found = cross_val_predict(classifier("deterministic"), TEXTS, Y, cv=3, method=method)
        assert found.shape == Y.shape
        if method == "predict":
            assert f1_score(Y, found, average="micro") > 0.7

    @pytest.mark.slow
    def test_cross_val_score_and_a_grid(self):
        scores = cross_val_score(classifier("deterministic"), TEXTS, Y, cv=3, scoring="f1_micro")
        assert (scores > 0.7).all()
        grid = GridSearchCV(classifier("deterministic"), {"n_estimators": [5, 20]}, cv=2)
        assert grid.fit(TEXTS, Y).predict(NEW).shape == NEW_Y.shape

    def test_a_clone_is_untrained_and_learns_the_same(self, trained):
        copy = clone(trained)
        assert not hasattr(copy, "model_")
        assert copy.fit(TEXTS, SETS).predict(NEW) == trained.predict(NEW)

    def test_answers_are_features(self, trained):
        features = trained.transform(NEW)
        assert features.shape == (len(NEW), len(trained.get_feature_names_out()))

    def test_representations_name_the_labels(self, trained):
        assert "3 labels, any number per text" in repr(trained.model_)
        assert "trained on: 60 rows: " in trained._repr_html_()


class TestRowsWithoutAnAnswer:
    def test_they_raise_or_abstain(self):
        model = classifier(on_row_error="abstain").fit([*TEXTS, ""], [*SETS, []])
        assert list(model.row_errors_) == [60]
        with pytest.raises(RowError, match="set abstain_label"):
            model.predict([NEW[0], ""])
        model.set_params(abstain_label="unknown")
        assert model.predict([NEW[0], ""])[1] == "unknown"
        probabilities = model.predict_proba([NEW[0], ""])
        assert np.isnan(probabilities[1]).all()
        assert not np.isnan(probabilities[0]).any()

    def test_they_are_not_right_in_a_score(self):
        model = classifier(on_row_error="abstain").fit(TEXTS, SETS)
        gone = ["", *NEW]
        with pytest.raises(RowError, match="set abstain_label"):
            model.score(gone, [[], *NEW_SETS])
        right = model.score(NEW, NEW_SETS) * len(NEW)
        model.set_params(abstain_label="?")
        assert model.score(gone, [[], *NEW_SETS]) == pytest.approx(right / len(gone))
        usage = model.prediction_usage_
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            model.score(NEW[:5], NEW_SETS)
        assert model.prediction_usage_ is usage  # nothing was asked

    def test_a_matrix_is_filled_with_a_number(self):
        model = classifier(on_row_error="abstain", abstain_label=-1).fit(TEXTS, Y)
        assert model.predict([NEW[0], " "])[1].tolist() == [-1, -1, -1]
        model.set_params(abstain_label="unknown")
        with pytest.raises(ValueError, match="give a whole number such as -1, not 'unknown'"):
            model.predict([NEW[0], " "])

    def test_rows_that_the_lm_refuses_are_left_out(self):
        lm = RefusingBackend("forbidden")
        texts = [f"forbidden {text}" if number == 7 else text for number, text in enumerate(TEXTS)]
        with pytest.raises(RowError, match="row 7: "):
            classifier(lm).fit(texts, SETS)
        model = classifier(lm, on_row_error="abstain").fit(texts, SETS)
        assert list(model.row_errors_) == [7]
        assert model.training_summary_["n_rows"] == 59
        assert model.training_summary_["n_rows_left_out"] == 1

    def test_a_label_whose_texts_are_all_refused_is_never_predicted(self):
        lm = RefusingBackend("forbidden")
        texts = [*TEXTS, "forbidden one", "forbidden two"]
        sets = [*SETS, ["secret"], ["secret"]]
        with pytest.warns(UserWarning, match="label 'secret': on no training text"):
            model = classifier(lm, on_row_error="abstain").fit(texts, sets)
        assert ("secret",) not in model.predict(NEW)

    def test_truncated_texts_are_noticed(self):
        model = classifier("deterministic", backend_options={"context_length": 24})
        long = [f"{text} {'word ' * 50}" for text in TEXTS]
        model.fit(long, SETS)
        assert len(model.truncated_rows_) == len(TEXTS)
        model.predict(long[:2])
        assert model.truncated_rows_ == {0, 1}


class TestWhatDoesNotFit:
    @pytest.mark.parametrize(
        ("y", "words"),
        [
            ([["a"], None, ["b"]] * 2, "row 1: the labels are missing; a text without any label"),
            ([["a"], float("nan"), ["b"]] * 2, "row 1: the labels are missing"),
            ([["a"], "b", ["b"]] * 2, "row 1: a list of labels is needed, as other rows have"),
            ([["a"], [None], ["b"]] * 2, r"row 1: one of its labels is missing \(None or NaN\)"),
            ([["a"], ["b", 1], ["b"]] * 2, "row 1 has a label of type int, and row 0 one of type"),
            ([["a"], [["b"]], ["b"]] * 2, "row 1: a label is a str or a whole number, got list"),
            ([{"a": 1}, ["b"]] * 3, "row 0: a list of labels is needed, as other rows have, got d"),
            ([[], [], []] * 2, "no text has a label: there is nothing to learn"),
            ([["a"]] * 6, "no label tells the texts apart"),
            (np.array([[0, 1], [2, 0], [1, 1]] * 2), "row 1, label 0: 2 is neither 0 nor 1"),
            (np.array([[0, 1], [0, np.nan], [1, 1]] * 2), "row 1, label 1: is missing"),
            (np.array([[0, 1], [0, "x"], [1, 1]] * 2, object), "row 1, label 1: 'x' is neither"),
            (np.zeros((6, 2), int), "no label tells the texts apart"),
            (np.zeros((5, 2), int), "6 texts and the labels of 5 texts"),
            ([["a"], ["b"]], "6 texts and the labels of 2 texts"),
        ],
        ids=range(15),
    )
    def test_labels_that_are_none_are_one_line(self, y, words):
        lm = CountingBackend()
        with pytest.raises((ValueError, TypeError), match=words) as raised:
            classifier(lm).fit(TEXTS[:6], y)
        assert "\n" not in str(raised.value)
        assert not lm.calls

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"class_weight": {"refund": 2}}, "class_weight takes 'balanced' alone"),
            ({"library": "somewhere"}, "a library has models for one label per text"),
            ({"keep_examples": True}, "keep_examples keeps texts of one label"),
            ({"none_of_these": "other"}, "none_of_these is no label of its own"),
            ({"ordered": True}, "there is no order of sets of labels"),
            ({"prompts": ["{nearest: 2}{text} {mask}"]}, "show texts of one label: use others"),
        ],
    )
    def test_options_for_one_label_are_refused(self, options, words):
        with pytest.raises(ValueError, match=f"^with several labels per text .*{words}"):
            classifier(**options).fit(TEXTS, SETS)

    def test_labels_outside_the_classes_are_named(self):
        with pytest.raises(ValueError, match=r"row \d+ has the label 'refund', and the classes"):
            classifier(classes=["defect", "delivery"]).fit(TEXTS, SETS)
        with pytest.raises(ValueError, match="y has 3 columns, and classes names 2 labels"):
            classifier(classes=["defect", "delivery"]).fit(TEXTS, Y)
        frame = pd.DataFrame(Y, columns=LABELS)
        words = "columns of y are 'defect', 'delivery', 'refund', and the classes are 'a', 'defect'"
        with pytest.raises(ValueError, match=words):
            classifier(classes=["a", "defect", "delivery"]).fit(TEXTS, frame)
        with pytest.raises(ValueError, match="classes must be distinct labels"):
            classifier(classes=["a", "a", "b"]).fit(TEXTS, Y)

    def test_what_settles_one_label_is_refused_before_any_pass(self, trained):
        model = load(trained)
        lm = model.backend
        for call, words in (
            (lambda: model.set_params(early_stop="exact").predict(NEW), "early stopping settles"),
            (
                lambda: model.set_params(early_stop=None, max_error=0.2, abstain_label="").predict(
                    NEW
                ),
                "errors are promised, and prediction sets made, for one label per text",
            ),
            (lambda: model.predict_set(NEW), "for one label per text"),
            (lambda: model.suggest(NEW), "suggested for one label per text"),
            (lambda: list(model.staged_predict(NEW)), "there are no stages of several labels"),
            (lambda: list(model.staged_decision_function(NEW)), "there are no stages"),
        ):
            with pytest.raises(ValueError, match=words):
                call()
        assert not lm.calls

    def test_it_is_neither_merged_nor_a_source(self, trained, tmp_path):
        with pytest.raises(ModelFileError, match="one gives several labels per text"):
            merge_models(trained.model_, trained.model_)
        trained.save(tmp_path / "m.blackbox")
        with pytest.raises(LibraryError, match="gives several labels per text"):
            Library.open(tmp_path / "library").add(tmp_path / "m.blackbox")


def load(trained: PromptBoostingClassifier) -> PromptBoostingClassifier:
    """A classifier of the same model, with a counting LM of its own."""
    copy = classifier(CountingBackend())
    copy.model_ = trained.model_
    return copy


class TestReadingLabels:
    @given(
        st.lists(st.sets(st.sampled_from("abcde")), min_size=2, max_size=12).filter(any),
        st.sampled_from([list, tuple, set, frozenset]),
    )
    def test_collections_are_what_the_binarizer_makes_of_them(self, sets, kind):
        found = read_label_sets([kind(sorted(one)) for one in sets])
        binarizer = MultiLabelBinarizer()
        assert found.targets.tolist() == (binarizer.fit_transform(sets) == 1).tolist()
        assert found.labels.tolist() == binarizer.classes_.tolist()
        assert not found.indicator

    @pytest.mark.parametrize(
        ("y", "several"),
        [
            (["a", "b"], False),
            ([0, 1], False),
            (np.array([[0], [1]]), False),
            (pd.Series(["a", "b"]), False),
            (pd.DataFrame({"label": ["a", "b"]}), False),
            (None, False),
            ("ab", False),
            ([["a"], ["b"]], True),
            ([[], {"b"}], True),
            (pd.Series([["a"], []]), True),
            (np.array([[0, 1], [1, 1]]), True),
            (pd.DataFrame({"a": [0, 1], "b": [1, 1]}), True),
            (csr_matrix(np.eye(2)), True),
            ([[0, 1], [1, 0]], True),
        ],
        ids=range(14),
    )
    def test_what_several_labels_look_like(self, y, several):
        assert has_label_sets(y) == several

    def test_lists_of_zeros_and_ones_are_rows_of_a_matrix(self):
        assert read_label_sets([[0, 1], [1, 0]]).indicator
        assert not read_label_sets([[0, 1], [1]]).indicator


class TestThresholds:
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=40).filter(any))
    def test_it_is_the_best_of_all_by_expected_f1(self, values):
        probabilities = np.array(values)
        threshold = best_f1_threshold(probabilities, np.ones(len(values)))

        def expected(chosen: np.ndarray) -> float:
            return 2 * probabilities[chosen].sum() / (chosen.sum() + probabilities.sum())

        best = max(expected(probabilities >= value) for value in probabilities)
        assert expected(probabilities > threshold - 1e-12) == pytest.approx(best)
        assert 0 < threshold <= 0.5

    def test_weights_count_as_repeated_rows(self):
        values = np.array([0.9, 0.4, 0.2])
        repeated = np.repeat(values, [1, 2, 3])
        found = best_f1_threshold(values, np.array([1.0, 2.0, 3.0]))
        assert found == pytest.approx(best_f1_threshold(repeated, np.ones(6)))


class TestMeasures:
    @settings(max_examples=50)
    @given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 4))
    def test_they_are_those_of_scikit_learn(self, seed, n, n_labels):
        rng = np.random.default_rng(seed)
        truth, chosen = rng.random((2, n, n_labels)) < 0.4
        found = evaluate_label_sets(
            truth, chosen, rng.random((n, n_labels)), list("abcd")[:n_labels]
        )
        for average in ("micro", "macro"):
            expected = f1_score(
                truth.reshape(n, -1).astype(int),
                chosen.reshape(n, -1).astype(int),
                average=average if n_labels > 1 else "binary",
                zero_division=0,
            )
            assert getattr(found, f"{average}_f1") == pytest.approx(expected)
        assert found.hamming_loss == pytest.approx((truth != chosen).mean())
        assert found.subset_accuracy == pytest.approx((truth == chosen).all(axis=1).mean())
        if n_labels > 1:
            assert found.hamming_loss == pytest.approx(hamming_loss(truth, chosen))

    def test_rows_without_an_answer_are_wrong(self):
        truth = np.array([[True, False], [False, False]])
        probabilities = np.array([[0.9, 0.1], [np.nan, np.nan]])
        found = evaluate_label_sets(truth, probabilities > 0.5, probabilities, ["a", "b"])
        assert found.subset_accuracy == 0.5
        assert found.hamming_loss == 0.5
        assert found.coverage == 0.5
        assert found.log_loss == pytest.approx(-np.log(0.9))
        with pytest.raises(ValueError, match="no rows"):
            evaluate_label_sets(truth[:0], truth[:0], probabilities[:0], ["a", "b"])


class TestTheFile:
    def test_it_comes_back_as_it_was(self, embedded, tmp_path):
        path = tmp_path / "m.blackbox"
        embedded.save(path)
        loaded = load_model(path, backend="deterministic", embeddings="deterministic")
        loaded.set_params(store=False)
        assert isinstance(loaded.model_, MultilabelModel)
        assert (loaded.predict_proba(NEW) == embedded.predict_proba(NEW)).all()
        assert loaded.predict(NEW) == embedded.predict(NEW)
        assert loaded.training_summary_ == embedded.training_summary_
        assert loaded.model_.describe_labels() == embedded.model_.describe_labels()
        assert loaded.model_.trained_on([TEXTS[0], "another"]).tolist() == [True, False]
        again = tmp_path / "again.blackbox"
        loaded.save(again)
        assert again.read_bytes() == path.read_bytes()

    def test_a_training_goes_on_with_the_options_of_the_file(self, trained, tmp_path):
        options = {
            "task": "What is it about?",
            "class_names": {"refund": "money back"},
            "label_words": {"defect": ["broken", "cracked"]},
            "class_weight": "balanced",
            "n_estimators": 7,
            "cv": 3,
        }
        model = classifier(**options).fit(TEXTS, SETS)
        model.save(tmp_path / "m")
        loaded = load_model(tmp_path / "m", backend=CountingBackend())
        expected = options | {"label_words": {"defect": "broken cracked"}}
        assert {name: getattr(loaded, name) for name in options} == expected
        loaded.set_params(store=False, random_state=0).fit(TEXTS, SETS)
        assert loaded.predict_proba(NEW) == pytest.approx(model.predict_proba(NEW))
        assert trained.training_summary_["options"]["class_names"] is None

    def test_a_matrix_and_a_constant_label_come_back(self, tmp_path):
        constant = np.column_stack([Y, np.ones(len(Y), int)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = classifier().fit(TEXTS, constant)
        model.save(tmp_path / "m")
        loaded = read_model(tmp_path / "m")
        assert loaded.heads[3] is None
        found = loaded.predict(CountingBackend(), NEW)
        assert found.labels().tolist() == model.predict(NEW).tolist()

    def test_the_file_is_readable_json_of_the_format(self, trained, tmp_path):
        trained.save(tmp_path / "m")
        with zipfile.ZipFile(tmp_path / "m") as archive:
            described = json.loads(archive.read("model.json"))
        assert described["format_version"] == FORMAT_VERSION
        assert described["classes"]["values"] == LABELS
        assert [one["name"] for one in described["heads"]] == LABELS
        assert len(described["prompts"]) == len(trained.prompts_)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda d: d["heads"].pop(), "another number of models than labels"),
            (lambda d: d.update(heads=[None] * 3), "another number of models than labels, or none"),
            (lambda d: d.update(heads=[]), "no models of labels, or too many"),
            (lambda d: d["labels"].update(thresholds=[0.5, 0.5]), "another number of thresholds"),
            (lambda d: d["labels"].update(thresholds=[0.5, 0.5, 2.0]), "not between 0 and 1"),
            (lambda d: d["labels"].update(shares=[0.5, 0.5, 0.0]), "not between 0 and 1"),
            (lambda d: d["labels"].update(separator=""), "a separator of labels that is none"),
            (lambda d: d["labels"].update(indicator=1), "a separator of labels that is none"),
            (lambda d: d["prompts"].append("{text} more {mask}"), "a prompt that no label reads"),
            (lambda d: d["heads"][0]["prompts"][0].update(prompt=9), "reads an unknown prompt"),
            (lambda d: d["heads"][0]["prompts"][0].update(prompt=-1), "reads an unknown prompt"),
            (lambda d: d["heads"].__setitem__(0, None), "arrays of a label that has no model"),
            (lambda d: d["classes"].update(values=[]), "fewer classes than 1"),
            (lambda d: d.update(prompts=7), "its prompts are no templates"),
            (lambda d: d.update(training=[]), "no training summary"),
            (lambda d: d["heads"][1].pop("experts"), "damaged"),
        ],
        ids=range(16),
    )
    def test_a_file_that_does_not_fit_is_refused(self, trained, tmp_path, change, words):
        trained.save(tmp_path / "m")
        with zipfile.ZipFile(tmp_path / "m") as archive:
            described = json.loads(archive.read("model.json"))
            arrays = archive.read("arrays.npz")
        change(described)
        with zipfile.ZipFile(tmp_path / "m", "w") as archive:
            archive.writestr("model.json", json.dumps(described))
            archive.writestr("arrays.npz", arrays)
        with pytest.raises(ModelFileError, match=words):
            read_model(tmp_path / "m")

    def test_the_separator_is_kept(self, trained, tmp_path):
        write_model(tmp_path / "m", trained.model_.with_separator(" | "))
        found = read_model(tmp_path / "m").predict(CountingBackend(), NEW)
        joined = [" | ".join(labels) or "[]" for labels in trained.predict(NEW)]
        assert found.cells() == joined
        write_model(tmp_path / "m", trained.model_.with_separator(None))
        found = read_model(tmp_path / "m").predict(CountingBackend(), NEW)
        assert found.cells() == [list(labels) for labels in trained.predict(NEW)]


class TestExplaining:
    def test_votes_add_up_to_the_score_of_each_label(self, embedded):
        for text in NEW[:4]:
            explained = embedded.explain(text)
            (scores,) = embedded.decision_function([text])
            start = embedded.ensemble_.initial.reshape(-1, 2)
            for number, label in enumerate(LABELS):
                parts = [*explained["prompts"], *explained["experts"]]
                total = sum(part["votes"][label] for part in parts)
                assert start[number, 1] - start[number, 0] + total == pytest.approx(scores[number])
            assert explained["prediction"] == list(embedded.predict([text])[0])
            assert explained["probabilities"] == pytest.approx(
                dict(zip(LABELS, embedded.predict_proba([text])[0], strict=True))
            )

    def test_tokens_add_up_to_the_vote_of_their_learner(self, trained):
        explained = trained.explain(NEW[1])
        assert {one["label"] for one in explained["learners"]} == set(LABELS)
        for one in explained["learners"]:
            total = sum(token["adds"] for token in one["tokens"])
            assert total == pytest.approx(one["votes"][one["label"]])
            assert len({token["token"] for token in one["tokens"]}) == len(one["tokens"])

    def test_tokens_of_prompts_are_those_of_the_labels(self, trained):
        weights = trained.ensemble_.token_weights(0)
        assert weights.shape == (len(trained.ensemble_.readings[0].token_ids), 3)
        assert (weights != 0).any(axis=0).all()
