"""Features: missing tokens are bounded by one floor, and weights count as repeated rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackbox.answers.features import (
    FLOOR_MARGIN,
    floor_of,
    frequent_matrices,
    frequent_tokens,
    gather,
    weighted_median,
)
from blackbox.protocol import NO_TOKEN

IDS = np.array([[5, 2, 9], [2, 5, 7], [2, 7, NO_TOKEN]], np.int32)
LOG_PROBS = np.array([[-0.5, -1.5, -3.0], [-0.4, -2.0, -4.0], [-0.2, -2.5, -np.inf]], np.float32)
ONES = np.ones(3)


def test_the_floor_is_the_median_last_log_probability_less_a_margin():
    assert floor_of(IDS, LOG_PROBS, ONES) == pytest.approx(-3.0 - FLOOR_MARGIN)


def test_a_missing_value_is_the_floor_and_none_is_below_it():
    matrix = gather(IDS, LOG_PROBS, np.array([2, 7, 9], np.int32), -3.5)
    assert matrix.tolist() == [
        [-1.5, -3.5, -3.0],
        [pytest.approx(-0.4), -3.5, -3.5],
        [pytest.approx(-0.2), -2.5, -3.5],
    ]


def test_tokens_that_nobody_wants_are_left_out():
    assert gather(IDS, LOG_PROBS, np.array([], np.int32), -1.0).shape == (3, 0)
    assert gather(IDS, LOG_PROBS, np.array([1000], np.int32), -1.0).tolist() == [[-1.0]] * 3


def test_frequent_tokens_are_those_of_a_share_of_the_rows_in_order():
    assert frequent_tokens(IDS, ONES, share=0.6, at_most=10).tolist() == [2, 5, 7]
    assert frequent_tokens(IDS, ONES, share=0.0, at_most=10).tolist() == [2, 5, 7, 9]
    assert frequent_tokens(IDS, ONES, share=0.0, at_most=2).tolist() == [2, 5]


def test_a_row_of_weight_zero_brings_no_token():
    assert 9 not in frequent_tokens(IDS, np.array([0.0, 1, 1]), share=0.0, at_most=10)


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(1, 4)), min_size=1, max_size=12))
def test_a_weighted_median_is_the_median_of_repeated_values(pairs):
    values = np.array([value for value, _ in pairs], float)
    weights = np.array([weight for _, weight in pairs])
    repeated = np.repeat(values, weights)
    assert weighted_median(values, weights.astype(float)) == np.median(repeated)


def test_matrices_of_some_rows_are_those_of_their_answers_alone():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 30, (2, 20, 6)).astype(np.int32)
    values = -rng.random(ids.shape).astype(np.float32)
    rows, weights = np.array([13, 2, 7, 19]), rng.random(4)
    some = frequent_matrices(ids, values, weights, 0.3, rows)
    alone = frequent_matrices(ids[:, rows], values[:, rows], weights, 0.3)
    for one, other in zip(some, alone, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_ids_of_31_bits_are_read_as_small_ones_are():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 30, (2, 20, 6)).astype(np.int32)
    ids[:, ::3, 4:] = NO_TOKEN
    values = -rng.random(ids.shape).astype(np.float32)
    shift = 2**31 - 40
    large = np.where(ids == NO_TOKEN, NO_TOKEN, ids + shift).astype(np.int32)
    matrices, tokens, floors = frequent_matrices(ids, values, np.ones(20), 0.2)
    others, large_tokens, large_floors = frequent_matrices(large, values, np.ones(20), 0.2)
    assert floors == large_floors
    for one, other in zip(matrices, others, strict=True):
        assert np.array_equal(one, other)
    for one, other in zip(tokens, large_tokens, strict=True):
        assert np.array_equal(one + shift, other)


def answers_with_a_rare_token(n_tokens, n_rows_with, width=None):
    """Return 40 answers of as many tokens, of which some rows have token 999 in the last place."""
    ids = np.tile(np.arange(n_tokens, dtype=np.int32), (1, 40, 1))
    ids[0, :n_rows_with, -1] = 999
    values = np.tile(-np.arange(1, n_tokens + 1, dtype=np.float32), (1, 40, 1))
    gap = ((0, 0), (0, 0), (0, (width or n_tokens) - n_tokens))
    return np.pad(ids, gap, constant_values=NO_TOKEN), np.pad(values, gap, constant_values=-np.inf)


def test_the_shorter_the_answers_the_fewer_rows_must_report_a_token():
    def kept(*asked, share=0.1):
        _, (tokens,), _ = frequent_matrices(*answers_with_a_rare_token(*asked), np.ones(40), share)
        return 999 in tokens

    # a tenth of 40 rows for 200 tokens, a twentieth for 100, a hundredth for 20
    assert [kept(200, n) for n in (3, 4)] == [False, True]
    assert [kept(100, n) for n in (1, 2)] == [False, True]
    assert kept(20, 1)
    # what is not reported doesn't count, and more than 200 tokens are as 200
    assert [kept(100, n, 200) for n in (1, 2)] == [False, True]
    assert [kept(400, n) for n in (3, 4)] == [False, True]
    assert not kept(20, 1, share=1.0)
