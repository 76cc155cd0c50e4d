"""Databases that are full, read-only, half migrated or away: a clear error, and nothing half done.

Every fault is a real one. What it refuses has changed nothing, every row and its history agree, and
once it is over the same calls succeed.
"""

import asyncio
import os
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from sqlalchemy import NullPool, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import DBAPIError

from execution_core import (
    ExecutionManager,
    SqlExecutionStore,
    configure_sqlite,
    connect,
    doctor,
    migrate,
)
from execution_core.cli import main
from execution_core.sql.driver.engine import create_sync_engine

from ..cli.test_cli import run
from ..conftest import Database, open_manager
from ..support import postgres
from ..support.situations import bring_to
from ..tracking.test_races import assert_legal
from .test_doctor import with_settings, without_the_rights_of_root

Verb = Callable[[ExecutionManager, str], Any]
Said = Callable[..., tuple[int, str]]

MOMENT = timedelta(milliseconds=1)
PATIENCE = 60

# On what each verb is called. Batches find an execution by its type, which is the verb's name.
WRITES: dict[str, tuple[str, Verb]] = {
    "start": ("pending", lambda m, id: m.start(id)),
    "claim": ("pending", lambda m, id: m.claim("claim")),
    "complete": ("running", lambda m, id: m.complete(id, "done")),
    "fail": ("running", lambda m, id: m.fail(id, "no", retryable=True)),
    "timeout": ("running", lambda m, id: m.timeout(id)),
    "sweep": ("running", lambda m, id: m.sweep(stalled_after=MOMENT, type="sweep")),
    "cancel": ("running", lambda m, id: m.cancel(id, "why")),
    "retry": ("failed", lambda m, id: m.retry(id)),
    "replay": ("completed", lambda m, id: m.replay(id)),
    "create": ("completed", lambda m, id: m.create("new", parent_id=id)),
    "heartbeat": ("running", lambda m, id: m.heartbeat(id)),
    "update_progress": ("running", lambda m, id: m.update_progress(id, 1, 2)),
    "checkpoint": ("running", lambda m, id: m.checkpoint(id, "k", 1)),
    "advance": ("running", lambda m, id: m.advance(id, 1, 2, key="k", value=1)),
    "log": ("running", lambda m, id: m.log(id, "line")),
    "delete": ("completed", lambda m, id: m.delete(id)),
    "prune": ("completed", lambda m, id: m.prune(timedelta(0), type="prune")),
}
MOVES = [*WRITES][:10]
"""What leaves a line in the history."""


def refusal(call: Callable[..., Any], *arguments: Any) -> str | None:
    """Return with what the database refuses a call, if it does."""
    try:
        call(*arguments)
    except DBAPIError as error:
        return str(error.orig)
    return None


class Subjects:
    """An execution for each verb."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.ids = {}
        with connect(database.url) as manager:
            for verb, (situation, _) in WRITES.items():
                self.ids[verb] = id = bring_to(manager, situation).id
                database.run("UPDATE executions SET type = :verb WHERE id = :id", verb=verb, id=id)

    def stored(self) -> list[Any]:
        """Return all rows, on a connection that knows of nothing and waits for nobody."""
        engine = create_engine(self.database.url, poolclass=NullPool)
        with engine.connect() as connection:
            return [
                sorted(map(str, connection.execute(text(f"SELECT * FROM {table}"))))
                for table in sorted(inspect(connection).get_table_names())
            ]

    def call(self, manager: ExecutionManager, verb: str) -> Any:
        return WRITES[verb][1](manager, self.ids[verb])

    def read(self, manager: ExecutionManager) -> None:
        """Use each verb that only reads."""
        id = self.ids["heartbeat"]
        assert manager.get(id) in manager.list(limit=1000)
        assert manager.logs(id) == []
        assert manager.find_by_idempotency_key("nobody's") is None

    def refused(
        self, manager: ExecutionManager, *says: str, verbs: Iterable[str] = WRITES
    ) -> list[str]:
        """Return the verbs that the database refuses, and see that they change nothing."""
        refused = []
        for verb in verbs:
            before = self.stored()
            said = refusal(self.call, manager, verb)
            if said is not None:
                assert any(each in said for each in says), (verb, said)
                assert self.stored() == before, verb
                refused.append(verb)
        return refused

    def assert_sound(self, manager: ExecutionManager) -> None:
        """Each verb does what it should."""
        self.read(manager)
        for verb in WRITES:
            assert self.call(manager, verb) not in ([], 0), verb
        assert_legal(self.database)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """A function that returns the exit code of the command line, and what standard error says."""

    def call(url: str, name: str, *arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main([name, "--url", url, *arguments])
        return code, capsys.readouterr().err

    return call


def assert_a_line(answer: tuple[int, str], says: Iterable[str], advice: str = "") -> None:
    """The command line has refused, and says why in a line."""
    code, said = answer
    assert code == 1
    line, _, more = said.partition("\n")
    assert line.startswith("execution-core: ")
    assert any(each in line for each in says), said
    assert more == advice


@pytest.fixture(params=["sqlite", "postgresql"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database that the test may spoil."""
    url = f"sqlite:///{tmp_path}/executions.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("empty_postgres")(f"faults_{secrets.token_hex(4)}")
    migrate.upgrade(url)
    engine = create_sync_engine(url)
    yield Database(request.param, url, engine)
    engine.dispose()


