"""SAMME: by hand, against a slow copy, against scikit-learn, and at its edges."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import AdaBoostClassifier

from blackbox.boosting.early_stopping import argmax_with_ties
from blackbox.boosting.samme import (
    LEAST_WEIGHT,
    _best_n_rounds,
    candidates_per_class,
    decision,
    fit_samme,
    probabilities,
    staged_decision,
    votes,
)
from blackbox.boosting.weak_learner import WeakLearner


def rng(seed=0):
    return np.random.default_rng(seed)


def problem(n_classes, n_rows, n_tokens, n_prompts=1, seed=0, signal=0.8):
    """Random log-probabilities in which token v speaks a little for class v mod n_classes."""
    random = rng(seed)
    y = np.arange(n_rows) % n_classes
    speaks = np.arange(n_tokens) % n_classes == y[:, None]
    matrices = []
    for _ in range(n_prompts):
        logits = random.normal(size=(n_rows, n_tokens)) + signal * speaks
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        matrices.append(logits.astype(np.float32))
    return matrices, y


def fit(matrices, y, n_classes, sample_weight=None, seed=0, **options):
    weights = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, float)
    return fit_samme(matrices, y, weights, n_classes, rng=rng(seed), **options)


def described(learners):
    return [(learner.prompt, learner.columns.ravel().tolist()) for learner in learners]


def assert_same(learners, others):
    assert described(learners) == described(others)
    np.testing.assert_allclose(
        [learner.weight for learner in learners], [other.weight for other in others], rtol=1e-8
    )


# A slow copy, in plain Python.


def slow_tuple(rows, y, weights, n_classes, k):
    """The best tuple and its error, by the definitions."""
    scores = [
        [
            math.fsum(
                w * (1 if c == number else -1) * math.exp(row[v])
                for row, c, w in zip(rows, y, weights, strict=True)
            )
            for v in range(len(rows[0]))
        ]
        for number in range(n_classes)
    ]
    candidates = []
    for number in range(n_classes):
        tokens = []
        for v in range(len(rows[0])):
            of_token = [scores[other][v] for other in range(n_classes)]
            if next(c for c in range(n_classes) if of_token[c] >= max(of_token) - 1e-12) == number:
                tokens.append(v)
        tokens = tokens or list(range(len(rows[0])))
        candidates.append(sorted(tokens, key=lambda v: -scores[number][v])[:k])
    tuples = list(itertools.product(*candidates))
    if n_classes == 2:
        tuples += [(b, a) for a, b in tuples]
    errors = {
        columns: math.fsum(
            w for row, c, w in zip(rows, y, weights, strict=True) if slow_vote(row, columns) != c
        )
        for columns in tuples
    }
    least = min(errors.values())
    best = min(columns for columns in errors if errors[columns] <= least + 1e-12)
    return best, errors[best]


def slow_vote(row, columns):
    values = [row[column] for column in columns]
    return values.index(max(values))


def slow_fit(matrices, y, sample_weight, n_classes, n_estimators, random):
    tables = [matrix.astype(float).tolist() for matrix in matrices]
    weights = [w / sum(sample_weight) for w in sample_weight]
    k = 50 if n_classes == 2 else 10 if n_classes <= 4 else 5
    learners = []
    for _ in range(n_estimators):
        prompt = int(random.integers(len(tables)))
        columns, error = slow_tuple(tables[prompt], y, weights, n_classes, k)
        if error >= 1 - 1 / n_classes - 1e-12:
            continue
        error = min(max(error, 1e-10), 1 - 1e-10)
        alpha = math.log((1 - error) / error) + math.log(n_classes - 1)
        learners.append((prompt, list(columns), alpha))
        weights = [
            w * math.exp(alpha * (slow_vote(row, columns) != c))
            for row, c, w in zip(tables[prompt], y, weights, strict=True)
        ]
        weights = [w / sum(weights) for w in weights]
    return learners


def slow_predict(learners, matrices, n_classes):
    predicted = []
    for number in range(len(matrices[0])):
        totals = [0.0] * n_classes
        for prompt, columns, alpha in learners:
            totals[slow_vote(matrices[prompt][number].tolist(), columns)] += alpha
        predicted.append(totals.index(max(totals)))
    return predicted


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("n_classes", "n_rows", "n_tokens"), [(2, 24, 9), (3, 24, 10), (6, 30, 14)]
)
def test_same_as_a_slow_copy(n_classes, n_rows, n_tokens, seed):
    """Learners, weights and predictions are those of the definitions written out."""
    matrices, y = problem(n_classes, n_rows, n_tokens, n_prompts=3, seed=seed)
    sample_weight = rng(seed).random(n_rows) + 0.1
    learners = fit(matrices, y, n_classes, sample_weight, seed=seed, n_estimators=12)
    expected = slow_fit(matrices, y.tolist(), sample_weight.tolist(), n_classes, 12, rng(seed))
    assert described(learners) == [(prompt, columns) for prompt, columns, _ in expected]
    np.testing.assert_allclose(
        [learner.weight for learner in learners], [alpha for *_, alpha in expected], rtol=1e-9
    )
    unseen, _ = problem(n_classes, n_rows, n_tokens, n_prompts=3, seed=seed + 100)
    scores = decision(learners, unseen, n_classes)
    predicted = scores > 0 if n_classes == 2 else scores.argmax(axis=1)
    assert predicted.astype(int).tolist() == slow_predict(expected, unseen, n_classes)


# Two rounds worked by hand.

BY_HAND = np.log(
    np.array([[0.60, 0.25, 0.15], [0.50, 0.10, 0.40], [0.20, 0.50, 0.30], [0.60, 0.30, 0.10]])
).astype(np.float32)
BY_HAND_Y = np.array([0, 0, 1, 1])


def test_two_rounds_by_hand():
    """Round 1: scores of class 0 are (0.3, −0.45, 0.15) / 4, so it owns tokens 0 and 2, and class 1
    owns token 1. Pairs (0, 1) and (2, 1) both have one row of four wrong, the last and the first;
    the lower columns win, α = log 3, and the weights become (1, 1, 1, 3) / 6.

    Round 2: all tokens belong to class 1, so class 0 may take any. (2, 1) has only row 0 wrong,
    e = 1/6, α = log 5; every other pair gets the last row or more wrong.
    """
    learners = fit([BY_HAND], BY_HAND_Y, 2, n_estimators=2)
    assert [learner.columns.tolist() for learner in learners] == [[[0], [1]], [[2], [1]]]
    assert [learner.token_weights.tolist() for learner in learners] == [[[1], [1]]] * 2
    assert [learner.weight for learner in learners] == pytest.approx([math.log(3), math.log(5)])
    assert [votes(learner, [BY_HAND]).tolist() for learner in learners] == [
        [0, 0, 1, 0],
        [1, 0, 1, 1],
    ]
    split = 2 * (math.log(5) - math.log(3)) / math.log(15)
    scores = decision(learners, [BY_HAND], 2)
    assert scores.tolist() == pytest.approx([split, -2, 2, split])
    sigmoid = 1 / (1 + np.exp(-scores))
    np.testing.assert_allclose(probabilities(scores, 2), np.column_stack([1 - sigmoid, sigmoid]))


# scikit-learn as the oracle.


class BestTuple(ClassifierMixin, BaseEstimator):
    """A weak learner for scikit-learn: the best tuple, by brute force."""

    def fit(self, X, y, sample_weight=None):
        self.classes_ = np.unique(y)
        codes = np.searchsorted(self.classes_, y).tolist()
        n_classes = len(self.classes_)
        self.columns_, _ = slow_tuple(
            X.astype(float).tolist(),
            codes,
            sample_weight.tolist(),
            n_classes,
            k=candidates_per_class(n_classes),
        )
        return self

    def predict(self, X):
        return self.classes_[X[:, self.columns_].argmax(axis=1)]


@pytest.mark.parametrize(("n_classes", "seed"), [(2, 0), (2, 1), (3, 2), (3, 3), (5, 4)])
def test_same_as_scikit_learn(n_classes, seed):
    """Estimator weights, scores, probabilities and predictions, staged and at the end."""
    (matrix,), y = problem(n_classes, 60, 8, seed=seed)
    (unseen,), _ = problem(n_classes, 40, 8, seed=seed + 100)
    oracle = AdaBoostClassifier(BestTuple(), n_estimators=8).fit(matrix, y)
    assert oracle.estimator_errors_.min() > 0
    learners = fit([matrix], y, n_classes, n_estimators=8)
    assert [tuple(learner.columns[:, 0].tolist()) for learner in learners] == [
        estimator.columns_ for estimator in oracle.estimators_
    ]
    np.testing.assert_allclose(
        [learner.weight for learner in learners], oracle.estimator_weights_, rtol=1e-9
    )
    scores = decision(learners, [unseen], n_classes)
    np.testing.assert_allclose(scores, oracle.decision_function(unseen), atol=1e-12)
    shares = probabilities(scores, n_classes)
    np.testing.assert_allclose(shares, oracle.predict_proba(unseen), atol=1e-12)
    np.testing.assert_array_equal(
        scores > 0 if n_classes == 2 else scores.argmax(axis=1), oracle.predict(unseen)
    )
    staged = zip(
        staged_decision(learners, [unseen], n_classes),
        oracle.staged_decision_function(unseen),
        oracle.staged_predict_proba(unseen),
        strict=True,
    )
    for ours, theirs, their_shares in staged:
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
        np.testing.assert_allclose(probabilities(ours, n_classes), their_shares, atol=1e-12)


# Edges.


@pytest.mark.parametrize("n_classes", [2, 3, 8])
def test_zero_training_error_survives(n_classes):
    """A perfect tuple gets a finite weight, round after round, and predicts perfectly."""
    y = np.arange(4 * n_classes) % n_classes
    matrix = np.where(np.eye(n_classes)[y] > 0, -0.1, -5).astype(np.float32)
    learners = fit([matrix], y, n_classes, n_estimators=50)
    assert len(learners) == 50
    expected = math.log((1 - 1e-10) / 1e-10) + math.log(n_classes - 1)
    assert [learner.weight for learner in learners] == pytest.approx([expected] * 50)
    scores = decision(learners, [matrix], n_classes)
    predicted = scores > 0 if n_classes == 2 else scores.argmax(axis=1)
    np.testing.assert_array_equal(predicted, y)
    assert np.isfinite(probabilities(scores, n_classes)).all()


def test_seventy_seven_classes():
    """Five rows a class and 300 tokens: the product of candidates is never formed."""
    matrices, y = problem(77, 385, 300, n_prompts=2, seed=5, signal=3)
    learners = fit(matrices, y, 77, n_estimators=4)
    assert learners
    assert all(learner.columns.shape == (77, 1) for learner in learners)
    scores = decision(learners, matrices, 77)
    assert (scores.argmax(axis=1) == y).mean() > 3 / 77
    np.testing.assert_allclose(probabilities(scores, 77).sum(axis=1), 1)


def test_integer_weights_are_repeated_rows():
    """A row of weight 3 is a row that stands three times; one of weight 0 doesn't stand."""
    matrices, y = problem(3, 24, 12, n_prompts=2, seed=6)
    weights = rng(6).integers(0, 4, len(y))
    repeated = [np.repeat(matrix, weights, axis=0) for matrix in matrices]
    assert_same(
        fit(matrices, y, 3, weights, n_estimators=15),
        fit(repeated, np.repeat(y, weights), 3, n_estimators=15),
    )


