"""Data sets of the evaluation: where they come from, and their rows.

A data set is named in one of these ways:

- ``trec``: a folder of ``--data-dir`` with ``train.csv`` and ``test.csv``, columns ``text``,
  ``label`` and, for pairs, ``text_pair``;
- ``glue:RTE``: a folder of the GLUE download, tab-separated; its ``dev.tsv`` is the test split;
- ``raft:overruling``: a task of RAFT (Alex et al., NeurIPS 2021), from a folder in its layout or
  else from the hub. Its fifty labelled rows are the training split; the labels of its test rows are
  hidden, so it has no test split, and is cross-validated;
- ``fifty:trec``: a folder as above in RAFT's setting: a seed draws fifty labelled rows, whatever
  their classes, and the two texts of a pair are joined;
- ``noisy:trec`` and others: one of them, made harder (`eval.data.variants`);
- ``hub:owner/name``: a data set of the Hugging Face hub, through the library `datasets`
  (``hub:owner/name/configuration`` where it has several).

`cards.yaml` holds, for each known one, its source and licence, the label word of each class, and
the prompt of the methods that use a single one.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from blackbox import PromptPool
from blackbox.boosting.splits import draw_shots
from blackbox.errors import DataError
from blackbox.tables import read_examples
from eval.data import variants

__all__ = [
    "PROMPTS",
    "Card",
    "DataSet",
    "Rows",
    "all_cards",
    "card_of",
    "origins_of",
    "read_data_set",
]

_HERE = Path(__file__).parent

PROMPTS = _HERE / "prompts"
"""The folder of hand-written pools, one file per data set."""
_TEST_SEED = 0  # the same test rows for every method and seed
_GLUE = {  # folder: text, text pair, label
    "SST-2": ("sentence", None, "label"),
    "RTE": ("sentence1", "sentence2", "label"),
    "QNLI": ("question", "sentence", "label"),
    "MRPC": ("#1 String", "#2 String", "Quality"),
    "QQP": ("question1", "question2", "is_duplicate"),
}
_RAFT_LABELS = 50
_N_UNLABELLED = 100  # texts to start from without labels: the program uses no more
_RAFT_OTHERS = ("ID", "Label")


@dataclass(frozen=True)
class Rows:
    """Texts (or pairs) and their labels; no labels where they are not known."""

    texts: list[Any]
    labels: list[str]

    def take(self, rows: Iterable[int]) -> Rows:
        """Return some of the rows, in the order given."""
        chosen = list(rows)
        return Rows([self.texts[row] for row in chosen], [self.labels[row] for row in chosen])

    def without_labels(self) -> Rows:
        """Return the texts alone."""
        return Rows(self.texts, [])

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Card:
    """Description of a data set.

    Parameters
    ----------
    title, source, licence : str
        Shown to people; "unknown" if not documented.
    words : dict of label to str
        The label word of each class; by default the labels themselves.
    descriptions : dict of label to str
        What each class is, in some words.
    manual_prompt : str
        The prompt of the methods that use a single one.
    prompts : str
        The file of its hand-written prompts in ``eval/data/prompts``; empty if there is none.
    note : str
        Caveats for comparisons with published figures.
    """

    title: str = ""
    source: str = "unknown"
    licence: str = "unknown"
    words: dict[str, str] = field(default_factory=dict)
    descriptions: dict[str, str] = field(default_factory=dict)
    manual_prompt: str = "{text}\nLabel: {mask}"
    prompts: str = ""
    note: str = ""

    def pool(self) -> PromptPool:
        """Read the hand-written prompts.

        Raises
        ------
        DataError
            If there are none.
        """
        if not self.prompts:
            raise DataError(
                f"{self.title or 'it'} has no hand-written prompts: name a pool file in the "
                "configuration (prompts)"
            )
        return PromptPool.read(PROMPTS / self.prompts)


@dataclass(frozen=True)
class DataSet:
    """A data set and its two splits.

    Parameters
    ----------
    name : str
        Its name in a configuration.
    train, test : Rows
        Without test rows, it is cross-validated.
    card : Card
        What it is.
    n_labels : int, optional
        The labelled rows, of all classes, that a seed draws from the training split; by default
        all are labelled.
    redraw : callable, optional
        From this data set, shots and a seed to the rows drawn, if not as others.
    """

    name: str
    train: Rows
    test: Rows
    card: Card
    n_labels: int | None = None
    redraw: Callable[[DataSet, int, int], Rows] | None = None

    @property
    def classes(self) -> list[str]:
        """Labels in sorted order."""
        return sorted(set(self.train.labels))

    def class_shares(self) -> dict[str, float]:
        """Return the share of each class in the training split."""
        counts = Counter(self.train.labels)
        return {label: counts[label] / len(self.train) for label in self.classes}

    def words(self) -> dict[str, str]:
        """Return the label word of each class."""
        plain = {label: re.sub(r"[_\W]+", " ", label).strip() for label in self.classes}
        return plain | self.card.words

    def draw(self, shots: int | None, seed: int) -> Rows:
        """Draw `shots` training rows per class, or return all labelled ones if it is None.

        With 0 shots these are 100 rows at random, without their labels.

        Raises
        ------
        DataError
            If there are fewer, or the rows of this data set are drawn in a way of its own.
        """
        if shots == 0:
            order = np.random.default_rng(seed).permutation(len(self.train))[:_N_UNLABELLED]
            return self.train.take(sorted(order.tolist())).without_labels()
        if self.redraw is not None:
            if shots is None:
                raise DataError("it is made by drawing rows: give a number of shots")
            return self.redraw(self, shots, seed)
        if shots is None:
            n = len(self.train) if self.n_labels is None else self.n_labels
            drawn = np.random.default_rng(seed).permutation(len(self.train))[:n]
            return self.train if n >= len(self.train) else self.train.take(sorted(drawn.tolist()))
        return self.train.take(draw_shots(self.train.labels, self.train.texts, shots, seed))

    def test_rows(self, n: int | None) -> Rows:
        """Return at most n test rows, the same for every seed and method."""
        if n is None or n >= len(self.test):
            return self.test
        order = np.random.default_rng(_TEST_SEED).permutation(len(self.test))
        return self.test.take(order[:n].tolist())

    def digest(self) -> str:
        """Return the SHA-256 digest of all rows, and of how they are drawn."""
        drawn = self.redraw.__name__ if self.redraw else ""
        found = hashlib.sha256(f"{drawn}{self.n_labels or ''}".encode())
        for rows in (self.train, self.test):
            for text, label in zip(rows.texts, rows.labels, strict=True):
                found.update(repr((text, label)).encode())
        return found.hexdigest()


@cache
def _cards() -> dict[str, Any]:
    cards: dict[str, Any] = yaml.safe_load((_HERE / "cards.yaml").read_text("utf-8"))
    return cards


def all_cards() -> dict[str, Card]:
    """Return the card of every data set that has one, by name."""
    return {name: card_of(name) for name in _cards()}


def card_of(name: str) -> Card:
    """Return the card of a data set, an empty one if there is none."""
    if name.partition(":")[0] in variants.KINDS:
        return card_of(variants.base_of(name))
    return Card(**_cards().get(name, {"title": name}))


def origins_of(name: str) -> set[str]:
    """Return the local data sets whose rows a data set has: two of a shift, one of any other."""
    kind, colon, rest = name.partition(":")
    if kind in variants.KINDS:
        return {origin for one in rest.split(">") for origin in origins_of(one)}
    return {rest if colon and kind == "fifty" else name}


def read_data_set(name: str, data_dir: Path | None) -> DataSet:
    """Read a data set.

    Raises
    ------
    DataError
        If it doesn't exist, or can't be read.
    """
    kind, colon, rest = name.partition(":")
    if kind in variants.KINDS:
        return variants.make_variant(name, partial(read_data_set, data_dir=data_dir))
    card, n_labels = card_of(name), None
    if not colon:
        train, test = _read_local(name, _folder(data_dir, name))
    elif kind == "glue":
        train, test = _read_glue(rest, _folder(data_dir, rest))
    elif kind == "raft":
        train, test = _read_raft(_raft_folder(data_dir, rest)), Rows([], [])
    elif kind == "fifty":
        train, test = (_joined(rows) for rows in _read_local(rest, _folder(data_dir, rest)))
        card, n_labels = card_of(rest), _RAFT_LABELS
    elif kind == "hub":
        from eval.data.hub import read_hub

        train, test = (Rows(*table) for table in read_hub(rest))
    else:
        kinds = ", ".join(("glue", "raft", "fifty", "hub", *variants.KINDS))
        raise DataError(f"data set {name!r}: {kind!r} is none of {kinds}")
    missing = set(test.labels) - set(train.labels)
    if missing:
        raise DataError(f"data set {name!r}: no training row of class {min(missing)!r}")
    return DataSet(name, train, test, card, n_labels)


def _folder(data_dir: Path | None, name: str) -> Path:
    if data_dir is None:
        raise DataError(f"data set {name!r} is a folder: say with --data-dir where it lies")
    folder = data_dir / name
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; --data-dir must hold {name!r}")
    return folder


def _read_table(path: Path, text: str, pair: str | None, label: str) -> Rows:
    found = read_examples(path, text_column=text, text_pair_column=pair, label_column=label)
    return Rows(list(found.texts), found.labels)


def _read_local(name: str, folder: Path) -> tuple[Rows, Rows]:
    path = folder / "train.csv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    pair = "text_pair" if "text_pair" in header else None
    train, test = (
        _read_table(folder / f"{s}.csv", "text", pair, "label") for s in ("train", "test")
    )
    return train, test


def _read_glue(task: str, folder: Path) -> tuple[Rows, Rows]:
    if task not in _GLUE:
        raise DataError(f"glue:{task} isn't known; there are {', '.join(_GLUE)}")
    train, test = (_read_glue_table(folder / f"{s}.tsv", *_GLUE[task]) for s in ("train", "dev"))
    return train, test


def _read_glue_table(path: Path, text: str, pair: str | None, label: str) -> Rows:
    """Read a table of GLUE, which has no quoting: a quotation mark is part of the text."""
    texts: list[Any] = []
    labels = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                if row.get(label) is None or row.get(text) is None:
                    raise DataError(f"{path}: a row lacks the column {text!r} or {label!r}")
                texts.append(row[text] if pair is None else (row[text], row[pair]))
                labels.append(row[label])
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    return Rows(texts, labels)


def _joined(rows: Rows) -> Rows:
    """Return rows with the two texts of a pair joined, as RAFT joins its columns."""
    texts = [text if isinstance(text, str) else ". ".join(text) for text in rows.texts]
    return Rows(texts, rows.labels)


def _raft_folder(data_dir: Path | None, task: str) -> Path:
    """Return the folder of a task: in the data folder where it is there, or from the hub."""
    if data_dir is not None and (data_dir / task).is_dir():
        return data_dir / task
    from eval.data.hub import raft_folder

    return raft_folder(task)


def _read_raft(folder: Path) -> Rows:
    path = folder / "train.csv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = list(csv.DictReader(file))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    if not table or "Label" not in table[0]:
        raise DataError(f"{path}: RAFT's tables have a column Label")
    columns = [name for name in table[0] if name not in _RAFT_OTHERS]
    return Rows(
        [". ".join(row[name].strip() for name in columns if row[name].strip()) for row in table],
        [row["Label"] for row in table],
    )
