"""Many processes, some of them killed, and one store: nothing is lost, nothing is paid twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from backends.deterministic import DeterministicBackend
from blackbox.protocol import RenderedPrompt
from blackbox.store.file import StoreFile
from blackbox.store.stored_backend import StoredBackend

ROOT = Path(__file__).parents[1]
LINE = 67  # bytes of a line of the log
CALL = 64  # passes that are under way at a time
TEMPLATES = ["{text} It was {mask}", "{text} All in all {mask}"]

SCRIPT = """
import sys, time
from pathlib import Path
import numpy as np
from backends.deterministic import DeterministicBackend
from blackbox import PromptBoostingClassifier
from blackbox.protocol import request_digest


class Logging(DeterministicBackend):
    def next_token(self, prompts, top_k):
        self._log("n", prompts, "top k")
        return super().next_token(prompts, top_k)

    def score(self, prompts, token_ids):
        self._log("s", prompts, list(token_ids))
        return super().score(prompts, token_ids)

    def _log(self, call, prompts, asked):
        for prompt in prompts:
            time.sleep(0.001)
            with open(log, "a") as file:
                file.write(call + " " + request_digest(self.identity, prompt, asked) + "\\n")


store, log, out, start, stop = sys.argv[1:]
words = ["lovely", "dull", "bright", "bleak"]
texts = [f"row {n} of a {words[n % 4]} day" for n in range(int(start), int(stop))]
labels = ["good", "bad"] * (len(texts) // 2)
model = PromptBoostingClassifier(
    Logging(), prompts=TEMPLATES, store=store, n_estimators=10, cv=None, random_state=0
).fit(texts, labels)
if out != "-":
    new = [f"line {n} of a {words[n % 4]} week" for n in range(40)]
    np.save(out, model.predict_proba(new))
""".replace("TEMPLATES", repr(TEMPLATES))


class Runs:
    """Runs of the script in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store, self.log = folder / "passes.sqlite", folder / "log"
        (folder / "train.py").write_text(SCRIPT)

    def begin(self, out="-", start=0, stop=400) -> subprocess.Popen:
        files = [self.folder / "train.py", self.store, self.log, out]
        command = [sys.executable, *map(str, files), str(start), str(stop)]
        # no thread of a product may keep this machine's cores from the other processes
        given = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=given, cwd=self.folder)

    @property
    def n_passes(self) -> int:
        return self.log.stat().st_size // LINE if self.log.exists() else 0

    @property
    def distinct(self) -> int:
        return len(set(self.log.read_text().splitlines()))

    def predicted(self, out="out.npy"):
        return np.load(self.folder / out)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("uninterrupted"))
    assert runs.begin("out.npy").wait() == 0
    assert runs.n_passes == runs.distinct == 880
    return runs


