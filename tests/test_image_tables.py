"""Images in tables and on the command line: paths, bytes and what can't be used."""

from __future__ import annotations

import base64
import csv
import io
import json

import pytest
from click.testing import CliRunner
from fault_server import FaultServer
from images_asked import halves

pytest.importorskip("PIL", reason="needs the `images` extra")

import pyarrow as pa
import pyarrow.parquet as pq

from blackbox.cli import main
from blackbox.errors import DataError
from blackbox.images import NO_IMAGE, Image
from blackbox.tables import TableReader, read_examples, texts_of_rows

OFFLINE = ["--backend", "deterministic", "--no-store"]


def data_of(number: int) -> bytes:
    written = io.BytesIO()
    halves(number).save(written, "PNG")
    return written.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tables of forty pictures in a folder beside them, and a model that was trained on thirty."""
    tmp_path = tmp_path_factory.mktemp("images")
    (tmp_path / "pics").mkdir()
    for number in range(40):
        (tmp_path / "pics" / f"{number}.png").write_bytes(data_of(number))
    for name, numbers in (("train.csv", range(30)), ("test.csv", range(30, 40))):
        with (tmp_path / name).open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["image", "caption", "label"])
            rows.writerows(
                [f"pics/{n}.png", f"number {n}", ("above", "below")[n % 2]] for n in numbers
            )
    train(tmp_path)
    return tmp_path


def rows_of(path):
    """The rows of a table."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def train(folder, *more, backend=OFFLINE, code=0, out="m.blackbox"):
    return run(
        "train",
        folder / "train.csv",
        "--image-column",
        "image",
        "--out",
        folder / out,
        "--no-label-words",
        *backend,
        *more,
        code=code,
    )


@pytest.mark.slow
def test_images_are_trained_on_evaluated_predicted_explained_and_reported(folder):
    model, test = folder / "m.blackbox", folder / "test.csv"
    images = ["--image-column", "image"]
    assert "accuracy           100.0%" in run("evaluate", model, test, *images, "--no-store").stdout
    run("predict", model, test, *images, "--out", folder / "out.csv", "--no-store")
    rows = rows_of(folder / "out.csv")
    assert [row["prediction"] for row in rows] == [row["label"] for row in rows]
    assert rows[0]["image"] == "pics/30.png"
    explained = run("inspect", model, "--image", folder / "pics" / "3.png").stdout
    assert "prediction  below" in explained
    assert "{image}" in explained
    run("report", model, test, *images, "--include-texts", "--out", folder / "r.html", "--no-store")
    suggested = json.loads(
        run(
            "suggest", model, unlabelled(folder), *images, "--n", "2", "--json", "--no-store"
        ).stdout
    )
    assert suggested["suggestions"][0]["image"].startswith("pics/")


def unlabelled(folder):
    path = folder / "open.csv"
    path.write_text("image,label\n" + "".join(f"pics/{n}.png,\n" for n in range(30, 40)))
    return path


def test_a_text_stands_beside_an_image_where_its_column_is_named(folder):
    train(folder, "--text-column", "caption", out="both.blackbox")
    run(
        "predict",
        folder / "both.blackbox",
        folder / "test.csv",
        "--image-column",
        "image",
        "--text-column",
        "caption",
        "--out",
        folder / "out.csv",
        "--no-store",
    )
    images = read_examples(folder / "test.csv", text_column=None, image_column="image").texts
    both = read_examples(folder / "test.csv", text_column="caption", image_column="image").texts
    assert both == [(f"number {n}", image) for n, image in zip(range(30, 40), images, strict=True)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "trained on images: give --image-column"),
        (["--image-column", "picture"], "no column 'picture'"),
        (["--image-column", "image", "--text-pair-column", "caption"], "drop one of them"),
    ],
)
def test_columns_that_do_not_fit_are_one_line(folder, arguments, said):
    result = run(
        "predict",
        folder / "m.blackbox",
        folder / "test.csv",
        "--out",
        "-",
        *arguments,
        code=2 if "no column" not in said else 1,
    )
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_a_model_of_texts_takes_no_images(folder):
    run(
        "train",
        folder / "train.csv",
        "--text-column",
        "caption",
        "--out",
        folder / "t.blackbox",
        *OFFLINE,
    )
    result = run(
        "predict",
        folder / "t.blackbox",
        folder / "test.csv",
        "--image-column",
        "image",
        "--out",
        "-",
        code=2,
    )
    assert "trained on texts: drop --image-column" in result.stderr


