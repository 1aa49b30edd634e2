"""Promises of a request: an error rate of the labels given, and prediction sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from blackbox.model.model import Model
from blackbox.model.reliability import Promise
from blackbox.service.models import LoadedModel, Reply
from blackbox.service.problems import Problem

__all__ = ["check_promises", "keep_promises"]


def check_promises(
    loaded: LoadedModel, max_error: float | None, set_coverage: float | None
) -> Promise | None:
    """Return what a request wants promised of errors, before anything is asked.

    Parameters
    ----------
    loaded : LoadedModel
        The model.
    max_error : float, optional
        See `Model.promise`.
    set_coverage : float, optional
        See `Model.prediction_sets`.

    Raises
    ------
    Problem
        If the model can't promise it (422).
    """
    if max_error is None and set_coverage is None:
        return None
    if loaded.early_stop is not None:
        raise Problem(
            422, "max_error and set_coverage take probabilities; this service stops early"
        )
    try:
        if set_coverage is not None:
            loaded.model.prediction_sets(np.empty((0, len(loaded.model.classes))), set_coverage)
        return None if max_error is None else loaded.model.promise(max_error)
    except ValueError as error:
        raise Problem(422, str(error)) from None


def keep_promises(
    model: Model, replies: Sequence[Reply], promise: Promise | None, set_coverage: float | None
) -> list[Reply]:
    """Return replies without the labels that a promise rules out, and with prediction sets.

    Parameters
    ----------
    model : Model
        The model.
    replies : sequence of Reply
        Its replies, with probabilities.
    promise : Promise, optional
        From `check_promises`.
    set_coverage : float, optional
        As there.
    """
    if promise is None and set_coverage is None:
        return list(replies)
    labels = model.classes.tolist()
    missing = dict.fromkeys(map(str, labels), np.nan)
    shares = [list((reply.probabilities or missing).values()) for reply in replies]
    probabilities = np.array(shares).reshape(len(replies), len(labels))
    kept = list(replies)
    if promise is not None:
        for row, why in promise.withheld(probabilities).items():
            if not kept[row].is_none:
                kept[row] = replace(kept[row], label=None, reason=why)
    if set_coverage is not None:
        for row, chosen in enumerate(model.prediction_sets(probabilities, set_coverage)):
            names = [label for label, is_in in zip(labels, chosen, strict=True) if is_in]
            names += [kept[row].label] if kept[row].is_none else []
            kept[row] = replace(kept[row], prediction_set=names or None)
    return kept
