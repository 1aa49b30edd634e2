"""Causal and masked language models through Hugging Face transformers, in this process.

A causal LM's prompts are put into prefix trees: each distinct prefix is one place of one long
input, and an attention mask lets it see its own ancestors only. So one forward pass answers many
prompts and evaluates shared prefixes once. A model that doesn't accept such a mask (found by
trying) gets batches of prompts of one length instead. Masked LMs get batches by length.
"""

from __future__ import annotations

import io
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.catalogue import CATALOGUE, pull, sha256_of, sha256_of_folder
from backends.hf.forward import Forward, causal_forward, masked_forward
from backends.hf.tokenizer import PromptTokenizer, load_tokenizer
from backends.openmp import passive_waiting
from blackbox.backend import BaseBackend
from blackbox.errors import BackendError, MissingDependencyError, ModelNotFoundError
from blackbox.protocol import (
    NO_TOKEN,
    AnswerParts,
    BackendIdentity,
    Draws,
    Limits,
    RenderedPrompt,
    TokenLogProbs,
    Usage,
    check_served,
)

__all__ = ["TransformersBackend", "computes_in_bfloat16"]

_MAX_TOP_K = 1000
_LONGEST = 1 << 20  # some tokenizers say that their length has no limit
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


class TransformersBackend(BaseBackend):
    """Forward passes of a causal or masked LM on this machine.

    Parameters
    ----------
    model : str or path
        A hub name, a folder, a ``.gguf`` file or a name of the catalogue; or a loaded model, with
        its `tokenizer`.
    tokenizer : transformers.PreTrainedTokenizerBase, optional
        The tokenizer of a loaded model.
    masked : bool, optional
        Whether it is a masked LM; by default its configuration says so.
    device : str, optional
        Such as ``"cuda:0"``; by default CUDA, then MPS, then the processor.
    dtype : {"auto", "float32", "bfloat16", "float16"}, optional
        By default bfloat16 on a CUDA device that computes in it, as that is twice as fast there or
        more; float32 elsewhere. ``"auto"`` takes bfloat16 on processors that compute in it too
        (AVX512-BF16, AMX), where it is nearly twice as fast; others take a hundred times as long.
    batch_tokens : int, optional
        Tokens of one forward pass; by default 512 on a processor and 4096 elsewhere.
    context_length : int, optional
        Tokens that a prompt may have; by default what the model was made for, at most 4096.
    revision : str, optional
        Branch, tag or commit of a hub name.
    trust_remote_code : bool, default=False
        Run code that comes with the model. Only for models that you trust as much as a program.

    Raises
    ------
    MissingDependencyError
        If transformers or torch is not installed.
    ModelNotFoundError
        If there is no such model, or it can't be fetched or read.
    """

    context_option = "context_length"

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        masked: bool | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_tokens: int | None = None,
        context_length: int | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        try:
            with passive_waiting("torch"):
                import torch
                import transformers  # noqa: F401

                torch.get_num_threads()  # LLVM's OpenMP reads its settings at its first use
        except ImportError as error:
            raise MissingDependencyError(
                "this backend needs torch and transformers: "
                "pip install 'promptboosting[transformers]'"
            ) from error
        self._options: dict[str, Any] = {
            "masked": masked,
            "device": device,
            "dtype": dtype,
            "batch_tokens": batch_tokens,
            "context_length": context_length,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
        }
        self._name = os.fspath(model) if isinstance(model, str | os.PathLike) else None
        where = torch.device(device or _best_device(torch))
        if self._name is None:
            if tokenizer is None:
                raise TypeError("a loaded model needs its tokenizer: give tokenizer")
            self._source: Path | None = None
            self._model, loaded = model, tokenizer
            is_masked = _is_masked(model.config, masked)
        else:
            self._source, shown, options = _locate(self._name, revision, trust_remote_code)
            kind = _dtype_for(torch, where, dtype)
            self._model, loaded, is_masked = _load(shown, options, masked, kind)
            self._model.to(where)
        self._model.eval()
        self._tokenizer = PromptTokenizer(loaded, masked=is_masked)
        tokens = batch_tokens or (512 if where.type == "cpu" else 4096)
        make = masked_forward if is_masked else causal_forward
        self._forward: Forward = make(self._model, self._tokenizer, tokens)
        self._busy = threading.Lock()
        self._token_bytes: dict[int, bytes] = {}
        self.identity = self._identify(is_masked)
        self.limits = Limits(
            max_top_k=min(_MAX_TOP_K, self._model.config.get_text_config().vocab_size),
            max_score_ids=0,
            context_length=context_length or _context_of(self._model.config, loaded),
            deterministic=False,
            raw_text=not is_masked,
            chat=self._tokenizer.has_chat,
            answer_prefix=self._tokenizer.has_chat,
            mask=is_masked,
            generates=not is_masked,
            counts_tokens=True,
            shares_prefixes=True,
        )

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield the most likely next or masked tokens in parts; see `BaseBackend`."""
        check_served(self.limits, prompts, top_k)
        for rows, log_probs, errors, usage in self._distributions(prompts):
            if errors:
                nothing = np.full((len(rows), top_k), NO_TOKEN, np.int32)
                minus_infinity = np.full((len(rows), top_k), -np.inf, np.float32)
                yield rows, TokenLogProbs(nothing, minus_infinity, {}, errors, usage)
                continue
            first = np.argpartition(-log_probs, top_k - 1, axis=1)[:, :top_k]
            values = np.take_along_axis(log_probs, first, axis=1)
            # the last key decides first: by value, ties by id
            order = np.lexsort((first, -values), axis=1)
            ids: NDArray[np.int32] = np.take_along_axis(first, order, axis=1).astype(np.int32)
            values = np.take_along_axis(values, order, axis=1)
            yield rows, TokenLogProbs(ids, values, self._names(ids), {}, usage)

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
        """Return texts that a causal LM writes; see `BaseBackend`."""
        check_served(self.limits, prompts)
        if self.limits.mask:
            raise BackendError("a masked LM writes no texts")
        started = time.perf_counter()
        usage, errors = Usage(), dict[int, str]()
        texts: list[list[str]] = [[] for _ in prompts]
        most = self.limits.context_length - max_tokens
        for row, prompt in enumerate(prompts):
            sequence = self._tokenizer.encode(prompt)
            if not 0 < len(sequence) <= most:
                errors[row] = f"{len(sequence)} tokens, and {max_tokens} more to write"
                continue
            seeds = [seed + number for number in range(first, first + n)]
            with self._busy:
                written = self._forward.write(sequence, seeds, max_tokens, temperature)
            texts[row] = [self._tokenizer.decode(ids) for ids in written]
            usage += Usage(
                passes_made=sum(len(ids) + (len(ids) < max_tokens) for ids in written),
                tokens=n * len(sequence),
                tokens_evaluated=len(sequence),
                tokens_least=len(sequence),
            )
        usage.seconds_lm = time.perf_counter() - started
        return Draws(texts, errors, usage)

    def count_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the number of tokens of each prompt, special ones included."""
        return [len(self._tokenizer.encode(prompt)) for prompt in prompts]

    def show(self, prompt: RenderedPrompt) -> tuple[str, list[int]]:
        """Return the exact text and token ids that are evaluated for a prompt."""
        return self._tokenizer.text_of(prompt), self._tokenizer.encode(prompt)

    def _distributions(
        self, prompts: Sequence[RenderedPrompt]
    ) -> Iterator[tuple[list[int], NDArray[np.float32], dict[int, str], Usage]]:
        """Yield rows with their log-probabilities over the vocabulary, or the reasons for none."""
        sequences = [self._tokenizer.encode(prompt) for prompt in prompts]
        limit = self.limits.context_length - (0 if self.limits.mask else 1)
        refused = {
            row: f"{len(sequence)} tokens, the context holds {limit}"
            if sequence
            else "no tokens: the LM needs at least one"
            for row, sequence in enumerate(sequences)
            if not 0 < len(sequence) <= limit
        }
        if refused:
            reasons = dict(enumerate(refused.values()))
            yield list(refused), np.empty((0, 0), np.float32), reasons, Usage()
        served = [row for row in range(len(prompts)) if row not in refused]
        least = self._forward.least([sequences[row] for row in served])
        with self._busy:
            started = time.perf_counter()
            for places, log_probs, evaluated in self._forward.run(
                [sequences[row] for row in served]
            ):
                rows = [served[place] for place in places]
                now = time.perf_counter()
                usage = Usage(
                    passes_made=len(rows),
                    tokens=sum(len(sequences[row]) for row in rows),
                    tokens_evaluated=evaluated,
                    tokens_least=least,
                    seconds_lm=now - started,
                )
                least, started = 0, now
                yield rows, log_probs, {}, usage

    def _names(self, ids: NDArray[np.int32]) -> dict[int, bytes]:
        tokens = np.unique(ids).tolist()
        for token in tokens:
            if token not in self._token_bytes:
                self._token_bytes[token] = self._tokenizer.bytes_of(token)
        return {token: self._token_bytes[token] for token in tokens}

    def _identify(self, masked: bool) -> BackendIdentity:
        tokenizer_digest, template_digest = self._tokenizer.digests()
        commit = getattr(self._model.config, "_commit_hash", None)
        name = self._name or type(self._model).__name__
        if self._source is not None:
            name = self._name if self._name in CATALOGUE else self._source.name
        return BackendIdentity(
            provider="transformers",
            endpoint="masked" if masked else "causal",
            model=name or "",
            revision=commit or "",
            weights_digest="" if commit else _weights_digest(self._source, self._model),
            tokenizer_digest=tokenizer_digest,
            chat_template_digest=template_digest,
            extra={
                "dtype": str(self._model.dtype).removeprefix("torch."),
                "document_start": self._tokenizer.start_piece,
            },
            engine=_engine(),
        )

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[dict[str, Any]]]:
        if self._name is None:
            raise TypeError(
                "a backend that was given a loaded model can't be pickled: give a name or a folder"
            )
        return _reload, ({"model": self._name, **self._options},)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity.model!r})"


