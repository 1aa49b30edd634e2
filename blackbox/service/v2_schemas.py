"""Schemas of the JSON bodies of the Open Inference Protocol (V2)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field
from typing_extensions import TypeAliasType

from blackbox.service.schemas import Strict, example

__all__ = [
    "InferRequest",
    "InferResponse",
    "V2Live",
    "V2Metadata",
    "V2Model",
    "V2ModelReady",
    "V2Ready",
]

TextRow = TypeAliasType("TextRow", Annotated[list[str], FailFast()])
"""The texts in one row of a tensor."""


class V2Metadata(BaseModel):
    """The service."""

    model_config = example(name="promptboosting", version="1.0.0", extensions=[])

    name: str
    version: str
    extensions: list[str]


class V2Live(BaseModel):
    """The state of the service: it runs."""

    model_config = example(live=True)

    live: bool


class V2Ready(BaseModel):
    """The state of the service: its language models answer."""

    model_config = example(ready=True)

    ready: bool


class V2ModelReady(BaseModel):
    """The state of a model: its language model answers."""

    model_config = example(name="messages", ready=True)

    name: str
    ready: bool


class _Tensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class V2Model(BaseModel):
    """The inputs and outputs of a model."""

    model_config = example(
        name="messages",
        platform="promptboosting",
        inputs=[{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        outputs=[
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP64", "shape": [-1, 2]},
        ],
    )

    name: str
    platform: str
    inputs: list[_Tensor]
    outputs: list[_Tensor]


class _Input(Strict):
    name: Literal["text", "text_pair"]
    shape: Annotated[list[int], Field(min_length=1, max_length=2)]
    datatype: Literal["BYTES"]
    data: Annotated[list[str | TextRow], FailFast()] = Field(
        description="The texts, flat or by row."
    )
    parameters: dict[str, Any] | None = None


class _Wanted(Strict):
    name: Literal["label", "probabilities"]
    parameters: dict[str, Any] | None = None


class InferRequest(Strict):
    """A request of the Open Inference Protocol."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "inputs": [
                        {
                            "name": "text",
                            "shape": [1],
                            "datatype": "BYTES",
                            "data": ["where is my parcel?"],
                        }
                    ]
                }
            ]
        },
    )

    id: Annotated[str, Field(max_length=200)] | None = None
    inputs: Annotated[list[_Input], Field(min_length=1, max_length=2), FailFast()]
    outputs: Annotated[list[_Wanted], Field(max_length=16)] | None = None
    parameters: dict[str, Any] | None = None


class _Output(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any]


class InferResponse(BaseModel):
    """Labels and probabilities; a text without an answer has the label "", zeros and a reason."""

    model_config = example(
        model_name="messages",
        parameters={"reason_1": "empty text"},
        outputs=[
            {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["delivery", ""]},
            {
                "name": "probabilities",
                "datatype": "FP64",
                "shape": [2, 2],
                "data": [0.93, 0.07, 0.0, 0.0],
            },
        ],
    )

    model_name: str
    id: str | None = None
    parameters: dict[str, str] = Field(
        default_factory=dict, description="`reason_N`: why the N-th text, from 0, has no answer."
    )
    outputs: list[_Output]
