"""Endpoints that differ from the usual: their errors, their lists, their tokens, their secrets."""

from __future__ import annotations

import base64
import json
import pickle
import zipfile
from collections import Counter
from urllib.parse import quote

import pytest
from endpoint_server import EndpointServer, chat, completion, distribution, error
from fault_server import FaultServer

pytest.importorskip("openai", reason="needs the `openai` extra")

import openai

from backends.api import credentials, retries
from backends.api.connection import Connection
from backends.api.error_bodies import words_of
from backends.api.fingerprint import fingerprint
from backends.api.listing import ListedModel
from backends.api.profile import EndpointProfile
from backends.api.request_format import RequestFormat
from backends.api.responses import ParsedAnswer
from backends.api.streams import joined
from backends.openai import OpenAIBackend
from blackbox import PromptBoostingClassifier
from blackbox.backend import as_backend
from blackbox.errors import BackendError
from blackbox.protocol import Message, RenderedPrompt

KEY = "sk-sentinel-0123456789"
SECRET = 'pa"ss wörd/0123456789+é='


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(retries, "_BACKOFF", (0.001, 0.01))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)


def chats(n):
    return [RenderedPrompt(messages=(Message("user", f"text number {i}"),)) for i in range(n)]


def said_by(work):
    """The words and the traceback's words of the error that a call ends with."""
    with pytest.raises(BackendError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# credentials


@pytest.mark.parametrize("around", [" {}", "{}\n", "\t{}\r\n", "\u00a0{}"])
def test_white_space_around_a_key_is_removed(monkeypatch, around):
    monkeypatch.setenv("OPENAI_API_KEY", around.format(KEY))
    with FaultServer() as server:
        assert OpenAIBackend("lm", base_url=server.url).describe()["max_top_k"] == 20


@pytest.mark.parametrize(
    "key", [f"\u201c{KEY}\u201d", KEY[:9] + "\n" + KEY[9:], KEY[:9] + " " + KEY[9:], KEY + "\x00x"]
)
def test_a_key_that_no_header_can_carry_is_refused_by_its_variable_before_any_request(
    monkeypatch, key
):
    if "\x00" not in key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
        said = said_by(lambda: OpenAIBackend("lm", base_url="http://127.0.0.1:9/v1"))
        assert said.startswith("OPENAI_API_KEY can't be sent")
        assert "sentinel" not in said
    client = openai.OpenAI(api_key=key, base_url="http://127.0.0.1:9/v1")
    said = said_by(lambda: OpenAIBackend("lm", client=client))
    assert said.startswith("the client's api_key can't be sent")
    assert "sentinel" not in said


def test_headers_out_of_the_environment_are_checked_too(monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-\u201csentinel\u201d")
    said = said_by(lambda: OpenAIBackend("lm", base_url="http://127.0.0.1:9/v1"))
    assert "OPENAI_ORG_ID" in said
    assert "sentinel" not in said


def spellings(secret):
    data = secret.encode()
    yield from (secret, repr(secret), repr(data), json.dumps(secret), json.dumps(secret + "\n"))
    yield json.dumps(json.dumps(secret))
    yield json.dumps(secret, ensure_ascii=False)
    yield from (quote(secret), quote(secret, safe=""), quote(secret, safe="").lower())
    for before in ("", "a:", "user:", ":"):
        yield base64.b64encode(before.encode() + data).decode()
        yield base64.urlsafe_b64encode(before.encode() + data + b":").decode()


@pytest.mark.parametrize("secret", [KEY, KEY + "/+a=", SECRET, "ends with a line\n0123"])
def test_a_secret_is_removed_in_every_spelling(secret):
    for spelling in spellings(secret):
        words = credentials.scrubbed(f"bad key {spelling} given", [secret])
        assert words.startswith("bad key")
        for rest in spellings(secret):
            core = rest.strip("\"'=b\\n")[4:-4]
            assert core not in words, (spelling, words)


@pytest.mark.parametrize("found", [credentials.in_headers, credentials.in_fields])
def test_what_stands_behind_a_scheme_is_a_secret_too(found):
    pair = base64.b64encode(b"me:hush-hush").decode()
    headers = {"Helicone-Auth": "Bearer sk-helicone-0123456789", "Authorization": f"Basic {pair}"}
    secrets = found(headers)
    for said in ("sk-helicone-0123456789", pair, "me:hush-hush", "hush-hush"):
        assert said not in credentials.scrubbed(f"Invalid API key: {said}.", secrets)
    assert found({"X-Title": "a plain title", "User-Agent": "python/3.11"}) == []


def test_passwords_in_addresses_are_removed_from_any_message():
    words = credentials.scrubbed("at http://me:hush@h:1/v1 and socks5://a:b@c", [])
    assert words == "at http://…@h:1/v1 and socks5://…@c"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, {"error": {"message": "no", "code": "bad {}"}}),
        (400, {"error": {"message": "no", "code": "bad {}"}}),
        (400, {"error": {"message": "{}", "type": "t"}}),
        (400, {"detail": [{"loc": ["header"], "msg": "no {}"}]}),
        (400, "<html><title>no {}</title></html>"),
        (404, [{"error": {"message": "no {}"}}]),
        (200, {"error": {"message": "no {}", "code": 400}}),
        (200, {"error": "no {}"}),
    ],
)
@pytest.mark.parametrize(
    "spelled", [KEY, quote(KEY + "/"), base64.b64encode(f"u:{KEY}".encode()).decode()]
)
def test_a_server_that_repeats_the_key_anywhere_gives_it_away_in_no_message(status, body, spelled):
    text = (body if isinstance(body, str) else json.dumps(body)).replace("{}", spelled)
    with EndpointServer(lambda *_: (status, text)) as server:
        backend = OpenAIBackend("m", base_url=server.url, max_attempts=1)
        said = said_by(backend.probe)
    assert "…" in said
    assert spelled.rstrip("=")[3:-3] not in said


