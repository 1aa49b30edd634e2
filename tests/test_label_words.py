"""Names of classes as a verbalizer: which tokens spell them, and what they are trusted with."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from click.testing import CliRunner

from blackbox import PromptBoostingClassifier, load_model
from blackbox.answers import features
from blackbox.answers.passes import Answers
from blackbox.boosting import held_out, logit, training
from blackbox.boosting.algorithms import ALGORITHMS
from blackbox.boosting.calibration import NAME_PRIOR, SCORE_PRIOR, calibrate
from blackbox.boosting.label_words import name_learner, name_prior, spelled, words_of
from blackbox.cli import main
from blackbox.experts.base import ExpertScores
from blackbox.explain import describe_learners
from blackbox.fitting.options import FitOptions

BYTES = {
    1: b" Sports",
    2: b"sport",
    3: b"SPORTS",
    4: b" bus",
    5: b" busi",
    6: b" world",
    7: b"\xc3",
    8: b" not",
    9: b"ent",
    10: b" ",
}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Sports", ["sports"]),
        ("card_arrival", ["card", "arrival"]),
        ("cardArrival2", ["card", "arrival"]),
        ("not entailment, not", ["not", "entailment"]),
        ("1", []),
        ("A", []),
        ("好", ["好"]),
        ("Müll-Abfuhr", ["müll", "abfuhr"]),
        ("Mu\u0308ll", ["müll"]),
        ("हिन्दी खबर", ["हिन्दी", "खबर"]),
    ],
)
def test_a_name_is_taken_apart_into_words(name, words):
    assert words_of(name) == words


def test_tokens_spell_words_whatever_their_case_and_spaces_or_begin_them():
    found = spelled(BYTES, ["sports", "business", "world", "entity", "of"])
    assert found == {"sports": [1, 3], "business": [5], "world": [6], "entity": [9]}


def test_a_beginning_that_two_words_share_stands_for_none():
    assert spelled(BYTES, ["business", "busily"]) == {}
    # of two words one may be the beginning of the other
    assert spelled({1: b" top"}, ["top", "topping"]) == {"top": [1]}


def test_thousands_of_words_are_looked_up_at_once():
    words = [f"word{chr(97 + n % 26)}{n}" for n in range(20_000)]
    found = spelled({n: word.encode() for n, word in enumerate(words[:50])}, words)
    assert list(found) == words[:50]


def test_a_class_has_a_bounded_number_of_tokens():
    ids = np.arange(200, dtype=np.int32)
    names = [f"x{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(200)]
    learner = name_learner(
        0, ids, {n: name.encode() for n, name in enumerate(names)}, [names, ["xaa"]]
    )
    assert learner.columns.shape == (2, 64)
    assert learner.token_weights.sum(axis=1) == pytest.approx([1, 1])


def test_words_of_a_name_weigh_the_same_and_so_do_the_tokens_of_a_word():
    ids = np.array([1, 3, 6, 8, 9], np.int32)
    learner = name_learner(4, ids, BYTES, [["sports", "world"], ["not", "nothing"], ["gone"]])
    assert learner.prompt == 4
    assert learner.columns[0].tolist() == [0, 1, 2]
    assert learner.token_weights[0] == pytest.approx([0.25, 0.25, 0.5])
    assert learner.columns[1, 0] == 3
    assert learner.token_weights[1] == pytest.approx([1, 0, 0])
    assert not learner.token_weights[2].any()


@pytest.mark.parametrize("words", [[], [["gone"], ["away"]], [[], []]])
def test_names_that_no_token_spells_make_no_learner(words):
    assert name_learner(0, np.array([1, 6], np.int32), BYTES, words) is None


def as_names(votes):
    return ExpertScores("names", votes, *NAME_PRIOR)


def test_without_anything_to_learn_names_keep_their_usual_weight():
    # two rows on which votes say nothing: the penalty decides alone
    found = calibrate(
        np.zeros((2, 2)), np.array([0, 1]), np.ones(2), experts=[as_names(np.zeros((2, 2)))]
    )
    assert found.weights == pytest.approx((0.4,))
    assert found.loss == pytest.approx(np.log(2))


def test_names_weigh_more_where_they_are_right_and_nothing_where_they_are_wrong():
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    scores = rng.normal(size=(400, 2))
    right = np.eye(2)[y] * 2 - 1 + 0.5 * rng.normal(size=(400, 2))
    weights = [
        calibrate(scores, y, np.ones(400), experts=[as_names(votes)]).weights[0]
        for votes in (right, rng.normal(size=(400, 2)), -right)
    ]
    assert weights[0] > 0.8
    assert weights[1] < 0.3
    assert weights[2] == 0


def test_the_weight_is_where_the_loss_and_its_penalty_are_least():
    rng = np.random.default_rng(1)
    y = np.arange(60) % 3
    scores = 4 * (np.eye(3)[y] + rng.normal(size=(60, 3)))
    votes = np.eye(3)[y] + rng.normal(size=(60, 3))
    judged = rng.uniform(0.5, 2, 60)
    found = calibrate(scores, y, judged, experts=[as_names(votes)])
    (weight,) = found.weights

    def penalised(temperature, weight):
        mixed = scores / temperature + weight * votes
        losses = np.log(np.exp(mixed).sum(axis=1)) - mixed[np.arange(60), y]
        penalty = 2.5 * (scores.std() / temperature - 0.5) ** 2 + 5 * (weight - 0.4) ** 2
        return losses @ judged + penalty

    least = penalised(found.temperature, weight)
    for factor in (0.97, 1.03):
        assert penalised(found.temperature * factor, weight) > least
        assert penalised(found.temperature, weight * factor) > least


TOKENS = {0: b" delivery", 1: b" Refund", **{n: f" w{n}".encode() for n in range(2, 40)}}


def answers(n_rows, seed, strength):
    """Two prompts; the names of two classes, and noise."""
    rng = np.random.default_rng(seed)
    y = np.arange(n_rows) % 2
    values = rng.normal(-6, 1, (2, n_rows, 40)).astype(np.float32)
    values[:, np.arange(n_rows), y] += strength
    ids = np.tile(np.arange(40, dtype=np.int32), (2, n_rows, 1))
    order = np.argsort(-values, axis=2)
    return Answers(
        np.take_along_axis(ids, order, 2), np.take_along_axis(values, order, 2), TOKENS
    ), y


def boosted(words, n_rows=8, cv=4, rounds=50):
    train, y = answers(n_rows, 0, 1.5)
    plan = training.TrainingOptions(ALGORITHMS["logit"], 2, rounds, 1.0, 8, cv, 0.5, 0.1, words)
    return training.boost(train, y, np.ones(n_rows), plan, np.random.default_rng(0))


def accuracy(result):
    test, y = answers(600, 1, 1.5)
    matrices = [
        np.take_along_axis(values, np.argsort(ids, axis=1), 1)[:, reading.token_ids]
        for ids, values, reading in zip(
            test.token_ids[result.prompts],
            test.log_probs[result.prompts],
            result.ensemble.readings,
            strict=True,
        )
    ]
    return float(((result.ensemble.decision(matrices) > 0) == y).mean())


def test_names_help_where_labels_are_few():
    with_names, without = (accuracy(boosted(words)) for words in ([["delivery"], ["refund"]], []))
    assert with_names > without + 0.05


def test_the_names_are_the_first_learners_and_have_their_weight_from_the_folds():
    result = boosted([["delivery"], ["refund"]])
    assert result.summary["n_names"] == 2
    assert result.summary["name_weight"] > 0
    assert len(result.ensemble.learners) == result.summary["n_rounds"] + 2
    for learner in result.ensemble.learners[:2]:
        ids = result.ensemble.readings[learner.prompt].token_ids
        assert ids[learner.columns[:, 0]].tolist() == [0, 1]
        assert learner.token_weights[:, 0].tolist() == [1, 1]


@pytest.mark.parametrize("given", [{"words": []}, {"words": [["gone"], ["away"]]}, {"cv": None}])
def test_names_that_say_nothing_or_can_not_be_weighed_are_left_out(given):
    result = boosted(**({"words": [["delivery"], ["refund"]]} | given))
    assert result.summary["n_names"] == 0
    assert len(result.ensemble.learners) == result.summary["n_rounds"]


def test_names_keep_no_prompt_that_boosting_left():
    result = boosted([["delivery"], ["refund"]], rounds=1)
    assert result.prompts == [0]
    assert result.summary["n_names"] == 1


def test_the_loss_told_is_that_of_the_scores_that_held_out_rows_get(monkeypatch):
    seen, real = [], held_out.held_out_contributions

    def noted(*args, **kwargs):
        seen.append(real(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(held_out, "held_out_contributions", noted)
    summary = boosted([["delivery"], ["refund"]], n_rows=24).summary
    assert len(seen) == 2
    initial, added = seen[-1]
    # within limits, with the names in it, and at its best temperature near 1
    clipped = initial + added.sum(axis=0)
    near_1 = (float(clipped.std()), SCORE_PRIOR[1])
    labels = np.arange(24) % 2
    found = calibrate(clipped, labels, np.ones(24), min_temperature=0.01, prior=near_1)
    assert summary["cv_log_loss"] == pytest.approx(found.loss, abs=1e-3)


def test_a_row_of_weight_two_is_a_row_twice():
    train, _ = answers(12, 0, 1.5)

    def named(some, weights):
        matrices, tokens, _ = features.frequent_matrices(
            some.token_ids, some.log_probs, weights, 0.1
        )
        scalings = [logit.scaling_of(matrix, weights) for matrix in matrices]
        found = name_prior(
            [0, 1], tokens, TOKENS, matrices, scalings, weights, [["delivery"], ["refund"]], 2
        )
        return found.learners

    rows = np.array([*range(12), 0, 3])
    weights = np.bincount(rows).astype(float)
    for one, other in zip(
        named(train, weights), named(train.take_rows(rows), np.ones(14)), strict=True
    ):
        assert one.weight == pytest.approx(other.weight, rel=1e-5)


def test_rounds_grow_with_the_weight_of_the_rows():
    train, y = answers(12, 0, 1.5)
    plan = training.TrainingOptions(ALGORITHMS["logit"], 2, None, 1.0, 8, None, 0.5, 0.1)
    rounds = [
        training.boost(train, y, np.full(12, weight), plan, np.random.default_rng(0)).summary[
            "n_rounds"
        ]
        for weight in (1.0, 50.0)
    ]
    assert rounds == [100, 120]


@pytest.mark.parametrize(
    ("algorithm", "weight", "n_classes", "rounds"),
    [
        ("logit", 16, 2, 100),
        ("logit", 504, 2, 100),
        ("logit", 600, 2, 120),
        ("logit", 1e6, 2, 200),
        ("logit", 1e6, 77, 231),
        ("logit", 1e6, 250, 400),
        ("logit", 1e6, 3000, 100),
        ("samme", 16, 2, 200),
        ("samme", 1e6, 2, 200),
    ],
)
def test_the_usual_rounds(algorithm, weight, n_classes, rounds):
    assert ALGORITHMS[algorithm].default_n_estimators(weight, n_classes) == rounds


TEXTS = [f"{word} {n}" for n in range(6) for word in ("lovely great", "dull bad")]
LABELS = ["mama", "soda"] * 6  # the stand-in has such tokens


def fitted(**given):
    return PromptBoostingClassifier(
        "deterministic",
        prompts=["{text} It was {mask}", "{text}\nSentiment: {mask}"],
        random_state=0,
        store=False,
        **given,
    ).fit(TEXTS, LABELS)


def spoken_by_names(model):
    return {
        token.strip()
        for entry in describe_learners(model.model_)
        if not entry["round"]
        for tokens in entry["tokens"].values()
        for token, _ in tokens
    }


def words_of_classes(model):
    """The label words of each class, as training gets them from the parameters."""
    options = FitOptions(**{one.name: getattr(model, one.name) for one in fields(FitOptions)})
    return options.boosting(model.classes_).label_words


def test_label_words_may_be_given_and_switched_off():
    assert fitted(label_words=None).training_summary_["n_names"] == 0
    with pytest.warns(UserWarning, match="spells the label_words of 'mama': give others"):
        renamed = fitted(label_words={"mama": ["lovely", "fine day", "A"]})
    assert words_of_classes(renamed) == [["lovely", "fine", "day", "a"], ["soda"]]
    named = fitted(class_names={"soda": "a dull thing"})
    assert words_of_classes(named) == [["mama"], ["dull", "thing"]]


def test_without_words_no_token_is_looked_at():
    assert name_learner(0, np.arange(3, dtype=np.int32), {}, [[], []]) is None
    assert name_learner(0, np.arange(3, dtype=np.int32), {}, []) is None


def test_words_for_a_label_that_is_none_are_refused_before_anything_is_asked():
    from fakes import CountingBackend

    lm = CountingBackend()
    classifier = PromptBoostingClassifier(lm, label_words={"grand": "x"}, store=False)
    for method in (classifier.fit, classifier.plan):
        with pytest.raises(ValueError, match="label_words has \\['grand'\\], which are no labels"):
            method(TEXTS, LABELS)
    assert not lm.calls


@pytest.mark.parametrize("words", [None, 3, b"lina", [1], {"lina": 1}])
def test_words_that_are_none_are_refused(words):
    with pytest.raises(ValueError, match="label_words of 'mama' must be a word or a list of words"):
        fitted(label_words={"mama": words})


def test_a_model_with_names_is_saved_explained_and_told_of(tmp_path):
    model = fitted()
    n = model.training_summary_["n_names"]
    assert n > 0
    told = describe_learners(model.model_)
    assert [entry["round"] for entry in told].count(0) == n
    assert sorted(entry["round"] for entry in told)[n:] == list(range(1, len(told) - n + 1))
    assert spoken_by_names(model) == {"mama", "soda"}
    model.save(tmp_path / "m.blackbox")
    same = load_model(tmp_path / "m.blackbox")
    assert np.array_equal(same.predict_proba(TEXTS), model.predict_proba(TEXTS))
    assert same.explain(TEXTS[0]) == model.explain(TEXTS[0])
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "m.blackbox")])
    assert "class names, weight" in shown.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label-word", "mama"], "is not LABEL=WORD"),
        (
            ["--label-word", "grand=x"],
            "label_words has ['grand'], which are no labels; the labels are '",
        ),
        (["--label-word", "mama=x", "--no-label-words"], "contradict each other"),
        (["--label-word", "mama=x", "--algorithm", "samme"], "requires --algorithm logit"),
    ],
)
def test_wrong_words_on_the_command_line_are_one_line(tmp_path, options, message):
    table = tmp_path / "t.csv"
    table.write_text("text,label\n" + "\n".join(map(",".join, zip(TEXTS, LABELS, strict=True))))
    found = CliRunner().invoke(
        main,
        [
            "train",
            str(table),
            "--backend",
            "deterministic",
            "--no-store",
            "--out",
            str(tmp_path / "m.blackbox"),
            *options,
        ],
    )
    assert isinstance(found.exception, SystemExit)
    assert found.exit_code
    assert message in found.output


def test_words_on_the_command_line_are_trained_with(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("text,label\n" + "\n".join(map(",".join, zip(TEXTS, LABELS, strict=True))))
    for options, words in (
        ([], {"mama", "soda"}),
        (["--label-word", "mama=lina"], {"lina", "soda"}),
        (["--no-label-words"], set()),
    ):
        out = tmp_path / "m.blackbox"
        found = CliRunner().invoke(
            main,
            [
                "train",
                str(table),
                "--backend",
                "deterministic",
                "--no-store",
                "--out",
                str(out),
                *options,
            ],
        )
        assert found.exit_code == 0, found.output
        model = load_model(out)
        assert spoken_by_names(model) == words
