"""vLLM's offline engine in this process: the GPU core.

One engine, many prompts per call, one token each. Prompts go in as token ids, in the order of their
prefix tree, so that the engine's prefix cache finds what prompts share. Those of one image follow
on each other, and have one token in its place, which the engine replaces.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.catalogue import sha256_of, sha256_of_folder
from backends.hf.tokenizer import PromptTokenizer
from backends.hf.vision import ImageIds, ImageReader, load_processor
from backends.prefixes import common_prefix_length
from backends.vllm_engine import MAX_TOP_K, Engine, first_position, most_scored, start_llm
from blackbox.backend import BaseBackend
from blackbox.errors import BackendError, BackendResponseError
from blackbox.images import checked_side
from blackbox.protocol import (
    NO_TOKEN,
    AnswerParts,
    BackendIdentity,
    Draws,
    Limits,
    RenderedPrompt,
    TokenLogProbs,
    TokenScores,
    Usage,
    check_served,
)

__all__ = ["VllmBackend"]

_FIRST_PART, _LARGEST_PART = 64, 1024  # prompts of one call of the engine
_REQUESTS = 8192  # of a call: between two calls the engine has nothing to do
_PART_SECONDS = 5.0  # what one call should take: answers are kept part by part
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")


class VllmBackend(BaseBackend):
    """Forward passes of a causal LM through vLLM.

    Parameters
    ----------
    model : str or path
        A hub name or a folder; or a `vllm.LLM` that runs already, made with
        ``max_logprobs`` of at least the top k that is wanted.
    context_length : int, optional
        Tokens that a prompt may have; by default 2048, or what the model was made for if that is
        less.
    block_size : int, optional
        Tokens of a block of the prefix cache, which reuses whole blocks only. By default the
        smallest that the device takes, as texts are short: 16 on a GPU, 32 on a processor.
    dtype : str, default="auto"
        As vLLM's; on a processor ``"auto"`` is float32.
    tensor_parallel_size : int, default=1
        GPUs that share one model. To have a copy of the model on each GPU, run ``vllm serve`` with
        ``--data-parallel-size`` and the backend for APIs: vLLM has no such engine in one process.
    gpu_memory_utilization : float, optional
        Share of the GPU's memory that the engine takes.
    quantization, revision, tokenizer : str, optional
        As vLLM's.
    trust_remote_code : bool, default=False
        Run code that comes with the model. Only for models that you trust as much as a program.
    max_image_side : int, optional
        Pixels of the longest side to which a larger image is resized before a vision-language
        model's own processing, which is part of the identity; by default none is resized.
    **engine_options
        Any other argument of `vllm.LLM`.

    Raises
    ------
    MissingDependencyError
        If vLLM is not installed.
    ModelNotFoundError
        If there is no such model, or it can't be fetched.
    BackendError
        If the engine doesn't start, or one that runs already can't serve.
    """

    context_option = "context_length"
    survives_fork = False

    def __init__(
        self,
        model: Any,
        *,
        context_length: int | None = None,
        block_size: int | None = None,
        dtype: str = "auto",
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float | None = None,
        quantization: str | None = None,
        revision: str | None = None,
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        max_image_side: int | None = None,
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
            "max_image_side": max_image_side,
            **engine_options,
        }
        self._name = os.fspath(model) if isinstance(model, str | os.PathLike) else None
        side = checked_side(max_image_side)
        llm = model if self._name is None else start_llm(self._name, self._options)
        config = llm.llm_engine.model_config
        _check_engine(config)
        reader = _image_reader(config, side)
        self._engine = Engine(llm, side)
        self._tokenizer = PromptTokenizer(llm.get_tokenizer(), masked=False, reader=reader)
        self._token_bytes: dict[int, bytes] = {}
        self.identity = self._identify(llm.llm_engine.vllm_config, reader)
        most = MAX_TOP_K if config.max_logprobs == -1 else config.max_logprobs
        self.limits = Limits(
            max_top_k=min(most, config.get_vocab_size()),
            max_score_ids=most_scored(),
            context_length=config.max_model_len,
            deterministic=False,
            raw_text=True,
            chat=self._tokenizer.has_chat,
            answer_prefix=self._tokenizer.has_chat,
            generates=True,
            counts_tokens=True,
            shares_prefixes=True,
            requests_at_a_time=_REQUESTS,
            **(reader.limits() if reader else {}),
        )

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield the most likely next tokens in parts; see `BaseBackend`."""
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
                some_ids, some_values = first_position(output)
                order = np.lexsort((some_ids, -some_values))[:top_k]
                ids[place, : len(order)] = some_ids[order]
                values[place, : len(order)] = some_values[order]
            np.minimum(values, 0, out=values)
            yield rows, TokenLogProbs(ids, values, self._names(ids), {}, usage)

    def score(self, prompts: Sequence[RenderedPrompt], token_ids: Sequence[int]) -> TokenScores:
        """Return the log-probabilities of given tokens; see `BaseBackend`."""
        check_served(self.limits, prompts)
        if len(token_ids) > self.limits.max_score_ids:
            raise BackendError(
                f"{len(token_ids)} tokens to score, at most {self.limits.max_score_ids} at a time"
            )
        wanted = np.asarray(token_ids, np.int64)
        served, sequences, refused = self._encode(prompts)
        scores = np.full((len(prompts), len(wanted)), np.nan, np.float32)
        total = Usage()
        if not len(wanted):
            return TokenScores(scores, refused)
        for rows, outputs, usage in self._run(served, sequences, logprob_token_ids=wanted.tolist()):
            total += usage
            for row, output in zip(rows, outputs, strict=True):
                ids, values = first_position(output)
                if not np.isin(wanted, ids).all():
                    raise BackendResponseError("vLLM's answer lacks a token that was asked for")
                scores[row] = values[np.searchsorted(ids, wanted)]
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
        """Return texts that the LM writes; see `BaseBackend`."""
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
        outputs = self._engine.ask([sequences[places[row]] for row, _ in jobs], asked)
        for (row, _), output in zip(jobs, outputs, strict=True):
            texts[row].append(output.outputs[0].text)
            usage += _taken(output, len(output.outputs[0].token_ids))
        usage.seconds_lm = time.perf_counter() - started
        return Draws(texts, refused, usage)

    def count_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the number of tokens of each prompt, special ones included."""
        return [len(sequence) for sequence in self._tokenizer.encode_all(prompts)]

    def show(self, prompt: RenderedPrompt) -> tuple[str, list[int]]:
        """Return the exact text and token ids that are evaluated for a prompt."""
        return self._tokenizer.text_of(prompt), self._tokenizer.encode(prompt)

    def _encode(
        self, prompts: Sequence[RenderedPrompt], more: int = 1
    ) -> tuple[list[int], list[list[int]], dict[int, str]]:
        """Return the rows that fit, their token ids, and the reasons why the others don't."""
        sequences = self._tokenizer.encode_all(prompts)
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
        """Yield one token for each sequence, in parts, in the order of the prefix tree."""
        from vllm import SamplingParams

        if hasattr(SamplingParams, "flat_logprobs"):  # arrays in the place of dictionaries
            asked["flat_logprobs"] = True
        # log-probabilities are those before temperature
        parameters = SamplingParams(
            max_tokens=1, temperature=0.0, ignore_eos=True, detokenize=False, **asked
        )
        order = sorted(range(len(rows)), key=lambda place: _by_image(sequences[place]))
        sizes, parts = _PartSize(), deque[list[int]]()

        def take_parts() -> Iterator[list[list[int]]]:
            start = 0
            while start < len(order):
                parts.append(order[start : start + sizes.current])
                start += len(parts[-1])
                yield [sequences[place] for place in parts[-1]]

        before: list[int] = []
        started = time.perf_counter()
        with closing(self._engine.stream(take_parts(), parameters)) as answers:
            for outputs in answers:
                some = parts.popleft()
                usage = Usage(seconds_lm=time.perf_counter() - started)
                sizes.adapt(len(some), usage.seconds_lm)
                for place, output in zip(some, outputs, strict=True):
                    usage += _taken(output, 1)
                    known = _n_shared(sequences[place], before)
                    # of a prompt that is known in full the last token is evaluated anew
                    usage.tokens_least += max(len(sequences[place]) - known, 1)
                    before = sequences[place]
                yield [rows[place] for place in some], outputs, usage
                started = time.perf_counter()

    def _names(self, ids: NDArray[np.int32]) -> dict[int, bytes]:
        tokens = np.unique(ids[ids != NO_TOKEN]).tolist()
        for token in tokens:
            if token not in self._token_bytes:
                self._token_bytes[token] = self._tokenizer.bytes_of(token)
        return {token: self._token_bytes[token] for token in tokens}

    def _identify(self, config: Any, reader: ImageReader | None) -> BackendIdentity:
        import vllm

        model = config.model_config
        tokenizer_digest, template_digest = self._tokenizer.digests()
        path = Path(model.model)
        return BackendIdentity(
            provider="vllm",
            endpoint="in-process",
            model=path.name if path.exists() else model.model,
            # a branch moves: the commit is what was loaded
            revision=getattr(model.hf_config, "_commit_hash", None) or model.revision or "",
            weights_digest=_weights_digest(path),
            tokenizer_digest=tokenizer_digest,
            chat_template_digest=template_digest,
            extra={
                "document_start": self._tokenizer.start_piece,
                **_settings(config),
                **(reader.identity() if reader else {}),
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
            raise TypeError(
                "a backend that was given its engine can't be pickled: give a name or a folder"
            )
        # as `load` was called: it returns the engine that runs, if this process has one
        defaults = inspect.signature(type(self)).parameters
        options = {
            key: value
            for key, value in self._options.items()
            if key != "hf_token" and (key not in defaults or value != defaults[key].default)
        }
        return _reload, ({"model": self._name, **options},)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity.model!r})"


