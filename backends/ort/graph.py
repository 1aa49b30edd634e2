"""A small writer of ONNX graphs: operators in order, constants, 8-bit weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import MissingDependencyError

__all__ = ["BLOCK", "CONTRIB", "GraphWriter", "QuantisedWeight"]

CONTRIB = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""

BLOCK = 32
"""Neighbouring weights of an output that share a scale."""

_OPSET, _IR_VERSION = 18, 9


@dataclass(frozen=True)
class QuantisedWeight:
    """A weight of a graph: names of its 8-bit values and scales, and its shape."""

    values: str
    scales: str
    shape: tuple[int, ...]


class GraphWriter:
    """Collects the nodes and constants of a graph and writes them to a file."""

    def __init__(self) -> None:
        try:
            import onnx
        except ImportError as error:
            raise MissingDependencyError(
                "preparing the embedded LM needs onnx: pip install 'promptboosting[local]'"
            ) from error
        self._onnx: Any = onnx
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(
        self,
        kind: str,
        *inputs: str,
        out: str | Sequence[str] = "",
        contrib: bool = False,
        **attributes: Any,
    ) -> Any:
        """Add an operator and return the name of its output, or names where `out` has several.

        An empty name among several stands for an output that nobody reads.
        """
        number = len(self._nodes)
        outputs = [out or f"{kind}_{number}"] if isinstance(out, str) else list(out)
        self._nodes.append(
            self._onnx.helper.make_node(
                kind,
                list(inputs),
                outputs,
                name=f"{kind}_{number}",
                domain=CONTRIB if contrib else "",
                **attributes,
            )
        )
        return outputs[0] if isinstance(out, str) else outputs

    def constant(self, value: Any, name: str = "") -> str:
        """Add a constant and return its name."""
        name = name or f"constant_{len(self._constants)}"
        array = np.asarray(value, order="C")
        self._constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def quantised(self, weight: NDArray[np.float32]) -> QuantisedWeight:
        """Add a weight of shape (outputs, inputs) in 8 bits, which several operators may use."""
        values, scales = _quantise(weight)
        return QuantisedWeight(
            self.constant(values.reshape(weight.shape)), self.constant(scales), weight.shape
        )

    def linear(self, hidden: str, weight: QuantisedWeight) -> str:
        """Add the product of inputs with a weight and return its name.

        Each block of a weight has a scale of its own, and so has each block of the inputs, which
        are rounded to 8 bits, too: the products are sums of integers. A scale for a whole matrix
        of inputs is faster and useless, as a few inputs are a thousand times the others.
        """
        outputs, inputs = weight.shape
        blocks = self.constant(np.array([outputs, inputs // BLOCK, BLOCK]))
        return str(
            self.add(
                "MatMulNBits",
                hidden,
                self.add("Reshape", weight.values, blocks),
                weight.scales,
                contrib=True,
                K=inputs,
                N=outputs,
                bits=8,
                block_size=BLOCK,
                accuracy_level=4,
            )
        )

    def rows(self, numbers: str, weight: QuantisedWeight) -> str:
        """Add the rows of a weight with the given numbers and return their name."""
        return str(
            self.add(
                "GatherBlockQuantized",
                weight.values,
                numbers,
                weight.scales,
                contrib=True,
                bits=8,
                block_size=BLOCK,
                gather_axis=0,
                quantize_axis=1,
            )
        )

    def write(
        self,
        path: Path,
        inputs: Mapping[str, tuple[str, Sequence[int | str]]],
        outputs: Mapping[str, tuple[str, Sequence[int | str]]],
        notes: Mapping[str, str],
    ) -> None:
        """Write the graph.

        Parameters
        ----------
        path : Path
            The new file.
        inputs, outputs : mapping of str to (type, shape)
            Types by their ONNX names, such as ``"FLOAT"``; a text in a shape names a free size.
        notes : mapping of str to str
            Kept in the file, for `backends.ort.session.metadata`.
        """
        helper = self._onnx.helper
        kinds = self._onnx.TensorProto.DataType

        def described(values: Mapping[str, tuple[str, Sequence[int | str]]]) -> list[Any]:
            return [
                helper.make_tensor_value_info(name, kinds.Value(kind), list(shape))
                for name, (kind, shape) in values.items()
            ]

        graph = helper.make_graph(
            self._nodes, "model", described(inputs), described(outputs), self._constants
        )
        imports = [helper.make_opsetid("", _OPSET), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)
        helper.set_model_props(model, dict(notes))
        self._onnx.save(model, str(path))


def _quantise(weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return 8-bit values (outputs, blocks, `BLOCK`), 128 for 0, and scales (outputs, blocks)."""
    blocks = weight.reshape(len(weight), -1, BLOCK)
    scales = np.abs(blocks).max(axis=2) / 127
    scales[scales == 0] = 1
    values = np.rint(blocks / scales[:, :, None]) + 128
    return values.astype(np.uint8), scales.astype(np.float32)
