"""GGUF files as Hugging Face folders, which load in a second instead of half a minute."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from backends.catalogue import Form, requantise, sha256_of

__all__ = ["FORM", "digest_of", "write_folder"]

_DIGEST = "source.sha256"


def write_folder(source: Path, target: Path) -> Path:
    """Write the model of a GGUF file as a Hugging Face folder in float32, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"gguf_file": source.name}
        loaded = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **options)
        # a model out of a GGUF file counts as quantised and refuses to be saved: copy its weights
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.dtype = torch.float32
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        fresh.load_state_dict(loaded.state_dict())
        fresh.save_pretrained(target)
        tokenizer.save_pretrained(target)
    return target


def digest_of(folder: Path) -> str:
    """Return the SHA-256 of the GGUF file whose weights a prepared folder holds."""
    return (folder / _DIGEST).read_text(encoding="ascii")


def _prepare(source: Path, target: Path, progress: Callable[[str, int, int], None] | None) -> None:
    # the 8-bit weights, as llama.cpp reads them: the two answer alike up to rounding
    eight_bit = target.with_name("eight-bit.gguf")
    requantise(source, eight_bit, progress)
    write_folder(eight_bit, target)
    (target / _DIGEST).write_text(sha256_of(eight_bit), encoding="ascii")


FORM = Form("-transformers", _prepare)
"""The form of a catalogue model that `backends.transformers` reads."""
