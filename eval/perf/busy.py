"""Measure engines on a machine that others use too: quiet, and beside two busy processes.

    python -m eval.perf.busy [--engine llamacpp] [--engine transformers] [--rounds 3]

Each engine runs in two ways, one after the other: with threads that sleep while they wait, as this
package sets it, and with threads that spin, as OpenMP does by itself. The same passes are made
quiet and beside neighbours, in turns; the ratio of the two says what neighbours cost. Two
neighbours on two cores take two thirds of an engine's share, so about 2 is what a fair scheduler
would give. Processor seconds per pass don't depend on what else runs; with threads that spin
they do.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import numpy as np

from blackbox.protocol import RenderedPrompt

WAITING = {"sleep": {}, "spin": {"GOMP_SPINCOUNT": "300000"}}
"""The ways in which threads wait, and the environment that makes them."""

_CUES = ("It was", "\nTopic:", "In summary, this is", "\nCategory:", "I felt")


class Engine:
    """An engine in a process of its own, which makes passes when it is asked to.

    Parameters
    ----------
    name, model : str
        As for `backends.load`.
    environment : dict
        Environment variables of the process, beside this one's.
    """

    def __init__(self, name: str, model: str, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "eval.perf.busy", "--serve", "--engine", name, "--model", model],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, n_texts: int, number: int) -> dict[str, float]:
        """Return the seconds, processor seconds, and passes of some texts under five prompts."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{n_texts} {number}\n")
        self._process.stdin.flush()
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        with self._process:
            self._process.kill()


@contextmanager
def neighbours(n: int) -> Iterator[None]:
    """Keep n processes busy."""
    some = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for process in some:
            process.kill()
            process.wait()


def serve(name: str, model: str) -> None:
    """Make the passes that standard input asks for."""
    import backends

    lm = backends.load(name, **({"model": model} if model else {}))
    for line in sys.stdin:
        n_texts, number = map(int, line.split())
        texts = [f"Text {number}, {row}: a film that many people saw" for row in range(n_texts)]
        prompts = [RenderedPrompt(text=f"{text} {cue}") for text in texts for cue in _CUES]
        started, before = time.perf_counter(), os.times()
        usage = lm.next_token(prompts, 200).usage
        after = os.times()
        answer = {
            "seconds": time.perf_counter() - started,
            "processor": after.user + after.system - before.user - before.system,
            "passes": usage.passes_made,
            "evaluated": usage.tokens_evaluated,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def measure(engine: Engine, n_texts: int, rounds: int, n_neighbours: int) -> dict[str, Any]:
    """Return the ratios of busy to quiet, and processor seconds per 100 passes of both."""
    engine.ask(1, 0)
    ratios, quiet_times, busy_times = [], [], []
    for number in range(1, rounds + 1):
        quiet = engine.ask(n_texts, 2 * number)
        with neighbours(n_neighbours):
            busy = engine.ask(n_texts, 2 * number + 1)
        ratios.append(busy["seconds"] / quiet["seconds"])
        quiet_times.append(100 * quiet["processor"] / quiet["passes"])
        busy_times.append(100 * busy["processor"] / busy["passes"])
    return {"ratios": ratios, "quiet": quiet_times, "busy": busy_times}


@click.command()
@click.option("--engine", "engines", multiple=True, default=("llamacpp",), show_default=True)
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--texts", default=12, show_default=True, help="Texts of each measurement.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--neighbours", "n_neighbours", default=2, show_default=True)
@click.option("--serve", "is_engine", is_flag=True, hidden=True)
def main(
    engines: tuple[str, ...],
    model: str,
    texts: int,
    rounds: int,
    n_neighbours: int,
    is_engine: bool,
) -> None:
    """Print a table: each engine with threads that sleep and threads that spin."""
    if is_engine:
        serve(engines[0], model)
        return
    click.echo(
        "| engine | waiting threads | busy / quiet, seconds | CPU s per 100 passes, quiet | busy |"
    )
    click.echo("|---|---|---|---|---|")
    for name in engines:
        for waiting, environment in WAITING.items():
            engine = Engine(name, model, environment)
            try:
                found = measure(engine, texts, rounds, n_neighbours)
            finally:
                engine.close()
            ratios = found["ratios"]
            click.echo(
                f"| {name} | {waiting} | {np.median(ratios):.1f} ({min(ratios):.1f} to "
                f"{max(ratios):.1f}) | {np.median(found['quiet']):.1f} | "
                f"{np.median(found['busy']):.1f} |"
            )
    click.echo()
    click.echo(
        f"{n_neighbours} neighbours, {rounds} rounds; {platform.machine()}, "
        f"{os.cpu_count()} cores; load before {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
