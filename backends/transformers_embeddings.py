"""Sentence embeddings through sentence-transformers, in this process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from backends.catalogue import sha256_of_folder
from backends.hf.quiet import quiet
from backends.openmp import limit_torch, passive_waiting
from blackbox.backend import BaseBackend
from blackbox.errors import MissingDependencyError, ModelNotFoundError
from blackbox.protocol import (
    BackendIdentity,
    EmbeddingParts,
    Embeddings,
    Limits,
    RenderedPrompt,
    Usage,
)

__all__ = ["TransformersEmbeddings"]

_FILES = ("*.safetensors", "*.bin", "modules.json", "*_Pooling/config.json", "*/*.safetensors")
_PART = 256  # texts that are handed over together
_CONTEXT = 512  # tokens, where the model doesn't say


class TransformersEmbeddings(BaseBackend):
    """Sentence embeddings of a sentence-transformers model, pooled as its ``modules.json`` says.

    A folder without that file gets the mean of its last hidden states.

    Parameters
    ----------
    model : str or path
        A hub name or a folder; or a loaded ``SentenceTransformer``.
    device : str, optional
        Such as ``"cuda:0"``; by default the library's choice.
    batch_size : int, default=32
        Texts of one forward pass.
    revision : str, optional
        Branch, tag or commit of a hub name.
    trust_remote_code : bool, default=False
        Run code that comes with the model. Only for models that you trust as much as a program.

    Raises
    ------
    MissingDependencyError
        If sentence-transformers is not installed.
    ModelNotFoundError
        If there is no such model, or it can't be fetched or read.
    """

    def __init__(
        self,
        model: Any,
        *,
        device: str | None = None,
        batch_size: int = 32,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        try:
            with passive_waiting("torch"):
                from sentence_transformers import SentenceTransformer

                limit_torch()
        except ImportError as error:
            raise MissingDependencyError(
                "these embeddings need sentence-transformers: "
                "pip install 'promptboosting[transformers]'"
            ) from error
        self._name = os.fspath(model) if isinstance(model, str | os.PathLike) else None
        self._options: dict[str, Any] = {
            "model": self._name,
            "device": device,
            "batch_size": batch_size,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
        }
        self._batch_size = batch_size
        self._busy = threading.Lock()
        self._model = model
        if self._name is not None:
            try:
                with quiet():
                    self._model = SentenceTransformer(
                        self._name,
                        device=device,
                        revision=revision,
                        trust_remote_code=trust_remote_code,
                    )
            except (OSError, ValueError, KeyError) as error:
                why = " ".join(str(error).split())[:200]
                raise ModelNotFoundError(f"{self._shown} can't be loaded: {why}") from error
        self.identity = self._identify(revision)
        self.limits = Limits(
            max_top_k=0,
            max_score_ids=0,
            context_length=self._model.get_max_seq_length() or _CONTEXT,
            deterministic=False,
            counts_tokens=True,
            embedding_size=int(self._model.get_embedding_dimension()),
        )

    def iter_embed(self, texts: Sequence[str]) -> EmbeddingParts:
        """Yield vectors in parts, as they are made; see `BaseBackend`."""
        # UTF-8, which tokenizers read, has no half surrogates
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        lengths = self._lengths(clean)
        order = sorted(range(len(clean)), key=lengths.__getitem__)
        for start in range(0, len(order), _PART):
            rows = order[start : start + _PART]
            started = time.perf_counter()
            with self._busy:
                vectors = self._model.encode(
                    [clean[row] for row in rows],
                    batch_size=self._batch_size,
                    show_progress_bar=False,
                    convert_to_numpy=True,
                )
            n_tokens = sum(lengths[row] for row in rows)
            usage = Usage(
                passes_made=len(rows),
                tokens=n_tokens,
                tokens_evaluated=n_tokens,
                tokens_least=n_tokens,
                seconds_lm=time.perf_counter() - started,
            )
            yield rows, Embeddings.of(vectors, {}, usage)

    def count_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the number of tokens of each text that are read, special ones included."""
        texts = [(p.text or "").encode("utf-8", "replace").decode() for p in prompts]
        return self._lengths(texts)

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        limit = self._model.get_max_seq_length() or _CONTEXT
        ids = self._model.tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
        return [len(one) for one in ids]

    @property
    def _shown(self) -> str:
        """The model's name, without the path of its folder."""
        path = Path(self._name or "")
        return path.name if path.is_dir() else self._name or ""

    def _identify(self, revision: str | None) -> BackendIdentity:
        name, folder = self._shown or "a loaded model", Path(self._name or "")
        kinds = sorted({str(value.dtype) for value in self._model.parameters()})
        return BackendIdentity(
            provider="transformers",
            endpoint="in-process",
            model=name,
            revision=revision or "",
            weights_digest=sha256_of_folder(folder, _FILES) if folder.is_dir() else "",
            extra={
                "format": ",".join(kind.removeprefix("torch.") for kind in kinds),
                "max_length": str(self._model.get_max_seq_length() or ""),
            },
            engine=_engine(),
        )

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[dict[str, Any]]]:
        if self._name is None:
            raise TypeError("embeddings around a loaded model can't be pickled: give its folder")
        return _reload, (self._options,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity.model!r})"


def _engine() -> str:
    import sentence_transformers
    import torch

    return f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}"


def _reload(options: dict[str, Any]) -> Any:
    import backends

    given = {key: value for key, value in options.items() if value is not None}
    return backends.load_embeddings("transformers", **given)