def _engine() -> str:
    import torch
    import transformers

    return f"transformers {transformers.__version__}, torch {torch.__version__}"


def _best_device(torch: Any) -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _dtype_for(torch: Any, device: Any, wanted: str | None) -> Any:
    if wanted not in (None, "auto"):
        if wanted not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be auto, float32, bfloat16 or float16, got {wanted!r}")
        return getattr(torch, wanted)
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and wanted == "auto":
        fast = computes_in_bfloat16()
    return torch.bfloat16 if fast else torch.float32


def computes_in_bfloat16() -> bool:
    """Return whether this processor computes in bfloat16; others are slower in it."""
    import torch

    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in asked)


def _locate(
    name: str, revision: str | None, trust_remote_code: bool
) -> tuple[Path | None, str, dict[str, Any]]:
    """Return the local file or folder, if it is one, and the name and options for transformers."""
    options: dict[str, Any] = {"revision": revision} if revision else {}
    if trust_remote_code:
        options["trust_remote_code"] = True
    path = pull(name) if name in CATALOGUE else Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelNotFoundError(f"{name}: no such file")
        return path, str(path.parent), options | {"gguf_file": path.name}
    if path.is_dir():
        return path, str(path), options
    if name.startswith((".", "/", "~")):
        raise ModelNotFoundError(f"{name}: no such folder")
    return None, name, options


