"""The gate of experts: which ones lower the held-out log-loss clearly, and so stay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from blackbox.boosting.calibration import calibrate, log_losses
from blackbox.experts.base import ExpertScores

__all__ = ["select_experts"]

_STANDARD_ERRORS = 0.5  # by which the mean improvement of a row must exceed 0
_ROUNDING = 0.01  # nats of the summed loss; a weight of 0 changes it by less


def select_experts(
    scores: NDArray[np.float64],
    y: NDArray[np.intp],
    calibration_weight: NDArray[np.float64],
    given: Sequence[ExpertScores],
    candidates: Sequence[ExpertScores],
    *,
    min_temperature: float = 0.5,
    groups: NDArray[np.intp] | None = None,
) -> list[ExpertScores]:
    """Return the candidates that stay, by forward selection.

    A candidate whose weight has a prior mean above 0 stays, as class names do. Each step adds that
    one of the others that lowers the log-loss most, if the mean improvement exceeds half its
    standard error over the rows: a paired test, as the same rows are calibrated with it and without
    it. Rows of one group are one observation. Less than 0.01 nats in all are rounding.

    Parameters
    ----------
    scores, y, calibration_weight, min_temperature
        As for `blackbox.boosting.calibration.calibrate`.
    given : sequence of ExpertScores
        Experts that stay without a test.
    candidates : sequence of ExpertScores
        The others.
    groups : int array of shape (n,), optional
        The groups of the rows; see `blackbox.boosting.splits`.
    """

    def losses(experts: Sequence[ExpertScores]) -> NDArray[np.float64]:
        calibration = calibrate(
            scores, y, calibration_weight, min_temperature=min_temperature, experts=experts
        )
        each = log_losses(calibration.apply(scores, experts), y) * calibration_weight
        return each if groups is None else np.bincount(groups, each).astype(np.float64)

    kept = [one for one in candidates if one.mean > 0]
    left = [one for one in candidates if not one.mean > 0]
    before = losses([*given, *kept]) if left else np.zeros(0)
    while left:
        after = [losses([*given, *kept, one]) for one in left]
        best = int(np.argmin([each.sum() for each in after]))
        if not _is_clearly_lower(after[best], before):
            break
        kept.append(left.pop(best))
        before = after[best]
    return kept


def _is_clearly_lower(after: NDArray[np.float64], before: NDArray[np.float64]) -> bool:
    gains = before - after
    error = float(gains.std(ddof=1)) / np.sqrt(len(gains)) if len(gains) > 1 else np.inf
    return bool(gains.sum() > _ROUNDING and gains.mean() > _STANDARD_ERRORS * error)
