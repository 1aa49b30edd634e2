"""Measure the time and bytes that the forward-pass store adds to a pass.

    python -m eval.perf.store [--rows 1000000] [--top-k 200]

Writes made-up answers in parts of 32, as the embedded LM gives them, and reads some of them back in
random order. Times are per pass; the embedded LM takes about 50 ms for one.
"""

from __future__ import annotations

import platform
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from blackbox.protocol import BackendIdentity
from blackbox.store.encoding import decode, encode
from blackbox.store.file import StoreFile
from blackbox.store.stored_backend import merge_values

_PART = 32
_READ = 20_000


@click.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--top-k", default=200, show_default=True)
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), default=None)
def main(rows: int, top_k: int, folder: Path | None) -> None:
    """Print the time of writing, reading and opening, and the bytes per row."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        found = measure(Path(name) / "passes.sqlite", rows, top_k)
    click.echo(f"rows                {rows}, top {top_k}")
    click.echo(f"write               {1e6 * found['write']:.0f} µs per pass")
    click.echo(f"hit                 {1e6 * found['read']:.0f} µs per pass, in random order")
    click.echo(
        f"size                {found['bytes']:.0f} bytes per pass, {found['value']} its value"
    )
    click.echo(
        f"open                {1e3 * found['open']:.1f} ms, and {1e3 * found['names']:.0f} ms for "
        "the tokens"
    )
    click.echo(f"{platform.machine()}, Python {platform.python_version()}")


def measure(path: Path, rows: int, top_k: int) -> dict[str, float]:
    """Return seconds and bytes per pass, and the seconds of opening."""
    store = StoreFile(path, max_bytes=10**12)
    identity = BackendIdentity("made-up", "none", "benchmark").digest()
    rng = np.random.default_rng(0)
    values = np.sort(-rng.exponential(5, (_PART, top_k)), axis=1)[:, ::-1].astype(np.float32)
    answers = [
        encode(rng.permutation(49_152)[:top_k].astype(np.int32), row, top_k) for row in values
    ]
    written = write_answers(store, identity, answers, rows)
    size = store.info()["bytes"]
    wanted = [make_key(int(number)) for number in rng.integers(rows, size=_READ)]
    started, found = time.perf_counter(), 0
    for start in range(0, _READ, _PART):
        part = store.get(identity, wanted[start : start + _PART])
        found += len([decode(value) for value in part.values()])
    read = time.perf_counter() - started
    store.close()
    started = time.perf_counter()
    store = StoreFile(path)
    opened = time.perf_counter() - started
    started = time.perf_counter()
    store.token_bytes(identity)
    names = time.perf_counter() - started
    store.close()
    return {
        "write": written / rows,
        "read": read / found,
        "bytes": size / rows,
        "value": len(answers[0]),
        "open": opened,
        "names": names,
    }


def write_answers(store: StoreFile, identity: str, answers: list[bytes], rows: int) -> float:
    """Write the answers over and over under new keys; return the seconds."""
    token_bytes = dict.fromkeys(range(49152), b" token")
    started = time.perf_counter()
    for part in range(0, rows, _PART):
        numbers = range(part, min(part + _PART, rows))
        content = {
            make_key(number): answer for number, answer in zip(numbers, answers, strict=False)
        }
        names = token_bytes if not part else {}
        store.put(identity, "{}", content, names, merge_values, "me")
    return time.perf_counter() - started


def make_key(number: int) -> bytes:
    """Return a key as random as a digest."""
    return np.random.default_rng(number).bytes(32)


if __name__ == "__main__":
    main()
