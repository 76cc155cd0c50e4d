"""What became of a call whose connection was lost is found out; a conflict is told as what it is.

A proxy cuts connections of PostgreSQL at the worst moments; SQLite has no connection to lose.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from execution_core import (
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    ConcurrentUpdate,
    ConnectionLost,
    Execution,
    ExecutionManager,
    ExecutionNotFound,
    InvalidStateTransition,
    SqlExecutionStore,
    StaleAttempt,
    connect,
    connect_async,
)
from execution_core.core.creation import MAX_TRIES
from execution_core.sql.driver.broken import ConnectionBroken
from execution_core.sql.recovery import queries

from ..conftest import Blocking, Database
from ..support.proxy import Cut, Proxy, proxied
from ..support.situations import bring_to
from ..tracking.test_races import assert_legal

DAY = timedelta(days=1)

Verb = tuple[str, Callable[[Any, str], Any]]
# From which situation, and what is called.
VERBS: dict[str, Verb] = {
    "start": ("pending", lambda m, id: m.start(id, worker="w")),
    "claim": ("pending", lambda m, id: m.claim("work", worker="w")),
    "complete": ("running", lambda m, id: m.complete(id, {"r": [1, None]}, attempt=1)),
    "fail": ("running", lambda m, id: m.fail(id, "no", retryable=False)),
    "fail retryable": ("running", lambda m, id: m.fail(id, "no", retryable=True, retry_after=DAY)),
    "timeout": ("running", lambda m, id: m.timeout(id)),
    "sweep": ("running", lambda m, id: m.sweep(stalled_after=timedelta(milliseconds=1))),
    "cancel": ("running", lambda m, id: m.cancel(id, "why")),
    "retry": ("failed", lambda m, id: m.retry(id)),
    "heartbeat": ("running", lambda m, id: m.heartbeat(id, attempt=1)),
    "update_progress": ("running", lambda m, id: m.update_progress(id, 1, 3, message="m")),
    "checkpoint": ("running", lambda m, id: m.checkpoint(id, 'k"', {"v": [1.5]})),
    "advance": ("running", lambda m, id: m.advance(id, 1, 3, key="k", value=1)),
    "create": ("pending", lambda m, id: m.create("more", {"p": 1}, parent_id=id)),
    "create with a key": ("pending", lambda m, id: m.create("more", idempotency_key=f"of {id}")),
    "replay": ("failed", lambda m, id: m.replay(id)),
    "log": ("running", lambda m, id: m.log(id, "line", data={"n": 1}, attempt=1)),
    "delete": ("failed", lambda m, id: m.delete(id)),
}
BINDINGS = ["own", "host's", "watched"]


@contextmanager
def bound(url: str, mode: str, binding: str, runner: asyncio.Runner) -> Iterator[Any]:
    """Yield a manager on an engine of its own, on the host's, or on one that is listened to."""
    if binding == "own":
        manager: Any = connect(url) if mode == "sync" else Blocking(connect_async(url), runner)
        yield manager
        manager.close()
        return
    if mode == "sync":
        engine: Engine = create_engine(url)
        manager = ExecutionManager(SqlExecutionStore(engine))
        dispose: Callable[[], Any] = engine.dispose
    else:
        asynchronous = create_async_engine(url)
        engine = asynchronous.sync_engine
        manager = Blocking(AsyncExecutionManager(AsyncSqlExecutionStore(asynchronous)), runner)
        dispose = lambda: runner.run(asynchronous.dispose())  # noqa: E731
    if binding == "watched":
        event.listen(engine, "before_cursor_execute", lambda *_: None)
    yield manager
    dispose()


@pytest.fixture
def proxy(postgres_database: Database) -> Iterator[Proxy]:
    postgres_database.run("TRUNCATE executions CASCADE")
    with proxied(postgres_database.url) as proxy:
        yield proxy