def test_credentials_of_proxies_and_addresses_stand_in_no_message(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://me:hush-hush@127.0.0.1:9")
    with EndpointServer(lambda *_: (400, {"error": {"message": "not hush-hush"}})) as server:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        backend = OpenAIBackend("m", base_url=server.url)
        assert "hush" not in said_by(backend.probe)
    monkeypatch.setenv("HTTP_PROXY", "foo://me:hush-hush@127.0.0.1:9")
    assert "hush" not in said_by(lambda: OpenAIBackend("m", base_url="http://127.0.0.1:9/v1"))


def test_credentials_in_addresses_and_fields_stand_nowhere_that_is_written(tmp_path):
    hidden = ["hush-hush", "plain-word", "Bearer abc", "sk-abcdefghijklmnop", "12345678"]
    fields = {
        "api_key": "plain-word",
        "provider": {"headers": {"X-Any": "Bearer abc"}, "password": 12345678},
        "unknown": ["sk-abcdefghijklmnop"],
        "top_p": 1.0,
        "tokenizer": "meta-llama/Llama-3-8B",
    }
    texts, labels = ["lovely", "dull", "a lovely day", "so dull"] * 3, ["g", "b", "g", "b"] * 3
    with EndpointServer(EndpointServer.plain) as server:
        address = server.url.replace("http://", "http://me:hush-hush@")
        backend = OpenAIBackend("m", base_url=address, extra_body=fields)
        classifier = PromptBoostingClassifier(
            backend, prompts=["{text} It was {mask}"], store=tmp_path / "passes.sqlite"
        ).fit(texts, labels)
        assert server.posts()[-1]["api_key"] == "plain-word"
        classifier.save(tmp_path / "m.blackbox")
        server.answer = lambda *_: (400, error(f"not {hidden}", code="content_filter"))
        refused = backend.next_token(chats(1), 5)
    with zipfile.ZipFile(tmp_path / "m.blackbox") as file:
        written = b"".join(file.read(name) for name in file.namelist())
    written += b"".join(path.read_bytes() for path in tmp_path.iterdir())
    written += (str(backend.identity) + repr(classifier) + refused.row_errors[0]).encode()
    assert [word for word in hidden if word.encode() in written] == []
    assert '"top_p": 1.0' in backend.identity.extra["fields"]
    assert "meta-llama/Llama-3-8B" in backend.identity.extra["fields"]
    with pytest.raises(TypeError, match="can't be pickled"):
        pickle.dumps(backend)


def test_another_credential_is_another_identity_and_the_same_one_is_the_same():
    with FaultServer() as server:
        keys = ("one-key", "one-key", "other-key")
        identities = [
            OpenAIBackend("lm", base_url=server.url, extra_body={"api_key": key}).identity
            for key in keys
        ]
    assert identities[0] == identities[1] != identities[2]


# addresses


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:8000/v1", "is it http://127.0.0.1:8000/v1 ?"),
        ("me:hush-hush@host/v1", "is it http://host/v1 ?"),
        ("ftp://host/v1", "is no address of a server"),
        ("http:///v1", "is no address of a server"),
        ("http://host:port/v1", "is no address of a server"),
        ("http://ho st/v1", "is no address of a server"),
        ("http://[::1/v1", "is no address of a server"),
    ],
)
def test_an_address_that_is_none_is_one_line_with_its_variable(monkeypatch, address, said):
    for name in ("base_url", "OPENAI_BASE_URL"):
        monkeypatch.setenv("OPENAI_BASE_URL", address)
        given = {"base_url": address} if name == "base_url" else {}
        words = said_by(lambda given=given: OpenAIBackend("m", **given))
        assert words.startswith(name)
        assert said in words
        assert "hush" not in words


