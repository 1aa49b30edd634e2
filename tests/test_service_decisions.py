"""Decision endpoints of the service, through the official client and a plain one."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="needs the `serve` extra")
pytest.importorskip("openai", reason="needs the `openai` extra")

import openai
from serving import as_problem, running, served, train

from blackbox.loading import load_model

TEXT = "goal of the team"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def client(model):
    with running(served(model)) as one:
        yield one


@pytest.fixture(scope="module")
def expected(model):
    classifier = load_model(model, backend="deterministic").set_params(store=False)
    shares = classifier.predict_proba([TEXT])[0].tolist()
    return dict(zip(classifier.classes_.tolist(), shares, strict=True))


@pytest.fixture(scope="module")
def official(client):
    url = f"http://{client.address}:{client.port}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as one:
        yield one


def choice(*options):
    values = [{"value": option} for option in options]
    return {"type": "choice", "instructions": "Which?", "choices": values}


def test_the_official_client_gets_the_probabilities_of_the_model(official, expected):
    decision = official.decisions.create(
        model="m",
        input=TEXT,
        questions=[
            choice("sport", "money"),
            {"type": "predicate", "instructions": "The text is about sport."},
            {"type": "predicate", "instructions": "Is that so?", "name": "money"},
        ],
        prompt_cache_key="none",
    )
    first, about_sport, about_money = decision.answers
    told = {one.value: one.probability for one in first.probabilities}
    assert list(told) == ["sport", "money"]
    assert told == pytest.approx(expected)
    assert first.choice == max(expected, key=expected.get)
    assert about_sport.probability == pytest.approx(expected["sport"])
    assert about_money.probability == pytest.approx(expected["money"])
    assert decision.model == "m"


def test_the_form_of_system_one_gives_the_same(client, expected):
    questions = {
        "which": {"type": "choice", "criteria": {"money": None, "sport": "games"}},
        "sport": {"type": "noul", "instructions": "Is it?"},
    }
    status, _, body = client.ask("POST", "/v1/systemone", {"state": TEXT, "questions": questions})
    assert status == 200
    assert body["answers"]["which"]["probabilities"] == pytest.approx(expected)
    assert body["answers"]["sport"]["noul"] == pytest.approx(expected["sport"])


@pytest.mark.parametrize(
    "question",
    [
        choice("sport"),
        choice("sport", "money", "other"),
        {"type": "predicate", "instructions": "The text is about cars."},
        {"type": "predicate", "instructions": "It is about sport and money."},
        {"type": "predicate", "instructions": "Is the text about sport?", "name": "money"},
        {"type": "score", "instructions": "How?", "levels": [{"label": "a"}, {"label": "b"}]},
    ],
)
def test_a_question_that_is_not_about_the_classes_is_refused_with_a_reason(official, question):
    with pytest.raises(openai.UnprocessableEntityError, match="money, sport") as caught:
        official.decisions.create(
            model="m", input=TEXT, questions=[choice("money", "sport"), question]
        )
    assert "questions.1: this model answers a choice" in str(caught.value)


@pytest.mark.parametrize("said", ["It isn't about sport.", "No sport here", "not sport at all"])
def test_instructions_that_deny_are_refused(official, said):
    with pytest.raises(openai.UnprocessableEntityError, match="instructions that deny"):
        official.decisions.create(
            model="m", input=TEXT, questions=[{"type": "predicate", "instructions": said}]
        )


def test_a_text_without_an_answer_is_a_refusal_or_left_out(official, client):
    decision = official.decisions.create(model="m", input=" ", questions=[choice("money", "sport")])
    assert decision.answers[0].type == "refusal"
    asked = {"sport": {"type": "noul"}}
    status, _, body = client.ask("POST", "/v1/systemone", {"state": " ", "questions": asked})
    assert (status, body["answers"]) == (200, {})


def test_an_unknown_model_and_an_empty_request_are_refused(official):
    with pytest.raises(openai.NotFoundError, match="no model of that name"):
        official.decisions.create(model="x", input=TEXT, questions=[choice("money", "sport")])
    with pytest.raises(openai.UnprocessableEntityError, match="questions"):
        official.decisions.create(model="m", input=TEXT, questions=[])


def test_early_stopping_gives_no_probabilities_to_tell(model):
    with running(served(model, early_stop="exact")) as client:
        asked = {"sport": {"type": "noul"}}
        status, _, body = client.ask("POST", "/v1/systemone", {"state": TEXT, "questions": asked})
    assert status == 422
    assert "stops early" in body["detail"]


@pytest.mark.parametrize(
    ("path", "questions", "said"),
    [
        ("decisions", [{**choice("a"), "choices": [0] * 100_000}], "questions.0.choices.0: "),
        ("decisions", [0] * 100_000, "questions.0: "),
        ("decisions", [{"type": "predicate", "instructions": "a" * 101}], "at most 100 characters"),
        ("systemone", {str(n): 0 for n in range(50_000)}, "at most 400 questions"),
        ("systemone", {"q": {"type": "choice", "criteria": [[], []]}}, "criteria"),
        ("systemone", {"q": {"type": "noul", "instructions": "a" * 101}}, "at most 100 characters"),
    ],
)
def test_of_many_mistakes_the_first_is_said(model, path, questions, said):
    text = {"decisions": "input", "systemone": "state"}[path]
    with running(served(model), max_characters=100) as one:
        assert said in as_problem(
            one.ask("POST", f"/v1/{path}", {text: TEXT, "questions": questions}), 422
        )
