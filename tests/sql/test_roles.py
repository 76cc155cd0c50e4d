"""The roles of docs/sql.md, on a real server: what each may do, and what it is refused.

PostgreSQL alone: in SQLite whoever reads the file reads all of it.
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

from execution_core import ExecutionManager, cli, connect, migrate
from execution_core.core import state_machine
from execution_core.sql.driver.engine import create_sync_engine
from execution_core.sql.schema.tables import executions

from ..conftest import Database
from ..docs.test_sql_cookbook import Story
from ..support.cookbook import ask, blocks, cookbook

READER, MOVER = "executions_reader", "executions_mover"
PASSWORD = "only-for-tests"


class Roles:
    """The two roles, by names of this run alone: a server's databases share their roles."""

    def __init__(self, owner: Database) -> None:
        self.owner = owner
        self.names = {role: f"{role}_{os.getpid()}" for role in (READER, MOVER)}
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
def refused() -> Iterator[None]:
    with pytest.raises(DBAPIError, match="permission denied"):
        yield


def test_a_reader_runs_the_cookbook(story: Story, roles: Roles) -> None:
    """All of it, with the owner's answers, but for what asks for payloads."""
    values = {"type": "mail", "id": story.ids["broken"]}
    with roles.database(READER) as reader:
        for question, query in cookbook().items():
            with reader.engine.connect() as connection:
                if "payload" in question:
                    with refused():
                        ask(connection, query, **values)
                    continue
                answer = ask(connection, query, **values)
            with story.database.engine.connect() as connection:
                owners = ask(connection, query, **values)
            assert [*map(list, answer)] == [*map(list, owners)]


def test_a_reader_uses_the_command_line(
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


def test_a_reader_sees_no_data(roles: Roles) -> None:
    with roles.database(READER) as reader:
        for table, columns in HIDDEN.items():
            for column in columns:
                with refused():
                    reader.rows(f"SELECT {column} FROM {table}")


def test_a_reader_sees_every_other_column(story: Story, roles: Roles) -> None:
    """Whatever a view gets, the recipe has to say whether a reader may see it."""
    hidden = {f"{table}.{column}" for table in HIDDEN for column in HIDDEN[table]}
    seen = story.database.rows(
        "SELECT relname || '.' || attname AS name,"
        " has_column_privilege(:reader, attrelid, attnum, 'SELECT') AS visible"
        " FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid"
        " WHERE relnamespace = 'public'::regnamespace AND attnum > 0"
        " AND (relkind = 'v' OR relname = 'execution_logs')".replace("::", r"\:\:"),
        reader=roles.names[READER],
    )
    assert {each["name"] for each in seen if not each["visible"]} <= hidden
    assert {each["name"] for each in seen if each["visible"]}.isdisjoint(hidden)


WRITES = (
    "INSERT INTO {} DEFAULT VALUES",
    "DELETE FROM {}",
    "TRUNCATE {} CASCADE",
    "DROP TABLE {}",
    "ALTER TABLE {} DISABLE TRIGGER ALL",
)


def test_a_reader_writes_nothing(roles: Roles) -> None:
    with roles.database(READER) as reader:
        for table, column in (
            ("executions", "status"),
            ("execution_history", "reason"),
            ("execution_logs", "message"),
        ):
            for write in (*WRITES, f"UPDATE {{}} SET {column} = 'x'"):
                with pytest.raises(DBAPIError, match=r"permission denied|must be owner"):
                    reader.run(write.format(table))
        with refused():  # PostgreSQL passes on what is written to so simple a view
            reader.run("UPDATE execution_overview SET status = 'x'")


@pytest.fixture
def created(story: Story) -> Callable[..., str]:
    """A function by which the owner creates what the mover is handed."""

    def create(**options: Any) -> str:
        with connect(story.database.url) as owner:
            return owner.create("moved", {"secret": 1}, max_attempts=3, **options).id

    return create


def test_a_mover_moves(roles: Roles, story: Story, created: Callable[..., str]) -> None:
    """Every verb that moves, by the library as it is: its statements, its triggers, its checks."""
    hour = timedelta(hours=1)
    with connect(roles.url(MOVER)) as mover:
        assert migrate.check(roles.url(MOVER))
        id = created(timeout=timedelta(milliseconds=1))
        mover.start(id, worker="w")
        mover.heartbeat(id, attempt=1)
        mover.update_progress(id, 1, 2, message="half", attempt=1)
        mover.checkpoint(id, "k", 1, attempt=1)
        mover.advance(id, 2, 2, key="k", value=2, attempt=1)
        mover.log(id, "line", level="warning", attempt=1)
        assert [each.message for each in mover.logs(id)] == ["line"]
        mover.fail(id, OSError("no"), retryable=True, retry_after=timedelta(0))
        assert [each.id for each in mover.claim("moved", worker="w")] == [id]
        while not (swept := mover.sweep(type="moved", stalled_after=hour)):
            pass
        assert [each.id for each in swept] == [id]
        mover.retry(id)
        with mover.attempt(id) as attempt:
            attempt.result = {"done": True}
        mover.timeout(mover.start(created()).id)
        mover.cancel(created(), "no longer wanted")
        assert mover.list(type="moved", limit=1)[0].status == "cancelled"
    assert story.database.history(id)[-1] == ("running", "completed")
    assert len(story.database.history(id)) == 8


def test_a_mover_creates_and_removes_nothing(
    roles: Roles, story: Story, created: Callable[..., str]
) -> None:
    id = created()
    with connect(roles.url(MOVER)) as mover:
        mover.complete(mover.start(id).id)
        calls: list[Callable[[ExecutionManager], Any]] = [
            lambda m: m.create("moved"),
            lambda m: m.replay(id),
            lambda m: m.delete(id),
            lambda m: m.prune(timedelta(0)),
        ]
        for call in calls:
            with refused():
                call(mover)
    with roles.database(MOVER) as hand:
        for write in (
            "DELETE FROM executions",
            "TRUNCATE executions CASCADE",
            "UPDATE execution_history SET reason = 'another'",
            "DELETE FROM execution_history",
            "UPDATE execution_logs SET message = 'another'",
            "DELETE FROM execution_logs",
        ):
            with refused():
                hand.run(write)
    assert len(story.database.history(id)) == 3


def test_a_mover_writes_what_moves_write(roles: Roles) -> None:
    """No column more, and none less: what is to be done is not for it to change."""
    moved = {"status", "updated_at", "write_token"}
    for rule in state_machine.RULES:
        moved |= {field for move in rule.moves for field in move.changes}
    moved -= {"progress"}
    moved |= {f"progress_{part}" for part in ("current", "total", "percent", "message")}
    with roles.database(MOVER) as hand:
        for column in executions.c:
            write = f"UPDATE executions SET {column.name} = {column.name} WHERE false"
            if column.name in moved:
                hand.run(write)
            else:
                with refused():
                    hand.run(write)


def test_the_recipe_is_for_these_two() -> None:
    assert re.findall(r"CREATE ROLE (\w+)", "".join(blocks("pgsql"))) == [READER, MOVER]
