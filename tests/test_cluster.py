"""Parts of a job on a cluster that need none: ids, blocks, the budget over actors, folders."""

from __future__ import annotations

import csv
import json
import pickle
import re
import threading
import traceback
from contextlib import ExitStack, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from object_server import bucket

import blackbox
from backends.deterministic import DeterministicBackend
from blackbox.cli import main
from blackbox.cli.cluster import ClusterOptions
from blackbox.cli.lm_options import LmOptions
from blackbox.cluster import actor as actors
from blackbox.cluster.actor import store_here
from blackbox.cluster.collector import Collector
from blackbox.cluster.estimate import START_SECONDS, plan_prediction, rows_from_which_it_pays
from blackbox.cluster.folder import JobFolder
from blackbox.cluster.ledger import Ledger, Progress, SharedMeter
from blackbox.cluster.predictor import Predictor
from blackbox.cluster.rates import Rates, every_minute
from blackbox.cluster.source import ROW_ID, SourceTable, left_over
from blackbox.errors import BudgetError, DataError, MissingDependencyError, RowError
from blackbox.lm.budgets import MeteredBackend
from blackbox.lm.meter import Budget, Load
from blackbox.model.columns import PredictionColumns
from blackbox.model.file import read_model
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import RenderedPrompt, Usage
from blackbox.tables import texts_of_rows
from blackbox.tables.addresses import file_system
from blackbox.tables.messages import public
from blackbox.tables.sources import open_source

TRAIN = Path(blackbox.__file__).parent / "samples" / "train.csv"
LM = LmOptions("deterministic")


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def texts():
    with TRAIN.open(newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "prompts.txt").write_text("{text} It was {mask}\n{text} A {mask}\n")
    options = ["--backend", "deterministic", "--n-estimators", 8, "--prompts"]
    result = run("train", TRAIN, "--out", folder / "m", *options, folder / "prompts.txt")
    assert result.exit_code == 0, result.output
    return folder / "m"


@pytest.fixture
def model(model_path):
    return read_model(model_path)


@pytest.fixture
def table(tmp_path, texts):
    """A folder of three Parquet files with ids of their own, and the same rows in one file."""
    rows = pa.table({"id": list(range(90)), "text": [f"{texts[n]} {n}" for n in range(90)]})
    folder = tmp_path / "data"
    folder.mkdir()
    for part in range(3):
        pq.write_table(rows.slice(30 * part, 30), folder / f"part-{part}.parquet")
    pq.write_table(rows, tmp_path / "all.parquet")
    return folder


def read(source):
    """All rows of a source as one table, with its files in order."""
    blocks = []
    for path in source.files:
        with Path(path).open("rb") as file:
            blocks += source.read(file, path)
    return pa.concat_tables(blocks)


class TestSource:
    def test_ids_are_the_same_again_and_differ_between_rows_of_the_same_text(self, tmp_path):
        path = tmp_path / "t.jsonl"
        path.write_text('{"text": "again"}\n' * 500)
        ids = read(SourceTable(str(path), ("text",))).column(ROW_ID).to_pylist()
        assert len(set(ids)) == 500
        assert read(SourceTable(str(path), ("text",))).column(ROW_ID).to_pylist() == ids
        assert all(-(2**63) <= one < 2**63 for one in ids)

    def test_a_changed_text_has_another_id_and_a_moved_folder_the_same(self, table, tmp_path):
        ids = read(SourceTable(str(table), ("text",))).column(ROW_ID)
        moved = table.rename(tmp_path / "elsewhere")
        assert read(SourceTable(str(moved), ("text",))).column(ROW_ID) == ids
        rows = pq.read_table(moved / "part-1.parquet")
        changed = rows.set_column(1, "text", pa.array([*rows["text"].to_pylist()[:-1], "new"]))
        pq.write_table(changed, moved / "part-1.parquet")
        after = read(SourceTable(str(moved), ("text",))).column(ROW_ID).to_pylist()
        assert [n for n in range(90) if after[n] != ids[n].as_py()] == [59]

    def test_cells_of_csv_stay_text_and_types_of_parquet_stay_theirs(self, tmp_path):
        path = tmp_path / "t.csv"
        path.write_text("number,text\n007,a\nNA,b\n")
        rows = read(SourceTable(str(path), ("text",)))
        assert rows.column("number").to_pylist() == ["007", "NA"]
        small = pa.table({"n": pa.array([1, 2], pa.int8()), "text": ["a", "b"]})
        pq.write_table(small, tmp_path / "t.parquet")
        rows = read(SourceTable(str(tmp_path / "t.parquet"), ("text",)))
        assert rows.schema.field("n").type == pa.int8()

    def test_what_can_be_known_before_a_cluster_starts_is_one_line(self, tmp_path, table):
        with pytest.raises(DataError, match="no such file or folder"):
            _ = SourceTable(str(tmp_path / "none"), ("text",)).files
        with pytest.raises(DataError, match="no column 'body'"):
            _ = SourceTable(str(table), ("body",)).schema
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "_hidden.csv").write_text("text\na\n")
        with pytest.raises(DataError, match="without a table"):
            _ = SourceTable(str(tmp_path / "empty"), ("text",)).files
        with pytest.raises(DataError, match="can't be reached"):
            _ = SourceTable("nosuch://x", ("text",)).files

    def test_a_file_with_other_columns_is_refused_by_name(self, tmp_path):
        (tmp_path / "a.csv").write_text("text\na\n")
        (tmp_path / "b.csv").write_text("text,more\na,b\n")
        with pytest.raises(DataError, match=r"b\.csv, row 1: column 'more' is none of the first"):
            read(SourceTable(str(tmp_path), ("text",)))


