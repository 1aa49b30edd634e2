"""Embeddings: the `embed` ability through adapters, store, budget and dry run."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

import backends
from backends.deterministic import DeterministicBackend
from blackbox.backend import BaseBackend, WrappedBackend, as_backend
from blackbox.errors import (
    BackendError,
    BackendResponseError,
    BudgetError,
    StoreError,
    UnservedPromptError,
)
from blackbox.lm.budgets import Budget
from blackbox.lm.client import with_store_and_budget
from blackbox.lm.connect import connect_embeddings, default_embeddings
from blackbox.planning import DryRunBackend
from blackbox.protocol import BackendIdentity, Embeddings, Limits, RenderedPrompt, Usage
from blackbox.store.encoding import decode_vector, encode, encode_vector
from blackbox.store.exchange import export_store, import_store
from blackbox.store.file import StoreFile
from blackbox.store.stored_backend import StoredBackend, merge_values

TEXTS = [f"text number {number} is {'lovely' if number % 2 else 'dull'}" for number in range(150)]
IDENTITY = BackendIdentity("mine", "in-process", "letters")
LIMITS = Limits(
    max_top_k=0, max_score_ids=0, context_length=512, deterministic=True, embedding_size=26
)


class Embedder(DeterministicBackend):
    """Keeps which texts it was asked for; refuses those that hold a word."""

    def __init__(self, refuses="forbidden", **options):
        super().__init__(**options)
        self._refuses = refuses
        self.calls: list[list[str]] = []

    @property
    def asked(self):
        return [text for call in self.calls for text in call]

    def embed(self, texts):
        self.calls.append(list(texts))
        made = super().embed(texts)
        refused = {row: "content filter" for row, text in enumerate(texts) if self._refuses in text}
        usage = replace(made.usage, passes_made=len(texts) - len(refused))
        return Embeddings.of(made.vectors, refused, usage)


class Letters:
    """An embedding model of a user's own: no base class, a plain array of any norm."""

    identity, limits = IDENTITY, LIMITS

    def embed(self, texts):
        return [[1 + text.lower().count(chr(97 + c)) for c in range(26)] for text in texts]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "passes.sqlite"


def stored(path, backend):
    """A backend behind a store file that is opened anew, as by another process."""
    return StoredBackend(as_backend(backend), StoreFile(path))


def test_vectors_have_norm_1_and_do_not_depend_on_their_batch():
    lm = DeterministicBackend()
    made = lm.embed(TEXTS)
    assert made.vectors.shape == (150, lm.limits.embedding_size)
    assert made.vectors.dtype == np.float32
    assert np.linalg.norm(made.vectors, axis=1) == pytest.approx(1, abs=1e-6)
    assert (made.vectors[7:8] == lm.embed(TEXTS[7:8]).vectors).all()
    assert made.usage.passes_made == 150
    assert made.usage.tokens == sum(lm.count_tokens([RenderedPrompt(text) for text in TEXTS]))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[0.0, 0.0]], "embedding 0: the norm is nan"),
        ([[1.0, 0.0], [np.nan, 1.0]], "embedding 1: the norm is nan"),
        ([[1.0, np.inf]], "embedding 0: the norm is nan"),
        ([1.0, 2.0], "must be 2-d"),
        ([[1.0], [1.0, 2.0]], "not numbers of one length"),
        ([["a"]], "not numbers"),
    ],
)
def test_what_is_no_vector_is_an_error(vectors, message):
    with pytest.raises(BackendResponseError, match=message):
        Embeddings.of(vectors)


def test_a_vector_that_is_not_normalised_is_an_error():
    with pytest.raises(BackendResponseError, match="embedding 1: the norm is 2 and not 1"):
        Embeddings(np.array([[1, 0], [0, 2]], np.float32))
    with pytest.raises(BackendResponseError, match="float32"):
        Embeddings(np.array([[1.0, 0.0]]))


def test_an_object_with_embed_alone_is_a_backend():
    lm = as_backend(Letters())
    assert lm.limits.embedding_size == 26
    made = lm.embed(TEXTS)
    assert made.vectors.shape == (150, 26)
    assert made.usage == Usage(passes_made=150)
    assert [len(where) for where, _ in lm.iter_embed(TEXTS)] == [64, 64, 22]
    with pytest.raises(UnservedPromptError, match="embeddings only"):
        lm.next_token([RenderedPrompt("a")], 1)
    assert (pickle.loads(pickle.dumps(lm)).embed(TEXTS).vectors == made.vectors).all()