def _image_reader(config: Any, max_side: int) -> ImageReader | None:
    """Return what reads images, of a model and an engine that take them."""
    if not config.is_multimodal_model or not hasattr(config.hf_config, "vision_config"):
        return None
    if not config.get_multimodal_config().get_limit_per_prompt("image"):
        return None
    processor = load_processor(
        config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    return ImageReader(processor, max_side) if processor else None


def _by_image(sequence: list[int]) -> tuple[str, list[int]]:
    """Return a sort key that puts the prompts of an image together, and texts first."""
    return sequence.image.digest if isinstance(sequence, ImageIds) else "", sequence


def _n_shared(sequence: list[int], before: list[int]) -> int:
    """Return the number of first ids that a prompt shares with the one before it."""
    if isinstance(sequence, ImageIds):
        return sequence.shared_with(before)
    return common_prefix_length(before, sequence)


def _check_engine(config: Any) -> None:
    """Raise if an engine's answers would not be a causal LM's log-probabilities."""
    if config.runner_type != "generate":
        raise BackendError(
            f"vLLM runs this model for {config.runner_type!r}, and a causal LM is needed"
        )
    if config.logprobs_mode != "raw_logprobs":
        raise BackendError(
            f"this engine gives {config.logprobs_mode!r}: start it with "
            "logprobs_mode='raw_logprobs'"
        )


def _settings(config: Any) -> dict[str, str]:
    """Return the settings of a `vllm.config.VllmConfig` that change answers."""
    model = config.model_config
    found = {"dtype": str(model.dtype).removeprefix("torch.")}
    if model.quantization:
        found["quantization"] = str(model.quantization)
    if config.cache_config.cache_dtype != "auto":
        found["kv_cache_dtype"] = str(config.cache_config.cache_dtype)
    if config.load_config.load_format == "dummy":
        found["weights"] = "random"
    if model.hf_overrides:
        written = json.dumps(model.hf_overrides, sort_keys=True, default=repr)
        found["hf_overrides"] = hashlib.sha256(written.encode()).hexdigest()
    return found


def _weights_digest(path: Path) -> str:
    """Return the SHA-256 of a model's local files, empty where there are none."""
    if path.is_file():
        return sha256_of(path)
    return sha256_of_folder(path, _WEIGHTS)


class _PartSize:
    """The number of prompts of a part, so that one takes some seconds at most."""

    def __init__(self) -> None:
        self.current = _FIRST_PART

    def adapt(self, n: int, seconds: float) -> None:
        """Note the seconds for which the answers to n prompts were waited for."""
        if seconds < _PART_SECONDS / 2:
            self.current = min(2 * n, _LARGEST_PART) if n >= self.current else self.current
        elif seconds > 2 * _PART_SECONDS:
            self.current = max(n // 2, 1)


def _taken(output: Any, passes: int) -> Usage:
    tokens = len(output.prompt_token_ids)
    return Usage(
        passes_made=passes,
        tokens=tokens,
        tokens_evaluated=tokens - (output.num_cached_tokens or 0),
    )


def _reload(options: dict[str, Any]) -> Any:
    import backends

    return backends.load("vllm", **{k: v for k, v in options.items() if v is not None})
