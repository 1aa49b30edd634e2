"""Measure the start-up time of the command and of the package.

    python -m eval.perf.startup [--rounds 7]

`blackbox --help`, and the classifier's import less scikit-learn's own, in turns.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time

import click
import numpy as np

COMMANDS = {
    "blackbox --help": ["-m", "blackbox", "--help"],
    "scikit-learn": [
        "-c",
        "import sklearn.base, sklearn.utils.validation, sklearn.utils.multiclass",
    ],
    "the classifier": ["-c", "from blackbox import PromptBoostingClassifier"],
    "nothing": ["-c", ""],
}


def time_process(arguments: list[str]) -> float:
    """Return the seconds that one Python process takes."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


@click.command()
@click.option("--rounds", default=7, show_default=True)
def main(rounds: int) -> None:
    """Print medians with their range."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            found[name].append(time_process(arguments))
    beyond = np.subtract(found["the classifier"], found["scikit-learn"])
    for name, each in (*found.items(), ("the classifier, beyond scikit-learn", beyond.tolist())):
        click.echo(f"{name}: {np.median(each):.2f} s ({min(each):.2f} to {max(each):.2f})")
    click.echo(f"{rounds} rounds; {platform.machine()}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
