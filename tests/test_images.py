"""Images: read, refused, rendered into requests, and known by their digests."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

PIL = pytest.importorskip("PIL.Image", reason="needs the `images` extra")

from backends.deterministic import DeterministicBackend  # noqa: E402
from backends.sampling import SamplingBackend  # noqa: E402
from blackbox import PromptBoostingClassifier, load_model  # noqa: E402
from blackbox.answers.texts import check_texts, row_digests  # noqa: E402
from blackbox.errors import (  # noqa: E402
    DataError,
    ImageError,
    ModelFileError,
    PromptError,
    RowError,
    UnservedPromptError,
)
from blackbox.generation.builtin import builtin_pool  # noqa: E402
from blackbox.images import MAX_BYTES, MAX_PIXELS, Image, plain_image  # noqa: E402
from blackbox.prompts.question import Question, parse_prompt  # noqa: E402
from blackbox.prompts.template import Prompt  # noqa: E402
from blackbox.protocol import (  # noqa: E402
    BackendIdentity,
    Limits,
    Message,
    RenderedPrompt,
    request_digest,
)

IDENTITY = BackendIdentity("provider", "chat", "model")
LIMITS = Limits(20, 0, 1000, True, chat=True, answer_prefix=True, images=True)


def drawn(number: int, size: tuple[int, int] = (24, 16)) -> PIL.Image:
    """A picture that a number seeds."""
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return PIL.fromarray(pixels)


def saved(picture: PIL.Image, kind: str = "PNG", **options) -> bytes:
    """The bytes of a file of a picture."""
    written = io.BytesIO()
    picture.save(written, kind, **options)
    return written.getvalue()


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp"), ("GIF", "image/gif")],
)
def test_an_image_is_the_same_from_a_path_and_from_bytes_and_is_sent_as_it_is(
    tmp_path, kind, media_type
):
    data = saved(drawn(1), kind)
    path = tmp_path / "picture"  # its name says nothing
    path.write_bytes(data)
    one, other = Image.of(path), Image.of(data)
    assert one == other
    assert hash(one) == hash(other)
    assert one.digest == hashlib.sha256(data).hexdigest()
    assert (one.width, one.height, one.media_type) == (24, 16, media_type)
    assert one.encoded() == (media_type, data)
    assert Image.of_data_url(one.data_url()) == one
    assert pickle.loads(pickle.dumps(one)) == one


def test_a_file_is_not_kept_in_memory_and_a_changed_one_is_noticed(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(saved(drawn(1)))
    image = Image.of(path)
    assert image.source == path
    path.write_bytes(saved(drawn(2)))
    with pytest.raises(ImageError, match="was changed while it was in use"):
        image.data()
    path.unlink()
    with pytest.raises(ImageError, match="no such file"):
        image.pixels()


def test_a_picture_in_memory_is_known_by_its_pixels():
    assert Image.of(drawn(1)) == Image.of(drawn(1).copy())
    assert Image.of(drawn(1)) != Image.of(drawn(2))
    assert np.array_equal(np.asarray(Image.of(drawn(1)).pixels()), np.asarray(drawn(1)))


def test_resizing_keeps_the_shape_and_enlarges_nothing():
    image = Image.of(drawn(1, (600, 200)))
    assert image.size_within(300) == (300, 100)
    assert image.size_within(1000) == (600, 200)
    assert image.pixels(300).size == (300, 100)
    media_type, data = image.encoded(300)
    assert media_type == "image/png"
    assert PIL.open(io.BytesIO(data)).size == (300, 100)
    assert Image.of(saved(drawn(1, (1000, 2)))).size_within(10) == (10, 1)
    jpeg = Image.of(saved(drawn(1, (600, 200)), "JPEG"))
    assert jpeg.encoded(300)[0] == "image/jpeg"


def test_a_photograph_is_turned_as_its_camera_notes():
    exif = PIL.Exif()
    exif[0x0112] = 6
    image = Image.of(saved(drawn(1), "JPEG", exif=exif))
    assert (image.width, image.height) == (16, 24)
    assert image.pixels().size == (16, 24)
    assert PIL.open(io.BytesIO(image.encoded()[1])).size == (16, 24)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_notes_of_a_camera_that_cannot_be_read_are_none(kind, exif):
    image = Image.of(saved(drawn(1), kind, exif=exif))
    assert (image.width, image.height) == image.pixels().size == drawn(1).size


def test_other_kinds_of_pixels_become_colours_on_white():
    clear = PIL.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert Image.of(saved(clear)).pixels().getpixel((0, 0)) == (255, 255, 255)
    grey = PIL.fromarray(np.full((2, 2), 128 * 256, np.uint16))
    assert Image.of(saved(grey)).pixels().getpixel((0, 0)) == (128, 128, 128)
    two = PIL.new("1", (2, 2), 1)
    assert Image.of(saved(two)).pixels().getpixel((1, 1)) == (255, 255, 255)
    frames = [PIL.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    moving = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.of(moving).pixels().getpixel((0, 0)) == (255, 0, 0)


def png_of(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG that says that it has so many pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(body or b"\0")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not an image: PNG, JPEG, WebP or GIF is needed"),
        (b"plain text", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
        (saved(drawn(1), "BMP"), "not an image"),
        (saved(drawn(1), "TIFF"), "not an image"),
        (saved(drawn(1))[:60], "damaged or cut off"),
        (saved(drawn(1, (200, 200)), "JPEG")[:3000], "damaged or cut off"),
        (png_of(20_000, 20_000), "million"),
        (png_of(8_001, 8_000), "64 million are taken"),
        (png_of(0, 10), "not an image"),
        (b"\0" * (MAX_BYTES + 1), "20.0 MB, and 20 MB are the most"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else str(len(value)),
)
def test_what_is_no_usable_image_is_one_clear_line(tmp_path, data, said):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for value, name in ((data, ""), (path, f"{path}: ")):
        with pytest.raises(ImageError, match=said) as caught:
            Image.of(value)
        assert str(caught.value).startswith(name)
        assert str(caught.value).count("a.png") <= 1
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/a.png", "file:///etc/passwd", "data:text/html,a"]
)
def test_no_address_is_fetched(url, monkeypatch):
    import socket

    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("a connection was made"))
    with pytest.raises(ImageError, match="addresses are not fetched"):
        Image.of_data_url(url)
    with pytest.raises(ImageError, match="no such file"):
        Image.of(Path(url))
    with pytest.raises(TypeError, match="an image is a Path"):
        Image.of(url)


def test_a_data_url_that_is_damaged_or_large_is_refused():
    with pytest.raises(ImageError, match="not base64"):
        Image.of_data_url("data:image/png;base64,a*b")
    with pytest.raises(ImageError, match="more than 20 MB"):
        Image.of_data_url("data:image/png;base64," + "A" * (MAX_BYTES * 2))


_REAL = [saved(drawn(3, (40, 30)), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(_REAL),
    st.integers(0, 4000),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=8),
    st.binary(max_size=40),
)
def test_any_damage_to_a_file_gives_an_image_or_one_line(data, cut, changes, tail):
    damaged = bytearray(data[: len(data) - cut % len(data)])
    for place, value in changes:
        damaged[place % len(damaged)] = value
    try:
        image = Image.of(bytes(damaged) + tail)
    except ImageError as error:
        n_lines = len(str(error).splitlines())
    else:
        n_lines = 1
        assert image.n_pixels <= MAX_PIXELS
        assert image.pixels().size == (image.width, image.height)
    assert n_lines == 1


@pytest.mark.slow
def test_a_bomb_takes_no_memory():
    code = (
        "import resource, struct, zlib\n"
        "import PIL.Image\n"
        "from blackbox.images import Image\n"
        "from test_images import png_of\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for data in (png_of(60_000, 60_000), png_of(30_000, 30_000, bytes(10**8))):\n"
        "    try: Image.of(data)\n"
        "    except ValueError: raise\n"
        "    except Exception as error: print(type(error).__name__)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
        timeout=60,
    )
    first, second, grown = done.stdout.split()
    assert (first, second) == ("ImageError", "ImageError")
    assert int(grown) < 250_000  # kilobytes: the 100 MB that were made, and copies of them


def test_no_pillow_is_imported_before_an_image_is_read():
    code = "import sys, blackbox.estimator, blackbox.cli, backends; assert 'PIL' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_request_without_an_image_has_the_digest_it_always_had():
    raw = RenderedPrompt("a text")
    chat = RenderedPrompt(messages=(Message("user", "a"),), answer_prefix="b")
    # as computed before requests could have images
    assert request_digest(IDENTITY, raw, {"top_k": 5}) == _OF_RAW
    assert request_digest(IDENTITY, chat, {"top_k": 5}) == _OF_CHAT
    assert b"".join(row_digests([("a", None), ("b", "c")])).hex() == _OF_ROWS


_OF_RAW = "ddb603c85ff4fae72c3267b2e44f8c351313fa9bbe715df2ba39ae5c8a1b09f9"
_OF_CHAT = "a106bc1a68236c2f0d13adcfdce3957429e22634d04b873088768d18c8e4d3c6"
_OF_ROWS = "fc5ccfd12820e320a470ca4a61b6c4ff"


def test_the_image_and_its_place_are_in_the_digest_of_a_request():
    image = plain_image(1, 2, 3)
    prompts = [
        RenderedPrompt("a text"),
        RenderedPrompt("a text", image=image),
        RenderedPrompt("a text", image=image, image_at=2),
        RenderedPrompt("a text", image=plain_image(1, 2, 4)),
    ]
    digests = {request_digest(IDENTITY, prompt, {}) for prompt in prompts}
    assert len(digests) == len(prompts)
    for prompt in prompts:
        whole = {
            "asked": {},
            "identity": IDENTITY.digest(),
            "prompt": prompt.as_dict(),
            "schema": 1,
        }
        by_hand = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
        assert request_digest(IDENTITY, prompt, {}) == by_hand


def test_a_template_puts_the_image_where_it_stands():
    image = plain_image(1, 2, 3)
    raw = Prompt("Look: {image}\n{text} It is {mask}").render("a cat", image)
    assert raw.text == "Look: \na cat It is"
    assert raw.around_image(raw.text) == ("Look: ", "\na cat It is")
    chat = Prompt("<user> {text} {image}\nWhat is it?<assistant>It is {mask}").render("So", image)
    said = chat.messages[0].content
    assert chat.around_image(said) == ("So ", "\nWhat is it?")
    assert chat.answer_prefix == "It is"
    alone = Prompt("<user>{image}<assistant>{mask}").render("", image)
    assert alone.messages == (Message("user", ""),)
    assert (alone.image, alone.image_at) == (image, 0)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{image} {image} {mask}", "twice"),
        ("{image} {text} {text_pair} {mask}", "without pairs"),
        ("{nearest: 1}{image}{text} {mask}", "labelled examples"),
        ("{example: a || b} c\n{image}{text} {mask}", "labelled examples"),
        ("<system>{image}<user>{text}<assistant>{mask}", "<user> turn"),
        ("<user>{text}<assistant>{image}{mask}", "<user> turn"),
    ],
)
def test_a_template_with_an_image_in_a_wrong_place_is_refused(template, said):
    with pytest.raises(PromptError, match=said):
        Prompt(template)


def test_a_prompt_is_for_one_kind_of_input():
    image = plain_image(1, 2, 3)
    assert Prompt("{image} {mask}").input_kind == "image"
    for prompt, second, said in (
        (Prompt("{text} {mask}"), image, "has no {image} but there is one"),
        (Prompt("{image} {mask}"), None, "takes an image but there is none"),
        (Prompt("{image} {mask}"), "b", "takes an image but there is none"),
        (Prompt("{text} {text_pair} {mask}"), image, "has no {image}"),
        (Question("<predicate>So it is."), image, "has no {image}"),
        (Question("<predicate image>So it is."), "b", "takes an image"),
    ):
        with pytest.raises(PromptError, match=said.replace("{", r"\{")):
            prompt.render_for(LIMITS, "a", second)
    with pytest.raises(PromptError, match="comes after"):
        Prompt("{mask} {image}").render("", image)


def test_a_question_is_asked_of_an_image():
    image = plain_image(1, 2, 3)
    question = parse_prompt("<choice image>What is it?<option>a cat<option>a dog")
    asked = Limits(20, 0, 1000, True, raw_text=False, questions=True, images=True)
    as_it_is = question.render_for(asked, "", image)
    assert (as_it_is.text, as_it_is.image) == ("", image)
    lettered = question.render_for(LIMITS, "", image)
    assert lettered.messages[0].content == "What is it?\nA. a cat\nB. a dog"
    assert question.opposite().input_kind == "image"


@pytest.mark.parametrize("limits", [LIMITS, Limits(20, 0, 1000, True, images=True)])
def test_built_in_prompts_take_images(limits):
    pool = builtin_pool(kind="image", limits=limits, class_names=["cat", "dog"])
    assert len(pool) > 6
    assert {prompt.input_kind for prompt in pool} == {"image"}
    assert not [p for p in builtin_pool(limits=limits) if p.takes_image]
    blind = Limits(20, 0, 1000, True)
    with pytest.raises(PromptError):
        builtin_pool(kind="image", limits=blind)


def test_what_estimators_are_given_becomes_images(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(saved(drawn(1)))
    rows = [path, saved(drawn(2)), drawn(3), Image.of(drawn(4)), (path, "a text"), ("so", path)]
    found = check_texts(rows)
    assert (found.kind, found.refused) == ("image", {})
    assert [text for text, _ in found] == ["", "", "", "", "a text", "so"]
    assert all(isinstance(second, Image) for _, second in found)
    assert len(row_digests(found)) == 6
    frame = np.array([[path, "a text"], [path, None]], object)
    assert [text for text, _ in check_texts(frame)] == ["a text", ""]


def test_images_that_can_not_be_used_are_refused_by_row(tmp_path):
    found = check_texts([drawn(1), tmp_path / "none.png", None, b"no image"])
    assert list(found.refused) == [1, 2, 3]
    assert "no such file" in found.refused[1]
    assert found.refused[2] == "no image"
    with pytest.raises(TypeError, match="row 1: an input is one image"):
        check_texts([drawn(1), (drawn(1), drawn(2))])
    with pytest.raises(TypeError, match="row 1: a text is a str, got int"):
        check_texts([drawn(1), (drawn(1), 3)])


def bright(number: int) -> PIL.Image:
    """A picture that is bright above or below, as its class says."""
    pixels = np.random.default_rng(number).integers(0, 128, (16, 16), np.uint8)
    pixels[8 * (number % 2) :][:8] += 120
    return PIL.fromarray(pixels)


PICTURES = [bright(number) for number in range(40)]
LABELS = ["above", "below"] * 20


def fitted(**options) -> PromptBoostingClassifier:
    """A classifier of pictures."""
    return PromptBoostingClassifier(backend="deterministic", store=None, **options)


def test_a_classifier_of_images_learns_predicts_and_survives_its_file(tmp_path):
    made = fitted(random_state=0).fit(PICTURES[:24], LABELS[:24])
    assert made.model_.input_kind == "image"
    assert made.score(PICTURES[24:], LABELS[24:]) > 0.8
    held_out = made.model_.summary["held_out"]
    assert held_out["baseline"] == "pixels"
    assert "pixels, no LM" in made._repr_html_()
    made.save(tmp_path / "model.json")
    loaded = load_model(tmp_path / "model.json", backend=DeterministicBackend()).model_
    lm = DeterministicBackend()
    probabilities = loaded.predict(lm, PICTURES[24:]).probabilities
    assert np.array_equal(probabilities, made.predict_proba(PICTURES[24:]))
    with pytest.raises(
        ValueError, match="X holds single texts but the model was trained on images"
    ):
        loaded.predict(lm, ["a text"])


def test_a_text_beside_an_image_is_read():
    texts = [f"it is {label}" for label in LABELS]
    grey = [PIL.new("L", (8, 8 + number), 100) for number in range(40)]  # all look alike
    rows = list(zip(grey, texts, strict=True))
    made = fitted(random_state=0).fit(rows[:24], LABELS[:24])
    assert made.score(rows[24:], LABELS[24:]) == 1.0


def test_prompts_are_generated_for_images():
    made = fitted(random_state=0, prompts="auto", max_prompts=4).fit(PICTURES[:24], LABELS[:24])
    assert {prompt.input_kind for prompt in made.model_.prompts} == {"image"}


def test_a_store_knows_an_image_by_its_digest(tmp_path):
    rows = [saved(picture) for picture in PICTURES]
    made = PromptBoostingClassifier(
        backend="deterministic", store=tmp_path / "store.db", random_state=0
    )
    made.fit(rows[:24], LABELS[:24])
    files = [tmp_path / f"{number}.png" for number in range(24)]
    for path, data in zip(files, rows, strict=False):
        path.write_bytes(data)
    again = PromptBoostingClassifier(
        backend="deterministic", store=tmp_path / "store.db", random_state=0
    )
    again.fit(files, LABELS[:24])
    assert again.usage_.passes_made == 0
    assert again.predict(files[:3]).tolist() == made.predict(rows[:3]).tolist()


def test_an_unusable_image_is_a_row_error(tmp_path):
    rows = [*PICTURES[:24], tmp_path / "none.png"]
    with pytest.raises(RowError, match=r"row 24: .*no such file"):
        fitted().fit(rows, [*LABELS[:24], "above"])
    with pytest.raises(RowError, match="no such file"):
        fitted(random_state=0).fit(PICTURES[:24], LABELS[:24]).predict([tmp_path / "none.png"])
    made = fitted(on_row_error="abstain", random_state=0).fit(rows, [*LABELS[:24], "above"])
    assert list(made.row_errors_) == [24]


class Blind(DeterministicBackend):
    """A backend without images."""

    def __init__(self):
        super().__init__()
        from dataclasses import replace

        self.limits = replace(self.limits, images=False)
        self.asked = 0

    def next_token(self, prompts, top_k):
        self.asked += len(prompts)
        return super().next_token(prompts, top_k)


def test_a_backend_without_images_says_so_before_any_pass():
    lm = Blind()
    with pytest.raises(UnservedPromptError, match="takes no images"):
        PromptBoostingClassifier(backend=lm, prompts=["{image} {mask}"], store=None).fit(
            PICTURES[:24], LABELS[:24]
        )
    with pytest.raises(UnservedPromptError, match="takes no images"):
        PromptBoostingClassifier(backend=lm, store=None).fit(PICTURES[:24], LABELS[:24])
    assert lm.asked == 0


def test_drawn_questions_keep_their_image():
    lm = SamplingBackend(DeterministicBackend(), n_draws=8)
    seen = Question("<predicate image>It is bright.").render_for(lm.limits, "", Image.of(drawn(1)))
    read = Question("<predicate>It is bright.").render_for(lm.limits, "")
    with_image, without = lm.count_tokens([seen, read])
    assert with_image == without + 16


def test_the_other_errors_stay_what_they_were():
    assert issubclass(ImageError, DataError)
    assert not issubclass(ModelFileError, DataError)
