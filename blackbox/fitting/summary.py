"""The summary of a training: figures, assessment, and warnings."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.passes import Answers
from blackbox.backend import BaseBackend
from blackbox.boosting import training
from blackbox.boosting.ensemble import Ensemble
from blackbox.fitting.assessment import assess, warnings_of
from blackbox.fitting.evidence import (
    TrainingVectors,
)
from blackbox.fitting.inputs import TrainingRows
from blackbox.fitting.options import FitOptions
from blackbox.fitting.run import Run
from blackbox.plurals import counted

__all__ = [
    "assessment",
    "bytes_read",
    "figures",
    "warn_of_coverage",
    "warn_of_unspelled",
]

_log = logging.getLogger(__name__)

_LOW_COVERAGE = 0.3
_SHOWN = 5  # classes in a message


def figures(
    run: Run,
    lm: BaseBackend,
    kept: NDArray[np.bool_],
    n_truncated: int,
    embedded: TrainingVectors | None,
    choice: Mapping[str, Any],
    result: training.TrainingResult,
) -> dict[str, Any]:
    """Rows, passes, prompts and rounds, for the summary."""
    rows = run.rows
    n_groups = len(np.unique(rows.groups[kept]))
    names = None if embedded is None else embedded.names
    return {
        "n_rows": int(kept.sum()),
        **({"n_groups": n_groups} if n_groups < kept.sum() else {}),
        "n_rows_left_out": int(rows.n_given - kept.sum()),
        "n_rows_truncated": n_truncated,
        **({"context": lm.describe_context()} if n_truncated else {}),
        "forward_passes": sum(
            one.asked for one in (run.gatherer, run.names, run.unlabelled, run.outside)
        ),
        **({"n_rows_without_label": len(rows.unlabelled)} if rows.unlabelled else {}),
        **({"texts_embedded": len(embedded.rows.values)} if embedded else {}),
        **({} if names is None else {"names_embedded": len(names)}),
        **({"prompt_languages": list(run.task.languages)} if run.chooses_prompts else {}),
        **choice,
        "top_k_coverage": round(result.coverage, 4),
        **result.summary,
    }


def assessment(
    rows: TrainingRows,
    kept: NDArray[np.bool_],
    weights: NDArray[np.float64],
    result: training.TrainingResult,
    options: FitOptions,
    languages: Sequence[str],
) -> dict[str, Any]:
    """Class counts, held-out quality and warnings, which are logged, for the summary."""
    codes, groups = rows.codes[kept], rows.groups[kept]
    texts = [rows.texts[place] for place in np.flatnonzero(kept)]
    found = None
    if result.held_out is not None:
        order = options.order(rows.classes)
        found = assess(result.held_out, texts, codes, weights, groups, order)
    named = rows.classes.tolist()
    given = options.label_words if isinstance(options.label_words, Mapping) else {}
    unspelled = [
        named[c] for c in result.summary.get("names_unspelled", ()) if named[c] not in given
    ]
    lines = [*_of_unseen(rows), *warnings_of(found, texts, unspelled, languages)]
    for line in lines:
        _log.warning("%s", line)
    counts = np.bincount(codes, minlength=len(rows.classes)).tolist()
    return {
        **({"class_counts": counts} if rows.is_labelled else {}),
        **({"held_out": found} if found else {}),
        **({"warnings": lines} if lines else {}),
    }


def _of_unseen(rows: TrainingRows) -> list[str]:
    """Say which classes no labelled row has, where there are labels."""
    unseen = [repr(rows.classes.tolist()[code]) for code in rows.unseen] if rows.is_labelled else []
    if not unseen:
        return []
    more = f" and {counted(len(unseen) - _SHOWN, 'other class')}" if len(unseen) > _SHOWN else ""
    return [
        f"no row has the label {', '.join(unseen[:_SHOWN])}{more}: names alone speak for them, and "
        "how well is unknown, as none can be held out; label some texts of them"
    ]


def bytes_read(run: Run, answers: Answers, ensemble: Ensemble) -> dict[int, bytes]:
    """The bytes of the tokens that an ensemble reads."""
    known = run.sources.token_bytes() | answers.token_bytes
    return {
        token: known[token] for reading in ensemble.readings for token in reading.token_ids.tolist()
    }


def warn_of_unspelled(options: FitOptions, classes: NDArray[Any], unspelled: Sequence[int]) -> None:
    """Warn of label words that no token spells, where the user gave them."""
    given = options.label_words if isinstance(options.label_words, Mapping) else {}
    named = classes.tolist()
    labels = [named[c] for c in unspelled if named[c] in given]
    if labels:
        warnings.warn(
            f"no token that is read spells the label_words of {', '.join(map(repr, labels))}: "
            "give others, or a higher top_k",
            stacklevel=4,
        )


def warn_of_coverage(top_k: int, coverage: float) -> None:
    """Warn where the tokens that were read hold little of the probability."""
    if coverage < _LOW_COVERAGE:
        warnings.warn(
            f"the {top_k} tokens that were read hold {coverage:.0%} of the probability on average: "
            "raise top_k, or use a backend that gives more",
            stacklevel=4,
        )