class Away:
    """A server of our own, which may be stopped and started."""

    def __init__(self, server: postgres.Server) -> None:
        assert server.postmaster is not None
        self.server, self.postmaster, self.url = server, server.postmaster, server.url

    def run(self, *statements: str) -> Any:
        with psycopg.connect(postgres.dsn(self.url), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchone() if cursor.description else None

    def says(self) -> str:
        """Return with what it refuses a connection; nothing, when it takes one."""
        try:
            self.run("SELECT 1")
        except psycopg.OperationalError as error:
            return str(error)
        return ""


@pytest.fixture(scope="module")
def away() -> Iterator[Away]:
    with postgres.server(own=True) as server:
        migrate.upgrade(server.url)
        yield Away(server)


# --- a full disk ----------------------------------------------------------------------------------

FULL = ("No space left on device", "database or disk is full")


@dataclass(frozen=True)
class Disk:
    """A database with little room, and what makes more of it."""

    database: Database
    manager: ExecutionManager
    make_room: Callable[[], object]


@contextmanager
def small_file_system(megabytes: int) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Some memory as a file system, for whoever may mount one, and what makes room in it."""
    with tempfile.TemporaryDirectory() as name:
        options = f"size={megabytes}m,mode=755"
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", name]
        try:
            subprocess.run(mount, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", None) or error
            pytest.skip(f"NO REAL DISK IS FILLED HERE, as root may do with a mount: {why}")
        try:
            ballast = Path(name, "ballast")
            ballast.write_bytes(bytes(megabytes * 2**20 // 3))
            yield Path(name), ballast.unlink
        finally:
            subprocess.run(["umount", "-l", name], check=True)


DISKS = ["sqlite by a limit", "sqlite sync", "sqlite async", "postgresql sync", "postgresql async"]


@pytest.fixture(params=DISKS)
def disk(request: pytest.FixtureRequest, runner: asyncio.Runner, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "sqlite by a limit":
        yield from limited(tmp_path)
        return
    kind, mode = request.param.split()
    with small_file_system(megabytes=18) as (folder, make_room), ExitStack() as stack:
        url = f"sqlite:///{folder}/executions.db"
        if kind == "postgresql":
            server = request.getfixturevalue("away")
            url = stack.enter_context(tablespace(server, folder))
            url = with_settings(url, default_tablespace="small")
        migrate.upgrade(url)
        engine = create_sync_engine(url)
        manager = stack.enter_context(open_manager(url, mode, runner))
        yield Disk(Database(engine.dialect.name, url, engine), manager, make_room)
        engine.dispose()


def limited(folder: Path) -> Iterator[Disk]:
    """SQLite's own limit, as a full disk to all of its code; whoever runs this, wherever."""
    url = f"sqlite:///{folder}/executions.db"
    migrate.upgrade(url)
    engine, pages = create_engine(url), [200]

    @event.listens_for(engine, "connect")
    def limit(connection: Any, record: Any) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages[-1]}")

    def make_room() -> None:
        pages.append(10_000)
        engine.dispose()

    manager = ExecutionManager(SqlExecutionStore(configure_sqlite(engine)))
    yield Disk(Database("sqlite", url, engine), manager, make_room)
    engine.dispose()


