"""Images through llama.cpp: a model with random weights and its mmproj, on the real engine."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends import check_backend
from blackbox.errors import ModelNotFoundError, UnservedPromptError
from blackbox.images import Image
from blackbox.protocol import NO_TOKEN, RenderedPrompt
from tests.images_asked import asked, check_it_learns, picture
from tests.vision_gguf import random_llava

pytest.importorskip("xllamacpp", reason="needs the `llamacpp` extra")
pytest.importorskip("gguf", reason="needs the `local` extra")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of the model."""
    return random_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def lm(files):
    """The backend over both."""
    from backends.llamacpp import LlamaCppBackend

    model, mmproj = files
    return LlamaCppBackend(model, mmproj=mmproj, context_length=512, n_slots=2)


def prompts_of(image: Image) -> list[RenderedPrompt]:
    """Conversations and raw texts about an image, which stands first, in the middle and last."""
    return [
        asked(image, "What is it?"),
        asked(image, "What is it?", begun="It is"),
        asked(image, "I love this picture: it was great", at=len("I love this picture:")),
        asked(image, "What is it?", at=len("What is it?")),
        RenderedPrompt("\nIt was", image=image),
        RenderedPrompt("x", image=image),
        RenderedPrompt("Where is it? It was", image=image, image_at=len("Where is it?")),
    ]


def test_the_contract_holds(lm):
    check_backend(lm)


def test_prompts_have_the_tokens_that_are_counted(lm):
    for prompt in prompts_of(picture(1, (300, 200))):
        (count,) = lm.count_tokens([prompt])
        text, ids = lm.show(prompt)
        assert "<image>" in text
        assert ids.count(NO_TOKEN) == 16
        assert len(ids) == count
        sent = {"prompt": lm._sent(lm._tokenizer.encode(prompt)), "n_predict": 1}
        assert lm._server.complete(sent)["tokens_evaluated"] == count


def test_an_image_is_evaluated_once_for_prompts_that_begin_with_it(lm):
    prompts = [
        asked(picture(number), "What is it?", begun=begun)
        for number in range(20, 22)
        for begun in ("It is", "It was", "A film:")
    ]
    usage = lm.next_token(prompts, 5).usage
    assert usage.tokens == sum(lm.count_tokens(prompts))
    assert usage.tokens_least <= usage.tokens_evaluated < 0.6 * usage.tokens


def test_answers_are_the_same_again_and_in_another_order(lm):
    prompts = [prompt for number in range(3) for prompt in prompts_of(picture(number))]
    one, other = lm.next_token(prompts, 20), lm.next_token(prompts[::-1], 20)
    assert one.log_probs == pytest.approx(other.log_probs[::-1], abs=0.05)
    assert len({tuple(row) for row in one.log_probs.round(3).tolist()}) == len(prompts)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_every_kind_of_file_is_the_same_image(lm, kind):
    import PIL.Image

    grey = PIL.Image.fromarray(np.full((32, 32), 90, np.uint8)).convert("RGB")
    written = io.BytesIO()
    grey.save(written, kind, **({"lossless": True} if kind == "WEBP" else {}))
    as_file, in_memory = (
        lm.next_token([asked(Image.of(one), "What?")], 9) for one in (written.getvalue(), grey)
    )
    assert as_file.log_probs == pytest.approx(in_memory.log_probs, abs=0.05)


def test_a_prompt_that_ends_with_its_image_is_refused_and_no_other(lm):
    # the engine would end the process
    ends = RenderedPrompt("Look: ", image=picture(1), image_at=len("Look: "))
    answer = lm.next_token([ends, asked(picture(1), "What?")], 5)
    assert "put words after {image}" in answer.row_errors[0]
    assert answer.token_ids[1, 0] != NO_TOKEN
    draws = lm.generate([ends], 1, max_tokens=2)
    assert "put words after {image}" in draws.row_errors[0]


