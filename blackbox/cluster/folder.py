"""The folder of a job: its results, which are also the record of what is done.

An actor writes the results of a block as one file, which is there as a whole or not at all. The ids
in these files are the rows that are done: a job that was stopped or killed at any moment goes on
from them, and what was under way in its actors is all that is computed again.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.cluster.source import ROW_ID
from blackbox.errors import DataError
from blackbox.plurals import counted
from blackbox.tables.addresses import file_system
from blackbox.tables.messages import data_errors, public

__all__ = ["JobFolder", "digest_of"]

_JOB, _PARTIAL = "_job.json", "_partial-"


class JobFolder:
    """The folder that a job writes Parquet files into, on any file system of Arrow.

    What begins with "_" in it is no result, and readers of Parquet leave it out.

    Parameters
    ----------
    out : str
        A path that every machine of the cluster has, or an address such as ``s3://bucket/folder``.

    Attributes
    ----------
    shown : str
        The same for messages, without keys.
    """

    def __init__(self, out: str) -> None:
        self.out, self.shown = out, public(out)
        self._run = ""

    def claim(self, job: Mapping[str, str], files: Mapping[str, str]) -> None:
        """Take the folder for a job, or go on with it; any earlier run can't write any more.

        Parameters
        ----------
        job : mapping of str to str
            What decides the results, by names for people.
        files : mapping of str to str
            The table's files, with what differs when one is written again. Later runs may have
            more, but none that changed, and none fewer.

        Raises
        ------
        DataError
            If the folder holds anything else, or another job's results; or if a file has changed
            or is gone.
        """
        from pyarrow import fs

        system, path = file_system(self.out)
        with data_errors(f"{self.shown}: can't be written", OSError):
            if system.get_file_info(f"{path}/{_JOB}").type == fs.FileType.File:
                self._check(job, files)
            elif system.get_file_info(path).type == fs.FileType.File or any(
                not name.startswith(_PARTIAL) for name in self._names()
            ):
                raise DataError(f"{self.shown}: exists and is no folder of a job; give another")
            system.create_dir(path, recursive=True)
            self._write({"job": job, "files": files})
            for name in self._names():
                if name.startswith(_PARTIAL):
                    system.delete_file(f"{path}/{name}")

    def renew(self) -> None:
        """Claim the folder again for the same job: actors that were left behind can't write."""
        with data_errors(f"{self.shown}: can't be written", OSError):
            self._write(self._record())

    def _write(self, record: Mapping[str, Any]) -> None:
        self._run = uuid.uuid4().hex
        data = json.dumps({**record, "run": self._run}, indent=1).encode()
        self._put(_JOB, lambda file: file.write(data))

    def _check(self, job: Mapping[str, str], files: Mapping[str, str]) -> None:
        try:
            known = self._record()
            others = [name for name in job if known["job"].get(name) != job[name]]
            changed = [name for name, state in known["files"].items() if files.get(name) != state]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._damaged() from None
        if others:
            raise DataError(
                f"{self.shown}: holds results of another job ({', '.join(others)} differ); give "
                "another folder"
            )
        if changed:
            what = "has changed" if changed[0] in files else "is gone"
            raise DataError(
                f"{changed[0]}: {what} since {self.shown} was begun; give another folder"
            )

    def _damaged(self) -> DataError:
        return DataError(
            f"{self.shown}/{_JOB}: damaged, so the job can't go on; give another folder"
        )

    def _record(self) -> dict[str, Any]:
        system, path = file_system(self.out)
        with system.open_input_stream(f"{path}/{_JOB}") as file:
            record: dict[str, Any] = json.loads(file.read())
        return record

    def save(self, rows: Any) -> None:
        """Write the results of a block, as a file whose name its ids decide.

        Parameters
        ----------
        rows : pyarrow.Table
            The results, with their ids; null where a row is not the only one of its id.

        Raises
        ------
        DataError
            If it can't be written, or the folder was claimed again since.
        """
        import pyarrow.parquet as pq

        ids = rows.column(ROW_ID).drop_null().to_numpy()
        name = f"{hashlib.sha256(ids.tobytes()).hexdigest()[:24]}.parquet"
        with data_errors(f"{self.shown}: can't be written", OSError):
            self._put(name, lambda file: pq.write_table(rows, file), self._check_run)

    def _put(
        self,
        name: str,
        write: Callable[[Any], object],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Write a file whole or not at all, and not if `check` raises."""
        from pyarrow import fs

        system, path = file_system(self.out)
        target = f"{path}/{name}"
        # on an object store a file appears when it is complete
        at_once = not isinstance(system, fs.LocalFileSystem)
        place = target if at_once else f"{path}/{_PARTIAL}{uuid.uuid4().hex}"
        if at_once:
            check()
        with system.open_output_stream(place) as file:
            write(file)
        if not at_once:
            check()
            system.move(place, target)

    def _check_run(self) -> None:
        try:
            run = self._record()["run"]
        except (ValueError, KeyError, TypeError):
            raise self._damaged() from None
        if run != self._run:
            raise DataError(f"{self.shown}: another command goes on with this job; this one ends")

    def done_ids(self) -> NDArray[np.int64]:
        """Return the ids of the rows that are done, ascending.

        Raises
        ------
        DataError
            If a row is there twice.
        """
        found = self._results().to_table(columns=[ROW_ID]).column(ROW_ID)
        ids = np.sort(found.drop_null().to_numpy())
        if len(ids) and (n_twice := int((ids[1:] == ids[:-1]).sum())):
            raise DataError(f"{self.shown}: {counted(n_twice, 'row')} there twice; give another")
        return np.asarray(ids, np.int64)

    def n_done(self) -> int:
        """Return the number of rows that are done."""
        from pyarrow import compute

        return int(self._results().count_rows(filter=compute.field(ROW_ID).is_valid()))

    def _results(self) -> Any:
        import pyarrow as pa
        from pyarrow import dataset

        system, path = file_system(self.out)
        files = [f"{path}/{name}" for name in self._names() if not name.startswith("_")]
        only_ids = pa.schema([pa.field(ROW_ID, pa.int64())])
        return dataset.dataset(files, schema=only_ids, format="parquet", filesystem=system)

    def _names(self) -> list[str]:
        from pyarrow import fs

        system, path = file_system(self.out)
        inside = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(one.base_name for one in inside)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
