"""Fixtures that several files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import backends
from blackbox.errors import ModelNotFoundError

# no test reads or fills the user's own store; those that are about stores name their own
os.environ["PROMPTBOOSTING_STORE"] = "off"


def pytest_collection_modifyitems(items):
    if os.name != "posix":
        for item in items:
            if item.get_closest_marker("posix"):
                item.add_marker(pytest.mark.skip(reason="needs a POSIX system"))


@pytest.fixture(scope="session")
def llamacpp_lm():
    """The embedded LM's model through llama.cpp, started once."""
    pytest.importorskip("xllamacpp", reason="needs the `llamacpp` extra")
    try:
        return backends.load("llamacpp")
    except ModelNotFoundError as error:
        pytest.skip(f"the embedded LM can't be fetched: {error}")


@pytest.fixture(scope="session")
def lm():
    """The embedded LM, started once."""
    pytest.importorskip("onnxruntime", reason="the embedded LM needs the `local` extra")
    try:
        return backends.load("onnx")
    except ModelNotFoundError as error:
        pytest.skip(f"the embedded LM can't be fetched: {error}")


@pytest.fixture(scope="session")
def benchmark_data() -> Path:
    """The folder of benchmark data sets, named by the environment."""
    folder = os.environ.get("BENCHMARK_DATA")
    if not folder:
        pytest.skip("benchmark data: set BENCHMARK_DATA to its folder")
    return Path(folder)


@pytest.fixture(scope="session")
def lm_folder() -> Path:
    """The embedded LM as a Hugging Face folder in float32."""
    from backends.catalogue import pull
    from backends.hf.folder import FORM

    return pull("smollm2-135m", FORM)


@pytest.fixture(scope="session")
def lm_float32(tmp_path_factory):
    """The embedded LM in float32 through llama.cpp: the same weights as `lm_folder`."""
    from backends.catalogue import Q8_0, pull
    from backends.llamacpp import LlamaCppBackend
    from eval.methods.engine_formats import write_float32_gguf

    path = tmp_path_factory.mktemp("formats") / "smollm2-f32.gguf"
    return LlamaCppBackend(write_float32_gguf(pull("smollm2-135m", Q8_0), path))


@pytest.fixture(scope="session")
def transformers_lm(lm_folder):
    """The embedded LM through transformers, started once."""
    return backends.load("transformers", model=str(lm_folder))


@pytest.fixture(scope="session")
def vllm_lm(lm_folder):
    """The embedded LM through vLLM, started once (a minute)."""
    return backends.load("vllm", model=str(lm_folder))
