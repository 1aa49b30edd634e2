"""Merging of two models of the same classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from backends.deterministic import DeterministicBackend
from blackbox.cli import main
from blackbox.errors import ModelFileError
from blackbox.library.folder import Library
from blackbox.library.merging import merge_models
from blackbox.model.file import read_model, write_model
from tests.test_experts import texts_of
from tests.test_library import OTHER_PROMPTS, classifier

LM = DeterministicBackend()


def trained(n, seed, **changes):
    return classifier(**changes).fit(*texts_of(n, seed)).model_


@pytest.fixture(scope="module")
def halves():
    return trained(48, 1), trained(48, 2)


def scores(model, texts):
    return model.predict(LM, texts).scores


def test_a_model_merged_with_itself_scores_the_same(halves):
    texts, _ = texts_of(40, 5)
    merged = merge_models(halves[0], halves[0])
    assert scores(merged, texts) == pytest.approx(scores(halves[0], texts), abs=1e-4)
    assert len(merged.prompts) == len(halves[0].prompts)


def test_without_shared_prompts_scores_are_the_weighted_mean(halves):
    texts, _ = texts_of(40, 5)
    other = trained(24, 3, prompts=OTHER_PROMPTS[1:])
    merged = merge_models(halves[0], other)
    mean = (2 * scores(halves[0], texts) + scores(other, texts)) / 3
    assert scores(merged, texts) == pytest.approx(mean, abs=1e-4)


def test_two_halves_are_better_than_either(halves):
    texts, labels = texts_of(400, 6)
    merged = merge_models(*halves)
    right = [
        (model.predict(LM, texts).labels() == np.array(labels)).mean()
        for model in (merged, *halves)
    ]
    assert right[0] > max(right[1:])


def test_exact_early_stopping_and_the_file_hold_for_it(halves, tmp_path):
    texts, _ = texts_of(200, 7)
    merged = merge_models(*halves)
    write_model(tmp_path / "both.blackbox", merged)
    read = read_model(tmp_path / "both.blackbox")
    every = read.predict(LM, texts)
    assert (every.scores == merged.predict(LM, texts).scores).all()
    assert (every.codes == read.predict(LM, texts, "exact").codes).all()
    with pytest.raises(ValueError, match="no thresholds"):
        read.predict(LM, texts, "risk")


def test_embedding_readouts_are_merged_too(halves):
    embedder = DeterministicBackend(seed=1)
    one, other = (trained(48, seed, embeddings=embedder) for seed in (1, 2))
    merged = merge_models(one, other)
    assert one.ensemble.experts
    texts, _ = texts_of(30, 5)
    heard = [
        sum(expert.scores(embedder.embed(texts).vectors) for expert in model.ensemble.experts)
        for model in (merged, one, other)
    ]
    assert heard[0] == pytest.approx((heard[1] + heard[2]) / 2, abs=1e-5)


def test_a_library_knows_the_rows_of_both(halves, tmp_path):
    merged = merge_models(*halves)
    assert set(merged.row_digests) == set(halves[0].row_digests) | set(halves[1].row_digests)
    write_model(tmp_path / "both.blackbox", merged)
    assert Library.open(tmp_path / "l").add(tmp_path / "both.blackbox").entry("both").n_rows == 96


def test_models_that_do_not_fit_together_are_refused(halves):
    one = halves[0]
    samme = trained(48, 1, algorithm="samme")
    for other, message in (
        (replace(one, identity=replace(one.identity, model="another")), "different LMs"),
        (replace(one, classes=np.array(["a", "b", "c"])), "classes differ"),
        (replace(one, top_k=7), "numbers of tokens"),
        (replace(one, summary={}), "no number of training rows"),
        (samme, "only models of logit"),
    ):
        with pytest.raises(ModelFileError, match=message):
            merge_models(one, other)


def test_the_command_merges_files(halves, tmp_path):
    for name, model in zip(("north", "south"), halves, strict=True):
        write_model(tmp_path / f"{name}.blackbox", model)
    paths = [str(tmp_path / f"{name}.blackbox") for name in ("north", "south", "both")]
    found = CliRunner().invoke(main, ["merge", *paths[:2], "--out", paths[2]])
    assert found.exit_code == 0
    assert "merged over 96 rows" in found.stderr
    assert read_model(paths[2]).summary["n_rows"] == 96
