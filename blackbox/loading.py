"""`load_model`: loads a saved model as a scikit-learn classifier, to predict or train further."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from blackbox.estimator import PromptBoostingClassifier
from blackbox.fitting.saved_options import saved_options
from blackbox.lm.connect import default_backend, default_embeddings
from blackbox.model.file import read_model
from blackbox.model.model import Model, Progress

__all__ = ["load_model", "parameters_of"]


def parameters_of(
    trained: Model,
    path: str | Path,
    *,
    backend: Any = None,
    model: str | Path | None = None,
    embeddings: Any = None,
    embeddings_model: str | Path | None = None,
) -> dict[str, Any]:
    """Return the parameters of a classifier that goes on with a trained model.

    Its prompts, classes and LM, and the options that its file keeps. Not its library, which the
    file doesn't name.

    Parameters
    ----------
    trained : Model
        The trained model.
    path : str or Path
        Its file, for messages.
    backend, model, embeddings, embeddings_model
        The LM and the embedding model, where they are not of the catalogue.

    Raises
    ------
    BackendError
        If no LM, or no embedding model, is given and that of the training is not in the catalogue.
    """
    if backend is None:
        backend, model = default_backend(trained.identity, str(path), model)
    if embeddings is None and trained.embedder_identity is not None:
        embeddings, embeddings_model = default_embeddings(
            trained.embedder_identity, str(path), embeddings_model
        )
    elif embeddings is None:
        embeddings = saved_options(trained).get("embeddings")
    order = trained.order
    return saved_options(trained) | {
        "backend": backend,
        "model": model,
        "embeddings": embeddings,
        "embeddings_model": embeddings_model,
        "prompts": trained.prompts,
        "classes": (trained.classes if order is None else trained.classes[order]).tolist(),
        "algorithm": trained.ensemble.algorithm.name,
        "top_k": trained.top_k,
        "keep_examples": trained.examples is not None and not trained.shows_examples,
    }


def load_model(
    path: str | Path,
    *,
    backend: Any = None,
    model: str | Path | None = None,
    backend_options: Mapping[str, Any] | None = None,
    embeddings: Any = None,
    embeddings_model: str | Path | None = None,
    embeddings_options: Mapping[str, Any] | None = None,
    allow_other_lm: bool = False,
    on_row_error: str = "raise",
    abstain_label: Any = None,
    max_error: float | None = None,
    early_stop: str | None = None,
    callback: Progress | None = None,
) -> PromptBoostingClassifier:
    """Return a trained classifier from its file; the LM is loaded on first use.

    Its parameters are those of the training, so that `fit` with more labels goes on with the same
    prompts, whose answers are in the store: ``load_model(path).fit(texts, labels)``. They don't
    include the library of the training, which the file doesn't name.

    A saved model never decides where texts are sent. An LM of the catalogue is found by its name;
    any other must be given here, and its identity is compared with that of the training LM.

    Parameters
    ----------
    path : str or Path
        A file that `PromptBoostingClassifier.save` wrote, or ``hf:owner/name`` for a model of the
        Hugging Face hub (``hf:owner/name@revision`` for a branch, tag or commit).
    backend, model, backend_options
        The LM, as for `PromptBoostingClassifier`.
    embeddings, embeddings_model, embeddings_options
        The embedding model, where the model reads one that is not of the catalogue.
    allow_other_lm : bool, default=False
        Accept an LM, or an embedding model, other than the one the model was trained with.
    on_row_error, abstain_label, max_error, early_stop, callback
        As for `PromptBoostingClassifier`.

    Raises
    ------
    ModelFileError
        If the file is damaged, too large, or of a format that this version can't read.
    BackendError
        If no LM, or no embedding model, is given and that of the training is not in the catalogue.
    """
    trained = read_model(path)
    classifier = PromptBoostingClassifier(
        backend_options=backend_options,
        embeddings_options=embeddings_options,
        on_row_error=on_row_error,
        abstain_label=abstain_label,
        max_error=max_error,
        early_stop=early_stop,
        callback=callback,
        **parameters_of(
            trained,
            path,
            backend=backend,
            model=model,
            embeddings=embeddings,
            embeddings_model=embeddings_model,
        ),
    )
    classifier._allow_other_lm = allow_other_lm
    classifier.model_ = trained
    columns = trained.summary.get("columns")  # of any JSON type, as a file can hold any
    if isinstance(columns, list) and all(isinstance(one, str) for one in columns):
        classifier.feature_names_in_ = np.array(columns, object)
    return classifier