def test_the_embedded_lm_refuses_images_before_any_pass(folder):
    result = train(
        folder,
        backend=["--no-store", "--backend", "sampling", "--backend-option", "inner=onnx"],
        code=1,
    )
    assert "takes no images" in result.stderr


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("pics/none.png", "no such file"),
        ("pics", "not a file"),
        ("test.csv", "not an image: PNG, JPEG, WebP or GIF is needed"),
        ("https://example.org/a.png", "addresses are not fetched"),
        ("data:image/png;base64,AAAA", "not an image"),
        ("", "an image is the path of a file"),
    ],
)
def test_a_cell_without_a_usable_image_is_named(folder, cell, said):
    (folder / "bad.csv").write_text(f'id,image\n1,pics/30.png\n2,"{cell}"\n')
    arguments = ["predict", folder / "m.blackbox", folder / "bad.csv", "--image-column", "image"]
    result = run(*arguments, "--out", "-", "--on-row-error", "raise", "--no-store", code=1)
    assert "bad.csv, row 2, column 'image': " in result.stderr
    assert said in result.stderr or not cell
    assert len(result.stderr.strip().splitlines()) == 1
    run(*arguments, "--out", folder / "out.csv", "--on-row-error", "abstain", "--no-store")
    first, second = rows_of(folder / "out.csv")
    assert first["prediction"] == "above"
    assert not second["prediction"]
    assert said in second["reason"] or not cell


def test_bytes_and_urls_of_files_are_read(folder):
    url = "data:image/png;base64," + base64.b64encode(data_of(1)).decode()
    file = (folder / "pics" / "1.png").as_uri()
    (folder / "a.jsonl").write_text(
        "".join(json.dumps({"image": one, "label": "a"}) + "\n" for one in (url, file))
    )
    table = pa.table(
        {
            "image": [data_of(1), data_of(1)],
            "nested": [{"bytes": data_of(1), "path": None}, {"bytes": None, "path": "pics/1.png"}],
            "label": ["a", "a"],
        }
    )
    pq.write_table(table, folder / "a.parquet")
    expected = [Image.of(data_of(1))] * 2
    for name, column in (("a.jsonl", "image"), ("a.parquet", "image"), ("a.parquet", "nested")):
        found = read_examples(folder / name, text_column=None, image_column=column)
        assert found.texts == expected


def test_missing_images_are_kept_dropped_or_refused(folder):
    (folder / "some.csv").write_text("image,label\npics/1.png,a\n,b\n")
    read = {"text_column": None, "image_column": "image"}
    with pytest.raises(DataError, match="row 2, column 'image': an image is the path"):
        read_examples(folder / "some.csv", **read)
    assert len(read_examples(folder / "some.csv", **read, empty="drop").texts) == 1
    assert read_examples(folder / "some.csv", **read, empty="keep").texts[1] is NO_IMAGE
    with TableReader(folder / "some.csv") as reader:
        reader.require("image")
        texts, unusable = texts_of_rows(list(reader), ["image"], reader.name, image_column="image")
    assert texts[1] is NO_IMAGE
    assert not unusable


@pytest.mark.slow
def test_an_api_is_told_of_images_by_the_command_alone(folder, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sentinel-0123456789")
    with FaultServer() as server:
        api = ["--backend", "openai", "--model", "lm", "--backend-option", f"base_url={server.url}"]
        train(folder, backend=[*api, "--no-store"], out="api.blackbox")
        n_probed = sum("Which colour" in str(body) for body in server.bodies)
        assert n_probed == 2
        plan = run("plan", folder / "train.csv", "--image-column", "image", "--no-store", *api)
        assert "forward passes" in plan.stdout
        out = run(
            "predict",
            folder / "api.blackbox",
            folder / "test.csv",
            "--image-column",
            "image",
            "--out",
            "-",
            "--no-store",
            *api,
        )
        assert "pics/30.png,number 30,above,above" in out.stdout
        assert "base64" not in out.output
