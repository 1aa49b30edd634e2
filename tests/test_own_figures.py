"""What a model tells of itself is what it does: held-out rows, promises, suggestions, reports."""

import numpy as np
import pytest

from blackbox import PromptBoostingClassifier
from blackbox.answers.texts import check_texts
from blackbox.library.folder import Library
from blackbox.model.predictions import NONE_OF_THESE
from blackbox.model.reliability import HeldOutRows, Promise
from blackbox.model.suggestion import suggest
from blackbox.report.content import collect_report_data, measure_model
from blackbox.report.render import render_card
from tests import test_library

PROMPTS = ["{text} It was {mask}", "{text}\nTopic: {mask}", "{text} This is about {mask}"]


def fitted(texts, labels, sample_weight=None, **options):
    given = {"prompts": PROMPTS, "label_words": None, "n_estimators": 30} | options
    return PromptBoostingClassifier(
        "deterministic", embeddings=None, random_state=0, store=False, **given
    ).fit(texts, labels, sample_weight)


def stars(n, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 5 + 1
    drawn = [
        " ".join(rng.choice([f"s{place}" for place in range(s - 1, s + 2)], 2)) for s in labels
    ]
    return [f"{words} n{number}x{seed}" for number, words in enumerate(drawn)], labels


def test_held_out_rows_have_what_the_models_of_a_library_say(tmp_path):
    texts, labels = test_library.texts_of(90, 1)
    test_library.classifier().fit(texts, labels).save(tmp_path / "topics.blackbox")
    Library.open(tmp_path / "library").add(tmp_path / "topics.blackbox")
    texts, labels = test_library.other_task(90, 20)
    model = test_library.classifier(library=tmp_path / "library", label_words=None)
    summary = model.fit(texts, labels).training_summary_
    assert summary["sources"]
    assert summary["held_out"]["log_loss"] == pytest.approx(summary["cv_log_loss"], abs=1e-3)


def test_false_alarms_are_a_share_of_texts_whatever_weights_classes_have():
    names = ["h1", "h2", *(f"e{number}" for number in range(8))]
    shares = [0.4, 0.4, *[0.025] * 8]

    def drawn(n, seed):
        rng = np.random.default_rng(seed)
        labels = rng.choice(names, n, p=shares)
        hard = [f"q{number}" for number in range(12)]
        words = [[f"{one}a"] * 3 if one[0] == "e" else rng.choice(hard, 3) for one in labels]
        return [f"{' '.join(some)} no{place}x{seed}" for place, some in enumerate(words)], labels

    texts, labels = drawn(300, 0)
    new, _ = drawn(400, 50)
    for weights in ("balanced", {"h1": 0.1, "h2": 0.1}):
        model = fitted(texts, labels, class_weight=weights, none_of_these="other", cv=3)
        assert len(set(model.model_.out_of_scope.known_weight.tolist())) == 1
        assert (model.predict(new) == "other").mean() < 0.1


def test_balanced_labels_are_compared_with_tf_idf_at_the_odds_of_the_texts():
    rng = np.random.default_rng(1)
    words = {
        "sport": ("match", "goal", "team", "player"),
        "money": ("bank", "loan", "market", "price"),
        "food": ("soup", "bread", "apple", "cheese"),
    }

    def word(label):
        return str(rng.choice(words[label]))

    texts, labels = [], []
    for number in range(300):
        given = [one for one in words if rng.random() < 0.05]
        said = [word(one if rng.random() < 0.8 else rng.choice(list(words))) for one in given]
        said += [word(rng.choice(list(words)))] if rng.random() < 0.5 else []
        texts.append(" ".join([*said, f"no{number}"]))
        labels.append(given)
    found = {
        weight: fitted(texts, labels, class_weight=weight).training_summary_["held_out_labels"]
        for weight in (None, "balanced")
    }
    # at balanced odds it is twice as much
    assert found["balanced"]["log_loss"] < 1.3 * found[None]["log_loss"]
    assert found["balanced"]["tfidf_log_loss"] == found[None]["tfidf_log_loss"]


def test_a_suggestion_and_a_mistake_have_the_probability_of_their_label():
    texts, labels = stars(150, 0)
    model = fitted(texts, labels, ordered=True)
    new, truth = stars(60, 1)
    truth = np.random.default_rng(0).permutation(truth)
    examples = check_texts(new)
    clients, _ = model._clients_for(new)
    probabilities = model.predict_proba(new)
    found = suggest(model.model_, clients.lm, examples, 60)
    own = probabilities[found.rows, np.searchsorted(model.classes_, found.labels)]
    assert found.probabilities == pytest.approx(own)
    measured = measure_model(
        model.model_, clients.lm, "new", examples, truth - 1, include_texts=True
    )
    for one in measured.mistakes:
        share = probabilities[new.index(one.text), int(one.prediction) - 1]
        assert one.confidence == pytest.approx(share)
    assert (probabilities.max(axis=1)[found.rows] > found.probabilities + 1e-6).any()
    card = render_card(collect_report_data(model.model_, "m.blackbox", measured))
    assert "this model predicts the median of ordered ones" in card


def test_texts_of_none_of_the_classes_have_no_probability_and_no_accuracy_by_round():
    texts, labels = stars(150, 0)
    model = fitted(texts, labels, none_of_these=0)
    new = [*stars(40, 1)[0], *(f"entirely another {number}" for number in range(20))]
    truth = np.array([*stars(40, 1)[1] - 1, *[NONE_OF_THESE] * 20])
    truth[:40] = (truth[:40] + 1) % 5  # all of them are mistakes
    clients, _ = model._clients_for(new)
    examples = check_texts(new)
    found = suggest(model.model_, clients.lm, examples, 60)
    assert (np.isnan(found.probabilities) == (found.labels == 0)).all()
    assert (found.labels == 0).any()
    measured = measure_model(model.model_, clients.lm, "new", examples, truth, include_texts=True)
    assert measured.by_round == []
    assert all((one.confidence is None) == (one.prediction == "0") for one in measured.mistakes)
    assert render_card(collect_report_data(model.model_, "m.blackbox", measured))


def test_a_row_whose_class_only_ties_is_wrong():
    labels = np.arange(100) % 2
    even = HeldOutRows.of(np.full((100, 2), 0.5), labels, np.ones(100), np.arange(100))
    with pytest.raises(ValueError, match="50"):
        even.promise(0.4)
    assert ((even.truth < even.confidence) == (labels == 1)).all()


def test_a_probability_that_is_withheld_looks_smaller_than_the_threshold():
    promise = Promise(0.1, 0.95004, 0.5, 0.05, 0.1, 100)
    (reason,) = promise.withheld(np.array([[0.95001, 0.04999]])).values()
    assert reason == "its probability 0.9500100 is below 0.9500400"


@pytest.mark.parametrize("weight", [1e160, 1e-300, 1e20, 1e308])
def test_weights_that_are_no_numbers_of_rows_are_an_error(weight):
    texts, labels = stars(30, 0)
    with pytest.raises(ValueError, match="scale them to a mean of 1"):
        fitted(texts, labels, np.r_[np.ones(29) if weight > 1 else np.full(29, weight), weight])


def test_weights_that_sum_to_one_row_are_said():
    texts, labels = stars(30, 0)
    with pytest.warns(UserWarning, match="weights of 30 rows sum to 1:"):
        fitted(texts, labels, np.full(30, 1 / 30))
