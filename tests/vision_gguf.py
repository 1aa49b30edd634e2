"""Models of LLaVA's architecture as llama.cpp reads them: a GGUF file, and its mmproj beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backends.byte_level import _byte_of_character

__all__ = ["TEMPLATE", "of_llava", "random_llava"]

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SIDE, _PATCH, _LAYERS, _HEADS = 32, 8, 2, 4
_TEXT, _TEXT_INNER, _SEEN, _SEEN_INNER = 64, 96, 32, 64

Tensors = Iterator[tuple[str, Any]]


def random_llava(folder: Path) -> tuple[Path, Path]:
    """Write a model with random weights; return its file and its mmproj."""
    tokens = [*_CONTROLS, *_byte_of_character(), "\u0120a"]
    rng = np.random.default_rng(0)

    def drawn(shapes: dict[str, Sequence[int]]) -> Tensors:
        for name, shape in shapes.items():
            ones = name.endswith("weight") and len(shape) == 1 and "embd" not in name
            yield name, np.ones(shape) if ones else rng.normal(0, 0.2, shape)

    return (
        _write_text(
            folder / "model.gguf", drawn(_text_shapes(len(tokens))), tokens, ["\u0120 a"], _TEXT
        ),
        _write_seen(folder / "mmproj.gguf", drawn(_seen_shapes()), _SEEN, _TEXT),
    )


def of_llava(model: Any, tokenizer: Any, folder: Path) -> tuple[Path, Path]:
    """Write a model of transformers, with its byte-level tokenizer; return both files."""
    state = {name: value.float().numpy() for name, value in model.state_dict().items()}
    kept = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    merges = [" ".join(merge) for merge in kept["merges"]]
    width = model.config.text_config.hidden_size
    return (
        _write_text(folder / "model.gguf", _text_of(state), tokens, merges, width),
        _write_seen(
            folder / "mmproj.gguf",
            _seen_of(state),
            model.config.vision_config.hidden_size,
            width,
            mean=(0.48145466, 0.4578275, 0.40821073),
            std=(0.26862954, 0.26130258, 0.27577711),
        ),
    )


def _write_text(
    path: Path, tensors: Tensors, tokens: list[str], merges: list[str], width: int
) -> Path:
    from gguf import GGUFWriter, TokenType

    made = dict(tensors)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(len(made["blk.0.ffn_up.weight"]))
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(width // _HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    is_control = [token.startswith("<") and token.endswith(">") for token in tokens]
    kinds = [TokenType.CONTROL if control else TokenType.NORMAL for control in is_control]
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    return _write(writer, made)


def _write_seen(
    path: Path,
    tensors: Tensors,
    width: int,
    width_of_text: int,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
) -> Path:
    from gguf import GGUFWriter

    made = dict(tensors)
    writer = GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    for name, value in {
        "image_size": _SIDE,
        "patch_size": _PATCH,
        "embedding_length": width,
        "feed_forward_length": len(made["v.blk.0.ffn_up.weight"]),
        "block_count": _LAYERS,
        "projection_dim": width_of_text,
        "attention.head_count": _HEADS,
    }.items():
        writer.add_uint32(f"clip.vision.{name}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", list(mean))
    writer.add_array("clip.vision.image_std", list(std))
    return _write(writer, made)


def _write(writer: Any, tensors: dict[str, Any]) -> Path:
    for name, value in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(writer.path)


def _text_shapes(n_tokens: int) -> dict[str, Sequence[int]]:
    shapes: dict[str, Sequence[int]] = {
        "token_embd.weight": (n_tokens, _TEXT),
        "output_norm.weight": (_TEXT,),
        "output.weight": (n_tokens, _TEXT),
    }
    for layer in range(_LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{layer}.{name}.weight"] = (_TEXT, _TEXT)
        for name in ("attn_norm", "ffn_norm"):
            shapes[f"blk.{layer}.{name}.weight"] = (_TEXT,)
        for name in ("ffn_gate", "ffn_up"):
            shapes[f"blk.{layer}.{name}.weight"] = (_TEXT_INNER, _TEXT)
        shapes[f"blk.{layer}.ffn_down.weight"] = (_TEXT, _TEXT_INNER)
    return shapes


def _seen_shapes() -> dict[str, Sequence[int]]:
    shapes: dict[str, Sequence[int]] = {
        "v.class_embd": (_SEEN,),
        "v.patch_embd.weight": (_SEEN, 3, _PATCH, _PATCH),
        "v.position_embd.weight": ((_SIDE // _PATCH) ** 2 + 1, _SEEN),
        "v.pre_ln.weight": (_SEEN,),
        "v.pre_ln.bias": (_SEEN,),
        "mm.0.weight": (_TEXT, _SEEN),
        "mm.0.bias": (_TEXT,),
        "mm.2.weight": (_TEXT, _TEXT),
        "mm.2.bias": (_TEXT,),
    }
    for layer in range(_LAYERS):
        for name, shape in {
            **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (_SEEN, _SEEN)),
            "ffn_up": (_SEEN_INNER, _SEEN),
            "ffn_down": (_SEEN, _SEEN_INNER),
            "ln1": (_SEEN,),
            "ln2": (_SEEN,),
        }.items():
            shapes[f"v.blk.{layer}.{name}.weight"] = shape
            shapes[f"v.blk.{layer}.{name}.bias"] = shape[:1]
    return shapes


_TEXT_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_SEEN_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
}


def _text_of(state: dict[str, Any]) -> Tensors:
    stem = "model.language_model"
    yield "token_embd.weight", state[f"{stem}.embed_tokens.weight"]
    yield "output_norm.weight", state[f"{stem}.norm.weight"]
    yield "output.weight", state["lm_head.weight"]
    for layer in range(_LAYERS):
        for theirs, ours in _TEXT_NAMES.items():
            value = state[f"{stem}.layers.{layer}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):  # the two halves of a rotation take turns in ggml
                parts = value.reshape(_HEADS, 2, -1, value.shape[1])
                value = parts.swapaxes(1, 2).reshape(value.shape)
            yield f"blk.{layer}.{ours}.weight", value


def _seen_of(state: dict[str, Any]) -> Tensors:
    (first,) = (name for name in state if name.endswith("embeddings.class_embedding"))
    stem = first.removesuffix(".embeddings.class_embedding")
    yield "v.class_embd", state[first]
    yield "v.patch_embd.weight", state[f"{stem}.embeddings.patch_embedding.weight"]
    # the class token stands first there, and last in llama.cpp's graph
    positions = state[f"{stem}.embeddings.position_embedding.weight"]
    yield "v.position_embd.weight", np.roll(positions, -1, axis=0)
    for kind in ("weight", "bias"):
        yield f"v.pre_ln.{kind}", state[f"{stem}.pre_layrnorm.{kind}"]
        for theirs, ours in (("linear_1", "mm.0"), ("linear_2", "mm.2")):
            yield f"{ours}.{kind}", state[f"model.multi_modal_projector.{theirs}.{kind}"]
        for layer in range(_LAYERS):
            for theirs, ours in _SEEN_NAMES.items():
                value = state[f"{stem}.encoder.layers.{layer}.{theirs}.{kind}"]
                yield f"v.blk.{layer}.{ours}.{kind}", value
