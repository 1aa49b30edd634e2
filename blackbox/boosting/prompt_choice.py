"""Prompts that were chosen by labelled rows, to be chosen again in each fold of cross-validation.

Rows by which prompts were chosen look better under them than new texts do, however well the rest of
a training holds them out. So a fold chooses anew, by the rows that it boosts on: nested
cross-validation (Varma and Simon, "Bias in error estimation when using cross-validation for model
selection", 2006).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.passes import Answers

__all__ = ["PromptChoice"]


@dataclass(frozen=True)
class PromptChoice:
    """How the prompts of a training were chosen.

    Parameters
    ----------
    candidates : Answers
        Of the n training rows under C candidates, all answered.
    chosen : list of int
        The candidates that were chosen by all rows, in the order of the training's answers.
    choose : callable
        Takes an int array of rows, and returns the candidates that these rows alone would choose:
        as many, and different ones.
    """

    candidates: Answers
    chosen: list[int]
    choose: Callable[[NDArray[np.intp]], list[int]]

    def by(self, rows: NDArray[np.intp]) -> list[int]:
        """Return the candidates chosen by some of the rows.

        One that all rows chose too stands in the same place; the others take the places left, in
        their order.
        """
        found = self.choose(rows)
        others = iter([number for number in found if number not in self.chosen])
        return [number if number in found else next(others) for number in self.chosen]
