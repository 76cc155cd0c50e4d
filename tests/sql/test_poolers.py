"""Behind a real PgBouncer every call executes its own statements, and none is prepared."""

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from execution_core import ExecutionFailure, connect
from execution_core.sql.driver.session import BACKEND

from ..conftest import Database
from ..support.history import assert_legal
from ..support.pgbouncer import BINARY, MISSING, pgbouncer
from ..support.postgres import dsn
from ..support.processes import PROCESSES, race
from ..support.sampling import in_whole
from .lost_connections import blocked_pids, open_bound_manager, row_lock, wait_for
from .test_lost_connections import BINDINGS

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)
LIFECYCLES = 1250 if "EXECUTION_CORE_PROOF" in os.environ else in_whole(200, 50)
"""Of each of the processes."""


@pytest.fixture(params=["transaction", "session"])
def bouncer(request: pytest.FixtureRequest, postgres_database: Database) -> Iterator[str]:
    """The URL of the empty PostgreSQL database through a PgBouncer."""
    postgres_database.empty()
    with pgbouncer(postgres_database.url, request.param) as url:
        yield url


@pytest.mark.parametrize("binding", BINDINGS)
def test_pooler_call_prepares_nothing(
    bouncer: str, mode: str, binding: str, runner: asyncio.Runner
) -> None:
    with open_bound_manager(bouncer, mode, binding, runner) as manager:
        id = manager.create("work").id
        for _ in range(12):
            assert manager.get(id).id == id
        for _ in range(12):
            with psycopg.connect(dsn(bouncer), autocommit=True, prepare_threshold=None) as client:
                # Of this client's server connection, each time another one.
                found = client.execute("SELECT statement FROM pg_prepared_statements").fetchall()
                assert found == []


def test_direct_connection_prepares_frequent_statements(postgres_database: Database) -> None:
    """Without a pooler nothing is lost."""
    with connect(postgres_database.url) as manager:
        store: Any = manager._store
        id = manager.create("work").id
        for _ in range(12):
            manager.get(id)
        (connection,) = store._bind._idle._connections
        assert not connection.info[BACKEND].pooled
        prepared = connection.driver_connection.execute("SELECT * FROM pg_prepared_statements")
        assert len(prepared.fetchall()) == 1


def test_pooler_get_beside_delete_of_another_client_deletes_nothing(
    postgres_database: Database,
) -> None:
    """Both statements have one parameter of one type, and would be prepared under one name."""
    postgres_database.empty()
    with (
        pgbouncer(postgres_database.url, "transaction", round_robin=False) as url,
        connect(url) as reader,
        connect(url) as deleter,
        psycopg.connect(dsn(url), prepare_threshold=None) as one,
        psycopg.connect(dsn(url), prepare_threshold=None) as another,
    ):
        ids = [reader.create("work").id for _ in range(20)]
        one.execute("SELECT 1")  # an open transaction keeps a server connection
        for _ in range(8):
            reader.get(ids[0])
        another.execute("SELECT 1")
        for id in ids[1:9]:
            deleter.delete(id)
        for holder in (one, another, one, another):
            holder.rollback()
            assert reader.get(ids[15]).id == ids[15]
            holder.execute("SELECT 1")


def run_lifecycles(number: int, url: str, count: int) -> dict[str, str]:
    """Run lifecycles; return the last status that a call answered, by id."""
    answers = {}
    with connect(url) as manager:
        for n in range(count):
            job = manager.start(manager.create(f"of-{number}", {"n": n}, max_attempts=2).id)
            assert (job.status, job.attempts, job.payload) == ("running", 1, {"n": n})
            match n % 5:
                case 0:
                    done = manager.complete(job.id, {"n": n}, attempt=1)
                case 1:
                    done = manager.fail(job.id, ExecutionFailure(message="no", retryable=True))
                case 2:
                    done = manager.timeout(job.id)
                case 3:
                    done = manager.cancel(job.id, "why")
                case _:
                    done = manager.update_progress(job.id, n, count)
            assert done.id == job.id
            assert manager.get(job.id) == done
            answers[job.id] = str(done.status)
    return answers


@pytest.mark.slow
def test_pooler_lifecycles_of_eight_processes_equal_history(
    bouncer: str, postgres_database: Database
) -> None:
    answers: dict[str, str] = {}
    for of_process in race(run_lifecycles, bouncer, LIFECYCLES):
        answers |= of_process
    rows = postgres_database.rows("SELECT id, status FROM executions")
    assert {str(row["id"]): row["status"] for row in rows} == answers
    assert len(answers) == PROCESSES * LIFECYCLES
    assert_legal(postgres_database)
    moves = Counter(
        (row["from_status"], row["to_status"])
        for row in postgres_database.rows("SELECT from_status, to_status FROM execution_history")
    )
    assert moves[None, "pending"] == moves["pending", "running"] == len(answers)
    assert moves.total() == len(answers) * 2 + sum(s != "running" for s in answers.values())


def test_pooler_lost_server_connection_outcome_is_unknown(
    bouncer: str, postgres_database: Database, mode: str, runner: asyncio.Runner
) -> None:
    """The server process ends while the statement waits for a lock."""
    with open_bound_manager(bouncer, mode, "own", runner) as manager:
        id = manager.create("work").id
        ended = threading.Event()

        def end_waiting_process() -> None:
            (pid,) = wait_for(lambda: blocked_pids(postgres_database))
            postgres_database.rows("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
            ended.set()

        with row_lock(postgres_database, id):
            threading.Thread(target=end_waiting_process).start()
            with pytest.raises(OperationalError) as caught:
                manager.start(id)
            assert ended.wait(10)
        assert "It is unknown whether start was" in caught.value.__notes__[0]
        assert manager.get(id).status == "pending"
        assert manager.start(id).attempts == 1
