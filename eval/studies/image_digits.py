"""Digits of 8 by 8 pixels through a vision-language model with random weights.

It shows that the path of images carries what it should, and nothing about the accuracy of trained
models: the model has LLaVA's architecture and weights drawn from a normal distribution, and its
readout is all that is trained. Beside it: a logistic regression over the pixels on the same rows,
and the same with the pictures exchanged at random, which must be at chance.

    python -m eval.studies.image_digits [--seeds 3] [--shots 4 16 64] [--out FILE]

The data set (1,797 digits, Alpaydin and Kaynak 1998) comes with scikit-learn. Rows are drawn by the
seed: so many per class to train on, and 400 others to test; nothing was chosen on either. It needs
the extras `transformers` and `images`, and takes some minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from backends.transformers import TransformersBackend
from blackbox import PromptBoostingClassifier

__all__ = ["main"]

_N_TEST, _SIDE, _PATCH = 400, 32, 8
_SENTENCES = (
    "What is in this picture? It shows a digit from zero to nine.",
    "The number is one, two, three, four, five, six, seven or eight.",
)
_PROMPTS = (
    "{image} This is {mask}",
    "{image} The digit is {mask}",
    "{image} The number {mask}",
    "{image} It shows {mask}",
    "{image} one, two, {mask}",
    "<user>{image}What is in this picture?<assistant>It is {mask}",
    "<user>{image}Which digit is this?<assistant>{mask}",
    "<user>{image}Which number is it?<assistant>The number is {mask}",
)
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def random_model(seed: int) -> Any:
    """Return a backend over a small model of LLaVA's architecture with random weights."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    trained = ByteLevelBPETokenizer()
    special = ["<start>", "<end>", "<image>"]
    trained.train_from_iterator(_SENTENCES * 20, vocab_size=400, special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        bos_token="<start>",
        eos_token="<end>",
        additional_special_tokens=["<image>"],
    )
    size = {"height": _SIDE, "width": _SIDE}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": _SIDE}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=_PATCH,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=_TEMPLATE,
    )
    shape = {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "intermediate_size": 256,
    }
    config = LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            num_key_value_heads=8,
            max_position_embeddings=256,
            initializer_range=0.1,
            **shape,
        ).to_dict(),
        vision_config=CLIPVisionConfig(
            image_size=_SIDE, patch_size=_PATCH, initializer_factor=4.0, **shape
        ).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(_SIDE // _PATCH) ** 2,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval()
    return TransformersBackend(model, processor=processor)


def pictures_of(images: NDArray[np.float64]) -> list[Any]:
    """Return digits as pictures of 32 by 32 pixels."""
    import PIL.Image

    scaled = (images * (255 / 16)).round().astype(np.uint8)
    return [PIL.Image.fromarray(one).resize((_SIDE, _SIDE)) for one in scaled]


def accuracies(shots: int, seed: int) -> dict[str, float]:
    """Return the accuracies of one draw of rows and weights."""
    digits = load_digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(digits.target))
    test, rest = order[:_N_TEST], order[_N_TEST:]
    train = np.concatenate([rest[digits.target[rest] == digit][:shots] for digit in range(10)])
    y, truth = digits.target[train], digits.target[test]
    pictures = pictures_of(digits.images)
    lm = random_model(seed)

    def score(some: list[Any]) -> float:
        made = PromptBoostingClassifier(
            backend=lm,
            prompts=list(_PROMPTS),
            top_k=lm.limits.max_top_k,
            label_words=None,
            store=None,
            random_state=seed,
        )
        made.fit([some[row] for row in train], y)
        return float(made.score([some[row] for row in test], truth))

    exchanged = [pictures[row] for row in rng.permutation(len(pictures))]
    pixels = LogisticRegression(max_iter=2000).fit(digits.data[train] / 16, y)
    return {
        "boosted answers": score(pictures),
        "the same, pictures exchanged": score(exchanged) if shots == 16 else float("nan"),
        "pixels, logistic regression": float(pixels.score(digits.data[test] / 16, truth)),
    }


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(argv)
    lines = ["| labels per class | " + " | ".join(_COLUMNS) + " |", "|---|---|---|---|"]
    for shots in asked.shots:
        found = [accuracies(shots, seed) for seed in range(asked.seeds)]
        cells = []
        for name in _COLUMNS:
            values = 100 * np.array([one[name] for one in found])
            known = np.isfinite(values).all()
            cells.append(f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" if known else "–")
        lines.append(f"| {shots} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    table = "\n".join(lines) + f"\n\n{asked.seeds} draws of rows and of weights; {_machine()}\n"
    print(table)
    if asked.out:
        asked.out.write_text(table, encoding="utf-8")


_COLUMNS = ("boosted answers", "the same, pictures exchanged", "pixels, logistic regression")


def _machine() -> str:
    import torch
    import transformers

    software = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return f"{software}, Python {platform.python_version()}, {platform.machine()}, float32"


if __name__ == "__main__":
    main()
