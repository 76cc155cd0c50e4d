"""The manager and the rows of an interrupted call, and the outcomes that are allowed."""

import asyncio
import gc
import itertools
import sqlite3
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from typing import Any
from weakref import WeakValueDictionary

from sqlalchemy import URL, create_engine, event, make_url, select
from sqlalchemy.ext.asyncio import create_async_engine

from execution_core import (
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    Execution,
    ExecutionFailure,
    ExecutionManager,
    ExecutionProblem,
    SqlExecutionStore,
    connect,
    connect_async,
)
from execution_core.core import transitions
from execution_core.sql.schema.tables import execution_history
from execution_core.testing.log_lines import log_page

from ..conftest import Database
from . import waiting
from .memory import memory_store
from .model import expected_entry, redacted
from .states import STATES
from .verbs import SOON, Verb

NAMES = map("injected {}".format, itertools.count())
TIMEOUT = 10.0

Figures = Counter[str]
Tell = Callable[[str], None]


def summary(figures: Figures) -> str:
    return ", ".join(f"{n} {end}" for end, n in sorted(figures.items()) if n)


def wait_until(condition: Callable[[], bool], describe: Callable[[], object]) -> None:
    waiting.wait_until(condition, describe, timeout=TIMEOUT, interval=0.001)


class Scenario:
    """Two executions in a state, and the rows that a call may leave, by the pure state machine."""

    def __init__(self, database: Database, verb: Verb) -> None:
        self.database, self.verb = database, verb
        self.manager = connect(database.url)
        self.begin()

    def begin(self) -> None:
        self.database.run("DELETE FROM executions")
        for n in range(2):
            given: dict[str, Any] = {"timeout": SOON, "idempotency_key": f"key-{n}"}
            id = self.manager.create("work", 1, max_attempts=2, **given).id
            for step in STATES[self.verb.state]:
                step(self.manager, id)
        self.manager.log(id, "begun")
        self.target = self.manager.get(id)
        self.before = self.read_all(self.manager)
        self.history = self.read_history()
        self.ends = self.expected()

    def read_all(self, manager: ExecutionManager) -> list[Any]:
        return [*manager.list(), *manager._store.logs(log_page(self.target.id, 100))]

    def memory(self) -> ExecutionManager:
        """Return a manager over a copy of the rows in the memory store."""
        store: Any = memory_store()
        store.rows = {x.id: x for x in self.before if isinstance(x, Execution)}
        store.entries = [x for x in self.before if not isinstance(x, Execution)]
        return ExecutionManager(store)

    def expected(self) -> dict[str, list[Any]]:
        """Return the allowed outcomes; wait until a sweep has something to sweep."""
        while True:
            manager = self.memory()
            with suppress(ExecutionProblem, NotImplementedError):  # it keeps no history
                self.verb.call(manager, self.target)
            after = self.read_all(manager)
            if after != self.before or not self.verb.writes:
                return {"after": after}

    def read_history(self) -> dict[str, list[dict[str, Any]]]:
        columns = execution_history.c
        query = select(execution_history).order_by(columns.execution_id, columns.seq)
        transitions_of: dict[str, list[dict[str, Any]]] = {}
        with self.database.engine.connect() as connection:
            for row in connection.execute(query):
                transitions_of.setdefault(row.execution_id, []).append(dict(row._mapping))
        return transitions_of

    def end(self) -> str:
        """Return which allowed outcome the rows show, and start again; raise if they show none."""
        found = self.read_all(self.manager)
        self.assert_recorded([x for x in found if isinstance(x, Execution)])
        if found == self.before:
            return "before" if self.verb.writes else "nothing to change"
        without_times = self.without_times(found)
        for name, end in self.ends.items():
            if without_times == self.without_times(end):
                self.begin()
                return name
        raise AssertionError(f"in between: {found}")

    def without_times(self, found: list[Any]) -> list[dict[str, Any]]:
        existing = {x.id for x in self.before}
        return [
            {name: self.comparable(value) for name, value in x if name != "id" or value in existing}
            for x in found
        ]

    @staticmethod
    def comparable(value: Any) -> Any:
        interrupted = isinstance(value, ExecutionFailure) and value.code == "interrupted"
        return "a time" if isinstance(value, datetime) else "interrupted" if interrupted else value

    def assert_recorded(self, rows: list[Execution]) -> None:
        """The history continues the earlier one, and ends in the row's status."""
        histories = self.read_history()
        assert histories.keys() == {row.id for row in rows}
        for row in rows:
            old, all = self.history.get(row.id, []), histories[row.id]
            if row.redacted_at:
                old = [each | {"error": redacted(each["error"])} for each in old]
            assert all[: len(old)] == old
            statuses = [None, *(entry["to_status"] for entry in all)]
            assert [entry["from_status"] for entry in all] == statuses[:-1]
            assert statuses[-1] == row.status
            assert statuses[len(old) + 1 :] in self.paths(statuses[len(old)], row.status)
            if len(all) > len(old):
                last = expected_entry(row, len(all), statuses[-2])
                if row.status == "running":  # it may have been written to since
                    del last["occurred_at"]
                assert {name: all[-1][name] for name in last} == last

    def paths(self, was: str | None, status: str) -> list[list[str]]:
        return [[]] if was == status else [[status]]

    def close(self) -> None:
        self.manager.close()