@contextmanager
def tablespace(server: Away, folder: Path) -> Iterator[str]:
    """A new database, whose tables may be kept in a folder; its WAL stays where there is room."""
    place = folder / "tables"
    place.mkdir()
    if account := postgres.unprivileged_account():
        os.chown(place, account.pw_uid, account.pw_gid)
    server.run(f"CREATE TABLESPACE small LOCATION '{place}'", "CREATE DATABASE small")
    try:
        yield make_url(server.url).set(database="small").render_as_string(False)
    finally:
        server.run("DROP DATABASE small WITH (FORCE)", "DROP TABLESPACE small")


def test_a_full_disk(disk: Disk) -> None:
    manager, subjects = disk.manager, Subjects(disk.database)
    large = secrets.token_urlsafe(60_000)  # which nobody can compress
    jobs = [manager.start(manager.create("job").id).id for _ in range(150)]
    completed = first_refused(manager, jobs, large)
    job = jobs[completed]
    assert manager.get(job).status == "running"
    with pytest.raises(DBAPIError):  # and now what little is left
        for _ in range(20_000):
            manager.create("filler")
    refused = subjects.refused(manager, *FULL)
    subjects.read(manager)
    before = subjects.stored()
    host = ExecutionManager(SqlExecutionStore(disk.database.engine))
    with disk.database.engine.connect() as connection:
        first_refused(host.within(connection), jobs[completed:], large)
    assert subjects.stored() == before
    assert_legal(disk.database)
    disk.make_room()
    for verb in refused:
        assert subjects.call(manager, verb) not in ([], 0), verb
    assert manager.complete(job, large).result == large
    assert_legal(disk.database)


def first_refused(manager: ExecutionManager, ids: list[str], result: str) -> int:
    """Complete executions until the disk is full; return how many there were."""
    for n, id in enumerate(ids):
        if said := refusal(manager.complete, id, result):
            assert any(each in said for each in FULL)
            return n
    pytest.fail("there was too much room")


def test_a_disk_that_is_full_of_history(away: Away) -> None:
    """PostgreSQL's alone, which may keep it elsewhere: there is room for the move, none for it."""
    reason = secrets.token_urlsafe(7_000)
    with small_file_system(megabytes=3) as (folder, make_room), tablespace(away, folder) as url:
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
            make_room()
            assert manager.cancel(job, reason).status == "cancelled"
            assert_legal(database)
        engine.dispose()


@pytest.mark.parametrize("disk", ["sqlite sync", "postgresql sync"], indirect=True)
def test_the_command_line_on_a_full_disk(disk: Disk, said: Said) -> None:
    done = bring_to(disk.manager, "completed")
    large = secrets.token_urlsafe(60_000)
    with pytest.raises(DBAPIError):
        while True:
            disk.manager.create("filler", large)
    answer = said(disk.database.url, "replay", done.id, "--payload", f'"{large}"')
    assert_a_line(answer, FULL)
    assert said(disk.database.url, "show", done.id) == (0, "")


# --- read-only ------------------------------------------------------------------------------------

READ_ONLY = ("readonly database", "in a read-only transaction")


@pytest.fixture
def read_only(own: Database) -> str:
    """The URL of a database that may only be read."""
    if own.name == "sqlite":
        return f"sqlite:///file:{make_url(own.url).database}?mode=ro&uri=true"
    return with_settings(own.url, default_transaction_read_only="on")


def test_who_may_only_read(
    own: Database, read_only: str, mode: str, runner: asyncio.Runner
) -> None:
    subjects = Subjects(own)
    with open_manager(read_only, mode, runner) as reader:
        assert subjects.refused(reader, *READ_ONLY) == [*WRITES]
        subjects.read(reader)
    with open_manager(own.url, mode, runner) as manager:
        subjects.assert_sound(manager)


