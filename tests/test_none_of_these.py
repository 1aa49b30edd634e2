"""Texts of none of the classes: noticed by held-out rows, in every face of a model."""

from __future__ import annotations

import csv
import io
import json
import warnings
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner

from blackbox import PromptBoostingClassifier, load_model
from blackbox.cli import main
from blackbox.errors import ModelFileError
from blackbox.fitting.out_of_scope import fit_detector, fit_distances, fit_weights
from blackbox.library.folder import Library
from blackbox.library.merging import merge_models
from blackbox.metrics import evaluate, evaluate_detection
from blackbox.model.file import read_model
from blackbox.model.out_of_scope import TextEvidence, centred_log, similarity, unit
from blackbox.model.predictions import NONE_OF_THESE
from tests.fakes import CountingBackend, text_of

PROMPTS = ["{text} It was {mask}", "{text}\nTopic: {mask}", "{text} This is about {mask}"]
WORDS = {
    "sport": ("match", "goal", "team", "player"),
    "money": ("bank", "loan", "market", "price"),
    "food": ("soup", "bread", "apple", "cheese"),
    "other": ("planet", "star", "comet", "moon"),
}
KNOWN = ("food", "money", "sport")


def texts_of(names, n, seed=0):
    """Distinct texts, each with two words of its class."""
    rng = np.random.default_rng(seed)
    labels = [names[number % len(names)] for number in range(n)]
    return [
        " ".join([*rng.choice(WORDS[label], 2), f"no{number}x{seed}"])
        for number, label in enumerate(labels)
    ], labels


def classifier(**options):
    given = {"prompts": PROMPTS, "random_state": 0, "store": False, "none_of_these": "other"}
    return PromptBoostingClassifier("deterministic", **given | options)


