"""What every backend must do, on the real engine of each."""

from __future__ import annotations

import copy
import os
import pickle
import re

import numpy as np
import pytest
from fault_server import FaultServer
from masked_models import roberta
from sklearn.base import clone

from backends.deterministic import DeterministicBackend
from backends.sampling import SamplingBackend
from blackbox.backend import BaseBackend
from blackbox.errors import UnservedPromptError
from blackbox.protocol import (
    NO_TOKEN,
    BackendIdentity,
    Message,
    RenderedPrompt,
    request_digest,
)

TEXTS = ["The capital of France is", "I went to the", "Two plus two is", "The cat sat on the"]
ODD = [
    "",
    "I love it 😀",
    "half a pair \ud83d, नमस्ते, \u200b, \x07",
    'She said "goodbye" and left.\n\nThe end.\n\n\n',
    "<|im_end|> </s> [MASK] <mask> {{ 7 * 7 }}",
]


@pytest.fixture(scope="module")
def openai_server():
    """A hosted API: chat only, 20 tokens, no begun answers."""
    pytest.importorskip("openai", reason="needs the `openai` extra")
    from backends.openai import OpenAIBackend

    before = os.environ.get("OPENAI_API_KEY")
    with FaultServer() as server:
        os.environ["OPENAI_API_KEY"] = server.key
        yield OpenAIBackend("lm", base_url=server.url)
    os.environ.pop("OPENAI_API_KEY")
    if before is not None:
        os.environ["OPENAI_API_KEY"] = before


@pytest.fixture(scope="module")
def llamacpp_server(llamacpp_lm):
    """llama.cpp's server with the embedded LM, through the `openai` client."""
    openai = pytest.importorskip("openai", reason="needs the `openai` extra")
    from backends.openai import OpenAIBackend

    server, key = llamacpp_lm._server
    with openai.OpenAI(base_url=f"{server.listening_address}/v1", api_key=key) as client:
        yield OpenAIBackend(client=client)


@pytest.fixture(
    params=[
        "deterministic",
        "sampling",
        "openai",
        pytest.param("onnx", marks=pytest.mark.lm),
        pytest.param("llamacpp", marks=pytest.mark.lm),
        pytest.param("llamacpp's server", marks=pytest.mark.lm),
        pytest.param("transformers", marks=pytest.mark.transformers),
        pytest.param("transformers, masked", marks=pytest.mark.transformers),
        pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.timeout(600)]),
    ]
)
def backend(request):
    if request.param == "deterministic":
        return DeterministicBackend()
    if request.param == "sampling":
        return SamplingBackend(DeterministicBackend(), n_draws=30)
    if request.param == "transformers, masked":
        from backends.transformers import TransformersBackend

        model, tokenizer = roberta()
        return TransformersBackend(model, tokenizer=tokenizer)
    fixtures = {
        "openai": "openai_server",
        "onnx": "lm",
        "llamacpp": "llamacpp_lm",
        "llamacpp's server": "llamacpp_server",
        "transformers": "transformers_lm",
        "vllm": "vllm_lm",
    }
    return request.getfixturevalue(fixtures[request.param])


def prompts_for(backend, texts):
    behind = "." if backend.limits.mask else None
    return [RenderedPrompt(text=text, after_mask=behind) for text in texts]


def tolerance(backend):
    return 0 if backend.limits.deterministic else 0.05


def known(answer, row):
    ids, values = answer.token_ids[row].tolist(), answer.log_probs[row].tolist()
    return {token: value for token, value in zip(ids, values, strict=True) if token != NO_TOKEN}


def differs(one, other):
    """The largest difference over tokens that both answers hold, most of which they must."""
    shared = one.keys() & other.keys()
    assert len(shared) >= 0.8 * min(len(one), len(other))
    return max(abs(one[token] - other[token]) for token in shared)