def test_a_backend_without_embed_says_so():
    class Plain:
        identity, limits = IDENTITY, LIMITS

        def next_token(self, prompts, top_k):
            raise NotImplementedError

    lm = as_backend(Plain())
    assert lm.limits.embedding_size == 0
    for backend in (lm, WrappedBackend(lm)):
        with pytest.raises(UnservedPromptError, match="makes no embeddings"):
            backend.embed(TEXTS)
    with pytest.raises(UnservedPromptError, match="makes no embeddings"):
        next(BaseBackend().iter_embed(TEXTS))


def test_a_backend_that_answers_too_few_texts_is_an_error():
    class Short(Letters):
        def embed(self, texts):
            return super().embed(texts)[:-1]

    with pytest.raises(BackendResponseError, match="1 embedding of 2 texts"):
        as_backend(Short()).embed(["a", "b"])


def test_a_store_gives_every_vector_back_to_the_last_bit_and_asks_once(path):
    plain = DeterministicBackend().embed([*TEXTS, *TEXTS[:3]]).vectors
    backend = Embedder()
    lm = stored(path, backend)
    first = lm.embed([*TEXTS, *TEXTS[:3]])
    assert first.vectors.tobytes() == plain.tobytes()
    assert sorted(backend.asked) == sorted(TEXTS)
    assert (first.usage.passes_made, first.usage.passes_from_store) == (150, 3)
    again = stored(path, Embedder())
    assert again.known_embeddings(["never seen", TEXTS[2]]) == [1]
    second = again.embed([*TEXTS[::-1], "one more"])
    assert second.vectors[:150].tobytes() == plain[:150][::-1].tobytes()
    assert again.backend.asked == ["one more"]
    assert again.usage.passes_from_store == 150
    # a vector is no answer to a prompt, and the other way round
    assert again.known_rows([RenderedPrompt(TEXTS[2])], 5) == []


def test_a_refused_text_is_a_row_error_and_is_not_kept(path):
    texts = ["a forbidden one", *TEXTS[:2], "a forbidden one"]
    made = stored(path, Embedder()).embed(texts)
    assert made.row_errors == {0: "content filter", 3: "content filter"}
    assert np.isnan(made.vectors[[0, 3]]).all()
    assert not np.isnan(made.vectors[1:3]).any()
    assert stored(path, Embedder()).known_embeddings(texts) == [1, 2]


def test_vectors_that_came_before_an_error_are_kept(path):
    class Failing(Embedder):
        def embed(self, texts):
            if len(self.calls) == 2:
                raise RuntimeError("gone")
            return super().embed(texts)

    with pytest.raises(RuntimeError, match="gone"):
        stored(path, Failing()).embed(TEXTS)
    assert stored(path, Embedder()).known_embeddings(TEXTS) == list(range(128))


def test_what_another_process_embeds_is_waited_for(path):
    first, second = stored(path, Embedder()), stored(path, Embedder())
    parts = first.iter_embed(TEXTS)
    where, _ = next(parts)
    other = second.iter_embed([*TEXTS, "its own"])
    # at once: what is in the store, then what nobody works on
    assert len(next(other)[0]) == len(where) == 64
    assert next(other)[0] == [150]
    assert second.backend.asked == ["its own"]
    list(parts)
    assert sorted(row for rows, _ in other for row in rows) == list(range(64, 150))
    assert second.backend.asked == ["its own"]


def test_an_export_holds_vectors_and_an_import_takes_them_over(path, tmp_path):
    pytest.importorskip("pyarrow")
    lm = stored(path, Embedder())
    vectors = lm.embed(TEXTS[:3]).vectors
    lm.next_token([RenderedPrompt("a text")], 5)
    assert export_store(lm.store, tmp_path / "all.parquet") == 4
    other = stored(tmp_path / "other.sqlite", Embedder())
    assert import_store(other.store, tmp_path / "all.parquet") == 4
    assert other.embed(TEXTS[:3]).vectors.tobytes() == vectors.tobytes()
    assert other.backend.asked == []
    assert other.store.info()["passes"] == 4


def test_a_vector_of_another_norm_is_not_imported(path, tmp_path):
    pytest.importorskip("pyarrow")
    lm = stored(path, Embedder())
    data = lm.identity.canonical()
    value = encode_vector(np.full(5, 3, np.float32))
    lm.store.put(lm.identity.digest(), data, {b"k" * 32: value}, {}, merge_values)
    export_store(lm.store, tmp_path / "all.parquet")
    with pytest.raises(StoreError, match="the norm is"):
        import_store(stored(tmp_path / "other.sqlite", Embedder()).store, tmp_path / "all.parquet")


