"""Cells beside the engine: what is finished is kept, whatever ends the run."""

from __future__ import annotations

import os
import signal
from concurrent.futures import wait
from dataclasses import dataclass

import pytest

pytest.importorskip("yaml", reason="the evaluation needs the `eval` extra")
from test_eval_run import prepare

from eval.run import beside as beside_module
from eval.run import runner as runner_module
from eval.run.beside import Beside
from eval.run.configuration_file import read_configuration
from eval.run.results import Results
from eval.run.runner import Runner


def test_what_is_finished_when_a_run_is_interrupted_is_kept(tmp_path, monkeypatch):
    folder = prepare(tmp_path)
    kept = []

    class Watched(Beside):
        def __init__(self, n_jobs):
            super().__init__(n_jobs)
            kept.append(self)

    def interrupted(job, backend):
        wait(list(kept[0]._waiting))
        raise KeyboardInterrupt

    monkeypatch.setattr(runner_module, "Beside", Watched)
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


@pytest.mark.posix
def test_a_killed_process_is_a_cell_without_figures(monkeypatch):
    monkeypatch.setattr(beside_module, "compute_from_store", _killed)
    beside = Beside(2)
    beside.add([Named("small")])
    assert [found for _, found in beside.rest()] == [{"name": "small"}]
    beside.add([Named("large")])
    assert [found for _, found in beside.rest()] == [
        "large: its process was killed; it may have needed more memory than there is"
    ]
    beside.close()


def test_one_process_computes_after_the_engine(monkeypatch):
    monkeypatch.setattr(beside_module, "compute_from_store", _killed)
    beside = Beside(1)
    beside.add([Named("a"), Named("b")])
    assert list(beside.finished()) == []
    assert [job.name for job, _ in beside.rest()] == ["a", "b"]
