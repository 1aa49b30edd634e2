"""Run `blackbox predict` on a large table: rows per second, memory, resuming after a kill.

    python -m eval.perf.streaming [--rows 1000000]

The deterministic stand-in, top 20, no store. Memory is read every second; after `--kill-after`
seconds the process is killed, and the same command goes on.
"""

from __future__ import annotations

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


def watch(command: list[str], until: float | None = None) -> tuple[float, list[float]]:
    """Run a command, or kill it at `until`; return seconds, and its memory every second."""
    started = time.perf_counter()
    process = subprocess.Popen(command)
    marks: list[float] = []
    while process.poll() is None:
        if until is not None and time.perf_counter() - started > until:
            process.kill()
            process.wait()
            break
        marks.append(resident_memory(process.pid))
        time.sleep(1)
    seconds = time.perf_counter() - started
    if until is None and process.returncode:
        raise click.ClickException(f"it ended with {process.returncode}")
    return seconds, marks


@click.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--prompts", default=3, show_default=True)
@click.option("--kill-after", type=float, default=30.0, show_default=True, metavar="S")
def main(rows: int, prompts: int, kill_after: float) -> None:
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
    watch(command, until=kill_after)
    seconds, marks = watch(command)
    with (folder / "out.csv").open() as file:
        written = sum(1 for _ in file) - 1
    assert written == rows, f"{written} rows written"
    tenth = max(1, len(marks) // 10)
    click.echo(
        f"{rows:,} rows, {prompts} prompts: killed after {kill_after:.0f} s, went on for "
        f"{seconds:.0f} s, {rows / (seconds + kill_after):.0f} rows/s; memory {marks[tenth]:.0f} "
        f"MB after a tenth, {marks[-2]:.0f} MB at the end, {max(marks):.0f} MB at most; "
        f"{platform.machine()}, {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
