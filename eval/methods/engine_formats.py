"""Convert a GGUF model to the formats of other engines, with the same weights.

    python -m eval.methods.engine_formats OUT [--gguf FILE]

``OUT/lm-f32.gguf`` is for llama.cpp, ``OUT/hf`` for transformers and vLLM, both float32. Needs the
extras `local` and `transformers`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from backends.catalogue import Q8_0, pull, requantise
from backends.hf.folder import write_folder

__all__ = ["write_float32_gguf"]


def write_float32_gguf(source: Path, target: Path) -> Path:
    """Write the model with every tensor in float32, for llama.cpp."""
    requantise(source, target, to="F32")
    return target


def main() -> None:
    """Write both formats."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--gguf", type=Path, help="by default the embedded LM")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    source = arguments.gguf or pull("smollm2-135m", Q8_0)
    print(write_float32_gguf(source, arguments.out / "lm-f32.gguf"))
    print(write_folder(source, arguments.out / "hf"))


if __name__ == "__main__":
    main()
