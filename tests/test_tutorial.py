"""The tutorial runs as it stands, with the embedded LM."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the tutorial needs the `serve` extra")

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


@pytest.mark.slow
@pytest.mark.lm
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(1200)
def test_every_cell_runs(lm, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PROMPTBOOSTING_STORE", str(tmp_path / "passes.sqlite"))
    notebook = nbformat.read(TUTORIAL, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    said = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    assert "forward passes" in said
    assert "accuracy" in said
    assert "exact: " in said


def test_its_outputs_are_kept_and_are_those_of_a_whole_run_without_errors():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(TUTORIAL, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    assert not re.search(r"/(home|root|tmp|work|usr)/", TUTORIAL.read_text())


def test_what_it_says_of_its_results_is_what_the_outputs_show():
    text = json.loads(TUTORIAL.read_text())["cells"]
    said = "".join("".join(o.get("text", "")) for cell in text for o in cell.get("outputs", ()))
    without, calibrated = (
        float(re.search(rf"{name}: .*log-loss (\d+\.\d+)", said)[1])
        for name in ("without calibration", "calibrated")
    )
    assert calibrated < without
    asked = {
        rule: float(re.search(rf"{rule}: (\d+\.\d) of 10 prompts", said)[1])
        for rule in ("exact", "risk")
    }
    assert asked["risk"] < asked["exact"] < 10
    assert "exact: " in said
    assert re.search(r"exact: .* 0 of 80 labels changed", said)
