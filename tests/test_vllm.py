"""vLLM's real engine on the processor, against other engines with the same weights."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from backends.vllm import VllmBackend, _check_engine
from blackbox import PromptBoostingClassifier, load_model
from blackbox.answers.passes import scores
from blackbox.errors import BackendError, MissingDependencyError, ModelNotFoundError
from blackbox.prompts.template import Prompt
from blackbox.protocol import Message, RenderedPrompt

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

TEXTS = ["a lovely film", "a dull film", "lovely, truly", "dull and long"] * 3
LABELS = ["good", "bad", "good", "bad"] * 3


def test_answers_are_those_of_transformers_and_llamacpp(vllm_lm, transformers_lm, lm_float32):
    prompts = [
        RenderedPrompt(text="The capital of France is"),
        RenderedPrompt(text="I love it 😀"),
        RenderedPrompt(text=""),
        RenderedPrompt(text="half \ud83d, <|im_end|> नमस्ते, \u200b, \x07"),
        RenderedPrompt(messages=(Message("user", "What is it?"),), answer_prefix="It is a"),
        RenderedPrompt(messages=(Message("user", "Say yes."),), answer_prefix="Yes."),
    ]
    answers = vllm_lm.next_token(prompts, 200)
    for other, most in ((transformers_lm, 0.002), (lm_float32, 0.05)):
        theirs = other.next_token(prompts, 200)
        for row, prompt in enumerate(prompts):
            assert vllm_lm.show(prompt) == other.show(prompt)
            known = dict(zip(theirs.token_ids[row].tolist(), theirs.log_probs[row], strict=True))
            mine = zip(answers.token_ids[row, :50].tolist(), answers.log_probs[row], strict=False)
            for token, value in mine:
                assert abs(known[token] - value) < most


def test_more_tokens_than_one_request_takes_are_scored_in_several(vllm_lm):
    prompt = Prompt("{text} It is about {mask}")
    examples = [("My card has not arrived", None), ("I can't log in", None)]
    ids = list(range(20, 20 + 300))  # as with banking77's classes: more than 128
    scored, _ = scores(vllm_lm, prompt, examples, ids)
    assert scored.log_probs.shape == (2, 300)
    requests = [prompt.render(*example) for example in examples]
    top = vllm_lm.next_token(requests, 1000)
    compared = 0
    for row in range(2):
        known = dict(zip(top.token_ids[row].tolist(), top.log_probs[row], strict=True))
        for token, value in zip(ids, scored.log_probs[row], strict=True):
            if token in known:
                compared += 1
                assert abs(known[token] - value) < 0.002
    assert compared > 10


def test_texts_longer_than_a_block_are_read_out_of_the_prefix_cache(vllm_lm):
    text = " ".join(f"word{number}" for number in range(40))
    prompts = [RenderedPrompt(text=f"{text} {cue}") for cue in "abcdefghij"]
    usage = vllm_lm.next_token(prompts, 5).usage
    assert usage.tokens_least < 0.3 * usage.tokens
    again = vllm_lm.next_token(prompts, 5).usage
    assert again.tokens_evaluated < 0.5 * again.tokens


def test_the_engine_has_the_next_part_while_the_caller_reads_one(vllm_lm, monkeypatch):
    engine, given = vllm_lm._engine, []
    add = engine._add
    prompts = [RenderedPrompt(text=f"Number {number}: a film") for number in range(150)]
    whole = vllm_lm.next_token(prompts, 5)
    monkeypatch.setattr(engine, "_add", lambda *asked: given.append(asked) or add(*asked))
    parts = vllm_lm.iter_next_token(prompts, 5)
    rows, first = next(parts)
    assert len(rows) < len(given) < 150
    assert np.abs(first.log_probs - whole.log_probs[rows]).max() < 0.01
    parts.close()
    assert not engine.llm.llm_engine.output_processor.request_states
    again = vllm_lm.next_token(prompts[:3], 5)
    assert np.abs(again.log_probs - whole.log_probs[:3]).max() < 0.01


def test_it_trains_saves_and_loads(vllm_lm, tmp_path):
    prompts = ["{text} It was {mask}", "<user>{text}\n\nHow is it?<assistant>It is {mask}"]
    classifier = PromptBoostingClassifier(vllm_lm, prompts=prompts, random_state=0)
    classifier.fit(TEXTS, LABELS).save(tmp_path / "m.blackbox")
    loaded = load_model(tmp_path / "m.blackbox", backend=vllm_lm)
    new = ["what a lovely day", "how dull"]
    assert np.abs(loaded.predict_proba(new) - classifier.predict_proba(new)).max() < 0.01
    assert loaded.predict(TEXTS).tolist() == LABELS


def test_text_pairs_are_served(vllm_lm):
    pairs = [(text, "so it is good") for text in TEXTS]
    prompts = ["{text}\nTherefore, {text_pair}\nThis is {mask}"]
    classifier = PromptBoostingClassifier(vllm_lm, prompts=prompts, random_state=0)
    assert classifier.fit(pairs, LABELS).predict(pairs).shape == (12,)


def test_an_engine_that_runs_already_can_be_handed_over(vllm_lm):
    backend = VllmBackend(vllm_lm._engine.llm)
    prompt = [RenderedPrompt(text="The capital of France is")]
    one, other = backend.next_token(prompt, 20), vllm_lm.next_token(prompt, 20)
    assert (one.token_ids == other.token_ids).all()
    assert backend.identity == vllm_lm.identity


def test_a_pickle_finds_the_engine_that_runs(vllm_lm):
    assert pickle.loads(pickle.dumps(vllm_lm)) is vllm_lm


def test_nothing_is_printed_on_standard_output(vllm_lm, capfd):
    vllm_lm.next_token([RenderedPrompt(text="a b c")], 5)
    vllm_lm.generate([RenderedPrompt(text="a b c")], 1, max_tokens=2)
    assert capfd.readouterr().out == ""


def test_what_is_no_model_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    for name, said in [
        (str(tmp_path / "none"), "no such folder"),
        (str(tmp_path / "empty"), "can't load empty"),
        ("nobody/no-such-model", "no-such-model"),
    ]:
        with pytest.raises(ModelNotFoundError, match=said) as caught:
            VllmBackend(name)
        assert "\n" not in str(caught.value)


def test_a_missing_sdk_is_one_line_that_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingDependencyError, match=r"'promptboosting\[vllm\]'"):
        VllmBackend(tmp_path)


def test_tokens_that_there_are_none_of_are_one_clear_error(vllm_lm):
    prompt = [RenderedPrompt(text="a b c")]
    with pytest.raises(BackendError, match="vLLM refused a request") as caught:
        vllm_lm.score(prompt, [10_000_000])
    assert "\n" not in str(caught.value)
    assert vllm_lm.score(prompt, []).log_probs.shape == (1, 0)
    assert np.isfinite(vllm_lm.score(prompt, [5, 3, 5]).log_probs).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"logprobs_mode": "processed_logprobs"}, "logprobs_mode='raw_logprobs'"),
        ({"runner_type": "pooling"}, "a causal LM is needed"),
    ],
)
def test_an_engine_that_would_answer_something_else_is_refused(change, said):
    settings = {"logprobs_mode": "raw_logprobs", "runner_type": "generate"}
    _check_engine(SimpleNamespace(**settings))
    with pytest.raises(BackendError, match=said):
        _check_engine(SimpleNamespace(**settings | change))


_ENGINE_ENDS = """
import json, os, signal, sys, time
before = dict(os.environ)
from backends.vllm import VllmBackend
from blackbox.errors import BackendError
from blackbox.protocol import RenderedPrompt

