"""The methods that the classifier is compared with: worked by hand where a hand can."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import CountingBackend, text_of
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline

from backends.deterministic import DeterministicBackend
from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.answers.passes import Answers
from blackbox.errors import RowError
from blackbox.prompts.template import Prompt
from blackbox.protocol import NO_TOKEN, Limits

pytest.importorskip("yaml", reason="the evaluation needs the `eval` extra")
from eval.methods import METHODS, Setting, check_options, linear, make
from eval.methods.base import best_temperature
from eval.methods.label_words import (
    InContextDemonstrations,
    LabelWords,
    calibrate_by_batch,
    calibrate_contextually,
    word_scores,
)
from eval.methods.linear import JointRegression, LinearDiscriminant, ProductOfRegressions
from eval.methods.logit_variants import Variant, VariantClassifier
from eval.methods.neighbours import KnnPrompting, kl_divergences
from eval.methods.row_space import project_to_row_space
from eval.methods.single import BestWeakLearner, UniformAverage
from eval.methods.vector_neighbours import NeighbourReadout

TEXTS = [
    f"{word} {thing}"
    for thing in ("film", "book", "day", "song")
    for word in ("lovely", "great", "fine", "good", "dull", "bad", "poor", "sad")
]
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
    1: b" great",
    2: b"Great",
    3: b" terrible",
    4: b" terr",
    5: b" te",
    6: b" the",
    7: b"\xc3",
}


def test_a_word_has_the_probability_of_all_tokens_that_spell_it():
    given = answers([{1: 0.3, 2: 0.1, 3: 0.2, 4: 0.05, 5: 0.04, 6: 0.02, 7: 0.01}], SPELLED)
    scores = word_scores(given, ["great", "terrible"])
    # where a word occurs its beginning doesn't count: " terr" may go on otherwise
    assert np.exp(scores) == pytest.approx(np.array([[0.4, 0.2]]), rel=1e-5)


def test_the_longest_beginning_of_a_word_counts_where_the_word_occurs_nowhere():
    spelled = {1: b" ter", 2: b" terr", 3: b" Terr", 4: b" te", 5: b" great"}
    given = answers([{1: 0.4, 2: 0.2, 3: 0.1, 4: 0.05, 5: 0.15}], spelled)
    scores = word_scores(given, ["great", "terrible"])
    assert np.exp(scores) == pytest.approx(np.array([[0.15, 0.3]]), rel=1e-5)
    # in another row the word itself: then it is meant in all
    spelled[6] = b" terrible"
    given = answers([{1: 0.4, 2: 0.2, 5: 0.15}, {6: 0.5, 5: 0.15}], spelled)
    scores = word_scores(given, ["great", "terrible"])
    assert np.exp(scores[:, 1]) == pytest.approx([0.15, 0.5], rel=1e-5)


def test_a_word_of_two_letters_is_a_word():
    given = answers([{1: 0.6, 2: 0.3}], {1: b" no", 2: b" yes"})
    assert np.exp(word_scores(given, ["no", "yes"])) == pytest.approx(np.array([[0.6, 0.3]]))


def test_contextual_calibration_reads_the_same_tokens_of_texts_that_say_nothing():
    model = LabelWords(None, POOL, words={"a": "great", "b": "terrible"}, calibration="contextual")
    model.classes_ = np.array(["a", "b"])
    model.content_free_ = answers([{1: 0.5, 4: 0.4, 6: 0.1}], {1: b" great", 4: b" terr", 6: b" x"})
    new = answers([{1: 0.3, 3: 0.2, 6: 0.1}], {1: b" great", 3: b" terrible", 6: b" x"})
    # " terrible" occurs among the new: " terr" is not meant, and the row's least bounds the word
    expected = calibrate_contextually(np.log([[0.3, 0.2]]), np.log([[0.5, 0.1]]))
    assert model._scores(new) == pytest.approx(expected, rel=1e-5)


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
    found = np.exp(calibrate_contextually(np.log([[0.7, 0.3], [0.35, 0.35]]), content_free))
    assert found[0, 0] == pytest.approx(found[0, 1])
    assert found[1, 1] / found[1, 0] == pytest.approx(7 / 3)


def test_batch_calibration_by_hand():
    # the batch says (0.9, 0.1) and (0.7, 0.3), on average (0.8, 0.2)
    found = np.exp(calibrate_by_batch(np.log([[0.9, 0.1], [0.7, 0.3]])))
    assert found == pytest.approx(np.array([[0.9 / 0.8, 0.1 / 0.2], [0.7 / 0.8, 0.3 / 0.2]]))
    assert found.argmax(axis=1).tolist() == [0, 1]


def test_divergences_by_hand():
    test, anchors = np.log([[0.5, 0.5]]), np.log([[0.5, 0.5], [0.25, 0.75]])
    # 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75)
    expected = [[0.0, 0.5 * np.log(2) + 0.5 * np.log(2 / 3)]]
    assert kl_divergences(test, anchors) == pytest.approx(np.array(expected), abs=1e-12)
    assert kl_divergences(anchors[1:], test) != pytest.approx(kl_divergences(test, anchors[1:]))


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


def test_knn_prompting_decides_a_tie_among_the_tied_classes_alone():
    model = KnnPrompting(None, None, k=5)
    model.classes_ = np.array(["a", "b", "c"])
    shares = [0.52, 0.6, 0.64, 0.68, 0.72]  # from the nearest on; c is nearest, a and b are tied
    train = answers([{1: p, 2: 1 - p} for p in shares])
    model._learn(train, np.array([2, 1, 0, 0, 1]))
    votes = np.exp(model._scores(answers([{1: 0.5, 2: 0.5}])))[0]
    assert votes.argmax() == 1
    assert votes == pytest.approx([(2 + 1 / 3) / 6, (2 + 1 / 3) / 6, (1 + 1 / 3) / 6], abs=1e-5)


def test_knn_prompting_shares_out_what_an_answer_leaves_unsaid():
    model = KnnPrompting(None, None)
    model._learn(answers([{1: 0.5, 2: 0.2, 3: 0.1}, {1: 0.5, 4: 0.3, 5: 0.2}]), np.array([0, 1]))
    # tokens 1 to 5 are known; 0.2 is left for two that miss and for all others
    first = model._distributions(answers([{1: 0.5, 2: 0.2, 3: 0.1}]))[0]
    third = 0.2 / 3
    assert np.exp(first) == pytest.approx(
        np.array([[0.5, 0.2, 0.1, third, third, third]]), rel=1e-5
    )
    # none is likelier than the last reported: 0.05 each, and the others have the rest
    capped = model._distributions(answers([{1: 0.5, 2: 0.05}]))[0]
    assert np.exp(capped) == pytest.approx(np.array([[0.5, 0.05, 0.05, 0.05, 0.05, 0.3]]), rel=1e-5)
    # a token that training didn't see is one of the others
    strange = model._distributions(answers([{1: 0.6, 9: 0.3, 2: 0.05}]))[0]
    assert np.exp(strange) == pytest.approx(
        np.array([[0.6, 0.05, 0.0125, 0.0125, 0.0125, 0.3125]]), rel=1e-5
    )


def test_the_best_weak_learner_asks_one_pass_a_new_text_and_says_the_same():
    backend = CountingBackend()
    model = BestWeakLearner(backend, POOL, top_k=100).fit(TEXTS, LABELS)
    assert len(backend.asked) == len(POOL) * len(TEXTS)
    backend.calls.clear()
    given = model.predict_proba(NEW)
    assert [request.text for request in backend.asked] == [
        POOL[model._best].render(text).text for text in NEW
    ]
    assert model.score(TEXTS, LABELS) == pytest.approx(1 - model._tuples[0][1])
    assert given.max(axis=1) == pytest.approx(given.max())


@pytest.mark.parametrize("kind", [JointRegression, ProductOfRegressions, LinearDiscriminant])
def test_held_out_rows_choose_no_tokens_and_no_scales(kind, monkeypatch):
    learned = []

    class Watched(linear.TokenReader):
        def __init__(self, answers):
            learned.append(answers)
            super().__init__(answers)

    monkeypatch.setattr(linear, "TokenReader", Watched)
    model = kind(DeterministicBackend(), POOL, top_k=100).fit(TEXTS, LABELS)
    whole = model._answers(TEXTS)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    codes = (LABELS == "positive").astype(int)
    everything = [np.arange(len(codes)), *(train for train, _ in folds.split(codes, codes))]
    assert len(learned) == len(everything)
    for given, rows in zip(learned, everything, strict=True):
        assert np.array_equal(given.token_ids, whole.token_ids[:, rows])


def test_the_majority_is_that_of_the_whole_split_however_rows_are_drawn():
    shares = {"negative": 0.3, "positive": 0.7}
    model = make("majority", Setting(None, None, {}, "", 0, class_shares=shares))
    model.fit(TEXTS, LABELS)  # as many of each
    assert model.predict(NEW).tolist() == ["positive"] * 4
    assert model.predict_proba(NEW) == pytest.approx(np.tile([0.3, 0.7], (4, 1)))


def test_the_best_temperature_undoes_a_factor():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((4000, 3))
    given = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    codes = np.array([rng.choice(3, p=row) for row in given])
    temperature, _ = best_temperature(5 * scores, codes)
    assert temperature == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize(
    "kind",
    [
        KnnPrompting,
        BestWeakLearner,
        UniformAverage,
        JointRegression,
        ProductOfRegressions,
        LinearDiscriminant,
    ],
)
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


@pytest.mark.parametrize("made", [np.asarray, csr_matrix])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_regression_in_the_space_of_its_rows_is_the_plain_one(n_classes, made):
    rng = np.random.default_rng(0)
    matrix, other = (rng.standard_normal((rows, 40)) for rows in (12, 5))
    matrix[6] = matrix[0]  # a row of the same class twice: they span a space of eleven
    codes = np.arange(12) % n_classes
    rows, write = project_to_row_space(made(matrix))
    assert rows.shape[1] <= 12
    for strength in (0.01, 1.0):
        model = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000)
        found = model.fit(rows, codes).predict_proba(write(made(other)))
        assert found == pytest.approx(model.fit(matrix, codes).predict_proba(other), abs=1e-5)


@pytest.mark.parametrize("rows", [np.eye(4)[:, :3], csr_matrix((2000, 5000))])
def test_rows_of_few_columns_and_many_rows_are_left_as_they_are(rows):
    found, write = project_to_row_space(rows)
    assert found is rows
    assert write(rows) is rows


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
    model = InContextDemonstrations(backend, POOL, words=WORDS, n_per_class=2, random_state=1)
    model.fit(TEXTS, LABELS).predict_proba(["odd"])
    (request,) = backend.asked
    *shown, last = request.text.split("\n\n")
    assert last == "odd It was"
    assert model.n_demonstrations_ == len(shown) == 4
    truth = dict(zip(TEXTS, LABELS, strict=True))
    for line in shown:
        text, word = line.split(" It was ")
        assert WORDS[truth[text]] == word
    assert {line.rsplit(" ", 1)[1] for line in shown} == {"great", "terrible"}
    other = InContextDemonstrations(backend, POOL, words=WORDS, n_per_class=2, random_state=2)
    assert other.fit(TEXTS, LABELS).demonstrations_ != model.demonstrations_


def test_demonstrations_are_fewer_where_the_context_is_short():
    backend = CountingBackend(context_length=40)
    model = InContextDemonstrations(backend, POOL, words=WORDS, n_per_class=8).fit(TEXTS, LABELS)
    assert 0 < model.n_demonstrations_ < 16
    assert model.n_demonstrations_ % 2 == 0
    assert model.predict_proba(NEW).shape == (4, 2)


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.needs in ("pool", "lm")])
def test_every_method_over_an_lm_is_made_by_its_name(name):
    setting = Setting(DeterministicBackend(), POOL, WORDS, POOL[0].template, seed=3, top_k=50)
    if name == "ours, generated pool":
        from blackbox.generation import PromptGenerator

        setting = Setting(
            DeterministicBackend(),
            None,
            WORDS,
            POOL[0].template,
            seed=3,
            top_k=50,
            options={"prompts": PromptGenerator(budget=800), "n_prompts": 2},
        )
    model = make(name, setting).fit(TEXTS, LABELS)
    assert model.predict_proba(NEW).sum(axis=1) == pytest.approx(1)
    assert model.classes_.tolist() == ["negative", "positive"]


def test_ours_written_out_is_ours():
    settings = {"top_k": 100, "random_state": 3}
    ours = PromptBoostingClassifier(
        DeterministicBackend(), prompts=POOL, store=False, cv=None, **settings
    )
    expected = np.log(ours.fit(TEXTS, LABELS).predict_proba(NEW))
    model = VariantClassifier(DeterministicBackend(), POOL, **settings).fit(TEXTS, LABELS)
    found = np.log(model.predict_proba(NEW))
    # but for the temperature
    factor = (found[:, 1] - found[:, 0]) / (expected[:, 1] - expected[:, 0])
    assert factor == pytest.approx(np.full(4, factor[0]), rel=1e-3)
    plain = VariantClassifier(
        DeterministicBackend(), POOL, variant=Variant(offset=None), **settings
    )
    plain.fit(TEXTS, LABELS)
    assert np.abs(np.log(plain.predict_proba(NEW)) - found).max() > 0.01


def test_a_missing_token_may_have_the_rows_own_least():
    given = answers([{1: 0.5, 2: 0.25}, {1: 0.5, 3: 0.1, 4: 0.05}])
    ids, values = given.token_ids[0], given.log_probs[0]
    tokens = np.array([1, 2, 3], np.int32)
    found = Variant(row_floor=True)._matrix(ids, values, tokens, floor=-9.0)
    expected = [
        [np.log(0.5), np.log(0.25), np.log(0.25) - 0.5],
        [np.log(0.5), np.log(0.05) - 0.5, np.log(0.1)],
    ]
    assert found == pytest.approx(np.array(expected), rel=1e-5)
    assert Variant()._matrix(ids, values, tokens, floor=-9.0)[0, 2] == -9


def test_the_defaults_can_be_judged_on_pairs_and_on_fewer_rows_of_many_classes(
    tmp_path, monkeypatch
):
    from click.testing import CliRunner

    from eval.studies import common, defaults

    folder = tmp_path / "rte"
    folder.mkdir()
    rows = [
        f"{word} {n},so it is,{label}"
        for n in range(2)
        for word, label in zip(TEXTS, LABELS, strict=True)
    ]
    (folder / "train.csv").write_text("text,text_pair,label\n" + "\n".join(rows) + "\n")
    (folder / "test.csv").write_text("text,text_pair,label\nfine,so,positive\n")
    monkeypatch.setattr(common.backends, "load", lambda name, **_: DeterministicBackend())
    monkeypatch.setitem(defaults.SHOTS, "rte", 8)
    found = CliRunner().invoke(
        defaults.main,
        [
            "--data-dir",
            str(tmp_path),
            "--out",
            str(tmp_path),
            "--data",
            "rte",
            "--shots",
            "16",
            "--shots",
            "4",
            "--variant",
            "no clipping",
            "--variant",
            "a missing token has the row's least",
            "--n-prompts",
            "3",
        ],
        catch_exceptions=False,
    )
    before, few = found.output.split("4 labels per class")
    assert "|" not in before  # no data set has 16
    assert "| variant | rte | mean |" in few
    for variant in ("no clipping", "a missing token has the row's least"):
        assert few.count(f"\n| {variant} |") == 1


def test_the_defaults_can_be_judged_on_short_and_on_drawn_answers(tmp_path):
    from eval.studies import defaults

    folder = tmp_path / "sst2"
    folder.mkdir()
    rows = [f"{word},{label}" for word, label in zip(TEXTS, LABELS, strict=True)]
    for name in ("train", "test"):
        (folder / f"{name}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")

    def answers_of(**cut):
        given = {"seeds": [13], "prompts": POOL} | cut
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(defaults.SHOTS, "sst2", 4)
            (found,) = defaults.answer_data(tmp_path, DeterministicBackend(), ["sst2"], **given)
        return found.answers

    whole, short, drawn = answers_of(), answers_of(top_k=5), answers_of(draws=8)
    assert short.token_ids.shape == (*whole.token_ids.shape[:2], 5)
    assert np.array_equal(short.log_probs, whole.log_probs[..., :5])
    # eight tokens at most, shares of eighths, of those that were reported
    shares = np.exp(drawn.log_probs.astype(float))
    assert drawn.token_ids.shape[-1] == 8
    assert shares.sum(axis=-1) == pytest.approx(1)
    assert 8 * shares == pytest.approx(np.round(8 * shares), abs=1e-5)
    known = drawn.token_ids != NO_TOKEN
    assert np.array_equal(known, shares > 0)
    for ids, kept, reported in zip(drawn.token_ids[0], known[0], whole.token_ids[0], strict=True):
        assert set(ids[kept]) <= set(reported)


def test_the_defaults_are_judged_on_as_many_prompts_as_asked_for_drawn_with_the_seed():
    from blackbox.answers.passes import next_tokens
    from blackbox.answers.texts import check_texts
    from eval.studies.defaults import AnsweredData

    pool = PromptPool([f"{{text}} {word}: {{mask}}" for word in "abcde"])
    answers = next_tokens(DeterministicBackend(), pool, check_texts(TEXTS), 50)
    bench = AnsweredData("some", answers, np.zeros(len(TEXTS), np.intp), {}, ["all"])
    drawn = [bench.answers_of_seed(2, seed).token_ids for seed in (13, 13, 21, 42, 87, 100)]
    assert all(len(ids) == 2 for ids in drawn)
    assert np.array_equal(drawn[0], drawn[1])
    assert any(not np.array_equal(drawn[0], other) for other in drawn[2:])
    assert bench.answers_of_seed(5, 13) is answers


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


def test_tf_idf_has_the_strength_of_the_least_held_out_loss():
    model = make("TF-IDF", Setting(None, None, {}, "", 3)).fit(TEXTS, LABELS)
    steps = make_pipeline(*model._steps(), LogisticRegression(max_iter=2000))
    search = GridSearchCV(
        steps,
        {"logisticregression__C": (0.01, 0.1, 1.0, 10.0, 100.0)},
        scoring="neg_log_loss",
        cv=StratifiedKFold(5, shuffle=True, random_state=3),
    ).fit(TEXTS, LABELS)
    assert search.best_params_["logisticregression__C"] == model.model_[-1].C
    assert model.predict_proba(NEW) == pytest.approx(search.predict_proba(NEW))


def test_a_row_that_the_lm_refuses_ends_a_measurement():
    from fakes import RefusingBackend

    model = JointRegression(RefusingBackend("dull", "film"), POOL, top_k=50)
    with pytest.raises(RowError, match="row 4 got no answer: content filter"):
        model.fit(TEXTS, LABELS)


def test_limits_are_what_methods_keep_to():
    limits = Limits(20, 0, 4096, deterministic=True)
    backend = CountingBackend()
    backend.limits = limits
    model = JointRegression(backend, POOL, top_k=500).fit(TEXTS, LABELS)
    assert model._answers(NEW).token_ids.shape == (2, 4, 20)


TOPICS = [
    "the match was won by a late goal",
    "the bank raised its interest rate",
    "a striker scored twice",
    "shares fell on the stock market",
] * 4
SPORT, MONEY = "the goalkeeper saved it", "a loan of the bank"


@pytest.mark.lm
def test_sentence_embeddings_tell_topics_apart(embeddings_model):
    labels = np.array(["sport", "money"] * 8)
    model = make("sentence embeddings", Setting(None, None, {}, "", 0)).fit(TOPICS, labels)
    assert model.predict([SPORT, MONEY]).tolist() == ["sport", "money"]
    pairs = [(text, text) for text in TOPICS]
    assert make("sentence embeddings", Setting(None, None, {}, "", 0)).fit(pairs, labels)


@pytest.fixture(scope="module")
def embeddings_model():
    pytest.importorskip("onnxruntime", reason="the embedded embeddings need the `local` extra")
    import backends
    from blackbox.errors import ModelNotFoundError

    try:
        return backends.load_embeddings("onnx")
    except ModelNotFoundError as error:
        pytest.skip(f"the embedded embeddings can't be fetched: {error}")


def test_vectors_are_made_once_and_their_time_is_told(tmp_path, monkeypatch):
    from eval.methods import embeddings

    asked = []

    def make_vectors(texts):
        asked.append(texts)
        return np.array([[len(text), 1.0] for text in texts], np.float32)

    ticks = iter(range(0, 1000, 2))  # each call takes two seconds
    monkeypatch.setattr(embeddings.time, "perf_counter", lambda: next(ticks))
    path = tmp_path / "vectors.sqlite"
    first = embeddings.VectorCache(path)
    assert first.of("m", ["a", "bb", "a"], make_vectors).tolist() == [[1, 1], [2, 1], [1, 1]]
    assert first.take_seconds_saved() == 0
    again = embeddings.VectorCache(path)
    found = again.of("m", ["bb", "ccc", "a"], make_vectors)
    assert found.tolist() == [[2, 1], [3, 1], [1, 1]]
    assert again.take_seconds_saved() == 2  # two texts of one second each
    assert again.take_seconds_saved() == 0
    assert asked == [["a", "bb"], ["ccc"]]
    again.of("other", ["a"], make_vectors)  # another model's are others
    embeddings.VectorCache(None).of("m", ["a"], make_vectors)
    assert asked[2:] == [["a"], ["a"]]


def test_the_programs_own_embeddings_are_cached_by_their_identity(tmp_path, monkeypatch):
    import backends
    from eval.methods.embeddings import CachedEmbeddings, VectorCache

    monkeypatch.setattr(backends, "load_embeddings", lambda name: DeterministicBackend())
    cache = VectorCache(tmp_path / "vectors.sqlite")
    made = CachedEmbeddings(cache)
    assert made.identity == DeterministicBackend().identity
    texts = ["a film", "a book", "a film"]
    expected = DeterministicBackend().embed(texts).vectors
    assert made.embed(texts).vectors == pytest.approx(expected, abs=1e-6)
    assert cache.take_seconds_saved() == 0
    assert CachedEmbeddings(cache).embed(texts).vectors == pytest.approx(expected, abs=1e-6)
    assert cache.take_seconds_saved() > 0


def test_retrieved_demonstrations_are_the_nearest_rows_and_the_nearest_is_last(monkeypatch):
    import backends

    monkeypatch.setattr(backends, "load_embeddings", lambda name: DeterministicBackend())
    backend = CountingBackend()
    setting = Setting(backend, None, WORDS, POOL[0].template, 0, options={"n_shown": 3})
    model = make("demonstrations, retrieved", setting).fit(TEXTS, LABELS)
    texts = [*TEXTS[:2], "a lovely day"]
    assert model.predict_proba(texts).sum(axis=1) == pytest.approx(1)
    vectors = DeterministicBackend().embed(TEXTS).vectors
    for text, request in zip(texts, backend.asked[-3:], strict=True):
        *shown, last = text_of(request).split("\n\n")
        near = np.argsort(vectors @ DeterministicBackend().embed([text]).vectors[0], kind="stable")
        words = [f"{TEXTS[row]} It was {WORDS[LABELS[row]]}" for row in near[-3:]]
        assert shown == words
        assert last == f"{text} It was"


def test_names_without_labels_are_those_of_the_words():
    model = LabelWords(DeterministicBackend(), POOL, words=WORDS, calibration="batch")
    assert model.fit(TEXTS).classes_.tolist() == ["negative", "positive"]
    assert model.predict_proba(NEW).shape == (4, 2)


def test_the_program_starts_without_labels():
    for name in ("ours", "ours, own pool"):
        setting = Setting(
            DeterministicBackend(),
            POOL if name == "ours" else None,
            WORDS,
            "",
            3,
            class_shares={"positive": 0.5, "negative": 0.5},
            options={"embeddings": DeterministicBackend()},  # the stand-in spells no class name
        )
        assert METHODS[name].works_unlabelled
        assert make(name, setting).fit(TEXTS, None).predict_proba(NEW).shape == (4, 2)


@pytest.mark.transformers
def test_hidden_states_are_the_means_over_a_texts_tokens(tiny_folder, tmp_path):
    import torch
    from transformers import AutoModel, AutoTokenizer

    from eval.methods.embeddings import VectorCache

    setting = Setting(
        None, None, {}, "", 0, model=str(tiny_folder), vectors=VectorCache(tmp_path / "v")
    )
    model = make("hidden states", setting).fit(TEXTS, LABELS)
    lm, tokenizer = (kind.from_pretrained(tiny_folder) for kind in (AutoModel, AutoTokenizer))
    with torch.inference_mode():
        for text, vector in zip(NEW, model._inputs(NEW), strict=True):
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            expected = lm(input_ids=ids).last_hidden_state[0].mean(dim=0)
            assert vector == pytest.approx(expected.numpy(), abs=1e-4)
    assert (model.predict(TEXTS) == LABELS).mean() > 0.8


@pytest.mark.transformers
@pytest.mark.filterwarnings("ignore")  # of packages that warn of each other
def test_setfit_tells_topics_apart():
    pytest.importorskip("setfit", reason="the `yardsticks` extra")
    labels = np.array(["sport", "money"] * 8)
    setting = Setting(None, None, {}, "", 0, options={"n_iterations": 1})
    model = make("SetFit", setting).fit(TOPICS, labels)
    assert model.predict([SPORT, MONEY]).tolist() == ["sport", "money"]
    assert model.predict_proba([SPORT]).sum() == pytest.approx(1)


@pytest.mark.transformers
@pytest.mark.filterwarnings("ignore")  # of packages that warn of each other
@pytest.mark.parametrize("name", ["skorch, zero-shot", "skorch, few-shot"])
def test_the_classifiers_of_skorch_read_label_words(name, tiny_folder):
    pytest.importorskip("skorch", reason="the `yardsticks` extra")
    setting = Setting(None, None, WORDS, "", 0, model=str(tiny_folder))
    model = make(name, setting).fit(TEXTS, LABELS)
    assert model.classes_.tolist() == ["negative", "positive"]
    assert set(model.classifier_.classes_) == {"terrible", "great"}
    found = model.predict_proba(NEW[:2])
    assert found.sum(axis=1) == pytest.approx(1)
    said = model.classifier_.predict_proba(NEW[:2])
    order = [model.classifier_.classes_.tolist().index(WORDS[label]) for label in model.classes_]
    assert found == pytest.approx(said[:, order])


def test_a_missing_package_is_one_line(monkeypatch):
    import sys

    from blackbox.errors import MissingDependencyError

    for package, name in (("setfit", "SetFit"), ("skorch.llm", "skorch, zero-shot")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingDependencyError, match=r"'promptboosting\[yardsticks\]'"):
            make(name, Setting(None, None, WORDS, "", 0)).fit(TEXTS, LABELS)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """Llama's architecture with 30,000 random weights, as a folder."""
    pytest.importorskip("peft", reason="the `yardsticks` extra")
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXTS * 5, vocab_size=400, special_tokens=["<end>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<end>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other at this size
    yield folder
    torch.set_num_threads(threads)


TUNING_METHODS = (
    "full",
    "lora",
    "ia3",
    "prompt",
    "prefix",
    "adapters",
    "compacter",
    "mix-and-match",
    "ladder",
)


@pytest.mark.transformers
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft runs into names that go
@pytest.mark.parametrize("method", TUNING_METHODS)
def test_each_way_of_tuning_learns_and_trains_what_it_says(method, tiny_folder):
    from eval.methods.gradients import FineTuned

    model = FineTuned(
        model=str(tiny_folder), method=method, epochs=30, batch_size=16, learning_rate=0.03
    )
    model.fit(TEXTS, LABELS)
    assert model.predict_proba(NEW).sum(axis=1) == pytest.approx(1)
    assert (model.predict(TEXTS) == LABELS).mean() > 0.8
    head, tokens = 2 * 32, len(model._tokenizer._tokenizer)
    layer = {  # q and o, k and v in rank 8; k, v and the feed-forward block; down and up
        "lora": 8 * (2 * (32 + 32) + 2 * (32 + 16)),
        "ia3": 16 + 16 + 64,
        "adapters": 2 * 32 * 32 + 2 * 32,
        "prefix": 20 * 2 * 16,  # keys and values
        "mix-and-match": 20 * 2 * 16 + 2 * 32 * 64 + 64 + 32,
        "compacter": 2 * (4 * (8 + 8) + 32),  # vectors of rank 1, and a bias; the rest is shared
    }
    whole = sum(weight.numel() for weight in model._lm.parameters())
    trained = {"full": whole, "prompt": 20 * 32} | {w: 2 * n for w, n in layer.items()}
    trained["compacter"] += 4 * 4 * 4
    named = model._lm.named_parameters()
    trained["ladder"] = sum(w.numel() for name, w in named if not name.startswith("lm."))
    assert model.n_trained_ == trained[method] + head
    assert whole > 32 * tokens


@pytest.mark.transformers
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft runs into names that go
@pytest.mark.parametrize("method", TUNING_METHODS)
def test_a_text_gets_the_same_alone_and_beside_longer_ones(method, tiny_folder):
    from eval.methods.gradients import FineTuned

    model = FineTuned(model=str(tiny_folder), method=method, epochs=1, dtype="float32")
    model.fit(TEXTS, LABELS)
    texts = ["bad", "a great and lovely film and a good song", "a sad day"]
    together = model.predict_proba(texts)
    alone = np.concatenate([model.predict_proba([text]) for text in texts])
    assert together == pytest.approx(alone, abs=1e-5)
    # the last token of each text is what is read
    film, song = model.predict_proba(["bad film", "bad song"])
    assert np.abs(film - song).max() > 1e-4


@pytest.mark.transformers
def test_a_tuned_lm_reads_texts_in_a_prompt_behind_a_document_start(tiny_folder):
    from eval.methods.gradients import FineTuned

    def read(texts, **options):
        model = FineTuned(model=str(tiny_folder), epochs=1, max_length=24, **options)
        model.fit(texts, LABELS[: len(texts)])
        return [model._tokenizer._tokenizer.decode(ids) for ids in model._encode(texts)]

    assert read(["a film", "a song"]) == ["<end>a film", "<end>a song"]
    assert read([("a film", "a song"), ("a day", "a meal")])[0] == "<end>a film\na song"
    prompt = "{text} It was {mask}"
    short, long = read(["a film", "a bad film " * 30], prompt=prompt)
    assert short == "<end>a film It was"
    # the text is cut, never what follows it
    assert long.startswith("<end>a bad film a bad film")
    assert long.endswith(" It was")


@pytest.mark.transformers
def test_tuning_computes_in_bfloat16_where_the_processor_does_and_keeps_float32(
    tiny_folder, monkeypatch
):
    import torch

    from eval.methods.gradients import FineTuned

    for fast, dtype, expected in (
        (True, "auto", torch.bfloat16),
        (False, "auto", torch.float32),
        (True, "float32", torch.float32),
    ):
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda fast=fast: fast)
        model = FineTuned(model=str(tiny_folder), epochs=1, dtype=dtype).fit(TEXTS, LABELS)
        computed = set()
        model._lm.layers[0].mlp.down_proj.register_forward_hook(
            lambda module, given, found, seen=computed: seen.add(found.dtype)
        )
        model.predict_proba(NEW)
        assert computed == {expected}
        assert {weight.dtype for weight in model._lm.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match="Got 'float16'"):
        FineTuned(model=str(tiny_folder), dtype="float16").fit(TEXTS, LABELS)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("ours", {"n_estimator": 3}, "n_estimator"),
        ("ours", {"learning_rate": -1}, "learning_rate"),
        ("ours", {"first_prompts": 0}, "first_prompts must be a positive number"),
        ("kNN prompting", {"k": 0}, "'k' parameter"),
        ("demonstrations", {"n_per_class": "many"}, "n_per_class"),
        ("LoRA", {"learning_rate": -1}, "learning_rate"),
        ("full fine-tuning", {"dtype": "float16"}, "dtype"),
    ],
)
def test_options_are_checked_before_anything_is_asked(name, options, said):
    with pytest.raises((TypeError, ValueError), match=said):
        check_options(name, options)
    check_options(name, {})


def test_neighbours_over_vectors_are_scored_by_the_mean_of_kernels():
    axes = np.eye(2, dtype=np.float32)
    readout = NeighbourReadout.fit(axes, np.array([0, 1]), np.ones(2), 2)
    # a cosine of 1 to one row and of 0 to the other, over a width of 0.1
    assert readout.scores(axes) == pytest.approx(np.array([[5, -5], [-5, 5]]))
    assert readout.scaled(2).scores(axes[:1]) == pytest.approx(np.array([[10, -10]]))
