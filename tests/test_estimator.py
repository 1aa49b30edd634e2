"""The classifier: scikit-learn's conventions on texts, the row policy, and what it asks the LM."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle
import re
import threading
import time
from functools import cache

import joblib
import numpy as np
import pandas as pd
import pytest
from fakes import CountingBackend, PlainBackend, RefusingBackend, text_of
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score, cross_validate
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, MultiLabelBinarizer
from threadpoolctl import threadpool_limits

from backends.deterministic import DeterministicBackend
from blackbox import Prompt, PromptBoostingClassifier, PromptPool
from blackbox.errors import (
    BackendError,
    BackendIdentityError,
    BudgetError,
    PromptError,
    RowError,
    UnservedPromptError,
)
from blackbox.model import model as model_module


@pytest.fixture(autouse=True, scope="module")
def _one_blas_thread():
    # of products this small, threads on a busy machine make waiting
    with threadpool_limits(1, "blas"):
        yield


PROMPTS = ["{text} It was {mask}", "<user>{text} Which kind?<assistant>This is {mask}"]
PAIR_PROMPTS = ["{text} and {text_pair} It was {mask}"]
KINDS = {"good": ["lovely", "bright", "warm"], "bad": ["dull", "bleak", "cold"], "odd": ["queer"]}
NOISE = ["day", "went", "while", "we", "sat", "talked", "rain", "roads", "bread", "time", "home"]
BOTH = pytest.mark.parametrize("algorithm", ["logit", "samme"])


def written(n: int, kinds=("good", "bad"), seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts of the kinds in turn, each with an own name, and their labels."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for number in range(n):
        labels.append(kinds[number % len(kinds)])
        words = [*rng.choice(NOISE, 5), *rng.choice(KINDS[labels[-1]], 2)]
        texts.append(f"row{seed}x{number} " + " ".join(rng.permutation(words)))
    return texts, labels


TEXTS, LABELS = written(40)
THREE, THREE_LABELS = written(45, ("good", "bad", "odd"))
NEW, NEW_LABELS = written(30, ("good", "bad", "odd"), seed=1)


def classifier(backend="deterministic", **changed):
    """Two fixed prompts, few rounds, and all rows to boost on."""
    small = {"prompts": PROMPTS, "n_estimators": 20, "n_screening_rows": 6, "random_state": 0}
    return PromptBoostingClassifier(backend, **{"validation_fraction": 0, **small, **changed})


@cache
def fitted(algorithm="logit", kinds=2):
    """A classifier that tests only read."""
    texts, labels = (TEXTS, LABELS) if kinds == 2 else (THREE, THREE_LABELS)
    return classifier(algorithm=algorithm).fit(texts, labels)


def another(model, backend=None):
    """The same model, which reaches its LM anew."""
    made = pickle.loads(pickle.dumps(model))
    return made if backend is None else made.set_params(backend=backend)


# --- parameters


def test_making_one_only_stores_its_parameters():
    given = {"backend": object(), "prompts": object(), "n_prompts": -1, "class_weight": object()}
    made = PromptBoostingClassifier(**given)
    assert vars(made) == made.get_params(deep=False)
    assert all(vars(made)[name] is value for name, value in given.items())


def test_a_clone_has_the_parameters_and_nothing_learned():
    model = fitted()
    copied = clone(model)
    assert copied.get_params() == model.get_params()
    assert vars(copied) == copied.get_params(deep=False)


def test_parameters_are_set_by_name():
    made = classifier().set_params(algorithm="samme", top_k=7)
    assert (made.get_params()["algorithm"], made.top_k) == ("samme", 7)
    with pytest.raises(ValueError, match="Invalid parameter 'nope'"):
        made.set_params(nope=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"algorithm": "boost"},
        {"n_estimators": 0},
        {"learning_rate": 0.0},
        {"cv": 1},
        {"validation_fraction": 1.0},
        {"top_k": 0},
        {"on_row_error": "skip"},
        {"class_weight": "even"},
        {"callback": 3},
    ],
)
def test_a_parameter_out_of_range_is_refused_in_fit(wrong):
    with pytest.raises(ValueError, match=f"The '{next(iter(wrong))}' parameter"):
        classifier(**wrong).fit(TEXTS, LABELS)


@pytest.mark.parametrize("backend", [CountingBackend(), PlainBackend()])
def test_clones_share_the_backend_that_was_given_as_an_object(backend):
    assert clone(classifier(backend)).backend is backend


def test_clones_share_a_callback_with_its_owner():
    class Progress(list):
        def add(self, stage, done, total):
            self.append(done)

    progress = Progress()
    clone(classifier(callback=progress.add)).fit(TEXTS, LABELS)
    assert progress


def test_a_clone_keeps_its_output_container():
    assert isinstance(
        clone(classifier().set_output(transform="pandas")).fit_transform(TEXTS, LABELS),
        pd.DataFrame,
    )


# --- repeatable


def same_model(one, other) -> bool:
    return (
        one.prompts_ == other.prompts_
        and one.training_summary_ == other.training_summary_
        and np.array_equal(one.transform(NEW), other.transform(NEW))
        and np.array_equal(one.decision_function(NEW), other.decision_function(NEW))
    )


@BOTH
def test_the_same_seed_gives_the_same_model_and_another_may_not(algorithm):
    def trained(seed):
        model = classifier(algorithm=algorithm, validation_fraction=0.5, random_state=seed)
        return model.fit(TEXTS, LABELS)

    assert same_model(trained(3), trained(3))
    assert not all(same_model(trained(3), trained(seed)) for seed in (4, 5))


def test_the_same_seed_chooses_the_same_prompts_and_another_may_not():
    def chosen(seed):
        model = classifier(prompts=None, n_prompts=2, random_state=seed).fit(TEXTS, LABELS)
        return model.prompts_, model.training_summary_["screening_losses"]

    assert chosen(3) == chosen(3)
    assert chosen(3) != chosen(4)


@BOTH
def test_fitting_again_starts_over(algorithm):
    model = classifier(algorithm=algorithm).fit(THREE, THREE_LABELS)
    assert same_model(model.fit(TEXTS, LABELS), fitted(algorithm))


def test_a_random_state_object_is_drawn_from():
    one = classifier(random_state=np.random.RandomState(5), algorithm="samme").fit(TEXTS, LABELS)
    other = classifier(random_state=np.random.RandomState(5), algorithm="samme").fit(TEXTS, LABELS)
    assert same_model(one, other)


METHODS = ["decision_function", "predict_proba", "predict", "transform"]


@pytest.mark.parametrize("top_k_only", [False, True])
@pytest.mark.parametrize("kinds", [2, 3])
@BOTH
def test_a_row_is_answered_the_same_alone_in_a_batch_and_in_any_order(
    algorithm, kinds, top_k_only, monkeypatch
):
    model = fitted(algorithm, kinds)
    if top_k_only:
        model = another(model, PlainBackend())
    whole = {method: getattr(model, method)(NEW) for method in METHODS}
    order = np.random.default_rng(0).permutation(len(NEW))
    shuffled = [NEW[row] for row in order]
    for method in METHODS:
        call = getattr(model, method)
        assert np.array_equal(np.concatenate([call([text]) for text in NEW]), whole[method])
        assert np.array_equal(call(shuffled), whole[method][order])
        assert np.array_equal(call(NEW[5:12]), whole[method][5:12])
    monkeypatch.setattr(model_module, "_CHUNK", 7)
    for method in METHODS:
        assert np.array_equal(getattr(model, method)(NEW), whole[method])


@BOTH
def test_predictions_in_threads_do_not_disturb_one_another(algorithm):
    model = another(fitted(algorithm)).set_params(on_row_error="abstain")
    inputs = [NEW[:1], ["", *NEW], [*NEW, ""], NEW * 3]
    right = [model.predict_proba(X) for X in inputs]
    wrong = []

    def work(number):
        for _ in range(10):
            try:
                got = model.predict_proba(inputs[number])
                if not np.array_equal(got, right[number], equal_nan=True):
                    wrong.append(number)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- pickle and joblib


@BOTH
def test_a_pickled_model_reaches_its_lm_again(algorithm, tmp_path):
    model = classifier(CountingBackend(), algorithm=algorithm).fit(TEXTS, LABELS)
    path = tmp_path / "model.joblib"
    joblib.dump(model, path)
    for back in (pickle.loads(pickle.dumps(model)), joblib.load(path), copy.deepcopy(model)):
        assert "_lm" not in vars(back)
        assert np.array_equal(back.predict_proba(NEW), model.predict_proba(NEW))


def test_another_lm_than_the_trained_one_is_refused():
    with pytest.raises(BackendIdentityError, match="seed-1"):
        another(fitted(), DeterministicBackend(seed=1)).predict(NEW)


def test_another_lm_is_refused_after_a_plan_and_after_prompts_were_generated():
    model = another(fitted(), DeterministicBackend(seed=1))
    model.plan(TEXTS, LABELS)
    model.set_params(max_forward_passes=3)
    for fails in (model.generate_prompts, model.fit):
        with pytest.raises(BudgetError):
            fails(TEXTS, LABELS)
    model.set_params(max_forward_passes=None)
    with pytest.raises(BackendIdentityError, match="seed-1"):
        model.predict(NEW)


def test_a_training_that_fails_leaves_the_trained_model_as_it_was():
    model = classifier(DeterministicBackend()).fit(pd.DataFrame({"text": TEXTS}), LABELS)
    new = pd.DataFrame({"text": NEW})
    before = model.predict_proba(new)
    model.set_params(backend=DeterministicBackend(seed=1), max_forward_passes=1)
    with pytest.raises(BudgetError):
        model.fit(pd.DataFrame({"body": TEXTS}), LABELS)
    model.set_params(max_forward_passes=None)
    assert np.array_equal(model.predict_proba(new), before)
    assert model.feature_names_in_.tolist() == ["text"]
    model.fit(TEXTS, LABELS)
    assert not hasattr(model, "feature_names_in_")
    assert model.connect().identity.model.startswith("seed-1")


@pytest.mark.parametrize("method", [*METHODS, "staged_predict", "staged_decision_function"])
def test_an_untrained_one_says_so(method):
    with pytest.raises(NotFittedError):
        # a generator begins to work when it is read
        list(getattr(classifier(), method)(NEW))


def test_an_untrained_one_has_no_features_and_is_not_saved(tmp_path):
    for call in (classifier().get_feature_names_out, lambda: classifier().save(tmp_path / "m")):
        with pytest.raises(NotFittedError):
            call()


# --- labels


@pytest.mark.parametrize(
    "names",
    [["gut", "schlecht"], [7, -2], [True, False], [1.0, 2.0], ["b", "a", "c"], [3, 2, 1]],
    ids=str,
)
@BOTH
def test_predictions_are_labels_as_they_were_given(names, algorithm):
    numbers = [["good", "bad", "odd"].index(label) % len(names) for label in THREE_LABELS]
    y = np.array(names)[numbers]
    model = classifier(algorithm=algorithm).fit(THREE, y)
    predicted = model.predict(THREE)
    assert model.classes_.tolist() == sorted(names)
    assert predicted.dtype == model.classes_.dtype == y.dtype
    assert (predicted == y).mean() > 0.8


def test_labels_in_a_series_or_list_are_taken():
    in_series = classifier().fit(pd.Series(TEXTS), pd.Series(LABELS))
    categories = classifier().fit(TEXTS, pd.Series(LABELS, dtype="category"))
    assert in_series.predict(NEW).tolist() == fitted().predict(NEW).tolist()
    assert categories.predict(NEW).tolist() == fitted().predict(NEW).tolist()


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (["good"] * 40, "only one class"),
        (None, "requires y"),
        (LABELS[:-1], "inconsistent numbers of samples"),
        (np.linspace(0, 1, 40), "Unknown label type"),
        ([np.nan, *[1.0] * 39], "contains NaN"),
        ([[1, 0]] * 40, "no label tells the texts apart"),
    ],
    ids=["one", "none", "fewer", "continuous", "nan", "2-d"],
)
def test_labels_that_cannot_be_learned_are_refused(y, said):
    backend = CountingBackend()
    with pytest.raises(ValueError, match=said):
        classifier(backend).fit(TEXTS, y)
    assert not backend.calls


def test_a_label_that_is_missing_among_words_is_refused():
    for missing in (None, np.nan):
        with pytest.raises((ValueError, TypeError)):
            classifier().fit(TEXTS, np.array([missing, *LABELS[1:]], object))


def test_one_row_is_enough_to_predict_and_too_few_to_train():
    assert fitted().predict(NEW[:1]).shape == (1,)
    with pytest.raises(ValueError, match="only one class"):
        classifier().fit(TEXTS[:1], LABELS[:1])


@BOTH
def test_one_row_a_class_is_enough_to_train(algorithm):
    model = classifier(algorithm=algorithm).fit(["lovely", "dull"], ["good", "bad"])
    assert model.predict(["lovely", "dull"]).tolist() == ["good", "bad"]


# --- texts


@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        iter,
        np.array,
        lambda texts: np.array(texts, object),
        lambda texts: np.array(texts)[:, None],
        pd.Series,
        lambda texts: pd.Series(texts, dtype="string", index=range(100, 100 + len(texts))),
        lambda texts: pd.Series(texts, dtype="category"),
        lambda texts: pd.DataFrame({"text": texts}),
    ],
)
def test_texts_may_come_in_any_container(form):
    model = classifier().fit(form(TEXTS), LABELS)
    assert np.array_equal(model.predict_proba(form(NEW)), fitted().predict_proba(NEW))


@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        lambda pairs: [list(pair) for pair in pairs],
        np.array,
        lambda pairs: np.array(pairs, object),
        lambda pairs: pd.DataFrame(pairs, columns=["one", "other"]),
    ],
)
def test_pairs_may_come_in_any_container(form):
    pairs = [(text, text[::-1]) for text in TEXTS]
    expected = classifier(prompts=PAIR_PROMPTS).fit(pairs, LABELS).predict_proba(pairs)
    model = classifier(prompts=PAIR_PROMPTS).fit(form(pairs), LABELS)
    assert np.array_equal(model.predict_proba(form(pairs)), expected)


def test_both_texts_of_a_pair_are_asked_for_with_the_built_in_prompts():
    backend = CountingBackend()
    pairs = [(text, f"second{number}") for number, text in enumerate(TEXTS)]
    model = classifier(backend, prompts=None, n_prompts=2).fit(pairs, LABELS)
    assert all(prompt.takes_pair for prompt in model.prompts_)
    assert all("row" in text_of(asked) and "second" in text_of(asked) for asked in backend.asked)


@pytest.mark.parametrize(
    ("X", "error", "said"),
    [
        ("a single text", TypeError, "single str"),
        (b"bytes", TypeError, "single str"),
        (5, TypeError, "sequence of texts"),
        ([1, 2], TypeError, "row 0: a text is a str or a pair"),
        (["a", 2], TypeError, "row 1: a text is a str, got int"),
        (["a", ("b", "c")], TypeError, "row 1: a text is a str, got tuple"),
        ([("a", "b"), "c"], TypeError, r"row 1: expected a pair"),
        ([("a", "b"), ("c",)], TypeError, r"row 1: expected a pair"),
        ([("a", "b"), ("c", 3)], TypeError, "row 1: a text is a str, got int"),
        ([("a", "b", "c")], TypeError, "row 0"),
        (np.array([["a", "b", "c"]]), ValueError, "3 columns"),
        (pd.DataFrame({"a": ["x"], "b": ["y"], "c": ["z"]}), ValueError, "3 columns"),
        (np.empty((1, 1, 1), object), ValueError, "dimensions"),
        (np.array("text"), ValueError, "dimensions"),
        ([], ValueError, "0 sample"),
        (np.empty((0, 1), object), ValueError, "0 sample"),
    ],
)
def test_what_is_no_text_is_refused_before_the_lm_is_asked(X, error, said):
    backend = CountingBackend()
    with pytest.raises(error, match=said):
        classifier(backend).fit(X, LABELS[:2])
    with pytest.raises(error, match=said):
        fitted().predict(X)
    assert not backend.calls


def test_bytes_that_are_no_image_are_refused_with_what_a_text_is():
    backend = CountingBackend()
    with pytest.raises(RowError, match=r"row 0: not an image: .* a text is a str"):
        classifier(backend).fit([b"bytes", b"more"], LABELS[:2])
    with pytest.raises(ValueError, match="holds images but the model was trained on single texts"):
        fitted().predict([b"bytes", b"more"])
    assert not backend.calls


def test_pairs_for_a_model_of_single_texts_are_refused():
    pairs = [("a", "b")]
    with pytest.raises(ValueError, match="holds pairs but the model was trained on single texts"):
        fitted().predict(pairs)
    backend = CountingBackend()
    with pytest.raises(PromptError, match="the texts are pairs"):
        classifier(backend).fit(pairs * 2, ["a", "b"])
    with pytest.raises(PromptError, match="there is one text"):
        classifier(backend, prompts=PAIR_PROMPTS).fit(TEXTS, LABELS)
    assert not backend.calls


# --- weights

WEIGHTS = np.array([0.0, 1.0, 2.0, 3.0, 1.0] * 8)


def repeated(weights):
    rows = np.repeat(np.arange(len(weights)), weights.astype(int))
    return [TEXTS[row] for row in rows], [LABELS[row] for row in rows]


@pytest.mark.parametrize("class_weight", [None, "balanced", {"good": 3.0}])
@pytest.mark.parametrize(
    "changed",
    [{"cv": None}, {"algorithm": "samme", "validation_fraction": 0}],
    ids=["logit", "samme"],
)
def test_a_weight_says_how_often_a_row_stands(changed, class_weight):
    weighted = classifier(class_weight=class_weight, **changed).fit(TEXTS, LABELS, WEIGHTS)
    same = classifier(class_weight=class_weight, **changed).fit(*repeated(WEIGHTS))
    for method in ("predict_proba", "transform"):
        ours, theirs = (getattr(model, method)(NEW) for model in (weighted, same))
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_a_row_of_weight_zero_is_not_asked_for():
    backend = CountingBackend()
    classifier(backend, prompts=None, n_prompts=2).fit(TEXTS, LABELS, WEIGHTS)
    asked = {text for request in backend.asked for text in TEXTS if text in text_of(request)}
    assert asked == {text for text, weight in zip(TEXTS, WEIGHTS, strict=True) if weight}


@BOTH
def test_a_class_of_weight_zero_is_no_class(algorithm):
    weights = [float(label != "odd") for label in THREE_LABELS]
    model = classifier(algorithm=algorithm).fit(THREE, THREE_LABELS, weights)
    assert model.classes_.tolist() == ["bad", "good"]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0] * 39, "sample_weight"),
        ([-1.0] + [1.0] * 39, "[Nn]egative"),
        ([0.0] * 40, "zero"),
        ([np.nan] + [1.0] * 39, "NaN"),
        ([float(label == "good") for label in LABELS], "only one class"),
    ],
    ids=["fewer", "negative", "zero", "nan", "one class"],
)
def test_weights_that_make_no_sense_are_refused(weights, said):
    with pytest.raises(ValueError, match=said):
        classifier().fit(TEXTS, LABELS, weights)


@BOTH
def test_class_weights_multiply_the_weights_of_rows(algorithm):
    texts, labels = TEXTS[:-15:2] + TEXTS[1::2], LABELS[:-15:2] + LABELS[1::2]
    n_good, n_bad = labels.count("good"), labels.count("bad")
    assert n_good < n_bad
    ways = {"good": len(labels) / 2 / n_good, "bad": len(labels) / 2 / n_bad}
    in_rows = classifier(algorithm=algorithm).fit(texts, labels, [ways[label] for label in labels])
    for class_weight in ("balanced", ways):
        model = classifier(algorithm=algorithm, class_weight=class_weight).fit(texts, labels)
        assert model.predict_proba(NEW) == pytest.approx(in_rows.predict_proba(NEW), abs=1e-6)
    plain = classifier(algorithm=algorithm).fit(texts, labels)
    assert not np.allclose(plain.predict_proba(NEW), in_rows.predict_proba(NEW), atol=1e-3)


def test_classes_are_balanced_over_the_rows_that_got_an_answer():
    gone = list(range(0, 30, 2))
    model = classifier(RefusingBackend(), class_weight="balanced", on_row_error="abstain")
    model.fit(with_refused(TEXTS, *gone), LABELS)
    kept = [row for row in range(40) if row not in gone]
    without = classifier(class_weight="balanced").fit(
        [TEXTS[row] for row in kept], [LABELS[row] for row in kept]
    )
    assert np.array_equal(model.predict_proba(NEW), without.predict_proba(NEW))


def test_a_class_weight_for_no_class_is_refused():
    with pytest.raises(ValueError, match=r"class_weight has \['nope'\], which are no labels"):
        classifier(class_weight={"nope": 1.0}).fit(TEXTS, LABELS)


# --- scores


@BOTH
def test_scores_have_a_column_a_class_but_one_dimension_for_two(algorithm):
    assert fitted(algorithm, 2).decision_function(NEW).shape == (len(NEW),)
    assert fitted(algorithm, 3).decision_function(NEW).shape == (len(NEW), 3)


@pytest.mark.parametrize("kinds", [2, 3])
@BOTH
def test_probabilities_sum_to_one_and_agree_with_the_labels(algorithm, kinds):
    model = fitted(algorithm, kinds)
    probabilities = model.predict_proba(NEW)
    assert probabilities.shape == (len(NEW), kinds)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(len(NEW)))
    assert (probabilities >= 0).all()
    predicted = model.predict(NEW).tolist()
    assert model.classes_[probabilities.argmax(axis=1)].tolist() == predicted
    assert model.labels_from_proba(probabilities).tolist() == predicted


@pytest.mark.parametrize("kinds", [2, 3])
@BOTH
def test_the_last_stage_is_the_whole_model(algorithm, kinds):
    model = fitted(algorithm, kinds)
    scores, labels = list(model.staged_decision_function(NEW)), list(model.staged_predict(NEW))
    assert len(scores) == len(labels) == len(model.estimators_) == len(model.estimator_weights_)
    assert scores[-1] == pytest.approx(model.decision_function(NEW), abs=1e-5)
    assert labels[-1].tolist() == model.predict(NEW).tolist()
    assert len({part.tobytes() for part in scores}) > 1


@pytest.mark.parametrize("kinds", [2, 3])
@BOTH
def test_it_learns_what_the_words_say(algorithm, kinds):
    known = [row for row, label in enumerate(NEW_LABELS) if kinds == 3 or label != "odd"]
    texts, labels = [NEW[row] for row in known], [NEW_LABELS[row] for row in known]
    assert fitted(algorithm, kinds).score(texts, labels) > 0.8


# --- transform


@BOTH
def test_features_are_named_one_by_one(algorithm):
    model = fitted(algorithm)
    names = model.get_feature_names_out()
    features = model.transform(NEW)
    assert features.shape == (len(NEW), len(names))
    assert features.dtype == np.float32
    assert len(set(names)) == len(names)
    assert all(re.match(r"prompt\d+_\d+_ \w+", name) for name in names)


@pytest.mark.parametrize("form", [list, pd.Series, lambda t: pd.DataFrame({"text": t}, index=t)])
def test_features_come_as_a_frame_on_request(form):
    model = another(fitted()).set_output(transform="pandas")
    frame = model.transform(form(NEW))
    assert frame.columns.tolist() == model.get_feature_names_out().tolist()
    assert frame.index.tolist() == (NEW if isinstance(form(NEW), pd.DataFrame) else [*range(30)])


# --- in scikit-learn's own tools


def test_it_ends_a_pipeline():
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    pipeline = make_pipeline(lower, classifier()).fit([text.upper() for text in TEXTS], LABELS)
    assert np.array_equal(pipeline.predict_proba(NEW), fitted().predict_proba(NEW))


def test_it_is_a_step_of_a_pipeline():
    union = FeatureUnion([("logit", classifier()), ("samme", classifier(algorithm="samme"))])
    pipeline = make_pipeline(union, LogisticRegression()).fit(TEXTS, LABELS)
    assert pipeline.score(TEXTS, LABELS) > 0.8
    assert len(pipeline[:-1].get_feature_names_out()) == pipeline[-1].n_features_in_


def test_cross_validation_runs_in_processes():
    scores = cross_val_score(classifier(), TEXTS, LABELS, cv=4, n_jobs=2)
    assert scores.tolist() == cross_val_score(classifier(), TEXTS, LABELS, cv=4).tolist()
    assert scores.mean() > 0.7


GRID = {"learning_rate": [0.1, 0.5], "n_estimators": [5, 10]}


def test_a_search_over_parameters_uses_one_backend_object(monkeypatch):
    monkeypatch.setattr(CountingBackend, "constructed", 0)
    backend = CountingBackend()
    search = GridSearchCV(classifier(backend), GRID, cv=2).fit(TEXTS, LABELS)
    assert search.best_estimator_.backend is backend
    assert search.best_estimator_.connect() is backend
    assert CountingBackend.constructed == 1


def test_a_search_over_parameters_starts_a_backend_of_a_name_once(monkeypatch):
    monkeypatch.setattr(CountingBackend, "constructed", 0)
    named = classifier("fakes:CountingBackend", backend_options={"seed": 11})
    search = GridSearchCV(named, GRID, cv=2).fit(TEXTS, LABELS)
    again = clone(search.best_estimator_).fit(TEXTS, LABELS)
    assert again.connect() is search.best_estimator_.connect()
    assert CountingBackend.constructed == 1


def test_texts_with_several_labels_use_one_engine(monkeypatch):
    monkeypatch.setattr(CountingBackend, "constructed", 0)
    tags = [{label, "early" if row % 3 else "late"} for row, label in enumerate(LABELS)]
    texts = [f"{text} {' '.join(sorted(tag))}" for text, tag in zip(TEXTS, tags, strict=True)]
    binarizer = MultiLabelBinarizer()
    Y = binarizer.fit_transform(tags)
    named = classifier("fakes:CountingBackend", backend_options={"seed": 12})
    model = OneVsRestClassifier(named).fit(texts, Y)
    assert (model.predict(texts) == Y).mean() > 0.8
    assert model.predict_proba(texts).shape == Y.shape
    assert CountingBackend.constructed == 1


@BOTH
def test_its_probabilities_can_be_calibrated(algorithm):
    model = CalibratedClassifierCV(classifier(algorithm=algorithm), cv=3)
    probabilities = model.fit(THREE, THREE_LABELS).predict_proba(NEW)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(len(NEW)))
    assert (model.predict(NEW) == np.array(NEW_LABELS)).mean() > 0.7


# --- rows without an answer

MISSING = [None, np.nan, pd.NA, "", "  \n"]


@pytest.mark.parametrize("missing", MISSING, ids=repr)
@pytest.mark.parametrize("form", [list, lambda t: np.array(t, object), pd.Series])
def test_a_missing_text_falls_under_the_row_policy(missing, form):
    with pytest.raises(RowError, match="row 3: empty text") as caught:
        classifier().fit(form([*TEXTS[:3], missing, *TEXTS[4:]]), LABELS)
    assert caught.value.reasons == {3: "empty text"}
    with pytest.raises(RowError, match="row 0: empty text"):
        fitted().predict(form([missing, *NEW]))


def test_a_missing_text_of_a_pair_falls_under_the_row_policy():
    pairs = pd.DataFrame({"one": TEXTS, "other": [None, *TEXTS[1:]]})
    with pytest.raises(RowError, match="row 0: empty text"):
        classifier(prompts=PAIR_PROMPTS).fit(pairs, LABELS)


def test_missing_texts_are_found_in_a_column_of_strings():
    column = pd.Series([*TEXTS[:39], None], dtype="string")
    with pytest.raises(RowError, match="row 39: empty text"):
        classifier().fit(column, LABELS)


def test_empty_rows_are_named_before_anything_is_spent_even_if_they_empty_a_class():
    backend = CountingBackend()
    texts = ["" if label == "bad" else text for text, label in zip(TEXTS, LABELS, strict=True)]
    with pytest.raises(RowError, match=r"row 1: empty text \(and 19 other rows\)") as caught:
        classifier(backend).fit(texts, LABELS)
    assert caught.value.reasons == dict.fromkeys(range(1, 40, 2), "empty text")
    assert not backend.calls


def with_refused(texts, *rows):
    return [f"forbidden {text}" if row in rows else text for row, text in enumerate(texts)]


@BOTH
def test_a_row_that_the_lm_refuses_is_an_error_with_row_and_reason(algorithm):
    model = classifier(RefusingBackend(), algorithm=algorithm)
    with pytest.raises(RowError, match=r"row 4: content filter \(and 1 other row\)") as caught:
        model.fit(with_refused(TEXTS, 4, 9), LABELS)
    assert caught.value.reasons == {4: "content filter", 9: "content filter"}
    assert pickle.loads(pickle.dumps(caught.value)).reasons == caught.value.reasons
    model.fit(TEXTS, LABELS)
    with pytest.raises(RowError, match="row 2: content filter") as caught:
        model.predict(with_refused(NEW, 2))
    assert caught.value.reasons == {2: "content filter"}


@pytest.mark.parametrize("top_k_only", [False, True])
@BOTH
def test_a_row_without_an_answer_abstains(algorithm, top_k_only):
    backend = RefusingBackend()
    model = classifier(
        PlainBackend(backend) if top_k_only else backend,
        algorithm=algorithm,
        on_row_error="abstain",
    ).fit(TEXTS, LABELS)
    mixed = ["", *with_refused(NEW, 1)]
    expected = model.predict_proba(NEW)
    probabilities = model.predict_proba(mixed)
    assert model.row_errors_ == {0: "empty text", 2: "content filter"}
    assert np.isnan(probabilities[[0, 2]]).all()
    assert np.isnan(model.decision_function(mixed)[[0, 2]]).all()
    assert np.isnan(model.transform(mixed)[[0, 2]]).all()
    answered = [1, *range(3, len(mixed))]
    assert np.array_equal(probabilities[answered], expected[[0, *range(2, len(NEW))]])
    with pytest.raises(RowError, match=r"2 rows got no answer.*row 0.*abstain_label") as caught:
        model.predict(mixed)
    assert caught.value.reasons == {0: "empty text", 2: "content filter"}
    for label in ("unknown", -1):
        predicted = model.set_params(abstain_label=label).predict(mixed)
        assert predicted[[0, 2]].tolist() == [label, label]
        assert predicted[answered].tolist() == model.predict(NEW)[[0, *range(2, 30)]].tolist()
    assert model.predict(NEW).dtype == model.classes_.dtype
    assert model.row_errors_ == {}


@BOTH
def test_nothing_but_rows_without_an_answer_is_fine_too(algorithm):
    model = another(fitted(algorithm, 3)).set_params(on_row_error="abstain", abstain_label="?")
    assert np.isnan(model.predict_proba(["", ""])).all()
    assert model.predict(["", ""]).tolist() == ["?", "?"]
    assert model.transform(["", ""]).shape == (2, len(model.get_feature_names_out()))


@BOTH
def test_in_training_a_row_without_an_answer_is_left_out_and_counted(algorithm):
    backend = RefusingBackend()
    texts = with_refused([*TEXTS[:5], "", *TEXTS[6:]], 8)
    model = classifier(backend, algorithm=algorithm, on_row_error="abstain").fit(texts, LABELS)
    kept = [row for row in range(40) if row not in (5, 8)]
    without = classifier(algorithm=algorithm).fit(
        [TEXTS[row] for row in kept], [LABELS[row] for row in kept]
    )
    assert model.training_summary_["n_rows"] == 38
    assert model.training_summary_["n_rows_left_out"] == 2
    assert model.row_errors_ == {5: "empty text", 8: "content filter"}
    assert np.array_equal(model.predict_proba(NEW), without.predict_proba(NEW))


def test_a_row_refused_under_one_prompt_alone_abstains():
    model = classifier(RefusingBackend("forbidden", "Which kind"), on_row_error="abstain")
    model.fit(with_refused(TEXTS, 3), LABELS)
    assert model.row_errors_ == {3: "content filter"}
    assert np.isnan(model.predict_proba(with_refused(NEW, 6))[6]).all()


def test_rows_refused_while_prompts_are_tried_are_left_out():
    model = classifier(
        RefusingBackend(), prompts=None, n_prompts=2, n_screening_rows=20, on_row_error="abstain"
    ).fit(with_refused(TEXTS, *range(0, 40, 8)), LABELS)
    assert model.row_errors_ == dict.fromkeys(range(0, 40, 8), "content filter")
    assert model.training_summary_["n_rows"] == 35


def test_a_row_refused_under_a_prompt_that_was_only_tried_is_kept():
    backend = RefusingBackend("forbidden", "Topic:")
    model = classifier(backend, prompts=None, n_prompts=1, n_screening_rows=40)
    model.fit(with_refused(TEXTS, *range(8)), LABELS)
    assert "Topic:" not in model.prompts_[0].template
    assert model.row_errors_ == {}
    assert model.training_summary_["n_rows"] == 40


@pytest.mark.parametrize("prompts", [None, PROMPTS], ids=["screened", "fixed"])
def test_an_lm_that_refuses_every_row_is_an_error(prompts):
    model = classifier(RefusingBackend("row"), prompts=prompts)
    with pytest.raises(RowError, match=r"row \d+: content filter"):
        model.fit(TEXTS, LABELS)
    with pytest.raises(RowError, match="no usable row left"):
        model.set_params(on_row_error="abstain").fit(TEXTS, LABELS)


@pytest.mark.parametrize("emptied", ["", "forbidden"])
def test_a_class_without_a_usable_row_is_an_error(emptied):
    odd = [label == "odd" for label in THREE_LABELS]
    texts = [emptied if gone else text for text, gone in zip(THREE, odd, strict=True)]
    model = classifier(RefusingBackend(), on_row_error="abstain")
    with pytest.raises(RowError, match="class 'odd' has no usable row") as caught:
        model.fit(texts, THREE_LABELS)
    assert sorted(caught.value.reasons) == list(range(2, 45, 3))


# --- what is read of an answer


@cache
def trained_on_many(algorithm):
    texts, labels = written(200, ("good", "bad", "odd"), seed=5)
    return classifier(algorithm=algorithm, n_estimators=None).fit(texts, labels)


class Scoring(PlainBackend):
    """Gives few next tokens and scores any."""

    def __init__(self, **limits):
        super().__init__(**{"max_top_k": 5, "max_score_ids": 500, **limits})

    def score(self, prompts, token_ids):
        assert len(token_ids) <= self.limits.max_score_ids
        return self._engine.score(prompts, token_ids)


@BOTH
def test_top_k_answers_and_scores_give_the_same_labels(algorithm):
    model = trained_on_many(algorithm)
    texts, _ = written(500, ("good", "bad", "odd"), seed=6)
    scored, read = another(model, Scoring()).predict(texts), model.predict(texts)
    assert (scored == read).mean() >= 0.99


@BOTH
def test_features_from_top_k_answers_and_from_scores_agree_above_the_floor(algorithm):
    model = trained_on_many(algorithm)
    floors = np.concatenate(
        [np.full(len(part.token_ids), part.floor, np.float32) for part in model.ensemble_.readings]
    )
    scored, read = another(model, Scoring()).transform(NEW), model.transform(NEW)
    assert (scored >= floors).all()
    assert (read >= floors).all()
    reported = read > floors
    assert reported.mean() > 0.3
    assert read[reported] == pytest.approx(scored[reported], abs=1e-6)
    assert (scored >= read).all()


def test_more_tokens_than_the_backend_gives_are_not_asked_for(caplog):
    with caplog.at_level(logging.WARNING, logger="blackbox"):
        model = classifier(PlainBackend(max_top_k=150), top_k=400).fit(TEXTS, LABELS)
    assert model.top_k_ == 150
    assert model.top_k == 400
    assert "top_k=400 lowered to 150" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="blackbox"):  # nobody asked for the default
        assert classifier(PlainBackend(max_top_k=150)).fit(TEXTS, LABELS).top_k_ == 150
    assert "lowered" not in caplog.text
    assert model.score(TEXTS, LABELS) > 0.8


def test_a_backend_without_log_probabilities_is_refused():
    with pytest.raises(BackendError, match="no log-probabilities"):
        classifier(PlainBackend(max_top_k=0)).fit(TEXTS, LABELS)


def test_low_coverage_of_the_top_k_is_a_warning():
    class Vague(PlainBackend):
        def next_token(self, prompts, top_k):
            answers = super().next_token(prompts, top_k)
            return dataclasses.replace(answers, log_probs=answers.log_probs - 2)

    with pytest.warns(UserWarning, match=r"hold \d+% of the probability .* raise top_k"):
        model = classifier(Vague()).fit(TEXTS, LABELS)
    assert model.training_summary_["top_k_coverage"] < 0.3


def test_texts_that_the_lm_answers_alike_cannot_be_told_apart():
    with pytest.raises(ValueError, match="answers all training texts alike"):
        classifier().fit(["same"] * 8, ["a", "b"] * 4)


def test_scores_are_asked_for_in_parts_where_a_call_takes_few_tokens():
    few, many = (another(fitted(), Scoring(max_score_ids=most)) for most in (7, 500))
    assert np.array_equal(few.predict_proba(NEW), many.predict_proba(NEW))


# --- long texts


@pytest.mark.parametrize("counts_tokens", [True, False])
def test_a_text_too_long_is_cut_and_counted_and_the_template_is_not(counts_tokens):
    engine = CountingBackend(context_length=40)
    backend = engine if counts_tokens else PlainBackend(engine, context_length=160)
    texts = [text + " and more" * 40 * (row in (3, 11)) for row, text in enumerate(TEXTS)]
    model = classifier(backend).fit(texts, LABELS)
    assert model.truncated_rows_ == {3, 11}
    assert model.training_summary_["n_rows_truncated"] == 2
    asked = [text_of(request) for request in engine.asked]
    assert {text.endswith((" It was", "This is")) for text in asked} == {True}
    assert sum("Which kind?" in text for text in asked) == len(texts)
    assert all(text in " ".join(asked) for text in TEXTS)
    model.predict([*NEW, NEW[0] + " and more" * 40])
    assert model.truncated_rows_ == {30}
    model.predict(NEW)
    assert model.truncated_rows_ == set()


def test_of_a_pair_the_longer_text_is_cut():
    backend = CountingBackend(context_length=40)
    pairs = [(text, "brief" if row else "long " * 99) for row, text in enumerate(TEXTS)]
    model = classifier(backend, prompts=PAIR_PROMPTS).fit(pairs, LABELS)
    assert model.truncated_rows_ == {0}
    assert any(text_of(asked).startswith(TEXTS[0] + " and long") for asked in backend.asked)


def test_a_template_that_fills_the_context_alone_is_refused():
    backend = CountingBackend(context_length=10)
    with pytest.raises(PromptError, match="alone fills the context"):
        classifier(backend, prompts=["word " * 12 + "{text} {mask}"]).fit(TEXTS, LABELS)
    assert not backend.calls


# --- backends


class OnlyProperties(PlainBackend):
    """Has all attributes of a backend as a class already."""


@pytest.mark.parametrize("wrong", [object(), 3, DeterministicBackend, OnlyProperties])
def test_what_is_no_backend_is_refused(wrong):
    with pytest.raises(TypeError, match="backend must be a name or an object"):
        classifier(wrong).fit(TEXTS, LABELS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("determinstic", "did you mean 'deterministic'"),
        ("zzz", "module:Class"),
        ("no_such_module:Class", "can't be imported"),
        ("fakes:NoSuchClass", "can't be imported"),
        ("fakes:text_of", "can't be made"),
        ("collections:OrderedDict", "makes no backend"),
    ],
)
def test_a_backend_that_cannot_be_had_is_an_error_that_says_why(name, said):
    with pytest.raises(BackendError, match=said):
        classifier(name).fit(TEXTS, LABELS)


def test_options_that_a_backend_does_not_take_are_an_error():
    with pytest.raises(BackendError, match="these options"):
        classifier(model="some-model").fit(TEXTS, LABELS)


def test_nothing_is_spent_when_a_prompt_cannot_be_served():
    engine = CountingBackend()
    with pytest.raises(UnservedPromptError, match="chat"):
        classifier(PlainBackend(engine, chat=False)).fit(TEXTS, LABELS)
    with pytest.raises(UnservedPromptError, match="answer is begun"):
        classifier(PlainBackend(engine, answer_prefix=False)).fit(TEXTS, LABELS)
    with pytest.raises(PromptError, match="comes after"):
        classifier(engine, prompts=[PROMPTS[0], "It was {mask}: {text}"]).fit(TEXTS, LABELS)
    assert not engine.calls


def test_a_backend_without_conversations_gets_none():
    engine = CountingBackend()
    backend = PlainBackend(engine, chat=False, answer_prefix=False)
    model = classifier(backend, prompts=None, n_prompts=2).fit(TEXTS, LABELS)
    assert not any(prompt.is_chat for prompt in model.prompts_)
    assert not any(request.messages for request in engine.asked)


# --- prompts


def test_prompts_may_come_as_a_list_a_pool_or_a_file(tmp_path):
    pool = PromptPool(PROMPTS)
    pool.write(tmp_path / "pool.txt")
    forms = [
        tuple(PROMPTS),
        [Prompt(template) for template in PROMPTS],
        pool,
        tmp_path / "pool.txt",
        str(tmp_path / "pool.txt"),
    ]
    for prompts in forms:
        model = classifier(prompts=prompts).fit(TEXTS, LABELS)
        assert model.prompts_ == pool
        assert same_model(model, fitted())


@pytest.mark.parametrize("wrong", [[], ["no slots"], "no-such-file.txt", [3]])
def test_prompts_that_cannot_be_used_are_refused(wrong):
    with pytest.raises(PromptError):
        classifier(prompts=wrong).fit(TEXTS, LABELS)


@pytest.mark.parametrize(("algorithm", "n_prompts"), [("logit", 1), ("logit", 4), ("samme", 4)])
def test_as_many_prompts_are_chosen_as_were_asked_for(algorithm, n_prompts):
    model = classifier(algorithm=algorithm, prompts=None, n_prompts=n_prompts, n_estimators=60)
    model.fit(TEXTS, LABELS)
    assert len(model.prompts_) == n_prompts
    losses = model.training_summary_["screening_losses"]
    assert len(losses) == model.training_summary_["n_prompts_tried"] > 20


def test_a_candidate_that_is_always_refused_is_not_chosen_and_leaves_the_others_as_they_are():
    usual = classifier(prompts=None, n_prompts=4).fit(TEXTS, LABELS)
    template = usual.prompts_[0].template
    word = max(re.findall(r"[A-Za-z]+", re.sub(r"{\w+}", "", template)), key=len)
    model = classifier(RefusingBackend(word), prompts=None, n_prompts=4).fit(TEXTS, LABELS)
    assert len(model.prompts_) == 4
    assert not any(word in prompt.template for prompt in model.prompts_)
    before, after = (m.training_summary_["screening_losses"] for m in (usual, model))
    refused = [number for number, loss in enumerate(after) if loss is None]
    assert refused
    assert len(refused) < len(after) / 2
    # those that were tried on as many rows are judged alike
    assert sum(x == y for x, y in zip(before, after, strict=True)) > len(after) / 2
    assert json.loads(json.dumps(model.training_summary_)) == model.training_summary_


def test_built_in_prompts_that_fill_the_context_are_no_candidates():
    options = {"prompts": None, "n_prompts": 3, "task": "quite " * 100}
    whole = classifier(**options).fit(TEXTS, LABELS)
    model = classifier(DeterministicBackend(context_length=64), **options)
    planned = model.plan(TEXTS, LABELS)
    model.fit(TEXTS, LABELS)
    assert model.usage_.passes_made == planned.passes
    assert not any("quite" in prompt.template for prompt in model.prompts_)
    tried = (m.training_summary_["n_prompts_tried"] for m in (model, whole))
    assert 0 < next(tried) < next(tried)
    model.set_params(backend=DeterministicBackend(context_length=1))
    with pytest.raises(PromptError, match="no prompt fits the LM's context of 1 token"):
        model.fit(TEXTS, LABELS)


def test_all_candidates_are_taken_where_no_more_are_asked_for_than_there_are():
    backend = CountingBackend()
    model = classifier(backend, prompts=None, n_prompts=500, n_estimators=200).fit(TEXTS, LABELS)
    assert len(model.prompts_) == model.training_summary_["n_prompts_tried"]
    assert model.training_summary_["screening_losses"] is None
    assert model.usage_.passes_made == len(backend.asked) == len(TEXTS) * len(model.prompts_)


def test_a_task_and_names_of_classes_reach_the_prompts():
    backend = CountingBackend()
    model = classifier(
        backend,
        prompts=None,
        n_prompts=99,
        n_estimators=200,
        task="Which mood?",
        class_names={0: "joyful", 1: "gloomy"},
    ).fit(TEXTS, [["good", "bad"].index(label) for label in LABELS])
    templates = " ".join(prompt.template for prompt in model.prompts_)
    assert "Which mood?" in templates
    assert "joyful or gloomy" in templates
    with pytest.raises(
        ValueError,
        match=r"class_names has \['nope'\], which are no labels; the labels are 'bad', 'good'",
    ):
        classifier(class_names={"nope": "x"}, prompts=None).fit(TEXTS, LABELS)


# --- forward passes


@pytest.mark.parametrize("changed", [{}, {"prompts": None, "n_prompts": 3}])
@BOTH
def test_no_forward_pass_is_made_twice_in_a_fit(algorithm, changed):
    backend = CountingBackend()
    model = classifier(backend, algorithm=algorithm, n_screening_rows=12, **changed)
    model.fit(TEXTS, LABELS)
    assert {name for name, _ in backend.calls} == {"next_token"}
    assert len(backend.asked) == len(set(backend.asked)) == model.usage_.passes_made
    n_tried = model.training_summary_["n_prompts_tried"]
    # all on half of the screening rows, twice the wanted on the other half, the wanted on the rest
    expected = 6 * n_tried + 6 * 6 + 28 * 3 if changed else 40 * 2
    assert model.usage_.passes_made == expected
    assert model.usage_.tokens > model.usage_.passes_made


@BOTH
def test_prediction_asks_only_for_the_prompts_that_the_ensemble_reads(algorithm):
    backend = CountingBackend()
    model = classifier(backend, algorithm=algorithm, n_estimators=1)
    model.fit(TEXTS, LABELS)
    backend.calls.clear()
    model.predict(NEW)
    assert len(model.prompts_) == 1
    assert [(name, len(some)) for name, some in backend.calls] == [("next_token", len(NEW))]
    assert model.prediction_usage_.passes_made == len(NEW)


def test_progress_grows_up_to_the_total_in_each_stage():
    seen: dict[str, list[tuple[int, int]]] = {}
    model = classifier(
        prompts=None,
        n_prompts=3,
        n_screening_rows=12,
        callback=lambda stage, done, total: seen.setdefault(stage, []).append((done, total)),
    ).fit(THREE, THREE_LABELS)
    model.predict(NEW)
    assert list(seen) == [
        "trying prompts",
        "trying the better ones",
        "forward passes",
        "predicting",
    ]
    for steps in seen.values():
        done = [step for step, _ in steps]
        assert done == sorted(set(done))
        assert done[-1] == steps[-1][1]
        assert len({total for _, total in steps}) == 1


@pytest.mark.parametrize("changed", [{}, {"prompts": None, "n_prompts": 2}])
@BOTH
def test_training_sees_training_rows_only(algorithm, changed):
    fits: list[set[str]] = []

    class Fitted(PromptBoostingClassifier):
        def fit(self, X, y):
            self.backend.calls.clear()
            super().fit(X, y)
            fits.append({re.search(r"row\S+", text_of(asked))[0] for asked in self.backend.asked})
            return self

    model = Fitted(**classifier(CountingBackend(), algorithm=algorithm, **changed).get_params())
    folds = StratifiedKFold(2)
    cross_validate(model, TEXTS, LABELS, cv=folds)
    expected = [{TEXTS[row].split()[0] for row in train} for train, _ in folds.split(TEXTS, LABELS)]
    assert fits == expected


# --- the number of rounds, and many classes


def test_the_rounds_of_samme_are_picked_on_rows_that_it_is_not_boosted_on():
    model = classifier(algorithm="samme", validation_fraction=0.25).fit(THREE, THREE_LABELS)
    summary = model.training_summary_
    assert (summary["n_rows_boosted"], summary["n_rows_validation"]) == (34, 11)
    assert summary["n_rounds"] == len(model.estimators_) < 20
    assert fitted("samme", 3).training_summary_["n_rows_validation"] == 0
    assert fitted("samme", 3).training_summary_["n_rounds"] == 20


def test_calibration_changes_probabilities_and_no_label():
    plain, calibrated = classifier(cv=None).fit(THREE, THREE_LABELS), fitted(kinds=3)
    assert plain.predict(NEW).tolist() == calibrated.predict(NEW).tolist()
    assert "temperature" not in plain.training_summary_
    temperature = calibrated.training_summary_["temperature"]
    ratio = plain.decision_function(NEW) / calibrated.decision_function(NEW)
    assert ratio == pytest.approx(np.full(ratio.shape, temperature), rel=1e-3)


@BOTH
def test_77_classes_of_4_rows_are_trained_in_seconds(algorithm):
    names = [f"intent{number}" for number in range(77)] * 4
    texts = [f"please {row % 5} {name} {name} {name}" for row, name in enumerate(names)]
    started = time.process_time()
    model = classifier(algorithm=algorithm).fit(texts, names)
    assert model.predict_proba(texts).shape == (308, 77)
    assert model.score(texts, names) > 0.8
    assert time.process_time() - started < 20
