"""Names of scikit-learn that are private or not in every version, in one place.

`setup.cfg` bounds the version to those in which the tests have run with them. From 1.9 on an
estimator takes callbacks (`set_callbacks`), such as `sklearn.callback.ProgressBar`; with an older
version it has no such method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight as check_sample_weight
from sklearn.utils.validation import _check_y as check_y

__all__ = [
    "CallbackSupport",
    "FitTasks",
    "Interval",
    "StrOptions",
    "check_sample_weight",
    "check_y",
    "with_callbacks",
]

F = TypeVar("F", bound=Callable[..., Any])

_STEPS = 100  # tasks of a stage, at most: each stays in the callbacks' tree

if TYPE_CHECKING:

    class CallbackSupport:
        """Mixin of estimators that take callbacks."""

    def with_callbacks(method: F) -> F:
        """Decorate `fit`, so that callbacks are torn down at its end."""
        return method

else:
    try:
        from sklearn.callback import CallbackSupportMixin as CallbackSupport
        from sklearn.callback import with_callbacks
    except ImportError:  # before 1.9

        class CallbackSupport:
            """Mixin of estimators that take callbacks, which this scikit-learn doesn't have."""

        def with_callbacks(method: F) -> F:
            """Return the method as it is."""
            return method


class FitTasks:
    """Tells an estimator's callbacks of a training: a task per stage, with up to 100 steps.

    Called as a progress callback is, with (stage, done, total).

    Parameters
    ----------
    estimator : estimator with `CallbackSupport`
        The estimator whose `fit`, decorated with `with_callbacks`, is running.
    X, y : array-like
        The training data, for callbacks that ask for it.
    """

    def __init__(self, estimator: Any, X: Any, y: Any) -> None:
        self._estimator, self._data = estimator, {"X": X, "y": y}
        self._root: Any = None
        self._stage: Any = None
        self._stage_name = ""
        self._steps_done = 0
        if getattr(estimator, "_skl_callbacks", None):
            self._root = estimator._init_callback_context(max_subtasks=None)
            self._root.call_on_fit_task_begin(estimator=estimator, **self._data)

    def __bool__(self) -> bool:
        return self._root is not None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Begin a task where the stage is new, and its steps so far."""
        if stage != self._stage_name:
            self._end_stage()
            self._stage_name, self._steps_done = stage, 0
            self._stage = self._root.subcontext(
                task_name=stage, max_subtasks=max(1, min(total, _STEPS))
            )
            self._stage.call_on_fit_task_begin(estimator=self._estimator)
        steps = self._stage.max_subtasks
        for _ in range(self._steps_done, min(steps, steps * done // max(total, 1))):
            step = self._stage.subcontext(task_name="step")
            step.call_on_fit_task_begin(estimator=self._estimator)
            step.call_on_fit_task_end(estimator=self._estimator)
            self._steps_done += 1

    def end(self, **fitted: Any) -> None:
        """End the training; `fitted` are the attributes of the fitted estimator."""
        if self:
            self._end_stage()
            self._root.call_on_fit_task_end(
                estimator=self._estimator, **self._data, reconstruction_attributes=lambda: fitted
            )

    def _end_stage(self) -> None:
        if self._stage is not None:
            self._stage.call_on_fit_task_end(estimator=self._estimator)
            self._stage = None
