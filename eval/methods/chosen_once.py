"""The program without one part: prompts are chosen once for all rows, and no fold chooses anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self
from unittest.mock import patch

from blackbox import PromptBoostingClassifier
from blackbox.fitting import fit as fitting
from blackbox.fitting.prompt_selection import Selection, select_prompts

__all__ = ["ChosenOnce"]


class ChosenOnce(PromptBoostingClassifier):
    """A classifier whose held-out rows judge prompts that were chosen by them too."""

    def fit(self, *args: Any, **kwargs: Any) -> Self:
        """Fit as the parent does, but for the choice of prompts in folds."""
        with patch.object(fitting, "select_prompts", _chosen_once):
            return super().fit(*args, **kwargs)


def _chosen_once(*args: Any, **kwargs: Any) -> Selection:
    return replace(select_prompts(*args, **kwargs), again=None)
