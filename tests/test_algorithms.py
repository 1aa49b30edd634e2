"""The rules that hold for every boosting algorithm in the table."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest

from blackbox import PromptBoostingClassifier
from blackbox.boosting import ALGORITHM_NAMES
from blackbox.boosting.algorithms import ALGORITHMS
from blackbox.boosting.early_stopping import as_decision

WORDS = ["goal", "match", "bank", "stock", "film", "song"]


@pytest.fixture(scope="module", params=ALGORITHM_NAMES)
def trained(request):
    """An ensemble of three classes, and the matrices of other texts."""
    texts = [f"{word} number {i}" for i in range(12) for word in WORDS]
    labels = [WORDS.index(text.split()[0]) // 2 for text in texts]
    classifier = PromptBoostingClassifier(
        "deterministic", algorithm=request.param, random_state=0, store=False, top_k=50
    ).fit(texts, labels)
    others = [f"a {word} and another {word}" for word in WORDS]
    return classifier.ensemble_, classifier.model_.read(classifier.connect(), others)[1].matrices


def test_the_names_are_the_keys_of_the_table():
    assert tuple(ALGORITHMS) == ALGORITHM_NAMES
    assert [algorithm.name for algorithm in ALGORITHMS.values()] == list(ALGORITHM_NAMES)


def test_the_names_load_neither_numpy_nor_scikit_learn():
    code = "import sys, blackbox.boosting; print({'numpy', 'sklearn'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHM_NAMES)
def test_an_algorithm_is_documented_and_survives_copies(algorithm):
    assert type(algorithm).__doc__
    assert copy.deepcopy(algorithm) == algorithm
    assert pickle.loads(pickle.dumps(algorithm)) == algorithm


def test_contributions_add_up_to_the_decision_and_keep_their_bounds(trained):
    ensemble, matrices = trained
    contributions = ensemble.contributions(matrices)
    scores = ensemble.initial + contributions.sum(axis=0)
    assert ensemble.decision(matrices) == pytest.approx(as_decision(scores))
    low, high = ensemble.early_stopping.low, ensemble.early_stopping.high
    assert (contributions >= low[:, None] - 1e-12).all()
    assert (contributions <= high[:, None] + 1e-12).all()


def test_the_last_stage_is_the_decision(trained):
    ensemble, matrices = trained
    stages = list(ensemble.staged_decision(matrices))
    assert len(stages) == len(ensemble.learners)
    assert stages[-1] == pytest.approx(ensemble.decision(matrices), abs=1e-5)


def test_probabilities_sum_to_one_and_keep_the_first_class(trained):
    ensemble, matrices = trained
    decision = ensemble.decision(matrices)
    probabilities = ensemble.probabilities(decision)
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert (probabilities.argmax(axis=1) == decision.argmax(axis=1)).all()


def test_shapes_are_those_of_classes_and_tokens(trained):
    ensemble, matrices = trained
    n, n_classes = len(matrices[0]), ensemble.n_classes
    for learner in ensemble.learners:
        assert ensemble.votes(matrices, learner).shape == (n, n_classes)
        added = ensemble.token_contributions(matrices, learner)
        assert added.shape == (n, *learner.columns.shape)
    assert ensemble.prompt_votes(matrices).shape == (len(matrices), n, n_classes)
    for number, matrix in enumerate(matrices):
        assert ensemble.token_weights(number).shape == (matrix.shape[1], n_classes)


def test_a_trained_ensemble_passes_the_check_of_its_algorithm(trained):
    ensemble, _ = trained
    ensemble.algorithm.check(ensemble)


def test_risk_is_learned_only_by_algorithms_that_can(trained):
    ensemble, _ = trained
    assert ensemble.algorithm.can_stop_at_risk or not ensemble.early_stopping.knows_risk


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHM_NAMES)
def test_the_default_number_of_rounds_does_not_fall_with_more_rows(algorithm):
    rounds = [algorithm.default_n_estimators(weight, 3) for weight in (1.0, 64.0, 10_000.0)]
    assert rounds == sorted(rounds)
    assert np.min(rounds) >= 1
