"""Convert a GGUF model to the formats of other engines, with the same weights.

    python -m eval.methods.engine_formats OUT [--gguf FILE]

``OUT/lm-f32.gguf`` is for llama.cpp, ``OUT/hf`` for transformers and vLLM, both float32. Needs the
extras `local` and `transformers`.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from backends.catalogue import pull, requantise

__all__ = ["write_float32_gguf", "write_folder"]


def write_float32_gguf(source: Path, target: Path) -> Path:
    """Write the model with every tensor in float32, for llama.cpp."""
    requantise(source, target, to="F32")
    return target


def write_folder(source: Path, target: Path) -> Path:
    """Write the model as a Hugging Face folder in float32, with its tokenizer."""
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


def main() -> None:
    """Write both formats."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--gguf", type=Path, help="by default the embedded LM")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    source = arguments.gguf or pull("smollm2-135m")
    print(write_float32_gguf(source, arguments.out / "lm-f32.gguf"))
    print(write_folder(source, arguments.out / "hf"))


if __name__ == "__main__":
    main()
