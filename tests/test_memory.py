"""Memory: what doesn't fit is refused before it is paid for, answers are held once, in blocks."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import CountingBackend

from blackbox import PromptBoostingClassifier
from blackbox.answers import memory
from blackbox.answers.features import frequent_matrices
from blackbox.answers.gatherer import Gatherer
from blackbox.boosting import logit, training
from blackbox.errors import DataError
from blackbox.generation import PromptGenerator
from blackbox.model import model as model_module
from blackbox.prompts.pool import PromptPool

TEXTS = ["match goal", "bank loan", "goal team", "loan market", "team match"] * 6
LABELS = ["sport", "money", "sport", "money", "sport"] * 6
PROMPTS = ["{text} It was {mask}", "{text}\nTopic: {mask}"]


def has_bytes(monkeypatch, n_bytes):
    """Let this process have so many bytes of memory."""
    monkeypatch.setattr(memory, "_memory_limit", lambda: n_bytes)


def test_more_memory_than_there_is_is_an_error_that_says_how_much(monkeypatch):
    has_bytes(monkeypatch, 8_000_000_000)
    memory.require_memory(8_000_000_000, "the answers")
    said = (
        r"^the answers need at least 8\.25 GB of memory, and this process may use 8\.00 GB: give "
        r"fewer rows \(--shots\), fewer prompts or a lower top_k \(--top-k\)$"
    )
    with pytest.raises(DataError, match=said):
        memory.require_memory(8_250_000_000, "the answers")


HALVING = PromptGenerator(budget=800)


@pytest.mark.parametrize(
    ("method", "prompts", "n_prompts"),
    [
        ("fit", PROMPTS, 2),
        ("fit", None, 3),
        ("fit", HALVING, 3),
        ("plan", None, 3),
        ("plan", HALVING, 3),
        ("generate_prompts", HALVING, 3),
    ],
)
def test_a_training_that_does_not_fit_in_memory_is_refused_before_the_lm_is_asked(
    monkeypatch, method, prompts, n_prompts
):
    lm = CountingBackend()
    classifier = PromptBoostingClassifier(
        lm, prompts=prompts, n_prompts=3, random_state=0, store=False, top_k=50
    )
    has_bytes(monkeypatch, 30 * n_prompts * 50 * 8 - 1)
    with pytest.raises(DataError, match=f"30 rows × {n_prompts} prompts × 50 tokens"):
        getattr(classifier, method)(TEXTS, LABELS)
    assert not lm.calls


def test_answers_take_eight_bytes_each_and_are_asked_for_where_these_are_there(monkeypatch):
    lm = CountingBackend()
    gatherer = Gatherer(lm, [(text, None) for text in TEXTS], 50)
    has_bytes(monkeypatch, 30 * 2 * 50 * 8)
    answers = gatherer.answers(PromptPool(PROMPTS))
    assert answers.token_ids.nbytes + answers.log_probs.nbytes == 30 * 2 * 50 * 8
    assert len(lm.asked) == 60


def test_matrices_that_do_not_fit_in_memory_beside_the_answers_are_refused(monkeypatch):
    ids = np.tile(np.arange(5, dtype=np.int32), (2, 10, 1))
    values = np.full(ids.shape, -1.0, np.float32)
    needed = 2 * 10 * 5 * (8 + 4)
    has_bytes(monkeypatch, needed)
    assert len(frequent_matrices(ids, values, np.ones(10), 0.1)[0]) == 2
    has_bytes(monkeypatch, needed - 1)
    with pytest.raises(DataError, match="10 rows and a matrix of 10 tokens"):
        frequent_matrices(ids, values, np.ones(10), 0.1)


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
    assert set(memory._container_limits(tmp_path / "groups", tmp_path / "own")) == set(expected)


def test_a_container_s_limit_is_the_memory_there_is(monkeypatch):
    monkeypatch.setattr(memory, "_container_limits", lambda groups, own: [5000, 1 << 62])
    assert memory._memory_limit.__wrapped__() == 5000


def test_answers_are_held_once_however_they_were_gathered():
    texts = [(f"word {n} and {n % 7}", None) for n in range(60)]
    pool = PromptPool(PROMPTS)
    some = np.array([50, 3, 17])
    lm = CountingBackend()
    gatherer = Gatherer(lm, texts, 20)
    gatherer.answers(PromptPool([pool[1]]), some)  # as where candidates were tried
    answers = gatherer.answers(pool)
    assert len(lm.asked) == 120
    for number, prompt in enumerate(pool):
        ((_, ids, values),) = gatherer._parts[prompt]
        assert np.shares_memory(ids, answers.token_ids[number])
        assert np.shares_memory(values, answers.log_probs[number])
    at_once = Gatherer(CountingBackend(), texts, 20).answers(pool)
    assert (answers.token_ids == at_once.token_ids).all()
    assert (answers.log_probs == at_once.log_probs).all()
    few = gatherer.answers(pool, some)
    assert (few.token_ids == answers.token_ids[:, some]).all()
    assert len(lm.asked) == 120
    assert all(len(gatherer._parts[prompt]) == 1 for prompt in pool)


def test_answers_of_rows_that_overlap_are_put_together():
    texts = [(f"word {n} and {n % 7}", None) for n in range(9)]
    pool, lm = PromptPool(PROMPTS), CountingBackend()
    gatherer = Gatherer(lm, texts, 20)
    gatherer.answers(pool, np.array([5, 1, 8]))
    gatherer.answers(pool, np.array([1, 3, 4]))
    assert len(lm.asked) == 10
    rows = np.array([4, 8, 0, 1, 5])
    answers = gatherer.answers(pool, rows)
    whole = Gatherer(CountingBackend(), texts, 20).answers(pool)
    assert (answers.token_ids == whole.token_ids[:, rows]).all()
    assert (answers.log_probs == whole.log_probs[:, rows]).all()
    assert len(lm.asked) == 12


def test_coverage_in_blocks_is_that_of_all_rows_to_the_last_bit(monkeypatch):
    log_probs = np.log(np.random.default_rng(0).random((3, 50, 20)).astype(np.float32) / 20)
    monkeypatch.setattr(training, "_BLOCK", 8)
    whole = float(np.exp(log_probs.astype(np.float64)).sum(axis=2).mean())
    assert training.top_k_coverage(log_probs) == whole


def test_many_rows_are_scored_some_at_a_time(monkeypatch):
    texts = [f"{'match' if n % 2 else 'bank'} {n}" for n in range(30)]
    classifier = PromptBoostingClassifier(
        "deterministic", random_state=0, store=False, on_row_error="abstain"
    ).fit(texts, [n % 2 for n in range(30)])
    texts[4] = " "
    whole = classifier.predict_proba(texts)
    seen, real = [], type(classifier.ensemble_).decision

    def decision(ensemble, matrices, *experts):
        seen.append(len(matrices[0]))
        return real(ensemble, matrices, *experts)

    monkeypatch.setattr(type(classifier.ensemble_), "decision", decision)
    monkeypatch.setattr(model_module, "_CHUNK", 8)
    np.testing.assert_array_equal(classifier.predict_proba(texts), whole)
    assert np.isnan(whole[4]).all()
    assert seen == [8, 8, 8, 5]


def test_scales_of_blocks_are_those_of_the_whole(monkeypatch):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((50, 7)).astype(np.float32)
    weights, rows = rng.random(50) + 0.5, rng.permutation(50)[:33]
    whole = logit.scaling_of(matrix[rows], weights[rows])
    monkeypatch.setattr(logit, "_BLOCK", 8)
    blocks = logit.scaling_of(matrix, weights[rows], rows)
    np.testing.assert_allclose(blocks.mean, whole.mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(blocks.scale, whole.scale, rtol=1e-6)
    assert (whole.apply(matrix, rows) == whole.apply(matrix[rows])).all()
