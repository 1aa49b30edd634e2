"""Tables: every format there and back, every mistake as one line that helps, constant memory."""

from __future__ import annotations

import csv
import datetime
import errno
import gc
import io
import json
import os
import random
import re
import stat
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blackbox import files
from blackbox.errors import DataError
from blackbox.files import write_whole
from blackbox.tables import (
    FORMATS,
    TableReader,
    TableWriter,
    check_text,
    delimited,
    jsonl,
    label_of,
    read_examples,
    similar_labels,
    sources,
)

AWKWARD = [
    'She said "no", twice',
    "a,b\tc;d|e",
    "two\nlines",
    "two\r\nlines",
    "old\rMac",
    "\r",
    '"',
    '""',
    " spaces around ",
    "👩‍👩‍👧 family",
    "\u0301 a combining mark alone",
    "line\u2028separator\x85next\x0bvertical\x0cform",
    "\ufeffmark",
    "NA",
    "null",
    "007",
    "-1.50",
    "#comment",
    "\\n backslash",
    "=1+1",
]


def rows_of(path: Any, *columns: str, **options: Any) -> list[dict[str, Any]]:
    with TableReader(path, **options) as reader:
        reader.require(*columns)
        return [dict(row.values) for row in reader]


def rows_of_bytes(content: bytes, **options: Any) -> list[dict[str, Any]]:
    return rows_of("-", stream=io.BytesIO(content), **options)


def write_rows(path: Any, rows: list[dict[str, Any]], **options: Any) -> None:
    with TableWriter(path, list(rows[0]), **options) as writer:
        for row in rows:
            writer.write(row)


def read_or_refused(content: bytes, format: str) -> bool:
    """Whether bytes are a table; what isn't must be refused by a DataError of one line."""
    try:
        rows_of_bytes(content, format=format)
    except DataError as error:
        return "\n" not in str(error)
    return True


def refusal(path: Path, content: bytes | None = None, *columns: str) -> str:
    """Read everything, expecting a DataError; its message, after checking that it is one line."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        rows_of(path, *columns)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 600
    return message.removeprefix(str(path))


# ---------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("format", FORMATS)
def test_awkward_texts_come_back_exactly(format, tmp_path):
    rows = [{"text": text, "label": str(i)} for i, text in enumerate(AWKWARD)]
    write_rows(tmp_path / f"t.{format}", rows)
    assert rows_of(tmp_path / f"t.{format}") == rows


@pytest.mark.parametrize("format", FORMATS)
def test_awkward_column_names_come_back_exactly(format, tmp_path):
    row = dict.fromkeys(AWKWARD, "x")
    write_rows(tmp_path / f"t.{format}", [row])
    with TableReader(tmp_path / f"t.{format}") as reader:
        assert reader.columns == AWKWARD
        assert [r.values for r in reader] == [row]


@pytest.mark.parametrize("format", FORMATS)
def test_a_single_column_of_empty_texts_keeps_its_rows(format, tmp_path):
    rows = [{"text": ""}, {"text": "x"}, {"text": ""}]
    write_rows(tmp_path / f"t.{format}", rows)
    assert rows_of(tmp_path / f"t.{format}") == rows


# No NUL and no half surrogate pairs, which neither format takes; no BOM in the first header.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))

# A busy machine is no failure
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)


@patient
@given(st.lists(st.tuples(texts, texts), max_size=5), st.sampled_from(["csv", "tsv", "jsonl"]))
def test_any_text_comes_back_exactly(tmp_path_factory, pairs, format):
    path = tmp_path_factory.getbasetemp() / f"any.{format}"
    rows = [{"text": text, "other": other} for text, other in pairs] or [{"text": "", "other": ""}]
    write_rows(path, rows)
    assert rows_of(path) == rows


@settings(patient, max_examples=30)
@given(
    st.lists(
        st.dictionaries(
            texts,
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.floats(allow_nan=False, allow_infinity=False)
                | texts,
                lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
                max_leaves=5,
            ),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_json_value_keeps_its_type_and_value(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    write_rows(path, rows)
    back = rows_of(path)
    assert back == rows
    assert repr(back) == repr(rows)  # 1, 1.0 and True are equal but not the same


@patient
@given(st.binary(max_size=300), st.sampled_from(FORMATS))
def test_any_bytes_are_read_or_refused_in_one_line(content, format):
    assert read_or_refused(content, format)


@patient
@given(texts, st.integers(1, 9))
def test_lines_do_not_depend_on_how_the_bytes_arrive(text, size):
    content = text.encode()
    blocks = [content[i : i + size] for i in range(0, len(content), size)]
    expected = io.StringIO(text, newline="").readlines()
    assert list(sources.text_lines(blocks, "t")) == expected


def test_csv_values_stay_text(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,c,d\nNA,null,007,1e3\n,NaN,True, x \n")
    assert rows_of(path) == [
        {"a": "NA", "b": "null", "c": "007", "d": "1e3"},
        {"a": "", "b": "NaN", "c": "True", "d": " x "},
    ]


def test_rows_are_counted_from_one_without_header_and_blank_lines(tmp_path):
    (tmp_path / "t.csv").write_text("\n\ntext\n\none\n\r\ntwo\n\n")
    (tmp_path / "t.jsonl").write_text('\n{"text": "one"}\n \n{"text": "two"}\n')
    for name in ("t.csv", "t.jsonl"):
        with TableReader(tmp_path / name) as reader:
            assert [(row.number, row.values["text"]) for row in reader] == [(1, "one"), (2, "two")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_may_end_as_on_any_system(end):
    content = end.join(["text,label", "a,b", '"c', 'd",e']).encode()
    assert rows_of_bytes(content) == [
        {"text": "a", "label": "b"},
        {"text": f"c{end}d", "label": "e"},
    ]


def test_a_byte_order_mark_is_not_part_of_the_first_name():
    assert rows_of_bytes(b"\xef\xbb\xbftext\nx\n") == [{"text": "x"}]
    assert rows_of_bytes(b'\xef\xbb\xbf{"text": "x"}\n') == [{"text": "x"}]

    class Dripping(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            return super().read1(1)

    assert rows_of("-", stream=Dripping(b"\xef\xbb\xbftext\nx\n")) == [{"text": "x"}]


def test_characters_and_line_ends_on_the_edge_of_a_block_stay_whole():
    for shift in range(4):
        rows = [{"text": "x" * shift + "é€👍\r\n" * 9_000, "label": "a"}] * 2
        lines = ['"{text}",{label}\r\n'.format(**row) for row in rows]
        assert rows_of_bytes("".join(["text,label\r\n", *lines]).encode()) == rows


def test_a_document_longer_than_the_csv_modules_limit_is_read(tmp_path):
    rows = [{"text": "long " * 100_000, "label": "a"}]
    write_rows(tmp_path / "t.csv", rows)
    assert rows_of(tmp_path / "t.csv") == rows


def test_header_without_rows_yields_nothing(tmp_path):
    write_rows(tmp_path / "t.csv", [{"text": "x"}])
    (tmp_path / "t.csv").write_text("text,label\n")
    with TableReader(tmp_path / "t.csv") as reader:
        assert reader.columns == ["text", "label"]
        assert list(reader) == []


@pytest.mark.parametrize("format", ["csv", "tsv", "parquet"])
def test_a_table_without_rows_keeps_its_columns(format, tmp_path):
    with TableWriter(tmp_path / f"t.{format}", ["text", "label"]):
        pass
    with TableReader(tmp_path / f"t.{format}") as reader:
        assert reader.columns == ["text", "label"]
        assert list(reader) == []


def test_nameless_columns_are_kept_apart(tmp_path):
    content = b"text,,label,\na,b,c,d\n"
    assert rows_of_bytes(content) == [{"text": "a", "": "b", "label": "c", "column 4": "d"}]
    (tmp_path / "t.csv").write_bytes(content)
    assert "without a name" in refusal(tmp_path / "t.csv", None, "")


def test_the_ending_may_be_in_capitals_and_ndjson_is_jsonl(tmp_path):
    (tmp_path / "T.CSV").write_text("text\nx\n")
    (tmp_path / "t.ndjson").write_text('{"text": "x"}\n')
    assert rows_of(tmp_path / "T.CSV") == rows_of(tmp_path / "t.ndjson") == [{"text": "x"}]
    assert rows_of_bytes(b'{"text": "x"}', format="NDJSON") == [{"text": "x"}]


def test_a_given_format_wins_over_the_ending(tmp_path):
    (tmp_path / "t.txt").write_text("text\tlabel\nx\ty\n")
    assert rows_of(tmp_path / "t.txt", format="tsv") == [{"text": "x", "label": "y"}]


# ------------------------------------------------------------------------------- streams and stdin


def test_a_stream_lends_its_content_and_the_path_its_name_and_ending():
    stream = io.BytesIO(b"text\tlabel\nx\ty\n")
    with TableReader("upload.tsv", stream=stream) as reader:
        assert reader.name == "upload.tsv"
        assert next(iter(reader)).values == {"text": "x", "label": "y"}
    assert not stream.closed


def test_standard_input_is_known_by_its_first_bytes(monkeypatch):
    parquet = io.BytesIO()
    pq.write_table(pa.table({"text": ["x"]}), parquet)
    for format, content in {
        "csv": b"text\nx\n",
        "jsonl": b' \n {"text": "x"}\n',
        "parquet": parquet.getvalue(),
    }.items():
        stream = io.BytesIO(content)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
        with TableReader("-") as reader:
            assert (reader.name, reader.format) == ("<stdin>", format)
            assert [row.values for row in reader] == [{"text": "x"}]
        assert not stream.closed


def test_parquet_comes_through_a_pipe_that_cannot_seek():
    parquet = io.BytesIO()
    pq.write_table(pa.table({"text": ["x", "y"]}), parquet)
    read, write = os.pipe()
    with open(read, "rb") as source, open(write, "wb") as sink:  # noqa: PTH123
        sink.write(parquet.getvalue())
        sink.close()
        assert rows_of("-", stream=source) == [{"text": "x"}, {"text": "y"}]


def test_rows_come_as_a_pipe_delivers_them():
    read, write = os.pipe()
    with open(read, "rb") as source, open(write, "wb", buffering=0) as sink:  # noqa: PTH123
        sink.write(b"text,label\none,a\ntwo")
        with TableReader("-", stream=source) as reader:
            rows = iter(reader)
            assert next(rows).values["text"] == "one"
            sink.write(b",b\nthree")
            assert next(rows).values["text"] == "two"
            sink.close()
            with pytest.raises(DataError, match="row 3"):
                next(rows)


def test_standard_output_is_csv_and_stays_open(capfdbinary):
    write_rows("-", [{"text": 'a "b"', "p": 0.5}])
    print("end")  # noqa: T201
    assert capfdbinary.readouterr().out == b'text,p\n"a ""b""",0.5\nend\n'


