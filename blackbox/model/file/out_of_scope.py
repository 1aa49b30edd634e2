"""The detector of texts of none of the classes in a model file: as arrays, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import ModelFileError
from blackbox.model.out_of_scope import Distances, OutOfScopeDetector

__all__ = ["SCOPE_ARRAYS", "read_scope", "scope_arrays"]

SCOPE_ARRAYS = 9
"""Arrays that a detector takes at most."""

_OPTIONAL = ("vectors", "outside_answers", "outside_vectors")

_Read = Callable[[str, Any, tuple[int | None, ...]], NDArray[Any]]


def scope_arrays(detector: OutOfScopeDetector) -> dict[str, NDArray[Any]]:
    """Return what a model file keeps of a detector beside its label."""
    distances = detector.distances
    arrays: dict[str, NDArray[Any]] = {
        "scope_measures": np.stack([detector.weights, detector.means, detector.scales]),
        "scope_known": np.stack([detector.known, detector.known_weight], axis=1),
        "scope_mean": distances.mean,
        "scope_axes": distances.axes,
        "scope_centres": distances.centres,
        "scope_variances": distances.variances,
    }
    for name in _OPTIONAL:
        array = getattr(detector, name)
        if array is not None:
            arrays[f"scope_{name}"] = array
    return arrays


def read_scope(
    label: Any, classes: NDArray[Any], n_tokens: int, names: Collection[str], read: _Read
) -> OutOfScopeDetector:
    """Return a detector from the arrays of a model file.

    Parameters
    ----------
    label : object
        The label of texts of none of the classes.
    classes : array of shape (n_classes,)
        The classes of the model.
    n_tokens : int
        The tokens that it reads of all its prompts.
    names : collection of str
        The arrays of the file.
    read : callable
        Returns an array by its name, type and shape, checked to be finite.

    Raises
    ------
    ModelFileError
        If they are of another form.
    """
    if type(label) not in (str, int, float, bool) or label in classes.tolist() or label == "":
        raise ModelFileError("a label of no class that is no label, or is one of a class")
    if type(label) is float and not math.isfinite(label):
        raise ModelFileError("a label of no class that is not finite")
    widths: dict[str, int | None] = dict.fromkeys(_OPTIONAL)
    widths["outside_answers"] = n_tokens
    compared = {
        name: read(f"scope_{name}", np.float16, (None, widths[name]))
        for name in _OPTIONAL
        if f"scope_{name}" in names
    }
    if not all(len(array) for array in compared.values()):
        raise ModelFileError("nothing to compare texts with")
    if "outside_vectors" in compared and "vectors" not in compared:
        raise ModelFileError("embeddings of texts of no class alone")
    measures = read("scope_measures", np.float64, (3, 2 + len(compared)))
    known = read("scope_known", np.float32, (None, 2))
    axes = read("scope_axes", np.float64, (len(classes), None))
    r = axes.shape[1]
    detector = OutOfScopeDetector(
        label,
        measures[0],
        measures[1],
        measures[2],
        Distances(
            read("scope_mean", np.float64, (len(classes),)),
            axes,
            read("scope_centres", np.float64, (None, r)),
            read("scope_variances", np.float64, (r,)),
        ),
        np.ascontiguousarray(known[:, 0]),
        np.ascontiguousarray(known[:, 1]),
        compared.get("vectors"),
        compared.get("outside_answers"),
        compared.get("outside_vectors"),
    )
    if (detector.scales <= 0).any() or (detector.distances.variances <= 0).any():
        raise ModelFileError("a measure of unusual texts without a spread")
    if not len(known) or not len(detector.distances.centres):
        raise ModelFileError("no rows of known classes to compare unusual texts with")
    if (np.diff(detector.known) < 0).any() or (detector.known_weight <= 0).any():
        raise ModelFileError("rows of known classes that are not in order, or without a weight")
    return detector