def known(answer: Any) -> Any:
    """What an answer says, but for what is another's in another call: ids and times."""
    if isinstance(answer, list):
        return [known(each) for each in answer]
    if answer is None:
        return None
    varying = {"id", "execution_id", "parent_id", "replay_of", "idempotency_key", "updated_at"}
    varying |= {name for name, value in answer if name.endswith("_at") and value is not None}
    return answer.model_dump(exclude=varying)


def recorded(database: Database, id: str) -> Any:
    """All that the database has of an execution, and of those that name it."""
    moves = "SELECT from_status, to_status, attempt, reason FROM execution_history"
    return (
        database.rows(f"{moves} WHERE execution_id = :id ORDER BY seq", id=id),
        database.rows(
            "SELECT status, attempts, checkpoints, progress_current, result FROM executions"
            " WHERE id = :id OR parent_id = :id OR replay_of = :id OR idempotency_key = :key"
            " ORDER BY id",
            id=id,
            key=f"of {id}",
        ),
        database.rows("SELECT message, data FROM execution_logs WHERE execution_id = :id", id=id),
    )


def age(database: Database) -> None:
    """Let a minute pass since everything was written.

    So a sweep finds it silent; and whether a write came before a call or during it is beyond doubt.
    """
    times = ("created", "updated", "started", "completed", "deadline", "heartbeat")
    earlier = (f"{time}_at = {time}_at - interval '1 minute'" for time in times)
    database.run(f"UPDATE executions SET {', '.join(earlier)}")


@pytest.fixture(scope="module")
def undisturbed(postgres_database: Database) -> dict[str, Any]:
    """What each call leaves behind, and what it answers."""
    found = {}
    with connect(postgres_database.url) as manager:
        for verb, (situation, call) in VERBS.items():
            postgres_database.run("TRUNCATE executions CASCADE")
            id = bring_to(manager, situation).id
            age(postgres_database)
            answer = known(call(manager, id))
            found[verb] = recorded(postgres_database, id), answer
    return found


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("when", [Cut.BEFORE, Cut.AFTER, Cut.RACING])
def test_a_call_that_was_cut_off_is_made_once(
    postgres_database: Database,
    proxy: Proxy,
    mode: str,
    binding: str,
    when: Cut,
    runner: asyncio.Runner,
    undisturbed: dict[str, Any],
) -> None:
    """Its answer, and what it leaves behind, are those of a call that nobody disturbed."""
    with bound(proxy.url, mode, binding, runner) as manager:
        for verb, (situation, call) in VERBS.items():
            left, answer = undisturbed[verb]
            id = bring_to(manager, situation).id
            age(postgres_database)
            proxy.cut(when)
            assert known(call(manager, id)) == answer
            assert proxy.waiting == 0, verb
            assert recorded(postgres_database, id) == left
            assert_legal(postgres_database)
            postgres_database.run("TRUNCATE executions CASCADE")
    assert proxy.cuts == {when: len(VERBS)}


def test_a_block_knows_nothing_of_cuts(
    postgres_database: Database, proxy: Proxy, mode: str, runner: asyncio.Runner
) -> None:
    with bound(proxy.url, mode, "own", runner) as manager:
        id = manager.create("work").id
        for when in (Cut.AFTER, Cut.BEFORE, Cut.AFTER, Cut.RACING):
            proxy.cut(when)  # the start, two writes, and the end
        with manager.attempt(id) as attempt:
            for _ in attempt.each("ab"):
                age(postgres_database)
        done = manager.get(id)
    assert proxy.waiting == 0
    assert (done.status, done.attempts, done.checkpoints) == ("completed", 1, {"last_index": 1})


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_read_is_read_again(
    proxy: Proxy, mode: str, binding: str, runner: asyncio.Runner
) -> None:
    with bound(proxy.url, mode, binding, runner) as manager:
        id = manager.create("work", idempotency_key="k").id
        manager.log(id, "line")
        for read in (
            lambda: manager.get(id).id == id,
            lambda: manager.find_by_idempotency_key("k").id == id,
            lambda: len(manager.list(type="work")) == 1,
            lambda: len(manager.logs(id)) == 1,
        ):
            proxy.cut(Cut.READING)
            assert read()
            assert proxy.waiting == 0


