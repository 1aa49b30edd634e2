"""The options of `train`, `plan` and `prompts generate`, and the classifier they describe."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from blackbox.boosting import ALGORITHM_NAMES
from blackbox.cli import common
from blackbox.cli.help import option
from blackbox.cli.lm_options import backend_options, embeddings_model_options, read_backend
from blackbox.cli.options import (
    column_options,
    encoding_options,
    format_option,
    json_option,
    labels_options,
    row_policy_option,
    seed_option,
    together,
)
from blackbox.cli.spending_options import SpendingOptions, spending_options
from blackbox.languages import LANGUAGES

__all__ = ["training_options", "untrained"]

_Command = Callable[..., None]

_SOURCES = [
    "templates",
    "instructions",
    "questions",
    "written",
    "mutations",
    "demonstrations",
]
_OF_AUTO = (
    "generation_budget",
    "prompt_sources",
    "writer_backend",
    "writer_model",
    "writer_option",
)


_add_training_options = together(
    click.argument("data"),
    column_options,
    labels_options,
    format_option,
    encoding_options,
    option(
        "--group-column",
        metavar="COLUMN",
        group="Data",
        advanced=True,
        help="Column of groups: rows that belong together, such as texts of one customer or "
        "thread, are in one fold of cross-validation. Copies of a text always are.",
    ),
    option(
        "--classes",
        metavar="A,B,…",
        callback=lambda ctx, parameter, value: _classes(value),
        group="Data",
        help="The classes. Where DATA has no labels, the model is trained on their names alone.",
    ),
    option(
        "--none-of-these",
        metavar="LABEL",
        group="Data",
        help="Give this label to texts of none of the classes. Rows of DATA that have it are "
        "examples of such texts; there may be none.",
    ),
    option(
        "--ordered",
        is_flag=True,
        group="Learning",
        help="The classes have an order, that of --classes or of numbers: predict the median one, "
        "and report how many steps predictions are off.",
    ),
    option(
        "--labels",
        type=click.Choice(["column", "none"]),
        default="column",
        show_default=True,
        group="Data",
        advanced=True,
        help="none: use no labels, even if DATA has some; takes --classes.",
    ),
    option(
        "--shots",
        type=click.IntRange(min=1),
        metavar="K",
        group="Data",
        help="Train on K rows per class, sampled with the seed.",
    ),
    option(
        "--min-class-rows",
        type=click.IntRange(min=1),
        default=2,
        show_default=True,
        metavar="N",
        group="Data",
        advanced=True,
        help="Leave out classes of fewer rows. With classes of a single row, probabilities aren't "
        "calibrated.",
    ),
    row_policy_option,
    backend_options,
    option(
        "--batch-api",
        is_flag=True,
        group="Language model",
        advanced=True,
        help="Send requests through the API's batch endpoint: cheaper, within a day. After Ctrl-C, "
        "the same command continues.",
    ),
    option(
        "--embeddings",
        metavar="NAME|none",
        default="auto",
        callback=read_backend,
        is_eager=True,
        group="Language model",
        help="An embedding model whose vectors are evidence beside the prompts: openai, vllm, "
        "transformers; none for the LM alone.  [default: the embedded all-minilm-l6-v2 with an LM "
        "on this machine, none with an API]",
    ),
    embeddings_model_options,
    option(
        "--keep-examples",
        is_flag=True,
        group="Output",
        advanced=True,
        help="Keep the training texts in the model file, so that an explanation shows the nearest "
        "labelled ones. Whoever has the file has the texts.",
    ),
    option(
        "--library",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        group="Learning",
        help="A library of models of other tasks, trained with the same LM, to start from.",
    ),
    option(
        "--library-prompts",
        type=click.IntRange(min=0),
        metavar="N",
        default=0,
        show_default=True,
        group="Prompts",
        advanced=True,
        help="Ask at most N further prompts of the models of the library that fit best. Such a "
        "model reads those of its prompts alone that are asked.",
    ),
    option(
        "--prompts",
        metavar="FILE|auto",
        group="Prompts",
        help="A file of prompts, one per line; or auto, to generate prompts for the task.  "
        "[default: chosen among built-in prompts]",
    ),
    option(
        "--task",
        group="Prompts",
        help="The task in one line, such as a question about a text.",
    ),
    option(
        "--language",
        "languages",
        multiple=True,
        type=click.Choice([*LANGUAGES, "auto"]),
        metavar="CODE|auto",
        group="Prompts",
        help="Language of the built-in prompts; auto finds it; can be repeated.  [default: en]",
    ),
    option(
        "--n-prompts",
        type=click.IntRange(min=1),
        default=10,
        show_default=True,
        group="Prompts",
        help="Number of prompts to choose.",
    ),
    option(
        "--max-prompts",
        type=click.IntRange(min=1),
        metavar="N",
        group="Prompts",
        advanced=True,
        help="Keep the N prompts that add most, so that a prediction takes fewer forward passes.",
    ),
    option(
        "--generation-budget",
        type=click.IntRange(min=1),
        metavar="N",
        group="Prompts",
        advanced=True,
        help="Limit on the forward passes for generating prompts, training included.  "
        "[default: 4000]",
    ),
    option(
        "--prompt-source",
        "prompt_sources",
        multiple=True,
        type=click.Choice(_SOURCES),
        group="Prompts",
        advanced=True,
        help="Generate prompts from this source only; can be repeated. Demonstrations put training "
        "texts into prompts.  [default: all]",
    ),
    option(
        "--writer-backend",
        metavar="NAME",
        callback=read_backend,
        is_eager=True,
        group="Prompts",
        advanced=True,
        help="Backend of another LM that writes prompts.  [default: --backend]",
    ),
    option(
        "--writer-model",
        metavar="NAME|PATH",
        group="Prompts",
        advanced=True,
        help="Another LM that writes prompts.",
    ),
    option(
        "--writer-option",
        multiple=True,
        metavar="NAME=VALUE",
        group="Prompts",
        advanced=True,
        help="Another argument of the writer's backend; can be repeated. If that is the one of "
        "--backend, the arguments of --backend-option apply too.",
    ),
    option(
        "--label-word",
        "label_words",
        multiple=True,
        metavar="LABEL=WORD",
        group="Learning",
        help="A label word for a class; can be repeated.  [default: class names are used as label "
        "words from the start]",
    ),
    option(
        "--class-description",
        "class_descriptions",
        multiple=True,
        metavar="LABEL=TEXT",
        group="Learning",
        advanced=True,
        help="A description of a class in some words, which embeddings and a library read after "
        "its name; can be repeated. It helps most without labels.",
    ),
    option(
        "--no-label-words",
        is_flag=True,
        group="Learning",
        advanced=True,
        help="Learn verbalizers from the labels alone, without class names or label words.",
    ),
    option(
        "--algorithm",
        type=click.Choice(ALGORITHM_NAMES),
        default="logit",
        show_default=True,
        group="Learning",
        advanced=True,
        help="Boosting algorithm; samme is that of the PromptBoosting paper.",
    ),
    option(
        "--n-estimators",
        type=click.IntRange(min=1),
        group="Learning",
        advanced=True,
        help="Largest number of boosting rounds.",
    ),
    option(
        "--top-k",
        type=click.IntRange(min=1),
        default=200,
        show_default=True,
        group="Learning",
        advanced=True,
        help="Number of most likely next tokens to read per forward pass.",
    ),
    option(
        "--balanced",
        is_flag=True,
        group="Learning",
        help="Weight the rows so that all classes count the same.",
    ),
    seed_option,
    spending_options,
    json_option,
)
_OF_COMMANDS = (
    "out",
    "dry_run",
    "continued_path",
    "spending",
    "as_json",
    "model_path",
    "cluster",
)


def training_options(function: _Command) -> _Command:
    """Add the options of a training; the command gets them as `params`."""

    @functools.wraps(function)
    def collected(data: str, **kwargs: Any) -> None:
        own = {name: kwargs.pop(name) for name in _OF_COMMANDS if name in kwargs}
        function(data, params=kwargs, **own)

    return _add_training_options(collected)


def untrained(params: dict[str, Any], spending: SpendingOptions, progress: Any = None) -> Any:
    """Return the classifier that the options describe."""
    import backends
    from blackbox import PromptBoostingClassifier

    if params["embeddings"] not in ("auto", "none"):
        backends.find_embeddings(params["embeddings"])
    if params["library_prompts"] and params["library"] is None:
        raise click.UsageError("--library-prompts requires --library")
    same = (
        "model",
        "embeddings",
        "embeddings_model",
        "keep_examples",
        "library",
        "library_prompts",
        "n_prompts",
        "max_prompts",
        "task",
        "classes",
        "none_of_these",
        "ordered",
        "algorithm",
        "n_estimators",
        "top_k",
        "on_row_error",
    )
    return PromptBoostingClassifier(
        backend_options=_backend_options(params),
        embeddings_options=common.parse_backend_options(
            params["embeddings_option"], "--embeddings-option"
        ),
        random_state=params["seed"],
        callback=progress,
        **{name: params[name] for name in same}
        | {
            "backend": params["backend"],
            "prompts": _prompts(params),
            "label_words": _label_words(params),
            "class_descriptions": _class_descriptions(params["class_descriptions"]),
            "class_weight": "balanced" if params["balanced"] else None,
            "languages": _languages(params),
        }
        | params.get("of_model", {}),
        **spending.parameters(),
    )


def _classes(given: str | None) -> list[str] | None:
    """Return the classes in a list with commas, or in a JSON list where a name has one."""
    if given is None:
        return None
    try:
        parsed = json.loads(given)
    except json.JSONDecodeError:
        parsed = None
    names = parsed if isinstance(parsed, list) else [name.strip() for name in given.split(",")]
    if len(names) < 2 or not all(isinstance(name, str) and name for name in names):
        raise click.BadParameter("two names or more, such as positive,negative")
    if len(set(names)) < len(names):
        raise click.BadParameter(f"a name occurs twice in {given!r}")
    return names


def _label_words(params: dict[str, Any]) -> Any:
    given = params["label_words"]
    if params["no_label_words"]:
        if given:
            raise click.UsageError("--label-word and --no-label-words contradict each other")
        return None
    if not given:
        return "names"
    _check_label_words_are_used(params["algorithm"])
    words: dict[str, list[str]] = {}
    for label, word in _by_label("--label-word", "LABEL=WORD", given, str.rpartition):
        words.setdefault(label, []).append(word)
    return words


def _class_descriptions(given: Sequence[str]) -> dict[str, str] | None:
    pairs = _by_label("--class-description", "LABEL=TEXT", given, str.partition)
    return {label: text.strip() for label, text in pairs} or None


def _by_label(
    option: str,
    form: str,
    given: Sequence[str],
    split: Callable[[str, str], tuple[str, str, str]],
) -> list[tuple[str, str]]:
    """Return labels with what an option gives for each, split at the first or the last "="."""
    pairs = []
    for one in given:
        label, equals, value = split(one, "=")
        if not (label and equals and value.strip()):
            raise click.BadParameter(f"{one!r} is not {form}", param_hint=f"'{option}'")
        pairs.append((label, value))
    return pairs


def _check_label_words_are_used(algorithm: str) -> None:
    from blackbox.boosting.algorithms import ALGORITHMS

    if not ALGORITHMS[algorithm].uses_label_words:
        using = " or ".join(name for name, one in ALGORITHMS.items() if one.uses_label_words)
        raise click.UsageError(f"--label-word requires --algorithm {using}")


def _languages(params: dict[str, Any]) -> Any:
    if params["languages"] and params["prompts"] not in (None, "auto"):
        raise click.UsageError("--language is of built-in prompts, and --prompts names others")
    if "auto" in params["languages"]:
        if len(params["languages"]) > 1:
            raise click.UsageError("--language auto stands alone: it finds the languages itself")
        return "auto"
    return params["languages"] or "en"


def _prompts(params: dict[str, Any]) -> Any:
    from blackbox.generation import PromptGenerator
    from blackbox.prompts.pool import PromptPool

    given = [name for name in _OF_AUTO if params[name]]
    if params["prompts"] == "auto":
        asked = {
            "budget": params["generation_budget"],
            "sources": params["prompt_sources"],
            "writer": _writer(params),
        }
        return PromptGenerator(**{name: value for name, value in asked.items() if value})
    if given:
        name = given[0].removesuffix("s").replace("_", "-")
        raise click.UsageError(f"--{name} requires --prompts auto")
    return None if params["prompts"] is None else PromptPool.read(params["prompts"])


def _writer(params: dict[str, Any]) -> Any:
    """Return the LM that writes prompts, if it is another one."""
    if not any(params[name] for name in ("writer_backend", "writer_model", "writer_option")):
        return None
    import backends

    reader = params["backend"] or backends.default_for(params["model"])
    writer = (
        None if params["writer_model"] is None else backends.default_for(params["writer_model"])
    )
    name = params["writer_backend"] or params["backend"] or writer or reader
    options: dict[str, Any] = {}
    if name == reader:
        # the same backend as for classification: texts go nowhere else
        options = common.parse_backend_options(params["backend_option"])
        options |= {} if params["model"] is None else {"model": params["model"]}
    options |= common.parse_backend_options(params["writer_option"], "--writer-option")
    options |= {} if params["writer_model"] is None else {"model": params["writer_model"]}
    return backends.load(name, **options)


def _backend_options(params: dict[str, Any]) -> dict[str, Any]:
    import backends

    options = common.parse_backend_options(params["backend_option"])
    if params["batch_api"]:
        if params["backend"] != "openai":
            raise click.UsageError("--batch-api requires --backend openai")
        options["batch"] = True
    if params["image_column"] is not None and params["backend"] is not None:
        told = backends.image_option(params["backend"])
        options |= {told: True} if told and told not in options else {}
    return options
