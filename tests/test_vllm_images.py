"""Images through vLLM's real engine on the processor, and transformers with the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import vision_models
from images_asked import asked, picture

import backends
from backends import check_backend
from backends.transformers import TransformersBackend
from backends.vllm import VllmBackend
from blackbox.errors import BackendError
from blackbox.images import Image
from blackbox.protocol import RenderedPrompt

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

# the attention of vLLM on processors takes heads of 32 numbers and more
_HEADS = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of SmolVLM's architecture with random weights, and its processor."""
    folder = tmp_path_factory.mktemp("smolvlm")
    for part in vision_models.smolvlm(**_HEADS):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lm(folder):
    """The model through vLLM, started once (a minute)."""
    lm = backends.load("vllm", model=str(folder))
    yield lm
    lm.close()
    assert lm not in backends._loaded.values()
    processes = lm._engine.llm.llm_engine.engine_core.resources.engine_manager.processes
    for process in processes:
        process.join(60)
        assert not process.is_alive()
    with pytest.raises(BackendError, match="has ended"):
        lm.next_token([RenderedPrompt("a film")], 5)


@pytest.fixture(scope="module")
def other(folder):
    """The model through transformers."""
    return TransformersBackend(folder)


def prompts_of(image: Image) -> list[RenderedPrompt]:
    """Conversations and raw texts about an image, which stands first, in the middle and last."""
    return [
        asked(image, "What is it?"),
        asked(image, "What is it?", begun="It is"),
        asked(image, "I love this picture: it was great", at=len("I love this picture:")),
        asked(image, "See <image> <end> here"),
        RenderedPrompt("\nThe capital of", image=image),
        RenderedPrompt("Where is my parcel? ", image=image, image_at=len("Where is my parcel? ")),
    ]


def test_answers_are_those_of_transformers(lm, other):
    prompts = [prompt for number in range(3) for prompt in prompts_of(picture(number))]
    prompts.insert(3, RenderedPrompt("I love this film"))
    for asked_of in (prompts, prompts[::-1]):
        answers, theirs = lm.next_token(asked_of, 50), other.next_token(asked_of, 200)
        assert not answers.row_errors
        for row, prompt in enumerate(asked_of):
            assert lm.show(prompt) == other.show(prompt)
            known = dict(zip(theirs.token_ids[row].tolist(), theirs.log_probs[row], strict=True))
            mine = zip(answers.token_ids[row].tolist(), answers.log_probs[row], strict=True)
            assert max(abs(known[token] - value) for token, value in mine) < 0.002


def test_the_contract_holds(lm):
    check_backend(lm)


def test_the_engine_reads_the_tokens_that_are_counted(lm):
    prompts = prompts_of(picture(7))
    assert lm.next_token(prompts, 5).usage.tokens == sum(lm.count_tokens(prompts))


def test_least_counts_no_image_as_another(lm):
    same = [asked(picture(1), "What?", begun=begun) for begun in ("It is", "It was")]
    different = [asked(picture(number), "What?") for number in range(2)]
    (alone,) = lm.count_tokens(different[:1])
    assert lm.next_token(same, 5).usage.tokens_least < 1.5 * alone
    assert lm.next_token(different, 5).usage.tokens_least > 1.5 * alone


def test_tokens_are_scored_beside_an_image(lm):
    prompts = prompts_of(picture(1))
    answer = lm.next_token(prompts, 20)
    for row, prompt in enumerate(prompts):
        ids = answer.token_ids[row].tolist()
        assert lm.score([prompt], ids).log_probs[0] == pytest.approx(
            answer.log_probs[row], abs=0.01
        )


def test_it_writes_about_an_image(lm):
    prompts = [asked(picture(number), "What is it?") for number in range(2)]
    draws = lm.generate(prompts, 2, max_tokens=5, seed=3)
    assert draws.texts == lm.generate(prompts, 2, max_tokens=5, seed=3).texts
    assert draws.texts[0] != draws.texts[1]


def test_how_images_are_prepared_is_part_of_the_identity(lm, other):
    prepared = other.identity.extra["image_processor"]
    assert lm.identity.extra["image_processor"] == prepared
    small = VllmBackend(lm._engine.llm, max_image_side=16)  # an engine that runs already
    assert small.identity.extra == lm.identity.extra | {"max_image_side": "16"}
    prompt = [asked(picture(1, (64, 64)), "What?")]
    assert not np.allclose(
        small.next_token(prompt, 5).log_probs, lm.next_token(prompt, 5).log_probs
    )
