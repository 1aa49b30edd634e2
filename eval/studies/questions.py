"""The same ten questions by letters and at a decision endpoint, beside ten cloze prompts.

    python -m eval.studies.questions --data-dir DIR [--data sst2 --shots 8] [--cost-only]

The LM is the embedded one. By letters it is asked in chats, as any LM is. The decision endpoint is
a server of this file: it speaks ``/v1/systemone`` and asks the same LM in the words in which vLLM
does, one chat turn per question, its probabilities rounded to 0.01 as hosted ones are. So the
study shows what each form costs and what labels add to it, and not what a decision model knows.

Seeds draw their labels from a pool of as many rows per class as the largest number of shots, and
100 test rows are asked about. Without labels a class is scored by the questions that name it, or by
the tokens of cloze prompts that spell its name, each less its mean over the unlabelled pool. No
sentence embeddings are used.
Prices are list prices that are applied to the tokens of these passes: nobody was paid.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

import backends
from backends.decisions import DecisionsBackend
from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.answers.passes import next_tokens
from blackbox.answers.texts import check_texts
from blackbox.backend import BaseBackend
from blackbox.generation.builtin import read_templates
from blackbox.generation.questions import class_questions
from blackbox.lm.prices import price_of
from blackbox.prompts.question import MAX_LETTERED, Question
from blackbox.protocol import ClosedQuestion, Message, RenderedPrompt, TokenLogProbs
from blackbox.spending import Rate
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from blackbox.tables import read_examples
from eval.data.data_sets import PROMPTS
from eval.methods.name_prior import name_scores

DATA_SETS = ("sst2", "agnews", "trec", "banking77")
SHOTS = (8, 32)
SEEDS = (13, 21, 42)
N_TEST, N_PROMPTS = 100, 10
PRICED = {"letters": "gpt-4.1-nano", "decisions": "gpt-6-luna", "cloze": "gpt-4.1-nano"}
"""The models whose list prices are applied."""

_LABEL = "Answer with the letter of one option only."

Scores = NDArray[np.float64]
Text = str | tuple[str, str]


@dataclass
class Way:
    """One way to ask: a backend, its prompts, and the engine whose tokens are counted."""

    name: str
    lm: BaseBackend
    pool: PromptPool
    engine: BaseBackend


class SystemOneServer:
    """A ``/v1/systemone`` over an LM that has chats.

    Parameters
    ----------
    lm : BaseBackend
        Answers by letters.
    """

    def __init__(self, lm: BaseBackend) -> None:
        self._lm, self._lock = lm, threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """The client's `base_url`."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> SystemOneServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a request."""
        asked = {name: _question_of(spec) for name, spec in body["questions"].items()}
        prompts = [_as_chat(body["state"], question) for question in asked.values()]
        with self._lock:
            found = self._lm.next_token(prompts, 200)
            tokens = sum(self._lm.count_tokens(prompts))
        answers = {}
        for row, (name, question) in enumerate(asked.items()):
            listed = Question.of(question.kind, question.instructions, _options_of(question))
            shares = _shares(listed.read(found.take_rows(np.array([row]))), listed)
            answers[name] = _written(question, shares)
        return {"answers": answers, "usage": {"input_tokens": tokens, "output_tokens": len(asked)}}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Print nothing."""

            def do_GET(self) -> None:
                self._send(200, {"object": "list", "data": [{"id": "embedded"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                is_served = self.path == "/v1/systemone"
                found = owner.answer(body) if is_served else {"error": {"message": "not served"}}
                self._send(200 if is_served else 404, found)

            def _send(self, status: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        return Handler


def _question_of(spec: Mapping[str, Any]) -> ClosedQuestion:
    kinds = {"noul": "predicate", "score": "scale", "choice": "choice"}
    options = tuple(spec.get("criteria") or ("yes", "no"))
    return ClosedQuestion(kinds[spec["type"]], spec["instructions"], options)


def _options_of(question: ClosedQuestion) -> Sequence[str]:
    return () if question.kind == "predicate" else question.options


def _as_chat(state: str, question: ClosedQuestion) -> RenderedPrompt:
    letters = map(chr, range(ord("A"), ord("A") + MAX_LETTERED))
    options = [f"{letter}: {o}" for letter, o in zip(letters, question.options, strict=False)]
    lines = [state, "", f"Question: {question.instructions}", *options, _LABEL]
    return RenderedPrompt(messages=(Message("user", "\n".join(lines)),))


def _shares(answer: TokenLogProbs, question: Question) -> dict[str, float]:
    """Return the probability of each option, rounded to 0.01."""
    known = dict(zip(answer.token_ids[0].tolist(), answer.log_probs[0].tolist(), strict=True))
    ids = zip(question.options, question.option_ids, strict=True)
    return {option: round(float(np.exp(known[token])), 2) for option, token in ids}


def _written(question: ClosedQuestion, shares: Mapping[str, float]) -> dict[str, Any]:
    if question.kind == "predicate":
        return {"type": "noul", "noul": shares["yes"]}
    if question.kind == "choice":
        return {"type": "choice", "probabilities": dict(shares)}
    levels = {str(place): shares[option] for place, option in enumerate(question.options)}
    return {"type": "score", "probabilities": levels}


def ten_questions(data: str, names: Sequence[str], lm: BaseBackend) -> PromptPool:
    """Return those about the classes and built-in ones, or the hand-written ones of a data set."""
    path = PROMPTS / f"{data}_questions.txt"
    if path.exists():
        return PromptPool.read(path)
    asked = class_questions(names, None, limits=lm.limits)
    general = read_templates("questions", limits=lm.limits)
    return PromptPool([*asked, *general][:N_PROMPTS])


def without_labels(
    way: Way, pool_texts: Sequence[Text], texts: Sequence[Text], names: Sequence[str]
) -> Scores | None:
    """Return scores of the classes without a label; None where no prompt names them."""
    if way.name == "cloze":
        answers = [
            next_tokens(way.lm, way.pool, check_texts(some), 200) for some in (pool_texts, texts)
        ]
        return name_scores(answers[0], names)(answers[1])
    scored = [_named(way, some, names) for some in (pool_texts, texts)]
    if scored[0] is None or scored[1] is None:
        return None
    return np.asarray(scored[1] - scored[0].mean(axis=0))


def _named(way: Way, texts: Sequence[Text], names: Sequence[str]) -> Scores | None:
    """Return the sum of the log-probabilities of each class in the questions that name it."""
    answers = next_tokens(way.lm, way.pool, check_texts(list(texts)), 200)
    total, n_found = np.zeros((len(texts), len(names))), 0
    for number, question in enumerate(way.pool):
        assert isinstance(question, Question)
        for place, name in enumerate(names):
            if name in question.options and len(question.options) == len(names):
                token = question.option_ids[question.options.index(name)]
            elif question.kind == "predicate" and f'"{name}"' in question.instructions:
                token = question.option_ids[0]
            else:
                continue
            n_found += 1
            is_token = answers.token_ids[number] == token
            values = np.where(is_token, answers.log_probs[number], -np.inf).max(axis=1)
            total[:, place] += values
    return total if n_found else None


@contextmanager
def three_ways(data: str, names: Sequence[str], lm: BaseBackend, out: Path) -> Iterator[list[Way]]:
    """Yield the ways to ask, over one LM."""
    questions = ten_questions(data, names, lm)
    cloze = PromptPool(PromptPool.read(PROMPTS / f"{data}.txt")[:N_PROMPTS])
    import openai

    with SystemOneServer(lm) as server:
        client = openai.OpenAI(base_url=server.url, api_key="none")
        decisions = DecisionsBackend("embedded", client=client, max_concurrency=1)
        stored = StoredBackend(decisions, open_store(out / "passes.sqlite"))
        yield [
            Way("letters", lm, questions, lm),
            Way("decisions", stored, questions, lm),
            Way("cloze", lm, cloze, lm),
        ]


def draw(labels: Sequence[str], shots: int, rng: np.random.Generator) -> list[int]:
    """Return rows with as many labels of each class, or all there are."""
    rows: dict[str, list[int]] = {}
    for row in rng.permutation(len(labels)).tolist():
        rows.setdefault(labels[row], []).append(row)
    return sorted(row for of_label in rows.values() for row in of_label[:shots])


def cost_per_thousand(name: str, tokens: float, n_prompts: int) -> float:
    """Return US dollars per 1,000 texts at the list price of a model, one token written a pass."""
    is_decision = name == "decisions"
    rate = Rate("openai", PRICED[name], host="api.openai.com", is_decisions=is_decision)
    price = price_of(rate)
    if price is None:
        raise click.ClickException("the extra `openai` is needed for its list prices")
    return 1000 * price.of(round(tokens), 0 if is_decision else n_prompts)


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--data", multiple=True, default=DATA_SETS, type=click.Choice(DATA_SETS))
@click.option("--shots", multiple=True, type=int, default=SHOTS, help="Labels per class.")
@click.option("--out", default=Path("results"), type=click.Path(file_okay=False, path_type=Path))
@click.option("--threads", type=int, default=None)
@click.option("--cost-only", is_flag=True, help="Requests, tokens and price, without a training.")
def main(
    data_dir: Path,
    data: tuple[str, ...],
    shots: tuple[int, ...],
    out: Path,
    threads: int | None,
    cost_only: bool,
) -> None:
    """Print a table for each data set."""
    out.mkdir(parents=True, exist_ok=True)
    options = {} if threads is None else {"n_threads": threads}
    engine = backends.load("onnx", **options)
    lm = StoredBackend(engine, open_store(out / "passes.sqlite"))
    for name in data:
        for line in run(name, data_dir, lm, out, () if cost_only else shots):
            click.echo(line)


def run(
    data: str, data_dir: Path, lm: BaseBackend, out: Path, shots: Sequence[int]
) -> Iterator[str]:
    """Yield the lines of one data set's table."""
    train, test = (read_examples(data_dir / data / f"{part}.csv") for part in ("train", "test"))
    pool = draw(train.labels, max(shots, default=0), np.random.default_rng(0))
    texts, labels = [train.texts[row] for row in pool], [train.labels[row] for row in pool]
    tested = np.random.default_rng(0).permutation(len(test.texts))[:N_TEST].tolist()
    asked, truth = [test.texts[row] for row in tested], [test.labels[row] for row in tested]
    classes = sorted(set(train.labels))
    names = [label.replace("_", " ") for label in classes]
    counts = ["no labels", *(f"{n} labels per class" for n in shots)] if shots else []
    head = [data, *counts, "requests a text", "tokens a text", "US$ per 1,000 texts"]
    yield "\n| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    with three_ways(data, names, lm, out) as ways:
        for way in ways:
            cells = []
            if shots:
                scores = without_labels(way, texts, asked, names)
                guessed = None if scores is None else np.array(classes)[scores.argmax(axis=1)]
                cells = ["–" if guessed is None else f"{100 * np.mean(guessed == truth):.0f}"]
            for n in shots:
                found = []
                for seed in SEEDS:
                    rows = draw(labels, n, np.random.default_rng(seed))
                    classifier = PromptBoostingClassifier(
                        way.lm, prompts=way.pool, random_state=seed, store=False, embeddings=None
                    )
                    classifier.fit([texts[row] for row in rows], [labels[row] for row in rows])
                    found.append(100 * np.mean(classifier.predict(asked) == np.array(truth)))
                cells.append(f"{np.mean(found):.1f} ± {np.std(found, ddof=1):.1f}")
            tokens = _tokens_per_text(way, asked)
            cost = cost_per_thousand(way.name, tokens, len(way.pool))
            n_requests = 1 if way.name == "decisions" else len(way.pool)
            cells += [str(n_requests), f"{tokens:.0f}", f"{cost:.3f}"]
            yield f"| {way.name} | " + " | ".join(cells) + " |"


def _tokens_per_text(way: Way, texts: Sequence[str]) -> float:
    """Return the mean number of tokens that all prompts of a text take, as they are sent."""
    rendered = [prompt.render_for(way.lm.limits, text) for text in texts for prompt in way.pool]
    if way.name == "decisions":  # the text once per question, as the server reads it
        questions = [one.question for one in rendered]
        rendered = [
            _as_chat(one.text or "", question)
            for one, question in zip(rendered, questions, strict=True)
            if question is not None
        ]
    return float(np.sum(way.engine.count_tokens(rendered))) / len(texts)


if __name__ == "__main__":
    main()
