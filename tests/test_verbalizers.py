"""Verbalizers for SAMME: scores of tokens, candidates, and the search for the best tuple."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest

from blackbox.boosting import tuples, verbalizers
from blackbox.boosting.tuples import best_tuple
from blackbox.boosting.verbalizers import candidate_tokens, token_scores, top_tokens


def rng():
    return np.random.default_rng(0)


def problem(n_classes, n_rows, n_tokens, seed, levels=None):
    """Random log-probabilities, classes and weights; with `levels`, few different values."""
    random = np.random.default_rng(seed)
    if levels is None:
        log_probs = -random.exponential(2.0, (n_rows, n_tokens)).astype(np.float32)
    else:
        log_probs = -random.integers(1, levels + 1, (n_rows, n_tokens)).astype(np.float32)
    y = np.arange(n_rows) % n_classes
    weights = random.random(n_rows)
    return log_probs, y, weights / weights.sum()


def brute_force(log_probs, y, weights, candidates):
    """Every tuple, one by one: the least error, and the first tuple that has it."""
    tuples = list(itertools.product(*candidates))
    if len(candidates) == 2:
        tuples += [(b, a) for a, b in tuples]
    errors = {}
    for columns in tuples:
        predicted = [[row[c] for c in columns] for row in log_probs]
        predicted = [values.index(max(values)) for values in predicted]
        wrong = [w for p, c, w in zip(predicted, y, weights, strict=True) if p != c]
        errors[columns] = math.fsum(wrong)
    least = min(errors.values())
    return min(columns for columns in errors if errors[columns] <= least + 1e-12), least


def test_token_scores_by_hand():
    """s_c(v) adds the weighted probabilities of the class's rows and takes away the others'."""
    probabilities = np.array([[0.6, 0.4], [0.1, 0.9], [0.5, 0.5]], np.float32)
    scores = token_scores(
        np.log(probabilities), np.array([0, 1, 1]), np.array([0.5, 0.25, 0.25]), 2
    )
    expected = 0.5 * 0.6 - 0.25 * 0.1 - 0.25 * 0.5, 0.5 * 0.4 - 0.25 * 0.9 - 0.25 * 0.5
    np.testing.assert_allclose(scores, [expected, np.negative(expected)], atol=1e-7)
    assert scores.dtype == np.float64


@pytest.mark.parametrize("n_rows", [3, 70_000])
def test_token_scores_do_not_depend_on_how_the_work_is_cut(n_rows):
    """Many columns, and more rows than fit in a block, give what one product gives."""
    log_probs, y, weights = problem(3, n_rows, 200_000 // n_rows + 5, seed=1)
    signed = np.where(y == np.arange(3)[:, None], weights, -weights)
    expected = signed @ np.exp(log_probs.astype(np.float64))
    np.testing.assert_allclose(token_scores(log_probs, y, weights, 3), expected, atol=1e-6)


def test_token_belongs_to_the_class_with_the_largest_score():
    """Each class gets its own tokens only, in ascending order, the k largest of them."""
    scores = np.array([[0.5, 0.1, 0.2, 0.4, -1.0], [0.1, 0.2, 0.1, 0.1, 0.9]])
    first, second = top_tokens(scores, 2)
    assert first.tolist() == [0, 3]
    assert second.tolist() == [1, 4]


def test_candidates_are_the_top_tokens_of_the_scores():
    """`candidate_tokens` is the composition of the two steps."""
    log_probs, y, weights = problem(3, 12, 40, seed=2)
    expected = top_tokens(token_scores(log_probs, y, weights, 3), 4)
    found = candidate_tokens(log_probs, y, weights, 3, 4)
    assert [columns.tolist() for columns in found] == [columns.tolist() for columns in expected]


@pytest.mark.parametrize("rounding", [[0, 0, 1e-16, 0], [0, 1e-16, 1e-16, 0]])
def test_equal_scores_go_to_the_lowest_class_and_column(rounding):
    """Rounding in the last digit breaks no tie."""
    scores = np.array([[0.3, 0.3, 0.3, 0.1], [0.3, 0.3, 0.3, 0.2]])
    scores[0] += rounding
    scores[1] += [1e-16, 0, 0, 0]
    first, second = top_tokens(scores, 2)
    assert first.tolist() == [0, 1]
    assert second.tolist() == [3]


def test_class_without_tokens_takes_the_best_of_all():
    """Every class has at least one candidate, though none belongs to it."""
    scores = np.array([[0.5, 0.4, 0.3], [0.1, 0.0, 0.2]])
    first, second = top_tokens(scores, 2)
    assert first.tolist() == [0, 1]
    assert second.tolist() == [0, 2]


@pytest.mark.parametrize(("shape", "k"), [((2, 0), 5), ((2, 3), 0)])
def test_no_candidates_are_refused(shape, k):
    """Without tokens, or with k = 0, there is nothing to choose."""
    with pytest.raises(ValueError, match="no candidates"):
        top_tokens(np.zeros(shape), k)


def test_both_orders_of_a_pair_are_tried():
    """A token may speak for the class that it doesn't belong to, if that errs less."""
    log_probs = np.log(np.array([[0.2, 0.7], [0.6, 0.3]], np.float32))
    columns, error = best_tuple(
        log_probs, np.array([0, 1]), np.full(2, 0.5), [np.array([0]), np.array([1])], rng=rng()
    )
    assert columns.tolist() == [1, 0]
    assert error == 0


