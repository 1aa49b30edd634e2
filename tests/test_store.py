"""The store: answers come back bit for bit, none is paid for twice, damage is survived."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import CountingBackend, PlainBackend, RefusingBackend
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from threadpoolctl import threadpool_limits

from backends.deterministic import DeterministicBackend
from blackbox import PromptBoostingClassifier
from blackbox.backend import as_backend
from blackbox.errors import StoreError, UnservedPromptError
from blackbox.lm.client import find_store
from blackbox.protocol import (
    NO_TOKEN,
    BackendIdentity,
    Limits,
    Message,
    RenderedPrompt,
    TokenScores,
)
from blackbox.store import claims as store_claims
from blackbox.store import database as store_database
from blackbox.store import file as store_file
from blackbox.store import sharing as store_sharing
from blackbox.store.encoding import check_of, decode, decode_block, encode, encode_block
from blackbox.store.exchange import export_store, import_store
from blackbox.store.file import StoreFile, open_store
from blackbox.store.stored_backend import StoredBackend, merge_values

SMALL = {"vocabulary_size": 64}
IDENTITY = DeterministicBackend(**SMALL).identity
DIGEST, DATA = IDENTITY.digest(), IDENTITY.canonical()


@pytest.fixture(autouse=True, scope="module")
def _one_blas_thread():
    # of products this small, threads on a busy machine make waiting
    with threadpool_limits(1, "blas"):
        yield


@pytest.fixture(autouse=True)
def _files_closed():
    yield
    for database in list(store_database._databases):
        database.close()
    store_file._opened.clear()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "passes.sqlite"


def requests(n: int, what: str = "text") -> list[RenderedPrompt]:
    return [RenderedPrompt(text=f"{what} number {row} is") for row in range(n)]


def stored(path, backend=None) -> StoredBackend:
    """A backend behind a store file that is opened anew, as by another process."""
    return StoredBackend(as_backend(backend or CountingBackend(**SMALL)), StoreFile(path))


def bits(array) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def assert_same(got, expected):
    """The same answers to the last bit."""
    assert bits(got.token_ids) == bits(expected.token_ids)
    assert bits(got.log_probs) == bits(expected.log_probs)
    for token in np.unique(got.token_ids[got.token_ids != NO_TOKEN]).tolist():
        assert got.token_bytes[token] == expected.token_bytes[token]


def truth(prompts, top_k, **options):
    return DeterministicBackend(**{**SMALL, **options}).next_token(prompts, top_k)


def edited(path, statement, *values):
    """Change a closed file from outside."""
    with closing(sqlite3.connect(path)) as db, db:
        return db.execute(statement, values).fetchall()


# --- how answers are written


ids_of = st.lists(st.integers(0, 2**31 - 1), unique=True, max_size=60)
finite = st.floats(max_value=0, width=32, allow_infinity=False, allow_nan=False)


@given(st.data(), st.integers(0, 2**32 - 1))
def test_answers_come_back_bit_for_bit(data, asked):
    ids = np.array(data.draw(ids_of), np.int32)
    values = data.draw(st.lists(finite, min_size=len(ids), max_size=len(ids)))
    values = np.array(values, np.float32)
    again_ids, again_values, again_asked = decode(encode(ids, values, asked))
    assert (again_ids.dtype, again_values.dtype) == (np.int32, np.float32)
    assert bits(again_ids) == bits(ids)
    assert bits(again_values) == bits(values)
    assert again_asked == asked


@pytest.mark.parametrize("largest", [0, 2**16 - 1, 2**16, 2**24 - 1, 2**24, 2**31 - 1])
def test_ids_of_every_width_come_back(largest):
    ids, values = np.array([largest, 0], np.int32), np.array([-0.5, -0.0], np.float32)
    again = decode(encode(ids, values, 2))
    assert again[0].tolist() == [largest, 0]
    assert bits(again[1]) == bits(values)


def test_what_fills_a_short_row_is_left_out():
    ids, values = np.array([7, NO_TOKEN], np.int32), np.array([-1, -np.inf], np.float32)
    ids, values, asked = decode(encode(ids, values, 2))
    assert (ids.tolist(), values.tolist(), asked) == ([7], [-1.0], 2)


def test_two_hundred_small_ids_take_1207_bytes():
    assert len(encode(np.arange(200, dtype=np.int32), np.zeros(200, np.float32), 200)) == 1207


def test_what_can_not_be_written_is_refused():
    with pytest.raises(ValueError, match="negative"):
        encode(np.array([-2], np.int32), np.zeros(1, np.float32), 1)
    with pytest.raises(ValueError, match="65536 tokens"):
        encode(np.arange(2**16, dtype=np.int32), np.zeros(2**16, np.float32), 1)


answers_of = st.tuples(st.integers(0, 3), st.sampled_from([5, 70_000, 2**25]), st.integers(0, 4))


@given(st.lists(answers_of, max_size=8), st.integers(1, 3))
def test_a_block_is_written_and_read_as_its_answers_are_one_by_one(forms, top_k):
    ids = np.full((len(forms), 3), NO_TOKEN, np.int32)
    values = np.full((len(forms), 3), -np.inf, np.float32)
    for row, (count, largest, _) in enumerate(forms):
        ids[row, :count] = largest + np.arange(count)
        values[row, :count] = -1.5 - np.arange(count)
    asked = [asked for _, _, asked in forms]
    data = encode_block(ids, values, asked)
    assert data == [encode(*answer) for answer in zip(ids, values, asked, strict=True)]
    places, block_ids, block_values = decode_block(data, top_k)
    assert sorted(places) == [row for row, n in enumerate(asked) if n >= top_k]
    for place, some_ids, some_values in zip(places, block_ids, block_values, strict=True):
        kept = some_ids != NO_TOKEN
        alone_ids, alone_values, _ = decode(data[place])
        assert bits(some_ids[kept]) == bits(alone_ids[:top_k])
        assert bits(some_values[kept]) == bits(alone_values[:top_k])
        assert np.isneginf(some_values[~kept]).all()


@given(st.binary(max_size=40))
def test_any_other_bytes_are_no_answer_or_a_whole_one(data):
    try:
        ids, values, asked = decode(data)
    except ValueError:
        return
    assert len(ids) == len(values)
    assert asked >= 0


def test_no_byte_moves_between_the_parts_of_a_check():
    assert check_of(b"ab", b"c") != check_of(b"a", b"bc")


@given(st.integers(1, 40), st.integers(1, 40))
def test_of_two_answers_the_longer_one_stays(one, other):
    answers = {
        k: encode(np.arange(k, dtype=np.int32), np.full(k, -1, np.float32), k) for k in (one, other)
    }
    assert merge_values(answers[one], answers[other]) == answers[max(one, other)]


# --- which answers serve which requests


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 5))
def test_a_stored_top_k_serves_all_smaller_ones_and_no_larger(held, wanted, n):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "passes.sqlite"
        prompts = requests(n)
        first = stored(file)
        first.next_token(prompts, held)
        second = stored(file)
        known = second.known_rows(prompts, wanted)
        assert known == (list(range(n)) if wanted <= held else [])
        assert_same(second.next_token(prompts, wanted), truth(prompts, wanted))
        assert len(second.backend.asked) == (0 if wanted <= held else n)
        assert second.known_rows(prompts, max(held, wanted)) == list(range(n))
        first.store.close()
        second.store.close()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 64),
    st.lists(st.lists(st.integers(0, 63), unique=True, min_size=1, max_size=8), max_size=4),
)
def test_tokens_are_scored_out_of_a_top_k_or_earlier_scores_that_hold_them(held, calls):
    with tempfile.TemporaryDirectory() as folder:
        store = stored(Path(folder) / "passes.sqlite")
        (prompt,) = prompts = requests(1)
        top = set(store.next_token(prompts, held).token_ids[0].tolist())
        scored: set[int] = set()
        for tokens in calls:
            before = len(store.backend.calls)
            answer = store.score([prompt], tokens)
            expected = DeterministicBackend(**SMALL).score([prompt], tokens)
            assert bits(answer.log_probs) == bits(expected.log_probs)
            is_known = set(tokens) <= top or set(tokens) <= scored
            assert len(store.backend.calls) - before == (0 if is_known else 1)
            assert answer.usage.passes_from_store == is_known
            if not is_known:
                scored |= set(tokens)
        store.store.close()


def test_no_answer_is_asked_for_that_is_too_long_to_be_kept(path):
    class Large(CountingBackend):
        def __init__(self):
            super().__init__()
            self.limits = replace(self.limits, max_top_k=150_000, max_score_ids=150_000)

        def score(self, prompts, token_ids):
            self.calls.append(("score", list(prompts)))
            return TokenScores(np.full((len(prompts), len(token_ids)), -9, np.float32))

    backend = Large()
    store, prompts = stored(path, backend), requests(1)
    assert (store.limits.max_top_k, store.limits.max_score_ids) == (65_535, 65_535)
    for ask in (store.next_token, store.score):
        asked = 65_536 if ask == store.next_token else range(65_536)
        with pytest.raises(UnservedPromptError, match="a store keeps 65535"):
            ask(prompts, asked)
    assert backend.calls == []
    for some in (range(40_000), range(40_000, 80_000)):  # too many together: the last are kept
        store.score(prompts, some)
        assert store.score(prompts, some).usage.passes_from_store == 1
    assert len(backend.calls) == 2


def test_scores_keep_the_order_and_the_repeats_of_the_tokens(path):
    store = stored(path)
    prompts = requests(3)
    expected = DeterministicBackend(**SMALL).score(prompts, [9, 2, 9, 63])
    for _ in range(2):
        assert bits(store.score(prompts, [9, 2, 9, 63]).log_probs) == bits(expected.log_probs)
    assert len(store.backend.calls) == 1
    assert store.score(prompts, []).log_probs.shape == (3, 0)


RAW = RenderedPrompt(text="red wine is", after_mask=" indeed")
CHAT = RenderedPrompt(
    messages=(Message("system", "be brief"), Message("user", "red wine")), answer_prefix="It is"
)
CHANGES = {
    "text": (RAW, replace(RAW, text="red wine is ")),
    "after_mask": (RAW, replace(RAW, after_mask="")),
    "no after_mask": (RAW, replace(RAW, after_mask=None)),
    "a word of a message": (
        CHAT,
        replace(CHAT, messages=(CHAT.messages[0], Message("user", "red vine"))),
    ),
    "a role": (CHAT, replace(CHAT, messages=(Message("user", "be brief"), CHAT.messages[1]))),
    "a message less": (CHAT, replace(CHAT, messages=CHAT.messages[1:])),
    "the order of messages": (CHAT, replace(CHAT, messages=CHAT.messages[::-1])),
    "where a message ends": (
        CHAT,
        replace(CHAT, messages=(Message("system", "be briefred"), Message("user", " wine"))),
    ),
    "answer_prefix": (CHAT, replace(CHAT, answer_prefix="It's")),
    "choices": (RAW, replace(RAW, choices=("A",))),
    "another choice": (replace(RAW, choices=("A",)), replace(RAW, choices=("A", "B"))),
}


class Masked(CountingBackend):
    """Also serves prompts for masked LMs."""

    def __init__(self, **options):
        super().__init__(**SMALL)
        self.limits = replace(self.limits, mask=True)
        self.identity = replace(
            BackendIdentity("a", "b", "c", "d", "e", "f", "g", {"dtype": "q8"}), **options
        )


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_the_prompt_misses_the_store(path, what):
    before, after = CHANGES[what]
    store = stored(path, Masked())
    store.next_token([before], 8)
    store.score([before], [60, 61])
    assert store.known_rows([before, after], 8) == [0]
    n_calls = len(store.backend.calls)
    store.score([after], [60, 61])
    store.next_token([after], 8)
    assert len(store.backend.calls) == n_calls + 2


@pytest.mark.parametrize(
    "changed",
    [
        *(
            {name: "other"}
            for name in BackendIdentity.__dataclass_fields__
            if name not in ("extra", "engine")
        ),
        {"extra": {}},
        {"extra": {"dtype": "q4"}},
        {"extra": {"dtype": "q8", "more": ""}},
        {"extra": {"other": "q8"}},
    ],
    ids=str,
)
def test_a_change_of_the_lm_misses_the_store(path, changed):
    stored(path, Masked()).next_token([RAW, CHAT], 8)
    assert stored(path, Masked()).known_rows([RAW, CHAT], 8) == [0, 1]
    other = stored(path, Masked(**changed))
    assert other.known_rows([RAW, CHAT], 8) == []
    other.next_token([RAW, CHAT], 8)
    assert len(other.backend.asked) == 2
    # and both are kept, beside each other
    assert stored(path, Masked()).known_rows([RAW, CHAT], 8) == [0, 1]


def test_another_version_of_the_engine_asks_nothing_again_and_a_mix_is_told(path, tmp_path, caplog):
    first = stored(path, Masked(engine="engine 1.0"))
    first.next_token([RAW], 8)
    first.next_token([RAW], 8)
    assert "engine" not in caplog.text
    later = stored(path, Masked(engine="engine 1.1"))
    later.next_token([RAW], 8)
    later.next_token([RAW], 8)
    assert later.backend.asked == []
    (told,) = [record.getMessage() for record in caplog.records]
    assert "'engine 1.0'" in told
    assert "'engine 1.1' answers now" in told
    assert later.store.info()["models"][0]["engines"] == ["engine 1.0"]
    later.next_token([CHAT], 8)
    assert later.store.info()["models"][0]["engines"] == ["engine 1.0", "engine 1.1"]
    # the note goes where the answers go
    export_store(later.store, tmp_path / "out.parquet")
    into = StoreFile(tmp_path / "other.sqlite")
    import_store(into, tmp_path / "out.parquet")
    assert into.info()["models"][0]["engines"] == ["engine 1.0", "engine 1.1"]


@pytest.mark.parametrize("note", ["", "{", "[1, null]", "{}", "[" * 10_000])
def test_a_damaged_note_of_engines_is_none(path, caplog, note):
    stored(path, Masked(engine="engine 1.0")).next_token([RAW], 8)
    edited(path, "UPDATE meta SET value = ? WHERE name LIKE 'engines %'", note)
    later = stored(path, Masked(engine="engine 1.1"))
    later.next_token([RAW, CHAT], 8)
    assert len(later.backend.asked) == 1
    assert caplog.text == ""
    assert later.store.info()["models"][0]["engines"] == ["engine 1.1"]


def test_the_same_request_hits_and_a_larger_one_misses(path):
    stored(path, Masked()).next_token([RAW, CHAT], 8)
    stored(path, Masked()).score([RAW, CHAT], [60, 61])
    again = stored(path, Masked())
    assert again.known_rows([RAW, CHAT], 8) == [0, 1]
    assert again.known_rows([RAW, CHAT], 9) == []
    again.next_token([RAW, CHAT], 8)
    again.score([RAW, CHAT], [61])
    assert again.backend.calls == []
    again.next_token([RAW], 9)
    again.score([RAW], [61, 62])
    assert [name for name, _ in again.backend.calls] == ["next_token", "score"]


# --- calls


def test_the_same_prompt_many_times_in_a_call_is_one_pass(path):
    store = stored(path)
    prompts = [requests(2)[number] for number in (0, 1, 0, 0, 1)]
    answers = store.next_token(prompts, 5)
    assert_same(answers, truth(prompts, 5))
    assert (answers.usage.passes_made, answers.usage.passes_from_store) == (2, 3)
    assert len(store.backend.asked) == 2
    fresh = stored(path, CountingBackend(**SMALL, seed=1))
    scored = fresh.score(prompts, [3, 4])
    assert (scored.usage.passes_made, scored.usage.passes_from_store) == (2, 3)


def test_answers_of_the_store_cost_nothing(path):
    prompts = requests(100)
    stored(path).next_token(prompts[:70], 5)
    store = stored(path)
    answers = store.next_token(prompts, 5)
    assert (answers.usage.passes_made, answers.usage.passes_from_store) == (30, 70)
    assert store.usage.passes_from_store == 70
    assert answers.usage.tokens == DeterministicBackend().next_token(prompts[70:], 5).usage.tokens


def test_no_prompts_are_no_passes(path):
    store = stored(path)
    assert len(store.next_token([], 5)) == 0
    assert store.score([], [1]).log_probs.shape == (0, 1)
    assert store.backend.asked == []


def test_rows_of_unequal_length_come_back_as_they_were(path):
    class Short(CountingBackend):
        """Gives fewer tokens for some prompts, as providers do."""

        def next_token(self, prompts, top_k):
            full = super().next_token(prompts, top_k)
            ids, values = full.token_ids.copy(), full.log_probs.copy()
            for row, prompt in enumerate(prompts):
                if "number 1 " in prompt.text:
                    ids[row, 2:], values[row, 2:] = NO_TOKEN, -np.inf
            return replace(full, token_ids=ids, log_probs=values)

    prompts = requests(3)
    first = stored(path, Short(**SMALL)).next_token(prompts, 6)
    again = stored(path, Short(**SMALL))
    assert_same(again.next_token(prompts, 6), first)
    assert again.next_token(prompts[1:2], 1).token_ids.shape == (1, 1)
    assert again.backend.asked == []
    # asked for more, a provider may give more
    assert again.known_rows(prompts, 7) == []


def test_an_answer_of_fewer_tokens_than_asked_is_not_kept_as_more(path):
    class Limited(CountingBackend):
        """An LM that gives at most three tokens, whatever is asked for."""

        def next_token(self, prompts, top_k):
            full = super().next_token(prompts, top_k)
            ids, values = full.token_ids.copy(), full.log_probs.copy()
            ids[:, 3:], values[:, 3:] = NO_TOKEN, -np.inf
            return replace(full, token_ids=ids, log_probs=values)

    prompts = requests(4)
    stored(path, Limited(**SMALL)).next_token(prompts[:2], 6)
    again = stored(path)
    assert again.known_rows(prompts, 3) == [0, 1]
    assert_same(again.next_token(prompts, 6), truth(prompts, 6))
    assert len(again.backend.asked) == 4
    assert stored(path).known_rows(prompts, 6) == [0, 1, 2, 3]


def test_an_lm_that_gives_no_more_is_not_asked_a_third_time(path):
    class Limited(CountingBackend):
        def next_token(self, prompts, top_k):
            return super().next_token(prompts, 3)

    for n_asked in (2, 2, 0):
        store = stored(path, Limited(**SMALL))
        store.next_token(requests(2), 6)
        assert len(store.backend.asked) == n_asked


def test_a_vocabulary_that_ends_is_not_asked_again(path):
    class Whole(CountingBackend):
        def next_token(self, prompts, top_k):
            return super().next_token(prompts, min(top_k, 64))

    for n_asked in (2, 0):
        store = stored(path, Whole(**SMALL))
        store.next_token(requests(2), 200)
        assert len(store.backend.asked) == n_asked


def test_what_was_refused_is_never_stored(path):
    prompts = [RenderedPrompt(text=text) for text in ("good text", "forbidden text", "forbidden")]
    for _ in range(2):
        store = stored(path, RefusingBackend(**SMALL))
        answers = store.next_token([*prompts, prompts[1]], 5)
        assert answers.row_errors == dict.fromkeys((1, 2, 3), "content filter")
        assert store.score([prompts[0], prompts[1]], [60]).row_errors == {1: "content filter"}
        assert store.known_rows(prompts, 5) == [0]
        assert prompts[1] in store.backend.asked
    assert prompts[0] not in store.backend.asked
    assert store.store.info()["passes"] == 2  # one top k, and one score
    # an LM that no longer refuses is heard
    assert not stored(path, CountingBackend(**SMALL)).next_token(prompts, 5).row_errors


def test_a_backend_that_streams_is_kept_part_by_part(path):
    class Streaming(CountingBackend):
        def iter_next_token(self, prompts, top_k):
            for row in reversed(range(len(prompts))):
                yield [row], self.next_token([prompts[row]], top_k)

    prompts = requests(6)
    parts = stored(path, Streaming(**SMALL)).iter_next_token(prompts, 5)
    for _ in range(2):
        next(parts)
    assert stored(path).known_rows(prompts, 5) == [4, 5]
    assert stored(path).store.claim("other", [b"x"]) == [b"x"]
    parts.close()
    assert_same(stored(path, Streaming(**SMALL)).next_token(prompts, 5), truth(prompts, 5))


def test_a_backend_without_streaming_is_kept_call_by_call(path):
    class Failing(CountingBackend):
        def next_token(self, prompts, top_k):
            if self.asked:
                raise RuntimeError("the LM is gone")
            return super().next_token(prompts, top_k)

    prompts = requests(130)
    with pytest.raises(RuntimeError, match="the LM is gone"):
        stored(path, Failing(**SMALL)).next_token(prompts, 5)
    again = stored(path)
    assert len(again.known_rows(prompts, 5)) == 64
    again.next_token(prompts, 5)
    assert len(again.backend.asked) == 66
    assert edited(path, "SELECT * FROM claims") == edited(path, "SELECT * FROM workers") == []


def test_optional_methods_are_there_when_the_backend_has_them(path):
    store = stored(path)
    assert store.count_tokens(requests(1)) == store.backend.count_tokens(requests(1))
    assert store.show(requests(1)[0]) == store.backend.show(requests(1)[0])
    plain = stored(path, PlainBackend())
    assert not plain.limits.counts_tokens
    assert not plain.limits.generates
    assert plain.limits.max_score_ids == 0
    assert plain.show(requests(1)[0]) == (requests(1)[0].text, None)


def test_threads_make_no_pass_twice(path):
    store = stored(path)
    prompts = requests(200)
    answers = {}

    def ask(number):
        answers[number] = store.next_token(prompts[number * 20 :], 5)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.backend.asked) == 200
    for number, answer in answers.items():
        assert_same(answer, truth(prompts[number * 20 :], 5))


# --- claims


def test_a_claim_is_for_one_owner_until_it_ends(path):
    file = StoreFile(path)
    assert file.claim("a", [b"1", b"2"]) == [b"1", b"2"]
    assert file.claim("b", [b"1", b"2", b"3"]) == [b"3"]
    file.put(DIGEST, DATA, {b"1": encode_one(1)}, {}, merge_values, "a")
    assert file.claim("b", [b"1", b"2"]) == [b"1"]
    file.release("a")
    assert file.claim("b", [b"2"]) == [b"2"]


def encode_one(token, value=-1.0) -> bytes:
    return encode(np.array([token], np.int32), np.array([value], np.float32), 1)


def test_what_somebody_else_works_on_is_waited_for(path):
    prompts = requests(3)
    other, store = stored(path), stored(path)
    parts = other.iter_next_token(prompts, 5)
    keys = [store._key(prompt, "next_token") for prompt in prompts]
    other.store.claim("other", keys)

    def finish():
        time.sleep(0.4)
        other.store.release("other")
        list(parts)

    thread = threading.Thread(target=finish)
    thread.start()
    assert_same(store.next_token(prompts, 5), truth(prompts, 5))
    thread.join()
    assert len(store.backend.asked) + len(other.backend.asked) == 3


@pytest.mark.parametrize("call", ["next_token", "score", "generate"])
def test_two_processes_pay_for_one_answer_once(path, monkeypatch, call):
    begun, waited = threading.Event(), threading.Event()

    def wait(seconds):
        waited.set()
        time.sleep(0.01)

    monkeypatch.setattr(store_sharing, "time", SimpleNamespace(sleep=wait))

    class Slow(CountingBackend):
        def next_token(self, prompts, top_k):
            return self._when_waited_for(super().next_token, prompts, top_k)

        def score(self, prompts, token_ids):
            return self._when_waited_for(super().score, prompts, token_ids)

        def generate(self, prompts, n=1, **asked):
            self.calls.append(("generate", [(prompt, n) for prompt in prompts]))
            return self._when_waited_for(super().generate, prompts, n, **asked)

        def _when_waited_for(self, answer, *given, **asked):
            begun.set()
            assert waited.wait(30)
            return answer(*given, **asked)

    arguments = {
        "next_token": (PROMPTS, 5),
        "score": (PROMPTS, [60, 61]),
        "generate": ([*PROMPTS, PROMPTS[0]], 2),
    }[call]
    first, second = stored(path, Slow(**SMALL)), stored(path, Slow(**SMALL))
    got = []
    thread = threading.Thread(target=lambda: got.append(getattr(first, call)(*arguments)))
    thread.start()
    assert begun.wait(30)
    got.append(getattr(second, call)(*arguments))
    thread.join()
    n_asked = sum(len(some) for _, some in first.backend.calls)
    assert n_asked == len(PROMPTS)
    assert second.backend.calls == []
    assert second.usage.passes_made == 0
    expected = getattr(DeterministicBackend(**SMALL), call)(*arguments)
    for answer in got:
        if call == "generate":
            assert answer.texts == expected.texts
        else:
            assert bits(answer.log_probs) == bits(expected.log_probs)


def test_a_lease_that_is_over_is_taken_over(path, monkeypatch):
    monkeypatch.setattr(store_claims, "LEASE_SECONDS", 0.2)
    first, second = StoreFile(path), StoreFile(path)
    first.claim("a", [b"1"])
    assert second.claim("b", [b"1"]) == []
    time.sleep(0.3)
    assert second.claim("b", [b"1"]) == [b"1"]


def test_news_of_the_claimant_make_its_lease_longer(path, monkeypatch):
    monkeypatch.setattr(store_claims, "LEASE_SECONDS", 1.0)
    first, second = StoreFile(path), StoreFile(path)
    first.claim("a", [b"1", b"2"])
    for _ in range(4):
        time.sleep(0.4)
        assert second.claim("b", [b"1"]) == []
        first.put(DIGEST, DATA, {b"2": encode_one(1)}, {}, merge_values, "a")
    assert second.claim("b", [b"1"]) == []


def test_a_lease_from_another_machine_holds_until_it_is_over(path, monkeypatch):
    monkeypatch.setattr(store_claims, "LEASE_SECONDS", 0.5)
    first, second = StoreFile(path), StoreFile(path)
    monkeypatch.setattr(store_claims.socket, "gethostname", lambda: "elsewhere")
    first.claim("a", [b"1"])
    monkeypatch.undo()
    monkeypatch.setattr(store_claims, "LEASE_SECONDS", 0.5)
    edited(path, "UPDATE workers SET pid = 999999999")
    assert second.claim("b", [b"1"]) == []
    time.sleep(0.6)
    assert second.claim("b", [b"1"]) == [b"1"]


@pytest.mark.parametrize("differs", ["_boot", "_namespace"])
def test_a_process_of_another_namespace_is_not_taken_for_one_of_this(path, monkeypatch, differs):
    first, second = StoreFile(path), StoreFile(path)
    with monkeypatch.context() as other:
        other.setattr(store_claims, differs, lambda *_: "other")
        first.claim("a", [b"1"])
    edited(path, "UPDATE workers SET pid = 999999999")
    assert second.claim("b", [b"1"]) == []


@pytest.mark.parametrize("clock", [0.0, 1e10])
def test_no_clock_but_that_of_who_waits_counts(path, monkeypatch, clock):
    first, second = StoreFile(path), StoreFile(path)
    with monkeypatch.context() as other:
        other.setattr(time, "time", lambda: clock)
        first.claim("a", [b"1"])
    assert second.claim("b", [b"1"]) == []
    assert second.claim("b", [b"1"]) == []


def test_who_waits_and_was_stopped_takes_nothing_over(path, monkeypatch):
    first, second = StoreFile(path), StoreFile(path)
    first.claim("a", [b"1"])
    assert second.claim("b", [b"1"]) == []
    now = time.monotonic()
    monkeypatch.setattr(store_claims.time, "monotonic", lambda: now + 1000)  # both were stopped
    assert second.claim("b", [b"1"]) == []


@pytest.mark.parametrize("column", ["pid", "beat", "host"])
def test_a_lease_without_sense_ends_too(path, monkeypatch, column):
    monkeypatch.setattr(store_claims, "LEASE_SECONDS", 0.2)
    file = StoreFile(path)
    file.claim("a", [b"1"])
    edited(path, f"UPDATE workers SET {column} = 'x'")  # noqa: S608
    assert file.claim("b", [b"1"]) == []
    time.sleep(0.3)
    assert file.claim("b", [b"1"]) == [b"1"]


def test_a_claim_of_nobody_ends_too(path, monkeypatch):
    monkeypatch.setattr(store_claims, "LEASE_SECONDS", 0.2)
    file = StoreFile(path)
    file.claim("a", [b"1"])
    edited(path, "DELETE FROM workers")
    assert file.claim("b", [b"1"]) == []
    time.sleep(0.3)
    assert file.claim("b", [b"1"]) == [b"1"]


def test_a_generator_that_is_left_releases_its_claims(path):
    prompts = requests(200)
    store = stored(path)
    parts = store.iter_next_token(prompts, 5)
    next(parts)
    keys = [store._key(prompt, "next_token") for prompt in prompts[100:]]
    assert StoreFile(path).claim("b", keys) == []
    del parts
    assert len(StoreFile(path).claim("b", keys)) == 100


# --- the file


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
def test_only_its_owner_reads_it(path):
    before = os.umask(0)
    try:
        store = stored(path)
        store.next_token(requests(3), 5)
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert set(modes) >= {"passes.sqlite", "passes.sqlite-wal"}
    assert set(modes.values()) == {0o600}


def test_folders_are_made(tmp_path):
    file = StoreFile(tmp_path / "a" / "b" / "passes.sqlite")
    assert file.info()["passes"] == 0


@pytest.mark.posix
@pytest.mark.parametrize("where", ["file/passes.sqlite", "folder", "/proc/passes.sqlite"])
def test_a_place_that_takes_no_file_is_an_error(tmp_path, where):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for make in (StoreFile, open_store, find_store):
        with pytest.raises(StoreError, match="--no-store") as caught:
            make(tmp_path / where)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_an_error(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="--no-store"):
            StoreFile(folder / "passes.sqlite")
    finally:
        folder.chmod(0o700)


def test_the_default_that_can_not_be_made_is_done_without(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("x")
    monkeypatch.delenv("PROMPTBOOSTING_STORE", raising=False)
    monkeypatch.setattr(store_file, "default_path", lambda: tmp_path / "file" / "passes.sqlite")
    assert find_store(None) is None
    assert "not kept" in caplog.text
    with pytest.raises(StoreError):
        find_store(True)


def test_the_environment_names_the_store_or_switches_it_off(path, monkeypatch):
    monkeypatch.setenv("PROMPTBOOSTING_STORE", str(path))
    assert find_store(None).path == path
    assert find_store(False) is None
    monkeypatch.setenv("PROMPTBOOSTING_STORE", "off")
    assert find_store(None) is None
    with pytest.raises(TypeError, match="store must be"):
        find_store(3)


def test_a_store_is_opened_once_in_a_process(path):
    assert open_store(path) is open_store(str(path))
    assert find_store(path) is open_store(path)
    assert open_store(path, max_bytes=1000).max_bytes == find_store(path).max_bytes == 1000


def test_a_second_opening_takes_no_lock_from_the_first(path):
    first = stored(path)
    first.next_token(requests(2), 5)
    StoreFile(path)
    code = f"from blackbox.store.file import StoreFile; StoreFile({str(path)!r}).close()"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
    # the other process must not have thought itself the last one, and removed the log
    first.next_token(requests(5), 5)
    assert stored(path).known_rows(requests(5), 5) == [0, 1, 2, 3, 4]
    assert path.with_name("passes.sqlite-wal").exists()


def test_a_store_that_was_removed_is_made_anew(path):
    prompts = requests(3)
    first = StoredBackend(CountingBackend(**SMALL), open_store(path))
    first.next_token(prompts, 5)
    for file in path.parent.iterdir():
        file.unlink()
    # who has it open goes on, with the right answers
    assert_same(first.next_token(requests(4), 5), truth(requests(4), 5))
    again = StoredBackend(CountingBackend(**SMALL), open_store(path))
    assert_same(again.next_token(prompts, 5), truth(prompts, 5))
    assert again.backend.asked == []  # what was written to the file that is gone was written again
    assert stored(path).known_rows(prompts, 5) == [0, 1, 2]


def test_a_closed_store_says_so(path):
    store = stored(path)
    parts = store.iter_next_token(requests(100), 5)
    next(parts)
    store.store.close()
    store.store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.next_token(requests(1), 5)
    parts.close()


def test_a_store_of_a_newer_version_is_left_alone(path):
    StoreFile(path).close()
    edited(path, "UPDATE meta SET value = '2'")
    with pytest.raises(StoreError, match="format '2'"):
        StoreFile(path)
    assert [file.name for file in path.parent.iterdir() if "damaged" in file.name] == []


def test_a_fault_of_the_program_costs_nobody_his_store(path):
    store = stored(path)
    store.next_token(requests(2), 5)
    with pytest.raises((StoreError, TypeError)):
        store.store.get(DIGEST, [object()])
    assert store.known_rows(requests(2), 5) == [0, 1]


def test_the_least_recently_used_answers_go(path, monkeypatch, caplog):
    day = 86_400
    now = [1000.0 * day]
    monkeypatch.setattr(store_file.time, "time", lambda: now[0])
    store = stored(path)
    old, new = requests(300, "old"), requests(300, "new")
    store.next_token(old, 64)
    now[0] += day
    store.next_token(new, 64)
    now[0] += day
    store.next_token(old[:50], 64)  # used again
    store.store.max_bytes = store.store.info()["bytes"] * 2 // 3
    caplog.clear()
    store.next_token(requests(1, "one more"), 64)
    assert "least recently used" in caplog.text
    assert str(path) in caplog.text
    assert store.store.info()["bytes"] <= 1.1 * store.store.max_bytes
    kept = store.known_rows(old, 64)
    assert kept[:50] == list(range(50))
    assert len(kept) < 100
    assert store.known_rows(new, 64) == list(range(300))
    assert store.known_rows(requests(1, "one more"), 64) == [0]
    assert_same(store.next_token(old, 64), truth(old, 64))


def test_a_store_with_no_room_still_answers(path):
    store = StoredBackend(CountingBackend(**SMALL), StoreFile(path, max_bytes=1))
    for _ in range(2):
        assert_same(store.next_token(requests(70), 5), truth(requests(70), 5))
    assert store.store.info()["passes"] == 0


def test_pruning_drops_what_was_not_used_for_days(path, monkeypatch):
    now = time.time()
    store = stored(path)
    monkeypatch.setattr(store_file.time, "time", lambda: now - 40 * 86_400)
    store.next_token(requests(5), 5)
    monkeypatch.setattr(store_file.time, "time", lambda: now)
    store.next_token(requests(2), 5)
    store.next_token(requests(4, "new"), 5)
    assert store.store.prune(50) == 0
    assert store.store.prune(30) == 3
    assert store.known_rows(requests(5), 5) == [0, 1]
    assert store.known_rows(requests(4, "new"), 5) == [0, 1, 2, 3]
    assert store.store.prune(0) == 0


def test_info_says_what_is_there(path):
    store = stored(path)
    empty = store.store.info()
    assert (empty["passes"], empty["first_made"], empty["models"]) == (0, None, [])
    store.next_token(requests(5), 5)
    stored(path, CountingBackend(seed=1)).next_token(requests(2), 5)
    found = store.store.info()
    assert json.loads(json.dumps(found)) == found
    assert (found["passes"], found["journal"], found["path"]) == (7, "wal", str(path))
    assert [model["passes"] for model in found["models"]] == [5, 2]
    assert found["models"][0]["value_bytes"] == 5 * (7 + 5 * 6)
    assert BackendIdentity.from_dict(json.loads(found["models"][0]["identity"])) == IDENTITY
    assert found["first_made"] == found["last_used"]


def test_texts_are_not_in_the_file(path):
    store = stored(path)
    store.next_token([RenderedPrompt(text="a most confidential text")], 5)
    store.score([RenderedPrompt(text="a most confidential text")], [1])
    [[written]] = store.generate([RenderedPrompt(text="a most confidential text")]).texts
    held = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"confidential" not in held
    assert written.encode() in held


# --- copies and processes


def test_copies_share_the_store(path):
    store = stored(path)
    for made in (clone(store), copy.copy(store), copy.deepcopy(store)):
        assert made is store
    for made in (
        copy.copy(store.store),
        copy.deepcopy(store.store),
        clone(store.store, safe=False),
    ):
        assert made is store.store
    model = PromptBoostingClassifier("deterministic", store=store.store)
    assert clone(model).store is store.store


def test_a_pickle_opens_the_same_store(path):
    store = StoredBackend(DeterministicBackend(**SMALL), open_store(path, max_bytes=10**7))
    store.next_token(requests(3), 5)
    for made in (pickle.loads(pickle.dumps(store)), copy.deepcopy(store)):
        assert made.store is store.store
        assert made.known_rows(requests(3), 5) == [0, 1, 2]
    file = pickle.loads(pickle.dumps(StoreFile(path, max_bytes=10**6)))
    assert (file.path, file.max_bytes) == (path, 10**6)
    assert "passes.sqlite" in repr(file)


@pytest.mark.posix
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_store_is_used_on_both_sides_of_a_fork(path):
    store = stored(path)
    store.next_token(requests(3), 5)
    child = os.fork()
    if not child:
        code = 1
        try:
            answers = store.next_token(requests(8), 5)
            code = 0 if (answers.token_ids == truth(requests(8), 5).token_ids).all() else 2
        finally:
            os._exit(code)
    store.next_token(requests(5, "more"), 5)
    assert os.waitpid(child, 0)[1] == 0
    assert store.known_rows(requests(8), 5) == list(range(8))
    assert len(stored(path).known_rows(requests(5, "more"), 5)) == 5
    assert store.store.verify() == (13, 0)


@pytest.mark.posix
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_keeps_the_locks_that_hold_the_log(path):
    store = stored(path)
    store.next_token(requests(3), 5)
    code = f"from blackbox.store.file import StoreFile; StoreFile({str(path)!r}).close()"
    child = os.fork()
    if not child:
        result = 1
        try:
            store.next_token(requests(2, "one"), 5)
            time.sleep(0.3)
            result = os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code])
            store.next_token(requests(2, "two"), 5)
        finally:
            os._exit(result)
    store.store.close()  # the parent is gone before the child is
    assert os.waitpid(child, 0)[1] == 0
    again = stored(path)
    assert again.known_rows(requests(2, "one"), 5) == [0, 1]
    assert again.known_rows(requests(2, "two"), 5) == [0, 1]


# --- moving answers


def test_what_is_exported_is_imported_bit_for_bit(path, tmp_path):
    prompts = requests(1100)
    first = stored(path)
    first.next_token(prompts, 5)
    first.score(prompts[:2], [60, 61])
    first.score(prompts[2:3], [])
    first.score(prompts[2:3], [61, 60, 61])
    first.score(requests(1, "lone"), [])
    odd = CountingBackend(seed=1, **SMALL)
    odd.token_bytes = {**odd.token_bytes, 0: b"\xff\x00", 1: b""}
    stored(path, odd).next_token(prompts[:2], 64)
    assert export_store(first.store, tmp_path / "out.parquet") == 1106
    assert sorted(file.name for file in tmp_path.glob("out*")) == ["out.parquet"]

    into = StoreFile(tmp_path / "other.sqlite")
    assert import_store(into, tmp_path / "out.parquet") == 1106
    assert sorted(into.rows()) == sorted(first.store.rows())
    assert import_store(into, tmp_path / "out.parquet") == 1106
    assert into.info()["passes"] == 1106
    again = StoredBackend(CountingBackend(**SMALL), into)
    assert_same(again.next_token(prompts, 5), truth(prompts, 5))
    again.score(prompts[:3], [61])
    assert again.backend.calls == []
    other = StoredBackend(CountingBackend(seed=1, **SMALL), into)
    names = other.next_token(prompts[:2], 64).token_bytes
    assert (names[0], names[1]) == (b"\xff\x00", b"")
    assert other.backend.calls == []


def test_an_import_never_makes_an_answer_shorter(path, tmp_path):
    prompts = requests(2)
    stored(path).next_token(prompts, 3)
    export_store(StoreFile(path), tmp_path / "short.parquet")
    longer = stored(tmp_path / "other.sqlite")
    longer.next_token(prompts, 9)
    import_store(longer.store, tmp_path / "short.parquet")
    assert longer.known_rows(prompts, 9) == [0, 1]


def test_an_empty_store_is_exported_too(path, tmp_path):
    assert export_store(StoreFile(path), tmp_path / "out.parquet") == 0
    assert import_store(StoreFile(tmp_path / "new.sqlite"), tmp_path / "out.parquet") == 0


def row_of(**changed):
    return {
        "identity": DATA,
        "key": b"k" * 32,
        "asked": 2,
        "token_ids": [1, 2],
        "log_probs": [-1.0, -2.0],
        **changed,
    }


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([row_of(log_probs=[1.0, -2.0])], {}),
        ([row_of(log_probs=[float("nan"), -2.0])], {}),
        ([row_of(log_probs=[-2.0, -1.0])], {}),
        ([row_of(log_probs=[0.0, -0.1])], {}),
        ([row_of(log_probs=[-1.0, float("-inf")])], {}),
        ([row_of(log_probs=[-1.0])], {}),
        ([row_of(log_probs=None)], {}),
        ([row_of(token_ids=[1, -2])], {}),
        ([row_of(token_ids=[1, 1])], {}),
        ([row_of(token_ids=[], log_probs=[])], {}),
        ([row_of(asked=-1)], {}),
        ([row_of(asked=1)], {}),
        ([row_of(asked=None)], {}),
        ([row_of(key=None)], {}),
        ([row_of(identity="[]")], {}),
        ([row_of(identity="nothing")], {}),
        ([row_of(identity='{"provider": 1}')], {}),
        ([row_of()], []),
        ([row_of()], {DIGEST: {"x": "00"}}),
        ([row_of()], {DIGEST: {str(2**80): "00"}}),
        ([row_of()], {DIGEST: []}),
        ([{"identity": DATA}], {}),
        ([row_of()], None),
    ],
    ids=str,
)
def test_what_is_no_export_is_refused(path, tmp_path, rows, names):
    import pyarrow
    import pyarrow.parquet

    store = stored(path)
    store.next_token(requests(2), 5)
    table = pyarrow.Table.from_pylist(rows)
    if names is not None:
        table = table.replace_schema_metadata({"token_bytes": json.dumps(names)})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(StoreError, match="not an exported store") as caught:
        import_store(store.store, tmp_path / "in.parquet")
    assert "\n" not in str(caught.value)
    assert store.known_rows(requests(2), 5) == [0, 1]
    assert store.store.info()["passes"] == 2


def test_a_file_that_is_no_parquet_is_refused(path, tmp_path):
    (tmp_path / "in.parquet").write_text("no")
    for name in ("in.parquet", "nothing.parquet"):
        with pytest.raises(StoreError, match=name):
            import_store(StoreFile(path), tmp_path / name)


# --- damage


PROMPTS = requests(40)


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """A closed store with answers, scores and a claim of a process that is gone."""
    where = tmp_path_factory.mktemp("full") / "passes.sqlite"
    store = stored(where)
    store.next_token(PROMPTS, 20)
    store.score(PROMPTS[:10], [60, 61, 62])
    store.store.claim("gone", [store._key(PROMPTS[0], "next_token")])
    store.store.close()
    edited(where, "UPDATE workers SET pid = 999999999")
    return where


@pytest.fixture
def _short_leases(monkeypatch):
    # a claim whose process can't be told any more is waited for
    monkeypatch.setattr(store_claims, "LEASE_SECONDS", 0.2)


def flipped(path, rng, n) -> None:
    data = bytearray(path.read_bytes())
    for place in rng.integers(len(data), size=n):
        data[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(data))


def survived(use) -> bool:
    """Whether that worked; a `StoreError` of one line is all that may go wrong."""
    try:
        use()
    except StoreError as error:
        told = str(error)
    else:
        return True
    assert "\n" not in told
    return False


def assert_survives(path):
    """Every answer is true, or there is none and one line says why."""
    expected, scored = truth(PROMPTS, 20), DeterministicBackend(**SMALL).score(PROMPTS, [60, 62])
    if not survived(lambda: stored(path).store.close()):
        return
    store = stored(path)
    for use in (
        lambda: assert_same(store.next_token(PROMPTS, 20), expected),
        lambda: np.testing.assert_array_equal(
            store.score(PROMPTS, [60, 62]).log_probs, scored.log_probs
        ),
        store.store.info,
        store.store.verify,
        lambda: export_store(store.store, path.with_name("out.parquet")),
        lambda: import_store(store.store, path.with_name("out.parquet")),
        lambda: store.store.prune(1000),
        lambda: assert_same(store.next_token(PROMPTS, 12), truth(PROMPTS, 12)),
    ):
        survived(use)
    store.store.close()


@pytest.mark.usefixtures("_short_leases")
@pytest.mark.parametrize("seed", range(40))
def test_flipped_bits_never_give_a_wrong_answer(full, path, seed):
    rng = np.random.default_rng(seed)
    shutil.copy(full, path)
    flipped(path, rng, int(rng.integers(1, 40)))
    assert_survives(path)


@pytest.mark.usefixtures("_short_leases")
@pytest.mark.parametrize("seed", range(10))
def test_flipped_bits_in_the_log_never_give_a_wrong_answer(tmp_path, path, seed):
    rng = np.random.default_rng(seed)
    store = stored(tmp_path / "from.sqlite")
    store.next_token(PROMPTS, 20)
    for ending in ("", "-wal"):  # as a killed process leaves them
        shutil.copy(tmp_path / f"from.sqlite{ending}", path.with_name(path.name + ending))
    flipped(path.with_name(path.name + "-wal"), rng, int(rng.integers(1, 10)))
    assert_survives(path)


@pytest.mark.usefixtures("_short_leases")
@pytest.mark.parametrize("seed", range(10))
def test_bits_that_flip_in_use_never_give_a_wrong_answer(full, path, seed):
    rng = np.random.default_rng(seed)
    shutil.copy(full, path)
    store = stored(path)
    store.next_token(PROMPTS[:5], 20)
    with path.open("r+b") as file:
        for place in rng.integers(path.stat().st_size, size=20):
            file.seek(place)
            file.write(rng.bytes(1))
    survived(lambda: assert_same(store.next_token(PROMPTS, 20), truth(PROMPTS, 20)))
    store.store.close()
    assert_survives(path)


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 9000])
def test_a_file_that_was_cut_never_gives_a_wrong_answer(full, path, size):
    path.write_bytes(full.read_bytes()[:size])
    assert_survives(path)


@pytest.mark.parametrize("column", ["value", "digest", "identity"])
def test_a_damaged_row_is_dropped_counted_and_asked_again(full, path, column, caplog):
    shutil.copy(full, path)
    key = stored(full)._key(PROMPTS[7], "next_token")
    changed = 77 if column == "identity" else b"x" * 16
    edited(path, f"UPDATE passes SET {column} = ? WHERE key = ?", changed, key)  # noqa: S608
    store = stored(path)
    assert store.known_rows(PROMPTS, 20) == [row for row in range(40) if row != 7]
    assert store.store.n_damaged == 1
    assert "1 damaged answers dropped" in caplog.text
    assert_same(store.next_token(PROMPTS, 20), truth(PROMPTS, 20))
    assert store.backend.asked == [PROMPTS[7]]
    assert stored(path).known_rows(PROMPTS, 20) == list(range(40))


def test_an_answer_that_stands_under_another_key_is_not_given(full, path):
    shutil.copy(full, path)
    keys = [stored(full)._key(prompt, "next_token") for prompt in PROMPTS[:2]]
    ((value, digest),) = edited(path, "SELECT value, digest FROM passes WHERE key = ?", keys[0])
    edited(path, "UPDATE passes SET value = ?, digest = ? WHERE key = ?", value, digest, keys[1])
    store = stored(path)
    assert_same(store.next_token(PROMPTS, 20), truth(PROMPTS, 20))
    assert store.backend.asked == [PROMPTS[1]]


def test_verifying_drops_what_is_damaged(full, path):
    shutil.copy(full, path)
    assert StoreFile(path).verify() == (50, 0)
    edited(path, "UPDATE passes SET value = X'00' WHERE id IN (3, 5, 45)")
    file = StoreFile(path)
    assert file.verify() == (50, 3)
    assert file.verify() == (47, 0)
    assert file.n_damaged == 3


def test_an_answer_whose_tokens_lost_their_bytes_is_asked_again(full, path):
    shutil.copy(full, path)
    token = int(truth(PROMPTS[:1], 20).token_ids[0, 19])
    edited(path, "UPDATE tokens SET bytes = X'00' WHERE token = ?", token)
    with_it = (truth(PROMPTS, 20).token_ids == token).any(axis=1)
    store = stored(path)
    assert store.known_rows(PROMPTS, 20) == np.flatnonzero(~with_it).tolist()
    assert_same(store.next_token(PROMPTS, 20), truth(PROMPTS, 20))
    assert len(store.backend.asked) == with_it.sum()
    assert stored(path).known_rows(PROMPTS, 20) == list(range(40))


def damaged(path):
    return [file for file in path.parent.iterdir() if "damaged" in file.name]


def ruin_page(path, number, rng, size=4096):
    with path.open("r+b") as file:
        file.seek((number - 1) * size)
        file.write(rng.bytes(size))


def test_a_damaged_file_is_moved_aside_and_named(full, path, caplog):
    shutil.copy(full, path)
    ruin_page(path, 1, np.random.default_rng(0))
    before = path.read_bytes()
    store = stored(path)
    (aside,) = damaged(path)
    assert aside.read_bytes() == before
    assert aside.name in caplog.text
    assert str(path) in caplog.text
    assert_same(store.next_token(PROMPTS, 5), truth(PROMPTS, 5))
    assert store.backend.asked == []
    assert len(stored(path).known_rows(PROMPTS, 5)) == 40


def test_a_damaged_file_that_can_not_be_moved_is_an_error(full, path, monkeypatch, caplog):
    def refuse(*_):
        raise PermissionError("not yours")

    shutil.copy(full, path)
    ruin_page(path, 1, np.random.default_rng(0))
    monkeypatch.setattr(store_file.Path, "replace", refuse)
    with pytest.raises(StoreError, match="not a database"):
        StoreFile(path)
    assert "is moved" not in caplog.text


def test_a_file_that_is_ruined_in_use_is_replaced(full, path, caplog):
    shutil.copy(full, path)
    one, other = stored(path), stored(path)
    for store in (one, other):
        store.next_token(PROMPTS[:1], 5)
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    for store in (one, other):
        store.store._database.suspend()  # opened again, as after a fork
    assert_same(one.next_token(PROMPTS, 20), truth(PROMPTS, 20))
    assert "a new one is begun" in caplog.text
    # the new one has all it needs: answers, and the bytes of their tokens
    assert_same(other.next_token(PROMPTS, 20), truth(PROMPTS, 20))
    assert len({file.name.split("-")[-1] for file in damaged(path)}) == 1
    assert stored(path).known_rows(PROMPTS, 20) == list(range(40))


# --- the classifier


POOL = ["{text} It was {mask}", "{text} All in all {mask}"]
GOOD, BAD = ["lovely", "bright", "warm"], ["dull", "bleak", "cold"]
TEXTS = [f"row {n} of a {(GOOD, BAD)[n % 2][n % 3]} day" for n in range(30)]
LABELS = ["good", "bad"] * 15


def classifier(backend, path, **changed):
    small = {"prompts": POOL, "n_estimators": 5, "cv": None, "random_state": 0, **changed}
    return PromptBoostingClassifier(backend, store=path, **small)


def searched(model):
    grid = {"n_estimators": [2, 5], "learning_rate": [0.1, 0.5]}
    return GridSearchCV(model, grid, cv=3).fit(TEXTS, LABELS)


@pytest.mark.parametrize(
    "study",
    [
        lambda model: cross_val_score(model, TEXTS, LABELS, cv=3),
        searched,
        lambda model: OneVsRestClassifier(model).fit(TEXTS, ["a", "b", "c"] * 10).predict(TEXTS),
    ],
    ids=["cross_val_score", "GridSearchCV", "OneVsRestClassifier"],
)
def test_a_study_of_one_data_set_makes_no_pass_twice(path, study):
    engine = CountingBackend()
    study(classifier(PlainBackend(engine), path))
    assert len(engine.asked) == len(set(engine.asked)) == len(TEXTS) * len(POOL)
    # an LM that scores is asked for the tokens themselves, and never again for the same
    scoring = CountingBackend(seed=1)
    study(classifier(scoring, path))
    assert len(scoring.asked) == len(set(scoring.asked)) == len(TEXTS) * len(POOL)
    n_calls = len(scoring.calls)
    study(classifier(scoring, path))
    assert len(scoring.calls) == n_calls


def test_a_store_changes_no_prediction(path):
    expected = classifier(CountingBackend(), False).fit(TEXTS, LABELS)
    for _ in range(2):
        model = classifier(CountingBackend(), path).fit(TEXTS, LABELS)
        new = [text.replace("row", "line") for text in TEXTS]
        assert bits(model.predict_proba(new)) == bits(expected.predict_proba(new))
    assert (model.usage_.passes_made, model.usage_.passes_from_store) == (0, 60)


# --- texts that an LM writes


def test_draws_are_kept_by_their_number(path):
    engine = CountingBackend()
    calls = []
    write = engine.generate

    def generate(prompts, n=1, **asked):
        calls.append((len(prompts), n, asked["first"]))
        return write(prompts, n, **asked)

    engine.generate = generate
    expected = write(PROMPTS[:3], 5, max_tokens=4).texts
    assert len({text for some in expected for text in some}) == 15
    first = stored(path, engine).generate(PROMPTS[:2], 3, max_tokens=4)
    assert first.texts == [some[:3] for some in expected[:2]]
    assert (first.usage.passes_made, first.usage.passes_from_store) == (24, 0)
    fewer = stored(path, engine).generate(PROMPTS[:2], 2, max_tokens=4)
    assert fewer.texts == [some[:2] for some in expected[:2]]
    assert (fewer.usage.passes_made, fewer.usage.passes_from_store) == (0, 4)
    more = stored(path, engine).generate(PROMPTS[:3], 5, max_tokens=4)
    assert more.texts == expected
    assert more.usage.passes_from_store == 6
    assert calls == [(2, 3, 0), (2, 2, 3), (1, 5, 0)]
    later = stored(path, engine).generate(PROMPTS[:1], 2, max_tokens=4, first=3)
    assert later.texts == [expected[0][3:]]
    assert len(calls) == 3


@pytest.mark.parametrize("changed", [{"max_tokens": 3}, {"temperature": 0.5}, {"seed": 1}])
def test_other_draws_are_other_answers(path, changed):
    asked = {"max_tokens": 2, "temperature": 1.0, "seed": 0}
    stored(path).generate(PROMPTS[:2], 2, **asked)
    again = stored(path).generate(PROMPTS[:2], 2, **asked | changed)
    assert again.usage.passes_from_store == 0
    assert again.texts == stored(path).backend.generate(PROMPTS[:2], 2, **asked | changed).texts


def test_draws_are_exported_and_refused_prompts_are_not_kept(path, tmp_path):
    long = RenderedPrompt(text="word " * 9999)
    drawn = stored(path).generate([*PROMPTS[:2], long], 2, max_tokens=2)
    assert drawn.texts[2] == []
    assert "tokens" in drawn.row_errors[2]
    assert export_store(open_store(path), tmp_path / "out.parquet") == 4
    assert import_store(open_store(tmp_path / "other"), tmp_path / "out.parquet") == 4
    again = stored(tmp_path / "other").generate(PROMPTS[:2], 2, max_tokens=2)
    assert again.texts == drawn.texts[:2]
    assert again.usage.passes_made == 0


# --- secrets


SECRET = "sk-the-sentinel-that-nobody-may-see"


def test_a_key_is_nowhere(path, tmp_path, monkeypatch, caplog):
    class Remote(DeterministicBackend):
        def __init__(self):
            super().__init__()
            self.api_key = SECRET

    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    said = []
    for backend in (Remote(), "deterministic"):
        model = classifier(backend, path).fit(TEXTS, LABELS)
        model.predict(TEXTS)
        model.save(tmp_path / f"{type(backend).__name__}.model")
        said += [repr(model), repr(model.get_params()), repr(vars(model))]
    said.append(pickle.dumps(model).decode("latin-1"))
    lm = StoredBackend(Remote(), open_store(path))
    said += [repr(lm), repr(lm.store), repr(vars(lm)), json.dumps(lm.store.info()), caplog.text]
    export_store(lm.store, tmp_path / "out.parquet")
    said += [file.read_bytes().decode("latin-1") for file in tmp_path.iterdir()]
    import zipfile

    for name in ("Remote", "str"):
        with zipfile.ZipFile(tmp_path / f"{name}.model") as zipped:
            said += [zipped.read(part).decode("latin-1") for part in zipped.namelist()]
    assert len(said) > 12
    assert not [text[:100] for text in said if SECRET in text]


def test_limits_of_the_store_are_those_of_the_backend(path):
    store = stored(path, PlainBackend(max_top_k=9))
    assert isinstance(store.limits, Limits)
    assert store.limits.max_top_k == 9
    assert repr(store).startswith("StoredBackend(")
