"""Compare the engines of the embedding model: agreement, processor time and memory.

    python -m eval.perf.embeddings --data-dir DIR

prints one line per engine that is installed: the cosines to sentence-transformers where that is
there, processor seconds per 1,000 texts by one thread, and the peak of memory of its process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

from blackbox.tables import read_examples

__all__ = ["main", "measure"]

DATA = ("agnews", "trec", "sst2", "banking77")
ENGINES = ("transformers", "onnx")
_MODEL = "all-minilm-l6-v2"


def main() -> None:
    """Measure each engine in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--n", type=int, default=250, help="texts per data set")
    parser.add_argument("--folder", help="the model as a folder of sentence-transformers")
    parser.add_argument("--engine", choices=ENGINES, help="measure this one here, as JSON")
    given = parser.parse_args()
    texts = [
        str(text)
        for name in DATA
        for text in read_examples(str(given.data_dir / name / "train.csv")).texts[: given.n]
    ]
    if given.engine:
        print(json.dumps(measure(given.engine, texts, given.folder)))
        return
    found = {}
    for engine in ENGINES if given.folder else ("onnx",):
        command = [sys.executable, "-m", "eval.perf.embeddings", *sys.argv[1:], "--engine", engine]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[engine] = json.loads(done.stdout)
    for engine, one in found.items():
        line = f"{engine:13s} {one['seconds']:.1f} s per 1,000 texts, {one['megabytes']:.0f} MB"
        if "transformers" in found:
            other = np.array(found["transformers"]["vectors"])
            cosines = (other * np.array(one["vectors"])).sum(axis=1)
            line += f", cosine {cosines.mean():.6f}, least {cosines.min():.6f}"
        print(line)


def measure(engine: str, texts: list[str], folder: str | None) -> dict[str, object]:
    """Return the vectors of texts, processor seconds per 1,000 of them, and megabytes at peak."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import backends

    if engine == "onnx":
        lm = backends.load_embeddings("onnx", model=_MODEL, n_threads=1)
    else:
        lm = backends.load_embeddings(engine, model=folder)
    lm.embed(texts[:50])
    before = os.times()
    vectors = lm.embed(texts).vectors
    after = os.times()
    seconds = after.user + after.system - before.user - before.system
    return {
        "vectors": vectors.tolist(),
        "seconds": 1000 * seconds / len(texts),
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