def test_a_transaction_that_may_only_read(own: Database) -> None:
    subjects = Subjects(own)
    engine = create_sync_engine(own.url)
    if own.name == "sqlite":
        event.listen(engine, "connect", lambda it, _: it.execute("PRAGMA query_only = ON"))
        engine = engine.execution_options(sqlite_begin="DEFERRED")
    else:
        engine = engine.execution_options(postgresql_readonly=True)
    manager = ExecutionManager(SqlExecutionStore(engine))
    for verb in WRITES:  # each in one of its own: PostgreSQL goes on in none that has failed
        with engine.connect() as connection:
            inside = manager.within(connection)
            subjects.read(inside)
            assert subjects.refused(inside, *READ_ONLY, verbs=[verb]) == [verb]
    engine.dispose()


def test_the_command_line_of_who_may_only_read(
    own: Database, read_only: str, said: Said, tmp_path: Path
) -> None:
    subjects = Subjects(own)
    before = subjects.stored()
    for reading in (["list"], ["show", subjects.ids["log"]], ["stats"], ["watch", "--json"]):
        assert said(read_only, *reading) == (0, "")
    for writing in (
        ["sweep", "--stalled-after", "1ms"],
        ["cancel", subjects.ids["cancel"]],
        ["prune", "--older-than", "0s"],
    ):
        assert_a_line(said(read_only, *writing), READ_ONLY)
    ran = run("run", "--url", read_only, "--", "touch", "ran", cwd=tmp_path)
    assert_a_line((ran.returncode, ran.stderr), READ_ONLY)
    assert not (tmp_path / "ran").exists()
    assert subjects.stored() == before