@pytest.mark.parametrize("format", FORMATS)
def test_standard_output_takes_any_format(format, capfdbinary):
    write_rows("-", [{"text": "a"}], format=format)
    sys.stdout.flush()
    assert rows_of_bytes(capfdbinary.readouterr().out, format=format) == [{"text": "a"}]


def test_a_closed_pipe_is_not_called_a_mistake(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb", buffering=0) as sink:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=sink))
        with pytest.raises(BrokenPipeError):
            TableWriter("-", ["text"])


# -------------------------------------------------------------------------------------- bad tables


def test_a_missing_file_a_folder_and_an_empty_file_are_named(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.csv")
    assert "is a folder" in refusal(tmp_path)
    for format in FORMATS:
        assert "empty (0 bytes)" in refusal(tmp_path / f"t.{format}", b"")
    assert "is empty" in refusal(tmp_path / "blank.csv", b"\n\r\n")
    assert "is empty" in refusal(tmp_path / "blank.jsonl", b"\n \n")
    with pytest.raises(DataError, match=r"^<stdin>: is empty"):
        rows_of_bytes(b"")


def test_a_path_that_the_system_refuses_is_named(tmp_path):
    assert "File name too long" in refusal(tmp_path / ("x" * 300 + ".csv"))


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("text\n")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "Permission denied" in refusal(tmp_path / "t.csv")


def test_a_disk_that_fails_while_reading_is_named():
    class Failing(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise OSError(errno.EIO, "Input/output error")
            return super().read1(20)

    with pytest.raises(DataError, match="Input/output error"):
        rows_of("t.csv", stream=Failing(b"text\n" + b"x\n" * 100))


def test_an_unknown_ending_or_format_lists_the_known_ones(tmp_path):
    for name in ("t.md", "t.docx", "t"):
        message = refusal(tmp_path / name, b"text\nx\n")
        assert "unknown ending" in message
        assert ".csv, .tsv, .jsonl, .parquet, .ndjson, .json, " in message
    with pytest.raises(
        DataError, match="no format 'xls'; there are csv, tsv, jsonl, parquet, feather"
    ):
        TableReader("t.csv", format="xls", stream=io.BytesIO(b"text\n"))
    with pytest.raises(DataError, match="unknown ending"):
        TableWriter(tmp_path / "out.txt", ["text"])


def test_a_missing_column_is_named_with_those_there_are(tmp_path):
    content = b"Text,labels\nx,y\n"
    message = refusal(tmp_path / "t.csv", content, "label")
    assert message == (
        ": no column 'label'; its columns are 'Text', 'labels'; did you mean 'labels'?"
    )
    assert "did you mean 'Text'" in refusal(tmp_path / "t.csv", content, "text")
    assert "did you mean" not in refusal(tmp_path / "t.csv", content, "zzz")
    assert "no column 'text'" in refusal(tmp_path / "t.jsonl", b'{"txt": "x"}\n', "text")
    write_rows(tmp_path / "t.parquet", [{"txt": "x"}])
    assert "did you mean 'txt'" in refusal(tmp_path / "t.parquet", None, "text")


def test_a_missing_column_among_hundreds_gets_a_short_message(tmp_path):
    header = ",".join(f"column number {i} with a rather long name" for i in range(500))
    assert "and 490 more" in refusal(tmp_path / "t.csv", header.encode(), "text")


@pytest.mark.parametrize(
    ("name", "delimiter", "words"),
    [
        ("t.csv", ";", "read with semicolons between columns, not commas"),
        ("t.csv", "\t", "read with tabs between columns, not commas"),
        ("t.csv", "|", "read with '|' between columns, not commas"),
        ("t.tsv", ",", "read with commas between columns, not tabs"),
        ("t.txt", "\t", "read with tabs between columns, not commas"),
    ],
)
def test_another_delimiter_is_recognised_and_logged(name, delimiter, words, tmp_path, caplog):
    path = tmp_path / name
    path.write_text(f'text{delimiter}label\n"a{delimiter}b, c"{delimiter}x\n')
    assert rows_of(path, "text") == [{"text": f"a{delimiter}b, c", "label": "x"}]
    (record,) = caplog.records
    assert f"{path}: {words}" in record.getMessage()


def test_a_first_line_that_names_the_delimiter_is_obeyed(tmp_path, caplog):
    path = tmp_path / "t.csv"
    path.write_text("sep=;\ntext,more;label\na;b\nc\n")
    with TableReader(path) as reader:
        assert reader.columns == ["text,more", "label"]
        rows = iter(reader)
        assert next(rows).values == {"text,more": "a", "label": "b"}
        with pytest.raises(DataError, match=r"row 2 \(line 4\): 1 fields, .*semicolons"):
            next(rows)
    assert len(caplog.records) == 1


def test_a_given_delimiter_is_used_without_a_word(caplog):
    content = b"text;label,x\na;b,c\n"
    assert rows_of_bytes(content) == [{"text;label": "a;b", "x": "c"}]
    assert rows_of_bytes(content, delimiter=";") == [{"text": "a", "label,x": "b,c"}]
    assert rows_of_bytes(b"sep=;\na;b\nc;d\n", delimiter=";") == [{"a": "c", "b": "d"}]
    assert caplog.records == []
    for wrong in ("", ";;", "\n", '"'):
        with pytest.raises(DataError, match="is no single character"):
            rows_of_bytes(content, delimiter=wrong)


def test_repeated_names_are_refused(tmp_path):
    assert "'text'" in refusal(tmp_path / "t.csv", b"text,label,text\na,b,c\n")
    with pytest.raises(DataError, match="two columns are called 'p'"):
        TableWriter(tmp_path / "out.csv", ["p", "p"])
    table = pa.Table.from_arrays([pa.array(["a"])] * 2, names=["a", "a"])
    pq.write_table(table, tmp_path / "t.parquet")
    assert "two columns are called 'a'" in refusal(tmp_path / "t.parquet")


def test_too_many_and_too_few_fields_name_the_row_and_the_counts(tmp_path):
    many = refusal(tmp_path / "t.csv", b'text,label\n"a\nb",x\n\nhello, world,y\n')
    assert many.startswith(", row 2 (line 5): 3 fields, but the header has 2")
    assert ", row 1 (line 2): 1 fields" in refusal(tmp_path / "t.csv", b"text,label\nhello\n")


def test_rows_before_a_broken_one_are_delivered(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\na,b\nc\n")
    with TableReader(tmp_path / "t.csv") as reader:
        rows = iter(reader)
        assert next(rows).number == 1
        with pytest.raises(DataError, match="row 2"):
            next(rows)


def test_windows_1252_is_recognised_and_logged(tmp_path, caplog):
    path = tmp_path / "t.csv"
    path.write_bytes("text\nplain\ncafé au lait\n3,50 €\n".replace(",", ".").encode("cp1252"))
    assert [row["text"] for row in rows_of(path)] == ["plain", "café au lait", "3.50 €"]
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"{path}: not UTF-8, read as Windows-1252 (line 3 has 'café")


def test_bytes_that_may_be_something_else_name_line_and_byte(tmp_path):
    path = tmp_path / "t.csv"
    for content in (
        "text\nпривет, мир".replace(",", "").encode("cp1251"),  # another alphabet
        "text\né\n".encode() + b"caf\xe9 au lait\n",  # UTF-8 before it
        b"text\nthe caf\xe9",  # a character that may go on
        b"text\na \x81 word\n",  # nothing in Windows-1252
    ):
        message = refusal(path, content)
        assert message.startswith((", line 2: byte 0x", ", line 3: byte 0x"))
        assert "not UTF-8" in message
        assert "name its encoding" in message
    late = b"text\nthe caf\xe9 of words\nother words \x81\n"
    assert "line 3: byte 0x81 is not Windows-1252 as lines before it" in refusal(path, late)


def test_a_given_encoding_is_used_without_a_word(tmp_path, caplog):
    path = tmp_path / "t.csv"
    for encoding in ("cp1251", "utf-16", "utf-16-le", "UTF_8", "utf-8-sig", "shift_jis"):
        path.write_bytes("text\nслово\n".encode(encoding))
        assert rows_of(path, encoding=encoding) == [{"text": "слово"}]
    assert caplog.records == []
    path.write_bytes(b"text\nx\n\xff\xff\n")
    with pytest.raises(DataError, match="not shift_jis"):
        rows_of(path, encoding="shift_jis")
    for wrong in ("base64", "nonsense", "undefined"):
        with pytest.raises(DataError, match="no encoding"):
            rows_of(path, encoding=wrong)


def test_the_line_of_a_wrong_byte_is_exact_far_into_a_file(tmp_path):
    for end in (b"\n", b"\r\n"):
        content = "téxt".encode() + end + (b"some words" + end) * 20_000 + b"caf\xe9" + end
        assert ", line 20002:" in refusal(tmp_path / "t.csv", content)
        assert ", line 20002:" in refusal(tmp_path / "t.csv", content.replace(b"\xe9", b"\0"))


def test_a_character_that_breaks_off_at_the_end_is_named(tmp_path):
    assert ", line 2: byte 0xe2 is not UTF-8" in refusal(tmp_path / "t.csv", b"text\nx\xe2\x82")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_utf_16_with_its_mark_is_read(encoding, tmp_path):
    rows = [{"text": "é👍 \n" * 9_000, "label": "x"}] * 3
    for format in ("csv", "jsonl"):
        path = tmp_path / f"t.{format}"
        write_rows(path, rows)
        path.write_bytes(path.read_text("utf-8").encode(encoding))
        assert rows_of(path) == rows
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(DataError, match=f"not {encoding}"):
            rows_of(path)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_refused_by_name(encoding, tmp_path):
    for name, content in (("t.csv", "text\nx\n"), ("t.jsonl", '{"text": "x"}')):
        assert "UTF-16" in refusal(tmp_path / name, content.encode(encoding))


def test_binary_files_are_refused_for_what_they_are(tmp_path):
    workbook = io.BytesIO()
    with zipfile.ZipFile(workbook, "w") as archive:
        archive.writestr("xl/workbook.xml", "<x/>")
    parquet = io.BytesIO()
    pq.write_table(pa.table({"text": ["x"]}), parquet)
    for content, word in (
        (workbook.getvalue(), "Excel"),
        (b"\xfd7zXZ\0", "compressed"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image"),
        (parquet.getvalue(), "Parquet"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "binary"),
        (b"text\nx\0y\n", "line 2: a NUL byte"),
    ):
        assert word in refusal(tmp_path / "t.csv", content)
        assert word in refusal(tmp_path / "t.jsonl", content)


def test_a_quote_that_is_never_closed_names_the_row_it_opens_in(tmp_path):
    message = refusal(tmp_path / "t.csv", b'text,label\na,b\n"c,d\ne,f\n')
    assert message.startswith(", row 2 (line 3): a quote opens a field and is never closed")
    assert ", header (line 1)" in refusal(tmp_path / "t.csv", b'text,"label\na,b\n')


def test_quotes_that_take_in_rows_are_refused_between_tabs_and_else_logged(tmp_path, caplog):
    texts = ["a", '"Great', "b", "c", 'she said so"', "d"]
    content = "".join(f"{n}\t{text}\tgood\n" for n, text in enumerate(texts, 1))
    message = refusal(tmp_path / "t.tsv", f"id\ttext\tlabel\n{content}".encode())
    assert message.startswith(
        ", row 2 (line 3): a quote opens a field there that goes on to line 6"
    )
    assert message.endswith("quote the texts as CSV does, or write the table as JSONL")
    content = content.replace("\t", ",") * 2
    rows = rows_of_bytes(f"id,text,label\n{content}".encode())
    assert len(rows) == 6
    assert caplog.text.count("row 2 (line 3): a quote opens a field there") == 1
    assert caplog.text.count("a quote opens") == 1


def test_whole_quotes_around_lines_and_delimiters_are_no_mistake(tmp_path, caplog):
    content = 'text\tlabel\tn\n"one\ttwo\n\nthree"\tgood\t1\n'
    (row,) = rows_of_bytes(content.encode(), format="tsv")
    assert row["text"] == "one\ttwo\n\nthree"
    content = 'text,label\n"Hello, all\nthe parcel, which I sent back, is here\nBye",good\n'
    assert len(rows_of_bytes(content.encode())) == 1
    assert not caplog.text


def test_a_quote_inside_a_quoted_field_is_explained(tmp_path):
    message = refusal(tmp_path / "t.csv", b'text,label\n"say "hi" now",b\n')
    assert message.startswith(", row 1 (line 2): ")
    assert "written twice" in message


def test_a_field_beyond_the_limit_is_named(tmp_path, monkeypatch):
    before = csv.field_size_limit(1_000)
    monkeypatch.setattr(delimited, "_MAX_FIELD", 1_000)
    try:
        message = refusal(tmp_path / "t.csv", b"text\n" + b"x" * 900 + b"\n" + b"x" * 1_001)
    finally:
        csv.field_size_limit(before)
    assert message.startswith(", row 2 (line 3): a field is longer than 1,000 characters")


def test_fields_of_ten_million_characters_are_the_limit(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"text\n" + b"x" * 10_000_000 + b"\n")
    assert len(rows_of(path)[0]["text"]) == 10_000_000
    assert "longer than 10,000,000" in refusal(path, b"text\n" + b"x" * 10_000_001 + b"\n")


def test_a_line_without_end_is_refused_before_it_fills_the_memory(monkeypatch):
    class Endless(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            return b"x" * 60_000

    monkeypatch.setattr(sources, "_MAX_LINE", 1_000_000)
    for format in ("csv", "jsonl"):
        with pytest.raises(DataError, match="line 1: longer than 1,000,000 bytes"):
            rows_of("-", stream=Endless(), format=format)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "x"', "broken JSON"),
        ("{'text': 'x'}", "broken JSON"),
        ('{"text": "x"} {"text": "y"}', "broken JSON"),
        ('{"text": "tab\there"}', "broken JSON"),
        ("{", "broken JSON"),
        ("[" * 200_000, "broken JSON"),
        ("9" * 5_000, "broken JSON"),
        ("[]", "a list; each line must be one JSON object"),
        ('"x"', "a string"),
        ("7", "the number 7"),
        ("null", "null"),
        ("true", "true"),
        ("NaN", "the number nan"),
    ],
)
def test_a_bad_json_line_names_row_and_line(line, words, tmp_path):
    message = refusal(tmp_path / "t.jsonl", f'{{"text": "x"}}\n\n{line}\n'.encode())
    assert message.startswith(", row 2 (line 3): ")
    assert words in message
    if not line.startswith("[]"):
        assert words in refusal(tmp_path / "first.jsonl", f"{line}\n".encode())


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_of_objects_is_read(name, indent, tmp_path):
    rows = [{"text": "é [1, 2]\n}", "n": [{"a": "]"}]}, {}, {"text": "x"}]
    (tmp_path / name).write_text("\n " + json.dumps(rows, indent=indent) + "\n")
    assert rows_of(tmp_path / name) == rows
    with (
        TableReader(tmp_path / name) as reader,
        TableWriter(tmp_path / "out.jsonl", reader.columns) as writer,
    ):
        for row in reader:
            writer.write({"new": row.number}, row)
    assert rows_of(tmp_path / "out.jsonl") == [{**row, "new": i} for i, row in enumerate(rows, 1)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "is empty"),
        ("[", "row 1 (line 1): broken JSON"),
        ('[{"a": 1}\n', "row 1 (line 1): broken JSON (no comma"),
        ('[{"a": 1}\n{"a": 2}]', "row 1 (line 1): broken JSON (no comma"),
        ('[{"a": 1},\n{"a": 2]', "row 2 (line 2): broken JSON"),
        ('[{"a": 1},\n\n7]', "row 2 (line 3): the number 7; each item"),
        ('[{"a": 1}] {}', "text after the array"),
        ("[" * 100_000, "broken JSON"),
        ('[{"a": {"b": 1, "b": 2}}]', "row 1 (line 1): broken JSON (the key 'b' is there twice"),
    ],
)
def test_a_broken_array_is_refused(content, words, tmp_path):
    assert words in refusal(tmp_path / "t.json", content.encode())


def test_an_array_larger_than_memory_should_hold_is_refused(monkeypatch):
    monkeypatch.setattr(jsonl, "_MAX_ARRAY", 1_000)
    with pytest.raises(DataError, match="more than 1,000 characters; save it as JSONL"):
        rows_of_bytes(b"[\n" + b'{"text": "x"},\n' * 100)


def test_json_goes_through_as_it_is(tmp_path):
    """NaN, long numbers, escapes and blanks of an object are copied to its new line."""
    lines = [
        '{"text": "\\u00e9", "n": NaN, "x": 1e400, "i": 123456789012345678901234567890}',
        '{ "text":"x","f":0.10000000000000000000001,"deep":{"z":-0.0, "inf":[-Infinity]} }',
        "{}",
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    with (
        TableReader(tmp_path / "in.jsonl") as reader,
        TableWriter(tmp_path / "out.jsonl", reader.columns) as writer,
    ):
        for row in reader:
            writer.write({"p": 0.5}, row)
    assert (tmp_path / "out.jsonl").read_text().splitlines() == [
        lines[0][:-1] + ', "p": 0.5}',
        lines[1][:-1].replace("{ ", "{", 1).rstrip() + ', "p": 0.5}',
        '{"p": 0.5}',
    ]


def test_numbers_beyond_a_float_keep_their_digits_elsewhere(tmp_path):
    content = b'{"n": 1e400, "i": 123456789012345678901234567890}'
    write_rows(tmp_path / "t.csv", rows_of_bytes(content))
    assert rows_of(tmp_path / "t.csv") == [{"n": "1e400", "i": "123456789012345678901234567890"}]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("1" + "0" * 5000, "a number of more than 4300 digits"),
        ("[" * 50_000 + "]" * 50_000, "nested too deeply"),
    ],
    ids=["digits", "nested"],
)
def test_what_python_s_json_can_not_read_is_refused_in_our_words(tmp_path, value, why):
    (tmp_path / "t.jsonl").write_text(f'{{"text": "a", "n": {value}}}\n')
    with pytest.raises(DataError, match=rf"row 1 \(line 1\): broken JSON \({why}\)"):
        rows_of(tmp_path / "t.jsonl")


