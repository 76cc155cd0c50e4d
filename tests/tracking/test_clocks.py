"""Hosts whose clocks are wrong, and a clock that is set back: times are the database's.

A host is a real process here, in which all that this library reads the time with is off: Python's
`datetime.now`, and the ids, which hold the time of whoever made them. Nothing has to be installed
for that, or be allowed, and the server's clock stays right. SQLite's clock is its host's: there is
one, which is set back.
"""

import json
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
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
from execution_core.cli.run import runner
from execution_core.core import validation
from execution_core.tracking import decorator

from ..conftest import Database
from ..support.history import assert_legal
from ..support.processes import spawn

MILLISECOND, SECOND = timedelta(milliseconds=1), timedelta(seconds=1)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SOON = 150 * MILLISECOND
PATIENCE = 60
ROOT = Path(__file__).parents[2]

both_ways = pytest.mark.parametrize("by", [DAY, -DAY], ids=["ahead", "behind"])
"""By how much the first host's clock is off; the second one's is by as much the other way."""
on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


# --- a host ---------------------------------------------------------------------------------------


def shift(by: timedelta) -> None:
    """Put off, for good, what the library in this process reads the time with."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + by

    decorator.datetime = runner.datetime = Shifted  # type: ignore[attr-defined]
    made = validation.new_id
    validation.new_id = lambda: put_off(made(), by)


def put_off(id: str, by: timedelta) -> str:
    """Return an id as a host would have made it whose clock is off."""
    return str(UUID(int=UUID(id).int + (by // MILLISECOND << 80)))


def made_at(id: str) -> datetime:
    """Return the time of the host that made an id."""
    return datetime.fromtimestamp((UUID(id).int >> 80) / 1000, UTC)


def test_clock_is_read_only_in_known_modules() -> None:
    """Else `shift` would leave it out. Monotonic clocks are not set; the database has its own."""
    package = Path(execution_core.__file__).parent
    reads = re.compile(r"datetime\.now\(|utcnow\(|today\(|time\.time\b|uuid7\(")
    readers = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        for line in file.read_text().splitlines()
        if reads.search(line) and '"' not in line  # a message speaks of it
    }
    assert readers == {"tracking.py", "values.py", "cli/run_execution.py"}


def on_host(by: timedelta, work: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns on a host whose clock is off."""
    answers = spawn.Queue()
    process = spawn.Process(target=there, args=(answers, by, work, *arguments))
    process.start()
    try:
        answer = answers.get(timeout=PATIENCE)
    finally:
        process.join(PATIENCE)
        process.kill()
    if isinstance(answer, Exception):
        raise answer
    return answer


def there(answers: Any, by: timedelta, work: Callable[..., Any], *arguments: Any) -> None:
    shift(by)
    try:
        answers.put(work(*arguments))
    except Exception as error:
        answers.put(RuntimeError(repr(error)))


@contextmanager
def busy_host(by: timedelta, work: Callable[..., Any], url: str, stop: Any) -> Iterator[None]:
    """Let a host work until it is told to stop."""
    answers = spawn.Queue()
    process = spawn.Process(target=there, args=(answers, by, work, url, stop))
    process.start()
    try:
        yield
        stop.set()
        answer = answers.get(timeout=PATIENCE)
        assert answer is None, answer
    finally:
        stop.set()
        process.join(PATIENCE)
        process.kill()


def wait(condition: Callable[[], Any]) -> Any:
    limit = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < limit
    return found


def clock(database: Database) -> datetime:
    """Return the time of the database."""
    now = database.rows("SELECT clock_timestamp() AS now")[0]["now"]
    assert isinstance(now, datetime)
    return now


# --- PostgreSQL: deadlines, sweeps and claims -----------------------------------------------------