@pytest.mark.parametrize("n_kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_training_that_is_killed_goes_on_where_it_was(tmp_path, uninterrupted, n_kills):
    runs, rng = Runs(tmp_path), np.random.default_rng(n_kills)
    n_killed = 0
    for _ in range(n_kills):
        goal = runs.n_passes + int(rng.integers(1, 150))
        process = runs.begin("out.npy")
        while process.poll() is None and runs.n_passes < goal:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        n_killed += process.wait() != 0
    assert runs.begin("out.npy").wait() == 0
    assert n_killed >= n_kills // 2
    assert uninterrupted.distinct <= runs.n_passes <= uninterrupted.distinct + CALL * n_killed
    assert runs.distinct == uninterrupted.distinct
    assert (runs.predicted() == uninterrupted.predicted()).all()
    n_stored, n_damaged = StoreFile(runs.store).verify()
    assert (n_stored, n_damaged) == StoreFile(uninterrupted.store).verify()


LM_SCRIPT = """
import sys
import numpy as np
from blackbox import PromptBoostingClassifier

store, out = sys.argv[1:]
words = ["lovely", "dull", "bright", "bleak"]
texts = [f"row {n} of a {words[n % 4]} day, and more of them to come" for n in range(60)]
model = PromptBoostingClassifier(
    prompts=TEMPLATES, store=store, n_estimators=10, cv=None, random_state=0
).fit(texts, ["good", "bad"] * 30)
np.save(out, model.predict_proba(["a lovely week", "a bleak week", "what a day"]))
print(model.usage_.passes_made, model.usage_.passes_from_store)
""".replace("TEMPLATES", repr(TEMPLATES))


@pytest.mark.slow
@pytest.mark.lm
def test_a_training_with_the_embedded_lm_that_is_killed_goes_on(lm, tmp_path):
    (tmp_path / "train.py").write_text(LM_SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def begin(store, out):
        command = [sys.executable, str(tmp_path / "train.py"), str(store), str(tmp_path / out)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def n_stored():
        return StoreFile(tmp_path / "killed").info()["passes"]

    told, _ = begin(tmp_path / "whole", "whole.npy").communicate()
    assert told.split() == ["120", "0"]
    rng = np.random.default_rng(0)
    for kill in range(3):
        process, goal = begin(tmp_path / "killed", "-.npy"), 32 * kill + 1
        while n_stored() < goal:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.communicate()
    kept = n_stored()
    told, _ = begin(tmp_path / "killed", "killed.npy").communicate()
    assert told.split() == [str(120 - kept), str(kept)]
    whole, killed = np.load(tmp_path / "whole.npy"), np.load(tmp_path / "killed.npy")
    np.testing.assert_array_equal(killed, whole)


def test_processes_share_what_they_pay_for(tmp_path):
    runs = Runs(tmp_path)
    ranges = [(0, 200), (40, 240), (80, 280), (120, 320)]
    processes = [runs.begin("-", *some) for some in ranges]
    assert [process.wait() for process in processes] == [0] * 4
    assert runs.distinct == 320 * len(TEMPLATES)
    assert runs.n_passes <= 1.25 * runs.distinct
    words = ["lovely", "dull", "bright", "bleak"]
    prompts = [
        RenderedPrompt(text=template.replace("{text}", text).replace(" {mask}", ""))
        for text in (f"row {n} of a {words[n % 4]} day" for n in range(320))
        for template in TEMPLATES
    ]
    engine = DeterministicBackend()
    store = StoredBackend(engine, StoreFile(runs.store))
    assert store.known_rows(prompts, 200) == list(range(len(prompts)))
    answers, expected = store.next_token(prompts, 200), engine.next_token(prompts, 200)
    assert (answers.token_ids == expected.token_ids).all()
    assert answers.log_probs.tobytes() == expected.log_probs.tobytes()
    assert answers.usage.passes_made == 0


CLAIMANT = """
import sys, time
from blackbox.store.file import StoreFile
StoreFile(sys.argv[1]).claim("claimant", [bytes.fromhex(key) for key in sys.argv[2:]])
print("claimed", flush=True)
time.sleep(600)
"""


def test_a_killed_claimant_is_not_waited_for(tmp_path):
    path = tmp_path / "passes.sqlite"
    store = StoredBackend(DeterministicBackend(), StoreFile(path))
    prompts = [RenderedPrompt(text=f"text {row} is") for row in range(3)]
    keys = [store._key(prompt, "next_token") for prompt in prompts]
    (tmp_path / "claim.py").write_text(CLAIMANT)
    claimant = subprocess.Popen(
        [sys.executable, str(tmp_path / "claim.py"), str(path), *(key.hex() for key in keys)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    try:
        assert claimant.stdout.readline() == b"claimed\n"
        assert store.store.claim("other", keys) == []
        answers = []
        waiter = threading.Thread(target=lambda: answers.append(store.next_token(prompts, 5)))
        waiter.start()
        time.sleep(0.6)
        assert not answers  # it waits as long as the claimant lives
    finally:
        claimant.kill()
        claimant.wait()
        claimant.stdout.close()
    waiter.join(10)
    assert answers[0].usage.passes_made == 3


WORKER = """
import sys, time
from backends.deterministic import DeterministicBackend
from blackbox.protocol import RenderedPrompt, request_digest
from blackbox.store import claims
from blackbox.store.file import StoreFile
from blackbox.store.stored_backend import StoredBackend

claims.LEASE_SECONDS = 1.5


class Logging(DeterministicBackend):
    def next_token(self, prompts, top_k):
        for prompt in prompts:
            time.sleep(0.002)
            with open(sys.argv[2], "a") as file:
                file.write("n " + request_digest(self.identity, prompt, "top k") + "\\n")
        return super().next_token(prompts, top_k)


if len(sys.argv) > 3:
    time.time = lambda: float(sys.argv[3])
prompts = [RenderedPrompt(text=f"text {row} is") for row in range(600)]
StoredBackend(Logging(), StoreFile(sys.argv[1])).next_token(prompts, 20)
"""


class Workers(Runs):
    """Processes that ask for the same 600 passes."""

    def start(self, *clock, prefix=()) -> subprocess.Popen:
        (self.folder / "work.py").write_text(WORKER)
        command = [sys.executable, self.folder / "work.py", self.store, self.log, *clock]
        return subprocess.Popen(
            [*prefix, *map(str, command)], env={**os.environ, "PYTHONPATH": str(ROOT)}
        )

    def wait_for(self, n_passes: int) -> None:
        while self.n_passes < n_passes:
            time.sleep(0.005)


@pytest.mark.posix
@pytest.mark.skipif(os.name != "posix", reason="signals are of POSIX")
def test_of_a_stopped_process_that_goes_on_at_most_one_batch_is_made_twice(tmp_path):
    workers = Workers(tmp_path)
    first = workers.start()
    workers.wait_for(100)
    first.send_signal(signal.SIGSTOP)
    assert workers.start().wait(60) == 0
    first.send_signal(signal.SIGCONT)
    assert first.wait(60) == 0
    assert workers.distinct == 600
    assert workers.n_passes <= 600 + CALL


@pytest.mark.parametrize("clocks", [("1000",), ("4000000000",)])
def test_clocks_that_differ_make_no_pass_twice(tmp_path, clocks):
    workers = Workers(tmp_path)
    first = workers.start()
    workers.wait_for(100)
    second = workers.start(*clocks)
    assert (first.wait(60), second.wait(60)) == (0, 0)
    assert workers.n_passes == workers.distinct == 600


def test_process_namespaces_with_one_host_name_make_no_pass_twice(tmp_path):
    prefix = ("unshare", "--pid", "--fork", "--mount-proc")
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no permission to make a namespace")
    workers = Workers(tmp_path)
    first = workers.start(prefix=prefix)
    workers.wait_for(100)
    second = workers.start(prefix=prefix)
    assert (first.wait(60), second.wait(60)) == (0, 0)
    assert workers.n_passes == workers.distinct == 600


OPENER = """
import sys
from blackbox.store.file import StoreFile
print("ready", flush=True)
sys.stdin.readline()
file = StoreFile(sys.argv[1])
for number in range(20):
    key = f"{sys.argv[2]} {number}".encode()
    file.put("x", "{}", {key: b"value"}, {number: b"name"}, max)
"""


@pytest.mark.parametrize("is_damaged", [False, True], ids=["new", "damaged"])
def test_processes_that_open_a_file_at_once_all_use_it(tmp_path, is_damaged):
    path = tmp_path / "passes.sqlite"
    if is_damaged:
        store = StoreFile(path)
        store.put("x", "{}", {b"of before": b"value"}, {}, max)
        store.close()
        path.write_bytes(path.read_bytes()[:4096] + b"no database " * 1000)
    (tmp_path / "open.py").write_text(OPENER)
    openers = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "open.py"), str(path), str(number)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(4)
    ]
    for opener in openers:
        assert opener.stdout.readline() == b"ready\n"
    for opener in openers:
        opener.stdin.write(b"go\n")
        opener.stdin.flush()
    for opener in openers:
        opener.communicate()
    assert [opener.returncode for opener in openers] == [0] * 4
    assert StoreFile(path).verify() == (80, 0)
    assert len(list(tmp_path.glob("*.damaged-*"))) == is_damaged
