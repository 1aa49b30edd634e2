"""Exports of annotation tools, whose text and label lie inside an object: as a flat row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["flat_row", "leaves_out_label", "rows_within"]


_TEXT, _LABEL = "text", "label"
# keys that a flat row goes without, so that it isn't taken for an export again
_OF_PRODIGY = ("_input_hash", "_task_hash", "accept")
_OF_LIGHTTAG = ("content", "classifications")


def flat_row(value: Any) -> tuple[Any, str | None]:
    """Return an object with its text and label as columns, and the tool that wrote it, if known.

    The labels of a row are a list, which `single_label` reads; what the tool calls its questions
    are columns too. A row that nobody has labelled, or that was rejected or skipped, has no label.
    """
    if isinstance(value, dict):
        for tool, read in _TOOLS.items():
            found = read(value)
            if found is not None:
                return found, tool
    return value, None


def leaves_out_label(value: dict[str, Any], row: dict[str, Any], tool: str) -> bool:
    """Return whether the data of an export has a label of its own, which its flat row lacks."""
    data = value.get({"Label Studio": "data", "Argilla": "fields"}.get(tool, ""), {})
    return _LABEL in data and row[_LABEL] is not data[_LABEL]


def rows_within(value: Any) -> list[Any] | None:
    """Return the rows of one object that holds all of them, as LightTag writes it; else None."""
    rows = value.get("examples") if isinstance(value, dict) else None
    return rows if isinstance(rows, list) and rows and _lighttag(rows[0]) is not None else None


def _label_studio(value: dict[str, Any]) -> dict[str, Any] | None:
    """A task with `data` and `annotations`, each of which has the choices of a question."""
    data, annotations = value.get("data"), value.get("annotations")
    if not isinstance(data, dict) or not isinstance(annotations, list):
        return None
    answers: dict[str, Any] = {}
    for annotation in annotations:
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        for result in annotation.get("result") or []:
            chosen = result.get("value", {}).get("choices") if isinstance(result, dict) else None
            if isinstance(chosen, list):
                _add(answers, str(result.get("from_name")), chosen)
    return _row(data, answers)


def _prodigy(value: dict[str, Any]) -> dict[str, Any] | None:
    """A task with an `answer`; what isn't accepted has no label."""
    if "answer" not in value or not ("_task_hash" in value or "_input_hash" in value):
        return None
    accepted = value.get("accept", value.get(_LABEL))
    kept = {key: one for key, one in value.items() if key not in _OF_PRODIGY}
    return {**kept, _LABEL: accepted if value["answer"] == "accept" else None}


def _argilla(value: dict[str, Any]) -> dict[str, Any] | None:
    """A record with `fields` and `responses`, lists of what each user chose for a question."""
    fields, responses = value.get("fields"), value.get("responses")
    if not isinstance(fields, dict) or not isinstance(responses, dict):
        return None
    answers: dict[str, Any] = {}
    for question, given in responses.items():
        for one in given if isinstance(given, list) else []:
            is_kept = isinstance(one, dict) and one.get("status", "submitted") == "submitted"
            if is_kept and isinstance(one.get("value"), str | list):
                chosen = one["value"]
                _add(answers, question, [chosen] if isinstance(chosen, str) else chosen)
    return _row(fields, answers)


def _lighttag(value: dict[str, Any]) -> dict[str, Any] | None:
    """An example with `content` and `classifications`."""
    if not isinstance(value, dict) or not isinstance(value.get("classifications"), list):
        return None
    if not isinstance(value.get("content"), str):
        return None
    answers: dict[str, Any] = {}
    for one in value["classifications"]:
        if isinstance(one, dict) and isinstance(one.get("classname"), str):
            _add(answers, _LABEL, [one["classname"]])
    kept = {key: one for key, one in value.items() if key not in _OF_LIGHTTAG}
    return {**kept, **_row({_TEXT: value["content"]}, answers)}


_TOOLS: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
    "Label Studio": _label_studio,
    "Prodigy": _prodigy,
    "Argilla": _argilla,
    "LightTag": _lighttag,
}


def _add(answers: dict[str, list[Any]], question: str, chosen: list[Any]) -> None:
    """Add what one annotator chose; annotators who agree are one answer."""
    known = answers.setdefault(question, [])
    known += [one for one in chosen if one not in known]


def _row(data: dict[str, Any], answers: dict[str, Any]) -> dict[str, Any]:
    """Return data with the answers; a single question is the label, whatever its name.

    It is so where the data has a label too, such as one that was imported to be checked; a row that
    nobody has answered then has none. Of several questions, none is the label.
    """
    if _LABEL not in answers and (len(answers) < 2 or _LABEL not in data):
        only = next(iter(answers.values())) if len(answers) == 1 else None
        answers = {**answers, _LABEL: only}
    return {**data, **answers}
