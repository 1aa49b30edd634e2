"""Schemas of the JSON bodies of decision endpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, FailFast, Field
from typing_extensions import TypeAliasType

from blackbox.service.schemas import Name, Strict, Text, example

__all__ = [
    "NO_USAGE",
    "Decision",
    "DecisionRequest",
    "SystemOneRequest",
    "SystemOneResponse",
]

_MAX_QUESTIONS = 400


NO_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}
"""Tokens of a request, which are not counted per request: a batch serves several."""


def _check_number(questions: Any) -> Any:
    if isinstance(questions, dict) and len(questions) > _MAX_QUESTIONS:
        raise ValueError(f"at most {_MAX_QUESTIONS} questions")
    return questions


class Choice(Strict):
    """An option of a choice; its description is not read."""

    value: str
    description: str | None = None


_Choices = TypeAliasType("_Choices", Annotated[list[Choice], FailFast()])
_Options = TypeAliasType("_Options", Annotated[list[str], FailFast()])


class Question(Strict):
    """A question about the input. A score is known, and refused with a reason."""

    type: Literal["predicate", "choice", "score"]
    instructions: str
    name: str | None = None
    choices: _Choices | None = None
    levels: list[Any] | None = None


class DecisionRequest(Strict):
    """A text and questions about it. Fields about caches and users are taken, and not read."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "model": "messages",
                    "input": "where is my parcel?",
                    "questions": [
                        {
                            "type": "choice",
                            "instructions": "What is it about?",
                            "choices": [{"value": "delivery"}, {"value": "refund"}],
                        },
                        {"type": "predicate", "instructions": "It is about a refund."},
                    ],
                }
            ]
        },
    )

    model: Name | None = None
    input: str
    questions: Annotated[list[Question], Field(min_length=1, max_length=_MAX_QUESTIONS), FailFast()]
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    safety_identifier: Any = None


class Decision(Strict):
    """The answers, in the order of the questions; a refusal where there is none."""

    model_config = example(
        model="messages",
        answers=[
            {
                "name": None,
                "type": "choice",
                "choice": "delivery",
                "confidence": 0.93,
                "probabilities": [
                    {"value": "delivery", "probability": 0.93},
                    {"value": "refund", "probability": 0.07},
                ],
            },
            {"name": None, "type": "predicate", "probability": 0.07},
        ],
        usage=NO_USAGE,
    )

    model: str
    answers: list[dict[str, Any]]
    usage: dict[str, Any]


class SystemOneQuestion(Strict):
    """A question about the state. A score is known, and refused with a reason."""

    type: Literal["noul", "choice", "score"]
    instructions: str = ""
    criteria: dict[str, Any] | _Options | None = None


class SystemOneRequest(Strict):
    """A text, or an object with `text` and `text_pair`, and questions about it by name."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "model": "messages",
                    "state": "where is my parcel?",
                    "questions": {
                        "topic": {
                            "type": "choice",
                            "instructions": "What is it about?",
                            "criteria": {"delivery": None, "refund": None},
                        },
                        "refund": {"type": "noul", "instructions": "It is about a refund."},
                    },
                }
            ]
        },
    )

    model: Name | None = None
    state: str | Text
    questions: Annotated[
        dict[str, SystemOneQuestion],
        Field(min_length=1, max_length=_MAX_QUESTIONS),
        BeforeValidator(_check_number),  # before any is read
    ]


class SystemOneResponse(Strict):
    """The answers by the names of the questions; one without an answer is left out."""

    model_config = example(
        model="messages",
        answers={"refund": {"type": "noul", "noul": 0.07}},
        usage={"input_tokens": 0, "output_tokens": 0},
    )

    model: str
    answers: dict[str, dict[str, Any]]
    usage: dict[str, int]