def test_a_repeated_key_is_refused(tmp_path):
    message = refusal(tmp_path / "t.jsonl", b'{"text": "x"}\n{"text": "a", "text": "b"}\n')
    assert message.startswith(", row 2 (line 2): broken JSON (the key 'text' is there twice")


def test_a_key_that_is_written_anew_replaces_the_old_one(tmp_path):
    with (
        TableReader("t.jsonl", stream=io.BytesIO(b'{"a": 1, "b": 2}')) as reader,
        TableWriter(tmp_path / "t.jsonl", ["a", "b"]) as writer,
    ):
        for row in reader:
            writer.write({"b": 3}, row)
    assert rows_of(tmp_path / "t.jsonl") == [{"a": 1, "b": 3}]


def test_an_object_without_a_required_key_names_the_row(tmp_path):
    content = b'{"text": "x", "note": 1}\n{"note": 2}\n'
    message = refusal(tmp_path / "t.jsonl", content, "text")
    assert message.startswith(", row 2 (line 2): no key 'text'")
    assert rows_of(tmp_path / "t.jsonl") == [{"text": "x", "note": 1}, {"note": 2}]


def test_damaged_parquet_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    write_rows(path, [{"text": f"text {i}", "label": "a"} for i in range(3_000)])
    whole = path.read_bytes()
    assert "damaged" in refusal(path, whole[: len(whole) // 2])
    assert "damaged" in refusal(path, b"text,label\nx,y\n")
    assert "damaged" in refusal(path, b"PAR1")
    middle = len(whole) // 3
    refusal(path, whole[:4] + b"\xff" * middle + whole[4 + middle :])


def test_parquet_with_flipped_bytes_never_raises_anything_else(tmp_path):
    path = tmp_path / "t.parquet"
    write_rows(path, [{"text": f"text {i}", "n": i, "p": i / 7} for i in range(200)])
    whole = path.read_bytes()
    chance = random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        assert read_or_refused(bytes(damaged), "parquet")


def test_a_parquet_value_beyond_python_names_the_rows(tmp_path):
    far = pa.array([2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"when": far}), tmp_path / "t.parquet")
    message = refusal(tmp_path / "t.parquet")
    assert message.startswith(", rows from 1, column 'when': can't be read")


# ---------------------------------------------------------------------------------------- examples


def test_examples_have_texts_labels_and_row_numbers(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("id,text,label\n1,good,pos\n\n2,bad,neg\n")
    examples = read_examples(path)
    assert examples.texts == ["good", "bad"]
    assert examples.labels == ["pos", "neg"]
    assert examples.numbers == [1, 2]


def test_examples_may_be_pairs_and_without_labels():
    stream = io.BytesIO(b"premise\tclaim\na\tb\nc\td\n")
    options = {"text_column": "premise", "text_pair_column": "claim", "label_column": None}
    examples = read_examples("-", format="tsv", stream=stream, **options)
    assert examples.texts == [("a", "b"), ("c", "d")]
    assert examples.labels == []


def test_examples_of_every_format_are_the_same(tmp_path):
    rows = [{"text": text, "label": "yes"} for text in AWKWARD if text.strip()]
    found = []
    for format in FORMATS:
        write_rows(tmp_path / f"t.{format}", rows)
        found.append(read_examples(tmp_path / f"t.{format}"))
    assert all(examples == found[0] for examples in found)
    assert found[0].texts == [row["text"] for row in rows]


@pytest.mark.parametrize(
    "columns",
    [
        {"text_column": "a", "label_column": "a"},
        {"text_column": "a", "text_pair_column": "a"},
        {"text_column": "a", "text_pair_column": "b", "label_column": "b"},
    ],
)
def test_one_column_cannot_serve_twice(columns):
    with pytest.raises(DataError, match="named twice"):
        read_examples("none.csv", **columns)


def test_a_header_without_rows_has_no_examples(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\n")
    with pytest.raises(DataError, match=r"t\.csv: has columns but no rows"):
        read_examples(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("text,label\na,b\n  ,b\n", "row 2, column 'text': the text is empty"),
        ('text,label\n"",b\n', "row 1, column 'text': the text is empty"),
        ("text,label\na,\n", "row 1, column 'label': the label is empty"),
        ('{"text": null, "label": 1}', "row 1, column 'text': a text is needed, not null"),
        ('{"text": 5, "label": 1}', "row 1, column 'text': a text is needed, not the number 5"),
        ('{"text": ["a"], "label": 1}', "row 1, column 'text': a text is needed, not a list"),
        ('{"text": "a", "label": null}', "row 1, column 'label': a label is needed, not null"),
        ('{"text": "a", "label": []}', "row 1, column 'label': a label is needed, not a list"),
        ('{"text": "a", "label": NaN}', "row 1, column 'label': a label is needed"),
        ('{"text": "a\\u0000", "label": 1}', "row 1, column 'text': the text holds a NUL"),
    ],
)
def test_an_unusable_cell_names_file_row_and_column(content, place):
    with pytest.raises(DataError) as caught:
        read_examples("-", stream=io.BytesIO(content.encode()))
    assert str(caught.value).startswith(f"<stdin>, {place}")


def test_examples_may_be_allowed_to_be_empty(tmp_path):
    rows = [
        {"text": None, "more": "b", "label": "x"},
        {"text": "  \n", "more": "", "label": "x"},
        {"text": " a ", "more": None, "label": "y"},
    ]
    options: dict[str, Any] = {"text_pair_column": "more", "empty": "keep"}
    for format in FORMATS:
        path = tmp_path / f"t.{format}"
        write_rows(path, rows)
        assert read_examples(path, **options).texts == [("", "b"), ("", ""), (" a ", "")]
        assert read_examples(path, empty="keep").texts == ["", "", " a "]
        with pytest.raises(DataError, match="row 1, column 'text'"):
            read_examples(path)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('{"text": 5, "label": 1}', "row 1, column 'text': a text is needed, not the number 5"),
        ('{"text": "a\\u0000", "label": 1}', "row 1, column 'text': the text holds a NUL"),
        ('{"text": "", "label": ""}', "row 1, column 'label': the label is empty"),
    ],
)
def test_nothing_but_emptiness_is_allowed_then(content, place):
    with pytest.raises(DataError, match=place):
        read_examples("-", stream=io.BytesIO(content.encode()), empty="keep")


