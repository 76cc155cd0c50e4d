"""Two callers of one execution, step by step, and the order that explains what they were told.

There must be an order in which the pure machine, one call after the other, gives the same answers
and leaves the same behind: `Transition.apply` and its like, by way of a store in memory.
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
TRY_AGAIN = "another writer came between: try again"
PATIENCE = 30
COUNTER = count()
NOBODY = "0198a000-0000-7000-8000-000000000000"

FAMILY = "completed, with a failed child"
STATES: dict[str, Steps] = {
    "nothing": (),
    **{name: states.STATES[name] for name in ("pending", "running", "retrying", "failed")},
    "completed": states.STATES["completed"],
    FAMILY: states.STATES["completed"],
}
"""What tells verbs apart: timed_out is to them as failed is, cancelled as completed."""

WAITING = text(
    "SELECT count(*) FROM pg_stat_activity AS held JOIN pg_stat_activity AS waiting"
    " ON held.pid = ANY (pg_blocking_pids(waiting.pid))"
    " WHERE held.application_name = :a AND waiting.application_name = :b"
    " AND waiting.datname = current_database()"
)
LATE = text(
    "UPDATE executions SET deadline_at = '2000-01-01T00:00:00.000Z' WHERE status = 'running'"
)


@dataclass(frozen=True)
class Subject:
    """An execution alone of its type, which is its key as well; perhaps with a child."""

    type: str
    id: str
    child: str = ""


Call = Callable[[ExecutionManager, Subject, str], Any]

# What both callers may ask; the last argument is who does.
VERBS: dict[str, Call] = {
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
"""They leave alone what is in other hands."""
SHARING = ("create", "create a child", "log", "log as attempt", "replay")
"""They change nothing of the subject itself."""


def ask(manager: ExecutionManager, verb: str, subject: Subject, who: str) -> Any:
    try:
        return told(VERBS[verb](manager, subject, who), subject)
    except ConcurrentUpdate:
        return TRY_AGAIN
    except ExecutionProblem as problem:
        return type(problem), told(str(problem), subject)
    except OperationalError as error:
        # Who has read in SQLite cannot wait for a writer.
        if getattr(error.orig, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY:
            raise
        return TRY_AGAIN


def told(value: Any, subject: Subject) -> Any:
    """Return what was told, in words that are the same for every subject and store."""
    names = {subject.id: "the subject", subject.child: "its child"}
    match value:
        case str():
            spelt = "its type" if value == subject.type else value
            return UUID.sub(lambda id: names.get(id[0], "a new one"), spelt)
        case datetime():
            return "a time"
        case BaseModel():
            return {n: told(each, subject) for n, each in value if n != "fingerprint"}
        case dict():
            return {name: told(value[name], subject) for name in sorted(value)}
        case list():
            return [told(each, subject) for each in value]
    return value


def seen(manager: ExecutionManager, subject: Subject) -> list[str]:
    """Return all there is of a subject's type, and its logs."""
    found = (
        (told(each, subject), sorted(map(repr, told(manager.logs(each.id), subject))))
        for each in manager.list(type=subject.type)
    )
    return sorted(map(repr, found))


class Later:
    """The memory's `datetime`: what was created by whatever clock is due."""

    @staticmethod
    def now(zone: tzinfo) -> datetime:
        return datetime.now(zone) + timedelta(hours=1)


MEMORY: Any = type(memory_store())
MEMORY.create.__globals__["datetime"] = Later


class Pure(MEMORY):  # type: ignore[misc]
    """The pure machine, while some executions are in other hands."""

    def __init__(self, rows: Iterable[Execution], held: AbstractSet[str]) -> None:
        super().__init__()
        self.rows = {row.id: row for row in rows}
        self.held = held

    def update_many(self, batch: BatchTransition) -> list[Execution]:
        free = [row for row in self.rows.values() if row.id not in self.held]
        moved = batch.apply(free, Later.now(UTC))
        self.rows.update((each.id, each) for each in moved)
        return moved

    def prune(self, pruning: PruneRequest) -> int:
        gone = pruning.apply(self.rows.values(), Later.now(UTC))
        return sum(self.delete(each.id) for each in gone if each.id not in self.held)