def test_a_redirect_to_another_server_is_not_followed_and_one_on_the_same_is():
    plain = EndpointServer.plain
    with EndpointServer(plain) as other, EndpointServer(plain) as server:

        def elsewhere(method, path, body):
            return 307, {}, {"location": f"{other.url}{path[3:]}"}

        def here(method, path, body):
            if path.startswith("/v1/moved"):
                return plain(method, path.replace("/moved", ""), body)
            return 307, {}, {"location": path.replace("/v1", "/v1/moved")}

        server.answer = elsewhere
        own = openai.OpenAI(base_url=server.url)
        for backend in (OpenAIBackend("m", base_url=server.url), OpenAIBackend("m", client=own)):
            assert "another server" in said_by(backend.probe)
        assert other.requests == []
        server.answer = here
        assert OpenAIBackend("m", base_url=server.url).describe()["max_top_k"] == 20
        own.close()


def test_a_redirect_that_loses_what_is_asked_says_where_to():
    def moved(method, path, body):
        if method == "GET":
            return EndpointServer.plain(method, path, body)
        return 301, {}, {"location": path + "/"}

    with EndpointServer(moved) as server:
        said = said_by(OpenAIBackend("m", base_url=server.url).probe)
    assert "redirects to http://127.0.0.1" in said
    assert "/completions/" in said
    assert "check base_url" in said


def test_a_page_in_place_of_json_is_named_and_the_address_in_doubt():
    page = "<html><head><title>Sign in to Corp</title></head><body>Hello</body></html>"
    html = {"content-type": "text/html; charset=utf-8"}
    with EndpointServer(lambda *_: (200, page, html)) as server:
        said = said_by(OpenAIBackend("m", base_url=server.url, max_attempts=1).probe)
    assert "Sign in to Corp" in said
    assert "check base_url" in said
    assert "log-probabilities" not in said


@pytest.mark.parametrize("name", ["missing.pem", "empty.pem"])
def test_certificates_that_cannot_be_read_are_one_line(monkeypatch, tmp_path, name):
    (tmp_path / "empty.pem").write_text("none here")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / name))
    with pytest.raises(BackendError, match=f"SSL_CERT_FILE=.*{name}.* can't be read"):
        OpenAIBackend("m", base_url="http://127.0.0.1:9/v1")


# words of a server


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "no"}}, "no"),
        ([{"error": {"code": 400, "message": "no", "status": "INVALID"}}], "no"),
        ({"error": "Input validation error", "error_type": "validation"}, "Input validation error"),
        ({"status": 429, "error": "QUOTA", "message": "too many"}, "QUOTA: too many"),
        ({"message": "no"}, "no"),
        ({"detail": "no"}, "no"),
        ({"detail": [{"loc": ["body", "n"], "msg": "bad", "type": "t"}]}, "body.n: bad"),
        (
            {"error": {"message": "Provider returned error", "metadata": {"raw": '{"msg": "x"}'}}},
            "Provider returned error: x",
        ),
        ("<html><head><title>502 Bad &amp; gone</title></head><h1>x</h1></html>", "502 Bad & gone"),
        ("<html><body><p>not <b>here</b></p></body></html>", "not here"),
        ("404 page not found", "404 page not found"),
        ("", ""),
        ({}, ""),
        (None, ""),
        (17, ""),
        ([], ""),
        ({"error": {"message": {"a": 1}, "code": {}}}, ""),
    ],
)
def test_the_server_s_words_are_found_in_any_body(body, words):
    assert words_of(body) == words
    for status in (400, 404, 500):
        with EndpointServer(lambda *_, status=status: (status, body)) as server:
            said = said_by(OpenAIBackend("m", base_url=server.url, max_attempts=1).probe)
        assert (words or "no explanation") in said
        assert f"({status}" in said


