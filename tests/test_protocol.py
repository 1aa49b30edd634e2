"""The protocol: answers that break the contract are refused, identities and digests tell apart."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackbox.errors import BackendResponseError, UnservedPromptError
from blackbox.images import plain_image
from blackbox.protocol import (
    NO_TOKEN,
    BackendIdentity,
    ClosedQuestion,
    Limits,
    Message,
    RenderedPrompt,
    TokenLogProbs,
    TokenScores,
    Usage,
    check_served,
    distinct_tokens,
    request_digest,
)

NAMES = {1: b"a", 2: b"b", 3: b"c"}


def answer(ids, log_probs, **more):
    return TokenLogProbs(
        np.array(ids, np.int32), np.array(log_probs, np.float32), more.pop("names", NAMES), **more
    )


def test_a_good_answer_is_taken():
    assert len(answer([[1, 2], [3, NO_TOKEN]], [[-0.5, -1.5], [-0.1, -np.inf]])) == 2


@pytest.mark.parametrize(
    ("ids", "log_probs", "said"),
    [
        ([[1, 2]], [[0.1, -1.0]], "positive"),
        ([[1, 2]], [[-0.1, -0.1]], "sum to more than 1"),
        ([[1, 2]], [[np.nan, -1.0]], "NaN"),
        ([[1, 2]], [[-2.0, -1.0]], "descend"),
        ([[1, 1]], [[-1.0, -2.0]], "twice"),
        ([[1, 9]], [[-1.0, -2.0]], "token 9 has no bytes"),
        ([[1, NO_TOKEN]], [[-1.0, -2.0]], "go together"),
        ([[1, 2]], [[-1.0, -np.inf]], "go together"),
        ([[1, 2]], [[-1.0]], "equal"),
        ([[1, 2], [2, 1]], [[-1.0, -2.0], [-3.0, -2.0]], "answer 1"),
        ([[NO_TOKEN]], [[-np.inf]], "no tokens and no reason"),
    ],
)
def test_an_answer_that_breaks_the_contract_is_refused(ids, log_probs, said):
    with pytest.raises(BackendResponseError, match=said):
        answer(ids, log_probs)


def test_a_refused_row_has_a_reason_and_no_tokens():
    refused = answer([[NO_TOKEN]], [[-np.inf]], row_errors={0: "content filter"})
    assert refused.row_errors == {0: "content filter"}
    with pytest.raises(BackendResponseError, match="both tokens and a reason"):
        answer([[1]], [[-1.0]], row_errors={0: "content filter"})


def test_other_types_of_array_are_refused():
    with pytest.raises(BackendResponseError, match="int32"):
        TokenLogProbs(np.array([[1]], np.int64), np.array([[-1.0]], np.float32), NAMES)


def test_scores_are_checked_too():
    with pytest.raises(BackendResponseError, match="NaN or positive"):
        TokenScores(np.array([[np.nan]], np.float32))
    assert TokenScores(np.array([[np.nan]], np.float32), {0: "refused"}).row_errors


def test_usage_adds_up():
    one = Usage(passes_made=1, tokens=2, seconds_lm=5.0, cost=0.25)
    other = Usage(passes_made=1, passes_from_store=3, tokens=1, seconds_lm=1.0, cost=0.5)
    assert one + other == Usage(
        passes_made=2, passes_from_store=3, tokens=3, seconds_lm=6.0, cost=0.75
    )
    assert (one + Usage(cost=None)).cost is None


def test_usage_for_users_has_no_figure_for_benchmarks():
    told = Usage(passes_made=1, tokens=9, tokens_least=2, seconds_lm=0.12345).as_dict()
    assert told["tokens"] == 9
    assert told["seconds_lm"] == 0.123
    assert "tokens_least" not in told


IDENTITY = BackendIdentity("p", "chat", "m", "r", "w", "t", "c", {"seed": "1"})
DIGEST = "9610c1131c4c50b7f9d1392908ed5fd6c88df6976a576c2d7f3c484fe575f18d"


def test_an_identity_survives_json():
    assert BackendIdentity.from_dict(IDENTITY.as_dict()) == IDENTITY


@pytest.mark.parametrize(
    "data", [{"nope": "x"}, {"provider": 3}, {"extra": {"a": 1}}, {"extra": 1}]
)
def test_what_is_no_identity_is_refused(data):
    with pytest.raises(ValueError, match="identity"):
        BackendIdentity.from_dict(IDENTITY.as_dict() | data)


CHANGED = [
    dataclasses.replace(IDENTITY, **{field.name: "other"})
    for field in dataclasses.fields(IDENTITY)
    if field.name not in ("extra", "engine")
] + [dataclasses.replace(IDENTITY, extra={"seed": "2"})]


@pytest.mark.parametrize("other", CHANGED)
def test_every_part_of_an_identity_changes_its_digest(other):
    assert other.digest() != IDENTITY.digest()
    assert len(IDENTITY.differences(other)) == 1


def test_the_engine_is_kept_and_is_no_part_of_the_identity():
    other = dataclasses.replace(IDENTITY, engine="engine 1.1")
    assert other == IDENTITY
    assert other.differences(IDENTITY) == []
    # the digest under which stores have kept their answers since version 0.1
    assert other.digest() == IDENTITY.digest() == DIGEST
    assert BackendIdentity.from_dict(other.as_dict()).engine == "engine 1.1"


PROMPT = RenderedPrompt(text="a")
REQUESTS = [
    (IDENTITY, PROMPT, {"top_k": 2}),
    (CHANGED[0], PROMPT, {"top_k": 2}),
    (IDENTITY, RenderedPrompt(text="b"), {"top_k": 2}),
    (IDENTITY, RenderedPrompt(text="a", after_mask=""), {"top_k": 2}),
    (IDENTITY, RenderedPrompt(messages=(Message("user", "a"),)), {"top_k": 2}),
    (IDENTITY, RenderedPrompt(messages=(Message("system", "a"),)), {"top_k": 2}),
    (IDENTITY, RenderedPrompt(messages=(Message("user", "a"),), answer_prefix="b"), {"top_k": 2}),
    (IDENTITY, PROMPT, {"top_k": 3}),
    (IDENTITY, RenderedPrompt(text="a", choices=("A",)), {"top_k": 2}),
]


def test_requests_that_differ_anywhere_have_different_digests():
    digests = [request_digest(*request) for request in REQUESTS]
    assert len(set(digests)) == len(REQUESTS)
    assert digests == [request_digest(*request) for request in REQUESTS]


texts = st.text(st.characters(exclude_categories=()), max_size=20)


@given(
    st.none() | texts,
    texts,
    st.none() | texts,
    st.lists(st.tuples(texts, texts), max_size=2),
    st.none() | st.lists(texts, max_size=2),
    st.lists(texts, max_size=2),
)
def test_a_digest_is_that_of_canonical_json(text, prefix, after, turns, options, choices):
    asked_of = None if options is None else ClosedQuestion("choice", prefix, tuple(options))
    messages = tuple(Message(*turn) for turn in turns)
    prompt = RenderedPrompt(text, messages, prefix, after, asked_of, tuple(choices))
    asked = {"top_k": 2, "a": text}
    request = {
        "schema": 1,
        "identity": IDENTITY.digest(),
        "prompt": prompt.as_dict(),
        "asked": asked,
    }
    canonical = json.dumps(request, sort_keys=True, ensure_ascii=True).encode()
    assert request_digest(IDENTITY, prompt, asked) == hashlib.sha256(canonical).hexdigest()


@given(st.lists(st.integers(NO_TOKEN, 2**31 - 1)))
def test_distinct_tokens_are_sorted_and_without_the_filler(ids):
    for some in (ids, [number % 50 - 1 for number in ids]):
        found = distinct_tokens(np.array([some], np.int32))
        assert found == sorted(set(some) - {NO_TOKEN})


RAW_ONLY = Limits(max_top_k=5, max_score_ids=0, context_length=8, deterministic=True)


@pytest.mark.parametrize(
    "prompt",
    [
        RenderedPrompt(text="a", after_mask="b"),
        RenderedPrompt(messages=(Message("user", "a"),)),
        RenderedPrompt(messages=(Message("user", "a"),), answer_prefix="b"),
    ],
)
def test_a_prompt_of_a_kind_that_is_not_served_is_refused(prompt):
    with pytest.raises(UnservedPromptError, match="request 0"):
        check_served(RAW_ONLY, [prompt])


def test_a_begun_answer_needs_a_backend_that_continues_it():
    chat = dataclasses.replace(RAW_ONLY, chat=True)
    check_served(chat, [RenderedPrompt(messages=(Message("user", "a"),))])
    with pytest.raises(UnservedPromptError, match="answer is begun"):
        check_served(chat, [RenderedPrompt(messages=(Message("user", "a"),), answer_prefix="b")])


def test_more_tokens_than_a_backend_gives_are_refused():
    with pytest.raises(UnservedPromptError, match="top_k=6"):
        check_served(RAW_ONLY, [], top_k=6)


@pytest.mark.parametrize(
    "prompt",
    [
        RenderedPrompt(text="so it is"),
        RenderedPrompt(
            messages=(Message("user", "?"), Message("assistant", "!")), answer_prefix="a"
        ),
        RenderedPrompt(text="so", after_mask=" is"),
        RenderedPrompt(text="so", question=ClosedQuestion("choice", "Is it?", ("yes", "no"))),
        RenderedPrompt(text="so", choices=("A", "B")),
        RenderedPrompt(text="so", image=plain_image(1, 2, 3), image_at=1),
    ],
)
def test_a_request_as_json_data_has_every_field(prompt):
    fields = json.loads(json.dumps(dataclasses.asdict(prompt), default=repr))
    # requests without these keep the digests that they had before there were any
    for name in ("question", "choices"):
        if not fields[name]:
            del fields[name]
    image, at = fields.pop("image"), fields.pop("image_at")
    if image is not None:  # its bytes are not in a request's data, but their digest is
        fields["image"] = {"at": at, "digest": image["digest"]}
    assert json.loads(json.dumps(prompt.as_dict())) == fields


def test_requests_made_fast_are_those_that_the_class_makes():
    said = (Message("system", "Be brief."), Message("user", "What is it?"))
    for fast, slow in (
        (RenderedPrompt.of_text("a film"), RenderedPrompt("a film")),
        (
            RenderedPrompt.of_chat(said, "It is"),
            RenderedPrompt(messages=said, answer_prefix="It is"),
        ),
    ):
        assert fast == slow
        assert hash(fast) == hash(slow)
        assert repr(fast) == repr(slow)
        assert fast.as_dict() == slow.as_dict()
        assert dataclasses.asdict(fast) == dataclasses.asdict(slow)
        assert pickle.loads(pickle.dumps(fast)) == slow
        assert dataclasses.replace(fast, choices=("yes",)) == dataclasses.replace(
            slow, choices=("yes",)
        )
