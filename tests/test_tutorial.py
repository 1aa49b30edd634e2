"""The tutorials run as they stand: with the embedded LM, and with it behind llama.cpp's server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the tutorial needs the `serve` extra")

DOCS = Path(__file__).parents[1] / "docs"
TUTORIAL, APIS = DOCS / "tutorial.ipynb", DOCS / "tutorial-apis.ipynb"


def executed(path, folder, monkeypatch):
    """Return what a notebook prints when it is run."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PROMPTBOOSTING_STORE", str(folder / "passes.sqlite"))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    client.execute()
    return said_in(notebook.cells)


def said_in(cells):
    """The text of the outputs of cells."""
    return "".join("".join(o.get("text", "")) for cell in cells for o in cell.get("outputs", ()))


@pytest.mark.slow
@pytest.mark.lm
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(1200)
def test_every_cell_runs(lm, tmp_path, monkeypatch):
    said = executed(TUTORIAL, tmp_path, monkeypatch)
    assert "forward passes" in said
    assert "accuracy" in said
    assert "exact: " in said
    assert "probability_delivery" in said
    assert "can't be promised" in said


@pytest.mark.slow
@pytest.mark.lm
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(1200)
def test_every_cell_about_apis_runs_over_a_real_server(lm, llamacpp_lm, tmp_path, monkeypatch):
    server, key = llamacpp_lm._server, llamacpp_lm._server.key
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", key)
    said = executed(APIS, tmp_path, monkeypatch)
    assert "budget of 100 forward passes is used up" in said
    assert re.search(r"^100 passes are paid for", said, re.M)
    assert re.search(r"^0 passes made, \d+ from the store", said, re.M)
    assert key not in said


@pytest.mark.parametrize("path", [TUTORIAL, APIS], ids=lambda path: path.stem)
def test_its_outputs_are_kept_and_are_those_of_a_whole_run_without_errors(path):
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    assert not re.search(r"/(home|root|tmp|work|usr)/", path.read_text())


def test_what_it_says_of_its_results_is_what_the_outputs_show():
    said = said_in(json.loads(TUTORIAL.read_text())["cells"])
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


def test_what_is_said_of_apis_is_what_the_outputs_show():
    said = said_in(json.loads(APIS.read_text())["cells"])
    planned = int(re.search(r"^(\d+) forward passes", said, re.M)[1])
    paid, left = map(int, re.search(r"^(\d+) passes are paid for, (\d+) left", said, re.M).groups())
    assert (paid, paid + left) == (100, planned)
    made, stored = map(
        int, re.search(r"^([1-9]\d*) passes made, (\d+) from the store", said, re.M).groups()
    )
    assert made > left
    assert stored == paid
    assert f"0 passes made, {planned} from the store" in said
    ways = re.findall(r"^(cloze|letters|draws): \d+ passes, \$(\d\.\d+)", said, re.M)
    assert [name for name, _ in sorted(ways, key=lambda way: float(way[1]))] == [
        "cloze",
        "letters",
        "draws",
    ]
