"""The options of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.boosting.algorithms import ALGORITHMS
from blackbox.boosting.label_words import check_labels, given_words
from blackbox.boosting.training import TrainingOptions
from blackbox.generation import Prompts, generator_of
from blackbox.languages import LANGUAGES, common_languages
from blackbox.model.ordered import order_of
from blackbox.prompts.inputs import Example, input_kind

__all__ = ["FitOptions"]


@dataclass(frozen=True)
class FitOptions:
    """The options of a training; each is a parameter of `blackbox.PromptBoostingClassifier`."""

    prompts: Prompts
    n_prompts: int
    max_prompts: int | None
    n_screening_rows: int
    task: str | None
    class_names: Mapping[Any, str] | None
    label_words: Mapping[Any, str | Sequence[str]] | str | None
    algorithm: str
    n_estimators: int | None
    learning_rate: float
    tokens_per_class: int
    cv: int | None
    validation_fraction: float
    top_k: int
    min_token_share: float
    on_row_error: str
    class_weight: Mapping[Any, float] | str | None
    keep_examples: bool = False
    library: str | Path | None = None
    library_prompts: int = 0
    classes: Sequence[Any] | None = None
    none_of_these: Any = None
    ordered: bool = False
    languages: Sequence[str] | str = "en"
    embeddings: Any = "auto"
    class_descriptions: Mapping[Any, str] | None = None

    def prompt_languages(self, texts: Sequence[Example], known: Sequence[str]) -> tuple[str, ...]:
        """Return the languages of the built-in prompts for some texts.

        ``"auto"`` is English, and the common languages of the texts that the LM may know. Prompts
        for images are in English.

        Parameters
        ----------
        texts : sequence of Example
            Texts, or pairs of texts.
        known : sequence of str
            The languages that the LM knows; empty where that isn't known.

        Raises
        ------
        ValueError
            On languages that there are no prompts in.
        """
        if self.prompts is not None and generator_of(self.prompts) is None:
            return ("en",)  # none is asked for
        if input_kind(texts[0][1]) == "image":
            return ("en",)
        if self.languages == "auto":
            served = [one for one in LANGUAGES if one != "en" and (not known or one in known)]
            common = common_languages([text for text, _ in texts]) if served else {}
            return ("en", *(one for one in served if one in common))
        given = [self.languages] if isinstance(self.languages, str) else list(self.languages)
        unknown = [language for language in given if language not in LANGUAGES]
        if unknown or not given:
            raise ValueError(
                f"languages has {unknown}: there are built-in prompts in {', '.join(LANGUAGES)}"
            )
        return tuple(dict.fromkeys(given))

    def order(self, classes: NDArray[Any]) -> NDArray[np.intp] | None:
        """Return the order of the classes, where they have one; see `order_of`."""
        return order_of(classes, self.classes) if self.ordered else None

    def names(self, classes: NDArray[Any]) -> list[str]:
        """Return a readable name for each class."""
        given = self.class_names or {}
        check_labels("class_names", given, classes.tolist())
        return [str(given.get(label, label)) for label in classes.tolist()]

    def described_names(self, classes: NDArray[Any]) -> list[str]:
        """Return the name of each class, and its description where there is one."""
        given = self.class_descriptions or {}
        check_labels("class_descriptions", given, classes.tolist())
        for label, text in given.items():
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"class_descriptions of {label!r} must be words, got {text!r}")
        named = zip(classes.tolist(), self.names(classes), strict=True)
        return [f"{name}: {given[label]}" if label in given else name for label, name in named]

    def boosting(self, classes: NDArray[Any]) -> TrainingOptions:
        """Return the options of boosting."""
        return TrainingOptions(
            algorithm=ALGORITHMS[self.algorithm],
            n_classes=len(classes),
            n_estimators=self.n_estimators,
            learning_rate=self.learning_rate,
            tokens_per_class=self.tokens_per_class,
            cv=self.cv,
            validation_fraction=self.validation_fraction,
            min_token_share=self.min_token_share,
            label_words=self._label_words(classes),
        )

    def balanced(
        self, codes: NDArray[np.intp], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return weights for ``class_weight='balanced'``, else unchanged."""
        if self.class_weight != "balanced":
            return weights
        totals = np.bincount(codes, weights=weights)
        seen = totals > 0
        factors = totals[seen].mean() / np.where(seen, totals, 1.0)
        return np.asarray(weights * factors[codes])

    def without_class_weights(
        self, codes: NDArray[np.intp], weights: NDArray[np.float64], classes: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Return weights of rows without those that are given for their classes."""
        if not isinstance(self.class_weight, Mapping):
            return weights
        factors = np.array([self.class_weight.get(label, 1.0) for label in classes.tolist()])
        return np.asarray(weights / factors[codes])

    def _label_words(self, classes: NDArray[Any]) -> list[list[str]]:
        """The label words of each class; an empty list where none shall be used."""
        if self.label_words is None:
            return []
        given = {} if isinstance(self.label_words, str) else self.label_words
        return given_words(given, classes.tolist(), self.names(classes))
