"""The saved model: exact there and back, readable, and safe to open whoever wrote it."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
import subprocess
import tempfile
import time
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import backends
from backends.catalogue import CATALOGUE
from backends.deterministic import DeterministicBackend
from blackbox import PromptBoostingClassifier, load_model
from blackbox.cli import main
from blackbox.errors import BackendError, BackendIdentityError, ModelFileError
from blackbox.explain import describe_learners
from blackbox.model.file import FORMAT_VERSION, archive, read_model, write_model
from blackbox.model.file.checks import checked_identity
from blackbox.model.model import Model

PROMPTS = ["{text} It was {mask}", "<user>{text} Which kind?<assistant>This is {mask}"]
WORDS = ["lovely day", "dull day", "odd day", "so lovely", "so dull", "so odd", "one more lovely"]
TEXTS = [f"{words} {number}" for number in range(4) for words in WORDS]
NEW = ["a lovely evening", "how dull it was", "odd", "nothing of the kind"]
KINDS = {"lovely": 0, "dull": 1, "odd": 2}
LABELS: dict[str, list[Any]] = {
    "str": ["schön", 'a "quote", and more', "z\n"],
    "int": [-3, 0, 10**12],
    "bool": [False, True, True],
    "float": [-1.0, 0.0, 2.0],
}


@pytest.fixture(autouse=True)
def _fresh_help() -> Iterator[None]:
    """Click keeps the names of the help option from the first call, for whoever asks next."""
    yield
    for command in (main, *(main.get_command(None, name) for name in ("evaluate", "inspect"))):
        command._help_option = None


@cache
def trained(algorithm: str = "logit", kind: str = "str", seed: int = 0) -> PromptBoostingClassifier:
    kinds = [next(KINDS[word] for word in text.split() if word in KINDS) for text in TEXTS]
    labels: list[Any] = [LABELS[kind][number] for number in kinds]
    if algorithm == "several labels":
        # one label that some have, one that all have, and those of the classes
        algorithm = "logit"
        labels = [["all", label, *["odd"] * (row % 2)] for row, label in enumerate(labels)]
    classifier = PromptBoostingClassifier(
        "deterministic", prompts=PROMPTS, algorithm=algorithm, n_estimators=8, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "label 'all': on all training texts")
        return classifier.fit(TEXTS, labels)


def saved_model(algorithm: str = "logit", kind: str = "str") -> Model:
    classifier = trained(algorithm, kind)
    return Model(
        classes=classifier.classes_,
        prompts=classifier.prompts_,
        ensemble=classifier.ensemble_,
        token_bytes=classifier.token_bytes_,
        identity=classifier.lm_identity_,
        top_k=classifier.top_k_,
        summary=classifier.training_summary_,
    )


def good_file(algorithm: str = "logit") -> tuple[bytes, str, bytes]:
    """The bytes of a saved model, its JSON and its arrays."""
    return _saved(algorithm)


@cache  # one entry, whether the algorithm is named or not
def _saved(algorithm: str) -> tuple[bytes, str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        trained(algorithm).save(path)
        with zipfile.ZipFile(path) as archive:
            text, packed = archive.read("model.json").decode(), archive.read("arrays.npz")
        return path.read_bytes(), text, packed


def description(algorithm: str = "logit") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(good_file(algorithm)[1])
    return found


def arrays(algorithm: str = "logit") -> dict[str, Any]:
    with np.load(io.BytesIO(good_file(algorithm)[2])) as loaded:
        return dict(loaded)


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression, compresslevel=1) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return packed.getvalue()


def npz(**named: Any) -> bytes:
    packed = io.BytesIO()
    np.savez_compressed(packed, **named)
    return packed.getvalue()


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """An array file with a header of one's own wording."""
    line = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(line)) + line + data


def file_of(
    described: Any = None, packed: bytes | None = None, *, algorithm: str = "logit"
) -> bytes:
    """A model file of which something was changed."""
    _, good_json, good_arrays = good_file(algorithm)
    text = good_json if described is None else described
    text = text if isinstance(text, str | bytes) else json.dumps(text)
    text = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return zipped({"model.json": text, "arrays.npz": good_arrays if packed is None else packed})


def described(**changes: Any) -> bytes:
    return file_of(description() | changes)


def with_array(algorithm: str = "logit", **changes: Any) -> bytes:
    return file_of(packed=npz(**(arrays(algorithm) | changes)), algorithm=algorithm)


def with_member(name: str, data: bytes) -> bytes:
    """A model file with one array file replaced by raw bytes, or added."""
    with zipfile.ZipFile(io.BytesIO(good_file()[2])) as archive:
        members = {entry: archive.read(entry) for entry in archive.namelist()}
    return file_of(packed=zipped(members | {name: data}))


def read_bytes(folder: Path, data: bytes) -> Model:
    path = folder / "some.blackbox"
    path.write_bytes(data)
    return read_model(path)


def answers(model: Model, seed: int = 0) -> np.ndarray:
    """Probabilities for the same made-up answers of an LM."""
    rng = np.random.default_rng(seed)
    matrices = [
        np.maximum(rng.uniform(-20, 0, (5, len(reading.token_ids))), reading.floor).astype("f4")
        for reading in model.ensemble.readings
    ]
    return model.ensemble.probabilities(model.ensemble.decision(matrices))


def assert_same(one: Model, other: Model) -> None:
    np.testing.assert_array_equal(one.classes, other.classes)
    np.testing.assert_array_equal(answers(one), answers(other))
    for reading, counterpart in zip(one.ensemble.readings, other.ensemble.readings, strict=True):
        np.testing.assert_array_equal(reading.token_ids, counterpart.token_ids)
    for name in ("prompts", "identity", "top_k", "token_bytes", "summary"):
        assert getattr(one, name) == getattr(other, name)


def assert_refused(folder: Path, data: bytes, *words: str) -> str:
    with pytest.raises(ModelFileError) as caught:
        read_bytes(folder, data)
    message = str(caught.value)
    assert message.count("some.blackbox") == 1
    assert len(message.splitlines()) == 1
    assert len(message) < 500
    for word in words:
        assert word in message
    return message


