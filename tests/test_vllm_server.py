"""vLLM's OpenAI-compatible server on the processor, through the real `openai` client."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest

from blackbox import PromptBoostingClassifier
from blackbox.protocol import Message, RenderedPrompt

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

PROMPTS = [
    RenderedPrompt(text="The capital of France is"),
    RenderedPrompt(text="I love it 😀"),
    RenderedPrompt(text=""),
    RenderedPrompt(messages=(Message("user", "What is it?"),), answer_prefix="It is a"),
    RenderedPrompt(messages=(Message("user", "Say yes."),), answer_prefix="Yes."),
    RenderedPrompt(messages=(Message("system", "Be brief."), Message("user", "Hello"))),
]


@contextmanager
def serving(folder, name):
    """A running server; its start takes a minute or two."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(folder),
        "--served-model-name",
        name,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        "float32",
        "--enforce-eager",
        "--max-logprobs",
        "200",
        "--max-model-len",
        "1024",
        "--block-size",
        "32",
        "--api-key",
        "sk-sentinel-0123456789",
    ]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and server.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        assert server.poll() is None
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="module")
def address(lm_folder):
    """A server of the embedded LM."""
    with serving(lm_folder, "smollm2") as url:
        yield url


@pytest.fixture(scope="module")
def decisions_address(lm_folder, tmp_path_factory):
    """A server of a small random Qwen3, one of the families that vLLM serves decisions of."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("qwen3")
    tokenizer = AutoTokenizer.from_pretrained(lm_folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen3Config(vocab_size=len(tokenizer), max_position_embeddings=1024, **sizes, **heads)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    with serving(folder, "qwen3") as url:
        yield url


@pytest.fixture
def backend(address, monkeypatch):
    from backends.openai import OpenAIBackend

    monkeypatch.setenv("OPENAI_API_KEY", "sk-sentinel-0123456789")
    return OpenAIBackend(base_url=address)


def test_the_probe_finds_what_the_server_gives(backend):
    found = backend.describe()
    assert found["model"] == "smollm2"
    assert found["endpoints"] == ["chat", "completions"]
    assert found["max_top_k"] == 200
    assert found["log_probs"] == "raw"
    assert found["answer_prefill"]
    assert found["context_length"] == 1024
    assert found["document_start"] == "<|endoftext|>"
    assert backend.limits.max_score_ids == 128


def test_answers_are_those_of_llamacpp_with_the_same_weights(backend, lm_float32):
    there, here = backend.next_token(PROMPTS, 200), lm_float32.next_token(PROMPTS, 200)
    for row, prompt in enumerate(PROMPTS):
        assert backend.show(prompt)[1] == lm_float32.show(prompt)[1]
        known = dict(zip(here.token_ids[row].tolist(), here.log_probs[row], strict=True))
        likely = zip(there.token_ids[row, :50].tolist(), there.log_probs[row, :50], strict=True)
        for token, value in likely:
            assert abs(known[token] - value) < 0.05


def test_no_likely_token_is_lost_at_a_small_top_k(backend):
    """A chat lists the token that was drawn too: it must not take the place of the last one."""
    chats = [prompt for prompt in PROMPTS if prompt.messages]
    few, many = backend.next_token(chats, 20), backend.next_token(chats, 200)
    assert np.abs(few.log_probs - many.log_probs[:, :20]).max() < 0.01


def test_given_tokens_are_scored(backend):
    answer = backend.next_token(PROMPTS[:2], 20)
    ids = answer.token_ids[0].tolist()
    scored = backend.score(PROMPTS[:2], ids[::-1])
    assert np.abs(scored.log_probs[0][::-1] - answer.log_probs[0]).max() < 0.01
    assert np.isfinite(scored.log_probs[1]).all()


@pytest.mark.parametrize("begun", [True, False])
def test_its_chats_alone_are_enough_with_and_without_begun_answers(address, monkeypatch, begun):
    from backends.openai import OpenAIBackend

    monkeypatch.setenv("OPENAI_API_KEY", "sk-sentinel-0123456789")
    backend = OpenAIBackend(
        base_url=address, endpoint="chat", begin_answers=begun, largest_top_k=20
    )
    assert backend.probe().wire.raw_text_by == ("begun answer" if begun else "instruction")
    texts = ["a lovely film", "a dull film", "lovely, truly", "dull and long"] * 3
    prompts = ["{text} It was {mask}", "<user>{text}\n\nGood or bad? One word.<assistant>{mask}"]
    classifier = PromptBoostingClassifier(backend, prompts=prompts, random_state=0)
    classifier.fit(texts, ["good", "bad"] * 6)
    assert classifier.score(texts, ["good", "bad"] * 6) == 1.0


def test_texts_are_written(backend):
    draws = backend.generate(PROMPTS[:1], 3, max_tokens=4)
    assert [len(texts) for texts in draws.texts] == [3]
    long = RenderedPrompt(text="word " * 2000)
    assert list(backend.next_token([PROMPTS[0], long], 5).row_errors) == [1]


def test_the_responses_api_gives_the_distributions_of_chats(address, backend):
    from backends.openai import OpenAIBackend

    responses = OpenAIBackend(base_url=address, endpoint="responses", largest_top_k=20)
    assert responses.describe()["endpoints"] == ["responses"]
    chats = PROMPTS[-1:]
    there, here = responses.next_token(chats, 20), backend.next_token(chats, 20)
    names = {there.token_bytes[token] for token in there.token_ids[0, :5].tolist()}
    assert names == {here.token_bytes[token] for token in here.token_ids[0, :5].tolist()}
    assert np.abs(there.log_probs[0, :5] - here.log_probs[0, :5]).max() < 0.05


def test_its_decision_endpoint_keeps_the_contract_and_classifies(decisions_address, monkeypatch):
    from backends.contract import check_backend
    from backends.decisions import DecisionsBackend

    monkeypatch.setenv("OPENAI_API_KEY", "sk-sentinel-0123456789")
    lm = DecisionsBackend(base_url=decisions_address)
    found = lm.describe()
    assert (found["model"], found["endpoint"]) == ("qwen3", "systemone")
    assert found["same_answer_twice"]
    assert found["probabilities"] == "not rounded"
    check_backend(lm)
    asked = ["<choice>What is it?<option>a dog<option>a cat", "<predicate>It barks."]
    texts, labels = [f"a dog {n}" for n in range(6)] + [f"my cat {n}" for n in range(6)], [0, 1]
    classifier = PromptBoostingClassifier(backend=lm, prompts=asked, store=False, cv=None)
    classifier.fit(texts, np.repeat(labels, 6))
    assert np.isfinite(classifier.predict_proba(["a dog"])).all()
    # the text is billed once for each question, each of which is a pass
    assert classifier.usage_.passes_made == 24
