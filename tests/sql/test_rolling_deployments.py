"""A deployment replaces one version by the next: the older one works on the newer schema."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Engine, inspect, text

from execution_core import InvalidValue, connect, doctor, migrate
from execution_core.cli import main
from execution_core.sql.driver.engine import create_async_engine, create_sync_engine

from ..conftest import Database, open_manager
from ..support.history import assert_legal
from ..support.next_version import next_version
from ..support.states import bring_to
from .faults import Subjects
from .lost_connections import blocked_pids, wait_for
from .test_executor import call_every_verb
from .test_incomplete_schema import downgrade

KNOWN = migrate.revisions()


def upgrade_to_next(database: Database, folder: Path) -> str:
    """Upgrade as the next version does, and return its revision."""
    with next_version(folder) as revision:
        migrate.upgrade(database.url)
        assert migrate.check(database.url)
    assert migrate.current(database.url) == revision
    return revision


def warnings_of_doctor(database: Database) -> dict[str, tuple[str, str]]:
    """Return level and message of the findings about the schema and the executions."""
    settings = {"fsync", "full_page_writes"}  # off in the test server
    return {
        each.check: (each.level, each.message)
        for each in doctor.examine(database.url)
        if each.level != "ok" and each.check not in settings
    }


def test_revisions_names_are_in_order() -> None:
    """By its name, an older version recognises a newer revision that it works with."""
    assert [f"execution_core_{number:04}" for number in range(len(KNOWN), 0, -1)] == KNOWN


def test_newer_schema_open_manager_keeps_working(
    own_database: Database, mode: str, runner: asyncio.Runner, tmp_path: Path
) -> None:
    """Its connections have prepared statements of the time before."""
    with open_manager(own_database.url, mode, runner) as manager:
        for _ in range(7 if own_database.name == "postgresql" else 1):
            call_every_verb(manager)  # psycopg prepares a statement at the sixth time
        kept = bring_to(manager, "running")
        subjects = Subjects(own_database)
        upgrade_to_next(own_database, tmp_path)
        assert manager.get(kept.id) == kept
        for _ in range(2):
            call_every_verb(manager)
        subjects.assert_usable(manager)
    with open_manager(own_database.url, mode, runner) as manager:
        call_every_verb(manager)
    # The trigger and the view of the next version show what this version has written.
    own_database.run("UPDATE executions SET priority = 3 WHERE id = :id", id=kept.id)
    with connect(own_database.url) as direct:
        direct.complete(kept.id)
    assert own_database.rows(
        "SELECT v.status, v.priority, h.priority AS recorded FROM execution_overview AS v"
        " JOIN execution_history AS h ON h.execution_id = v.execution_id AND h.to_status = v.status"
        " WHERE v.execution_id = :id",
        id=kept.id,
    ) == [{"status": "completed", "priority": 3, "recorded": 3}]


@pytest.mark.slow
def test_newer_schema_calls_during_the_upgrade_succeed(
    own_database: Database, mode: str, tmp_path: Path
) -> None:
    """They wait for the locks of the upgrade."""
    stopped = threading.Event()

    def work() -> int:
        done = 0
        with asyncio.Runner() as runner, open_manager(own_database.url, mode, runner) as manager:
            while not stopped.is_set():
                manager.create("work")
                for each in manager.claim("work", limit=2):
                    with manager.attempt(each) as attempt:
                        attempt.advance(1, 1, key="k", value=1)
                    done += 1
        return done

    def completed() -> int:
        return len(own_database.rows("SELECT id FROM executions WHERE status = 'completed'"))

    def wait_for_more() -> None:
        enough = completed() + 20
        wait_for(lambda: completed() > enough or any(worker.done() for worker in workers))

    with ThreadPoolExecutor(4) as threads:
        workers = [threads.submit(work) for _ in range(4)]
        try:
            wait_for_more()
            upgrade_to_next(own_database, tmp_path)
            wait_for_more()
        finally:
            stopped.set()
        assert sum(worker.result() for worker in workers) == completed()
    assert_legal(own_database)


def test_newer_schema_older_version_accepts_and_reports_it(
    own_database: Database,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A process of the older version that starts now neither fails nor changes anything."""
    revision = upgrade_to_next(own_database, tmp_path)
    assert migrate.is_newer(revision)
    assert not migrate.is_newer(KNOWN[0])
    before = relations(own_database.engine)

    assert migrate.check(own_database.url)
    migrate.upgrade(own_database.url)
    assert f"at {revision}, which a newer version" in caplog.messages[0]
    with own_database.engine.begin() as connection:
        migrate.upgrade(connection)
        assert migrate.check(connection)
    asyncio.run(upgrade_async(own_database.url))
    assert len(caplog.messages) == 3
    assert main(["migrate", "--url", own_database.url]) == 0
    assert capsys.readouterr().out.endswith(f"is at {revision}\n")

    assert migrate.current(own_database.url) == revision
    assert relations(own_database.engine) == before
    assert warnings_of_doctor(own_database) == {
        "migrated": (
            "warning",
            f"at {revision}, newer than {KNOWN[0]} of this version, which works with it",
        )
    }
    assert main(["doctor", "--url", own_database.url]) == 0
    own_database.run("DROP VIEW execution_stats")
    assert warnings_of_doctor(own_database)["views"] == ("problem", "execution_stats is missing")