@pytest.mark.parametrize("binding", BINDINGS)
def test_what_is_cut_off_time_after_time_was_not_done(
    postgres_database: Database, proxy: Proxy, mode: str, binding: str, runner: asyncio.Runner
) -> None:
    with bound(proxy.url, mode, binding, runner) as manager:
        id = manager.create("work").id
        for _ in range(MAX_TRIES):
            proxy.cut(Cut.BEFORE)
        with pytest.raises(
            ConnectionLost, match=f"Cannot start execution {id}: .* several times in a row"
        ):
            manager.start(id)
        assert proxy.waiting == 0
        assert manager.get(id).status == "pending"
        for _ in range(MAX_TRIES):
            proxy.cut(Cut.BEFORE)
        with pytest.raises(ConnectionLost, match=r"Cannot claim executions: .* try again"):
            manager.claim()
        assert manager.start(id).attempts == 1
    assert_legal(postgres_database)


def test_what_cannot_be_asked_is_unknown(proxy: Proxy, mode: str, runner: asyncio.Runner) -> None:
    """The error is the database's own, as it came."""
    with bound(proxy.url, mode, "own", runner) as manager:
        id = manager.create("work").id
        proxy.cut(Cut.AFTER)
        proxy.cut(Cut.READING)  # the first question
        with pytest.raises(OperationalError) as caught:
            manager.start(id)
        assert caught.value.connection_invalidated
        assert "UPDATE" in str(caught.value)
        assert "It is unknown whether start was" in caught.value.__notes__[0]
        assert manager.get(id).status == "running"


def test_what_was_pruned_has_left_no_trace(
    postgres_database: Database, proxy: Proxy, mode: str, runner: asyncio.Runner
) -> None:
    with bound(proxy.url, mode, "own", runner) as manager:
        bring_to(manager, "failed")
        age(postgres_database)
        proxy.cut(Cut.AFTER)
        with pytest.raises(OperationalError):
            manager.prune(timedelta(milliseconds=1))
        assert manager.prune(timedelta(milliseconds=1)) == 0
        assert manager.list() == []


def test_within_a_transaction_a_lost_connection_is_the_callers(
    postgres_database: Database, proxy: Proxy
) -> None:
    engine = create_engine(proxy.url)
    manager = ExecutionManager(SqlExecutionStore(engine))
    id = manager.create("work").id
    with engine.connect() as connection:
        proxy.cut(Cut.AFTER)
        with pytest.raises(OperationalError) as caught:
            manager.within(connection).start(id)
        assert caught.value.connection_invalidated
    assert manager.get(id).status == "pending"
    engine.dispose()


class Interrupted:
    """A manager that is quicker to lose a connection than to ask: others come in between."""

    def __init__(self, proxy: Proxy, runner: asyncio.Runner, mode: str) -> None:
        self.proxy = proxy
        made: Any = connect(proxy.url) if mode == "sync" else connect_async(proxy.url)
        self.manager: Any = made if mode == "sync" else Blocking(made, runner)
        self.direct = made._store._bind
        self.name = "rows" if mode == "sync" else "rows_async"

    def call(self, when: Cut, others: Callable[[], object], call: Callable[[Any], Any]) -> Any:
        rows = getattr(self.direct, self.name)

        def sync(query: Any) -> Any:
            try:
                return rows(query)
            except ConnectionBroken:
                setattr(self.direct, self.name, rows)
                others()
                raise

        async def asynchronous(query: Any) -> Any:
            try:
                return await rows(query)
            except ConnectionBroken:
                setattr(self.direct, self.name, rows)
                others()
                raise

        setattr(self.direct, self.name, sync if self.name == "rows" else asynchronous)
        self.proxy.cut(when)
        return call(self.manager)


