"""A read-only database: writes are refused and change nothing; reads succeed."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from sqlalchemy import event, make_url, text

from execution_core import (
    ExecutionManager,
    SqlExecutionStore,
    connect,
    migrate,
)
from execution_core.sql.driver.engine import create_sync_engine

from ..cli.test_cli import run
from ..conftest import Database, open_manager
from .faults import (
    WRITES,
    RunCli,
    Subjects,
    assert_one_line,
)
from .test_doctor import with_settings, without_the_rights_of_root

READ_ONLY = ("readonly database", "in a read-only transaction")


@pytest.fixture
def read_only(own_database: Database) -> str:
    """The URL of a read-only connection to the database."""
    if own_database.name == "sqlite":
        return f"sqlite:///file:{make_url(own_database.url).database}?mode=ro&uri=true"
    return with_settings(own_database.url, default_transaction_read_only="on")


@pytest.mark.slow
def test_read_only_database_writes_refused_reads_succeed(
    own_database: Database, read_only: str, mode: str, runner: asyncio.Runner
) -> None:
    subjects = Subjects(own_database)
    with open_manager(read_only, mode, runner) as reader:
        assert subjects.refused(reader, *READ_ONLY) == [*WRITES]
        subjects.read(reader)
    with open_manager(own_database.url, mode, runner) as manager:
        subjects.assert_usable(manager)


@pytest.mark.slow
def test_read_only_transaction_writes_refused_reads_succeed(own_database: Database) -> None:
    subjects = Subjects(own_database)
    engine = create_sync_engine(own_database.url)
    if own_database.name == "sqlite":
        event.listen(engine, "connect", lambda it, _: it.execute("PRAGMA query_only = ON"))
        engine = engine.execution_options(sqlite_begin="DEFERRED")
    else:
        engine = engine.execution_options(postgresql_readonly=True)
    manager = ExecutionManager(SqlExecutionStore(engine))
    for verb in WRITES:  # one transaction each: PostgreSQL aborts it at the first error
        with engine.connect() as connection:
            inside = manager.within(connection)
            subjects.read(inside)
            assert subjects.refused(inside, *READ_ONLY, verbs=[verb]) == [verb]
    engine.dispose()


@pytest.mark.slow
def test_read_only_database_cli_writes_print_one_line(
    own_database: Database, read_only: str, run_cli: RunCli, tmp_path: Path
) -> None:
    subjects = Subjects(own_database)
    before = subjects.all_rows()
    for command in (["list"], ["show", subjects.ids["log"]], ["stats"], ["watch", "--json"]):
        assert run_cli(read_only, *command) == (0, "")
    for command in (
        ["sweep", "--stalled-after", "1ms"],
        ["cancel", subjects.ids["cancel"]],
        ["prune", "--older-than", "0s"],
    ):
        assert_one_line(run_cli(read_only, *command), READ_ONLY)
    ran = run("run", "--url", read_only, "--", "touch", "ran", cwd=tmp_path)
    assert_one_line((ran.returncode, ran.stderr), READ_ONLY)
    assert not (tmp_path / "ran").exists()
    assert subjects.all_rows() == before


def test_read_only_file_of_another_user_writes_refused(run_cli: RunCli) -> None:
    """SQLite only: the permissions of a file and of its folder."""
    with tempfile.TemporaryDirectory() as name:  # the folders of pytest are private to one user
        folder = Path(name)
        url = f"sqlite:///{folder}/executions.db"
        migrate.upgrade(url)
        engine = create_sync_engine(url)
        subjects = Subjects(Database("sqlite", url, engine))
        with engine.connect() as connection:
            # A reader needs the -shm file, which exists while another connection is open.
            connection.execute(text("SELECT count(*) FROM executions"))
            set_permissions(folder, 0o444, 0o555)
            with without_the_rights_of_root(), connect(url) as reader:
                subjects.read(reader)
                assert subjects.refused(reader, *READ_ONLY) == [*WRITES]
                assert run_cli(url, "list") == (0, "")
                assert_one_line(run_cli(url, "sweep", "--stalled-after", "1ms"), READ_ONLY)
        set_permissions(folder, 0o644, 0o755)
        with connect(url) as manager:
            subjects.assert_usable(manager)
        engine.dispose()


def set_permissions(folder: Path, of_files: int, of_folder: int) -> None:
    folder.chmod(of_folder)
    for file in folder.iterdir():
        file.chmod(of_files)
