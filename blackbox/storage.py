"""Saving and loading a trained model, without pickle.

The file is a zip of `model.json`, which people can read, and `arrays.npz`. It holds what prediction
needs and says which LM it was trained with; it holds no address, path, option or key, so that it
can't decide where texts go. Reading trusts nothing: entries, sizes, shapes, types and ranges are
checked before anything is allocated or believed.
"""

from __future__ import annotations

import io
import json
import math
import os
import platform
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.boosting import WeakLearner
from blackbox.ensemble import Ensemble, Reading
from blackbox.errors import ModelFileError
from blackbox.logit import Scaling
from blackbox.prompts import PromptPool
from blackbox.protocol import BackendIdentity

__all__ = ["FORMAT_VERSION", "SavedModel", "read_model", "write_model"]

FORMAT_VERSION = 1

_FORMAT = "promptboosting model"
_MAX_FILE = 64 << 20
_MAX_JSON = 32 << 20
_MAX_ARRAYS = 256 << 20
_MAX_CLASSES = 10_000
_MAX_PROMPTS = 1_000
_MAX_LEARNERS = 100_000
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same model is the same bytes
_CLASS_TYPES = {"str": str, "int": int, "bool": bool, "float": float}


@dataclass(frozen=True)
class SavedModel:
    """What a file holds.

    Parameters
    ----------
    classes : array of shape (n_classes,)
        Labels: str, int, bool or float.
    prompts : PromptPool
        One for each of the ensemble's readings.
    ensemble : Ensemble
        Learners, tokens and scales.
    token_bytes : dict of int to bytes
        The bytes of each token that is read.
    identity : BackendIdentity
        The LM that was trained with.
    top_k : int
        Next tokens that were read of each answer.
    summary : dict
        How training went, as JSON data.
    """

    classes: NDArray[Any]
    prompts: PromptPool
    ensemble: Ensemble
    token_bytes: dict[int, bytes]
    identity: BackendIdentity
    top_k: int
    summary: dict[str, Any]


