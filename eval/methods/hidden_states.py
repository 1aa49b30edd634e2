"""Penalised regression on the hidden states of the LM, which a black box doesn't give."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from eval.methods.embeddings import VectorCache
from eval.methods.gradients import resolve_folder
from eval.methods.without_lm import RegressionOverFeatures, join_pairs

__all__ = ["HiddenStates"]

_MAX_TOKENS = 512
_BATCH = 16


class HiddenStates(RegressionOverFeatures):
    """Logistic regression over the mean of each text's last hidden states.

    Parameters
    ----------
    model : str, optional
        A name of the catalogue, or a folder or hub name for transformers.
    vectors : VectorCache, optional
        A cache of the means; by default none.
    random_state : int, default=0
        Seed of the folds.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        vectors: VectorCache | None = None,
        random_state: int = 0,
    ) -> None:
        super().__init__(random_state=random_state)
        self.model = model
        self.vectors = vectors

    def _steps(self) -> list[Any]:
        return [StandardScaler()]

    def load(self) -> None:
        """Load the LM, once in a process."""
        _load(resolve_folder(self.model or "smollm2-135m"))

    def _inputs(self, X: Any) -> NDArray[np.float32]:
        source = resolve_folder(self.model or "smollm2-135m")
        vectors = self.vectors or VectorCache(None)
        # a folder of the catalogue has its digest in its name
        name = f"hidden states of {Path(source).name}"
        return vectors.of(name, join_pairs(X), lambda texts: _mean_states(source, texts))


def _mean_states(source: str, texts: list[str]) -> NDArray[np.float32]:
    """Return the mean over a text's tokens of the last hidden states, of shape (n, size)."""
    import torch

    tokenizer, lm = _load(source)
    ids = [tokenizer.encode(text)[:_MAX_TOKENS] for text in texts]
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    found = np.zeros((len(ids), lm.config.hidden_size), np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            width = len(ids[rows[-1]])
            padded = torch.tensor([[*ids[row], *[0] * (width - len(ids[row]))] for row in rows])
            mask = torch.tensor([[i < len(ids[row]) for i in range(width)] for row in rows])
            states = lm(
                input_ids=padded, attention_mask=mask.long(), use_cache=False
            ).last_hidden_state
            total = (states * mask[..., None]).sum(dim=1)
            found[rows] = (total / mask.sum(dim=1, keepdim=True)).numpy()
    return found


@cache
def _load(source: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModel

    from backends.hf.tokenizer import load_tokenizer

    return load_tokenizer(source), AutoModel.from_pretrained(source, dtype=torch.float32).eval()
