"""Compare engines over the same weights: speed, agreement, labels, memory, size and start.

    python -m eval.perf.engines [--rounds 3] [--way "onnx int8" …] [--data-dir DIR]

Each engine runs in a process of its own, with one thread, and evaluates the same prompts: texts of
the bundled sample under ten built-in prompts, the 200 most likely tokens. They take turns, and what
counts is processor seconds, so that whatever else the machine does matters little. The limit is the
time of the matrix products alone, in bfloat16 by torch. Answers are compared with those of
transformers in float32. With ``--data-dir``, one classifier is trained on TREC by transformers in
float32 (32 labels per class, hand-written prompts) and reads each engine's answers for the test
rows. Each engine is started once before it is measured, so that start and memory are those with its
form of the weights in the cache. An engine whose process ends has a row that says how.
Needs the extras `local`, `llamacpp` and `transformers`, and `openvino` for its ways.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import click
import numpy as np

from blackbox.boosting.splits import draw_shots
from blackbox.tables import read_examples
from eval.data.data_sets import PROMPTS

MODEL = "smollm2-135m"
REFERENCE = "transformers float32"
_OPENVINO = ("openvino", "onnx", "tokenizers")
WAYS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    REFERENCE: ("transformers", {"dtype": "float32"}, ("torch", "transformers")),
    "transformers bfloat16": ("transformers", {"dtype": "auto"}, ("torch", "transformers")),
    "llama.cpp Q8_0": ("llamacpp", {"n_threads": 1}, ("xllamacpp",)),
    "onnx int8": ("onnx", {"n_threads": 1}, ("onnxruntime", "onnx", "tokenizers")),
    "openvino bf16": (
        "openvino",
        {"weights": "float16", "settings": {"INFERENCE_PRECISION_HINT": "bf16"}},
        _OPENVINO,
    ),
    "openvino int8 in bf16": (
        "openvino",
        {
            "weights": "int8",
            "settings": {"INFERENCE_PRECISION_HINT": "bf16", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0},
        },
        _OPENVINO,
    ),
    "openvino int8": (
        "openvino",
        {
            "weights": "int8",
            "settings": {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 16},
        },
        _OPENVINO,
    ),
}
"""The backend, options and packages of each way."""

_PROMPTS, _TOP_K, _COMPARED, _SHOTS, _SEED = 10, 200, 50, 32, 13
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PROMPTBOOSTING_STORE": "off"}


class EngineEndedError(Exception):
    """The process of an engine ended before it answered."""


class Engine:
    """An engine in a process of its own."""

    def __init__(self, way: str) -> None:
        command = [sys.executable, "-m", "eval.perf.engines", "--serve", way]
        self._process = subprocess.Popen(
            command,
            env=os.environ | _ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the engine's answer to a request; see `serve`.

        Raises
        ------
        EngineEndedError
            With the status of the process.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise EngineEndedError(f"its process ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        with suppress(BrokenPipeError), self._process:
            self._process.kill()


class Engines:
    """The engines that are compared, and those that ended.

    Parameters
    ----------
    names : sequence of str
        The reference first.

    Attributes
    ----------
    ended : dict of str to str
        Why an engine is asked no more.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.ended: dict[str, str] = {}
        self._engines: dict[str, Engine] = {}
        for name in names:
            # the first start may convert the weights, and is not what is measured
            self._engines[name] = Engine(name)
            self.ask(name)
            self._engines[name].close()
        self._engines = {name: Engine(name) for name in names if name not in self.ended}

    def ask(self, name: str, **request: Any) -> dict[str, Any] | None:
        """Return an engine's answer, or None where its process has ended."""
        if name in self.ended:
            return None
        try:
            return self._engines[name].ask(**request)
        except EngineEndedError as error:
            if name == REFERENCE:
                raise click.ClickException(f"{name}: {error}") from error
            self.ended[name] = str(error)
            return None

    def close(self) -> None:
        """End their processes."""
        for engine in self._engines.values():
            engine.close()


