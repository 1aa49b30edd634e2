"""The service with a model of several labels per text."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("fastapi", reason="the service needs the `serve` extra")
pytest.importorskip("prometheus_client", reason="the service needs the `serve` extra")

from blackbox import load_model
from tests.serving import running, served, train
from tests.test_multilabel import LABELS, NEW, PROMPTS, SETS, TEXTS


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "m"
    options = {"prompts": PROMPTS, "n_estimators": 20, "embeddings": "deterministic"}
    return train(path, TEXTS, SETS, **options)


@pytest.fixture(scope="module")
def classifier(model):
    loaded = load_model(model, backend="deterministic", embeddings="deterministic")
    return loaded.set_params(store=False)


@pytest.fixture(scope="module")
def client(model):
    with running(served(model)) as one:
        yield one


def test_a_prediction_is_a_list_of_labels_with_probabilities(client, classifier):
    status, _, body = client.predict({"texts": NEW})
    assert status == 200
    rows = zip(
        body["predictions"], classifier.predict(NEW), classifier.predict_proba(NEW), strict=True
    )
    for prediction, labels, shares in rows:
        assert prediction["label"] == list(labels)
        assert list(prediction["probabilities"]) == LABELS
        assert list(prediction["probabilities"].values()) == pytest.approx(shares)
        assert prediction["abstained"] is False
    assert [] in [one["label"] for one in body["predictions"]]


def test_no_label_is_no_abstention(client):
    status, _, body = client.predict({"texts": ["hello there 5", ""]})
    assert status == 200
    none, empty = body["predictions"]
    assert (none["label"], none["abstained"]) == ([], False)
    assert (empty["label"], empty["abstained"], empty["reason"]) == (None, True, "empty text")


def test_an_explanation_has_the_form_of_the_others(client, classifier):
    status, _, body = client.predict({"text": NEW[1], "explain": True})
    assert status == 200
    explained = body["predictions"][0]["explanation"]
    expected = classifier.explain(NEW[1])
    assert set(explained) == {"experts", "prompts", "learners"}
    for one, other in zip(explained["prompts"], expected["prompts"], strict=True):
        assert one["prompt"] == other["prompt"]
        assert one["votes"] == pytest.approx(other["votes"])


def test_a_model_says_that_it_gives_several(client, classifier):
    status, _, body = client.ask("GET", "/v1/model")
    assert status == 200
    assert body["several_labels"] is True
    assert body["classes"] == LABELS
    assert body["thresholds"] == classifier.model_.thresholds.tolist()


@pytest.mark.parametrize("asked", [{"max_error": 0.2}, {"set_coverage": 0.9}])
def test_what_is_for_one_label_per_text_is_refused(client, asked):
    status, _, body = client.predict({"text": "hello", **asked})
    assert status == 422
    assert "for one label per text, and this model gives several" in body["detail"]


def test_the_open_inference_protocol_has_lists_as_json(client, classifier):
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": NEW[:2]}
    status, _, body = client.ask("POST", "/v2/models/m/infer", {"inputs": [tensor]})
    assert status == 200
    label, probabilities = body["outputs"]
    assert [json.loads(one) for one in label["data"]] == [
        list(labels) for labels in classifier.predict(NEW[:2])
    ]
    assert probabilities["shape"] == [2, len(LABELS)]


def test_a_decision_is_a_predicate_and_no_choice(client, classifier):
    def ask(question):
        asked = {"model": "m", "input": NEW[1], "questions": [question]}
        return client.ask("POST", "/v1/decisions", asked)

    predicate = {"type": "predicate", "name": "refund", "instructions": "Is it about a refund?"}
    status, _, body = ask(predicate)
    assert status == 200
    (answer,) = body["answers"]
    expected = classifier.predict_proba([NEW[1]])[0, LABELS.index("refund")]
    assert answer["probability"] == pytest.approx(expected)
    choices = [{"value": label} for label in LABELS]
    choice = {"type": "choice", "name": "topic", "instructions": "Which?", "choices": choices}
    status, _, body = ask(choice)
    assert status == 422
    assert "this model gives several labels" in body["error"]["message"]


def test_the_report_of_a_served_model_has_its_labels(client):
    pytest.importorskip("jinja2", reason="reports need the `report` extra")
    status, _, page = client.ask("GET", "/v1/report")
    assert status == 200
    assert "Labels, any number per text" in (page if isinstance(page, str) else page.decode())