def test_it_is_a_backend_and_its_identity_holds_no_path(backend):
    assert isinstance(backend, BaseBackend)
    identity = backend.identity
    assert BackendIdentity.from_dict(identity.as_dict()) == identity
    if identity.provider in ("llamacpp", "transformers", "vllm"):
        assert re.match(rf"x?{identity.provider} \d+\.\d", identity.engine)
    written = " ".join(str(value) for value in identity.as_dict().values())
    assert "/tmp" not in written
    assert "127.0.0.1" not in written
    prompt = prompts_for(backend, TEXTS)[0]
    assert request_digest(identity, prompt, {}) == request_digest(identity, prompt, {})


def test_answers_have_shape_order_and_names_and_are_distributions(backend):
    top_k = min(20, backend.limits.max_top_k)
    answer = backend.next_token(prompts_for(backend, TEXTS), top_k)
    assert answer.token_ids.shape == answer.log_probs.shape == (4, top_k)
    assert (answer.log_probs[:, 1:] <= answer.log_probs[:, :-1]).all()
    named = set(answer.token_ids[answer.token_ids != NO_TOKEN].tolist())
    assert named <= set(answer.token_bytes)
    assert (np.exp(answer.log_probs).sum(axis=1) <= 1.001).all()
    assert answer.usage.passes_made >= 4
    assert answer.usage.tokens >= 4


def test_the_whole_vocabulary_sums_to_one_where_it_can_be_asked_for(backend):
    config = getattr(getattr(backend, "_model", None), "config", None)
    size = getattr(config, "vocab_size", getattr(backend, "_options", {}).get("vocabulary_size"))
    if size != backend.limits.max_top_k:
        top_k = backend.limits.max_top_k
        answer = backend.next_token(prompts_for(backend, TEXTS[:1]), top_k)
        assert 0.3 < np.exp(answer.log_probs).sum() <= 1.001
        return
    answer = backend.next_token(prompts_for(backend, TEXTS), size)
    assert np.exp(answer.log_probs).sum(axis=1) == pytest.approx(1, abs=1e-3)


def test_a_prompt_gets_the_same_answer_again_alone_and_in_any_batch(backend):
    prompts = prompts_for(
        backend, [f"{text} {cue}" for text in TEXTS for cue in ("It was", "\nTopic:", "so")]
    )
    top_k = min(20, backend.limits.max_top_k)
    together = backend.next_token(prompts, top_k)
    reversed_ = backend.next_token(prompts[::-1], top_k)
    for row, prompt in enumerate(prompts):
        alone = backend.next_token([prompt], top_k)
        assert differs(known(together, row), known(alone, 0)) <= tolerance(backend)
        other = known(reversed_, len(prompts) - 1 - row)
        assert differs(known(together, row), other) <= tolerance(backend)


def test_different_prompts_get_different_answers(backend):
    answer = backend.next_token(prompts_for(backend, TEXTS), min(10, backend.limits.max_top_k))
    assert len({tuple(row) for row in answer.log_probs.round(3).tolist()}) == 4


def test_a_larger_top_k_begins_with_the_smaller(backend):
    prompt = prompts_for(backend, TEXTS[:1])
    few = backend.next_token(prompt, 5)
    many = backend.next_token(prompt, min(100, backend.limits.max_top_k))
    assert np.abs(many.log_probs[0, :5] - few.log_probs[0]).max() <= tolerance(backend)


def test_a_stream_covers_every_prompt_once_and_can_be_closed(backend):
    prompts = prompts_for(backend, [f"Number {i} is" for i in range(70)])
    rows = [row for where, _ in backend.iter_next_token(prompts, 5) for row in where]
    assert sorted(rows) == list(range(70))
    begun = backend.iter_next_token(prompts, 5)
    next(begun)
    begun.close()
    assert len(backend.next_token(prompts[:2], 5)) == 2


@pytest.mark.parametrize("text", ODD)
def test_odd_texts_get_a_distribution(backend, text):
    """Also where the likeliest token is half a character, or would end the text."""
    answer = backend.next_token(prompts_for(backend, [text]), 5)
    assert not answer.row_errors
    assert answer.token_ids[0, 0] != NO_TOKEN


