"""A schema that is missing, old, incomplete or newer: a clear error, and nothing half done."""

import asyncio
from collections.abc import Callable

import pytest
from alembic import command
from sqlalchemy.exc import DBAPIError

from execution_core import (
    connect,
    doctor,
    migrate,
)
from execution_core.cli import main

from ..conftest import Database, open_manager
from ..support.history import assert_legal
from .faults import (
    TRANSITIONS,
    WRITES,
    RunCli,
    Subjects,
    assert_one_line,
)

MISSING = ("does not exist", "no such", "has no column named")

MIGRATE = "Its schema is not up to date: run execution-core migrate\n"

CREATE = (
    "It has no tables of execution-core. If it is the right database, create them with"
    " execution-core migrate\n"
)

DOCTOR = "Part of its schema is missing: run execution-core doctor to see what\n"

INCOMPATIBLE = (
    "Its schema is at other, with which this version does not work: install the version that"
    " created it\n"
)


def rename(database: Database, table: str, name: str) -> None:
    """Rename a table but not the references to it."""
    with database.engine.begin() as connection:
        if database.name == "sqlite":
            connection.exec_driver_sql("PRAGMA legacy_alter_table = ON")
        connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO {name}")


def doctor_problems(url: str) -> dict[str, str]:
    return {each.check: each.message for each in doctor.examine(url) if each.level == "problem"}


@pytest.mark.slow
def test_missing_history_table_transitions_refused(
    own_database: Database, mode: str, runner: asyncio.Runner, run_cli: RunCli
) -> None:
    """A transition that cannot be recorded does not happen."""
    subjects = Subjects(own_database)
    before = subjects.all_rows()
    with open_manager(own_database.url, mode, runner) as manager:
        rename(own_database, "execution_history", "elsewhere")
        for verb in TRANSITIONS:
            with pytest.raises(DBAPIError, match="execution_history"):
                subjects.call(manager, verb)
        assert_one_line(
            run_cli(own_database.url, "cancel", subjects.ids["cancel"]), MISSING, DOCTOR
        )
        assert doctor_problems(own_database.url)["tables"].startswith(
            "execution_history is missing"
        )
        rename(own_database, "elsewhere", "execution_history")
        assert subjects.all_rows() == before
        subjects.assert_usable(manager)


@pytest.mark.slow
def test_missing_logs_table_log_refused(
    own_database: Database, mode: str, runner: asyncio.Runner
) -> None:
    subjects = Subjects(own_database)
    before = subjects.all_rows()
    with open_manager(own_database.url, mode, runner) as manager:
        rename(own_database, "execution_logs", "elsewhere")
        with pytest.raises(DBAPIError, match="execution_logs"):
            subjects.call(manager, "log")
        assert doctor_problems(own_database.url)["tables"].startswith("execution_logs is missing")
        rename(own_database, "elsewhere", "execution_logs")
        assert subjects.all_rows() == before
        subjects.assert_usable(manager)


@pytest.mark.slow
def test_unmigrated_database_writes_refused_until_migrated(
    own_database: Database, mode: str, runner: asyncio.Runner, run_cli: RunCli
) -> None:
    downgrade(own_database, "base")
    with open_manager(own_database.url, mode, runner) as manager:
        for _, verb in WRITES.values():
            with pytest.raises(DBAPIError) as caught:
                verb(manager, "0198a000-0000-7000-8000-000000000001")
            assert any(each in str(caught.value.orig) for each in MISSING)
            assert "execution-core migrate" in caught.value.__notes__[0]
        for name in ("list", "stats", "sweep"):
            assert_one_line(run_cli(own_database.url, name), MISSING, CREATE)
        assert "no table executions is visible" in doctor_problems(own_database.url)["migrated"]
        assert main(["migrate", "--url", own_database.url]) == 0
        Subjects(own_database).assert_usable(manager)


@pytest.mark.parametrize("revision", migrate.revisions()[1:])
def test_old_schema_refused_verbs_change_nothing(
    own_database: Database, run_cli: RunCli, tell: Callable[[str], None], revision: str
) -> None:
    """A new version before its migration: some verbs work, the others report the old schema."""
    subjects = Subjects(own_database)
    downgrade(own_database, revision)
    with connect(own_database.url) as manager:
        refused = subjects.refused(manager, *MISSING)
    assert_legal(own_database)
    for arguments in (["list"], ["stats"], ["sweep"], ["prune", "--older-than", "1d"]):
        if (result := run_cli(own_database.url, *arguments))[0] != 0:
            assert_one_line(result, MISSING, MIGRATE)
    assert (
        doctor_problems(own_database.url)["migrated"]
        == f"at {revision}, before {migrate.revisions()[0]}"
    )
    migrate.upgrade(own_database.url)
    with connect(own_database.url) as manager:
        Subjects(own_database).assert_usable(manager)
    tell(f"{own_database.name} at {revision}: refused {', '.join(refused) or 'nothing'}")


def downgrade(database: Database, revision: str) -> None:
    with database.engine.begin() as connection:
        config = migrate._config()
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def test_schema_of_another_version_cli_says_what_to_do(
    own_database: Database, run_cli: RunCli
) -> None:
    rename(own_database, "executions", "executions_of_tomorrow")
    for revision, advice in (("execution_core_9999", DOCTOR), ("other", INCOMPATIBLE)):
        own_database.run("UPDATE execution_core_version SET version_num = :name", name=revision)
        assert_one_line(run_cli(own_database.url, "sweep"), MISSING, advice)
