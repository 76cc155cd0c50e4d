"""A call whose connection is lost takes effect exactly once; a proxy cuts the connections.

PostgreSQL only: SQLite has no connection to lose.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Text, create_engine, text
from sqlalchemy.exc import OperationalError

from execution_core import (
    ConnectionLost,
    Execution,
    ExecutionManager,
    InvalidValue,
    SqlExecutionStore,
    connect,
)
from execution_core.core.creation import MAX_TRIES
from execution_core.sql.driver.session import SELECT_BACKEND, Backend, ConnectionBroken
from execution_core.sql.recovery import queries
from execution_core.sql.statements.queries import Query

from ..conftest import Database
from ..support.history import assert_legal
from ..support.proxy import Cut, Proxy
from ..support.states import bring_to
from ..support.verbs import UNKNOWN, news
from .lost_connections import (
    DAY,
    age_by_a_minute,
    blocked_pids,
    open_bound_manager,
    row_lock,
    wait_for,
)

Verb = tuple[str, Callable[[Any, str], Any]]

# The state before the call, and the call.
VERBS: dict[str, Verb] = {
    "start": ("pending", lambda m, id: m.start(id, worker="w")),
    "claim": ("pending", lambda m, id: m.claim("work", worker="w")),
    "complete": ("running", lambda m, id: m.complete(id, {"r": [1, None]}, attempt=1)),
    "fail": ("running", lambda m, id: m.fail(id, "no", retryable=False)),
    "fail retryable": ("running", lambda m, id: m.fail(id, "no", retryable=True, retry_after=DAY)),
    "timeout": ("running", lambda m, id: m.timeout(id)),
    "sweep": ("running", lambda m, id: m.sweep(stalled_after=timedelta(milliseconds=1))),
    "cancel": ("running", lambda m, id: m.cancel(id, "why")),
    "cancel retrying": ("retrying", lambda m, id: m.cancel(id, by="ada")),
    "retry": ("failed", lambda m, id: m.retry(id)),
    "retry of retrying": ("retrying", lambda m, id: m.retry(id, extra_attempts=5)),
    "release": ("running", lambda m, id: m.release(id, attempt=1)),
    "annotate": ("running", lambda m, id: m.annotate(id, {"ü": [1]})),
    "redact": ("failed", lambda m, id: m.redact(id)),
    "sweep and retry": (
        "running",
        lambda m, id: m.sweep(stalled_after=timedelta(milliseconds=1), retry=True),
    ),
    "heartbeat": ("running", lambda m, id: m.heartbeat(id, attempt=1)),
    "update_progress": ("running", lambda m, id: m.update_progress(id, 1, 3, message="m")),
    "checkpoint": ("running", lambda m, id: m.checkpoint(id, 'k"', {"v": [1.5]})),
    "advance": ("running", lambda m, id: m.advance(id, 1, 3, key="k", value=1)),
    "create": ("pending", lambda m, id: m.create("more", {"p": 1}, parent_id=id)),
    "create with a key": ("pending", lambda m, id: m.create("more", idempotency_key=f"of {id}")),
    "create_many": ("pending", lambda m, id: m.create_many(news(id))),
    "complete_many": ("running", lambda m, id: m.complete_many([(id, [1]), (UNKNOWN, 2)])[:1]),
    "fail_many": (
        "running",
        lambda m, id: m.fail_many([(id, "no"), (UNKNOWN, "no")], retry_after=DAY)[:1],
    ),
    "replay": ("failed", lambda m, id: m.replay(id)),
    "log": ("running", lambda m, id: m.log(id, "line", data={"n": 1}, attempt=1)),
    "delete": ("failed", lambda m, id: m.delete(id)),
}

BINDINGS = ["own", "host's", "listening"]


def comparable(answer: Any) -> Any:
    """Return an answer without what differs between two calls: ids and times."""
    if isinstance(answer, list):
        return [comparable(each) for each in answer]
    if answer is None:
        return None
    varying = {"id", "execution_id", "parent_id", "replay_of", "idempotency_key", "updated_at"}
    varying |= {name for name, value in answer if name.endswith("_at") and value is not None}
    return answer.model_dump(exclude=varying)


def stored(database: Database, id: str) -> Any:
    """Return all stored values of an execution, its children and its replays."""
    history = "SELECT from_status, to_status, attempt, reason FROM execution_history"
    return (
        database.rows(f"{history} WHERE execution_id = :id ORDER BY seq", id=id),
        database.rows(
            "SELECT status, attempts, max_attempts, checkpoints, progress_current, result, metadata"
            " FROM executions"
            " WHERE id = :id OR parent_id = :id OR replay_of = :id OR idempotency_key = :key"
            " ORDER BY id",
            id=id,
            key=f"of {id}",
        ),
        database.rows("SELECT message, data FROM execution_logs WHERE execution_id = :id", id=id),
    )


@pytest.fixture(scope="module")
def undisturbed(postgres_database: Database) -> dict[str, Any]:
    """Return what each call stores and returns when no connection is lost."""
    found = {}
    with connect(postgres_database.url) as manager:
        for verb, (state, call) in VERBS.items():
            postgres_database.empty()
            id = bring_to(manager, state).id
            age_by_a_minute(postgres_database)
            answer = comparable(call(manager, id))
            found[verb] = stored(postgres_database, id), answer
    return found


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("when", [Cut.BEFORE, Cut.AFTER, Cut.RACING])
def test_lost_connection_every_verb_takes_effect_once(
    postgres_database: Database,
    proxy: Proxy,
    mode: str,
    binding: str,
    when: Cut,
    runner: asyncio.Runner,
    undisturbed: dict[str, Any],
) -> None:
    """The answer and the stored values are those of a call without a lost connection."""
    with open_bound_manager(proxy.url, mode, binding, runner) as manager:
        for verb, (state, call) in VERBS.items():
            expected, answer = undisturbed[verb]
            id = bring_to(manager, state).id
            age_by_a_minute(postgres_database)
            proxy.cut(when)
            assert comparable(call(manager, id)) == answer
            assert proxy.waiting == 0, verb
            assert stored(postgres_database, id) == expected
            assert_legal(postgres_database)
            postgres_database.empty()
    assert proxy.cuts == {when: len(VERBS)}


def test_lost_connection_attempt_block_completes(
    postgres_database: Database, proxy: Proxy, mode: str, runner: asyncio.Runner
) -> None:
    with open_bound_manager(proxy.url, mode, "own", runner) as manager:
        id = manager.create("work").id
        for when in (Cut.AFTER, Cut.BEFORE, Cut.AFTER, Cut.RACING):
            proxy.cut(when)  # at the start, at two writes and at the end
        with manager.attempt(id) as attempt:
            for _ in attempt.each("ab"):
                age_by_a_minute(postgres_database)
        done = manager.get(id)
    assert proxy.waiting == 0
    assert (done.status, done.attempts, done.checkpoints) == ("completed", 1, {"last_index": 1})


@pytest.mark.parametrize("binding", BINDINGS)
def test_lost_connection_read_is_repeated(
    proxy: Proxy, mode: str, binding: str, runner: asyncio.Runner
) -> None:
    with open_bound_manager(proxy.url, mode, binding, runner) as manager:
        id = manager.create("work", idempotency_key="k").id
        manager.log(id, "line")
        for call_and_check in (
            lambda: manager.get(id).id == id,
            lambda: manager.find_by_idempotency_key("k").id == id,
            lambda: len(manager.list(type="work")) == 1,
            lambda: len(manager.logs(id)) == 1,
            lambda: len(manager.history(id)) == 1,
            lambda: manager.attempts(id) == [],
        ):
            proxy.cut(Cut.READING)
            assert call_and_check()
            assert proxy.waiting == 0


@pytest.mark.slow
@pytest.mark.parametrize("binding", BINDINGS)
def test_lost_connection_repeatedly_raises_connection_lost(
    postgres_database: Database, proxy: Proxy, mode: str, binding: str, runner: asyncio.Runner
) -> None:
    with open_bound_manager(proxy.url, mode, binding, runner) as manager:
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


def test_lost_connection_during_verification_outcome_is_unknown(
    proxy: Proxy, mode: str, runner: asyncio.Runner
) -> None:
    """The error is the original error of the database, with a note."""
    with open_bound_manager(proxy.url, mode, "own", runner) as manager:
        id = manager.create("work").id
        proxy.cut(Cut.AFTER)
        proxy.cut(Cut.READING)  # the first query of the verification
        with pytest.raises(OperationalError) as caught:
            manager.start(id)
        assert caught.value.connection_invalidated
        assert "UPDATE" in str(caught.value)
        assert "It is unknown whether start was" in caught.value.__notes__[0]
        assert manager.get(id).status == "running"


def test_lost_connection_prune_outcome_is_unknown(
    postgres_database: Database, proxy: Proxy, mode: str, runner: asyncio.Runner
) -> None:
    with open_bound_manager(proxy.url, mode, "own", runner) as manager:
        bring_to(manager, "failed")
        age_by_a_minute(postgres_database)
        proxy.cut(Cut.AFTER)
        with pytest.raises(OperationalError):
            manager.prune(timedelta(milliseconds=1))
        assert manager.prune(timedelta(milliseconds=1)) == 0
        assert manager.list() == []


def test_lost_connection_in_host_transaction_is_raised(
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


def start_while_row_is_locked(
    database: Database, proxy: Proxy, manager: ExecutionManager, id: str
) -> Execution:
    """Start an execution whose row is locked; lose the connection while the statement waits."""
    answers: list[Execution] = []
    before = proxy.writes
    with row_lock(database, id):
        proxy.cut(Cut.RACING)
        caller = threading.Thread(target=lambda: answers.append(manager.start(id, worker="me")))
        caller.start()
        # The first statement is terminated; the second one waits for the lock.
        wait_for(lambda: proxy.writes == before + 2 and len(blocked_pids(database)) == 1)
    caller.join(30)
    (answer,) = answers
    return answer


def test_lost_connection_waiting_statement_is_terminated(
    postgres_database: Database, proxy: Proxy
) -> None:
    """A backend that waits for a lock does not notice a lost client, so it is terminated."""
    with connect(proxy.url) as manager:
        id = manager.create("work", max_attempts=3).id
        started = start_while_row_is_locked(postgres_database, proxy, manager, id)
    assert (started.status, started.attempts) == ("running", 1)
    assert_legal(postgres_database)


def backend_of(connection: Connection) -> Backend:
    number, started, server_started = connection.exec_driver_sql(SELECT_BACKEND).one()
    return Backend(number, started, server_started, pooled=False)


@pytest.mark.parametrize("differs", ["started", "server_started"])
def test_end_backend_of_another_session_is_refused(
    postgres_database: Database, differs: str
) -> None:
    """Process ids are reused, above all after a failover and in containers."""
    engine = postgres_database.engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as asking, engine.connect() as other:

        def end(backend: Backend) -> Any:
            query = queries.end_backend(backend, 0)
            return asking.execute(query.statement, query.parameters).scalar()

        found = backend_of(other)
        changed = found._replace(**{differs: getattr(found, differs) - 1})
        assert end(changed) == {"started": "ended", "server_started": "another server"}[differs]
        assert end(found._replace(number=backend_of(asking).number)) == "ended"
        assert other.scalar(text("SELECT 1")) == 1
        assert end(found) == "ended"
        with pytest.raises(OperationalError):
            other.scalar(text("SELECT 1"))
        other.invalidate()
        assert end(found) == "ended"


def test_end_backend_hidden_from_role_is_refused(postgres_database: Database) -> None:
    engine = postgres_database.engine
    role = f"blind_{os.getpid()}"
    postgres_database.run(f"CREATE ROLE {role}")
    try:
        with engine.connect() as asking, engine.connect() as other:
            query = queries.end_backend(backend_of(other), 0)
            asking.exec_driver_sql(f"SET ROLE {role}")
            state = asking.execute(query.statement, query.parameters).scalar()
            assert state == "hidden from this role"
            assert other.scalar(text("SELECT 1")) == 1
    finally:
        postgres_database.run(f"DROP ROLE {role}")


def test_lost_connection_process_that_ends_by_itself_leaves_outcome_known(
    postgres_database: Database, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a pause of a second, it was often unknown whether `start` or the lost call was last."""
    assert postgres_database
    queried: list[float] = []
    end_backend = queries.end_backend

    def first_in_vain(backend: Backend, seconds: float) -> Any:
        queried.append(seconds)
        if queried[1:]:
            return end_backend(backend, seconds)
        return Query(text(f"SELECT '{queries.STILL_ENDING}'").columns(state=Text), {}, "get")

    monkeypatch.setattr(queries, "end_backend", first_in_vain)
    with connect(proxy.url) as manager:
        id = manager.create("work").id
        manager.start(id)
        time.sleep(0.05)
        proxy.cut(Cut.BEFORE)
        manager.update_progress(id, 1, 2)
    assert len(queried) == 2
    assert sum(queried) < 0.1


