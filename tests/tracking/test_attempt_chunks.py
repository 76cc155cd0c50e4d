"""Batches in transactions of the caller's: `attempt.chunks`."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import sessionmaker

from execution_core import AttemptLost, ExecutionManager, InvalidValue, connect
from execution_core.sql.driver.engine import create_async_engine, create_sync_engine

from ..conftest import Database, open_manager
from ..support.attempts import LOSSES, Outage

INSERT = text("INSERT INTO chunk_rows (n) VALUES (:n)")


@dataclass
class Host:
    """A service with a table of its own: a manager, and what begins transactions."""

    database: Database
    manager: ExecutionManager
    engine: Any
    sessions: Any

    def load(self, attempt: Any, items: Any, **options: Any) -> Iterator[Any]:
        """Insert each item; yield each chunk while its transaction is open."""
        for chunk in attempt.chunks(items, **options):
            with chunk.begin(self.sessions) as session:
                session.execute(INSERT, [{"n": n} for n in chunk])
                yield chunk

    @property
    def rows(self) -> list[int]:
        return [row["n"] for row in self.database.rows("SELECT n FROM chunk_rows ORDER BY n")]


@pytest.fixture
def host(database: Database, mode: str, runner: asyncio.Runner) -> Iterator[Host]:
    # Without a constraint: an item that is done twice must show.
    database.run("CREATE TABLE chunk_rows (n integer)")
    with open_manager(database.url, mode, runner) as manager:
        if mode == "sync":
            engine: Any = create_sync_engine(database.url)
            yield Host(database, manager, engine, sessionmaker(engine))
            engine.dispose()
        else:
            engine = create_async_engine(database.url)
            yield Host(database, manager, engine, async_sessionmaker(engine))
            runner.run(engine.dispose())
    database.run("DROP TABLE chunk_rows")


KINDS: dict[str, Callable[[int], Any]] = {
    "list": lambda n: list(range(n)),
    "range": range,
    "generator": lambda n: (k for k in range(n)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 4, 5, 100])
def test_chunks_after_error_resume_after_last_commit(host: Host, kind: str, size: int) -> None:
    job = host.manager.create("load", max_attempts=2)
    with pytest.raises(Outage), host.manager.attempt(job.id, retry_on=Outage) as attempt:
        for chunk in host.load(attempt, KINDS[kind](12), size=size):
            if 7 in chunk:
                raise Outage
    done = 7 // size * size
    left = host.manager.get(job.id)
    assert (left.status, host.rows) == ("retrying", list(range(done)))
    assert left.checkpoints == ({"last_index": done - 1} if done else {})
    with host.manager.attempt(job.id) as attempt:
        chunks = [list(chunk) for chunk in host.load(attempt, KINDS[kind](12), size=size)]
        assert attempt.checkpoints == {"last_index": 11}
    assert [len(chunk) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
    assert host.rows == list(range(12))
    completed = host.manager.get(job.id)
    assert completed.progress is not None
    assert (completed.progress.current, completed.progress.total) == (12, 12)
    assert completed.status == "completed"


def test_chunks_on_an_engine_give_connections(host: Host) -> None:
    with host.manager.attempt(host.manager.create("load").id) as attempt:
        for chunk in attempt.chunks(range(5), size=2):
            with chunk.begin(host.engine) as connection:
                connection.execute(INSERT, [{"n": n} for n in chunk])
    assert host.rows == list(range(5))


def test_chunks_of_an_execution_lost_in_between_roll_back(host: Host) -> None:
    for lose, reason in LOSSES.values():
        host.database.run("DELETE FROM chunk_rows")
        job = host.manager.create("load", max_attempts=3)
        with pytest.raises(AttemptLost, match=reason), host.manager.attempt(job.id) as attempt:
            for chunk in attempt.chunks(range(6), size=2):
                if 2 in chunk:
                    lose(host.manager, job.id)
                with chunk.begin(host.sessions) as session:
                    session.execute(INSERT, [{"n": n} for n in chunk])
        assert host.rows == [0, 1]


def test_chunks_break_keeps_what_is_committed(host: Host) -> None:
    job = host.manager.create("load")
    with host.manager.attempt(job.id) as attempt:
        for chunk in attempt.chunks(range(6), size=2):
            with chunk.begin(host.sessions) as session:
                session.execute(INSERT, [{"n": n} for n in chunk])
            if 3 in chunk:
                break
    found = host.manager.get(job.id)
    assert (found.status, found.checkpoints, host.rows) == (
        "completed",
        {"last_index": 3},
        [0, 1, 2, 3],
    )


def test_chunks_write_beside_an_open_chunk_does_not_wait_for_it(host: Host) -> None:
    """On SQLite it would wait for itself until the lock timeout, so it is refused at once."""
    began = time.monotonic()
    with host.manager.attempt(host.manager.create("load").id) as attempt:
        for chunk in attempt.chunks(range(2), size=1):
            with chunk.begin(host.sessions) as session:
                session.execute(INSERT, [{"n": n} for n in chunk])
                writes: list[Callable[[], Any]] = [partial(attempt.log, "a row"), attempt.heartbeat]
                for write in writes:
                    if host.database.name == "sqlite":
                        with pytest.raises(RuntimeError, match="End the transaction first"):
                            write()
                    else:
                        write()
            attempt.log("committed")
    assert time.monotonic() - began < 10
    assert host.rows == [0, 1]


def test_chunks_next_without_commit_raises(host: Host) -> None:
    for swallow in (False, True):
        job = host.manager.create("load")
        with (
            pytest.raises(RuntimeError, match="The chunk of items 0 to 1 was not committed"),
            host.manager.attempt(job.id) as attempt,
        ):
            for chunk in attempt.chunks(range(6), size=2):
                if swallow:
                    with pytest.raises(Outage), chunk.begin(host.sessions):
                        raise Outage
        assert host.manager.get(job.id).status == "failed"


def test_chunks_rolled_back_chunk_can_begin_again(host: Host) -> None:
    with host.manager.attempt(host.manager.create("load").id) as attempt:
        for chunk in attempt.chunks(range(4), size=2):
            with pytest.raises(Outage), chunk.begin(host.sessions) as session:
                session.execute(INSERT, [{"n": n} for n in chunk])
                raise Outage
            with chunk.begin(host.sessions) as session:
                session.execute(INSERT, [{"n": n} for n in chunk])
            with pytest.raises(RuntimeError, match="is committed"), chunk.begin(host.sessions):
                pytest.fail("it began twice")
    assert host.rows == [0, 1, 2, 3]


def test_chunks_commit_that_raises_leaves_its_outcome_to_the_next_attempt(host: Host) -> None:
    """It was committed, but its answer is lost: to do the chunk again would double its rows."""
    job = host.manager.create("load", max_attempts=2)
    engine = getattr(host.engine, "sync_engine", host.engine)
    commits = 0

    def lose_the_answer(connection: Any) -> None:
        nonlocal commits
        commits += 1
        if commits == 2:
            connection.connection.commit()
            raise Outage

    event.listen(engine, "commit", lose_the_answer)
    with (
        pytest.raises(RuntimeError, match="may have been committed although"),
        host.manager.attempt(job.id) as attempt,
    ):
        for chunk in attempt.chunks(range(6), size=2):
            for _ in range(2):
                with suppress(Outage), chunk.begin(host.sessions) as session:
                    session.execute(INSERT, [{"n": n} for n in chunk])
                    break
    event.remove(engine, "commit", lose_the_answer)
    host.manager.retry(job.id)
    with host.manager.attempt(job.id) as attempt:
        list(host.load(attempt, range(6), size=2))
    assert host.rows == list(range(6))


def test_chunks_list_changed_by_the_caller_counts_as_given(host: Host) -> None:
    job = host.manager.create("load")
    with host.manager.attempt(job.id) as attempt:
        for chunk in attempt.chunks(range(6), size=2):
            with chunk.begin(host.sessions) as session:
                while chunk:
                    session.execute(INSERT, {"n": chunk.pop()})
            chunk.extend([7, 8, 9])
    assert host.rows == list(range(6))
    assert host.manager.get(job.id).checkpoints == {"last_index": 5}


def test_chunks_begun_twice_at_once_are_refused(host: Host) -> None:
    with host.manager.attempt(host.manager.create("load").id) as attempt:
        for chunk in attempt.chunks(range(2), size=2):
            with chunk.begin(host.sessions) as session:
                with pytest.raises(RuntimeError, match="is open already"), chunk.begin(host.engine):
                    pytest.fail("it began twice")
                session.execute(INSERT, [{"n": n} for n in chunk])
    assert host.rows == [0, 1]


def test_chunks_invalid_arguments_are_rejected(host: Host) -> None:
    with host.manager.attempt(host.manager.create("load").id) as attempt:
        for size in (0, -1, 1.5, "2", None, 10**9):
            with pytest.raises(InvalidValue, match="size"):
                attempt.chunks([1], size=size)  # type: ignore[arg-type]
        with pytest.raises(InvalidValue, match="order differs"):
            attempt.chunks({1, 2})
        chunk = next(iter(attempt.chunks([1])))
        for factory in (None, "Session", host.manager, list):
            with pytest.raises(InvalidValue, match="factory must be a"), chunk.begin(factory):  # type: ignore[arg-type]
                pytest.fail("it began")
        with chunk.begin(host.sessions):
            pass


def test_chunks_fewer_items_than_done_are_refused(host: Host) -> None:
    job = host.manager.create("load", max_attempts=2)
    with host.manager.attempt(job.id, retry_on=Outage) as attempt:
        assert len(list(host.load(attempt, range(6), size=2))) == 3
    again = host.manager.replay(job.id, keep_checkpoints=True)
    for items in (range(5), iter(range(5))):
        with (
            pytest.raises(InvalidValue, match="has 5 items, but the checkpoint"),
            host.manager.attempt(host.manager.replay(job.id, keep_checkpoints=True).id) as attempt,
        ):
            list(host.load(attempt, items, size=2))
    host.manager.delete(again.id)


def test_chunks_inside_the_callers_transaction_are_refused(database: Database) -> None:
    with connect(database.url) as manager, database.engine.connect() as connection:
        inside = manager.within(connection)
        with inside.attempt(inside.create("load").id) as attempt:
            with pytest.raises(InvalidValue, match="one of its own"):
                attempt.chunks([1])
            with pytest.raises(InvalidValue, match="one of its own"):
                attempt.within(connection).chunks([1])


def test_chunks_longer_than_stalled_after_are_not_swept_after_commit(host: Host) -> None:
    """On SQLite no heartbeat is possible during a chunk: its commit counts as one."""
    job = host.manager.create("load")
    with host.manager.attempt(job.id, heartbeat=timedelta(seconds=0.1)) as attempt:
        for chunk in attempt.chunks(range(2), size=1):
            with chunk.begin(host.sessions) as session:
                session.execute(INSERT, [{"n": n} for n in chunk])
                time.sleep(0.7)
            assert host.manager.sweep(stalled_after=timedelta(seconds=0.5)) == []
    assert host.manager.get(job.id).status == "completed"


LOADER = """
import sys, logging
from functools import partial
from pathlib import Path
from sqlalchemy import event, text
from sqlalchemy.orm import sessionmaker
from execution_core import ExecutionManager, SqlExecutionStore, connect
from execution_core.sql.driver.engine import create_sync_engine

