"""`blackbox serve`."""

from __future__ import annotations

import gc
import logging
import os
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from blackbox.cli.help import Command, option
from blackbox.cli.lm_options import LmOptions, lm_options
from blackbox.cli.options import FiniteRange, check_early_stop, early_stop_option
from blackbox.cli.spending_options import SpendingOptions, spending_options

TOKENS_VARIABLE = "PROMPTBOOSTING_TOKENS"
_log = logging.getLogger(__name__)

_WILDCARDS = ("0.0.0.0", "::", "[::]", "")


@click.command("serve", cls=Command, example="blackbox serve messages.blackbox --port 8000")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    group="Server",
    help="Address to listen on.",
)
@option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    group="Server",
    help="Port to listen on; 0 takes a free one.",
)
@option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    group="Server",
    help="File of accepted bearer tokens, one per line; or set the environment variable "
    f"{TOKENS_VARIABLE}, separated by spaces.",
)
@option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    group="Server",
    help="Host name under which clients reach the service; can be repeated; * is any.  [default: "
    "this machine and --host; any where --host is all addresses and there are tokens]",
)
@option(
    "--access-log",
    is_flag=True,
    group="Logs and traces",
    help="Log a line per request: client, method, route, status, seconds, rows, passes, request "
    "id, and the ids of its trace; never a text.",
)
@option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
    group="Logs and traces",
    help="Least level of what is logged, on standard error.",
)
@option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    group="Logs and traces",
    help="Format of the log; json is one object per line.",
)
@option(
    "--traces",
    is_flag=True,
    group="Logs and traces",
    help="Export OpenTelemetry traces by OTLP, to where the standard variables (OTEL_*) say; "
    "never a text.",
)
@option(
    "--allow-anonymous",
    is_flag=True,
    group="Server",
    advanced=True,
    help="Accept requests without a token, also from other machines.",
)
@option(
    "--batch-texts",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    group="Requests",
    advanced=True,
    help="Largest number of texts in a batch; fewer where the LM labels them as fast.",
)
@option(
    "--batch-window",
    type=FiniteRange(min=0, max=60_000),
    default=2.0,
    show_default=True,
    metavar="MS",
    group="Requests",
    advanced=True,
    help="Milliseconds that a request waits for others, to form a batch.",
)
@option(
    "--batches-at-once",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    group="Requests",
    advanced=True,
    help="Number of batches that the LM works on concurrently.",
)
@option(
    "--queue-texts",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    group="Requests",
    advanced=True,
    help="Largest number of texts in the queue.",
)
@option(
    "--timeout",
    type=FiniteRange(min=0, min_open=True, max=86_400),
    default=30.0,
    show_default=True,
    metavar="S",
    group="Requests",
    help="Timeout of a request, in seconds.",
)
@option(
    "--max-texts",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    group="Requests",
    advanced=True,
    help="Largest number of texts in a request.",
)
@option(
    "--max-characters",
    type=click.IntRange(min=1),
    default=20_000,
    show_default=True,
    group="Requests",
    advanced=True,
    help="Largest number of characters in a text.",
)
@option(
    "--max-body-bytes",
    type=click.IntRange(min=1),
    default=1 << 20,
    show_default=True,
    group="Requests",
    advanced=True,
    help="Largest size of a request, in bytes.",
)
@option(
    "--passes-per-minute",
    type=click.IntRange(min=1),
    metavar="N",
    group="Limits and cost",
    help="Rate limit on forward passes: a request reserves the most that it may take, and gets "
    "back what the store has.",
)
@early_stop_option
@lm_options
@spending_options
def command(
    models: tuple[str, ...],
    host: str,
    port: int,
    token_file: Path | None,
    access_log: bool,
    log_level: str,
    log_format: str,
    traces: bool,
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
    lm: LmOptions,
    spending: SpendingOptions,
) -> None:
    """Serve trained models over HTTP: MODEL is a file, or NAME=FILE where there are several.

    POST /v1/predict, GET /v1/model, /healthz, /readyz, /metrics, /openapi.json, the Open Inference
    Protocol under /v2, and a page at /. SIGHUP reloads the models; SIGTERM finishes the accepted
    requests and stops. Limits such as --max-forward-passes apply per model, for as long as the
    service runs.
    """
    named = _named(models)
    tokens = _tokens(token_file)
    _check_address(host, tokens, allowed_hosts, allow_anonymous=allow_anonymous)
    try:
        import uvicorn

        from blackbox.service.app import create_app
        from blackbox.service.core import Service
        from blackbox.service.logs import configure_logging
        from blackbox.service.models import ServedModel
        from blackbox.service.settings import ANY_HOST, ServiceSettings, Tokens
        from blackbox.service.slow_clients import timeout_protocol
        from blackbox.service.traces import export_traces
    except ModuleNotFoundError as error:
        from blackbox.errors import MissingDependencyError

        raise MissingDependencyError(
            f"serving needs {error.name}: pip install 'promptboosting[serve]'"
        ) from error
    from blackbox.lm.budgets import Budget
    from blackbox.model.file import read_model

    if traces:
        export_traces()
    level = "debug" if click.get_current_context().find_root().params.get("debug") else log_level
    configure_logging(level, log_format, access=access_log, announcing=__name__)
    limits = spending.parameters()
    store = limits.pop("store")
    budget = Budget(**limits)
    settings = ServiceSettings(
        tokens=Tokens(tokens),
        allowed_hosts=frozenset(
            _in_address(name.lower())
            for name in (
                *ServiceSettings().allowed_hosts,
                *(allowed_hosts or [ANY_HOST if host in _WILDCARDS else host]),
                host,
            )
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

        def read(path: Path) -> Any:
            trained = read_model(path)
            check_early_stop(trained, path, early_stop)
            return trained, lm.connect(trained, path), lm.connect_embedder(trained, path)

        served = [
            ServedModel(name, path, read, budget, store=store, early_stop=early_stop)
            for name, path in named.items()
        ]
        for model in served:
            model.warm_up()
        service = Service(served, settings)
        app = create_app(service)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            proxy_headers=False,
            timeout_graceful_shutdown=int(timeout) + 1,
            lifespan="on",
            http=timeout_protocol(settings.read_timeout, service.metrics.count_unreadable),
        )
        _log.info(
            "serving %s on http://%s:%d%s",
            ", ".join(named),
            _in_address(host),
            listening.getsockname()[1],
            "" if tokens else ", without tokens",
        )
        # what is loaded by now stays; collecting it again and again would delay answers
        gc.collect()
        gc.freeze()
        uvicorn.Server(config).run(sockets=[listening])


def _named(models: tuple[str, ...]) -> dict[str, Path]:
    """Return the models by name: NAME=FILE, or a file under its own name."""
    from blackbox.model.file import model_file

    named: dict[str, Path] = {}
    for given in models:
        name, equals, path = given.partition("=")
        if not equals or Path(given).exists():
            name, path = Path(given).stem, given
        if not name or name in named:
            raise click.UsageError(f"two models are called {name!r}: give NAME=FILE")
        named[name] = model_file(path)
    return named


def _tokens(token_file: Path | None) -> list[str]:
    """Return the accepted bearer tokens."""
    if token_file is None:
        given = os.environ.get(TOKENS_VARIABLE, "")
        if not given.isprintable() and any(0xD800 <= ord(letter) <= 0xDFFF for letter in given):
            raise click.UsageError(f"{TOKENS_VARIABLE} holds bytes that aren't UTF-8: set it anew")
        if given and not given.strip():
            raise click.UsageError(f"{TOKENS_VARIABLE} holds no token: unset it, or give one")
        return given.split()
    try:
        lines = token_file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise click.UsageError(f"--token-file {token_file} can't be read: {reason}") from error
    tokens = [line.strip() for line in lines if line.strip()]
    for number, line in enumerate(lines, start=1):
        if len(line.split()) > 1:
            raise click.UsageError(
                f"--token-file {token_file}, line {number}: give one token per line, without spaces"
            )
    if not tokens:
        raise click.UsageError(f"--token-file {token_file} holds no token")
    return tokens


def _in_address(host: str) -> str:
    """Return a host as it is written in a URL: IPv6 in brackets."""
    return f"[{host.strip('[]')}]" if ":" in host else host


def _check_address(
    host: str, tokens: list[str], allowed_hosts: tuple[str, ...], *, allow_anonymous: bool
) -> None:
    """Raise if anyone on the network could send requests without a token."""
    from blackbox.service.settings import is_loopback

    if is_loopback(host):
        return
    if not tokens and not allow_anonymous:
        raise click.UsageError(
            f"--host {host} is reachable from other machines, where anyone could spend your "
            "forward passes: give --token-file, or --allow-anonymous"
        )
    if host in _WILDCARDS and not tokens and not allowed_hosts:
        raise click.UsageError(
            f"--host {host} listens on all addresses: without tokens, name the hosts that clients "
            "use (--allowed-host), or --allowed-host '*' for any"
        )


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host.strip("[]"), port), family=family, backlog=2048)
        # connections inherit it; asyncio sets it on no socket that is handed to it, and an answer's
        # body would wait 40 ms for the client to acknowledge its head
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        # Python adds the address to what the system says; `os.strerror` lacks Windows' errors
        reason = str(error.strerror or error).partition(" (while attempting")[0]
        raise click.UsageError(f"--host {host} --port {port}: {reason}") from error