def test_rows_of_weight_zero_do_not_count():
    """Not in the scores, the errors, or the number of tuples that can be afforded."""
    matrices, y = problem(2, 20, 10, n_prompts=2, seed=7)
    weights = np.ones(20)
    weights[[1, 4, 9]] = 0
    scrambled = [matrix.copy() for matrix in matrices]
    for matrix in scrambled:
        matrix[weights == 0] = -0.01
    assert_same(
        fit(matrices, y, 2, weights, n_estimators=15),
        fit(scrambled, y, 2, weights, n_estimators=15),
    )


def test_same_seed_same_learners():
    """All randomness comes from the generator, that of sampled tuples too."""
    matrices, y = problem(4, 40, 30, n_prompts=3, seed=8)
    options = {"n_estimators": 10, "max_tuples": 50}
    first = fit(matrices, y, 4, seed=1, **options)
    assert_same(first, fit(matrices, y, 4, seed=1, **options))
    assert described(first) != described(fit(matrices, y, 4, seed=2, **options))


def test_ties_go_to_the_lower_columns():
    """Of tokens that are copies of each other, the first is taken."""
    (matrix,), y = problem(2, 30, 4, seed=9)
    doubled = matrix[:, [0, 0, 1, 1, 2, 2, 3, 3]]
    plain = fit([matrix], y, 2, n_estimators=10)
    learners = fit([doubled], y, 2, n_estimators=10)
    assert [learner.columns.tolist() for learner in learners] == [
        (2 * learner.columns).tolist() for learner in plain
    ]