def test_half_a_surrogate_pair_is_no_text():
    with pytest.raises(DataError, match=r"'\\ud83d', half a character"):
        check_text("cut \ud83d", row=1, column="text", name="t.jsonl")


def test_a_good_text_is_returned_untouched():
    assert check_text(" a\n", row=1, column="text", name="t") == " a\n"


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("pos", "pos"),
        (" pos ", " pos "),
        ("007", "007"),
        (1, "1"),
        (-3, "-3"),
        (True, "true"),
        (False, "false"),
        (2.0, "2"),
    ],
)
def test_labels_become_text(value, label):
    assert label_of(value, row=1, column="label", name="t") == label


@pytest.mark.parametrize(
    "value",
    ["", " \t", "a\0b", "\ud800", None, float("nan"), float("inf"), 0.5, [], ["a"], {}, b"a"],
)
def test_other_values_are_no_labels(value):
    with pytest.raises(DataError, match=r"^t, row 4, column 'label': .*label"):
        label_of(value, row=4, column="label", name="t")


def test_labels_of_parquet_may_be_numbers_and_booleans(tmp_path):
    path = tmp_path / "t.parquet"
    for labels, expected in (
        (pa.array([1, 0], pa.int8()), ["1", "0"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
    ):
        pq.write_table(pa.table({"text": ["x", "y"], "label": labels}), path)
        assert read_examples(path).labels == expected


@pytest.mark.parametrize(
    ("content", "labels", "numbers"),
    [
        ('{"text": "a", "label": ["x"]}\n{"text": "b", "label": {"choices": ["y"]}}', "xy", [1, 2]),
        ('text,label\na,"[""x""]"\nb,"{""choices"":[""y""]}"\n', "xy", [1, 2]),
        ('text,label\na,"{""choices"":""x""}"\nb,[not json\n', ["x", "[not json"], [1, 2]),
        (
            "text,label\na,['x']\nb,['x' 'y']\nc,\"[\"\"it's\"\"]\"\n",
            ["x", "['x' 'y']", "it's"],
            [1, 2, 3],
        ),
        (
            "text,label\na,['x']\nb,['x'\nc,[]\nd,\"['x', 1]\"\n",
            ["x", "['x'", "['x', 1]"],
            [1, 2, 4],
        ),
    ],
)
def test_lists_of_one_label_are_that_label(content, labels, numbers, caplog):
    examples = read_examples("-", stream=io.BytesIO(content.encode()))
    assert examples.labels == list(labels)
    assert examples.numbers == numbers
    assert "lists of one label" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        '{"text": "a", "label": ["x"]}\n{"text": "b", "label": ["x", "y"]}',
        'text,label\na,x\nb,"{""choices"":[""x"",""y""]}"\n',
        "text,label\na,x\nb,\"['x', 'y']\"\n",
        'text,label\na,x\nb,"[""it\'s"", \'y\']"\n',
        '[{"text": "a", "label": "x"}, {"text": "b", "label": {"choices": ["x", "y"]}}]',
    ],
)
def test_lists_of_several_labels_point_to_the_page_about_them(content):
    with pytest.raises(DataError) as caught:
        read_examples("-", stream=io.BytesIO(content.encode()))
    message = str(caught.value)
    assert message.startswith("<stdin>, row 2, column 'label': 2 labels")
    page = message.rpartition(" ")[2]
    assert (Path(__file__).parent.parent / page).is_file()