async def upgrade_async(url: str) -> None:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(migrate.upgrade)
        assert await connection.run_sync(migrate.check)
    await engine.dispose()


def test_upgrade_that_waits_for_the_next_version_accepts_its_schema(
    own_database: Database, tmp_path: Path
) -> None:
    """Both versions upgrade when they start, at the same time."""
    engine = create_sync_engine(own_database.url)
    with ThreadPoolExecutor(1) as threads:
        with engine.begin() as connection:
            with next_version(tmp_path) as revision:
                migrate.upgrade(connection)
            waiting = threads.submit(migrate.upgrade, own_database.url)
            if own_database.name == "postgresql":
                wait_for(lambda: blocked_pids(own_database) or waiting.done())
            else:
                time.sleep(0.2)  # SQLite does not say who waits
            assert not waiting.done()
        waiting.result()
    engine.dispose()
    assert migrate.current(own_database.url) == revision


@pytest.mark.slow
def test_incompatible_schema_refused(own_database: Database) -> None:
    """A revision that the older versions do not work with has a name of another form."""
    for revision in ("execution_core_2_0001", "execution_core_0000", "other"):
        own_database.run("UPDATE execution_core_version SET version_num = :name", name=revision)
        assert not migrate.check(own_database.url)
        with pytest.raises(InvalidValue, match=f"at revision {revision}, with which this version"):
            migrate.upgrade(own_database.url)
        assert migrate.current(own_database.url) == revision
        assert warnings_of_doctor(own_database) == {
            "migrated": ("problem", f"at {revision}, with which this version does not work")
        }


@pytest.mark.slow
def test_newer_schema_downgrade_returns_to_the_older_version(
    own_database: Database, tmp_path: Path
) -> None:
    """The newer version downgrades. The rows that it has written stay, without its columns."""
    upgrade_to_next(own_database, tmp_path)
    with connect(own_database.url) as manager:
        id = bring_to(manager, "running").id
        own_database.run("UPDATE executions SET priority = 1")
        with next_version(tmp_path):
            downgrade(own_database, KNOWN[0])
        assert migrate.current(own_database.url) == KNOWN[0]
        assert warnings_of_doctor(own_database) == {}
        assert manager.complete(id).status == "completed"
        assert_legal(own_database)


# --- what SQL readers may rely on ---------------------------------------------------------------

Relations = dict[str, list[tuple[str, str, bool]]]
"""By table or view: name and type of each column, and whether an INSERT needs it."""


def relations(engine: Engine) -> Relations:
    inspector = inspect(engine)
    names = [*inspector.get_table_names(), *inspector.get_view_names()]
    return {
        name: [
            (
                column["name"],
                str(column["type"]),
                not column["nullable"] and column["default"] is None,
            )
            for column in inspector.get_columns(name)
        ]
        for name in names
    }


def breaches(before: Relations, after: Relations) -> list[str]:
    """Return what an SQL reader or writer of the version before would miss."""
    wrong = [f"{name} is missing" for name in before.keys() - after.keys()]
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        wrong += [f"{name}.{column[0]} is changed" for column in old if column not in new]
        added = [column for column in new if column not in old]
        wrong += [f"{name}.{column} is needed" for column, _, needed in added if needed]
    return sorted(wrong)


def test_newer_schema_views_and_open_readers_of_the_application_keep_working(
    own_database: Database, tmp_path: Path
) -> None:
    own_database.run(
        "CREATE VIEW mine AS SELECT v.execution_id, v.status, h.seq FROM execution_overview AS v"
        " JOIN execution_history AS h ON h.execution_id = v.execution_id"
    )
    own_database.run("CREATE INDEX mine_by_worker ON executions (worker)")
    with connect(own_database.url) as manager, own_database.engine.connect() as reader:
        id = bring_to(manager, "running").id

        def read() -> list[tuple[object, ...]]:
            query = text("SELECT status, max(seq) FROM mine WHERE execution_id = :id GROUP BY 1")
            found = [tuple(row) for row in reader.execute(query, {"id": id})]
            reader.rollback()
            return found

        before = [read() for _ in range(7)]  # psycopg prepares at the sixth time
        upgrade_to_next(own_database, tmp_path)
        assert [read()] == before[:1] == [[("running", 2)]]
        manager.complete(id)
        assert read() == [("completed", 3)]


STEPS = [*zip(KNOWN[1:], KNOWN, strict=False), (KNOWN[0], "next")]


@pytest.mark.parametrize(("before", "after"), STEPS)
def test_revision_only_adds_columns_tables_and_views(
    own_database: Database, tmp_path: Path, before: str, after: str
) -> None:
    """Each revision after the first one, and the next one of the tests."""
    downgrade(own_database, before)
    old = relations(own_database.engine)
    with next_version(tmp_path) as revision, own_database.engine.begin() as connection:
        config = migrate._config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision if after == "next" else after)
    assert breaches(old, relations(own_database.engine)) == []


@pytest.mark.slow
def test_breaking_change_is_noticed(own_database: Database) -> None:
    """Control of the test above."""
    old = relations(own_database.engine)
    own_database.run("ALTER TABLE execution_logs RENAME COLUMN data TO details")
    own_database.run("ALTER TABLE executions ADD COLUMN needed integer NOT NULL")
    own_database.run("DROP VIEW execution_stats")
    assert breaches(old, relations(own_database.engine)) == [
        "execution_logs.data is changed",
        "execution_stats is missing",
        "executions.needed is needed",
    ]
