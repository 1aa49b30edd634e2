"""Models in MLflow, as the documentation says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BEFORE = """
from tests.serving import LABELS, TEXTS
from blackbox import PromptBoostingClassifier

classifier = PromptBoostingClassifier("deterministic", n_prompts=3, random_state=0, store=False)
classifier.fit(TEXTS, LABELS)
"""

AFTER = """
import json
from pandas import DataFrame

found = mlflow.pyfunc.load_model(logged.model_uri).predict(DataFrame({"text": TEXTS}))
run = mlflow.last_active_run().data
same = found.tolist() == classifier.predict(TEXTS).tolist()
print(json.dumps({"same": same, "metrics": run.metrics, "params": run.params}))
"""


@pytest.mark.mlflow
@pytest.mark.slow
def test_the_lines_of_the_documentation_log_a_model_that_predicts(tmp_path):
    page = (ROOT / "docs" / "tracking.md").read_text("utf-8").partition("## MLflow")[2]
    model, log = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mlflow_classifier.py").write_text(model, "utf-8")
    variables = {
        "MLFLOW_TRACKING_URI": (tmp_path / "runs").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + log + AFTER],
        cwd=tmp_path,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["same"]
    assert told["params"]["algorithm"] == "logit"
    assert told["metrics"]["rows"] == 24
    assert told["metrics"]["forward_passes"] > 24
    assert 0 <= told["metrics"]["held_out_accuracy"] <= 1
    assert told["metrics"]["cost"] == 0
