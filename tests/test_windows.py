"""Where Windows differs: open files stay where they are, and signals and locks are missing.

Elsewhere it is simulated: no file that this process has open can be replaced or removed.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from click.testing import CliRunner
from serving import LABELS, TEXTS, served, train
from test_store import DATA, DIGEST, ruin_page

from blackbox.cli import _command_line, main
from blackbox.cli.serve import _listen, _tokens
from blackbox.errors import DataError
from blackbox.files import replacing
from blackbox.model.file import read_model
from blackbox.store.encoding import encode
from blackbox.store.file import StoreFile
from blackbox.store.stored_backend import merge_values
from blackbox.tables import TableWriter

OPEN_FILES = Path("/proc/self/fd")


@pytest.fixture
def open_files_stay(monkeypatch):
    """No file that this process has open can be replaced or removed."""
    if os.name == "nt":
        return
    if not OPEN_FILES.exists():
        pytest.skip("which files are open can't be seen")

    def refuse_open(path):
        try:
            wanted = os.lstat(path)
        except OSError:
            return
        for descriptor in OPEN_FILES.iterdir():
            try:
                found = descriptor.stat()
            except OSError:
                continue
            if os.path.samestat(wanted, found):
                raise PermissionError(errno.EACCES, "Access is denied", str(path))

    def wrapped(real, n_paths):
        def call(*arguments, **options):
            for path in arguments[:n_paths]:
                refuse_open(path)
            return real(*arguments, **options)

        return call

    for name, n_paths in (("replace", 2), ("rename", 2), ("unlink", 1), ("remove", 1)):
        monkeypatch.setattr(os, name, wrapped(getattr(os, name), n_paths))


@pytest.fixture
def windows(open_files_stay, monkeypatch):
    """As above, and without locks of files."""
    monkeypatch.setattr(sys, "platform", "win32")


@pytest.mark.usefixtures("open_files_stay")
def test_a_file_that_is_open_is_neither_replaced_nor_removed(tmp_path):
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_text("a")
    other.write_text("b")
    with path.open():
        for refused in (path.unlink, lambda: other.replace(path), lambda: path.rename("c")):
            with pytest.raises(PermissionError):
                refused()
    other.replace(path)
    path.unlink()


@pytest.mark.usefixtures("windows")
def test_a_damaged_store_is_replaced(tmp_path):
    path = tmp_path / "passes.sqlite"
    store = StoreFile(path)
    ids = np.arange(12, dtype=np.int32)
    value = encode(ids, -ids.astype(np.float32), 12)
    values = {row.to_bytes(32, "big"): value for row in range(500)}
    store.put(DIGEST, DATA, values, {}, merge_values)
    store.close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ruin_page(path, 1, np.random.default_rng(0))
    again = StoreFile(path)
    found = again.get(DIGEST, list(values))
    again.close()
    assert found == values
    assert [file.name for file in tmp_path.iterdir() if ".damaged-" in file.name]


@pytest.mark.usefixtures("windows")
def test_a_second_writer_is_refused_and_what_a_killed_one_left_is_removed(tmp_path):
    path = tmp_path / "t.csv"
    left = tmp_path / f".t.csv.{'0' * 16}.partial"
    left.write_text("half a ta")
    with TableWriter(path, ["text"]) as writer:
        assert not left.exists()
        writer.write({"text": "x"})
        with pytest.raises(DataError, match="another run is writing it"):
            TableWriter(path, ["text"])
    assert path.read_text() == "text\nx\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("windows")
def test_a_file_that_somebody_reads_stays_as_it_is(tmp_path):
    path = tmp_path / "m"
    path.write_text("before")
    with path.open(), pytest.raises(PermissionError), replacing(path) as file:
        file.write(b"after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("open_files_stay")
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_is_predicted_in_place(tmp_path, ending):
    model, table = train(tmp_path / "m"), tmp_path / f"t.{ending}"
    with TableWriter(table, ["text", "label"]) as writer:
        for text, label in zip(TEXTS, LABELS, strict=True):
            writer.write({"text": text, "label": label})
    command = ["predict", str(model), str(table), "--out", str(table), "--no-store"]
    done = CliRunner().invoke(main, [*command, "--backend", "deterministic"])
    assert done.exit_code == 0, done.output
    if ending == "parquet":
        assert "prediction" in parquet.read_schema(table).names
    # a model is written over, and read, without a file that stays open
    read_model(train(model))


def test_tokens_of_an_editor_that_begins_files_with_a_mark(tmp_path):
    path = tmp_path / "tokens"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert _tokens(path) == ["one", "two"]


def test_a_port_that_is_taken_is_said_in_the_system_s_words():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Exception, match=f"--port {port}: ") as caught:
            _listen("127.0.0.1", port)
    assert str(caught.value) == (
        f"--host 127.0.0.1 --port {port}: {os.strerror(errno.EADDRINUSE)}"
        if os.name == "posix"
        else str(caught.value)
    )


def test_a_service_starts_where_there_is_no_signal_to_reload(tmp_path, monkeypatch):
    from starlette.testclient import TestClient

    from blackbox.service.app import create_app
    from blackbox.service.core import Service
    from blackbox.service.settings import ServiceSettings

    monkeypatch.delattr(signal, "SIGHUP", raising=False)
    service = Service([served(train(tmp_path / "m"))], ServiceSettings())
    with TestClient(create_app(service), base_url="http://127.0.0.1") as client:
        assert client.post("/v1/predict", json={"text": "match"}).status_code == 200


@pytest.mark.parametrize(
    ("platform", "line"),
    [("win32", r'blackbox train "my rows.csv"'), ("linux", "blackbox train 'my rows.csv'")],
)
def test_a_command_to_run_again_is_quoted_for_the_shell(monkeypatch, platform, line):
    monkeypatch.setattr(sys, "platform", platform)
    assert _command_line(["blackbox", "train", "my rows.csv"]) == line