def test_prompts_are_drawn_at_random():
    """All prompts of the pool turn up, in the order of the generator's draws."""
    matrices, y = problem(2, 40, 10, n_prompts=4, seed=10)
    learners = fit(matrices, y, 2, n_estimators=20)
    random = rng()
    assert [learner.prompt for learner in learners] == [int(random.integers(4)) for _ in range(20)]


CONSTANT = np.log(np.tile(np.array([0.5, 0.3, 0.2], np.float32), (6, 1)))
PERFECT = np.where(np.eye(3)[[0, 0, 0, 1, 1, 1]] > 0, -0.1, -3).astype(np.float32)
HALVES = np.array([0, 0, 0, 1, 1, 1])


def test_round_that_is_no_better_than_chance_is_skipped():
    """A prompt that tells nothing adds no learner; the next round draws another."""
    done = []
    learners = fit([CONSTANT, PERFECT], HALVES, 2, n_estimators=20, on_round=done.append)
    random = rng()
    n_useful = sum(int(random.integers(2)) for _ in range(20))
    assert 0 < n_useful < 20
    assert [learner.prompt for learner in learners] == [1] * n_useful
    assert done == list(range(1, 21))


def test_chance_is_recognised_in_spite_of_rounding():
    """After a round its own learner is at chance exactly; with nothing else to add, all stops."""
    probabilities_of_two = np.array([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]], np.float32)
    matrix = np.log(np.concatenate([probabilities_of_two, probabilities_of_two[:, ::-1]]))
    learners = fit([matrix], HALVES, 2, n_estimators=30)
    assert [learner.columns.tolist() for learner in learners] == [[[0], [1]]]
    assert learners[0].weight == pytest.approx(math.log(2))


