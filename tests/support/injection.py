"""What is interrupted: every verb, on a manager with one connection; and what is left of it."""

import asyncio
import gc
import itertools
import sqlite3
import time
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

from ..conftest import Database
from .memory import memory_store
from .model import recorded
from .states import STATES
from .verbs import SOON, Verb

NAMES = map("injected {}".format, itertools.count())
PATIENCE = 10.0

Figures = Counter[str]
Tell = Callable[[str], None]


def said(figures: Figures) -> str:
    return ", ".join(f"{n} {end}" for end, n in sorted(figures.items()) if n)


def until(condition: Callable[[], bool], said: Callable[[], object]) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > limit:
            raise AssertionError(said())
        time.sleep(0.001)


class World:
    """Two executions in a situation, and what a call makes of them by the pure function alone."""

    def __init__(self, database: Database, verb: Verb) -> None:
        self.database, self.verb = database, verb
        self.manager = connect(database.url)
        self.begin()

    def begin(self) -> None:
        self.database.run("DELETE FROM executions")
        for n in range(2):
            given: dict[str, Any] = {"timeout": SOON, "idempotency_key": f"key-{n}"}
            id = self.manager.create("work", 1, max_attempts=2, **given).id
            for step in STATES[self.verb.situation]:
                step(self.manager, id)
        self.manager.log(id, "begun")
        self.target = self.manager.get(id)
        self.before = self.found(self.manager)
        self.history = self.recorded()
        self.ends = self.expected()

    def found(self, manager: ExecutionManager) -> list[Any]:
        return [*manager.list(), *manager._store.logs(self.target.id, 100, None)]

    def memory(self) -> ExecutionManager:
        """Return a manager over the same in a store that applies what is pure."""
        store: Any = memory_store()
        store.rows = {x.id: x for x in self.before if isinstance(x, Execution)}
        store.entries = [x for x in self.before if not isinstance(x, Execution)]
        return ExecutionManager(store)

    def expected(self) -> dict[str, list[Any]]:
        """Return what may be left; a sweep has to wait until there is something to sweep."""
        while True:
            manager = self.memory()
            with suppress(ExecutionProblem):
                self.verb.call(manager, self.target)
            after = self.found(manager)
            if after != self.before or not self.verb.writes:
                return {"after": after}

    def recorded(self) -> dict[str, list[dict[str, Any]]]:
        columns = execution_history.c
        query = select(execution_history).order_by(columns.execution_id, columns.seq)
        moves: dict[str, list[dict[str, Any]]] = {}
        with self.database.engine.connect() as connection:
            for row in connection.execute(query):
                moves.setdefault(row.execution_id, []).append(dict(row._mapping))
        return moves

    def end(self) -> str:
        """Tell how it ended: all is as before, or as it may be afterwards; or raise."""
        found = self.found(self.manager)
        self.assert_recorded([x for x in found if isinstance(x, Execution)])
        if found == self.before:
            return "before" if self.verb.writes else "nothing to change"
        timeless = self.timeless(found)
        for name, end in self.ends.items():
            if timeless == self.timeless(end):
                self.begin()
                return name
        raise AssertionError(f"in between: {found}")

    def timeless(self, found: list[Any]) -> list[dict[str, Any]]:
        known = {x.id for x in self.before}
        return [
            {name: self.essence(value) for name, value in x if name != "id" or value in known}
            for x in found
        ]

    @staticmethod
    def essence(value: Any) -> Any:
        interrupted = isinstance(value, ExecutionFailure) and value.code == "interrupted"
        return "a time" if isinstance(value, datetime) else "interrupted" if interrupted else value

    def assert_recorded(self, rows: list[Execution]) -> None:
        """The history goes on from where it was to the status that is found, and no further."""
        moves = self.recorded()
        assert moves.keys() == {row.id for row in rows}
        for row in rows:
            old, all = self.history.get(row.id, []), moves[row.id]
            assert all[: len(old)] == old
            statuses = [None, *(move["to_status"] for move in all)]
            assert [move["from_status"] for move in all] == statuses[:-1]
            assert statuses[-1] == row.status
            assert statuses[len(old) + 1 :] in self.paths(statuses[len(old)], row.status)
            if len(all) > len(old):
                last = recorded(row, len(all), statuses[-2])
                if row.status == "running":  # and then it may have been written to since
                    del last["occurred_at"]
                assert {name: all[-1][name] for name in last} == last

    def paths(self, was: str | None, status: str) -> list[list[str]]:
        return [[]] if was == status else [[status]]

    def close(self) -> None:
        self.manager.close()


