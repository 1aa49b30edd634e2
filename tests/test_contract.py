"""The duties of every backend, on the real engine of each."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from decision_server import KEY, DecisionServer
from fault_server import FaultServer
from masked_models import roberta
from sklearn.base import clone

import backends
from backends.contract import CHECKS, TEXTS, prompts_for
from backends.deterministic import DeterministicBackend
from backends.sampling import SamplingBackend
from blackbox.backend import BaseBackend
from blackbox.errors import BackendContractError
from blackbox.protocol import NO_TOKEN, Embeddings, Usage, request_digest


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


@contextlib.contextmanager
def decision_endpoint(form):
    """A decision endpoint of one form."""
    pytest.importorskip("openai", reason="needs the `openai` extra")
    from backends.decisions import DecisionsBackend

    with pytest.MonkeyPatch.context() as patch, DecisionServer(form) as server:
        patch.setenv("OPENAI_API_KEY", KEY)
        yield DecisionsBackend(base_url=server.url)


@pytest.fixture(scope="module")
def decisions_server():
    """A decision endpoint of OpenAI's form."""
    with decision_endpoint("decisions") as lm:
        yield lm


@pytest.fixture(scope="module")
def systemone_server():
    """A decision endpoint of the form of System One."""
    with decision_endpoint("systemone") as lm:
        yield lm


@pytest.fixture(scope="module")
def llamacpp_server(llamacpp_lm):
    """llama.cpp's server with the embedded LM, through the `openai` client."""
    openai = pytest.importorskip("openai", reason="needs the `openai` extra")
    from backends.openai import OpenAIBackend

    server = llamacpp_lm._server
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key=server.key) as client:
        yield OpenAIBackend(client=client)


