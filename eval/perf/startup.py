"""Measure the start-up time of the command, of the package, and of the embedded LM.

    python -m eval.perf.startup [--rounds 7] [--embedded]

`blackbox --help`, and the classifier's import less scikit-learn's own, in turns. With
``--embedded`` also the quickstart and a training with a full store, `predict` of one row that no
store has, the service until it is ready, and the start of each engine that runs the embedded model,
its first answer included. Seconds are wall-clock and processor time.
"""

from __future__ import annotations

import os
import platform
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import resources
from pathlib import Path

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

_FIRST_ANSWER = (
    "import sys, backends; from blackbox.protocol import RenderedPrompt as R; "
    "backends.load(sys.argv[1], model='smollm2-135m').next_token([R(text='a')], 5)"
)


def time_process(arguments: list[str], **environment: str) -> tuple[float, float]:
    """Return the seconds that one Python process takes, and its processor seconds."""
    return _timed(
        lambda: subprocess.run(
            [sys.executable, *arguments],
            check=True,
            capture_output=True,
            env=os.environ | environment,
        )
    )


def time_service(model: Path, **environment: str) -> tuple[float, float]:
    """Return the seconds until a service of a model is ready, and its processor seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "blackbox", "serve", str(model), "--port", str(port)]

    def until_ready() -> None:
        with subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            while process.poll() is None:
                with (
                    suppress(OSError),
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as answer,
                ):
                    if answer.status == 200:
                        break
                time.sleep(0.02)
            process.kill()

    return _timed(until_ready)


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, used


def time_embedded(folder: Path, rounds: int, engines: tuple[str, ...]) -> None:
    """Print the times of what starts the embedded LM."""
    model, row = folder / "q.blackbox", folder / "row.csv"
    store = {"PROMPTBOOSTING_STORE": str(folder / "passes.sqlite")}
    quickstart = ["-m", "blackbox", "quickstart", "--json", "--out", str(model)]
    sample = str(resources.files("blackbox").joinpath("samples/train.csv"))
    train = ["-m", "blackbox", "train", sample, "--out", str(folder / "t.blackbox")]
    for command in (quickstart, train):
        time_process(command, **store)
    row.write_text("text\nMy parcel has still not arrived\n")
    predict = ["-m", "blackbox", "predict", str(model), str(row), "--out", "-"]
    none = {"PROMPTBOOSTING_STORE": "off"}
    found: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds):
        timed: dict[str, Callable[[], tuple[float, float]]] = {
            "quickstart, store full": partial(time_process, quickstart, **store),
            "train on 160 rows, store full": partial(
                time_process, [*train[:-1], str(folder / f"{number}.blackbox")], **store
            ),
            "predict of one row": partial(time_process, predict, **none),
            "serve until ready": partial(time_service, model, **none),
        }
        for name in engines:
            command = ["-c", _FIRST_ANSWER, name]
            timed[f"first answer, {name}"] = partial(time_process, command)
        for name, measured in timed.items():
            found.setdefault(name, []).append(measured())
    for name, times in found.items():
        wall, processor = zip(*times, strict=True)
        click.echo(
            f"{name}: {np.median(wall):.1f} s ({min(wall):.1f} to {max(wall):.1f}), "
            f"processor {np.median(processor):.1f} s"
        )


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--embedded", is_flag=True, help="Also what starts the embedded LM.")
@click.option("--engine", "engines", multiple=True, default=("onnx", "llamacpp"))
def main(rounds: int, embedded: bool, engines: tuple[str, ...]) -> None:
    """Print medians with their range."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            found[name].append(time_process(arguments)[0])
    beyond = np.subtract(found["the classifier"], found["scikit-learn"])
    for name, each in (*found.items(), ("the classifier, beyond scikit-learn", beyond.tolist())):
        click.echo(f"{name}: {np.median(each):.2f} s ({min(each):.2f} to {max(each):.2f})")
    if embedded:
        with tempfile.TemporaryDirectory() as folder:
            time_embedded(Path(folder), rounds, engines)
    click.echo(f"{rounds} rounds; {platform.machine()}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
