"""Model files: saving and loading a trained model, without pickle.

The file is a zip of `model.json`, which people can read, and `arrays.npz`. It holds all that
prediction needs and the identity of the LM of the training, but no address, path, option or key, so
that it can't decide where texts are sent. Reading trusts no input: entries, sizes, shapes, types
and ranges are checked before they are used or memory is allocated.
"""

from __future__ import annotations

import io
import platform
import stat
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from blackbox.errors import ModelFileError, PromptError
from blackbox.files import write_whole
from blackbox.hub import local_path
from blackbox.model.file.archive import MAX_FILE, pack, read_arrays, unpack
from blackbox.model.file.multilabel import n_heads
from blackbox.model.file.reading import ARRAYS_PER_MODEL, model_of, multilabel_of
from blackbox.model.file.writing import contents_of
from blackbox.model.model import Model

__all__ = ["FORMAT_VERSION", "model_file", "read_model", "write_model"]

FORMAT_VERSION = 11

# 4 has no experts, 5 no sources, 6 no held-out rows, 7 one label per text, 8 no detector of texts
# of no class, 9 no order of classes, 10 no training texts of sources, and other weights of held-out
# rows
_READABLE = (4, 5, 6, 7, 8, 9, 10, FORMAT_VERSION)

_FORMAT = "promptboosting model"


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
    return local_path(path, MAX_FILE)


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
        if status.st_size > MAX_FILE:
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
    description, arrays = contents_of(model)
    heading = {
        "format": _FORMAT,
        "format_version": FORMAT_VERSION,
        "libraries": _libraries(),
    }
    return pack(heading | description, arrays)


def _read(file: BinaryIO) -> Model:
    try:
        description, packed = unpack(file)
        _check_version(description)
        heads = n_heads(description)
        arrays = read_arrays(packed, ARRAYS_PER_MODEL * (heads or 1))
        if heads is None:
            return model_of(description, arrays)
        return multilabel_of(description, arrays)
    except ModelFileError:
        raise
    except zipfile.BadZipFile as error:
        raise ModelFileError("damaged, or not a saved model") from error
    except PromptError as error:
        raise ModelFileError(f"a prompt of it can't be used: {error}") from error
    except Exception as error:
        # parsers fail on foreign bytes with more kinds of exceptions than can be listed
        raise ModelFileError(f"damaged: {type(error).__name__} while reading") from error


def _check_version(description: Any) -> None:
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise ModelFileError("not a saved model of promptboosting")
    saved_version = description.get("format_version")
    if type(saved_version) is not int or saved_version not in _READABLE:
        raise ModelFileError(
            f"format version {saved_version!r:.100}, and this version of promptboosting reads "
            f"{', '.join(map(str, _READABLE))}: update promptboosting, or train again"
        )


def _libraries() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("promptboosting", "numpy", "scikit-learn"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions
