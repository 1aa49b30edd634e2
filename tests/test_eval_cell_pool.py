"""Cells beside the engine: what is finished is kept, whatever ends the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("yaml", reason="the evaluation needs the `eval` extra")
from test_eval_run import prepare

from eval.run import cell_pool as pool_module
from eval.run import runner as runner_module
from eval.run.cell_pool import CellPool, end_with_parent
from eval.run.configuration_file import read_configuration
from eval.run.results import Results
from eval.run.runner import Runner


def test_what_is_finished_when_a_run_is_interrupted_is_kept(tmp_path, monkeypatch):
    folder = prepare(tmp_path)
    kept = []

    class Watched(CellPool):
        def __init__(self, n_jobs):
            super().__init__(n_jobs)
            kept.append(self)

    def interrupted(job, backend):
        wait(list(kept[0]._waiting))
        raise KeyboardInterrupt

    monkeypatch.setattr(runner_module, "CellPool", Watched)
    monkeypatch.setattr(runner_module, "compute_cell", interrupted)
    runner = Runner(folder / "out", folder / "data", n_jobs=2)
    with pytest.raises(KeyboardInterrupt):
        runner.run(runner.jobs(read_configuration(folder / "small.yaml")))
    found = [cell["name"] for cell in Results(folder / "out").cells().values()]
    assert {"majority", "TF-IDF", "kNN prompting", "PromptBoosting", "ours"} <= set(found)
    assert not {"label words", "demonstrations"} & set(found)


@dataclass(frozen=True)
class Named:
    name: str

    def __str__(self):
        return self.name


def _killed(job):
    if job.name == "large":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"name": job.name}


@pytest.mark.slow
@pytest.mark.posix
def test_of_the_cells_beside_a_killed_process_that_one_alone_has_no_figures(monkeypatch):
    monkeypatch.setattr(pool_module, "compute_from_store", _killed)
    pool = CellPool(2)
    pool.add([Named("large")])
    wait(list(pool._waiting))
    pool.add([Named("small"), Named("later")])  # its processes are gone
    found = {job.name: found for job, found in pool.rest()}
    assert found.pop("large") == (
        "large: its process was killed; it may have needed more memory than there is"
    )
    assert found == {"small": {"name": "small"}, "later": {"name": "later"}}
    pool.close()


@pytest.mark.slow
@pytest.mark.posix
def test_ctrl_c_in_a_terminal_keeps_what_the_processes_have_finished(tmp_path):
    folder = prepare(tmp_path)
    program = f"""
import os, signal, sys
from concurrent.futures import wait
from pathlib import Path
from eval.run import runner
from eval.run.cell_pool import CellPool, end_with_parent
from eval.run.configuration_file import read_configuration
folder = Path({str(folder)!r})
kept = []
class Watched(CellPool):
    def __init__(self, n_jobs):
        super().__init__(n_jobs)
        kept.append(self)
def engine(job, backend):
    wait([next(iter(kept[0]._waiting))])
    os.killpg(0, signal.SIGINT)  # as a terminal does: to every process
    signal.pause()
runner.CellPool, runner.compute_cell = Watched, engine
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setpgrp()
    one = runner.Runner(folder / "out", folder / "data", n_jobs=2)
    one.run(one.jobs(read_configuration(folder / "small.yaml")))
"""
    (folder / "program.py").write_text(program)
    root = Path(__file__).parent.parent
    found = subprocess.run(
        [sys.executable, str(folder / "program.py")],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.stderr.rstrip().endswith("KeyboardInterrupt"), found.stderr
    assert Results(folder / "out").cells()


def test_one_process_computes_after_the_engine(monkeypatch):
    monkeypatch.setattr(pool_module, "compute_from_store", _killed)
    pool = CellPool(1)
    pool.add([Named("a"), Named("b")])
    assert list(pool.finished()) == []
    assert [job.name for job, _ in pool.rest()] == ["a", "b"]


def sleep_and_tell(path):
    """Write the number of this process down, and go on for long."""
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def run_for_long(path):
    """Compute something in a process of its own, as a cell that is measured alone is."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, end_with_parent) as alone:
        alone.submit(sleep_and_tell, path).result()


def is_running(process):
    """Whether there is a process of this number that has not ended."""
    try:
        return "zombie" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.mark.posix
def test_a_process_ends_with_the_run_that_is_killed(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    told = tmp_path / "process"
    run = multiprocessing.get_context("spawn").Process(target=run_for_long, args=(str(told),))
    run.start()
    until = time.monotonic() + 60
    while not (told.exists() and told.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    process = int(told.read_text())
    assert is_running(process)
    run.kill()
    run.join()
    until = time.monotonic() + 20
    while is_running(process) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(process)
