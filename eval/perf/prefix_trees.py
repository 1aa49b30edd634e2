"""Measure the speed-up by prefix trees: the same prompts with and without, in one run.

    python -m eval.perf.prefix_trees [--model FOLDER]

The bundled sample's texts under ten built-in prompts, the embedded LM through transformers. Both
ways take turns, so that whatever else the machine does slows both. Prints the ratio of times with
its spread over rounds, the tokens that each way evaluates, and the largest difference of answers.
"""

from __future__ import annotations

import os
import platform
import time
from importlib import resources
from pathlib import Path

import click
import numpy as np

from backends.hf.forward import EqualForward, Forward, TreeForward
from backends.transformers import TransformersBackend
from blackbox.generation import builtin_pool
from blackbox.tables import read_examples

_PROMPTS = 10


@click.command()
@click.option("--model", default="smollm2-135m", help="As for the transformers backend.")
@click.option("--texts", default=24, show_default=True, help="Texts of each round.")
@click.option("--rounds", default=5, show_default=True)
def main(model: str, texts: int, rounds: int) -> None:
    """Print the ratio."""
    lm = TransformersBackend(model)
    pool = [p for p in builtin_pool(limits=lm.limits) if not p.is_chat][:_PROMPTS]
    sample = Path(str(resources.files("blackbox").joinpath("samples/train.csv")))
    examples = read_examples(sample).texts
    settings = lm._model, lm._tokenizer, 512
    ways: dict[str, Forward] = {
        "prefix trees": TreeForward(*settings),
        "plain batches": EqualForward(*settings),
    }
    ratios, evaluated, difference = [], dict[str, int](), 0.0
    for number in range(rounds):
        some = examples[number * texts : (number + 1) * texts]
        prompts = [prompt.render(str(text)) for text in some for prompt in pool]
        seconds, answers = {}, {}
        for name, way in ways.items():
            lm._forward = way
            started = time.perf_counter()
            answers[name] = lm.next_token(prompts, 200)
            seconds[name] = time.perf_counter() - started
            evaluated[name] = answers[name].usage.tokens_evaluated
        one, other = answers.values()
        difference = max(difference, float(np.abs(one.log_probs - other.log_probs).max()))
        ratios.append(seconds["plain batches"] / seconds["prefix trees"])
        rate = evaluated["prefix trees"] / seconds["prefix trees"]
        click.echo(
            f"round {number + 1}: {ratios[-1]:.2f} times as fast, {rate:.0f} tokens/s in trees"
        )
    click.echo(
        f"prefix trees: {np.median(ratios):.2f} times as fast (from {min(ratios):.2f} to "
        f"{max(ratios):.2f}); tokens evaluated {evaluated}; answers differ by {difference:.5f}; "
        f"{platform.machine()}, {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