class TestAddresses:
    """Tables on an object store, by an address with keys and options."""

    @pytest.fixture
    def address(self, tmp_path):
        folder = tmp_path / "bucket"
        (folder / "images" / "_pictures").mkdir(parents=True)
        (folder / "images" / "a.csv").write_text("image,text\n_pictures/a.png,x\n../b.png,y\n")
        with bucket(folder, path="images") as address:
            yield address

    def test_options_stay_the_end_of_an_address(self, address, tmp_path):
        folder = SourceTable(address, ("text",))
        place, options = address.split("?")
        assert list(folder.files) == ["bucket/images/a.csv"]
        assert folder.example == f"{place}/table?{options}"
        file = SourceTable(f"{place}/a.csv?{options}", ("text",))
        assert file.example == file.data
        assert [row.values["text"] for row in file.rows()] == ["x", "y"]
        assert folder.takes(f"{place}/out?{options}")
        assert not folder.takes(f"{place}-out?{options}")
        (tmp_path / "what?").mkdir()  # in a path it is a character like any other
        (tmp_path / "what?" / "a.csv").write_text("text\na\n")
        assert SourceTable(str(tmp_path / "what?"), ()).example == str(tmp_path / "what?" / "table")

    def test_images_lie_where_their_table_does(self, address, tmp_path):
        image = pytest.importorskip("PIL.Image", reason="needs the `images` extra")
        for name in ("images/_pictures/a.png", "b.png"):
            image.new("RGB", (8, 8), "red").save(tmp_path / "bucket" / name)
        source = SourceTable(address, ("image",))
        images, refused = texts_of_rows(
            list(source.rows()), ("image",), source.example, image_column="image"
        )
        assert [(one.width, one.height) for one in images] == [(8, 8), (8, 8)]
        assert not refused

    def test_no_key_is_in_a_message(self, address):
        source = SourceTable(address, ("image",))
        said = []
        for failing in (
            lambda: SourceTable(address.replace("images", "none"), ("text",)).files,
            lambda: texts_of_rows(
                list(source.rows()), ("image",), source.example, image_column="image", raises=True
            ),
            lambda: SourceTable("s3://key:sentinel@bucket/?nosuch=1", ("text",)).files,
        ):
            with pytest.raises(DataError) as caught:
                failing()
            said.append(str(caught.value))
        assert "s3://bucket/none?scheme=http" in said[0]
        assert "_pictures/a.png: can't be read" in said[1]
        assert "can't be reached" in said[2]
        assert not any("sentinel" in line for line in said)