def test_an_unknown_model_is_answered_with_the_listed_one_of_a_similar_name():
    def answer(method, path, body):
        if path.endswith("/models"):
            return 200, {"data": [{"id": "gpt-4o-mini"}, {"id": "gpt-4.1"}]}
        return 404, error("The model does not exist.", code="model_not_found")

    with EndpointServer(answer) as server:
        said = said_by(OpenAIBackend("gpt-4o-mni", base_url=server.url).probe)
        assert "does not exist; check the model's name and the address; did you mean" in said
        assert said.endswith("'gpt-4o-mini'?")
        assert "did you mean" not in said_by(OpenAIBackend("llama", base_url=server.url).probe)


@pytest.mark.parametrize(
    ("body", "said", "requests"),
    [
        ({"error": {"message": "add credits", "code": 402}}, "(402): add credits; nothing more", 1),
        ({"error": {"message": "bad key", "code": "401"}}, "check the key", 1),
        ({"error": "busy"}, "says: busy, in 3 tries", 3),
        ({"object": "error", "message": "busy", "code": 503}, "(503): busy, in 3 tries", 3),
        (
            {"choices": [{"error": {"message": "upstream", "code": 502}}]},
            "(502): upstream, in 3 tries",
            3,
        ),
        (
            chat([("a", -1.0)]) | {"error": {"message": "upstream", "code": 502}},
            "(502): upstream, in 3 tries",
            3,
        ),
    ],
)
def test_an_error_inside_a_200_counts_with_its_own_code(body, said, requests):
    with EndpointServer(EndpointServer.plain) as server:
        backend = OpenAIBackend("m", base_url=server.url, max_attempts=3)
        backend.probe()
        server.answer, server.requests = lambda *_: (200, body), []
        assert said in said_by(lambda: backend.next_token(chats(1), 5))
        # a request of the probe is sent again where it might be the text
        assert sum("text number" in str(body) for *_, body in server.requests) == requests


# the probe


@pytest.mark.parametrize(
    "listed",
    [
        (200, [{"id": "m", "type": "chat"}]),
        (200, ["m", "other"]),
        (200, {"models": [{"name": "m"}]}),
        (200, {"data": [{"id": "m", "meta": [1], "max_model_len": "long", "root": 7}]}),
        (200, {"data": [{"id": "m", "max_model_len": float("inf"), "owned_by": {"a": 1}}]}),
        (200, {"data": [17, None, {"id": 3}]}),
        (200, {"error": "Unexpected endpoint or method. (GET /v1/models)"}),
        (200, "<html><title>chat</title></html>"),
        (200, ""),
        (200, "[" * 100_000),
        (403, {"error": "not for this key"}),
        (404, "404 page not found"),
        (500, ""),
        (0, ""),
    ],
)
def test_the_list_of_models_is_optional_where_the_model_is_named(listed):
    def answer(method, path, body):
        return listed if path.endswith("/models") else EndpointServer.plain(method, path, body)

    with EndpointServer(answer) as server:
        assert OpenAIBackend("m", base_url=server.url).describe()["max_top_k"] == 20
        if listed[0] == 200:
            assert OpenAIBackend("m", base_url=server.url).check()


def form(path, status, answer=""):
    """A server of chats on which one kind of request is answered in another way."""

    def answered(method, where, body):
        if body and where.endswith(path):
            return status, answer
        return EndpointServer.plain(method, where, body)

    return answered


@pytest.mark.parametrize(("status", "tries"), [(500, 10), (403, 5), (0, 10), (400, 5)])
def test_a_form_that_is_not_served_is_tried_twice_with_fewer_tokens_and_then_the_other_is_used(
    status, tries
):
    with EndpointServer(form("/v1/completions", status, error("no logits"))) as server:
        found = OpenAIBackend("m", base_url=server.url).describe()
        assert found["endpoints"] == ["chat"]
        assert found["not_served"][0].startswith("completions: ")
        assert len(server.posts("/v1/completions")) == tries


