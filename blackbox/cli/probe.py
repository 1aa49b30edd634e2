"""`blackbox probe`."""

from __future__ import annotations

import time
from typing import Any

import click

from blackbox.cli import common
from blackbox.cli.help import Command
from blackbox.cli.lm_options import backend_options
from blackbox.cli.options import json_option


@click.command("probe", cls=Command, example="blackbox probe --backend openai --model gpt-4.1-mini")
@backend_options
@json_option
def command(
    backend: str | None, model: str | None, backend_option: tuple[str, ...], as_json: bool
) -> None:
    """Probe an LM with a few short requests: log-probabilities, top k, limits, price, speed.

    A training does the same first. `--backend openai` takes the key from
    OPENAI_API_KEY and the address from OPENAI_BASE_URL or `--backend-option base_url=URL`.
    """
    import backends
    from blackbox.lm.prices import price_of, rate_of

    options = common.parse_backend_options(backend_option)
    if model is not None:
        options["model"] = model
    lm = backends.load(backend, **options)
    found = lm.describe() or _look(lm)
    price = price_of(rate_of(lm.identity, lm.limits))
    found["price"] = (
        None
        if price is None
        else {
            "input": price.input,
            "output": price.output,
            "cached_input": price.cached,
            "cache_write": price.cache_write,
            "source": price.source,
            "per": "1M tokens, USD",
        }
    )
    if as_json:
        common.echo_json(found)
        return
    from blackbox.model.display import printable

    if price is None:
        found["price"] = "unknown"
    else:
        cached = f" (${price.cached:g} cached)" if price.cached_share < 1 else ""
        found["price"] = (
            f"${price.input:g} in{cached}, ${price.output:g} out, per million tokens "
            f"({price.source})"
        )
    width = max(map(len, found))
    for name, value in found.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        shown = {"True": "yes", "False": "no", "": "none"}.get(shown, shown)
        click.echo(f"{name.replace('_', ' '):<{width}}  {printable(shown)}")


def _look(lm: Any) -> dict[str, Any]:
    """Probe a backend that can't describe itself: make one forward pass twice."""
    from blackbox.protocol import Message, RenderedPrompt

    limits = lm.limits
    question = "The capital of France is"
    prompt = RenderedPrompt(text=question, after_mask="." if limits.mask else None)
    if not limits.mask and not limits.raw_text:
        prompt = RenderedPrompt(messages=(Message("user", question),))
    top_k = min(20, limits.max_top_k)
    started = time.perf_counter()
    one, other = (lm.next_token([prompt], top_k) for _ in range(2))
    seconds = (time.perf_counter() - started) / 2
    return {
        "provider": lm.identity.provider,
        "model": lm.identity.model,
        "endpoints": [lm.identity.endpoint],
        "max_top_k": limits.max_top_k,
        "log_probs": "raw",
        "tokens": "ids and bytes",
        "repeats_differ_by": _difference(one, other),
        "answer_prefill": limits.answer_prefix,
        "raw_text": limits.raw_text,
        "chat": limits.chat,
        "masked": limits.mask,
        "most_scored_tokens": limits.max_score_ids,
        "context_length": limits.context_length,
        "prompt_tokens": one.usage.tokens,
        "seconds_a_request": round(seconds, 3),
    }


def _difference(one: Any, other: Any) -> float | None:
    """Return the largest difference of a log-probability that both answers have; None without."""
    from blackbox.protocol import NO_TOKEN

    known, again = (
        dict(zip(answer.token_ids[0].tolist(), answer.log_probs[0].tolist(), strict=True))
        for answer in (one, other)
    )
    shared = (known.keys() & again.keys()) - {NO_TOKEN}
    return max((round(abs(known[token] - again[token]), 6) for token in shared), default=None)
