"""Check what `blackbox quickstart --json` printed, as a program would read it."""

import json
import sys
from pathlib import Path

from blackbox import load_model

result = json.loads(Path(sys.argv[1]).read_text())
expected = {
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "majority_accuracy",
    "lm_alone_accuracy",
    "best_prompt_accuracy",
    "forward_passes",
    "lm_tokens",
    "lm_tokens_evaluated",
    "seconds",
    "model_path",
    "usage",
}
assert set(result) == expected, set(result) ^ expected
assert result["accuracy_low"] <= result["accuracy"] <= result["accuracy_high"]
assert result["accuracy"] > result["best_prompt_accuracy"] > result["majority_accuracy"]
assert result["lm_tokens_evaluated"] <= result["lm_tokens"]
summary = load_model(result["model_path"]).training_summary_
assert "warnings" not in summary, summary["warnings"]