class Scene:
    """A state in which executions are met, and what the pure machine makes of any calls in it."""

    def __init__(self, database: Database, name: str) -> None:
        self.engine = database.engine
        self.manager = manager = ExecutionManager(SqlExecutionStore(database.engine))
        self.name = name
        (self.sample,) = self.subjects(1)
        self._rows = manager.list(type=self.sample.type)
        self._known: dict[Any, Outcome] = {}

    def _subject(self) -> Subject:
        type = f"{self.name} {next(COUNTER)}"
        if self.name == "nothing":
            return Subject(type, NOBODY)
        made = self.manager.create(
            type, {"n": 1}, max_attempts=3, timeout=timedelta(days=1), idempotency_key=type
        )
        for step in STATES[self.name]:
            step(self.manager, made.id)
        if self.name != FAMILY:
            return Subject(type, made.id)
        child = self.manager.create(type, max_attempts=3, parent_id=made.id).id
        for step in STATES["failed"]:
            step(self.manager, child)
        return Subject(type, made.id, child)

    def subjects(self, number: int) -> list[Subject]:
        """Return new ones, whose deadlines have passed."""
        made = [self._subject() for _ in range(number)]
        with self.engine.begin() as connection:
            connection.execute(LATE)
        return made

    def outcome(self, *calls: tuple[str, str], held: AbstractSet[str] = frozenset()) -> "Outcome":
        """Return what comes of calls, each of somebody for a verb, one after the other."""
        key = (calls, held)
        if key not in self._known:
            hidden = {getattr(self.sample, name) for name in held}
            pure = ExecutionManager(Pure(self._rows, hidden))
            answers = {who: ask(pure, verb, self.sample, who) for who, verb in calls}
            self._known[key] = Outcome(answers, seen(pure, self.sample))
        return self._known[key]

    def changes(self, verb: str, *, after: str | None = None) -> bool:
        earlier = [("A", after)] if after else []
        return self.outcome(*earlier, ("B", verb)).left != self.outcome(*earlier).left

    def refuses(self, verb: str) -> bool:
        return isinstance(self.outcome(("B", verb)).answers["B"], tuple)

    def competing(self) -> list[tuple[str, str]]:
        """Return all pairs of which the second changes something, alone or after the first."""
        return [
            (first, second)
            for first, second in self.pairs()
            if self.changes(second) or self.changes(second, after=first)
        ]

    def pairs(self) -> list[tuple[str, str]]:
        """Return all pairs of which the first changes something, and one the subject itself."""
        verbs = [verb for verb in VERBS if self.sample.child or verb != "retry the child"]
        shared = {*SHARING} - {"create"}
        return [
            (first, second)
            for first, second in product(filter(self.changes, verbs), verbs)
            if not {first, second} <= shared
        ]

    def has_to_wait(self, first: str, second: str) -> bool:
        """Tell whether the second cannot go on before the first one's transaction has ended."""
        return (
            self.changes(first)
            and self.changes(second)
            and first not in SHARING
            and second not in (*SHARING, *BATCHES)
        )


class Outcome(NamedTuple):
    answers: dict[str, Any]
    left: list[str]


class Stopping(SqlExecutionStore):
    """A store in which something may happen between a refused statement and the look at why."""

    happens: Callable[[], object] = staticmethod(bool)

    def find_by_id(self, id: str) -> Execution | None:
        self.happens()
        return super().find_by_id(id)


