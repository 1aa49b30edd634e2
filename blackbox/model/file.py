"""Model files: saving and loading a trained model, without pickle.

The file is a zip of `model.json`, which people can read, and `arrays.npz`. It holds all that
prediction needs and the identity of the LM of the training, but no address, path, option or key, so
that it can't decide where texts are sent. Reading trusts no input: entries, sizes, shapes, types
and ranges are checked before they are used or memory is allocated.
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
import platform
import stat
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from blackbox.boosting import ALGORITHM_NAMES
from blackbox.boosting.algorithms import ALGORITHMS
from blackbox.boosting.early_stopping import RULES, EarlyStopping
from blackbox.boosting.ensemble import Ensemble, Reading
from blackbox.boosting.logit import Scaling
from blackbox.boosting.weak_learner import WeakLearner
from blackbox.errors import ModelFileError, PromptError
from blackbox.experts import EXPERTS
from blackbox.experts.base import Expert
from blackbox.experts.examples import KeptExamples
from blackbox.experts.source_models import MAX_SOURCES, SourceModel
from blackbox.experts.source_readout import SourceReadout
from blackbox.files import write_whole
from blackbox.hub import local_path
from blackbox.model.model import Model
from blackbox.model.multilabel import MultilabelModel
from blackbox.model.multilabel_file import describe_heads, n_heads, read_heads
from blackbox.model.reliability import HeldOutRows
from blackbox.model.scope_file import SCOPE_ARRAYS, read_scope, scope_arrays
from blackbox.model.source_file import (
    ARRAYS_PER_SOURCE,
    describe_sources,
    read_sources,
    source_arrays,
)
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import BackendIdentity

__all__ = ["FORMAT_VERSION", "model_file", "read_model", "write_model"]

FORMAT_VERSION = 10

# 4 has no experts, 5 no sources, 6 no held-out rows, 7 one label per text, 8 no detector of texts
# of no class, 9 no order of classes
_READABLE = (4, 5, 6, 7, 8, 9, FORMAT_VERSION)

_FORMAT = "promptboosting model"
_MAX_FILE = 64 << 20
_MAX_JSON = 16 << 20
_MAX_ARRAYS = 64 << 20
_MAX_ENTRY = 100  # bytes of a zip's directory per file
_MAX_CLASSES = 10_000
_MAX_CLASS_TEXT = 10**7  # characters: numpy gives each class as many as the longest
_MAX_IDENTITY = 10_000
_MAX_PROMPTS = 1_000
_MAX_LEARNERS = 100_000
_MAX_VALUE = 1e12  # so that no sum of products overflows
_MIN_FLOOR = -1e9
_MIN_SCALE = 1e-6
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed time: the same model gives the same bytes
_CLASS_TYPES = {"str": str, "int": int, "bool": bool, "float": float}
_CLASS_KINDS = {"str": "U", "int": "iu", "bool": "b", "float": "f"}  # of numpy


def write_model(path: str | Path, model: Model) -> None:
    """Write a model to a file atomically, after a check that it can be read again.

    Raises
    ------
    ModelFileError
        If labels of this type can't be saved, or the file can't be written.
    """
    try:
        data = _pack(model)
        _read(io.BytesIO(data))
    except (ValueError, TypeError, ModelFileError) as error:
        raise ModelFileError(f"this model can't be saved: {error}") from error
    write_whole(path, data, ModelFileError)


def model_file(path: str | Path) -> Path:
    """Return the path of a model; one on the Hugging Face hub (``hf:owner/name``) is fetched.

    Raises
    ------
    HubError
        If it is on the hub and can't be fetched.
    """
    return local_path(path, _MAX_FILE)


def read_model(path: str | Path) -> Model:
    """Return the model of a file, or of the Hugging Face hub (``hf:owner/name``).

    Raises
    ------
    ModelFileError
        If there is no such file, or it is damaged, too large, or of another format or version.
    HubError
        If it is on the hub and can't be fetched.
    """
    file_path = model_file(path)
    try:
        status = file_path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError("not a file")
        if status.st_size > _MAX_FILE:
            raise ModelFileError(f"larger than any model: {status.st_size} bytes")
        with file_path.open("rb") as file:
            return _read(file)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error.__cause__
    except FileNotFoundError as error:
        raise ModelFileError(
            f"{path}: no such file; give the path of a model that blackbox train wrote"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelFileError(f"{path}: can't be read: {reason}") from error


def _pack(model: Model) -> bytes:
    description: dict[str, Any] = {
        "format": _FORMAT,
        "format_version": FORMAT_VERSION,
        "libraries": _libraries(),
    }
    if isinstance(model, MultilabelModel):
        heads, named = describe_heads(model, _describe, _named_arrays)
        description |= _describe_shared(model)
        description |= {"prompts": [prompt.template for prompt in model.prompts]} | heads
        named |= _row_arrays(model)
    else:
        description |= _describe(model)
        named = _named_arrays(model)
    text = json.dumps(description, ensure_ascii=False, indent=1, allow_nan=False)
    arrays, packed = io.BytesIO(), io.BytesIO()
    np.savez_compressed(arrays, **named)  # type: ignore[arg-type]
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        # "backslashreplace" escapes half a surrogate pair as JSON does, and changes nothing else
        _add(archive, "model.json", text.encode("utf-8", "backslashreplace"))
        _add(archive, "arrays.npz", arrays.getvalue())
    return packed.getvalue()


def _describe_shared(model: Model) -> dict[str, Any]:
    """Return what is the same for all labels of a model that gives several, as JSON data."""
    return {
        "language_model": model.identity.as_dict(),
        "algorithm": model.ensemble.algorithm.name,
        "classes": _classes_as_json(model.classes),
        "top_k": model.top_k,
        "tokens": {
            str(token): {"text": data.decode("utf-8", "replace"), "bytes": data.hex()}
            for token, data in sorted(model.token_bytes.items())
        },
        "training": model.summary,
    }


def _describe(model: Model) -> dict[str, Any]:
    """Return all of a model but its arrays, as JSON data."""
    description = _describe_shared(model) | {
        "prompts": [
            {"template": prompt.template, "floor": reading.floor}
            for prompt, reading in zip(model.prompts, model.ensemble.readings, strict=True)
        ],
        "experts": [expert.name for expert in model.ensemble.experts],
        "sources": describe_sources(model.ensemble.sources),
        "embedding_model": (
            None if model.embedder_identity is None else model.embedder_identity.as_dict()
        ),
    }
    if model.examples is not None:
        description["examples"] = [
            [*texts, code]
            for texts, code in zip(model.examples.texts, model.examples.codes.tolist(), strict=True)
        ]
        description["example_names"] = list(model.examples.names)
    if model.out_of_scope is not None:
        description["none_of_these"] = model.out_of_scope.label
    if model.order is not None:
        description["order"] = model.order.tolist()
    return description


def _named_arrays(model: Model) -> dict[str, NDArray[Any]]:
    named = _arrays(model.ensemble)
    if model.examples is not None:
        named["example_vectors"] = model.examples.vectors
    if model.held_out is not None:
        kept = model.held_out
        named["held_out"] = np.stack([kept.confidence, kept.truth, kept.weight], axis=1)
        named["held_out_groups"] = kept.group
    if model.out_of_scope is not None:
        named |= scope_arrays(model.out_of_scope)
    return named | _row_arrays(model)


def _row_arrays(model: Model) -> dict[str, NDArray[Any]]:
    """Return the array by which training texts are recognised."""
    if model.row_digests is None:
        return {}
    return {"row_digests": model.row_digests.view(np.int32).reshape(-1, 2)}


def _read(file: BinaryIO) -> Model:
    try:
        with _open_zip(file, 2) as archive:
            if sorted(archive.namelist()) != ["arrays.npz", "model.json"]:
                raise ModelFileError("not a saved model: other files are in it")
            described = _entry(archive, "model.json", _MAX_JSON)
            packed = _entry(archive, "arrays.npz", _MAX_FILE)
        description = json.loads(described.decode("utf-8"))
        _check_version(description)
        heads = n_heads(description)
        arrays = _read_arrays(packed, heads or 1)
        if heads is None:
            return _model_of(description, arrays)
        return _multilabel_of(description, arrays)
    except ModelFileError:
        raise
    except zipfile.BadZipFile as error:
        raise ModelFileError("damaged, or not a saved model") from error
    except PromptError as error:
        raise ModelFileError(f"a prompt of it can't be used: {error}") from error
    except Exception as error:
        # parsers fail on foreign bytes with more kinds of exceptions than can be listed
        raise ModelFileError(f"damaged: {type(error).__name__} while reading") from error


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    archive.writestr(info, data)


def _open_zip(file: BinaryIO, max_files: int) -> zipfile.ZipFile:
    """Return a zip of at most so many files, checked first: opening loads its whole directory."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 42))
    tail = file.read()
    # the last record of a zip without a comment, not preceded by a ZIP64 record
    if tail[-22:-18] != b"PK\5\6" or tail[-2:] != b"\0\0" or tail[:4] == b"PK\6\7":
        raise zipfile.BadZipFile("not a plain zip")
    if int.from_bytes(tail[-10:-6], "little") > max_files * _MAX_ENTRY:
        raise ModelFileError("too many files in it")
    return zipfile.ZipFile(file)


