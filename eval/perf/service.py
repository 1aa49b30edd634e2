"""How many requests the service answers, beside its own /healthz and the model alone.

    python -m eval.perf.service [--seconds 10]
    python -m eval.perf.service --model FILE --seconds 100 --rounds 1

Needs `wrk` (a load generator: `apt-get install wrk`). By default a small model over the
deterministic stand-in is trained and served without a store; 64 connections send texts that are all
different, one a request, and take turns with requests of /healthz. With `--model` a saved model and
its own LM are served, and compared with the same kind of texts labelled in one call: over many
seconds and in one round, as the batches of a slow LM take seconds each.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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
  -- all texts differ, of words that the stand-in knows: a new word costs it more than the service
  local more = word(n) .. " " .. word(math.floor(n / #words)) .. " "
               .. word(math.floor(n / #words / #words))
  local text = texts[n % #texts + 1] .. " " .. more .. {last}
  return wrk.format("POST", "/v1/predict", {{["Content-Type"] = "application/json"}},
                    '{{"text": "' .. text .. '"}}')
end
"""


def texts_of(n: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts with some words of their topic, and their topics."""
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
def served(model: Path, *arguments: str) -> Iterator[tuple[int, int]]:
    """A service of its own; gives its port and its process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "blackbox", "serve", str(model), "--port", "0", *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        found = re.search(r"http://[^:]+:(\d+)", said)
        if found is None:
            raise click.ClickException(said + process.stderr.read())
        time.sleep(3)
        yield int(found[1]), process.pid
    finally:
        process.terminate()
        process.wait(60)
        if process.stderr is not None:
            process.stderr.close()


def load(url: str, seconds: int, connections: int, script: Path | None = None) -> dict[str, float]:
    """Requests a second, the 99th percentile in milliseconds, and errors."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "30s"]
    if script is not None:
        command += ["-s", str(script)]
    return measures_of(
        subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
    )


def measures_of(said: str) -> dict[str, float]:
    """What `load` returns, from what `wrk` says."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    slow = re.search(r"99%\s+([\d.]+)(us|ms|s)\b", said)
    assert rate is not None
    assert slow is not None
    bad = sum(int(n) for n in re.findall(r"(?:connect|read|write|timeout) (\d+)", said))
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    return {
        "rate": float(rate[1]),
        "p99": float(slow[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[slow[2]],
        "errors": bad + (int(refused[1]) if refused else 0),
    }


def megabytes(pid: int) -> float:
    """What a process holds in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1000


@click.command()
@click.option("--model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--seconds", default=10, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--connections", default=64, show_default=True)
@click.option("--prompts", default=1, show_default=True, help="Of the model that is trained.")
@click.option("--new-words", is_flag=True, help="Give each text a word that no other has.")
@click.option("--soak", default=0, show_default=True, help="Requests to watch the memory over.")
def main(
    model: Path | None,
    seconds: int,
    rounds: int,
    connections: int,
    prompts: int,
    new_words: bool,
    soak: int,
) -> None:
    """Print requests a second, latencies, ratios and memory."""
    if shutil.which("wrk") is None:
        raise click.ClickException("wrk is not installed: apt-get install wrk")
    folder = Path(tempfile.mkdtemp())
    arguments = ["--no-store"]
    if model is None:
        model = folder / "m"
        texts, labels = texts_of(120)
        PromptBoostingClassifier(
            "deterministic", max_prompts=prompts, top_k=20, random_state=0, store=False
        ).fit(texts, labels).save(model)
        arguments += ["--backend", "deterministic"]
    script = folder / "post.lua"
    quoted = ", ".join(f'"{text}"' for text in texts_of(301, seed=1)[0])
    every = ", ".join(f'"{word}"' for words in WORDS.values() for word in words)
    with served(model, *arguments) as (port, pid):
        url = f"http://127.0.0.1:{port}"
        ratios = []
        for number in range(rounds):
            script.write_text(
                _SCRIPT.format(
                    texts=quoted,
                    words=every,
                    first=number * 10_000_000,
                    last='" " .. n' if new_words else '""',
                )
            )
            alive = load(f"{url}/healthz", min(seconds, 10), connections)
            found = load(url, seconds, connections, script)
            ratios.append(found["rate"] / alive["rate"])
            click.echo(
                f"predict {found['rate']:.0f}/s, 99% within {found['p99']:.0f} ms, "
                f"{found['errors']:.0f} errors; healthz {alive['rate']:.0f}/s; "
                f"ratio {ratios[-1]:.2f}"
            )
        click.echo(f"ratio {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        _soak(url, pid, soak, connections, script)
    if "--backend" not in arguments:
        _beside_one_call(model, found["rate"])
    click.echo(f"{platform.machine()}, {os.cpu_count()} cores, wrk on the same machine")


def _soak(url: str, pid: int, n: int, connections: int, script: Path) -> None:
    """Memory as requests go by."""
    done, marks = 0.0, [megabytes(pid)]
    while done < n:
        done += 10 * load(url, 10, connections, script)["rate"]
        marks.append(megabytes(pid))
    if n:
        shown = ", ".join(f"{mark:.0f}" for mark in marks)
        click.echo(f"memory over {done:,.0f} requests, in MB: {shown}")


def _beside_one_call(model: Path, rate: float) -> None:
    """The same kind of texts in one process and one call."""
    classifier: Any = load_model(model)
    classifier.set_params(store=False)
    texts = [f"{text} {number}" for number, text in enumerate(texts_of(256, seed=2)[0])]
    started = time.perf_counter()
    classifier.predict_proba(texts)
    alone = len(texts) / (time.perf_counter() - started)
    click.echo(f"in one call {alone:.1f}/s; the service reaches {rate / alone:.2f} of that")


if __name__ == "__main__":
    main()
