"""Embeddings of real engines: sentence-transformers and vLLM agree on the same small encoder."""

from __future__ import annotations

import gc
import pickle

import numpy as np
import pytest

import backends
from blackbox.errors import ModelNotFoundError
from blackbox.protocol import RenderedPrompt

TEXTS = [
    "The capital of France is Paris.",
    "I love it 😀",
    "a b",
    "Paris is where the French government sits.",
    "half a pair \ud83d, नमस्ते",
    "word " * 900,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small encoder with random weights, and a vocabulary of its own, as a folder."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder")
    trainer = BertWordPieceTokenizer(lowercase=True)
    trainer.train_from_iterator([text[:200] for text in TEXTS[:4]], vocab_size=300)
    trainer.save_model(str(path))
    BertTokenizerFast(str(path / "vocab.txt"), model_max_length=128).save_pretrained(path / "bert")
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=trainer.get_vocab_size(),
        intermediate_size=128,
        max_position_embeddings=128,
        **size,
    )
    BertModel(config).save_pretrained(path / "bert")
    parts = [Transformer(str(path / "bert"), max_seq_length=128), Pooling(64), Normalize()]
    SentenceTransformer(modules=parts, device="cpu").save(str(path / "encoder"))
    return path / "encoder"


@pytest.mark.transformers
def test_sentence_transformers_pools_as_its_folder_says(folder):
    from sentence_transformers import SentenceTransformer

    lm = backends.load_embeddings("transformers", model=str(folder))
    made = lm.embed(TEXTS)
    assert made.vectors.shape == (6, lm.limits.embedding_size) == (6, 64)
    clean = [text.encode("utf-8", "replace").decode() for text in TEXTS]
    own = SentenceTransformer(str(folder), device="cpu").encode(clean)
    assert (made.vectors * own).sum(axis=1) == pytest.approx(1, abs=1e-5)
    lengths = lm.count_tokens([RenderedPrompt(text) for text in TEXTS])
    assert (max(lengths), sum(lengths)) == (128, made.usage.tokens)
    assert str(folder) not in str(lm.identity.as_dict())
    assert len(lm.identity.weights_digest) == 64
    again = pickle.loads(pickle.dumps(lm))
    assert np.allclose(again.embed(TEXTS).vectors, made.vectors, atol=1e-6)


@pytest.mark.transformers
def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(ModelNotFoundError, match="can't be loaded"):
        backends.load_embeddings("transformers", model=str(tmp_path))


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_vllm_makes_the_same_vectors(folder):
    from sentence_transformers import SentenceTransformer

    lm = backends.load_embeddings("vllm", model=str(folder))
    made = lm.embed(TEXTS)
    clean = [text.encode("utf-8", "replace").decode() for text in TEXTS]
    own = SentenceTransformer(str(folder), device="cpu").encode(clean)
    assert (made.vectors * own).sum(axis=1) == pytest.approx(1, abs=1e-4)
    assert made.usage.passes_made == 6
    assert lm.limits.embedding_size == 64
    processes = lm._engine.llm.llm_engine.engine_core.resources.engine_manager.processes
    assert all(process.is_alive() for process in processes)
    backends.forget(lm)
    del lm
    gc.collect()  # a warning is an error: nothing may be left unclosed
    assert processes
    for process in processes:
        process.join(60)
        assert not process.is_alive()
