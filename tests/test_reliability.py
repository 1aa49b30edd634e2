"""Promised error rates and prediction sets, from held-out rows to every face of a model."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import binomtest

from blackbox import PromptBoostingClassifier, load_model
from blackbox.cli import main
from blackbox.errors import ModelFileError
from blackbox.model.file import read_model, write_model
from blackbox.model.predictions import NO_ANSWER
from blackbox.model.reliability import HeldOutRows, prediction_sets
from tests.fakes import CountingBackend

PROMPTS = ["{text} It was {mask}", "{text}\nTopic: {mask}", "{text} This is about {mask}"]
SPORT, MONEY = ("match", "goal", "team", "player"), ("bank", "loan", "market", "price")


def texts_of(n, seed=0):
    """Distinct texts, one in ten of them with a word of each class."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for number in range(n):
        label = number % 2
        words = list(rng.choice((SPORT, MONEY)[label], 2))
        if number % 10 == 0:
            words.append(str(rng.choice((SPORT, MONEY)[1 - label])))
        texts.append(" ".join([*words, f"no{number}x{seed}"]))
        labels.append(("sport", "money")[label])
    return texts, labels


@pytest.fixture(scope="module")
def trained():
    texts, labels = texts_of(160)
    classifier = PromptBoostingClassifier(
        "deterministic", prompts=PROMPTS, random_state=0, store=False, abstain_label="?"
    )
    return classifier.fit(texts, labels)


def rows_of(confidence, right, **given):
    """Held-out rows of two classes."""
    n = len(confidence)
    shares = np.stack([1 - np.array(confidence), np.array(confidence)], axis=1)
    weight = np.asarray(given.get("weight", np.ones(n)), float)
    return HeldOutRows.of(shares, np.array(right, int), weight, given.get("group", np.arange(n)))