def test_a_file_of_somebody_else(said: Said) -> None:
    """The rights on a file, and on its folder, are SQLite's alone to care about."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own are for one user
        folder = Path(name)
        url = f"sqlite:///{folder}/executions.db"
        migrate.upgrade(url)
        engine = create_sync_engine(url)
        subjects = Subjects(Database("sqlite", url, engine))
        with engine.connect() as connection:
            # Somebody has it open, and so what a reader needs stands beside it.
            connection.execute(text("SELECT count(*) FROM executions"))
            allow(folder, 0o444, 0o555)
            with without_the_rights_of_root(), connect(url) as reader:
                subjects.read(reader)
                assert subjects.refused(reader, *READ_ONLY) == [*WRITES]
                assert said(url, "list") == (0, "")
                assert_a_line(said(url, "sweep", "--stalled-after", "1ms"), READ_ONLY)
        allow(folder, 0o644, 0o755)
        with connect(url) as manager:
            subjects.assert_sound(manager)
        engine.dispose()


def allow(folder: Path, of_files: int, of_folder: int) -> None:
    folder.chmod(of_folder)
    for file in folder.iterdir():
        file.chmod(of_files)


# --- a schema in which something is missing -------------------------------------------------------

MISSING = ("does not exist", "no such", "has no column named")
MIGRATE = "Its schema is not up to date: run execution-core migrate\n"
DOCTOR = "Part of its schema is missing: run execution-core doctor to see what\n"
NEWER = "A newer version of execution-core created its schema: install that version here as well\n"


def rename(database: Database, table: str, name: str) -> None:
    """Rename a table, and nothing that speaks of it."""
    with database.engine.begin() as connection:
        if database.name == "sqlite":
            connection.exec_driver_sql("PRAGMA legacy_alter_table = ON")
        connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO {name}")


def problems(url: str) -> dict[str, str]:
    return {each.check: each.message for each in doctor.examine(url) if each.level == "problem"}


def test_a_history_that_is_missing(
    own: Database, mode: str, runner: asyncio.Runner, said: Said
) -> None:
    """What cannot be recorded does not happen."""
    subjects = Subjects(own)
    before = subjects.stored()
    with open_manager(own.url, mode, runner) as manager:
        rename(own, "execution_history", "elsewhere")
        for verb in MOVES:
            with pytest.raises(DBAPIError, match="execution_history"):
                subjects.call(manager, verb)
        assert_a_line(said(own.url, "cancel", subjects.ids["cancel"]), MISSING, DOCTOR)
        assert problems(own.url)["tables"].startswith("execution_history is missing")
        rename(own, "elsewhere", "execution_history")
        assert subjects.stored() == before
        subjects.assert_sound(manager)


def test_a_log_that_is_missing(own: Database, mode: str, runner: asyncio.Runner) -> None:
    subjects = Subjects(own)
    before = subjects.stored()
    with open_manager(own.url, mode, runner) as manager:
        rename(own, "execution_logs", "elsewhere")
        with pytest.raises(DBAPIError, match="execution_logs"):
            subjects.call(manager, "log")
        assert problems(own.url)["tables"].startswith("execution_logs is missing")
        rename(own, "elsewhere", "execution_logs")
        assert subjects.stored() == before
        subjects.assert_sound(manager)


def test_what_was_never_migrated(
    own: Database, mode: str, runner: asyncio.Runner, said: Said
) -> None:
    downgrade(own, "base")
    with open_manager(own.url, mode, runner) as manager:
        for _, verb in WRITES.values():
            with pytest.raises(DBAPIError) as caught:
                verb(manager, "0198a000-0000-7000-8000-000000000001")
            assert any(each in str(caught.value.orig) for each in MISSING)
            assert "execution-core migrate" in caught.value.__notes__[0]
        for name in ("list", "stats", "sweep"):
            assert_a_line(said(own.url, name), MISSING, MIGRATE)
        assert "no table executions is visible" in problems(own.url)["migrated"]
        assert main(["migrate", "--url", own.url]) == 0
        Subjects(own).assert_sound(manager)


@pytest.mark.parametrize("revision", migrate.revisions()[1:])
def test_a_schema_that_is_behind(
    own: Database, said: Said, tell: Callable[[str], None], revision: str
) -> None:
    """As where a new version runs before it has migrated: what works works, all else is told."""
    subjects = Subjects(own)
    downgrade(own, revision)
    with connect(own.url) as manager:
        refused = subjects.refused(manager, *MISSING)
    assert_legal(own)
    for arguments in (["list"], ["stats"], ["sweep"], ["prune", "--older-than", "1d"]):
        if (answer := said(own.url, *arguments))[0] != 0:
            assert_a_line(answer, MISSING, MIGRATE)
    assert problems(own.url)["migrated"] == f"at {revision}, before {migrate.revisions()[0]}"
    migrate.upgrade(own.url)
    with connect(own.url) as manager:
        Subjects(own).assert_sound(manager)
    tell(f"{own.name} at {revision}: refused {', '.join(refused) or 'nothing'}")


def downgrade(database: Database, revision: str) -> None:
    with database.engine.begin() as connection:
        config = migrate._config()
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def test_a_schema_of_a_newer_version(own: Database, said: Said) -> None:
    own.run("UPDATE execution_core_version SET version_num = 'execution_core_9999'")
    rename(own, "executions", "executions_of_tomorrow")
    assert_a_line(said(own.url, "sweep"), MISSING, NEWER)


# --- a database that is away, or busy -------------------------------------------------------------

DOWN = ("Connection refused", "terminating connection", "server closed the connection")
STARTING = ("the database system is starting up", "the database system is not")


def test_a_server_that_is_down_and_comes_back(
    away: Away, mode: str, runner: asyncio.Runner, said: Said
) -> None:
    with at(away) as database, open_manager(away.url, mode, runner) as manager:
        subjects = Subjects(database)
        before = subjects.stored()
        subjects.read(manager)  # it has a connection, which it will lose
        away.postmaster.stop()
        for verb in WRITES:
            with pytest.raises(DBAPIError) as caught:
                subjects.call(manager, verb)
            assert any(each in str(caught.value.orig) for each in DOWN)
        assert_a_line(said(away.url, "list"), DOWN)
        away.postmaster.start()
        assert subjects.stored() == before
        subjects.assert_sound(manager)


def test_a_server_that_is_starting_up(
    away: Away, mode: str, runner: asyncio.Runner, said: Said
) -> None:
    """A standby that takes no connection starts up for as long as it is left to."""
    with at(away) as database, open_manager(away.url, mode, runner) as manager:
        subjects = Subjects(database)
        before = subjects.stored()
        with starting_up(away):
            for verb in WRITES:
                with pytest.raises(DBAPIError) as caught:
                    subjects.call(manager, verb)
                assert any(each in str(caught.value.orig) for each in STARTING)
            assert_a_line(said(away.url, "list"), STARTING)
        assert subjects.stored() == before
        subjects.assert_sound(manager)


@contextmanager
def at(away: Away) -> Iterator[Database]:
    yield Database("postgresql", away.url, create_engine(away.url, poolclass=NullPool))


@contextmanager
def starting_up(away: Away) -> Iterator[None]:
    (folder,) = away.run("SHOW data_directory")
    away.run("ALTER SYSTEM SET hot_standby = off")
    away.postmaster.stop()
    Path(folder, "standby.signal").touch()
    process = away.postmaster._process = away.postmaster._spawn()
    try:
        wait(lambda: any(each in away.says() for each in STARTING))
        yield
    finally:
        Path(folder, "promote").touch()
        process.send_signal(signal.SIGUSR1)
        wait(lambda: not away.says())
        away.run("ALTER SYSTEM RESET hot_standby")


def wait(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit


def test_too_many_connections(away: Away, mode: str, runner: asyncio.Runner, said: Said) -> None:
    away.run(
        "CREATE ROLE crowd LOGIN CONNECTION LIMIT 1",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO crowd",
    )
    url = make_url(away.url).set(username="crowd").render_as_string(False)
    says = ("too many connections for role",)
    with at(away) as database, open_manager(url, mode, runner) as manager:
        subjects = Subjects(database)
        with psycopg.connect(postgres.dsn(url)):
            assert subjects.refused(manager, *says) == [*WRITES]
            assert_a_line(said(url, "list"), says)
        gone = "SELECT 1 FROM pg_stat_activity WHERE usename = 'crowd'"
        wait(lambda: not database.rows(gone))
        subjects.assert_sound(manager)
    away.run("DROP OWNED BY crowd", "DROP ROLE crowd")


@pytest.mark.parametrize("setting", ["lock_timeout", "statement_timeout"])
def test_a_wait_that_takes_too_long(
    postgres_database: Database, mode: str, runner: asyncio.Runner, said: Said, setting: str
) -> None:
    database = postgres_database
    database.run("TRUNCATE executions CASCADE")
    url = with_settings(database.url, **{setting: "20ms"})
    says = (f"canceling statement due to {setting.replace('_', ' ')}",)
    subjects = Subjects(database)
    before = subjects.stored()
    with open_manager(url, mode, runner) as manager:
        with database.engine.begin() as connection:
            connection.execute(text("LOCK TABLE executions"))
            for verb in WRITES:
                with pytest.raises(DBAPIError) as caught:
                    subjects.call(manager, verb)
                assert any(each in str(caught.value.orig) for each in says)
            assert_a_line(said(url, "list"), says)
        assert subjects.stored() == before
    with open_manager(database.url, mode, runner) as manager:
        subjects.assert_sound(manager)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_file_that_is_locked_for_too_long(database: Database) -> None:
    """Where PostgreSQL has its timeouts SQLite has one for all; and readers wait for nobody."""
    subjects = Subjects(database)
    engine = configure_sqlite(create_engine(database.url), busy_timeout=20 * MOMENT)
    manager = ExecutionManager(SqlExecutionStore(engine))
    with database.engine.begin():  # as a writer
        assert subjects.refused(manager, "database is locked") == [*WRITES]
        subjects.read(manager)
    subjects.assert_sound(manager)
    engine.dispose()


def test_a_transaction_that_idles_for_too_long(postgres_database: Database) -> None:
    """The server ends it, with all that it has done; the next one works."""
    database = postgres_database
    database.run("TRUNCATE executions CASCADE")
    subjects = Subjects(database)
    before = subjects.stored()
    url = with_settings(database.url, idle_in_transaction_session_timeout="20ms")
    engine = create_sync_engine(url)
    manager = ExecutionManager(SqlExecutionStore(engine))
    id = subjects.ids["start"]
    with engine.connect() as connection:
        inside = manager.within(connection)
        backend = connection.scalar(text("SELECT pg_backend_pid()"))
        inside.start(id)
        wait(
            lambda: (
                not database.rows("SELECT 1 FROM pg_stat_activity WHERE pid = :pid", pid=backend)
            )
        )
        with pytest.raises(DBAPIError) as caught:
            inside.complete(id)
        assert caught.value.connection_invalidated
        assert subjects.stored() == before
        connection.rollback()
        inside.start(id)
        assert inside.complete(id).status == "completed"
        connection.commit()
    assert database.history(id)[-1] == ("running", "completed")
    engine.dispose()
    assert_legal(database)
