"""The documentation: its Python runs, and its links lead somewhere."""

from __future__ import annotations

import doctest
import os
import re
from pathlib import Path

import click
import pytest

import blackbox.estimator
from blackbox.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def examples(page):
    return re.findall(r"<!-- run as a test -->\n```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.lm
def test_the_example_of_the_readme_runs(lm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = examples(ROOT / "README.md")
    exec(compile(code, "README.md", "exec"), {})
    assert "forward passes" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["parcels.blackbox"]


def test_the_example_with_several_labels_finds_the_label(capsys):
    (code,) = examples(ROOT / "docs" / "several-labels.md")
    exec(compile(code, "several-labels.md", "exec"), {})
    assert "defect" in capsys.readouterr().out


def test_the_backend_of_one_s_own_classifies(capsys):
    (code,) = examples(ROOT / "docs" / "backends.md")
    exec(compile(code, "backends.md", "exec"), {})
    assert capsys.readouterr().out == "['+' '-']\n"


def test_the_examples_of_the_docstrings_hold():
    assert doctest.testmod(blackbox.estimator).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_readme_has_its_two_commands():
    text = (ROOT / "README.md").read_text()
    venv = "python3 -m venv .venv && .venv/bin/"
    assert f"{venv}pip install -e '.[local]' && .venv/bin/blackbox quickstart" in text
    assert f"{venv}pip install -e '.[local,test]' && .venv/bin/pytest" in text


def help_of_all_commands():
    """Every command's help, as Markdown."""
    pages = ["# The `blackbox` command\n\nWritten by `UPDATE_DOCS=1 pytest tests/test_docs.py`.\n"]

    def add(name, command, parent):
        context = click.Context(
            command, info_name=name, parent=parent, terminal_width=96, **command.context_settings
        )
        path = context.command_path
        pages.append(f"\n## `{path}`\n\n```\n{command.get_help(context)}\n```\n")
        if isinstance(command, click.Group):
            for child in command.list_commands(context):
                add(child, command.get_command(context, child), context)

    add("blackbox", main, None)
    return "".join(pages)


def test_the_help_in_the_documentation_is_the_help_of_the_command():
    page = ROOT / "docs" / "cli.md"
    if os.environ.get("UPDATE_DOCS"):
        page.write_text(help_of_all_commands())
    assert page.read_text() == help_of_all_commands()
