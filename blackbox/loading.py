"""`load_model`: a trained classifier out of its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blackbox.errors import BackendError
from blackbox.estimator import ProgressCallback, PromptBoostingClassifier
from blackbox.model.file import read_model

__all__ = ["load_model"]


def load_model(
    path: str | Path,
    *,
    backend: Any = None,
    model: str | Path | None = None,
    backend_options: Mapping[str, Any] | None = None,
    allow_other_lm: bool = False,
    on_row_error: str = "raise",
    abstain_label: Any = None,
    early_stop: str | None = None,
    callback: ProgressCallback | None = None,
) -> PromptBoostingClassifier:
    """Read a trained model; the LM is reached on first use.

    A saved model never decides where texts go. An LM of our own catalogue is found by its name; any
    other has to be given here, and is compared with the one that the model was trained with.

    Parameters
    ----------
    path : str or Path
        A file that `PromptBoostingClassifier.save` wrote.
    backend, model, backend_options
        The LM, as for `PromptBoostingClassifier`.
    allow_other_lm : bool, default=False
        Accept an LM other than the one the model was trained with.
    on_row_error, abstain_label, early_stop, callback
        As for `PromptBoostingClassifier`.

    Raises
    ------
    ModelFileError
        If the file is damaged, too large, or of a format that this version doesn't read.
    BackendError
        If the LM was not given and isn't one of the catalogue.
    """
    saved = read_model(path)
    if backend is None:
        import backends

        known = backends.of_catalogue(saved.identity) if model is None else ("llamacpp", model)
        if known is None:
            raise BackendError(
                f"{path} was trained with {saved.identity.provider} {saved.identity.model!r}, "
                "which doesn't load by itself: give backend and model (--backend, --model)"
            )
        backend, model = known
    classifier = PromptBoostingClassifier(
        backend,
        model=model,
        backend_options=backend_options,
        prompts=saved.prompts,
        algorithm=saved.ensemble.algorithm.name,
        top_k=saved.top_k,
        on_row_error=on_row_error,
        abstain_label=abstain_label,
        early_stop=early_stop,
        callback=callback,
    )
    classifier._allow_other_lm = allow_other_lm
    return classifier.restore(saved)