def peak_of(work: Callable[[], object]) -> int:
    """Bytes of memory that a call takes at most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class TestRoundTrip:
    @pytest.mark.parametrize("kind", sorted(LABELS))
    @pytest.mark.parametrize("algorithm", ["logit", "samme"])
    def test_a_loaded_model_answers_to_the_last_bit_as_the_saved_one(
        self, tmp_path: Path, algorithm: str, kind: str
    ) -> None:
        classifier = trained(algorithm, kind)
        classifier.save(tmp_path / "model.blackbox")
        loaded = load_model(tmp_path / "model.blackbox")
        assert loaded.algorithm == algorithm
        assert loaded.classes_.tolist() == classifier.classes_.tolist()
        assert loaded.classes_.dtype == classifier.classes_.dtype
        np.testing.assert_array_equal(loaded.predict_proba(NEW), classifier.predict_proba(NEW))
        np.testing.assert_array_equal(loaded.predict(NEW), classifier.predict(NEW))
        np.testing.assert_array_equal(loaded.transform(NEW), classifier.transform(NEW))
        for ours, theirs in zip(
            loaded.staged_predict(NEW), classifier.staged_predict(NEW), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
        assert loaded.get_feature_names_out().tolist() == list(classifier.get_feature_names_out())
        assert loaded.training_summary_ == classifier.training_summary_

    @pytest.mark.parametrize("algorithm", ["logit", "samme"])
    def test_the_same_seed_writes_the_same_bytes_and_so_does_a_loaded_model(
        self, tmp_path: Path, algorithm: str
    ) -> None:
        for name in ("one", "other"):
            trained.__wrapped__(algorithm).save(tmp_path / name)
        load_model(tmp_path / "one").save(tmp_path / "again")
        first = (tmp_path / "one").read_bytes()
        assert first == (tmp_path / "other").read_bytes() == (tmp_path / "again").read_bytes()

    def test_a_small_model_is_a_small_file(self, tmp_path: Path) -> None:
        trained().save(tmp_path / "model")
        assert (tmp_path / "model").stat().st_size < 100_000

    def test_pairs_keep_their_prompts(self, tmp_path: Path) -> None:
        pairs = [(text, words) for text in ("lovely", "dull") for words in ("day", "night", "tea")]
        classifier = PromptBoostingClassifier(
            "deterministic", prompts=["{text} and {text_pair}: {mask}"], n_estimators=3, cv=None
        ).fit(pairs, ["a", "a", "a", "b", "b", "b"])
        classifier.save(tmp_path / "model")
        loaded = load_model(tmp_path / "model")
        np.testing.assert_array_equal(loaded.predict_proba(pairs), classifier.predict_proba(pairs))

    def test_labels_out_of_a_frame_s_object_column_are_kept(self, tmp_path: Path) -> None:
        model = saved_model(kind="str")
        for values in (["a", "b", "c"], [np.str_("a"), np.str_("b"), np.str_("c")]):
            write_model(tmp_path / "model", replace(model, classes=np.array(values, object)))
            assert read_model(tmp_path / "model").classes.tolist() == ["a", "b", "c"]

    @pytest.mark.parametrize(
        "values", [["half \ud800", "\udfff"], ["\x1b[31m", "</script>"], ["\u2028", "\x7f"]]
    )
    def test_awkward_text_comes_back_as_it_was(self, tmp_path: Path, values: list[str]) -> None:
        model = saved_model("logit", "bool")
        write_model(tmp_path / "model", replace(model, classes=np.array(values)))
        assert read_model(tmp_path / "model").classes.tolist() == values

    @pytest.mark.parametrize(
        ("classes", "words"),
        [
            (np.array(["a", 1, 2], object), "int, str"),
            (np.array([b"a", b"b", b"c"]), "bytes"),
            (np.array([1, 2, None], object), "NoneType"),
            (np.array([1j, 2, 3]), "complex"),
        ],
    )
    def test_labels_of_other_types_are_refused_by_name(
        self, tmp_path: Path, classes: Any, words: str
    ) -> None:
        with pytest.raises(ModelFileError, match=words):
            write_model(tmp_path / "model", replace(saved_model(), classes=classes))
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "changes",
        [
            {"classes": np.array([1.0, np.nan, 2.0])},
            {"classes": np.array([1.0, np.inf, 2.0])},
            {"classes": np.array(["a", "b"])},
            {"summary": {"loss": float("nan")}},
            {"token_bytes": {}},
            {"top_k": 0},
        ],
    )
    def test_what_could_not_be_read_again_is_not_written(
        self, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        path = tmp_path / "model"
        path.write_bytes(b"what was here before")
        with pytest.raises(ModelFileError):
            write_model(path, replace(saved_model(), **changes))
        assert path.read_bytes() == b"what was here before"
        assert list(tmp_path.iterdir()) == [path]


class TestTheFile:
    def test_it_is_a_zip_of_exactly_readable_json_and_plain_arrays(self, tmp_path: Path) -> None:
        trained().save(tmp_path / "model")
        with zipfile.ZipFile(tmp_path / "model") as archive:
            assert sorted(archive.namelist()) == ["arrays.npz", "model.json"]
            text = archive.read("model.json").decode("utf-8")
            packed = archive.read("arrays.npz")
        assert "schön" in text
        assert len(text.splitlines()) > 20
        with np.load(io.BytesIO(packed), allow_pickle=False) as loaded:
            for name in loaded.files:
                assert loaded[name].dtype.kind in "if"

    def test_its_json_says_what_a_reader_wants_to_know(self) -> None:
        told = description()
        assert told["format_version"] == FORMAT_VERSION
        assert told["classes"] == {"type": "str", "values": sorted(LABELS["str"])}
        assert [prompt["template"] for prompt in told["prompts"]] == PROMPTS
        assert told["algorithm"] == "logit"
        assert told["language_model"]["provider"] == "deterministic"
        assert told["language_model"]["model"] == "seed-0-vocabulary-512"
        assert set(told["libraries"]) == {"python", "promptboosting", "numpy", "scikit-learn"}
        assert told["training"]["n_rows"] == len(TEXTS)
        for entry in told["tokens"].values():
            assert bytes.fromhex(entry["bytes"]).decode() == entry["text"]

    def test_it_holds_no_pickle(self) -> None:
        with zipfile.ZipFile(io.BytesIO(good_file()[2])) as archive:
            for name in archive.namelist():
                data = archive.read(name)
                assert data.startswith(b"\x93NUMPY\x01\x00")
                assert b"|O" not in data[:128]

    def test_options_and_addresses_are_not_in_it(self, tmp_path: Path) -> None:
        classifier = PromptBoostingClassifier(
            "deterministic",
            backend_options={"seed": 3, "context_length": 1234},
            prompts=PROMPTS,
            n_estimators=2,
        ).fit(TEXTS, [text.split()[-2] for text in TEXTS])
        classifier.save(tmp_path / "model")
        with zipfile.ZipFile(tmp_path / "model") as archive:
            text = archive.read("model.json").decode()
        assert "context_length" not in text
        assert "1234" not in text
        assert str(tmp_path) not in text

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"order": lambda a: a["order"][:0]}, "another type or shape"),
            ({"order": lambda a: a["order"] * 0}, "the order of prompts"),
            ({"low": lambda a: a["high"] + 1}, "a lower limit above"),
            ({"leads": lambda a: a["leads"] * np.nan}, "another type or shape"),
        ],
    )
    def test_bounds_that_make_no_sense_are_refused(
        self, tmp_path: Path, changes: dict[str, Any], message: str
    ) -> None:
        changed = {name: change(arrays()) for name, change in changes.items()}
        assert_refused(tmp_path, with_array(**changed), message)

    def test_bounds_that_votes_exceed_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "model"
        path.write_bytes(with_array("samme", high=arrays("samme")["high"] / 2))
        with pytest.raises(ModelFileError, match="bounds that votes exceed"):
            read_model(path)

    @pytest.mark.parametrize("version", [0, 1, 3, 12, 999, "1", None, True, 1.0, [1], "x" * 10_000])
    def test_another_format_version_is_refused_by_its_name(
        self, tmp_path: Path, version: Any
    ) -> None:
        message = assert_refused(tmp_path, described(format_version=version), "format version")
        assert repr(version)[:20] in message
        assert "update promptboosting" in message

    @pytest.mark.parametrize("format_", ["another format", None, ["promptboosting model"]])
    def test_another_format_is_refused(self, tmp_path: Path, format_: Any) -> None:
        assert_refused(tmp_path, described(format=format_), "not a saved model")


class TestDamage:
    @pytest.mark.parametrize(
        "content",
        [b"", b"text", b"PK\x05\x06" + bytes(18), b"PK\x03\x04", b"\x93NUMPY", bytes(999)],
    )
    def test_what_is_no_model_is_refused(self, tmp_path: Path, content: bytes) -> None:
        assert_refused(tmp_path, content)

    @pytest.mark.posix
    def test_a_missing_file_a_folder_and_a_pipe_are_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").write_text("")
        for name in ("missing", "folder", "pipe", "file/below", "x" * 300, "nul\0"):
            with pytest.raises(ModelFileError):
                read_model(tmp_path / name)

    @pytest.mark.parametrize("algorithm", ["logit", "samme"])
    def test_every_truncation_is_refused(self, tmp_path: Path, algorithm: str) -> None:
        path = tmp_path / "model"
        path.write_bytes(good_file(algorithm)[0])
        for length in reversed(range(path.stat().st_size)):
            os.truncate(path, length)
            with pytest.raises(ModelFileError):
                read_model(path)

    @pytest.mark.parametrize("algorithm", ["logit", "samme"])
    def test_a_flipped_byte_is_refused_or_changes_nothing(
        self, tmp_path: Path, algorithm: str
    ) -> None:
        data = good_file(algorithm)[0]
        original = read_bytes(tmp_path, data)
        rng = np.random.default_rng(0)
        refused = 0
        for place in rng.integers(len(data), size=300).tolist():
            flipped = bytearray(data)
            flipped[place] ^= int(rng.integers(1, 256))
            try:
                assert_same(read_bytes(tmp_path, bytes(flipped)), original)
            except ModelFileError:
                refused += 1
        assert refused > 200

    def test_a_flipped_byte_inside_the_arrays_is_refused_or_leaves_a_usable_model(
        self, tmp_path: Path
    ) -> None:
        packed = good_file()[2]
        rng = np.random.default_rng(1)
        for place in rng.integers(len(packed), size=150).tolist():
            flipped = bytearray(packed)
            flipped[place] ^= int(rng.integers(1, 256))
            usable_or_refused(tmp_path, file_of(packed=bytes(flipped)))

    def test_trailing_bytes_and_a_comment_do_no_harm(self, tmp_path: Path) -> None:
        data = good_file()[0]
        original = read_bytes(tmp_path, data)
        for more in (b"\0", b"x" * 1000, data):
            try:
                assert_same(read_bytes(tmp_path, data + more), original)
            except ModelFileError:
                continue


def usable_or_refused(folder: Path, data: bytes) -> Model | None:
    """A file is refused, or gives a model that answers with probabilities and can be shown."""
    try:
        model = read_bytes(folder, data)
    except ModelFileError:
        return None
    several = model.several_labels
    assert len(set(model.classes.tolist())) == len(model.classes) >= 2 - several
    with np.errstate(all="raise", under="ignore"):
        probabilities = answers(model)
    assert probabilities.shape == (5, len(model.classes))
    assert np.isfinite(probabilities).all()
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    if not several:
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    json.dumps(model.summary, allow_nan=False, indent=2)
    assert describe_learners(model)
    write_model(folder / "again", model)
    assert_same(read_model(folder / "again"), model)
    return model


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in JSON data."""
    yield path
    items: Any = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    for key, value in items:
        yield from places(value, (*path, key))


