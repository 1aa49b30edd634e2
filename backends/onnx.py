"""The embedded LM, through ONNX Runtime: the catalogue's model with 8-bit weights.

The prompts of a call are put into prefix trees (`backends.trees`), so that what they share is
evaluated once. The graph is made from the model's own file at its first use (`backends.ort.llama`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from backends.catalogue import Form, find, pull
from backends.local import LocalBackend, TopPart
from backends.ort.forward import OrtForward
from backends.ort.llama import write_graph
from backends.ort.session import engine, metadata, open_session
from backends.ort.tokenizer import OrtTokenizer
from backends.trees import distinct_tokens
from blackbox.errors import ModelNotFoundError
from blackbox.protocol import BackendIdentity, Limits

__all__ = ["DEFAULT_MODEL", "FORM", "OnnxBackend"]

DEFAULT_MODEL = "smollm2-135m"

FORM = Form("-int8.onnx", write_graph)
"""The form of a catalogue model that this backend reads."""

_MAX_TOP_K = 1000
_CONTEXT_LENGTH = 2048


class OnnxBackend(LocalBackend):
    """Forward passes of a model of the catalogue on this machine's processor.

    Parameters
    ----------
    model : str, default="smollm2-135m"
        A name in the catalogue, fetched on first use.
    context_length : int, optional
        Tokens that one prompt may have: 2048 by default, at most what the model was made for.
        Memory grows with the square of the longest prompt.
    n_threads : int, optional
        Threads; by default the processor cores that this process may use.
    progress : callable, optional
        Called with (what, done, total) while the model is made ready.

    Raises
    ------
    MissingDependencyError
        If onnxruntime or tokenizers is not installed.
    ModelNotFoundError
        If the model can't be found, fetched or read.
    """

    context_option = "context_length"

    def __init__(
        self,
        model: str | None = None,
        *,
        context_length: int | None = None,
        n_threads: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        name = model or DEFAULT_MODEL
        if name.endswith(".gguf"):
            raise ModelNotFoundError(
                f"{name}: this backend runs the models of the catalogue; give --backend llamacpp "
                "for another GGUF file"
            )
        entry = find(name)
        self._options = {"model": name, "context_length": context_length, "n_threads": n_threads}
        session = open_session(pull(name, FORM, progress=progress), n_threads)
        notes = metadata(session)
        tokenizer = OrtTokenizer(notes["vocabulary"])
        super().__init__(tokenizer)
        self._forward = OrtForward(session, tokenizer.end_token_id)
        longest = int(notes["context_length"])
        self.identity = BackendIdentity(
            provider="onnx",
            endpoint="in-process",
            model=name,
            # of the file that the graph is made from: it holds tokenizer and chat template, too
            weights_digest=entry.sha256,
            extra={"document_start": tokenizer.start_piece, "format": "int8"},
            engine=engine(),
        )
        self.limits = Limits(
            max_top_k=_MAX_TOP_K,
            max_score_ids=0,
            context_length=min(context_length or _CONTEXT_LENGTH, longest),
            deterministic=True,
            raw_text=True,
            chat=tokenizer.has_chat,
            answer_prefix=tokenizer.has_chat,
            generates=True,
            counts_tokens=True,
            shares_prefixes=True,
            languages=entry.languages,
        )

    def top(self, sequences: Sequence[list[int]], top_k: int) -> Iterator[TopPart]:
        """See `LocalBackend`."""
        yield from self._forward.top(sequences, top_k)

    def least(self, sequences: Sequence[list[int]]) -> int:
        """See `LocalBackend`."""
        return distinct_tokens(sequences)

    def write(
        self, sequence: list[int], seeds: Sequence[int], max_tokens: int, temperature: float
    ) -> list[list[int]]:
        """See `LocalBackend`."""
        return self._forward.write(sequence, seeds, max_tokens, temperature)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[dict[str, Any]]]:
        return _reload, (self._options,)


def _reload(options: dict[str, Any]) -> Any:
    import backends

    return backends.load("onnx", **{k: v for k, v in options.items() if v is not None})