def work(url: str, stop: Any) -> None:
    """Run some that take too long, some that fall silent, and some that are well."""
    with connect(url) as manager:
        for n in range(10):
            for type, timeout in (("late", SOON), ("silent", None), ("well", HOUR)):
                manager.create(type, n, timeout=timeout)
        running = {type: manager.claim(type, limit=10) for type in ("late", "silent", "well")}
        while not stop.is_set():
            for each in running["well"]:
                manager.heartbeat(each.id, attempt=1)
                manager.log(each.id, "well", attempt=1)


def sweep(url: str, stop: Any) -> None:
    with connect(url) as manager:
        while not stop.is_set():
            manager.sweep(stalled_after=HOUR)
            manager.sweep(stalled_after=2 * SOON, type="silent")


@on_postgresql
@both_ways
def test_sweep_with_skewed_clocks_takes_only_due(database: Database, by: timedelta) -> None:
    """Two days lie between the worker and the sweeper."""
    stop, begin = spawn.Event(), clock(database)
    swept = "SELECT count(*) AS n FROM executions WHERE status = 'timed_out'"
    with busy_host(by, work, database.url, stop), busy_host(-by, sweep, database.url, stop):
        wait(lambda: database.rows(swept)[0]["n"] == 20)
        well = "SELECT 1 FROM executions WHERE type = 'well' AND heartbeat_at > started_at"
        wait(lambda: len(database.rows(well)) == 10)
    end = clock(database)
    rows = database.rows("SELECT * FROM executions")
    assert len(rows) == 30
    for row in rows:
        # It is the worker's clock that is in the id, and it is off.
        assert abs(made_at(str(row["id"])) - row["created_at"] - by) < HOUR
        if row["type"] == "well":
            assert row["status"] == "running"
        elif row["type"] == "late":
            assert row["deadline_at"] == row["started_at"] + SOON
            assert row["completed_at"] > row["deadline_at"]
            assert row["error"]["code"] == "timeout"
        else:
            assert row["completed_at"] > row["heartbeat_at"] + 2 * SOON
            assert row["error"]["code"] == "stalled"
    assert_between(database, begin, end)
    assert_legal(database)


def assert_between(database: Database, begin: datetime, end: datetime) -> None:
    """Every time that was written lies between two times of the database."""
    for table, columns in (
        ("executions", "created_at, updated_at, started_at, completed_at, heartbeat_at"),
        ("execution_history", "occurred_at"),
        ("execution_logs", "logged_at"),
    ):
        for row in database.rows(f"SELECT {columns} FROM {table}"):
            assert all(time is None or begin <= time <= end for time in row.values()), (table, row)


def wait_in_line(url: str) -> list[str]:
    """Return the ids of what is due soon; as much is due in an hour."""
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
        return [each for _ in range(2) for each in wait(manager.claim)]


@on_postgresql
@both_ways
def test_claim_with_skewed_clocks_waits_until_due(database: Database, by: timedelta) -> None:
    begin = clock(database)
    soon = on_host(by, wait_in_line, database.url)
    due = {str(r["id"]): r["due_at"] for r in database.rows("SELECT id, due_at FROM executions")}
    claimed = on_host(-by, claim_two, database.url)
    assert sorted(each.id for each in claimed) == sorted(soon)
    assert all(each.started_at >= due[each.id] for each in claimed)
    end = clock(database)
    assert_between(database, begin, end)
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


@on_postgresql
@both_ways
def test_cli_list_with_skewed_clock_uses_database_clock(database: Database, by: timedelta) -> None:
    made = sorted(chain(*(on_host(each, finish, database.url) for each in (by, 0 * by, -by))))
    database.run(
        "UPDATE executions SET completed_at = completed_at - interval '61 minutes' WHERE id = :id",
        id=made[0],
    )

    def listed(*filters: str) -> list[str]:
        return sorted(each["execution_id"] for each in command(by, "list", *filters, database.url))

    assert listed("--newer-than", "1h") == listed("--older-than", "1ms") == made
    assert listed("--older-than", "1h") == []
    assert listed("--finished-within", "1h") == made[1:]
    assert listed("--finished-within", "2h") == made


