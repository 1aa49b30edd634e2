"""The summary of a training in words: rows, held-out quality beside baselines, and warnings.

A summary may come from a file of somebody else's, so nothing is taken for what it should be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from blackbox.plurals import counted

__all__ = [
    "describe_counts",
    "held_out_labels_of",
    "held_out_of",
    "training_facts",
    "training_warnings",
]

_CLASSES = 12
_FIGURES = (
    "n_rows",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "log_loss",
    "most_frequent_accuracy",
    "most_frequent_log_loss",
    "tfidf_accuracy",
    "tfidf_log_loss",
)
_LABEL_FIGURES = (
    "n_rows",
    "micro_f1",
    "macro_f1",
    "hamming_loss",
    "log_loss",
    "tfidf_micro_f1",
    "tfidf_macro_f1",
    "tfidf_log_loss",
)


def held_out_of(summary: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the figures of `blackbox.fitting.assessment.assess`; None where there are none."""
    found = summary.get("held_out")
    if not isinstance(found, dict):
        return None
    figures = {name: found.get(name) for name in _FIGURES}
    is_whole = all(type(value) in (int, float) for value in figures.values())
    return figures if is_whole else None  # type: ignore[return-value]


def held_out_labels_of(summary: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the figures of `blackbox.fitting.multilabel_assessment.assess_labels`, if any."""
    found = summary.get("held_out_labels")
    if not isinstance(found, dict):
        return None
    figures = {name: value for name, value in found.items() if type(value) in (int, float)}
    return figures if figures.keys() >= set(_LABEL_FIGURES) else None


def training_facts(classes: Sequence[Any], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a training was on and how good its model is, as pairs of a name and words.

    Parameters
    ----------
    classes : sequence
        The labels.
    summary : mapping
        The summary of the training.
    """
    facts = []
    if isinstance(summary.get("n_rows"), int):
        what = " without labels" if summary.get("labels") == "none" else _counts(classes, summary)
        facts.append(("trained on", f"{counted(summary['n_rows'], 'row')}{what}"))
    several = held_out_labels_of(summary)
    if several is not None:
        baseline = summary["held_out_labels"].get("baseline", "TF-IDF")
        return [*facts, *_facts_of_labels(several, f"{baseline}, no LM")]
    found = held_out_of(summary)
    if found is None:
        why = "it saw no label" if summary.get("labels") == "none" else "none"
        facts.append(("held-out rows", f"{why}, so its quality is unknown: use blackbox evaluate"))
        return facts
    n = int(found["n_rows"])
    how = "by which rounds were chosen" if "n_rows_validation" in summary else "cross-validated"
    return [
        *facts,
        (
            "accuracy",
            f"{found['accuracy']:.1%} on {counted(n, 'held-out row')}, {how} (95% interval "
            f"{found['accuracy_low']:.1%} to {found['accuracy_high']:.1%}); log-loss "
            f"{found['log_loss']:.3f}",
        ),
        (
            "most frequent class",
            f"{found['most_frequent_accuracy']:.1%}; log-loss of the class shares "
            f"{found['most_frequent_log_loss']:.3f}",
        ),
        *_errors_in_steps(summary),
        *_none_of_these(summary),
        (
            f"{summary['held_out'].get('baseline', 'TF-IDF')}, no LM",
            f"{found['tfidf_accuracy']:.1%} by logistic regression; log-loss "
            f"{found['tfidf_log_loss']:.3f}",
        ),
    ]


def _facts_of_labels(found: Mapping[str, float], baseline: str) -> list[tuple[str, str]]:
    """Return how good a model of several labels per text is, as pairs of a name and words."""
    whole = ""
    if "subset_accuracy" in found:
        whole = f"; all labels right for {found['subset_accuracy']:.1%} of the rows"
    return [
        (
            "micro F1",
            f"{found['micro_f1']:.1%} on {counted(int(found['n_rows']), 'held-out row')}, "
            f"cross-validated{whole}",
        ),
        (
            "macro F1",
            f"{found['macro_f1']:.1%}; Hamming loss {found['hamming_loss']:.3f}; log-loss "
            f"{found['log_loss']:.3f}",
        ),
        (
            baseline,
            f"micro F1 {found['tfidf_micro_f1']:.1%}, macro F1 {found['tfidf_macro_f1']:.1%} by a "
            f"logistic regression per label; log-loss {found['tfidf_log_loss']:.3f}",
        ),
    ]


def _errors_in_steps(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how far predictions are off, of classes with an order, as a name and words."""
    names = ("mean_absolute_error", "middle_class_error", "tfidf_error")
    error, middle, tfidf = (summary["held_out"].get(name) for name in names)
    if not all(type(one) in (int, float) for one in (error, middle, tfidf)):
        return []
    words = f"{error:.3f} steps; always the middle class {middle:.3f}, TF-IDF {tfidf:.3f}"
    return [("mean absolute error", words)]


def _none_of_these(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how texts of none of the classes are noticed, as a pair of a name and words."""
    found = summary.get("none_of_these")
    if not isinstance(found, dict) or type(found.get("n_outside")) is not int:
        return []
    known, n, rate = found.get("n_known"), found["n_outside"], found.get("false_alarms")
    if type(known) is not int or type(rate) is not float:
        return []
    words = (
        f"{found.get('label')!r} for texts more unusual than {1 - rate:.0%} of {known} held-out "
        "rows"
    )
    recall, auroc = found.get("recall"), found.get("auroc")
    if type(recall) is float and type(auroc) is float:
        words += f"; of {n} such rows it gets {recall:.1%}, AUROC {auroc:.3f}, cross-validated"
    elif not n:
        words += "; how many others that are is unknown: no row has that label"
    return [("none of these", words)]


def training_warnings(summary: Mapping[str, Any]) -> list[str]:
    """Return the warnings of a training; see `blackbox.fitting.assessment.warnings_of`."""
    given = summary.get("warnings")
    return [line for line in given if isinstance(line, str)] if isinstance(given, list) else []


def _counts(classes: Sequence[Any], summary: Mapping[str, Any]) -> str:
    """Return the number of rows of each class, the largest first."""
    counts = summary.get("class_counts")
    if not isinstance(counts, list) or len(counts) != len(classes):
        return ""
    pairs = (pair for pair in zip(classes, counts, strict=True) if isinstance(pair[1], int))
    if "n_labels" not in summary:
        return describe_counts(pairs)
    without = summary.get("n_rows_without_any_label")
    beside = f"; {without} without any label" if isinstance(without, int) and without else ""
    return f"{describe_counts(pairs, 'labels')}{beside}"


def describe_counts(counts: Iterable[tuple[Any, int]], noun: str = "classes") -> str:
    """Return the number of rows of each class in words, the largest first."""
    ranked = sorted(counts, key=lambda pair: (-pair[1], str(pair[0])))
    shown = ", ".join(f"{label} {count}" for label, count in ranked[:_CLASSES])
    more = f" and {len(ranked) - _CLASSES} more {noun}" if len(ranked) > _CLASSES else ""
    return f": {shown}{more}"
