"""Answers that are read again come from memory, as long as the store's file is the same."""

import numpy as np
import pytest

from backends.deterministic import DeterministicBackend
from blackbox.backend import as_backend
from blackbox.protocol import RenderedPrompt
from blackbox.store import recent
from blackbox.store.file import StoreFile
from blackbox.store.stored_backend import StoredBackend

PROMPTS = [RenderedPrompt(f"text number {row} is") for row in (0, 1, 2, 1)]


@pytest.fixture
def store(tmp_path):
    file = StoreFile(tmp_path / "passes.sqlite")
    yield file
    file.close()


def stored(store):
    return StoredBackend(as_backend(DeterministicBackend(vocabulary_size=64)), store)


def test_equal_requests_are_read_once_and_counted_each_time(store, monkeypatch):
    first = stored(store).next_token(PROMPTS, 5)
    read = stored(store).next_token(PROMPTS, 5)
    monkeypatch.setattr(StoreFile, "get", lambda *_: pytest.fail("the file was read again"))
    backend = stored(store)
    again = backend.next_token(PROMPTS, 5)
    assert read.usage.passes_from_store == again.usage.passes_from_store == len(PROMPTS)
    assert backend.usage == again.usage
    assert np.array_equal(again.token_ids, first.token_ids)
    assert np.array_equal(again.log_probs, first.log_probs)
    assert again.token_bytes == read.token_bytes


def test_other_requests_are_not_answered_from_memory(store):
    backend = stored(store)
    for _ in range(2):
        backend.next_token(PROMPTS, 5)
    assert backend.next_token(PROMPTS, 6).usage.passes_made == 3
    assert backend.next_token(PROMPTS[::-1], 5).usage.passes_from_store == 4
    other = StoredBackend(as_backend(DeterministicBackend(vocabulary_size=65)), store)
    assert other.next_token(PROMPTS, 5).usage.passes_made == 3


def test_a_file_that_is_gone_is_not_remembered(store):
    for _ in range(2):
        stored(store).next_token(PROMPTS, 5)
    assert store.recall((stored(store)._digest, 5, tuple(PROMPTS))) is not None
    store.path.unlink()
    assert store.recall((stored(store)._digest, 5, tuple(PROMPTS))) is None


def test_what_was_not_used_for_longest_is_forgotten(monkeypatch):
    monkeypatch.setattr(recent, "MAX_BYTES", 100)
    answers = recent.RecentAnswers()
    for name in "abc":
        answers.add(name, [name], 40)
        answers.get("a")
    assert [answers.get(name) for name in "abc"] == [["a"], None, ["c"]]
    answers.add("d", ["d"], 101)
    assert [answers.get(name) for name in "acd"] == [["a"], ["c"], None]
