"""The cost of 1,000 texts at each provider, at today's list prices: the table of ``docs/apis.md``.

    python -m eval.studies.api_prices [--write docs/apis.md] [--pools docs/pools.md]

Nothing is asked. A text has `TEXT` tokens and is classified by ten prompts, each of which adds
`PROMPT` tokens with its chat frame. A chat writes one token per prompt, and 16 over OpenAI's
Responses API; a decision endpoint gets the text once with all questions; an LM without
log-probabilities writes the default number of draws, letters that may have as many tokens as a draw
is given; their prompt is billed once where one request gives several, and else with each. No cache
is counted, as such prompts are too short for one.

``--pools`` compares pools by price for accuracy: it applies the list price of `POOL_MODEL` to the
tokens that the evaluation in that page counted with the embedded LM. Neither the accuracy nor the
tokens are those of the model whose price it is.
"""

from __future__ import annotations

import datetime
import inspect
from dataclasses import dataclass
from pathlib import Path

import click

from backends.sampling import SamplingBackend
from blackbox.lm.prices import Price, price_of
from blackbox.spending import Rate

N_PROMPTS, TEXT, PROMPT = 10, 40, 20
POOL_MODEL = "gpt-4.1-nano"
WRITTEN_BY_RESPONSES = 16
BEGIN, END = "<!-- written by `python -m eval.studies.api_prices", "<!-- end of prices -->\n"


@dataclass(frozen=True)
class Row:
    """One row: a provider, the host of its API, an example of its models, and the form."""

    provider: str
    host: str
    model: str
    form: str = "log-probabilities"


ROWS = (
    Row("OpenAI", "api.openai.com", "gpt-4.1-nano"),
    Row("OpenAI, in batches", "api.openai.com", "gpt-4.1-nano", "batch"),
    Row("OpenAI", "api.openai.com", "gpt-4.1"),
    Row("OpenAI, reasoning off", "api.openai.com", "gpt-5.6-luna"),
    Row("OpenAI, no log-probabilities", "api.openai.com", "gpt-5-mini", "draws"),
    Row("OpenAI, `/v1/decisions`", "api.openai.com", "gpt-6-luna", "decisions"),
    Row(
        "Bedrock's OpenAI models",
        "bedrock-runtime.us-east-1.amazonaws.com",
        "openai.gpt-5.4",
        "responses",
    ),
    Row("Gemini 2.5", "generativelanguage.googleapis.com", "gemini-2.5-flash-lite"),
    Row(
        "Gemini 3 and later", "generativelanguage.googleapis.com", "gemini-3.5-flash-lite", "draws"
    ),
    Row("OpenRouter", "openrouter.ai", "openai/gpt-4.1-nano"),
    Row("DeepSeek", "api.deepseek.com", "deepseek-v4-flash"),
    Row("Mistral", "api.mistral.ai", "mistral-small-latest"),
    Row("xAI", "api.x.ai", "grok-4-1-fast-non-reasoning"),
    Row("Together", "api.together.xyz", "meta-llama/Meta-Llama-3.1-8B-Instruct-Turbo"),
    Row("Fireworks", "api.fireworks.ai", "accounts/fireworks/models/gpt-oss-20b"),
    Row("Groq", "api.groq.com", "llama-3.1-8b-instant", "draws, one a request"),
    Row("Anthropic", "api.anthropic.com", "claude-haiku-4-5", "draws, one a request"),
)


def tokens_of(form: str) -> tuple[int, int]:
    """Return the tokens that are read and written for one text."""
    each = TEXT + PROMPT
    if form == "decisions":
        return TEXT + N_PROMPTS * PROMPT, 0
    if form.startswith("draws"):
        options = inspect.signature(SamplingBackend).parameters
        draws = options["n_draws"].default
        written = draws * options["max_tokens"].default
        times = 1 if form == "draws" else draws
        return N_PROMPTS * each * times, N_PROMPTS * written
    return N_PROMPTS * each, N_PROMPTS * (WRITTEN_BY_RESPONSES if form == "responses" else 1)


def price_of_row(row: Row) -> Price | None:
    """Return the list price of a row's model; None where the table has none."""
    share = 0.5 if row.form == "batch" else 1.0
    is_decisions = row.form == "decisions"
    rate = Rate("any", row.model, share, row.host, is_decisions=is_decisions)
    return price_of(rate)


def lines() -> list[str]:
    """Return the table as lines of Markdown."""
    import genai_prices

    today = datetime.date.today().isoformat()
    found = [
        f"{BEGIN} --write docs/apis.md`, {today}, genai-prices {genai_prices.__version__} -->",
        "",
        "| provider | for example | form | tokens read, written | $ per million: in, cached, out "
        "| $ per 1,000 texts |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        price, (read, written) = price_of_row(row), tokens_of(row.form)
        if price is None:
            told, cost = "unknown", "unknown"
        else:
            cached = price.input if price.cached is None else price.cached
            told = f"{price.input:g}, {cached:g}, {price.output:g}"
            cost = f"{1000 * price.of(read, written):.2f}"
        cells = row.provider, f"`{row.model}`", row.form, f"{read}, {written}", told, cost
        found.append("| " + " | ".join(cells) + " |")
    return found


def with_table(page: str) -> str:
    """Return a page with the table of today.

    Raises
    ------
    ValueError
        If it has no place for one.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no place for the table: {BEGIN} … --> and {END.strip()} mark it")
    return before + "\n".join(lines()) + "\n" + END + after


def pool_lines(page: str) -> list[str]:
    """Return the pools of an evaluation's page with their price, as lines of Markdown."""
    price = price_of(Rate("openai", POOL_MODEL, host="api.openai.com"))
    if price is None:
        raise click.ClickException(f"there is no list price of {POOL_MODEL}")
    accuracies = {row["method"]: row["mean"] for row in _table(page, "mean")}
    found = ["| pool | accuracy | $ to train | $ per 1,000 texts |", "|---|---|---|---|"]
    for row in _table(page, "tokens to train"):
        # as many tokens are written as there are passes, of a training at most
        passes = int(row["passes to train"].split(" to ")[-1].replace(",", ""))
        to_train = price.of(int(row["tokens to train"].replace(",", "")), passes)
        read = int(row["tokens per text"].replace(",", ""))
        per_text = price.of(read, round(float(row["passes per text"])))
        name = row["method"]
        found.append(f"| {name} | {accuracies[name]} | {to_train:.3f} | {1000 * per_text:.3f} |")
    return found


def _table(page: str, column: str) -> list[dict[str, str]]:
    """Return the rows of the first table of a page that has a column, by the names of these."""
    header: list[str] = []
    found: list[dict[str, str]] = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if header and not cells:
            break
        if header and set(cells[0]) != {"-"}:
            found.append(dict(zip(header, cells, strict=True)))
        elif column in cells:
            header = cells
    if not found:
        raise click.ClickException(f"the page has no table with a column {column!r}")
    return found


@click.command()
@click.option("--write", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--pools", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(write: Path | None, pools: Path | None) -> None:
    """Print the table, or write it into a page; or compare pools."""
    if pools is not None:
        click.echo("\n".join(pool_lines(pools.read_text("utf-8"))))
    elif write is None:
        click.echo("\n".join(lines()))
    else:
        write.write_text(with_table(write.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
