"""The roles of docs/sql.md on a real server: what each may do and what it is denied.

PostgreSQL only: SQLite has no roles.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import DBAPIError

from execution_core import ConcurrentUpdate, Execution, ExecutionManager, cli, connect, migrate
from execution_core.core import state_machine
from execution_core.sql.driver.engine import create_sync_engine
from execution_core.sql.schema.tables import executions

from ..conftest import Database
from ..docs.test_sql_cookbook import Story
from ..support.cookbook import blocks, cookbook, run_query

READER, WORKER = "executions_reader", "executions_worker"
PASSWORD = "only-for-tests"


class Roles:
    """The two roles, with names of this process: all databases of a server share its roles."""

    def __init__(self, owner: Database) -> None:
        self.owner = owner
        self.names = {role: f"{role}_{os.getpid()}" for role in (READER, WORKER)}
        recipes = "".join(blocks("pgsql"))
        for role, name in self.names.items():
            recipes = recipes.replace(role, name)
        with owner.engine.begin() as connection:
            connection.exec_driver_sql(recipes)
            for name in self.names.values():
                connection.exec_driver_sql(f"ALTER ROLE {name} PASSWORD '{PASSWORD}'")

    def url(self, role: str) -> str:
        at = make_url(self.owner.url).set(username=self.names[role], password=PASSWORD)
        return at.render_as_string(hide_password=False)

    @contextmanager
    def database(self, role: str) -> Iterator[Database]:
        engine = create_engine(self.url(role))
        try:
            yield Database("postgresql", self.url(role), engine)
        finally:
            engine.dispose()

    def drop(self) -> None:
        for name in self.names.values():
            self.owner.run(f"DROP OWNED BY {name}")
            self.owner.run(f"DROP ROLE {name}")


@pytest.fixture(scope="module")
def story(empty_postgres: Callable[[str], str]) -> Iterator[Story]:
    url = empty_postgres("roles")
    migrate.upgrade(url)
    engine = create_sync_engine(url)
    story = Story(Database("postgresql", url, engine))
    story.record()
    yield story
    engine.dispose()


@pytest.fixture(scope="module")
def roles(story: Story) -> Iterator[Roles]:
    roles = Roles(story.database)
    yield roles
    roles.drop()


@contextmanager
def permission_denied() -> Iterator[None]:
    with pytest.raises(DBAPIError, match="permission denied"):
        yield


def test_role_reader_runs_the_cookbook_except_payloads(story: Story, roles: Roles) -> None:
    """All queries return the same columns as for the owner, except those that read payloads."""
    values = {"type": "mail", "id": story.ids["broken"]}
    with roles.database(READER) as reader:
        for question, query in cookbook().items():
            with reader.engine.connect() as connection:
                if "payload" in question:
                    with permission_denied():
                        run_query(connection, query, **values)
                    continue
                answer = run_query(connection, query, **values)
            with story.database.engine.connect() as connection:
                expected = run_query(connection, query, **values)
            assert [*map(list, answer)] == [*map(list, expected)]


def test_role_reader_cli_lists_but_shows_no_data(
    story: Story, roles: Roles, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("list --status failed", "stats", "watch --json"):
        assert cli.main([*command.split(), "--url", roles.url(READER)]) == 0
    assert "still full" in capsys.readouterr().out
    for command in (f"show {story.ids['broken']}", "list --with payload", "sweep"):
        assert cli.main([*command.split(), "--url", roles.url(READER)]) == 1
        assert "permission denied" in capsys.readouterr().err


HIDDEN = {
    "executions": ("payload", "result", "error", "metadata", "checkpoints", "id", "type"),
    "execution_history": ("error", "reason"),
    "execution_attempts": ("error", "*"),
    "execution_timeline": ("error", "*"),
    "execution_logs": ("data", "*"),
}


def test_role_reader_data_columns_are_denied(roles: Roles) -> None:
    with roles.database(READER) as reader:
        for table, columns in HIDDEN.items():
            for column in columns:
                with permission_denied():
                    reader.rows(f"SELECT {column} FROM {table}")


def test_role_reader_other_columns_are_visible(story: Story, roles: Roles) -> None:
    """A new column of a view has to be either granted by the recipe or hidden here."""
    hidden = {f"{table}.{column}" for table in HIDDEN for column in HIDDEN[table]}
    columns = story.database.rows(
        "SELECT relname || '.' || attname AS name,"
        " has_column_privilege(:reader, attrelid, attnum, 'SELECT') AS visible"
        " FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid"
        " WHERE relnamespace = 'public'::regnamespace AND attnum > 0"
        " AND (relkind = 'v' OR relname = 'execution_logs')".replace("::", r"\:\:"),
        reader=roles.names[READER],
    )
    assert {each["name"] for each in columns if not each["visible"]} <= hidden
    assert {each["name"] for each in columns if each["visible"]}.isdisjoint(hidden)


WRITES = (
    "INSERT INTO {} DEFAULT VALUES",
    "DELETE FROM {}",
    "TRUNCATE {} CASCADE",
    "DROP TABLE {}",
    "ALTER TABLE {} DISABLE TRIGGER ALL",
)


def test_role_reader_writes_are_denied(roles: Roles) -> None:
    with roles.database(READER) as reader:
        for table, column in (
            ("executions", "status"),
            ("execution_history", "reason"),
            ("execution_logs", "message"),
        ):
            for write in (*WRITES, f"UPDATE {{}} SET {column} = 'x'"):
                with pytest.raises(DBAPIError, match=r"permission denied|must be owner"):
                    reader.run(write.format(table))
        with permission_denied():  # PostgreSQL makes so simple a view updatable
            reader.run("UPDATE execution_overview SET status = 'x'")


@pytest.fixture
def created(story: Story) -> Callable[..., str]:
    """A function with which the owner creates an execution for the worker."""

    def create(**options: Any) -> str:
        with connect(story.database.url) as owner:
            return owner.create("moved", {"secret": 1}, max_attempts=3, **options).id

    return create


def test_role_worker_transitions_succeed(
    roles: Roles, story: Story, created: Callable[..., str]
) -> None:
    """Every transition, with the statements, triggers and checks of the library."""
    hour = timedelta(hours=1)
    with connect(roles.url(WORKER)) as worker:
        assert migrate.check(roles.url(WORKER))
        id = created(timeout=timedelta(milliseconds=1))
        worker.start(id, worker="w")
        worker.heartbeat(id, attempt=1)
        worker.update_progress(id, 1, 2, message="half", attempt=1)
        worker.checkpoint(id, "k", 1, attempt=1)
        worker.advance(id, 2, 2, key="k", value=2, attempt=1)
        worker.log(id, "line", level="warning", attempt=1)
        assert [each.message for each in worker.logs(id)] == ["line"]
        assert [each.to_status for each in worker.history(id)] == ["pending", "running"]
        assert [each.outcome for each in worker.attempts(id)] == ["running"]
        worker.fail(id, OSError("no"), retryable=True, retry_after=timedelta(0))
        assert [each.id for each in worker.claim("moved", worker="w")] == [id]
        while not (swept := worker.sweep(type="moved", stalled_after=hour)):
            pass
        assert [each.id for each in swept] == [id]
        worker.retry(id)
        with worker.attempt(id) as attempt:
            attempt.result = {"done": True}
        ends = [(worker.start(created()), number) for number in range(4)]
        done = worker.complete_many(ends[:2])
        done += worker.fail_many([(each, "no") for each, _ in ends[2:]])
        assert [each.id for each in done if isinstance(each, Execution)] == [
            each.id for each, _ in ends
        ]
        worker.timeout(worker.start(created()).id)
        worker.cancel(created(), "no longer wanted")
        assert worker.list(type="moved", limit=1)[0].status == "cancelled"
    assert story.database.history(id)[-1] == ("running", "completed")
    assert len(story.database.history(id)) == 8


def test_role_worker_create_and_delete_are_denied(
    roles: Roles, story: Story, created: Callable[..., str]
) -> None:
    id = created()
    with connect(roles.url(WORKER)) as worker:
        worker.complete(worker.start(id).id)
        calls: list[Callable[[ExecutionManager], Any]] = [
            lambda m: m.create("moved"),
            lambda m: m.create_many([{"type": "moved"}] * 2),
            lambda m: m.replay(id),
            lambda m: m.delete(id),
            lambda m: m.prune(timedelta(0)),
        ]
        for call in calls:
            with permission_denied():
                call(worker)
    with roles.database(WORKER) as connected:
        for write in (
            "DELETE FROM executions",
            "TRUNCATE executions CASCADE",
            "UPDATE execution_history SET reason = 'another'",
            "DELETE FROM execution_history",
            "UPDATE execution_logs SET message = 'another'",
            "DELETE FROM execution_logs",
        ):
            with permission_denied():
                connected.run(write)
    assert len(story.database.history(id)) == 3


def test_role_worker_updates_only_columns_of_transitions(roles: Roles) -> None:
    """Exactly the columns that transitions write; not the type, the payload or the timeout."""
    writable = {"status", "updated_at", "write_token", "actor"}
    for rule in {*state_machine.RULES} - {state_machine.REDACT}:
        writable |= {field for move in rule.moves for field in move.changes}
    writable -= {"progress"}
    writable |= {f"progress_{part}" for part in ("current", "total", "percent", "message")}
    with roles.database(WORKER) as connected:
        for column in executions.c:
            write = f"UPDATE executions SET {column.name} = {column.name} WHERE false"
            if column.name in writable:
                connected.run(write)
            else:
                with permission_denied():
                    connected.run(write)


def test_role_recipes_create_these_two_roles() -> None:
    assert re.findall(r"CREATE ROLE (\w+)", "".join(blocks("pgsql"))) == [READER, WORKER]


def test_create_with_key_of_a_hidden_execution_names_row_level_security(
    postgres_database: Database,
) -> None:
    owner, role = postgres_database, f"tenant_{os.getpid()}"
    with connect(owner.url) as manager:
        manager.create("hidden", idempotency_key="held")
    owner.run(f"CREATE ROLE {role} LOGIN")
    owner.run(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    owner.run("ALTER TABLE executions ENABLE ROW LEVEL SECURITY")
    owner.run(f"CREATE POLICY visible ON executions TO {role} USING (type <> 'hidden')")
    try:
        with (
            connect(make_url(owner.url).set(username=role)) as manager,
            pytest.raises(ConcurrentUpdate) as caught,
        ):
            manager.create("mail", idempotency_key="held")
        assert "row-level security" in caught.value.__notes__[0]
    finally:
        owner.run("DROP POLICY visible ON executions")
        owner.run("ALTER TABLE executions DISABLE ROW LEVEL SECURITY")
        owner.run(f"DROP OWNED BY {role}")
        owner.run(f"DROP ROLE {role}")
        owner.run("TRUNCATE executions CASCADE")
