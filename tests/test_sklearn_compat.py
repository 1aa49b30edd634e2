"""Parts of scikit-learn that are private or new: within the bounds, and behind one module."""

from __future__ import annotations

import configparser
import re
from numbers import Integral
from pathlib import Path

import numpy as np
import pytest
import sklearn

from blackbox import PromptBoostingClassifier, sklearn_compat
from tests.serving import LABELS, TEXTS

ROOT = Path(__file__).parent.parent


@pytest.fixture
def classifier():
    return PromptBoostingClassifier("deterministic", n_prompts=3, random_state=0, store=False)


class Recorder:
    """Keeps the tasks of a fit, by name and path."""

    def __init__(self):
        self.events, self.scores = [], []

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.events.append(("begin", context.task_name))

    def on_fit_task_end(self, estimator, context, *, X, y, fitted_estimator):
        self.events.append(("end", context.task_name))
        if fitted_estimator is not None:
            self.scores.append(fitted_estimator.score(X, y))


def test_the_installed_version_is_one_that_setup_cfg_allows():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    bound = re.search(r"scikit-learn>=1\.(\d+),<1\.(\d+)", config["options"]["install_requires"])
    assert int(bound[1]) <= int(sklearn.__version__.split(".")[1]) < int(bound[2])


def test_private_names_are_imported_by_one_module_only():
    private = re.compile(r"^\s*from sklearn\S* import .*\b_\w|^\s*from sklearn\S*\._", re.MULTILINE)
    found = [
        path.relative_to(ROOT).as_posix()
        for folder in ("blackbox", "backends")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if private.search(path.read_text())
    ]
    assert found == ["blackbox/sklearn_compat.py"]


def test_private_names_do_what_they_are_used_for():
    assert sklearn_compat.StrOptions({"a"}).is_satisfied_by("a")
    assert not sklearn_compat.Interval(Integral, 1, None, closed="left").is_satisfied_by(0)
    weights = sklearn_compat.check_sample_weight([1, 2], ["a", "b"])
    assert weights.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="NaN"):
        sklearn_compat.check_y(np.array([1.0, np.nan]))


needs_callbacks = pytest.mark.skipif(
    not hasattr(sklearn_compat.CallbackSupport, "set_callbacks"),
    reason="scikit-learn has callbacks from 1.9 on",
)


@needs_callbacks
def test_callbacks_see_a_task_per_stage_and_the_fitted_classifier(classifier):
    recorder = Recorder()
    classifier.set_callbacks(recorder).fit(TEXTS, LABELS)
    events = recorder.events
    assert (events[0], events[1]) == ("setup", ("begin", "fit"))
    assert events[-2:] == [("end", "fit"), "teardown"]
    names = [name for kind, name in events[1:-1] if kind == "begin"]
    assert sorted(names) == sorted(name for kind, name in events[1:-1] if kind == "end")
    assert len(set(names) - {"fit", "step"}) >= 1
    assert names.count("step") >= 2
    assert recorder.scores == [classifier.score(TEXTS, LABELS)]


@needs_callbacks
def test_a_failed_fit_is_torn_down(classifier):
    recorder = Recorder()
    with pytest.raises(ValueError, match="only one class"):
        classifier.set_callbacks(recorder).fit(TEXTS[:1], LABELS[:1])
    assert recorder.events == ["setup", ("begin", "fit"), "teardown"]


@needs_callbacks
def test_stages_have_at_most_a_hundred_steps():
    class Estimator(sklearn_compat.CallbackSupport):
        def score(self, X, y):
            return 1.0

    recorder = Recorder()
    tasks = sklearn_compat.FitTasks(Estimator().set_callbacks(recorder), [], [])
    for done in range(0, 12_345, 5):
        tasks("answers", done, 12_345)
    tasks("answers", 12_345, 12_345)
    tasks("boosting", 3, 3)
    tasks.end()
    begun = [event[1] for event in recorder.events if event[0] == "begin"]
    assert begun == ["fit", "answers", *["step"] * 100, "boosting", *["step"] * 3]


@needs_callbacks
def test_a_search_passes_its_callbacks_on(classifier):
    from sklearn.model_selection import GridSearchCV

    class Propagated(Recorder):
        max_propagation_depth = None

        def on_fit_task_end(self, estimator, context):
            self.events.append(("end", context.estimator_name))

    recorder = Propagated()
    search = GridSearchCV(classifier, {"n_prompts": [1, 2]}, cv=2)
    search.set_callbacks(recorder).fit(TEXTS, LABELS)
    ended = [event[1] for event in recorder.events if event[0] == "end"]
    assert "PromptBoostingClassifier" in ended
    assert "GridSearchCV" in ended


def test_log_probabilities_are_those_of_the_probabilities(classifier):
    classifier.fit(TEXTS, LABELS)
    assert np.allclose(np.exp(classifier.predict_log_proba(TEXTS)), classifier.predict_proba(TEXTS))