def test_all_that_was_tried_is_said_and_a_403_without_a_list_is_about_the_key():
    def answer(method, path, body):
        if path.endswith("/models"):
            return EndpointServer.plain(method, path, body)
        return (403, error("not for you")) if "chat" in path else (500, error("no logits"))

    with EndpointServer(answer) as server:
        said = said_by(OpenAIBackend("m", base_url=server.url).probe)
        assert "(500): no logits, in 2 tries; and says (403): not for you; without" in said
        server.answer = lambda method, path, body: (
            (404, "") if path.endswith("/models") else (403, error("not for you"))
        )
        assert "check the key" in said_by(OpenAIBackend("m", base_url=server.url).probe)


def test_a_rate_limit_of_a_probe_is_waited_out_once(monkeypatch):
    monkeypatch.setattr(retries, "_RATE_WINDOW", 0.0)

    def answer(method, path, body):
        return EndpointServer.plain(method, path, body) if body is None else (429, error("later"))

    with EndpointServer(answer) as server:
        backend = OpenAIBackend("m", base_url=server.url, max_attempts=6, endpoint="chat")
        assert "(429): later, in 2 tries" in said_by(backend.probe)
        assert len(server.posts()) == 2


def test_a_limit_of_tokens_that_is_named_is_tried():
    def answer(method, path, body):
        if body and body.get("top_logprobs", 0) > 8:
            return 400, error(f"top_logprobs must be <= 8, given {body['top_logprobs']}")
        return EndpointServer.plain(method, path, body)

    with EndpointServer(answer) as server:
        assert OpenAIBackend("m", base_url=server.url).describe()["max_top_k"] == 8


def test_log_probabilities_by_number_are_found_where_a_switch_is_refused():
    def answer(method, path, body):
        if not path.endswith("/chat/completions"):
            return EndpointServer.plain(method, path, body)
        if isinstance(body["logprobs"], bool):
            return 400, error("Expected integer, received boolean - 'logprobs'", param="logprobs")
        if body["logprobs"] > 5:
            return 400, error("greater than the maximum of 5 - 'logprobs'")
        pairs = distribution(body, body["logprobs"])
        return 200, chat(pairs, logprobs={"tokens": ["x"], "top_logprobs": [dict(pairs)]})

    with EndpointServer(answer) as server:
        backend = OpenAIBackend("m", base_url=server.url)
        assert backend.describe()["max_top_k"] == 5
        assert len(backend.next_token(chats(1), 3)) == 1


@pytest.mark.parametrize("refused", [(1.5, 9.0), (0.0, 0.9, 1.1, 9.0), "logit_bias"])
def test_another_temperature_or_a_bias_that_is_refused_is_left_out(refused):
    def answer(method, path, body):
        if path.endswith("/chat/completions"):
            if refused == "logit_bias" and "logit_bias" in body:
                return 400, error("logit_bias is not supported", param="logit_bias")
            heat = body["temperature"]
            ranges = (
                [] if refused == "logit_bias" else zip(refused[::2], refused[1::2], strict=True)
            )
            if any(low <= heat <= high for low, high in ranges):
                return 400, error("temperature is out of range", param="temperature")
        status, given = EndpointServer.plain(method, path, body)
        for choice in given.get("choices", []):
            for place, token in enumerate(choice["logprobs"]["content"][0]["top_logprobs"]):
                token["id"] = place
        return status, given

    with EndpointServer(answer) as server:
        found = OpenAIBackend("m", base_url=server.url).describe()
    assert found["log_probs"] == ("unknown" if len(refused) == 4 else "raw")
    assert found["repeats_differ_by"] == 0.0
    assert found["max_top_k"] == 20
    assert found["temperature_taken"]


def test_an_address_without_a_path_is_named_where_nothing_is_found():
    with EndpointServer(lambda *_: (404, "nothing")) as server:
        root = server.url.removesuffix("/v1")
        for model in ("m", None):
            assert f"is it {server.url} ?" in said_by(OpenAIBackend(model, base_url=root).probe)
        assert "is it" not in said_by(OpenAIBackend("m", base_url=server.url).probe)