class TestPredictor:
    def predicted(self, model, source, block=20, **settings):
        columns = PredictionColumns(model, source.text_columns, **settings)
        predict = Predictor(pickle.loads(pickle.dumps(columns)), LM, Path("m"), store=False)
        rows = read(source)
        return pa.concat_tables(predict(rows.slice(at, block)) for at in range(0, len(rows), block))

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"early_stop": "exact"},
            {"on_row_error": "abstain"},
            {"set_coverage": 0.8},
            {"max_error": 0.6},
        ],
        ids=lambda options: next(iter(options), "plain"),
    )
    def test_blocks_have_the_columns_of_predict(self, tmp_path, table, model, model_path, options):
        out = tmp_path / "out.parquet"
        names = {"early_stop": "--early-stop", "on_row_error": "--on-row-error"}
        names |= {"set_coverage": "--sets", "max_error": "--max-error"}
        given = [part for name, value in options.items() for part in (names[name], value)]
        more = ["--backend", "deterministic", "--out", out]
        result = run("predict", model_path, tmp_path / "all.parquet", *more, *given)
        assert result.exit_code == 0, result.output
        settings = dict(options)
        if "max_error" in settings:
            settings = {"promise": model.promise(settings["max_error"])}
        blocks = self.predicted(model, SourceTable(str(table), ("text",)), **settings)
        assert blocks.drop_columns([ROW_ID]).equals(pq.read_table(out))

    def test_the_documentation_s_function_for_spark_predicts_batches(
        self, tmp_path, texts, model, model_path, monkeypatch
    ):
        page = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
        [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        monkeypatch.chdir(tmp_path)
        Path("messages.blackbox").write_bytes(model_path.read_bytes())
        found = {}
        exec(code.replace("LmOptions()", "LmOptions('deterministic')"), found)
        batches = pa.table({"text": texts[:30]}).to_batches(max_chunksize=10)
        rows = pa.Table.from_batches(found["predict"](batches))
        assert rows.column_names == ["text", *found["columns"].types]
        assert set(rows["prediction"].to_pylist()) <= set(model.classes.tolist())

    def test_fill_leaves_labels_alone(self, tmp_path, texts, model, model_path):
        path, out = tmp_path / "t.csv", tmp_path / "out.parquet"
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            rows.writerows([[texts[n], "mine" if n % 3 else ""] for n in range(30)])
        options = ["--fill", "label", "--backend", "deterministic", "--out", out]
        assert run("predict", model_path, path, *options).exit_code == 0
        blocks = self.predicted(model, SourceTable(str(path), ("text",)), fill="label")
        assert blocks.drop_columns([ROW_ID]).equals(pq.read_table(out))
        assert blocks.column("label").to_pylist().count("mine") == 20

    def test_a_row_that_fails_has_a_reason_or_ends_the_job_by_its_id(self, tmp_path, model):
        path = tmp_path / "t.csv"
        path.write_text('text\n"good enough"\n""\n')
        source = SourceTable(str(path), ("text",))
        rows = self.predicted(model, source, on_row_error="abstain").to_pylist()
        assert [bool(row["prediction"]) for row in rows] == [True, False]
        assert rows[1]["reason"]
        ledger = Ledger(Budget(), 1)
        columns = PredictionColumns(model, ("text",), on_row_error="abstain")
        Predictor(columns, LM, Path("m"), store=False, ledger=ledger)(read(source))
        done = ledger.progress()
        assert (done.counts["rows"], done.counts["abstained"]) == (2, 1)
        assert done.failure == f"{ROW_ID} {rows[1][ROW_ID]}: {rows[1]['reason']}"
        assert done.usage.passes_made == 2
        refusing = PredictionColumns(model, ("text",), on_row_error="raise")
        actor = Predictor(refusing, LM, Path("m"), store=False, ledger=ledger)
        with pytest.raises((RowError, DataError)):
            actor(read(source))
        assert isinstance(ledger.progress().error, RowError | DataError)

    def test_a_block_that_the_budget_does_not_hold_is_left_for_later(
        self, table, model, monkeypatch
    ):
        ledger = Ledger(Budget(max_forward_passes=50), 1)
        columns = PredictionColumns(model, ("text",))
        actor = Predictor(
            columns, LM, Path("m"), store=False, ledger=ledger, budget=Budget(max_forward_passes=50)
        )
        rows = read(SourceTable(str(table), ("text",)))
        monkeypatch.setattr("blackbox.cluster.ledger._PATIENCE", 0.0)
        sizes = [actor(rows.slice(at, 20)).num_rows for at in range(0, 80, 20)]
        assert sizes == [20, 0, 0, 0]
        assert isinstance(ledger.progress().error, BudgetError)
        assert ledger.progress().usage.passes_made <= 50
        monkeypatch.setattr(actors, "_DRAIN", -1.0)
        with pytest.raises(BudgetError):
            actor(rows.slice(0, 20))


class TestLedger:
    def test_no_actor_takes_more_than_its_share_of_what_is_left(self):
        ledger = Ledger(Budget(max_forward_passes=100), 4)
        wanted = [Load(1)] * 60
        assert [ledger.reserve(wanted) for _ in range(4)] == [25, 18, 14, 10]

    def test_who_can_not_be_served_waits_while_others_may_give_back(self):
        ledger = Ledger(Budget(max_tokens=10), 2)
        assert ledger.reserve([Load(1, 8)]) == 1
        assert ledger.reserve([Load(1, 8)]) is None
        ledger.settle(Load(1, 8), Load(1, 2))
        assert ledger.reserve([Load(1, 8)]) == 1
        ledger.settle(Load(1, 8), Load(1, 8))
        assert "10 tokens is used up" in ledger.reserve([Load(1, 8)])

    def test_what_a_dead_actor_had_reserved_stays_taken(self, monkeypatch):
        monkeypatch.setattr("blackbox.cluster.ledger._PATIENCE", 0.0)
        ledger = Ledger(Budget(max_forward_passes=10), 1)
        assert ledger.reserve([Load(10)], True) == 1
        assert "used up" in ledger.reserve([Load(1)])

    def test_all_or_none_is_reserved_where_that_is_asked_for(self):
        ledger = Ledger(Budget(max_forward_passes=10), 4)
        assert ledger.reserve([Load(1)] * 10, True) == 10

    def test_a_budget_over_many_actors_is_never_exceeded_and_all_of_it_is_used(self, monkeypatch):
        monkeypatch.setattr("blackbox.cluster.ledger._PATIENCE", 0.2)
        budget = Budget(max_forward_passes=500)
        ledger, lock = Ledger(budget, 5), threading.Lock()

        class OneAtATime:  # an actor of Ray answers one call after the other
            def __getattr__(self, name):
                def call(*arguments):
                    with lock:
                        return getattr(ledger, name)(*arguments)

                return call

        def work(number):
            lm = MeteredBackend(DeterministicBackend(), SharedMeter(budget, OneAtATime()))
            prompts = [RenderedPrompt(f"{number} {n} It was") for n in range(40)]
            with suppress(BudgetError):
                for _ in range(10):
                    lm.next_token(prompts, 5)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ledger._meter._taken.passes <= 500
        assert ledger._meter._taken.passes > 490

    def test_the_seconds_of_a_late_actor_end_with_the_job(self):
        ledger = Ledger(Budget(max_seconds=0.0), 1)
        meter = SharedMeter(Budget(max_seconds=0.0), ledger)
        with pytest.raises(BudgetError, match="seconds"):
            meter.reserve([Load(1)])

    def test_usage_is_that_of_all_actors(self):
        ledger = Ledger(Budget(), 2)
        ledger.report("a", {"rows": 1}, Usage(passes_made=1))
        ledger.report("b", {"rows": 1}, Usage(passes_made=5))
        ledger.report("a", {"rows": 1}, Usage(passes_made=2))
        assert ledger.progress().usage.passes_made == 7
        assert ledger.progress().counts == {"rows": 3}


class TestRates:
    def progress(self, rows, cost=0.0):
        return Progress({"rows": rows}, Usage(passes_made=2 * rows, cost=cost))

    def test_a_line_has_the_share_the_rates_and_the_time_that_is_left(self):
        rates = Rates(lambda: 1_000, 100)
        assert rates.line(self.progress(60), 60) == (
            "160 of 1,000 rows (16%), 60 rows and 120 passes a minute, about 14 min left"
        )
        assert rates.line(self.progress(300, 0.5), 120) == (
            "400 of 1,000 rows (40%), 150 rows and 300 passes a minute, $0.25 a minute, "
            "about 4 min left"
        )
        # a block that is computed again after a death counts twice in the rates only
        assert rates.line(self.progress(950), 180).startswith("1,000 of 1,000 rows (100%), 317 ")

    def test_rates_are_those_of_the_last_ten_minutes(self):
        rates = Rates(lambda: 10_000, 0)
        for minute in range(1, 21):
            line = rates.line(self.progress(10 * minute if minute < 10 else 100), 60 * minute)
        assert ", 0 rows and 0 passes a minute" in line
        assert "left" not in line

    def test_a_table_that_can_not_be_counted_has_no_share(self):
        def count():
            raise DataError("damaged")

        said = Rates(count, 5).line(self.progress(10), 60)
        assert said == "15 rows done, 10 rows and 20 passes a minute"

    def test_a_line_is_said_each_time_that_a_minute_is_over(self, monkeypatch):
        monkeypatch.setattr("blackbox.cluster.rates._MINUTE", 0.01)
        said = threading.Semaphore(0)
        with every_minute(said.release):
            assert all(said.acquire(timeout=20) for _ in range(3))


JOB = {"model": "a"}


class TestFolder:
    def test_the_same_job_goes_on_and_may_have_more_files(self, tmp_path):
        folder = JobFolder(str(tmp_path / "out"))
        folder.claim(JOB, {"x": "3"})
        folder.claim(JOB, {"x": "3", "y": "3"})
        folder.claim(JOB, {"x": "3", "y": "3", "z": "1"})
        assert (folder.n_done(), folder.done_ids().tolist()) == (0, [])

    def test_what_is_saved_is_done_and_left_out_of_what_is_read(self, tmp_path, table):
        folder = JobFolder(str(tmp_path / "out"))
        folder.claim(JOB, {})
        rows = read(SourceTable(str(table), ("text",)))
        assert left_over(rows, folder.done_ids()) is rows
        folder.save(rows.slice(10, 20))
        folder.save(rows.slice(50, 5))
        folder.save(rows.slice(50, 5))  # again, as after a death: the same file
        assert folder.n_done() == 25
        (tmp_path / "out" / "_partial-x").write_bytes(b"half")
        folder.claim(JOB, {})
        left = left_over(rows, folder.done_ids())
        assert left.column("id").to_pylist() == [*range(10), *range(30, 50), *range(55, 90)]
        assert not list((tmp_path / "out").glob("_partial*"))
        folder.save(rows.slice(12, 3))
        with pytest.raises(DataError, match="3 rows there twice"):
            folder.done_ids()

    def test_a_run_that_was_left_behind_can_not_write(self, tmp_path, table):
        rows = read(SourceTable(str(table), ("text",)))
        before, after = JobFolder(str(tmp_path / "out")), JobFolder(str(tmp_path / "out"))
        before.claim(JOB, {})
        after.claim(JOB, {})
        with pytest.raises(DataError, match="another command goes on"):
            before.save(rows)
        after.save(rows)
        assert after.n_done() == 90

    @pytest.mark.posix
    def test_a_full_disk_leaves_the_record_of_a_job(self, tmp_path):
        import resource

        folder = JobFolder(str(tmp_path / "out"))
        folder.claim(JOB, {})
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            for failing in (folder, JobFolder(str(tmp_path / "new"))):
                with pytest.raises(DataError, match="can't be written"):
                    failing.claim(JOB, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        for out in ("out", "new"):
            JobFolder(str(tmp_path / out)).claim(JOB, {})
            assert [path.name for path in (tmp_path / out).iterdir()] == ["_job.json"]

    def test_a_result_beside_a_damaged_record_is_one_line(self, tmp_path, table):
        folder = JobFolder(str(tmp_path / "out"))
        folder.claim(JOB, {})
        for content in ("", "{}", "[]"):
            (tmp_path / "out" / "_job.json").write_text(content)
            with pytest.raises(DataError, match=r"_job\.json: damaged"):
                folder.save(read(SourceTable(str(table), ("text",))))

    def test_another_job_a_changed_file_or_a_strange_folder_is_refused(self, tmp_path):
        folder = JobFolder(str(tmp_path / "out"))
        folder.claim(JOB, {"x": "3"})
        with pytest.raises(DataError, match=r"another job \(model differ\)"):
            folder.claim({"model": "b"}, {"x": "3"})
        with pytest.raises(DataError, match="x: has changed since"):
            folder.claim(JOB, {"x": "4"})
        with pytest.raises(DataError, match="x: is gone since"):
            folder.claim(JOB, {"y": "3"})
        (tmp_path / "out" / "_job.json").write_text("{")
        with pytest.raises(DataError, match="damaged"):
            folder.claim(JOB, {"x": "3"})
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("")
        with pytest.raises(DataError, match="is no folder of a job"):
            JobFolder(str(tmp_path / "mine")).claim(JOB, {})


class TestStores:
    def test_the_machine_of_the_command_has_its_store_and_each_other_one_of_its_own(
        self, monkeypatch, tmp_path
    ):
        monkeypatch.setattr("socket.gethostname", lambda: "node7")
        store = tmp_path / "s.sqlite"
        assert store_here(store, "node7") == store
        assert store_here(store, None) == store
        assert store_here(store, "head") == tmp_path / "s-node7.sqlite"
        assert store_here(False, "head") is False
        assert store_here(None, "node7") is None
        monkeypatch.setenv("PROMPTBOOSTING_STORE", "off")
        assert store_here(None, "head") is False
        monkeypatch.setenv("PROMPTBOOSTING_STORE", str(tmp_path / "env.sqlite"))
        assert store_here(None, "head") == tmp_path / "env-node7.sqlite"

    def test_actors_share_a_rate_limit(self):
        given = ("requests_per_minute=600", "tokens_per_minute=9000", "timeout=5")
        lm = LmOptions("openai", "m", given)
        assert lm.shared_by(3)._options == {
            "requests_per_minute": 200,
            "tokens_per_minute": 3000,
            "timeout": 5,
        }
        assert lm._options["requests_per_minute"] == 600


class TestCommand:
    def test_errors_that_can_be_known_come_before_a_cluster(
        self, tmp_path, table, model_path, monkeypatch
    ):
        lm = ["--backend", "deterministic"]

        def refused(*options, data=table, out=tmp_path / "out"):
            result = run("predict", model_path, data, *lm, "--out", out, *options)
            assert result.exit_code in (1, 2)
            assert not (tmp_path / "out").exists()
            return result.stderr.strip().splitlines()[-1]

        assert "add --ray" in refused("--actors", 2)
        assert "no number such as 8" in refused("--ray", "--actors", "5-2")
        assert "no NAME=AMOUNT" in refused("--ray", "--actor-resource", "tpu")
        assert "- is none" in refused("--ray", out="-")
        monkeypatch.setattr("blackbox.cluster.connection.find_spec", lambda name: None)
        assert "pip install 'promptboosting[ray]'" in refused("--ray")
        monkeypatch.setattr("blackbox.cluster.connection.find_spec", lambda name: name)
        assert "is no address of a Ray cluster" in refused("--ray", "somewhere")
        assert "no Ray cluster at 127.0.0.1:1:" in refused("--ray", "127.0.0.1:1")
        assert "no column 'body'" in refused("--ray", "--text-column", "body")
        assert "no such file" in refused("--ray", data=tmp_path / "none.csv")
        pq.write_table(pa.table({"text": ["a"], ROW_ID: [1]}), tmp_path / "taken.parquet")
        assert "'row_id' exists" in refused("--ray", data=tmp_path / "taken.parquet")
        for inside in (table, table / "out", table / ".." / "data" / "a" / "out"):
            result = run("predict", model_path, table, *lm, "--ray", "--out", inside)
            assert "inside DATA" in result.stderr
        assert len(list(table.iterdir())) == 3
        assert not SourceTable(str(table), ("text",)).takes(str(table / "_out"))
        assert not SourceTable(str(table), ("text",)).takes(f"{table}-out")

    def test_ray_is_missing_in_one_line(self, monkeypatch):
        from blackbox.cluster.connection import check_address

        monkeypatch.setattr("blackbox.cluster.connection.find_spec", lambda name: None)
        with pytest.raises(MissingDependencyError):
            check_address("auto")

    def test_a_job_file_is_json_for_people(self, tmp_path):
        JobFolder(str(tmp_path / "out")).claim({"model": "a"}, {"x": "3"})
        known = json.loads((tmp_path / "out" / "_job.json").read_text())
        assert known.pop("run")
        assert known == {"job": {"model": "a"}, "files": {"x": "3"}}

    @pytest.mark.parametrize("command", ["predict", "collect"])
    def test_a_job_goes_on_with_its_own_input_and_options_only(
        self, tmp_path, model_path, monkeypatch, command
    ):
        def again(*options, data="data"):
            lm = ["--backend", "deterministic", "--ray", "--out", tmp_path / "out"]
            result = run(command, model_path, tmp_path / data, *lm, *options)
            return result.stderr.strip().splitlines()[-1]

        def claimed(_):
            raise DataError("claimed")

        # what is claimed is known before any cluster is reached
        monkeypatch.setattr("blackbox.cluster.connection.find_spec", lambda name: True)
        monkeypatch.setattr(ClusterOptions, "connected", claimed)
        table = tmp_path / "data" / "a.csv"
        table.parent.mkdir()
        table.write_text("text\ngood\n")
        assert "claimed" in again()
        assert "claimed" in again("--backend-option", "timeout=5")  # the LM's identity is checked
        for options, named in (
            (["--encoding", "latin-1"], "--encoding"),
            (["--format", "csv"], "--format"),
            (["--delimiter", ";", "--text-column", "text"], "--delimiter"),
            (["--allow-other-lm", "--backend-option", "x=1"], "--allow-other-lm, --backend-option"),
            *([(["--on-row-error", "raise"], "--on-row-error")] if command == "predict" else []),
        ):
            assert f"another job ({named} differ)" in again(*options)
        (tmp_path / "data").rename(tmp_path / "moved")
        assert "claimed" in again(data="moved")
        file = tmp_path / "moved" / "a.csv"
        file.rename(tmp_path / "moved" / "b.csv")
        assert "a.csv: is gone since" in again(data="moved")
        file.write_text("text\nevil\n")  # of the same size
        assert "a.csv: has changed since" in again(data="moved")

    def test_options_of_an_lm_that_nobody_checks_are_of_the_job(self):
        def described(*options):
            return LmOptions("openai", "m", options).described()

        job = described("base_url=http://a", 'default_headers={"Authorization": "sentinel"}')
        assert "sentinel" not in str(job)
        assert job == described(
            "base_url=http://a",
            'default_headers={"Authorization": "sentinel"}',
            "requests_per_minute=9",
        )
        assert job != described(
            "base_url=http://b", 'default_headers={"Authorization": "sentinel"}'
        )


class TestCollector:
    def test_a_training_asks_nothing_that_was_collected(self, tmp_path):
        (tmp_path / "prompts.txt").write_text("{text} It was {mask}\n{text} A {mask}\n")
        store, out = tmp_path / "s.sqlite", JobFolder(str(tmp_path / "out"))
        out.claim(JOB, {})
        rows = read(SourceTable(str(TRAIN), ("text",)))
        pool = PromptPool.read(tmp_path / "prompts.txt")
        collect = Collector(pool, 200, ("text",), DeterministicBackend, store=False)
        for at in range(0, len(rows), 50):
            out.save(collect(rows.slice(at, 50)))
        assert out.n_done() == len(rows) == 160
        imported = run("store", "import", tmp_path / "out", "--store", store)
        assert "320 answers imported" in imported.stderr
        options = ["--backend", "deterministic", "--n-estimators", 8, "--store", store, "--json"]
        more = ["--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "m"]
        told = json.loads(run("train", TRAIN, *options, *more).stdout)
        assert told["usage"]["passes_made"] == 0
        assert told["usage"]["passes_from_store"] == 320

    def test_a_text_without_an_answer_is_done_and_told(self, tmp_path):
        path = tmp_path / "t.csv"
        path.write_text('text\n"good"\n""\n')
        rows, ledger = read(SourceTable(str(path), ("text",))), Ledger(Budget(), 1)
        pool = PromptPool(["{text} It was {mask}"])
        collect = Collector(pool, 5, ("text",), DeterministicBackend, store=False, ledger=ledger)
        found = collect(rows)
        assert found.column(ROW_ID).drop_null() == rows.column(ROW_ID)
        assert found.column("identity").drop_null().length() == 1
        assert ledger.progress().counts == {"rows": 2, "abstained": 1}
        assert ledger.progress().failure.startswith(f"{ROW_ID} {rows[ROW_ID][1]}: ")

    def test_a_block_that_the_budget_does_not_hold_is_left_for_later(self, table, monkeypatch):
        monkeypatch.setattr("blackbox.cluster.ledger._PATIENCE", 0.0)
        budget = Budget(max_forward_passes=30)
        ledger = Ledger(budget, 1)
        pool = PromptPool(["{text} It was {mask}"])
        settings = {"store": False, "ledger": ledger, "budget": budget}
        collect = Collector(pool, 5, ("text",), DeterministicBackend, **settings)
        rows = read(SourceTable(str(table), ("text",)))
        sizes = [collect(rows.slice(at, 20)).num_rows for at in range(0, 60, 20)]
        assert sizes == [40, 0, 0]  # answers, and ids
        assert isinstance(ledger.progress().error, BudgetError)

    def test_the_command_refuses_what_can_be_known_before(self, tmp_path, table, model_path):
        (tmp_path / "pairs.txt").write_text("{text} {text_pair} {mask}\n")
        for prompts, words, options in (
            (model_path, "give --ray", []),
            (tmp_path / "pairs.txt", "give --text-pair-column", ["--ray"]),
            (tmp_path / "none.txt", "none.txt", ["--ray"]),
            (model_path, "no column 'body'", ["--ray", "--text-column", "body"]),
        ):
            more = ["--out", tmp_path / "out", "--backend", "deterministic", *options]
            result = run("collect", prompts, table, *more)
            assert result.exit_code in (1, 2)
            assert words in result.stderr
        assert not (tmp_path / "out").exists()
        empty = run("store", "import", table.parent / "data" / "..", "--store", tmp_path / "s")
        assert "not an exported store" in empty.stderr


class TestPlan:
    def test_a_plan_has_the_passes_of_the_prediction_and_its_tokens(
        self, tmp_path, table, model_path
    ):
        lm = ["--backend", "deterministic"]
        plan = json.loads(run("plan", table, "--predict", model_path, *lm, "--json").stdout)
        out = ["--out", tmp_path / "x.csv", "--json"]
        told = json.loads(run("predict", model_path, tmp_path / "all.parquet", *lm, *out).stdout)
        assert plan["rows"] == told["rows"] == 90
        assert plan["passes"] == told["usage"]["passes_made"] == 180
        assert plan["tokens"] == [told["usage"]["tokens"]] * 3
        assert plan["cost"] == [0.0, 0.0, 0.0]

    def test_from_how_many_rows_on_a_cluster_pays(self):
        assert rows_from_which_it_pays(1.0, 2) == 2 * START_SECONDS + 1
        assert rows_from_which_it_pays(0.01, 5) == pytest.approx(START_SECONDS / 0.008, abs=1)
        assert rows_from_which_it_pays(1.0, 1) is None
        assert rows_from_which_it_pays(0.0, 8) is None

    def test_actors_divide_the_time_and_not_a_rate_limit(self, model, texts):
        lm = DeterministicBackend()
        plans = [
            plan_prediction(model, lm, None, texts[:40], 10**6, actors=8, limit_is_shared=shared)
            for shared in (False, True)
        ]
        assert all(plan.passes == 2 * 10**6 for plan in plans)
        free, limited = plans
        at_work = free.seconds_cluster - START_SECONDS
        assert at_work == pytest.approx(free.seconds_one / 8)
        assert limited.seconds_cluster == pytest.approx(limited.seconds_one + START_SECONDS)
        assert (free.pays_from is None, limited.pays_from) == (False, None)

    def test_a_plan_for_people_says_when_a_cluster_pays(self, table, model_path):
        lm = ["--backend", "deterministic"]
        actors = ["--ray", "--actors", "2-8"]
        shown = run("plan", table, "--predict", model_path, *lm, *actors).stdout
        for words in ("rows            90", "forward passes  180", "8 actors", "pays  from about"):
            assert words in shown
        alone = run("plan", table, "--predict", model_path, *lm).stdout
        assert "one process" in alone
        assert "cluster" not in alone
        refused = run("plan", table, *actors)
        assert refused.exit_code == 2
        assert "--predict MODEL" in refused.stderr


@pytest.mark.parametrize(
    "address",
    [
        "s3://KEY:hush@bucket/texts?client_secret=hush",
        "s3://KEY:hush/hush@bucket/texts",
        "s3://KEY:hush?hush@bucket/texts",
        "s3://KEY:hush@hush@bucket/texts",
        "abfs://account:hush@container/texts?client_secret=hush",
        "unknown://KEY:hush@bucket/texts",
    ],
)
def test_no_message_shows_the_keys_of_an_address(address):
    assert not {"hush", "KEY"} & set(re.findall("hush|KEY", public(address)))
    for opened in (file_system, lambda address: open_source(address, ExitStack())):
        with pytest.raises(DataError) as caught:
            opened(address)
        said = "".join(traceback.format_exception(caught.value, chain=True)[-1:])
        assert "hush" not in said
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_path_is_shown_as_it_is():
    assert public("folder/who?@home.csv") == "folder/who?@home.csv"
