"""Images over OpenAI-compatible APIs: as data URLs, counted, and never refused late."""

from __future__ import annotations

import json

import numpy as np
import pytest
from decision_server import KEY, DecisionServer
from endpoint_server import EndpointServer
from fault_server import FaultServer, read_content
from images_asked import halves

pytest.importorskip("PIL", reason="needs the `images` extra")
pytest.importorskip("openai", reason="needs the `openai` extra")

from backends import check_backend
from backends.api.billing import Billing
from backends.api.image_probe import probe_images
from backends.api.request_format import RESPONSES, RequestFormat
from backends.decisions import DecisionsBackend
from backends.deterministic import DeterministicBackend
from backends.openai import OpenAIBackend
from backends.sampling import SamplingBackend
from blackbox import PromptBoostingClassifier
from blackbox.errors import BudgetError, ImageError, UnservedPromptError
from blackbox.images import Image, plain_image
from blackbox.prompts.question import parse_prompt
from blackbox.prompts.template import Prompt
from blackbox.protocol import Message, RenderedPrompt, request_digest
from blackbox.spending import Rate

RED, BLUE = plain_image(200, 0, 0, side=48), plain_image(0, 0, 90, side=48)
ASKED = RenderedPrompt(
    messages=(Message("user", "See: What is it?"),), image=RED, image_at=len("See: ")
)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


PICTURES, LABELS = [halves(number) for number in range(36)], ["above", "below"] * 18


@pytest.mark.parametrize("form", [{}, {"begun": True}, {"endpoints": ("chat", "completions")}])
def test_an_image_goes_to_chats_where_it_stands_and_is_answered(form):
    with FaultServer(**form) as server:
        lm = OpenAIBackend("lm", base_url=server.url, images=True)
        lm.probe()
        before = len(server.bodies)
        raw = Prompt("{image} It is {mask}").render("", BLUE)
        answers = lm.next_token([ASKED, raw], 5)
        of_asked, of_raw = sorted(server.bodies[before:], key=lambda body: "See:" not in str(body))
        (turn,) = of_asked["messages"]
        first, image, last = turn["content"]
        assert first == {"type": "text", "text": "See: "}
        assert image["image_url"]["url"].startswith("data:image/png;base64,")
        assert read_content([image])[1].data() == RED.data()
        assert last == {"type": "text", "text": "What is it?"}
        assert any("image_url" in part for part in of_raw["messages"][0]["content"])
        expected = DeterministicBackend().next_token([ASKED], 5)
    assert answers.log_probs[0] == pytest.approx(expected.log_probs[0], abs=1e-6)
    assert not np.allclose(answers.log_probs[0], answers.log_probs[1])


def test_the_responses_api_has_names_of_its_own_for_the_parts():
    wire = RequestFormat("lm", endpoints=frozenset({RESPONSES}))
    (turn,) = wire.next_token(ASKED, 5)["input"]
    assert [part["type"] for part in turn["content"]] == ["input_text", "input_image", "input_text"]
    assert turn["content"][1]["image_url"].startswith("data:image/png")


def test_text_is_sent_and_probed_as_ever_where_images_are_not_asked_for():
    with FaultServer() as server:
        lm = OpenAIBackend("lm", base_url=server.url)
        assert not lm.limits.images
        n_probed, identity = len(server.bodies), lm.identity
        assert "image" not in str(server.bodies)
        with pytest.raises(UnservedPromptError, match="say so by the backend option images"):
            lm.next_token([RenderedPrompt("a text"), ASKED], 5)
        assert len(server.bodies) == n_probed
    with FaultServer() as server:
        seeing = OpenAIBackend("lm", base_url=server.url, images=True)
        assert seeing.limits.images
        assert len(server.bodies) == n_probed + 2
        assert seeing.identity == identity
    with FaultServer() as server:
        small = OpenAIBackend("lm", base_url=server.url, images=True, max_image_side=32)
        assert small.identity.extra == identity.extra | {"max_image_side": "32"}


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("refused", "takes no images: .*this model reads text only"),
        ("ignored", "doesn't see images: it answers the same to a red one and to a blue one"),
    ],
)
def test_a_model_without_images_is_found_out_before_any_pass(images, said):
    with FaultServer(images=images) as server:
        lm = OpenAIBackend("lm", base_url=server.url, images=True)
        with pytest.raises(UnservedPromptError, match=said) as caught:
            PromptBoostingClassifier(backend=lm, store=None).fit(PICTURES, LABELS)
        assert "\n" not in str(caught.value)
        assert "base64" not in str(caught.value)
        assert len(server.bodies) < 12  # those of the probe


