"""Settings of a project: options of commands, once, in a file `blackbox.toml`."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

__all__ = [
    "FILE",
    "SETTINGS",
    "addresses_in",
    "check_settings",
    "defaults_of",
    "read_settings",
    "refuse_code",
]

FILE = "blackbox.toml"
"""The file's name; it is looked for in the current folder only."""

_OF_BACKENDS = ("backend", "embeddings", "writer-backend", "inner")  # the last of `sampling`
_TRUST = "trust-remote-code"

SETTINGS = "blackbox.cli.settings"
"""Where a context's `meta` has the settings that were read, by option and command."""


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of a file.

    Raises
    ------
    click.UsageError
        If it can't be read or isn't TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise click.UsageError(f"{path} can't be read: {error.strerror}") from error
    except (UnicodeError, tomllib.TOMLDecodeError) as error:
        raise click.UsageError(f"{path} is not TOML: {error}") from error


def check_settings(
    path: Path, settings: Mapping[str, Any], commands: Mapping[str, click.Command]
) -> None:
    """Raise if a setting is no option of the commands that it is for.

    Parameters
    ----------
    path : Path
        The file, for messages.
    settings : mapping
        From `read_settings`.
    commands : mapping of str to click.Command
        All commands by name, those of a group as ``"store prune"``.

    Raises
    ------
    click.UsageError
        If a name is unknown or a value has no form that an option takes.
    """
    known = {name for command in commands.values() for name in _options(command)}
    tables = {name.split()[0] for name in commands}
    for name, value in settings.items():
        if name in tables and isinstance(value, dict):
            _check_table(path, name, value, commands)
            continue
        _check_name(path, name, known | tables, "")
        _check_value(path, name, value)


def refuse_code(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise if a file that nobody named makes a command run code, or import any.

    Raises
    ------
    click.UsageError
        If a setting names a class as ``module:Class``, or trusts the code of a model.
    """
    for name, value in settings.items():
        if isinstance(value, Mapping):
            refuse_code(path, value)
        written = _written(name)
        values = value if isinstance(value, list) else [value]
        pairs = [str(one).partition("=") for one in values]
        named = [(written, value), *((_written(one.strip()), other) for one, _, other in pairs)]
        if any(
            one == _TRUST or (one in _OF_BACKENDS and isinstance(other, str) and ":" in other)
            for one, other in named
        ):
            raise click.UsageError(
                f"{path} names code ({name} = {value!r}), which runs only where the file is "
                f"named: blackbox --settings {path} COMMAND"
            )


def addresses_in(defaults: Mapping[str, Any]) -> list[str]:
    """Return the addresses among the settings of a command, without passwords."""
    from blackbox.cli.messages import without_passwords

    names = ("backend_option", "embeddings_option", "writer_option")
    options = [option for name in names for option in defaults.get(name, ())]
    return [without_passwords(option) for option in options if "://" in option]


def defaults_of(
    command: click.Command, path: tuple[str, ...], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of one command as defaults of its parameters.

    Parameters
    ----------
    command : click.Command
        The command.
    path : tuple of str
        Its name, behind that of its group.
    settings : mapping
        From `read_settings`: a command's own table goes before what stands at the top.
    """
    found = dict(settings)
    own: Any = settings
    for name in path:
        own = own.get(name)
        if not isinstance(own, dict):
            break
        found |= own
    options = _options(command)
    return {
        str(options[_written(name)].name): _value(value, options[_written(name)])
        for name, value in found.items()
        if _written(name) in options
    }


def _check_table(
    path: Path, table: str, values: Mapping[str, Any], commands: Mapping[str, click.Command]
) -> None:
    within = {name: command for name, command in commands.items() if name.split()[0] == table}
    known = {name for command in within.values() for name in _options(command)}
    for name, value in values.items():
        deeper = f"{table} {name}"
        if deeper in within and isinstance(value, dict):
            for inner, setting in value.items():
                _check_name(path, inner, _options(within[deeper]), f"[{table}.{name}] ")
                _check_value(path, inner, setting)
            continue
        _check_name(path, name, known, f"[{table}] ")
        _check_value(path, name, value)


def _check_name(path: Path, name: str, known: Iterable[str], where: str) -> None:
    names = sorted(known)
    if _written(name) not in names:
        near = difflib.get_close_matches(_written(name), names, 1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise click.UsageError(f"{path}: {where}{name!r} is no option of a command{hint}")


def _check_value(path: Path, name: str, value: Any) -> None:
    kinds = str | bool | int | float
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    if isinstance(value, dict) and _written(name) != "backend-option":
        raise click.UsageError(f"{path}: {name!r} is a table; only an option's value goes there")
    if not isinstance(value, dict | list | kinds) or not (
        isinstance(value, dict) or all(isinstance(one, kinds) for one in inner)
    ):
        raise click.UsageError(f"{path}: {name!r} takes text, a number, true, false or a list")


def _options(command: click.Command) -> dict[str, click.Option]:
    """Return the options of a command by their long names, without the dashes."""
    found: dict[str, click.Option] = {}
    for param in command.params:
        if isinstance(param, click.Option) and param.expose_value:
            found |= {name[2:]: param for name in param.opts if name.startswith("--")}
    return found


def _written(name: str) -> str:
    return name.replace("_", "-")


def _value(value: Any, option: click.Option) -> Any:
    """Return a value as click takes it; a table becomes NAME=VALUE pairs."""
    name = max(option.opts, key=len).lstrip("-")
    if option.is_flag and not isinstance(value, bool):
        raise click.UsageError(f"the setting {name!r} takes true or false, not {value!r}")
    if isinstance(value, list) and not option.multiple:
        if option.name == "classes":
            return json.dumps(value, ensure_ascii=False)
        raise click.UsageError(f"the setting {name!r} takes one value, not a list")
    if isinstance(value, dict):
        return [f"{name}={json.dumps(inner)}" for name, inner in value.items()]
    return [value] if option.multiple and not isinstance(value, list) else value
