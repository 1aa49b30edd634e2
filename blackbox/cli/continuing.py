"""`--continue MODEL`: trains on more labels, with the prompts, classes and options of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from blackbox.cli import common
from blackbox.cli.help import option

__all__ = ["continue_option", "continued", "refuse_another_lm"]

_PARAMETERS = {  # options of the command that are not named as the classifier's parameters are
    "no_label_words": "label_words",
    "balanced": "class_weight",
}

continue_option = option(
    "--continue",
    "continued_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="MODEL",
    group="Data",
    help="Train further: with the prompts, classes, LM and options of MODEL, where no others are "
    "given here. What it asked about DATA is in the store, so that only new texts cost anything.",
)


def continued(params: dict[str, Any], path: Path | None) -> dict[str, Any]:
    """Return the parameters of a training, with those of a model where none were given.

    Parameters
    ----------
    params : dict
        From `blackbox.cli.training_options.training_options`.
    path : Path, optional
        The file of the model; without it the parameters are as they are.

    Returns
    -------
    dict
        Also with `of_model`, the parameters of the classifier that the command line doesn't name,
        and `continued`, the model.
    """
    if path is None:
        return params
    from blackbox.cli.predict import check_kind
    from blackbox.loading import parameters_of
    from blackbox.model.multilabel import MultilabelModel

    trained = common.read_trained(path)
    if isinstance(trained, MultilabelModel) or params["label_separator"] is not None:
        raise click.UsageError(
            f"--continue {path}: not with several labels per text, where the same command as "
            "before trains anew with what is in the store"
        )
    _check_classes(trained, path, params["classes"])
    check_kind(trained, params["text_pair_column"], params["image_column"])
    embeddings = None if params["embeddings"] == "auto" else params["embeddings"]
    found = parameters_of(
        trained,
        path,
        backend=params["backend"],
        model=params["model"],
        embeddings=embeddings,
        embeddings_model=params["embeddings_model"],
    )
    named = {_PARAMETERS.get(name, name) for name in _named_here(params)}
    if trained.ensemble.sources and params["library"] is None:
        common.say(
            f"{path} started from a library, and its file doesn't say where that is: give "
            "--library again to start from it"
        )
    of_model = {name: value for name, value in found.items() if name not in named}
    return params | {
        "classes": found["classes"],
        "none_of_these": of_model.get("none_of_these", params["none_of_these"]),
        "of_model": of_model | {"classes": found["classes"]},
        "continued": trained,
    }


def refuse_another_lm(params: dict[str, Any], path: Path | None, lm: Any) -> None:
    """Raise if the LM is not that of the model to go on with, whose answers are in the store."""
    if path is None:
        return
    differences = params["continued"].identity.differences(lm.identity)
    if differences:
        raise click.UsageError(
            f"--continue {path}: another LM answers than the one it was trained with "
            f"({'; '.join(differences)}); give that one, or train anew without --continue"
        )


def _named_here(params: dict[str, Any]) -> set[str]:
    """Return the options that the command line itself names."""
    context = click.get_current_context()
    return {
        name for name in params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


def _check_classes(trained: Any, path: Path, given: list[str] | None) -> None:
    known = trained.classes.tolist()
    if not all(isinstance(label, str) for label in known):
        raise click.UsageError(
            f"--continue {path}: its labels are numbers, and a table has text; go on in Python, "
            "with load_model(path).fit(texts, labels)"
        )
    if given is not None and sorted(given) != sorted(known):
        raise click.UsageError(
            f"--continue {path}: its classes are {', '.join(known)}, and --classes names others; "
            "leave --classes out, or train anew without --continue"
        )
