"""A small language model with random weights and a sliding window of attention, as a GGUF file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from backends.byte_level import _byte_of_character

__all__ = ["write_gguf"]

_WIDTH, _HEAD, _LAYERS, _INNER = 64, 32, 6, 128


def write_gguf(path: Path) -> Path:
    """Write a model of Gemma 3's architecture; five of its layers see the last 512 tokens only."""
    from gguf import GGUFWriter, TokenType

    tokens = ["<|endoftext|>", *_byte_of_character(), "\u0120a"]
    writer = GGUFWriter(path, "gemma3")
    writer.add_context_length(2048)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(_HEAD)
    writer.add_value_length(_HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(512)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] + [TokenType.NORMAL] * (len(tokens) - 1))
    writer.add_token_merges(["\u0120 a"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    rng = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> None:
        values = np.ones(shape) if len(shape) == 1 else rng.normal(0, 0.2, shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    weights("token_embd", len(tokens), _WIDTH)
    weights("output_norm", _WIDTH)
    for layer in range(_LAYERS):
        for name, shape in {
            "attn_norm": (_WIDTH,),
            "attn_q": (2 * _HEAD, _WIDTH),
            "attn_q_norm": (_HEAD,),
            "attn_k": (_HEAD, _WIDTH),
            "attn_k_norm": (_HEAD,),
            "attn_v": (_HEAD, _WIDTH),
            "attn_output": (_WIDTH, 2 * _HEAD),
            "post_attention_norm": (_WIDTH,),
            "ffn_norm": (_WIDTH,),
            "ffn_gate": (_INNER, _WIDTH),
            "ffn_up": (_INNER, _WIDTH),
            "ffn_down": (_WIDTH, _INNER),
            "post_ffw_norm": (_WIDTH,),
        }.items():
            weights(f"blk.{layer}.{name}", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