class TestPromise:
    def test_the_bound_is_clopper_and_pearsons(self):
        rows = rows_of(np.linspace(0.99, 0.9, 100), [1] * 97 + [0] * 3)
        found = rows.promise(0.1)
        n = round(found.coverage * 100)
        n_wrong = round(found.expected_error * n)
        exact = binomtest(n_wrong, n, alternative="less").proportion_ci(0.95, "exact")
        assert found.error_bound == pytest.approx(exact.high)
        assert found.error_bound <= 0.1

    def test_the_threshold_with_the_largest_coverage_is_taken(self):
        # everything is right, and the probabilities say so
        everything = rows_of(np.linspace(0.999, 0.98, 100), [1] * 100)
        assert everything.promise(0.05).coverage == 1.0
        # the last third is wrong: some of it may be given, but not all
        some = rows_of(np.linspace(0.999, 0.9, 300), [1] * 200 + [0] * 100)
        found = some.promise(0.05)
        assert 0.5 < found.coverage <= 0.7
        assert found.expected_error < 0.05

    @pytest.mark.parametrize(
        ("n", "max_error", "needed"), [(58, 0.05, 59), (28, 0.1, 29), (298, 0.01, 299)]
    )
    def test_too_few_rows_are_said_with_what_is_missing(self, n, max_error, needed):
        with pytest.raises(ValueError, match=f"takes {needed} independent.* has {n}"):
            rows_of([0.999] * n, [1] * n).promise(max_error)
        assert rows_of([0.999] * needed, [1] * needed).promise(max_error).coverage == 1.0

    def test_too_many_wrong_ones_are_said_with_what_can_be_promised(self):
        rows = rows_of(np.linspace(0.99, 0.8, 200), ([1] * 9 + [0]) * 20)
        with pytest.raises(
            ValueError, match=r"0\.05 can't be promised: of the .* are wrong.*0\.15 can"
        ):
            rows.promise(0.05)

    def test_a_model_that_says_itself_that_it_errs_more_isnt_trusted_with_luck(self):
        rows = rows_of([0.8] * 200, [1] * 200)
        with pytest.raises(ValueError, match=r"the model's probabilities say 20\.0%"):
            rows.promise(0.1)

    def test_rows_of_one_group_count_as_one(self):
        alone = rows_of([0.999] * 60, [1] * 60)
        copies = rows_of([0.999] * 120, [1] * 120, group=np.arange(120) // 2)
        assert copies.size == pytest.approx(alone.size)
        assert copies.promise(0.05).error_bound == pytest.approx(alone.promise(0.05).error_bound)

    def test_unequal_weights_are_worth_fewer_rows(self):
        rows = rows_of([0.999] * 100, [1] * 100, weight=[9.0] * 10 + [1.0] * 90)
        assert rows.size == pytest.approx(180**2 / (10 * 81 + 90))
        with pytest.raises(ValueError, match="has 36"):
            rows.promise(0.05)

    def test_rows_of_one_probability_are_given_together(self):
        rows = rows_of([0.99] * 100 + [0.98] * 100, [1] * 100 + [0] * 100)
        found = rows.promise(0.05)
        assert (found.coverage, found.threshold) == (0.5, pytest.approx(0.99))

    @pytest.mark.parametrize("share", [0, 1, -0.1, 2.0, float("nan"), 5e-324, 1 - 1e-16])
    def test_a_share_is_between_0_and_1(self, share):
        with pytest.raises(ValueError, match=r"max_error must be from 0\.000001 to 0\.999999"):
            rows_of([0.9] * 9, [1] * 9).promise(share)

    @pytest.mark.parametrize("n", [64, 128, 256])
    def test_the_promise_is_kept_in_95_of_100_draws(self, n):
        """Also among the draws in which it is given, whose number varies with luck."""
        rng = np.random.default_rng(n)
        n_given = n_broken = 0
        for _ in range(300):
            scores = rng.normal(0, 4, n)
            confidence = 1 / (1 + np.exp(-np.abs(scores)))
            try:
                found = rows_of(confidence, rng.random(n) < confidence).promise(0.1)
            except ValueError:
                continue
            n_given += 1
            new = 1 / (1 + np.exp(-np.abs(rng.normal(0, 4, 20_000))))
            new = new[new >= found.threshold]
            n_broken += (1 - new).mean() > 0.1
        assert n_given > 20
        assert n_broken <= 0.05 * n_given


class TestSets:
    def test_the_threshold_is_the_right_order_statistic(self):
        # of 19 rows, sets of 90% leave out at most the lowest one: 0.1 * 20 - 1
        truth = np.linspace(0.05, 0.95, 19).astype(np.float32)
        rows = HeldOutRows(np.maximum(truth, 0.5), truth, np.ones(19, np.float32), np.arange(19))
        assert rows.set_threshold(0.9) == truth[1]
        assert rows.set_threshold(0.95) == truth[0]
        assert rows.set_threshold(0.5) == truth[9]

    def test_too_few_rows_are_said(self):
        with pytest.raises(ValueError, match=r"take at least 9 independent.*has 8"):
            rows_of([0.9] * 8, [1] * 8).set_threshold(0.9)
        assert rows_of([0.9] * 9, [1] * 9).set_threshold(0.9)

    @pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
    def test_sets_hold_the_right_class_as_often_as_promised(self, coverage):
        rng = np.random.default_rng(1)

        def draw(n):
            scores = rng.normal(0, 2, (n, 5))
            shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            return shares, np.array([rng.choice(5, p=one) for one in shares])

        held = []
        for _ in range(60):
            shares, y = draw(100)
            threshold = HeldOutRows.of(shares, y, np.ones(100), np.arange(100)).set_threshold(
                coverage
            )
            new, truth = draw(300)
            sets = prediction_sets(new, threshold)
            held.append(sets[np.arange(300), truth].mean())
        assert coverage - 0.01 < np.mean(held) < coverage + 0.04

    def test_no_set_is_empty_but_of_a_row_without_an_answer(self):
        shares = np.array([[0.4, 0.35, 0.25], [np.nan] * 3, [0.6, 0.3, 0.1]])
        assert prediction_sets(shares, 0.5).tolist() == [
            [True, False, False],
            [False, False, False],
            [True, False, False],
        ]


class TestModel:
    def test_a_file_keeps_the_promise(self, trained, tmp_path):
        write_model(tmp_path / "m.blackbox", trained.model_)
        read = read_model(tmp_path / "m.blackbox")
        assert read.promise(0.1) == trained.model_.promise(0.1)
        shares = trained.predict_proba(["a goal", "a loan"])
        np.testing.assert_array_equal(
            read.prediction_sets(shares, 0.9), trained.model_.prediction_sets(shares, 0.9)
        )

    @pytest.mark.parametrize(
        "change",
        [
            lambda figures, groups: (figures[:, :2], groups),
            lambda figures, groups: (figures * [[1, 3, 1]], groups),
            lambda figures, groups: (figures * [[1, 1, 0]], groups),
            lambda figures, groups: (figures * [[1, 1, np.nan]], groups),
            lambda figures, groups: (figures, groups + 10**6),
            lambda figures, groups: (figures, groups - 1),
            lambda figures, groups: (figures[:0], groups[:0]),
            lambda figures, groups: (figures, groups[1:]),
        ],
    )
    def test_a_file_with_impossible_rows_is_refused(self, trained, tmp_path, change):
        write_model(tmp_path / "m.blackbox", trained.model_)
        with zipfile.ZipFile(tmp_path / "m.blackbox") as archive:
            described = archive.read("model.json")
            arrays = dict(np.load(io.BytesIO(archive.read("arrays.npz"))))
        figures, groups = change(arrays["held_out"], arrays["held_out_groups"])
        arrays |= {"held_out": figures.astype(np.float32), "held_out_groups": groups}
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)
        with zipfile.ZipFile(tmp_path / "bad.blackbox", "w") as archive:
            archive.writestr("model.json", described)
            archive.writestr("arrays.npz", packed.getvalue())
        with pytest.raises(ModelFileError):
            read_model(tmp_path / "bad.blackbox")

    def test_a_model_without_held_out_rows_says_so(self):
        texts, labels = texts_of(40)
        bare = PromptBoostingClassifier(
            "deterministic", prompts=PROMPTS, store=False, cv=None, random_state=0
        ).fit(texts, labels)
        with pytest.raises(ValueError, match=r"no held-out rows.*cross-validation"):
            bare.model_.promise(0.1)

    def test_samme_promises_by_its_validation_rows(self):
        texts, labels = texts_of(160)
        voted = PromptBoostingClassifier(
            "deterministic", prompts=PROMPTS, store=False, algorithm="samme", random_state=0
        ).fit(texts, labels)
        assert len(voted.model_.held_out.weight) == voted.training_summary_["n_rows_validation"]

    def test_labels_below_the_threshold_are_withheld(self, trained):
        promise = trained.model_.promise(0.1)
        texts, _ = texts_of(60, seed=1)
        predictions = trained.model_.predict(trained.connect(), texts)
        kept = predictions.keeping(promise)
        low = predictions.probabilities.max(axis=1).astype(np.float32) < promise.threshold
        assert set(kept.withheld) == set(np.flatnonzero(low).tolist())
        assert ((kept.codes == NO_ANSWER) == low).all()
        assert (kept.codes[~low] == predictions.codes[~low]).all()
        assert kept.row_errors == {}


