"""Arrays larger than memory: in a file without a name, and training the same with them."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from backends.deterministic import DeterministicBackend
from blackbox import PromptBoostingClassifier, estimator
from blackbox.answers import arrays
from blackbox.answers.gatherer import Gatherer
from blackbox.boosting import training
from blackbox.prompts.pool import PromptPool


@pytest.fixture
def little_memory(monkeypatch):
    """A machine of 4,000 bytes, of which these arrays may take 1,000."""
    monkeypatch.setattr(arrays, "_in_memory", weakref.WeakValueDictionary())
    monkeypatch.setattr(arrays, "_memory", lambda: 4000)


def test_a_small_one_is_in_memory_and_a_large_one_in_a_file(monkeypatch, tmp_path):
    assert type(arrays.empty((3, 4), np.float32)) is np.ndarray
    monkeypatch.setattr(arrays, "_memory", lambda: 1000)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    large = arrays.empty((100, 4), np.float32)
    assert isinstance(large, np.memmap)
    large[:] = 7
    assert (large == 7).all()
    assert list(tmp_path.iterdir()) == []


def test_what_arrays_take_together_counts_for_as_long_as_they_are_there(little_memory):
    first = arrays.empty((150,), np.float32)
    part = first[:10]
    assert isinstance(arrays.empty((150,), np.float32), np.memmap)
    assert not isinstance(arrays.empty((10,), np.float32), np.memmap)
    del first
    assert isinstance(arrays.empty((150,), np.float32), np.memmap)
    del part
    assert not isinstance(arrays.empty((150,), np.float32), np.memmap)
    assert arrays.empty((0, 3), np.float32).shape == (0, 3)


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"memory.max": "5000\n"}, [5000]),
        ("0::/\n", {"memory.max": "max\n"}, []),
        ("0::/a/b\n", {"memory.max": "max", "a/memory.max": "7", "a/b/memory.max": "max"}, [7]),
        ("4:memory:/x\n", {"memory/memory.limit_in_bytes": "9"}, [9]),
        ("4:memory:/x\n", {"memory/x/memory.limit_in_bytes": "8"}, [8]),
        ("4:cpu:/x\n", {"cpu/x/memory.max": "8"}, []),
        (None, {}, []),
    ],
)
def test_the_limit_of_a_container_is_found(tmp_path, own, files, expected):
    for name, content in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    if own is not None:
        (tmp_path / "own").write_text(own)
    assert set(arrays._limits(tmp_path / "groups", tmp_path / "own")) == set(expected)


def test_a_container_s_limit_is_the_memory_there_is(monkeypatch):
    monkeypatch.setattr(arrays, "_limits", lambda groups, own: [5000, 1 << 62])
    assert arrays._memory.__wrapped__() == 5000


def test_answers_in_files_stay_there_through_gathering(little_memory, monkeypatch):
    texts = [(f"word {n} and {n % 7}", None) for n in range(60)]
    pool = PromptPool(["{text} It was {mask}", "{text}\nTopic: {mask}"])
    some = np.array([50, 3, 17])

    def gathered():
        gatherer = Gatherer(DeterministicBackend(), texts, 20)
        gatherer.answers(PromptPool([pool[1]]), some)  # as where candidates were tried
        return gatherer, gatherer.answers(pool)

    gatherer, mapped = gathered()
    assert isinstance(mapped.token_ids, np.memmap)
    assert isinstance(mapped.log_probs, np.memmap)
    assert gatherer.asked == 120
    few = gatherer.answers(pool, some)
    assert (few.token_ids == mapped.token_ids[:, some]).all()
    assert gatherer.asked == 120
    parts = [part for prompt in pool for part in gatherer._parts[prompt] if len(part[0]) > 10]
    assert all(isinstance(array, np.memmap) for part in parts for array in part[1:])
    monkeypatch.setattr(arrays, "_memory", lambda: 1 << 40)
    _, plain = gathered()
    assert not isinstance(plain.token_ids, np.memmap)
    assert (plain.token_ids == mapped.token_ids).all()
    assert (plain.log_probs == mapped.log_probs).all()


def test_coverage_in_blocks_is_that_of_all_rows_to_the_last_bit(monkeypatch):
    log_probs = np.log(np.random.default_rng(0).random((3, 50, 20)).astype(np.float32) / 20)
    monkeypatch.setattr(training, "_BLOCK", 8)
    whole = float(np.exp(log_probs.astype(np.float64)).sum(axis=2).mean())
    assert training._coverage(log_probs) == whole


def test_many_rows_are_scored_some_at_a_time(monkeypatch):
    texts = [f"{'match' if n % 2 else 'bank'} {n}" for n in range(30)]
    classifier = PromptBoostingClassifier(
        "deterministic", random_state=0, store=False, on_row_error="abstain"
    ).fit(texts, [n % 2 for n in range(30)])
    texts[4] = " "
    whole = classifier.predict_proba(texts)
    seen, real = [], type(classifier.ensemble_).decision

    def decision(ensemble, matrices):
        seen.append(len(matrices[0]))
        return real(ensemble, matrices)

    monkeypatch.setattr(type(classifier.ensemble_), "decision", decision)
    monkeypatch.setattr(estimator, "_CHUNK", 8)
    np.testing.assert_array_equal(classifier.predict_proba(texts), whole)
    assert np.isnan(whole[4]).all()
    assert seen == [8, 8, 8, 5]


@pytest.mark.parametrize("algorithm", ["logit", "samme"])
def test_training_is_the_same_with_arrays_in_files(monkeypatch, algorithm):
    texts = ["match goal", "bank loan", "goal team", "loan market", "team match"] * 6
    labels = ["sport", "money", "sport", "money", "sport"] * 6

    def trained():
        classifier = PromptBoostingClassifier(
            "deterministic", random_state=0, store=False, algorithm=algorithm
        )
        return classifier.fit(texts, labels).predict_proba(["match loan", "bank"])

    plain = trained()
    used = []
    real = arrays.empty
    monkeypatch.setattr(arrays, "_memory", lambda: 1000)
    monkeypatch.setattr(arrays, "empty", lambda *given: used.append(given) or real(*given))
    assert (trained() == plain).all()
    assert used


def test_scales_of_blocks_are_those_of_the_whole(monkeypatch):
    from blackbox.boosting import logit

    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((50, 7)).astype(np.float32)
    weights, rows = rng.random(50) + 0.5, rng.permutation(50)[:33]
    whole = logit.scaling_of(matrix[rows], weights[rows])
    monkeypatch.setattr(logit, "_BLOCK", 8)
    blocks = logit.scaling_of(matrix, weights[rows], rows)
    np.testing.assert_allclose(blocks.mean, whole.mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(blocks.scale, whole.scale, rtol=1e-6)
    assert (whole.apply(matrix, rows) == whole.apply(matrix[rows])).all()
