"""Compare engines over the same weights: llama.cpp, ONNX Runtime, transformers and vLLM.

    python -m eval.methods.engine_formats formats
    python -m eval.studies.engines --data-dir DIR --formats formats --out results

TREC, ten hand-written prompts, 32 labels per class (seed 13), all 500 test rows. One classifier is
trained on llama.cpp in float32 and reads every engine's log-probabilities; and each engine trains
its own. Results of each engine are kept in OUT, so that engines can be run one at a time
(--engine), in environments of their own. Needs the extras of the engines that are run.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

import backends
from blackbox import PromptBoostingClassifier, PromptPool, load_model
from blackbox.boosting.splits import draw_shots
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from blackbox.tables import LabelledExamples, read_examples
from eval.data.data_sets import PROMPTS

REFERENCE = "llama.cpp float32"
ENGINES = (
    REFERENCE,
    "llama.cpp Q8_0",
    "ONNX Runtime 8 bits",
    "transformers float32",
    "vLLM float32",
)
SEED, SHOTS, TOP_K = 13, 32, 200
_COMPARED = 50  # tokens whose log-probabilities are compared


def start(engine: str, formats: Path) -> Any:
    """Return the backend of one engine."""
    if engine == REFERENCE:
        return backends.load("llamacpp", model=str(formats / "lm-f32.gguf"))
    if engine == "llama.cpp Q8_0":
        return backends.load("llamacpp")
    if engine == "ONNX Runtime 8 bits":
        return backends.load("onnx")
    name = "transformers" if engine.startswith("transformers") else "vllm"
    return backends.load(name, model=str(formats / "hf"))


def run(
    engine: str, formats: Path, train: LabelledExamples, test: LabelledExamples, out: Path
) -> dict[str, Any]:
    """Train and predict with one engine; return its answers and predictions."""
    hand = PromptPool.read(PROMPTS / "trec.txt")
    rows = draw_shots(train.labels, train.texts, SHOTS, SEED)
    texts, labels = [train.texts[row] for row in rows], [train.labels[row] for row in rows]
    lm = StoredBackend(start(engine, formats), open_store(out / "passes.sqlite"))
    started = time.perf_counter()
    own = PromptBoostingClassifier(
        lm, prompts=hand, top_k=TOP_K, random_state=SEED, label_words=None, embeddings=None
    )
    own.fit(texts, labels)
    if engine == REFERENCE:
        own.save(out / "reference.blackbox")
    by_own = own.predict(test.texts)
    made = own.usage_ + own.prediction_usage_
    seconds = time.perf_counter() - started
    reference = load_model(out / "reference.blackbox", backend=lm, allow_other_lm=True)
    answers = lm.next_token([hand[0].render(str(text)) for text in test.texts[:200]], TOP_K)
    return {
        "engine": engine,
        "reference": [str(label) for label in reference.predict(test.texts)],
        "own": [str(label) for label in by_own],
        "labels": [str(label) for label in test.labels],
        "token_ids": answers.token_ids.tolist(),
        "log_probs": answers.log_probs.astype(float).round(5).tolist(),
        "passes": made.passes_made,
        "tokens": made.tokens,
        "tokens_evaluated": made.tokens_evaluated,
        "tokens_least": made.tokens_least,
        "seconds": round(seconds, 1),
    }


def compare_engines(found: list[dict[str, Any]]) -> str:
    """Return a Markdown table of each engine beside the reference."""
    reference = found[0]
    lines = [
        "| engine | same label from the reference's classifier | accuracy of it "
        "| accuracy of its own | same likeliest token | top 50: mean (largest) difference "
        "| tokens evaluated / least |",
        "|---|---|---|---|---|---|---|",
    ]
    truth = np.array(reference["labels"])
    for one in found:
        differences, same = _differences(reference, one)
        ratio = one["tokens_evaluated"] / max(one["tokens_least"], 1)
        agree = np.mean(np.array(one["reference"]) == np.array(reference["reference"]))
        lines.append(
            f"| {one['engine']} | {100 * agree:.1f}% "
            f"| {100 * np.mean(np.array(one['reference']) == truth):.1f} "
            f"| {100 * np.mean(np.array(one['own']) == truth):.1f} | {100 * same:.0f}% "
            f"| {differences.mean():.4f} ({differences.max():.3f}) "
            f"| {ratio:.2f} |"
        )
    return "\n".join(lines)


def _differences(one: dict[str, Any], other: dict[str, Any]) -> tuple[Any, float]:
    """Return differences over the reference's top tokens, and how often the top 1 agrees."""
    differences = []
    for ids, values, other_ids, other_values in zip(
        one["token_ids"], one["log_probs"], other["token_ids"], other["log_probs"], strict=True
    ):
        known = dict(zip(other_ids, other_values, strict=True))
        for token, value in list(zip(ids, values, strict=True))[:_COMPARED]:
            if token in known:
                differences.append(abs(value - known[token]))
    pairs = zip(one["token_ids"], other["token_ids"], strict=True)
    return np.array(differences), float(np.mean([a[0] == b[0] for a, b in pairs]))


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--formats", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--out", default=Path("results"), type=click.Path(file_okay=False, path_type=Path))
@click.option("--engine", multiple=True, type=click.Choice(ENGINES), default=ENGINES)
def main(data_dir: Path, formats: Path, out: Path, engine: tuple[str, ...]) -> None:
    """Run the engines, and print how those that were ever run compare."""
    out.mkdir(parents=True, exist_ok=True)
    train = read_examples(data_dir / "trec" / "train.csv")
    test = read_examples(data_dir / "trec" / "test.csv")
    for name in engine:
        found = run(name, formats, train, test, out)
        (out / f"{name}.json").write_text(json.dumps(found))
        shown = {key: found[key] for key in ("engine", "passes", "tokens_evaluated", "seconds")}
        click.echo(str(shown), err=True)
    files = [out / f"{name}.json" for name in ENGINES]
    click.echo(compare_engines([json.loads(file.read_text()) for file in files if file.exists()]))


if __name__ == "__main__":
    main()