def place_in(tree: dict[str, Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """The way to some value, each part of the file as often as the others."""
    ways = {key: [(key, *path) for path in places(inner)] for key, inner in tree.items()}
    return st.sampled_from(sorted(ways)).flatmap(lambda key: st.sampled_from(ways[key]))


def changed(tree: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    tree = json.loads(json.dumps(tree))
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    change(inner, path[-1])
    return tree


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 1e308, -1e308, 5e-324, 0.0, -0.0]),
    st.text(st.characters(), max_size=8),
    st.sampled_from(
        ["{text} {mask}", "{text}", "{text_pair}", "logit", "samme", "int", "00", "\0"]
    ),
)
JSON_DATA = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
MANY = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class TestMutations:
    @MANY
    @given(data=st.data())
    def test_json_with_another_value_somewhere_is_refused_or_usable(
        self, tmp_path: Path, data: st.DataObject
    ) -> None:
        algorithm = data.draw(st.sampled_from(["logit", "samme", "several labels"]))
        tree = description(algorithm)
        path = data.draw(place_in(tree))
        value = data.draw(JSON_DATA)
        tree = changed(tree, path, lambda inner, key: inner.__setitem__(key, value))
        usable_or_refused(tmp_path, file_of(tree, algorithm=algorithm))

    @MANY
    @given(data=st.data())
    def test_json_with_something_less_or_more_is_refused_or_usable(
        self, tmp_path: Path, data: st.DataObject
    ) -> None:
        algorithm = data.draw(st.sampled_from(["logit", "several labels"]))
        tree = description(algorithm)
        path = data.draw(place_in(tree))
        if data.draw(st.booleans()):
            tree = changed(tree, path, lambda inner, key: inner.__delitem__(key))
        else:
            more = data.draw(JSON_DATA)
            name = data.draw(st.text(max_size=5))
            tree = changed(
                tree,
                path,
                lambda inner, key: (
                    inner.append(inner[key])
                    if isinstance(inner, list)
                    else inner.__setitem__(name, more)
                ),
            )
        usable_or_refused(tmp_path, file_of(tree, algorithm=algorithm))

    @MANY
    @given(data=st.data())
    def test_arrays_with_other_values_types_or_shapes_are_refused_or_usable(
        self, tmp_path: Path, data: st.DataObject
    ) -> None:
        algorithm = data.draw(st.sampled_from(["logit", "samme", "several labels"]))
        named = arrays(algorithm)
        name = data.draw(st.sampled_from(sorted(named)))
        array = named[name].copy()
        kind = data.draw(st.sampled_from(["value", "fill", "dtype", "shape", "missing"]))
        if kind in ("value", "fill"):
            many = [np.inf, np.nan, -1, 0, 1, 2, 127, -128, 2**31 - 1, 1e30, -1e30, 1e-40, 1e300]
            value = np.float64(data.draw(st.sampled_from(many)))
            place = data.draw(st.integers(0, array.size - 1))
            with np.errstate(all="ignore"):
                array.flat[place if kind == "value" else slice(None)] = value.astype(array.dtype)
        elif kind == "dtype":
            types = ["f2", "f4", "f8", "i1", "i4", "i8", "u4", ">i4", ">f8", "c8", "?", "U4", "V8"]
            with np.errstate(all="ignore"):
                array = array.astype(np.float64).astype(data.draw(st.sampled_from(types)))
        elif kind == "shape":
            changes: list[Callable[[Any], Any]] = [
                lambda a: a[:0],
                lambda a: a[1:],
                lambda a: a[None],
                lambda a: a[..., None],
                lambda a: a.reshape(-1),
                lambda a: np.concatenate([a, a]),
                lambda a: a.sum(),
                lambda a: a[::-1],
                np.transpose,
                np.asfortranarray,
            ]
            array = data.draw(st.sampled_from(changes))(array)
        named[name] = array
        if kind == "missing":
            del named[name]
        usable_or_refused(tmp_path, file_of(packed=npz(**named), algorithm=algorithm))


