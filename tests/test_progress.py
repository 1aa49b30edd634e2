"""Progress: a bar on a terminal, lines in a log."""

from __future__ import annotations

import io
import sys

import pytest

from blackbox import PromptBoostingClassifier, progress
from blackbox.progress import ProgressDisplay


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def written(capsys):
    return lambda: capsys.readouterr().err.splitlines()


def test_a_log_gets_a_line_every_ten_seconds_with_the_time_left(clock, written):
    shown = ProgressDisplay()
    for second in range(25):
        clock[0] = 100 + second
        shown("predicting", second * 40, 1000)
    assert written() == [
        "predicting: 400 of 1,000 (40%), about 15 s left",
        "predicting: 800 of 1,000 (80%), about 5 s left",
    ]


def test_a_short_run_writes_nothing_in_a_log(clock, written):
    shown = ProgressDisplay()
    shown("asking", 0, 3)
    clock[0] += 9
    shown("asking", 3, 3)
    assert written() == []


def test_a_second_stage_has_a_time_of_its_own(clock, written):
    shown = ProgressDisplay()
    shown("asking", 0, 10)
    clock[0] += 3600
    shown("predicting", 0, 1000)
    clock[0] += 60
    shown("predicting", 10, 1000)
    assert written()[-1] == "predicting: 10 of 1,000 (1%), about 1.6 h left"


def test_a_terminal_gets_a_bar_that_is_removed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    shown = ProgressDisplay()
    shown("asking", 1, 4)
    assert "asking:" in sys.stderr.getvalue()
    shown.close()
    assert sys.stderr.getvalue().endswith("\r")


def test_verbose_shows_what_the_callback_is_told(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    told = []
    classifier = PromptBoostingClassifier(
        "deterministic", store=False, verbose=True, callback=lambda *step: told.append(step)
    )
    classifier.fit([f"{word} {n}" for n in range(4) for word in ("fine", "dull")], [1, 0] * 4)
    stages = {stage for stage, _, _ in told}
    assert stages
    assert all(f"{stage}:" in sys.stderr.getvalue() for stage in stages)


@pytest.mark.filterwarnings("error")
def test_a_notebook_without_widgets_has_the_bar_of_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    shown = ProgressDisplay()
    shown("predicting", 1, 4)
    assert "predicting:" in capsys.readouterr().err
    shown.close()