def _entry(archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ModelFileError("compressed in an unknown way")
    if info.file_size > max_bytes:
        raise ModelFileError(f"unpacks to more than {max_bytes} bytes")
    with archive.open(info) as file:
        # one byte more than it claims: without a limit everything would be unpacked
        return file.read(info.file_size + 1)


def _arrays(ensemble: Ensemble) -> dict[str, NDArray[Any]]:
    learners = ensemble.learners
    arrays: dict[str, NDArray[Any]] = {
        "prompt": np.array([learner.prompt for learner in learners], np.int32),
        "columns": _stacked([learner.columns for learner in learners]).astype(np.int32),
        "token_weights": _stacked([learner.token_weights for learner in learners]),
        "weight": np.array([learner.weight for learner in learners], np.float64),
        "initial": np.asarray(ensemble.initial, np.float64),
        "low": ensemble.early_stopping.low,
        "high": ensemble.early_stopping.high,
        "order": ensemble.early_stopping.order.astype(np.int32),
        "leads": ensemble.early_stopping.leads,
        "waiting": ensemble.early_stopping.survival,
    }
    for number, expert in enumerate(ensemble.experts):
        for name, array in expert.arrays().items():
            arrays[f"expert_{number}_{name}"] = array
    arrays |= source_arrays(ensemble.sources)
    for number, reading in enumerate(ensemble.readings):
        arrays[f"token_ids_{number}"] = reading.token_ids.astype(np.int32)
        arrays[f"mean_{number}"] = reading.scaling.mean.astype(np.float32)
        arrays[f"scale_{number}"] = reading.scaling.scale.astype(np.float32)
    return arrays


def _stacked(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    """Return arrays of shape (n_classes, m) as one, padded with zeros, which have no weight."""
    widest = max(array.shape[1] for array in arrays)
    return np.stack([np.pad(a, ((0, 0), (0, widest - a.shape[1]))) for a in arrays])


def _read_arrays(packed: bytes, n_models: int) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    remaining = _MAX_ARRAYS
    of_experts = 2 * len(EXPERTS) + ARRAYS_PER_SOURCE * MAX_SOURCES
    most = n_models * (14 + of_experts + SCOPE_ARRAYS + 3 * _MAX_PROMPTS)
    with _open_zip(io.BytesIO(packed), most) as archive:
        for name in archive.namelist():
            data = _entry(archive, name, remaining)
            remaining -= len(data)
            # numpy allocates as much as a header claims: compare it with the bytes that exist
            file = io.BytesIO(data)
            if np.lib.format.read_magic(file) != (1, 0):
                raise ModelFileError(f"array {name:.40} is of an unknown format")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
                raise ModelFileError(f"array {name:.40} is not what its header says")
            file.seek(0)
            arrays[name.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays


def _check_version(description: Any) -> None:
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise ModelFileError("not a saved model of promptboosting")
    saved_version = description.get("format_version")
    if type(saved_version) is not int or saved_version not in _READABLE:
        raise ModelFileError(
            f"format version {saved_version!r:.100}, and this version of promptboosting reads "
            f"{', '.join(map(str, _READABLE))}: update promptboosting, or train again"
        )


def _model_of(description: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Model:
    classes = _classes_from_json(description["classes"])
    prompts = description["prompts"]
    if not isinstance(prompts, list) or not 1 <= len(prompts) <= _MAX_PROMPTS:
        raise ModelFileError("no prompts, or too many")
    pool = PromptPool(_text(prompt["template"]) for prompt in prompts)
    if len(pool) != len(prompts) or len({prompt.input_kind for prompt in pool}) != 1:
        raise ModelFileError("its prompts are not of one kind, or occur twice")
    readings = [
        _reading(arrays, number, _floor(prompt["floor"])) for number, prompt in enumerate(prompts)
    ]
    token_bytes = {
        int(token): bytes.fromhex(_text(entry["bytes"]))
        for token, entry in description["tokens"].items()
    }
    wanted = {token for reading in readings for token in reading.token_ids.tolist()}
    if wanted - set(token_bytes):
        raise ModelFileError("tokens without their bytes")
    algorithm, top_k = description["algorithm"], description["top_k"]
    if algorithm not in ALGORITHM_NAMES or type(top_k) is not int or not 1 <= top_k <= 10**6:
        raise ModelFileError("algorithm or top_k is out of range")
    summary = description["training"]
    if not isinstance(summary, dict):
        raise ModelFileError("no training summary")
    _check_plain(summary, 3)
    identity = _identity(description["language_model"])
    experts = _experts(description, arrays, len(classes))
    embedder = description.get("embedding_model")
    shows_examples = any(prompt.nearest for prompt in pool)
    detector = None
    if "none_of_these" in description:
        detector = read_scope(
            description["none_of_these"],
            classes,
            sum(len(reading.token_ids) for reading in readings),
            set(arrays),
            functools.partial(_array, arrays),
        )
    reads_vectors = any(not expert.reads_answers for expert in experts) or (
        detector is not None and detector.reads_vectors
    )
    if (embedder is not None) != (reads_vectors or shows_examples):
        raise ModelFileError("an embedding model that nothing reads, or readers without one")
    examples = None
    if "examples" in description:
        examples = _examples(description, arrays, classes.tolist(), pool[0].takes_pair)
        if embedder is None:
            raise ModelFileError("texts of the training without an embedding model")
    elif shows_examples:
        raise ModelFileError("a prompt shows texts of the training, and there are none")
    initial = _array(arrays, "initial", np.float64, (len(classes),))
    learners = _learners(arrays, [len(reading.token_ids) for reading in readings], len(classes))
    stopping = _stopping(arrays, len(readings), len(classes))
    sources = read_sources(
        description.get("sources", []),
        functools.partial(_array, arrays),
        [reading.token_ids for reading in readings],
    )
    stopping = replace(stopping, late=_late_bounds(experts, sources))
    ensemble = Ensemble(
        ALGORITHMS[algorithm], learners, readings, initial, stopping, experts, sources
    )
    if experts and not ensemble.algorithm.uses_experts:
        raise ModelFileError("experts beside an algorithm that has none")
    try:
        ensemble.algorithm.check(ensemble)
    except ValueError as error:
        raise ModelFileError(str(error)) from error
    row_digests = _row_digests(arrays) if "row_digests" in arrays else None
    held_out = _held_out(arrays) if "held_out" in arrays else None
    if arrays:
        raise ModelFileError(f"unknown array {next(iter(arrays)):.40}")
    return Model(
        classes=classes,
        prompts=pool,
        ensemble=ensemble,
        token_bytes=token_bytes,
        identity=identity,
        top_k=top_k,
        summary=summary,
        embedder_identity=None if embedder is None else _identity(embedder),
        examples=examples,
        row_digests=row_digests,
        held_out=held_out,
        out_of_scope=detector,
        order=_order(description["order"], len(classes)) if "order" in description else None,
    )


def _multilabel_of(description: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> MultilabelModel:
    labels = _classes_from_json(description["classes"], fewest=1)
    templates = description["prompts"]
    if not isinstance(templates, list) or not all(isinstance(one, str) for one in templates):
        raise ModelFileError("its prompts are no templates")
    summary = description["training"]
    if not isinstance(summary, dict):
        raise ModelFileError("no training summary")
    _check_plain(summary, 3)
    digests = _row_digests(arrays) if "row_digests" in arrays else None
    model = read_heads(description, arrays, labels, digests, _model_of)
    if arrays:
        raise ModelFileError(f"unknown array {next(iter(arrays)):.40}")
    return model


def _order(codes: Any, n_classes: int) -> NDArray[np.intp]:
    whole = isinstance(codes, list) and all(type(code) is int for code in codes)
    if not whole or sorted(codes) != list(range(n_classes)):
        raise ModelFileError("an order that is not one of its classes")
    return np.array(codes, np.intp)


def _held_out(arrays: dict[str, NDArray[Any]]) -> HeldOutRows:
    figures = _array(arrays, "held_out", np.float32, (None, 3))
    group = _array(arrays, "held_out_groups", np.int32, (len(figures),))
    confidence, truth, weight = np.ascontiguousarray(figures.T)
    # a group's number is an index
    if not len(group) or group.min() < 0 or group.max() >= len(group):
        raise ModelFileError("held-out rows without a group")
    if (truth < 0).any() or (truth > confidence).any() or (confidence > 1).any():
        raise ModelFileError("held-out rows whose probabilities are none")
    if (weight <= 0).any():
        raise ModelFileError("a held-out row without a weight")
    return HeldOutRows(confidence, truth, weight, group)


def _row_digests(arrays: dict[str, NDArray[Any]]) -> NDArray[np.uint64]:
    halves = _array(arrays, "row_digests", np.int32, (None, 2))
    return np.ascontiguousarray(halves).view(np.uint64)[:, 0]


def _late_bounds(
    experts: Sequence[Expert], sources: Sequence[SourceModel]
) -> NDArray[np.float64] | None:
    """Return the bounds of what the expert of sources adds, checked against its sources."""
    readout = next((one for one in experts if isinstance(one, SourceReadout)), None)
    if (readout is not None) != bool(sources):
        raise ModelFileError("models of other tasks without an expert, or that without them")
    if readout is None:
        return None
    widest = max(len(source.classes) for source in sources)
    if readout.tables.shape[:2] != (len(sources), widest) or (readout.tables < 0).any():
        raise ModelFileError("an expert that fits its models of other tasks badly")
    # a class that no source may mean would have a score of minus infinity
    if not (readout.tables.sum(axis=0) > 0).all():
        raise ModelFileError("an expert that excludes a class")
    return readout.bounds()


def _examples(
    description: dict[str, Any],
    arrays: dict[str, NDArray[Any]],
    classes: list[Any],
    takes_pair: bool,
) -> KeptExamples:
    """Return the training texts of a model that keeps them."""
    described, n_classes = description["examples"], len(classes)
    names = description.get("example_names", [str(label) for label in classes])
    if not isinstance(described, list) or not isinstance(names, list) or len(names) != n_classes:
        raise ModelFileError("its texts of the training, or the names of classes, are no list")
    texts, codes = [], []
    for entry in described:
        text, pair, code = entry
        if type(code) is not int or not 0 <= code < n_classes or (pair is not None) != takes_pair:
            raise ModelFileError("a text of the training has no class, or is no pair")
        texts.append((_text(text), None if pair is None else _text(pair)))
        codes.append(code)
    vectors = _array(arrays, "example_vectors", np.float32, (len(texts), None))
    return KeptExamples(texts, np.array(codes, np.intp), vectors, [_text(name) for name in names])


def _identity(described: Any) -> BackendIdentity:
    if len(json.dumps(described)) > _MAX_IDENTITY:
        raise ModelFileError("the name of its language model is too long")
    return BackendIdentity.from_dict(described)


def _experts(
    description: dict[str, Any], arrays: dict[str, NDArray[Any]], n_classes: int
) -> tuple[Expert, ...]:
    names = description.get("experts", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelFileError("its experts are no names")
    if len(set(names)) != len(names) or set(names) - set(EXPERTS):
        raise ModelFileError("an unknown expert, or one that occurs twice")
    experts = []
    for number, name in enumerate(names):
        read = functools.partial(_expert_array, arrays, number, n_classes)
        experts.append(EXPERTS[name].from_arrays(read))
    return tuple(experts)


def _expert_array(
    arrays: dict[str, NDArray[Any]],
    number: int,
    n_classes: int,
    name: str,
    dtype: Any,
    n_dimensions: int,
) -> NDArray[Any]:
    """Return an expert's array, whose last axis is the classes."""
    shape = (*[None] * (n_dimensions - 1), n_classes)
    array = _array(arrays, f"expert_{number}_{name}", dtype, shape)
    if not array.size:
        raise ModelFileError("an expert that reads nothing")
    return array


def _reading(arrays: dict[str, NDArray[Any]], number: int, floor: float) -> Reading:
    token_ids = _array(arrays, f"token_ids_{number}", np.int32, (None,))
    size = (len(token_ids),)
    mean = _array(arrays, f"mean_{number}", np.float32, size)
    scale = _array(arrays, f"scale_{number}", np.float32, size)
    if not len(token_ids) or (np.diff(token_ids) <= 0).any() or token_ids[0] < 0:
        raise ModelFileError("token ids are not ascending")
    if (scale < _MIN_SCALE).any():
        raise ModelFileError("a scale is not positive")
    return Reading(token_ids, floor, Scaling(mean, scale))


def _learners(
    arrays: dict[str, NDArray[Any]], widths: list[int], n_classes: int
) -> list[WeakLearner]:
    prompt = _array(arrays, "prompt", np.int32, (None,))
    count = len(prompt)
    columns = _array(arrays, "columns", np.int32, (count, n_classes, None))
    weights = _array(arrays, "token_weights", np.float32, columns.shape)
    weight = _array(arrays, "weight", np.float64, (count,))
    if not 1 <= count <= _MAX_LEARNERS or not columns.shape[2]:
        raise ModelFileError("no weak learners, or too many")
    if prompt.min() < 0 or prompt.max() >= len(widths):
        raise ModelFileError("a weak learner refers to an unknown prompt")
    n_columns = np.array(widths)[prompt][:, None, None]
    if (columns < 0).any() or (columns >= n_columns).any():
        raise ModelFileError("a weak learner refers to an unknown token")
    if (np.abs(weights) > 1 + 1e-6).any():
        raise ModelFileError("a token has a weight above 1")
    return [
        WeakLearner(
            int(prompt[number]),
            columns[number].astype(np.intp),
            weights[number].copy(),
            float(weight[number]),
        )
        for number in range(count)
    ]


def _stopping(arrays: dict[str, NDArray[Any]], n_prompts: int, n_classes: int) -> EarlyStopping:
    low = _array(arrays, "low", np.float64, (n_prompts, n_classes))
    high = _array(arrays, "high", np.float64, (n_prompts, n_classes))
    order = _array(arrays, "order", np.int32, (n_prompts,))
    leads = _array(arrays, "leads", np.float64, (n_prompts,))
    survival = _array(arrays, "waiting", np.float64, (len(RULES), n_prompts))
    if (low > high).any():
        raise ModelFileError("a lower limit above the upper")
    if sorted(order.tolist()) != list(range(n_prompts)):
        raise ModelFileError("the order of prompts is not a permutation")
    return EarlyStopping(low, high, order.astype(np.intp), leads, survival)


def _array(
    arrays: dict[str, NDArray[Any]], name: str, dtype: Any, shape: tuple[int | None, ...]
) -> NDArray[Any]:
    if name not in arrays:
        raise ModelFileError(f"no array {name}")
    array = arrays.pop(name)
    fits = array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if array.dtype != dtype or not fits or not (np.abs(array) <= np.float64(_MAX_VALUE)).all():
        raise ModelFileError(f"array {name} is of another type or shape, or out of range")
    return array


def _classes_as_json(classes: NDArray[Any]) -> dict[str, Any]:
    values = [v.item() if isinstance(v, np.generic) else v for v in classes.tolist()]
    kinds = {type(value) for value in values}
    for name, kind in _CLASS_TYPES.items():
        if kinds == {kind}:
            return {"type": name, "values": values}
    names = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise ModelFileError(f"labels of type {names}: use str, int, bool or float")


def _classes_from_json(described: dict[str, Any], fewest: int = 2) -> NDArray[Any]:
    kind, values = _CLASS_TYPES[described["type"]], described["values"]
    if not isinstance(values, list) or not fewest <= len(values) <= _MAX_CLASSES:
        raise ModelFileError(f"fewer classes than {fewest}, or too many")
    if any(type(value) is not kind for value in values) or len(set(values)) != len(values):
        raise ModelFileError("classes are of several types, or occur twice")
    if kind is str and max(map(len, values)) * len(values) > _MAX_CLASS_TEXT:
        raise ModelFileError("the name of a class is too long")
    classes = np.array(values)
    # numpy changes some values: integers beyond its range, and text that ends in NUL
    if classes.dtype.kind not in _CLASS_KINDS[described["type"]] or classes.tolist() != values:
        raise ModelFileError("classes that can't be told apart, or are out of range")
    if kind is float and not np.isfinite(classes).all():
        raise ModelFileError("a class is not finite")
    return classes


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ModelFileError("text was expected")
    return value


def _floor(value: Any) -> float:
    if type(value) not in (int, float) or not _MIN_FLOOR <= value <= 0:
        raise ModelFileError("a floor is not a log-probability")
    return float(value)


def _check_plain(value: Any, depth: int) -> None:
    """Raise if a value is nested too deeply or holds a number that is not finite."""
    if isinstance(value, dict | list):
        if not depth:
            raise ModelFileError("the training summary is too deep")
        for inner in value.values() if isinstance(value, dict) else value:
            _check_plain(inner, depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ModelFileError("a number in the training summary is not finite")


def _libraries() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("promptboosting", "numpy", "scikit-learn"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions
