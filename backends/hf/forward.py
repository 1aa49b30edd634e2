"""Forward passes of Hugging Face models over token sequences, in batches or prefix trees.

`TreeForward` evaluates a prefix tree in one long input (causal LMs whose attention takes a mask of
any shape), `EqualForward` sequences of one length together (every other causal LM), `MaskedForward`
padded batches (masked LMs).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from backends.hf.likeliest import LogitPart
from backends.hf.tokenizer import PromptTokenizer
from backends.trees import Distribution, PrefixTrees, Tree, distinct_tokens

__all__ = [
    "EqualForward",
    "Forward",
    "causal_forward",
    "largest_difference",
    "masked_forward",
]

_log = logging.getLogger(__name__)

_TOLERANCE = 0.05  # of a log-probability, in half precision too; a wrong mask is off by far more

_LOGITS = {"cpu": 64 << 20}
"""Bytes of the logits of one input in float32, by the kind of device."""

_LOGITS_ELSEWHERE = 1 << 30


class Forward(Protocol):
    """Forward passes of a model over sequences of token ids."""

    def run(self, sequences: Sequence[list[int]]) -> Iterator[LogitPart]:
        """Yield the logits at each sequence's end (or mask), in parts, in any order."""

    def least(self, sequences: Sequence[list[int]]) -> int:
        """Return the number of tokens that a perfect prefix cache would evaluate."""

    def write(
        self, sequence: list[int], seeds: Sequence[int], max_tokens: int, temperature: float
    ) -> list[list[int]]:
        """Return the continuation of a sequence, once for each seed."""


def causal_forward(model: Any, tokenizer: PromptTokenizer, batch_tokens: int) -> Forward:
    """Return the fastest `Forward` that reproduces a causal LM's own answers, found by trying."""
    plain = EqualForward(model, tokenizer, batch_tokens)
    if hasattr(model.config.get_text_config(), "window_size"):
        return plain  # GPT-Neo's windows are made of places in the input, which aren't positions
    # two branches after a stem; the second input goes on from what the first one kept
    some = [[5, 6, 7, 8], [5, 6, 7, 9, 10], [5, 6, 7, 9, 11], [5, 11]]
    for least_stem, said in ((16, "keeps no stems"), (0, "takes no tree attention")):
        tree = TreeForward(model, tokenizer, batch_tokens, least_stem)
        tried = TreeForward(model, tokenizer, 5, min(least_stem, 1))
        try:
            if largest_difference(plain.run(some), tried.run(some)) < _TOLERANCE:
                return tree
        except (ValueError, TypeError, RuntimeError, IndexError, AttributeError) as error:
            _log.debug("%s", error)
        _log.info("this model %s: less of what prompts share is evaluated once", said)
    return plain


def masked_forward(model: Any, tokenizer: PromptTokenizer, batch_tokens: int) -> Forward:
    """Return the `Forward` of a masked LM."""
    return MaskedForward(model, tokenizer, batch_tokens)


class _Causal:
    """Base class of the two ways to run a causal LM."""

    def __init__(self, model: Any, tokenizer: PromptTokenizer, batch_tokens: int) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self.max_answers = _max_answers(model)
        self.end = tokenizer.end_token_id
        parameters = inspect.signature(model.forward).parameters
        self.keeps = "logits_to_keep" in parameters
        # of the argument and of the output; transformers has renamed it
        self.cache = "cache" if "cache" in parameters else "past_key_values"

    def least(self, sequences: Sequence[list[int]]) -> int:
        """See `Forward`."""
        return distinct_tokens(sequences)

    def write(
        self, sequence: list[int], seeds: Sequence[int], max_tokens: int, temperature: float
    ) -> list[list[int]]:
        """See `Forward`; all seeds run as one batch after one evaluation of the sequence."""
        import torch

        rngs = [np.random.default_rng(seed % 2**63) for seed in seeds]
        written: list[list[int]] = [[] for _ in seeds]
        is_open = [True] * len(seeds)
        _forget_image(self.model)
        with torch.inference_mode():
            ids = torch.tensor([sequence], device=self.model.device)
            more = self.extra_inputs(sequence)
            out = self.model(input_ids=ids, use_cache=max_tokens > 1, **more)
            first = Distribution(_log_probs(out.logits[:, -1])[0], temperature)
            nexts = [first] * len(seeds)
            for step in range(max_tokens):
                drawn = zip(nexts, rngs, strict=True)
                chosen = [distribution.draw(rng) for distribution, rng in drawn]
                for number, token in enumerate(chosen):
                    is_open[number] = is_open[number] and token != self.end
                    if is_open[number]:
                        written[number].append(token)
                if not any(is_open) or step + 1 == max_tokens:
                    break
                past = getattr(out, self.cache)
                if not step:
                    past.batch_repeat_interleave(len(seeds))
                ids = torch.tensor([[token] for token in chosen], device=self.model.device)
                out = self.model(input_ids=ids, use_cache=True, **{self.cache: past})
                scores = _log_probs(out.logits[:, -1])
                nexts = [Distribution(row, temperature) for row in scores]
        return written

    def extra_inputs(self, sequence: list[int]) -> dict[str, Any]:
        """Return what the model takes beside the ids of a whole prompt."""
        return {}