def serve(way: str) -> None:
    """Answer the requests on standard input: passes, a training, or predictions."""
    from blackbox.prompts.template import Prompt
    from blackbox.protocol import RenderedPrompt

    name, options, _ = WAYS[way]
    before, started = _processor(), time.perf_counter()
    if name == "openvino":
        from eval.perf import openvino_lm

        lm = openvino_lm.load(MODEL, **options)
    else:
        import backends

        lm = backends.load(name, model=MODEL, **options)
    lm.next_token([RenderedPrompt(text="a")], 5)
    start = {"processor": _processor() - before, "seconds": time.perf_counter() - started}
    for line in sys.stdin:
        request = json.loads(line)
        before, answer = _processor(), dict[str, Any]()
        if "texts" in request:
            pool = [Prompt(template) for template in request["prompts"]]
            prompts = [prompt.render(text) for text in request["texts"] for prompt in pool]
            found = lm.next_token(prompts, _TOP_K)
            answer = {
                "passes": found.usage.passes_made,
                "evaluated": found.usage.tokens_evaluated,
                "ids": found.token_ids.tolist(),
                "values": found.log_probs.tolist(),
            }
        elif "data" in request:
            answer = _labels(lm, Path(request["data"]), Path(request["model"]), way == REFERENCE)
        answer |= {"processor": _processor() - before, "start": start}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sys.stdout.write(json.dumps(answer | {"peak": peak / 1024}) + "\n")
        sys.stdout.flush()


def _labels(lm: Any, data: Path, path: Path, trains: bool) -> dict[str, Any]:
    """Return the labels that the reference's classifier gives to the test rows by this LM."""
    from blackbox import PromptBoostingClassifier, PromptPool, load_model

    test = read_examples(data / "trec" / "test.csv")
    if trains:
        train = read_examples(data / "trec" / "train.csv")
        rows = draw_shots(train.labels, train.texts, _SHOTS, _SEED)
        classifier = PromptBoostingClassifier(
            lm,
            prompts=PromptPool.read(PROMPTS / "trec.txt"),
            top_k=_TOP_K,
            random_state=_SEED,
            label_words=None,
        )
        classifier.fit([train.texts[row] for row in rows], [train.labels[row] for row in rows])
        classifier.save(path)
    loaded = load_model(path, backend=lm, allow_other_lm=True)
    labels = [str(label) for label in loaded.predict(test.texts)]
    return {"labels": labels, "truth": [str(label) for label in test.labels]}


def _processor() -> float:
    times = os.times()
    return times.user + times.system


def agreement(answer: dict[str, Any], reference: dict[str, Any]) -> tuple[float, float]:
    """Return the mean difference over the reference's top 50, and how often the top 1 agrees."""
    differences = []
    for row, (ids, values) in enumerate(zip(reference["ids"], reference["values"], strict=True)):
        here = dict(zip(answer["ids"][row], answer["values"][row], strict=True))
        first = list(zip(ids, values, strict=True))[:_COMPARED]
        differences += [abs(here[token] - value) for token, value in first if token in here]
    same = [
        mine[0] == other[0] for mine, other in zip(answer["ids"], reference["ids"], strict=True)
    ]
    return float(np.mean(differences)), float(np.mean(same))


def limit_per_token() -> tuple[float, float]:
    """Return the processor seconds of the products of one token, and of one answer's head."""
    import torch

    torch.set_num_threads(1)

    def seconds(rows: int, inputs: int, outputs: int) -> float:
        left = torch.randn(rows, inputs, dtype=torch.bfloat16)
        right = torch.randn(outputs, inputs, dtype=torch.bfloat16)
        best = np.inf
        for _ in range(5):
            before = time.process_time()
            for _ in range(10):
                torch.nn.functional.linear(left, right)
            best = min(best, (time.process_time() - before) / 10)
        return best / rows

    layers = sum(
        seconds(256, *shape) for shape in ((576, 960), (576, 576), (576, 3072), (1536, 576))
    )
    return 30 * layers, seconds(64, 576, 49152)


