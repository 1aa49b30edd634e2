"""The embedded sentence embeddings, through ONNX Runtime: the catalogue's all-MiniLM-L6-v2.

The graph is made from the model's own files at its first use (`backends.ort.bert`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from backends.catalogue import Form, find_embeddings, pull
from backends.ort.bert import write_encoder
from backends.ort.session import engine, metadata, open_session
from blackbox.backend import BaseBackend
from blackbox.errors import MissingDependencyError
from blackbox.protocol import (
    BackendIdentity,
    EmbeddingParts,
    Embeddings,
    Limits,
    RenderedPrompt,
    Usage,
)

__all__ = ["DEFAULT_MODEL", "FORM", "OnnxEmbeddings"]

DEFAULT_MODEL = "all-minilm-l6-v2"

FORM = Form("-f16.onnx", write_encoder)
"""The form of a catalogue model that this backend reads."""

_BATCH_TOKENS = 512  # padding included: larger batches leave the processor's cache
_PART = 64  # texts that are handed over together, at least


class OnnxEmbeddings(BaseBackend):
    """Sentence embeddings of a model of the catalogue on this machine's processor.

    Parameters
    ----------
    model : str, default="all-minilm-l6-v2"
        A name in the catalogue, fetched on first use.
    n_threads : int, optional
        Threads; by default the processor cores that this process may use.
    progress : callable, optional
        Called with (what, done, total) while the model is made ready.

    Raises
    ------
    MissingDependencyError
        If onnxruntime, onnx or tokenizers is not installed.
    ModelNotFoundError
        If the model can't be found, fetched or read.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        n_threads: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        name = model or DEFAULT_MODEL
        entry = find_embeddings(name)
        self._options = {"model": name, "n_threads": n_threads}
        self._session = open_session(pull(name, FORM, progress=progress), n_threads)
        notes = metadata(self._session)
        self._tokenizer = _tokenizer(notes["tokenizer"], int(notes["context_length"]))
        self._busy = threading.Lock()
        self.identity = BackendIdentity(
            provider="onnx",
            endpoint="in-process",
            model=name,
            weights_digest=entry.sha256,
            extra={"format": "f16"},
            engine=engine(),
        )
        self.limits = Limits(
            max_top_k=0,
            max_score_ids=0,
            context_length=int(notes["context_length"]),
            deterministic=False,
            counts_tokens=True,
            embedding_size=int(notes["size"]),
        )

    def iter_embed(self, texts: Sequence[str]) -> EmbeddingParts:
        """Yield vectors in parts, the shortest texts first; see `BaseBackend`."""
        sequences = self._encode(texts)
        part: list[int] = []
        vectors: list[Any] = []
        started = time.perf_counter()
        with self._busy:
            for rows in _batches([len(sequence) for sequence in sequences]):
                vectors.append(self._run([sequences[row] for row in rows]))
                part += rows
                if len(part) >= _PART:
                    yield part, self._made(vectors, part, sequences, started)
                    part, vectors, started = [], [], time.perf_counter()
            if part:
                yield part, self._made(vectors, part, sequences, started)

    def count_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the number of tokens of each text that are read, special ones included."""
        return [len(sequence) for sequence in self._encode([p.text or "" for p in prompts])]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        # UTF-8, which the library reads, has no half surrogates
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        return [made.ids for made in self._tokenizer.encode_batch(clean)]

    def _run(self, sequences: Sequence[list[int]]) -> Any:
        shape = len(sequences), max(map(len, sequences))
        tokens, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int32)
        for row, sequence in enumerate(sequences):
            tokens[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
        return self._session.run(["vectors"], {"tokens": tokens, "mask": mask})[0]

    def _made(
        self, vectors: list[Any], rows: list[int], sequences: list[list[int]], started: float
    ) -> Embeddings:
        n_tokens = sum(len(sequences[row]) for row in rows)
        usage = Usage(
            passes_made=len(rows),
            tokens=n_tokens,
            tokens_evaluated=n_tokens,
            tokens_least=n_tokens,
            seconds_lm=time.perf_counter() - started,
        )
        return Embeddings.of(np.concatenate(vectors), {}, usage)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[dict[str, Any]]]:
        return _reload, (self._options,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity.model!r})"


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the rows of each batch, the shortest first, so that little is padding."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[row] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _tokenizer(definition: str, longest: int) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependencyError(
            "the embedded embeddings need tokenizers: pip install 'promptboosting[local]'"
        ) from error
    tokenizer = Tokenizer.from_str(definition)
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    return tokenizer


def _reload(options: dict[str, Any]) -> Any:
    import backends

    return backends.load_embeddings("onnx", **{k: v for k, v in options.items() if v is not None})
