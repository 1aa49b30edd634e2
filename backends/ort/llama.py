"""The graph of a language model of the llama architecture, made from its GGUF file.

The inputs are a piece of a prefix tree; see `backends.trees`. With S tokens, of which E are read
out, after a past of P tokens, in L layers with G key and value heads of size D, and a vocabulary of
V tokens:

- ``tokens`` (S,) and ``positions`` (S,);
- ``paths`` (N, C), ``queries`` (N, `SEGMENT`), ``visible`` (N, `SEGMENT`, C) and ``slots`` (S,):
  who attends to whom, in N segments and C columns; see `backends.ort.segments`;
- ``rows`` (E,): the places to read out, and ``k`` (1,): how many of their likeliest tokens;
- ``past`` (L, 2, G, P, D): keys and values of the past.

The outputs are ``ids`` (E, k) and ``values`` (E, k), the likeliest tokens and their
log-probabilities, ``log_probs`` (E, V), and ``present`` (L, 2, G, S, D), the keys and values of
this input. Only those are copied that are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.ort.graph import GraphWriter
from backends.ort.segments import SEGMENT
from blackbox.errors import MissingDependencyError, ModelNotFoundError

__all__ = ["MAX_POSITIONS", "write_graph"]

MAX_POSITIONS = 8192
"""Positions that the graph has angles for; a model made for fewer has fewer."""

_MASKED = -1e9  # the logarithm of no attention, where minus infinity may become not a number
_CONTROL = 3  # type of a control token in a GGUF vocabulary
_PRE_TOKENIZERS = {"smollm"}

Progress = Callable[[str, int, int], None]


def write_graph(source: Path, target: Path, progress: Progress | None = None) -> None:
    """Write the model of a GGUF file, its tokenizer included, for ONNX Runtime.

    Parameters
    ----------
    source, target : Path
        The ``.gguf`` file, and the new ``.onnx`` file.
    progress : callable, optional
        Called after each layer.

    Raises
    ------
    ModelNotFoundError
        If the model is of another architecture than this graph is of.
    MissingDependencyError
        If `onnx` or `gguf` is not installed.
    """
    model = _Weights(source)
    shape = model.shape
    graph = GraphWriter()
    embedding = graph.quantised(model.tensor("token_embd"))
    frame = _Frame(graph, shape)
    residual = graph.rows("tokens", embedding)
    norm = graph.constant(model.tensor("blk.0.attn_norm"))
    hidden = graph.add(
        "SimplifiedLayerNormalization", residual, norm, axis=-1, epsilon=shape.epsilon, stash_type=1
    )
    presents = []
    for layer in range(shape.n_layers):
        attended, present = _attention(graph, frame, model, layer, hidden)
        presents.append(present)
        hidden, residual = _add_and_norm(
            graph, shape, attended, residual, model.tensor(f"blk.{layer}.ffn_norm")
        )
        added = _feed_forward(graph, model, layer, hidden)
        if layer + 1 < shape.n_layers:
            following = model.tensor(f"blk.{layer + 1}.attn_norm")
        else:
            # the last normalisation and the head are evaluated where answers are read out
            following = model.tensor("output_norm")
            added, residual = (graph.add("Gather", part, "rows") for part in (added, residual))
        hidden, residual = _add_and_norm(graph, shape, added, residual, following)
        if progress:
            progress("preparing the weights", layer + 1, shape.n_layers)
    head = graph.quantised(model.tensor("output")) if model.has("output") else embedding
    graph.add("LogSoftmax", graph.linear(hidden, head), axis=-1, out="log_probs")
    graph.add("TopK", "log_probs", "k", out=["values", "ids"])
    graph.add("Concat", *presents, axis=0, out="present")
    past = [shape.n_layers, 2, shape.n_kv_heads]
    graph.write(
        target,
        inputs={
            "tokens": ("INT64", ["S"]),
            "positions": ("INT64", ["S"]),
            "paths": ("INT64", ["N", "C"]),
            "queries": ("INT64", ["N", SEGMENT]),
            "visible": ("BOOL", ["N", SEGMENT, "C"]),
            "slots": ("INT64", ["S"]),
            "rows": ("INT64", ["E"]),
            "k": ("INT64", [1]),
            "past": ("FLOAT", [*past, "P", shape.head_size]),
        },
        outputs={
            "ids": ("INT64", ["E", "K"]),
            "values": ("FLOAT", ["E", "K"]),
            "log_probs": ("FLOAT", ["E", shape.vocabulary_size]),
            "present": ("FLOAT", [*past, "S", shape.head_size]),
        },
        notes=model.notes(),
    )


@dataclass(frozen=True)
class _Shape:
    n_layers: int
    size: int
    n_heads: int
    n_kv_heads: int
    epsilon: float
    rope_base: float
    context_length: int
    vocabulary_size: int

    @property
    def head_size(self) -> int:
        return self.size // self.n_heads


class _Weights:
    """The tensors and settings of a GGUF file, checked for what the graph can express."""

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError as error:
            raise MissingDependencyError(
                "the embedded LM needs gguf: pip install 'promptboosting[local]'"
            ) from error
        self._gguf: Any = gguf
        self._path = path
        reader = gguf.GGUFReader(path)
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._check()
        self.shape = _Shape(
            n_layers=self._setting("llama.block_count"),
            size=self._setting("llama.embedding_length"),
            n_heads=self._setting("llama.attention.head_count"),
            n_kv_heads=self._setting("llama.attention.head_count_kv"),
            epsilon=self._setting("llama.attention.layer_norm_rms_epsilon"),
            rope_base=self._setting("llama.rope.freq_base", 10_000.0),
            context_length=self._setting("llama.context_length"),
            vocabulary_size=len(self._setting("tokenizer.ggml.tokens")),
        )

    def _check(self) -> None:
        expected = {
            "general.architecture": ("llama",),
            "tokenizer.ggml.model": ("gpt2",),
            "tokenizer.ggml.pre": tuple(_PRE_TOKENIZERS),
            "llama.rope.scaling.type": (None, "none"),
            "llama.expert_count": (None, 0),
        }
        for name, values in expected.items():
            found = self._setting(name, None)
            if found not in values:
                raise ModelNotFoundError(
                    f"{self._path.name} can't be prepared for ONNX Runtime: {name} is {found!r}"
                )
        kinds = {name.removesuffix(".weight").rpartition(".")[2] for name in self._tensors}
        known = {"attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm"}
        known |= {"ffn_gate", "ffn_up", "ffn_down", "token_embd", "output_norm", "output"}
        if kinds - known:
            raise ModelNotFoundError(
                f"{self._path.name} can't be prepared for ONNX Runtime: it has the tensors "
                f"{', '.join(sorted(kinds - known))}"
            )

    def _setting(self, name: str, *default: Any) -> Any:
        if name not in self._fields and default:
            return default[0]
        return self._fields[name].contents()

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self._tensors

    def tensor(self, name: str) -> NDArray[np.float32]:
        tensor = self._tensors[f"{name}.weight"]
        values = self._gguf.dequantize(tensor.data, tensor.tensor_type)
        return np.asarray(values, np.float32)

    def rotated(self, name: str, n_heads: int) -> NDArray[np.float32]:
        """Return a weight of queries or keys with the two halves of a pair half a head apart.

        Pairs are neighbours in GGUF files.
        """
        weight = self.tensor(name)
        outputs, inputs = weight.shape
        pairs = weight.reshape(n_heads, outputs // n_heads // 2, 2, inputs)
        return pairs.swapaxes(1, 2).reshape(outputs, inputs)

    def notes(self) -> dict[str, str]:
        """Return the vocabulary, for `backends.ort.tokenizer`, and the context length."""
        pieces = self._setting("tokenizer.ggml.tokens")
        types = self._setting("tokenizer.ggml.token_type")
        vocabulary = {
            "pieces": pieces,
            "merges": self._setting("tokenizer.ggml.merges"),
            "control": [token for token, kind in enumerate(types) if kind == _CONTROL],
            "bos": self._setting("tokenizer.ggml.bos_token_id", None),
            "eos": self._setting("tokenizer.ggml.eos_token_id", None),
            "chat_template": self._setting("tokenizer.chat_template", ""),
        }
        return {
            "vocabulary": json.dumps(vocabulary, ensure_ascii=False),
            "context_length": str(min(self.shape.context_length, MAX_POSITIONS)),
        }


class _Frame:
    """The parts of the graph that all layers share: masks, angles, shapes."""

    def __init__(self, graph: GraphWriter, shape: _Shape) -> None:
        self.shape = shape
        size, n_kv = shape.head_size, shape.n_kv_heads
        n_positions = min(shape.context_length, MAX_POSITIONS)
        inverse = shape.rope_base ** (-np.arange(0, size, 2) / size)
        angles = np.outer(np.arange(n_positions), inverse)
        self.cos = graph.constant(np.cos(angles).astype(np.float32))
        self.sin = graph.constant(np.sin(angles).astype(np.float32))
        self.first = graph.constant(np.array([0]))
        self.positions = graph.add("Unsqueeze", "positions", self.first)
        seen, masked = (graph.constant(np.float32(value)) for value in (0, _MASKED))
        mask = graph.add("Where", "visible", seen, masked)
        self.mask = graph.add("Unsqueeze", mask, graph.constant(np.array([1])))
        self.parts = graph.constant(np.array([shape.size, n_kv * size, n_kv * size]))
        self.query_heads = graph.constant(np.array([1, -1, shape.n_heads, size]))
        self.kv_heads = graph.constant(np.array([1, -1, n_kv, size]))
        # heads that share keys and values are one list of queries
        per_group = shape.n_heads // n_kv
        self.by_group = graph.constant(np.array([n_kv, per_group, -1, SEGMENT, size]))
        self.grouped = graph.constant(np.array([n_kv, -1, per_group * SEGMENT, size]))
        columns = graph.add("Shape", "paths", start=1, end=2)
        before = graph.constant(np.array([n_kv, -1, per_group, SEGMENT]))
        self.scores = graph.add("Concat", before, columns, axis=0)
        before = graph.constant(np.array([n_kv, -1, per_group * SEGMENT]))
        self.grouped_scores = graph.add("Concat", before, columns, axis=0)
        self.mixed = graph.constant(np.array([n_kv, -1, per_group, SEGMENT, size]))
        self.flat = graph.constant(np.array([-1, shape.size]))


def _attention(
    graph: GraphWriter, frame: _Frame, model: _Weights, layer: int, hidden: str
) -> tuple[str, str]:
    """Add the attention of a layer; return its result and the keys and values of this input."""
    shape = model.shape
    weight = np.concatenate(
        [
            model.rotated(f"blk.{layer}.attn_q", shape.n_heads),
            model.rotated(f"blk.{layer}.attn_k", shape.n_kv_heads),
            model.tensor(f"blk.{layer}.attn_v"),
        ]
    )
    product = graph.linear(hidden, graph.quantised(weight))
    names = [f"{part}_{layer}" for part in ("queries", "keys", "values")]
    parts = graph.add("Split", product, frame.parts, axis=1, out=names)

    def heads(part: str, form: str) -> str:
        return str(graph.add("Transpose", graph.add("Reshape", part, form), perm=[0, 2, 1, 3]))

    def turned(part: str) -> str:
        angles = (frame.positions, frame.cos, frame.sin)
        return str(graph.add("RotaryEmbedding", part, *angles, contrib=True))

    queries = turned(heads(parts[0], frame.query_heads))
    keys, values = turned(heads(parts[1], frame.kv_heads)), heads(parts[2], frame.kv_heads)
    present = graph.add("Concat", keys, values, axis=0)
    past = graph.add("Gather", "past", graph.constant(np.int64(layer)), axis=0)
    everything = graph.add("Concat", past, present, axis=2)
    keys, values = (
        graph.add(
            "Gather",
            graph.add("Gather", everything, graph.constant(np.int64(which)), axis=0),
            "paths",
            axis=1,
        )
        for which in (0, 1)
    )
    segments = graph.add("Gather", graph.add("Squeeze", queries, frame.first), "queries", axis=1)
    by_group = graph.add("Reshape", segments, frame.by_group)
    grouped = graph.add(
        "Reshape", graph.add("Transpose", by_group, perm=[0, 2, 1, 3, 4]), frame.grouped
    )
    scale = shape.head_size**-0.5
    scores = graph.add("FusedMatMul", grouped, keys, contrib=True, transB=1, alpha=scale)
    masked = graph.add("Add", graph.add("Reshape", scores, frame.scores), frame.mask)
    weights = graph.add("Softmax", masked, axis=-1)
    mixed = graph.add("MatMul", graph.add("Reshape", weights, frame.grouped_scores), values)
    by_slot = graph.add("Transpose", graph.add("Reshape", mixed, frame.mixed), perm=[1, 3, 0, 2, 4])
    by_token = graph.add("Gather", graph.add("Reshape", by_slot, frame.flat), "slots", axis=0)
    output = graph.quantised(model.tensor(f"blk.{layer}.attn_output"))
    attended = graph.linear(by_token, output)
    return attended, str(graph.add("Unsqueeze", present, frame.first))


def _feed_forward(graph: GraphWriter, model: _Weights, layer: int, hidden: str) -> str:
    names = (f"blk.{layer}.ffn_gate", f"blk.{layer}.ffn_up")
    weight = np.concatenate([model.tensor(name) for name in names])
    product = graph.linear(hidden, graph.quantised(weight))
    out = [f"gate_{layer}", f"up_{layer}"]
    gate, up = graph.add("Split", product, axis=1, num_outputs=2, out=out)
    swish = graph.add("QuickGelu", gate, contrib=True, alpha=1.0)
    down = graph.quantised(model.tensor(f"blk.{layer}.ffn_down"))
    return graph.linear(graph.add("Mul", swish, up), down)


def _add_and_norm(
    graph: GraphWriter, shape: _Shape, added: str, residual: str, norm: NDArray[np.float32]
) -> tuple[str, str]:
    """Add to the residual stream; return it normalised and as it is."""
    hidden, _, _, total = graph.add(
        "SkipSimplifiedLayerNormalization",
        added,
        residual,
        graph.constant(norm),
        contrib=True,
        epsilon=shape.epsilon,
        out=[f"normalised_{added}", "", "", f"residual_{added}"],
    )
    return hidden, total