def test_a_server_of_completions_takes_none():
    with FaultServer(endpoints=("completions",)) as server:
        lm = OpenAIBackend("lm", base_url=server.url, images=True)
        with pytest.raises(UnservedPromptError, match="completions only"):
            lm.probe()


def test_a_larger_image_is_resized_and_only_the_resized_one_is_sent():
    large = Image.of(halves(1, side=200))
    with FaultServer() as server:
        lm = OpenAIBackend("lm", base_url=server.url, images=True, max_image_side=50)
        lm.next_token([RenderedPrompt(messages=(Message("user", "?"),), image=large)], 5)
        sent = read_content(server.bodies[-1]["messages"][0]["content"])[1]
        assert (sent.width, sent.height) == (50, 50)
        whole = OpenAIBackend("lm", base_url=server.url, images=True)
        prompt = RenderedPrompt("", image=large)
        digests = {request_digest(one.identity, prompt, {}) for one in (lm, whole)}
        assert len(digests) == 2
    for wrong in (0, -1, 2.5, True, "large"):
        with pytest.raises(ValueError, match="max_image_side must be a whole number"):
            OpenAIBackend("lm", base_url="http://127.0.0.1:1/v1", max_image_side=wrong)


def test_images_go_through_the_batch_endpoint_in_files_that_are_not_too_large(
    tmp_path, monkeypatch
):
    asked = [
        RenderedPrompt(messages=(Message("user", "What is it?"),), image=Image.of(halves(number)))
        for number in range(8)
    ]
    largest = 3 * max(len(prompt.image.data_url()) + 600 for prompt in asked)
    monkeypatch.setattr("backends.api.batch._MAX_BYTES", largest)
    options = {"images": True, "poll_seconds": 0.01}
    with FaultServer() as server:
        online = OpenAIBackend("lm", base_url=server.url, images=True)
        lm = OpenAIBackend("lm", base_url=server.url, batch=True, batch_folder=tmp_path, **options)
        one, other = online.next_token(asked, 20), lm.next_token(asked, 20)
        files = [server.files[sent["input_file_id"]] for sent in server.batches.values()]
        assert lm.identity == online.identity
    assert (one.token_ids == other.token_ids).all()
    assert (one.log_probs == other.log_probs).all()
    assert other.usage.tokens == one.usage.tokens
    assert len(files) > 1
    assert max(map(len, files)) < largest
    lines = [json.loads(line) for file in files for line in file.splitlines()]
    sent = [read_content(line["body"]["messages"][0]["content"])[1] for line in lines]
    assert {image.data() for image in sent} == {prompt.image.data() for prompt in asked}


def test_a_file_that_changes_before_it_is_sent_ends_the_run_in_one_line(tmp_path):
    path = tmp_path / "a.png"
    halves(1).save(path)
    image = Image.of(path)
    halves(2).save(path)
    with FaultServer() as server:
        lm = OpenAIBackend("lm", base_url=server.url, images=True)
        with pytest.raises(ImageError, match="was changed while it was in use"):
            lm.next_token([RenderedPrompt(messages=(Message("user", "?"),), image=image)], 5)


def test_tokens_are_learned_from_what_is_reported_for_two_images():
    def ask(per_image, per_megapixel):
        def answer(prompt):
            tokens = 20 + per_image + per_megapixel * prompt.image.n_pixels / 1e6
            return {b"a": -0.1 * len(prompt.image.data()) % 7}, round(tokens)

        return answer

    for per_image, per_megapixel in ((0, 1276), (258, 0), (85, 650)):
        found = probe_images("lm", ask(per_image, per_megapixel), lambda bare: 20)
        assert found.per_image == pytest.approx(per_image, abs=3)
        assert found.per_megapixel == pytest.approx(per_megapixel, abs=6)
    silent = probe_images("lm", lambda prompt: ({b"a": -len(prompt.image.data())}, 0), lambda _: 20)
    assert (silent.per_image, silent.per_megapixel) == (0.0, 1000.0)


