"""A database that is down, starting, busy or full of connections: a clear error, no change."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import NullPool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from execution_core import (
    ExecutionManager,
    SqlExecutionStore,
    configure_sqlite,
)
from execution_core.sql.driver.engine import create_sync_engine

from ..conftest import Database, open_manager
from ..support import postgres
from ..support.history import assert_legal
from .faults import (
    MOMENT,
    PATIENCE,
    WRITES,
    OwnServer,
    RunCli,
    Subjects,
    assert_one_line,
)
from .test_doctor import with_settings

DOWN = ("Connection refused", "terminating connection", "server closed the connection")

STARTING = ("the database system is starting up", "the database system is not")


@pytest.mark.slow
def test_server_down_writes_fail_then_succeed_after_restart(
    own_server: OwnServer, mode: str, runner: asyncio.Runner, run_cli: RunCli
) -> None:
    with (
        open_database(own_server) as database,
        open_manager(own_server.url, mode, runner) as manager,
    ):
        subjects = Subjects(database)
        before = subjects.all_rows()
        subjects.read(manager)  # opens a connection, which the stop closes
        own_server.postmaster.stop()
        for verb in WRITES:
            with pytest.raises(DBAPIError) as caught:
                subjects.call(manager, verb)
            assert any(each in str(caught.value.orig) for each in DOWN)
        assert_one_line(run_cli(own_server.url, "list"), DOWN)
        own_server.postmaster.start()
        assert subjects.all_rows() == before
        subjects.assert_usable(manager)


@pytest.mark.slow
def test_server_starting_up_writes_fail_then_succeed(
    own_server: OwnServer, mode: str, runner: asyncio.Runner, run_cli: RunCli
) -> None:
    """A standby without hot_standby accepts no connection until it is promoted."""
    with (
        open_database(own_server) as database,
        open_manager(own_server.url, mode, runner) as manager,
    ):
        subjects = Subjects(database)
        before = subjects.all_rows()
        with starting_up(own_server):
            for verb in WRITES:
                with pytest.raises(DBAPIError) as caught:
                    subjects.call(manager, verb)
                assert any(each in str(caught.value.orig) for each in STARTING)
            assert_one_line(run_cli(own_server.url, "list"), STARTING)
        assert subjects.all_rows() == before
        subjects.assert_usable(manager)


@contextmanager
def open_database(own_server: OwnServer) -> Iterator[Database]:
    yield Database("postgresql", own_server.url, create_engine(own_server.url, poolclass=NullPool))


@contextmanager
def starting_up(own_server: OwnServer) -> Iterator[None]:
    (folder,) = own_server.run("SHOW data_directory")
    own_server.run("ALTER SYSTEM SET hot_standby = off")
    own_server.postmaster.stop()
    Path(folder, "standby.signal").touch()
    process = own_server.postmaster._process = own_server.postmaster._spawn()
    try:
        wait_until(lambda: any(each in own_server.connection_error() for each in STARTING))
        yield
    finally:
        Path(folder, "promote").touch()
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: not own_server.connection_error())
        own_server.run("ALTER SYSTEM RESET hot_standby")


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit


@pytest.mark.slow
def test_too_many_connections_writes_refused_then_succeed(
    own_server: OwnServer, mode: str, runner: asyncio.Runner, run_cli: RunCli
) -> None:
    own_server.run(
        "CREATE ROLE crowd LOGIN CONNECTION LIMIT 1",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO crowd",
    )
    url = make_url(own_server.url).set(username="crowd").render_as_string(False)
    messages = ("too many connections for role",)
    with open_database(own_server) as database, open_manager(url, mode, runner) as manager:
        subjects = Subjects(database)
        with psycopg.connect(postgres.dsn(url)):
            assert subjects.refused(manager, *messages) == [*WRITES]
            assert_one_line(run_cli(url, "list"), messages)
        gone = "SELECT 1 FROM pg_stat_activity WHERE usename = 'crowd'"
        wait_until(lambda: not database.rows(gone))
        subjects.assert_usable(manager)
    own_server.run("DROP OWNED BY crowd", "DROP ROLE crowd")


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["lock_timeout", "statement_timeout"])
def test_lock_wait_beyond_timeout_writes_refused(
    postgres_database: Database, mode: str, runner: asyncio.Runner, run_cli: RunCli, setting: str
) -> None:
    database = postgres_database
    database.empty()
    url = with_settings(database.url, **{setting: "20ms"})
    messages = (f"canceling statement due to {setting.replace('_', ' ')}",)
    subjects = Subjects(database)
    before = subjects.all_rows()
    with open_manager(url, mode, runner) as manager:
        with database.engine.begin() as connection:
            connection.execute(text("LOCK TABLE executions"))
            for verb in WRITES:
                with pytest.raises(DBAPIError) as caught:
                    subjects.call(manager, verb)
                assert any(each in str(caught.value.orig) for each in messages)
            assert_one_line(run_cli(url, "list"), messages)
        assert subjects.all_rows() == before
    with open_manager(database.url, mode, runner) as manager:
        subjects.assert_usable(manager)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_sqlite_file_locked_beyond_busy_timeout_writes_refused_reads_succeed(
    database: Database,
) -> None:
    """SQLite has one timeout for all locks, and reads do not wait."""
    subjects = Subjects(database)
    engine = configure_sqlite(create_engine(database.url), busy_timeout=20 * MOMENT)
    manager = ExecutionManager(SqlExecutionStore(engine))
    with database.engine.begin():  # takes the write lock
        assert subjects.refused(manager, "database is locked") == [*WRITES]
        subjects.read(manager)
    subjects.assert_usable(manager)
    engine.dispose()


def test_idle_transaction_ended_by_server_leaves_no_change(postgres_database: Database) -> None:
    """The server rolls it back and closes the connection; the next transaction works."""
    database = postgres_database
    database.empty()
    subjects = Subjects(database)
    before = subjects.all_rows()
    url = with_settings(database.url, idle_in_transaction_session_timeout="300ms")
    engine = create_sync_engine(url)
    manager = ExecutionManager(SqlExecutionStore(engine))
    id = subjects.ids["start"]
    with engine.connect() as connection:
        inside = manager.within(connection)
        backend = connection.scalar(text("SELECT pg_backend_pid()"))
        inside.start(id)
        wait_until(
            lambda: (
                not database.rows("SELECT 1 FROM pg_stat_activity WHERE pid = :pid", pid=backend)
            )
        )
        with pytest.raises(DBAPIError) as caught:
            inside.complete(id)
        assert caught.value.connection_invalidated
        assert subjects.all_rows() == before
        connection.rollback()
        inside.start(id)
        assert inside.complete(id).status == "completed"
        connection.commit()
    assert database.history(id)[-1] == ("running", "completed")
    engine.dispose()
    assert_legal(database)
