"""A simulation: calibration at a decision endpoint, the endpoint's own and ours after labels.

    python -m eval.studies.endpoint_calibration [--seed 1 --seed 2 …]

No language model and no provider is asked. A simulated endpoint sees evidence of each text's class,
K Gaussians of unit variance of which the true class's has mean `SIGNAL`, so that the true posterior
is known. On the *known* task it tells that posterior; on the *unknown* one it is overconfident (its
logits are multiplied) and prefers some classes. Probabilities are rounded to 0.01, as hosted
endpoints do. Five questions are asked: the choice, and a predicate per class with noise of its own.
Classes have as many
labels each. The training is the real one, through `PromptBoostingClassifier`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import count, islice

import click
import numpy as np
from numpy.typing import NDArray

from blackbox import PromptBoostingClassifier
from blackbox.metrics import expected_calibration_error
from blackbox.prompts.question import Question
from blackbox.protocol import BackendIdentity, Limits, RenderedPrompt, TokenLogProbs, Usage

CLASSES = ("billing", "delivery", "quality", "other")
TASKS = {"known": (1.0, 0.0), "unknown": (3.0, 1.5)}
"""By what logits are multiplied, and the largest preference that is added to a class."""

SIZES = (20, 48, 100, 200)
SEEDS = (1, 2, 3, 4, 5)
SIGNAL, NOISE, STEP = 1.5, 0.5, 0.01
N_TEST = 1000

Array = NDArray[np.float64]


@cache
def evidence(text: str) -> tuple[int, Array]:
    """Return the true class of a text, and the log-posterior of the classes without a constant."""
    rng = np.random.default_rng(_number(text))
    label = int(rng.integers(len(CLASSES)))
    seen = rng.standard_normal(len(CLASSES)) + SIGNAL * (np.arange(len(CLASSES)) == label)
    return label, SIGNAL * seen


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class SimulatedEndpoint:
    """A decision endpoint whose answers are drawn from `evidence`.

    Parameters
    ----------
    task : str
        A key of `TASKS`.
    """

    def __init__(self, task: str) -> None:
        self._sharpness, preference = TASKS[task]
        self._preferences = preference * np.linspace(-1, 1, len(CLASSES))
        self.identity = BackendIdentity("simulated", "decisions", task)
        self.limits = Limits(255, 0, 8192, True, raw_text=False, questions=True)

    def own(self, text: str) -> Array:
        """Return the probabilities of the classes as the endpoint tells them."""
        logits = self._sharpness * evidence(text)[1] + self._preferences
        return _rounded(_softmax(logits))

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """Return the answers to questions."""
        questions = [prompt.question for prompt in prompts]
        options = [question.options for question in questions if question is not None]
        answers = [self._answer(prompt) for prompt in prompts]
        return TokenLogProbs.of_options(options, answers, {}, Usage(passes_made=len(prompts)))

    def _answer(self, prompt: RenderedPrompt) -> Array:
        assert prompt.question is not None
        told = self.own(prompt.text or "")
        if prompt.question.kind == "predicate":
            place = next(n for n, c in enumerate(CLASSES) if c in prompt.question.instructions)
            rng = np.random.default_rng(_number(f"{prompt.text} {place}"))
            share = np.clip(told[place], STEP / 2, 1 - STEP / 2)
            logit = np.log(share / (1 - share)) + NOISE * rng.standard_normal()
            told = _rounded(_softmax(np.array([logit, 0.0])))
        return np.maximum(told, STEP / 2)


def _softmax(logits: Array) -> Array:
    shares: Array = np.exp(logits - logits.max())
    return np.asarray(shares / shares.sum())


def _rounded(shares: Array) -> Array:
    return np.round(shares / STEP) * STEP


def questions() -> list[Question]:
    """Return the choice among the classes, and a predicate for each."""
    choice = Question.of("choice", "What is the message about?", CLASSES)
    return [choice, *(Question.of("predicate", f"It is about {name}.") for name in CLASSES)]


@click.command()
@click.option("--seed", multiple=True, type=int, default=SEEDS)
def main(seed: tuple[int, ...]) -> None:
    """Print the table."""
    texts = [f"test {number}" for number in range(N_TEST)]
    truth = np.array([evidence(text)[0] for text in texts])
    sizes = " | ".join(f"ours, {n} labels" for n in SIZES)
    click.echo(f"| task | measure | endpoint's own | {sizes} |\n|---|---|---{'|---' * len(SIZES)}|")
    for task in TASKS:
        endpoint = SimulatedEndpoint(task)
        own = np.array([endpoint.own(text) for text in texts])
        own /= own.sum(axis=1, keepdims=True)
        found = {n: [_trained(endpoint, n, one, texts) for one in seed] for n in SIZES}
        for measure, of in (("ECE", expected_calibration_error), ("accuracy", _accuracy)):
            cells = [f"{of(truth, own):.3f}"]
            for n in SIZES:
                values = [of(truth, probabilities) for probabilities in found[n]]
                cells.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}")
            click.echo(f"| {task} | {measure} | " + " | ".join(cells) + " |")


def _trained(endpoint: SimulatedEndpoint, n: int, seed: int, texts: Sequence[str]) -> Array:
    """Return probabilities of the test texts after a training on n labels, in order of classes."""
    rows = [
        text
        for place in range(len(CLASSES))
        for text in islice(_texts_of(place, seed), n // len(CLASSES))
    ]
    labels = [evidence(text)[0] for text in rows]
    classifier = PromptBoostingClassifier(
        endpoint,
        prompts=questions(),
        label_words={place: [name] for place, name in enumerate(CLASSES)},
        store=False,
        embeddings=None,
        random_state=seed,
    )
    return np.asarray(classifier.fit(rows, labels).predict_proba(list(texts)))


def _texts_of(place: int, seed: int) -> Iterator[str]:
    """Yield the texts of one class, without an end."""
    texts = (f"train {seed} {number}" for number in count())
    return (text for text in texts if evidence(text)[0] == place)


def _accuracy(truth: NDArray[np.intp], probabilities: Array) -> float:
    return float(np.mean(probabilities.argmax(axis=1) == truth))


if __name__ == "__main__":
    main()
