"""The help of every command: groups, two levels, one example."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner

from blackbox.cli import _COMMANDS, main
from blackbox.cli.help import GROUPS, SHOW_ALL, Command, Group, Option


def commands_of(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[Any]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield pytest.param((*path, name), command, id=" ".join((*path, name)))
        if isinstance(command, click.Group):
            yield from commands_of(command, (*path, name))


ALL = list(commands_of(main))
WITHOUT_GROUPS = [case for case in ALL if not isinstance(case.values[1], click.Group)]


@pytest.fixture(autouse=True)
def _fresh_help() -> Iterator[None]:
    """Click caches the help option with the names of the first call."""
    yield
    for case in ALL:
        case.values[1]._help_option = None


def shown(command: click.Command, *, all: bool) -> str:
    context = click.Context(command, info_name="x", terminal_width=400, max_content_width=400)
    context.meta[SHOW_ALL] = all
    return command.get_help(context)


def sections(help: str) -> dict[str, list[str]]:
    """The first words of the lines of each section."""
    found: dict[str, list[str]] = {}
    for line in help.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            found[line[:-1]] = []
        elif found and line.startswith("  -"):
            names = line.split("  ")[1].split()
            found[list(found)[-1]].append([name for name in names if name.startswith("--")][-1])
    return found


def test_every_command_is_one_of_ours():
    assert {type(case.values[1]) for case in ALL} == {Command, Group}
    assert isinstance(main, Group)


@pytest.mark.parametrize(("path", "command"), WITHOUT_GROUPS)
def test_all_options_are_shown_in_one_group_each(path, command):
    groups = {
        group: options
        for group, options in sections(shown(command, all=True)).items()
        if group != "Example"
    }
    listed = [name for options in groups.values() for name in options]
    ours = [param for param in command.params if isinstance(param, click.Option)]
    expected = [max(param.opts, key=len) for param in ours if not param.hidden]
    assert sorted(listed) == sorted([*expected, "--help"])
    assert list(groups) == [group for group in GROUPS if group in groups]
    for param in ours:
        assert isinstance(param, Option), f"{param.name} has no group"
        if not param.hidden:
            assert max(param.opts, key=len) in groups[param.group]


@pytest.mark.parametrize(("path", "command"), WITHOUT_GROUPS)
def test_the_common_options_are_shown_by_help_and_the_others_by_help_all(path, command):
    advanced = [param for param in command.params if getattr(param, "advanced", False)]
    help, help_all = (
        CliRunner().invoke(main, [*path, option], terminal_width=400, max_content_width=400)
        for option in ("--help", "--help-all")
    )
    assert help.exit_code == help_all.exit_code == 0
    assert ("--help-all" in help.stdout) == bool(advanced)
    for param in advanced:
        name = f"  {max(param.opts, key=len)}"
        assert f"{name} " not in help.stdout
        assert f"{name} " in help_all.stdout or f"{name}\n" in help_all.stdout


def test_the_help_of_a_training_fits_one_page():
    assert len(shown(main.get_command(click.Context(main), "train"), all=False).splitlines()) <= 50


@pytest.mark.parametrize(("path", "command"), [pytest.param((), main, id="blackbox"), *ALL])
def test_the_help_ends_with_an_example_that_parses(path, command, monkeypatch):
    program, *arguments = shlex.split(command.example)
    assert program == "blackbox"
    assert arguments[: len(path)] == list(path)
    assert shown(command, all=False).endswith(f"\n\nExample:\n  {command.example}")
    run = []
    monkeypatch.setattr(Command, "invoke", lambda self, context: run.append(self))
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert len(run) == 1
    assert isinstance(command, click.Group) or run == [command]


@pytest.mark.parametrize(("path", "command"), ALL)
def test_every_command_has_a_short_description(path, command):
    text = _COMMANDS[path[0]] if len(path) == 1 else command.get_short_help_str(limit=200)
    assert text.endswith(".")
    assert len(text) <= 84
