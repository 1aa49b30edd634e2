"""OpenAI-compatible APIs: OpenAI, vLLM's server, llama.cpp's server, and others of that kind.

The first use of a backend probes the endpoint: what it really gives decides `limits` and how
requests are written (`backends.api.probe`, `.request_format`). Requests (`.calls`, `.batch_calls`)
run in threads with pace and retries (`.retries`), each charged before it is sent (`.billing`) and
within a deadline (`.transport`); a run whose requests all fail ends after a few (`.circuit`).
Errors and answers are read in one place each (`.errors`, `.responses`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from backends.api.backend import ApiBackend
from backends.api.batch import Batches
from backends.api.batch_calls import PRICE_SHARE, BatchCalls
from backends.api.calls import EndpointCalls, as_part
from backends.api.client import API_KEY_ENV
from backends.api.context import BYTES_A_TOKEN, ContextWindow
from backends.api.listing import ListedModel
from backends.api.probe import Prober
from backends.api.profile import EndpointProfile
from backends.api.request_format import CHAT, COMPLETIONS, RESPONSES, RequestFormat, messages_of
from backends.api.responses import NameOf, as_log_probs
from backends.api.retries import answers_as_they_come
from backends.api.servers import ServerTokenizer, VllmServer
from backends.api.token_estimate import TokenEstimate
from backends.catalogue import cache_directory
from blackbox.errors import ModelNotFoundError
from blackbox.protocol import (
    AnswerParts,
    BackendIdentity,
    DrawParts,
    Draws,
    Limits,
    RenderedPrompt,
    TimeEstimate,
    TokenScores,
    Usage,
    check_served,
    gather_draws,
)

__all__ = ["OpenAIBackend"]

_MAX_SCORED = 128  # of vLLM's server
_BATCH = 1_000_000


class OpenAIBackend(ApiBackend):
    """Forward passes of a model behind an OpenAI-compatible API.

    The key comes from an environment variable or with a client object; it is never a parameter, and
    stands in no pickle, identity or message.

    Parameters
    ----------
    model : str, optional
        The model's name as the server knows it; by default the only one that the server lists.
    base_url : str, optional
        The server's address, such as ``"http://127.0.0.1:8000/v1"``; by default the environment's
        `OPENAI_BASE_URL`, or OpenAI's own.
    api_key_env : str, default="OPENAI_API_KEY"
        The environment variable with the key.
    api_version : str, optional
        The version of Azure's API, such as ``"2024-10-21"``. With it `base_url` is the address of
        the resource and `model` the deployment; Azure's newer address, which ends in
        ``/openai/v1``, needs none.
    default_headers : mapping of str to str, optional
        Headers of every request, as gateways want them. They are no part of the identity: name what
        changes the answers in `revision`.
    client : openai.OpenAI, optional
        The user's own client, for proxies, tokens that expire and the like. Its retries are
        switched off: they are made here. A redirect to another host isn't followed.
    endpoint : {"auto", "chat", "completions", "responses"}, default="auto"
        Which to use. ``"auto"`` sends raw text to completions and conversations to chat, where the
        server has both; and all to responses where neither gives log-probabilities.
    log_probs : bool, default=True
        With False the endpoint is never asked for log-probabilities: it can only `generate`.
    begin_answers : bool, default=True
        With False no answer of a chat is begun, also where that is possible.
    largest_top_k : int, default=200
        Tokens that the probe asks for; the server may give fewer.
    context_length : int, optional
        Tokens that a prompt may have; by default what the server tells, else 8192. Longer texts are
        cut. Where the server has no tokenizer, four bytes of a text count as one token at first,
        and fewer where reports and refusals show it (`backends.api.context`).
    document_start : str, optional
        What stands before each raw text; by default it is found out where the server has a
        tokenizer, and empty elsewhere.
    max_concurrency : int, default=16
        Requests at a time.
    requests_per_minute, tokens_per_minute : float, optional
        The account's limits. Tokens are estimated from the bytes of a prompt.
    max_attempts : int, default=6
        Tries of a request, on 408, 409, 425, 429, 5xx, broken connections and broken answers. A
        rate limit (429) is waited out for more than a minute, also with more tries.
    timeout : float, default=60.0
        Seconds that one try may take, from connecting to the last byte of the response.
    revision : str, default=""
        A name that keeps apart answers of models which a server gives the same name.
    extra_body : mapping, optional
        More fields of each request; part of the identity, with a digest in the place of each value
        that looks like a credential.
    images : bool, default=False
        Find out by two more requests of the probe how the model takes images, which it must see.
    max_image_side : int, optional
        Pixels of the longest side to which a larger image is resized, which is part of the
        identity; by default none is resized.
    batch : bool, default=False
        Send forward passes through the batch endpoint: cheaper, within a day. Interrupted, the
        same work finds its batches again.
    batch_folder : path, optional
        Where it is written down which batches run; by default in the user's cache directory.
    poll_seconds : float, default=10.0
        Time between two looks at a batch, at first.

    Raises
    ------
    MissingDependencyError
        If the `openai` package is not installed.
    BackendError
        If there is no key. On first use: if the endpoint gives no log-probabilities.
    """

    environment = ("OPENAI_API_KEY", "OPENAI_BASE_URL")
    context_option = "context_length"
    image_option = "images"

    def __init__(
        self,
        model: str | None = None,
        *,
        base_url: str | None = None,
        api_key_env: str = API_KEY_ENV,
        api_version: str | None = None,
        default_headers: Mapping[str, str] | None = None,
        client: Any = None,
        endpoint: str = "auto",
        log_probs: bool = True,
        begin_answers: bool = True,
        largest_top_k: int = 200,
        context_length: int | None = None,
        document_start: str | None = None,
        max_concurrency: int = 16,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        max_attempts: int = 6,
        timeout: float = 60.0,
        revision: str = "",
        extra_body: Mapping[str, Any] | None = None,
        images: bool = False,
        max_image_side: int | None = None,
        batch: bool = False,
        batch_folder: str | os.PathLike[str] | None = None,
        poll_seconds: float = 10.0,
    ) -> None:
        if endpoint not in ("auto", "chat", "completions", "responses"):
            raise ValueError(
                f"endpoint must be auto, chat, completions or responses, got {endpoint!r}"
            )
        for name, number in (("max_concurrency", max_concurrency), ("max_attempts", max_attempts)):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {number!r}")
        options = {
            "model": model,
            "base_url": base_url,
            "api_key_env": api_key_env,
            "api_version": api_version,
            "default_headers": dict(default_headers or {}),
            "endpoint": endpoint,
            "log_probs": log_probs,
            "begin_answers": begin_answers,
            "largest_top_k": largest_top_k,
            "context_length": context_length,
            "document_start": document_start,
            "max_concurrency": max_concurrency,
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "max_attempts": max_attempts,
            "timeout": timeout,
            "revision": revision,
            "extra_body": dict(extra_body or {}),
            "images": images,
            "max_image_side": max_image_side,
            "batch": batch,
            "batch_folder": os.fspath(batch_folder) if batch_folder is not None else None,
            "poll_seconds": poll_seconds,
        }
        super().__init__(options, client)
        self._found: EndpointProfile | None = None
        self._calls: EndpointCalls | None = None
        self._context = ContextWindow("", None, None)  # of the probe's prompts
        self._identity: BackendIdentity | None = None
        self._listed = ListedModel(model or "")
        self._tokenizer: ServerTokenizer | None = None
        self._name_of: NameOf | None = None
        self._estimate = TokenEstimate([])

    @property
    def identity(self) -> BackendIdentity:  # type: ignore[override]
        """Who answers; the first use probes the endpoint."""
        self.probe()
        assert self._identity is not None
        return self._identity

    @property
    def limits(self) -> Limits:  # type: ignore[override]
        """The limits of what is served; the first use probes the endpoint."""
        found = self.probe()
        wire = found.wire
        batch = self._options["batch"]
        scores = isinstance(self._tokenizer, VllmServer) and RESPONSES not in wire.endpoints
        return Limits(
            max_top_k=found.max_top_k,
            max_score_ids=_MAX_SCORED if scores else 0,
            context_length=self._context.length,
            deterministic=False,
            raw_text=True,
            chat=bool({CHAT, RESPONSES} & wire.endpoints),
            answer_prefix=wire.begun is not None,
            generates=True,
            counts_tokens=self._tokenizer is not None,
            bytes_per_token=1.0 if self._tokenizer else BYTES_A_TOKEN,
            max_attempts=self._options["max_attempts"],
            charges_tries=True,
            draws_at_once=self._endpoint().draws_at_once,
            tokens_written=wire.written,
            # all requests belong into one batch, at half the price
            requests_at_a_time=_BATCH if batch else None,
            price_share=PRICE_SHARE if batch else 1.0,
            api_host=self._server.public_host,
            images=found.images,
            max_image_side=wire.max_image_side,
            tokens_per_image=found.tokens_per_image,
            tokens_per_megapixel=found.tokens_per_megapixel,
        )

    def probe(self) -> EndpointProfile:
        """Return what the endpoint gives, found out once with a few requests of a few tokens.

        Raises
        ------
        BackendError
            If it gives no log-probabilities, doesn't know the model, or can't be reached; the
            message names provider, model and field.
        """
        with self._lock:
            if self._found is None:
                self._found = self._probe()
                self._identity = self._server.identify(
                    self._found, self._listed, self._options["revision"]
                )
                given, listed = self._options["context_length"], self._listed.context_length
                counts = self._tokenizer is not None
                self._context = ContextWindow(self._server.who, given, listed, counts=counts)
                self._calls = EndpointCalls(
                    self._server,
                    self._found.wire,
                    self._tokenizer,
                    self._name_of,
                    self._context,
                    self._estimate,
                    draws_at_once=self._found.draws_at_once,
                )
            return self._found

    def describe(self) -> dict[str, Any]:
        """Return what the probe found, as JSON data for people and programs."""
        found = self.probe().as_dict()
        return {
            "provider": self.identity.provider,
            "model": self.identity.model,
            **found,
            "context_length": self._context.shown,
            "document_start": self.probe().wire.document_start,
            "tokenizer": "the server's own" if self._tokenizer else "none: tokens are estimated",
        }

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield the most likely next tokens in parts, as they are answered; see `BaseBackend`."""
        check_served(self.limits, prompts, top_k)
        if self._options["batch"]:
            with self._stoppable() as stop:
                yield from self._batch_calls().iter_next_token(prompts, top_k, stop)
            return
        order = sorted(range(len(prompts)), key=lambda row: _sort_key(prompts[row]))
        jobs = [prompts[row] for row in order]
        started = time.perf_counter()

        def ask(prompt: RenderedPrompt, stop: threading.Event) -> list[Any]:
            return [self._endpoint().distribution(prompt, top_k, stop)]

        for part in self._in_threads(jobs, ask):
            where = [order[place] for place, _ in part]
            yield where, as_part([answer for _, answer in part], top_k, started)
            started = time.perf_counter()

    def score(self, prompts: Sequence[RenderedPrompt], token_ids: Sequence[int]) -> TokenScores:
        """Return the log-probabilities of given tokens, where the server is vLLM's."""
        if not self.limits.max_score_ids:
            return super().score(prompts, token_ids)
        check_served(self.limits, prompts)
        wanted = [int(token) for token in token_ids]
        scores = np.full((len(prompts), len(wanted)), np.nan, np.float32)
        errors: dict[int, str] = {}
        usage = Usage()
        started = time.perf_counter()

        def ask(prompt: RenderedPrompt, stop: threading.Event) -> list[Any]:
            fields = {"logprob_token_ids": wanted}
            return [self._endpoint().distribution(prompt, len(wanted), stop, fields)]

        for part in self._in_threads(list(prompts), ask):
            for row, (read, wasted) in part:
                usage += wasted
                if isinstance(read, str):
                    errors[row] = read
                    continue
                usage += as_log_probs([read], 1).usage
                known = {token: value for token, _, value in read.tokens}
                if not known.keys() >= set(wanted):
                    errors[row] = "the server tells other tokens than those that were asked for"
                    continue
                scores[row] = [known[token] for token in wanted]
        usage.seconds_lm = time.perf_counter() - started
        return TokenScores(scores, errors, usage)

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
        """Return texts that the LM writes; see `BaseBackend`.

        All draws of a prompt come from one request, so that its tokens are paid for once; they
        share the seed ``seed + first``, which not every provider keeps to.
        """
        parts = self.iter_generate(
            prompts, n, max_tokens=max_tokens, temperature=temperature, seed=seed, first=first
        )
        return gather_draws(parts, len(prompts))

    def iter_generate(
        self,
        prompts: Sequence[RenderedPrompt],
        n: int = 1,
        *,
        max_tokens: int = 32,
        temperature: float = 1.0,
        seed: int = 0,
        first: int = 0,
    ) -> DrawParts:
        """Yield texts that the LM writes in parts, as they are answered; see `generate`."""
        check_served(self.limits, prompts)
        started = time.perf_counter()

        def write(
            prompt: RenderedPrompt, stop: threading.Event
        ) -> Iterator[tuple[list[str], str | None, Usage]]:
            return self._endpoint().texts(prompt, n, max_tokens, temperature, seed + first, stop)

        for part in self._in_threads(list(prompts), write):
            texts = [some for _, (some, _, _) in part]
            refused = {place: why for place, (_, (_, why, _)) in enumerate(part) if why is not None}
            usage = sum((took for _, (_, _, took) in part), Usage())
            usage.seconds_lm = time.perf_counter() - started
            yield [row for row, _ in part], Draws(texts, refused, usage)
            started = time.perf_counter()

    def describe_context(self) -> str:
        """Return how many tokens a prompt may have, how that is known, and the option for it."""
        self.probe()
        return f"{self._context.words}; --backend-option {self.context_option}=N changes that"

    def count_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the number of tokens of each prompt, where the server has a tokenizer.

        Those of an image are an estimate.
        """
        wire, tokenizer = self.probe().wire, self._tokenizer
        if tokenizer is None:
            return super().count_tokens(prompts)
        limits = self.limits
        return [
            len(tokenizer.encode(prompt, wire)) + limits.tokens_of_image(prompt)
            for prompt in prompts
        ]

    def estimate_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the tokens of each prompt as it is sent, instruction and chat template included.

        Counted where the server has a tokenizer, else estimated; see `TokenEstimate`.
        """
        wire = self.probe().wire
        if self._tokenizer is not None:
            return self.count_tokens(prompts)
        limits = self.limits
        return [
            self._estimate.count(prompt, wire) + limits.tokens_of_image(prompt)
            for prompt in prompts
        ]

    def estimate_seconds(
        self, calls: Sequence[Sequence[RenderedPrompt]], n_tokens: float
    ) -> TimeEstimate:
        """Return about how long calls take, by the requests that were answered so far."""
        if self._options["batch"]:
            return TimeEstimate(None, "a batch is answered within a day")
        return super().estimate_seconds(calls, n_tokens)

    def show(self, prompt: RenderedPrompt) -> tuple[str, list[int] | None]:
        """Return the text that is sent for a prompt, and its token ids where the server tells."""
        wire = self.probe().wire
        if prompt.image is not None:
            return super().show(prompt)[0], None
        if wire.path_of(prompt) == COMPLETIONS:
            text = wire.document_start + (prompt.text or "")
        else:
            turns = messages_of(prompt, wire.begun is not None)
            text = "\n".join(f"<{turn['role']}> {turn['content']}" for turn in turns)
        return text, self._tokenizer.encode(prompt, wire) if self._tokenizer else None

    def _in_threads(
        self,
        jobs: list[RenderedPrompt],
        ask: Callable[[RenderedPrompt, threading.Event], Iterable[Any]],
    ) -> Iterator[list[tuple[int, Any]]]:
        with self._stoppable() as stop:
            yield from answers_as_they_come(jobs, ask, self._options["max_concurrency"], stop)

    def _endpoint(self) -> EndpointCalls:
        self.probe()
        assert self._calls is not None
        return self._calls

    def _batch_calls(self) -> BatchCalls:
        folder = self._options["batch_folder"] or cache_directory() / "batches"
        batches = Batches(self._server, Path(folder), self._options["poll_seconds"])
        wire, name_of = self.probe().wire, self._name_of
        return BatchCalls(
            self._server,
            batches,
            wire,
            self.identity,
            name_of,
            self._context,
            self._options["max_attempts"],
        )

    def _probe(self) -> EndpointProfile:
        self._listed = self._server.look_up()
        wire = RequestFormat(
            model=self._listed.model,
            extra=self._options["extra_body"],
            max_image_side=self._server.max_image_side,
        )
        self._tokenizer = self._server.find_tokenizer(self._listed)
        start = self._options["document_start"]
        if start is None:
            start = self._tokenizer.document_start if self._tokenizer else ""
        wire = replace(wire, document_start=start)
        if self._tokenizer is not None:
            wire = replace(
                wire,
                extra={**self._tokenizer.fields, **wire.extra},
                reading_temperature=self._tokenizer.reading_temperature,
            )

        prober = Prober(
            partial(self._server.send_form, listed=self._listed.answered),
            self._server.who,
            self._options["largest_top_k"] if self._options["log_probs"] else 0,
            begin_answers=self._options["begin_answers"],
            forces=self._tokenizer is None or self._tokenizer.forces,
            name_of=self._tokenizer.name_of if self._tokenizer else None,
            find_names=partial(self._server.find_names, self._listed.model),
            images=self._options["images"],
        )
        try:
            found = prober.run(wire, self._options["endpoint"])
        except ModelNotFoundError as error:
            hint = self._server.name_hint() or self._server.address_hint()
            raise ModelNotFoundError(f"{error}{hint}") from error

        self._name_of = prober.name_of
        self._estimate = TokenEstimate(prober.reports)
        return found


def _sort_key(prompt: RenderedPrompt) -> str:
    """Prompts that begin alike stand together, for servers that keep what they have evaluated."""
    image = prompt.image.digest if prompt.image is not None else ""
    return image + (prompt.text or "\0".join(message.content for message in prompt.messages))