@pytest.fixture(
    params=[
        "deterministic",
        "sampling",
        "openai",
        "decisions",
        "systemone",
        pytest.param("onnx", marks=pytest.mark.lm),
        pytest.param("llamacpp", marks=[pytest.mark.lm, pytest.mark.slow]),
        pytest.param("llamacpp's server", marks=[pytest.mark.lm, pytest.mark.slow]),
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
        "decisions": "decisions_server",
        "systemone": "systemone_server",
        "onnx": "lm",
        "llamacpp": "llamacpp_lm",
        "llamacpp's server": "llamacpp_server",
        "transformers": "transformers_lm",
        "vllm": "vllm_lm",
    }
    return request.getfixturevalue(fixtures[request.param])


@pytest.mark.parametrize("check", CHECKS)
def test_it_keeps_the_contract(backend, check):
    backends.check_backend(backend, skip=CHECKS.keys() - {check})


def test_it_is_a_backend_whose_engine_has_a_name_and_whose_requests_have_a_digest(backend):
    assert isinstance(backend, BaseBackend)
    identity = backend.identity
    if identity.provider in ("llamacpp", "transformers", "vllm"):
        assert re.match(rf"x?{identity.provider} \d+\.\d", identity.engine)
    prompt = prompts_for(backend, TEXTS)[0]
    assert request_digest(identity, prompt, {}) == request_digest(identity, prompt, {})


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


def test_what_does_not_fit_is_refused(backend):
    if backend.identity.provider == "openai-compatible" and backend.limits.context_length == 8192:
        pytest.xfail("this server has no limit")
    long = "word " * (backend.limits.context_length + 10)
    answer = backend.next_token(prompts_for(backend, [TEXTS[0], long]), 5)
    assert list(answer.row_errors) == [1]
    assert (answer.token_ids[1] == NO_TOKEN).all()


def test_texts_that_are_written_are_drawn_by_number(backend):
    if not backend.limits.generates or backend.identity.provider in (
        "openai-compatible",
        "llamacpp",
    ):
        return  # a server's draws need not repeat
    prompts = prompts_for(backend, TEXTS[:2])
    draws = backend.generate(prompts, 3, max_tokens=4, seed=5)
    later = backend.generate(prompts, 2, max_tokens=4, seed=5, first=1)
    assert [texts[1:] for texts in draws.texts] == later.texts


def test_clones_share_the_engine_and_a_pickle_finds_it_again(backend):
    assert clone(backend) is backend
    if getattr(backend, "_own_client", False) or getattr(backend, "_name", "") is None:
        with pytest.raises(TypeError, match="can't be pickled"):
            pickle.dumps(backend)
        return
    assert pickle.loads(pickle.dumps(backend)).identity == backend.identity


def identity_with_a_path(lm):
    lm.identity = replace(lm.identity, extra={"file": str(Path.home() / "model")})


def identity_with_an_address(lm):
    lm.identity = replace(lm.identity, revision="http://gpu-3:8000/v1")


def no_usage(lm):
    def next_token(prompts, top_k):
        return DeterministicBackend.next_token(lm, prompts, top_k).with_usage(Usage())

    lm.next_token = next_token


def a_batch_that_leaks(lm):
    def next_token(prompts, top_k):
        whole = " ".join(prompt.text for prompt in prompts)
        return DeterministicBackend.next_token(
            lm, [replace(prompt, text=prompt.text + whole) for prompt in prompts], top_k
        )

    lm.next_token = next_token


def one_answer_for_all(lm):
    def next_token(prompts, top_k):
        return DeterministicBackend.next_token(
            lm, [replace(prompt, text="same") for prompt in prompts], top_k
        )

    lm.next_token = next_token


def a_top_k_that_renormalises(lm):
    def next_token(prompts, top_k):
        answer = DeterministicBackend.next_token(lm, prompts, top_k)
        total = np.log(np.exp(answer.log_probs).sum(axis=1, keepdims=True)) + np.float32(1e-4)
        return replace(answer, log_probs=answer.log_probs - total)

    lm.next_token = next_token


def a_stream_that_ends_early(lm):
    def iter_next_token(prompts, top_k):
        yield [0], lm.next_token(prompts[:1], top_k)

    lm.iter_next_token = iter_next_token


def an_empty_text_is_refused(lm):
    def next_token(prompts, top_k):
        if any(prompt.text == "" for prompt in prompts):
            raise ValueError("empty text")
        return DeterministicBackend.next_token(lm, prompts, top_k)

    lm.next_token = next_token


def a_long_text_ends_the_call(lm):
    def next_token(prompts, top_k):
        if any(len(prompt.text or "") > 5 * lm.limits.context_length for prompt in prompts):
            raise ValueError("too long")
        return DeterministicBackend.next_token(lm, prompts, top_k)

    lm.next_token = next_token


def limits_that_are_not_kept(lm):
    inner = lm.limits
    lm.limits = replace(inner, max_top_k=100)

    def next_token(prompts, top_k):
        answers = DeterministicBackend()
        return answers.next_token([replace(p, after_mask=None) for p in prompts], top_k)

    lm.next_token = next_token


def no_begun_answers(lm):
    def next_token(prompts, top_k):
        if any(prompt.answer_prefix for prompt in prompts):
            raise ValueError("an answer can't be begun")
        return DeterministicBackend.next_token(lm, prompts, top_k)

    lm.next_token = next_token


def images_that_are_not_seen(lm):
    def next_token(prompts, top_k):
        blind = [replace(prompt, image=None) for prompt in prompts]
        return DeterministicBackend.next_token(lm, blind, top_k)

    lm.next_token = next_token


def images_that_are_left_out(lm):
    images_that_are_not_seen(lm)
    lm.limits = replace(lm.limits, images=False)


def scores_in_another_order(lm):
    def score(prompts, token_ids):
        return DeterministicBackend.score(lm, prompts, sorted(token_ids))

    lm.score = score


def one_draw_less(lm):
    def generate(prompts, n=1, **asked):
        return DeterministicBackend.generate(lm, prompts, n - 1, **asked)

    lm.generate = generate


def counts_without_the_first_token(lm):
    lm.count_tokens = lambda prompts: [len(lm.show(prompt)[1]) - 1 for prompt in prompts]


def one_vector_for_all(lm):
    def embed(texts):
        return Embeddings.of(np.ones((len(texts), lm.limits.embedding_size)))

    lm.embed = embed


class Copied(DeterministicBackend):
    def __copy__(self):
        return DeterministicBackend()


@pytest.mark.parametrize(
    ("check", "broken", "said"),
    [
        ("identity", identity_with_a_path, "identity.extra has a path"),
        ("identity", identity_with_an_address, "identity.revision has an address"),
        ("answers", no_usage, "usage.passes_made is 0 for 4 prompts"),
        ("batches", a_batch_that_leaks, "alone"),
        ("prompts differ", one_answer_for_all, "4 different prompts get one answer"),
        ("top k", a_top_k_that_renormalises, "differ by"),
        ("stream", a_stream_that_ends_early, "70 prompts give rows"),
        ("odd texts", an_empty_text_is_refused, "ValueError: empty text"),
        ("long texts", a_long_text_ends_the_call, "ValueError: too long"),
        ("unserved", limits_that_are_not_kept, "raises no UnservedPromptError"),
        ("chats", no_begun_answers, "an answer can't be begun"),
        ("images", images_that_are_not_seen, "an image changes no answer"),
        ("images", images_that_are_left_out, "an image raises no UnservedPromptError"),
        ("scores", scores_in_another_order, "score differs from next_token"),
        ("draws", one_draw_less, r"generate\(n=3\) writes \[2, 2\] texts"),
        ("token counts", counts_without_the_first_token, "count_tokens says"),
        ("embeddings", one_vector_for_all, "4 different texts get one vector"),
        ("copies", None, "a copy is another object"),
    ],
)
def test_each_check_finds_what_it_is_for_and_names_it(check, broken, said):
    lm = Copied() if broken is None else DeterministicBackend()
    if broken is not None:
        broken(lm)
    with pytest.raises(BackendContractError, match=f"fails the check '{check}': .*{said}"):
        backends.check_backend(lm, skip=CHECKS.keys() - {check})


def test_every_check_is_shown_to_find_something():
    (marks,) = test_each_check_finds_what_it_is_for_and_names_it.pytestmark
    assert {case[0] for case in marks.args[1]} == CHECKS.keys()
    with pytest.raises(ValueError, match="no check is named 'speed'"):
        backends.check_backend(DeterministicBackend(), skip=["speed"])