def test_hopeless_prompts_still_give_a_learner():
    """The best tuple of any prompt stands alone, with a tiny weight, and can predict."""
    y = np.array([0, 1, 2, 0, 1, 2])
    learners = fit([CONSTANT, CONSTANT], y, 3, n_estimators=5)
    (learner,) = learners
    assert learner.weight == LEAST_WEIGHT
    assert learner.prompt == 0
    scores = decision(learners, [CONSTANT, CONSTANT], 3)
    assert scores.argmax(axis=1).tolist() == [0] * 6
    assert np.isfinite(probabilities(scores, 3)).all()


def test_hopeless_draws_still_see_every_prompt():
    """If the prompts that were drawn told nothing, one that was not drawn may stand alone."""
    seed = next(s for s in range(9) if int(rng(s).integers(2)) == 0)
    (learner,) = fit([CONSTANT, PERFECT], HALVES, 2, seed=seed, n_estimators=1)
    assert learner.prompt == 1
    assert learner.weight > 1


def test_prompts_without_tokens_are_passed_over():
    """A matrix without columns is never drawn."""
    empty = np.empty((6, 0), np.float32)
    learners = fit([empty, PERFECT, empty], HALVES, 2, n_estimators=5)
    assert [learner.prompt for learner in learners] == [1] * 5


def accuracies(learners, validation, n_classes):
    matrices, y, weights = validation
    return [
        float(((s > 0 if n_classes == 2 else s.argmax(axis=1)) == y) @ weights)
        for s in staged_decision(learners, matrices, n_classes)
    ]