class TestWorth:
    """What held-out rows are worth to a promise."""

    @pytest.mark.parametrize(("max_prompts", "size"), [(None, 60), (3, 60), (2, 15)])
    def test_rows_by_which_prompts_were_chosen_are_worth_a_quarter(self, max_prompts, size):
        classifier = PromptBoostingClassifier(
            "deterministic", prompts=PROMPTS, max_prompts=max_prompts, store=False
        )
        found = classifier.fit(*texts_of(60)).model_.held_out
        assert found.size == pytest.approx(size)

    def test_weights_of_classes_are_no_shares_of_texts(self):
        texts, labels = texts_of(60)
        rows = [row for row, label in enumerate(labels) if label == "sport" or row % 4 == 1]
        texts, labels = [texts[row] for row in rows], [labels[row] for row in rows]
        for weights in ("balanced", {"money": 2.0}):
            balanced = PromptBoostingClassifier(
                "deterministic", prompts=PROMPTS, class_weight=weights, store=False
            ).fit(texts, labels)
            assert balanced.model_.held_out.weight == pytest.approx(1)

    def test_rows_are_worth_no_more_than_they_sum_to(self):
        confidence, right = [0.9] * 20, [1] * 20
        assert rows_of(confidence, right, weight=[0.25] * 20).size == pytest.approx(5)
        assert rows_of(confidence, right).size == pytest.approx(20)