def test_a_plan_counts_images_and_a_run_takes_what_was_planned():
    prompts = ["<user>{image}What is it?<assistant>{mask}", "<user>Half? {image}<assistant>{mask}"]
    with FaultServer() as server:
        options = {"base_url": server.url, "images": True}
        made = PromptBoostingClassifier(
            backend="openai", model="lm", backend_options=options, prompts=prompts, store=None
        )
        plan = made.plan(PICTURES, LABELS)
        bill = server.bill
        made.fit(PICTURES, LABELS)
        used = server.bill.tokens - bill.tokens
        assert made.score(PICTURES, LABELS) > 0.8
    assert plan.passes == 2 * len(PICTURES)
    assert plan.tokens[0] <= used <= plan.tokens[2]
    assert used > 16 * plan.passes  # each image is 16 tokens


def test_a_try_reserves_what_an_image_may_take_at_most():
    wire = RequestFormat("lm")
    with_image = Billing().begin(Rate("openai-compatible", "lm"), wire.next_token(ASKED, 5), None)
    bare = RenderedPrompt(messages=ASKED.messages)
    without = Billing().begin(Rate("openai-compatible", "lm"), wire.next_token(bare, 5), None)
    assert with_image.worst.input_tokens - without.worst.input_tokens == 2833 + 5667


def test_a_budget_of_tokens_holds_with_images():
    with FaultServer() as server:
        options = {"base_url": server.url, "images": True, "max_concurrency": 2}
        made = PromptBoostingClassifier(
            backend="openai",
            model="lm",
            backend_options=options,
            prompts=["<user>{image}What is it?<assistant>{mask}"],
            store=None,
            max_tokens=18_000,
        )
        with pytest.raises(BudgetError):
            made.fit([*PICTURES] * 20, [*LABELS] * 20)
        assert server.bill.tokens <= 18_000


def test_the_contract_holds_with_images():
    with FaultServer(begun=True) as server:
        check_backend(OpenAIBackend("lm", base_url=server.url, images=True), skip=["long texts"])
    with DecisionServer("decisions") as server:
        lm = DecisionsBackend(base_url=server.url, images=True)
        check_backend(lm)


def test_draws_see_images():
    with FaultServer() as server:
        inner = OpenAIBackend("lm", base_url=server.url, images=True, log_probs=False)
        answers = SamplingBackend(inner, n_draws=20).next_token(
            [ASKED, RenderedPrompt(messages=ASKED.messages, image=BLUE)], 10
        )
    assert answers.token_ids[0].tolist() != answers.token_ids[1].tolist()


def test_questions_about_an_image_are_one_request():
    questions = [
        parse_prompt("<predicate image>It is red."),
        parse_prompt("<choice image>What is it?<option>a cat<option>a dog"),
    ]
    with DecisionServer("decisions") as server:
        lm = DecisionsBackend(base_url=server.url, images=True, max_image_side=20)
        lm.probe()
        before = len(server.bodies)
        prompts = [
            q.render_for(lm.limits, text, image)
            for text, image in (("", RED), ("", BLUE), ("a text", RED))
            for q in questions
        ]
        answers = lm.next_token(prompts, 2)
        assert len(server.bodies) == before + 3
        body = next(body for body in server.bodies[before:] if "a text" in str(body))
        (turn,) = body["input"]
        image, text = turn["content"]
        assert image["type"] == "input_image"
        assert read_content([image])[1].width == 20
        assert text == {"type": "input_text", "text": "a text"}
        assert lm.identity.extra["max_image_side"] == "20"
    assert len({tuple(row) for row in answers.log_probs.round(6).tolist()}) == len(prompts)


def test_an_endpoint_of_system_one_takes_no_images():
    with DecisionServer("systemone") as server:
        lm = DecisionsBackend(base_url=server.url, images=True)
        with pytest.raises(UnservedPromptError, match="/systemone takes no images"):
            lm.probe()
    with DecisionServer("decisions") as server:
        lm = DecisionsBackend(base_url=server.url)
        with pytest.raises(UnservedPromptError, match="takes no images"):
            lm.next_token([parse_prompt("<predicate image>So.").render_for(lm.limits, "", RED)], 2)


def test_no_image_is_asked_of_a_server_that_answers_plainly():
    with EndpointServer(EndpointServer.plain) as server:
        lm = OpenAIBackend("m", base_url=server.url)
        lm.next_token([RenderedPrompt("so it is")], 5)
        assert "image" not in str(server.posts())
