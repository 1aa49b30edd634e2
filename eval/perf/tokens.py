"""Compare the tokens that an engine evaluates with the least possible, and its speed.

    python -m eval.perf.tokens --data-dir DIR [--backend onnx] [--model NAME]

The least is the number of distinct nodes of the prefix trees over all requests: no engine can do
with less. Ten hand-written prompts over test rows of each data set. For comparison the engine also
reads long texts that have nothing in common, and the machine multiplies matrices: what a forward
pass needs of that is twice its weights a token.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

import backends
from blackbox.answers.passes import next_tokens
from blackbox.answers.requests import render_requests
from blackbox.prompts.inputs import Example
from blackbox.protocol import RenderedPrompt
from eval.data import data_sets

DATA_SETS = ("sst2", "agnews", "trec")
BLOCKS = (1, 16, 32, 128)
"""Tokens that are reused together: by llama.cpp; by vLLM on a GPU, on a processor."""

_PLAIN = "the of and to in is was for on that by with as at from his it an were are"
_LONG = 400  # words of a long text
_WEIGHTS = 134_515_008 - 49_152 * 576  # of SmolLM2-135M, less the embedding that one row is read of


def count_tokens(lm: Any, data: Any, n: int, top_k: int) -> tuple[int, int, int, float]:
    """Return tokens sent, evaluated and least possible, and seconds, of n rows."""
    rows = np.random.default_rng(1).permutation(len(data.test.texts))[:n]
    examples: list[Example] = [(data.test.texts[row], None) for row in rows.tolist()]
    started = time.perf_counter()
    usage = next_tokens(lm, data.card.pool(), examples, top_k).usage
    seconds = time.perf_counter() - started
    return usage.tokens, usage.tokens_evaluated, usage.tokens_least, seconds


def _sequences(lm: Any, data: Any, n: int) -> list[list[int]]:
    rows = np.random.default_rng(1).permutation(len(data.test.texts))[:n]
    examples: list[Example] = [(data.test.texts[row], None) for row in rows.tolist()]
    return [
        lm.show(request)[1] for request in render_requests(lm, data.card.pool(), examples).requests
    ]


def run_shuffled(lm: Any, data: Any, n: int, top_k: int) -> tuple[int, float]:
    """Send the same requests one by one in random order; return tokens evaluated, seconds."""
    rows = np.random.default_rng(1).permutation(len(data.test.texts))[:n]
    examples: list[Example] = [(data.test.texts[row], None) for row in rows.tolist()]
    requests = render_requests(lm, data.card.pool(), examples).requests
    evaluated, started = 0, time.perf_counter()
    for number in np.random.default_rng(0).permutation(len(requests)).tolist():
        evaluated += lm.next_token([requests[number]], top_k).usage.tokens_evaluated
    return evaluated, time.perf_counter() - started


def least_in_blocks(sequences: Iterable[Sequence[int]], block: int) -> int:
    """Return the least tokens that an engine evaluates which reuses whole blocks of tokens.

    The last token is always evaluated, as its answer is wanted.
    """
    seen: set[tuple[int, ...]] = set()
    evaluated = 0
    for sequence in sorted(map(tuple, sequences)):
        reused = 0
        while reused + block < len(sequence) and sequence[: reused + block] in seen:
            reused += block
        evaluated += len(sequence) - reused
        seen.update(sequence[:end] for end in range(block, len(sequence) + 1, block))
    return evaluated


def long_text_rate(lm: Any, n: int = 8) -> float:
    """Return tokens per second over long texts without a common prefix."""
    rng = np.random.default_rng(0)
    words = _PLAIN.split()
    texts = [" ".join([f"{number}", *rng.choice(words, _LONG)]) for number in range(n)]
    requests = [RenderedPrompt(text) for text in texts]
    lm.next_token(requests[:1], 10)
    started = time.perf_counter()
    usage = lm.next_token(requests[1:], 10).usage
    return float(usage.tokens_evaluated / (time.perf_counter() - started))


def matrix_rate(size: int = 1024, repeats: int = 10) -> float:
    """Return floating-point operations per second of a float32 matrix product."""
    one = np.random.default_rng(0).standard_normal((size, size), np.float32)
    one @ one
    started = time.perf_counter()
    for _ in range(repeats):
        one @ one
    return 2 * size**3 * repeats / (time.perf_counter() - started)


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--backend", default="onnx", show_default=True)
@click.option("--model")
@click.option("--rows", default=60, show_default=True)
@click.option("--top-k", default=200, show_default=True)
@click.option("--naive-rows", default=6, show_default=True, help="0 leaves the naive order out.")
@click.option("--data", multiple=True, type=click.Choice(DATA_SETS), default=DATA_SETS)
def main(
    data_dir: Path,
    backend: str,
    model: str | None,
    rows: int,
    top_k: int,
    naive_rows: int,
    data: tuple[str, ...],
) -> None:
    """Print the table."""
    lm = backends.load(backend, **({} if model is None else {"model": model}))
    long_rate, flops = long_text_rate(lm), matrix_rate()
    click.echo("| data set | sent | least | evaluated | ratio | naive order | tokens/s | of long |")
    click.echo("|---|---|---|---|---|---|---|---|")
    for name in data:
        loaded = data_sets.read_data_set(name, data_dir)
        sent, evaluated, least, seconds = count_tokens(lm, loaded, rows, top_k)
        plain = "–"
        if naive_rows:
            _, _, few, _ = count_tokens(lm, loaded, naive_rows, top_k)
            plain = f"{run_shuffled(lm, loaded, naive_rows, top_k)[0] / few:.1f}"
        rate = evaluated / seconds
        click.echo(
            f"| {name} | {sent:,} | {least:,} | {evaluated:,} | {evaluated / least:.3f} | {plain} "
            f"| {rate:.0f} | {rate / long_rate:.0%} |"
        )
    click.echo("\nAt best, by how many tokens are reused together, evaluated / least:\n")
    click.echo("| data set | " + " | ".join(f"blocks of {size}" for size in BLOCKS) + " |")
    click.echo("|---" * (1 + len(BLOCKS)) + "|")
    for name in data:
        sequences = _sequences(lm, data_sets.read_data_set(name, data_dir), rows)
        least = least_in_blocks(sequences, 1)
        shares = [f"{least_in_blocks(sequences, size) / least:.2f}" for size in BLOCKS]
        click.echo(f"| {name} | " + " | ".join(shares) + " |")
    ceiling = flops / (2 * _WEIGHTS)
    click.echo(
        f"\n{lm!r}: {long_rate:.0f} tokens/s on long inputs; float32 products "
        f"{flops / 1e9:.0f} GFLOP/s, which would be {ceiling:.0f} tokens/s; top {top_k}; "
        f"{platform.machine()}, {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