def test_a_backend_s_properties_are_not_run_to_see_whether_it_is_one():
    class Late:
        @property
        def identity(self):
            raise AttributeError("the engine is gone")

        limits = identity

        def next_token(self, prompts, top_k): ...

    lm = as_backend(Late())
    with pytest.raises(AttributeError, match="the engine is gone"):
        _ = lm.identity
    with pytest.raises(TypeError, match="must be a name or an object"):
        as_backend(object())


# models that reason first, and the alphabets of tokenizers


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("So", {"content": None, "reasoning_content": "So"}),
        ("So", {"content": "", "reasoning": "So"}),
        ("<think>", {"content": "<think>"}),
        (" <|channel|>", {"content": ""}),
        ("The", {"content": "The"}),
        ("The", {"content": "The", "reasoning_content": ""}),
    ],
)
@pytest.mark.parametrize("log_probs", [True, False])
def test_a_model_that_reasons_first_is_recognised_and_how_to_stop_it_is_said(
    first, message, log_probs, caplog
):
    def answer(method, path, body):
        if path.endswith("/chat/completions"):
            return 200, chat([(first, -0.1), ("x", -3.0)], message=message)
        return EndpointServer.plain(method, path, body)

    if not log_probs and first == " <|channel|>":
        return  # a begun channel without any text is seen in log-probabilities only
    with EndpointServer(answer) as server:
        found = OpenAIBackend("m", base_url=server.url, log_probs=log_probs).describe()
    assert found["reasons_first"] == (first != "The")
    assert ("enable_thinking" in caplog.text) == (first != "The")


@pytest.mark.parametrize("alphabet", ["bytes", "sentencepiece", "text"])
def test_tokens_in_a_tokenizer_s_alphabet_are_decoded(alphabet):
    words = [" good", " bad", "\n", "é", " ü", "<0x0A>"]
    if alphabet == "bytes":
        coded = ["\u0120good", "\u0120bad", "\u010a", "Ã©", "\u0120Ã¼", "<0x0B>"]
        meant = [" good", " bad", "\n", "é", " ü", "<0x0B>"]
    elif alphabet == "sentencepiece":
        coded = ["\u2581good", "\u2581bad", "<0x0A>", "é", "\u2581ü"]
        meant = words
    else:
        coded = meant = words

    def answer(method, path, body):
        if path.endswith("/chat/completions"):
            return 200, chat([(word, -1.0 - place) for place, word in enumerate(coded)])
        return EndpointServer.plain(method, path, body)

    with EndpointServer(answer) as server:
        backend = OpenAIBackend("m", base_url=server.url)
        answers = backend.next_token(chats(1), 5)
        assert ("decoded" in backend.describe()["tokens"]) == (alphabet != "text")
        assert ("tokens" in backend.identity.extra) == (alphabet != "text")
    told = [answers.token_bytes[token].decode() for token in answers.token_ids[0].tolist()]
    assert told == meant[:5]


def test_ids_without_text_are_said(caplog):
    def answer(method, path, body):
        if path.endswith("/chat/completions"):
            return 200, chat([(str(1000 + place), -1.0 - place) for place in range(5)])
        return EndpointServer.plain(method, path, body)

    with EndpointServer(answer) as server:
        assert "ids without text" in OpenAIBackend("m", base_url=server.url).describe()["tokens"]
    assert "class names can't be found" in caplog.text


@pytest.mark.parametrize("field", ["prompt", "content", "text"])
def test_ids_are_named_by_the_server_s_tokenizer_where_it_has_one(field, caplog):
    asked = []

    def answer(method, path, body):
        if path.endswith("/chat/completions"):
            return 200, chat([(str(1000 + place), -1.0 - place) for place in range(5)])
        if path == "/detokenize":
            asked.append(body["tokens"])
            return 200, {field: f" word {body['tokens'][0]}"}
        return EndpointServer.plain(method, path, body)

    with EndpointServer(answer) as server:
        backend = OpenAIBackend("m", base_url=server.url)
        answers = backend.next_token(chats(3), 5)
        assert "named by the server" in backend.describe()["tokens"]
        n_asked = len(asked)
        backend.next_token(chats(3), 5)
        assert len(asked) == n_asked  # a name is kept
    assert answers.token_ids[0].tolist() == [1000, 1001, 1002, 1003, 1004]
    assert answers.token_bytes[1003] == b" word 1003"
    assert "class names" not in caplog.text


