"""In-context learning with retrieved demonstrations: the labelled rows that are most alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils._param_validation import Interval

from blackbox.answers.passes import Answers
from blackbox.prompts.inputs import Example, texts_of
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import RenderedPrompt
from eval.methods.base import Codes
from eval.methods.embeddings import CachedEmbeddings
from eval.methods.label_words import InContextDemonstrations

__all__ = ["RetrievedDemonstrations"]


class RetrievedDemonstrations(InContextDemonstrations):
    """In-context learning: the labelled rows nearest to a text precede it, the nearest last.

    Source: Liu et al., "What makes good in-context examples for GPT-3?", DeeLIO 2022. Nearest by
    the cosine of sentence embeddings.

    Parameters
    ----------
    backend, prompts, words, calibration, top_k, random_state
        As for `LabelWords`. The prompt is one of raw text.
    n_shown : int, default=4
        Demonstrations in all; fewer if they don't fit into the LM's context.
    embeddings : CachedEmbeddings, optional
        The embedding model; by default one without a cache.
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012
        "n_shown": [Interval(Integral, 1, None, closed="left")]
    }

    def __init__(
        self,
        backend: Any,
        prompts: PromptPool,
        *,
        words: Mapping[str, str],
        n_shown: int = 4,
        embeddings: CachedEmbeddings | None = None,
        calibration: str | None = None,
        top_k: int = 200,
        random_state: int = 0,
    ) -> None:
        super().__init__(
            backend,
            prompts,
            words=words,
            calibration=calibration,
            top_k=top_k,
            random_state=random_state,
        )
        self.n_shown = n_shown
        self.embeddings = embeddings

    def _prepare(self, examples: list[Example], codes: Codes) -> None:
        self._shown_words = [self.words[str(self.classes_[code])] for code in codes]
        self._labelled = examples
        self._vectors = self._embed(examples)
        self._near: dict[Example, list[int]] = {}

    def _run(self, examples: Sequence[Example]) -> Answers:
        order = np.argsort(self._embed(examples) @ self._vectors.T, axis=1, kind="stable")
        self._near = dict(zip(examples, order[:, -self.n_shown :].tolist(), strict=True))
        return super()._run(examples)

    def _request(self, example: Example) -> RenderedPrompt:
        near = self._near.get(example, [])
        for first in range(len(near) + 1):
            self.demonstrations_ = "".join(
                f"{self._render_text(self._labelled[row])} {self._shown_words[row]}\n\n"
                for row in near[first:]
            )
            if first == len(near) or self._holds(super()._request(example)):
                break
        return super()._request(example)

    def _embed(self, examples: Sequence[Example]) -> Any:
        embeddings = self.embeddings or CachedEmbeddings()
        return embeddings.embed(["\n".join(texts_of(example)) for example in examples]).vectors
