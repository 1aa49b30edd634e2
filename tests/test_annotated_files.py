"""Tables as annotation tools and spreadsheet programs write them: all are trained on."""

import csv
import gzip
import io
import json
import zipfile
from xml.sax.saxutils import escape

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blackbox.cli import common
from blackbox.errors import DataError
from blackbox.tables import TableReader, TableWriter, read_examples
from tests.test_cli_apis import run

ROWS = [
    (f"Nr. {n}: die Lieferung – „war“ {'lovely' if n % 2 else 'dull'}", "good" if n % 2 else "bad")
    for n in range(12)
]
UNLABELLED = "Nr. 99: no label, lovely"
LIGHT = ("--backend", "deterministic", "--embeddings", "none", "--no-store")


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def delimited(header, rows, delimiter=",", end="\r\n"):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end)
    writer.writerows([header, *rows])
    return out.getvalue()


def workbook(rows):
    """A workbook as spreadsheet programs write it, with its texts in the cells."""

    def written(place, value):
        if isinstance(value, bool):
            return f'<c r="{place}" t="b"><v>{value:d}</v></c>'
        if isinstance(value, int | float):
            return f'<c r="{place}"><v>{value}</v></c>'
        if value.startswith("FORMULA"):
            return f'<c r="{place}" t="str"><f>UPPER(A2)</f><v>{escape(value[7:])}</v></c>'
        text = f'<t xml:space="preserve">{escape(value)}</t>'
        return f'<c r="{place}" t="inlineStr"><is>{text}</is></c>'

    cells = "".join(
        f'<row r="{r}">'
        + "".join(written(f"{'ABC'[c]}{r}", cell) for c, cell in enumerate(row) if cell != "")
        + "</row>"
        for r, row in enumerate(rows, 1)
    )
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006/relationships"
    parts = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/'
        'content-types"><Default Extension="rels" ContentType="application/vnd.openxmlformats-'
        'package.relationships+xml"/><Default Extension="xml" ContentType="application/vnd.'
        'openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}"><Relationship Id="r1" '
        f'Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets><sheet '
        'name="Tickets" sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}"><Relationship Id="r1" '
        f'Type="{office}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{cells}</sheetData>'
        "</worksheet>",
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{text}')
    return out.getvalue()


def choice(label):
    return {
        "id": "x1",
        "type": "choices",
        "from_name": "sentiment",
        "to_name": "text",
        "value": {"choices": [label]},
    }


def label_studio_json():
    tasks = [
        {
            "id": number,
            "annotations": [{"id": number, "was_cancelled": False, "result": [choice(label)]}],
            "predictions": [],
            "data": {"text": text, "source": "mail"},
        }
        for number, (text, label) in enumerate(ROWS)
    ]
    skipped = [{"was_cancelled": True, "result": [choice("good")]}]
    tasks.append({"id": 99, "annotations": skipped, "data": {"text": UNLABELLED}})
    return json.dumps(tasks, indent=2).encode()


def label_studio_csv():
    header = ["annotation_id", "annotator", "created_at", "id", "lead_time", "sentiment", "text"]
    rows = [[n, 1, "2026-11-01", n, 3.5, label, text] for n, (text, label) in enumerate(ROWS)]
    rows.append(["", "", "", 99, "", "", UNLABELLED])
    return delimited(header, rows, end="\n").encode()


def prodigy():
    hashes = {"_input_hash": 1, "_task_hash": 2, "_view_id": "choice"}
    options = [{"id": "good", "text": "good"}, {"id": "bad", "text": "bad"}]
    rows = [
        {"text": text, "options": options, "accept": [label], "answer": "accept", **hashes}
        for text, label in ROWS
    ]
    ignored = {"text": UNLABELLED, "options": options, "accept": ["bad"], "answer": "ignore"}
    return lines([*rows, {**ignored, **hashes}])


def doccano():
    rows = [{"id": n, "text": text, "label": [label]} for n, (text, label) in enumerate(ROWS)]
    return lines([*rows, {"id": 99, "text": UNLABELLED, "label": []}])


def argilla():
    records = [
        {
            "id": str(number),
            "status": "completed",
            "fields": {"text": text},
            "metadata": {},
            "suggestions": {"topic": {"value": "bad", "score": 0.9, "agent": "m"}},
            "responses": {"topic": [{"value": label, "user_id": "u", "status": "submitted"}]},
            "vectors": {},
        }
        for number, (text, label) in enumerate(ROWS)
    ]
    pending = {"id": "99", "status": "pending", "fields": {"text": UNLABELLED}, "responses": {}}
    return json.dumps([*records, pending]).encode()