def test_a_busy_moment_changes_neither_the_identity_nor_a_run():
    """llama.cpp's server, every other request to whose list and tokenizer finds it busy."""
    turns = Counter()

    def answer(method, path, body):
        if path.endswith("/models"):
            return 200, {"data": [{"id": "m", "owned_by": "llamacpp"}]}
        if path == "/props":
            return 200, {"bos_token": ""}
        if path == "/apply-template":
            return 200, {"prompt": "".join(turn["content"] for turn in body["messages"])}
        if path == "/tokenize":
            letters = "".join(body["content"])
            pieces = [{"id": ord(letter), "piece": letter} for letter in letters]
            ids = [piece["id"] for piece in pieces]
            return 200, {"tokens": pieces if body.get("with_pieces") else ids}
        return EndpointServer.plain(method, path, body)

    def busy(method, path, body):
        turns[path] += 1
        if not path.endswith("completions") and turns[path] % 2:
            return 503, error("busy")
        return answer(method, path, body)

    with EndpointServer(answer) as server:
        usual = OpenAIBackend("m", base_url=server.url)
        wanted = usual.next_token(chats(2), 5)
        server.answer = busy
        backend = OpenAIBackend("m", base_url=server.url)
        found = backend.next_token(chats(2), 5)
        assert backend.identity == usual.identity
        assert backend.limits.counts_tokens
        assert backend.count_tokens(chats(2)) == usual.count_tokens(chats(2))
    assert found.token_ids.tolist() == wanted.token_ids.tolist()
    assert turns["/tokenize"] > 2


# streams


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_server_that_always_streams_is_read(path):
    def answer(method, where, body):
        if where != path:
            return EndpointServer.plain(method, where, body)
        k = body.get("top_logprobs") or body.get("logprobs") or 1
        pairs = distribution(body, k)
        whole = chat(pairs) if "chat" in path else completion(pairs)
        first = dict(whole["choices"][0], finish_reason=None)
        text = {"delta": first.pop("message")} if "chat" in path else {}
        last = {"index": 0, "delta": {"content": "!"}, "finish_reason": "length"}
        parts = [{"choices": [first | text], "model": "m"}, {"choices": [last], "usage": None}]
        parts.append({"choices": [], "usage": whole["usage"]})
        events = [": a comment", *(f"data: {json.dumps(part)}\r\n" for part in parts)]
        return 200, "\n".join([*events, "data: [DONE]", ""]), {"Content-Type": "text/event-stream"}

    endpoint = "chat" if "chat" in path else "completions"
    with EndpointServer(answer) as server:
        backend = OpenAIBackend("m", base_url=server.url, endpoint=endpoint)
        prompt = chats(1)[0] if endpoint == "chat" else RenderedPrompt(text="lovely")
        answers = backend.next_token([prompt], 20)
        assert (answers.token_ids[0] >= 0).sum() == 20
        assert answers.usage.tokens == 20
        if endpoint == "chat":
            assert backend.generate([prompt]).texts[0][0].endswith("!")


def test_other_ends_of_lines_in_a_stream_end_no_event():
    data = 'data: {"choices": [{"index": 0, "text": "a\u2028b\x85c"}]}\r\ndata: [DONE]\n'
    assert joined(data.encode())["choices"] == [{"index": 0, "text": "a\u2028b\x85c"}]


@pytest.mark.parametrize("data", ["data: [1]", "data: {", 'data: {"choices": [{"index": "a"}]}'])
def test_a_stream_that_is_none_is_tried_again(data):
    with EndpointServer(lambda *_: (200, data)) as server:
        said = said_by(OpenAIBackend("m", base_url=server.url, max_attempts=1).probe)
    assert "no JSON that can be read" in said


# odd answers


NESTED = "[" * 200_000
USAGES = ["none", 17, ["a"], {"prompt_tokens": "many"}, {"prompt_tokens": [1]}, None, True]
USAGES += [{"prompt_tokens": float(x)} for x in ("inf", "nan", "-5", "1e300")]
USAGES += [
    {"prompt_tokens": 5, "prompt_tokens_details": x} for x in ("x", [1], {"cached_tokens": {}})
]


