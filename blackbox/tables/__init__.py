"""Tables of any size, read row by row (CSV, TSV, JSONL, Parquet, Feather, workbooks), and written.

`TableReader` streams a file or standard input, `TableWriter` streams one out, and `read_examples`
loads the texts and labels of a training table. Reader and writer keep their memory constant however
long a table is. Values come as they are: from CSV and TSV always str ("NA", "null" and "007" are
text), from JSONL and Parquet whatever type they have. `check_text` and `label_of` decide what may
be a text or a label. Where a table is recognised that is not quite of its format (semicolons,
UTF-16, Windows-1252, a JSON array), it is read, and what was assumed is logged.

Whatever is wrong with a table ends in a `DataError` of one line that names file, row and column
and says what to do. Rows are counted from 1, without the header and without blank lines.
"""

from __future__ import annotations

from blackbox.tables.examples import (
    LabelledExamples,
    check_text,
    is_blank,
    read_examples,
    texts_of_rows,
)
from blackbox.tables.formats import FORMATS, READABLE
from blackbox.tables.labels import is_open, is_unlabelled, label_of, similar_labels
from blackbox.tables.reading import Row, TableReader
from blackbox.tables.writing import TableWriter

__all__ = [
    "FORMATS",
    "READABLE",
    "LabelledExamples",
    "Row",
    "TableReader",
    "TableWriter",
    "check_text",
    "is_blank",
    "is_open",
    "is_unlabelled",
    "label_of",
    "read_examples",
    "similar_labels",
    "texts_of_rows",
]
