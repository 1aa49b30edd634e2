"""The walls of the architecture hold, and its page describes the tree as it is."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter", reason="the walls are checked by import-linter")

ROOT = Path(__file__).parent.parent
PACKAGES = ("blackbox", "backends", "eval")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the code that may be spoilt."""
    folder = tmp_path_factory.mktemp("tree")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", folder)
    return folder


def broken(folder):
    """The names of the contracts that the linter finds broken, and what it printed."""
    command = "from importlinter.cli import lint_imports_command as main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    lines = (line for line in done.stdout.splitlines() if "BROKEN" in line)
    return [line.partition(" BROKEN")[0] for line in lines], done.stdout


def test_the_tree_keeps_every_contract(tree):
    names, printed = broken(tree)
    assert names == [], printed


@pytest.mark.parametrize(
    ("module", "line", "wall"),
    [
        ("blackbox/boosting/logit.py", "import blackbox.model.model", "A room of blackbox"),
        ("blackbox/errors.py", "import blackbox.files", "A room of blackbox"),
        ("blackbox/model/model.py", "import blackbox.estimator", "A room of blackbox"),
        ("blackbox/report/content.py", "import blackbox.service.core", "A room of blackbox"),
        ("blackbox/new_module.py", "", "A room of blackbox"),
        ("backends/openai.py", "import backends.llamacpp", "A backend imports no other backend"),
        ("backends/new_backend.py", "", "A backend imports no other backend"),
        ("backends/vllm.py", "import blackbox.lm.budgets", "A backend knows"),
        ("backends/vllm.py", "import blackbox.files", "A backend knows"),
        ("blackbox/planning/plan.py", "import backends", "Only blackbox.lm.connect"),
        ("blackbox/metrics.py", "import eval.run.cells", "Nobody imports eval"),
    ],
)
def test_a_forbidden_import_breaks_its_wall(tree, module, line, wall):
    path = tree / module
    before = path.read_text() if path.exists() else None
    path.write_text((before or '"""New."""\n') + f"\n{line}\n")
    try:
        names, printed = broken(tree)
    finally:
        path.unlink() if before is None else path.write_text(before)
    assert any(name.startswith(wall) for name in names), printed


def table_of_modules():
    """For each room its modules, with the first line of each docstring, as Markdown."""
    lines = ["<!-- written by `UPDATE_DOCS=1 pytest tests/test_architecture.py` -->"]
    for package in PACKAGES:
        folders = sorted({path.parent for path in (ROOT / package).rglob("*.py")})
        for folder in folders:
            modules = [path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]
            about = summary(folder / "__init__.py")
            lines += ["", f"**`{folder.relative_to(ROOT).as_posix()}/`** {about}", ""]
            if modules:
                lines += ["| module | what it is |", "|---|---|"]
            lines += [f"| `{path.name}` | {summary(path)} |" for path in modules]
    return "\n".join([*lines, "", "<!-- end -->"])


def summary(path):
    """The first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, f"{path} has no docstring"
    return docstring.splitlines()[0].replace("|", "\\|")


def test_the_page_lists_the_modules_that_there_are():
    page = ROOT / "docs" / "architecture.md"
    before, begin, rest = page.read_text().partition("<!-- written by")
    _, end, after = rest.partition("<!-- end -->")
    assert begin, "docs/architecture.md has no table of modules"
    assert end, "docs/architecture.md has no table of modules"
    written = before + table_of_modules() + after
    if os.environ.get("UPDATE_DOCS"):
        page.write_text(written)
    assert page.read_text() == written, "UPDATE_DOCS=1 pytest tests/test_architecture.py"
