"""Schemas of the JSON bodies of the service's own routes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator

from blackbox.model.reliability import SMALLEST

__all__ = [
    "Health",
    "ModelDescription",
    "ModelList",
    "Name",
    "PredictRequest",
    "PredictResponse",
    "Prediction",
    "ProblemDetails",
    "Strict",
    "Text",
    "example",
]

Name = Annotated[str, Field(max_length=100)]
Label = str | int | float | bool
Share = Annotated[float, Field(ge=SMALLEST, le=1 - SMALLEST)]


def example(**body: Any) -> ConfigDict:
    """Return the configuration of a model with an example of its JSON."""
    return ConfigDict(json_schema_extra={"examples": [body]})


def _absent() -> Any:
    """Return the default of a field that may be missing but not null."""


class Strict(BaseModel):
    """A body from a client: unknown fields and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Text(Strict):
    """A text, or a pair of texts."""

    text: str
    text_pair: str | None = None


class Input(Strict):
    """A text, a pair of texts, or an image with or without a text."""

    text: str = ""
    text_pair: str | None = None
    image: str | None = Field(
        None,
        description="For a model of images: a PNG, JPEG, WebP or GIF as a data URL "
        "(data:image/png;base64,…). Addresses are not fetched.",
    )

    @model_validator(mode="after")
    def _something(self) -> Input:
        if not self.model_fields_set & {"text", "image"}:
            raise ValueError("give text, or image")
        return self


class PredictRequest(Strict):
    """One text, or several; each a string, or an object with `text`, `text_pair` or `image`."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {"text": "where is my parcel?"},
                {"texts": ["where is my parcel?", "I want a refund"], "explain": True},
            ],
            "oneOf": [{"required": ["text"]}, {"required": ["texts"]}],
        },
    )

    text: str | Input = Field(default_factory=_absent)
    texts: Annotated[list[str | Input], FailFast()] = Field(default_factory=_absent)
    model: Name | None = Field(None, description="Which model; by default the first.")
    explain: bool = Field(False, description="Whether to explain each prediction.")
    max_error: Share | None = Field(
        None,
        description="Give only labels of which at most this share is wrong, such as 0.05; a text "
        "that is too uncertain has no label, and a reason.",
    )
    set_coverage: Share | None = Field(
        None,
        description="Return for each text the fewest classes that hold the right one with this "
        "probability, such as 0.9.",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> PredictRequest:
        if len({"text", "texts"} & self.model_fields_set) != 1:
            raise ValueError("give either text or texts")
        return self


class Prediction(BaseModel):
    """The prediction for one text."""

    label: Label | list[Label] | None = Field(
        description="The class, or the list of labels of a model that gives several per text, or "
        "the label of texts of no class; null without an answer, or to keep `max_error`."
    )
    probabilities: dict[str, float] | None = Field(
        description="By class; null without an answer, or with early stopping. Of several labels "
        "per text each has a probability of its own."
    )
    abstained: bool
    reason: str | None = Field(
        None, description="Why there is no label, or why the text is of none of the classes."
    )
    truncated: bool = Field(description="Whether the text was cut to fit the language model.")
    prompts_asked: int
    p_known: float | None = Field(
        None,
        description="Of a model that notices texts of none of its classes: the share of texts of "
        "its classes that look at least as unusual.",
    )
    prediction_set: list[Label] | None = Field(
        None, description="With `set_coverage`: the classes among which the right one is."
    )
    explanation: dict[str, Any] | None = Field(
        None,
        description="What each expert, prompt and weak learner adds, and the nearest training "
        "texts of a model that keeps them, as `blackbox inspect --json`.",
    )


class PredictResponse(BaseModel):
    """The predictions, in the order of the texts."""

    model_config = example(
        model="messages",
        predictions=[
            {
                "label": "delivery",
                "probabilities": {"delivery": 0.93, "refund": 0.07},
                "abstained": False,
                "reason": None,
                "truncated": False,
                "prompts_asked": 10,
            },
            {
                "label": None,
                "probabilities": None,
                "abstained": True,
                "reason": "empty text",
                "truncated": False,
                "prompts_asked": 0,
            },
        ],
    )

    model: str
    predictions: list[Prediction]


class ModelDescription(BaseModel):
    """A model that is served."""

    model_config = example(
        name="messages",
        digest="0f3a5c7e9b1d2f40",
        classes=["delivery", "refund"],
        takes_pair=False,
        input_kind="text",
        several_labels=False,
        none_of_these=None,
        order=None,
        algorithm="logit",
        prompts=["{text} It is about {mask}"],
        top_k=200,
        early_stop=None,
        language_model={"provider": "onnx", "model": "smollm2-135m"},
        training={"n_rows": 64},
        examples=[{"text": "where is my parcel?"}],
    )

    name: str
    digest: str
    classes: list[Label]
    takes_pair: bool
    input_kind: Literal["text", "pair", "image"]
    several_labels: bool = Field(description="Whether a text may have several labels.")
    none_of_these: Label | None = Field(
        description="The label of texts of none of the classes, of a model that notices them."
    )
    order: list[Label] | None = Field(
        description="The classes from the lowest to the highest, where they have an order; the "
        "median is predicted then."
    )
    thresholds: list[float] | None = Field(
        None, description="Of several labels: the probability above which each is given."
    )
    algorithm: str
    prompts: list[str]
    top_k: int
    early_stop: str | None
    language_model: dict[str, Any]
    training: dict[str, Any]
    examples: list[Text] = Field(
        description="Texts to try, of a model that keeps texts of its training."
    )


class ModelList(BaseModel):
    """The models that are served, the default first."""

    model_config = example(models=["messages", "reviews"])

    models: list[str]


class Health(BaseModel):
    """The state of the service: it runs, or its language models answer."""

    model_config = example(status="ok")

    status: Literal["ok", "ready"]
    uncached: int = Field(
        0, description="Models whose store can't keep answers now; they answer all the same."
    )


class ErrorObject(BaseModel):
    """The reason as clients of decision endpoints read it."""

    message: str
    type: str


class ProblemDetails(BaseModel):
    """The reason why a request was refused (RFC 9457).

    `error` is the detail once more, as the Open Inference Protocol and decision endpoints have it.
    """

    type: str
    title: str
    status: int
    detail: str
    error: str | ErrorObject
    request_id: str
