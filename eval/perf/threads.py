"""Measure the embedded LM with one thread and more, which sleep or spin while they wait.

    python -m eval.perf.threads [--rounds 3] [--texts 6]

ONNX Runtime evaluates texts of the bundled sample under ten built-in prompts, each way in turns.
With threads that spin, a busy machine shows in the processor seconds, and with threads that sleep
in the seconds alone.
"""

from __future__ import annotations

import os
import platform
import time
from importlib import resources
from pathlib import Path
from unittest import mock

import click
import numpy as np

import backends.onnx
from backends.openmp import available_cores
from blackbox.generation import builtin_pool
from blackbox.protocol import RenderedPrompt
from blackbox.tables import read_examples

_PROMPTS, _TOP_K = 10, 200


def start(n_threads: int, spins: bool) -> backends.onnx.OnnxBackend:
    """Return the embedded LM with so many threads, which spin or sleep while they wait."""
    import onnxruntime

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]
        def add_session_config_entry(self, key: str, value: str) -> None:
            given = str(int(spins)) if key == "session.intra_op.allow_spinning" else value
            super().add_session_config_entry(key, given)

    with mock.patch.object(onnxruntime, "SessionOptions", Options):
        return backends.onnx.OnnxBackend(n_threads=n_threads)


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--texts", default=6, show_default=True, help="Texts of each round.")
def main(rounds: int, texts: int) -> None:
    """Print the seconds of each way."""
    sample = Path(str(resources.files("blackbox").joinpath("samples/train.csv")))
    examples = [str(text) for text in read_examples(sample).texts]
    ways = [(n, spins) for n in sorted({1, available_cores()}) for spins in (False, True)]
    lms = {way: start(*way) for way in ways}
    pool = list(builtin_pool(pair=False, limits=lms[ways[0]].limits))[:_PROMPTS]
    found: dict[tuple[int, bool], list[tuple[float, float]]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        some = [examples[(number * texts + row) % len(examples)] for row in range(texts)]
        prompts: list[RenderedPrompt] = [prompt.render(text) for text in some for prompt in pool]
        for way, lm in lms.items():
            before, started = time.process_time(), time.perf_counter()
            lm.next_token(prompts, _TOP_K)
            seconds = time.perf_counter() - started, time.process_time() - before
            if number:  # the first round warms up
                found[way].append(
                    (100 * seconds[0] / len(prompts), 100 * seconds[1] / len(prompts))
                )
    click.echo("| threads | while they wait | s per 100 passes | processor s |\n|---|---|---|---|")
    for (n, spins), each in found.items():
        cells = [f"{np.median(c):.2f} ({min(c):.2f} to {max(c):.2f})" for c in np.transpose(each)]
        click.echo(f"| {n} | {'spin' if spins else 'sleep'} | {' | '.join(cells)} |")
    click.echo(
        f"\n{rounds} rounds of {texts * len(pool)} passes; {platform.machine()}, "
        f"{os.cpu_count()} cores; load {os.getloadavg()[0]:.0f}"
    )


if __name__ == "__main__":
    main()