def _forget_image(model: Any) -> None:
    """Have a model of Qwen's forget where its last image ended, from where a text would go on."""
    inner: Any = getattr(model, "model", None)
    if getattr(inner, "rope_deltas", None) is not None:
        inner.rope_deltas = None


class TreeForward(PrefixTrees[Any], _Causal):
    """A prefix tree in one input, for models whose attention takes a mask of any shape."""

    def __init__(
        self, model: Any, tokenizer: PromptTokenizer, batch_tokens: int, least_stem: int = 16
    ) -> None:
        _Causal.__init__(self, model, tokenizer, batch_tokens)
        PrefixTrees.__init__(self, batch_tokens, least_stem, self.max_answers)
        self.kinds, self.window = _attention_of(model.config.get_text_config())

    def evaluate(self, tree: Tree, kept: Any, keep: int) -> tuple[Any, Any]:
        """See `PrefixTrees`; the answers are logits on the device, what is kept is a cache."""
        import torch
        from transformers.cache_utils import DynamicCache

        n_stem = tree.n_stem
        if keep and kept is None:
            kept = DynamicCache()  # one of the model's own would drop what leaves the window
        with torch.inference_mode():
            device = self.model.device
            tokens = _on(device, tree.tokens[n_stem:])
            depths = _on(device, tree.depths())
            wanted = _on(device, tree.ends) - n_stem
            masks = self._masks(depths, _on(device, tree.subtree_ends()), n_stem)
            out = self.model(
                input_ids=tokens[None],
                position_ids=depths[None, n_stem:],
                attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
                use_cache=keep > 0,
                **{self.cache: kept},
                **({"logits_to_keep": wanted} if self.keeps else {}),
            )
            logits = out.logits[0] if self.keeps else out.logits[0, wanted]
            stem = _taken(getattr(out, self.cache), tree.path[:keep]) if keep else None
        return logits, stem

    def _masks(self, depths: Any, subtree_ends: Any, n_stem: int) -> dict[str, Any]:
        """Return the mask of each kind of attention, made on the device."""
        import torch

        places = torch.arange(len(depths), device=depths.device)
        rows = places[n_stem:, None]
        sees = (places <= rows) & (rows < subtree_ends)

        def mask_of(kind: str) -> Any:
            seen = sees
            if kind == _SLIDING and self.window:
                seen = seen & (depths[n_stem:, None] - depths < self.window)
            mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=depths.device)
            return mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)[None, None]

        return {kind: mask_of(kind) for kind in self.kinds}


_SLIDING = "sliding_attention"


def _attention_of(config: Any) -> tuple[set[str], int]:
    """Return the kinds of attention that a model's layers have, and their window in tokens."""
    window = getattr(config, "sliding_window", None) or 0
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        kinds = {_SLIDING if window else "full_attention"}
    return kinds, window


