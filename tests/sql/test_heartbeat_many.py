"""One statement for many heartbeats, beside locks, lost connections and broken rows."""

import asyncio
import os
import subprocess
import sys
from contextlib import AbstractContextManager, ExitStack
from datetime import timedelta
from typing import Any

import pytest

from execution_core import connect
from execution_core.core import validation
from execution_core.sql.statements import queries

from ..conftest import Database, open_asyncpg_manager
from ..support.proxy import Cut, Proxy
from ..support.query_plans import explain, insert_rows
from ..support.waiting import wait_until
from .lost_connections import open_bound_manager, row_lock
from .test_executor import heartbeat_many

BINDINGS = pytest.mark.parametrize("binding", ["own", "host", "listening", "asyncpg"])


def open_manager(
    url: str, mode: str, binding: str, runner: asyncio.Runner
) -> AbstractContextManager[Any]:
    if binding == "asyncpg":
        return open_asyncpg_manager(url, runner)
    return open_bound_manager(url, mode, binding, runner)


@BINDINGS
def test_heartbeat_many_skips_locked_row_and_says_that_it_runs(
    postgres_database: Database, mode: str, binding: str, runner: asyncio.Runner
) -> None:
    postgres_database.empty()
    with open_manager(postgres_database.url, mode, binding, runner) as manager:
        before = [manager.start(manager.create("a").id) for _ in range(4)]
        locked, locked_and_lost, *sound = before
        keys = {(each.id, each.attempts) for each in before}
        with (
            row_lock(postgres_database, locked.id),
            row_lock(postgres_database, locked_and_lost.id),
        ):
            lost = (locked_and_lost.id, 2)
            for _ in range(8):  # psycopg prepares it at the sixth execution
                sent = heartbeat_many(manager, [*keys - {(locked_and_lost.id, 1)}, lost])
                assert sent == keys - {(locked_and_lost.id, 1)}
            for each in (locked, locked_and_lost):
                assert manager.get(each.id) == each
            for each in sound:
                assert manager.get(each.id).heartbeat_at > each.heartbeat_at
        assert heartbeat_many(manager, [*keys]) == keys
        assert manager.get(locked.id).heartbeat_at > locked.heartbeat_at


@BINDINGS
def test_heartbeat_many_is_repeated_after_lost_connection(
    postgres_database: Database, proxy: Proxy, mode: str, binding: str, runner: asyncio.Runner
) -> None:
    with open_manager(proxy.url, mode, binding, runner) as manager:
        before = manager.start(manager.create("a").id)
        proxy.cut(Cut.READING)
        assert heartbeat_many(manager, [(before.id, 1)]) == {(before.id, 1)}
        assert proxy.waiting == 0
        assert manager.get(before.id).heartbeat_at > before.heartbeat_at


def test_heartbeat_many_reads_its_rows_alone(database: Database) -> None:
    """Not all that run: other processes have theirs. Whatever the statistics say."""
    insert_rows(database, "completed", 4_000)
    database.run("ANALYZE executions")
    insert_rows(database, "running", 4_000)
    for analyze in (False, True):
        if analyze:
            database.run("ANALYZE executions")
        running = "SELECT CAST(id AS text) AS id FROM executions WHERE status = 'running'"
        keys = [(row["id"], 1) for row in database.rows(f"{running} LIMIT 100")]
        locks_rows = database.name == "postgresql"
        query = queries.heartbeat_many(keys, validation.new_id(), None, locks_rows=locks_rows)
        plan, rows = explain(database, query)
        if database.name == "postgresql":
            assert rows == 3 * len(keys), plan  # to lock, to update and to answer
        assert "Seq Scan" not in plan
        assert "SCAN executions" not in plan
        assert "(status=?)" not in plan, plan


BREAK_SQLITE = """
CREATE TRIGGER refuse BEFORE UPDATE OF heartbeat_at ON executions WHEN NEW.type = 'broken'
BEGIN SELECT RAISE(ABORT, 'refused'); END
"""
BREAK_POSTGRESQL = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'refused'; END $$;
CREATE TRIGGER refuse BEFORE UPDATE OF heartbeat_at ON executions
    FOR EACH ROW WHEN (NEW.type = 'broken') EXECUTE FUNCTION refuse();
"""


@pytest.mark.slow
def test_heartbeats_beside_row_that_a_trigger_refuses_continue(
    own_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """The statement for all of them fails; then the broken one is sent alone."""
    every = timedelta(milliseconds=20)
    with connect(own_database.url) as manager, ExitStack() as blocks:
        ids = {type: manager.create(type).id for type in ("broken", "a", "b", "c")}
        for id in ids.values():
            blocks.enter_context(manager.attempt(id, heartbeat=every))
        sqlite = own_database.name == "sqlite"
        own_database.run(BREAK_SQLITE if sqlite else BREAK_POSTGRESQL)
        wait_until(lambda: f"attempt 1 of execution {ids['broken']} could not" in caplog.text)
        for _ in range(3):
            sound = [manager.get(ids[type]) for type in "abc"]
            wait_until(lambda: all(manager.get(each.id) != each for each in sound))  # noqa: B023
        own_database.run(f"DROP TRIGGER refuse{'' if sqlite else ' ON executions'}")
        before = manager.get(ids["broken"])
        wait_until(lambda: manager.get(before.id) != before)
    assert all(ids[type] not in caplog.text for type in "abc")


FORK = """
import os, sys, threading, time
from datetime import timedelta
from execution_core import connect

EVERY = timedelta(milliseconds=10)
manager = connect(sys.argv[1])
sent = []
heartbeat_many = manager._store.heartbeat_many

def recorded(attempts):
    sent.append({id for id, _ in attempts})
    time.sleep(0.02)  # so that a call is under way at the fork
    return heartbeat_many(attempts)

def wait_for(id):
    before, limit = manager.get(id), time.monotonic() + 30
    while manager.get(id) == before:
        assert time.monotonic() < limit, id
        time.sleep(0.005)

manager._store.heartbeat_many = recorded
ids = [manager.create("a").id for _ in range(4)]
children = []
with (
    manager.attempt(ids[0], heartbeat=EVERY),
    manager.attempt(ids[1], heartbeat=EVERY) as inherited,
):
    wait_for(ids[0])
    for id in ids[2:]:
        if not (child := os.fork()):
            sent.clear()
            try:
                inherited._heartbeat.end()  # the call under way is the parent's
                for _ in range(2):
                    with manager.attempt(id, heartbeat=EVERY, retry_on=ValueError):
                        wait_for(id)
                        names = [each.name for each in threading.enumerate()]
                        assert names.count("heartbeats") == 1, names
                        id = manager.create("a").id
                assert not any(each & {*ids[:2]} for each in sent), "of the parent"
            except BaseException as error:
                print(type(error).__name__, error, flush=True)
                os._exit(1)
            os._exit(0)
        children.append(child)
    wait_for(ids[0])
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 2
    wait_for(ids[0])
manager.close()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_heartbeats_of_forked_children_have_a_thread_of_their_own(database: Database) -> None:
    """Those of the block that is open during the fork are sent by the parent alone."""
    ran = subprocess.run(
        [sys.executable, "-c", FORK, database.url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    rows = database.rows("SELECT status, count(*) AS n FROM executions GROUP BY status")
    assert {row["status"] for row in rows} == {"completed", "pending"}
    assert sorted(row["n"] for row in rows) == [2, 6]