@pytest.mark.parametrize("n_classes", [2, 3])
def test_validation_rows_choose_the_number_of_rounds(n_classes):
    """The earliest round with the highest weighted accuracy is the last that is kept."""
    matrices, y = problem(n_classes, 30, 12, n_prompts=3, seed=11)
    unseen, unseen_y = problem(n_classes, 40, 12, n_prompts=3, seed=12)
    everything = fit(matrices, y, n_classes, n_estimators=25)
    chosen = set()
    for weights in (np.ones(40), np.where(unseen_y == 0, 2.0, 0.0)):
        validation = unseen, unseen_y, weights
        learners = fit(matrices, y, n_classes, n_estimators=25, validation=validation)
        curve = accuracies(everything, validation, n_classes)
        assert len(learners) == 1 + curve.index(max(curve))
        assert_same(learners, everything[: len(learners)])
        chosen.add(len(learners))
    assert len(chosen) > 1  # the weights matter


def test_equal_validation_accuracy_keeps_the_fewest_rounds():
    """A perfect first learner needs no second."""
    learners = fit([PERFECT], HALVES, 2, validation=([PERFECT], HALVES, np.ones(6)))
    assert len(learners) == 1


def test_equal_validation_accuracy_is_recognised_in_spite_of_rounding():
    """0.1 + 0.2 is no better than 0.3: the first learner alone is kept, not the three."""
    ones = np.array([[-3, -0.1, -3]], np.float32)
    zeros = np.array([[-0.1, -3, -3]], np.float32)
    validation = [np.concatenate([zeros, zeros, ones]), np.concatenate([ones, ones, zeros])]
    weights = np.array([0.1, 0.2, 0.3])
    for seed in range(99):
        three = fit([PERFECT, PERFECT], HALVES, 2, seed=seed, n_estimators=3)
        if [learner.prompt for learner in three] == [0, 1, 1]:
            break
    curve = accuracies(three, (validation, np.ones(3, int), weights), 2)
    assert curve[2] > curve[0] == pytest.approx(curve[2])
    learners = fit(
        [PERFECT, PERFECT],
        HALVES,
        2,
        seed=seed,
        n_estimators=3,
        validation=(validation, np.ones(3, int), weights),
    )
    assert len(learners) == 1


@pytest.mark.parametrize("n_classes", [2, 3])
def test_learners_of_equal_weight_tie_in_spite_of_rounding(n_classes):
    """A tie is exact in the scores, in their softmax, and when rounds are chosen."""
    random = rng(5)
    matrices = [random.normal(size=(400, n_classes)).astype(np.float32) for _ in range(12)]
    ones, columns = np.ones((n_classes, 1), np.float32), np.arange(n_classes)[:, None]
    learners = [WeakLearner(number, columns, ones, 23.025850929840455) for number in range(12)]
    chosen = np.array([votes(learner, matrices) for learner in learners])
    counts = np.cumsum(np.eye(n_classes, dtype=int)[chosen], axis=0)
    labels = counts.argmax(axis=2)
    stages = list(staged_decision(learners, matrices, n_classes))
    for scores, expected in zip(stages, labels, strict=True):
        assert argmax_with_ties(scores).tolist() == expected.tolist()
        assert probabilities(scores, n_classes).argmax(axis=1).tolist() == expected.tolist()
    for last in range(12):
        best = (labels == labels[last]).mean(axis=1)
        validation = matrices, labels[last], np.ones(400)
        assert _best_n_rounds(learners, validation, n_classes) == 1 + best.argmax() == 1 + last


def test_candidates_per_class():
    """As published: 50 for two classes, 10 up to four, 5 beyond."""
    assert [candidates_per_class(n) for n in (2, 3, 4, 5, 6, 77)] == [50, 10, 10, 5, 5, 5]


def test_probabilities_leave_the_scores_alone():
    """Nothing is changed in place."""
    scores = np.array([[2.0, -1.0, -1.0]])
    shares = probabilities(scores, 3)
    assert scores.tolist() == [[2.0, -1.0, -1.0]]
    np.testing.assert_allclose(shares[0, 0] / shares[0, 1], math.exp(1.5))


