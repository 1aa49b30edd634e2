"""The ensemble: keeps what it reads, and says the same as before it was made compact."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from blackbox.boosting import logit
from blackbox.boosting.algorithms import ALGORITHMS
from blackbox.boosting.early_stopping import no_bounds
from blackbox.boosting.ensemble import Reading, prune_unused
from blackbox.boosting.weak_learner import softmax


@pytest.fixture(scope="module")
def trained():
    rng = np.random.default_rng(1)
    y = np.arange(60) % 3
    matrices = [rng.standard_normal((60, 30)).astype(np.float32) - 4 for _ in range(3)]
    for matrix in matrices[:2]:
        matrix[np.arange(60), y] += 2
    scalings = [logit.scaling_of(matrix, np.ones(60)) for matrix in matrices]
    standardised = [s.apply(m) for s, m in zip(scalings, matrices, strict=True)]
    fit = logit.fit_logit(standardised, y, np.ones(60), 3, logit.Settings(2, 0.3, 4))
    ids = np.arange(30, dtype=np.int32) * 2
    readings = [Reading(ids, -9.0, scaling) for scaling in scalings]
    ensemble, prompts = prune_unused(ALGORITHMS["logit"], fit.learners, readings, fit.initial)
    return matrices, standardised, fit, ensemble, prompts


def test_prompts_and_tokens_that_nobody_reads_are_dropped(trained):
    _matrices, _, _, ensemble, prompts = trained
    assert prompts == [0, 1]
    assert all(len(reading.token_ids) <= 12 for reading in ensemble.readings)


def kept(matrices, ensemble, prompts):
    return [
        matrices[prompt][:, reading.token_ids // 2]
        for prompt, reading in zip(prompts, ensemble.readings, strict=True)
    ]


def test_scores_are_those_of_all_learners_one_by_one(trained):
    matrices, standardised, fit, ensemble, prompts = trained
    *_, expected = logit.staged_scores(fit, standardised)
    read = kept(matrices, ensemble, prompts)
    # what all classes get alike decides nothing, and is left out
    expected = expected - expected.mean(axis=1, keepdims=True) + fit.initial.mean()
    assert ensemble.decision(read) == pytest.approx(expected, abs=1e-5)
    *_, staged = ensemble.staged_decision(read)
    assert staged == pytest.approx(expected, abs=1e-5)
    assert ensemble.probabilities(ensemble.decision(read)) == pytest.approx(
        softmax(expected), abs=1e-5
    )


def test_votes_add_up_to_the_scores(trained):
    matrices, _, _fit, ensemble, prompts = trained
    read = kept(matrices, ensemble, prompts)
    total = ensemble.initial + sum(ensemble.votes(read, one) for one in ensemble.learners)
    assert total == pytest.approx(ensemble.decision(read), abs=1e-5)


def test_a_row_has_the_same_scores_alone_and_in_a_batch(trained):
    matrices, _, _, ensemble, prompts = trained
    read = kept(matrices, ensemble, prompts)
    together = ensemble.decision(read)
    alone = np.vstack([ensemble.decision([m[row : row + 1] for m in read]) for row in range(60)])
    assert (together == alone).all()


def test_what_a_prompt_adds_stays_within_its_limits(trained):
    matrices, _, _, ensemble, prompts = trained
    read = kept(matrices, ensemble, prompts)
    free = ensemble.contributions(read)
    low, high = np.full((2, 3), -0.05), np.full((2, 3), 0.02)
    early_stopping = dataclasses.replace(no_bounds(2, 3), low=low, high=high)
    narrow = dataclasses.replace(ensemble, early_stopping=early_stopping)
    assert narrow.contributions(read) == pytest.approx(np.clip(free, -0.05, 0.02), abs=0)
    total = narrow.initial + narrow.contributions(read).sum(axis=0)
    assert (narrow.decision(read) == total).all()
    *_, staged = narrow.staged_decision(read)
    assert staged == pytest.approx(total, abs=1e-6)
