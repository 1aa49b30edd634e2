"""Measures: against published values, by hand, and against scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as theirs

from blackbox.metrics import (
    Evaluation,
    brier_score,
    evaluate,
    expected_calibration_error,
    wilson_interval,
)

NOTHING = [math.nan, math.nan, math.nan]


def problem(n: int = 200, n_classes: int = 4, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(n_classes), n)
    codes = np.array([rng.choice(n_classes, p=row) for row in probabilities])
    return codes, probabilities


class TestWilson:
    @pytest.mark.parametrize(
        ("successes", "n", "low", "high"),
        [
            # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0000, 0.1611),
            (1, 29, 0.0061, 0.1718),
            # by hand: z² / (n + z²), its mirror image, and 1/2 ± z / (2 √(n + z²))
            (0, 10, 0.0000, 0.2775),
            (10, 10, 0.7225, 1.0000),
            (5, 10, 0.2366, 0.7634),
        ],
    )
    def test_it_gives_the_published_values(
        self, successes: int, n: int, low: float, high: float
    ) -> None:
        assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)

    def test_without_rows_it_is_everything(self) -> None:
        assert wilson_interval(0, 0) == (0.0, 1.0)

    def test_its_ends_are_exact_at_the_edges(self) -> None:
        assert wilson_interval(0, 7)[0] == 0.0
        assert wilson_interval(7, 7)[1] == 1.0

    @given(st.integers(1, 10**9).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
    def test_it_holds_the_share_and_mirrors(self, counts: tuple[int, int]) -> None:
        successes, n = counts
        low, high = wilson_interval(successes, n)
        assert 0 <= low <= successes / n <= high <= 1
        assert low < high
        mirrored = wilson_interval(n - successes, n)
        assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)

    def test_a_larger_z_is_a_wider_interval(self) -> None:
        narrow, wide = wilson_interval(3, 10, z=1.0), wilson_interval(3, 10, z=2.576)
        assert wide[0] < narrow[0] < 0.3 < narrow[1] < wide[1]


class TestBrier:
    def test_by_hand(self) -> None:
        # (0.3² + 0.3²), (0.9² + 0.9²): mean 0.9
        probabilities = np.array([[0.7, 0.3], [0.9, 0.1]])
        assert brier_score(np.array([0, 1]), probabilities) == pytest.approx((0.18 + 1.62) / 2)

    def test_three_classes_by_hand(self) -> None:
        probabilities = np.array([[0.5, 0.3, 0.2]])
        assert brier_score(np.array([2]), probabilities) == pytest.approx(0.25 + 0.09 + 0.64)

    def test_it_is_0_for_certain_and_right_and_2_for_certain_and_wrong(self) -> None:
        certain = np.eye(3)
        assert brier_score(np.array([0, 1, 2]), certain) == 0
        assert brier_score(np.array([1, 2, 0]), certain) == 2

    def test_for_two_classes_it_is_twice_scikit_learn_s(self) -> None:
        codes, probabilities = problem(n_classes=2)
        expected = 2 * theirs.brier_score_loss(codes, probabilities[:, 1])
        assert brier_score(codes, probabilities) == pytest.approx(expected)


class TestCalibration:
    def test_by_hand(self) -> None:
        # bin of 0.9: confidence 0.9, half are right: gap 0.4 in two of three rows;
        # bin of 0.6: right: gap 0.4 in one of three rows
        probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4]])
        codes = np.array([0, 0, 0])
        assert expected_calibration_error(codes, probabilities) == pytest.approx(0.4)

    def test_gaps_of_one_bin_cancel_and_those_of_two_don_t(self) -> None:
        probabilities = np.array([[0.75, 0.25]] * 4)
        assert expected_calibration_error(np.array([0, 0, 0, 1]), probabilities) == 0
        apart = np.array([[0.95, 0.05]] * 2 + [[0.55, 0.45]] * 2)
        # 0.95 with one of two right, 0.55 with both right: (2 . 0.45 + 2 . 0.45) / 4
        assert expected_calibration_error(np.array([0, 1, 0, 0]), apart) == pytest.approx(0.45)

    def test_an_edge_belongs_to_the_bin_below_it(self) -> None:
        # with two bins, 0.5 is in the first and 0.6 in the second
        probabilities = np.array([[0.5, 0.25, 0.25], [0.6, 0.2, 0.2]])
        error = expected_calibration_error(np.array([0, 1]), probabilities, bins=2)
        assert error == pytest.approx((0.5 + 0.6) / 2)
        together = expected_calibration_error(np.array([0, 1]), probabilities, bins=1)
        assert together == pytest.approx(abs(1 - 1.1) / 2)

    def test_certainty_is_in_the_last_bin(self) -> None:
        certain = np.eye(2)
        assert expected_calibration_error(np.array([0, 1]), certain) == 0
        assert expected_calibration_error(np.array([1, 0]), certain) == 1

    def test_it_agrees_with_a_slow_copy(self) -> None:
        codes, probabilities = problem(500)
        confidence, top = probabilities.max(axis=1), probabilities.argmax(axis=1)
        total = 0.0
        for number in range(15):
            inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
            if inside.any():
                gap = (top[inside] == codes[inside]).mean() - confidence[inside].mean()
                total += abs(gap) * inside.mean()
        assert expected_calibration_error(codes, probabilities) == pytest.approx(total)


class TestEvaluate:
    @pytest.mark.parametrize("n_classes", [2, 4, 9])
    def test_it_agrees_with_scikit_learn(self, n_classes: int) -> None:
        codes, probabilities = problem(n_classes=n_classes)
        found = evaluate(codes, probabilities, list(range(n_classes)))
        top = probabilities.argmax(axis=1)
        assert found.n == 200
        assert found.accuracy == pytest.approx(theirs.accuracy_score(codes, top))
        assert found.macro_f1 == pytest.approx(theirs.f1_score(codes, top, average="macro"))
        assert found.log_loss == pytest.approx(
            theirs.log_loss(codes, probabilities, labels=range(n_classes))
        )
        assert found.confusion == theirs.confusion_matrix(codes, top).tolist()
        assert found.coverage == 1
        assert (found.accuracy_low, found.accuracy_high) == wilson_interval(
            int((top == codes).sum()), 200
        )
        assert found.brier == brier_score(codes, probabilities)
        assert found.ece == expected_calibration_error(codes, probabilities)
        assert found.classes == [str(label) for label in range(n_classes)]

    def test_abstentions_count_as_errors_and_stay_out_of_the_rest(self) -> None:
        codes = np.array([0, 0, 1, 1, 2, 2])
        probabilities = np.array(
            [[0.8, 0.1, 0.1], NOTHING, [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], NOTHING, [0.1, 0.1, 0.8]]
        )
        found = evaluate(codes, probabilities, ["a", "b", "c"])
        assert found.n == 6
        assert found.accuracy == 3 / 6
        assert (found.accuracy_low, found.accuracy_high) == wilson_interval(3, 6)
        assert found.coverage == pytest.approx(4 / 6)
        assert found.confusion == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
        # a: precision 1/2, recall 1/2; b: 1, 1/2; c: 1, 1/2
        assert found.macro_f1 == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)
        assert found.log_loss == pytest.approx(-np.log([0.8, 0.7, 0.3, 0.8]).mean())
        answered = ~np.isnan(probabilities[:, 0])
        assert found.brier == brier_score(codes[answered], probabilities[answered])
        assert found.ece == expected_calibration_error(codes[answered], probabilities[answered])

    def test_without_any_answer_what_needs_one_is_none(self) -> None:
        found = evaluate(np.array([0, 1, 2]), np.array([NOTHING] * 3), ["a", "b", "c"])
        assert found == Evaluation(
            n=3,
            accuracy=0.0,
            accuracy_low=0.0,
            accuracy_high=wilson_interval(0, 3)[1],
            macro_f1=0.0,
            log_loss=None,
            brier=None,
            ece=None,
            coverage=0.0,
            confusion=[[0] * 3] * 3,
            classes=["a", "b", "c"],
        )

    def test_a_probability_of_0_costs_much_and_not_everything(self) -> None:
        found = evaluate(np.array([1]), np.array([[1.0, 0.0]]), ["a", "b"])
        assert found.log_loss == pytest.approx(-math.log(1e-15))

    def test_a_class_without_rows_keeps_its_place(self) -> None:
        probabilities = np.array([[0.9, 0.05, 0.05], [0.1, 0.1, 0.8]])
        found = evaluate(np.array([0, 2]), probabilities, ["a", "b", "c"])
        assert found.confusion == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
        assert found.macro_f1 == pytest.approx(2 / 3)

    def test_no_rows_can_t_be_measured(self) -> None:
        with pytest.raises(ValueError, match="no rows"):
            evaluate(np.empty(0, np.intp), np.empty((0, 2)), ["a", "b"])
