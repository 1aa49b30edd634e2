"""Measure the embedded LM with one thread and more, which sleep or spin while they wait, or pinned.

    python -m eval.perf.threads [--rounds 3] [--texts 6]

ONNX Runtime evaluates texts of the bundled sample under ten built-in prompts, each way in turns.
With threads that spin, a busy machine shows in the processor seconds, and with threads that sleep
in the seconds alone. Pinned threads sleep, and each keeps to a core of its own.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
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
_PINNED = "sleep, pinned"
_WAYS = ("sleep", "spin", _PINNED)


def start(n_threads: int, way: str) -> backends.onnx.OnnxBackend:
    """Return the embedded LM with so many threads, which wait in one of the `_WAYS`."""
    import onnxruntime

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]
        def add_session_config_entry(self, key: str, value: str) -> None:
            if key == "session.intra_op.allow_spinning":
                value = str(int(way == "spin"))
                if way == _PINNED and n_threads > 1:
                    # all but the calling thread; processors are counted from 1
                    others = ";".join(str(core + 1) for core in _cores()[1:n_threads])
                    super().add_session_config_entry("session.intra_op_thread_affinities", others)
            super().add_session_config_entry(key, value)

    with mock.patch.object(onnxruntime, "SessionOptions", Options):
        return backends.onnx.OnnxBackend(n_threads=n_threads)


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


@contextlib.contextmanager
def _on_first_core(pinned: bool) -> Iterator[None]:
    """Pin the calling thread, which works beside those of the engine, to the first core."""
    cores = _cores()
    if pinned:
        os.sched_setaffinity(0, cores[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--texts", default=6, show_default=True, help="Texts of each round.")
def main(rounds: int, texts: int) -> None:
    """Print the seconds of each way."""
    sample = Path(str(resources.files("blackbox").joinpath("samples/train.csv")))
    examples = [str(text) for text in read_examples(sample).texts]
    ways = [(n, way) for n in sorted({1, available_cores()}) for way in _WAYS]
    lms = {way: start(*way) for way in ways}
    pool = list(builtin_pool(limits=lms[ways[0]].limits))[:_PROMPTS]
    found: dict[tuple[int, str], list[tuple[float, float]]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        some = [examples[(number * texts + row) % len(examples)] for row in range(texts)]
        prompts: list[RenderedPrompt] = [prompt.render(text) for text in some for prompt in pool]
        for way, lm in lms.items():
            before, started = time.process_time(), time.perf_counter()
            with _on_first_core(way[1] == _PINNED):
                lm.next_token(prompts, _TOP_K)
            seconds = time.perf_counter() - started, time.process_time() - before
            if number:  # the first round warms up
                found[way].append(
                    (100 * seconds[0] / len(prompts), 100 * seconds[1] / len(prompts))
                )
    click.echo("| threads | while they wait | s per 100 passes | processor s |\n|---|---|---|---|")
    for (n, waits), each in found.items():
        cells = [f"{np.median(c):.2f} ({min(c):.2f} to {max(c):.2f})" for c in np.transpose(each)]
        click.echo(f"| {n} | {waits} | {' | '.join(cells)} |")
    click.echo(
        f"\n{rounds} rounds of {texts * len(pool)} passes; {platform.machine()}, "
        f"{os.cpu_count()} cores; load {os.getloadavg()[0]:.0f}"
    )


if __name__ == "__main__":
    main()