class EqualForward(_Causal):
    """Sequences of one length together: no padding, so any model gives its own answers."""

    def run(self, sequences: Sequence[list[int]]) -> Iterator[LogitPart]:
        """See `Forward`."""
        import torch

        by_length: dict[int, list[int]] = {}
        for row, sequence in enumerate(sequences):
            by_length.setdefault(len(sequence), []).append(row)
        for length, rows in sorted(by_length.items()):
            size = max(1, min(self.batch_tokens // length, self.max_answers))
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                ids = torch.tensor([sequences[row] for row in some], device=self.model.device)
                with torch.inference_mode():
                    more = {"logits_to_keep": 1} if self.keeps else {}
                    out = self.model(input_ids=ids, use_cache=False, **more)
                yield some, out.logits[:, -1], length * len(some)


class MaskedForward:
    """Padded batches by length; the head of the model runs on the masked token alone."""

    def __init__(self, model: Any, tokenizer: PromptTokenizer, batch_tokens: int) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self.max_answers = _max_answers(model)
        self.mask = tokenizer.mask_token_id
        config = model.config.get_text_config()
        self.padding: int = config.pad_token_id if config.pad_token_id is not None else 0

    def least(self, sequences: Sequence[list[int]]) -> int:
        """See `Forward`: a masked LM shares nothing."""
        return sum(map(len, sequences))

    def write(
        self, sequence: list[int], seeds: Sequence[int], max_tokens: int, temperature: float
    ) -> list[list[int]]:
        """See `Forward`: a masked LM writes nothing."""
        raise NotImplementedError

    def run(self, sequences: Sequence[list[int]]) -> Iterator[LogitPart]:
        """See `Forward`."""
        order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
        start = 0
        while start < len(order):
            stop = start + 1
            while (
                stop < len(order)
                and stop - start < self.max_answers
                and len(sequences[order[stop]]) * (stop + 1 - start) <= self.batch_tokens
            ):
                stop += 1
            rows = order[start:stop]
            some = [sequences[row] for row in rows]
            yield rows, self._evaluate(some), sum(map(len, some))
            start = stop

    def _evaluate(self, sequences: list[list[int]]) -> Any:
        import torch

        longest = max(map(len, sequences))
        ids = torch.full((len(sequences), longest), self.padding)
        seen = torch.zeros((len(sequences), longest), dtype=torch.long)
        places = []
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            seen[row, : len(sequence)] = 1
            # a text may hold the mask token's name, but never the token: ours is the only one
            places.append(sequence.index(self.mask))
        device = self.model.device
        where = torch.tensor(places, device=device)

        def only_masked(module: Any, arguments: Any, output: Any) -> Any:
            hidden = output[0]
            kept = hidden[torch.arange(len(where), device=hidden.device), where][:, None]
            if isinstance(output, tuple):
                return (kept, *output[1:])
            output[next(iter(output))] = kept
            return output

        hook = self.model.base_model.register_forward_hook(only_masked)
        try:
            with torch.inference_mode():
                out = self.model(input_ids=ids.to(device), attention_mask=seen.to(device))
        finally:
            hook.remove()
        return out.logits[:, 0]


def _max_answers(model: Any) -> int:
    """Return how many sequences one input may answer, by the memory that their logits take."""
    space = _LOGITS.get(model.device.type, _LOGITS_ELSEWHERE)
    return max(space // (4 * int(model.config.get_text_config().vocab_size)), 1)


def _on(device: Any, numbers: Any) -> Any:
    """Return integers as a tensor on a device, on their way there while the host goes on."""
    import torch

    tensor = torch.as_tensor(np.asarray(numbers, np.int64))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _taken(cache: Any, places: list[int]) -> Any:
    """Return some places of a cache of keys and values, as a cache of their own."""
    from transformers.cache_utils import DynamicCache

    taken = DynamicCache()
    for number, layer in enumerate(cache.layers):
        chosen = _on(layer.keys.device, places)
        taken.update(layer.keys[:, :, chosen], layer.values[:, :, chosen], number)
    return taken


def _log_probs(logits: Any) -> NDArray[np.float32]:
    import torch

    values: NDArray[np.float32] = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
    return values


def largest_difference(one: Iterator[LogitPart], other: Iterator[LogitPart]) -> float:
    """Return the largest difference between two ways of running a model, over likely tokens."""
    values = [
        dict(zip(row_of, rows, strict=True))
        for parts in (one, other)
        for row_of, rows in [_joined(parts)]
    ]
    differences = []
    for row, left in values[0].items():
        likely = np.argsort(left)[-50:]
        differences.append(float(np.abs(left[likely] - values[1][row][likely]).max()))
    return max(differences)


def _joined(parts: Iterator[LogitPart]) -> tuple[list[int], list[NDArray[np.float32]]]:
    numbers: list[int] = []
    rows: list[NDArray[np.float32]] = []
    for where, logits, _ in parts:
        numbers += where
        rows += list(_log_probs(logits))
    return numbers, rows
