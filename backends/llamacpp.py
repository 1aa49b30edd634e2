"""Any GGUF model in this process, through llama.cpp (`xllamacpp`).

The engine keeps the last sequence of each of its slots and evaluates only what follows the longest
prefix that a new one shares with it. So the prompts of a call are put in the order of their token
ids, which is a walk through their prefix tree, and the walk is cut into one stretch per slot where
that repeats few tokens: each text is evaluated about once for all prompts that begin with it, and
as many slots work at a time as there is work for.

With `mmproj`, the file that llama.cpp's models for images have beside them, prompts may have an
image, which a slot keeps as it keeps a text.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.catalogue import CATALOGUE, Q8_0, find, pull, sha256_of
from backends.image_tokens import image_token_line
from backends.llamacpp_server import AHEAD, LlamaCppServer
from backends.llamacpp_tokenizer import ImageSequence, LlamaCppTokenizer
from backends.openmp import available_cores, passive_waiting
from backends.prefixes import common_prefix_length
from blackbox.backend import BaseBackend
from blackbox.errors import BackendError, MissingDependencyError, ModelNotFoundError
from blackbox.images import checked_side
from blackbox.protocol import (
    NO_TOKEN,
    AnswerParts,
    BackendIdentity,
    Draws,
    Limits,
    RenderedPrompt,
    TokenLogProbs,
    Usage,
    check_served,
)

__all__ = ["DEFAULT_MODEL", "LlamaCppBackend"]

DEFAULT_MODEL = "smollm2-135m"

_MAX_TOP_K = 1000  # more would spend longer on writing the answer than on the forward pass
_PART = 32  # answers that are handed over together
_AGAIN = 0.1  # of what must be read: more isn't read twice to keep more slots busy


class LlamaCppBackend(BaseBackend):
    """Forward passes of a GGUF model on this machine.

    Parameters
    ----------
    model : str, default="smollm2-135m"
        A name in the catalogue, fetched on first use, or the path of a ``.gguf`` file.
    context_length : int, default=2048
        Tokens that one prompt may have; memory grows with it.
    n_slots : int, default=8
        Prompts that the engine works on at a time.
    n_threads : int, optional
        Threads; by default the processor cores that this process may use.
    mmproj : str or path, optional
        The GGUF file with the vision encoder of `model`, which is then asked about images, too.
    max_image_side : int, optional
        Pixels of the longest side to which a larger image is resized before the model's own
        processing, which is part of the identity; by default none is resized.
    progress : callable, optional
        Called with (what, done, total) while a catalogue model is made ready.

    Raises
    ------
    MissingDependencyError
        If `xllamacpp` is not installed.
    ModelNotFoundError
        If the model can't be found, fetched or read.
    """

    context_option = "context_length"
    survives_fork = False

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        context_length: int = 2048,
        n_slots: int = 8,
        n_threads: int | None = None,
        mmproj: str | os.PathLike[str] | None = None,
        max_image_side: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        try:
            with passive_waiting("xllamacpp"):
                import xllamacpp
        except ImportError as error:
            raise MissingDependencyError(
                "llama.cpp needs xllamacpp: pip install 'promptboosting[llamacpp]'"
            ) from error
        self._options: dict[str, Any] = {
            "model": os.fspath(model) if model is not None else DEFAULT_MODEL,
            "context_length": context_length,
            "n_slots": n_slots,
            "n_threads": n_threads,
            "mmproj": None if mmproj is None else os.fspath(mmproj),
            "max_image_side": max_image_side,
        }
        path, name = _locate(self._options["model"], progress)
        self._n_slots = n_slots
        of_images = None if mmproj is None else _gguf_file(self._options["mmproj"])
        self._server = LlamaCppServer(
            xllamacpp,
            path,
            of_images,
            context_length=context_length,
            n_slots=n_slots,
            n_threads=n_threads or available_cores(),
        )
        properties = self._server.get("/props")
        self._tokenizer = LlamaCppTokenizer(
            self._server.post, properties, checked_side(max_image_side)
        )
        self._harmless = self._tokenizer.encode_raw(" a")[-1]
        self._token_bytes: dict[int, bytes] = {}
        self._busy = threading.Lock()
        self.identity = BackendIdentity(
            provider="llamacpp",
            endpoint="in-process",
            model=name,
            # a GGUF file holds weights, tokenizer and chat template
            weights_digest=sha256_of(path),
            extra={
                "document_start": self._tokenizer.start_piece,
                **(self._of_images(of_images, properties) if of_images else {}),
            },
            engine=f"xllamacpp {xllamacpp.__version__}",
        )
        self.limits = Limits(
            max_top_k=_MAX_TOP_K,
            max_score_ids=0,
            context_length=context_length,
            deterministic=False,
            raw_text=True,
            chat=True,
            answer_prefix=True,
            generates=True,
            counts_tokens=True,
            shares_prefixes=True,
            **(self._limits_of_images() if of_images else {}),
        )

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield the most likely next tokens in parts, as they are answered; see `BaseBackend`."""
        check_served(self.limits, prompts, top_k)
        # slots belong to one call at a time, or two calls would spoil each other's prefixes
        with self._busy:
            yield from self._answer(prompts, top_k)

    def generate(
        self,
        prompts: Sequence[RenderedPrompt],
        n: int = 1,
        *,
        max_tokens: int = 32,
        temperature: float = 1.0,
        seed: int = 0,
        first: int = 0,
    ) -> Draws:
        """Return texts that the LM writes; see `BaseBackend`."""
        check_served(self.limits, prompts)
        started = time.perf_counter()
        usage, errors = Usage(), dict[int, str]()
        texts: list[list[str]] = [[] for _ in prompts]
        jobs = []
        for row, prompt in enumerate(prompts):
            sequence = self._tokenizer.encode(prompt)
            if reason := self._refusal(sequence, max_tokens):
                errors[row] = reason
                continue
            jobs += [(row, sequence, seed + number) for number in range(first, first + n)]

        def draw(job: tuple[int, list[int], int]) -> dict[str, Any]:
            return self._server.complete(
                {
                    "prompt": self._sent(job[1]),
                    "n_predict": max_tokens,
                    "temperature": temperature,
                    "seed": job[2] % 2**32,
                    "cache_prompt": True,
                }
            )

        with self._busy, ThreadPoolExecutor(self._n_slots, "llamacpp") as pool:
            for (row, sequence, _), answer in zip(jobs, pool.map(draw, jobs), strict=True):
                texts[row].append(answer["content"])
                usage.passes_made += answer["timings"]["predicted_n"]
                usage.tokens += len(sequence)
                usage.tokens_evaluated += answer["timings"]["prompt_n"]
        usage.seconds_lm = time.perf_counter() - started
        return Draws(texts, errors, usage)

    def count_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the number of tokens of each prompt, special ones included."""
        return [len(self._tokenizer.encode(prompt)) for prompt in prompts]

    def show(self, prompt: RenderedPrompt) -> tuple[str, list[int]]:
        """Return the exact text and token ids of a prompt; those of an image are `NO_TOKEN`."""
        text = self._tokenizer.text_of(prompt)
        start = "" if prompt.messages else self._tokenizer.start_piece
        return start + text, [max(token, NO_TOKEN) for token in self._tokenizer.encode(prompt)]

    def _answer(
        self, prompts: Sequence[RenderedPrompt], top_k: int
    ) -> Iterator[tuple[list[int], TokenLogProbs]]:
        started = time.perf_counter()
        sequences = [self._tokenizer.encode(prompt) for prompt in prompts]
        refused = {
            row: reason
            for row, sequence in enumerate(sequences)
            if (reason := self._refusal(sequence))
        }
        if refused:
            yield _refusals(refused)
        served = [row for row in range(len(prompts)) if row not in refused]
        stretches, least = _schedule(served, sequences, self._n_slots)
        pending = Usage(tokens_least=least)
        for answers in self._run(stretches, sequences, top_k):
            now = time.perf_counter()
            pending.seconds_lm, started = now - started, now
            yield self._part(answers, sequences, top_k, pending)
            pending = Usage()

    def _refusal(self, sequence: list[int], more: int = 1) -> str:
        """Return why a prompt isn't answered, or nothing; `more` places are for what is written."""
        limit = self.limits.context_length - more
        if not sequence:
            return "no tokens: the LM needs at least one"
        if len(sequence) > limit:
            return f"{len(sequence)} tokens, the context holds {limit}"
        if isinstance(sequence, ImageSequence) and sequence.ends_with_image:
            return "llama.cpp takes no prompt that ends with its image: put words after {image}"
        return ""

    def _sent(self, sequence: list[int]) -> Any:
        """Return a prompt as a request has it."""
        if isinstance(sequence, ImageSequence):
            image = self._tokenizer.image_data(sequence.image)
            return {"prompt_string": sequence.text, "multimodal_data": [image]}
        return sequence

    def _run(
        self, stretches: list[list[int]], sequences: list[list[int]], top_k: int
    ) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        """Yield the answers of all slots, some at a time; closing it stops the threads.

        Each slot has the next requests waiting in the engine, so that it never runs dry: what a
        batch costs hardly depends on how many slots have work in it.
        """
        answered: queue.SimpleQueue[tuple[int, dict[str, Any]] | BaseException] = (
            queue.SimpleQueue()
        )
        stop = threading.Event()

        def follow(slot: int, rows: Iterator[int], turn: threading.Lock) -> None:
            try:
                while not stop.is_set():
                    with turn:
                        row = next(rows, None)
                    if row is None:
                        return
                    answered.put((row, self._request(sequences[row], top_k, slot)))
            except BaseException as error:
                answered.put(error)

        left = sum(map(len, stretches))
        with ThreadPoolExecutor(AHEAD * self._n_slots, "llamacpp") as pool:
            try:
                for slot, stretch in enumerate(stretches):
                    rows, turn = iter(stretch), threading.Lock()
                    for _ in range(AHEAD):
                        pool.submit(follow, slot, rows, turn)
                while left:
                    part: list[tuple[int, dict[str, Any]]] = []
                    while len(part) < min(left, _PART):
                        answer = answered.get()
                        if isinstance(answer, BaseException):
                            raise answer
                        part.append(answer)
                    left -= len(part)
                    yield part
            finally:
                stop.set()

    def _request(self, sequence: list[int], top_k: int, slot: int) -> dict[str, Any]:
        return self._server.complete(
            {
                "prompt": self._sent(sequence),
                "n_predict": 1,
                "n_probs": top_k,
                "temperature": 0.0,
                "cache_prompt": True,
                "id_slot": slot,
                # When the most likely token ends the text or is half a character, the answer would
                # have no log-probabilities. Forcing a harmless token leaves those reported as they
                # are: they are taken before the bias.
                "logit_bias": [[self._harmless, 100.0]],
            }
        )

    def _part(
        self,
        answers: list[tuple[int, dict[str, Any]]],
        sequences: list[list[int]],
        top_k: int,
        usage: Usage,
    ) -> tuple[list[int], TokenLogProbs]:
        where = [row for row, _ in answers]
        ids = np.full((len(answers), top_k), NO_TOKEN, np.int32)
        values = np.full((len(answers), top_k), -np.inf, np.float32)
        for place, (row, answer) in enumerate(answers):
            logprobs = answer.get("completion_probabilities")
            if not logprobs:
                raise BackendError("llama.cpp answered without log-probabilities")
            top = logprobs[0]["top_logprobs"][:top_k]
            ids[place, : len(top)] = [token["id"] for token in top]
            values[place, : len(top)] = [token["logprob"] for token in top]
            for token in top:
                if token["id"] not in self._token_bytes:
                    self._token_bytes[token["id"]] = bytes(token["bytes"])
            usage.passes_made += 1
            usage.tokens += len(sequences[row])
            usage.tokens_evaluated += answer["timings"]["prompt_n"]
        # a few thousandths above zero come from rounding inside the engine's softmax
        np.minimum(values, 0, out=values)
        known = {token: self._token_bytes[token] for token in np.unique(ids[ids >= 0]).tolist()}
        return where, TokenLogProbs(ids, values, known, {}, usage)

    def _of_images(self, path: Path, properties: dict[str, Any]) -> dict[str, str]:
        """Return what the identity says of how images are prepared."""
        if not properties.get("modalities", {}).get("vision"):
            raise ModelNotFoundError(
                f"{path.name} has no vision encoder: is it the model's mmproj?"
            )
        side = self._tokenizer.max_image_side
        return {"mmproj": sha256_of(path), **({"max_image_side": str(side)} if side else {})}

    def _limits_of_images(self) -> dict[str, Any]:
        side = self._tokenizer.max_image_side
        per_image, per_megapixel = image_token_line(self._tokenizer.count_image_tokens, side)
        return {
            "images": True,
            "max_image_side": side,
            "tokens_per_image": per_image,
            "tokens_per_megapixel": per_megapixel,
        }

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[dict[str, Any]]]:
        return _reload, (self._options,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity.model!r})"