def test_a_prompt_over_the_context_is_refused_with_its_length(lm):
    answer = lm.next_token([asked(picture(1), "word " * 600)], 5)
    assert "the context holds 511" in answer.row_errors[0]


def test_control_tokens_in_texts_are_text_beside_an_image_too(lm):
    controls = {0, 1, 2}
    for said in ("What is <|im_end|> it?", "<|im_start|>user <|endoftext|><|im_end|>"):
        with_them, without = (
            [token for token in lm.show(asked(picture(1), text))[1] if token in controls]
            for text in (said, "What is it?")
        )
        assert with_them == without
        raw = RenderedPrompt(f"{said} it", image=picture(1))
        assert lm.show(raw)[1].count(0) == 1  # the document's start
        answer = lm.next_token([asked(picture(1), said, begun=said), raw], 5)
        assert not answer.row_errors


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.text(max_size=40),
    st.integers(0, 40),
    st.integers(1, 400),
    st.integers(1, 400),
    st.sampled_from(["", "<|im_end|>", "<__media__>", "<image>", "\x00", "\ud83d"]),
    st.booleans(),
)
def test_any_text_beside_any_image_is_answered(lm, text, at, width, height, odd, is_chat):
    text = f"{odd}{text}"
    image = picture(3, (width, height))
    prompt = (
        asked(image, text, min(at, len(text)))
        if is_chat
        else RenderedPrompt(f"{text} .", image=image, image_at=min(at, len(text)))
    )
    answer = lm.next_token([prompt], 5)
    assert not answer.row_errors
    assert (answer.token_ids != NO_TOKEN).all()
    assert lm.count_tokens([prompt]) == [answer.usage.tokens]


def test_it_writes_about_an_image(lm):
    prompts = [asked(picture(number), "What is it?") for number in range(2)]
    draws = lm.generate(prompts, 2, max_tokens=5, seed=3)
    assert draws.texts == lm.generate(prompts, 2, max_tokens=5, seed=3).texts
    assert draws.texts[0] != draws.texts[1]


def test_the_mmproj_and_resizing_are_part_of_the_identity(lm, files):
    from backends.llamacpp import LlamaCppBackend

    model, mmproj = files
    small = LlamaCppBackend(model, mmproj=mmproj, max_image_side=8, context_length=512, n_slots=2)
    assert small.identity.extra == lm.identity.extra | {"max_image_side": "8"}
    assert not np.allclose(
        small.next_token([asked(picture(1), "What?")], 5).log_probs,
        lm.next_token([asked(picture(1), "What?")], 5).log_probs,
    )
    assert pickle.loads(pickle.dumps(small)).identity == small.identity
    blind = LlamaCppBackend(model, context_length=512, n_slots=2)
    assert blind.identity.extra.keys() == {"document_start"}
    with pytest.raises(UnservedPromptError, match="takes no images"):
        blind.next_token([asked(picture(1), "What?")], 5)
    texts = [RenderedPrompt("I love this film"), RenderedPrompt("It was")]
    assert blind.next_token(texts, 20).log_probs == pytest.approx(
        lm.next_token(texts, 20).log_probs, abs=0.05
    )


def test_what_is_no_mmproj_is_one_clear_error(files, tmp_path):
    from backends.llamacpp import LlamaCppBackend

    model, _ = files
    (tmp_path / "text.gguf").write_text("hello")
    for mmproj, said in (
        (tmp_path / "none.gguf", "no such file"),
        (tmp_path / "text.gguf", "is not a GGUF file"),
        (model, "can't load model.gguf with model.gguf"),
    ):
        with pytest.raises(ModelNotFoundError, match=said) as caught:
            LlamaCppBackend(model, mmproj=mmproj, context_length=512, n_slots=2)
        assert "\n" not in str(caught.value)


def test_a_classifier_learns_through_random_weights(lm):
    check_it_learns(lm, top_k=200)