@pytest.fixture
def interrupted(proxy: Proxy, mode: str, runner: asyncio.Runner) -> Iterator[Interrupted]:
    made = Interrupted(proxy, runner, mode)
    yield made
    made.manager.close()


def test_what_was_moved_on_since_is_answered_as_it_was(
    interrupted: Interrupted, postgres_database: Database
) -> None:
    with connect(postgres_database.url) as other:

        def go_on(id: str) -> Callable[[], object]:
            def moves() -> None:
                other.fail(id, "late", retryable=True)
                other.start(id, worker="second")

            return moves

        id = other.create("work", max_attempts=3).id
        started: Execution = interrupted.call(
            Cut.AFTER, go_on(id), lambda m: m.start(id, worker="first")
        )
        assert (started.status, started.attempts, started.worker) == ("running", 1, "first")
        assert (other.get(id).attempts, other.get(id).worker) == (2, "second")
        failed = interrupted.call(
            Cut.AFTER, lambda: other.start(id), lambda m: m.fail(id, "no", retryable=True)
        )
        assert (failed.status, failed.attempts, failed.error.message) == ("retrying", 2, "no")
        # An attempt is told at its next write, not taken for its successor.
        id = other.create("work", max_attempts=3).id
        attempt = interrupted.manager.attempt(id)
        interrupted.call(Cut.AFTER, go_on(id), lambda _: attempt.__enter__())
        assert attempt.number == 1
        with pytest.raises(Exception, match="attempt 2 has taken over"):
            attempt.heartbeat()


def test_what_ended_since_has_no_end_in_the_answer(
    interrupted: Interrupted, postgres_database: Database
) -> None:
    """Be it ended by a verb or by hand."""
    by_hand = "UPDATE executions SET status = 'cancelled', completed_at = updated_at WHERE id = :id"
    with connect(postgres_database.url) as other:
        for end in (other.cancel, lambda id: postgres_database.run(by_hand, id=id)):
            id = other.create("work").id
            started = interrupted.call(Cut.AFTER, lambda: end(id), lambda m: m.start(id))  # noqa: B023
            assert (started.status, started.completed_at) == ("running", None)
            assert other.get(id).status == "cancelled"
            assert other.get(id).completed_at is not None


def test_what_was_claimed_is_answered_though_others_wrote_to_it(
    interrupted: Interrupted, postgres_database: Database
) -> None:
    with connect(postgres_database.url) as other:
        ids = [other.create("work", max_attempts=2).id for _ in range(4)]

        def writes() -> None:
            other.checkpoint(ids[0], "note", "by another")
            other.update_progress(ids[1], 1, 2)
            other.complete(ids[2])  # and is no longer the caller's

        claimed = interrupted.call(Cut.AFTER, writes, lambda m: m.claim(limit=3))
        assert [each.id for each in claimed] == ids[:2]
        # Nor is it made again when nothing is left of it.
        for id in ids[:2]:
            other.complete(id)
        end = lambda: other.fail(ids[3], "no", retryable=True)  # noqa: E731
        assert interrupted.call(Cut.AFTER, end, lambda m: m.claim(limit=1)) == []
        assert (other.get(ids[3]).status, other.get(ids[3]).attempts) == ("retrying", 1)


def test_what_was_not_done_meets_what_others_did(
    interrupted: Interrupted, postgres_database: Database
) -> None:
    with connect(postgres_database.url) as other:
        id = other.create("work").id
        with pytest.raises(InvalidStateTransition, match="its status is cancelled"):
            interrupted.call(Cut.BEFORE, lambda: other.cancel(id), lambda m: m.start(id))
        id = other.create("work").id
        with pytest.raises(ExecutionNotFound):
            interrupted.call(Cut.AFTER, lambda: other.delete(id), lambda m: m.start(id))