def _locate(model: str, progress: Callable[[str, int, int], None] | None) -> tuple[Path, str]:
    if model in CATALOGUE:
        return pull(model, Q8_0, progress=progress), model
    if not model.endswith(".gguf") and not Path(model).expanduser().exists():
        find(model)
    path = _gguf_file(model)
    return path, path.stem


def _gguf_file(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise ModelNotFoundError(f"{name}: no such file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelNotFoundError(f"{name} is not a GGUF file")
    return path


def _schedule(
    rows: list[int], sequences: list[list[int]], n_slots: int
) -> tuple[list[list[int]], int]:
    """Return stretches of the prefix tree's walk, one per slot, and the tree's size in tokens."""
    order = sorted(rows, key=sequences.__getitem__)
    costs = np.zeros(len(order), np.int64)
    for place, row in enumerate(order):
        known = common_prefix_length(sequences[order[place - 1]], sequences[row]) if place else 0
        # the last token is evaluated anew even when all of it is known: its logits are wanted
        costs[place] = max(len(sequences[row]) - known, 1)
    cuts = _cuts(costs, np.array([len(sequences[row]) for row in order]) - costs, n_slots)
    borders = [0, *cuts, len(order)]
    stretches = [order[start:end] for start, end in itertools.pairwise(borders) if start < end]
    return stretches, int(costs.sum())


def _cuts(costs: NDArray[np.int64], again: NDArray[np.int64], n_slots: int) -> list[int]:
    """Return where to cut a walk into stretches of about the same cost, at most one per slot.

    Parameters
    ----------
    costs : int array of shape (n,)
        Tokens that each request adds to what was read before it.
    again : int array of shape (n,)
        Tokens that are read again where the walk is cut before it.
    n_slots : int
        With fewer slots less is read again; one slot needs no cut.
    """
    before, least = np.cumsum(costs) - costs, int(costs.sum())
    for n in range(n_slots, 1, -1):
        wanted = np.arange(1, n) * least / n
        # a token that is read again and one that a slot has more than its share cost the same
        loss = again + np.abs(before - wanted[:, None])
        cuts = np.unique(loss.argmin(axis=1)) if len(costs) else np.zeros(0, np.intp)
        if again[cuts].sum() <= _AGAIN * least:
            return [int(cut) for cut in cuts]
    return []


def _refusals(reasons: dict[int, str]) -> tuple[list[int], TokenLogProbs]:
    rows = list(reasons)
    nothing = np.full((len(rows), 1), NO_TOKEN, np.int32)
    minus_infinity = np.full((len(rows), 1), -np.inf, np.float32)
    errors = {place: reasons[row] for place, row in enumerate(rows)}
    return rows, TokenLogProbs(nothing, minus_infinity, {}, errors)


def _reload(options: dict[str, Any]) -> Any:
    import backends

    return backends.load("llamacpp", **{k: v for k, v in options.items() if v is not None})
