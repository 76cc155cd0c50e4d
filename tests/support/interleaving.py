"""Interleave two callers of one execution step by step, and check that it is linearizable.

There must be an order in which the pure state machine, called sequentially, gives the same answers
and leaves the same rows: `Transition.apply` and its like, run by a store in memory.
"""

import asyncio
import re
import sqlite3
import time
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import count, product
from typing import Any, NamedTuple

from pydantic import BaseModel
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import OperationalError

from execution_core import (
    ConcurrentUpdate,
    Execution,
    ExecutionManager,
    ExecutionProblem,
    SqlExecutionStore,
    connect_async,
)
from execution_core.sql.driver.engine import create_sync_engine
from execution_core.stores import BatchTransition, PruneRequest

from ..conftest import Blocking, Database
from . import states
from .memory import memory_store
from .states import Steps

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TRY_AGAIN = "a concurrent write: try again"
TIMEOUT = 30
COUNTER = count()
UNKNOWN_ID = "0198a000-0000-7000-8000-000000000000"

WITH_CHILD = "completed, with a failed child"
STATES: dict[str, Steps] = {
    "nothing": (),
    **{name: states.STATES[name] for name in ("pending", "running", "retrying", "failed")},
    "completed": states.STATES["completed"],
    WITH_CHILD: states.STATES["completed"],
}
"""States that verbs distinguish: timed_out is equivalent to failed, cancelled to completed."""

LOCK_WAITS = text(
    "SELECT count(*) FROM pg_stat_activity AS held JOIN pg_stat_activity AS waiting"
    " ON held.pid = ANY (pg_blocking_pids(waiting.pid))"
    " WHERE held.application_name = :a AND waiting.application_name = :b"
    " AND waiting.datname = current_database()"
)
EXPIRE_DEADLINES = text(
    "UPDATE executions SET deadline_at = '2000-01-01 00:00:00.000000' WHERE status = 'running'"
)


@dataclass(frozen=True)
class Target:
    """The only execution of its type, which is also its key; perhaps with a child."""

    type: str
    id: str
    child: str = ""


VerbCall = Callable[[ExecutionManager, Target, str], Any]

# What a caller may call; the last argument is its name.
VERBS: dict[str, VerbCall] = {
    "create": lambda m, it, who: m.create(it.type, {"n": 1}, idempotency_key=it.type),
    "create a child": lambda m, it, who: m.create(it.type, who, parent_id=it.id),
    "start": lambda m, it, who: m.start(it.id, worker=who),
    "claim": lambda m, it, who: m.claim(it.type, worker=who),
    "complete": lambda m, it, who: m.complete(it.id, who, attempt=1),
    "fail": lambda m, it, who: m.fail(it.id, who, retryable=True),
    "timeout": lambda m, it, who: m.timeout(it.id, attempt=1),
    "sweep": lambda m, it, who: m.sweep(type=it.type),
    "cancel": lambda m, it, who: m.cancel(it.id, who),
    "retry": lambda m, it, who: m.retry(it.id),
    "replay": lambda m, it, who: m.replay(it.id, payload=who),
    "progress": lambda m, it, who: m.update_progress(it.id, 1, 2, message=who),
    "checkpoint": lambda m, it, who: m.checkpoint(it.id, "common", who),
    "own checkpoint": lambda m, it, who: m.checkpoint(it.id, who, who),
    "advance": lambda m, it, who: m.advance(it.id, 1, 3, key=who, value=1, message=who),
    "log": lambda m, it, who: m.log(it.id, who),
    "log as attempt": lambda m, it, who: m.log(it.id, who, attempt=1),
    "delete": lambda m, it, who: m.delete(it.id),
    "prune": lambda m, it, who: m.prune(timedelta(0), type=it.type),
    "retry the child": lambda m, it, who: m.retry(it.child),
}
BATCHES = ("claim", "sweep", "prune")
"""These skip rows that another transaction has locked."""
INDEPENDENT = ("create", "create a child", "log", "log as attempt", "replay")
"""These do not change the target itself."""


