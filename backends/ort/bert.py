"""The graph of a sentence encoder of the BERT architecture, made from its folder.

The inputs are B texts of at most S tokens: ``tokens`` (B, S), and ``mask`` (B, S), 1 at tokens and
0 at padding. The output ``vectors`` (B, d) has the mean of the last hidden states over the tokens
of a text, with norm 1, as sentence-transformers computes it (Reimers and Gurevych 2019). Weights
are kept as float16, and computed with as float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.ort.graph import GraphWriter
from blackbox.errors import ModelNotFoundError

__all__ = ["write_encoder"]

_FLOAT = 1  # number of the type float32
_DTYPES = {"F32": "<f4", "F16": "<f2"}

Progress = Callable[[str, int, int], None]


def write_encoder(source: Path, target: Path, progress: Progress | None = None) -> None:
    """Write a sentence encoder, its tokenizer included, for ONNX Runtime.

    Parameters
    ----------
    source, target : Path
        The folder with ``model.safetensors``, ``config.json``, ``tokenizer.json`` and
        ``sentence_bert_config.json``, and the new ``.onnx`` file.
    progress : callable, optional
        Called after each layer.

    Raises
    ------
    ModelNotFoundError
        If the model is of another architecture than this graph is of.
    MissingDependencyError
        If `onnx` is not installed.
    """
    config = json.loads((source / "config.json").read_bytes())
    known = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    for name, value in known.items():
        if config.get(name, value) != value:
            raise ModelNotFoundError(
                f"{source.name} can't be prepared for ONNX Runtime: {name} is {config[name]!r}"
            )
    encoder = _Encoder(GraphWriter(), read_safetensors(source / "model.safetensors"), config)
    hidden = encoder.embed()
    for layer in range(config["num_hidden_layers"]):
        hidden = encoder.layer(layer, hidden)
        if progress:
            progress("preparing the weights", layer + 1, config["num_hidden_layers"])
    encoder.pool(hidden)
    longest = json.loads((source / "sentence_bert_config.json").read_bytes())["max_seq_length"]
    encoder.graph.write(
        target,
        inputs={"tokens": ("INT64", ["B", "S"]), "mask": ("INT32", ["B", "S"])},
        outputs={"vectors": ("FLOAT", ["B", config["hidden_size"]])},
        notes={
            "tokenizer": (source / "tokenizer.json").read_text("utf-8"),
            "context_length": str(min(longest, config["max_position_embeddings"])),
            "size": str(config["hidden_size"]),
        },
    )


def read_safetensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of a file, as float32.

    The format: the length of a JSON header, that header, and the values
    (https://github.com/huggingface/safetensors).
    """
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__" or entry["dtype"] not in _DTYPES:
            continue
        first, last = entry["data_offsets"]
        kind = np.dtype(_DTYPES[entry["dtype"]])
        values = np.frombuffer(data, kind, (last - first) // kind.itemsize, start + first)
        tensors[name] = values.reshape(entry["shape"]).astype(np.float32)
    return tensors


class _Encoder:
    """Adds the parts of an encoder to a graph."""

    def __init__(
        self, graph: GraphWriter, tensors: dict[str, NDArray[np.float32]], config: dict[str, Any]
    ) -> None:
        self.graph = graph
        self._tensors = tensors
        self._n_heads: int = config["num_attention_heads"]
        self._epsilon: float = config["layer_norm_eps"]

    def embed(self) -> str:
        """Add the sum of the embeddings of tokens, positions and the first token type."""
        graph = self.graph
        words = graph.constant(
            self._tensors["embeddings.word_embeddings.weight"].astype(np.float16)
        )
        tokens = graph.add("Cast", graph.add("Gather", words, "tokens"), to=_FLOAT)
        placed = (
            self._tensors["embeddings.position_embeddings.weight"]
            + self._tensors["embeddings.token_type_embeddings.weight"][0]
        )
        first, axis = graph.constant(np.array([0])), graph.constant(np.array([0]))
        length = graph.add("Shape", "tokens", start=1, end=2)
        positions = graph.add("Slice", graph.constant(placed), first, length, axis)
        total = graph.add("Add", tokens, positions)
        return self._norm(total, "embeddings.LayerNorm")

    def layer(self, number: int, hidden: str) -> str:
        """Add a layer: attention and feed-forward, each with its residual and normalisation."""
        name = f"encoder.layer.{number}"
        graph = self.graph
        parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        weight = np.concatenate([self._tensors[f"{part}.weight"] for part in parts])
        bias = np.concatenate([self._tensors[f"{part}.bias"] for part in parts])
        out = [f"{part}_{number}" for part in ("queries", "keys", "values")]
        split = graph.add("Split", self._product(hidden, weight), axis=2, num_outputs=3, out=out)
        attended = graph.add(
            "MultiHeadAttention",
            *split,
            graph.constant(bias),
            "mask",
            contrib=True,
            num_heads=self._n_heads,
        )
        hidden = self._add_and_norm(
            self._linear(attended, f"{name}.attention.output.dense"),
            hidden,
            f"{name}.attention.output.LayerNorm",
        )
        up = self._product(hidden, self._tensors[f"{name}.intermediate.dense.weight"])
        bias = self._tensors[f"{name}.intermediate.dense.bias"]
        active = graph.add("BiasGelu", up, graph.constant(bias), contrib=True)
        down = self._linear(active, f"{name}.output.dense")
        return self._add_and_norm(down, hidden, f"{name}.output.LayerNorm")

    def pool(self, hidden: str) -> None:
        """Add the mean of the hidden states of each text's tokens, of norm 1."""
        graph = self.graph
        weights = graph.add("Cast", "mask", to=_FLOAT)
        rows = graph.add("Unsqueeze", weights, graph.constant(np.array([1])))
        total = graph.add("MatMul", rows, hidden)
        flat = graph.add("Squeeze", total, graph.constant(np.array([1])))
        # a mean and a sum have the same direction
        graph.add("LpNormalization", flat, axis=-1, p=2, out="vectors")

    def _product(self, hidden: str, weight: NDArray[np.float32]) -> str:
        kept = self.graph.constant(weight.T.astype(np.float16))
        # the cast is made once, when the graph is loaded
        return str(self.graph.add("MatMul", hidden, self.graph.add("Cast", kept, to=_FLOAT)))

    def _linear(self, hidden: str, name: str) -> str:
        product = self._product(hidden, self._tensors[f"{name}.weight"])
        return str(
            self.graph.add("Add", product, self.graph.constant(self._tensors[f"{name}.bias"]))
        )

    def _norm_weights(self, name: str) -> list[str]:
        return [self.graph.constant(self._tensors[f"{name}.{part}"]) for part in ("weight", "bias")]

    def _norm(self, hidden: str, name: str) -> str:
        weights = self._norm_weights(name)
        kind = "LayerNormalization"
        return str(self.graph.add(kind, hidden, *weights, axis=-1, epsilon=self._epsilon))

    def _add_and_norm(self, added: str, residual: str, name: str) -> str:
        given = (added, residual, *self._norm_weights(name))
        kind = "SkipLayerNormalization"
        return str(self.graph.add(kind, *given, contrib=True, epsilon=self._epsilon))
