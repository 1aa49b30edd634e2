"""Arrays larger than memory: in a file without a name, and training the same with them."""

from __future__ import annotations

import numpy as np

from blackbox import PromptBoostingClassifier, arrays


def test_a_small_one_is_in_memory_and_a_large_one_in_a_file(monkeypatch, tmp_path):
    assert type(arrays.empty((3, 4), np.float32)) is np.ndarray
    monkeypatch.setattr(arrays, "_memory", lambda: 1000)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    large = arrays.empty((100, 4), np.float32)
    assert isinstance(large, np.memmap)
    large[:] = 7
    assert (large == 7).all()
    assert list(tmp_path.iterdir()) == []


def test_training_is_the_same_with_arrays_in_files(monkeypatch):
    texts = ["match goal", "bank loan", "goal team", "loan market", "team match"] * 6
    labels = ["sport", "money", "sport", "money", "sport"] * 6

    def trained():
        classifier = PromptBoostingClassifier("deterministic", random_state=0, store=False)
        return classifier.fit(texts, labels).predict_proba(["match loan", "bank"])

    plain = trained()
    used = []
    real = arrays.empty
    monkeypatch.setattr(arrays, "_memory", lambda: 1000)
    monkeypatch.setattr(arrays, "empty", lambda *given: used.append(given) or real(*given))
    assert (trained() == plain).all()
    assert used


def test_scales_of_blocks_are_those_of_the_whole(monkeypatch):
    from blackbox import logit

    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((50, 7)).astype(np.float32)
    weights, rows = rng.random(50) + 0.5, rng.permutation(50)[:33]
    whole = logit.scaling_of(matrix[rows], weights[rows])
    monkeypatch.setattr(logit, "_BLOCK", 8)
    blocks = logit.scaling_of(matrix, weights[rows], rows)
    np.testing.assert_allclose(blocks.mean, whole.mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(blocks.scale, whole.scale, rtol=1e-6)
    assert (whole.apply(matrix, rows) == whole.apply(matrix[rows])).all()