def test_rows_without_a_label_are_left_out_and_counted(caplog):
    content = b"""{"text": "a"}
{"text": "b", "label": "x"}
{"text": "c", "label": null}
{"text": "d", "label": []}
{"text": "e", "label": " "}
{"text": "f", "label": NaN}
{"text": "", "label": {"choices": []}}
{"text": "g", "label": "y"}"""
    examples = read_examples("-", stream=io.BytesIO(content))
    assert examples.texts == ["b", "g"]
    assert examples.numbers == [2, 8]
    (record,) = caplog.records
    assert record.getMessage() == (
        "<stdin>: rows without a label are left out: 6, the first is row 1"
    )


def test_a_label_column_that_no_row_has_is_named():
    with pytest.raises(DataError, match="no column 'label'; its columns are 'text', 'lable'"):
        read_examples("-", stream=io.BytesIO(b'{"text": "a", "lable": "x"}\n'))


def test_columns_of_labels_may_be_floats_as_pandas_writes_them():
    content = b"text,good,bad\na,1.0,0.0\nb,,\nc,0.0,1.0\nd,0,0.0\n"
    examples = read_examples("-", stream=io.BytesIO(content), label_column=["good", "bad"])
    assert examples.labels == [["good"], ["bad"], []]
    with pytest.raises(DataError, match=r"row 1, column 'good': '0.5' is neither 0 nor 1"):
        read_examples(
            "-",
            stream=io.BytesIO(b"text,good,bad\na,0.5,0\n"),
            label_column=["good", "bad"],
        )


