"""Embeddings through vLLM's offline engine in this process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from backends.catalogue import sha256_of_folder
from backends.vllm_engine import Engine, start_llm
from blackbox.backend import BaseBackend
from blackbox.protocol import (
    BackendIdentity,
    EmbeddingParts,
    Embeddings,
    Limits,
    RenderedPrompt,
    Usage,
)

__all__ = ["VllmEmbeddings"]

_PART = 512  # texts of one call of the engine
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "modules.json", "*_Pooling/config.json")


class VllmEmbeddings(BaseBackend):
    """Embeddings of a pooling model through vLLM.

    Parameters
    ----------
    model : str or path
        A hub name or a folder; or a `vllm.LLM` that runs already, made with ``runner="pooling"``.
    context_length : int, optional
        Tokens that are read of a text; by default 2048, or what the model was made for if that is
        less.
    dtype : str, default="auto"
        As vLLM's; on a processor ``"auto"`` is float32.
    **engine_options
        Any other argument of `vllm.LLM`.

    Raises
    ------
    MissingDependencyError
        If vLLM is not installed.
    ModelNotFoundError
        If there is no such model, or it can't be fetched.
    BackendError
        If the engine doesn't start.
    """

    survives_fork = False

    def __init__(
        self,
        model: Any,
        *,
        context_length: int | None = None,
        dtype: str = "auto",
        **engine_options: Any,
    ) -> None:
        self._name = os.fspath(model) if isinstance(model, str | os.PathLike) else None
        self._options: dict[str, Any] = {
            "context_length": context_length,
            "dtype": dtype,
            **engine_options,
        }
        # an encoder has no cache of prefixes
        given = {"runner": "pooling", "enable_prefix_caching": False, **self._options}
        llm = model if self._name is None else start_llm(self._name, given)
        self._engine = Engine(llm)
        self._tokenizer = llm.get_tokenizer()
        config = llm.llm_engine.model_config
        self.identity = self._identify(llm.llm_engine.vllm_config.model_config)
        self.limits = Limits(
            max_top_k=0,
            max_score_ids=0,
            context_length=config.max_model_len,
            deterministic=False,
            counts_tokens=True,
            embedding_size=int(getattr(config, "embedding_size", 0) or config.get_hidden_size()),
        )

    def iter_embed(self, texts: Sequence[str]) -> EmbeddingParts:
        """Yield vectors in parts; see `BaseBackend`."""
        sequences = self._encode(texts)
        for start in range(0, len(sequences), _PART):
            some = sequences[start : start + _PART]
            started = time.perf_counter()
            vectors = self._engine.embed(some)
            n_tokens = sum(map(len, some))
            usage = Usage(
                passes_made=len(some),
                tokens=n_tokens,
                tokens_evaluated=n_tokens,
                tokens_least=n_tokens,
                seconds_lm=time.perf_counter() - started,
            )
            yield list(range(start, start + len(some))), Embeddings.of(vectors, {}, usage)

    def count_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the number of tokens of each text that are read, special ones included."""
        return [len(sequence) for sequence in self._encode([p.text or "" for p in prompts])]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        # UTF-8, which tokenizers read, has no half surrogates
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        limit = self._engine.llm.llm_engine.model_config.max_model_len
        ids: list[list[int]] = self._tokenizer(clean, truncation=True, max_length=limit)[
            "input_ids"
        ]
        return ids

    def _identify(self, config: Any) -> BackendIdentity:
        import vllm

        path = Path(self._name or config.model)
        return BackendIdentity(
            provider="vllm",
            endpoint="in-process",
            model=path.name if path.is_dir() else str(config.model),
            revision=str(config.revision or ""),
            weights_digest=sha256_of_folder(path, _WEIGHTS) if path.is_dir() else "",
            extra={
                "runner": "pooling",
                "format": str(config.dtype).removeprefix("torch."),
                "max_length": str(config.max_model_len),
                **({"quantization": str(config.quantization)} if config.quantization else {}),
            },
            engine=f"vllm {vllm.__version__}",
        )

    def close(self) -> None:
        """End the engine and its processes, unless it was handed over running."""
        import backends

        if self._name is not None:
            backends.forget(self)
            self._engine.close()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[dict[str, Any]]]:
        if self._name is None:
            raise TypeError("embeddings around a running engine can't be pickled: give its folder")
        return _reload, ({"model": self._name, **self._options},)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity.model!r})"


def _reload(options: dict[str, Any]) -> Any:
    import backends

    given = {key: value for key, value in options.items() if value is not None}
    return backends.load_embeddings("vllm", **given)