lm = VllmBackend(sys.argv[1], context_length=256)
prompts = [RenderedPrompt(text="The capital of France is")]
first = lm.next_token(prompts, 5)
changed = sorted(key for key in before | os.environ if before.get(key) != os.environ.get(key))
processes = lm._engine.llm.llm_engine.engine_core.resources.engine_manager.processes
for process in processes:  # as a terminal's Ctrl-C, which goes to every process
    os.kill(process.pid, signal.SIGINT)
time.sleep(1)
again = lm.next_token(prompts, 5)
for process in processes:
    os.kill(process.pid, signal.SIGKILL)
said = []
for _ in range(2):
    try:
        lm.next_token(prompts, 5)
    except BackendError as error:
        said.append(str(error))
same = bool((first.token_ids == again.token_ids).all())
print(json.dumps({"changed": changed, "same": same, "said": said}))
"""


def test_an_engine_outlives_ctrl_c_and_its_end_is_an_error(lm_folder):
    # it waited for answers of a dead engine before, for as long as anybody would
    done = subprocess.run(
        [sys.executable, "-c", _ENGINE_ENDS, str(lm_folder)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["same"]
    assert found["changed"] == []
    assert len(found["said"]) == 2
    assert all("vLLM's engine has ended" in line for line in found["said"])
