"""Workers killed inside their blocks: no item is lost, none before a checkpoint is repeated."""

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from execution_core import AttemptLost, ExecutionManager, SqlExecutionStore, connect, connect_async
from execution_core.sql.driver.engine import create_sync_engine

from ..conftest import Database
from ..support.history import assert_legal
from ..support.processes import spawn
from ..support.sampling import in_whole

KILLS = in_whole(50, 8)
WORKERS = 4
ITEMS = 30
EVERY = 4
BEAT = timedelta(milliseconds=50)
STALLED = timedelta(milliseconds=400)

DONE = "CREATE TABLE done (execution_id TEXT, attempt INTEGER, item INTEGER)"
COVERED = "CREATE TABLE covered (execution_id TEXT, attempt INTEGER, last INTEGER)"
# Records, independently of the library, the checkpoint at which each attempt began.
RECORD_CHECKPOINT_SQLITE = """
CREATE TRIGGER watch AFTER UPDATE OF status ON executions WHEN NEW.status = 'running'
BEGIN
    INSERT INTO covered
    VALUES (NEW.id, NEW.attempts, coalesce(NEW.checkpoints ->> 'last_index', -1));
END
"""
RECORD_CHECKPOINT_POSTGRESQL = """
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO covered VALUES
        (NEW.id::text, NEW.attempts, coalesce((NEW.checkpoints ->> 'last_index')::integer, -1));
    RETURN NULL;
END $$;
CREATE TRIGGER watch AFTER UPDATE OF status ON executions
    FOR EACH ROW WHEN (NEW.status = 'running') EXECUTE FUNCTION watch();
"""
DROP_POSTGRESQL = "DROP TRIGGER watch ON executions; DROP FUNCTION watch"


def work(url: str, stop: Any) -> None:
    name, engine = f"{os.getpid()}", create_sync_engine(url)
    with connect(url) as manager:
        while not stop.is_set():
            for claimed in manager.claim("batch", worker=name):
                try:
                    with manager.attempt(claimed, heartbeat=BEAT) as attempt:
                        for item in attempt.each(range(ITEMS), every=EVERY):
                            process_item(engine, claimed.id, attempt.number, item)
                        attempt.result = name
                except AttemptLost:
                    pass


def work_in_asyncio(url: str, stop: Any) -> None:
    name, engine = f"{os.getpid()}", create_sync_engine(url)

    async def run() -> None:
        async with connect_async(url) as manager:
            while not stop.is_set():
                for claimed in await manager.claim("batch", worker=name):
                    try:
                        async with manager.attempt(claimed, heartbeat=BEAT) as attempt:
                            async for item in attempt.each(range(ITEMS), every=EVERY):
                                await asyncio.to_thread(
                                    process_item, engine, claimed.id, attempt.number, item
                                )
                            attempt.result = name
                    except AttemptLost:
                        pass

    asyncio.run(run())


def process_item(engine: Engine, id: str, attempt: int, item: int) -> None:
    """Record an item in the host's own table and transaction."""
    time.sleep(0.001)
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO done VALUES (:id, :attempt, :item)"),
            {"id": id, "attempt": attempt, "item": item},
        )


def sweep(engine: Engine, stop: threading.Event) -> None:
    manager = ExecutionManager(SqlExecutionStore(engine))
    while not stop.wait(0.02):
        with engine.begin() as connection:
            inside = manager.within(connection)
            for lost in inside.sweep(stalled_after=STALLED):
                inside.retry(lost.id)


class Workers:
    """A constant number of worker processes: a killed one is replaced."""

    def __init__(self, url: str) -> None:
        self.url, self.stop = url, spawn.Event()
        self.processes = [self.start(n) for n in range(WORKERS)]

    def start(self, n: int) -> Any:
        process = spawn.Process(
            target=(work, work_in_asyncio)[n % 2], args=(self.url, self.stop), daemon=True
        )
        process.start()
        return process

    def kill_one(self) -> str:
        n = random.randrange(WORKERS)
        killed = self.processes[n]
        killed.kill()
        killed.join()
        assert killed.exitcode == -signal.SIGKILL
        self.processes[n] = self.start(n)
        return str(killed.pid)

    def end(self) -> None:
        self.stop.set()
        for process in self.processes:
            process.join(30)
            process.kill()


@pytest.mark.slow
def test_kill_of_workers_loses_no_item(database: Database, tell: Callable[[str], None]) -> None:
    watch = RECORD_CHECKPOINT_SQLITE if database.name == "sqlite" else RECORD_CHECKPOINT_POSTGRESQL
    for statement in (DONE, COVERED, watch):
        database.run(statement)
    stop, begun = threading.Event(), time.monotonic()
    sweeper = threading.Thread(target=sweep, args=(database.engine, stop))
    sweeper.start()
    workers = Workers(database.url)
    kills = 0
    try:
        with connect(database.url) as manager:
            while kills < KILLS:
                assert time.monotonic() < begun + 240, (
                    f"only {kills} were killed inside their blocks"
                )
                while len(manager.list(status=["pending", "retrying"], limit=9)) < 9:
                    manager.create("batch", max_attempts=10_000)
                time.sleep(random.uniform(0, 0.15))
                pid = workers.kill_one()
                # A worker killed inside its block leaves the execution running.
                kills += any(e.worker == pid for e in manager.list(status="running"))
            while waiting := manager.list(status=["pending", "running", "retrying", "timed_out"]):
                assert time.monotonic() < begun + 300, waiting
                time.sleep(0.05)
    finally:
        workers.end()
        stop.set()
        sweeper.join()
        if database.name == "postgresql":
            database.run(DROP_POSTGRESQL)
        done = database.rows("SELECT * FROM done ORDER BY execution_id, attempt, item")
        covered = {
            (row["execution_id"], row["attempt"]): row["last"]
            for row in database.rows("SELECT * FROM covered")
        }
        database.run("DROP TABLE done")
        database.run("DROP TABLE covered")
    rows = database.rows("SELECT * FROM executions")
    assert {row["status"] for row in rows} == {"completed"}
    for row in rows:
        assert {d["item"] for d in done if d["execution_id"] == str(row["id"])} == {*range(ITEMS)}
    for each in done:
        assert each["item"] > covered[each["execution_id"], each["attempt"]]
    assert_legal(database)
    (lost,) = database.rows(
        "SELECT count(*) AS n FROM execution_history WHERE to_status = 'timed_out'"
    )
    assert lost["n"] >= KILLS
    repeated = len(done) - ITEMS * len(rows)
    assert repeated <= EVERY * lost["n"]
    tell(
        f"{database.name}: {kills} killed in a block, {lost['n']} swept, {len(rows)} executions,"
        f" {ITEMS * len(rows)} items, {repeated} repeated,"
        f" {time.monotonic() - begun:.0f} s"
    )
