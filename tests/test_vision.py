"""Vision-language models through transformers, against direct calls of the same models."""

from __future__ import annotations

import numpy as np
import pytest
import vision_models
from images_asked import asked, check_it_learns, picture

from backends import check_backend
from backends.transformers import TransformersBackend
from blackbox.images import Image
from blackbox.protocol import RenderedPrompt

pytestmark = pytest.mark.transformers

NAMES = ["llava", "smolvlm", "gemma3", "qwen2_vl", "qwen2_5_vl"]


@pytest.fixture(scope="module", params=NAMES)
def made(request):
    """A model, its processor, and the backend over both."""
    model, processor = getattr(vision_models, request.param)()
    return model, processor, TransformersBackend(model, processor=processor)


def direct(made, prompt: RenderedPrompt) -> np.ndarray:
    """The log-probabilities of the model itself, called with what its processor makes."""
    import torch

    model, processor, lm = made
    inputs = processor(
        text=[lm.show(prompt)[0]],
        images=[prompt.image.pixels()],
        return_tensors="pt",
        add_special_tokens=False,
    )
    with torch.inference_mode():
        logits = model(**inputs).logits[0, -1]
    return torch.log_softmax(logits.float(), -1).numpy()


def prompts_of(image: Image) -> list[RenderedPrompt]:
    """Conversations and raw texts about an image, which stands first, in the middle and last."""
    return [
        asked(image, "What is it?"),
        asked(image, "What is it?", begun="It is"),
        asked(image, "What is this film?", begun="A great film"),
        asked(image, "I love this picture: it was great", at=len("I love this picture:")),
        RenderedPrompt("\nThe capital of", image=image),
        RenderedPrompt("\nIt was", image=image),
        RenderedPrompt("Where is my parcel? ", image=image, image_at=len("Where is my parcel? ")),
    ]


def test_answers_are_those_of_the_model_itself(made):
    lm = made[2]
    prompts = [prompt for number in range(3) for prompt in prompts_of(picture(number))]
    answers = lm.next_token(prompts, 50)
    for row, prompt in enumerate(prompts):
        expected = direct(made, prompt)[answers.token_ids[row]]
        assert answers.log_probs[row] == pytest.approx(expected, abs=1e-4)
    assert lm.count_tokens(prompts) == [len(lm.show(prompt)[1]) for prompt in prompts]


def test_what_prompts_of_an_image_begin_with_is_evaluated_once(made):
    lm = made[2]
    prompts = [
        asked(picture(number), "What is it?", begun=begun)
        for number in range(2)
        for begun in ("It is", "It was", "A film:")
    ]
    usage = lm.next_token(prompts, 5).usage
    assert usage.tokens == sum(lm.count_tokens(prompts))
    assert usage.tokens_least <= usage.tokens_evaluated < 0.6 * usage.tokens


def test_the_contract_holds(made):
    check_backend(made[2])


def test_an_image_in_a_text_by_name_is_text(made):
    _, processor, lm = made
    token = getattr(processor, "boi_token", None) or processor.image_token
    prompt = asked(picture(1), f"What is {token} here?")
    bare = asked(picture(1), "What is here?")
    ids, plain = lm.show(prompt)[1], lm.show(bare)[1]
    marks = set(processor.tokenizer.all_special_ids)
    assert [i for i in ids if i in marks] == [i for i in plain if i in marks]
    answers = lm.next_token([prompt, RenderedPrompt(f"{token} it is", image=picture(1))], 5)
    assert not answers.row_errors


def test_texts_alone_are_answered_beside_images(made):
    lm = made[2]
    texts = [RenderedPrompt("The capital of France is"), RenderedPrompt("I love this film")]
    mixed = lm.next_token([texts[0], asked(picture(1), "What?"), texts[1]], 20)
    alone = lm.next_token(texts, 20)
    assert mixed.log_probs[[0, 2]] == pytest.approx(alone.log_probs, abs=1e-4)


