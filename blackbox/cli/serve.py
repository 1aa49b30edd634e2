"""`blackbox serve`."""

from __future__ import annotations

import gc
import json
import os
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from blackbox.cli import common

TOKENS_VARIABLE = "PROMPTBOOSTING_TOKENS"
_WILDCARDS = ("0.0.0.0", "::", "[::]", "")


@click.command("serve", short_help="Answer over HTTP.")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Bearer tokens that may ask, one a line; or the environment's "
    f"{TOKENS_VARIABLE}, separated by spaces.",
)
@click.option(
    "--allow-anonymous",
    is_flag=True,
    help="Let everybody ask who reaches an address beyond this machine.",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="A name under which clients reach the service; may be repeated.",
)
@click.option(
    "--passes-per-minute",
    type=click.IntRange(min=1),
    metavar="N",
    help="Forward passes in any minute, at most; those of the store are given back.",
)
@click.option(
    "--batch-texts",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Texts that are answered together.",
)
@click.option(
    "--batch-window",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    metavar="MS",
    help="Milliseconds that a request waits for others.",
)
@click.option(
    "--batches-at-once",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Batches that the LM works on at a time.",
)
@click.option(
    "--queue-texts",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Texts that may wait.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="S",
    help="Seconds in which a request is answered.",
)
@click.option(
    "--max-texts",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Texts of one request.",
)
@click.option(
    "--max-characters",
    type=click.IntRange(min=1),
    default=20_000,
    show_default=True,
    help="Characters of one text.",
)
@click.option(
    "--max-body-bytes",
    type=click.IntRange(min=1),
    default=1 << 20,
    show_default=True,
    help="Bytes of one request.",
)
@common.early_stop_option
@common.backend_options
@common.other_lm_option
@common.spending_options
def command(
    models: tuple[str, ...],
    host: str,
    port: int,
    token_file: Path | None,
    allow_anonymous: bool,
    allowed_hosts: tuple[str, ...],
    passes_per_minute: int | None,
    batch_texts: int,
    batch_window: float,
    batches_at_once: int,
    queue_texts: int,
    timeout: float,
    max_texts: int,
    max_characters: int,
    max_body_bytes: int,
    early_stop: str | None,
    backend: str | None,
    model: str | None,
    backend_option: tuple[str, ...],
    allow_other_lm: bool,
    spending: common.SpendingOptions,
) -> None:
    """Answer over HTTP with trained models; give several as NAME=FILE.

    POST /v1/predict, GET /v1/model, /healthz, /readyz, /metrics, /openapi.json, the Open Inference
    Protocol under /v2, and a page at /. SIGHUP reads the models again; SIGTERM finishes what was
    accepted. Budgets (--max-forward-passes and others) hold for each model for as long as the
    service runs.
    """
    named = _named(models)
    tokens = _tokens(token_file)
    _check_address(host, tokens, allowed_hosts, allow_anonymous=allow_anonymous)
    try:
        import uvicorn

        from blackbox.service.app import create_app
        from blackbox.service.core import Service
        from blackbox.service.models import ServedModel
        from blackbox.service.settings import Settings, Tokens
        from blackbox.service.slow_clients import timeout_protocol
    except ModuleNotFoundError as error:
        from blackbox.errors import MissingDependencyError

        raise MissingDependencyError(
            f"serving needs {error.name}: pip install 'promptboosting[serve]'"
        ) from error
    from blackbox.lm.budgets import Budget

    parameters = spending.parameters()
    budget = Budget(**{name: parameters[name] for name in parameters if name != "store"})
    settings = Settings(
        tokens=Tokens(tokens),
        allowed_hosts=frozenset(
            _in_address(name.lower()) for name in (*Settings().allowed_hosts, host, *allowed_hosts)
        ),
        window=batch_window / 1000,
        batch_texts=batch_texts,
        # one batch at a time keeps a budget to the pass
        batches_at_once=batches_at_once if budget.is_open else 1,
        queue_texts=max(queue_texts, max_texts),
        timeout=timeout,
        max_body=max_body_bytes,
        max_texts=max_texts,
        max_characters=max_characters,
        passes_per_minute=passes_per_minute,
    )
    with closing(_listen(host, port)) as listening:
        load = _loader(
            backend=backend,
            model=model,
            backend_option=backend_option,
            allow_other_lm=allow_other_lm,
            on_row_error="abstain",
        )

        def read(path: Path) -> Any:
            classifier = load(path).set_params(early_stop=early_stop, store=parameters["store"])
            if early_stop == "risk" and not classifier.ensemble_.early_stopping.knows_risk:
                raise click.UsageError(f"{path} doesn't know at what risk it may stop: use exact")
            return classifier

        served = [ServedModel(name, path, read, budget) for name, path in named.items()]
        app = create_app(Service(served, settings))
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            proxy_headers=False,
            timeout_graceful_shutdown=int(timeout) + 1,
            lifespan="on",
            http=timeout_protocol(settings.read_timeout),
        )
        common.say(
            f"serving {', '.join(named)} on http://{_in_address(host)}:"
            f"{listening.getsockname()[1]}" + ("" if tokens else ", without tokens")
        )
        # what is loaded by now stays: looking through it again and again would make answers wait
        gc.collect()
        gc.freeze()
        uvicorn.Server(config).run(sockets=[listening])