class TestEstimator:
    def test_max_error_withholds_labels(self, trained):
        texts, _ = texts_of(60, seed=1)
        plain = trained.predict(texts)
        cautious = trained.__sklearn_clone__().set_params(max_error=0.1)
        cautious.model_ = trained.model_
        given = cautious.predict(texts)
        assert set(given) <= {"sport", "money", "?"}
        assert (given[given != "?"] == plain[given != "?"]).all()
        assert (cautious.labels_from_proba(cautious.predict_proba(texts)) == given).all()
        assert cautious.labels_from_proba(np.array([[0.5, 0.5]])).tolist() == ["?"]
        with pytest.raises(ValueError, match="take the whole model"):
            next(cautious.staged_predict(texts))

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"max_error": 0.001}, "can't be promised: that takes 2995"),
            ({"max_error": 0.1, "early_stop": "exact"}, "early_stop gives none"),
            ({"max_error": 0.1, "abstain_label": None}, "set abstain_label"),
            ({"max_error": 1.5}, "max_error"),
        ],
    )
    def test_a_promise_that_cant_be_given_costs_nothing(self, trained, options, match):
        lm = CountingBackend()
        cautious = PromptBoostingClassifier(lm, store=False, abstain_label="?")
        cautious.set_params(**options).model_ = trained.model_
        with pytest.raises(ValueError, match=match):
            cautious.predict(["a goal"])
        with pytest.raises(ValueError, match="take at least 999 independent"):
            cautious.set_params(max_error=None).predict_set(["a goal"], 0.999)
        assert lm.calls == []

    def test_prediction_sets_hold_the_label(self, trained):
        texts, labels = texts_of(60, seed=1)
        sets = trained.predict_set(texts, 0.9)
        assert sets.shape == (60, 2)
        held = sets[np.arange(60), np.searchsorted(trained.classes_, labels)]
        assert held.mean() >= 0.85
        assert sets.any(axis=1).all()


@pytest.fixture
def files(trained, tmp_path):
    trained.save(tmp_path / "m.blackbox")
    texts, labels = texts_of(60, seed=1)
    with (tmp_path / "new.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments), "--backend", "deterministic"])


class TestCommand:
    def test_predict_leaves_uncertain_texts_to_a_person(self, files, trained):
        out = files / "out.csv"
        told = run(
            "predict",
            files / "m.blackbox",
            files / "new.csv",
            "--out",
            out,
            "--no-store",
            "--max-error",
            0.1,
            "--sets",
            0.9,
        )
        assert told.exit_code == 0, told.output
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
        promise = trained.model_.promise(0.1)
        for row in rows:
            surest = max(float(row["probability_sport"]), float(row["probability_money"]))
            is_given = surest >= round(promise.threshold, 6) - 1e-6
            assert bool(row["prediction"]) == is_given
            assert bool(row["reason"]) != is_given
            assert json.loads(row["prediction_set"])
        n_withheld = sum(not row["prediction"] for row in rows)
        assert f"{n_withheld} rows left to a person" in told.stderr
        assert re.search(r"with 95% confidence at most \d+\.\d%", told.stderr)

    def test_predict_says_it_as_json(self, files, trained):
        told = run(
            "predict",
            files / "m.blackbox",
            files / "new.csv",
            "--out",
            files / "out.jsonl",
            "--no-store",
            "--json",
            "--max-error",
            0.1,
            "--sets",
            0.9,
        )
        found = json.loads(told.stdout)
        assert found["promise"] == trained.model_.promise(0.1).as_dict()
        rows = [json.loads(line) for line in (files / "out.jsonl").read_text().splitlines()]
        assert found["withheld"] == sum(not row["prediction"] for row in rows)
        assert found["labels_in_sets"] == sum(len(row["prediction_set"]) for row in rows)

    def test_evaluate_says_what_came_of_the_promise(self, files):
        told = run(
            "evaluate", files / "m.blackbox", files / "new.csv", "--no-store", "--max-error", 0.1
        )
        assert "promised: at most 10.0% of the labels given are wrong" in told.stdout
        assert re.search(r"here: \d+ of 60 rows get a label, \d+ of them wrong", told.stdout)
        told = run(
            "evaluate",
            files / "m.blackbox",
            files / "new.csv",
            "--no-store",
            "--max-error",
            0.1,
            "--json",
        )
        kept = json.loads(told.stdout)["promise"]
        assert kept["n_given"] + kept["n_withheld"] == 60
        assert kept["n_wrong"] <= 0.2 * kept["n_given"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--max-error", 0.001], "--max-error 0.001: an error of at most 0.001 can't be"),
            (["--max-error", 0.1, "--early-stop", "exact"], "drop one of them"),
            (["--sets", 0.9, "--early-stop", "exact"], "drop one of them"),
            (["--sets", 0.9999], "take at least 9999 independent"),
            (["--max-error", 5], "is not in the range"),
        ],
    )
    def test_what_cant_be_promised_is_said_before_anything_is_asked(self, files, options, message):
        told = run(
            "predict", files / "m.blackbox", files / "none.csv", "--out", files / "o.csv", *options
        )
        assert told.exit_code == 2
        assert message in " ".join(told.stderr.split())
        assert "Traceback" not in told.output


