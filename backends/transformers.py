"""Language models of Hugging Face transformers in this process: causal, masked, vision-language.

A causal LM's prompts are put into prefix trees: each distinct prefix is one place of one long
input, and an attention mask lets it see its own ancestors only. So one forward pass answers many
prompts and evaluates shared prefixes once. A model that doesn't accept such a mask (found by
trying) gets batches of prompts of one length instead. Masked LMs get batches by length. Prompts
with an image are evaluated image by image (`backends.hf.vision`).
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.catalogue import CATALOGUE, pull, sha256_of, sha256_of_folder
from backends.hf.folder import FORM, digest_of
from backends.hf.forward import Forward, causal_forward, masked_forward
from backends.hf.likeliest import likeliest
from backends.hf.quiet import quiet
from backends.hf.tokenizer import PromptTokenizer, load_tokenizer
from backends.hf.vision import ImageForward, ImageIds, ImageReader, load_processor
from backends.local import LocalBackend, TopPart
from backends.openmp import limit_torch, passive_waiting
from blackbox.errors import MissingDependencyError, ModelNotFoundError
from blackbox.images import checked_side
from blackbox.protocol import BackendIdentity, Limits, RenderedPrompt

__all__ = ["TransformersBackend", "computes_in_bfloat16"]

_log = logging.getLogger(__name__)

_MAX_TOP_K = 1000
_LONGEST = 1 << 20  # some tokenizers say that their length has no limit
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


class TransformersBackend(LocalBackend):
    """Forward passes of a causal or masked LM on this machine.

    Parameters
    ----------
    model : str or path
        A hub name, a folder, a ``.gguf`` file or a name of the catalogue; or a loaded model, with
        its `tokenizer`.
    tokenizer : transformers.PreTrainedTokenizerBase, optional
        The tokenizer of a loaded model.
    processor : transformers.ProcessorMixin, optional
        The processor of a loaded vision-language model, which has its tokenizer.
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
    max_image_side : int, optional
        Pixels of the longest side to which a larger image is resized before the model's own
        processing, which is part of the identity; by default none is resized.
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

    _tokenizer: PromptTokenizer

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        processor: Any = None,
        masked: bool | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_tokens: int | None = None,
        context_length: int | None = None,
        max_image_side: int | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        try:
            with passive_waiting("torch"):
                import torch
                import transformers  # noqa: F401

                limit_torch()
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
            "max_image_side": max_image_side,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
        }
        self._name = os.fspath(model) if isinstance(model, str | os.PathLike) else None
        where = torch.device(device or _best_device(torch))
        if self._name is None:
            if tokenizer is None and processor is None:
                raise TypeError("a loaded model needs its tokenizer: give tokenizer")
            self._source: Path | None = None
            self._model, loaded = model, tokenizer or processor.tokenizer
            is_masked = _is_masked(model.config, masked)
        else:
            self._source, shown, options = _locate(self._name, revision, trust_remote_code)
            kind = _dtype_for(torch, where, dtype)
            self._model, loaded, is_masked, processor = _load(shown, options, masked, kind)
            self._model.to(where)
        self._model.eval()
        reader = ImageReader(processor, checked_side(max_image_side)) if processor else None
        tokenizer = PromptTokenizer(loaded, masked=is_masked, reader=reader)
        super().__init__(tokenizer)
        tokens = batch_tokens or (512 if where.type == "cpu" else 4096)
        make = masked_forward if is_masked else causal_forward
        self._forward: Forward = make(self._model, tokenizer, tokens)
        self._image_forward: ImageForward | None = None
        if reader is not None:
            self._image_forward = ImageForward(self._model, tokenizer, reader, tokens)
        self.identity = self._identify(is_masked, reader)
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
            **(reader.limits() if reader else {}),
        )

    def top(self, sequences: Sequence[list[int]], top_k: int) -> Iterator[TopPart]:
        """See `LocalBackend`."""
        parts = self._with_image(sequences)
        if parts is None:
            yield from likeliest(self._forward.run(sequences), top_k)
            return
        for forward, rows in parts:
            some = [sequences[row] for row in rows]
            for places, ids, values, evaluated in likeliest(forward.run(some), top_k):
                yield [rows[place] for place in places], ids, values, evaluated

    def encode(self, prompts: Sequence[RenderedPrompt]) -> list[list[int]]:
        """See `LocalBackend`; texts are tokenised together."""
        return self._tokenizer.encode_all(prompts)

    def least(self, sequences: Sequence[list[int]]) -> int:
        """See `LocalBackend`."""
        parts = self._with_image(sequences)
        if parts is None:
            return self._forward.least(sequences)
        return sum(forward.least([sequences[row] for row in rows]) for forward, rows in parts)

    def _with_image(self, sequences: Sequence[list[int]]) -> list[tuple[Forward, list[int]]] | None:
        """Return which prompts have no image, and which have one; None where none has."""
        if self._image_forward is None:
            return None
        kinds = [isinstance(sequence, ImageIds) for sequence in sequences]
        return [
            (forward, [row for row, seen in enumerate(kinds) if seen == is_seen])
            for forward, is_seen in ((self._forward, False), (self._image_forward, True))
        ]

    def write(
        self, sequence: list[int], seeds: Sequence[int], max_tokens: int, temperature: float
    ) -> list[list[int]]:
        """See `LocalBackend`."""
        if isinstance(sequence, ImageIds) and self._image_forward is not None:
            return self._image_forward.write(sequence, seeds, max_tokens, temperature)
        return self._forward.write(sequence, seeds, max_tokens, temperature)

    def _identify(self, masked: bool, reader: ImageReader | None) -> BackendIdentity:
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
            weights_digest=self._weights_digest() if not commit else "",
            tokenizer_digest=tokenizer_digest,
            chat_template_digest=template_digest,
            extra={
                "dtype": str(self._model.dtype).removeprefix("torch."),
                "document_start": self._tokenizer.start_piece,
                **(reader.identity() if reader else {}),
            },
            engine=_engine(),
        )

    def _weights_digest(self) -> str:
        """Return the SHA-256 of the model: of its files where there are some, else of tensors."""
        source = self._source
        if source is None:
            digest = hashlib.sha256()
            for name, tensor in sorted(self._model.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().float().numpy().tobytes())
            return digest.hexdigest()
        if self._name in CATALOGUE:
            return digest_of(source)
        return sha256_of(source) if source.is_file() else sha256_of_folder(source, _WEIGHTS)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[dict[str, Any]]]:
        if self._name is None:
            raise TypeError(
                "a backend that was given a loaded model can't be pickled: give a name or a folder"
            )
        return _reload, ({"model": self._name, **self._options},)


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
    path = pull(name, FORM) if name in CATALOGUE else Path(name).expanduser()
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
) -> tuple[Any, Any, bool, Any]:
    """Return the model, its tokenizer, whether it is masked, and its processor of images if any."""
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMaskedLM,
    )

    try:
        with quiet():
            config = AutoConfig.from_pretrained(name, **options)
            is_masked = _is_masked(config, masked)
            sees = not is_masked and hasattr(config, "vision_config")
            processor = load_processor(name, **options) if sees else None
            maker = AutoModelForMaskedLM if is_masked else AutoModelForCausalLM
            if processor is not None:
                maker = AutoModelForImageTextToText
            model = maker.from_pretrained(name, dtype=dtype, **options)
            tokenizer = processor.tokenizer if processor else load_tokenizer(name, **options)
    except (OSError, ValueError, KeyError) as error:
        shown = options.get("gguf_file") or Path(name).name if Path(name).exists() else name
        why = " ".join(str(error).split())[:200]
        raise ModelNotFoundError(f"{shown} can't be loaded by transformers: {why}") from error
    return model, tokenizer, is_masked, processor


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


def _reload(options: dict[str, Any]) -> Any:
    import backends

    return backends.load("transformers", **{k: v for k, v in options.items() if v is not None})
