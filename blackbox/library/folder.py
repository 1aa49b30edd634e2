"""The folder of a library: saved models without texts, and an index.

``index.json`` has for each model, called a source, what people want to know of it, and the SHA-256
digest of its file ``NAME.blackbox``. Nothing in it names a path, so that it can't decide which
files are read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from blackbox.errors import LibraryError
from blackbox.files import write_whole
from blackbox.model.file import read_model, write_model
from blackbox.model.model import Model
from blackbox.store.folder_lock import folder_lock

__all__ = ["Entry", "Library"]

_INDEX = "index.json"
_FORMAT = {"format": "promptboosting library", "format_version": 1}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MAX_INDEX = 64 << 20  # bytes


@dataclass(frozen=True)
class Entry:
    """The record of a source in the index.

    Parameters
    ----------
    name : str
        Its name in the library.
    classes : list of str
        Its labels.
    prompts : list of str
        The templates that it reads.
    language_model : dict
        The identity of its LM.
    n_rows : int
        How many rows it was trained on.
    digest : str
        SHA-256 digest of its file.
    licence, note : str
        The licence of its training data, and a note; as the user gave them.
    """

    name: str
    classes: list[str]
    prompts: list[str]
    language_model: dict[str, Any]
    n_rows: int
    digest: str
    licence: str = ""
    note: str = ""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Entry:
        """Return the entry that ``dataclasses.asdict`` described; raise ValueError for another."""
        entry = cls(**data)
        texts = [entry.name, entry.digest, entry.licence, entry.note, *entry.classes]
        fits = all(isinstance(one, str) for one in [*texts, *entry.prompts])
        if not (fits and isinstance(entry.language_model, dict) and type(entry.n_rows) is int):
            raise ValueError("an entry of another form")
        return entry


@dataclass(frozen=True)
class Library:
    """A folder of trained models.

    Parameters
    ----------
    folder : Path
        The folder.
    entries : dict of str to Entry
        Its sources by name, in the order in which they were added.
    """

    folder: Path
    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> Library:
        """Return the library of a folder.

        Raises
        ------
        LibraryError
            If there is none, or its index can't be read.
        """
        path = Path(folder) / _INDEX
        try:
            if path.stat().st_size > _MAX_INDEX:
                raise ValueError("larger than any index")
            data = json.loads(path.read_text("utf-8"))
            if {key: data.pop(key) for key in _FORMAT} != _FORMAT:
                raise ValueError("of another format or version")
            entries = [Entry.from_dict(one) for one in data["sources"]]
            if any(not _NAME.fullmatch(one.name) for one in entries):
                raise ValueError("a name that is none")
        except FileNotFoundError as error:
            raise LibraryError(
                f"{folder}: no library; `blackbox library add MODEL --library {folder}` makes one"
            ) from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise LibraryError(f"{path}: not the index of a library: {error}") from error
        return cls(Path(folder), {one.name: one for one in entries})

    @classmethod
    def open(cls, folder: str | Path) -> Library:
        """Return the library of a folder, an empty one where the folder is missing or empty.

        Hidden files don't count: an index has such a name until it is whole.

        Raises
        ------
        LibraryError
            If the folder holds anything else.
        """
        path = Path(folder)
        try:
            if not path.exists() or (
                path.is_dir() and all(one.name.startswith(".") for one in path.iterdir())
            ):
                return cls(path)
        except OSError as error:
            raise LibraryError(f"{folder}: {error.strerror}") from error
        return cls.read(folder)

    def add(
        self, path: str | Path, *, name: str | None = None, licence: str = "", note: str = ""
    ) -> Library:
        """Copy a saved model into the library, without the texts that it may hold.

        Parameters
        ----------
        path : str or Path
            The file of the model.
        name : str, optional
            Its name in the library; by default that of the file, without its ending.
        licence, note : str
            The licence of its training data, and a note.

        Returns
        -------
        Library
            The library with it.

        Raises
        ------
        LibraryError
            If a source has that name, or the model can't be a source.
        ModelFileError
            If the model can't be read.
        """
        called = Path(path).stem if name is None else name
        if not _NAME.fullmatch(called):
            raise LibraryError(
                f"{called!r} can't be the name of a source: use up to 64 letters, digits, '-', "
                "'_' and '.'; --name gives another"
            )
        model = read_model(path)
        _check_source(model, str(path))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LibraryError(f"{self.folder}: can't be made: {error.strerror}") from error
        with folder_lock(self.folder):
            now = Library.open(self.folder)  # another may have changed it since
            if called in now.entries:
                raise LibraryError(
                    f"{self.folder}: there is a source {called!r}; remove it first, or give "
                    "another --name"
                )
            now._write()  # killed before the end, it leaves a library without the source
            entry = now._put(called, model, licence, note)
            changed = replace(now, entries=now.entries | {called: entry})
            changed._write()
        return changed

    def _put(self, name: str, model: Model, licence: str, note: str) -> Entry:
        """Write the file of a source, without texts, and return its entry."""
        target = self._path(name)
        reads_vectors = model.ensemble.reads_vectors
        bare = replace(
            model,
            examples=None,
            out_of_scope=None,
            embedder_identity=model.embedder_identity if reads_vectors else None,
        )
        write_model(target, bare)
        n_rows = model.summary.get("n_rows")
        return Entry(
            name,
            [str(label) for label in model.classes.tolist()],
            [prompt.template for prompt in model.prompts],
            model.identity.as_dict(),
            n_rows if type(n_rows) is int else 0,
            _digest(target),
            licence,
            note,
        )

    def remove(self, name: str) -> Library:
        """Remove a source and its file, and return the library without it.

        Raises
        ------
        LibraryError
            If there is no such source.
        """
        with folder_lock(self.folder):
            now = Library.read(self.folder)  # another may have changed it since
            now.entry(name)
            left = {key: one for key, one in now.entries.items() if key != name}
            changed = replace(now, entries=left)
            changed._write()
            self._path(name).unlink(missing_ok=True)
        return changed

    def entry(self, name: str) -> Entry:
        """Return what the index has of a source; raise LibraryError if there is none."""
        if name not in self.entries:
            known = ", ".join(self.entries) or "none"
            raise LibraryError(f"{self.folder}: no source {name!r}; it has: {known}")
        return self.entries[name]

    def model(self, name: str) -> Model:
        """Return the model of a source.

        Raises
        ------
        LibraryError
            If its file is missing, or another than was added.
        """
        entry, path = self.entry(name), self._path(name)
        try:
            found = _digest(path)
        except OSError as error:
            raise LibraryError(
                f"{path}: {error.strerror}; remove the source {name!r}, and add it again"
            ) from error
        if found != entry.digest:
            raise LibraryError(
                f"{path}: not the file that was added; remove the source {name!r}, and add it again"
            )
        return read_model(path)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.blackbox"

    def _write(self) -> None:
        data = _FORMAT | {"sources": [asdict(one) for one in self.entries.values()]}
        text = json.dumps(data, ensure_ascii=False, indent=1)
        write_whole(self.folder / _INDEX, text.encode("utf-8", "backslashreplace"), LibraryError)


def _check_source(model: Model, path: str) -> None:
    """Raise if other tasks can't start from a model."""
    if model.several_labels:
        raise LibraryError(
            f"{path}: gives several labels per text, and other tasks start from models of one"
        )
    if not model.ensemble.algorithm.uses_experts:
        raise LibraryError(
            f"{path}: trained with {model.ensemble.algorithm.name}, whose votes are no "
            "probabilities; train it with logit"
        )
    if model.row_digests is None:
        raise LibraryError(
            f"{path}: has no digests of its training rows, by which a task that holds them is "
            "recognised; train it again"
        )
    if model.shows_examples or any(prompt.has_examples for prompt in model.prompts):
        raise LibraryError(
            f"{path}: its prompts show labelled texts, and a library holds no texts; train it "
            "without demonstrations"
        )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
