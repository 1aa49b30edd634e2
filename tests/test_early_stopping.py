"""Prediction that stops early: the same labels when exact, few others at a risk, fewer passes."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from fakes import PlainBackend
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from backends.deterministic import DeterministicBackend
from blackbox import PromptBoostingClassifier, load_model
from blackbox.backend import as_backend
from blackbox.boosting import samme
from blackbox.boosting.early_stopping import NEVER, as_decision, clip_contributions, no_bounds
from blackbox.boosting.early_stopping_fit import (
    _quantiles,
    contribution_bounds,
    prompt_order,
    risk_leads,
    with_survival,
)
from blackbox.boosting.samme_algorithm import vote_bounds
from blackbox.model.asking import _costs, read_with_early_stopping
from blackbox.prompts.template import Prompt
from blackbox.service import models as served
from blackbox.service.models import Query

TOPICS = {
    "sport": ["match", "goal", "team", "coach", "league", "score"],
    "money": ["bank", "market", "shares", "profit", "loan", "price"],
    "food": ["bread", "soup", "cook", "taste", "dinner", "cheese"],
}


def texts_of(n, seed, noise=3):
    """Texts with two words of their topic and some of any, and their topics."""
    rng = np.random.default_rng(seed)
    every = [word for words in TOPICS.values() for word in words]
    texts, labels = [], []
    for number in range(n):
        topic = list(TOPICS)[number % 3]
        words = [*rng.choice(TOPICS[topic], 2), *rng.choice(every, noise)]
        texts.append(" ".join(rng.permutation(words)))
        labels.append(topic)
    return texts, labels


@pytest.fixture(scope="module")
def trained():
    texts, labels = texts_of(90, 0)
    classifier = PromptBoostingClassifier("deterministic", random_state=0, store=False, top_k=50)
    return classifier.fit(texts, labels)


@pytest.mark.parametrize("algorithm", ["logit", "samme"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_exact_gives_the_labels_of_all_prompts(algorithm, n_classes):
    texts, labels = texts_of(60, 1)
    kept = [n for n, label in enumerate(labels) if label in list(TOPICS)[:n_classes]]
    classifier = PromptBoostingClassifier(
        "deterministic", algorithm=algorithm, random_state=0, store=False, top_k=50
    ).fit([texts[n] for n in kept], [labels[n] for n in kept])
    new, _ = texts_of(600, 2)
    plain = classifier.predict(new)
    classifier.set_params(early_stop="exact")
    assert (classifier.predict(new) == plain).all()
    asked = classifier.prompts_asked_
    assert classifier.prediction_usage_.passes_made == asked.sum()
    assert asked.min() >= 1
    assert asked.max() <= len(classifier.prompts_)
    if len(classifier.prompts_) > 3:
        assert asked.mean() < len(classifier.prompts_)


def tied(n_classes):
    """A `samme` model whose learners weigh the same, as those without error do: they tie often."""
    texts, labels = texts_of(60, 0)
    kept = [n for n, label in enumerate(labels) if label in list(TOPICS)[:n_classes]]
    classifier = PromptBoostingClassifier(
        "deterministic",
        algorithm="samme",
        n_estimators=12,
        validation_fraction=0,
        random_state=0,
        store=False,
        top_k=50,
    ).fit([texts[n] for n in kept], [labels[n] for n in kept])
    learners = [replace(one, weight=23.025850929840455) for one in classifier.ensemble_.learners]
    ensemble = replace(classifier.ensemble_, learners=learners)
    low, high = vote_bounds(ensemble)
    early_stopping = replace(ensemble.early_stopping, low=low, high=high)
    ensemble = replace(ensemble, early_stopping=early_stopping)
    classifier.model_ = replace(classifier.model_, ensemble=ensemble)
    return classifier


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_tie_goes_to_the_lowest_class_wherever_labels_are_told(n_classes):
    classifier = tied(n_classes)
    texts, _ = texts_of(600, 2)
    matrices = np.split(
        classifier.transform(texts),
        np.cumsum([len(reading.token_ids) for reading in classifier.ensemble_.readings])[:-1],
        axis=1,
    )
    votes = [samme.votes(one, matrices) for one in classifier.ensemble_.learners]
    counts = np.stack([(np.array(votes) == label).sum(axis=0) for label in range(n_classes)])
    expected = classifier.classes_[counts.argmax(axis=0)].tolist()
    assert (np.sort(counts, axis=0)[-1] == np.sort(counts, axis=0)[-2]).sum() > 50
    assert classifier.predict(texts).tolist() == expected
    probabilities = classifier.predict_proba(texts)
    assert classifier.classes_[probabilities.argmax(axis=1)].tolist() == expected
    assert classifier.labels_from_proba(probabilities).tolist() == expected
    assert list(classifier.staged_predict(texts))[-1].tolist() == expected
    questions = [Query(text) for text in texts]
    lm = classifier.connect()
    loaded = served.LoadedModel(classifier.model_, lm, lm, "exact", "")
    answers, _ = served._replies(loaded, questions, None)
    assert [answer.label for answer in answers] == expected
    classifier.set_params(early_stop="exact")
    assert classifier.predict(texts).tolist() == expected
    assert classifier.prompts_asked_.mean() < len(classifier.prompts_)
    answers, _ = served._replies(loaded, questions, "exact")
    assert [answer.label for answer in answers] == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["logit, 3 classes", "logit, 2 classes", "samme with ties"])
def test_exact_gives_the_labels_of_all_prompts_on_ten_thousand_rows(kind, trained):
    new, _ = texts_of(10_000, 3)
    if kind == "logit, 2 classes":
        texts, labels = texts_of(90, 0)
        two = ["food" if label == "food" else "other" for label in labels]
        classifier = clone(trained).fit(texts, two)
    else:
        classifier = tied(3) if kind == "samme with ties" else clone(trained).fit(*texts_of(90, 0))
    plain = classifier.predict(new)
    assert (classifier.set_params(early_stop="exact").predict(new) == plain).all()
    assert classifier.prompts_asked_.mean() < len(classifier.prompts_)


def test_risk_asks_less_than_exact_and_changes_few_labels(trained):
    new, _ = texts_of(1200, 4)
    plain = trained.predict(new)
    asked, changed = {}, {}
    for rule in ("exact", "risk"):
        labels = trained.set_params(early_stop=rule).predict(new)
        asked[rule], changed[rule] = trained.prompts_asked_.mean(), (labels != plain).mean()
    trained.set_params(early_stop=None)
    assert changed["exact"] == 0
    # half a percent is promised of all rows; of 1,200 it is that, with three deviations of a count
    assert changed["risk"] <= 0.005 + 3 * (0.005 * 0.995 / 1200) ** 0.5
    assert asked["risk"] < asked["exact"]


def test_a_saved_model_stops_where_it_did(trained, tmp_path):
    trained.save(tmp_path / "m")
    new, _ = texts_of(200, 5)
    same = load_model(tmp_path / "m", backend="deterministic", early_stop="risk")
    same.set_params(store=False)
    expected = trained.set_params(early_stop="risk").predict(new)
    asked = trained.prompts_asked_
    trained.set_params(early_stop=None)
    assert (same.predict(new) == expected).all()
    assert (same.prompts_asked_ == asked).all()


def test_probabilities_take_all_prompts(trained):
    new, _ = texts_of(20, 6)
    plain = trained.predict_proba(new)
    trained.set_params(early_stop="risk")
    assert (trained.predict_proba(new) == plain).all()
    assert trained.prediction_usage_.passes_made == 20 * len(trained.prompts_)
    trained.set_params(early_stop=None)


@pytest.mark.parametrize("change", [{"cv": None}, {"algorithm": "samme"}, {"n_prompts": 1}])
def test_a_model_that_knows_no_risk_says_so(change):
    texts, labels = texts_of(30, 7)
    classifier = PromptBoostingClassifier(
        "deterministic", random_state=0, store=False, early_stop="risk", **change
    ).fit(texts, labels)
    with pytest.raises(ValueError, match='early_stop="exact"'):
        classifier.predict(texts)


def test_an_unknown_rule_is_refused(trained):
    with pytest.raises(ValueError, match="early_stop"):
        PromptBoostingClassifier("deterministic", early_stop="sometimes").fit(["a", "b"], [0, 1])
    with pytest.raises(ValueError, match="early_stop"):
        load_model_with(trained, "sometimes").predict(["bread"])


def load_model_with(classifier, rule):
    import copy

    return copy.copy(classifier).set_params(early_stop=rule)


def test_rows_without_an_answer_abstain(trained):
    trained.set_params(early_stop="exact", on_row_error="abstain", abstain_label="none")
    try:
        assert trained.predict(["bread soup", "", "bank loan"]).tolist()[1] == "none"
        assert trained.prompts_asked_[1] == 0
        assert trained.row_errors_ == {1: "empty text"}
    finally:
        trained.set_params(early_stop=None, on_row_error="raise", abstain_label=None)


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_what_is_settled_cannot_change_within_the_limits(seed):
    rng = np.random.default_rng(seed)
    n_prompts, n_classes = int(rng.integers(2, 7)), int(rng.integers(2, 5))
    low = -rng.exponential(1, (n_prompts, n_classes))
    high = rng.exponential(1, (n_prompts, n_classes))
    order = rng.permutation(n_prompts)
    early_stopping = replace(no_bounds(n_prompts, n_classes), low=low, high=high, order=order)
    # the worst that may come, and something in between
    shape = (n_prompts, 300, n_classes)
    worst = np.where(rng.random(shape) < 0.5, low[:, None], high[:, None])
    between = clip_contributions(rng.standard_normal(shape), low, high)
    added = np.where(rng.random(shape) < 0.7, worst, between)
    scores = rng.standard_normal((300, n_classes)) * 2
    final = scores + added.sum(axis=0)
    for n_asked, prompt in enumerate(order, 1):
        scores = scores + added[prompt]
        settled = early_stopping.settled(scores, n_asked, "exact")
        assert (scores.argmax(axis=1) == final.argmax(axis=1))[settled].all()
    assert settled.all()


def test_a_lead_of_rounding_settles_nothing():
    early_stopping = replace(no_bounds(2, 2), low=np.zeros((2, 2)), high=np.zeros((2, 2)))
    scores = np.array([[1.0, 1.0 + 1e-12], [1.0, 1.1]])
    assert early_stopping.settled(scores, 1, "exact").tolist() == [False, True]


def test_rounding_is_that_of_what_is_left_too():
    # what is left moves both classes by a million, and its last digits are worth more than the lead
    low = high = np.array([[0.0, 0.0], [1e6, 1e6]])
    early_stopping = replace(no_bounds(2, 2), low=low, high=high)
    scores = np.array([[1.0, 1.0 + 1e-4], [1.0, 1.1]])
    assert early_stopping.settled(scores, 1, "exact").tolist() == [False, True]


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_what_is_settled_is_no_tie_in_the_end(seed):
    rng = np.random.default_rng(seed)
    size = 10.0 ** rng.integers(-3, 7)
    last = size * np.sort(rng.standard_normal(3))
    both = np.stack([np.zeros(3), last])
    early_stopping = replace(no_bounds(2, 3), low=both, high=both)
    lead = 10.0 ** rng.uniform(-16, 0, 200) * size
    scores = size - last + np.column_stack([lead, 0 * lead, -lead])
    settled = early_stopping.settled(scores, 1, "exact")
    final = as_decision(scores + last)
    assert (final[settled, 0] > final[settled, 1]).all()
    assert settled.any()
    assert not settled.all()


def costs_of(shared, own):
    """Prompts of equal length after a text that all begin with."""
    n = len(own)
    costs = np.zeros((n + 1, n + 1))
    for first in range(n):
        for after in range(first + 1, n + 1):
            costs[first, after] = shared + sum(own[first:after])
    return costs


@pytest.mark.parametrize(
    ("shared", "survival", "expected"),
    [
        (0, [0.9, 0.5, 0.2, 0.0], [1, 2, 3, 4]),  # nothing is shared: look after each
        (0, [1.0, 1.0, 0.2, 0.0], [3, 4]),  # nobody stops after one or two
        (100, [0.9, 0.5, 0.2, 0.0], [4]),  # 140 together; 120 + 0.5 * 120 after two
        (20, [1.0, 0.1, 0.1, 0.0], [2, 4]),  # 40 + 0.1 * 40, and not 60
    ],
)
def test_looks_by_hand(shared, survival, expected):
    early_stopping = replace(no_bounds(4, 2), survival=np.array([survival, [0.0] * 4]))
    assert early_stopping.stages("exact", costs_of(shared, [10] * 4)) == expected


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_looks_cost_least_of_all_ways(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 7))
    survival = np.sort(rng.random((2, n)))[:, ::-1]
    costs = costs_of(rng.integers(0, 50), rng.integers(1, 30, n).tolist())
    early_stopping = replace(no_bounds(n, 2), survival=survival)
    going = [1.0, *survival[1]]

    def cost(looks):
        return sum(going[before] * costs[before, after] for before, after in pairwise([0, *looks]))

    ways = [[*some, n] for count in range(n) for some in combinations(range(1, n), count)]
    assert cost(early_stopping.stages("risk", costs)) == pytest.approx(min(map(cost, ways)))


def test_shares_that_go_on_by_hand():
    # two prompts; the second adds at most 1, so a lead of more than 2 is settled after the first
    high = np.array([[5.0, 5.0], [1.0, 1.0]])
    early_stopping = replace(no_bounds(2, 2), low=-high, high=high, leads=np.array([1.5, NEVER]))
    first = np.array([[3.0, 0.0], [1.6, 0.0], [1.0, 0.0], [0.0, 4.0]])
    added = np.stack([first, np.zeros((4, 2))])
    found = with_survival(early_stopping, added, np.zeros(2), np.array([1.0, 1.0, 2.0, 1.0]))
    assert found.survival == pytest.approx(np.array([[0.6, 0.0], [0.4, 0.0]]))


@pytest.mark.parametrize("n_texts", [1, 3, 12])
def test_what_prompts_cost_together_is_the_nodes_of_the_prefix_tree_of_their_requests(n_texts):
    cues = ["{text} It was {mask}", "{text} It is {mask}", "Say: {text} {mask}", "{text}\n{mask}"]
    prompts = [Prompt(cue) for cue in cues]
    texts = texts_of(n_texts, 9)[0]
    examples = [(text, None) for text in texts]
    engine = DeterministicBackend()
    shared, alone = (
        _costs(as_backend(PlainBackend(engine, shares_prefixes=s)), prompts, examples)
        for s in (True, False)
    )
    for first, after in combinations(range(5), 2):
        sent = [p.render(text).text for p in prompts[first:after] for text in texts[:8]]
        nodes = {one[:end] for one in sent for end in range(1, len(one) + 1)}
        assert shared[first, after] == len(nodes)
        assert alone[first, after] == sum(map(len, sent))


def test_what_sixty_prompts_cost_is_found_at_once():
    text = "a long text " * 166
    prompts = [Prompt(f"{{text}} Cue {n}: {{mask}}") for n in range(60)]
    started = time.perf_counter()
    examples = [(f"{text}{n}", None) for n in range(8)]
    costs = _costs(DeterministicBackend(), prompts, examples)
    no_bounds(60, 3).stages("exact", costs)
    assert time.perf_counter() - started < 2  # no LM reads them in so little


def test_where_prompts_share_what_they_begin_with_fewer_looks_are_made(trained):
    new, _ = texts_of(60, 8)
    long = [" ".join([text] * 20) for text in new]
    lm = trained.connect()
    read, labels = {}, {}
    for shared in (False, True):
        found = read_with_early_stopping(
            as_backend(PlainBackend(lm, shares_prefixes=shared)),
            trained.prompts_,
            trained.ensemble_,
            [(text, None) for text in long],
            50,
            "risk",
        )
        read[shared], labels[shared] = found.n_asked, trained.model_.codes_of(found.scores)
    assert (labels[False] == labels[True]).mean() > 0.9
    assert (read[True] >= read[False]).all()
    assert read[True].sum() > read[False].sum()


def test_limits_by_hand():
    # one prompt; class 0 has the rows 3, 1, 2, and of the others class 0 gets -1, -2, -4
    said = np.array([3.0, 1.0, 2.0, -1.0, -2.0, -4.0])
    contributions = np.stack([said, -said], axis=1)[None]
    y = np.array([0, 0, 0, 1, 1, 1])
    low, high = contribution_bounds(contributions, y, np.ones(6))
    assert high.tolist() == [[2.0, 2.0]]
    assert low.tolist() == [[-4.0, -3.0]]  # the 30% quantile of three is the least
    assert clip_contributions(contributions, low, high)[0, :, 0].tolist() == [
        2.0,
        1.0,
        2.0,
        -1.0,
        -2.0,
        -4.0,
    ]


def test_a_weight_of_two_is_a_row_that_stands_twice():
    rng = np.random.default_rng(0)
    values, weights = rng.standard_normal((4, 9)), rng.integers(1, 4, 9)
    for quantile in (0.3, 0.5):
        repeated = np.repeat(values, weights, axis=1)
        expected = _quantiles(repeated, np.ones(repeated.shape[1]), quantile)
        found = _quantiles(values, weights.astype(float), quantile)
        assert found == pytest.approx(expected, abs=0)
    assert _quantiles(np.array([[1.0, 2.0, 3.0, 9.0]]), np.ones(4), 0.5).tolist() == [2.5]


def test_prompts_that_decide_come_first():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    sign = np.where(y == 0, 1.0, -1.0)
    weak, strong = 0.1 * rng.standard_normal(60), 3 * sign
    said = np.stack([weak, strong, weak[::-1]])
    contributions = np.stack([said, -said], axis=2)
    low, high = contribution_bounds(contributions, y, np.ones(60))
    within = clip_contributions(contributions, low, high)
    order = prompt_order(within, np.zeros(2), low, high, np.ones(60))
    assert order[0] == 1
    leads = risk_leads(within, np.zeros(2), order, np.ones(60))
    assert leads[-1] == NEVER


def test_where_prompts_contradict_each_other_no_risk_is_taken():
    rng = np.random.default_rng(0)
    said = rng.standard_normal((3, 60))
    said[2] = -20 * said[0] - 20 * said[1]
    contributions = np.stack([said, -said], axis=2)
    leads = risk_leads(contributions, np.zeros(2), np.arange(3), np.ones(60))
    assert (leads == NEVER).all()


def test_without_limits_nothing_is_settled_early():
    early_stopping = no_bounds(2, 2)
    assert not early_stopping.knows_risk
    assert not early_stopping.settled(np.array([[100.0, 0.0]]), 1, "risk").any()
    assert early_stopping.settled(np.array([[100.0, 0.0]]), 2, "risk").all()
