"""Routes of decision endpoints for the same models: OpenAI's /v1/decisions, and /v1/systemone.

A model answers a choice whose options are its classes, and a predicate that names a class. So every
client of such endpoints can ask a trained classifier.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response

from blackbox.boosting.label_words import words_of
from blackbox.service import decision_schemas as schemas
from blackbox.service.core import Service
from blackbox.service.json_bodies import json_response, parse_body
from blackbox.service.models import LoadedModel, Query, Reply, ServedModel
from blackbox.service.openapi import problem_responses, request_body
from blackbox.service.problems import Problem

__all__ = ["add_decision_routes"]

_NEGATIONS = {"not", "no", "never", "neither", "nor", "none", "without", "cannot", "lacks", "isnt"}
_MAX_SHOWN = 20  # classes that a message names


@dataclass(frozen=True)
class _Asked:
    """A question that a model answers: a choice among all classes, or about one of them."""

    options: Sequence[str]
    about: str | None = None


def add_decision_routes(app: FastAPI, service: Service) -> None:
    """Add /v1/decisions and /v1/systemone."""
    refusals = problem_responses(401, 404, 415, 422, 429, 503, 504)

    @app.post(
        "/v1/decisions",
        response_model=schemas.Decision,
        responses=refusals,
        openapi_extra=request_body(schemas.DecisionRequest),
        tags=["decisions"],
    )
    async def decisions(request: Request) -> Response:
        """Answer questions about a text, in the form of OpenAI's endpoint."""
        with _problems_for_clients():
            return await _decide(service, await request.body())

    @app.post(
        "/v1/systemone",
        response_model=schemas.SystemOneResponse,
        responses=refusals,
        openapi_extra=request_body(schemas.SystemOneRequest),
        tags=["decisions"],
    )
    async def systemone(request: Request) -> Response:
        """Answer questions about a text, in the form of System One."""
        with _problems_for_clients():
            return await _system_one(service, await request.body())


@contextmanager
def _problems_for_clients() -> Iterator[None]:
    """Give a problem the member by which the `openai` client finds its words."""
    try:
        yield
    except Problem as problem:
        problem.members = {"error": {"message": problem.detail, "type": "invalid_request_error"}}
        raise


async def _decide(service: Service, body: bytes) -> Response:
    asked = parse_body(schemas.DecisionRequest, body)
    _check_instructions(service, asked.questions)
    model, loaded = _served(service, asked.model)
    questions = [
        _understand(
            loaded,
            question.type,
            [choice.value for choice in question.choices or ()],
            question.name or "",
            question.instructions,
            place,
        )
        for place, question in enumerate(asked.questions)
    ]
    (reply,) = await service.answer(model, loaded, [Query(asked.input, None)])
    answers = [
        {"name": question.name} | _answer(one, reply)
        for question, one in zip(asked.questions, questions, strict=True)
    ]
    return json_response({"model": model.name, "answers": answers, "usage": schemas.NO_USAGE})


async def _system_one(service: Service, body: bytes) -> Response:
    asked = parse_body(schemas.SystemOneRequest, body)
    _check_instructions(service, asked.questions.values())
    model, loaded = _served(service, asked.model)
    questions = {
        key: _understand(
            loaded,
            question.type,
            list(question.criteria or ()) if question.type == "choice" else [],
            key,
            question.instructions,
            place,
        )
        for place, (key, question) in enumerate(asked.questions.items())
    }
    state = asked.state
    query = Query(state, None) if isinstance(state, str) else Query(state.text, state.text_pair)
    (reply,) = await service.answer(model, loaded, [query])
    answers = {key: _as_system_one(_answer(one, reply)) for key, one in questions.items()}
    if reply.probabilities is None:  # a question without an answer is left out
        answers = {}
    usage = {"input_tokens": 0, "output_tokens": 0}
    return json_response({"model": model.name, "answers": answers, "usage": usage})


def _check_instructions(
    service: Service, questions: Iterable[schemas.Question | schemas.SystemOneQuestion]
) -> None:
    """Refuse instructions that are longer than a text may be."""
    limit = service.settings.max_characters
    for place, question in enumerate(questions):
        if len(question.instructions) > limit:
            raise Problem(422, f"questions.{place}: instructions have at most {limit} characters")


def _served(service: Service, name: str | None) -> tuple[ServedModel, LoadedModel]:
    """Return a model that gives probabilities, by its name."""
    model = service.model(name)
    loaded = model.loaded
    if loaded.early_stop is not None:
        raise Problem(422, "the service stops early and gives no probabilities")
    return model, loaded


def _understand(
    loaded: LoadedModel, kind: str, options: Sequence[str], name: str, said: str, place: int
) -> _Asked:
    """Return what a question asks of a model; refuse what it can't answer.

    A predicate is about the class that it is called by, or the only one whose words are all in its
    instructions. Instructions about another class, or that deny, are refused: their probability
    would be that of the contrary.
    """
    classes = list(loaded.class_words)
    several = loaded.model.several_labels
    if (
        kind == "choice"
        and not several
        and len(options) == len(classes)
        and set(options) == set(classes)
    ):
        return _Asked(options)
    if kind in ("predicate", "noul"):
        words = set(words_of(said))
        _refuse_negation(said, words, loaded, place)
        named = [c for c, some in loaded.class_words.items() if some and some <= words]
        about = [name] if name in classes else [said] if said in classes else named
        if name in classes and named and name not in named:
            about = []  # its instructions are about another class
        if len(about) == 1:
            return _Asked(classes, about[0])
    shown = ", ".join(classes[:_MAX_SHOWN]) + (", …" if len(classes) > _MAX_SHOWN else "")
    if several:
        raise Problem(
            422,
            f"questions.{place}: this model gives several labels ({shown}) and answers predicates, "
            "each with the name of one label in its name or instructions",
        )
    raise Problem(
        422,
        f"questions.{place}: this model answers a choice whose options are its classes ({shown}), "
        "and a predicate that has the name of one class in its name or instructions",
    )


def _refuse_negation(said: str, words: set[str], loaded: LoadedModel, place: int) -> None:
    """Refuse instructions that deny, as words alone don't tell what they deny."""
    of_classes = {word for some in loaded.class_words.values() for word in some}
    denied = (words & _NEGATIONS) - of_classes
    if (denied or "n't" in said.lower().replace("’", "'")) and said not in loaded.class_words:
        raise Problem(
            422,
            f"questions.{place}: instructions that deny aren't understood; ask for the probability "
            "of a class, and take it from 1",
        )


def _answer(asked: _Asked, reply: Reply) -> dict[str, Any]:
    shares = reply.probabilities
    if shares is None:
        return {"type": "refusal"}
    if reply.is_none:  # the probabilities are those of texts of the classes
        return {"type": "refusal"}
    if asked.about is not None:
        return {"type": "predicate", "probability": shares[asked.about]}
    best = str(reply.label)  # the model's own choice, which may be the median of ordered classes
    return {
        "type": "choice",
        "choice": best,
        "confidence": shares[best],
        "probabilities": [{"value": o, "probability": shares[o]} for o in asked.options],
    }


def _as_system_one(answer: Mapping[str, Any]) -> dict[str, Any]:
    if answer["type"] == "refusal":
        return dict(answer)
    if answer["type"] == "predicate":
        return {"type": "noul", "noul": answer["probability"]}
    listed = {one["value"]: one["probability"] for one in answer["probabilities"]}
    return {**answer, "probabilities": listed}
