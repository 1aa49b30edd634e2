"""Faults that happen to a store: damaged pages, missing files, full disks, locks, foreign files."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fakes import CountingBackend
from test_store import (
    DATA,
    DIGEST,
    PROMPTS,
    SMALL,
    assert_same,
    edited,
    requests,
    ruin_page,
    stored,
    truth,
)

from blackbox.backend import as_backend
from blackbox.cli import main
from blackbox.errors import StoreError
from blackbox.store import database as store_database
from blackbox.store import file as store_file
from blackbox.store import recovery
from blackbox.store import schema as store_schema
from blackbox.store.encoding import encode
from blackbox.store.exchange import export_store
from blackbox.store.file import StoreFile
from blackbox.store.stored_backend import StoredBackend, merge_values

ROWS = 3000
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _files_closed():
    yield
    for database in list(store_database._databases):
        database.close()
    store_file._opened.clear()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "passes.sqlite"


# --- damaged pages


def value_of(row: int, width: int = 12) -> bytes:
    rng = np.random.default_rng(row)
    ids = rng.choice(5000, width, replace=False).astype(np.int32)
    return encode(ids, -rng.random(width).astype(np.float32), width)


def key_of(row: int) -> bytes:
    return row.to_bytes(32, "big")


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """3,000 answers, of which every hundredth goes on in overflow pages."""
    where = tmp_path_factory.mktemp("large") / "passes.sqlite"
    store = StoreFile(where)
    for start in range(0, ROWS, 100):
        values = {
            key_of(row): value_of(row, 12 if row % 100 else 1000)
            for row in range(start, start + 100)
        }
        names = {token: str(token).encode() for token in range(start, start + 100)}
        store.put(DIGEST, DATA, values, names, merge_values)
    store.close()
    return where


def rows_of_pages(path: Path) -> dict[int, int]:
    """Return how many answers lie on each page of the table; any other page holds none."""
    with closing(sqlite3.connect(path)) as db:
        pages = "SELECT pageno, ncell FROM dbstat WHERE name = 'passes' AND pagetype = 'leaf'"
        return dict(db.execute(pages).fetchall())


@pytest.mark.parametrize(
    "seed", [*range(12), *(pytest.param(n, marks=pytest.mark.slow) for n in range(12, 40))]
)
def test_of_a_damaged_file_every_readable_row_is_kept(large, path, seed, caplog):
    rng = np.random.default_rng(seed)
    shutil.copy(large, path)
    n_pages = path.stat().st_size // 4096
    # the first pages are those on which all depends
    number = seed + 1 if seed < 12 else int(rng.integers(1, n_pages + 1))
    ruin_page(path, number, rng)
    store = StoreFile(path)
    store.verify()
    found = store.get(DIGEST, [key_of(row) for row in range(ROWS)])
    lost = ROWS - len(found)
    # a page that goes on from another one holds a part of one answer
    assert lost <= max(rows_of_pages(large).get(number, 0), 1)
    for row in range(ROWS):
        if key_of(row) in found:
            assert found[key_of(row)] == value_of(row, 12 if row % 100 else 1000)
    if lost:
        assert "is damaged" in caplog.text


def test_all_but_the_rows_of_ten_damaged_pages_are_kept(large, path):
    rng = np.random.default_rng(0)
    shutil.copy(large, path)
    for number in (1, *rng.integers(10, path.stat().st_size // 4096, 9)):
        ruin_page(path, int(number), rng)
    assert len(StoreFile(path).get(DIGEST, [key_of(row) for row in range(ROWS)])) > 0.9 * ROWS


def test_rows_that_are_only_in_the_log_are_kept(path, tmp_path):
    store = StoreFile(tmp_path / "from.sqlite")
    store.put(DIGEST, DATA, {key_of(row): value_of(row) for row in range(300)}, {}, merge_values)
    for ending in ("", "-wal"):  # as a killed process leaves them
        shutil.copy(tmp_path / f"from.sqlite{ending}", path.with_name(path.name + ending))
    with path.open("r+b") as file:
        file.truncate(100)
    ruin_page(path, 1, np.random.default_rng(0))
    found = StoreFile(path).get(DIGEST, [key_of(row) for row in range(300)])
    assert found == {key_of(row): value_of(row) for row in range(300)}


def test_an_export_of_a_damaged_file_holds_all_that_can_be_read(large, path, tmp_path):
    shutil.copy(large, path)
    ruin_page(path, path.stat().st_size // 8192, np.random.default_rng(0))
    written = export_store(StoreFile(path), tmp_path / "out.parquet")
    assert ROWS - 40 <= written < ROWS or written == ROWS
    assert written == StoreFile(path).info()["passes"]


def test_an_export_that_can_not_be_whole_is_none(large, path, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "not yours")

    shutil.copy(large, path)
    store = StoreFile(path)
    for number in range(20, 60):
        ruin_page(path, number, np.random.default_rng(number))
    monkeypatch.setattr(recovery, "_keep_aside", refuse)
    with pytest.raises(StoreError):
        export_store(store, tmp_path / "out.parquet")
    assert not list(tmp_path.glob("out.parquet*"))
    assert not list(tmp_path.glob("*.recovering-*"))


def test_recover_adds_what_a_damaged_file_still_has(large, path, tmp_path):
    broken = tmp_path / "broken.sqlite"
    shutil.copy(large, broken)
    ruin_page(broken, 1, np.random.default_rng(0))
    before = broken.read_bytes()
    run = CliRunner().invoke(
        main, ["store", "recover", str(broken), "--store", str(path), "--json"]
    )
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout) == {"read": ROWS, "added": ROWS}
    assert broken.read_bytes() == before
    again = CliRunner().invoke(main, ["store", "recover", str(broken), "--store", str(path)])
    assert again.stdout == f"{ROWS} answers read, 0 of them added to the store\n"


def test_recover_reads_nothing_of_another_file(path, tmp_path):
    other = tmp_path / "letter.txt"
    other.write_text("dear all")
    run = CliRunner().invoke(main, ["store", "recover", str(other), "--store", str(path)])
    assert run.exit_code == 1
    assert "is not a store" in run.output
    run = CliRunner().invoke(main, ["store", "recover", "nowhere", "--store", str(path)])
    assert run.exit_code == 1
    assert "nowhere: no such file" in run.output


# --- a file that goes while it is in use


def delete(path, *, all_of_them=True):
    for file in list(path.parent.glob(path.name + "*")):
        if all_of_them or file == path:
            file.unlink()


def replace_by_a_store(path):
    other = StoreFile(path.with_name("other.sqlite"))
    other.put(DIGEST, DATA, {key_of(1): value_of(1)}, {1: b"1"}, merge_values)
    other.close()
    path.with_name("other.sqlite").replace(path)


def replace_by_a_new_one(path):
    delete(path)
    StoreFile(path).close()


def move_the_folder(path):
    path.parent.rename(path.parent.with_name("elsewhere"))


def replaced_as_damaged(path):
    code = (
        "import sys; from pathlib import Path; from blackbox.store import recovery as r; "
        "r.replace_damaged(Path(sys.argv[1]), {}, ValueError('x'), is_ours=True)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(path)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


WAYS = {
    "deleted": delete,
    "deleted, its log left": lambda path: delete(path, all_of_them=False),
    "renamed": lambda path: path.rename(path.with_name("renamed.sqlite")),
    "replaced by another store": replace_by_a_store,
    "replaced by a new one": replace_by_a_new_one,
    "its folder moved": move_the_folder,
    "moved aside by `store verify`": replaced_as_damaged,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_store_that_goes_while_it_is_in_use_is_noticed(tmp_path, way, caplog):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "passes.sqlite"
    store = stored(path)
    store.next_token(PROMPTS[:30], 20)
    WAYS[way](path)
    assert_same(store.next_token(PROMPTS, 20), truth(PROMPTS, 20))
    assert len(store.backend.asked) == len(PROMPTS)
    assert "deleted, moved or replaced while it was in use" in caplog.text
    assert str(path) in caplog.text
    store.store.close()
    again = stored(path)
    assert again.store.verify()[1] == 0
    assert_same(again.next_token(PROMPTS, 20), truth(PROMPTS, 20))
    assert again.backend.asked == []


def a_letter(path):
    path.write_text("a letter")


def make_other_store(path):
    store = stored(path)
    store.next_token(requests(100, "elsewhere"), 20)
    store.store.close()


OVER = {
    "nothing": lambda path: path.write_bytes(b""),
    "a letter": a_letter,
    "a new store": lambda path: StoreFile(path).close(),
    "another store": make_other_store,
    "another database": lambda path: make_foreign(path),
}


@pytest.mark.parametrize("was_worked_off", [False, True])
@pytest.mark.parametrize("over", OVER)
def test_a_store_that_is_overwritten_in_use_is_noticed(path, over, was_worked_off, caplog):
    store = stored(path)
    store.next_token(PROMPTS[:30], 20)
    if was_worked_off:
        store.store._database.checkpoint(0)
    other = path.with_name("other")
    OVER[over](other)
    shutil.copy(other, path)
    before = path.read_bytes()
    assert_same(store.next_token(PROMPTS, 20), truth(PROMPTS, 20))
    assert "deleted, moved or replaced while it was in use" in caplog.text
    store.store.close()
    if over in ("a letter", "another database"):
        assert path.read_bytes() == before
        assert "blackbox store recover" in caplog.text
        (beside,) = path.parent.glob("passes.sqlite.waiting-*[0-9]")
        delete(path, all_of_them=False)
        assert StoreFile(path).recover(beside)[1] >= 10
    again = stored(path)
    assert again.store.verify()[1] == 0
    assert_same(again.next_token(PROMPTS, 20), truth(PROMPTS, 20))
    assert len(again.backend.asked) <= (30 if was_worked_off else 0)


def test_a_foreign_file_in_the_place_of_a_store_costs_no_answer(path, caplog):
    store = stored(path)
    store.next_token(PROMPTS[:20], 20)
    delete(path)
    path.write_text("a letter")
    assert_same(store.next_token(PROMPTS, 20), truth(PROMPTS, 20))
    assert len(store.backend.asked) == len(PROMPTS)
    assert path.read_text() == "a letter"
    assert caplog.text.count("can't be written to the store now") == 1
    path.unlink()
    store.store.flush()
    assert stored(path).known_rows(PROMPTS, 20) == list(range(40))


# --- files of others


def make_foreign(path, **pragmas):
    with closing(sqlite3.connect(path)) as db:
        for name, value in pragmas.items():
            db.execute(f"PRAGMA {name} = {value}")
        db.execute("CREATE TABLE passes (id INTEGER, holder TEXT)")
        db.execute("INSERT INTO passes VALUES (1, 'me')")
        db.commit()


FOREIGN = {
    "text": lambda path: path.write_bytes(b"no database at all" * 1000),
    "a database": make_foreign,
    "a database with a log": lambda path: make_foreign(path, journal_mode="wal"),
    "a database with an id": lambda path: make_foreign(path, application_id=7),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_not_ours_is_left_as_it_is(path, kind):
    FOREIGN[kind](path)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"is not a store of this program.*--no-store"):
            StoreFile(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def as_of_version_0_1(path):
    edited(path, "PRAGMA application_id = 0")
    edited(path, "DROP TABLE workers")
    edited(path, f"DELETE FROM meta WHERE name = '{DIGEST}'")  # noqa: S608
    edited(
        path,
        "CREATE TABLE owners (owner TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, "
        "expires REAL NOT NULL) WITHOUT ROWID",
    )


@pytest.mark.parametrize("page", [None, 1, 30])
def test_a_store_of_version_0_1_is_used_and_recovered(large, path, page):
    shutil.copy(large, path)
    as_of_version_0_1(path)
    if page is not None:
        ruin_page(path, page, np.random.default_rng(0))
    store = StoreFile(path)
    store.verify()
    assert len(store.get(DIGEST, [key_of(row) for row in range(ROWS)])) >= ROWS - 40
    assert store.claim("a", [b"1"]) == [b"1"]


# --- a file that can't be written


@contextlib.contextmanager
def mounted(folder, options):
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("no permission to mount")
    try:
        yield
    finally:
        for database in list(store_database._databases):
            database.close()
        subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    with mounted(folder, "size=2m"):
        yield folder


def fill(folder):
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def test_a_full_disk_costs_no_answer(small_disk, caplog):
    path = small_disk / "passes.sqlite"
    store = stored(path)
    store.next_token(PROMPTS[:5], 20)
    fill(small_disk)
    many = requests(400)
    for _ in range(2):
        assert_same(store.next_token(many, 20), truth(many, 20))
    assert len(store.backend.asked) == 400
    assert store.store.n_waiting > 0
    assert "full" in store.store.trouble
    assert caplog.text.count("can't be written to the store now") == 1
    (small_disk / "filler").unlink()
    store.store.flush()
    assert store.store.trouble is None
    assert store.store.n_waiting == 0
    assert stored(path).known_rows(many, 20) == list(range(400))


def test_a_store_on_a_full_disk_is_read_and_pruned(small_disk):
    path = small_disk / "passes.sqlite"
    first = StoreFile(path)
    values = {key_of(row): value_of(row, 200) for row in range(400)}
    first.put(DIGEST, DATA, values, {}, merge_values)
    first.close()
    edited(path, "UPDATE passes SET used = 1 WHERE id % 2")
    fill(small_disk)
    second = StoreFile(path)
    assert len(second.get(DIGEST, list(values))) == 400
    size = path.stat().st_size
    assert second.prune(100) == 200
    assert path.stat().st_size < 0.7 * size
    assert second.verify()[1] == 0
    second.put(DIGEST, DATA, {key_of(5000): value_of(5000)}, {}, merge_values)
    assert StoreFile(path).get(DIGEST, [key_of(5000)]) == {key_of(5000): value_of(5000)}


def test_a_locked_store_costs_no_answer(path, monkeypatch, caplog):
    monkeypatch.setattr(store_schema, "BUSY_SECONDS", 0.2)
    store = stored(path)
    store.next_token(PROMPTS[:5], 20)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert_same(store.next_token(PROMPTS, 20), truth(PROMPTS, 20))
        # another one opens it, reads what is there, and is answered too
        late = stored(path)
        assert_same(late.next_token(PROMPTS, 20), truth(PROMPTS, 20))
        assert len(late.backend.asked) == 35
        assert caplog.text.count("can't be written to the store now") == 2
        other.execute("ROLLBACK")
    assert len(store.backend.asked) == 40
    store.next_token(PROMPTS, 20)  # from memory, and the store is looked at again
    assert store.store.n_waiting == 0
    assert store.store.trouble is None
    assert stored(path).known_rows(PROMPTS, 20) == list(range(40))


@pytest.mark.parametrize("part", ["file", "folder"])
@pytest.mark.parametrize("was_killed", [False, True])
def test_a_read_only_store_is_read(path, part, was_killed, monkeypatch, caplog, tmp_path):
    store = stored(path)
    store.next_token(PROMPTS[:30], 20)
    if was_killed:
        for file in list(tmp_path.glob("passes.sqlite*")):
            shutil.copy(file, tmp_path / ("copy" + file.name.removeprefix("passes")))
        path = tmp_path / "copy.sqlite"
    store.store.close()
    locked = path if part == "file" else path.parent
    monkeypatch.setattr(store_database.os, "access", lambda where, _: Path(where) != locked)
    before = path.read_bytes()
    caplog.set_level(logging.WARNING)
    reading = stored(path)
    assert_same(reading.next_token(PROMPTS, 20), truth(PROMPTS, 20))
    assert len(reading.backend.asked) == 10
    assert reading.store.info()["passes"] == 30
    assert reading.store.verify() == (30, 0)
    assert export_store(reading.store, tmp_path / "out.parquet") == 30
    assert caplog.text.count("can be read, and not written") <= 3
    assert path.read_bytes() == before


def test_a_read_only_file_system_is_read(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder, "size=2m"):
        path = folder / "passes.sqlite"
        store = stored(path)
        store.next_token(PROMPTS[:30], 20)
        store.store.close()
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        reading = stored(path)
        assert_same(reading.next_token(PROMPTS, 20), truth(PROMPTS, 20))
        assert len(reading.backend.asked) == 10


def test_what_is_wrong_with_the_call_does_not_wait(path):
    store = StoreFile(path)
    with pytest.raises((StoreError, TypeError)):
        store.put(DIGEST, DATA, {object(): b"x"}, {}, merge_values)
    assert store.n_waiting == 0
    store.put(DIGEST, DATA, {key_of(1): value_of(1)}, {}, merge_values)
    assert store.get(DIGEST, [key_of(1)]) == {key_of(1): value_of(1)}


# --- the write-ahead log


def test_only_checkpoints_that_keep_writers_out_are_made(path):
    """SQLite before 3.51.3 may lose a commit beside a checkpoint that lets writers in."""
    store = StoreFile(path)
    database = store._database
    assert database.run(lambda db: db.execute("PRAGMA wal_autocheckpoint").fetchone()) == (0,)
    log, sizes = path.with_name("passes.sqlite-wal"), []
    for start in range(0, 6000, 200):
        values = {key_of(row): value_of(row, 200) for row in range(start, start + 200)}
        store.put(DIGEST, DATA, values, {}, merge_values)
        sizes.append(log.stat().st_size)
    assert max(sizes) < 8_000_000
    assert 0 in sizes
    assert store.verify() == (6000, 0)


def test_a_long_reader_holds_up_no_writer(path, monkeypatch):
    monkeypatch.setattr(store_schema, "BUSY_SECONDS", 0.2)
    monkeypatch.setattr(store_database, "_LOG_BYTES", 100_000)
    store = StoreFile(path)
    store.put(DIGEST, DATA, {key_of(0): value_of(0)}, {}, merge_values)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM passes").fetchone()
        for start in range(0, 2000, 100):
            values = {key_of(row): value_of(row, 200) for row in range(start, start + 100)}
            store.put(DIGEST, DATA, values, {}, merge_values)
    assert store.trouble is None
    assert store.verify() == (2000, 0)


# --- claims


class Gate(CountingBackend):
    """An LM that waits, after some prompts, until it may go on."""

    def __init__(self, stop_after: int, **options) -> None:
        super().__init__(**options)
        self.stop_after = stop_after
        self.reached, self.go = threading.Event(), threading.Event()

    def next_token(self, prompts, top_k):
        if len(self.asked) == self.stop_after:
            self.reached.set()
            self.go.wait(20)
        return super().next_token(prompts, top_k)


def test_who_was_taken_over_makes_at_most_one_batch_twice(path, monkeypatch):
    monkeypatch.setattr("blackbox.store.claims.LEASE_SECONDS", 0.6)
    # its signs of life stop, as those of a stopped process
    monkeypatch.setattr("blackbox.store.claims.SignsOfLife._renew", lambda *_: None)
    prompts = requests(600)
    gate = Gate(128, **SMALL)
    slow, fast = StoredBackend(as_backend(gate), StoreFile(path)), stored(path)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(slow.next_token(prompts, 5)))
    thread.start()
    assert gate.reached.wait(20)
    assert_same(fast.next_token(prompts, 5), truth(prompts, 5))
    gate.go.set()
    thread.join(30)
    assert_same(answers[0], truth(prompts, 5))
    assert len(gate.asked) + len(fast.backend.asked) <= 600 + 64


def test_a_slow_lm_keeps_its_claims(path, monkeypatch):
    monkeypatch.setattr("blackbox.store.claims.LEASE_SECONDS", 0.6)
    prompts = requests(100)
    gate = Gate(0, **SMALL)
    slow, fast = StoredBackend(as_backend(gate), StoreFile(path)), stored(path)
    threads = [
        threading.Thread(target=lambda lm=lm: lm.next_token(prompts, 5)) for lm in (slow, fast)
    ]
    threads[0].start()
    assert gate.reached.wait(20)
    threads[1].start()
    threads[1].join(2.5)
    assert threads[1].is_alive()  # it waits, as the other one shows that it lives
    gate.go.set()
    for thread in threads:
        thread.join(20)
    assert len(gate.asked) + len(fast.backend.asked) == 100
