"""Load-test the service, against its own /healthz and against the model in one call.

    python -m eval.perf.service [--seconds 10]
    python -m eval.perf.service --model FILE [--clients 32] [--texts 128]

The first needs `wrk` (a load generator: `apt-get install wrk`). A small model over the
deterministic stand-in is trained and served without a store; 64 connections send texts that are
all different, one per request, in turns with requests of /healthz.

With `--model` a saved model and its own LM are served. Clients that send one text after the other
take turns with one call in this process for as many texts of the same kind. It prints, as ratios of
one run, the service's rate to that of the call, and its 99th percentile to the time that the call
takes for as many texts as there are clients, which is the least that clients can wait who all ask
at a time. It also prints the first request after the start.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

from blackbox import PromptBoostingClassifier, load_model

WORDS = {
    "sport": ["match", "goal", "team", "coach", "league", "score"],
    "money": ["bank", "market", "shares", "profit", "loan", "price"],
    "food": ["bread", "soup", "cook", "taste", "dinner", "cheese"],
}

_SCRIPT = """
local texts = {{ {texts} }}
local words = {{ {words} }}
local n = {first}
local function word(i) return words[i % #words + 1] end
request = function()
  n = n + 1
  -- all texts differ but repeat known words: a new word costs the LM more than the service
  local more = word(n) .. " " .. word(math.floor(n / #words)) .. " "
               .. word(math.floor(n / #words / #words))
  local text = texts[n % #texts + 1] .. " " .. more .. {last}
  return wrk.format("POST", "/v1/predict", {{["Content-Type"] = "application/json"}},
                    '{{"text": "' .. text .. '"}}')
end
"""


def make_texts(n: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Return texts with some words of their topic, and their topics."""
    rng = np.random.default_rng(seed)
    every = [word for words in WORDS.values() for word in words]
    texts, labels = [], []
    for number in range(n):
        label = list(WORDS)[number % len(WORDS)]
        words = [*rng.choice(WORDS[label], 3), *rng.choice(every, 3)]
        texts.append(" ".join(rng.permutation(words)))
        labels.append(label)
    return texts, labels


@contextmanager
def run_service(model: Path, *arguments: str) -> Iterator[tuple[int, int]]:
    """Start a service; yield its port and its process id."""
    process = subprocess.Popen(
        [sys.executable, "-m", "blackbox", "serve", str(model), "--port", "0", *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        output, found = "", None
        while found is None:
            line = process.stderr.readline()
            output += line
            found = re.search(r"http://[^:]+:(\d+)", line)
            if not line:
                raise click.ClickException(output)
        while not is_ready(int(found[1])):
            time.sleep(0.05)
        yield int(found[1]), process.pid
    finally:
        process.terminate()
        process.wait(60)
        if process.stderr is not None:
            process.stderr.close()


def is_ready(port: int) -> bool:
    """Return whether a service says that it is ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def run_wrk(
    url: str, seconds: int, connections: int, script: Path | None = None
) -> dict[str, float]:
    """Run `wrk`; return requests per second, the 99th percentile in ms, and errors."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "30s"]
    if script is not None:
        command += ["-s", str(script)]
    return parse_wrk_output(
        subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
    )


def parse_wrk_output(output: str) -> dict[str, float]:
    """Parse the output of `wrk`."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    slow = re.search(r"99%\s+([\d.]+)(us|ms|s)\b", output)
    assert rate is not None
    assert slow is not None
    bad = sum(int(n) for n in re.findall(r"(?:connect|read|write|timeout) (\d+)", output))
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    return {
        "rate": float(rate[1]),
        "p99": float(slow[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[slow[2]],
        "errors": bad + (int(refused[1]) if refused else 0),
    }


def train_model(folder: Path, n_prompts: int) -> Path:
    """Train a small model over the deterministic backend; return its path."""
    texts, labels = make_texts(120)
    PromptBoostingClassifier(
        "deterministic", max_prompts=n_prompts, top_k=20, random_state=0, store=False
    ).fit(texts, labels).save(folder / "m")
    return folder / "m"


def write_script(path: Path, first: int, *, new_words: bool) -> None:
    """Write the script with which `wrk` makes its texts, numbered from `first`."""
    texts = ", ".join(f'"{text}"' for text in make_texts(301, seed=1)[0])
    words = ", ".join(f'"{word}"' for some in WORDS.values() for word in some)
    last = '" " .. n' if new_words else '""'
    path.write_text(_SCRIPT.format(texts=texts, words=words, first=first, last=last))


def resident_memory(pid: int) -> float:
    """Return the resident memory of a process in MB, 0 once it has ended and waits to be read."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1000 if found else 0.0


def send_in_turns(port: int, texts: Sequence[str], n_clients: int) -> list[float]:
    """Send texts from clients that each wait for an answer; return the seconds of each request."""
    waiting, lock = iter(texts), threading.Lock()
    seconds: list[float] = []

    def run() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        while True:
            with lock:
                text = next(waiting, None)
            if text is None:
                connection.close()
                return
            started = time.perf_counter()
            body, headers = json.dumps({"text": text}), {"Content-Type": "application/json"}
            connection.request("POST", "/v1/predict", body, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"the service answered {answer.status}")
            seconds.append(time.perf_counter() - started)

    threads = [threading.Thread(target=run) for _ in range(n_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds


def compare(model: Path, lm: dict[str, str], n_clients: int, n_texts: int, rounds: int) -> None:
    """Print the ratios of a service to one call in this process, in turns."""
    options: dict[str, Any] = {name: value for name, value in lm.items() if value}
    classifier: Any = load_model(model, **options)
    classifier.set_params(store=False)
    classifier.predict_proba(make_texts(2)[0])
    numbers = iter(range(1_000_000))

    def some(n: int) -> list[str]:
        return [f"{text} {next(numbers)}" for text in make_texts(n, seed=next(numbers))[0]]

    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    rates, waits = [], []
    with run_service(model, "--no-store", "--timeout", "600", *arguments) as (port, _):
        (first,) = send_in_turns(port, some(1), 1)
        alone = float(np.median([send_in_turns(port, some(1), 1)[0] for _ in range(5)]))
        click.echo(
            f"first request {first:.2f} s, others alone {alone:.2f} s: {first / alone:.1f} x"
        )
        for _ in range(rounds):
            started = time.perf_counter()
            classifier.predict_proba(some(n_texts))
            rate = n_texts / (time.perf_counter() - started)
            started = time.perf_counter()
            seconds = send_in_turns(port, some(n_texts), n_clients)
            served = n_texts / (time.perf_counter() - started)
            rates.append(served / rate)
            waits.append(float(np.percentile(seconds, 99)) * rate / n_clients)
            click.echo(
                f"{served:.1f} texts/s, {rate:.1f} in one call: ratio {rates[-1]:.2f}; "
                f"99% within {np.percentile(seconds, 99):.1f} s, {waits[-1]:.2f} x the ideal"
            )
    for name, each in (("rate / one call", rates), ("99th percentile / ideal", waits)):
        click.echo(f"{name}: {np.median(each):.2f} ({min(each):.2f} to {max(each):.2f})")


@click.command()
@click.option("--model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--seconds", default=10, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--connections", default=64, show_default=True)
@click.option("--prompts", default=1, show_default=True, help="Of the model that is trained.")
@click.option("--clients", default=32, show_default=True, help="With --model.")
@click.option("--texts", default=128, show_default=True, help="Of each round, with --model.")
@click.option("--lm-backend", default="", help="With --model, for one whose LM isn't local.")
@click.option("--lm-model", default="", help="As the model of that backend.")
@click.option("--new-words", is_flag=True, help="Give each text a word that no other has.")
@click.option("--soak", default=0, show_default=True, help="Requests to watch the memory over.")
def main(
    model: Path | None,
    seconds: int,
    rounds: int,
    connections: int,
    prompts: int,
    clients: int,
    texts: int,
    lm_backend: str,
    lm_model: str,
    new_words: bool,
    soak: int,
) -> None:
    """Print requests per second, latencies, ratios and memory."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, clients on the same machine"
    if model is not None:
        compare(model, {"backend": lm_backend, "model": lm_model}, clients, texts, rounds)
        click.echo(machine)
        return
    if shutil.which("wrk") is None:
        raise click.ClickException("wrk is not installed: apt-get install wrk")
    folder = Path(tempfile.mkdtemp())
    script = folder / "post.lua"
    arguments = ["--no-store", "--backend", "deterministic"]
    with run_service(train_model(folder, prompts), *arguments) as (port, pid):
        url = f"http://127.0.0.1:{port}"
        ratios = []
        for number in range(rounds):
            write_script(script, number * 10_000_000, new_words=new_words)
            alive = run_wrk(f"{url}/healthz", min(seconds, 10), connections)
            found = run_wrk(url, seconds, connections, script)
            ratios.append(found["rate"] / alive["rate"])
            click.echo(
                f"predict {found['rate']:.0f}/s, 99% within {found['p99']:.0f} ms, "
                f"{found['errors']:.0f} errors; healthz {alive['rate']:.0f}/s; "
                f"ratio {ratios[-1]:.2f}"
            )
        click.echo(f"ratio {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        _print_memory(url, pid, soak, connections, script)
    click.echo(machine)


def _print_memory(url: str, pid: int, n: int, connections: int, script: Path) -> None:
    """Print the memory of the service while it answers n requests."""
    done, marks = 0.0, [resident_memory(pid)]
    while done < n:
        done += 10 * run_wrk(url, 10, connections, script)["rate"]
        marks.append(resident_memory(pid))
    if n:
        shown = ", ".join(f"{mark:.0f}" for mark in marks)
        click.echo(f"memory over {done:,.0f} requests, in MB: {shown}")


if __name__ == "__main__":
    main()