class AttemptScenario(Scenario):
    """The same for a with-block, which makes a whole attempt."""

    def expected(self) -> dict[str, list[Any]]:
        """Return every intermediate state, and each of them after an interruption."""
        ends: dict[str, list[Any]] = {}
        manager = self.memory()
        store: Any = manager._store
        update, log = store.update, store.log
        interruption = ExecutionFailure(message="", code="interrupted", retryable=True)
        fail = transitions.fail(interruption, None, None, None)

        def seen(answer: Any) -> Any:
            rows = dict(store.rows)
            status = rows[self.target.id].status
            ends[f"{status}, {len(ends)}"] = self.read_all(manager)
            if status == "running":
                update(self.target.id, fail)
                ends[f"interrupted, {len(ends)}"] = self.read_all(manager)
                store.rows = rows
            return answer

        store.update = lambda id, transition, **options: seen(update(id, transition, **options))
        store.log = lambda line: seen(log(line))
        self.verb.call(manager, self.target)
        return ends

    def end(self) -> str:
        return super().end().split(",")[0]

    def paths(self, was: str | None, status: str) -> list[list[str]]:
        return [[]] if was == status else [[status], ["running", status]]


class ManagerHarness:
    """A manager with one connection: on its own engine, or on a host's.

    On a host engine with event listeners, SQLAlchemy executes the statements.
    """

    lock_timeout = 0
    """For how many seconds a SQLite lock may remain."""
    max_connections = 1
    """How many connections are allowed."""

    def __init__(self, database: Database, kind: str, mode: str) -> None:
        self.database, self.kind, self.mode = database, kind, mode
        self.is_own, self.name = kind == "own", next(NAMES)
        self.manager: Any = (self._own if self.is_own else self._over_an_engine)(self._url())
        self.engine = self.manager._store._bind.engine
        self.drivers: WeakValueDictionary[int, Any] = WeakValueDictionary()
        if database.name == "postgresql":
            event.listen(self.engine.pool, "connect", self._connected)
        if kind == "listening":
            event.listen(self.engine, "commit", lambda _: None)

    def _url(self) -> URL:
        url = make_url(self.database.url)
        if self.database.name == "postgresql":
            return url.update_query_dict({"application_name": self.name})
        driver = "pysqlite" if self.mode == "sync" or self.is_own else "aiosqlite"
        return url.set(drivername=f"sqlite+{driver}")

    def _own(self, url: URL) -> Any:
        return connect(url) if self.mode == "sync" else connect_async(url)

    def _over_an_engine(self, url: URL) -> Any:
        options: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5}
        if self.mode == "sync":
            self.host: Any = create_engine(url, **options)
            return ExecutionManager(SqlExecutionStore(self.host))
        self.host = create_async_engine(url, **options)
        return AsyncExecutionManager(AsyncSqlExecutionStore(self.host))

    def _connected(self, connection: Any, _: object) -> None:
        driver = getattr(connection, "driver_connection", connection)
        self.drivers[driver.info.backend_pid] = driver

    def close(self) -> Any:
        """Close its connections; for asyncio, return an awaitable that does."""
        return self.manager.close() if self.is_own else self.host.dispose()

    def disconnect(self) -> None:
        """Close the idle connections, but keep the pool."""
        self.manager._store._bind._idle.close()

    @property
    def in_use(self) -> int:
        """How many connections of a host's pool are checked out."""
        return 0 if self.is_own else self.engine.pool.checkedout()

    def assert_free(self) -> None:
        """No connection is checked out, and the database has none besides the pool's."""
        assert self.in_use == 0
        if self.database.name == "sqlite":
            with closing(
                sqlite3.connect(self.engine.url.database, timeout=self.lock_timeout)
            ) as other:
                other.execute("BEGIN IMMEDIATE")
        else:
            wait_until(
                self._is_quiet, lambda: f"{self.backends()}, of which are known {[*self.drivers]}"
            )

    def _is_quiet(self) -> bool:
        connected = {pid for pid, each in self.drivers.items() if not each.closed}
        backends = self.backends()
        idle = {*backends.values()} <= {"idle"}
        return idle and backends.keys() <= connected and len(connected) <= self.max_connections

    def sever(self) -> None:
        """Terminate the backends of its connections."""
        for pid in self.backends():
            self.database.rows("SELECT pg_terminate_backend(:pid)", pid=pid)
        wait_until(lambda: not self.backends(), self.backends)

    def backends(self, waiting_for: str | None = None) -> dict[int, str]:
        rows = self.database.rows(
            "SELECT pid, state, wait_event_type AS waiting FROM pg_stat_activity"
            " WHERE application_name = :name AND datname = current_database()",
            name=self.name,
        )
        return {row["pid"]: row["state"] for row in rows if waiting_for in (None, row["waiting"])}


@contextmanager
def freeze_garbage() -> Iterator[None]:
    """Exclude existing objects from garbage collection, which then is fast."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def collect_garbage() -> None:
    """Let the garbage collector close abandoned connections, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


async def with_timeout(work: Any) -> Any:
    """Await with a timeout: it would wait forever if a connection were lost."""
    return await asyncio.wait_for(work, 10)