def installed_megabytes(packages: tuple[str, ...]) -> float:
    """Return the size of packages on disk, without what they depend on."""
    files = [file for name in packages for file in metadata.files(name) or ()]
    paths = [Path(str(file.locate())) for file in files]
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


@click.command()
@click.option("--way", "ways", multiple=True, type=click.Choice(list(WAYS)), default=list(WAYS))
@click.option("--texts", default=12, show_default=True, help="Texts of each round.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path))
@click.option("--serve", "served", hidden=True)
def main(
    ways: tuple[str, ...], texts: int, rounds: int, data_dir: Path | None, served: str | None
) -> None:
    """Print the table."""
    if served:
        serve(served)
        return
    from blackbox.generation import builtin_pool
    from blackbox.protocol import Limits

    limits = Limits(max_top_k=_TOP_K, max_score_ids=0, context_length=2048, deterministic=True)
    pool = [prompt.template for prompt in builtin_pool(limits=limits)][:_PROMPTS]
    sample = Path(str(resources.files("blackbox").joinpath("samples/train.csv")))
    examples = [str(text) for text in read_examples(sample).texts]
    names = list(dict.fromkeys((REFERENCE, *ways)))
    engines = Engines(names)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    close: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    labels: dict[str, list[str]] = {}
    try:
        for number in range(rounds):
            some = [examples[(number * texts + row) % len(examples)] for row in range(texts)]
            for name in names:
                answer = engines.ask(name, texts=some, prompts=pool)
                if answer is not None:
                    found[name].append(answer)
                    close[name].append(agreement(answer, found[REFERENCE][-1]))
        if data_dir is not None:
            with tempfile.TemporaryDirectory() as folder:
                path = str(Path(folder) / "trec.blackbox")
                asked = {"data": str(data_dir), "model": path}
                answers = {name: engines.ask(name, **asked) for name in names}
                labels = {name: answer["labels"] for name, answer in answers.items() if answer}
    finally:
        engines.close()
    for name, why in engines.ended.items():
        click.echo(f"{name}: {why}", err=True)
    _show(names, found, close, labels, engines.ended)


def _show(
    names: list[str],
    found: dict[str, list[dict[str, Any]]],
    close: dict[str, list[tuple[float, float]]],
    labels: dict[str, list[str]],
    ended: dict[str, str],
) -> None:
    per_token, per_answer = limit_per_token()
    click.echo(
        "| engine | CPU s per 100 passes | share of the limit | mean difference | same likeliest "
        "| same labels | peak MB | installed MB | start, CPU s |"
    )
    click.echo("|---" * 9 + "|")
    for name in names:
        if name in ended:
            click.echo(f"| {name} | {ended[name]} {'| – ' * 7}|")
            continue
        each = [100 * one["processor"] / one["passes"] for one in found[name]]
        shares = [
            (one["evaluated"] * per_token + one["passes"] * per_answer) / one["processor"]
            for one in found[name]
        ]
        difference, same = np.mean(close[name], axis=0)
        agree = np.mean(np.array(labels[name]) == np.array(labels[REFERENCE])) if labels else None
        click.echo(
            f"| {name} | {np.median(each):.2f} ({min(each):.2f} to {max(each):.2f}) "
            f"| {np.median(shares):.0%} | {difference:.3f} | {same:.0%} "
            f"| {'–' if agree is None else f'{agree:.1%}'} | {found[name][-1]['peak']:.0f} "
            f"| {installed_megabytes(WAYS[name][2]):.0f} "
            f"| {found[name][0]['start']['processor']:.1f} |"
        )
    click.echo(
        f"\n{len(found[names[0]])} rounds of {found[names[0]][0]['passes']} passes, one thread; "
        f"{platform.machine()}, {os.cpu_count()} cores; load {os.getloadavg()[0]:.0f}"
    )


if __name__ == "__main__":
    main()