url, id, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
engine = create_sync_engine(url)
Session = sessionmaker(engine)
with connect(url) as manager, manager.attempt(id) as attempt:
    print("started", flush=True)
    for chunk in attempt.chunks(range(count), size=20):
        with chunk.begin(Session) as session:
            rows = [{"n": n} for n in chunk]
            session.execute(text("INSERT INTO chunk_rows (n) VALUES (:n)"), rows)
"""


@pytest.mark.slow
def test_chunks_killed_at_random_load_every_row_once(
    database: Database, tell: Callable[[str], None]
) -> None:
    rows, kills, random = 20_000, 0, Random(5)
    database.run("CREATE TABLE chunk_rows (n integer)")
    try:
        with connect(database.url) as manager:
            id = manager.create("load", max_attempts=100).id
            while manager.get(id).status != "completed":
                process = subprocess.Popen(
                    [sys.executable, "-c", LOADER, database.url, id, str(rows)],
                    stdout=subprocess.PIPE,
                    env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
                )
                assert process.stdout is not None
                with process.stdout:
                    process.stdout.readline()
                    if kills < 5:
                        time.sleep(random.uniform(0, 0.2))
                        process.send_signal(signal.SIGKILL)
                    if process.wait(60) == 0:
                        break
                kills += 1
                if manager.get(id).status == "running":
                    manager.timeout(id)
                    manager.retry(id)
        found = database.rows("SELECT count(*) AS n, count(DISTINCT n) AS m FROM chunk_rows")
        assert found == [{"n": rows, "m": rows}]
        assert kills >= 3
        tell(f"{database.name}: {rows} rows in chunks, {kills} kills, every row once")
    finally:
        database.run("DROP TABLE chunk_rows")
