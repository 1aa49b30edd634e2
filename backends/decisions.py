"""Decision endpoints: questions with closed options about a text, one probability per option.

OpenAI's ``/v1/decisions`` and the ``/v1/systemone`` of vLLM, SGLang, llama.cpp and hosted providers
(`backends.api.decision_calls` has both forms). All questions about a text go in one request, in
threads, each request charged before it is sent and within a deadline, as those of
`backends.openai`. The first use probes which form is served, whether answers repeat, and how
probabilities are rounded.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.api.backend import ApiBackend
from backends.api.client import API_KEY_ENV
from backends.api.context import BYTES_A_TOKEN, ContextWindow
from backends.api.decision_calls import (
    FORMS,
    DecisionAnswer,
    DecisionCalls,
    DecisionForm,
    DecisionPart,
    grid_of,
    read_answers,
)
from backends.api.errors import RejectedError
from backends.api.image_probe import ImageTokens, probe_images
from backends.api.listing import ListedModel
from backends.api.request_format import decision_input
from backends.api.responses import BadAnswerError
from backends.api.retries import answers_as_they_come
from blackbox.errors import BackendError, ModelNotFoundError, UnservedPromptError
from blackbox.images import Image
from blackbox.protocol import (
    AnswerParts,
    BackendIdentity,
    ClosedQuestion,
    Limits,
    RenderedPrompt,
    TokenLogProbs,
    Usage,
    check_served,
)

__all__ = ["DecisionsBackend"]

_MAX_OPTIONS = 255
_TEXT = "The parcel came two days late, but the lamp in it is lovely."
_PROBES = (
    ClosedQuestion("choice", "What is this about?", ("a purchase", "sports", "politics")),
    ClosedQuestion("scale", "How pleased is the writer?", ("not at all", "somewhat", "very")),
    *(
        ClosedQuestion("predicate", said, ("yes", "no"))
        for said in (
            "The writer is pleased.",
            "The writer complains about something.",
            "The text mentions money.",
            "The text is about furniture.",
        )
    ),
)

_COLOUR = ClosedQuestion("choice", "Which colour has this picture?", ("red", "blue", "green"))


@dataclass(frozen=True)
class _Probed:
    """The findings of the probe."""

    listed: ListedModel
    calls: DecisionCalls
    identity: BackendIdentity
    repeats: bool
    grid: float
    images: ImageTokens | None = None


class DecisionsBackend(ApiBackend):
    """Questions to a model behind a decision endpoint.

    It serves questions (`Limits.questions`) and no other prompts. The key comes from an environment
    variable or with a client object; it is never a parameter, and stands in no pickle, identity or
    message.

    Parameters
    ----------
    model : str, optional
        The model's name as the server knows it; by default the only one that the server lists.
    base_url : str, optional
        The server's address, such as ``"http://127.0.0.1:8000/v1"``; by default the environment's
        `OPENAI_BASE_URL`, or OpenAI's own.
    api_key_env : str, default="OPENAI_API_KEY"
        The environment variable with the key.
    api_version, default_headers
        As for `backends.openai.OpenAIBackend`.
    client : openai.OpenAI, optional
        The user's own client, for proxies, tokens that expire and the like.
    form : {"auto", "decisions", "systemone"}, default="auto"
        The form of requests; ``"auto"`` takes the first of them that is served.
    max_questions : int, optional
        Questions of a request, at most; by default 400 of ``decisions`` and 64 of ``systemone``,
        and fewer where the server takes fewer.
    context_length : int, optional
        Tokens that a text and a question may have; by default what the server tells, else 8192.
        Four bytes count as one token at first, and fewer where reports and refusals show it.
    max_concurrency : int, default=16
        Requests at a time.
    requests_per_minute, tokens_per_minute : float, optional
        The account's limits. Tokens are estimated from the bytes of a request.
    max_attempts : int, default=6
        Tries of a request.
    timeout : float, default=60.0
        Seconds that one try may take, from connecting to the last byte of the response.
    revision : str, default=""
        A name that keeps apart answers of models which a server gives the same name.
    extra_body : mapping, optional
        More fields of each request; part of the identity, with a digest in the place of each value
        that looks like a credential.
    images : bool, default=False
        Find out by two more requests of the probe how the model takes images, which it must see.
        They have the form ``decisions``.
    max_image_side : int, optional
        Pixels of the longest side to which a larger image is resized, which is part of the
        identity; by default none is resized.

    Raises
    ------
    MissingDependencyError
        If the `openai` package is not installed.
    BackendError
        If there is no key. On first use: if the server has no decision endpoint.
    """

    _name = "decisions"
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
        form: str = "auto",
        max_questions: int | None = None,
        context_length: int | None = None,
        max_concurrency: int = 16,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        max_attempts: int = 6,
        timeout: float = 60.0,
        revision: str = "",
        extra_body: Mapping[str, Any] | None = None,
        images: bool = False,
        max_image_side: int | None = None,
    ) -> None:
        if form not in ("auto", *FORMS):
            raise ValueError(f"form must be auto, {' or '.join(FORMS)}, got {form!r}")
        for name, number in (
            ("max_concurrency", max_concurrency),
            ("max_attempts", max_attempts),
            ("max_questions", 1 if max_questions is None else max_questions),
        ):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {number!r}")
        options = {
            "model": model,
            "base_url": base_url,
            "api_key_env": api_key_env,
            "api_version": api_version,
            "default_headers": dict(default_headers or {}),
            "form": form,
            "max_questions": max_questions,
            "context_length": context_length,
            "max_concurrency": max_concurrency,
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "max_attempts": max_attempts,
            "timeout": timeout,
            "revision": revision,
            "extra_body": dict(extra_body or {}),
            "images": images,
            "max_image_side": max_image_side,
        }
        super().__init__(options, client)
        self._probed: _Probed | None = None

    @property
    def identity(self) -> BackendIdentity:  # type: ignore[override]
        """Who answers; the first use probes the endpoint."""
        return self.probe().identity

    @property
    def limits(self) -> Limits:  # type: ignore[override]
        """The limits of what is served; the first use probes the endpoint."""
        seen = self.probe().images
        of_images: dict[str, Any] = {}
        if seen is not None:
            of_images = {
                "images": True,
                "max_image_side": self._server.max_image_side,
                "tokens_per_image": seen.per_image,
                "tokens_per_megapixel": seen.per_megapixel,
            }
        return Limits(
            max_top_k=_MAX_OPTIONS,
            max_score_ids=0,
            context_length=self.probe().calls.context.length,
            deterministic=False,
            raw_text=False,
            questions=True,
            bytes_per_token=BYTES_A_TOKEN,
            shares_prefixes=True,  # a text is sent once for all questions
            max_attempts=self._options["max_attempts"],
            charges_tries=True,
            tokens_written=0,
            api_host=self._server.public_host,
            **of_images,
        )

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield the probabilities of options in parts, as they are answered; see `BaseBackend`."""
        check_served(self.limits, prompts, top_k)
        calls = self.probe().calls
        of_state: dict[tuple[str, Image | None], list[int]] = {}
        for row, prompt in enumerate(prompts):
            of_state.setdefault((prompt.text or "", prompt.image), []).append(row)
        jobs = list(of_state.values())

        def ask(rows: list[int], stop: threading.Event) -> Iterator[DecisionPart]:
            asked = [_question_of(prompts[row]) for row in rows]
            return calls.answers(prompts[rows[0]], asked, stop)

        started = time.perf_counter()
        with self._stoppable() as stop:
            for part in answers_as_they_come(jobs, ask, self._options["max_concurrency"], stop):
                where = [jobs[job][place] for job, (places, _, _) in part for place in places]
                answers = [answer for _, (_, some, _) in part for answer in some]
                usage = sum((used for _, (_, _, used) in part), Usage())
                now = time.perf_counter()
                usage.seconds_lm, started = now - started, now
                questions = [_question_of(prompts[row]) for row in where]
                yield where, _as_part(questions, answers, top_k, usage)

    def _n_requests(self, prompts: Sequence[RenderedPrompt]) -> int:
        of_text = Counter((prompt.text, prompt.image) for prompt in prompts)
        most = self.probe().calls.max_questions
        return sum(-(-n_questions // most) for n_questions in of_text.values())

    def describe(self) -> dict[str, Any]:
        """Return what the probe found, as JSON data for people and programs."""
        found = self.probe()
        return {
            "provider": found.identity.provider,
            "model": found.identity.model,
            "endpoint": found.calls.form.name,
            "questions_per_request": found.calls.max_questions,
            "same_answer_twice": found.repeats,
            "probabilities": f"rounded to {found.grid:g}" if found.grid else "not rounded",
            "context_length": found.calls.context.shown,
        }

    def describe_context(self) -> str:
        """Return how many tokens a text may have, how that is known, and the option for it."""
        words = self.probe().calls.context.words
        return f"{words}; --backend-option {self.context_option}=N changes that"

    def probe(self) -> _Probed:
        """Return what the probe found out, with two requests.

        Raises
        ------
        BackendError
            If the server has no decision endpoint, doesn't know the model, or can't be reached.
        """
        with self._lock:
            if self._probed is None:
                self._probed = self._probe()
            return self._probed

    def _probe(self) -> _Probed:
        listed = self._server.look_up()
        fields = {"model": listed.model, **self._options["extra_body"]}
        asked = self._options["form"]
        forms = list(FORMS.values()) if asked == "auto" else [FORMS[asked]]
        form, first, answered_by = self._find_form(forms, fields, listed)
        second, _ = self._ask(form, fields, listed)
        context = ContextWindow(
            self._server.who, self._options["context_length"], listed.context_length
        )
        most = min(self._options["max_questions"] or form.max_questions, form.max_questions)
        calls = DecisionCalls(self._server, form, fields, context, most, (_TEXT, _PROBES))
        identity = self._server.identify_by_fields(
            form.name,
            listed,
            self._options["extra_body"],
            self._options["revision"],
            answered_by=answered_by,
        )
        told = [p for p in first if 0 < p < 1]
        grid = grid_of(told) if told else 0.0
        seen = self._see(form, fields, listed) if self._options["images"] else None
        return _Probed(listed, calls, identity, first == second, grid, seen)

    def _see(
        self, form: DecisionForm, fields: Mapping[str, Any], listed: ListedModel
    ) -> ImageTokens:
        """Return how many tokens images take; see `probe_images`."""
        if not form.has_images:
            raise UnservedPromptError(f"{self._server.who}: /{form.name} takes no images")

        def ask(prompt: RenderedPrompt) -> tuple[dict[bytes, float], int]:
            state = RenderedPrompt("", image=prompt.image)
            asked_about = decision_input(state, self._server.max_image_side)
            body = {**fields, **form.body(asked_about, [_COLOUR])}
            answer = self._server.send_form(form.path, body, listed=listed.answered)
            (found,) = read_answers(form, answer, [_COLOUR])
            shares = [] if isinstance(found, str) else found
            named = {
                option.encode(): math.log(share)
                for option, share in zip(_COLOUR.options, shares, strict=False)
            }
            return named, int(answer["usage"].get("reported") or 0)

        return probe_images(self._server.who, ask, lambda _: _COLOUR.n_bytes / BYTES_A_TOKEN)

    def _find_form(
        self, forms: list[DecisionForm], fields: Mapping[str, Any], listed: ListedModel
    ) -> tuple[DecisionForm, list[float], str]:
        """Return the first form that is served, its answers, and the model that gave them."""
        failures: list[BackendError] = []
        for form in forms:
            try:
                return form, *self._ask(form, fields, listed)
            except (RejectedError, ModelNotFoundError) as error:
                failures.append(error)
        paths = " or ".join(
            f"{self._server.client.base_url.path.rstrip('/')}{f.path}" for f in forms
        )
        said = "; ".join(dict.fromkeys(map(str, failures)))
        raise BackendError(
            f"no decision endpoint at {paths}: {said}. Check base_url and the model; an LM that "
            "answers in chats is asked the same questions by letters with --backend openai"
        ) from failures[-1]

    def _ask(
        self, form: DecisionForm, fields: Mapping[str, Any], listed: ListedModel
    ) -> tuple[list[float], str]:
        """Return all probabilities that answers to the probe's questions have, as they are told."""
        body = {**fields, **form.body(_TEXT, _PROBES)}
        answer = self._server.send_form(form.path, body, listed=listed.answered)
        try:
            found = read_answers(form, answer, _PROBES)
        except BadAnswerError as error:
            raise RejectedError(f"{self._server.who}: {error}") from error
        if all(isinstance(one, str) for one in found):
            raise RejectedError(f"{self._server.who}: {found[0]}")
        told = [float(p) for one in form.read(answer, _PROBES) for p in (one or {}).values()]
        return told, str(answer.get("model") or "")

    def show(self, prompt: RenderedPrompt) -> tuple[str, None]:
        """Return the text and the question of a prompt, as lines."""
        question = _question_of(prompt)
        options = [f"- {option}" for option in question.options]
        image = f"<image {prompt.image.digest[:12]}>" if prompt.image else ""
        lines = [image, prompt.text or "", f"[{question.kind}] {question.instructions}", *options]
        return "\n".join(lines).strip(), None


def _question_of(prompt: RenderedPrompt) -> ClosedQuestion:
    assert prompt.question is not None
    return prompt.question


def _as_part(
    questions: Sequence[ClosedQuestion],
    answers: Sequence[DecisionAnswer],
    top_k: int,
    usage: Usage,
) -> TokenLogProbs:
    """Return answers as the log-probabilities of options, the likeliest `top_k` of each."""
    refused = {row: answer for row, answer in enumerate(answers) if isinstance(answer, str)}
    shares = [None if isinstance(one, str) else np.array(one) for one in answers]
    options = [question.options for question in questions]
    part = TokenLogProbs.of_options(options, shares, refused, usage)
    return TokenLogProbs(
        part.token_ids[:, :top_k], part.log_probs[:, :top_k], part.token_bytes, refused, usage
    )
