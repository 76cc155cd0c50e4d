"""A full disk: a clear error, nothing half done, and the same calls succeed afterwards."""

import asyncio
import os
import secrets
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, make_url
from sqlalchemy.exc import DBAPIError

from execution_core import (
    ExecutionManager,
    SqlExecutionStore,
    configure_sqlite,
    connect,
    migrate,
)
from execution_core.sql.driver.engine import create_sync_engine

from ..conftest import Database, open_manager
from ..support import postgres
from ..support.history import assert_legal
from ..support.states import bring_to
from .faults import (
    OwnServer,
    RunCli,
    Subjects,
    assert_one_line,
    refusal,
)
from .test_doctor import with_settings

FULL = ("No space left on device", "database or disk is full")


@dataclass(frozen=True)
class Disk:
    """A database on a small disk, and a function that frees space."""

    database: Database
    manager: ExecutionManager
    free_space: Callable[[], object]


@contextmanager
def small_file_system(megabytes: int) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Mount a small tmpfs (needs root); yield its folder and a function that frees space in it."""
    with tempfile.TemporaryDirectory() as name:
        options = f"size={megabytes}m,mode=755"
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", name]
        try:
            subprocess.run(mount, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", None) or error
            pytest.skip(f"NO REAL DISK IS FILLED: mounting a tmpfs needs root: {why}")
        try:
            ballast = Path(name, "ballast")
            ballast.write_bytes(bytes(megabytes * 2**20 // 3))
            yield Path(name), ballast.unlink
        finally:
            subprocess.run(["umount", "-l", name], check=True)


DISKS = [
    "sqlite by a limit",
    *("sqlite sync", "sqlite async"),
    *("postgresql sync", "postgresql async"),
]


@pytest.fixture(params=DISKS)
def disk(request: pytest.FixtureRequest, runner: asyncio.Runner, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "sqlite by a limit":
        yield from sqlite_with_page_limit(tmp_path)
        return
    kind, mode = request.param.split()
    with small_file_system(megabytes=12) as (folder, free_space), ExitStack() as stack:
        url = f"sqlite:///{folder}/executions.db"
        if kind == "postgresql":
            server = request.getfixturevalue("own_server")
            url = stack.enter_context(tablespace(server, folder))
            url = with_settings(url, default_tablespace="small")
        migrate.upgrade(url)
        engine = create_sync_engine(url)
        manager = stack.enter_context(open_manager(url, mode, runner))
        yield Disk(Database(engine.dialect.name, url, engine), manager, free_space)
        engine.dispose()


def sqlite_with_page_limit(folder: Path) -> Iterator[Disk]:
    """Limit the pages of the file: SQLite reports a full disk, and no mount is needed."""
    url = f"sqlite:///{folder}/executions.db"
    migrate.upgrade(url)
    engine, pages = create_engine(url), [200]

    @event.listens_for(engine, "connect")
    def limit(connection: Any, record: Any) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages[-1]}")

    def free_space() -> None:
        pages.append(10_000)
        engine.dispose()

    manager = ExecutionManager(SqlExecutionStore(configure_sqlite(engine)))
    yield Disk(Database("sqlite", url, engine), manager, free_space)
    engine.dispose()


@contextmanager
def tablespace(server: OwnServer, folder: Path) -> Iterator[str]:
    """Create a database and a tablespace in a folder; the WAL stays on the large disk."""
    place = folder / "tables"
    place.mkdir()
    if account := postgres.unprivileged_account():
        os.chown(place, account.pw_uid, account.pw_gid)
    server.run(f"CREATE TABLESPACE small LOCATION '{place}'", "CREATE DATABASE small")
    try:
        yield make_url(server.url).set(database="small").render_as_string(False)
    finally:
        server.run("DROP DATABASE small WITH (FORCE)", "DROP TABLESPACE small")


@pytest.mark.slow
def test_full_disk_refused_verbs_change_nothing(disk: Disk) -> None:
    manager, subjects = disk.manager, Subjects(disk.database)
    large = secrets.token_urlsafe(60_000)  # random, so it cannot be compressed
    jobs = [manager.start(manager.create("job").id).id for _ in range(150)]
    completed = first_refused(manager, jobs, large)
    job = jobs[completed]
    assert manager.get(job).status == "running"
    with pytest.raises(DBAPIError):  # fill the remaining space
        for _ in range(20_000):
            manager.create("filler")
    refused = subjects.refused(manager, *FULL)
    subjects.read(manager)
    before = subjects.all_rows()
    host = ExecutionManager(SqlExecutionStore(disk.database.engine))
    with disk.database.engine.connect() as connection:
        first_refused(host.within(connection), jobs[completed:], large)
    assert subjects.all_rows() == before
    assert_legal(disk.database)
    disk.free_space()
    for verb in refused:
        assert subjects.call(manager, verb) not in ([], 0), verb
    assert manager.complete(job, large).result == large
    assert_legal(disk.database)


def first_refused(manager: ExecutionManager, ids: list[str], result: str) -> int:
    """Complete executions until the disk is full; return how many were completed."""
    for n, id in enumerate(ids):
        if message := refusal(manager.complete, id, result):
            assert any(each in message for each in FULL)
            return n
    pytest.fail("the disk was too large to be filled")


def test_full_disk_of_history_refused_cancel_changes_nothing(own_server: OwnServer) -> None:
    """PostgreSQL only, with the history in its own tablespace: only that one is full."""
    reason = secrets.token_urlsafe(7_000)
    with (
        small_file_system(megabytes=3) as (folder, free_space),
        tablespace(own_server, folder) as url,
    ):
        migrate.upgrade(url)
        engine = create_sync_engine(url)
        database = Database("postgresql", url, engine)
        for kind, name in (("TABLE", "execution_history"), ("INDEX", "pk_execution_history")):
            database.run(f"ALTER {kind} {name} SET TABLESPACE small")
        with connect(url) as manager:
            jobs = [manager.create("job").id for _ in range(400)]
            job = next(id for id in jobs if refusal(manager.cancel, id, reason))
            assert database.history(job) == [(None, "pending")]
            assert_legal(database)
            free_space()
            assert manager.cancel(job, reason).status == "cancelled"
            assert_legal(database)
        engine.dispose()


@pytest.mark.parametrize("disk", ["sqlite sync", "postgresql sync"], indirect=True)
def test_full_disk_cli_prints_one_line(disk: Disk, run_cli: RunCli) -> None:
    done = bring_to(disk.manager, "completed")
    large = secrets.token_urlsafe(60_000)
    with pytest.raises(DBAPIError):
        while True:
            disk.manager.create("filler", large)
    result = run_cli(disk.database.url, "replay", done.id, "--payload", f'"{large}"')
    assert_one_line(result, FULL)
    assert run_cli(disk.database.url, "show", done.id) == (0, "")
