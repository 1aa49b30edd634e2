"""Measure the cost of reading an answer in vLLM: the top k, or given token ids.

    python -m eval.perf.vllm_scores --model FOLDER

The bundled sample's texts under ten built-in prompts. Ways take turns over rounds. More ids than
one request takes go in several requests, which share the prompt's blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import click
import numpy as np

from backends.vllm import VllmBackend
from blackbox.generation import builtin_pool
from blackbox.tables import read_examples


@click.command()
@click.option("--model", required=True, help="As for the vLLM backend.")
@click.option("--texts", default=8, show_default=True, help="Texts of each round.")
@click.option("--rounds", default=4, show_default=True)
def main(model: str, texts: int, rounds: int) -> None:
    """Print milliseconds per pass for the top k and for given ids."""
    lm = VllmBackend(model)
    pool = [p for p in builtin_pool(limits=lm.limits) if not p.is_chat][:10]
    sample = Path(str(resources.files("blackbox").joinpath("samples/train.csv")))
    examples = read_examples(sample).texts

    def scored(n: int) -> Callable[[Any], Any]:
        most = lm.limits.max_score_ids
        ids = list(range(100, 100 + n))
        return lambda prompts: [
            lm.score(prompts, ids[start : start + most]) for start in range(0, n, most)
        ]

    ways: dict[str, Callable[[Any], Any]] = {
        f"top {k}": lambda prompts, k=k: lm.next_token(prompts, k)  # type: ignore[misc]
        for k in (20, 200, 1000)
    }
    ways |= {f"{n} ids": scored(n) for n in (64, 128, 300)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    place = 0
    for _ in range(rounds):
        for name, way in ways.items():
            # texts that no way has seen, so that no cache knows them
            some = [f"{place} {examples[(place + i) % len(examples)]}" for i in range(texts)]
            place += texts
            prompts = [prompt.render(text) for text in some for prompt in pool]
            started = time.perf_counter()
            way(prompts)
            times[name].append(1000 * (time.perf_counter() - started) / len(prompts))
    for name, each in times.items():
        spread = f"{min(each):.1f} to {max(each):.1f}"
        click.echo(f"{name:>9}: {np.median(each):6.1f} ms per pass ({spread})")


if __name__ == "__main__":
    main()