def test_what_is_in_no_history_is_known_by_its_value(
    interrupted: Interrupted, postgres_database: Database
) -> None:
    """Also when another write has come after it."""
    sent: list[str] = []
    with connect(postgres_database.url) as other:
        id = other.create("work").id
        other.start(id)

        def writes(when: Cut, others: Callable[[], object], call: Callable[[Any], Any]) -> int:
            """Return how many writes it took."""
            before = interrupted.proxy.writes
            sent.append(interrupted.call(when, others, call).id)
            return interrupted.proxy.writes - before

        beat = lambda: other.heartbeat(id)  # noqa: E731
        assert writes(Cut.AFTER, beat, lambda m: m.update_progress(id, 1, 4)) == 1
        assert writes(Cut.AFTER, beat, lambda m: m.checkpoint(id, "k", [1, {"x": None}])) == 1
        assert writes(Cut.AFTER, beat, lambda m: m.advance(id, 2, 4, key="k", value=None)) == 1
        nobody = lambda: None  # noqa: E731
        age(postgres_database)
        assert writes(Cut.BEFORE, nobody, lambda m: m.checkpoint(id, "l", None)) == 2
        age(postgres_database)
        assert writes(Cut.BEFORE, nobody, lambda m: m.update_progress(id, 3, 4)) == 2
        found = other.get(id)
    assert found.checkpoints == {"k": None, "l": None}
    assert found.progress is not None
    assert found.progress.current == 3


def test_what_stands_already_is_refused_all_the_same(
    interrupted: Interrupted, postgres_database: Database
) -> None:
    """A value that is there says nothing of whose it is, or of whether it may be set."""
    nobody = lambda: None  # noqa: E731
    with connect(postgres_database.url) as other:
        for when, others in ((Cut.BEFORE, nobody), (Cut.AFTER, nobody)):
            id = other.create("work", max_attempts=2).id
            other.start(id)
            other.advance(id, 1, 4, key="k", value=1)
            other.fail(id, "no", retryable=True)
            other.start(id)
            age(postgres_database)
            for call in (
                lambda m: m.checkpoint(id, "k", 1, attempt=1),  # noqa: B023
                lambda m: m.update_progress(id, 1, 4, attempt=1),  # noqa: B023
            ):
                with pytest.raises(StaleAttempt):
                    interrupted.call(when, others, call)
            other.cancel(id)
            age(postgres_database)
            with pytest.raises(InvalidStateTransition):
                interrupted.call(when, others, lambda m: m.checkpoint(id, "k", 1))  # noqa: B023


def test_what_is_alike_is_not_the_same(
    interrupted: Interrupted, postgres_database: Database
) -> None:
    """In Python, where true is 1."""
    with connect(postgres_database.url) as other:
        id = other.create("work").id
        other.start(id)
        other.checkpoint(id, "k", [1])
        with pytest.raises(OperationalError):
            interrupted.call(
                Cut.BEFORE, lambda: other.heartbeat(id), lambda m: m.checkpoint(id, "k", [True])
            )
        age(postgres_database)
        before = other.get(id)
        proxy = interrupted.proxy
        proxy.cut(Cut.BEFORE)
        after = interrupted.manager.checkpoint(id, "k", [True])
    assert repr(after.checkpoints) == "{'k': [True]}"
    assert after.heartbeat_at > before.heartbeat_at


@pytest.mark.parametrize("when", [Cut.AFTER, Cut.BEFORE])
def test_what_others_may_have_written_over_is_unknown(
    interrupted: Interrupted, postgres_database: Database, when: Cut
) -> None:
    """Made again, it would undo what came after it; or be refused, though it was made."""
    with connect(postgres_database.url) as other:
        id = other.create("work").id
        other.start(id)

        def writes() -> None:
            other.update_progress(id, 2, 4)
            other.checkpoint(id, "k", 2)

        for call in (
            lambda m: m.update_progress(id, 1, 4),
            lambda m: m.checkpoint(id, "k", 1),
            lambda m: m.advance(id, 1, 4, key="k", value=1),
        ):
            with pytest.raises(OperationalError):
                interrupted.call(when, writes, call)
            found = other.get(id)
            assert found.progress is not None
            assert (found.progress.current, found.checkpoints) == (2, {"k": 2})