def _named(models: tuple[str, ...]) -> dict[str, Path]:
    """The models by name: NAME=FILE, or a file by its own name."""
    named: dict[str, Path] = {}
    for given in models:
        name, equals, path = given.partition("=")
        if not equals or Path(given).exists():
            name, path = Path(given).stem, given
        if not name or name in named:
            raise click.UsageError(f"two models are called {name!r}: give NAME=FILE")
        named[name] = Path(path)
    return named


def _tokens(token_file: Path | None) -> list[str]:
    """Who may ask."""
    if token_file is None:
        given = os.environ.get(TOKENS_VARIABLE, "")
        if given and not given.strip():
            raise click.UsageError(f"{TOKENS_VARIABLE} holds no token: unset it, or give one")
        return given.split()
    try:
        lines = token_file.read_text().splitlines()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise click.UsageError(f"--token-file {token_file} can't be read: {reason}") from error
    tokens = [line.strip() for line in lines if line.strip()]
    for number, line in enumerate(lines, start=1):
        if len(line.split()) > 1:
            raise click.UsageError(
                f"--token-file {token_file}, line {number}: a token has no space in it, and a line "
                "holds nothing else"
            )
    if not tokens:
        raise click.UsageError(f"--token-file {token_file} holds no token")
    return tokens


def _in_address(host: str) -> str:
    """A host as it stands in an address: one of IPv6 in brackets."""
    return f"[{host.strip('[]')}]" if ":" in host else host


def _check_address(
    host: str, tokens: list[str], allowed_hosts: tuple[str, ...], *, allow_anonymous: bool
) -> None:
    """Refuse what would let strangers in."""
    from blackbox.service.settings import is_loopback

    if is_loopback(host):
        return
    if not tokens and not allow_anonymous:
        raise click.UsageError(
            f"--host {host} is reached from other machines, and everybody there could spend your "
            "passes: give --token-file, or --allow-anonymous"
        )
    if host in _WILDCARDS and not allowed_hosts:
        raise click.UsageError(
            f"--host {host} goes by any name: name those that clients use (--allowed-host)"
        )


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host.strip("[]"), port), family=family, backlog=2048)
        # connections inherit it; asyncio sets it on no socket that is handed to it, and an answer's
        # body would wait 40 ms for the client to acknowledge its head
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise click.UsageError(f"--host {host} --port {port}: {reason}") from error


def _loader(**options: Any) -> Callable[[Path], Any]:
    """Reads models; those of one LM share its engine."""
    engines: dict[str, Any] = {}

    def load(path: Path) -> Any:
        classifier = common.open_model(path, **options)
        key = json.dumps(
            [str(classifier.backend), str(classifier.model), classifier.backend_options],
            default=str,
            sort_keys=True,
        )
        if key not in engines:
            engines[key] = classifier.connect()
        return classifier.set_params(backend=engines[key], model=None, backend_options=None)

    return load
