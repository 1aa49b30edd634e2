"""The statements of a training about its own quality: held-out rows, baselines, warnings."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

import backends
from backends.deterministic import DeterministicBackend
from blackbox import PromptBoostingClassifier
from blackbox.boosting.training import HeldOutPredictions
from blackbox.fitting import assessment
from blackbox.fitting.assessment import assess, warnings_of
from blackbox.languages import share_of_english
from blackbox.model.file import read_model
from blackbox.model.summary import training_facts
from blackbox.tables import read_examples
from tests.test_cli_apis import run

PROMPTS = ["{text} It was {mask}", "{text} A {mask}"]
TEXTS = [f"text {number} is {'lovely' if number % 2 else 'dull'}" for number in range(40)]
LABELS = ["good" if number % 2 else "bad" for number in range(40)]
GERMAN = [
    f"Die Lieferung Nummer {number} ist {'pünktlich' if number % 2 else 'leider viel zu spät'} "
    "angekommen, und niemand hat mir vorher etwas davon gesagt."
    for number in range(40)
]


def fitted(texts=TEXTS, labels=LABELS, lm=None, **parameters):
    model = PromptBoostingClassifier(
        lm or "deterministic", prompts=PROMPTS, store=False, random_state=0, **parameters
    )
    return model.fit(texts, labels)


def warned(model, words):
    return [line for line in model.training_summary_.get("warnings", []) if words in line]


def held_out(probabilities, n_folds=5):
    rows = np.arange(len(probabilities))
    folds = [(rows[rows % n_folds != fold], rows[rows % n_folds == fold]) for fold in range(5)]
    return HeldOutPredictions(folds, rows, np.asarray(probabilities))


def assessed(probabilities, labels, texts=TEXTS):
    y = np.unique(labels, return_inverse=True)[1]
    examples = [(text, None) for text in texts]
    return assess(held_out(probabilities), examples, y, np.ones(len(y)), np.arange(len(y)))


def test_the_figures_are_those_of_the_rows_that_were_held_out():
    y = np.array([label == "good" for label in LABELS], int)
    sure = np.where(y[:, None] == [0, 1], 0.8, 0.2)
    sure[:10] = sure[:10, ::-1]
    found = assessed(sure, LABELS)
    assert found["accuracy"] == 0.75
    assert found["log_loss"] == pytest.approx(-(30 * np.log(0.8) + 10 * np.log(0.2)) / 40, abs=1e-4)
    assert (found["accuracy_low"], found["accuracy_high"]) == (0.5981, 0.8581)  # Wilson, by hand
    assert found["most_frequent_accuracy"] == 0.5
    assert found["most_frequent_log_loss"] == 0.6931
    assert found["tfidf_accuracy"] == 1.0


def test_the_baseline_of_the_same_rows_and_folds_is_fitted_once(monkeypatch):
    fitted = []
    plain = assessment._tfidf
    monkeypatch.setattr(assessment, "_tfidf", lambda *given: fitted.append(1) or plain(*given))
    monkeypatch.setattr(assessment, "_known_tfidf", {})
    options = {"prompts": ["{text} It was{mask}"], "store": False, "random_state": 0}
    held_out = [
        PromptBoostingClassifier("deterministic", n_estimators=rounds, **options)
        .fit(TEXTS, labels)
        .training_summary_["held_out"]
        for rounds, labels in ((3, LABELS), (9, LABELS), (3, LABELS[::-1]))
    ]
    assert len(fitted) == 2  # other labels are another baseline
    assert held_out[0]["tfidf_log_loss"] == held_out[1]["tfidf_log_loss"]
    assert held_out[0]["log_loss"] != held_out[1]["log_loss"]


def test_copies_of_a_row_narrow_no_interval():
    y = np.array([0, 1] * 20)
    sure = np.where(y[:, None] == [0, 1], 0.8, 0.2)
    examples = [(text, None) for text in TEXTS]
    found = assess(held_out(sure), examples, y, np.ones(40), np.arange(40) // 4)
    assert found["accuracy_low"] == pytest.approx(0.7225, abs=1e-4)  # of 10 rows, all right


def test_a_model_at_chance_warns_and_says_what_to_try(caplog):
    labels = np.random.default_rng(3).permutation(LABELS)
    model = fitted(labels=labels)
    (line,) = warned(model, "can't be told from chance")
    assert "prompts auto" in line
    assert "more labels" in line
    assert line in caplog.messages
    assert not warned(fitted(), "chance")


def test_a_regression_on_few_rotated_texts_is_that_on_their_sparse_features():
    rng = np.random.default_rng(0)
    features = csr_matrix(rng.random((90, 400)) * (rng.random((90, 400)) < 0.05))
    rotated = assessment._rotated(features)
    assert rotated.shape == (90, 90)
    y = np.arange(90) % 3
    found = [
        LogisticRegression(C=10.0, max_iter=1000, tol=1e-10).fit(given[:60], y[:60])
        for given in (rotated, features)
    ]
    new, sparse = (
        model.predict_proba(given[60:])
        for model, given in zip(found, (rotated, features), strict=True)
    )
    assert np.ptp(sparse) > 0.5
    assert new == pytest.approx(sparse, abs=1e-6)


def test_a_model_below_tfidf_warns_beyond_noise_only():
    y = np.array([label == "good" for label in LABELS], int)
    sure = np.where(y[:, None] == [0, 1], 0.8, 0.2)
    for n_wrong, below in ((2, False), (10, True)):
        guessed = sure.copy()
        guessed[:n_wrong] = guessed[:n_wrong, ::-1]
        lines = warnings_of(assessed(guessed, LABELS), [], [], [])
        assert bool([line for line in lines if "clearly worse than TF-IDF" in line]) == below


def test_an_imbalanced_model_that_knows_which_rows_are_doubtful_is_not_at_chance():
    y = np.array([0] * 36 + [1] * 4)
    likely = np.where(y[:, None] == 0, [0.97, 0.03], [0.6, 0.4])
    found = assessed(likely, y)
    assert found["accuracy"] == found["most_frequent_accuracy"] == 0.9
    assert not found["at_chance"]


def test_class_names_that_no_token_spells_are_named_with_what_to_do():
    (line,) = warned(fitted(), "no token that was read spells 'bad', 'good'")
    assert "--label-word LABEL=WORD" in line
    spelled = [token.decode().strip() for token in fitted().token_bytes_.values()]
    named = dict(zip(("good", "bad"), spelled, strict=False))
    assert not warned(fitted(label_words=named), "no token")


def test_texts_in_a_language_that_the_lm_does_not_know_are_noticed():
    pytest.importorskip("py3langid", reason="the `local` extra")
    lm = DeterministicBackend()
    assert not warned(fitted(GERMAN, lm=lm), "language")
    lm.limits = replace(lm.limits, languages=("en",))
    (line,) = warned(fitted(GERMAN, lm=lm), "100% of the texts are in the language 'de'")
    assert "multilingual" in line
    assert not warned(fitted(lm=lm), "language")


def test_texts_that_are_clearly_english_load_no_language_detector(monkeypatch):
    read = []
    monkeypatch.setattr(
        "blackbox.languages.count_languages",
        lambda texts: read.append(texts) or Counter(de=1),
    )
    english = [("Where have you put the parcel?", None)] * 9
    german = [("Wo haben Sie das Paket abgelegt?", None)]
    assert not warnings_of(None, english + german, (), ("en",))
    assert not read
    (line,) = warnings_of(None, english, (), ("fr",))
    assert "100% of the texts are in the language 'en'" in line
    assert not read
    # a fifth of them may be another language's
    (line,) = warnings_of(None, english + 3 * german, (), ("en",))
    assert "in the language 'de'" in line
    assert len(read) == 1


@pytest.mark.data
@pytest.mark.parametrize("language", ["eng", "deu", "fra", "spa", "swh", "arb", "hin", "zho"])
def test_only_english_texts_look_english(language, benchmark_data):
    texts = [
        str(text) for text in read_examples(benchmark_data / f"sib200_{language}/train.csv").texts
    ]
    share = share_of_english(texts)
    assert share > 0.9 if language == "eng" else share < 0.05


@pytest.mark.parametrize("parameters", [{"cv": None}, {"algorithm": "samme"}])
def test_what_is_not_cross_validated_says_so(parameters):
    model = fitted(**parameters)
    facts = dict(training_facts(model.classes_.tolist(), model.training_summary_))
    if "cv" in parameters:
        assert facts["held-out rows"].startswith("none, so its quality is unknown")
    else:
        assert "on 20 held-out rows, by which rounds were chosen" in facts["accuracy"]


def test_a_model_shows_its_held_out_accuracy_and_its_warnings(tmp_path):
    model = fitted()
    assert "accuracy 100.0% on held-out rows" in repr(model.model_)
    assert "TF-IDF, no LM: 100.0%" in model._repr_html_()
    assert "warning: no token" in model._repr_html_()
    path = tmp_path / "m.blackbox"
    model.save(path)
    assert read_model(path).summary == json.loads(json.dumps(model.training_summary_))
    shown = run("inspect", path)
    assert "20 held-out" not in shown.stdout
    assert "100.0% on 40 held-out rows, cross-validated" in shown.stdout
    assert "warning              no token" in shown.stdout


def test_evaluate_says_how_many_rows_were_trained_on(tmp_path):
    path = tmp_path / "m.blackbox"
    fitted().save(path)
    for first, seen in ((0, 40), (30, 10), (100, 0)):
        table = tmp_path / "t.csv"
        rows = [f"text {n} is {'lovely,good' if n % 2 else 'dull,bad'}" for n in range(first, 40)]
        rows += [f"new {n} is dull,bad" for n in range(5)]
        table.write_text("\n".join(["text,label", *rows]))
        command = ("evaluate", path, table, "--backend", "deterministic")
        assert json.loads(run(*command, "--json").stdout)["n_rows_trained_on"] == seen
        said = f"was trained on the texts of {seen} of {len(rows)} rows"
        assert (said in run(*command).stderr) == (seen > 0)


def test_a_pair_was_trained_on_only_as_that_pair():
    pairs = [(text, "so it is") for text in TEXTS]
    model = PromptBoostingClassifier(
        "deterministic", prompts=["{text} {text_pair} {mask}"], store=False, random_state=0
    ).fit(pairs, LABELS)
    asked = [pairs[0], (pairs[0][0], "or not"), pairs[7]]
    assert model.model_.trained_on(asked).tolist() == [True, False, True]


def test_the_embedded_lm_says_which_languages_it_knows():
    from backends.catalogue import CATALOGUE

    assert CATALOGUE["smollm2-135m"].languages == ("en",)
    assert backends.load("deterministic").limits.languages == ()