def test_lost_connection_older_connection_can_verify(
    postgres_database: Database, proxy: Proxy
) -> None:
    """Another thread may return an older connection before the verification."""
    with connect(proxy.url) as manager:
        id = manager.create("work").id
        store: Any = manager._store
        direct = store._bind
        older, newer = direct._checkout(), direct._checkout()
        direct._checkin(newer)
        rows = direct.rows

        def rows_then_check_in(query: Any) -> Any:
            try:
                return rows(query)
            except ConnectionBroken:
                direct.rows = rows
                direct._checkin(older)
                raise

        direct.rows = rows_then_check_in
        started = start_while_row_is_locked(postgres_database, proxy, manager, id)
    assert (started.status, started.attempts, started.worker) == ("running", 1, "me")


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("committed", [True, False])
def test_lost_connection_behind_pooler_only_found_writes_are_known(
    proxy: Proxy, mode: str, binding: str, runner: asyncio.Runner, *, committed: bool
) -> None:
    """Behind a pooler the server process cannot be ended, so it may still commit."""
    with open_bound_manager(proxy.pooled_url, mode, binding, runner) as manager:
        id = manager.create("work").id
        proxy.cut(Cut.AFTER if committed else Cut.BEFORE)
        if committed:
            assert manager.start(id, worker="me").worker == "me"
        else:
            with pytest.raises(OperationalError) as caught:
                manager.start(id)
            assert "It is unknown whether start was" in caught.value.__notes__[0]
        assert manager.get(id).status == ("running" if committed else "pending")