def test_a_report_has_what_can_be_promised(files, trained):
    pytest.importorskip("jinja2", reason="a report needs the `report` extra")
    pytest.importorskip("matplotlib", reason="a report needs the `report` extra")
    for name in ("report.html", "card.md"):
        told = run("report", files / "m.blackbox", "--out", files / name, "--no-store")
        assert told.exit_code == 0, told.output
        page = (files / name).read_text()
        assert f"{trained.model_.promise(0.1).coverage:.1%}" in page
        assert "with 95% confidence at most" in page.lower()


def test_a_loaded_model_takes_a_promise(files):
    loaded = load_model(
        files / "m.blackbox", backend="deterministic", max_error=0.1, abstain_label="?"
    ).set_params(store=False)
    assert loaded.predict(["match goal a"])[0] in ("sport", "?")


class TestService:
    @pytest.fixture
    def client(self, files):
        pytest.importorskip("fastapi", reason="the service needs the `serve` extra")
        from tests.serving import running, served

        with running(served(files / "m.blackbox")) as client:
            yield client

    def test_a_request_may_ask_for_a_promise(self, client, trained):
        texts, _ = texts_of(40, seed=2)
        status, _, body = client.predict(
            {"texts": [*texts, ""], "max_error": 0.1, "set_coverage": 0.9}
        )
        assert status == 200
        promise = trained.model_.promise(0.1)
        for one in body["predictions"][:-1]:
            is_given = np.float32(max(one["probabilities"].values())) >= promise.threshold
            assert (one["label"] is not None) == is_given == (not one["abstained"])
            assert is_given or "is below" in one["reason"]
            assert one["prediction_set"]
        assert body["predictions"][-1]["reason"] == "empty text"
        assert "prediction_set" not in body["predictions"][-1]

    def test_what_cant_be_promised_is_refused(self, client):
        for field, value in (
            *(("max_error", share) for share in (0.001, 2, 5e-324, 1 - 1e-16)),
            *(("set_coverage", share) for share in (0.9999, 5e-324, 1 - 1e-16)),
        ):
            status, _, body = client.predict({"text": "a goal", field: value})
            assert status == 422, body


def test_the_study_compares_promises_with_what_came_of_them(tmp_path):
    from eval.studies import promises

    folder = tmp_path / "sst2"
    folder.mkdir()
    for part, n in (("train", 80), ("test", 30)):
        texts, labels = texts_of(n, seed=len(part))
        with (folder / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    told = CliRunner().invoke(
        promises.main,
        [
            *("--data-dir", str(tmp_path), "--data", "sst2", "--labels", "64", "--draws", "2"),
            *("--backend", "deterministic", "--store", str(tmp_path / "passes.sqlite")),
        ],
        catch_exceptions=False,
    )
    rows = [line.strip("| ").split(" | ") for line in told.output.splitlines() if line[:2] == "| "]
    assert [row[:2] for row in rows if row[0] == "64"] == [
        *(["64", error] for error in ("2", "5", "10", "20")),
        *(["64", held] for held in ("80", "90", "95")),
    ]
    assert rows[1][2:] == ["0", "–", "–", "–"]  # 2% takes 149 rows