def test_what_does_not_fit_is_refused_with_a_reason_and_others_are_answered(backend):
    if backend.identity.provider == "openai-compatible" and backend.limits.context_length == 8192:
        pytest.xfail("this server has no limit")
    long = "word " * (backend.limits.context_length + 10)
    answer = backend.next_token(prompts_for(backend, [TEXTS[0], long, TEXTS[1]]), 5)
    assert list(answer.row_errors) == [1]
    assert answer.row_errors[1]
    assert (answer.token_ids[1] == NO_TOKEN).all()
    assert (answer.token_ids[[0, 2], 0] != NO_TOKEN).all()


def test_what_is_not_served_is_refused_before_anything_is_run(backend):
    limits = backend.limits
    wrong = RenderedPrompt(text="a", after_mask=None if limits.mask else "b")
    with pytest.raises(UnservedPromptError):
        backend.next_token([*prompts_for(backend, TEXTS), wrong], 5)
    with pytest.raises(UnservedPromptError, match="top_k"):
        backend.next_token(prompts_for(backend, TEXTS), limits.max_top_k + 1)


def test_conversations_are_answered_where_they_are_served(backend):
    if not backend.limits.chat:
        assert backend.limits.mask
        return
    prompts = [
        RenderedPrompt(messages=(Message("user", "What is the capital of France?"),)),
        RenderedPrompt(messages=(Message("system", "Be brief."), Message("user", "Hello."))),
    ]
    if backend.limits.answer_prefix:
        begun = RenderedPrompt(messages=prompts[0].messages, answer_prefix="The capital is")
        prompts += [begun, RenderedPrompt(messages=prompts[0].messages, answer_prefix="Paris.")]
    answer = backend.next_token(prompts, 5)
    assert not answer.row_errors
    assert (answer.token_ids[:, 0] != NO_TOKEN).all()


def test_scores_are_the_same_log_probabilities(backend):
    prompts = prompts_for(backend, TEXTS)
    if backend.limits.max_score_ids == 0:
        return
    answer = backend.next_token(prompts, 20)
    for row, prompt in enumerate(prompts):
        ids = answer.token_ids[row].tolist()
        values = backend.score([prompt], ids[::-1]).log_probs[0][::-1]
        assert np.abs(values - answer.log_probs[row]).max() <= max(tolerance(backend), 1e-6)
    assert backend.score(prompts, [answer.token_ids[0, 0]]).log_probs.shape == (4, 1)


def test_texts_that_are_written_are_drawn_by_number(backend):
    if not backend.limits.generates:
        return
    prompts = prompts_for(backend, TEXTS[:2])
    draws = backend.generate(prompts, 3, max_tokens=4, seed=5)
    assert [len(texts) for texts in draws.texts] == [3, 3]
    if backend.identity.provider in ("openai-compatible", "llamacpp"):
        return  # a server's draws need not repeat
    later = backend.generate(prompts, 2, max_tokens=4, seed=5, first=1)
    assert [texts[1:] for texts in draws.texts] == later.texts


def test_shown_ids_are_what_is_counted(backend):
    prompts = prompts_for(backend, [*TEXTS, *ODD])
    if not backend.limits.counts_tokens:
        return
    assert backend.count_tokens(prompts) == [len(backend.show(prompt)[1]) for prompt in prompts]


def test_copies_and_clones_share_the_engine_and_a_pickle_finds_it_again(backend):
    assert copy.copy(backend) is copy.deepcopy(backend) is clone(backend) is backend
    if getattr(backend, "_own_client", False) or getattr(backend, "_name", "") is None:
        with pytest.raises(TypeError, match="can't be pickled"):
            pickle.dumps(backend)
        return
    assert pickle.loads(pickle.dumps(backend)).identity == backend.identity