@pytest.mark.parametrize("binding", ["own", "host's"])
def test_connection_ended_while_idle_is_not_used(
    postgres_database: Database, proxy: Proxy, mode: str, binding: str, runner: asyncio.Runner
) -> None:
    """Otherwise the outcome of the next call would be unknown behind a pooler."""
    with open_bound_manager(proxy.pooled_url, mode, binding, runner) as manager:
        id = manager.create("work").id
        ended = postgres_database.rows(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = 'behind-a-pooler' AND datname = current_database()"
        )
        assert ended
        wait_for(lambda: not proxy.open_connections)
        assert manager.start(id).status == "running"


@pytest.mark.parametrize("binding", ["own", "host's"])
def test_statement_that_leaves_a_transaction_open_is_refused(
    postgres_database: Database, proxy: Proxy, mode: str, binding: str, runner: asyncio.Runner
) -> None:
    """Pgpool in raw mode drops such a connection, and what was written on it, silently."""
    with open_bound_manager(proxy.url, mode, binding, runner) as manager:
        id = manager.create("work").id
        proxy.leaves_open = True
        with pytest.raises(InvalidValue, match="left a transaction open"):
            manager.get(id)
        proxy.leaves_open = False
        assert manager.start(id).attempts == 1


@pytest.mark.parametrize("binding", BINDINGS)
def test_connection_lost_at_its_first_query_call_is_repeated(
    proxy: Proxy, mode: str, binding: str, runner: asyncio.Runner
) -> None:
    """That query asks for the server process, before anything else is sent."""
    with open_bound_manager(proxy.url, mode, binding, runner) as manager:
        id = manager.create("work").id  # the first connection of an engine has other queries, too
        target: Any = manager if mode == "sync" else manager.target
        executor = target._store._bind
        executor.close() if mode == "sync" else runner.run(executor.close_async())
        proxy.cut(Cut.READING)
        assert manager.start(id).attempts == 1
        assert proxy.waiting == 0
