"""Data sets of the Hugging Face hub, through its libraries `datasets` and `huggingface_hub`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blackbox.errors import DataError

__all__ = ["raft_folder", "read_hub"]

_RAFT = "ought/raft"

Table = tuple[list[Any], list[str]]
"""Texts (or pairs) and labels."""

_PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("sentence_A", "sentence_B"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
)
_TEXTS = (
    "text",
    "sentence",
    "content",
    "question",
    "query",
    "review",
    "comment",
    "tweet",
    "document",
    "utterance",
)


def read_hub(name: str) -> tuple[Table, Table]:
    """Read the training split and the test split (validation, if test has no labels).

    Parameters
    ----------
    name : str
        ``owner/name`` or ``owner/name/configuration``.

    Raises
    ------
    DataError
        If it can't be loaded, or its columns can't be identified.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError("hub data sets need: pip install 'promptboosting[hub]'") from error
    parts = name.split("/")
    try:
        found = datasets.load_dataset("/".join(parts[:2]), *parts[2:])
    except Exception as error:  # whatever the hub's client raises
        raise DataError(f"hub:{name} can't be loaded: {error}") from error
    if "train" not in found:
        raise DataError(f"hub:{name} has the splits {', '.join(found)}; train is needed")
    label = _label_column(name, found["train"])
    test = next(
        (split for split in ("test", "validation") if _is_labelled(found, split, label)), None
    )
    if test is None:
        raise DataError(
            f"hub:{name} has the splits {', '.join(found)}; test or validation, with labels, is "
            "needed"
        )
    texts = text_columns(name, found["train"], label)
    return _to_table(found["train"], texts, label), _to_table(found[test], texts, label)


def raft_folder(task: str) -> Path:
    """Return the folder of a task of RAFT, with its ``train.csv``, from the hub or its cache.

    The files are read as they are, as `datasets` no longer runs the script that lies beside them.

    Raises
    ------
    DataError
        If it can't be loaded.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise DataError("hub data sets need: pip install 'promptboosting[hub]'") from error
    try:
        path = hf_hub_download(_RAFT, f"data/{task}/train.csv", repo_type="dataset")
    except Exception as error:  # whatever the hub's client raises
        reason = " ".join(str(error).split())
        raise DataError(
            f"raft:{task}: no such folder in --data-dir, and {_RAFT} can't be loaded: {reason}"
        ) from error
    return Path(path).parent


def _label_column(name: str, split: Any) -> str:
    columns = list(split.features)
    label = next((column for column in ("label", "labels") if column in columns), None)
    if label is None:
        raise DataError(f"hub:{name} has the columns {', '.join(columns)}; none is a label")
    return label


def _is_labelled(found: Any, split: str, label: str) -> bool:
    """Return whether a split exists with labels: benchmarks that hide them have None or -1."""
    return split in found and all(row not in (None, -1) for row in found[split][label])


def text_columns(name: str, split: Any, label: str) -> tuple[str, ...]:
    """Return the text column, or the two of pairs: by name, or the only candidate.

    A column that is equivalent to the label, such as its name in words, is no candidate.

    Raises
    ------
    DataError
        If there is no single candidate.
    """
    for known in (*_PAIRS, *((column,) for column in _TEXTS)):
        if all(column in split.features for column in known):
            return known
    kinds = ("string", "large_string")
    columns = [c for c in split.features if c != label]
    strings = [c for c in columns if getattr(split.features[c], "dtype", "") in kinds]
    texts = [c for c in strings if not _determine_each_other(split[c], split[label])]
    if len(texts) != 1:
        raise DataError(
            f"hub:{name} has the columns {', '.join(columns)}, and it isn't clear which is the "
            "text: call it text (pairs: text and text_pair) in a folder of your own"
        )
    return (texts[0],)


def _determine_each_other(values: Sequence[Any], labels: Sequence[Any]) -> bool:
    """Return whether repeated values of a column determine the label, or the label them."""
    pairs = set(zip(values, labels, strict=True))
    n_values, n_labels = len(set(values)), len(set(labels))
    determines = len(pairs) == n_values and 2 * n_values <= len(values)
    return determines or (len(pairs) == n_labels and n_labels < len(values))


def _to_table(split: Any, texts: Sequence[str], label: str) -> Table:
    names = getattr(split.features[label], "names", None)
    labels = [str(names[row] if names else row) for row in split[label]]
    if len(texts) == 1:
        return list(split[texts[0]]), labels
    return list(zip(*(split[column] for column in texts), strict=True)), labels
