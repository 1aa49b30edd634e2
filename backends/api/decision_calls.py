"""Requests to a decision endpoint: a text, and questions with closed options about it.

There are two forms. OpenAI's ``/decisions`` takes a list of questions and answers in their order;
``/systemone`` of vLLM, SGLang, llama.cpp and others takes questions by name, and calls a predicate
a noul and the text a state. A request has all questions of a text, or an image, that the server
takes at once. It is sent in halves where its form is rejected, so that a question that a server
doesn't take costs the others nothing; such a question is not sent again.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from backends.api.circuit import Circuit
from backends.api.connection import Connection
from backends.api.context import ContextWindow
from backends.api.errors import RefusedError, RejectedError, TooLongError
from backends.api.request_format import decision_input
from backends.api.responses import BadAnswerError
from backends.api.retries import RetryLaterError
from blackbox.errors import BackendError
from blackbox.plurals import counted
from blackbox.protocol import ClosedQuestion, RenderedPrompt, Usage

__all__ = ["FORMS", "DecisionAnswer", "DecisionCalls", "DecisionForm", "DecisionPart", "grid_of"]

DecisionAnswer = list[float] | str
"""The probability of each option, in the order of the question; or why there is none."""

DecisionPart = tuple[list[int], list[DecisionAnswer], Usage]
"""Places of questions, the answer to each, and what the tries took."""

_GRIDS = (0.01, 0.001, 0.0001)  # steps that probabilities may be rounded to
_TINY = 1e-6  # to which a probability is a multiple of a step
_LEAST = 1e-6  # probability of an option where probabilities are not rounded
_TOLERANCE = 0.05  # of a sum of rounded probabilities
_DECLINED = "the LM declined to answer this question"


class DecisionForm(ABC):
    """The form of requests and answers of one kind of endpoint.

    Attributes
    ----------
    name : str
        Its name, as in the identity.
    path : str
        Where requests are posted, below the server's address.
    max_questions : int
        Questions of a request, at most.
    has_images : bool
        Whether questions may be about an image.
    """

    name: ClassVar[str]
    path: ClassVar[str]
    max_questions: ClassVar[int]
    has_images: ClassVar[bool] = False

    @abstractmethod
    def body(
        self, state: str | list[dict[str, Any]], questions: Sequence[ClosedQuestion]
    ) -> dict[str, Any]:
        """Return the fields of a request, without the model; for the state see `decision_input`."""

    @abstractmethod
    def read(
        self, answer: Mapping[str, Any], questions: Sequence[ClosedQuestion]
    ) -> list[dict[str, float] | None]:
        """Return the probability of each option by question; None where the LM declined.

        Raises
        ------
        BadAnswerError, or a LookupError, TypeError or ValueError
            If that can't be read.
        """


class _Decisions(DecisionForm):
    name = "decisions"
    path = "/decisions"
    max_questions = 400
    has_images = True

    def body(
        self, state: str | list[dict[str, Any]], questions: Sequence[ClosedQuestion]
    ) -> dict[str, Any]:
        return {"input": state, "questions": [self._question(one) for one in questions]}

    def read(
        self, answer: Mapping[str, Any], questions: Sequence[ClosedQuestion]
    ) -> list[dict[str, float] | None]:
        answers = answer["answers"]
        if not isinstance(answers, list) or len(answers) != len(questions):
            raise BadAnswerError(f"other than {len(questions)} answers to as many questions")
        return [self._read(*pair) for pair in zip(answers, questions, strict=True)]

    @staticmethod
    def _question(question: ClosedQuestion) -> dict[str, Any]:
        asked: dict[str, Any] = {"instructions": question.instructions}
        if question.kind == "predicate":
            return {"type": "predicate", **asked}
        if question.kind == "scale":
            return {"type": "score", **asked, "levels": [{"label": o} for o in question.options]}
        return {"type": "choice", **asked, "choices": [{"value": o} for o in question.options]}

    @staticmethod
    def _read(answer: Mapping[str, Any], question: ClosedQuestion) -> dict[str, float] | None:
        if answer["type"] == "refusal":
            return None
        if question.kind == "predicate":
            return _of_predicate(answer["probability"])
        if question.kind == "scale":
            values = {int(one["value"]): one["probability"] for one in answer["probabilities"]}
            # a level of probability 0 may be left out, so the least that is told is not the first
            first = 1 if min(values) > 0 and max(values) == len(question.options) else 0
            if not first <= min(values) <= max(values) < first + len(question.options):
                raise BadAnswerError("the levels of a scale can't be told apart")
            return {o: values.get(first + n, 0.0) for n, o in enumerate(question.options)}
        return {one["value"]: one["probability"] for one in answer["probabilities"]}


class _SystemOne(DecisionForm):
    name = "systemone"
    path = "/systemone"
    max_questions = 64

    def body(
        self, state: str | list[dict[str, Any]], questions: Sequence[ClosedQuestion]
    ) -> dict[str, Any]:
        asked = {f"q{place}": self._question(one) for place, one in enumerate(questions)}
        return {"state": state, "questions": asked}

    def read(
        self, answer: Mapping[str, Any], questions: Sequence[ClosedQuestion]
    ) -> list[dict[str, float] | None]:
        answers = answer["answers"]
        if not isinstance(answers, Mapping):
            raise BadAnswerError("the answers can't be read")
        return [self._read(answers.get(f"q{n}"), one) for n, one in enumerate(questions)]

    @staticmethod
    def _question(question: ClosedQuestion) -> dict[str, Any]:
        asked: dict[str, Any] = {"instructions": question.instructions}
        if question.kind == "predicate":
            return {"type": "noul", **asked}
        if question.kind == "scale":
            return {"type": "score", **asked, "criteria": list(question.options)}
        return {"type": "choice", **asked, "criteria": dict.fromkeys(question.options)}

    @staticmethod
    def _read(answer: Any, question: ClosedQuestion) -> dict[str, float] | None:
        if answer is None or answer.get("type") == "refusal":
            return None
        if question.kind == "predicate":
            return _of_predicate(answer["noul"])
        shares = answer["probabilities"]
        if question.kind == "choice":
            return dict(shares)
        return {o: shares.get(str(place), 0.0) for place, o in enumerate(question.options)}


FORMS: Mapping[str, DecisionForm] = {form.name: form for form in (_Decisions(), _SystemOne())}
"""The known forms, by name, in the order in which they are tried."""


@dataclass
class _Asked:
    """A text or image that questions are asked about, and what the server made of them."""

    state: RenderedPrompt
    rejected: dict[ClosedQuestion, str] = field(default_factory=dict)
    is_answered: bool = False


@dataclass
class DecisionCalls:
    """Requests to one decision endpoint; shared by the threads of its backend.

    Parameters
    ----------
    server : Connection
        Sends them.
    form : DecisionForm
        Their form.
    fields : mapping
        The model, and more fields of each request.
    context : ContextWindow
        How long a text may be.
    max_questions : int
        Questions of a request, at most; lowered where the server takes fewer.
    known : (str, sequence of ClosedQuestion)
        A text and questions that the endpoint has answered.
    """

    server: Connection
    form: DecisionForm
    fields: Mapping[str, Any]
    context: ContextWindow
    max_questions: int
    known: tuple[str, Sequence[ClosedQuestion]]
    _rejected: dict[ClosedQuestion, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._circuit = Circuit(proven=True, ask_again=self._ask_again)

    def answers(
        self, state: RenderedPrompt, questions: Sequence[ClosedQuestion], stop: threading.Event
    ) -> Iterator[DecisionPart]:
        """Yield the answers to questions about a text or image, of each request that is answered.

        `state` is a prompt of it, whose own question doesn't matter.
        """
        sendable = []
        unsent: dict[int, DecisionAnswer] = {}
        for place, question in enumerate(questions):
            too_long = self.context.check(replace(state, question=question))
            why = too_long or self._rejected.get(question)
            if why is None:
                sendable.append(place)
            else:
                unsent[place] = why
        if unsent:
            yield list(unsent), list(unsent.values()), Usage()
        text = _Asked(state)
        while sendable:
            some, sendable = sendable[: self.max_questions], sendable[self.max_questions :]
            yield from self._ask(text, {place: questions[place] for place in some}, stop, Usage())
        if text.is_answered:  # else it is the text that the server doesn't take
            self._rejected |= text.rejected

    def _ask(
        self,
        text: _Asked,
        asked: Mapping[int, ClosedQuestion],
        stop: threading.Event,
        usage: Usage,
    ) -> Iterator[DecisionPart]:
        """Yield the answers to questions by place; `usage` is of tries before."""
        questions = list(asked.values())
        answers = self._send(text, questions, stop, usage)
        if answers is not None:
            yield list(asked), answers, usage
            return
        # one question may be of a form that the server doesn't take, or there are too many
        half = -(-len(asked) // 2)
        places = list(asked)
        for some, used in ((places[:half], usage), (places[half:], Usage())):
            yield from self._ask(text, {place: asked[place] for place in some}, stop, used)
        if text.is_answered and not text.rejected.keys() & set(questions):
            self.max_questions = min(self.max_questions, half)

    def _send(
        self,
        text: _Asked,
        questions: list[ClosedQuestion],
        stop: threading.Event,
        usage: Usage,
    ) -> list[DecisionAnswer] | None:
        """Return what one request says of each question; None where they are too many for it."""
        state = text.state
        asked_about = decision_input(state, self.server.max_image_side)
        body = {**self.fields, **self.form.body(asked_about, questions)}
        asked = "\n".join(question.words for question in questions)
        prompt = RenderedPrompt(f"{state.text or ''}\n{asked}", image=state.image)

        def read(answer: dict[str, Any]) -> list[DecisionAnswer]:
            try:
                answers = read_answers(self.form, answer, questions)
            except BadAnswerError as error:
                self._circuit.bad_answer(f"{self.server.who}: {error}")
                raise
            if any(not isinstance(one, str) for one in answers):
                self._circuit.answered()
                text.is_answered = True
            self._count(usage, answer, len(questions))
            return answers

        def ask() -> list[DecisionAnswer] | None:
            try:
                answers: list[DecisionAnswer] = self.server.send(
                    self.form.path, lambda: dict(body), prompt, stop, usage, read
                )
                if all(isinstance(one, str) for one in answers):
                    self._circuit.refused(RefusedError(_DECLINED))
                return answers
            except RetryLaterError as error:
                return [self._failed(error)] * len(questions)
            except RejectedError as error:
                if len(questions) == 1:
                    text.rejected[questions[0]] = str(error)
                    self._circuit.rejected(error)
                    return [str(error)]
            except TooLongError as error:
                if len(questions) == 1:
                    alone = replace(state, question=questions[0])
                    return [self.context.refused(alone, str(error), error.body)]
            except RefusedError as error:
                self._circuit.refused(error)
                return [str(error)] * len(questions)
            return None

        def text_failed(why: str) -> list[DecisionAnswer] | None:
            return [why] * len(questions)

        return self._circuit.pass_through(stop, usage, ask, text_failed)

    def _ask_again(self, stop: threading.Event, usage: Usage) -> None:
        """Send what the endpoint has answered before; raise where it isn't answered now."""
        text, questions = self.known
        body = {**self.fields, **self.form.body(text, questions)}

        def read(answer: dict[str, Any]) -> None:
            if all(isinstance(one, str) for one in read_answers(self.form, answer, questions)):
                raise RefusedError(_DECLINED)
            self._count(usage, answer, len(questions))

        prompt = RenderedPrompt(text)
        self.server.send(self.form.path, lambda: body, prompt, stop, usage, read, 1)

    @staticmethod
    def _count(usage: Usage, answer: Mapping[str, Any], n_questions: int) -> None:
        usage.passes_made += n_questions
        usage.tokens += answer["usage"]["prompt_tokens"]
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        usage.tokens_evaluated += answer["usage"]["prompt_tokens"] - cached

    def _failed(self, error: RetryLaterError) -> str:
        """Return why a text has no answers; raise where that is not for the text alone."""
        said = f"{error}, in {counted(error.tries, 'try')}"
        if getattr(error, "kind", None) in ("connection", "rate_limit"):
            raise BackendError(said) from error
        self._circuit.failed(said)
        return said