def test_votes_for_the_lowest_class_on_a_tie():
    """Equal log-probabilities, and one token for two classes, go to the lower class."""
    learner = WeakLearner(1, np.array([[1], [0], [0]]), np.ones((3, 1), np.float32), 1.0)
    matrix = np.array([[-1, -1], [-1, -2], [-2, -1]], np.float32)
    chosen = votes(learner, [np.empty((3, 0), np.float32), matrix])
    assert chosen.tolist() == [0, 1, 0]
    assert chosen.dtype == np.intp


def test_ensemble_without_learners():
    """There are no stages, and no last one."""
    assert list(staged_decision([], [PERFECT], 2)) == []
    with pytest.raises(ValueError, match="at least one learner"):
        decision([], [PERFECT], 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_classes": 1}, "n_classes is 1"),
        ({"n_estimators": 0}, "n_estimators is 0"),
        ({"matrices": []}, "no prompt has a token"),
        ({"matrices": [np.empty((6, 0), np.float32)]}, "no prompt has a token"),
        ({"matrices": [PERFECT, PERFECT[:5]]}, "matrix 1 is"),
        ({"matrices": [PERFECT[0]]}, "matrix 0 is"),
        ({"y": np.array([0, 0, 0, 1, 1, 2])}, "classes outside 0 to 1"),
        ({"y": np.array([0, 0, 0, 1, 1, -1])}, "classes outside 0 to 1"),
        ({"sample_weight": np.ones(5)}, "must be"),
        ({"sample_weight": np.zeros(6)}, "sample_weight must be finite"),
        ({"sample_weight": -np.ones(6)}, "sample_weight must be finite"),
        ({"sample_weight": np.full(6, np.nan)}, "sample_weight must be finite"),
        ({"sample_weight": np.full(6, np.inf)}, "sample_weight must be finite"),
        ({"validation": ([PERFECT], HALVES, np.zeros(6))}, "sample_weight must be finite"),
        ({"validation": ([PERFECT[:, :2]], HALVES, np.ones(6))}, "columns of the training ones"),
        ({"validation": ([PERFECT] * 2, HALVES, np.ones(6))}, "columns of the training ones"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    """With a ValueError that says which."""
    arguments = {
        "matrices": [PERFECT],
        "y": HALVES,
        "sample_weight": np.ones(6),
        "n_classes": 2,
        "rng": rng(),
    }
    with pytest.raises(ValueError, match=message):
        fit_samme(**(arguments | change))


@st.composite
def coarse_problems(draw):
    """Few different values, so that scores and errors tie often."""
    n_classes = draw(st.sampled_from([2, 3, 5]))
    n_rows = draw(st.integers(n_classes, 14))
    n_tokens = draw(st.integers(1, 7))
    seed = draw(st.integers(0, 2**16))
    random = rng(seed)
    levels = draw(st.integers(2, 5))
    matrices = [
        (-random.integers(1, levels + 1, (n_rows, n_tokens)) / 2).astype(np.float32)
        for _ in range(2)
    ]
    y = random.integers(0, n_classes, n_rows)
    sample_weight = random.integers(1, 4, n_rows) / draw(st.sampled_from([1, 3, 10]))
    order = draw(st.permutations(range(n_rows)))
    return n_classes, matrices, y, sample_weight, np.array(order), seed


@settings(deadline=None, max_examples=150)
@given(coarse_problems())
def test_order_of_rows_does_not_matter(case):
    """Permuted rows give the same learners, though sums are rounded differently."""
    n_classes, matrices, y, weights, order, seed = case
    options = {"n_estimators": 6, "seed": seed}
    shuffled = [matrix[order] for matrix in matrices]
    assert_same(
        fit(matrices, y, n_classes, weights, **options),
        fit(shuffled, y[order], n_classes, weights[order], **options),
    )


@settings(deadline=None, max_examples=50)
@given(coarse_problems(), st.sampled_from([1e-6, 7.0, 1e9]))
def test_scale_of_the_weights_does_not_matter(case, scale):
    """Only the shares of the rows count."""
    n_classes, matrices, y, weights, _, seed = case
    options = {"n_estimators": 6, "seed": seed}
    assert_same(
        fit(matrices, y, n_classes, weights, **options),
        fit(matrices, y, n_classes, scale * weights, **options),
    )
