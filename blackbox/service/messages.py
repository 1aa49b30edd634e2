"""The JSON that goes in and out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "InferRequest",
    "InferResponse",
    "Model",
    "ModelList",
    "PredictRequest",
    "PredictResponse",
    "Prediction",
    "ProblemDetails",
    "Text",
    "V2Metadata",
    "V2Model",
]

Name = Annotated[str, Field(max_length=100)]
Label = str | int | float | bool


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Text(_Strict):
    """A text, or a pair of texts."""

    text: str
    text_pair: str | None = None


class PredictRequest(_Strict):
    """One text, or several; each a string, or an object with `text` and `text_pair`."""

    model_config = ConfigDict(
        extra="forbid", strict=True,
        json_schema_extra={"examples": [{"text": "where is my parcel?"},
                                        {"texts": ["where is my parcel?", "I want a refund"],
                                         "explain": True}],
                           "oneOf": [{"required": ["text"]}, {"required": ["texts"]}]},
    )  # fmt: skip

    text: str | Text | None = None
    texts: list[str | Text] | None = None
    model: Name | None = Field(None, description="Which model; by default the first.")
    explain: bool = Field(False, description="Whether to say why.")

    @model_validator(mode="after")
    def _one_of_both(self) -> PredictRequest:
        if (self.text is None) == (self.texts is None):
            raise ValueError("give either text or texts")
        return self


class Prediction(BaseModel):
    """What a model says of one text."""

    label: Label | None = Field(description="The class; null without an answer.")
    probabilities: dict[str, float] | None = Field(
        description="By class; null without an answer, or where the service stops early."
    )
    abstained: bool
    reason: str | None = Field(None, description="Why there is no answer.")
    truncated: bool = Field(description="Whether the text was cut to fit the language model.")
    prompts_asked: int
    explanation: dict[str, Any] | None = Field(
        None, description="What each prompt and weak learner adds, as `blackbox inspect --json`."
    )


class PredictResponse(BaseModel):
    """The predictions, in the order of the texts."""

    model: str
    predictions: list[Prediction]


class Model(BaseModel):
    """A model that is served."""

    name: str
    digest: str
    classes: list[Label]
    takes_pair: bool
    algorithm: str
    prompts: list[str]
    top_k: int
    early_stop: str | None
    language_model: dict[str, Any]
    training: dict[str, Any]


class ModelList(BaseModel):
    """The models that are served, the default first."""

    models: list[str]


class ProblemDetails(BaseModel):
    """Why a request was refused (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    error: str
    request_id: str


class V2Metadata(BaseModel):
    """The service, in the Open Inference Protocol."""

    name: str
    version: str
    extensions: list[str]


class _Tensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class V2Model(BaseModel):
    """A model, in the Open Inference Protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[_Tensor]
    outputs: list[_Tensor]


class _Input(_Strict):
    name: Literal["text", "text_pair"]
    shape: Annotated[list[int], Field(min_length=1, max_length=2)]
    datatype: Literal["BYTES"]
    data: list[str]
    parameters: dict[str, Any] | None = None


class _Wanted(_Strict):
    name: Literal["label", "probabilities"]
    parameters: dict[str, Any] | None = None


class InferRequest(_Strict):
    """Texts, in the Open Inference Protocol."""

    model_config = ConfigDict(
        extra="forbid", strict=True,
        json_schema_extra={"examples": [{"inputs": [{"name": "text", "shape": [1],
                                                     "datatype": "BYTES",
                                                     "data": ["where is my parcel?"]}]}]},
    )  # fmt: skip

    id: Annotated[str, Field(max_length=200)] | None = None
    inputs: Annotated[list[_Input], Field(min_length=1, max_length=2)]
    outputs: list[_Wanted] | None = None
    parameters: dict[str, Any] | None = None


class _Output(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any]


class InferResponse(BaseModel):
    """Labels and probabilities, in the Open Inference Protocol."""

    model_name: str
    id: str | None = None
    outputs: list[_Output]