@pytest.mark.parametrize("usage", USAGES)
def test_a_usage_that_is_none_costs_no_answer(usage):
    def answer(method, path, body):
        status, given = EndpointServer.plain(method, path, body)
        return status, (given | {"usage": usage} if "choices" in given else given)

    with EndpointServer(answer) as server:
        backend = OpenAIBackend("m", base_url=server.url)
        backend.probe()
        answers = backend.next_token(chats(2), 5)
        assert not answers.row_errors
        # what the server reports, or else the most that the requests may have taken
        assert 10 <= answers.usage.tokens <= 1000


def top(**token):
    one = {"token": "a", "logprob": -1.0} | token
    return json.dumps({"choices": [{"logprobs": {"content": [{"top_logprobs": [one]}]}}]})


@pytest.mark.parametrize(
    "text",
    [
        NESTED,
        '{"choices": ' + NESTED,
        '{"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "a", "logprob": '
        + "9" * 5000
        + "}]}]}}]}",
        "17",
        "null",
        '"words"',
        '{"choices": "abc"}',
        '{"choices": [[1]]}',
        '{"choices": [{"logprobs": "abc"}]}',
        '{"choices": [{"logprobs": {"content": {"a": 1}}}]}',
        '{"choices": [{"logprobs": {"top_logprobs": 5}}]}',
        top(logprob="-1"),
        top(logprob=[1]),
        top(logprob=float("nan")),
        top(logprob=10**400),
        top(id=2**40),
        top(id=-1),
        top(id="x"),
        top(id=float("inf")),
        top(bytes=[300]),
        top(bytes=["a"]),
        top(bytes=[1.5]),
    ],
)
def test_an_odd_answer_is_tried_again_and_ends_in_one_line(text):
    with EndpointServer(EndpointServer.plain) as server:
        backend = OpenAIBackend("m", base_url=server.url, max_attempts=2)
        backend.probe()
        real, odd = server.answer, []

        def answer(method, path, body):
            odd.append(body)
            return (200, text) if len(odd) == 1 else real(method, path, body)

        server.answer = answer
        assert len(backend.next_token(chats(1), 5).token_bytes) == 5
        server.answer = lambda *_: (200, text)
        # the row's fault, as another one was answered
        reason = backend.next_token(chats(1), 5).row_errors[0]
        assert "'m'" in reason
        assert "\n" not in reason
        assert "'m'" in said_by(OpenAIBackend("m", base_url=server.url, max_attempts=1).probe)


# identity


def test_another_lm_of_the_same_name_has_another_identity_and_last_digits_change_none():
    def with_token(token, shift=0.0, **more):
        def answer(method, path, body):
            if not path.endswith("/chat/completions"):
                return EndpointServer.plain(method, path, body)
            pairs = [(token, -0.1 - shift), ("b", -3.0 + shift), ("c", -3.2)]
            return 200, chat(pairs) | more

        with EndpointServer(answer) as server:
            return OpenAIBackend("m", base_url=server.url).identity

    one = with_token("a")
    assert one == with_token("a", shift=0.01) == with_token("a", model="m")
    assert one != with_token("x")
    assert one != with_token("a", model="m-2026-11-01")
    updated = with_token("a", system_fingerprint="fp_1")
    assert one == updated  # a provider's update of its engine, which is told
    assert "fp_1" in updated.engine
    assert with_token("a", model="/home/me/m") == one
    assert with_token("a", model=r"C:\Users\me\m") == one


def test_a_narrow_margin_is_no_part_of_the_identity():
    even = ParsedAnswer([(n, bytes([n]), -3.0 - n / 10) for n in range(20)], 0, 0, True, True)
    assert fingerprint({"a": even}) == ""


def test_port_and_path_of_a_public_host_are_part_of_the_identity():
    def identity(address):
        profile = EndpointProfile(RequestFormat("m"), 5, False, True, True, 0.0, 1, 0.1)
        client = openai.OpenAI(api_key=KEY, base_url=address)
        connection = Connection(client, "m", retries.Pace(), 1, renew=lambda: client)
        return connection.identify(profile, ListedModel("m"), "")

    public = [f"https://api.example.com{rest}" for rest in ("/v1", ":81/v1", "/other/v1", "/a")]
    assert len({identity(address).digest() for address in public}) == 4
    assert identity(public[0]) == identity("https://api.example.com")
    assert identity("http://127.0.0.1:81/v1") == identity("http://127.0.0.1:82/v1")
