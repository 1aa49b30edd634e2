"""`blackbox predict --ray` on a cluster of two nodes on this machine."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest
from click.testing import CliRunner

from blackbox.cli import main
from eval.perf import cluster as runs

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.posix, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def nodes():
    with runs.nodes() as cluster:
        yield cluster


@pytest.fixture
def job(tmp_path):
    return runs.Job(tmp_path, 1_200, 100)


def test_a_job_killed_goes_on_and_ends_with_the_rows_of_predict(nodes, job):
    process = job.command(nodes.address, "out", 2, seconds=0.3)
    job.wait_for("out", 0.5, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    told = runs.finished(job.command(nodes.address, "out", 2))
    assert 0 < told["rows"] < job.n_rows
    assert job.sorted("out") == job.single()[0]
    assert 0 <= job.again("out") <= 2 * job.block_rows
    after = runs.finished(job.command(nodes.address, "out", 2))
    assert (after["rows"], after["usage"]["passes_made"]) == (0, 0)


def test_a_node_that_goes_loses_no_row(job):
    with runs.nodes() as cluster:
        process = job.command(cluster.address, "out", 2, *runs.ON_EACH, seconds=1.0)
        job.wait_for("out", 0.2, process)
        runs.wait_until(lambda: job.n_processes("out") == 2, process)
        assert runs.remove_node(cluster) == 1
        runs.add_node(cluster)
        runs.finished(process)
    assert job.sorted("out") == job.single()[0]
    assert 0 <= job.again("out") <= 2 * job.block_rows


def test_an_actor_and_a_node_that_die_while_they_start_do_not_end_the_job(job):
    died = job.folder / "died"
    with runs.nodes() as cluster:
        node = cluster.add_node(num_cpus=4, resources={"doomed": 2})
        more = ["--actor-resource", "doomed=1", f"--backend-option=dies={died}"]
        process = job.command(cluster.address, "out", 2, *more)
        runs.wait_until(died.exists, process)  # an actor has killed itself in its start
        cluster.remove_node(node, allow_graceful=False)  # and the next ones start now
        cluster.add_node(num_cpus=4, resources={"doomed": 2})
        told = runs.finished(process)
    assert told["rows"] == job.n_rows
    assert job.sorted("out") == job.single()[0]


def test_actors_in_a_range_are_added_while_all_are_busy(nodes, job):
    process = job.command(nodes.address, "out", "1-2", seconds=2.0)
    job.wait_for("out", 1e-9, process)
    first = job.n_processes("out")
    runs.finished(process)
    assert (first, job.n_processes("out")) == (1, 2)
    assert job.sorted("out") == job.single()[0]


def test_a_budget_over_all_actors_is_kept_and_a_raised_one_goes_on(nodes, job):
    limit = ["--max-forward-passes", "1000"]
    told = runs.finished(job.command(nodes.address, "out", 2, *limit), expected=3)
    assert "the budget of 1000 forward passes is used up" in told["error"]
    assert f"the rows that are done are in {job.folder / 'out'}" in told["error"]
    assert 500 < job.passes("out") <= 1000
    runs.finished(job.command(nodes.address, "out", 2))
    assert job.sorted("out") == job.single()[0]


def test_an_error_of_an_actor_or_of_a_file_is_one_line(nodes, job):
    lines = {}
    for name, more in (("lm", ["--backend-option=nosuch=1"]), ("row", ["--on-row-error", "raise"])):
        if name == "row":
            (job.folder / "data" / "part-07.parquet").write_bytes(b"PAR1 no more")
        process = job.command(nodes.address, name, 2, *more)
        out, err = process.communicate()
        assert (process.returncode, out) == (1, "")
        lines[name] = err.strip()
    assert all(re.fullmatch(r"blackbox: [^\n]*", line) for line in lines.values()), lines
    assert "nosuch" in lines["lm"]
    assert "part-07.parquet" in lines["row"]


def test_a_lost_ledger_ends_the_job_with_one_line_and_the_same_command_goes_on(nodes, job):
    more = ["--max-forward-passes", "100000"]  # so that each request is asked for there
    process = job.command(nodes.address, "out", 2, *more, seconds=0.3)
    job.wait_for("out", 0.3, process)
    [ledger] = runs.processes(runs.all_nodes(nodes), "ray::Ledger")
    os.kill(ledger, signal.SIGKILL)
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    line = only_line(err)
    assert line.startswith("blackbox: the job lost its ledger")
    assert "what this run spent is unknown; all that was written is kept" in line
    goes_on_after_a_loss(nodes, job)


def test_a_cluster_that_goes_away_ends_the_command_with_one_line(nodes, job):
    with runs.nodes(1) as cluster:
        process = job.command(cluster.address, "out", 2, seconds=0.3)
        job.wait_for("out", 0.3, process)
    out, err = process.communicate()
    assert process.returncode
    assert out == ""
    assert "all that was written is kept, and the same command goes on from it" in only_line(err)
    goes_on_after_a_loss(nodes, job)


def only_line(err):
    """The one line of standard error that isn't about progress."""
    [line] = [line for line in err.splitlines() if " passes a minute" not in line]
    return line


def goes_on_after_a_loss(nodes, job):
    told = runs.finished(job.command(nodes.address, "out", 2))
    assert 0 < told["rows"] < job.n_rows
    assert job.sorted("out") == job.single()[0]
    assert 0 <= job.again("out") <= 2 * job.block_rows


def test_without_an_address_a_cluster_starts_here_and_ends_with_the_command(tmp_path):
    job = runs.Job(tmp_path, 100, 50)
    process = job.command("local", "out", 1)
    told = runs.finished(process)
    assert told["rows"] == 100
    again = ["--backend", "eval.perf.cluster:CountingBackend", "--backend-option"]
    again += [f"passes={tmp_path}", "--ray", "--out", tmp_path / "out", "--text-column", "id"]
    result = CliRunner().invoke(
        main, ["predict", *map(str, [job.model, tmp_path / "data", *again])]
    )
    assert result.exit_code == 1
    assert "holds results of another job (columns differ)" in result.stderr
    assert json.loads((tmp_path / "out" / "_job.json").read_text())["job"]["model"]


# the last: it starts Ray in this process, and ends with it the cluster of the fixture
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
def test_lines_say_what_is_done_while_a_job_runs(tmp_path, monkeypatch):
    job = runs.Job(tmp_path, 400, 50)
    monkeypatch.setattr("blackbox.cluster.rates._MINUTE", 0.2)
    command = job.arguments("local", "out", 1, seconds=0.3)
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    line = r"\d+ of 400 rows \(\d+%\), [\d,]+ rows and [\d,]+ passes a minute(, about .* left)?"
    lines = [some for some in result.stderr.splitlines() if " of 400 rows " in some]
    assert lines
    assert all(re.fullmatch(line, some) for some in lines), lines
    assert any("left" in some for some in lines)