def command(by: timedelta, *arguments: str) -> list[dict[str, Any]]:
    """Return what the command line lists on a host."""
    *options, url = arguments
    code = (
        "import sys; from datetime import timedelta; from execution_core.cli import main;"
        f"from tests.tracking.test_clocks import shift; shift(timedelta(days={by.days}));"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *options, "--json", "--url", url],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: list[dict[str, Any]] = json.loads(done.stdout)["executions"]
    return found


# --- PostgreSQL: orders and pages -----------------------------------------------------------------


def create_some(url: str) -> list[str]:
    with connect(url) as manager:
        return [manager.create("job").id for _ in range(5)]


def say_something(url: str, id: str) -> list[str]:
    with connect(url) as manager:
        return [manager.log(id, "line").id for _ in range(5)]


@on_postgresql
@both_ways
def test_list_with_skewed_clocks_is_complete(database: Database, by: timedelta) -> None:
    """Newest first is by the clocks of those who made them; each is there once all the same."""
    hosts = (by, -by, 0 * by)
    with connect(database.url) as manager:
        ids = [id for host in hosts for id in on_host(host, create_some, database.url)]
        lines = [id for host in hosts for id in on_host(host, say_something, database.url, ids[0])]
        assert sorted(ids) != ids
        found: list[str] = []
        while page := manager.list(limit=4, before=found[-1] if found else None):
            found += [each.id for each in page]
            if len(found) < 9:  # what comes meanwhile may be seen or not, and hides nothing
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
    assert began >= failed + BACKOFF * 0.9  # of which chance takes a tenth at most


# --- SQLite: one clock, set back ------------------------------------------------------------------


class Host:
    """A host with SQLite, and a clock that stands where it is set: SQLite's, and that of the ids.

    SQLite takes a function of the host's own in the place of `strftime`, which reads its clock.
    """

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = datetime.now(UTC)
        self.engine = configure_sqlite(create_engine(database.url))
        self.plain = sqlite3.connect(":memory:")
        event.listen(self.engine, "connect", self._prepare)
        self.manager = ExecutionManager(SqlExecutionStore(self.engine))
        made = validation.new_id
        monkeypatch.setattr(
            validation, "new_id", lambda: put_off(made(), self.now - datetime.now(UTC))
        )

    def _prepare(self, connection: sqlite3.Connection, record: object) -> None:
        connection.create_function("strftime", -1, self._strftime, deterministic=True)

    def _strftime(self, form: str, moment: str, *changes: str) -> str | None:
        if moment == "now":
            moment = self.now.strftime("%Y-%m-%d %H:%M:%S.%f")
        marks = ", ".join(["?"] * (2 + len(changes)))
        found = self.plain.execute(f"SELECT strftime({marks})", (form, moment, *changes))
        spelt: str | None = found.fetchone()[0]
        return spelt

    def close(self) -> None:
        self.engine.dispose()
        self.plain.close()


@pytest.fixture
def host(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host(database, monkeypatch)
    yield host
    host.close()


on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

LIFE: list[Callable[[ExecutionManager, str], Execution]] = [
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
@pytest.mark.parametrize("then", range(len(LIFE)))
def test_times_after_clock_set_back_stay_ordered(database: Database, host: Host, then: int) -> None:
    """Whenever the clock is set back by a day; and a day later it is right again."""
    was = host.manager.create("job", max_attempts=3, timeout=HOUR)
    for n, step in enumerate(LIFE):
        host.now += {then: -DAY, then + 3: DAY}.get(n, MILLISECOND)
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
    """Late, and never early; what is started by its id does not wait."""
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
    """In a log the order is by its clock; nothing else hangs on it."""
    id = host.manager.create("job").id
    lines = []
    for passed in (MILLISECOND, -DAY, MILLISECOND, DAY):
        host.now += passed
        lines.append(host.manager.log(id, "line").id)
    found = [host.manager.logs(id, limit=1)[0].id]
    while page := host.manager.logs(id, limit=1, before=found[-1]):
        found.append(page[0].id)
    assert found == sorted(lines, reverse=True) != lines[::-1]
