"""Each example runs in its own processes, with real requests and real kills."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import inspect

from execution_core import ExecutionManager, SqlExecutionStore
from execution_core.sql.driver.engine import create_sync_engine

from ..conftest import Database
from ..support.postgres import free_port

T = TypeVar("T")

EXAMPLES = Path(__file__).parents[2] / "examples"
BIN = Path(sys.executable).parent
PATIENCE = 60
# A framework behaves the same on both databases: each of these examples runs on one.
ON_SQLITE, ON_POSTGRESQL = (
    pytest.mark.parametrize("host", [kind], indirect=True) for kind in ("sqlite", "postgresql")
)

numbers = iter(range(10**9))


@dataclass
class Host:
    """A database that is not migrated yet, and the processes that use it."""

    database: Database
    folder: Path
    processes: ExitStack
    logs: list[Path] = field(default_factory=list)

    def environment(self, **more: str) -> dict[str, str]:
        ours = {"EXECUTION_CORE_URL": self.database.url, "STALLED_AFTER": "1"}
        path = os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        return os.environ | ours | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"} | more

    def start(self, *command: object, **environment: str) -> "subprocess.Popen[bytes]":
        """Start a process; it is killed at the end of the test, with its children."""
        self.logs.append(self.folder / f"{len(self.logs)}.log")
        with self.logs[-1].open("wb") as log:
            process = subprocess.Popen(
                [BIN / str(command[0]), *map(str, command[1:])],
                cwd=self.folder, env=self.environment(**environment), start_new_session=True,
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.processes.callback(kill, process)
        return process

    def run(self, *command: object, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run a process and wait until it exits."""
        return subprocess.run(
            [BIN / str(command[0]), *map(str, command[1:])],
            cwd=self.folder, env=self.environment(**environment), timeout=PATIENCE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip

    def until(self, condition: Callable[[], T | None]) -> T:
        """Wait until a condition returns a true value, and return that."""
        limit = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert time.monotonic() < limit, "\n".join(log.read_text() for log in self.logs)
            time.sleep(0.02)
        return found

    def wait_for_progress(self, items: int = 3) -> dict[str, Any]:
        """Wait until an execution runs with some of its items done, but not half of them."""
        query = (
            "SELECT * FROM executions WHERE status = 'running'"
            f" AND progress_current BETWEEN {items} AND progress_total / 2"
        )
        return self.until(lambda: self.database.rows(query))[0]

    def outcomes(self, id: object) -> list[tuple[str, str | None]]:
        """Return the outcome and the error code of each attempt."""
        rows = self.database.rows(
            "SELECT outcome, error ->> 'code' AS code FROM execution_attempts"
            " WHERE execution_id = :id ORDER BY attempt",
            id=id,
        )
        return [(row["outcome"], row["code"]) for row in rows]

    def status(self, id: object) -> str:
        (row,) = self.database.rows("SELECT status FROM executions WHERE id = :id", id=id)
        return str(row["status"])


def kill(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):  # its children may outlive it
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/host.db"
    else:
        url = request.getfixturevalue("empty_postgres")(f"host_{next(numbers)}")
    # Reads must not wait for the single writer of SQLite.
    engine = create_sync_engine(url).execution_options(sqlite_begin="DEFERRED")
    with ExitStack() as processes:
        yield Host(Database(request.param, url, engine), tmp_path, processes)
    engine.dispose()


def call(method: str, url: str, body: object = None, **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(
        url,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"} | headers,
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            shown, text = error.headers.get_content_type(), error.read()
            return error.code, json.loads(text) if shown == "application/json" else text


def is_up(url: str) -> bool:
    try:
        call("GET", url)
    except OSError:
        return False
    return True


@pytest.mark.parametrize(("service", "tests"), [("fastapi_service", 4), ("flask_service", 8)])
def test_example_own_tests_pass(pytester: pytest.Pytester, service: str, tests: int) -> None:
    for name in ("conftest.py", f"{service}.py", f"test_{service}.py"):
        shutil.copy(EXAMPLES / name, pytester.path)
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=tests)


# --- FastAPI ----------------------------------------------------------------------------------


@pytest.mark.exhaustive
@ON_POSTGRESQL
def test_example_fastapi_killed_process_other_ships_the_rest(host: Host) -> None:
    """Two processes: the one that ships is killed, and the other ships the rest."""
    servers, ports = {}, [free_port(), free_port()]
    for port in ports:
        process = host.start("uvicorn", "fastapi_service:app", "--port", port)
        servers[process.pid] = process
    bases = [f"http://127.0.0.1:{port}" for port in ports]
    for base in bases:
        host.until(lambda: is_up(f"{base}/openapi.json"))  # noqa: B023

    def place(n: int, item: str = "lamp", key: str = "k") -> tuple[int, Any]:
        body = {"item": item, "parcels": 20}
        return call("POST", f"{bases[n % 2]}/orders", body, **{"Idempotency-Key": key})

    with ThreadPoolExecutor(8) as threads:
        placed = [*threads.map(place, range(8))]
    assert {(code, order["id"], order["item"]) for code, order in placed} == {(202, 1, "lamp")}
    ((order,), (shipping,)) = (
        host.database.rows(f"SELECT * FROM {table}") for table in ("orders", "executions")
    )
    assert str(order["execution_id"]) == str(shipping["id"])

    code, refused = place(0, "chair")
    assert (code, refused["code"]) == (409, "IDEMPOTENCY_CONFLICT")
    assert call("POST", f"{bases[0]}/orders", {"item": "lamp", "parcels": 1})[0] == 422
    assert call("GET", f"{bases[0]}/orders/7")[0] == 404
    host.database.run("ALTER TABLE orders ADD CHECK (item <> 'forbidden')")
    assert place(0, "forbidden", "other")[0] == 500
    assert len(host.database.rows("SELECT * FROM executions")) == 1

    running = host.wait_for_progress()
    killed = servers.pop(int(running["worker"].rpartition(":")[2]))
    killed.kill()
    killed.wait()
    ((survivor, server),) = servers.items()
    n = 0 if is_up(f"{bases[0]}/openapi.json") else 1
    base = bases[n]
    state = call("GET", f"{base}/orders/1")[1]
    assert state["progress"]["total"] == 20
    host.until(lambda: host.status(shipping["id"]) == "completed")
    assert call("GET", f"{base}/orders/1")[1]["progress"]["percent"] == 100
    shipped = host.database.rows("SELECT number FROM parcels ORDER BY number")
    assert [parcel["number"] for parcel in shipped] == [*range(1, 21)]
    assert host.outcomes(shipping["id"])[0] == ("timed_out", "stalled")
    (done,) = host.database.rows("SELECT worker FROM executions")
    assert done["worker"].endswith(f":{survivor}")

    replay = ExecutionManager(SqlExecutionStore(host.database.engine)).replay(shipping["id"])
    host.until(lambda: host.status(replay.id) == "completed")
    (order,) = host.database.rows("SELECT execution_id FROM orders")
    assert str(order["execution_id"]) == replay.id
    assert len(host.database.rows("SELECT number FROM parcels")) == 20

    assert place(n, key="stopped")[0] == 202
    running = host.wait_for_progress()
    server.terminate()
    server.wait(PATIENCE)
    assert host.outcomes(running["id"]) == [("completed", None)]


# --- Flask ------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@ON_SQLITE
def test_example_flask_killed_worker_other_resumes_stopped_worker_completes(host: Host) -> None:
    """Two workers: the working one is killed, and the other makes the rest and gets SIGTERM."""
    port = free_port()
    host.start("flask", "--app", "flask_service", "run", "--port", port)
    workers = {}
    for _ in range(2):
        process = host.start("flask", "--app", "flask_service", "work")
        workers[process.pid] = process
    reports = f"http://127.0.0.1:{port}/reports"
    host.until(lambda: is_up(f"{reports}/2026-02"))
    assert call("PUT", f"{reports}/2026-02", {"title": "February"})[0] == 202

    running = host.wait_for_progress()
    killed = workers.pop(int(running["worker"].rpartition(":")[2]))
    killed.kill()
    killed.wait()
    host.until(lambda: call("GET", f"{reports}/2026-02")[1]["status"] == "completed")
    assert host.outcomes(running["id"]) == [("timed_out", "stalled"), ("completed", None)]
    lines = host.database.rows("SELECT attempt, count(*) AS n FROM report_lines GROUP BY attempt")
    assert {line["attempt"] for line in lines} == {1, 2}
    assert sum(line["n"] for line in lines) == 28

    assert call("PUT", f"{reports}/2026-03", {"title": "March"})[0] == 202
    running = host.wait_for_progress()
    assert call("DELETE", f"{reports}/2026-03")[1]["status"] == "cancelled"
    assert call("DELETE", f"{reports}/2026-03")[0] == 409
    host.until(lambda: "no longer owns" in "".join(log.read_text() for log in host.logs))
    assert host.status(running["id"]) == "cancelled"
    (march,) = host.database.rows("SELECT count(*) AS n FROM report_lines WHERE day > '2026-02-28'")
    assert march["n"] < 31

    assert call("PUT", f"{reports}/2026-04", {"title": "April"})[0] == 202
    running = host.wait_for_progress()
    (stopped,) = workers.values()
    stopped.terminate()
    assert stopped.wait(PATIENCE) == 0
    assert host.outcomes(running["id"]) == [("completed", None)]


# --- a plain script ---------------------------------------------------------------------------


@pytest.mark.exhaustive
@ON_SQLITE
def test_example_script_killed_next_run_imports_the_rest(host: Host) -> None:
    prices, total = host.folder / "prices.csv", 800
    prices.write_text("".join(f"article-{n},{n}.50\n" for n in range(total)))
    killed = host.start("python", EXAMPLES / "plain_script.py", prices)
    host.until(lambda: inspect(host.database.engine).has_table("executions"))
    running = host.wait_for_progress(items=40)
    killed.kill()
    killed.wait()
    (stored,) = host.database.rows("SELECT checkpoints ->> 'last_index' AS last FROM executions")

    ran = host.until(lambda: run_as_cron(host, prices))
    imported = total - int(stored["last"]) - 1
    assert ran.stdout == f"{{'lines': {total}, 'in_the_last_attempt': {imported}}}\n"
    assert host.outcomes(running["id"]) == [("timed_out", "stalled"), ("completed", None)]
    rows = host.database.rows("SELECT price FROM prices WHERE article = 'article-7'")
    assert [row["price"] for row in rows] == ["7.50"]
    assert len(host.database.rows("SELECT * FROM prices")) == total

    again = host.run("python", EXAMPLES / "plain_script.py", prices)
    assert (again.returncode, again.stdout) == (0, ran.stdout)
    prices.write_text("article-7,1.00\n")
    changed = host.run("python", EXAMPLES / "plain_script.py", prices)
    assert changed.returncode == 1
    assert "belongs to execution" in changed.stdout
    assert "Traceback" not in changed.stdout
    assert len(host.database.rows("SELECT * FROM execution_attempts")) == 2


def run_as_cron(host: Host, prices: Path) -> "subprocess.CompletedProcess[str] | None":
    ran = host.run("python", EXAMPLES / "plain_script.py", prices)
    assert ran.returncode in (0, 75), ran.stdout
    if ran.returncode == 75:
        assert re.match(
            r"Execution \S+ is already running: attempt 1, worker '\S+:\d+'", ran.stdout
        )
        return None
    return ran


# --- Celery -----------------------------------------------------------------------------------

SEND = """
import sys
from celery_tasks import bill
for id in sys.argv[1:]:
    bill.apply_async(("2026-02", [f"customer-{n}" for n in range(20)]), task_id=id)
"""


@pytest.mark.exhaustive
@ON_POSTGRESQL
def test_example_celery_duplicate_delivery_and_killed_worker_work_once(host: Host) -> None:
    """A task is delivered twice, and a worker process is killed during a task."""
    worker = "celery --app celery_tasks worker --beat --concurrency 2 --loglevel INFO"
    options = "--without-mingle --without-gossip -- worker.lost_wait=0.5"  # 10 seconds by default
    host.start(*worker.split(), *options.split())
    sent = host.run("python", "-c", SEND, "once", "twice", "twice")
    assert sent.returncode == 0, sent.stdout
    host.until(lambda: inspect(host.database.engine).has_table("executions"))
    running = host.wait_for_progress()
    os.kill(int(running["worker"].rpartition(":")[2]), signal.SIGKILL)

    done = re.compile(r"Task celery_tasks\.bill\[(\w+)\] succeeded")
    expected = Counter(["once", "twice", "twice"])
    host.until(lambda: Counter(done.findall(host.logs[0].read_text())) >= expected)
    assert "signal 9 (SIGKILL)" in host.logs[0].read_text()

    keys = host.database.rows("SELECT idempotency_key FROM executions ORDER BY 1")
    assert [row["idempotency_key"] for row in keys] == ["once", "twice"]
    outcomes = host.outcomes(running["id"])
    assert (outcomes[0], outcomes[-1]) == (("timed_out", "stalled"), ("completed", None))
    invoices = host.database.rows("SELECT customer, count(*) AS n FROM invoices GROUP BY customer")
    assert {row["customer"]: row["n"] for row in invoices} == {
        f"customer-{n}": 2 for n in range(20)
    }


# --- APScheduler ------------------------------------------------------------------------------


@pytest.mark.exhaustive
@ON_POSTGRESQL
def test_example_apscheduler_killed_other_scheduler_completes_the_report(host: Host) -> None:
    """Two schedulers start each report, one makes it; if that one dies, the other completes it."""
    schedulers = {}
    for _ in range(2):
        process = host.start("python", EXAMPLES / "apscheduler_jobs.py", SECOND="*/2")
        schedulers[process.pid] = process

    def started_by_both() -> set[str]:
        times = (set(re.findall(r"scheduled at ([^)]+)\)", log.read_text())) for log in host.logs)
        return set.intersection(*times)

    host.until(started_by_both)
    running = host.wait_for_progress()
    schedulers.pop(int(running["worker"].rpartition(":")[2])).kill()
    host.until(lambda: host.status(running["id"]) == "completed")
    ((_, survivor),) = schedulers.items()
    survivor.terminate()
    assert survivor.wait(PATIENCE) == 0

    rows = host.database.rows("SELECT * FROM executions WHERE status <> 'pending'")
    assert {row["status"] for row in rows} == {"completed"}
    parts = Counter(
        (row["scheduled"], row["part"]) for row in host.database.rows("SELECT * FROM report_parts")
    )
    for row in rows:
        *earlier, last = host.outcomes(row["id"])
        assert last == ("completed", None)
        assert set(earlier) <= {("timed_out", "stalled")}
        assert earlier or row["id"] != running["id"]
        times = [parts[row["idempotency_key"].removeprefix("report-"), n] for n in range(10)]
        assert min(times) == 1
        assert sum(times) <= 10 + len(earlier)
    both = {time.replace(" UTC", "+00:00").replace(" ", "T") for time in started_by_both()}
    assert both & {row["idempotency_key"].removeprefix("report-") for row in rows}