def blocked(database: Database) -> list[int]:
    """The server processes that wait for another one's lock."""
    rows = database.rows(
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
    )
    return [row["pid"] for row in rows]


def wait_for(condition: Callable[[], Any]) -> Any:
    limit = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < limit, "it did not come"
        time.sleep(0.01)
    return found


@contextmanager
def held(database: Database, id: str) -> Iterator[Connection]:
    """Hold the row of an execution in a transaction that is still open."""
    with database.engine.connect() as connection:
        query = text("SELECT 1 FROM executions WHERE id = :id FOR UPDATE")
        connection.execute(query, {"id": id})
        yield connection


def started_though_held(
    database: Database, proxy: Proxy, manager: ExecutionManager, id: str
) -> Execution:
    """Start what somebody holds, cut off while it waits: the first statement must not go on."""
    answers: list[Execution] = []
    before = proxy.writes
    with held(database, id):
        proxy.cut(Cut.RACING)
        caller = threading.Thread(target=lambda: answers.append(manager.start(id, worker="me")))
        caller.start()
        # The first one may have been ended before it came so far; the second one waits.
        wait_for(lambda: proxy.writes == before + 2 and len(blocked(database)) == 1)
    caller.join(30)
    (answer,) = answers
    return answer


def test_a_statement_that_waits_is_not_carried_out_later(
    postgres_database: Database, proxy: Proxy
) -> None:
    """The server does not look for its client while it waits for a lock: it is ended."""
    with connect(proxy.url) as manager:
        id = manager.create("work", max_attempts=3).id
        started = started_though_held(postgres_database, proxy, manager, id)
    assert (started.status, started.attempts) == ("running", 1)
    assert_legal(postgres_database)


def test_only_a_process_of_the_lost_connection_is_ended(postgres_database: Database) -> None:
    """Numbers come again, above all after the restart of a container."""
    engine = postgres_database.engine
    with engine.connect() as asking, engine.connect() as other:

        def end(connection: Connection, age: timedelta) -> Any:
            number = connection.scalar(text("SELECT pg_backend_pid()"))
            query = queries.terminate_backend(number, age)
            answer: Any = asking.execute(query.statement, query.parameters).one()
            return answer[1]

        assert end(other, DAY) is False  # it is younger than what was lost
        assert end(asking, timedelta(0)) is None  # it has the number of what was lost
        assert other.scalar(text("SELECT 1")) == 1
        assert end(other, timedelta(0)) is True
        other.invalidate()


def test_an_older_connection_may_ask(postgres_database: Database, proxy: Proxy) -> None:
    """As one of another thread's that was given back in between."""
    with connect(proxy.url) as manager:
        id = manager.create("work").id
        store: Any = manager._store
        direct = store._bind
        older, newer = direct._checkout(), direct._checkout()
        direct._checkin(newer)
        rows = direct.rows

        def quick(query: Any) -> Any:
            try:
                return rows(query)
            except ConnectionBroken:
                direct.rows = rows
                direct._checkin(older)
                raise

        direct.rows = quick
        started = started_though_held(postgres_database, proxy, manager, id)
    assert (started.status, started.attempts, started.worker) == ("running", 1, "me")


def test_a_pooler_in_between_leaves_it_unknown(proxy: Proxy) -> None:
    """Whoever answers is none of the processes that the driver was told of."""
    with connect(proxy.url) as manager:
        id = manager.create("work").id
        direct: Any = manager._store._bind
        meet, direct._learn_backend = direct._learn_backend, lambda pooled: 1
        proxy.cut(Cut.AFTER)
        with pytest.raises(OperationalError):
            manager.start(id)
        direct._learn_backend = meet
        assert manager.get(id).status == "running"