def test_labels_that_look_alike_are_found():
    labels = ["refund", "Refund", "refund ", "caf\u00e9", "cafe\u0301", "a b", "a  b", "b", "b", 1]
    assert similar_labels(labels) == [
        ("refund", "Refund"),
        ("refund", "refund "),
        ("caf\u00e9", "cafe\u0301"),
        ("a b", "a  b"),
    ]


# --------------------------------------------------------------------------------------- the writer


def test_a_table_gets_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("old")
    with TableWriter(path, ["text"]) as writer:
        writer.write({"text": "new"})
        writer.flush()
        (partial,) = (file for file in tmp_path.iterdir() if file != path)
        assert re.fullmatch(r"\.t\.csv\.[0-9a-f]{16}\.partial", partial.name)
        assert partial.read_text() == "text\nnew\n"
        assert path.read_text() == "old"
    assert path.read_text() == "text\nnew\n"
    assert list(tmp_path.iterdir()) == [path]
    writer.close()
    assert path.read_text() == "text\nnew\n"


@pytest.mark.parametrize("format", FORMATS)
def test_an_exception_leaves_neither_table_nor_partial(format, tmp_path):
    def fail() -> None:
        with TableWriter(tmp_path / f"t.{format}", ["text"]) as writer:
            for _ in range(2_500):
                writer.write({"text": "x"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_table_has_one_writer(tmp_path):
    path = tmp_path / "t.csv"
    with TableWriter(path, ["text"]) as writer:
        writer.write({"text": "x"})
        with pytest.raises(DataError, match=r"t\.csv: another run is writing it"):
            TableWriter(path, ["text"])
    assert rows_of(path) == [{"text": "x"}]
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    (tmp_path / ".t.csv.0123456789abcdef.partial").write_text("text\nhalf a table")
    others = [".u.csv.0123456789abcdef.partial", ".t.csv.0123.partial"]
    for name in others:
        (tmp_path / name).write_text("of somebody else")
    write_rows(tmp_path / "t.csv", [{"text": "x"}])
    assert (tmp_path / "t.csv").read_text() == "text\nx\n"
    assert {path.name for path in tmp_path.iterdir()} == {"t.csv", *others}


def test_files_of_the_user_beside_it_survive(tmp_path):
    names = ["t.csv.partial", "t.csv.journal", "t.csv.lock", ".t.csv.partial", "t.csv.tmp"]
    for name in names:
        (tmp_path / name).write_text("mine")
    write_rows(tmp_path / "t.csv", [{"text": "x"}])
    write_whole(tmp_path / "t.csv", b"again", DataError)
    assert {path.name for path in tmp_path.iterdir()} == {"t.csv", *names}
    assert all((tmp_path / name).read_text() == "mine" for name in names)


@pytest.mark.posix
def test_a_side_file_is_never_an_input_or_a_link(tmp_path):
    source = tmp_path / ".t.csv.0123456789abcdef.partial"
    source.write_text("text\nx\n")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    link = tmp_path / ".t.csv.fedcba9876543210.partial"
    link.symlink_to(victim)
    with (
        TableReader(source, format="csv") as reader,
        TableWriter(tmp_path / "t.csv", ["text"], like=reader) as writer,
    ):
        for row in reader:
            writer.write(row.values)
    assert source.read_text() == "text\nx\n"
    assert link.is_symlink()
    assert victim.read_text() == "precious"
    assert rows_of(tmp_path / "t.csv") == [{"text": "x"}]


@pytest.mark.posix
def test_a_side_file_is_opened_exclusively(tmp_path, monkeypatch):
    """Where another has put a link under its very name, nothing is written through it."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "0" * 16)
    (tmp_path / f".t.csv.{'0' * 16}.partial").symlink_to(victim)
    with pytest.raises(DataError, match="File exists"):
        write_rows(tmp_path / "t.csv", [{"text": "x"}])
    with pytest.raises(DataError, match="File exists"):
        write_whole(tmp_path / "t.csv", b"x", DataError)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "t.csv").exists()


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    happened = []
    real_sync, real_replace = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        happened.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        real_sync(handle)

    def replace(self: Path, target: Path) -> Path:
        happened.append("replace")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_rows(tmp_path / "t.csv", [{"text": "x"}])
    write_whole(tmp_path / "m", b"x", DataError)
    assert happened == ["file", "replace", "folder"] * 2


@pytest.mark.posix
def test_a_private_file_stays_private(tmp_path):
    path = tmp_path / "t.csv"
    path.touch(mode=0o600)
    path.chmod(0o600)
    write_rows(path, [{"text": "x"}])
    write_whole(path, b"again", DataError)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_writers_that_begin_together_are_one(tmp_path):
    """However they race, one of them writes the file, and the others are refused."""
    path = tmp_path / "t.csv"
    barrier = threading.Barrier(8)
    done: list[str] = []

    def write(number: int) -> None:
        barrier.wait()
        try:
            with TableWriter(path, ["text"]) as writer:
                writer.write({"text": str(number)})
                barrier.wait()
            done.append("written")
        except DataError as error:
            barrier.wait()
            done.append(str(error).removeprefix(f"{path}: ").split(";")[0])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == ["another run is writing it"] * 7 + ["written"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_may_be_written_over_the_one_that_is_read(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text\n" + "x\n" * 50_000)
    with TableReader(path) as reader, TableWriter(path, [*reader.columns, "n"]) as writer:
        for row in reader:
            writer.write({**row.values, "n": row.number})
    assert rows_of(path)[-1] == {"text": "x", "n": "50000"}


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder\.csv: is a folder"):
        TableWriter(tmp_path / "folder.csv", ["a"])
    with pytest.raises(DataError, match="its folder doesn't exist"):
        TableWriter(tmp_path / "none" / "t.csv", ["a"])
    with pytest.raises(DataError, match="File name too long"):
        TableWriter(tmp_path / ("x" * 300 + ".csv"), ["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["folder.csv"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_named(format):
    with pytest.raises(DataError, match=r"(?i)/dev/full.*no space left"):
        write_rows("/dev/full", [{"text": "x" * 100}] * 2_000, format=format)
    gc.collect()
    assert Path("/dev/full").is_char_device()


@pytest.mark.posix
def test_a_link_stays_a_link_and_its_target_is_written(tmp_path):
    (tmp_path / "target.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "target.csv")
    write_rows(tmp_path / "link.csv", [{"text": "x"}])
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "target.csv").read_text() == "text\nx\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("format", FORMATS)
def test_a_named_pipe_is_written_and_read_as_one(format, tmp_path):
    path = tmp_path / f"pipe.{format}"
    os.mkfifo(path)
    rows = [{"text": f"x{i}"} for i in range(3_000)]
    thread = threading.Thread(target=write_rows, args=(path, rows))
    thread.start()
    assert rows_of(path) == rows
    thread.join()
    assert path.is_fifo()


def test_csv_cells_stand_for_other_types(tmp_path):
    row = {
        "none": None,
        "nan": float("nan"),
        "true": True,
        "int": 3,
        "float": 0.1,
        "list": ["é", 1, None],
        "object": {"a": False},
        "date": datetime.date(2026, 1, 2),
        "bytes": b"ab",
        "numpy": np.float32(0.5),
        "array": np.array([1, 2]),
    }
    write_rows(tmp_path / "t.csv", [row])
    assert list(rows_of(tmp_path / "t.csv")[0].values()) == [
        *("", "", "true", "3", "0.1", '["é", 1, null]', '{"a": false}', "2026-01-02", "ab"),
        *("0.5", "[1, 2]"),
    ]


def test_a_column_that_a_row_lacks_is_empty_or_left_out(tmp_path):
    for format, expected in (("csv", {"a": "1", "b": ""}), ("jsonl", {"a": "1"})):
        with TableWriter(tmp_path / f"t.{format}", ["a", "b"]) as writer:
            writer.write({"a": "1"})
        assert rows_of(tmp_path / f"t.{format}") == [expected]


def test_a_key_that_is_no_column_is_refused_but_in_jsonl_kept(tmp_path):
    for format in ("csv", "tsv", "parquet"):
        with pytest.raises(DataError, match=r"row 2: 'note' is none of the columns"):
            write_rows(tmp_path / f"t.{format}", [{"text": "x"}, {"note": "y"}])
    with TableWriter(tmp_path / "t.jsonl", ["text"]) as writer:
        writer.write({"note": "y"})
    assert rows_of(tmp_path / "t.jsonl") == [{"note": "y"}]


def test_jsonl_is_readable_and_strict(tmp_path):
    row = {"text": "é👍", "nan": float("nan"), "deep": [{"inf": float("inf")}, (1.5,)]}
    row |= {"numpy": np.int64(3), "date": datetime.date(2026, 1, 2), "label": np.str_("a")}
    write_rows(tmp_path / "t.jsonl", [row])
    line = (tmp_path / "t.jsonl").read_text(encoding="utf-8")
    assert "é👍" in line
    assert json.loads(line, parse_constant=pytest.fail) == {
        **{"text": "é👍", "nan": None, "deep": [{"inf": None}, [1.5]]},
        **{"numpy": 3, "date": "2026-01-02", "label": "a"},
    }


def test_half_a_surrogate_pair_survives_in_jsonl_and_is_refused_elsewhere(tmp_path):
    row = {"text": "cut \ud83d", "other": "é"}
    write_rows(tmp_path / "t.jsonl", [row])
    assert rows_of(tmp_path / "t.jsonl") == [row]
    for format in ("csv", "tsv", "parquet"):
        with pytest.raises(DataError, match=r"row 2.*surrogates"):
            write_rows(tmp_path / f"t.{format}", [{"text": "x", "other": "y"}, row])
        with pytest.raises(DataError, match="surrogates"):
            write_rows(tmp_path / f"t.{format}", [{"\ud83d": "x"}])
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]


@pytest.mark.parametrize("format", FORMATS)
def test_values_nested_too_deep_are_refused(format, tmp_path):
    deep: list[Any] = []
    for _ in range(50_000):
        deep = [deep]
    with pytest.raises(DataError, match=r"row 1.*(recursion|nested too deeply)"):
        write_rows(tmp_path / f"t.{format}", [{"text": deep}])
    while deep:
        deep = deep.pop()


def test_parquet_columns_keep_their_types_and_new_ones_get_theirs(tmp_path):
    table = pa.table(
        {
            "text": pa.array(["a", None, "c"], pa.large_string()),
            "n": pa.array([1, 2, None], pa.int16()),
            "tags": pa.array([["x"], [], None]),
            "kind": pa.array(["k", "l", "k"]).dictionary_encode(),
            "when": pa.array([0, 1, None], pa.timestamp("ms", "UTC")),
            "raw": pa.array([b"\xff", b"", None]),
            "part": pa.array([{"a": 1}, {"a": None}, None]),
            "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int32())),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    new = {"prediction": "pos", "p": 0.5, "np": np.float64(0.25), "count": 3, "flag": True}
    with (
        TableReader(tmp_path / "in.parquet") as reader,
        TableWriter(tmp_path / "out.parquet", [*reader.columns, *new], like=reader) as writer,
    ):
        for row in reader:
            writer.write({**row.values, **new})
    back = pq.read_table(tmp_path / "out.parquet")
    assert back.select(table.column_names).equals(table)
    assert [str(back.schema.field(name).type) for name in new] == [
        *("string", "double", "double", "int64", "bool")
    ]


def test_parquet_columns_go_through_untouched(tmp_path):
    """Nanoseconds, time zones, values beyond Python and all metadata, over several groups."""
    n = 2_300
    fields = [
        pa.field("text", pa.string(), metadata={"note": "of a field"}),
        pa.field("ns", pa.timestamp("ns", "Europe/Berlin")),
        pa.field("far", pa.timestamp("us")),
        pa.field("span", pa.duration("ns")),
        pa.field("kind", pa.dictionary(pa.int8(), pa.string())),
        pa.field("dec", pa.decimal128(30, 10)),
        pa.field("nan", pa.float32(), nullable=False),
    ]
    columns = [
        pa.array([f"text {i}" for i in range(n)]),
        pa.array(range(1, n + 1), pa.int64()).cast(fields[1].type),
        pa.array([2**62] * n, pa.int64()).cast(fields[2].type),
        pa.array(range(n), pa.int64()).cast(fields[3].type),
        pa.array([f"k{i // 999}" for i in range(n)]).dictionary_encode().cast(fields[4].type),
        pa.array(["12345678901234567890.0123456789"] * n).cast(fields[5].type),
        pa.array([float("nan")] * n, pa.float32()),
    ]
    table = pa.Table.from_arrays(columns, schema=pa.schema(fields, {"pandas": "{}", "own": "x"}))
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=700)
    with (
        TableReader(tmp_path / "in.parquet") as reader,
        TableWriter(tmp_path / "out.parquet", [*reader.columns, "p"], like=reader) as writer,
    ):
        for row in reader:
            assert row.values["text"] == f"text {row.number - 1}"
            writer.write({"p": row.number}, row)
    back = pq.read_table(tmp_path / "out.parquet")
    assert back.schema.equals(table.schema.append(pa.field("p", pa.int64())), check_metadata=True)
    copied = back.select(table.column_names)
    assert copied.drop_columns("nan").equals(table.drop_columns("nan"))
    assert back["p"].to_pylist() == list(range(1, n + 1))


def test_a_column_of_parquet_that_is_filled_leaves_the_others_untouched(tmp_path):
    table = pa.table(
        {
            "at": pa.array([123_456_789, 1, 2], pa.time64("ns")),
            "label": pa.array(["good", None, None]),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    with (
        TableReader(tmp_path / "in.parquet") as reader,
        TableWriter(tmp_path / "out.parquet", [*reader.columns, "p"], like=reader) as writer,
    ):
        for row, more in zip(
            reader, ({}, {"label": "bad", "p": 0.5}, {"label": None}), strict=True
        ):
            writer.write(more, row)
    back = pq.read_table(tmp_path / "out.parquet")
    assert back["at"].equals(table["at"])
    assert back["label"].to_pylist() == ["good", "bad", None]
    assert back["p"].to_pylist() == [None, 0.5, None]


def test_formulas_are_escaped_where_that_is_asked(tmp_path):
    cells = ["=1+1", "+49 1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "-1.50", "+3", "-1e5", "a=1", ""]
    row = {"=head": "x", **{f"c{i}": cell for i, cell in enumerate(cells)}}
    expected = [f"'{cell}" for cell in cells[:6]] + cells[6:]
    for format in ("csv", "tsv"):
        path = tmp_path / f"t.{format}"
        write_rows(path, [row], escape_formulas=True)
        assert list(rows_of(path)[0].values()) == ["x", *expected]
        assert next(iter(rows_of(path)[0])) == "'=head"
        write_rows(path, [row])
        assert rows_of(path) == [row]
    write_rows(tmp_path / "t.jsonl", [row], escape_formulas=True)
    assert rows_of(tmp_path / "t.jsonl") == [row]


@pytest.mark.posix
def test_a_pipe_that_breaks_is_a_mistake_but_on_standard_output(tmp_path):
    path = tmp_path / "pipe.csv"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def write() -> None:
        with TableWriter(path, ["text"]) as writer:
            os.close(reader)
            writer.write({"text": "x" * 100_000})

    with pytest.raises(DataError, match=r"pipe\.csv.*Broken pipe"):
        write()
    gc.collect()


def test_parquet_is_written_in_groups_of_a_thousand_rows(tmp_path):
    write_rows(tmp_path / "t.parquet", [{"n": i} for i in range(2_500)])
    parquet = pq.ParquetFile(tmp_path / "t.parquet")
    sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    assert sizes == [1_000, 1_000, 500]
    with TableReader(tmp_path / "t.parquet") as reader:
        assert [row.number - 1 for row in reader] == list(range(2_500))


def test_parquet_names_the_row_that_does_not_fit_its_column(tmp_path):
    rows = [{"n": 1}] * 1_200 + [{"n": "many"}]
    with pytest.raises(DataError, match=r"row 1201, column 'n': doesn't fit .* int64"):
        write_rows(tmp_path / "t.parquet", rows)
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_parquet_mixes_of_types_become_numbers_or_text(tmp_path):
    rows = [
        {"number": 1, "mixed": 1, "deep": ["a"], "none": None},
        {"number": 0.5, "mixed": "b", "deep": None, "none": None},
    ]
    write_rows(tmp_path / "t.parquet", rows)
    assert rows_of(tmp_path / "t.parquet") == [
        {"number": 1.0, "mixed": "1", "deep": '["a"]', "none": None},
        {"number": 0.5, "mixed": "b", "deep": None, "none": None},
    ]


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_any_format_turns_into_any_other(source, target, tmp_path):
    rows = [{"text": text, "label": "a"} for text in AWKWARD]
    write_rows(tmp_path / f"in.{source}", rows)
    with (
        TableReader(tmp_path / f"in.{source}") as reader,
        TableWriter(tmp_path / f"out.{target}", reader.columns, like=reader) as writer,
    ):
        for row in reader:
            writer.write(row.values)
    assert rows_of(tmp_path / f"out.{target}") == rows


# ------------------------------------------------------------------------- memory, imports, closing


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_memory_stays_constant_however_long_a_table_is(format):
    if format == "csv":
        head, line = b"text,label\n", b'"A text, of some length, to be read",positive\n'
    else:
        head, line = b"", b'{"text": "A text, of some length, to be read", "label": "positive"}\n'

    class Repeating(io.BytesIO):
        """A table of 20,000 rows that takes no memory itself."""

        left = 20

        def read1(self, size: int | None = -1) -> bytes:
            self.left -= 1
            return (head if self.left == 19 else b"") + line * 1_000 if self.left >= 0 else b""

    tracemalloc.start()
    try:
        with TableReader("-", stream=Repeating(), format=format) as reader:
            number = 0
            for row in reader:
                number = row.number
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert number == 20_000
    assert peak < 2_000_000


@pytest.mark.parametrize("format", FORMATS)
def test_copying_a_table_takes_constant_memory(format, tmp_path):
    with TableWriter(tmp_path / f"in.{format}", ["text", "n"]) as writer:
        for i in range(10_000):
            writer.write({"text": f"A text of some length, number {i}", "n": i})
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    tracemalloc.start()
    try:
        with (
            TableReader(tmp_path / f"in.{format}") as reader,
            TableWriter(tmp_path / f"out.{format}", reader.columns, like=reader) as writer,
        ):
            for row in reader:
                writer.write(row.values)
            assert pool.bytes_allocated() - before < 4_000_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
    assert rows_of(tmp_path / f"out.{format}") == rows_of(tmp_path / f"in.{format}")


def test_a_large_row_group_of_parquet_is_not_loaded_at_once(tmp_path):
    chance = random.Random(0)
    column = pa.array([chance.randbytes(500).hex() for _ in range(20_000)])
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False}
    pq.write_table(pa.table({"text": column}), tmp_path / "t.parquet", **options)
    assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups == 1
    before = pa.default_memory_pool().bytes_allocated()
    most = number = 0
    tracemalloc.start()
    try:
        with TableReader(tmp_path / "t.parquet") as reader:
            for row in reader:
                number = row.number
                if number % 1_000 == 500:
                    most = max(most, pa.default_memory_pool().bytes_allocated() - before)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert number == 20_000
    assert peak + most < 10_000_000  # of the 20 MB that the group has


def test_importing_the_package_loads_no_arrow_and_of_the_project_only_what_is_below():
    # Without blackbox itself: scikit-learn loads pandas where it is there, and pandas loads Arrow
    folder = str(Path(sources.__file__).parent.parent)
    code = f"""
import sys, types
sys.modules["blackbox"] = types.ModuleType("blackbox")
sys.modules["blackbox"].__path__ = [{folder!r}]
import blackbox.tables
parts = [name.split(".") for name in sys.modules]
assert "pyarrow" not in sys.modules
own = {{p[1] for p in parts if p[0] == "blackbox" and p[1:]}}
assert own == {{"errors", "files", "images", "plurals", "tables"}}, own
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_refused_file_is_closed(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\x89PNG")
    with pytest.raises(DataError) as caught:
        TableReader(tmp_path / "t.csv")
    del caught
    gc.collect()  # an open file would warn here, and warnings are errors