def call(manager: ExecutionManager, verb: str, target: Target, who: str) -> Any:
    try:
        return normalize(VERBS[verb](manager, target, who), target)
    except ConcurrentUpdate:
        return TRY_AGAIN
    except ExecutionProblem as problem:
        return type(problem), normalize(str(problem), target)
    except OperationalError as error:
        # A SQLite transaction that has read cannot wait for a writer.
        if getattr(error.orig, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY:
            raise
        return TRY_AGAIN


def normalize(value: Any, target: Target) -> Any:
    """Return an answer without ids and times: equal for every target and store."""
    names = {target.id: "the target", target.child: "its child"}
    match value:
        case str():
            text = "its type" if value == target.type else value
            return UUID.sub(lambda id: names.get(id[0], "a new execution"), text)
        case datetime():
            return "a time"
        case BaseModel():
            return {n: normalize(each, target) for n, each in value if n != "fingerprint"}
        case dict():
            return {name: normalize(value[name], target) for name in sorted(value)}
        case list():
            return [normalize(each, target) for each in value]
    return value


def read_all(manager: ExecutionManager, target: Target) -> list[str]:
    """Return all executions of the target's type, with their logs, normalized."""
    found = (
        (normalize(each, target), sorted(map(repr, normalize(manager.logs(each.id), target))))
        for each in manager.list(type=target.type)
    )
    return sorted(map(repr, found))


class LateClock:
    """The `datetime` of the memory store: an hour ahead, so that every execution is due."""

    @staticmethod
    def now(zone: tzinfo) -> datetime:
        return datetime.now(zone) + timedelta(hours=1)


MEMORY: Any = type(memory_store())
MEMORY.create.__globals__["datetime"] = LateClock


class PureStore(MEMORY):  # type: ignore[misc]
    """The pure state machine, while other transactions hold locks on some executions."""

    def __init__(self, rows: Iterable[Execution], held: AbstractSet[str]) -> None:
        super().__init__()
        self.rows = {row.id: row for row in rows}
        self.held = held

    def update_many(self, batch: BatchTransition) -> list[Execution]:
        free = [row for row in self.rows.values() if row.id not in self.held]
        moved = batch.apply(free, LateClock.now(UTC))
        self.rows.update((each.id, each) for each in moved)
        return moved

    def prune(self, pruning: PruneRequest) -> int:
        gone = pruning.apply(self.rows.values(), LateClock.now(UTC))
        return sum(self.delete(each.id) for each in gone if each.id not in self.held)


class InitialState:
    """The state that two callers find, and the outcome of any calls by the pure machine."""

    def __init__(self, database: Database, name: str) -> None:
        self.engine = database.engine
        self.manager = manager = ExecutionManager(SqlExecutionStore(database.engine))
        self.name = name
        (self.sample,) = self.targets(1)
        self._rows = manager.list(type=self.sample.type)
        self._known: dict[Any, Outcome] = {}

    def _target(self) -> Target:
        type = f"{self.name} {next(COUNTER)}"
        if self.name == "nothing":
            return Target(type, UNKNOWN_ID)
        made = self.manager.create(
            type, {"n": 1}, max_attempts=3, timeout=timedelta(days=1), idempotency_key=type
        )
        child = ""
        if self.name == WITH_CHILD:
            child = self.manager.create(type, max_attempts=3, parent_id=made.id).id
            for step in STATES["failed"]:
                step(self.manager, child)
        for step in STATES[self.name]:
            step(self.manager, made.id)
        return Target(type, made.id, child)

    def targets(self, number: int) -> list[Target]:
        """Create targets in this state, their deadlines in the past."""
        made = [self._target() for _ in range(number)]
        with self.engine.begin() as connection:
            connection.execute(EXPIRE_DEADLINES)
        return made

    def outcome(self, *calls: tuple[str, str], held: AbstractSet[str] = frozenset()) -> "Outcome":
        """Return the outcome of sequential calls, each a pair of caller and verb."""
        key = (calls, held)
        if key not in self._known:
            hidden = {getattr(self.sample, name) for name in held}
            pure = ExecutionManager(PureStore(self._rows, hidden))
            answers = {who: call(pure, verb, self.sample, who) for who, verb in calls}
            self._known[key] = Outcome(answers, read_all(pure, self.sample))
        return self._known[key]

    def changes(self, verb: str, *, after: str | None = None) -> bool:
        earlier = [("A", after)] if after else []
        return self.outcome(*earlier, ("B", verb)).left != self.outcome(*earlier).left

    def refuses(self, verb: str) -> bool:
        return isinstance(self.outcome(("B", verb)).answers["B"], tuple)

    def competing(self) -> list[tuple[str, str]]:
        """Return the pairs whose second verb changes something, alone or after the first."""
        return [
            (first, second)
            for first, second in self.pairs()
            if self.changes(second) or self.changes(second, after=first)
        ]

    def pairs(self) -> list[tuple[str, str]]:
        """Return the pairs whose first verb changes something, and one of them the target."""
        verbs = [verb for verb in VERBS if self.sample.child or verb != "retry the child"]
        shared = {*INDEPENDENT} - {"create"}
        return [
            (first, second)
            for first, second in product(filter(self.changes, verbs), verbs)
            if not {first, second} <= shared
        ]

    def has_to_wait(self, first: str, second: str) -> bool:
        """Tell whether the second has to wait for the end of the first one's transaction."""
        return (
            self.changes(first)
            and self.changes(second)
            and first not in INDEPENDENT
            and second not in (*INDEPENDENT, *BATCHES)
        )


class Outcome(NamedTuple):
    answers: dict[str, Any]
    left: list[str]


class PausingStore(SqlExecutionStore):
    """A store that calls `happens` between a refused statement and the lookup of the reason."""

    happens: Callable[[], object] = staticmethod(bool)

    def find_by_id(self, id: str) -> Execution | None:
        self.happens()
        return super().find_by_id(id)


class Caller:
    """A caller: in a transaction at an isolation level, or outside of any."""

    def __init__(
        self, name: str, database: Database, level: str, store: type[PausingStore] = PausingStore
    ) -> None:
        self.name, self.level = name, level
        self.has_snapshot = level in ("REPEATABLE READ", "SERIALIZABLE", "DEFERRED")
        url = make_url(database.url)
        if database.name == "postgresql":
            default = "serializable" if "SERIALIZABLE" in level else "read\\ committed"
            options = (
                f"-cdefault_transaction_isolation={default}",
                "-cdeadlock_timeout=10ms",
                f"-clock_timeout={TIMEOUT // 2}s",  # fail instead of waiting forever
            )
            url = url.update_query_dict({"application_name": name, "options": " ".join(options)})
        self.engine = create_sync_engine(url)
        if not level.startswith("outside"):
            option = "sqlite_begin" if database.name == "sqlite" else "isolation_level"
            self.engine = self.engine.execution_options(**{option: level})
        self.store = store(self.engine)
        self.runner = asyncio.Runner()
        self.outside: Any = ExecutionManager(self.store)
        if level == "outside, asyncio":
            self.outside = Blocking(connect_async(url), self.runner)
        self.connection: Connection | None = None

    def begin(self) -> ExecutionManager:
        manager: ExecutionManager = self.outside
        if self.level.startswith("outside"):
            return manager
        self.connection = self.engine.connect()
        return manager.within(self.connection)

    def end(self, how: str) -> bool:
        """Commit or roll back; return whether the changes are committed."""
        if self.connection is None:
            return True
        try:
            getattr(self.connection, how)()
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != "40001":
                raise
            return False  # a serialization failure at the commit is the caller's own
        finally:
            self.connection.close()
            self.connection = None
        return how == "commit"

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        if isinstance(self.outside, Blocking):
            self.outside.close()
        self.runner.close()
        self.engine.dispose()


@dataclass
class Interleaving:
    """The calls of A and B, and their answers."""

    calls: dict[str, str]
    when: str
    answers: dict[str, Any] = field(default_factory=dict)
    orders: list[str] = field(default_factory=list)
    """The orders in which the committed calls may have taken effect."""
    waited: bool = False
    """Whether B had to wait for A."""
    retried: bool = False
    """Whether B was refused with "try again", and did."""
    left: list[str] = field(default_factory=list)

    def is_explained(self, scene: InitialState) -> bool:
        """Return whether the pure machine gives the same outcome in one of the orders."""
        held: list[AbstractSet[str]] = [frozenset()]
        if self.overlaps and self.calls["B"] in BATCHES:
            held += [frozenset(names) for names in (["id"], ["child"], ["id", "child"])]
        outcomes = [
            scene.outcome(*((who, self.calls[who]) for who in order), held=hidden)
            for order in self.orders
            for hidden in held
        ]
        return any(
            self.left == outcome.left
            and all(self.answers[who] == answer for who, answer in outcome.answers.items())
            for outcome in outcomes
        )

    @property
    def overlaps(self) -> bool:
        """Whether B was called before A's transaction ended."""
        return self.when in ("commit", "rollback")


class Interleaver:
    """Run two callers: `interleaver.run(a, b, target, ("start", "cancel"), "commit")`."""

    def __init__(self, database: Database) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.manager = ExecutionManager(SqlExecutionStore(database.engine))
        self.watch: Connection | None = None
        if database.name == "postgresql":
            autocommit = database.engine.execution_options(isolation_level="AUTOCOMMIT")
            self.watch = autocommit.connect()

    def close(self) -> None:
        self.thread.shutdown()
        if self.watch is not None:
            self.watch.close()

    def run(
        self, a: Caller, b: Caller, target: Target, calls: tuple[str, str], when: str
    ) -> Interleaving:
        """Call A, then B, and end A with `when`: "commit" or "rollback". B may have to wait for it.

        With "before", A commits before B's call, but after B began its transaction. With "between",
        A calls and commits between B's refused statement and B's lookup of the reason.
        """
        result = Interleaving(dict(zip("AB", calls, strict=True)), when)
        committed = []

        def call_a(*, and_commit: bool = False) -> None:
            result.answers["A"] = call(a.begin(), calls[0], target, "A")
            if and_commit:
                committed.append(a.end("commit"))

        def meanwhile() -> None:
            if when == "between" and not committed:
                call_a(and_commit=True)

        b.store.happens = meanwhile
        inside_b = b.begin()
        if b.has_snapshot:
            inside_b.list(type=target.type)
        if when != "between":
            call_a(and_commit=when == "before")
        asked = self.thread.submit(call, inside_b, calls[1], target, "B")
        if result.overlaps:
            result.waited = self.waits(a, b, asked)
            committed.append(a.end(when))
        result.answers["B"] = asked.result(TIMEOUT)
        self._finish(b, target, result)
        earlier = "A" if committed == [True] else ""
        result.orders = [earlier + "B"]
        if not (result.retried or (when == "before" and not b.has_snapshot)):
            result.orders.append("B" + earlier)
        result.left = read_all(self.manager, target)
        return result

    def _finish(self, b: Caller, target: Target, result: Interleaving) -> None:
        """Commit B's changes; if B was refused with "try again", call again first."""
        if result.answers["B"] != TRY_AGAIN and b.end("commit"):
            return
        result.retried = True
        b.end("rollback")
        result.answers["B"] = call(b.begin(), result.calls["B"], target, "B")
        assert result.answers["B"] != TRY_AGAIN, result
        assert b.end("commit"), result

    def waits(self, a: Caller, b: Caller, asked: "Future[Any]") -> bool:
        """Wait until B's call has ended (return False) or waits for a lock of A (return True).

        SQLite does not show lock waits; a writer there waits for A in any case.
        """
        limit = time.monotonic() + TIMEOUT
        while self.watch is not None and not asked.done():
            if self.watch.scalar(LOCK_WAITS, {"a": a.name, "b": b.name}):
                return True
            assert time.monotonic() < limit
        return False
