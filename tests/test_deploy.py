"""Deployment: every option of the service by environment, and the files in deploy/."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from serving import served, train
from starlette.testclient import TestClient

from blackbox.cli import main
from blackbox.cli.serve import command as serve
from blackbox.service.app import create_app
from blackbox.service.core import Service
from blackbox.service.settings import ServiceSettings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
PAGE = ROOT / "docs" / "deploy.md"
OPTIONS = {
    "BLACKBOX_SERVE_" + max(param.opts, key=len).strip("-").replace("-", "_").upper(): param
    for param in serve.params
    if isinstance(param, click.Option) and param.expose_value
}


def parsed(*arguments):
    """The parameters of the service, as the command reads them."""
    above = click.Context(main, info_name="blackbox", **main.context_settings)
    return serve.make_context("serve", ["m", *arguments], parent=above).params


def example(option):
    """Values for an option, one by one."""
    if isinstance(option.type, click.Choice):
        return [option.type.choices[-1]]
    if isinstance(option.type, click.FloatRange):
        return ["0.5"]
    if isinstance(option.type, click.IntRange):
        return ["7"]
    return ["a=1", 'b={"c":2}'] if option.multiple else ["a"]


@pytest.mark.parametrize("variable", OPTIONS)
def test_every_option_can_be_set_by_its_variable(monkeypatch, variable):
    option = OPTIONS[variable]
    name = max(option.opts, key=len)
    if option.is_flag:
        given, words = "true", [name]
    else:
        values = example(option)
        given, words = " ".join(values), [word for value in values for word in (name, value)]
    default, from_words = parsed(), parsed(*words)
    monkeypatch.setenv(variable, given)
    assert parsed() == from_words != default
    monkeypatch.setenv(variable, "")  # as compose files pass what isn't set
    assert parsed() == default


def table():
    """Every variable of the service, as Markdown."""
    context = click.Context(serve, info_name="serve")
    lines = ["| variable | |", "|---|---|"]
    for variable, option in OPTIONS.items():
        text = option.get_help_record(context)[1].replace("|", "\\|")
        lines.append(f"| `{variable}` | {'`1`: ' if option.is_flag else ''}{text} |")
    return "\n".join(lines)


def test_the_variables_are_those_in_the_documentation():
    begin = "<!-- variables, by UPDATE_DOCS=1 pytest tests/test_deploy.py -->"
    before, _, rest = PAGE.read_text("utf-8").partition(begin)
    old, _, after = rest.partition("<!-- end -->")
    new = f"\n\n{table()}\n\n"
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(f"{before}{begin}{new}<!-- end -->{after}", "utf-8")
        old = new
    assert old == new


def test_variables_routes_and_metrics_in_the_files_exist(tmp_path):
    files = [file for file in DEPLOY.iterdir() if file.is_file()]
    text = "\n".join(file.read_text("utf-8") for file in (PAGE, *files))
    named = set(re.findall(r"BLACKBOX_SERVE_[A-Z_]*[A-Z]", text))
    assert len(named) > 5
    assert named <= OPTIONS.keys()
    probed = set(re.findall(r"(?:httpGet: \{path:|metrics_path:|\}(?=/healthz)) ?(/\w+)", text))
    assert probed == {"/healthz", "/readyz", "/metrics"}
    service = Service([served(train(tmp_path / "m"))], ServiceSettings())
    with TestClient(create_app(service), base_url="http://127.0.0.1") as client:
        assert {client.get(path).status_code for path in probed} == {200}
        metrics = client.get("/metrics").text
    alerts = set(re.findall(r"blackbox_[a-z_]+[a-z]", PAGE.read_text("utf-8")))
    assert len(alerts) > 2
    assert not [name for name in alerts if name not in metrics]


def instructions():
    """The instructions of the Dockerfile's last stage, by name, continued lines joined."""
    text = (DEPLOY / "Dockerfile").read_text("utf-8").replace("\\\n", "")
    found = {}
    for line in text.rpartition("\nFROM ")[2].splitlines():
        name, _, value = line.partition(" ")
        if name.isupper():
            found[name] = value.strip()
    return found


@pytest.mark.slow
@pytest.mark.posix
def test_the_command_of_the_container_serves_and_its_health_is_checked(tmp_path):
    said = instructions()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    set_there = dict(pair.split("=", 1) for pair in said["ENV"].split())
    assert set_there["BLACKBOX_SERVE_HOST"] == "0.0.0.0"
    set_there |= {"BLACKBOX_SERVE_PORT": port, "BLACKBOX_SERVE_BACKEND": "deterministic"}
    kept = {
        name: value.replace("/var/lib/blackbox", str(tmp_path)) for name, value in set_there.items()
    }
    environment = {**os.environ, **kept, "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    train(tmp_path / "model.blackbox")
    entry = [*json.loads(said["ENTRYPOINT"]), *json.loads(said["CMD"])]
    command = [sys.executable, "-m", *entry]
    check = json.loads(said["HEALTHCHECK"].partition("CMD ")[2])

    def is_healthy():
        check_it = [sys.executable, *check[1:]]
        return subprocess.run(check_it, env=environment, capture_output=True).returncode == 0

    without_tokens = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert without_tokens.returncode == 2
    assert "--token-file" in without_tokens.stderr
    environment["PROMPTBOOSTING_TOKENS"] = "secret"
    assert not is_healthy()
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            assert "serving model on http://0.0.0.0" in running.stderr.readline()
            assert is_healthy()
        finally:
            running.send_signal(signal.SIGTERM)
        running.communicate(timeout=30)
    assert (tmp_path / "passes.sqlite").exists()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_the_systemd_unit_is_valid_and_hardened(tmp_path):
    unit = tmp_path / "blackbox.service"
    text = (DEPLOY / "blackbox.service").read_text("utf-8")
    unit.write_text(text.replace("/opt/promptboosting/bin/blackbox", shutil.which("true")))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    rated = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)]
    done = subprocess.run(rated, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_part_runs_as_root_or_writes_outside_its_volumes():
    assert instructions()["USER"].isdigit()
    service = yaml.safe_load((DEPLOY / "compose.yml").read_text("utf-8"))["services"]["service"]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert [volume for volume in service["volumes"] if "/models" in volume] == [
        "./models:/models:ro"
    ]
    _, workload = yaml.safe_load_all((DEPLOY / "kubernetes.yml").read_text("utf-8"))
    pod = workload["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert str(pod["securityContext"]["runAsUser"]) == instructions()["USER"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["models"]["readOnly"]
    assert mounts["tokens"]["readOnly"]


@pytest.mark.slow
def test_the_image_builds_and_runs():
    engine = next((name for name in ("docker", "podman") if shutil.which(name)), None)
    if engine is None or subprocess.run([engine, "info"], capture_output=True).returncode != 0:
        pytest.skip("needs a container engine that runs")
    tag = "promptboosting-test"
    build = [engine, "build", "--file", DEPLOY / "Dockerfile", "--tag", tag, ROOT]
    subprocess.run(build, check=True)
    try:
        run = [engine, "run", "--rm", "--read-only", "--cap-drop=ALL", tag, "--version"]
        said = subprocess.run(run, check=True, capture_output=True, text=True).stdout
        assert said.startswith("blackbox, version")
    finally:
        with contextlib.suppress(OSError):
            subprocess.run([engine, "rmi", "--force", tag], capture_output=True)
