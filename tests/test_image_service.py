"""Images over the service and in reports: as data URLs, bounded, shown small and safely."""

from __future__ import annotations

import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the service needs the `serve` extra")
pytest.importorskip("PIL", reason="needs the `images` extra")

import PIL.Image
from test_images import png_of

from backends.deterministic import DeterministicBackend
from blackbox.answers.texts import check_texts
from blackbox.errors import MissingDependencyError
from blackbox.images import Image
from blackbox.model.file import read_model
from blackbox.report import collect_report_data, measure_model, render_card, render_html
from blackbox.service import app, core, threads
from tests.images_asked import halves
from tests.serving import as_problem, running, served, train


def url_of(data: bytes) -> str:
    """Bytes as a data URL."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def png(number: int) -> bytes:
    """A picture as a file's bytes."""
    written = io.BytesIO()
    halves(number).save(written, "PNG")
    return written.getvalue()


PICTURES, LABELS = [halves(number) for number in range(24)], ["above", "below"] * 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of images."""
    path = tmp_path_factory.mktemp("images") / "m"
    return train(path, texts=PICTURES, labels=LABELS, label_words=None)


@pytest.fixture(scope="module")
def texts_model(tmp_path_factory):
    """A model of texts."""
    return train(tmp_path_factory.mktemp("texts") / "texts")


def test_an_image_is_classified_and_explained(model):
    with running(served(model)) as client:
        for number, label in ((30, "above"), (31, "below")):
            body = {"text": {"image": url_of(png(number))}, "explain": True}
            status, _, answer = client.ask("POST", "/v1/predict", body)
            assert status == 200, answer
            (prediction,) = answer["predictions"]
            assert prediction["label"] == label
            assert prediction["explanation"]["prompts"]
        both = {"texts": [{"image": url_of(png(30)), "text": "a caption"}]}
        assert client.ask("POST", "/v1/predict", both)[0] == 200
        described = client.get("/v1/model")[2]
        assert (described["input_kind"], described["takes_pair"]) == ("image", False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"image": "https://127.0.0.1/a.png"}, "text 0: an image is given as a data URL"),
        ({"image": url_of(b"no image")}, "text 0: not an image"),
        ({"image": url_of(png(1)[:60])}, "text 0: the image is damaged or cut off"),
        ({"image": url_of(png_of(30_000, 30_000))}, "million"),
        ({"image": url_of(png_of(5_000, 4_000))}, "16 million are taken"),
        ({"image": url_of(png(1)), "text_pair": "b"}, "text 0: the model takes images"),
        ("a text", "text 0: the model takes images: give image"),
        ({}, "text: "),
    ],
)
def test_what_is_no_usable_image_is_refused_in_one_line(model, text, said):
    with running(served(model)) as client:
        answer = client.ask("POST", "/v1/predict", {"text": text})
        assert said in as_problem(answer, 422)


def test_a_body_is_bounded_and_a_model_of_texts_takes_no_image(model, tmp_path):
    with running(served(model)) as client:
        large = {"text": {"image": url_of(bytes(2_000_000))}}
        assert client.ask("POST", "/v1/predict", large)[0] == 413
    with running(served(train(tmp_path / "m"))) as client:
        answer = client.ask(
            "POST", "/v1/predict", {"text": {"text": "goal", "image": url_of(png(1))}}
        )
        assert "the model takes single texts" in as_problem(answer, 422)


def test_a_report_shows_small_copies_of_mistaken_images_and_nothing_else_of_them(model):
    exif = PIL.Image.Exif()
    exif[0x010E] = "<script>alert(1)</script>"  # a description
    written = io.BytesIO()
    halves(30).convert("RGB").resize((800, 600)).save(written, "JPEG", exif=exif, comment=b"secret")
    trained = read_model(model)
    texts = check_texts([Image.of(written.getvalue()), Image.of(png(31))])
    codes = np.array([1, 1])  # the first is wrong
    measured = measure_model(
        trained, DeterministicBackend(), "rows", texts, codes, include_texts=True
    )
    (mistake,) = measured.mistakes
    assert mistake.image.startswith("data:image/jpeg;base64,")
    small = base64.b64decode(mistake.image.partition(",")[2])
    assert max(PIL.Image.open(io.BytesIO(small)).size) == 96
    assert b"script" not in small
    assert b"secret" not in small
    page = render_html(collect_report_data(trained, "m", measured))
    assert f'<img src="{mistake.image}"' in page
    assert "img-src data:" in page
    assert "images, with or without a text" in page
    card = render_card(collect_report_data(trained, "m", measured))
    assert "(an image)" in card
    without = replace(measured, mistakes=[])
    assert "<img" not in render_html(collect_report_data(trained, "m", without))


def test_what_is_too_much_together_is_refused(model, monkeypatch):
    monkeypatch.setattr(app, "_MAX_PIXELS_TOGETHER", 3 * halves(1).width * halves(1).height)
    with running(served(model)) as client:
        pictures = [{"image": url_of(png(number))} for number in range(4)]
        assert client.predict({"texts": pictures[:3]})[0] == 200
        assert "pixels together" in as_problem(client.predict({"texts": pictures}), 422)


def test_slow_images_are_refused_and_leave_checks_and_texts_alone(model, texts_model, monkeypatch):
    monkeypatch.setattr(core, "_CHECK_TIMEOUT", 0.5)
    monkeypatch.setattr(threads, "_MAX_WAITING", 2)
    decode = Image.of_data_url
    monkeypatch.setattr(
        app.Image, "of_data_url", lambda *given: [time.sleep(1.5), decode(*given)][1]
    )
    with (
        running(served(model), served(texts_model, name="texts"), timeout=4) as client,
        ThreadPoolExecutor(20) as clients,
    ):
        body = {"texts": [{"image": url_of(png(number))} for number in range(4)]}
        waiting = [clients.submit(client.predict, body) for _ in range(12)]
        time.sleep(1)
        assert client.predict({"text": "match", "model": "texts"})[0] == 200
        statuses = [one.result()[0] for one in waiting]
        assert statuses.count(503) == 12 - 2 - 2, "too much work is waiting"
        assert statuses.count(504) == 2 + 2, "four images take six seconds"
        assert client.get("/readyz")[0] == 200


def test_a_model_of_texts_decodes_no_image(texts_model, monkeypatch):
    monkeypatch.setattr(app.Image, "of_data_url", None)
    with running(served(texts_model)) as client:
        body = {"text": {"image": url_of(png(1))}}
        assert "the model takes single texts" in as_problem(client.predict(body), 422)


def test_images_that_cannot_be_read_here_are_refused(model, monkeypatch):
    def missing(*given):
        raise MissingDependencyError("pip install pillow at /a/path")

    with running(served(model)) as client:
        monkeypatch.setattr(app.Image, "of_data_url", missing)
        told = as_problem(client.predict({"text": {"image": url_of(png(1))}}), 503)
        assert told == "this service can't read images: Pillow is missing"