def write_model(path: str | Path, model: SavedModel) -> None:
    """Write a model, all of it or nothing.

    Raises
    ------
    ModelFileError
        If the labels are of a type that can't be kept, or the file can't be written.
    """
    description = {
        "format": _FORMAT,
        "format_version": FORMAT_VERSION,
        "libraries": _libraries(),
        "language_model": model.identity.as_dict(),
        "algorithm": model.ensemble.algorithm,
        "classes": _classes_as_json(model.classes),
        "top_k": model.top_k,
        "prompts": [
            {"template": prompt.template, "floor": reading.floor}
            for prompt, reading in zip(model.prompts, model.ensemble.readings, strict=True)
        ],
        "tokens": {
            str(token): {"text": data.decode("utf-8", "replace"), "bytes": data.hex()}
            for token, data in sorted(model.token_bytes.items())
        },
        "training": model.summary,
    }
    packed = io.BytesIO()
    arrays: Any = _arrays(model.ensemble)
    np.savez_compressed(packed, **arrays)
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            text = json.dumps(description, ensure_ascii=False, indent=1, allow_nan=False)
            _add(archive, "model.json", text.encode("utf-8"))
            _add(archive, "arrays.npz", packed.getvalue())
        partial.replace(path)
    except OSError as error:
        raise ModelFileError(f"{path} can't be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def read_model(path: str | Path) -> SavedModel:
    """Read a model.

    Raises
    ------
    ModelFileError
        If there is no such file, or it is damaged, too large, or of another format or version.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_FILE:
            raise ModelFileError(f"{path} is larger than any model: {path.stat().st_size} bytes")
        with zipfile.ZipFile(path) as archive:
            if sorted(archive.namelist()) != ["arrays.npz", "model.json"]:
                raise ModelFileError(f"{path} is not a saved model: other files are in it")
            described = _entry(archive, "model.json", _MAX_JSON)
            packed = _entry(archive, "arrays.npz", _MAX_FILE)
        description = json.loads(described)
        _check_version(description)
        return _model_of(description, _read_arrays(packed))
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error.__cause__
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror or 'can not be read'}") from error
    except zipfile.BadZipFile as error:
        raise ModelFileError(f"{path} is damaged or not a saved model") from error
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        RecursionError,
        OverflowError,
        MemoryError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        zipfile.LargeZipFile,
        zipfile.error,
    ) as error:
        # every way in which a parser can trip over bytes that we did not write
        raise ModelFileError(f"{path} is damaged: {type(error).__name__} while reading") from error


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    archive.writestr(info, data)


def _entry(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    with archive.open(name) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ModelFileError(f"{name} unpacks to more than {most} bytes")
    return data


def _arrays(ensemble: Ensemble) -> dict[str, NDArray[Any]]:
    learners = ensemble.learners
    arrays: dict[str, NDArray[Any]] = {
        "prompt": np.array([learner.prompt for learner in learners], np.int32),
        "columns": np.stack([learner.columns for learner in learners]).astype(np.int32),
        "signs": np.stack([learner.signs for learner in learners]).astype(np.int8),
        "weight": np.array([learner.weight for learner in learners], np.float64),
        "initial": np.asarray(ensemble.initial, np.float64),
    }
    for number, reading in enumerate(ensemble.readings):
        arrays[f"token_ids_{number}"] = reading.token_ids.astype(np.int32)
        arrays[f"mean_{number}"] = reading.scaling.mean.astype(np.float32)
        arrays[f"scale_{number}"] = reading.scaling.scale.astype(np.float32)
    return arrays


def _read_arrays(packed: bytes) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    left = _MAX_ARRAYS
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        names = archive.namelist()
        if len(names) > 5 + 3 * _MAX_PROMPTS or len(set(names)) != len(names):
            raise ModelFileError("too many arrays")
        for name in names:
            data = _entry(archive, name, left)
            left -= len(data)
            # numpy allocates what a header claims: compare the claim with the bytes that are there
            file = io.BytesIO(data)
            if np.lib.format.read_magic(file) != (1, 0):
                raise ModelFileError(f"array {name} is of an unknown format")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
                raise ModelFileError(f"array {name} is not what its header says")
            file.seek(0)
            arrays[name.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays


def _check_version(description: Any) -> None:
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise ModelFileError("not a saved model of promptboosting")
    found = description.get("format_version")
    if found != FORMAT_VERSION:
        raise ModelFileError(
            f"format version {found!r}, this version of promptboosting reads {FORMAT_VERSION}: "
            "update promptboosting, or train again"
        )


def _model_of(description: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> SavedModel:
    classes = _classes_from_json(description["classes"])
    prompts = description["prompts"]
    if not isinstance(prompts, list) or not 1 <= len(prompts) <= _MAX_PROMPTS:
        raise ModelFileError("no prompts, or too many")
    pool = PromptPool(_text(prompt["template"]) for prompt in prompts)
    if len(pool) != len(prompts) or len({prompt.takes_pair for prompt in pool}) != 1:
        raise ModelFileError("its prompts are not of one kind, or stand twice")
    readings = [
        _reading(arrays, number, _finite(prompt["floor"])) for number, prompt in enumerate(prompts)
    ]
    token_bytes = {
        int(token): bytes.fromhex(_text(entry["bytes"]))
        for token, entry in description["tokens"].items()
    }
    wanted = {token for reading in readings for token in reading.token_ids.tolist()}
    if wanted - set(token_bytes):
        raise ModelFileError("tokens without their bytes")
    algorithm, top_k = description["algorithm"], description["top_k"]
    if algorithm not in ("logit", "samme") or type(top_k) is not int or not 1 <= top_k <= 10**6:
        raise ModelFileError("algorithm or top_k is out of range")
    summary = description["training"]
    if not isinstance(summary, dict):
        raise ModelFileError("no training summary")
    initial = _array(arrays, "initial", np.float64, (len(classes),))
    learners = _learners(arrays, [len(reading.token_ids) for reading in readings], len(classes))
    return SavedModel(
        classes=classes,
        prompts=pool,
        ensemble=Ensemble(algorithm, learners, readings, initial),
        token_bytes=token_bytes,
        identity=BackendIdentity.from_dict(description["language_model"]),
        top_k=top_k,
        summary=summary,
    )


def _reading(arrays: dict[str, NDArray[Any]], number: int, floor: float) -> Reading:
    token_ids = _array(arrays, f"token_ids_{number}", np.int32, (None,))
    size = (len(token_ids),)
    mean = _array(arrays, f"mean_{number}", np.float32, size)
    scale = _array(arrays, f"scale_{number}", np.float32, size)
    if not len(token_ids) or (np.diff(token_ids) <= 0).any() or token_ids[0] < 0:
        raise ModelFileError("token ids are not ascending")
    if (scale <= 0).any():
        raise ModelFileError("a scale is not positive")
    return Reading(token_ids, floor, Scaling(mean, scale))


def _learners(
    arrays: dict[str, NDArray[Any]], widths: list[int], n_classes: int
) -> list[WeakLearner]:
    prompt = _array(arrays, "prompt", np.int32, (None,))
    count = len(prompt)
    columns = _array(arrays, "columns", np.int32, (count, n_classes, None))
    signs = _array(arrays, "signs", np.int8, columns.shape)
    weight = _array(arrays, "weight", np.float64, (count,))
    if not 1 <= count <= _MAX_LEARNERS or not columns.shape[2]:
        raise ModelFileError("no weak learners, or too many")
    if prompt.min() < 0 or prompt.max() >= len(widths):
        raise ModelFileError("a weak learner is of an unknown prompt")
    most = np.array(widths)[prompt][:, None, None]
    if (columns < 0).any() or (columns >= most).any() or (np.abs(signs.astype(int)) > 1).any():
        raise ModelFileError("a weak learner is of an unknown token")
    return [
        WeakLearner(
            int(prompt[number]),
            columns[number].astype(np.intp),
            signs[number].astype(np.float32),
            float(weight[number]),
        )
        for number in range(count)
    ]


def _array(
    arrays: dict[str, NDArray[Any]], name: str, dtype: Any, shape: tuple[int | None, ...]
) -> NDArray[Any]:
    array = arrays[name]
    fits = array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if array.dtype != dtype or not fits or not np.isfinite(array).all():
        raise ModelFileError(f"array {name} is {array.dtype} {array.shape} or not finite")
    return array


def _classes_as_json(classes: NDArray[Any]) -> dict[str, Any]:
    values = classes.tolist()
    kinds = {type(value) for value in values}
    for name, kind in _CLASS_TYPES.items():
        if kinds == {kind}:
            return {"type": name, "values": values}
    found = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise ModelFileError(f"labels of type {found} can't be saved: use str, int, bool or float")


def _classes_from_json(described: dict[str, Any]) -> NDArray[Any]:
    kind, values = _CLASS_TYPES[described["type"]], described["values"]
    if not isinstance(values, list) or not 2 <= len(values) <= _MAX_CLASSES:
        raise ModelFileError("fewer than two classes, or too many")
    if any(type(value) is not kind for value in values) or len(set(values)) != len(values):
        raise ModelFileError("classes are of several types, or stand twice")
    return np.array(values)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ModelFileError("text was expected")
    return value


def _finite(value: Any) -> float:
    if not isinstance(value, float | int) or not math.isfinite(value):
        raise ModelFileError("a number was expected")
    return float(value)


def _libraries() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("promptboosting", "numpy", "scikit-learn"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions
