"""Small vision-language models with random weights, with processors made in code."""

from __future__ import annotations

from typing import Any

from masked_models import SENTENCES

__all__ = ["gemma3", "llava", "smolvlm"]

_SIDE, _PATCH = 32, 8
_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
_SEEN = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": _SIDE,
    "patch_size": _PATCH,
    "initializer_range": 0.3,
}
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<end>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def _tokenizer(*special: str, **more: Any) -> Any:
    """A byte-level tokenizer of 420 tokens."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    tokens = ["<start>", "<pad>", "<end>", "<unk>", *special]
    trained.train_from_iterator(SENTENCES * 20, vocab_size=420, special_tokens=tokens)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<pad>",
        unk_token="<unk>",
        **(more or {"additional_special_tokens": list(special)}),
    )


def llava() -> tuple[Any, Any]:
    """LLaVA's architecture: an image is as many tokens as it has patches."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = _tokenizer("<image>")
    size = {"height": _SIDE, "width": _SIDE}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": _SIDE}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=_PATCH,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=_TEMPLATE.replace("IMAGE", "<image>"),
    )
    torch.manual_seed(0)
    config = LlavaConfig(
        text_config=LlamaConfig(vocab_size=len(tokenizer), **_TEXT).to_dict(),
        vision_config=CLIPVisionConfig(**_SEEN).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(_SIDE // _PATCH) ** 2,
    )
    return LlavaForConditionalGeneration(config).eval(), processor


def smolvlm() -> tuple[Any, Any]:
    """SmolVLM's architecture (Idefics 3): tiles of an image, each with marks around it."""
    import torch
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3Processor,
        LlamaConfig,
    )
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokenizer = _tokenizer(
        "<fake_token_around_image>",
        "<image>",
        "<end_of_utterance>",
        "<global-img>",
        *(f"<row_{i}_col_{j}>" for i in range(1, 5) for j in range(1, 5)),
    )
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(
            size={"longest_edge": 2 * _SIDE}, max_image_size={"longest_edge": _SIDE}
        ),
        tokenizer=tokenizer,
        image_seq_len=(_SIDE // _PATCH // 2) ** 2,
        chat_template=_TEMPLATE.replace("IMAGE", "<image>"),
    )
    torch.manual_seed(0)
    config = Idefics3Config(
        text_config=LlamaConfig(vocab_size=len(tokenizer), **_TEXT).to_dict(),
        vision_config=Idefics3VisionConfig(**_SEEN).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=1,
    )
    return Idefics3ForConditionalGeneration(config).eval(), processor


def gemma3() -> tuple[Any, Any]:
    """Gemma 3's architecture: the tokens of an image see each other, and windows that slide."""
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    marks = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image_soft_token>"}
    tokenizer = _tokenizer(*marks.values(), extra_special_tokens=marks)
    start, end, image = map(tokenizer.convert_tokens_to_ids, marks.values())
    n_tokens = (_SIDE // _PATCH // 2) ** 2
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": _SIDE, "width": _SIDE}),
        tokenizer=tokenizer,
        image_seq_length=n_tokens,
        chat_template=_TEMPLATE.replace("IMAGE", "<boi>"),
    )
    torch.manual_seed(0)
    config = Gemma3Config(
        text_config={
            **_TEXT,
            "vocab_size": len(tokenizer),
            "head_dim": 8,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config=_SEEN,
        mm_tokens_per_image=n_tokens,
        boi_token_index=start,
        eoi_token_index=end,
        image_token_index=image,
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():  # its projection begins at zero, at which no image is seen
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(0, 0.3)
    return model, processor