def _load(
    name: str, options: Mapping[str, Any], masked: bool | None, dtype: Any
) -> tuple[Any, Any, bool]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    try:
        with _quiet():
            config = AutoConfig.from_pretrained(name, **options)
            is_masked = _is_masked(config, masked)
            maker = AutoModelForMaskedLM if is_masked else AutoModelForCausalLM
            model = maker.from_pretrained(name, dtype=dtype, **options)
            tokenizer = load_tokenizer(name, **options)
    except (OSError, ValueError, KeyError) as error:
        shown = options.get("gguf_file") or Path(name).name if Path(name).exists() else name
        why = " ".join(str(error).split())[:200]
        raise ModelNotFoundError(f"{shown} can't be loaded by transformers: {why}") from error
    return model, tokenizer, is_masked


def _is_masked(config: Any, said: bool | None) -> bool:
    if said is not None:
        return said
    names = getattr(config, "architectures", None) or []
    return any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in names)


def _context_of(config: Any, tokenizer: Any) -> int:
    config = config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or _LONGEST
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= 2  # its positions are counted from the padding token's number on
    most = min(positions, getattr(tokenizer, "model_max_length", _LONGEST), 4096)
    return int(most)


def _weights_digest(source: Path | None, model: Any) -> str:
    """Return the SHA-256 of the model: of its files where there are some, else of the tensors."""
    import hashlib

    if source is not None and source.is_file():
        return sha256_of(source)
    if source is not None:
        return sha256_of_folder(source, _WEIGHTS)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's bars and advice off the user's terminal while a model loads."""
    from transformers.utils import logging as chatter

    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        # the bar of a GGUF file's conversion has no switch of its own
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()


def _reload(options: dict[str, Any]) -> Any:
    import backends

    return backends.load("transformers", **{k: v for k, v in options.items() if v is not None})