def read_answers(
    form: DecisionForm, answer: Mapping[str, Any], questions: Sequence[ClosedQuestion]
) -> list[DecisionAnswer]:
    """Return the probabilities of each question's options in an answer, or why there are none.

    Raises
    ------
    BadAnswerError
        If they can't be read, or can't be probabilities.
    """
    try:
        found = form.read(answer, questions)
        return [
            _DECLINED if shares is None else _probabilities(shares, question)
            for shares, question in zip(found, questions, strict=True)
        ]
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadAnswerError("the answers can't be read") from error


def grid_of(probabilities: Sequence[float]) -> float:
    """Return the step that probabilities are rounded to; 0 where they aren't."""
    for step in _GRIDS:
        if all(abs(p - step * round(p / step)) < _TINY for p in probabilities):
            return step
    return 0.0


def _of_predicate(probability: float) -> dict[str, float]:
    return {"yes": probability, "no": 1 - probability}


def _probabilities(shares: Mapping[str, float], question: ClosedQuestion) -> list[float]:
    """Return probabilities above 0 that sum to 1, in the order of the options.

    One that is rounded to 0 is taken as half a step of the rounding.
    """
    values = [float(shares.get(option, 0.0)) for option in question.options]
    # what is no option counts for nothing, but the options must hold nearly all
    if any(not math.isfinite(p) or not -_TINY <= p <= 1 + _TINY for p in values):
        raise BadAnswerError("a probability is not between 0 and 1")
    allowed = _TOLERANCE + len(values) * _GRIDS[0] / 2
    if abs(math.fsum(values) - 1) > allowed:
        raise BadAnswerError(f"the probabilities of a question sum to {math.fsum(values):.3g}")
    least = grid_of(values) / 2 or _LEAST
    raised = [max(p, least) for p in values]
    return [p / math.fsum(raised) for p in raised]
