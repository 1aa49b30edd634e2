"""Providers' shapes, written from their documentation: each trains, or says in a line what to do.

None of these providers was asked. A shape has what its documentation says of the fields that are
taken, of limits, and of models that reason.
"""

from __future__ import annotations

import logging

import pytest
from endpoint_server import LISTED, EndpointServer, chat, completion, distribution, error

pytest.importorskip("openai", reason="needs the `openai` extra")

from backends.openai import OpenAIBackend
from blackbox import PromptBoostingClassifier
from blackbox.errors import BackendError

TEXTS = [f"{word} place {n}" for n in range(6) for word in ("a lovely", "a great", "an awful")]
LABELS = ["good", "good", "bad"] * 6


class Provider:
    """How a provider answers to chats.

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


@pytest.mark.parametrize("name", REFUSES)
def test_a_provider_without_them_says_in_a_line_what_to_do(name):
    with EndpointServer(REFUSES[name]) as server:
        with pytest.raises(BackendError) as caught:
            _ = OpenAIBackend("m", base_url=server.url).limits
        assert "--backend sampling" in str(caught.value)
        assert "\n" not in str(caught.value)
        drawn = OpenAIBackend("m", base_url=server.url, log_probs=False)
        assert drawn.limits.generates


def test_a_field_that_the_user_gave_is_not_tried_in_another_way():
    provider = Provider(thinks={"reasoning_effort": "none"})
    with EndpointServer(provider) as server:
        lm = OpenAIBackend("m", base_url=server.url, extra_body={"reasoning_effort": "low"})
        assert lm.describe()["reasons_first"]
        efforts = {body.get("reasoning_effort") for body in server.posts("/chat/completions")}
    assert efforts == {"low"}