@pytest.mark.timeout(60)
class TestHostileFiles:
    """None of these may take long, or much memory, or end in another exception."""

    @pytest.mark.parametrize(
        ("name", "header", "data"),
        [
            ("huge", "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }", b""),
            ("square", "{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296,)*2, }", b""),
            (
                "wraps",
                "{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296), }",
                b"",
            ),
            ("weightless", "{'descr': '|V0', 'fortran_order': False, 'shape': (10**12,), }", b""),
            (
                "no bytes",
                "{'descr': '|S0', 'fortran_order': False, 'shape': (1000000000000,), }",
                b"",
            ),
            (
                "empty and wide",
                "{'descr': '<i4', 'fortran_order': False, 'shape': (0, 1000000000000, 9), }",
                b"",
            ),
            ("negative", "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1), }", bytes(8)),
            ("object", "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"\x80\x04N."),
            (
                "object inside",
                "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }",
                b"\x80\x04N.....",
            ),
            (
                "wide items",
                "{'descr': ('<f8', (1000000000,)), 'fortran_order': False, 'shape': (), }",
                b"",
            ),
            ("nested", "(" * 4000 + ")" * 4000, b""),
            ("signs", "-" * 9000 + "1", b""),
            ("long", "{'descr': '<f8', 'shape': (" + "1," * 20000 + ")}", b""),
            ("code", "__import__('os').system('false')", b""),
            ("keys", "{'descr': '<f8'}", b""),
            (
                "dims",
                "{'descr': '<f8', 'fortran_order': False, 'shape': (" + "1," * 90 + ")}",
                b"8",
            ),
            ("words", "{'descr': '<f8', 'fortran_order': False, 'shape': ('a',)}", b""),
            ("unclosed", "{'descr': '''<f8", b""),
            ("indent", " {'descr':\n  1\n 2 3", b""),
        ],
    )
    def test_an_array_that_lies_about_itself_is_refused(
        self, tmp_path: Path, name: str, header: str, data: bytes
    ) -> None:
        def read() -> None:
            assert_refused(tmp_path, with_member("weight.npy", npy(header, data)))

        assert peak_of(read) < 20 << 20, name

    @pytest.mark.parametrize("version", [b"\x00\x00", b"\x02\x00", b"\x03\x00", b"\xff\xff"])
    def test_array_files_of_other_versions_are_refused(
        self, tmp_path: Path, version: bytes
    ) -> None:
        member = npy("{'descr': '<f8', 'fortran_order': False, 'shape': ()}", bytes(8), version)
        assert_refused(tmp_path, with_member("initial.npy", member), "initial")

    def test_a_pickle_in_the_arrays_is_never_loaded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        packed = io.BytesIO()
        hostile: Any = {"weight": np.array([{"a": 1}], object)}
        np.savez(packed, allow_pickle=True, **(arrays() | hostile))
        monkeypatch.setattr("pickle.load", lambda *a, **k: pytest.fail("a pickle was loaded"))
        monkeypatch.setattr("pickle.loads", lambda *a, **k: pytest.fail("a pickle was loaded"))
        assert_refused(tmp_path, file_of(packed=packed.getvalue()), "weight")

    def test_a_zip_bomb_is_refused_before_it_unpacks(self, tmp_path: Path) -> None:
        zeros = bytes(70 << 20)
        bomb = zipped({"model.json": zeros, "arrays.npz": good_file()[2]})
        inner = file_of(packed=zipped({"weight.npy": zeros}))
        outer = zipped({"model.json": b"{}", "arrays.npz": zeros})
        del zeros
        assert max(map(len, (bomb, inner, outer))) < 1 << 20
        for data in (bomb, inner, outer):
            assert peak_of(lambda data=data: assert_refused(tmp_path, data)) < 100 << 20

    def test_a_zip_bomb_that_understates_its_size_is_refused(self, tmp_path: Path) -> None:
        bomb = zipped({"model.json": bytes(100 << 20), "arrays.npz": good_file()[2]})
        size = struct.pack("<I", 100 << 20)
        assert size in bomb
        for claim in (10, 8 << 20, 0xFFFFFFFF):
            lying = bomb.replace(size, struct.pack("<I", claim))
            assert peak_of(lambda data=lying: assert_refused(tmp_path, data)) < 100 << 20

    def test_arrays_of_many_zeros_don_t_grow_while_they_are_checked(self, tmp_path: Path) -> None:
        many = archive._MAX_ARRAYS // 8
        columns = np.zeros((1, len(LABELS["str"]), many // 3), np.int32)
        data = with_array(
            prompt=np.zeros(1, np.int32),
            weight=np.ones(1),
            columns=columns,
            token_weights=columns.astype(np.float32),
        )
        assert len(data) < 1 << 20
        assert peak_of(lambda: read_if_possible(tmp_path, data)) < 400 << 20

    @pytest.mark.parametrize("zip64", [False, True])
    @pytest.mark.parametrize("inside", [False, True])
    def test_a_million_entries_are_refused_without_being_listed(
        self, tmp_path: Path, inside: bool, zip64: bool
    ) -> None:
        crowd = crowded(10**6, zip64=zip64)
        data = file_of(packed=crowd) if inside else crowd
        tail = b"the end of the file is looked at, not the beginning"
        for content in (data, data if inside else data + tail):
            started = time.perf_counter()
            read = peak_of(lambda content=content: assert_refused(tmp_path, content))
            assert time.perf_counter() - started < 10
            assert read < 150 << 20

    @pytest.mark.parametrize(
        "text",
        [
            "[" * 10**6,
            '{"a":' * 10**5,
            "[" * 900 + "]" * 900,
            "",
            "null",
            "3",
            '"promptboosting model"',
            "{",
            "NaN",
            "9" * 10_000,
            b"\xff\xfe\x00",
            b"\xef\xbb\xbf{}",
            "\0" * 10,
        ],
        ids=lambda text: str(text[:6]),
    )
    def test_json_that_is_deep_broken_or_no_object_is_refused(
        self, tmp_path: Path, text: str | bytes
    ) -> None:
        assert_refused(tmp_path, file_of(text))

    @pytest.mark.parametrize("deep", [50, 500, 900, 5000])
    def test_a_deep_training_summary_is_refused(self, tmp_path: Path, deep: int) -> None:
        text = json.dumps(description() | {"training": {"deep": "HERE"}})
        assert_refused(tmp_path, file_of(text.replace('"HERE"', "[" * deep + "]" * deep)))

    @pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
    @pytest.mark.parametrize("place", ["floor", "training", "class"])
    def test_numbers_that_are_none_are_refused(
        self, tmp_path: Path, place: str, value: str
    ) -> None:
        tree = description()
        if place == "floor":
            tree["prompts"][0]["floor"] = "HERE"
        elif place == "training":
            tree["training"]["cv_log_loss"] = "HERE"
        else:
            tree["classes"] = {"type": "float", "values": [1.0, 2.0, "HERE"]}
        text = json.dumps(tree)
        assert text.count('"HERE"') == 1
        assert_refused(tmp_path, file_of(text.replace('"HERE"', value)))

    @pytest.mark.parametrize(
        "classes",
        [
            {"type": "str", "values": ["a", "a", "b"]},
            {"type": "str", "values": ["a", "a\0", "b"]},
            {"type": "str", "values": ["a", "b"]},
            {"type": "str", "values": ["a", "b", "c", "d"]},
            {"type": "str", "values": ["a"]},
            {"type": "str", "values": []},
            {"type": "str", "values": "abc"},
            {"type": "str", "values": ["a", "b", 3]},
            {"type": "str", "values": ["a", "b", None]},
            {"type": "int", "values": [1, 2, True]},
            {"type": "int", "values": [1, 2, 2**70]},
            {"type": "int", "values": [-1, 0, 2**63]},
            {"type": "int", "values": [1, 2, 3.0]},
            {"type": "bool", "values": [True, False, 1]},
            {"type": "object", "values": ["a", "b", "c"]},
            {"type": ["str"], "values": ["a", "b", "c"]},
            {"values": ["a", "b", "c"]},
            ["a", "b", "c"],
            None,
        ],
    )
    def test_classes_that_can_t_be_are_refused(self, tmp_path: Path, classes: Any) -> None:
        assert_refused(tmp_path, described(classes=classes))

    def test_more_classes_than_any_model_has_are_refused(self, tmp_path: Path) -> None:
        many = {"type": "int", "values": list(range(10**5))}
        assert_refused(tmp_path, described(classes=many), "classes")

    @pytest.mark.parametrize(
        "prompts",
        [
            [],
            [{"template": PROMPTS[0], "floor": -9.0}] * 2,
            [{"template": PROMPTS[0], "floor": -9.0}],
            [
                {"template": "{text} {mask}", "floor": -9.0},
                {"template": "{text} {text_pair} {mask}", "floor": -9.0},
            ],
            [{"template": "no place for a text {mask}", "floor": -9.0}] * 2,
            [{"template": "{text.__class__} {mask}", "floor": -9.0}] * 2,
            [{"template": PROMPTS[0], "floor": 1.0}, {"template": PROMPTS[1], "floor": -9.0}],
            [{"template": PROMPTS[0], "floor": -1e30}, {"template": PROMPTS[1], "floor": -9.0}],
            [{"template": PROMPTS[0], "floor": True}, {"template": PROMPTS[1], "floor": -9.0}],
            [{"template": PROMPTS[0], "floor": "0"}, {"template": PROMPTS[1], "floor": -9.0}],
            [{"template": 7, "floor": -9.0}, {"template": PROMPTS[1], "floor": -9.0}],
            [PROMPTS[0], PROMPTS[1]],
            {"0": PROMPTS[0]},
            [{"template": f"{{text}} {n} {{mask}}", "floor": -9.0} for n in range(2000)],
        ],
        ids=range(14),
    )
    def test_prompts_that_can_t_be_are_refused(self, tmp_path: Path, prompts: Any) -> None:
        assert_refused(tmp_path, described(prompts=prompts))

    def test_a_prompt_that_repeats_its_text_too_often_is_refused(self, tmp_path: Path) -> None:
        prompt = {"template": "{text} " * 1000 + "{mask}", "floor": -9.0}
        (tmp_path / "model").write_bytes(described(prompts=[prompt]))
        with pytest.raises(ModelFileError, match="1000 places for one text; 8 are the most"):
            read_model(tmp_path / "model")

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("columns", lambda a: a + 10_000),
            ("columns", lambda a: a - 1000),
            ("columns", lambda a: a.astype(np.int64)),
            ("columns", lambda a: a[:, :2]),
            ("columns", lambda a: a[:, :, :0]),
            ("columns", lambda a: a[:-1]),
            ("token_weights", lambda a: np.full_like(a, 1.5)),
            ("token_weights", lambda a: np.full_like(a, np.nan)),
            ("token_weights", lambda a: a.astype(np.int8)),
            ("prompt", lambda a: a + 7),
            ("prompt", lambda a: a - 7),
            ("prompt", lambda a: a[:0]),
            ("weight", lambda a: a * np.nan),
            ("weight", lambda a: a + 1e300),
            ("weight", lambda a: a.astype(np.float32)),
            ("initial", lambda a: a + np.inf),
            ("initial", lambda a: a[:2]),
            ("token_ids_0", lambda a: a[::-1]),
            ("token_ids_0", lambda a: a - 10_000),
            ("token_ids_0", np.zeros_like),
            ("token_ids_0", lambda a: a[:0]),
            ("token_ids_0", lambda a: a + 1),
            ("mean_1", lambda a: a[:-1]),
            ("mean_1", lambda a: a * np.nan),
            ("mean_1", lambda a: a.astype(np.float64)),
            ("scale_1", np.zeros_like),
            ("scale_1", lambda a: -a),
            ("scale_1", lambda a: a * np.float32(1e-40)),
            ("scale_1", lambda a: a.astype(">f4")),
        ],
    )
    def test_arrays_out_of_range_or_of_another_type_or_shape_are_refused(
        self, tmp_path: Path, name: str, change: Callable[[Any], Any]
    ) -> None:
        assert_refused(tmp_path, with_array(**{name: change(arrays()[name])}))

    def test_samme_s_weights_must_be_positive(self, tmp_path: Path) -> None:
        weight = arrays("samme")["weight"]
        for value in (0.0, -1.0):
            assert_refused(tmp_path, with_array("samme", weight=np.full_like(weight, value)))

    def test_missing_and_unknown_arrays_are_refused(self, tmp_path: Path) -> None:
        for name in arrays().keys() - {"row_digests"}:  # a model without them is in no library
            fewer = {key: array for key, array in arrays().items() if key != name}
            assert_refused(tmp_path, file_of(packed=npz(**fewer)))
        assert_refused(tmp_path, with_array(more=np.zeros(3)), "more")
        assert_refused(tmp_path, with_member("../../evil.npy", npy("{}")))
        assert_refused(tmp_path, with_member("weight", b"not an array"))

    @pytest.mark.parametrize(
        "names",
        [
            ["../model.json", "arrays.npz"],
            ["model.json", "arrays.npz", "../x"],
            ["model.json", "arrays.npz", "/etc/x"],
            ["model.json", "arrays.npz", "more.pkl"],
            ["model.json", "sub/arrays.npz"],
            ["model.json"],
            ["MODEL.JSON", "arrays.npz"],
        ],
    )
    def test_other_entries_are_refused_and_nothing_is_unpacked(
        self, tmp_path: Path, names: list[str]
    ) -> None:
        contents = [good_file()[1].encode(), good_file()[2], b"more"]
        data = zipped(dict(zip(names, contents, strict=False)))
        assert_refused(tmp_path, data)
        assert [path.name for path in tmp_path.iterdir()] == ["some.blackbox"]

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_an_entry_that_stands_twice_is_refused(self, tmp_path: Path) -> None:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name in ("model.json", "model.json", "arrays.npz"):
                archive.writestr(name, good_file()[1])
        assert_refused(tmp_path, packed.getvalue())

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_other_ways_of_compression_are_refused(self, tmp_path: Path, method: int) -> None:
        entries = {"model.json": good_file()[1].encode(), "arrays.npz": good_file()[2]}
        assert_refused(tmp_path, zipped(entries, method), "compress")

    def test_a_stored_file_loads_too(self, tmp_path: Path) -> None:
        entries = {"model.json": good_file()[1].encode(), "arrays.npz": good_file()[2]}
        original = read_bytes(tmp_path, good_file()[0])
        assert_same(read_bytes(tmp_path, zipped(entries, zipfile.ZIP_STORED)), original)

    def test_names_of_classes_that_would_fill_memory_are_refused(self, tmp_path: Path) -> None:
        # numpy gives every name the room of the longest
        values = ["x" * 10**6, *map(str, range(9_000))]
        data = described(classes={"type": "str", "values": values})
        assert peak_of(lambda: assert_refused(tmp_path, data, "too long")) < 50 << 20

    def test_a_file_larger_than_any_model_is_not_read(self, tmp_path: Path) -> None:
        path = tmp_path / "large"
        with path.open("wb") as file:
            file.truncate(10**12)
        with pytest.raises(ModelFileError, match="larger than any model"):
            read_model(path)

    @pytest.mark.parametrize(
        "identity",
        [
            {"provider": "deterministic", "endpoint": "x"},
            {"provider": "deterministic", "endpoint": "x", "model": "m", "base_url": "http://x"},
            {"provider": "deterministic", "endpoint": "x", "model": 7},
            {"provider": "deterministic", "endpoint": "x", "model": ["smollm2-135m"]},
            {"provider": None, "endpoint": "x", "model": "m"},
            {"provider": "p", "endpoint": "x", "model": "m", "extra": {"temperature": 1}},
            {"provider": "p", "endpoint": "x", "model": "m", "extra": {"a": {"b": "c"}}},
            {"provider": "p", "endpoint": "x", "model": "m", "extra": "text"},
            {"provider": "p", "endpoint": "x", "model": "m" * 10**6},
            "deterministic",
            None,
        ],
        ids=range(11),
    )
    def test_an_identity_with_more_than_texts_is_refused(
        self, tmp_path: Path, identity: Any
    ) -> None:
        assert_refused(tmp_path, described(language_model=identity))


def read_if_possible(folder: Path, data: bytes) -> None:
    try:
        read_bytes(folder, data)
    except ModelFileError:
        return


def crowded(n: int, *, zip64: bool) -> bytes:
    """A zip whose directory lists one small entry n times."""
    name, data = b"x", b"hello"
    crc = zlib.crc32(data)
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, crc, 5, 5, 1, 0) + name + data
    central = struct.pack(
        "<4s4B4H3L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 33, crc, 5, 5, 1, 0, 0, 0, 0, 0, 0
    )
    directory = (central + name) * n
    start, size = len(local), len(directory)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, min(n, 65535), min(n, 65535), size, start, 0)
    if zip64:
        # the small record lies, the large one counts
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, 100, 0, 0)
        record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, n, n, size, start)
        end = record + struct.pack("<4sLQL", b"PK\6\7", 0, start + size, 1) + end
    return local + directory + end


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Starting a backend, a process or a connection fails the test; lists the files opened."""
    good_file()  # is trained before
    opened: list[str] = []
    really_open = io.open

    def open_and_note(file: Any, *rest: Any, **options: Any) -> Any:
        opened.append(str(file))
        return really_open(file, *rest, **options)

    def fail(what: str) -> Callable[..., None]:
        return lambda *args, **options: pytest.fail(f"{what} {args}")

    monkeypatch.setattr(io, "open", open_and_note)
    monkeypatch.setattr("builtins.open", open_and_note)
    monkeypatch.setattr(socket.socket, "connect", fail("connected to"))
    monkeypatch.setattr(socket, "getaddrinfo", fail("looked up"))
    monkeypatch.setattr(subprocess, "Popen", fail("started"))
    monkeypatch.setattr(os, "system", fail("ran"))
    monkeypatch.setattr(backends, "load", fail("started a backend"))
    monkeypatch.setattr(backends, "_construct", fail("made a backend"))
    return opened


def identity_of(**fields: Any) -> dict[str, Any]:
    plain = {"provider": "openai", "endpoint": "completions", "model": "davinci-002"}
    return description()["language_model"] | plain | fields


HOSTILE = {
    "an API": identity_of,
    "an API with an address": lambda: identity_of(extra={"base_url": "http://evil.example/v1"}),
    "a path": lambda: identity_of(provider="llamacpp", model="/etc/passwd"),
    "a path upwards": lambda: identity_of(provider="llamacpp", model="../../etc/passwd"),
    "a class": lambda: identity_of(provider="os:system", model="touch /tmp/evil"),
    "an address": lambda: identity_of(provider="llamacpp", model="http://evil.example/m.gguf"),
    "a near miss": lambda: identity_of(provider="LlamaCpp", model="SmolLM2-135M"),
    "nothing": lambda: identity_of(provider="", model=""),
}


class TestWhereTextsGo:
    @pytest.mark.parametrize("who", HOSTILE)
    def test_a_file_can_t_choose_who_gets_the_texts(
        self, tmp_path: Path, forbidden: list[str], who: str
    ) -> None:
        path = tmp_path / "model"
        path.write_bytes(described(language_model=HOSTILE[who]()))
        with pytest.raises(BackendError, match="--backend") as caught:
            load_model(path)
        assert len(str(caught.value).splitlines()) == 1
        assert {name for name in forbidden if name != str(path)} == set()

    @pytest.mark.parametrize(
        "more",
        [
            {"backend": "openai", "model": "x", "base_url": "http://evil.example"},
            {"backend_options": {"base_url": "http://evil.example", "trust_remote_code": True}},
        ],
    )
    def test_more_fields_in_a_file_are_never_options(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
    ) -> None:
        path = tmp_path / "model"
        path.write_bytes(described(**more))
        asked = []
        really_load = backends.load
        monkeypatch.setattr(
            backends, "load", lambda *a, **k: asked.append((a, k)) or really_load(*a, **k)
        )
        load_model(path).predict(NEW)
        assert asked == [(("deterministic",), {})]

    @pytest.mark.parametrize("provider", ["onnx", "llamacpp", "transformers"])
    def test_an_lm_of_the_catalogue_is_loaded_by_the_engine_of_the_training(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str
    ) -> None:
        asked = []

        def load(name: str, **options: Any) -> None:
            asked.append((name, options))
            raise BackendError("not here")

        told = identity_of(provider=provider, endpoint="any", model="smollm2-135m")
        (tmp_path / "model").write_bytes(described(language_model=told))
        monkeypatch.setattr(backends, "load", load)
        with pytest.raises(BackendError, match="not here"):
            load_model(tmp_path / "model").predict(NEW)
        assert asked == [(provider, {"model": "smollm2-135m"})]

    def test_loading_a_model_reaches_no_lm_until_it_is_used(
        self, tmp_path: Path, forbidden: list[str]
    ) -> None:
        path = tmp_path / "model"
        path.write_bytes(good_file()[0])
        loaded = load_model(path)
        assert loaded.classes_.tolist() == sorted(LABELS["str"])
        assert {name for name in forbidden if name != str(path)} == set()

    def test_a_catalogue_name_with_other_weights_is_refused_at_first_use(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = next(iter(CATALOGUE))
        real = DeterministicBackend()
        told = replace(
            real.identity, provider="llamacpp", model=name, weights_digest="0" * 64, extra={}
        )
        real.identity = replace(told, weights_digest="f" * 64)
        path = tmp_path / "model"
        path.write_bytes(described(language_model=told.as_dict()))
        monkeypatch.setattr(backends, "load", lambda *args, **options: real)
        monkeypatch.setattr(real, "score", lambda *args: pytest.fail("a text was sent"))
        monkeypatch.setattr(real, "next_token", lambda *args: pytest.fail("a text was sent"))
        loaded = load_model(path)
        with pytest.raises(BackendIdentityError, match="weights_digest"):
            loaded.predict_proba(NEW)

    def test_another_lm_is_refused_unless_it_is_allowed(self, tmp_path: Path) -> None:
        path = tmp_path / "model"
        trained().save(path)
        options = {"backend": "deterministic", "backend_options": {"seed": 5}}
        with pytest.raises(BackendIdentityError, match=r"seed-0.*seed-5.*--allow-other-lm"):
            load_model(path, **options).predict(NEW)
        allowed = load_model(path, **options, allow_other_lm=True)
        assert set(allowed.predict(NEW)) <= set(LABELS["str"])
        assert (allowed.predict_proba(NEW) != trained().predict_proba(NEW)).any()
        # that of a model that was trained since is refused again
        labels = [LABELS["str"][number % 3] for number in range(len(TEXTS))]
        again = pickle.loads(pickle.dumps(allowed.set_params(store=False).fit(TEXTS, labels)))
        with pytest.raises(BackendIdentityError, match=r"seed-5.*seed-0"):
            again.set_params(backend_options={"seed": 0}).predict(NEW)

    @pytest.mark.parametrize(
        ("then", "now", "told"),
        [
            ("engine 1.0", "engine 1.1", True),
            ("engine\x1b 1.0", "engine 1.1", True),
            ("engine 1.0", "engine 1.0", False),
            ("", "engine 1.1", False),
            ("engine 1.0", "", False),
        ],
    )
    def test_another_version_of_the_engine_is_told_and_not_refused(
        self,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        then: str,
        now: str,
        told: bool,
    ) -> None:
        lm = DeterministicBackend()
        path = tmp_path / "model"
        write_model(path, replace(saved_model(), identity=replace(lm.identity, engine=then)))
        assert read_model(path).identity.engine == then
        lm.identity = replace(lm.identity, engine=now)
        loaded = load_model(path, backend=lm)
        assert loaded.predict(NEW).tolist() == trained().predict(NEW).tolist()
        assert ("may differ" in caplog.text) is told
        assert "\x1b" not in caplog.text

    def test_the_command_asks_for_a_backend_in_one_line(self, tmp_path: Path) -> None:
        path = tmp_path / "model"
        hostile = identity_of(provider="open\x1b[31mai\n", model="\x9b2J\x07")
        path.write_bytes(described(language_model=hostile))
        data = tmp_path / "data.jsonl"
        label = description()["classes"]["values"][0]
        data.write_text(json.dumps({"text": "hello", "label": label}) + "\n")
        result = CliRunner().invoke(main, ["evaluate", str(path), str(data)], color=True)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1
        assert "--backend" in result.stderr
        assert not {"\x1b", "\x9b", "\x07"} & set(result.stderr)


class TestShowing:
    @pytest.mark.parametrize(
        "name",
        ["\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b2J", "<b>bold</b>", "a\rb", "\u202egnp"],
    )
    def test_inspect_escapes_names_that_would_steer_a_terminal(
        self, tmp_path: Path, name: str
    ) -> None:
        path = tmp_path / "model"
        tree = description()
        tree["classes"]["values"][1] = name
        tree["prompts"][0]["template"] = f"{{text}} {name} {{mask}}"
        tree["language_model"]["model"] = name
        next(iter(tree["tokens"].values()))["bytes"] = name.encode().hex()
        path.write_bytes(file_of(tree))
        options = ["--backend", "deterministic", "--allow-other-lm"]
        for more in ([], ["--json"], ["--text", "hello", *options]):
            result = CliRunner().invoke(main, ["inspect", str(path), *more], color=True)
            assert result.exit_code == 0, result.stderr
            lines = result.stdout.splitlines()
            assert all(line.isprintable() for line in lines), result.stdout
        shown = CliRunner().invoke(main, ["inspect", str(path), "--json"], color=True)
        assert name in json.loads(shown.stdout)["classes"]


class TestWriting:
    @pytest.mark.posix
    @pytest.mark.parametrize(
        "place", ["missing/model", "file/model", "folder", "x" * 300, "pipe", "/proc/nothing/model"]
    )
    def test_a_place_that_can_t_be_written_is_an_error_that_leaves_nothing(
        self, tmp_path: Path, place: str
    ) -> None:
        (tmp_path / "file").write_text("")
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "pipe")
        before = sorted(tmp_path.iterdir())
        with pytest.raises(ModelFileError) as caught:
            trained().save(tmp_path / place)
        assert place in str(caught.value)
        assert sorted(tmp_path.iterdir()) == before
        assert (tmp_path / "pipe").is_fifo()

    @pytest.mark.parametrize("errno_", [30, 13, 28])
    def test_a_read_only_or_full_disk_is_an_error_that_leaves_the_old_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errno_: int
    ) -> None:
        path = tmp_path / "model"
        trained().save(path)
        before = path.read_bytes()

        def fail(*args: Any, **options: Any) -> None:
            raise OSError(errno_, os.strerror(errno_))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            # a read-only disk refuses to remove even what isn't there
            patch.setattr(Path, "unlink", fail)
            with pytest.raises(ModelFileError, match=os.strerror(errno_)):
                trained("samme").save(path)
        assert path.read_bytes() == before

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
    def test_a_folder_without_permission_is_an_error(self, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir(mode=0o500)
        with pytest.raises(ModelFileError, match="Permission denied"):
            trained().save(folder / "model")

    @pytest.mark.parametrize("crash", [KeyboardInterrupt, MemoryError, SystemExit])
    @pytest.mark.parametrize("where", ["chmod", "fsync", "replace"])
    def test_a_crash_in_the_middle_leaves_the_old_model(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        crash: type[BaseException],
        where: str,
    ) -> None:
        path = tmp_path / "model"
        trained().save(path)
        before = path.read_bytes()

        def fail(*args: Any) -> None:
            raise crash

        with monkeypatch.context() as patch:
            patch.setattr(os if where == "fsync" else Path, where, fail)
            with pytest.raises(crash):
                trained("samme").save(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_an_older_model_is_replaced_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "model"
        trained().save(path)
        trained("samme").save(path)
        assert read_model(path).ensemble.algorithm.name == "samme"
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.posix
    def test_a_link_stays_one_and_what_it_points_to_is_replaced(self, tmp_path: Path) -> None:
        path, link = tmp_path / "model", tmp_path / "latest"
        trained().save(path)
        link.symlink_to(path)
        trained("samme").save(link)
        assert link.is_symlink()
        assert read_model(path).ensemble.algorithm.name == "samme"


def test_the_engine_of_an_api_is_no_other_lm_in_older_files_either():
    described = {"provider": "openai", "endpoint": "chat", "model": "m"}
    older = checked_identity(described | {"extra": {"system_fingerprint": "fp_1", "tokens": "ids"}})
    newer = checked_identity(described | {"extra": {"tokens": "ids"}})
    assert older == newer
    assert older.engine == "system_fingerprint fp_1"
