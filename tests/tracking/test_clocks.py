"""Hosts with wrong clocks, and a clock that is set back: times come from the database.

A host is a process in which everything that the library reads the time with is shifted: Python's
`datetime.now`, and the ids, which contain the time of their creator. The server's clock stays
right. SQLite's clock is the host's: it is set back.
"""

import json
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime, timedelta, tzinfo
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import create_engine, event

import execution_core
from execution_core import (
    Backoff,
    Execution,
    ExecutionManager,
    SqlExecutionStore,
    configure_sqlite,
    connect,
)
from execution_core.cli import main
from execution_core.core import validation

from ..conftest import Database
from ..support.history import assert_legal
from ..support.processes import spawn
from ..support.waiting import wait_until

MILLISECOND, SECOND = timedelta(milliseconds=1), timedelta(seconds=1)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SOON = 150 * MILLISECOND
TIMEOUT = 60

both_ways = pytest.mark.parametrize("by", [DAY, -DAY], ids=["ahead", "behind"])
"""How far the first host's clock is off; the second one's is off the other way."""
on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


# --- a host with a wrong clock ---


def shift(by: timedelta) -> None:
    """Shift all that the library in this process reads the time with."""

    class AnyTime(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, datetime)

    class Shifted(datetime, metaclass=AnyTime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + by

    for name, module in [*sys.modules.items()]:
        if name.startswith("execution_core.") and vars(module).get("datetime") is datetime:
            vars(module)["datetime"] = Shifted
    made = validation.new_id
    validation.new_id = lambda: shift_id(made(), by)


def shift_id(id: str, by: timedelta) -> str:
    """Return the id that a host with a shifted clock would have created."""
    return str(UUID(int=UUID(id).int + (by // MILLISECOND << 80)))


def time_of(id: str) -> datetime:
    """Return the time in an id: that of the host that created it."""
    return datetime.fromtimestamp((UUID(id).int >> 80) / 1000, UTC)


def test_clock_is_read_only_in_known_modules() -> None:
    """`shift` has to know them all. Monotonic clocks cannot be set, and are not listed."""
    package = Path(execution_core.__file__).parent
    reads = re.compile(r"datetime\.now\(|utcnow\(|today\(|time\.time\b|uuid7\(")
    strings = re.compile(r'"[^"\n]*"')  # messages may mention it
    readers = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if reads.search(strings.sub("", file.read_text()))
    }
    assert readers == {
        "tracking/batch_steps.py",
        "tracking/decorator.py",
        "core/validation.py",
        "cli/run/request.py",
        "cli/run/runner.py",
        "cli/run/shared_database.py",
        "testing/clock.py",
    }


def on_host(by: timedelta, work: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function on a host with a shifted clock, and return its answer."""
    answers = spawn.Queue()
    process = spawn.Process(target=run_shifted, args=(answers, by, work, *arguments))
    process.start()
    try:
        answer = answers.get(timeout=TIMEOUT)
    finally:
        process.join(TIMEOUT)
        process.kill()
    if isinstance(answer, Exception):
        raise answer
    return answer


def run_shifted(answers: Any, by: timedelta, work: Callable[..., Any], *arguments: Any) -> None:
    shift(by)
    try:
        answers.put(work(*arguments))
    except Exception as error:
        answers.put(RuntimeError(repr(error)))


@contextmanager
def busy_host(by: timedelta, work: Callable[..., Any], url: str, stop: Any) -> Iterator[None]:
    """Run a host with a shifted clock until `stop` is set."""
    answers = spawn.Queue()
    process = spawn.Process(target=run_shifted, args=(answers, by, work, url, stop))
    process.start()
    try:
        yield
        stop.set()
        answer = answers.get(timeout=TIMEOUT)
        assert answer is None, answer
    finally:
        stop.set()
        process.join(TIMEOUT)
        process.kill()


def clock(database: Database) -> datetime:
    """Return the time of the database."""
    now = database.rows("SELECT clock_timestamp() AS now")[0]["now"]
    assert isinstance(now, datetime)
    return now


# --- PostgreSQL: deadlines, sweeps and claims -----------------------------------------------------


def work(url: str, stop: Any) -> None:
    """Run executions that are late, executions that stop their heartbeats, and healthy ones."""
    with connect(url) as manager:
        for n in range(10):
            for type, timeout in (("late", SOON), ("silent", None), ("healthy", HOUR)):
                manager.create(type, n, timeout=timeout)
        running = {type: manager.claim(type, limit=10) for type in ("late", "silent", "healthy")}
        while not stop.is_set():
            for each in running["healthy"]:
                manager.heartbeat(each.id, attempt=1)
                manager.log(each.id, "healthy", attempt=1)


def sweep(url: str, stop: Any) -> None:
    with connect(url) as manager:
        while not stop.is_set():
            manager.sweep(stalled_after=HOUR)
            manager.sweep(stalled_after=2 * SOON, type="silent")


@pytest.mark.slow
@on_postgresql
@both_ways
def test_sweep_with_skewed_clocks_takes_only_due(database: Database, by: timedelta) -> None:
    """Two days lie between the worker and the sweeper."""
    stop, begin = spawn.Event(), clock(database)
    swept = "SELECT count(*) AS n FROM executions WHERE status = 'timed_out'"
    with busy_host(by, work, database.url, stop), busy_host(-by, sweep, database.url, stop):
        wait_until(lambda: database.rows(swept)[0]["n"] == 20)
        healthy = "SELECT 1 FROM executions WHERE type = 'healthy' AND heartbeat_at > started_at"
        wait_until(lambda: len(database.rows(healthy)) == 10)
    end = clock(database)
    rows = database.rows("SELECT * FROM executions")
    assert len(rows) == 30
    for row in rows:
        # The id contains the worker's clock, which is shifted.
        assert abs(time_of(str(row["id"])) - row["created_at"] - by) < HOUR
        if row["type"] == "healthy":
            assert row["status"] == "running"
        elif row["type"] == "late":
            assert row["deadline_at"] == row["started_at"] + SOON
            assert row["completed_at"] > row["deadline_at"]
            assert row["error"]["code"] == "timeout"
        else:
            assert row["completed_at"] > row["heartbeat_at"] + 2 * SOON
            assert row["error"]["code"] == "stalled"
    assert_times_between(database, begin, end)
    assert_legal(database)


def assert_times_between(database: Database, begin: datetime, end: datetime) -> None:
    """Every stored time lies between two times of the database."""
    for table, columns in (
        ("executions", "created_at, updated_at, started_at, completed_at, heartbeat_at"),
        ("execution_history", "occurred_at"),
        ("execution_logs", "logged_at"),
    ):
        for row in database.rows(f"SELECT {columns} FROM {table}"):
            assert all(time is None or begin <= time <= end for time in row.values()), (table, row)


def create_waiting(url: str) -> list[str]:
    """Create executions that are due soon or in an hour; return the ids of the former."""
    with connect(url) as manager:
        ids = []
        for delay in (SOON, HOUR):
            ids.append(manager.create("job", start_after=delay).id)
            failed = manager.create("job", max_attempts=2).id
            manager.start(failed)
            manager.fail(failed, "no", retryable=True, retry_after=delay)
            ids.append(failed)
        return ids[:2]


def claim_two(url: str) -> list[Execution]:
    with connect(url) as manager:
        return [each for _ in range(2) for each in wait_until(manager.claim)]


@pytest.mark.slow
@on_postgresql
@both_ways
def test_claim_with_skewed_clocks_waits_until_due(database: Database, by: timedelta) -> None:
    begin = clock(database)
    soon = on_host(by, create_waiting, database.url)
    due = {str(r["id"]): r["due_at"] for r in database.rows("SELECT id, due_at FROM executions")}
    claimed = on_host(-by, claim_two, database.url)
    assert sorted(each.id for each in claimed) == sorted(soon)
    assert all(each.started_at >= due[each.id] for each in claimed)
    end = clock(database)
    assert_times_between(database, begin, end)
    assert all(begin < time - (SOON if id in soon else HOUR) < end for id, time in due.items())
    assert on_host(by, claim_nothing, database.url) == []


def claim_nothing(url: str) -> list[Execution]:
    with connect(url) as manager:
        return manager.claim(limit=9)


def finish(url: str) -> list[str]:
    with connect(url) as manager:
        return [manager.cancel(manager.create("job").id).id for _ in range(2)]


def prune(url: str) -> int:
    with connect(url) as manager:
        return manager.prune(HOUR)


@pytest.mark.slow
@on_postgresql
@both_ways
def test_prune_with_skewed_clocks_deletes_only_old(database: Database, by: timedelta) -> None:
    old, young = on_host(by, finish, database.url)
    assert on_host(-by, prune, database.url) == 0
    for id, minutes in ((old, 61), (young, 59)):
        database.run(
            "UPDATE executions SET completed_at = completed_at - :minutes * interval '1 minute'"
            " WHERE id = :id",
            id=id,
            minutes=minutes,
        )
    assert on_host(-by, prune, database.url) == 1
    assert [str(row["id"]) for row in database.rows("SELECT id FROM executions")] == [young]


@pytest.mark.exhaustive
@on_postgresql
@both_ways
def test_cli_list_with_skewed_clock_uses_database_clock(database: Database, by: timedelta) -> None:
    made = sorted(chain(*(on_host(each, finish, database.url) for each in (by, 0 * by, -by))))
    database.run(
        "UPDATE executions SET completed_at = completed_at - interval '61 minutes' WHERE id = :id",
        id=made[0],
    )

    expected = {
        ("--newer-than", "1h"): made,
        ("--older-than", "1ms"): made,
        ("--older-than", "1h"): [],
        ("--finished-within", "1h"): made[1:],
        ("--finished-within", "2h"): made,
    }
    found = on_host(by, list_with_cli, [*expected], database.url)
    assert dict(zip(expected, found, strict=True)) == expected


def list_with_cli(filters: list[tuple[str, str]], url: str) -> list[list[str]]:
    """Return the ids that the command line lists with each filter."""
    found = []
    for each in filters:
        with redirect_stdout(StringIO()) as output:
            assert main(["list", *each, "--json", "--url", url]) == 0
        found.append(sorted(row["id"] for row in json.loads(output.getvalue())["executions"]))
    return found


# --- PostgreSQL: orders and pages -----------------------------------------------------------------


def create_some(url: str) -> list[str]:
    with connect(url) as manager:
        return [manager.create("job").id for _ in range(5)]


def log_entries(url: str, id: str) -> list[str]:
    with connect(url) as manager:
        return [manager.log(id, "line").id for _ in range(5)]


@pytest.mark.slow
@on_postgresql
@both_ways
def test_list_with_skewed_clocks_is_complete(database: Database, by: timedelta) -> None:
    """The order follows the clocks of the creators; each execution is listed once."""
    hosts = (by, -by, 0 * by)
    with connect(database.url) as manager:
        ids = [id for host in hosts for id in on_host(host, create_some, database.url)]
        lines = [id for host in hosts for id in on_host(host, log_entries, database.url, ids[0])]
        assert sorted(ids) != ids
        found: list[str] = []
        while page := manager.list(limit=4, before=found[-1] if found else None):
            found += [each.id for each in page]
            if len(found) < 9:  # new ones may be listed or not, and hide none
                for host in hosts:
                    on_host(host, create_some, database.url)
        assert found == sorted(set(found), reverse=True)
        assert set(found) >= {*ids}
        said: list[str] = []
        while some := manager.logs(ids[0], limit=4, before=said[-1] if said else None):
            said += [each.id for each in some]
        assert said == sorted(lines, reverse=True)


# --- PostgreSQL: a backoff ------------------------------------------------------------------------

BACKOFF = 5 * SOON


def call_tracked(url: str) -> int:
    """Call a function that fails once."""
    failures = iter([OSError("no answer")])
    with connect(url) as manager:

        @manager.tracked(
            "job",
            idempotency_key=lambda: "key",
            max_attempts=3,
            retry_on=OSError,
            backoff=Backoff(BACKOFF),
        )
        def job() -> int:
            for failure in failures:
                raise failure
            return 1

        return job()


def run_command(url: str) -> int:
    """Run a command that fails once."""
    once = "import os, sys; sys.exit(os.environ['EXECUTION_ATTEMPT'] == '1')"
    terms = ["--max-attempts", "2", "--backoff", f"{BACKOFF // MILLISECOND}ms", "--url", url]
    return main(["run", *terms, "--", sys.executable, "-c", once])


@pytest.mark.slow
@on_postgresql
@both_ways
@pytest.mark.parametrize("work", [call_tracked, run_command])
def test_backoff_with_skewed_clocks_is_kept(
    database: Database, by: timedelta, work: Callable[[str], int]
) -> None:
    assert on_host(by, work, database.url) in (0, 1)
    failed, began = (
        row["occurred_at"]
        for row in database.rows("SELECT occurred_at FROM execution_history ORDER BY seq")[2:4]
    )
    assert began >= failed + BACKOFF * 0.9  # jitter takes a tenth at most


# --- SQLite: one clock, set back ------------------------------------------------------------------


class Host:
    """A host with SQLite and a clock that the test sets: SQLite's, and that of the ids.

    A function of the host replaces SQLite's `strftime`, which reads the clock.
    """

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = datetime.now(UTC)
        self.engine = configure_sqlite(create_engine(database.url))
        self.plain = sqlite3.connect(":memory:")
        event.listen(self.engine, "connect", self._prepare)
        self.manager = ExecutionManager(SqlExecutionStore(self.engine))
        made = validation.new_id
        monkeypatch.setattr(
            validation, "new_id", lambda: shift_id(made(), self.now - datetime.now(UTC))
        )

    def _prepare(self, connection: sqlite3.Connection, record: object) -> None:
        connection.create_function("strftime", -1, self._strftime, deterministic=True)

    def _strftime(self, form: str, moment: str, *changes: str) -> str | None:
        if moment == "now":
            moment = self.now.strftime("%Y-%m-%d %H:%M:%S.%f")
        marks = ", ".join(["?"] * (2 + len(changes)))
        found = self.plain.execute(f"SELECT strftime({marks})", (form, moment, *changes))
        text: str | None = found.fetchone()[0]
        return text

    def close(self) -> None:
        self.engine.dispose()
        self.plain.close()


@pytest.fixture
def host(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host(database, monkeypatch)
    yield host
    host.close()


on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

STEPS: list[Callable[[ExecutionManager, str], Execution]] = [
    lambda m, id: m.start(id),
    lambda m, id: m.update_progress(id, 1, 2),
    lambda m, id: m.fail(id, "no", retryable=True, retry_after=SECOND),
    lambda m, id: m.checkpoint(id, "k", 1),
    lambda m, id: m.start(id),
    lambda m, id: m.heartbeat(id),
    lambda m, id: m.timeout(id),
    lambda m, id: m.retry(id),
    lambda m, id: m.start(id),
    lambda m, id: m.advance(id, 1, 2, key="k", value=2),
    lambda m, id: m.complete(id),
]


@on_sqlite
@pytest.mark.parametrize("set_back_at", range(len(STEPS)))
def test_times_after_clock_set_back_stay_ordered(
    database: Database, host: Host, set_back_at: int
) -> None:
    """At each step the clock is set back by a day; three steps later it is right again."""
    was = host.manager.create("job", max_attempts=3, timeout=HOUR)
    for n, step in enumerate(STEPS):
        host.now += {set_back_at: -DAY, set_back_at + 3: DAY}.get(n, MILLISECOND)
        now = step(host.manager, was.id)
        assert was.created_at <= was.updated_at <= now.updated_at
        assert now.started_at is not None
        assert now.created_at <= now.started_at <= now.updated_at
        assert now.deadline_at == now.started_at + HOUR
        assert now.heartbeat_at is not None
        assert now.started_at <= now.heartbeat_at <= now.updated_at
        assert now.completed_at in (None, now.updated_at)
        was = now
    moves = database.rows("SELECT occurred_at FROM execution_history ORDER BY seq")
    times = [row["occurred_at"] for row in moves]
    assert times == sorted(times)
    assert_legal(database)


@on_sqlite
def test_claim_and_sweep_after_clock_set_back_wait(host: Host) -> None:
    """Late, never early; `start(id)` does not wait."""
    manager = host.manager
    waiting, chosen = (manager.create("job") for _ in range(2))
    running = manager.start(manager.create("job", timeout=MILLISECOND).id)
    host.now -= DAY
    assert manager.claim(limit=9) == manager.sweep(stalled_after=HOUR) == []
    assert manager.start(chosen.id).status == "running"
    host.now += DAY + 2 * MILLISECOND
    assert [each.id for each in manager.claim(limit=9)] == [waiting.id]
    assert [each.id for each in manager.sweep()] == [running.id]


@on_sqlite
def test_logs_after_clock_set_back_are_complete(host: Host) -> None:
    """Ids order the entries, and clocks the ids: the order may be wrong, no entry is missing."""
    id = host.manager.create("job").id
    lines = []
    for passed in (MILLISECOND, -DAY, MILLISECOND, DAY):
        host.now += passed
        lines.append(host.manager.log(id, "line").id)
    found = [host.manager.logs(id, limit=1)[0].id]
    while page := host.manager.logs(id, limit=1, before=found[-1]):
        found.append(page[0].id)
    assert found == sorted(lines, reverse=True) != lines[::-1]
