"""Measure engines on a GPU: passes per second, where an input's time goes, and share of the limit.

    python -m eval.perf.gpu [--engine transformers] [--engine vllm] [--out gpu.json]

Needs nothing from outside: models of 135 million and 1.5 billion parameters are made with random
weights, with a tokenizer of as many words, and texts are drawn from those words. Ten prompts per
text, 200 and 2,000 texts. Takes about four minutes; what hasn't begun after `--seconds` is left
out. Writes JSON with, for each engine, model and number of texts,

- passes per second, without a store and with one: a ratio below 1 is time that the engine waits;
- the split of the seconds of the 200 texts (transformers): tokenising, the tree and the launch of
  a forward pass, waiting for the device, and everything else;
- tokens evaluated relative to the fewest possible, and the share of the bfloat16 limit, measured
  in the same run by large matrix products.

`--tiny` runs the same on a processor with models of a few thousand parameters.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from blackbox.backend import BaseBackend
from blackbox.prompts.template import Prompt
from blackbox.protocol import RenderedPrompt
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend

_CUES = (1, 1, 2, 2, 2, 3, 3, 4, 4, 5)  # words of each prompt
_TOP_K = 200


@dataclass(frozen=True)
class Shape:
    """The shape of a model of Llama's architecture with tied embeddings."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int

    @property
    def body(self) -> int:
        """Parameters that take part for each token: all but the embedding."""
        kv = self.hidden // self.heads * self.kv_heads
        attention = 2 * self.hidden * (self.hidden + kv)
        return self.layers * (attention + 3 * self.hidden * self.inner)

    def operations(self, tokens: int, passes: int) -> int:
        """Return the multiplications and additions of products with weights."""
        return 2 * (tokens * self.body + passes * self.hidden * self.vocabulary)


SHAPES = {
    "135M": Shape(576, 30, 9, 3, 1536, 49_152),
    "1.5B": Shape(1536, 28, 12, 2, 8960, 151_936),
}
TINY = {"tiny": Shape(128, 2, 4, 2, 256, 1000)}