def lighttag():
    examples = [
        {
            "example_id": str(number),
            "content": text,
            "metadata": {},
            "annotations": [],
            "classifications": [{"classname": label, "annotated_by": [{"annotator": "a"}]}],
        }
        for number, (text, label) in enumerate(ROWS)
    ]
    examples.append({"example_id": "99", "content": UNLABELLED, "classifications": []})
    return json.dumps({"examples": examples, "relations": []}).encode()


def feather():
    out = io.BytesIO()
    rows = [*ROWS, (UNLABELLED, None)]
    frame = pd.DataFrame(rows, columns=["text", "label"])
    frame["label"] = frame["label"].astype("category")
    frame.to_feather(out)
    return out.getvalue()


PLAIN = [*ROWS, (UNLABELLED, "")]
FILES = {
    "label-studio.json": label_studio_json,
    "label-studio.csv": label_studio_csv,
    "prodigy.jsonl": prodigy,
    "doccano.jsonl": doccano,
    "argilla.json": argilla,
    "lighttag.json": lighttag,
    "excel.xlsx": lambda: workbook([("text", "label"), *PLAIN]),
    "excel.csv": lambda: delimited(["text", "label"], PLAIN, ";").encode("utf-8-sig"),
    "google-sheets.csv": lambda: delimited(["text", "label"], PLAIN).encode(),
    "pandas.feather": feather,
    "packed.csv.gz": lambda: gzip.compress(delimited(["text", "label"], PLAIN).encode()),
}


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("{text} It was {mask}\n{text} A {mask}\n")
    return path


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_trained_on_and_its_other_rows_are_filled(tmp_path, prompts, name):
    if name.endswith(".xlsx"):
        pytest.importorskip("python_calamine", reason="the extra `excel`")
    data, model, out = tmp_path / name, tmp_path / "m", tmp_path / "out.csv"
    data.write_bytes(FILES[name]())
    column = "sentiment" if name == "label-studio.csv" else "label"
    trained = run(
        *("train", data, "--out", model, "--prompts", prompts, "--label-column", column),
        *(*LIGHT, "--json"),
    )
    assert trained.exit_code == 0, trained.output
    told = json.loads(trained.stdout)
    assert told["classes"] == ["bad", "good"]
    assert told["training"]["class_counts"] == [6, 6]
    assert told["rows_left_out"] == {"without_label": 1, "without_text": 0, "of_rare_classes": 0}
    assert told["training"]["held_out"]["accuracy"] == 1.0
    if name.startswith(("label-studio.json", "prodigy", "doccano", "argilla", "lighttag")):
        out = tmp_path / "out.jsonl"  # their objects have keys of their own
    filled = run("predict", model, data, "--out", out, "--fill", column, *LIGHT[:2], "--no-store")
    assert filled.exit_code == 0, filled.output
    assert "1 row predicted, 12 had a label" in filled.stderr
    with TableReader(out) as reader:
        last = list(reader)[-1].values
    # in JSONL, labels of the exports are lists
    assert last[column] == (["good"] if out.suffix == ".jsonl" else "good")
    assert float(last["probability_good"]) > 0.5


@pytest.mark.parametrize("kind", ["int64", "bool_", "float64", "string"])
def test_a_parquet_column_is_filled_in_its_own_type(tmp_path, prompts, kind):
    labels = [number % 2 for number in range(12)]
    type_ = getattr(pa, kind)()
    column = pa.array(labels).cast(pa.int64() if kind == "string" else type_).cast(type_)
    column = pa.concat_arrays([column, pa.nulls(3, type_)])
    texts = [f"{('dull', 'lovely')[number % 2]} film {number}" for number in range(14)] + [""]
    pq.write_table(pa.table({"text": texts, "label": column}), tmp_path / "t.parquet")
    common = ["--prompts", prompts, *LIGHT]
    trained = run("train", tmp_path / "t.parquet", "--out", tmp_path / "m", *common)
    assert trained.exit_code == 0, trained.output
    out = tmp_path / "o.parquet"
    options = ["--out", out, "--fill", "label", *LIGHT[:2], "--no-store"]
    filled = run("predict", tmp_path / "m", tmp_path / "t.parquet", *options)
    assert filled.exit_code == 0, filled.output
    written = pq.read_table(out)["label"]
    assert written.type == type_
    assert written.to_pylist()[-3:-1] == column.to_pylist()[:2]
    assert written.to_pylist()[-1] == ("" if kind == "string" else None)


