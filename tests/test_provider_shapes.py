"""Providers' shapes, written from their documentation: each trains, or says in a line what to do.

None of these providers was asked. A shape has what its documentation says of the fields that are
taken, of limits, and of models that reason.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import pytest
from endpoint_server import LISTED, EndpointServer, chat, completion, distribution, error

pytest.importorskip("openai", reason="needs the `openai` extra")

from backends.openai import OpenAIBackend
from blackbox import PromptBoostingClassifier
from blackbox.errors import BackendError
from blackbox.protocol import Message, RenderedPrompt

PAGE = Path(__file__).parents[1] / "docs" / "apis.md"
BEGIN = "<!-- written by `UPDATE_DOCS=1 pytest tests/test_provider_shapes.py` -->\n"
END = "<!-- end of lines -->\n"
TEXTS = [f"{word} place {n}" for n in range(6) for word in ("a lovely", "a great", "an awful")]
LABELS = ["good", "good", "bad"] * 6


class Provider:
    """A provider's answers to chats.

    Parameters
    ----------
    most : int
        Log-probabilities of an answer; 0 refuses them.
    thinks : dict or None
        The fields without which it reasons first.
    refuses : bool
        Whether it refuses log-probabilities then, and does not only think.
    fewest : int
        Tokens to write, at least.
    length : str
        The name of the limit of tokens.
    counted : bool
        Whether `logprobs` is a number.
    models : object
        What its list of models looks like.
    listed_errors : bool
        Whether errors come as a list.
    silent : bool
        Whether log-probabilities are left out and not refused.
    completions : bool
        Whether there are completions.
    hides : bool
        Whether a thought has no log-probabilities.
    """

    def __init__(
        self,
        most=20,
        *,
        thinks=None,
        refuses=False,
        fewest=1,
        length="max_tokens",
        counted=False,
        models=LISTED,
        listed_errors=False,
        silent=False,
        completions=False,
        hides=False,
    ):
        self.most, self.thinks, self.refuses = most, thinks, refuses
        self.fewest, self.length, self.counted = fewest, length, counted
        self.models, self.listed_errors, self.silent = models, listed_errors, silent
        self.completions, self.hides = completions, hides

    def __call__(self, method, path, body):
        """Answer as the provider does."""
        if path.endswith("/models"):
            return 200, self.models
        if path.endswith("/chat/completions"):
            return self.chat(body)
        if path.endswith("/completions") and self.completions:
            return 200, completion(distribution(body, min(body.get("logprobs") or 1, 5)))
        return 404, error("not found")

    def refused(self, message, **more):
        told = error(message, **more)
        return 400, [told] if self.listed_errors else told

    def chat(self, body):
        if self.length not in body:
            said = f"Unsupported parameter: use '{self.length}' instead."
            return self.refused(said, param="max_tokens")
        thinking = self.thinks is not None and any(
            body.get(key) != value for key, value in self.thinks.items()
        )
        asked = body.get("logprobs") if self.counted else body.get("top_logprobs", 0)
        if self.counted and isinstance(asked, bool):
            return self.refused("logprobs: Input should be a valid integer", param="logprobs")
        if asked and not self.silent and (not self.most or (thinking and self.refuses)):
            return self.refused("logprobs are not supported with this model", param="logprobs")
        if asked and self.most and asked > self.most:
            return self.refused(f"top_logprobs must be at most {self.most}", param="top_logprobs")
        if body[self.length] < self.fewest:
            said = f"{self.length} must be at least {self.fewest}"
            return self.refused(said, param=self.length)
        if thinking:
            message = {"role": "assistant", "content": "", "reasoning_content": "So"}
            more = {"logprobs": None} if self.hides else {}
            return 200, chat([("So", -0.1), ("Well", -2.5)], message=message, **more)
        pairs = distribution(body, asked or 1)
        return 200, chat(pairs, logprobs=None) if self.silent else chat(pairs)


def stands_on_the_page(name, ends_in, lines):
    """Check the row of a provider in the table of docs/apis.md, or write it."""
    shown = [re.sub(r"127\.0\.0\.1:\d+", "HOST", line).replace("|", "\\|") for line in lines]
    row = f"| {name} | {ends_in} | {'<br>'.join(f'`{line}`' for line in shown) or 'nothing'} |"
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    table, _, after = rest.partition(END)
    head, rows = table.splitlines()[:2], table.splitlines()[2:]
    if os.environ.get("UPDATE_DOCS"):
        rows = [*(one for one in rows if not one.startswith(f"| {name} |")), row]
        table = "\n".join([*head, *sorted(rows)]) + "\n"
        PAGE.write_text(before + BEGIN + table + END + after, "utf-8")
    assert row in rows, "UPDATE_DOCS=1 pytest tests/test_provider_shapes.py"


def lines_of(caplog):
    """Return what was said of the API, and not of these few rows; `top_k` is said once."""
    return [line for line in caplog.messages if not re.search("held-out|top_k", line)]


NONE = {"reasoning_effort": "none"}
THINKING_OFF = {"chat_template_kwargs": {"enable_thinking": False}}

TRAINS = {
    "OpenAI, gpt-4.1": (Provider(length="max_completion_tokens"), 20, None),
    "OpenAI, gpt-5.6": (
        Provider(5, thinks=NONE, refuses=True, fewest=4, length="max_completion_tokens"),
        5,
        NONE,
    ),
    "OpenRouter": (
        Provider(thinks={"reasoning": {"effort": "none"}}, length="max_tokens"),
        20,
        {"reasoning": {"effort": "none"}},
    ),
    "DeepSeek V4": (
        Provider(thinks={"thinking": {"type": "disabled"}}),
        20,
        {"thinking": {"type": "disabled"}},
    ),
    "vLLM, Qwen3": (
        Provider(thinks=THINKING_OFF),
        20,
        THINKING_OFF,
    ),
    "Qwen3, thoughts without log-probabilities": (
        Provider(thinks=THINKING_OFF, hides=True),
        20,
        THINKING_OFF,
    ),
    "Gemini 2.5": (Provider(listed_errors=True), 20, None),
    "xAI": (Provider(8), 8, None),
    "mlx_lm.server": (Provider(10), 10, None),
    "Fireworks": (Provider(5), 5, None),
    "Together": (Provider(counted=True, models=[{"id": "m"}, {"id": "n"}]), 20, None),
    "Mistral": (Provider(models={"data": [{"id": "m", "name": "m"}]}), 20, None),
    "Ollama": (Provider(completions=True), 5, None),
}

REFUSES = {
    "OpenAI, o-series": Provider(0, length="max_completion_tokens"),
    "Gemini 3": Provider(0, listed_errors=True),
    "Groq": Provider(0),
    "LM Studio": Provider(silent=True),
    "Anthropic's compatible endpoint": Provider(
        silent=True, models={"data": [], "has_more": False}
    ),
}


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sentinel-0123456789")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.mark.parametrize("name", TRAINS)
def test_a_provider_with_log_probabilities_ends_in_a_working_training(name, caplog):
    provider, most, switch = TRAINS[name]
    with EndpointServer(provider) as server, caplog.at_level(logging.WARNING):
        lm = OpenAIBackend("m", base_url=server.url)
        prompts = [
            "<user>{text}\nHow was it?<assistant>{mask}",
            "<choice>It was<option>good<option>bad",
        ]
        classifier = PromptBoostingClassifier(backend=lm, prompts=prompts, cv=None)
        classifier.fit(TEXTS, LABELS)
        assert classifier.predict(["a lovely garden", "an awful smell"]).tolist() == ["good", "bad"]
        assert lm.limits.max_top_k >= most or most > 20
    fields = lm.identity.extra.get("fields", "")
    said = [line for line in caplog.messages if "reasons before it answers" in line]
    if switch is None:
        assert not said
        assert fields == ""
    else:
        (line,) = said
        assert "switched off by" in line
        assert all(key in fields and key in line for key in switch)
    stands_on_the_page(name, f"a model, {lm.limits.max_top_k} tokens", lines_of(caplog))


@pytest.mark.parametrize("name", REFUSES)
def test_a_provider_without_them_says_in_a_line_what_to_do(name):
    with EndpointServer(REFUSES[name]) as server:
        with pytest.raises(BackendError) as caught:
            _ = OpenAIBackend("m", base_url=server.url).limits
        assert "--backend sampling" in str(caught.value)
        assert "\n" not in str(caught.value)
        drawn = OpenAIBackend("m", base_url=server.url, log_probs=False)
        assert drawn.limits.generates
    stands_on_the_page(name, "an error", [str(caught.value)])


def test_a_field_that_the_user_gave_is_not_tried_in_another_way():
    provider = Provider(thinks={"reasoning_effort": "none"})
    with EndpointServer(provider) as server:
        lm = OpenAIBackend("m", base_url=server.url, extra_body={"reasoning_effort": "low"})
        assert lm.describe()["reasons_first"]
        efforts = {body.get("reasoning_effort") for body in server.posts("/chat/completions")}
    assert efforts == {"low"}


class ResponsesOnly(Provider):
    """A provider that has the Responses API, and no chats with log-probabilities."""

    def __init__(self, *, chats=False, **options):
        super().__init__(fewest=16, length="max_output_tokens", **options)
        self.chats = chats

    def __call__(self, method, path, body):
        """Answer as the provider does."""
        if path.endswith("/chat/completions") and self.chats:
            return self.refused("'top_logprobs' is not supported with this model", param="logprobs")
        if not path.endswith("/responses"):
            return (200, self.models) if path.endswith("/models") else (404, error("not found"))
        unknown = set(body) - RESPONSES_FIELDS
        if unknown:
            return self.refused(f"Unsupported parameter: '{min(unknown)}'.", param=min(unknown))
        if body["max_output_tokens"] < 16:
            said = "Invalid 'max_output_tokens': integer below minimum value. Expected >= 16."
            return self.refused(said, param="max_output_tokens")
        if body.get("top_logprobs", 0) > self.most:
            said = f"Invalid 'top_logprobs': integer above maximum value: at most {self.most}."
            return self.refused(said, param="top_logprobs")
        thinking = self.thinks and body.get("reasoning") != self.thinks["reasoning"]
        if thinking and "include" in body:
            return self.refused("logprobs are not supported with reasoning.", param="include")
        pairs = distribution({"messages": body["input"]}, body.get("top_logprobs") or 1)
        tokens = [{"token": w, "logprob": v, "bytes": list(w.encode())} for w, v in pairs]
        told = [tokens[0] | {"top_logprobs": tokens}] if "include" in body else []
        text = {"type": "output_text", "text": pairs[0][0], "annotations": [], "logprobs": told}
        message = {"id": "msg", "type": "message", "role": "assistant", "status": "completed"}
        used = {"input_tokens": 20, "output_tokens": 2, "total_tokens": 22}
        used["input_tokens_details"] = {"cached_tokens": 8, "cache_write_tokens": 0}
        used["output_tokens_details"] = {"reasoning_tokens": 0}
        output = [{"id": "rs", "type": "reasoning", "summary": []}] if thinking else []
        answer = {"id": "resp", "object": "response", "created_at": 1, "model": "m"}
        answer |= {"error": None, "incomplete_details": None, "status": "completed"}
        answer |= {"parallel_tool_calls": False, "tool_choice": "auto", "tools": []}
        return 200, answer | {"output": [*output, message | {"content": [text]}], "usage": used}


RESPONSES_FIELDS = {
    "model",
    "input",
    "include",
    "top_logprobs",
    "max_output_tokens",
    "store",
    "temperature",
    "reasoning",
}

RESPONSES = {
    "Responses API alone, gpt-4.1": (ResponsesOnly(), None),
    "Responses API alone, gpt-5.6": (
        ResponsesOnly(thinks={"reasoning": {"effort": "none"}}),
        "effort",
    ),
    "Responses API beside chats without log-probabilities": (ResponsesOnly(chats=True), None),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_where_chats_give_none_the_responses_api_is_asked(name, caplog):
    provider, switch = RESPONSES[name]
    with EndpointServer(provider) as server, caplog.at_level(logging.WARNING):
        lm = OpenAIBackend("m", base_url=server.url)
        classifier = PromptBoostingClassifier(
            backend=lm, prompts=["<user>{text}\nHow was it?<assistant>{mask}"], cv=None
        )
        classifier.fit(TEXTS, LABELS)
        assert classifier.predict(["a lovely garden", "an awful smell"]).tolist() == ["good", "bad"]
        bodies = server.posts("/responses")
    assert (lm.limits.max_top_k, lm.limits.tokens_written) == (20, 16)
    assert lm.identity.endpoint == "responses"
    assert not any(body["store"] for body in bodies)
    (said,) = [line for line in caplog.messages if "Responses API" in line]
    assert "up to 16 tokens" in said
    off = [line for line in caplog.messages if "switched off by" in line]
    assert len(off) == (switch is not None)
    assert (switch or "") in lm.identity.extra.get("fields", "")
    stands_on_the_page(name, f"a model, {lm.limits.max_top_k} tokens", lines_of(caplog))


def test_the_official_client_takes_the_fields_and_reads_the_fixture(monkeypatch):
    """The fields are those of `client.responses.create`, and answers have its types."""
    import openai

    with EndpointServer(ResponsesOnly()) as server:
        _ = OpenAIBackend("m", base_url=server.url).limits
        body = next(body for body in server.posts("/responses")[::-1] if "include" in body)
        with openai.OpenAI(base_url=server.url) as client:
            answer = client.responses.create(**body)
        answer.model_validate(answer.model_dump(), strict=True)
    assert answer.output[0].content[0].logprobs[0].top_logprobs[0].bytes


def test_draws_and_usage_are_right_over_the_responses_api():
    with EndpointServer(ResponsesOnly()) as server:
        lm = OpenAIBackend("m", base_url=server.url)
        prompts = [RenderedPrompt(messages=(Message("user", "a lovely place"),))]
        usage = lm.next_token(prompts, 5).usage
        assert (usage.tokens, usage.tokens_evaluated, usage.tokens_written) == (20, 12, 2)
        drawn = OpenAIBackend("m", base_url=server.url, log_probs=False)
        assert len(drawn.generate(prompts, 3, max_tokens=4).texts[0]) == 3
        assert "seed" not in server.posts("/responses")[-1]


def test_the_table_of_prices_is_that_of_the_script():
    """The prices are those of its day, and each cost is that of its tokens at these prices."""
    pytest.importorskip("genai_prices", reason="needs the `openai` extra")
    from eval.studies import api_prices

    table = PAGE.read_text("utf-8").partition(api_prices.BEGIN)[2].partition(api_prices.END)[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert re.search(r"\d{4}-\d\d-\d\d, genai-prices [\d.]+", table)
    for cells, row in zip(rows, api_prices.ROWS, strict=True):
        read, written = api_prices.tokens_of(row.form)
        assert cells[:4] == [row.provider, f"`{row.model}`", row.form, f"{read}, {written}"]
        reads, _, writes = map(float, cells[4].split(", "))
        assert float(cells[5]) == pytest.approx((read * reads + written * writes) / 1000, abs=0.006)


def test_pools_by_price_are_those_of_the_script():
    pytest.importorskip("genai_prices", reason="needs the `openai` extra")
    from eval.studies import api_prices

    made = api_prices.pool_lines((PAGE.parent / "pools.md").read_text("utf-8"))[2:]
    shown = PAGE.read_text("utf-8").partition("| pool | accuracy |")[2].splitlines()[2:]
    assert len(made) == 3
    for line, row in zip(shown, made, strict=False):
        assert line.split("|")[2:] == row.split("|")[2:]