def write_model(shape: Shape, folder: Path, dtype: str) -> Path:
    """Write a model with random weights and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<s>": 0, "<unk>": 1} | {f"w{number}": number for number in range(2, shape.vocabulary)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="<s>", unk_token="<unk>"
    )
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.inner,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_requests(shape: Shape, n_texts: int, seed: int) -> list[RenderedPrompt]:
    """Return texts of 10 to 40 words under ten prompts."""
    rng = np.random.default_rng(seed)

    def some(n: int) -> str:
        return " ".join(f"w{number}" for number in rng.integers(2, shape.vocabulary, n))

    pool = [Prompt(f"{{text}} {some(n)} {{mask}}") for n in _CUES]
    texts = [some(int(rng.integers(10, 40))) for _ in range(n_texts)]
    return [prompt.render(text) for text in texts for prompt in pool]


def bfloat16_limit(device: str, n: int) -> float:
    """Return the operations per second of products of square bfloat16 matrices."""
    import torch

    one = torch.randn(n, n, device=device).bfloat16()
    best = 0.0
    for _ in range(5):
        synchronise()
        started = time.perf_counter()
        one @ one
        synchronise()
        best = max(best, 2 * n**3 / (time.perf_counter() - started))
    return best


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Split:
    """Seconds of the steps of the transformers backend while it answers."""

    def __init__(self, lm: Any) -> None:
        from backends.hf import likeliest

        self._seconds = {"tokenising": 0.0, "tree and launch": 0.0, "waiting for the device": 0.0}
        lm.encode = self._timed("tokenising", lm.encode)
        run = lm._forward.run
        lm._forward.run = lambda sequences: self._timed_parts("tree and launch", run(sequences))
        arriving = likeliest._OnItsWay
        self._arrive = arriving.arrive
        arriving.arrive = self._timed("waiting for the device", arriving.arrive)  # type: ignore[method-assign]

    def take(self, seconds: float) -> dict[str, float]:
        """Return the seconds since the last time, and those of everything else."""
        found = {name: round(value, 4) for name, value in self._seconds.items()}
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return found | {"everything else": round(seconds - sum(found.values()), 4)}

    def end(self) -> None:
        """Take the clock out of the class again."""
        from backends.hf import likeliest

        likeliest._OnItsWay.arrive = self._arrive  # type: ignore[method-assign]

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                self._seconds[name] += time.perf_counter() - started

        return timed

    def _timed_parts(self, name: str, parts: Iterator[Any]) -> Iterator[Any]:
        step = self._timed(name, lambda: next(parts, None))
        while (part := step()) is not None:
            yield part


def measure(
    lm: BaseBackend, shape: Shape, counts: tuple[int, ...], limit: float, folder: Path
) -> Iterator[dict[str, Any]]:
    """Yield a record for each number of texts, without and with a store."""
    lm.next_token(make_requests(shape, 8, 999), _TOP_K)
    split = Split(lm) if type(lm).__name__ == "TransformersBackend" else None
    try:
        for seed, n_texts in enumerate(counts):
            requests = make_requests(shape, n_texts, 2 * seed)
            started = time.perf_counter()
            usage = lm.next_token(requests, _TOP_K).usage
            seconds = time.perf_counter() - started
            steps = split.take(seconds) if split else None
            stored = StoredBackend(lm, open_store(folder / f"{n_texts}.sqlite"))
            started = time.perf_counter()
            stored.next_token(make_requests(shape, n_texts, 2 * seed + 1), _TOP_K)
            with_store = time.perf_counter() - started
            if split:
                split.take(with_store)
            rate = len(requests) / seconds
            operations = shape.operations(usage.tokens_evaluated, usage.passes_made)
            yield {
                "texts": n_texts,
                "passes_per_second": round(rate, 1),
                "with_store": round(len(requests) / with_store, 1),
                "store_ratio": round(seconds / with_store, 3),
                "evaluated_to_least": round(usage.tokens_evaluated / usage.tokens_least, 3),
                "share_of_limit": round(operations / seconds / limit, 4),
                "split": steps,
            }
    finally:
        if split:
            split.end()


def engines(name: str, folder: Path, dtype: str) -> Iterator[tuple[dict[str, Any], BaseBackend]]:
    """Yield an engine with each of its settings."""
    if name == "transformers":
        from backends.transformers import TransformersBackend

        yield {}, TransformersBackend(folder, dtype=dtype)
        return
    from backends.vllm import VllmBackend

    settings: list[dict[str, Any]] = [{}]
    if dtype == "bfloat16":
        settings += [{"max_num_seqs": 1024}, {"max_num_seqs": 1024, "enforce_eager": False}]
    for options in settings:
        lm = VllmBackend(folder, dtype=dtype, gpu_memory_utilization=0.5, **options)
        yield options, lm
        lm._engine.llm.llm_engine.engine_core.shutdown()


@click.command()
@click.option("--engine", "names", multiple=True, default=("transformers",), show_default=True)
@click.option("--tiny", is_flag=True, help="Tiny models, few texts; also on a processor.")
@click.option("--seconds", default=240, show_default=True, help="After which nothing is begun.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Also a file.")
def main(names: tuple[str, ...], tiny: bool, seconds: float, out: Path | None) -> None:
    """Print JSON."""
    import torch

    started = time.perf_counter()
    gpu = torch.cuda.is_available()
    if not gpu and not tiny:
        raise click.ClickException("there is no GPU here: --tiny runs on a processor")
    dtype, device = ("bfloat16", "cuda") if gpu else ("float32", "cpu")
    limit = bfloat16_limit(device, 8192 if gpu else 256)
    shapes, counts = (TINY, (2, 4)) if tiny else (SHAPES, (200, 2000))
    records: list[dict[str, Any]] = []
    left_out: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        for shape_name, shape in shapes.items():
            folder = Path(temporary) / shape_name
            if time.perf_counter() - started > seconds:
                left_out.append(shape_name)
                continue
            write_model(shape, folder, dtype)
            for name in names:
                for number, (options, lm) in enumerate(engines(name, folder, dtype)):
                    if time.perf_counter() - started > seconds:
                        left_out.append(f"{shape_name}, {name}, {options}")
                        continue
                    stores = folder / f"{name}-{number}"
                    stores.mkdir()
                    head = {"engine": name, "model": shape_name, "options": options}
                    records += [head | one for one in measure(lm, shape, counts, limit, stores)]
    text = json.dumps(
        {
            "machine": torch.cuda.get_device_name() if gpu else platform.machine(),
            "bfloat16_tflops": round(limit / 1e12, 3),
            "records": records,
            "left_out": left_out,
            "seconds": round(time.perf_counter() - started, 1),
        },
        indent=1,
    )
    if out is not None:
        out.write_text(text + "\n")
    click.echo(text)


if __name__ == "__main__":
    main()
