"""scikit-learn's own estimator checks, which run on numbers only.

`check_estimator` runs nothing on an estimator of texts. So a subclass takes rows of numbers,
writes each row as a text of words and hands that to the real class over the deterministic backend.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, validate_data

from blackbox import PromptBoostingClassifier

LEVELS = np.arange(-5, 5.1, 0.5)


class NumericClassifier(PromptBoostingClassifier):
    """Rows of numbers, each written as words; everything else is the real class."""

    def fit(self, X, y, sample_weight=None):
        X = validate_data(self, X, dtype="numeric")
        return super().fit(as_texts(X), y, sample_weight)

    def _read(self, X):
        check_is_fitted(self)
        return super()._read(as_texts(validate_data(self, X, reset=False, dtype="numeric")))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.string = False
        return tags


def as_texts(X) -> list[str]:
    """For each feature and level a word that says whether the value is above the level."""
    above = np.arcsinh(X)[:, :, None] > LEVELS
    return [
        " ".join(
            f"f{feature}l{level}{'above' if value else 'below'}"
            for (feature, level), value in np.ndenumerate(row)
        )
        for row in above
    ]


FIXED: dict[str, Any] = {
    "backend": "deterministic",
    "backend_options": {"vocabulary_size": 64},
    "prompts": ["{text} one {mask}", "{text} two {mask}"],
    "top_k": 64,
    "n_estimators": 20,
}


@parametrize_with_checks(
    [
        NumericClassifier(**FIXED),
        NumericClassifier(**FIXED, cv=None),
        NumericClassifier(**FIXED, algorithm="samme"),
        NumericClassifier(**FIXED, algorithm="samme", validation_fraction=0),
    ]
)
def test_a_convention_of_scikit_learn(estimator, check):
    check(estimator)
