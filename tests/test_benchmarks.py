"""The whole path on real benchmark data, with floors well below what is measured."""

from __future__ import annotations

import numpy as np
import pytest

from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.boosting.splits import draw_shots
from blackbox.tables import read_examples

HAND_WRITTEN = {
    "trec": ["{text}\nThe answer is a {mask}", "{text}\nThis question asks for the {mask}"],
    "banking77": ["{text}\nTopic: {mask}", "{text}\nThe customer wants {mask}"],
    "rte": ["{text}\nQuestion: {text_pair} True or False?\nAnswer: {mask}"],
}


def draw(folder, name, shots, n_test, pair=False):
    """Few-shot training rows and some test rows."""
    column = "text_pair" if pair else None
    train = read_examples(folder / name / "train.csv", text_pair_column=column)
    test = read_examples(folder / name / "test.csv", text_pair_column=column)
    rows = draw_shots(train.labels, train.texts, shots, 13)
    picked = np.random.default_rng(0).permutation(len(test.texts))[:n_test]
    return (
        [train.texts[row] for row in rows],
        [train.labels[row] for row in rows],
        [test.texts[row] for row in picked],
        [test.labels[row] for row in picked],
    )


@pytest.mark.data
def test_seventy_seven_classes_train_and_predict(benchmark_data):
    texts, labels, new, _ = draw(benchmark_data, "banking77", 3, 20)
    for algorithm in ("logit", "samme"):
        classifier = PromptBoostingClassifier(
            "deterministic",
            prompts=PromptPool(HAND_WRITTEN["banking77"]),
            algorithm=algorithm,
            n_estimators=10,
            random_state=0,
        ).fit(texts, labels)
        assert len(classifier.classes_) == 77
        assert classifier.predict_proba(new).shape == (20, 77)


@pytest.mark.slow
@pytest.mark.lm
@pytest.mark.data
def test_seventy_seven_classes_are_told_apart_by_the_embedded_lm(benchmark_data, lm):
    texts, labels, new, truth = draw(benchmark_data, "banking77", 4, 100)
    classifier = PromptBoostingClassifier(
        lm, prompts=HAND_WRITTEN["banking77"], random_state=0
    ).fit(texts, labels)
    assert classifier.score(new, truth) > 0.2  # chance is 0.013


@pytest.mark.slow
@pytest.mark.lm
@pytest.mark.data
def test_question_types_are_learned_from_two_prompts(benchmark_data, lm):
    texts, labels, new, truth = draw(benchmark_data, "trec", 32, 100)
    classifier = PromptBoostingClassifier(lm, prompts=HAND_WRITTEN["trec"], random_state=0)
    assert classifier.fit(texts, labels).score(new, truth) > 0.6  # the largest class has 0.28


@pytest.mark.slow
@pytest.mark.lm
@pytest.mark.data
def test_text_pairs_go_the_whole_way(benchmark_data, lm, tmp_path):
    texts, labels, new, _ = draw(benchmark_data, "rte", 8, 16, pair=True)
    classifier = PromptBoostingClassifier(lm, prompts=HAND_WRITTEN["rte"], random_state=0)
    probabilities = classifier.fit(texts, labels).predict_proba(new)
    assert probabilities.shape == (16, 2)
    assert np.allclose(probabilities.sum(axis=1), 1)
