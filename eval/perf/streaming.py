"""Run `blackbox predict` on a large table: rows per second and memory.

    python -m eval.perf.streaming [--rows 1000000]

The deterministic stand-in, top 20, no store. Memory is read four times a second.
"""

from __future__ import annotations

import contextlib
import csv
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from eval.perf.service import make_texts, resident_memory, train_model

_INTERVAL = 0.25  # seconds between two readings


def watch(command: list[str]) -> tuple[float, list[float]]:
    """Run a command; return its seconds, and its memory in MB at each reading, once at least."""
    started = time.perf_counter()
    process = subprocess.Popen(command)
    marks: list[float] = []
    while process.poll() is None:
        if memory := resident_memory(process.pid):
            marks.append(memory)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_INTERVAL)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise click.ClickException(f"it ended with {process.returncode}")
    return seconds, marks


@click.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--prompts", default=3, show_default=True)
def main(rows: int, prompts: int) -> None:
    """Print rows per second and memory."""
    folder = Path(tempfile.mkdtemp())
    model = train_model(folder, prompts)
    some, _ = make_texts(5000, seed=1)
    with (folder / "in.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows((number, some[number % len(some)]) for number in range(rows))
    command = [
        sys.executable,
        "-m",
        "blackbox",
        "predict",
        str(model),
        str(folder / "in.csv"),
        "--out",
        str(folder / "out.csv"),
        "--backend",
        "deterministic",
        "--no-store",
    ]
    seconds, marks = watch(command)
    with (folder / "out.csv").open() as file:
        written = sum(1 for _ in file) - 1
    assert written == rows, f"{written} rows written"
    early, late = marks[len(marks) // 10], marks[-1]
    click.echo(
        f"{rows:,} rows, {prompts} prompts: {seconds:.0f} s, {rows / seconds:.0f} rows/s; memory "
        f"{early:.0f} MB after a tenth, {late:.0f} MB at the end, {max(marks):.0f} MB "
        f"at most; {platform.machine()}, {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