def test_a_vector_is_a_value_of_its_own_kind():
    vector = np.array([0.1, -0.2, 3e-39], np.float32)
    assert decode_vector(encode_vector(vector)).tobytes() == vector.tobytes()
    assert merge_values(encode_vector(vector), encode_vector(2 * vector)) == encode_vector(vector)
    answer = encode(np.array([4], np.int32), np.array([-1], np.float32), 1)
    for wrong in (answer, b"", encode_vector(vector)[:-1]):
        with pytest.raises(ValueError, match="no vector"):
            decode_vector(wrong)


@pytest.mark.parametrize(
    ("limit", "n_made"), [({"max_forward_passes": 100}, 100), ({"max_tokens": 200}, 40)]
)
def test_a_budget_ends_embedding_before_it_is_exceeded_and_nothing_is_lost(path, limit, n_made):
    budget = Budget(**limit)
    lm = with_store_and_budget(Embedder(), StoreFile(path), budget)
    with pytest.raises(BudgetError, match="is used up"):
        lm.embed(TEXTS)
    assert lm.usage.passes_made == n_made
    assert len(stored(path, Embedder()).known_embeddings(TEXTS)) == n_made
    # what is there already costs nothing
    lm = with_store_and_budget(Embedder(), StoreFile(path), budget)
    assert len(lm.embed(TEXTS[:n_made])) == n_made
    assert lm.usage == Usage(passes_from_store=n_made)


def test_usage_has_the_cost_of_the_tokens_and_none_for_written_ones(tmp_path, monkeypatch):
    prices = tmp_path / "prices.json"
    entry = {"provider": "mine", "model": "letters", "as_of": "2026-01-01", "source": "test"}
    prices.write_text(json.dumps({"prices": [entry | {"input": 3.0, "output": 50.0}]}))
    monkeypatch.setenv("PROMPTBOOSTING_PRICES", str(prices))

    class Paid(Letters):
        def embed(self, texts):
            usage = Usage(passes_made=len(texts), tokens=1000 * len(texts))
            return Embeddings.of(super().embed(texts), usage=usage)

    for budget in (Budget(), Budget(max_cost=1.0)):
        lm = with_store_and_budget(as_backend(Paid()), False, budget)
        assert lm.embed(["a", "b"]).usage.cost == pytest.approx(2 * 1000 * 3e-6)
    with pytest.raises(BudgetError):
        with_store_and_budget(as_backend(Paid()), False, Budget(max_cost=1e-5)).embed(["a"])


def test_a_dry_run_counts_what_is_not_in_the_store_and_sends_nothing(path):
    stored(path, Embedder()).embed(TEXTS[:40])
    lm = stored(path, Embedder())
    dry_run = DryRunBackend(lm)
    made = dry_run.embed([*TEXTS, *TEXTS[-5:]])
    assert lm.backend.asked == []
    assert (sum(dry_run.asked), dry_run.known) == (110, 45)
    assert sum(dry_run.tokens) == sum(lm.count_tokens(map(RenderedPrompt, TEXTS[40:])))
    assert dry_run.needs_unknown_answers
    real = stored(path, Embedder()).embed(TEXTS).vectors
    assert (made.vectors[:40] == real[:40]).all()
    assert len(np.unique(made.vectors, axis=0)) == 150


class Unlike(Letters):
    """An object that says it makes no embeddings."""

    limits = replace(LIMITS, embedding_size=0)


def test_embeddings_are_loaded_by_name_or_class_and_once():
    lm = backends.load_embeddings("deterministic", seed=3)
    assert lm is backends.load_embeddings("deterministic", seed=3)
    other = backends.load_embeddings("deterministic", seed=4)
    backends.forget(lm)
    assert lm is not backends.load_embeddings("deterministic", seed=3)
    assert other is backends.load_embeddings("deterministic", seed=4)
    mine = backends.load_embeddings(f"{__name__}:Letters")
    assert mine.embed(["a text"]).vectors.shape == (1, 26)
    assert "openai" in backends.embedding_names()
    with pytest.raises(BackendError, match=r"no embeddings named 'opanai'.*did you mean 'openai'"):
        backends.load_embeddings("opanai")
    with pytest.raises(BackendError, match="makes no embeddings"):
        backends.load_embeddings(f"{__name__}:Unlike")


def test_a_saved_model_starts_no_embeddings_but_those_of_the_catalogue():
    lm = connect_embeddings("deterministic")
    assert default_embeddings(lm.identity, "m.zip") == ("deterministic", None)
    assert connect_embeddings(Letters()).limits.embedding_size == 26
    with pytest.raises(BackendError, match="makes no embeddings"):
        connect_embeddings(Unlike())
    with pytest.raises(BackendError, match=r"m\.zip reads embeddings of mine 'letters'"):
        default_embeddings(IDENTITY, "m.zip")