def fitted(n_outside=0, **options):
    texts, labels = texts_of(KNOWN, 90)
    more, none = texts_of(["other"], n_outside, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return classifier(**options).fit([*texts, *more], [*labels, *none])


@pytest.fixture(scope="module")
def trained():
    return fitted()


@pytest.fixture(scope="module")
def informed():
    return fitted(8, embeddings="deterministic")


def shares(n, n_classes, seed, spread=3.0):
    """Class probabilities of n rows, and their classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n)
    scores = rng.normal(size=(n, n_classes))
    scores[np.arange(n), y] += spread
    exponentials = np.exp(scores)
    return exponentials / exponentials.sum(axis=1, keepdims=True), y


class TestDetector:
    def test_a_p_value_counts_the_rows_that_are_as_unusual(self):
        probabilities, y = shares(30, 3, 0)
        found = fit_detector("?", TextEvidence(probabilities), y, np.arange(30), np.ones(30))
        known = found.detector.known
        assert found.detector.p_values(known[:1].astype(float)) == pytest.approx([31 / 31])
        assert found.detector.p_values(known[-3:].astype(float)) == pytest.approx(
            [4 / 31, 3 / 31, 2 / 31]
        )
        assert found.detector.p_values(known[-1:] + 1.0) == pytest.approx([1 / 31])

    def test_as_many_known_texts_as_promised_are_taken_for_others(self):
        alarms = []
        for seed in range(40):
            probabilities, y = shares(150, 4, seed)
            train = TextEvidence(probabilities[:100])
            found = fit_detector("?", train, y[:100], np.arange(100), np.ones(100)).detector
            test = found.judge(found.scores(TextEvidence(probabilities[100:])))
            alarms.append(test.rejected.mean())
        # 2,000 texts, whose rate has a standard error of about a hundredth with 100 known rows each
        assert 0.02 < np.mean(alarms) < 0.06

    def test_copies_of_a_group_are_worth_one_row(self):
        probabilities, y = shares(25, 3, 0)
        four = np.repeat(np.arange(25), 4)
        once = fit_detector("?", TextEvidence(probabilities), y, np.arange(25), np.ones(25))
        copied = TextEvidence(probabilities[four])
        several = fit_detector("?", copied, y[four], four, np.full(100, 0.25))
        tested, _ = shares(40, 3, 1)
        evidence = TextEvidence(tested)
        one, other = (each.detector for each in (once, several))
        assert other.known_weight.sum() == pytest.approx(25)
        np.testing.assert_allclose(
            one.judge(one.scores(evidence)).p_known,
            other.judge(other.scores(evidence)).p_known,
            atol=0.15,  # the folds differ
        )

    def test_distances_are_mahalanobis(self):
        probabilities, y = shares(4000, 3, 0)
        logs = centred_log(probabilities)
        found = fit_distances(logs, y).measure(logs[:50])
        # scikit-learn's projections leave out the direction in which log-probabilities have no mean
        basis = np.linalg.svd(np.eye(3) - 1 / 3)[0][:, :2]
        rows = logs @ basis
        centres = np.stack([rows[y == code].mean(axis=0) for code in range(3)])
        rest = rows - centres[y]
        within = np.linalg.inv(rest.T @ rest / (len(y) - 3))
        total = np.linalg.inv(np.cov(rows.T, bias=True))
        steps = rows[:50, None] - centres
        near = np.einsum("nkd,de,nke->nk", steps, within, steps).min(axis=1)
        off = rows[:50] - rows.mean(axis=0)
        expected = near - np.einsum("nd,de,ne->n", off, total, off)
        # variances are drawn towards their mean by a tenth
        assert np.corrcoef(found, expected)[0, 1] > 0.98

    def test_the_nearest_rows_count_and_none_that_is_excluded(self):
        rows = unit(np.array([[1.0, 0], [0.8, 0.6], [0, 1], [-1, 0]]))
        vectors = unit(np.array([[2.0, 0]]))
        assert similarity(vectors, rows.astype(np.float16)) == pytest.approx(
            [(1 + 0.8 + 0) / 3], abs=1e-3
        )
        excluded = np.array([[True, False, False, False]])
        near = similarity(vectors, rows.astype(np.float16), excluded, n_nearest=1)
        assert near == pytest.approx([0.8], abs=1e-3)

    def test_weights_follow_the_rows_and_stay_near_the_prior_without_them(self):
        rng = np.random.default_rng(0)
        known, outside = rng.normal(size=(400, 2)), rng.normal((3, 0), size=(200, 2))
        weights = fit_weights(known, outside, np.array([1.0, 1.0]))
        assert weights[0] > 1.5 > 0.5 > weights[1]
        few = fit_weights(known[:5], outside[:1], np.array([1.0, 1.0]))
        assert few == pytest.approx([1.0, 1.0], abs=0.3)

    def test_too_few_rows_are_an_error(self):
        probabilities, y = shares(18, 2, 0)
        with pytest.raises(ValueError, match="takes 19 independent rows"):
            fit_detector("?", TextEvidence(probabilities), y, np.arange(18), np.ones(18))


class TestMeasures:
    def test_detection_by_hand(self):
        outside = np.array([True, True, False, False, False, False])
        scores = np.array([3.0, 1.0, 2.0, 0.5, 0.1, np.nan])
        found = evaluate_detection(outside, scores, scores > 1.5)
        assert found.n_outside == 2
        assert found.auroc == pytest.approx(5 / 6)
        assert (found.recall, found.false_alarms) == (0.5, pytest.approx(1 / 3))
        assert found.false_alarms_at_95 == pytest.approx(1 / 3)

    def test_rows_of_one_kind_alone_have_no_auroc(self):
        found = evaluate_detection(np.zeros(3, bool), np.arange(3.0), np.zeros(3, bool))
        assert found.auroc is None
        assert found.recall is None
        assert found.false_alarms == 0

    def test_the_label_of_no_class_counts_in_accuracy_and_not_in_the_log_loss(self):
        probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5]])
        found = evaluate(np.array([0, 1, 2]), probabilities, ["a", "b", "?"], np.array([0, 2, 2]))
        assert found.accuracy == pytest.approx(2 / 3)
        assert found.confusion == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]
        assert found.log_loss == pytest.approx(-np.mean(np.log([0.9, 0.6])))


class TestEstimator:
    def test_texts_of_no_class_get_the_label(self, trained):
        known, labels = texts_of(KNOWN, 60, seed=7)
        others, _ = texts_of(["other"], 30, seed=8)
        given = trained.predict([*known, *others])
        assert given.dtype.kind == "U"
        assert (given[:60] == labels).mean() > 0.9
        assert (given[60:] == "other").mean() > 0.9
        assert "other" not in trained.classes_
        found = trained.out_of_scope_
        assert ((found.p_known < 0.05) == (given == "other")).all()

    def test_probabilities_stay_those_of_the_classes(self, trained):
        texts, labels = texts_of(KNOWN, 90)
        plain = classifier(none_of_these=None).fit(texts, labels)
        some = [*texts_of(KNOWN, 10, seed=7)[0], *texts_of(["other"], 5, seed=8)[0]]
        np.testing.assert_array_equal(plain.predict_proba(some), trained.predict_proba(some))

    def test_rows_with_the_label_are_examples_and_no_class(self, informed):
        summary = informed.training_summary_
        assert informed.classes_.tolist() == list(KNOWN)
        assert summary["n_rows"] == 90
        assert summary["none_of_these"]["n_outside"] == 8
        assert list(summary["none_of_these"]["weights"]) == [
            "score",
            "distance",
            "neighbours",
            "like_outside_answers",
            "like_outside_embeddings",
        ]
        assert summary["none_of_these"]["auroc"] > 0.9
        assert summary["forward_passes"] == 3 * 98
        others, _ = texts_of(["other"], 30, seed=8)
        assert (informed.predict(others) == "other").mean() > 0.9

    def test_being_unlike_the_examples_is_no_sign_of_a_class(self, informed):
        detector = informed.model_.out_of_scope
        far = detector.standardise((detector.means - 5 * detector.scales)[None])
        assert far[0, :3] == pytest.approx([-5, -5, -5])
        assert far[0, 3:].tolist() == [0, 0]

    def test_a_text_gets_the_same_alone_and_among_others(self, informed):
        texts = [*texts_of(KNOWN, 20, seed=7)[0], *texts_of(["other"], 20, seed=8)[0]]
        informed.predict(texts)
        together = informed.out_of_scope_.scores
        for row, text in enumerate(texts):
            informed.predict([text])
            assert informed.out_of_scope_.scores[0] == together[row]

    def test_whole_numbers_may_be_labels(self):
        texts, labels = texts_of(KNOWN, 60)
        y = [KNOWN.index(label) for label in labels]
        model = classifier(none_of_these=-1).fit(texts, y)
        given = model.predict([*texts[:3], *texts_of(["other"], 3, seed=8)[0]])
        assert given.dtype.kind == "i"
        assert given.tolist() == [*y[:3], -1, -1, -1]

    @pytest.mark.parametrize(
        ("options", "labels", "match"),
        [
            ({"cv": None}, KNOWN, r"held out in cross-validation \(cv\)"),
            ({"algorithm": "samme"}, KNOWN, "calibrated probabilities of logit, not samme"),
            ({"none_of_these": ["a"]}, KNOWN, "none_of_these"),
            ({"classes": [*KNOWN, "other"]}, KNOWN, "leave it out of the classes"),
            ({}, ["other"], "label texts of the classes"),
        ],
    )
    def test_what_cant_be_is_an_error_before_anything_is_asked(self, options, labels, match):
        lm = CountingBackend()
        texts, y = texts_of(labels, 60)
        with pytest.raises(ValueError, match=match):
            classifier(**options).set_params(backend=lm).fit(texts, y)
        assert lm.calls == []

    def test_few_rows_and_no_labels_are_errors(self):
        texts, labels = texts_of(KNOWN, 18)
        with pytest.raises(ValueError, match="takes 19 texts with a label of a class or more"):
            classifier().fit(texts, labels)
        with pytest.raises(ValueError, match="rows with labels that are held out"):
            classifier(classes=list(KNOWN)).fit(texts)

    def test_rows_of_weight_zero_are_left_out(self):
        lm = CountingBackend()
        texts, labels = texts_of(KNOWN, 60)
        more, none = texts_of(["other"], 5, seed=1)
        weights = [1.0] * 60 + [0.0] * 5
        classifier().set_params(backend=lm).fit([*texts, *more], [*labels, *none], weights)
        assert not any(text in text_of(one) for one in lm.asked for text in more)

    def test_early_stopping_is_refused(self, trained):
        early = trained.__sklearn_clone__().set_params(early_stop="exact")
        early.model_ = trained.model_
        with pytest.raises(ValueError, match="takes the answers to all prompts"):
            early.predict(["a goal"])

    def test_labels_that_need_the_whole_model_are_refused_without_it(self, trained):
        shares = trained.predict_proba(["a goal"])
        with pytest.raises(ValueError, match="probabilities don't tell"):
            trained.labels_from_proba(shares)
        usage = trained.prediction_usage_
        with pytest.raises(ValueError, match="take the whole model"):
            next(trained.staged_predict(["a goal"]))
        assert trained.prediction_usage_ is usage  # nothing was asked

    def test_a_promised_error_leaves_the_label_as_it_is(self, trained):
        texts = [*texts_of(KNOWN, 30, seed=7)[0], *texts_of(["other"], 10, seed=8)[0]]
        model = trained.model_
        predictions = model.predict(trained.connect(), texts)
        kept = predictions.keeping(model.promise(0.2))
        none = predictions.codes == NONE_OF_THESE
        assert none.any()
        assert (kept.codes[none] == NONE_OF_THESE).all()
        assert not set(kept.withheld) & set(np.flatnonzero(none).tolist())

    def test_the_plan_counts_the_examples(self):
        texts, labels = texts_of(KNOWN, 60)
        more, none = texts_of(["other"], 6, seed=1)
        model = classifier(embeddings="deterministic")
        planned = model.plan([*texts, *more], [*labels, *none])
        model.fit([*texts, *more], [*labels, *none])
        assert planned.passes == model.usage_.passes_made + model.usage_.passes_from_store

    def test_explanations_say_it(self, informed):
        told = informed.explain(texts_of(["other"], 1, seed=8)[0][0])
        assert told["prediction"] == "other"
        assert told["none_of_these"]["is_none"]
        assert set(told["none_of_these"]["measures"]) == set(
            informed.training_summary_["none_of_these"]["weights"]
        )
        assert "as unusual, fewer than 5%" in told["none_of_these"]["says"]
        known = informed.explain("match goal no1x7")
        assert known["prediction"] == "sport"
        assert not known["none_of_these"]["is_none"]

    def test_suggestions_are_labels(self, informed):
        texts = [*texts_of(KNOWN, 10, seed=7)[0], *texts_of(["other"], 10, seed=8)[0]]
        assert len(informed.suggest(texts, 5)) == 5


class TestFile:
    @pytest.mark.parametrize("name", ["trained", "informed"])
    def test_a_file_keeps_the_detector(self, name, request, tmp_path):
        model = request.getfixturevalue(name)
        model.save(tmp_path / "m.blackbox")
        read = load_model(
            tmp_path / "m.blackbox",
            backend="deterministic",
            embeddings="deterministic" if name == "informed" else None,
        ).set_params(store=False)
        texts = [*texts_of(KNOWN, 20, seed=7)[0], *texts_of(["other"], 20, seed=8)[0]]
        assert (read.predict(texts) == model.predict(texts)).all()
        np.testing.assert_array_equal(read.out_of_scope_.scores, model.out_of_scope_.scores)

    def altered(self, model, folder, described, change):
        model.save(folder / "m.blackbox")
        with zipfile.ZipFile(folder / "m.blackbox") as archive:
            told = json.loads(archive.read("model.json")) | described
            arrays = dict(np.load(io.BytesIO(archive.read("arrays.npz"))))
        change(arrays)
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)
        with zipfile.ZipFile(folder / "bad.blackbox", "w") as archive:
            archive.writestr("model.json", json.dumps(told))
            archive.writestr("arrays.npz", packed.getvalue())
        return folder / "bad.blackbox"

    @pytest.mark.parametrize(
        ("described", "change"),
        [
            ({"none_of_these": "sport"}, lambda arrays: None),
            ({"none_of_these": ["other"]}, lambda arrays: None),
            ({"none_of_these": ""}, lambda arrays: None),
            ({}, lambda arrays: arrays.pop("scope_known")),
            ({}, lambda arrays: arrays.pop("scope_vectors")),
            ({}, lambda arrays: arrays.update(scope_known=arrays["scope_known"][::-1])),
            ({}, lambda arrays: arrays.update(scope_known=arrays["scope_known"] * [1, 0])),
            ({}, lambda arrays: arrays.update(scope_known=arrays["scope_known"][:0])),
            ({}, lambda arrays: arrays.update(scope_variances=0 * arrays["scope_variances"])),
            ({}, lambda arrays: arrays.update(scope_measures=0 * arrays["scope_measures"])),
            ({}, lambda arrays: arrays.update(scope_measures=arrays["scope_measures"][:, 1:])),
            ({}, lambda arrays: arrays.update(scope_axes=arrays["scope_axes"][1:])),
            (
                {},
                lambda arrays: arrays.update(
                    scope_outside_answers=arrays["scope_outside_answers"][:, 1:]
                ),
            ),
        ],
    )
    def test_a_file_with_an_impossible_detector_is_refused(
        self, informed, tmp_path, described, change
    ):
        with pytest.raises(ModelFileError):
            read_model(self.altered(informed, tmp_path, described, change))

    def test_models_that_notice_others_cant_be_merged_and_are_sources_without(
        self, informed, tmp_path
    ):
        with pytest.raises(ModelFileError, match="train both without none_of_these"):
            merge_models(informed.model_, informed.model_)
        informed.save(tmp_path / "m.blackbox")
        Library.open(tmp_path / "library").add(tmp_path / "m.blackbox")
        (kept,) = (tmp_path / "library").glob("*.blackbox")
        assert read_model(kept).out_of_scope is None


@pytest.fixture
def files(trained, tmp_path):
    trained.save(tmp_path / "m.blackbox")
    texts, labels = texts_of((*KNOWN, "other"), 60, seed=7)
    with (tmp_path / "new.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments), "--backend", "deterministic"])


class TestCommand:
    def test_train_takes_the_label_out_of_the_classes(self, tmp_path):
        texts, labels = texts_of(KNOWN, 60)
        more, none = texts_of(["other"], 1, seed=1)
        with (tmp_path / "train.csv").open("w", newline="") as file:
            rows = zip([*texts, *more], [*labels, *none], strict=True)
            csv.writer(file).writerows([("text", "label"), *rows])
        (tmp_path / "prompts.txt").write_text("\n".join(p.replace("\n", "\\n") for p in PROMPTS))
        train = (
            *("train", tmp_path / "train.csv", "--none-of-these", "other", "--no-store"),
            *("--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "m.blackbox"),
        )
        told = run(*train)
        assert told.exit_code == 0, told.output
        assert "60 rows: food 20, money 20, sport 20, and 1 row of none of them" in told.stderr
        assert "'other' for texts more unusual than 95% of 60 held-out rows" in told.stderr
        found = json.loads(run(*train, "--json").stdout)
        assert found["classes"] == list(KNOWN)
        assert found["training"]["none_of_these"]["n_outside"] == 1
        planned = run("plan", tmp_path / "train.csv", *train[2:5], *train[5:7], "--json")
        assert json.loads(planned.stdout)["passes"] == 3 * 61

    def test_errors_are_one_line(self, files):
        told = run(
            *("train", files / "new.csv", "--none-of-these", "other", "--shots", 5),
            *("--out", files / "o.blackbox", "--no-store"),
        )
        assert told.exit_code != 0
        assert "none_of_these notices texts by rows that are held out" in told.stderr
        assert "Traceback" not in told.output
        told = run(
            *("predict", files / "m.blackbox", files / "new.csv", "--out", files / "o.csv"),
            *("--early-stop", "exact"),
        )
        assert told.exit_code == 2
        assert "--early-stop exact: a model that notices" in " ".join(told.stderr.split())

    def test_predict_gives_the_label_with_the_reason(self, files):
        out = files / "out.csv"
        told = run(
            *("predict", files / "m.blackbox", files / "new.csv", "--out", out, "--no-store"),
            *("--sets", 0.9, "--max-error", 0.2),
        )
        assert told.exit_code == 0, told.output
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
        others = [row for row in rows if row["label"] == "other"]
        assert sum(row["prediction"] == "other" for row in others) > 10
        for row in rows:
            is_none = row["prediction"] == "other"
            assert (float(row["p_known"]) < 0.05) == is_none
            assert ("look as unusual, fewer than 5%" in row["reason"]) == is_none
            assert ("other" in json.loads(row["prediction_set"])) == is_none
        n = sum(row["prediction"] == "other" for row in rows)
        assert f"{n} rows of none of the classes: other" in told.stderr
        told = run(
            *("predict", files / "m.blackbox", files / "new.csv", "--out", out, "--no-store"),
            "--json",
        )
        assert json.loads(told.stdout)["none_of_these"] == n

    def test_evaluate_measures_how_well_they_are_noticed(self, files):
        told = run("evaluate", files / "m.blackbox", files / "new.csv", "--no-store")
        assert told.exit_code == 0, told.output
        assert "none of these      15 rows with the label other" in told.stdout
        assert "AUROC" in told.stdout
        found = json.loads(
            run("evaluate", files / "m.blackbox", files / "new.csv", "--no-store", "--json").stdout
        )
        assert found["classes"] == [*KNOWN, "other"]
        assert found["none_of_these"]["n_outside"] == 15
        assert found["none_of_these"]["auroc"] > 0.95
        assert sum(map(sum, found["confusion"])) == 60

    def test_inspect_explains_it(self, files):
        told = run("inspect", files / "m.blackbox")
        assert "none of these" in told.stdout
        told = run("inspect", files / "m.blackbox", "--text", "comet moon no1x8")
        assert told.exit_code == 0, told.output
        assert "prediction  other" in told.stdout
        assert "none of these (other):" in told.stdout


def test_a_report_measures_how_well_they_are_noticed(files):
    pytest.importorskip("jinja2", reason="a report needs the `report` extra")
    pytest.importorskip("matplotlib", reason="a report needs the `report` extra")
    for name in ("report.html", "card.md"):
        told = run(
            *("report", files / "m.blackbox", files / "new.csv", "--out", files / name),
            *("--no-store", "--include-texts"),
        )
        assert told.exit_code == 0, told.output
        page = (files / name).read_text()
        assert "of 15 rows with the label" in page
        assert "for texts more unusual than 95% of 90 held-out rows" in page


class TestService:
    @pytest.fixture
    def client(self, files):
        pytest.importorskip("fastapi", reason="the service needs the `serve` extra")
        from tests.serving import running, served

        with running(served(files / "m.blackbox")) as client:
            yield client

    def test_a_prediction_says_it(self, client):
        texts = ["match goal no1x9", "comet moon no2x9", ""]
        status, _, body = client.predict(
            {"texts": texts, "set_coverage": 0.9, "max_error": 0.2, "explain": True}
        )
        assert status == 200
        known, other, empty = body["predictions"]
        assert (known["label"], other["label"], empty["label"]) == ("sport", "other", None)
        assert known["reason"] is None
        assert other["reason"].endswith("look as unusual, fewer than 5%")
        assert other["p_known"] < 0.05 <= known["p_known"]
        assert not other["abstained"]
        assert "p_known" not in empty
        assert "other" in other["prediction_set"]
        assert other["explanation"]["none_of_these"]["is_none"]
        _, _, described = client.get("/v1/model")
        assert described["none_of_these"] == "other"
        assert described["order"] is None

    def test_a_choice_among_the_classes_is_refused(self, client):
        for text, kind in (("comet moon no2x9", "refusal"), ("match goal no1x9", "choice")):
            status, _, body = client.ask(
                "POST",
                "/v1/decisions",
                {
                    "input": text,
                    "questions": [
                        {
                            "type": "choice",
                            "name": "topic",
                            "instructions": "Which topic?",
                            "choices": [{"value": one} for one in KNOWN],
                        }
                    ],
                },
            )
            assert status == 200, body
            assert body["answers"][0]["type"] == kind


@pytest.mark.slow
def test_the_study_withholds_classes(tmp_path):
    from eval.studies import none_of_these

    folder = tmp_path / "agnews"
    folder.mkdir()
    for part, n in (("train", 320), ("test", 60)):
        texts, labels = texts_of((*KNOWN, "other"), n, seed=len(part))
        with (folder / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    told = CliRunner().invoke(
        none_of_these.main,
        [
            *("--data-dir", str(tmp_path), "--data", "agnews", "--split", "test"),
            *("--outside", "5", "--backend", "deterministic", "--embeddings", "none"),
            *("--store", str(tmp_path / "passes.sqlite")),
        ],
        catch_exceptions=False,
    )
    rows = [line.strip("| ").split(" | ") for line in told.output.splitlines() if line[:2] == "| "]
    assert [row[0] for row in rows] == [
        *("measures", "all", "largest probability", "score", "score, distance"),
        "all, 5 rows of none",
    ]
    assert float(rows[-1][1].split(" ± ")[0]) > 90
