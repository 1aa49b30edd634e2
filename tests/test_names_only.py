"""Training without labels: class names as verbalizers, prompts weighed by their agreement."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.base import clone

from backends.deterministic import DeterministicBackend
from blackbox import PromptBoostingClassifier, load_model
from blackbox.answers.passes import next_tokens
from blackbox.answers.texts import check_texts
from blackbox.boosting.label_words import agreement
from blackbox.boosting.names_only import NAME_WEIGHT
from blackbox.cli import main
from blackbox.errors import RowError
from blackbox.library.folder import Library
from blackbox.library.sources import Sources
from blackbox.prompts.pool import PromptPool
from tests.fakes import CountingBackend, RefusingBackend, text_of

PROMPTS = ["{text} It was {mask}", "{text}\nTopic: {mask}", "{text} This is about {mask}"]
WORDS = ["match", "goal", "team", "player", "bank", "loan", "market", "price", "tree", "river"]


def texts_of(n, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 3)) + f" no{seed}x{number}" for number in range(n)]


def names_of_the_lm(n_classes=2):
    """Tokens that are among the answers to many texts, as names of classes."""
    answers = next_tokens(
        DeterministicBackend(), PromptPool(PROMPTS), check_texts(texts_of(40)), 200
    )
    ids, counts = np.unique(answers.token_ids, return_counts=True)
    spelled = [
        answers.token_bytes[token].decode().strip()
        for token in ids[np.argsort(-counts, kind="stable")].tolist()
    ]
    return [name for name in spelled if len(name) >= 3][:n_classes]


NAMES = names_of_the_lm(3)


def what_the_lm_says(texts, names):
    """The class whose name is more likely than it usually is, over all prompts."""
    answers = next_tokens(DeterministicBackend(), PromptPool(PROMPTS), check_texts(texts), 512)
    scores = np.zeros((len(texts), len(names)))
    for prompt in range(len(PROMPTS)):
        for place, name in enumerate(names):
            tokens = [t for t, b in answers.token_bytes.items() if b.decode().strip() == name]
            found = np.isin(answers.token_ids[prompt], tokens)
            values = np.where(found, answers.log_probs[prompt], -np.inf).max(axis=1)
            scores[:, place] += (values - values.mean()) / values.std()
    return np.array(names)[scores.argmax(axis=1)], np.ptp(scores, axis=1)


def untrained(lm="deterministic", **options):
    options = {"prompts": PROMPTS, "classes": NAMES, "store": False, "random_state": 0} | options
    return PromptBoostingClassifier(lm, **options)


class TestAgreement:
    def test_prompts_that_vary_with_the_others_count_more(self):
        rng = np.random.default_rng(0)
        signal = rng.normal(size=(200, 3))
        votes = np.stack(
            [signal + 0.3 * rng.normal(size=(200, 3)) for _ in range(3)]
            + [rng.normal(size=(200, 3)), -signal]
        )
        shares = agreement(votes)
        assert np.linalg.norm(shares) == pytest.approx(1)
        assert shares[:3].min() > 5 * shares[3]
        assert shares[4] == 0

    def test_the_sign_is_that_of_most_prompts(self):
        rng = np.random.default_rng(1)
        signal = rng.normal(size=(50, 2))
        assert (agreement(np.stack([signal, 0.9 * signal, 0.8 * signal])) > 0).all()

    @pytest.mark.parametrize("shape", [(0, 5, 2), (3, 5, 2)])
    def test_where_nothing_varies_nothing_counts(self, shape):
        assert agreement(np.zeros(shape)).tolist() == [0.0] * shape[0]


class TestModel:
    @pytest.mark.parametrize("n_classes", [2, 3])
    def test_it_learns_what_the_lm_says_of_the_names_without_a_label(self, n_classes):
        names = NAMES[:n_classes]
        classifier = untrained(classes=names).fit(texts_of(80))
        new = texts_of(200, seed=1)
        truth, margin = what_the_lm_says(new, names)
        clear = margin > np.median(margin)
        assert (classifier.predict(new) == truth)[clear].mean() > 0.9
        assert sorted(names) == classifier.classes_.tolist()

    def test_scores_have_the_usual_weight_and_no_class_is_favoured(self):
        classifier = untrained().fit(texts_of(100))
        scores = classifier.decision_function(texts_of(100))
        assert scores.std() == pytest.approx(NAME_WEIGHT, rel=0.1)
        assert np.ptp(np.median(scores, axis=0)) < 1e-6

    def test_a_file_and_early_stopping_change_no_label(self, tmp_path):
        classifier = untrained().fit(texts_of(60))
        new = texts_of(100, seed=1)
        labels = classifier.predict(new)
        classifier.save(tmp_path / "m.blackbox")
        loaded = load_model(tmp_path / "m.blackbox", backend="deterministic")
        assert (loaded.set_params(store=False).predict(new) == labels).all()
        np.testing.assert_array_equal(
            loaded.decision_function(new), classifier.decision_function(new)
        )
        assert (loaded.set_params(early_stop="exact").predict(new) == labels).all()
        untrained().fit(texts_of(60)).save(tmp_path / "again.blackbox")
        first, again = (tmp_path / f"{name}.blackbox" for name in ("m", "again"))
        assert first.read_bytes() == again.read_bytes()

    def test_it_says_that_it_saw_no_label(self):
        classifier = untrained().fit(texts_of(30))
        summary = classifier.training_summary_
        assert summary["labels"] == "none"
        assert "class_counts" not in summary
        assert "held_out" not in summary
        with pytest.raises(ValueError, match="no held-out rows"):
            classifier.model_.promise(0.1)
        told = classifier.explain(texts_of(1, seed=2)[0])
        assert told["prediction"] in NAMES

    def test_texts_whose_labels_it_never_saw_are_as_good_as_new(self, tmp_path):
        texts = texts_of(30)
        untrained().fit(texts).save(tmp_path / "none.blackbox")
        model = load_model(tmp_path / "none.blackbox", backend="deterministic").model_
        assert not model.trained_on(texts).any()
        library = Library.open(tmp_path / "library").add(tmp_path / "none.blackbox")
        examples = [(text, None) for text in texts]
        sources = Sources.of(library, DeterministicBackend().identity, examples)
        assert list(sources.models) == ["none"]
        # of few labels beside texts without one, those that are learned
        few = untrained().fit(texts, [*NAMES, *[None] * 27]).model_
        assert few.trained_on(texts).tolist() == [True] * 3 + [False] * 27

    def test_many_texts_cost_no_more_than_a_hundred(self):
        lm = CountingBackend()
        classifier = untrained(lm).fit(texts_of(400))
        assert classifier.training_summary_["n_rows"] == 100
        assert len(lm.asked) == 100 * len(PROMPTS)

    def test_texts_of_weight_zero_are_left_out(self):
        lm = CountingBackend()
        weights = np.arange(60) % 3
        texts, new = texts_of(60), texts_of(10, seed=1)
        weighted = untrained(lm).fit(texts, sample_weight=weights)
        asked = {text for one in lm.asked for text in texts if text in text_of(one)}
        kept = [text for text, weight in zip(texts, weights, strict=True) if weight]
        assert asked == set(kept)
        assert (weighted.predict_proba(new) == untrained().fit(kept).predict_proba(new)).all()
        for wrong, said in ((weights[1:], "sample_weight"), (weights * 0, "zero")):
            with pytest.raises(ValueError, match=said):
                untrained().fit(texts, sample_weight=wrong)

    def test_label_words_stand_for_names(self):
        renamed = untrained(classes=["A1", "B2"], label_words={"A1": NAMES[0], "B2": NAMES[1]}).fit(
            texts_of(50)
        )
        named = untrained(classes=NAMES[:2]).fit(texts_of(50))
        new = texts_of(50, seed=1)
        order = [NAMES[:2].index(label) for label in named.classes_.tolist()]
        np.testing.assert_allclose(
            renamed.predict_proba(new)[:, order], named.predict_proba(new), atol=1e-12
        )

    def test_embeddings_of_the_names_are_an_expert(self, tmp_path):
        alone = untrained(embeddings=None).fit(texts_of(50))
        both = untrained(embeddings="deterministic").fit(texts_of(50))
        assert alone.training_summary_["experts"] == {}
        assert both.training_summary_["experts"] == {"embeddings": NAME_WEIGHT}
        assert both.training_summary_["names_embedded"] == len(NAMES)
        # names that no token spells are read by embeddings alone
        only = untrained(embeddings="deterministic", classes=["team", "price"]).fit(texts_of(50))
        assert only.training_summary_["n_names"] == 0
        told = only.predict(["team team player", "price price market"])
        assert told.tolist() == ["team", "price"]
        only.save(tmp_path / "m")
        again = load_model(tmp_path / "m", backend=only.backend)
        assert again.predict(["team team player", "price price market"]).tolist() == told.tolist()
        assert list(again.staged_predict(["team"])) == []

    def test_embeddings_read_the_description_of_a_class_after_its_name(self):
        described = {"team": "match goal player", "price": "bank loan market"}
        untold = ["match player goal", "loan market bank"]
        model = untrained(
            embeddings="deterministic", classes=["team", "price"], class_descriptions=described
        ).fit(texts_of(50))
        embedder = DeterministicBackend()
        asked = [f"{name}: {words}" for name, words in described.items()]
        near = embedder.embed(untold).vectors @ embedder.embed(asked).vectors.T
        far = embedder.embed(untold).vectors @ embedder.embed(list(described)).vectors.T
        assert np.ptp(near, axis=1).min() > np.ptp(far, axis=1).max()
        assert model.predict(untold).tolist() == ["team", "price"]
        assert model.training_summary_["options"]["class_descriptions"] == [
            described[label] for label in model.classes_.tolist()
        ]

    def test_prompts_are_chosen_by_agreement_and_max_prompts_keeps_the_best(self):
        chosen = untrained(prompts=None, n_prompts=4).fit(texts_of(60))
        assert 1 <= len(chosen.prompts_) <= 4
        assert chosen.training_summary_["n_prompts_tried"] > 4
        assert len(untrained(max_prompts=2).fit(texts_of(60)).prompts_) == 2

    @pytest.mark.parametrize("options", [{}, {"prompts": None}, {"embeddings": "deterministic"}])
    def test_the_plan_has_the_passes_of_the_run(self, options):
        classifier = untrained(**options)
        planned = classifier.plan(texts_of(120)).passes
        classifier.fit(texts_of(120))
        assert planned == classifier.usage_.passes_made

    def test_texts_that_are_refused_are_left_out(self):
        lm = RefusingBackend("river")
        texts = [*texts_of(20), "river river bank"]
        classifier = untrained(lm, on_row_error="abstain").fit(texts)
        refused = {row for row, text in enumerate(texts) if "river" in text}
        assert set(classifier.row_errors_) == refused
        with pytest.raises(RowError):
            untrained(lm).fit(texts)
        with pytest.raises(RowError, match="no text is left"):
            untrained(lm, on_row_error="abstain").fit(["river a", "river b"])

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"classes": None}, "requires y to be passed.*name the classes"),
            ({"classes": ["one"]}, "two or more distinct"),
            ({"classes": ["one", "one"]}, "two or more distinct"),
            ({"algorithm": "samme"}, "samme learns from labels alone"),
            ({"label_words": None}, "use label_words"),
            ({"prompts": "auto"}, "generated from labels"),
            ({"prompts": ["{nearest: 2}{text} is {mask}"]}, "show labelled texts"),
            ({"classes": ["Xyzzy", "Qwerty"], "embeddings": None}, "no token .* spells a class"),
            ({"class_descriptions": {"x": "y"}}, r"class_descriptions has \['x'\], which are no"),
            ({"class_descriptions": {NAMES[0]: " "}}, "must be words, got ' '"),
            (  # this LM has no embeddings by default
                {"class_descriptions": {NAMES[0]: "a b"}},
                "this training has neither: take embeddings, or describe the classes in task",
            ),
            (
                {"class_descriptions": {NAMES[0]: "a b"}, "embeddings": None},
                "this training has neither: take embeddings, or describe the classes in task",
            ),
        ],
    )
    def test_what_takes_labels_says_so(self, options, match):
        with pytest.raises(ValueError, match=match):
            untrained(**options).fit(texts_of(20))

    def test_a_single_label_beside_names_that_no_token_spells_is_one_line(self):
        with pytest.raises(ValueError, match="so few labels the names of the classes speak"):
            untrained(classes=["Xyzzy", "Qwerty"]).fit(["hi"], ["Xyzzy"])

    def test_labels_are_of_the_classes(self):
        with pytest.raises(ValueError, match="y has the label 'a', and the classes are"):
            untrained().fit(texts_of(20), ["a", "b"] * 10)

    def test_texts_without_labels_tell_what_the_lm_says_anyway(self):
        texts, new = texts_of(60), texts_of(200, seed=1)
        truth, margin = what_the_lm_says(texts, NAMES)
        one_each = {label: int(np.argmax((truth == label) * margin)) for label in NAMES}
        labels = np.full(60, None, object)
        labels[list(one_each.values())] = list(one_each)
        few = untrained().fit(texts, labels)
        assert few.training_summary_["n_rows"] == 3
        assert few.training_summary_["n_rows_without_label"] == 57
        alone = untrained(classes=None).fit([texts[row] for row in one_each.values()], NAMES)
        wanted, margin = what_the_lm_says(new, NAMES)
        clear = margin > np.median(margin)
        right = [(one.predict(new) == wanted)[clear].mean() for one in (few, alone)]
        assert right[0] > 0.8
        assert right[0] > right[1] + 0.1

    def test_texts_without_a_label_or_a_weight_are_left_out(self):
        lm, texts = CountingBackend(), texts_of(50)
        labels = [*(NAMES * 10), *[None] * 20]
        untrained(lm).fit(texts, labels, np.arange(50) < 30)
        assert not any(text in text_of(one) for one in lm.asked for text in texts[30:])

    def test_labels_that_come_later_find_their_answers_in_the_store(self, tmp_path):
        texts = texts_of(150)
        options = {"store": tmp_path / "passes.sqlite", "prompts": None}
        first = untrained(**options).fit(texts)
        assert first.training_summary_["n_rows"] == 100
        assert first.training_summary_["n_rows_left_out"] == 0
        labels = np.full(150, None, object)
        labels[[3, 50, 120]] = NAMES
        later = untrained(**options).fit(texts, labels)
        assert later.prompts_ == first.prompts_
        assert later.usage_.passes_from_store > 0
        # those of the labelled texts that hadn't been among the hundred
        assert later.usage_.passes_made <= 3 * later.training_summary_["n_prompts_tried"]

    def test_missing_labels_need_the_classes_and_all_missing_is_no_label(self):
        with pytest.raises(ValueError, match="the label is missing"):
            untrained(classes=None).fit(texts_of(4), ["a", None, "b", "a"])
        none = untrained().fit(texts_of(30), [None] * 30)
        assert none.training_summary_["labels"] == "none"

    def test_the_plan_counts_texts_without_labels(self):
        labels = [NAMES[row % 3] if row < 12 else None for row in range(200)]
        for options in ({}, {"embeddings": "deterministic"}):
            classifier = untrained(**options)
            planned = classifier.plan(texts_of(200), labels).passes
            classifier.fit(texts_of(200), labels)
            assert planned == classifier.usage_.passes_made
            assert classifier.training_summary_["n_rows_without_label"] == 88

    def test_with_one_label_each_names_are_compared_with_texts_by_embeddings(self):
        labels = [*NAMES, *[None] * 40]
        classifier = untrained(embeddings="deterministic").fit(texts_of(43), labels)
        assert [one.name for one in classifier.ensemble_.experts] == ["embeddings"]
        classifier.predict(texts_of(5, seed=1))

    def test_models_of_a_library_are_read_through_the_names(self, tmp_path):
        relative = untrained(classes=None)
        # it knows what the names mean, as a model of a related task does
        others = texts_of(90, seed=5)
        labels = [*what_the_lm_says(others, NAMES)[0], *NAMES]
        relative.fit([*others, *NAMES], labels, sample_weight=[*[1] * 90, *[20] * 3])
        relative.save(tmp_path / "relative.blackbox")
        Library.open(tmp_path / "library").add(tmp_path / "relative.blackbox")
        texts, new = texts_of(60), texts_of(100, seed=1)
        classifier = untrained(library=tmp_path / "library")
        planned = classifier.plan(texts).passes
        classifier.fit(texts)
        assert planned == classifier.usage_.passes_made
        summary = classifier.training_summary_
        assert [one["name"] for one in summary["sources"]] == ["relative"]
        assert set(summary["experts"]) == {"sources"}
        labels = classifier.predict(new)
        classifier.save(tmp_path / "m.blackbox")
        loaded = load_model(tmp_path / "m.blackbox", backend="deterministic")
        loaded.set_params(store=False)
        assert (loaded.predict(new) == labels).all()
        assert (loaded.set_params(early_stop="exact").predict(new) == labels).all()
        truth, margin = what_the_lm_says(new, NAMES)
        assert (labels == truth)[margin > np.median(margin)].mean() > 0.85

    def test_with_labels_the_classes_change_nothing(self):
        labels = [NAMES[number % 3] for number in range(30)]
        plain = untrained(classes=None).fit(texts_of(30), labels)
        named = untrained().fit(texts_of(30), labels)
        new = texts_of(20, seed=1)
        np.testing.assert_array_equal(plain.predict_proba(new), named.predict_proba(new))

    def test_it_is_cloned(self):
        assert clone(untrained()).classes == NAMES


class TestClassesWithoutLabels:
    @staticmethod
    def of_two(n_labels, n=60):
        """Texts, and labels of two of the three classes for the first of them that have one."""
        texts = texts_of(n)
        truth, _ = what_the_lm_says(texts, NAMES)
        labels = np.full(n, None, object)
        for label in NAMES[:2]:
            rows = np.flatnonzero(truth == label)[: n_labels // 2]
            labels[rows] = label
        return texts, labels

    @pytest.mark.parametrize("options", [{}, {"embeddings": "deterministic"}])
    @pytest.mark.parametrize("n_labels", [1, 4, 30])  # of one class, few, and enough to hold out
    def test_their_names_speak_for_them(self, n_labels, options, tmp_path):
        texts, labels = self.of_two(n_labels + n_labels % 2, 120)
        if n_labels == 1:
            labels[labels == NAMES[1]] = None
        classifier = untrained(**options).fit(texts, labels)
        new = texts_of(200, seed=1)
        truth, margin = what_the_lm_says(new, NAMES)
        clear, unseen = margin > np.median(margin), truth == NAMES[2]
        found = classifier.predict(new)
        share = classifier.predict_proba(new)[:, sorted(NAMES).index(NAMES[2])]
        assert (found == NAMES[2])[clear & ~unseen].mean() < 0.2
        assert share.min() > 1e-4
        assert share[clear & unseen].mean() > 1.5 * share[clear & ~unseen].mean()
        if n_labels < 30:
            assert (found == NAMES[2])[clear & unseen].mean() > 0.3
        summary = classifier.training_summary_
        said = summary["warnings"][0]
        assert said.startswith("no row has the label")
        assert repr(NAMES[2]) in said
        assert summary["class_counts"][sorted(NAMES).index(NAMES[2])] == 0
        assert ("held_out" in summary) == (n_labels == 30)
        classifier.save(tmp_path / "m.blackbox")
        loaded = load_model(tmp_path / "m.blackbox", backend="deterministic").set_params(
            store=False, **options
        )
        np.testing.assert_array_equal(loaded.predict_proba(new), classifier.predict_proba(new))
        assert (loaded.set_params(early_stop="exact").predict(new) == found).all()

    def test_they_may_have_a_weight(self):
        texts, labels = self.of_two(20)
        new = texts_of(20, seed=1)
        weights = {NAMES[0]: 3.0, NAMES[2]: 2.0}
        weighted = untrained(class_weight=weights).fit(texts, labels)
        plain = untrained(class_weight={NAMES[0]: 3.0}).fit(texts, labels)
        assert np.array_equal(weighted.predict_proba(new), plain.predict_proba(new))
        with pytest.raises(ValueError, match="class_weight has"):
            untrained(class_weight={"nope": 2.0}).fit(texts, labels)

    def test_a_row_that_is_the_only_one_of_its_class_is_held_out_too(self):
        texts, labels = self.of_two(30)
        truth, margin = what_the_lm_says(texts, NAMES)
        labels[np.argmax((truth == NAMES[2]) * margin)] = NAMES[2]
        model = untrained().fit(texts, labels).model_
        assert model.summary["held_out"]["n_rows"] == 31
        assert len(model.held_out.truth) == 31
        assert model.held_out.truth.min() > 0.01

    def test_texts_without_labels_are_no_condition(self):
        texts, labels = self.of_two(8)
        labelled = [row for row, label in enumerate(labels) if label]
        classifier = untrained().fit([texts[row] for row in labelled], labels[labelled])
        assert classifier.classes_.tolist() == sorted(NAMES)
        assert (classifier.predict_proba(texts) > 0.01).all()

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            ({"algorithm": "samme"}, "samme learns from labels alone"),
            ({"label_words": None}, "without label_words"),
            ({"cv": None}, "without cv"),
            ({"prompts": "auto"}, "prompts are generated from the labels"),
        ],
    )
    def test_where_names_are_silent_each_class_takes_a_label(self, options, why):
        texts, labels = self.of_two(8)
        with pytest.raises(ValueError, match=f"no row has the label '{NAMES[2]}'.*{why}"):
            untrained(**options).fit(texts, labels)

    def test_the_plan_has_the_passes_of_the_run(self):
        texts, labels = self.of_two(8, 150)
        for options in ({}, {"prompts": None}, {"embeddings": "deterministic"}):
            classifier = untrained(**options)
            planned = classifier.plan(texts, labels).passes
            classifier.fit(texts, labels)
            assert planned == classifier.usage_.passes_made


class TestCommand:
    @pytest.fixture
    def table(self, tmp_path):
        with (tmp_path / "texts.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text",), *((text,) for text in texts_of(40))])
        labels = [NAMES[number % 3] for number in range(40)]
        with (tmp_path / "some.csv").open("w", newline="") as file:
            rows = zip(texts_of(40), [*labels[:30], *[""] * 10], strict=True)
            csv.writer(file).writerows([("text", "label"), *rows])
        (tmp_path / "prompts.txt").write_text("\n".join(p.replace("\n", "\\n") for p in PROMPTS))
        return tmp_path

    def train(self, folder, table, *options):
        out = folder / "m.blackbox"
        given = ["--prompts", str(folder / "prompts.txt"), *map(str, options)]
        backend = ["--backend", "deterministic", "--no-store", "--out", str(out)]
        return CliRunner().invoke(main, ["train", str(folder / table), *backend, *given])

    def test_classes_train_a_table_without_labels(self, table):
        told = self.train(table, "texts.csv", "--classes", ", ".join(NAMES))
        assert told.exit_code == 0, told.output
        assert "training on 40 texts without labels, by the names of the classes" in told.stderr
        assert "it saw no label, so its quality is unknown" in told.stderr
        for command in (["inspect"], ["report", "--out", str(table / "r.html")]):
            shown = CliRunner().invoke(main, [command[0], str(table / "m.blackbox"), *command[1:]])
            assert shown.exit_code == 0, shown.output
        assert "40 rows without labels" in (table / "r.html").read_text()

    def test_a_table_with_labels_is_learned_from_unless_they_are_to_be_ignored(self, table):
        for options, labels in (([], None), (["--labels", "none"], "none")):
            told = self.train(table, "some.csv", "--classes", json.dumps(NAMES), "--json", *options)
            assert told.exit_code == 0, told.output
            found = json.loads(told.stdout)
            assert found["training"].get("labels") == labels
            assert found["training"]["n_rows"] == (40 if labels else 30)
            assert found["rows_left_out"]["without_label"] == 0
            assert found["training"].get("n_rows_without_label", 0) == (0 if labels else 10)

    def test_a_single_label_is_enough_where_the_classes_are_named(self, table):
        rows = [(text, NAMES[1] if n == 3 else "") for n, text in enumerate(texts_of(20))]
        with (table / "one.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
        told = self.train(table, "one.csv", "--classes", ",".join(NAMES))
        assert told.exit_code == 0, told.output
        assert "training on 1 row" in told.stderr
        shown = CliRunner().invoke(main, ["inspect", str(table / "m.blackbox")])
        assert f"no row has the label {NAMES[0]!r}" in shown.stdout

    def test_few_labels_alone_are_said_to_gain_by_texts_without_any(self, table):
        def said(name, n_labels, n_texts, *options):
            rows = [
                (text, NAMES[n % len(NAMES)] if n < n_labels else "")
                for n, text in enumerate(texts_of(n_texts))
            ]
            with (table / name).open("w", newline="") as file:
                csv.writer(file).writerows([("text", "label"), *rows])
            told = self.train(table, name, *options)
            assert told.exit_code == 0, told.output
            return f"--classes {','.join(sorted(NAMES))}" in told.stderr

        assert said("few.csv", 9, 9)
        assert not said("few-and-texts.csv", 9, 30, "--classes", ",".join(NAMES))
        assert not said("many.csv", 40, 40)
        assert not said("few.csv", 9, 9, "--no-label-words")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--labels", "none"], "--labels none takes --classes"),
            (["--classes", "one"], "two names or more"),
            (["--classes", "a,b,a"], "occurs twice"),
            (["--classes", "a,b", "--shots", 2], "--shots draws labelled rows"),
            (["--classes", "a,b", "--prompts", "auto"], "generated from labels"),
            (["--classes", "a,b", "--class-description", "a"], "'a' is not LABEL=TEXT"),
        ],
    )
    def test_mistakes_are_said(self, table, options, message):
        told = self.train(table, "texts.csv", *options)
        assert told.exit_code in (1, 2)
        assert message in " ".join(told.stderr.split())
        assert "Traceback" not in told.output


class TestContinue:
    """`--continue MODEL`, and `load_model(path).fit`."""

    @pytest.fixture
    def folder(self, tmp_path):
        self.write(tmp_path / "texts.csv", [(text, "") for text in texts_of(40)])
        first = self.train(tmp_path, "texts.csv", "--classes", ",".join(NAMES), out="first")
        assert first.exit_code == 0, first.output
        return tmp_path

    def write(self, path, rows):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])

    def train(self, folder, table, *options, out="next", command="train"):
        given = [command, str(folder / table), "--store", str(folder / "passes.sqlite")]
        if command == "train":
            given += ["--out", str(folder / f"{out}.blackbox")]
        if "--backend" not in options:
            given += ["--backend", "deterministic"]
        return CliRunner().invoke(main, [*given, *map(str, options), "--json"])

    def go_on(self, folder, rows, *options, **kwargs):
        self.write(folder / "more.csv", rows)
        path = folder / "first.blackbox"
        return self.train(folder, "more.csv", "--continue", path, *options, **kwargs)

    def test_known_texts_are_asked_nothing_again_and_new_ones_the_same_prompts(self, folder):
        rows = [(text, NAMES[n % 3] if n < 12 else "") for n, text in enumerate(texts_of(40))]
        first = load_model(folder / "first.blackbox", backend="deterministic")
        told = self.go_on(folder, rows)
        assert told.exit_code == 0, told.output
        found = json.loads(told.stdout)
        assert found["usage"]["passes_made"] == 0
        assert found["training"]["n_rows"] == 12
        assert found["training"]["n_rows_without_label"] == 28
        assert set(found["prompts"]) <= {prompt.template for prompt in first.prompts_}
        plan = json.loads(self.go_on(folder, rows, command="plan").stdout)
        assert (plan["passes_to_make"], plan["passes"]) == (0, 40 * len(first.prompts_))
        new = [(text, NAMES[n % 3]) for n, text in enumerate(texts_of(5, seed=7))]
        found = json.loads(self.go_on(folder, [*rows, *new]).stdout)
        assert found["usage"]["passes_made"] == 5 * len(first.prompts_)

    def test_options_of_the_model_hold_where_no_others_are_given(self, folder):
        words = [f"{NAMES[0]}={NAMES[1]}", f"{NAMES[1]}={NAMES[0]}"]
        given = [option for word in words for option in ("--label-word", word)]
        options = ["--task", "What is it?", *given, "--balanced", "--n-estimators", 7]
        self.train(folder, "texts.csv", "--classes", ",".join(NAMES), *options, out="first")
        rows = [(text, NAMES[n % 3]) for n, text in enumerate(texts_of(40))]
        assert self.go_on(folder, rows).exit_code == 0
        saved = load_model(folder / "next.blackbox", backend="deterministic")
        assert saved.task == "What is it?"
        assert saved.label_words == {NAMES[0]: NAMES[1], NAMES[1]: NAMES[0]}
        assert saved.class_weight == "balanced"
        assert saved.n_estimators == 7
        assert saved.embeddings is None  # this LM had none by default
        assert saved.class_descriptions is None
        assert self.go_on(folder, rows, "--no-label-words", "--n-estimators", 5).exit_code == 0
        again = load_model(folder / "next.blackbox", backend="deterministic")
        assert (again.label_words, again.n_estimators, again.task) == (None, 5, "What is it?")

    def test_descriptions_of_the_classes_go_on_too(self, folder):
        described = ["--embeddings", "deterministic", "--class-description", f"{NAMES[2]}=x = y"]
        first = ["texts.csv", "--classes", ",".join(NAMES), *described]
        assert self.train(folder, *first, out="first").exit_code == 0
        rows = [(text, NAMES[n % 3]) for n, text in enumerate(texts_of(40))]
        assert self.go_on(folder, rows, "--embeddings", "deterministic").exit_code == 0
        saved = load_model(folder / "next.blackbox", backend="deterministic")
        assert saved.class_descriptions == {NAMES[2]: "x = y"}

    def test_in_python_a_loaded_model_is_fitted_further(self, folder):
        lm = CountingBackend()
        store = folder / "passes.sqlite"
        loaded = load_model(folder / "first.blackbox", backend=lm).set_params(store=store)
        prompts = loaded.prompts_
        labels = [NAMES[n % 3] if n < 6 else None for n in range(40)]
        loaded.fit(texts_of(40), labels)
        assert not lm.asked
        assert loaded.classes_.tolist() == sorted(NAMES)
        assert set(loaded.prompts_) <= set(prompts)

    @pytest.mark.parametrize(
        ("rows", "options", "message"),
        [
            ([("a", "other")], [], "column 'label': 'other' is none of the classes"),
            ([("a", NAMES[0])], ["--classes", "x,y"], "--classes names others"),
            ([("a", NAMES[0])], ["--text-pair-column", "label"], "trained on single texts"),
            (
                [("a", NAMES[0])],
                ["--backend-option", "seed=3"],
                "another LM answers than the one it was trained with (model",
            ),
        ],
    )
    def test_what_contradicts_the_model_is_said_in_one_line(self, folder, rows, options, message):
        told = self.go_on(folder, rows, *options)
        assert told.exit_code in (1, 2)
        assert message in " ".join(told.stderr.split())
        assert "Traceback" not in told.output
        assert not (folder / "next.blackbox").exists()

    def test_a_file_that_is_no_model_and_one_with_numbers_are_said(self, folder):
        (folder / "first.blackbox").write_text("no model")
        told = self.go_on(folder, [("a", NAMES[0])])
        assert "first.blackbox" in told.stderr
        assert "Traceback" not in told.output
        numbers = untrained(classes=None).fit(texts_of(20), [0, 1] * 10)
        numbers.save(folder / "first.blackbox")
        told = self.go_on(folder, [("a", "0")])
        assert "its labels are numbers" in " ".join(told.stderr.split())
