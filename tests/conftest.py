"""Fixtures that several files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import backends
from blackbox.errors import ModelNotFoundError

# no test reads or fills the user's own store; those that are about stores name their own
os.environ["PROMPTBOOSTING_STORE"] = "off"


@pytest.fixture(scope="session")
def lm():
    """The embedded LM, started once."""
    pytest.importorskip("xllamacpp", reason="the embedded LM needs the `local` extra")
    try:
        return backends.load("llamacpp")
    except ModelNotFoundError as error:
        pytest.skip(f"the embedded LM can't be fetched: {error}")


@pytest.fixture(scope="session")
def benchmark_data() -> Path:
    """The folder of benchmark data sets, named by the environment."""
    folder = os.environ.get("BENCHMARK_DATA")
    if not folder:
        pytest.skip("benchmark data: set BENCHMARK_DATA to its folder")
    return Path(folder)