@pytest.mark.parametrize("missing", [None, float("nan"), pa.nulls(3)], ids=str)
def test_an_empty_column_of_parquet_is_filled_with_text(tmp_path, prompts, missing):
    train, data, out = (tmp_path / f"{name}.parquet" for name in ("train", "t", "o"))
    pd.DataFrame(ROWS, columns=["text", "label"]).to_parquet(train)
    texts = ["", "dull", "lovely"]
    if isinstance(missing, pa.Array):
        pq.write_table(pa.table({"text": texts, "label": missing}), data)
    else:
        pd.DataFrame({"text": texts, "label": missing}).to_parquet(data)
    trained = run("train", train, "--out", tmp_path / "m", "--prompts", prompts, *LIGHT)
    assert trained.exit_code == 0, trained.output
    options = ["--out", out, "--fill", "label", *LIGHT[:2], "--no-store"]
    filled = run("predict", tmp_path / "m", data, *options)
    assert filled.exit_code == 0, filled.output
    assert pd.read_parquet(out)["label"].tolist() == ["", "bad", "good"]


@pytest.mark.parametrize("labels", [(0, 1), (False, True), (0.0, 1.0), ("0", "1")], ids=str)
def test_a_key_of_jsonl_is_filled_in_the_type_of_its_labels(tmp_path, prompts, labels):
    rows = [
        {"text": f"{('dull', 'lovely')[n % 2]} film {n}", "label": labels[n % 2]} for n in range(12)
    ]
    rows = [*({**row, "label": None} for row in rows[:2]), *rows, {"text": "", "label": None}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = ["--prompts", prompts, *LIGHT]
    trained = run("train", tmp_path / "t.jsonl", "--out", tmp_path / "m", *common)
    assert trained.exit_code == 0, trained.output
    out = tmp_path / "o.jsonl"
    options = ["--out", out, "--fill", "label", *LIGHT[:2], "--no-store"]
    filled = run("predict", tmp_path / "m", tmp_path / "t.jsonl", *options)
    assert filled.exit_code == 0, filled.output
    written = [json.loads(line)["label"] for line in out.read_text().splitlines()]
    assert json.dumps(written) == json.dumps([*labels, *labels * 6, ""])


@pytest.mark.parametrize("labels", [("bad", "good"), (0, 1)], ids=str)
@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_a_column_of_lists_is_filled_with_lists(tmp_path, prompts, format, labels):
    texts = [f"{('dull', 'lovely')[number % 2]} film {number}" for number in range(14)]
    lists = [*([labels[number % 2]] for number in range(12)), None, []]
    rows = [{"text": text, "label": one} for text, one in zip(texts, lists, strict=True)]
    rows.append({"text": "", "label": None})
    data, out = tmp_path / f"t.{format}", tmp_path / f"o.{format}"
    if format == "jsonl":
        data.write_bytes(lines(rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), data)
    trained = run("train", data, "--out", tmp_path / "m", "--prompts", prompts, *LIGHT)
    assert trained.exit_code == 0, trained.output
    options = ["--out", out, "--fill", "label", *LIGHT[:2], "--no-store"]
    filled = run("predict", tmp_path / "m", data, *options)
    assert filled.exit_code == 0, filled.output
    with TableReader(out) as reader:
        written = [row.values["label"] for row in reader]
    assert written == [*([labels[number % 2]] for number in range(14)), None]


def test_a_misspelt_key_of_jsonl_is_refused_before_anything_is_asked(tmp_path, prompts):
    rows = [{"text": text, "label": label} for text, label in ROWS]
    data, out = tmp_path / "t.jsonl", tmp_path / "o.jsonl"
    data.write_bytes(lines([{"text": UNLABELLED}, *rows]))
    trained = run("train", data, "--out", tmp_path / "m", "--prompts", prompts, *LIGHT)
    assert trained.exit_code == 0, trained.output
    options = ["--out", out, *LIGHT[:2], "--no-store", "--fill"]
    refused = run("predict", tmp_path / "m", data, *options, "lable")
    assert refused.exit_code == 1
    assert "no column 'lable'; its columns are 'text', 'label'; did you mean" in refused.stderr
    assert not out.exists()
    filled = run("predict", tmp_path / "m", data, *options, "label")
    assert "1 row predicted, 12 had a label" in filled.stderr


def test_a_workbook_of_awkward_cells_goes_through_the_command(tmp_path, prompts):
    """Line breaks, markup, formulas, numbers, empty rows and cells, and what must not be run."""
    pytest.importorskip("python_calamine", reason="the extra `excel`")
    awkward = [
        ("first line_x000D_\nsecond, lovely", True),
        ('<b>"dull"</b> & more; \U0001f4e6\ttab', False),
        ("FORMULALOVELY AND GREAT", True),
        ("=HYPERLINK(1) is dull", False),
        (4711, True),
        (0.5, False),
        ("", ""),
        ("", True),
        ("  lovely blanks  ", True),
        ("nothing, dull", False),
    ]
    data, model, out = tmp_path / "t.xlsx", tmp_path / "m", tmp_path / "out.xlsx.csv"
    data.write_bytes(workbook([("My Text", "OK?", "note"), *[(*row, "x") for row in awkward]]))
    columns = ("--text-column", "My Text")
    trained = run(
        *("train", data, "--out", model, "--prompts", prompts, *columns, "--label-column", "OK?"),
        *(*LIGHT, "--json"),
    )
    assert trained.exit_code == 0, trained.output
    told = json.loads(trained.stdout)
    assert told["training"]["n_rows"] == 8
    assert told["rows_left_out"]["without_text"] == 1
    filled = run(
        *("predict", model, data, "--out", out, *columns, *LIGHT[:2], "--no-store"),
        "--escape-formulas",
    )
    assert filled.exit_code == 0, filled.output
    with out.open(newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [row["My Text"] for row in written][:5] == [
        "first line\r\nsecond, lovely",
        '<b>"dull"</b> & more; \U0001f4e6\ttab',
        "LOVELY AND GREAT",
        "'=HYPERLINK(1) is dull",
        "4711",
    ]
    assert {row["note"] for row in written} == {"x"}


def test_annotators_who_agree_are_one_label_and_others_are_an_error(tmp_path):
    record = {"fields": {"text": "hi"}, "responses": {"topic": [{"value": "a"}, {"value": "a"}]}}
    path = tmp_path / "t.jsonl"
    path.write_bytes(lines([record]))
    assert read_examples(path).labels == ["a"]
    record["responses"]["topic"][0]["value"] = "b"
    path.write_bytes(lines([record]))
    with pytest.raises(DataError, match=r"row 1, column 'label': 2 labels"):
        read_examples(path)


def test_the_annotation_is_the_label_and_not_a_field_of_the_data(tmp_path, caplog):
    def task(own, *chosen):
        result = [{"from_name": "tone", "value": {"choices": [one]}} for one in chosen]
        data = {"text": "hi", "label": own}
        return {"data": data, "annotations": [{"result": result}] if result else []}

    path = tmp_path / "t.json"
    path.write_text(json.dumps([task("old", "good"), task("older"), task("oldest", "bad")]))
    examples = read_examples(path)
    assert (examples.labels, examples.numbers) == (["good", "bad"], [1, 3])
    assert caplog.text.count("the field 'label' of its data is left out") == 1


def test_a_table_with_a_column_called_answer_is_no_export(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(lines([{"text": "hi", "label": "a", "answer": "reject"}]))
    assert read_examples(path).labels == ["a"]


def test_several_questions_keep_their_names_and_none_is_the_label(tmp_path):
    answers = {"topic": [{"value": "a"}], "tone": [{"value": "b"}]}
    path = tmp_path / "t.jsonl"
    path.write_bytes(lines([{"fields": {"text": "hi"}, "responses": answers}]))
    assert read_examples(path, label_column="tone").labels == ["b"]
    with pytest.raises(DataError, match="label"):
        read_examples(path)


def test_packed_tables_are_written_and_a_cut_one_is_an_error(tmp_path):
    path = tmp_path / "t.csv.gz"
    with TableWriter(path, ["text"]) as writer:
        for number in range(3000):
            writer.write({"text": f"text {number}"})
    packed = path.read_bytes()
    assert packed.startswith(b"\x1f\x8b")
    with TableReader(path) as reader:
        assert [row.values["text"] for row in reader][2999] == "text 2999"
    path.write_bytes(packed[:-20])
    with pytest.raises(DataError, match="cut off in the middle"), TableReader(path) as reader:
        list(reader)
    path.write_bytes(packed[:500] + b"xxxx" + packed[504:])
    with pytest.raises(DataError, match=r"damaged|cut off"), TableReader(path) as reader:
        list(reader)


def test_a_workbook_keeps_whole_numbers_and_a_broken_one_is_one_line(tmp_path):
    pytest.importorskip("python_calamine", reason="the extra `excel`")
    path = tmp_path / "t.xlsx"
    path.write_bytes(
        workbook([("text", "label", ""), ("a", "7", "x"), ("", "", ""), ("b", "8", "")])
    )
    with TableReader(path) as reader:
        assert reader.columns == ["text", "label", "column 3"]
        assert [dict(row.values) for row in reader] == [
            {"text": "a", "label": "7", "column 3": "x"},
            {"text": "b", "label": "8", "column 3": None},
        ]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"t\.xlsx: damaged or locked") as caught:
        read_examples(path)
    assert "\n" not in str(caught.value)


def train(tmp_path, prompts, content, *options):
    data = tmp_path / "data.csv"
    data.write_text(content)
    return run(
        *("train", data, "--out", tmp_path / "m", "--prompts", prompts, *LIGHT, "--json"), *options
    )


GOOD = "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS)


def test_empty_texts_are_left_out_and_counted_unless_an_error_is_wanted(tmp_path, prompts, caplog):
    done = train(tmp_path, prompts, GOOD + ",good\n  ,bad\n")
    assert json.loads(done.stdout)["rows_left_out"]["without_text"] == 2
    assert "rows without a text are left out: 2, the first is row 13" in caplog.text
    asked = train(tmp_path, prompts, GOOD + ",good\n", "--on-row-error", "raise")
    assert "row 13, column 'text': the text is empty" in asked.stderr


def test_rows_that_are_not_drawn_end_no_run(tmp_path, prompts):
    odd = "nul\0byte"
    tables = {True: GOOD + f"{odd},good\n", False: f"text,label\n{odd},good\nfine lovely,good\n"}
    for number, (ends, content) in enumerate(((False, tables[True]), (True, tables[False]))):
        data = tmp_path / f"{number}.jsonl"
        rows = csv.DictReader(io.StringIO(content.replace("\0", "\\0")))
        data.write_bytes(
            lines([{**row, "text": row["text"].replace("\\0", "\0")} for row in rows])
            + lines([{"text": "so dull", "label": "bad"}, {"text": "all dull", "label": "bad"}])
        )
        command = ("train", data, "--out", tmp_path / "m", "--prompts", prompts, *LIGHT)
        done = run(*command, "--shots", 2, "--seed", 1)
        assert ("holds a NUL character" in done.stderr) == ends, done.output
        assert (done.exit_code == 1) == ends


def test_a_class_of_one_row_is_left_out_or_kept(tmp_path, prompts, caplog):
    done = train(tmp_path, prompts, GOOD + "so so,goood\n")
    told = json.loads(done.stdout)
    assert told["classes"] == ["bad", "good"]
    assert told["rows_left_out"]["of_rare_classes"] == 1
    assert "row 13, column 'label': classes of fewer than 2 rows are left out: 'goood'" in (
        caplog.text
    )
    train(tmp_path, prompts, GOOD + "so so,Good\n")
    assert "left out: 'Good' ('good' and 'Good' differ by case or blanks alone); add" in caplog.text
    kept = train(tmp_path, prompts, GOOD + "so so,goood\n", "--min-class-rows", 1)
    assert json.loads(kept.stdout)["classes"] == ["bad", "good", "goood"]


def test_where_each_class_has_one_row_none_is_named(tmp_path, prompts):
    said = train(tmp_path, prompts, "text,label\na b,good\nc d,bad\n").stderr
    assert "needs two labels that 2 rows or more have, and no label has as many; add" in said


def test_a_wrong_column_names_its_option(tmp_path, prompts):
    said = train(tmp_path, prompts, GOOD, "--label-column", "lable").stderr
    assert "did you mean 'label'?; name the right one with --label-column" in said
    said = train(tmp_path, prompts, GOOD, "--text-column", "body").stderr
    assert said.rstrip().endswith("name the right one with --text-column")


def test_swapped_columns_and_arguments_are_recognised(tmp_path, prompts):
    swapped = ("--text-column", "label", "--label-column", "text")
    assert (
        "are --text-column and --label-column swapped?"
        in train(tmp_path, prompts, GOOD, *swapped).stderr
    )
    assert train(tmp_path, prompts, GOOD).exit_code == 0
    data, model = tmp_path / "data.csv", tmp_path / "m"
    for command in (("evaluate", data, model), ("predict", data, model, "--out", "o.csv")):
        done = run(*command)
        assert done.exit_code == 2
        assert "the model comes first, then the table" in done.stderr
    assert "is a trained model; give the table" in run("train", model, "--out", "x").stderr
    assert not common.is_model(str(data))


def test_the_class_counts_are_shown_before_anything_is_paid(tmp_path, prompts):
    data = tmp_path / "data.csv"
    data.write_text(GOOD)
    done = run(
        *("train", data, "--out", tmp_path / "m", "--prompts", prompts, *LIGHT),
        *("--max-forward-passes", 0),
    )
    assert done.exit_code == 3
    assert done.stderr.startswith("training on 12 rows: bad 6, good 6")
    shown = run("plan", data, "--prompts", prompts, *LIGHT)
    assert "training on     12 rows: bad 6, good 6" in shown.stdout