class BlockWorld(World):
    """The same for a block, which makes a whole attempt."""

    def expected(self) -> dict[str, list[Any]]:
        """Return every state on its way, and what an interruption would make of each."""
        ends: dict[str, list[Any]] = {}
        manager = self.memory()
        store: Any = manager._store
        update, log = store.update, store.log
        interruption = ExecutionFailure(message="", code="interrupted", retryable=True)
        fail = transitions.fail(interruption, None, None, None)

        def seen(answer: Any) -> Any:
            rows = dict(store.rows)
            status = rows[self.target.id].status
            ends[f"{status}, {len(ends)}"] = self.found(manager)
            if status == "running":
                update(self.target.id, fail)
                ends[f"interrupted, {len(ends)}"] = self.found(manager)
                store.rows = rows
            return answer

        store.update = lambda id, transition: seen(update(id, transition))
        store.log = lambda line: seen(log(line))
        self.verb.call(manager, self.target)
        return ends

    def end(self) -> str:
        return super().end().split(",")[0]

    def paths(self, was: str | None, status: str) -> list[list[str]]:
        return [[]] if was == status else [[status], ["running", status]]


class Subject:
    """A manager with one connection: over an engine of its own, or over a host's.

    On the engine of a host that listens, statements go SQLAlchemy's own way.
    """

    patience = 0
    """For how many seconds a lock of SQLite's may be left."""
    most = 1
    """How many connections there may be."""

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
        """Close its connections; in asyncio, return an awaitable that does."""
        return self.manager.close() if self.is_own else self.host.dispose()

    def disconnect(self) -> None:
        """Close the connections that are kept, but keep the pool."""
        self.manager._store._bind._idle.close()

    @property
    def in_use(self) -> int:
        """How many connections of a host's pool somebody has, or had."""
        return 0 if self.is_own else self.engine.pool.checkedout()

    def assert_free(self) -> None:
        """Nobody has a connection, and none is left in the database but the pool's."""
        assert self.in_use == 0
        if self.database.name == "sqlite":
            with closing(sqlite3.connect(self.engine.url.database, timeout=self.patience)) as other:
                other.execute("BEGIN IMMEDIATE")
        else:
            until(
                self._is_quiet, lambda: f"{self.backends()}, of which are known {[*self.drivers]}"
            )

    def _is_quiet(self) -> bool:
        connected = {pid for pid, each in self.drivers.items() if not each.closed}
        backends = self.backends()
        idle = {*backends.values()} <= {"idle"}
        return idle and backends.keys() <= connected and len(connected) <= self.most

    def sever(self) -> None:
        """End the server's side of its connections."""
        for pid in self.backends():
            self.database.rows("SELECT pg_terminate_backend(:pid)", pid=pid)
        until(lambda: not self.backends(), self.backends)

    def backends(self, waiting_for: str | None = None) -> dict[int, str]:
        rows = self.database.rows(
            "SELECT pid, state, wait_event_type AS waiting FROM pg_stat_activity"
            " WHERE application_name = :name AND datname = current_database()",
            name=self.name,
        )
        return {row["pid"]: row["state"] for row in rows if waiting_for in (None, row["waiting"])}


@contextmanager
def little_garbage() -> Iterator[None]:
    """Spare the collector what there is already."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def collect_garbage() -> None:
    """Have what was abandoned closed by the collector, which complains of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


async def in_time(work: Any) -> Any:
    """Await what would wait for ever if a connection were missing."""
    return await asyncio.wait_for(work, 10)
