"""Small vision-language models with random weights, with processors made in code."""

from __future__ import annotations

from typing import Any

from masked_models import SENTENCES

__all__ = ["gemma3", "llava", "qwen2_5_vl", "qwen2_vl", "smolvlm"]

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


def smolvlm(**text: Any) -> tuple[Any, Any]:
    """SmolVLM's architecture (Idefics 3): tiles of an image, each with marks around it.

    `text` are other settings of its language model.
    """
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
        text_config=LlamaConfig(vocab_size=len(tokenizer), **_TEXT | text).to_dict(),
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


def qwen2_vl() -> tuple[Any, Any]:
    """Qwen2-VL's architecture: as many tokens as an image is large, and positions in a plane."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    seen = {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    return _qwen(Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor, seen)


def qwen2_5_vl() -> tuple[Any, Any]:
    """Qwen2.5-VL's architecture: the same, with windows of attention in what sees."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
    )

    seen = {
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 48,
        "window_size": 4 * _PATCH,
        "fullatt_block_indexes": [1],
    }
    return _qwen(Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, seen)


def _qwen(config: Any, model: Any, processor: Any, seen: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = _tokenizer(*marks)
    start, end, image, video = map(tokenizer.convert_tokens_to_ids, marks)
    shown = _TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    pixels = {"shortest_edge": (2 * _PATCH) ** 2, "longest_edge": (16 * _PATCH) ** 2}
    torch.manual_seed(0)
    made = model(
        config(
            text_config={
                **_TEXT,
                "vocab_size": len(tokenizer),
                "bos_token_id": 0,
                "eos_token_id": 2,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]},
            },
            vision_config={
                "depth": 2,
                "num_heads": 4,
                "patch_size": _PATCH,
                "initializer_range": 0.3,
                **seen,
            },
            image_token_id=image,
            video_token_id=video,
            vision_start_token_id=start,
            vision_end_token_id=end,
        )
    )
    prepared = Qwen2VLImageProcessorPil(patch_size=_PATCH, size=pixels)

    class Seeing(processor):
        """The processor without its part for videos, which needs torchvision."""

        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            checked = name != "video_processor"
            return super().check_argument_for_proper_class(name, argument) if checked else None

    return made.eval(), Seeing(prepared, tokenizer, chat_template=shown)