def test_equal_log_probs_predict_the_lowest_class():
    """The first class wins where its token and another's are equally likely."""
    log_probs = np.full((3, 2), -1, np.float32)
    columns, error = best_tuple(
        log_probs, np.array([0, 1, 1]), np.full(3, 1 / 3), [np.array([0]), np.array([1])], rng=rng()
    )
    assert columns.tolist() == [0, 1]
    assert error == pytest.approx(2 / 3)


def test_equal_errors_go_to_the_lower_columns():
    """The first tuple in lexicographic order wins, wherever it stands among the candidates."""
    log_probs = np.log(np.array([[0.4, 0.1, 0.1, 0.4], [0.1, 0.4, 0.4, 0.1]], np.float32))
    columns, error = best_tuple(
        log_probs,
        np.array([0, 1]),
        np.full(2, 0.5),
        [np.array([3, 0]), np.array([2, 1])],
        rng=rng(),
    )
    assert columns.tolist() == [0, 1]
    assert error == 0


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize(("n_classes", "k"), [(2, 6), (3, 4), (6, 3)])
def test_best_tuple_is_the_one_that_brute_force_finds(n_classes, k, levels):
    """On random problems, with and without ties, and with candidates shared by classes."""
    for seed in range(5):
        log_probs, y, weights = problem(n_classes, 14, 15, seed, levels)
        weights[3] = 0
        weights /= weights.sum()
        random = np.random.default_rng(seed)
        candidates = [random.choice(15, k, replace=False) for _ in range(n_classes)]
        columns, error = best_tuple(log_probs, y, weights, candidates, rng=rng())
        expected, least = brute_force(log_probs.tolist(), y, weights, candidates)
        assert tuple(columns) == expected
        assert error == pytest.approx(least, abs=1e-12)


def test_more_candidates_than_a_byte_can_count():
    """Ranks of the tokens don't wrap around."""
    log_probs, y, weights = problem(3, 10, 400, seed=6)
    candidates = [np.arange(0, 140), np.arange(140, 280), np.array([390])]
    columns, error = best_tuple(log_probs, y, weights, candidates, rng=rng())
    expected, least = brute_force(log_probs.tolist(), y, weights, candidates)
    assert tuple(columns) == expected
    assert error == pytest.approx(least, abs=1e-12)


def test_work_in_blocks_gives_the_same(monkeypatch):
    """The number of tuples that are tried at a time changes nothing."""
    log_probs, y, weights = problem(3, 50, 30, seed=3)
    candidates = candidate_tokens(log_probs, y, weights, 3, 10)
    whole = best_tuple(log_probs, y, weights, candidates, rng=rng())
    for module in (tuples, verbalizers):
        monkeypatch.setattr(module, "_BLOCK", 7)
    cut = best_tuple(log_probs, y, weights, candidates, rng=rng())
    assert whole[0].tolist() == cut[0].tolist()
    assert whole[1] == pytest.approx(cut[1], abs=1e-15)


