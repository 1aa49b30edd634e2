"""Models in words: text that is safe to show, and votes that add up to the scores."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackbox import PromptBoostingClassifier
from blackbox.errors import RowError
from blackbox.explain import describe_learner, describe_learners
from blackbox.model.display import printable

PROMPTS = ["{text} It was {mask}", "{text} So {mask}", "<user>{text}<assistant>It is {mask}"]
LABELS = {"lovely": "good", "dull": "bad", "odd": "neither"}
TEXTS = [f"a {word} day, number {number}" for number in range(8) for word in LABELS]
NEW = ["what a lovely evening", "dull and odd", "nothing of the kind"]


@cache
def trained(algorithm: str = "logit", n_classes: int = 3) -> PromptBoostingClassifier:
    words = list(LABELS)[:n_classes]
    rows = [(text, LABELS[word]) for text in TEXTS for word in words if word in text]
    return PromptBoostingClassifier(
        "deterministic",
        prompts=PROMPTS,
        algorithm=algorithm,
        n_estimators=9,
        cv=None,
        validation_fraction=0,
        random_state=0,
    ).fit(*zip(*rows, strict=True))


def scores_of(classifier: PromptBoostingClassifier, text: str) -> np.ndarray:
    """Scores by class; of two classes, the difference."""
    return np.atleast_1d(classifier.decision_function([text])[0])


def as_scores(by_class: dict[str, float], initial: np.ndarray) -> np.ndarray:
    total = np.array(list(by_class.values())) + initial
    return total if len(total) > 2 else total[1:] - total[:1]


class TestPrintable:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("plain text, 123", "plain text, 123"),
            ("schön 日本語 🎁", "schön 日本語 🎁"),
            ("two\nlines\tand\rmore", "two\\nlines\\tand\\rmore"),
            ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
            ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
            ("\x9b2J", "\\x9b2J"),
            ("\x00\x7f\x08", "\\x00\\x7f\\x08"),
            ("\u202egnp.exe", "\\u202egnp.exe"),
            ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
            ("\u2028", "\\u2028"),
            ("\ud800", "\\ud800"),
            ("\U000e0041", "\\U000e0041"),
            ("", ""),
        ],
    )
    def test_it_escapes_what_would_steer_a_terminal_and_nothing_else(
        self, text: str, shown: str
    ) -> None:
        assert printable(text) == shown

    @given(st.text(st.characters(codec=None)))
    def test_whatever_comes_in_what_comes_out_is_printable(self, text: str) -> None:
        assert printable(text).isprintable()
        printable(text).encode()
        if text.isprintable():
            assert printable(text) == text


class TestDescribing:
    @pytest.mark.parametrize("algorithm", ["logit", "samme"])
    def test_the_strongest_learners_come_first(self, algorithm: str) -> None:
        classifier = trained(algorithm)
        told = describe_learners(classifier.model_)
        assert sorted(entry["round"] for entry in told) == list(range(1, len(told) + 1))
        assert len(told) == len(classifier.estimators_)
        order = [(-entry["weight"], entry["round"]) for entry in told]
        assert order == sorted(order)
        for entry in told:
            assert entry["weight"] == classifier.estimator_weights_[entry["round"] - 1]

    def test_n_gives_the_first_of_them(self) -> None:
        assert describe_learners(trained().model_, 2) == describe_learners(trained().model_)[:2]
        assert describe_learners(trained().model_, 10_000) == describe_learners(trained().model_)

    @pytest.mark.parametrize("algorithm", ["logit", "samme"])
    def test_a_learner_tells_its_prompt_and_the_tokens_of_each_class(self, algorithm: str) -> None:
        classifier = trained(algorithm)
        for learner in classifier.estimators_:
            told = describe_learner(classifier.model_, learner)
            assert told["prompt"] == classifier.prompts_[learner.prompt].template
            assert list(told["tokens"]) == classifier.classes_.tolist()
            ids = classifier.ensemble_.readings[learner.prompt].token_ids
            for tokens, columns, weights in zip(
                told["tokens"].values(), learner.columns, learner.token_weights, strict=True
            ):
                spoken = [
                    (classifier.token_bytes_[int(ids[column])].decode(), float(weight))
                    for column, weight in zip(columns, weights, strict=True)
                    if weight
                ]
                assert tokens == spoken
                assert sum(abs(weight) for _, weight in tokens) == pytest.approx(1, abs=0.01)

    def test_it_is_json_data(self) -> None:
        told = describe_learners(trained().model_)
        assert len(json.loads(json.dumps(told))) == len(told)

    def test_half_a_character_is_shown_as_such(self) -> None:
        model = trained().model_
        halves = replace(model, token_bytes=dict.fromkeys(model.token_bytes, b"\xf0\x9f"))
        tokens = describe_learners(halves, 1)[0]["tokens"]["good"]
        assert {token for token, _ in tokens} == {"\N{REPLACEMENT CHARACTER}"}


class TestExplaining:
    @pytest.mark.parametrize("text", NEW)
    @pytest.mark.parametrize("n_classes", [2, 3])
    def test_votes_of_all_prompts_and_the_initial_scores_add_up_to_the_decision(
        self, n_classes: int, text: str
    ) -> None:
        classifier = trained("logit", n_classes)
        told = classifier.explain(text)
        names = classifier.classes_.tolist()
        total = {name: sum(prompt["votes"][name] for prompt in told["prompts"]) for name in names}
        np.testing.assert_allclose(
            as_scores(total, classifier.ensemble_.initial), scores_of(classifier, text), atol=1e-5
        )

    @pytest.mark.parametrize("algorithm", ["logit", "samme"])
    def test_a_prompt_s_votes_are_those_of_its_learners_within_its_limits(
        self, algorithm: str
    ) -> None:
        classifier = trained(algorithm)
        early_stopping = classifier.ensemble_.early_stopping
        told = classifier.explain(NEW[0])
        assert [entry["prompt"] for entry in told["prompts"]] == [
            prompt.template for prompt in classifier.prompts_
        ]
        for number, entry in enumerate(told["prompts"]):
            own = [learner for learner in told["learners"] if learner["prompt"] == entry["prompt"]]
            for place, (name, votes) in enumerate(entry["votes"].items()):
                said = sum(learner["votes"][name] for learner in own)
                if algorithm == "logit":
                    said = np.clip(
                        said, early_stopping.low[number, place], early_stopping.high[number, place]
                    )
                assert votes == pytest.approx(said, abs=1e-6)

    @pytest.mark.parametrize("algorithm", ["logit", "samme"])
    def test_the_class_with_the_most_votes_is_predicted(self, algorithm: str) -> None:
        classifier = trained(algorithm)
        for text in NEW:
            told = classifier.explain(text)
            assert told["prediction"] == classifier.predict([text])[0]
            assert list(told["probabilities"]) == classifier.classes_.tolist()
            np.testing.assert_array_equal(
                list(told["probabilities"].values()), classifier.predict_proba([text])[0]
            )
            if algorithm == "samme":
                totals = {
                    name: sum(learner["votes"][name] for learner in told["learners"])
                    for name in classifier.classes_.tolist()
                }
                assert max(totals, key=totals.__getitem__) == told["prediction"]

    def test_a_learner_of_samme_gives_its_weight_to_one_class(self) -> None:
        classifier = trained("samme")
        for learner in classifier.explain(NEW[0])["learners"]:
            given = [votes for votes in learner["votes"].values() if votes]
            assert given == [classifier.estimator_weights_[learner["round"] - 1]]

    def test_the_largest_votes_come_first(self) -> None:
        told = trained().explain(NEW[1])["learners"]
        spans = [max(e["votes"].values()) - min(e["votes"].values()) for e in told]
        assert spans == sorted(spans, reverse=True)
        assert sorted(entry["round"] for entry in told) == list(range(1, len(told) + 1))

    @pytest.mark.parametrize("algorithm", ["logit", "samme"])
    def test_tokens_stand_with_the_values_that_transform_gives(self, algorithm: str) -> None:
        classifier = trained(algorithm)
        values = classifier.transform([NEW[2]])[0]
        ends = np.cumsum([len(reading.token_ids) for reading in classifier.ensemble_.readings])
        for entry in classifier.explain(NEW[2])["learners"]:
            learner = classifier.estimators_[entry["round"] - 1]
            reading = classifier.ensemble_.readings[learner.prompt]
            start = ends[learner.prompt] - len(reading.token_ids)
            spoken = [
                (name, start + column, weight)
                for name, columns, weights in zip(
                    classifier.classes_, learner.columns, learner.token_weights, strict=True
                )
                for column, weight in zip(columns, weights, strict=True)
                if weight
            ]
            features = classifier.get_feature_names_out()
            assert len(entry["tokens"]) == len(spoken)
            for token, (name, column, weight) in zip(entry["tokens"], spoken, strict=True):
                assert token["class"] == name
                assert token["weight"] == weight
                assert token["log_prob"] == values[column]
                assert features[column].endswith(f"_{token['token']}")
                assert features[column].startswith(f"prompt{learner.prompt}_")

    @pytest.mark.parametrize("n_classes", [2, 3])
    @pytest.mark.parametrize("algorithm", ["logit", "samme"])
    def test_what_tokens_add_for_this_text_is_what_their_learner_votes(
        self, algorithm: str, n_classes: int
    ) -> None:
        classifier = trained(algorithm, n_classes)
        names = classifier.classes_.tolist()
        tables = []
        for text in NEW:
            learners = classifier.explain(text)["learners"]
            for learner in learners:
                added = dict.fromkeys(names, 0.0)
                for token in learner["tokens"]:
                    added[token["class"]] += token["adds"]
                    if algorithm == "logit":
                        for other in set(names) - {token["class"]}:
                            added[other] -= token["adds"] / (n_classes - 1)
                assert added == pytest.approx(learner["votes"], abs=1e-6)
            tables.append(
                [
                    token["adds"]
                    for learner in sorted(learners, key=lambda one: one["round"])
                    for token in learner["tokens"]
                ]
            )
        assert tables[0] != tables[1]

    def test_it_is_json_data(self) -> None:
        told = trained().explain(NEW[0])
        assert json.loads(json.dumps(told, default=str))["prompts"] == told["prompts"]

    def test_pairs_are_explained_too(self) -> None:
        pairs = [(f"{a} {n}", b) for a in ("wet", "dry") for b in ("wet", "dry") for n in range(3)]
        classifier = PromptBoostingClassifier(
            "deterministic", prompts=["{text} / {text_pair}: {mask}"], n_estimators=4, cv=None
        ).fit(pairs, [first.startswith(second) for first, second in pairs])
        told = classifier.explain(pairs[0])
        assert told["prediction"] == classifier.predict(pairs[:1])[0]
        assert list(told["probabilities"]) == ["False", "True"]

    @pytest.mark.parametrize("policy", ["raise", "abstain"])
    def test_a_text_without_an_answer_can_t_be_explained(self, policy: str) -> None:
        classifier = PromptBoostingClassifier("deterministic", on_row_error=policy)
        for name, value in vars(trained()).items():
            if name.endswith("_") or name.startswith("_"):
                setattr(classifier, name, value)
        with pytest.raises(RowError):
            classifier.explain("  ")