# --- conflicts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_conflict_outside_a_transaction_is_tried_again(
    postgres_database: Database, level: str, mode: str, runner: asyncio.Runner
) -> None:
    """Where the server is set to a stricter level, which single statements take over."""
    options = f"?options=-c%20default_transaction_isolation%3D{level.replace(' ', '%5C%20')}"
    with (
        bound(postgres_database.url + options, "sync", "own", runner) as manager,
        connect(postgres_database.url) as other,
    ):
        for rival, expected in (("checkpoint", "running"), ("cancel", InvalidStateTransition)):
            id = other.create("work").id
            answers: list[Any] = []

            def start(id: str = id, answers: list[Any] = answers) -> None:
                try:
                    answers.append(manager.start(id).status)
                except Exception as error:
                    answers.append(type(error))

            caller = threading.Thread(target=start)
            with held(postgres_database, id) as connection:
                caller.start()
                wait_for(lambda: blocked(postgres_database))
                within = other.within(connection)
                within.checkpoint(id, "k", 1) if rival == "checkpoint" else within.cancel(id)
                connection.commit()
            caller.join(30)
            assert answers == [expected]


def test_a_conflict_that_does_not_end_is_told(postgres_database: Database) -> None:
    """A rival that is always quicker: a trigger that says so, as PostgreSQL does."""
    database = postgres_database
    with connect(database.url) as manager:
        id = manager.create("work").id
        database.run(
            "CREATE FUNCTION rival() RETURNS trigger LANGUAGE plpgsql AS $$"
            " BEGIN RAISE EXCEPTION 'could not serialize' USING ERRCODE = '40001'; END $$"
        )
        database.run(
            "CREATE TRIGGER rival BEFORE UPDATE ON executions FOR EACH ROW EXECUTE FUNCTION rival()"
        )
        try:
            with pytest.raises(ConcurrentUpdate, match=f"Cannot start execution {id}: another"):
                manager.start(id)
            with pytest.raises(ConcurrentUpdate, match=r"Cannot claim executions: .* try again"):
                manager.claim()
        finally:
            database.run("DROP TRIGGER rival ON executions")
            database.run("DROP FUNCTION rival()")
        assert manager.start(id).attempts == 1


def test_a_deadlock_in_the_callers_transactions_is_a_conflict(postgres_database: Database) -> None:
    engine = create_engine(postgres_database.url)
    manager = ExecutionManager(SqlExecutionStore(engine))
    first, second = (manager.create("work").id for _ in range(2))
    outcomes: list[Any] = []

    def cross(connection: Connection, id: str) -> None:
        try:
            outcomes.append(manager.within(connection).start(id).attempts)
            connection.commit()
        except ConcurrentUpdate as problem:
            outcomes.append(problem.verb)
            connection.rollback()

    with engine.connect() as one, engine.connect() as other:
        manager.within(one).start(first)
        manager.within(other).start(second)
        caller = threading.Thread(target=cross, args=(one, second))
        caller.start()
        wait_for(lambda: blocked(postgres_database))
        cross(other, first)
        caller.join(30)
    assert sorted(map(str, outcomes)) == ["1", "start"]
    assert_legal(postgres_database)
    engine.dispose()


def test_a_stale_snapshot_is_a_conflict_in_sqlite(tmp_path: Any) -> None:
    """On SQLite; what PostgreSQL says of a stale snapshot is in `test_docs`."""
    from execution_core import configure_sqlite, migrate

    url = f"sqlite:///{tmp_path}/executions.db"
    migrate.upgrade(url)
    engine = configure_sqlite(create_engine(url))
    manager = ExecutionManager(SqlExecutionStore(engine))
    id = manager.create("work").id
    reader = engine.execution_options(sqlite_begin="DEFERRED")
    with reader.connect() as connection:
        assert manager.within(connection).get(id).status == "pending"
        manager.start(id)
        with pytest.raises(ConcurrentUpdate):
            manager.within(connection).cancel(id)
        connection.rollback()
        assert manager.within(connection).cancel(id).status == "cancelled"
        connection.commit()
    engine.dispose()
