"""The threads of the real engines wait asleep, unless the user wants them to spin."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from types import ModuleType

import joblib
import pytest

from backends.openmp import available_cores, is_ours_to_set, limit_torch
from eval.perf.busy import WAITING, Engine, neighbours

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

_DISPLAY = """
import os, sys
from backends.openmp import PASSIVE, passive_waiting
before = {name: os.environ.get(name) for name in PASSIVE}
if sys.argv[2:]:
    __import__(sys.argv[1])
with passive_waiting(sys.argv[1]):
    __import__(sys.argv[1])
assert {name: os.environ.get(name) for name in PASSIVE} == before  # engines set others
"""


@pytest.fixture
def lm(llamacpp_lm):
    """The engine of this file."""
    return llamacpp_lm


def waiting(engine, *imported_before, **environment):
    """Return what the OpenMP runtime of an engine says of its settings, and what was logged."""
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed")
    if not sys.platform.startswith("linux"):
        pytest.skip("the settings are read out of GNU's OpenMP")
    clean = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    code = "import logging; logging.basicConfig(level=logging.INFO)\n" + _DISPLAY
    done = subprocess.run(
        [sys.executable, "-c", code, engine, *imported_before],
        env=clean | {"OMP_DISPLAY_ENV": "verbose"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


@pytest.mark.parametrize(
    "engine", ["xllamacpp", pytest.param("torch", marks=pytest.mark.transformers)]
)
def test_threads_of_an_engine_sleep_while_they_wait(engine):
    said = waiting(engine)
    assert "GOMP_SPINCOUNT = '0'" in said


def test_a_setting_of_the_user_s_is_respected_and_one_that_spins_is_told():
    said = waiting("xllamacpp", OMP_WAIT_POLICY="active")
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in said
    assert "OMP_WAIT_POLICY=active is set: threads that wait keep the processor busy" in said
    said = waiting("xllamacpp", GOMP_SPINCOUNT="5000")
    assert "GOMP_SPINCOUNT = '5000'" in said
    assert "GOMP_SPINCOUNT=5000 is set" in said


def test_an_engine_that_is_there_already_is_told():
    said = waiting("xllamacpp", "before")
    assert "xllamacpp was imported before" in said
    assert "GOMP_SPINCOUNT = '0'" not in said


def test_it_is_ours_to_set_unless_the_user_did(monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KMP_BLOCKTIME", "200")  # by ggml, in the environment of every child
    assert is_ours_to_set()
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert not is_ours_to_set()


@pytest.mark.slow
@pytest.mark.undisturbed
@pytest.mark.lm
def test_on_a_busy_machine_threads_that_sleep_make_more_passes_than_threads_that_spin(lm):
    """All at the same time, so that whatever else the machine does is the same for both."""
    engines = {name: Engine("llamacpp", "", some) for name, some in WAITING.items()}
    made, done = dict.fromkeys(engines, 0.0), threading.Event()

    def work(name):
        number = 1
        while not done.is_set():
            made[name] += engines[name].ask(1, number)["passes"]
            number += 1
            if made["sleep"] >= 200:  # a step is 20 passes or less
                done.set()

    try:
        for engine in engines.values():
            engine.ask(1, 0)
        with neighbours(4):
            threads = [threading.Thread(target=work, args=[name]) for name in engines]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        for engine in engines.values():
            engine.close()
    # less than on a quiet machine where other work runs beside, as both wait for that too
    assert made["sleep"] > 1.3 * made["spin"], made


def test_engines_take_as_many_threads_as_a_container_s_quota_has_cores(monkeypatch):
    torch = ModuleType("torch")
    torch.get_num_threads, set_to = lambda: 64, []
    torch.set_num_threads = set_to.append
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
    assert available_cores() == 2
    limit_torch()
    assert set_to == [2]
    monkeypatch.setattr(joblib, "cpu_count", lambda: 64)
    limit_torch()  # a number that the user has lowered stays
    assert set_to == [2]
