"""scikit-learn's own estimator checks, which run on numbers only.

`check_estimator` runs nothing on an estimator of texts. So a subclass takes rows of numbers,
writes each row as a text of words and hands that to the real class over the deterministic backend.
"""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from blackbox import PromptBoostingClassifier

LEVELS = np.arange(-3, 3.1, 0.5)


@pytest.fixture(autouse=True, scope="module")
def _one_blas_thread():
    # of products this small, threads on a busy machine make waiting
    with threadpool_limits(1, "blas"):
        yield


class NumericClassifier(PromptBoostingClassifier):
    """Rows of numbers, each written as words; everything else is the real class."""

    def fit(self, X, y, sample_weight=None):
        return super().fit(as_texts(validate_data(self, X)), y, sample_weight)

    def _predict(self, X, early_stop=None):
        return super()._predict(self._texts(X), early_stop)

    def _read(self, X):
        return super()._read(self._texts(X))

    def _columns_of(self, X):
        """`validate_data` found them, of the numbers."""
        return getattr(self, "feature_names_in_", None)

    def _check_columns(self, X):
        """`validate_data` did, on the numbers."""

    def _texts(self, X):
        check_is_fitted(self)
        return as_texts(validate_data(self, X, reset=False))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.string = False
        return tags


class VotingClassifier(NumericClassifier):
    """The same without a parameter `cv`, by hard votes, and with nothing drawn from the rows."""

    def __init__(self, random_state=None):
        fixed = {"algorithm": "samme", "validation_fraction": 0, "random_state": random_state}
        super().__init__(**FIXED, **fixed)


def as_texts(X: np.ndarray) -> list[str]:
    """For each value a word for every level that it may be above, and one for its whole number."""
    above = np.arcsinh(X)[:, :, None] > LEVELS
    return [
        " ".join(
            [f"f{feature}l{level}{'ab'[is_above]}" for (feature, level), is_above in pairs]
            + [f"f{feature}v{value:.0f}" for feature, value in enumerate(row)]
        )
        for row, pairs in zip(X, map(np.ndenumerate, above.astype(int)), strict=True)
    ]


FIXED = {
    "backend": "deterministic",
    "backend_options": {"vocabulary_size": 64},
    "prompts": ["{text} one {mask}", "{text} two {mask}"],
    "top_k": 64,
    "n_estimators": 10,
}


def excused(estimator: NumericClassifier) -> dict[str, str]:
    """Checks that fail, and why that is right."""
    checks = {
        "check_dict_unchanged": (
            "a prediction notes what it took and which rows got no answer, for the caller: "
            "prediction_usage_, row_errors_, truncated_rows_"
        ),
        "check_sample_weight_equivalence_on_dense_data": (
            "the check puts lists of splits into cv, which is a number of folds here. It runs "
            "without cv below for samme; logit, in single precision, keeps its tolerance of 1e-7 "
            "narrowly not, and 1e-6 in test_estimator"
        ),
    }
    if estimator.algorithm == "samme":
        checks["check_class_weight_classifiers"] = (
            "a vote compares tokens and has no prior: class weights of 1000 and 0.0001 keep it "
            "from errors on the heavy class of 50 noisy rows, which are few enough to be right on "
            "the light one too, so that not 87% of new rows fall to the heavy one"
        )
    return checks


@parametrize_with_checks(
    [NumericClassifier(**FIXED), NumericClassifier(**FIXED, algorithm="samme")],
    expected_failed_checks=excused,
    xfail_strict=True,
)
def test_a_convention_of_scikit_learn(estimator, check, monkeypatch):
    # without it scikit-learn skips a check, that of NumPy's arrays as array API
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    check(estimator)


FURTHER_CHECKS = [
    "check_dataframe_column_names_consistency",
    "check_global_output_transform_pandas",
    "check_param_validation",
    "check_set_output_transform",
    "check_set_output_transform_pandas",
]
"""Run by scikit-learn on its own estimators, and not part of `check_estimator`."""


@pytest.mark.filterwarnings("ignore:X .* feature names")
@pytest.mark.parametrize("name", FURTHER_CHECKS)
def test_a_convention_that_scikit_learn_asks_of_its_own(name):
    getattr(estimator_checks, name)("NumericClassifier", NumericClassifier(**FIXED))


def test_weights_count_as_repeated_rows_by_the_check_of_scikit_learn():
    estimator_checks.check_sample_weight_equivalence_on_dense_data("", VotingClassifier())


def test_the_estimator_of_texts_says_that_it_takes_no_numbers():
    tags = PromptBoostingClassifier().__sklearn_tags__()
    assert (tags.input_tags.two_d_array, tags.input_tags.string) == (False, True)
    assert tags.target_tags.required
    assert (tags.estimator_type, tags.transformer_tags.preserves_dtype) == ("classifier", [])