def search(max_tuples, k=12):
    """Whether the search for three classes drew at random, and the error that it found."""
    log_probs, y, weights = problem(3, 20, 60, seed=4)
    candidates = [np.arange(k) + k * number for number in range(3)]
    random = rng()
    columns, error = best_tuple(
        log_probs, y, weights, candidates, rng=random, max_tuples=max_tuples
    )
    assert all(c in of_class for c, of_class in zip(columns, candidates, strict=True))
    alone = brute_force(log_probs.tolist(), y, weights, [[column] for column in columns.tolist()])
    assert error == pytest.approx(alone[1], abs=1e-12)
    return random.bit_generator.state != rng().bit_generator.state, error


def test_tuples_are_sampled_only_where_they_are_too_many():
    """12³ = 1,728 tuples: all of them at that limit, a sample under it."""
    sampled, least = search(1728)
    assert not sampled
    sampled, error = search(1727)
    assert sampled
    assert error >= least
    sampled, error = search(1)
    assert sampled
    assert error >= least


def test_samples_of_pairs_come_in_both_orders():
    """Two classes, one candidate each, many draws of one: both orders turn up."""
    log_probs = np.log(np.array([[0.2, 0.7], [0.6, 0.3]], np.float32))
    found = set()
    for seed in range(20):
        columns, _ = best_tuple(
            log_probs,
            np.array([0, 1]),
            np.full(2, 0.5),
            [np.array([0]), np.array([1])],
            rng=np.random.default_rng(seed),
            max_tuples=1,
        )
        found.add(tuple(columns.tolist()))
    assert found == {(0, 1), (1, 0)}


def test_work_is_bounded_but_a_thousand_tuples_are_tried(monkeypatch):
    """Rows × classes × tuples is limited, down to 1,000 tuples and no further."""
    monkeypatch.setattr(tuples, "_MAX_WORK", 1200 * 20 * 3)
    assert search(20_000)[0]  # 1,728 tuples, 1,200 allowed
    assert not search(20_000, k=10)[0]  # 1,000 tuples
    monkeypatch.setattr(tuples, "_MAX_WORK", 1)
    assert not search(20_000, k=10)[0]
    assert search(999, k=10)[0]


def test_many_classes_with_one_candidate_each():
    """Few tuples of very many classes are enumerated too."""
    n_classes = 100
    log_probs = np.where(np.eye(n_classes), -0.5, -3).astype(np.float32)
    candidates = [np.array([number]) for number in range(n_classes)]
    weights = np.full(n_classes, 1 / n_classes)
    columns, error = best_tuple(log_probs, np.arange(n_classes), weights, candidates, rng=rng())
    assert columns.tolist() == list(range(n_classes))
    assert error == 0


def test_seventy_seven_classes_need_little_memory():
    """5⁷⁷ tuples are never formed."""
    log_probs, y, weights = problem(77, 385, 300, seed=5)
    candidates = candidate_tokens(log_probs, y, weights, 77, 5)
    tracemalloc.start()
    try:
        columns, error = best_tuple(log_probs, y, weights, candidates, rng=rng())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert columns.shape == (77,)
    assert 0 < error < 1
    assert peak < 50e6


@pytest.mark.parametrize(
    ("candidates", "max_tuples"),
    [([], 10), ([np.array([0]), np.array([], int)], 10), ([np.array([0]), np.array([1])], 0)],
)
def test_nothing_to_try_is_refused(candidates, max_tuples):
    """No classes, a class without candidates, or no tuple allowed."""
    with pytest.raises(ValueError, match="nothing to try"):
        best_tuple(
            np.zeros((2, 2), np.float32),
            np.array([0, 1]),
            np.full(2, 0.5),
            candidates,
            rng=rng(),
            max_tuples=max_tuples,
        )
