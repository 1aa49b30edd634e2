"""The `logit` algorithm: a round worked by hand, Newton's step, and the choice of rounds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from blackbox.boosting.calibration import (
    calibrate,
    cross_validated_losses,
    fit_folds,
    held_out_contributions,
    with_all_rows,
)
from blackbox.boosting.logit import Scaling, Settings, fit_logit, scaling_of, staged_scores
from blackbox.boosting.verbalizers import correlated_tokens
from blackbox.boosting.weak_learner import softmax


def problem(seed=0, n=60, n_classes=3, n_tokens=20, n_prompts=2):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    matrices = []
    for _ in range(n_prompts):
        matrix = rng.standard_normal((n, n_tokens)).astype(np.float32)
        matrix[np.arange(n), y] += 1.5
        matrices.append(matrix)
    return matrices, y, np.ones(n)


def test_one_round_is_what_a_hand_works_out():
    # Two rows, two classes, two tokens; token 0 is likelier in class 0 and token 1 doesn't vary.
    matrix = np.array([[1.0, 0.0], [-1.0, 0.0]], np.float32)
    fit = fit_logit([matrix], np.array([0, 1]), np.ones(2), 2, Settings(1, 0.3, 1))
    # F = log(1/2) for both, p = 1/2, residual (+1/2, −1/2) and (−1/2, +1/2).
    # Correlation of token 0 with class 0 is 1/2 + 1/2 = 1, with class 1 −1: it weighs +1 and −1.
    # H = (x, −x) = (1, −1) and (−1, 1); Σ R.H = 4 . 1/2 = 2; the variance of H under p is 1 a row.
    # The step is 2 / (2 + 1) = 2/3, times the learning rate 0.3.
    (learner,) = fit.learners
    assert learner.columns.tolist() == [[0], [0]]
    assert learner.token_weights.tolist() == [[1.0], [-1.0]]
    assert learner.weight == pytest.approx(0.2)
    _, scores = staged_scores(fit, [matrix])
    assert scores - fit.initial == pytest.approx(np.array([[0.2, -0.2], [-0.2, 0.2]]))


def test_scores_begin_at_the_log_odds_of_the_classes():
    matrices, _, _ = problem(n=6, n_prompts=1)
    fit = fit_logit(matrices, np.array([0, 0, 0, 1, 1, 2]), np.ones(6), 3, Settings(1, 0.3, 2))
    assert np.exp(fit.initial) == pytest.approx([3 / 6, 2 / 6, 1 / 6])


def test_training_loss_falls_with_every_round():
    matrices, y, weights = problem()
    fit = fit_logit(matrices, y, weights, 3, Settings(40, 0.3, 4))
    losses = [
        -np.log(softmax(scores)[np.arange(len(y)), y]).mean()
        for scores in staged_scores(fit, matrices)[1:]
    ]
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))


def test_prompts_take_turns():
    matrices, y, weights = problem(n_prompts=3)
    fit = fit_logit(matrices, y, weights, 3, Settings(7, 0.3, 4))
    assert [learner.prompt for learner in fit.learners] == [0, 1, 2, 0, 1, 2, 0]


def test_a_weight_of_two_is_a_row_that_stands_twice():
    matrices, y, weights = problem(n=30)
    weights[:10] = 2
    rows = np.repeat(np.arange(30), weights.astype(int))
    weighted = fit_logit(matrices, y, weights, 3, Settings(10, 0.3, 4))
    repeated = fit_logit([m[rows] for m in matrices], y[rows], np.ones(40), 3, Settings(10, 0.3, 4))
    for one, other in zip(weighted.learners, repeated.learners, strict=True):
        assert one.columns.tolist() == other.columns.tolist()
        assert one.weight == pytest.approx(other.weight, rel=1e-5)


def test_it_stops_where_no_token_tells_anything():
    matrix = np.zeros((6, 4), np.float32)
    assert not fit_logit([matrix], np.arange(6) % 2, np.ones(6), 2, Settings(9, 0.3, 2)).learners


def test_fewer_tokens_than_asked_for_are_enough():
    matrices, y, weights = problem(n_tokens=3)
    fit = fit_logit(matrices, y, weights, 3, Settings(3, 0.3, 16))
    assert fit.learners[0].columns.shape == (3, 16)
    assert (fit.learners[0].token_weights != 0).sum(axis=1).tolist() == [3, 3, 3]


def test_equal_correlations_go_to_the_lower_column():
    columns, weights = correlated_tokens(np.array([[0.5, -0.5, 0.5]], np.float32), 2)
    assert columns.tolist() == [[0, 1]]
    assert weights.tolist() == [[0.5, -0.5]]


def test_a_token_weighs_what_it_has_over_the_strongest_that_is_left_out():
    correlation = np.array([[0.1, 0.5, -0.3, 0.2]], np.float32)
    columns, weights = correlated_tokens(correlation, 2)
    # 0.5 − 0.2 and 0.3 − 0.2, of 0.4 in all
    assert columns.tolist() == [[1, 2]]
    assert weights[0] == pytest.approx([0.75, -0.25], abs=1e-3)
    _, weights = correlated_tokens(correlation, 6)
    # nothing is left out
    assert weights[0] == pytest.approx(np.array([5, -3, 2, 1, 0, 0]) / 11, abs=1e-3)


def test_the_strongest_tokens_are_those_of_a_stable_sort():
    rng = np.random.default_rng(0)
    for n_tokens in (1, 4, 5, 60):
        correlation = rng.integers(-6, 7, (3, n_tokens)).astype(np.float32)
        strength = np.abs(correlation) / np.maximum(np.abs(correlation).max(axis=1), 1)[:, None]
        wanted = np.argsort(-strength.round(5), axis=1, kind="stable")[:, :4]
        columns, _ = correlated_tokens(correlation, 4)
        assert columns[:, :n_tokens].tolist() == wanted.tolist()


def test_a_round_looks_partly_at_what_its_prompt_alone_gets_wrong():
    matrices, y, weights = problem(n=60)
    together, mixed, apart = (
        fit_logit(matrices, y, weights, 3, Settings(20, 0.3, 4, own_share=share))
        for share in (0.0, 0.3, 1.0)
    )
    # where nothing was said before, rounds differ by what a step of theirs is worth
    assert together.learners[0].weight == pytest.approx(2 * apart.learners[0].weight)
    assert mixed.learners[1].weight != pytest.approx(together.learners[1].weight)
    # with a share of 1 a prompt learns as if the others weren't there, and has one of P voices
    own = fit_logit(matrices[:1], y, weights, 3, Settings(10, 0.3, 4))
    theirs = [learner for learner in apart.learners if learner.prompt == 0]
    for one, other in zip(theirs, own.learners, strict=True):
        assert one.weight * len(matrices) == pytest.approx(other.weight, rel=1e-5)


def test_many_prompts_that_say_the_same_are_as_good_as_one():
    matrices, y, weights = problem(n=60)
    one = fit_logit(matrices[:1], y, weights, 3, Settings(20, 1.0, 4))
    many = fit_logit(matrices[:1] * 40, y, weights, 3, Settings(800, 1.0, 4))
    *_, alone = staged_scores(one, matrices[:1])
    *_, together = staged_scores(many, matrices[:1] * 40)
    losses = [-np.log(softmax(s)[np.arange(60), y]).mean() for s in (alone, together)]
    # steps don't overshoot, however many prompts take turns
    assert losses[1] <= losses[0] + 1e-6


def test_a_single_prompt_knows_no_share():
    matrices, y, weights = problem(n=60)
    fits = [
        fit_logit(matrices[:1], y, weights, 3, Settings(10, 0.3, 4, own_share=share))
        for share in (0.0, 0.7)
    ]
    for one, other in zip(fits[0].learners, fits[1].learners, strict=True):
        assert one.weight == pytest.approx(other.weight)


def test_standardising_uses_weighted_moments():
    matrix = np.array([[1.0], [3.0]], np.float32)
    scaling = scaling_of(matrix, np.array([3.0, 1.0]))
    assert scaling.mean.tolist() == [1.5]
    assert scaling.scale[0] == pytest.approx(np.sqrt(0.75) + 0.6)
    assert Scaling(scaling.mean, scaling.scale).apply(matrix)[0, 0] == pytest.approx(
        -0.5 / (np.sqrt(0.75) + 0.6)
    )


FOLDS = [(np.arange(20), np.arange(20, 40)), (np.arange(20, 40), np.arange(20))]


def test_held_out_loss_begins_at_the_classes_shares_and_falls_where_there_is_something_to_learn():
    rng = np.random.default_rng(3)
    noise = [rng.standard_normal((40, 30)).astype(np.float32)]
    y = np.arange(40) % 2
    losses = cross_validated_losses(noise, y, np.ones(40), 2, FOLDS, Settings(30, 0.3, 4))
    assert losses[0] == pytest.approx(np.log(2))
    assert losses[-1] > losses[0]
    matrices, y, weights = problem(n=40)
    losses = cross_validated_losses(matrices, y, weights, 3, FOLDS, Settings(30, 0.3, 4))
    assert losses.shape == (31,)
    assert losses[10] < losses[0]


def calibrated(matrices, y, weights, n_classes):
    settings = Settings(30, 0.3, 4)
    fits = list(fit_folds(matrices, y, weights, n_classes, FOLDS, settings))
    initial, added = held_out_contributions(fits, y, weights)
    return calibrate(initial + added.sum(axis=0), y, weights)


def test_calibration_is_modest_about_noise_and_never_worse_than_none():
    rng = np.random.default_rng(3)
    noise = [rng.standard_normal((40, 30)).astype(np.float32)]
    temperature, _, loss = calibrated(noise, np.arange(40) % 2, np.ones(40), 2)
    assert temperature > 5
    assert loss == pytest.approx(np.log(2), abs=0.02)
    matrices, y, weights = problem(n=40)
    temperature, _, loss = calibrated(matrices, y, weights, 3)
    plain = cross_validated_losses(matrices, y, weights, 3, FOLDS, Settings(30, 0.3, 4))[-1]
    assert 0.5 <= temperature < 5
    assert loss <= plain + 1e-9


def test_held_out_rows_say_nothing_about_the_limits_they_meet():
    matrices, y, weights = problem(n=40)
    settings = Settings(30, 0.3, 4)
    fits = list(fit_folds(matrices, y, weights, 3, FOLDS, settings))
    _, added = held_out_contributions(fits, y, weights)
    swapped = y.copy()
    swapped[20:] = (y[20:] + 1) % 3
    fits = list(fit_folds(matrices, swapped, weights, 3, FOLDS[:1], settings))
    _, others = held_out_contributions(fits, swapped, weights)
    # of the first fold, whose training rows are the same; sums differ in their last digits
    assert added[:, 20:] == pytest.approx(others[:, 20:], abs=1e-5)


def test_seventy_seven_classes_need_no_product():
    matrices, y, weights = problem(n=231, n_classes=77, n_tokens=120)
    fit = fit_logit(matrices, y, weights, 77, Settings(20, 0.3, 16))
    *_, scores = staged_scores(fit, matrices)
    assert (scores.argmax(axis=1) == y).mean() > 0.5


def test_folds_that_are_boosted_together_are_those_that_are_boosted_alone():
    matrices, y, weights = problem(n=40, n_prompts=3)
    weights = weights + np.arange(40) % 3
    matrices.insert(1, np.zeros((40, 5), np.float32))  # no token of this prompt correlates
    matrices.insert(2, np.zeros((40, 0), np.float32))
    settings = Settings(12, 0.3, 4)
    folds = with_all_rows([*FOLDS, (np.flatnonzero(y == 0), np.flatnonzero(y))], len(y))
    together = list(fit_folds(matrices, y, weights, 3, folds, settings))
    assert [len(fold.fit.learners) for fold in together[:-1]] == [
        7,
        7,
        7,
    ]  # two in five idle
    for fold, (train, _) in zip(together, folds, strict=True):
        seen = fold.read(train)
        alone = fit_logit(seen, y[train], weights[train], 3, settings)
        stages = staged_scores(alone, seen)
        assert staged_scores(fold.fit, seen) == pytest.approx(stages, abs=1e-5)
        added = fold.contributions[:, train].sum(axis=0)
        centred = stages[-1] - stages[0] - (stages[-1] - stages[0]).mean(axis=1, keepdims=True)
        assert added == pytest.approx(centred, abs=1e-5)


def test_a_class_without_rows_gets_the_score_0_and_starts_as_one_with_a_single_row():
    matrices, y, weights = problem(n_classes=3)
    kept = y < 2
    rows = [matrix[kept] for matrix in matrices]
    settings = Settings(6, 0.5, 4)
    two = fit_logit(rows, y[kept], weights[kept], 2, settings)
    three = fit_logit(rows, y[kept], weights[kept], 3, settings)
    np.testing.assert_allclose(three.initial[:2], two.initial)
    assert three.initial[2] == pytest.approx(np.log(1 / weights[kept].sum()))
    assert len(three.learners) == len(two.learners)
    for with_three, with_two in zip(three.learners, two.learners, strict=True):
        assert not with_three.token_weights[2].any()
        np.testing.assert_array_equal(with_three.columns[:2], with_two.columns)
        np.testing.assert_allclose(with_three.token_weights[:2], with_two.token_weights, atol=1e-6)
        assert with_three.weight == pytest.approx(with_two.weight, rel=1e-5)