class Side:
    """A caller: in a transaction at a level, or outside of any."""

    def __init__(
        self, name: str, database: Database, level: str, store: type[Stopping] = Stopping
    ) -> None:
        self.name, self.level = name, level
        self.has_snapshot = level in ("REPEATABLE READ", "SERIALIZABLE", "DEFERRED")
        url = make_url(database.url)
        if database.name == "postgresql":
            default = "serializable" if "SERIALIZABLE" in level else "read\\ committed"
            options = (
                f"-cdefault_transaction_isolation={default}",
                "-cdeadlock_timeout=10ms",
                f"-clock_timeout={PATIENCE // 2}s",  # a failure instead of a wait for ever
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
        """Commit or roll back, and tell whether what was done is there to stay."""
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
class Story:
    """What happened to A and B."""

    calls: dict[str, str]
    when: str
    answers: dict[str, Any] = field(default_factory=dict)
    orders: list[str] = field(default_factory=list)
    """The orders in which what is there to stay may have been done."""
    waited: bool = False
    """Whether B had to wait for A."""
    put_off: bool = False
    """Whether B was told to try again, and did."""
    left: list[str] = field(default_factory=list)

    def is_explained(self, scene: Scene) -> bool:
        """Tell whether it is what the pure machine makes of one of the orders."""
        held: list[AbstractSet[str]] = [frozenset()]
        if self.meets_open and self.calls["B"] in BATCHES:
            held += [frozenset(names) for names in (["id"], ["child"], ["id", "child"])]
        outcomes = [
            scene.outcome(*((who, self.calls[who]) for who in order), held=hidden)
            for order in self.orders
            for hidden in held
        ]
        return any(
            self.left == outcome.left
            and all(self.answers[who] == told for who, told in outcome.answers.items())
            for outcome in outcomes
        )

    @property
    def meets_open(self) -> bool:
        """Whether B was called while A had not ended."""
        return self.when in ("commit", "rollback")


class Stage:
    """Where they meet: `stage.play(a, b, subject, ("start", "cancel"), "commit")`."""

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

    def play(self, a: Side, b: Side, subject: Subject, calls: tuple[str, str], when: str) -> Story:
        """A calls, then B, and A is to "commit" or "rollback", for which B may have to wait.

        Or A has committed "before", but not before B began; or A calls and commits "between" B's
        statement and B's look at why it was refused.
        """
        story = Story(dict(zip("AB", calls, strict=True)), when)
        stays = []

        def call_a(*, and_commit: bool = False) -> None:
            story.answers["A"] = ask(a.begin(), calls[0], subject, "A")
            if and_commit:
                stays.append(a.end("commit"))

        def meanwhile() -> None:
            if when == "between" and not stays:
                call_a(and_commit=True)

        b.store.happens = meanwhile
        inside_b = b.begin()
        if b.has_snapshot:
            inside_b.list(type=subject.type)
        if when != "between":
            call_a(and_commit=when == "before")
        asked = self.thread.submit(ask, inside_b, calls[1], subject, "B")
        if story.meets_open:
            story.waited = self.waits(a, b, asked)
            stays.append(a.end(when))
        story.answers["B"] = asked.result(PATIENCE)
        self._finish(b, subject, story)
        earlier = "A" if stays == [True] else ""
        story.orders = [earlier + "B"]
        if not (story.put_off or (when == "before" and not b.has_snapshot)):
            story.orders.append("B" + earlier)
        story.left = seen(self.manager, subject)
        return story

    def _finish(self, b: Side, subject: Subject, story: Story) -> None:
        """Commit what B has done; where it was told to try again, do so first."""
        if story.answers["B"] != TRY_AGAIN and b.end("commit"):
            return
        story.put_off = True
        b.end("rollback")
        story.answers["B"] = ask(b.begin(), story.calls["B"], subject, "B")
        assert story.answers["B"] != TRY_AGAIN, story
        assert b.end("commit"), story

    def waits(self, a: Side, b: Side, asked: "Future[Any]") -> bool:
        """Return once B's call has ended, or is seen to wait for A; and which of them it is.

        SQLite shows nothing of the kind, and needs not: whoever is to write after A waits for A.
        """
        limit = time.monotonic() + PATIENCE
        while self.watch is not None and not asked.done():
            if self.watch.scalar(WAITING, {"a": a.name, "b": b.name}):
                return True
            assert time.monotonic() < limit
        return False
