"""The embedded LM in OpenVINO, for `eval.perf.engines`: the same weights, graph and prefix trees.

OpenVINO reads the graph of `backends.ort.llama` but for two operators, which are written here by
standard ones: ``RotaryEmbedding``, and ``MatMulNBits`` with a weight that another operator uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

import backends.onnx
import backends.ort.llama
from backends.catalogue import Form, Progress, requantise
from backends.ort.graph import BLOCK, GraphWriter, QuantisedWeight

__all__ = ["load"]

_FLOAT = 1  # float32, as ONNX numbers types


def load(model: str, weights: str, settings: Mapping[str, Any]) -> Any:
    """Return the embedded LM, on one thread.

    Parameters
    ----------
    model : str
        A name in the catalogue.
    weights : {"float16", "int8"}
        How they are stored; 8-bit ones in blocks that share a scale.
    settings : mapping of str to object
        OpenVINO's.
    """
    form = Form(f"-openvino-{weights}.onnx", partial(_write, _WRITERS[weights]))
    parts: dict[str, Any] = {
        "FORM": form,
        "open_session": partial(_Session, settings=settings),
        "metadata": _Session.metadata,
        "engine": lambda: "openvino",
    }
    with mock.patch.multiple(backends.onnx, **parts):
        return backends.onnx.OnnxBackend(model, n_threads=1)


class _Session:
    """A compiled model, with as much of ``onnxruntime.InferenceSession`` as the backend uses."""

    def __init__(self, path: Path, n_threads: int, settings: Mapping[str, Any]) -> None:
        import openvino

        core = openvino.Core()
        self._model = core.read_model(path)
        settings = {"INFERENCE_NUM_THREADS": n_threads, **settings}
        self._compiled = core.compile_model(self._model, "CPU", settings)
        self._request = self._compiled.create_infer_request()

    def metadata(self) -> dict[str, str]:
        return {
            name: self._model.get_rt_info(["framework", name]).astype(str)
            for name in ("vocabulary", "context_length")
        }

    def get_inputs(self) -> list[Any]:
        return [
            SimpleNamespace(
                name=given.any_name,
                shape=[
                    size.get_length() if size.is_static else None for size in given.partial_shape
                ],
            )
            for given in self._compiled.inputs
        ]

    def run(self, names: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        self._request.infer(inputs, share_inputs=True)
        return [self._request.get_tensor(name).data.copy() for name in names]


class _Writer(GraphWriter):
    """Writes rotations by standard operators."""

    def __init__(self) -> None:
        super().__init__()
        self._angles: dict[str, str] = {}

    def add(self, kind: str, *inputs: str, **attributes: Any) -> Any:
        """See `GraphWriter`."""
        if kind != "RotaryEmbedding":
            return super().add(kind, *inputs, **attributes)
        hidden, positions, *tables = inputs
        cos, sin = (self._angle(table, positions) for table in tables)
        names = [f"{side}_{hidden}" for side in ("left", "right")]
        left, right = self.add("Split", hidden, axis=-1, num_outputs=2, out=names)
        turned = self.add("Concat", self.add("Neg", right), left, axis=-1)
        return self.add("Add", self.add("Mul", hidden, cos), self.add("Mul", turned, sin))

    def _angle(self, table: str, positions: str) -> str:
        """Return the cosines or sines at the positions, for both halves of a head."""
        if table not in self._angles:
            rows = self.add("Gather", table, positions, axis=0)
            half = self.add("Unsqueeze", rows, self.constant(np.array([1])))
            self._angles[table] = self.add("Concat", half, half, axis=-1)
        return self._angles[table]

    def _single(self, values: str) -> str:
        return str(self.add("Cast", values, to=_FLOAT))


class _HalfWriter(_Writer):
    """Writes float16 weights."""

    def quantised(self, weight: NDArray[np.float32]) -> QuantisedWeight:
        """See `GraphWriter`."""
        return QuantisedWeight(self.constant(weight.astype(np.float16)), "", weight.shape)

    def linear(self, hidden: str, weight: QuantisedWeight) -> str:
        """See `GraphWriter`."""
        values = self.add("Transpose", self._single(weight.values), perm=[1, 0])
        return str(self.add("MatMul", hidden, values))

    def rows(self, numbers: str, weight: QuantisedWeight) -> str:
        """See `GraphWriter`."""
        return self._single(self.add("Gather", weight.values, numbers, axis=0))


class _ByteWriter(_Writer):
    """Writes 8-bit weights in a form of which OpenVINO knows that they needn't be unpacked."""

    def linear(self, hidden: str, weight: QuantisedWeight) -> str:
        """See `GraphWriter`."""
        outputs, inputs = weight.shape
        scaled = self._scaled(weight.values, weight.scales, outputs, inputs)
        return str(self.add("MatMul", hidden, self.add("Transpose", scaled, perm=[1, 0])))

    def rows(self, numbers: str, weight: QuantisedWeight) -> str:
        """See `GraphWriter`."""
        parts = (weight.values, weight.scales)
        values, scales = (self.add("Gather", part, numbers, axis=0) for part in parts)
        return self._scaled(values, scales, -1, weight.shape[1])

    def _scaled(self, values: str, scales: str, n_rows: int, size: int) -> str:
        blocks = self.constant(np.array([n_rows, size // BLOCK, BLOCK]))
        # a zero point of the weights' own type: with another their products aren't integers
        zero = self.constant(np.full((1, 1, 1), 128, np.uint8))
        above = self.add(
            "Sub", self._single(self.add("Reshape", values, blocks)), self._single(zero)
        )
        scale = self.add("Unsqueeze", scales, self.constant(np.array([2])))
        form = self.constant(np.array([n_rows, size]))
        return str(self.add("Reshape", self.add("Mul", above, scale), form))


_WRITERS: dict[str, type[_Writer]] = {"float16": _HalfWriter, "int8": _ByteWriter}


def _write(writer: type[_Writer], source: Path, target: Path, progress: Progress | None) -> None:
    # the 8-bit weights that the other engines read
    eight_bit = target.with_name("eight-bit.gguf")
    requantise(source, eight_bit)
    with mock.patch.object(backends.ort.llama, "GraphWriter", writer):
        backends.ort.llama.write_graph(eight_bit, target, progress)