def test_it_writes_about_an_image(made):
    lm = made[2]
    prompts = [asked(picture(number), "What is it?") for number in range(2)]
    draws = lm.generate(prompts, 2, max_tokens=5, seed=3)
    assert draws.texts == lm.generate(prompts, 2, max_tokens=5, seed=3).texts
    assert draws.texts[0] != draws.texts[1]


def test_a_text_is_written_after_an_image_as_before_it(made):
    lm = made[2]
    text = [RenderedPrompt("The capital of France is")]
    image = [asked(picture(1, (96, 64)), "What is it?")]
    before = lm.generate(text, 3, max_tokens=8, seed=1).texts
    lm.generate(image, 1, max_tokens=3)
    assert lm.generate(text, 3, max_tokens=8, seed=1).texts == before


def test_images_are_estimated_about_as_they_are_counted(made):
    lm = made[2]
    for size in ((16, 16), (40, 30), (300, 500)):
        prompt = asked(picture(1, size), "What?")
        bare = RenderedPrompt(messages=prompt.messages)
        (n_with, n_without) = lm.count_tokens([prompt, bare])
        assert n_with - n_without <= 2 * lm.limits.tokens_of_image(prompt) + 8


def test_resizing_is_part_of_the_identity():
    model, processor = vision_models.llava()
    whole = TransformersBackend(model, processor=processor)
    small = TransformersBackend(model, processor=processor, max_image_side=16)
    assert small.identity.extra == whole.identity.extra | {"max_image_side": "16"}
    prompt = asked(picture(1, (64, 64)), "What?")
    assert not np.allclose(
        whole.next_token([prompt], 5).log_probs, small.next_token([prompt], 5).log_probs
    )


def test_a_model_in_a_folder_is_the_same(tmp_path):
    model, processor = vision_models.smolvlm()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    one, other = TransformersBackend(model, processor=processor), TransformersBackend(tmp_path)
    assert other.limits == one.limits
    prompts = prompts_of(picture(1))
    assert other.next_token(prompts, 9).log_probs == pytest.approx(
        one.next_token(prompts, 9).log_probs, abs=1e-4
    )


def test_a_model_without_a_processor_takes_no_images():
    model, processor = vision_models.llava()
    lm = TransformersBackend(model, tokenizer=processor.tokenizer)
    assert not lm.limits.images


def test_a_classifier_learns_through_random_weights():
    model, processor = vision_models.llava()
    check_it_learns(TransformersBackend(model, processor=processor), top_k=400)


def test_llamacpp_answers_as_transformers_does(tmp_path):
    """Its graph for LLaVA has the class token behind the patches, of which it drops the first."""
    import torch

    from backends.llamacpp import LlamaCppBackend
    from tests.vision_gguf import of_llava

    model, processor = vision_models.llava()
    weights, mmproj = of_llava(model, processor.tokenizer, tmp_path)
    lm = LlamaCppBackend(weights, mmproj=mmproj, context_length=512, n_slots=2)
    see = model.model.vision_tower.forward

    def as_llamacpp_does(*given, **more):
        seen = see(*given, **more)
        seen.hidden_states = tuple(
            torch.cat([h[:, :1], h[:, 2:], h[:, :1]], 1) for h in seen.hidden_states
        )
        return seen

    model.model.vision_tower.forward = as_llamacpp_does
    other = TransformersBackend(model, processor=processor)
    prompts = [RenderedPrompt("I love this film")] + [
        RenderedPrompt(said, image=picture(number, (32, 32)))
        for number in range(3)
        for said in ("\nThe capital of", "\nIt was")
    ]
    answers, theirs = lm.next_token(prompts, 50), other.next_token(prompts, 300)
    for row in range(len(prompts)):
        known = dict(zip(theirs.token_ids[row].tolist(), theirs.log_probs[row], strict=True))
        mine = zip(answers.token_ids[row].tolist(), answers.log_probs[row], strict=True)
        assert max(abs(known[token] - value) for token, value in mine) < 0.05
