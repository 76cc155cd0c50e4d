"""Several schemas of one PostgreSQL database, each with its own tables, and foreign tables."""

import asyncio
import io
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import (
    Connection,
    ForeignKey,
    String,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import UUID
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from execution_core import (
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    ExecutionManager,
    InvalidValue,
    SqlExecutionStore,
    connect,
    connect_async,
    doctor,
    migrate,
    tables,
)
from execution_core.cli import main
from execution_core.sql.driver import compiled

from ..conftest import Database
from ..support.history import assert_legal
from ..support.pgbouncer import BINARY, MISSING, pgbouncer
from ..support.postgres import dsn
from ..support.processes import spawn
from ..support.proxy import Cut, proxied
from .lost_connections import open_bound_manager
from .test_executor import call_every_verb

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STRANGE = """My "Jobs" 50% :of {0} $$ it's"""
SCHEMAS = ("public", "jobs", STRANGE)
NAMES = [None, "jobs", STRANGE]
"""What a caller passes for each of SCHEMAS."""
BINDINGS = ("own", "host", "listening", "translated")


def quote(schema: str) -> str:
    return '"' + schema.replace('"', '""') + '"'


@contextmanager
def open_schema(url: str, schema: str | None) -> Iterator[Database]:
    """Yield an engine that looks into this schema alone."""
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def set_path(connection: Any, record: Any) -> None:
        connection.execute(f"SET search_path TO {quote(schema or 'public')}")
        connection.commit()

    yield Database("postgresql", url, engine)
    engine.dispose()


@pytest.fixture
def empty_url(empty_postgres: Callable[[str], str]) -> str:
    return empty_postgres(f"schemas_{secrets.token_hex(4)}")


@pytest.fixture(scope="module")
def url(empty_postgres: Callable[[str], str]) -> str:
    """A database with the tables in the schema public and in two others."""
    url = empty_postgres("schemas")
    for name in NAMES:
        migrate.upgrade(url, schema=name)
    return url


@pytest.fixture
def schemas(url: str) -> Iterator[dict[str | None, Database]]:
    """The three schemas, empty, by what a caller passes."""
    with ExitStack() as stack:
        found = {name: stack.enter_context(open_schema(url, name)) for name in NAMES}
        for database in found.values():
            database.run("DELETE FROM executions")
        yield found


def open_manager(
    url: str, mode: str, binding: str, schema: str | None, runner: asyncio.Runner
) -> AbstractContextManager[Any]:
    return open_bound_manager(url, mode, binding, runner, schema=schema)


def count_rows(database: Database) -> int:
    return sum(
        len(database.rows(f"SELECT 1 FROM {table}"))
        for table in ("executions", "execution_history", "execution_logs")
    )


# --- stores ------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", NAMES)
@pytest.mark.parametrize("binding", BINDINGS)
def test_schema_every_verb_uses_its_tables_alone(
    url: str,
    schemas: dict[str | None, Database],
    mode: str,
    binding: str,
    schema: str | None,
    runner: asyncio.Runner,
) -> None:
    with open_manager(url, mode, binding, schema, runner) as manager:
        call_every_verb(manager)
        parent = manager.create("a", idempotency_key="k")
        child = manager.create("a", parent_id=parent.id)
        manager.log(child.id, "hello")
        manager.cancel(parent.id)
        prune = partial(manager.prune, older_than=timedelta(0), keys_older_than=timedelta(0))
        assert prune() == 0  # it has a live child
        with manager.attempt(child.id):
            assert manager.find_by_idempotency_key("k") is not None
        assert_legal(schemas[schema])
        assert manager.history(child.id)[-1].to_status == "completed"
        assert [each.outcome for each in manager.attempts(child.id)] == ["completed"]
        assert schemas[schema].history(child.id)[-1] == ("running", "completed")
        for name, database in schemas.items():
            assert (count_rows(database) > 0) is (name == schema)
        assert prune() == 2
    assert count_rows(schemas[schema]) == 0


def test_schema_same_key_in_each_schema_is_free(
    url: str, schemas: dict[str | None, Database], mode: str, runner: asyncio.Runner
) -> None:
    ids = set()
    for name in NAMES:
        with open_manager(url, mode, "own", name, runner) as manager:
            ids.add(manager.create("a", idempotency_key="k").id)
            assert manager.create("a", idempotency_key="k").id in ids
    assert len(ids) == 3
    assert [len(each.rows("SELECT 1 FROM executions")) for each in schemas.values()] == [1, 1, 1]


@pytest.mark.parametrize(
    "host_map", [None, {None: "public"}, {"mine": "jobs"}, {None: STRANGE, "mine": "jobs"}]
)
def test_schema_stores_on_one_engine_within_one_transaction(
    url: str,
    schemas: dict[str | None, Database],
    mode: str,
    host_map: dict[str | None, str] | None,
    runner: asyncio.Runner,
) -> None:
    """The map of the host still holds for its own statements, and for a store without a schema."""
    options = {} if host_map is None else {"schema_translate_map": host_map}
    own = tables.executions.select().with_only_columns(tables.executions.c.id)
    ids: dict[str | None, str] = {}
    seen: list[str] = []
    if mode == "sync":
        engine = create_engine(url, execution_options=options)
        managers = {n: ExecutionManager(SqlExecutionStore(engine, schema=n)) for n in NAMES}
        with Session(engine) as session, session.begin():
            for name in [*NAMES, *NAMES]:
                ids[name] = managers[name].within(session).create("a").id
                managers[name].within(session.connection()).start(ids[name])
            seen += session.scalars(own)
        for name in NAMES:
            assert managers[name].get(ids[name]).status == "running"
        engine.dispose()
    else:

        async def work() -> None:
            engine = create_async_engine(url, execution_options=options)
            managers = {
                n: AsyncExecutionManager(AsyncSqlExecutionStore(engine, schema=n)) for n in NAMES
            }
            async with AsyncSession(engine) as session, session.begin():
                for name in [*NAMES, *NAMES]:
                    ids[name] = (await managers[name].within(session).create("a")).id
                    connection = await session.connection()
                    await managers[name].within(connection).start(ids[name])
                seen.extend(await session.scalars(own))
            for name in NAMES:
                assert (await managers[name].get(ids[name])).status == "running"
            await engine.dispose()

        runner.run(work())
    default = None if host_map is None else host_map.get(None)
    default = None if default == "public" else default
    expected = dict.fromkeys(NAMES, 2)
    expected[None] = 0
    expected[default] += 2
    assert ids[None] in seen
    assert len(seen) == expected[default]
    for name, database in schemas.items():
        assert len(database.rows("SELECT 1 FROM executions")) == expected[name]
        assert_legal(database)


def test_schema_search_path_of_sessions_stays_unchanged(
    url: str, schemas: dict[str | None, Database], mode: str, runner: asyncio.Runner
) -> None:
    """A pooler would give a changed search_path to other clients."""
    assert schemas
    with proxied(url) as proxy, open_manager(proxy.url, mode, "host", "jobs", runner) as manager:
        id = manager.create("a").id
        for when in (Cut.BEFORE, Cut.AFTER, Cut.RACING):
            proxy.cut(when)
            manager.start(id)
            time.sleep(0.05)  # else a slow recovery could not tell which of the two writes was last
            proxy.cut(when)
            manager.update_progress(id, 1, 2)
            proxy.cut(when)
            manager.fail(id, "no", retryable=False)
            proxy.cut(when)
            id = manager.replay(id).id
        proxy.cut(Cut.AFTER)
        assert len(manager.claim("a")) == 1
        assert proxy.waiting == 0
        engine = manager.target._store._bind.engine if mode == "async" else None
        if engine is None:
            with manager._store._bind.engine.connect() as connection:
                assert connection.scalar(text("SHOW search_path")) == '"$user", public'
    assert_legal(schemas["jobs"])


@pytest.mark.skipif(BINARY is None, reason=MISSING)
def test_schema_behind_pooler_meets_no_other_client(
    url: str, schemas: dict[str | None, Database], mode: str, runner: asyncio.Runner
) -> None:
    with ExitStack() as stack:
        pooled = stack.enter_context(pgbouncer(url, "transaction"))
        managers = {
            name: stack.enter_context(open_manager(pooled, mode, binding, name, runner))
            for name, binding in zip(NAMES, BINDINGS, strict=False)
        }
        for _ in range(10):
            for manager in managers.values():
                with manager.attempt(manager.create("a").id) as attempt:
                    attempt.update_progress(1, 2)
        with psycopg.connect(dsn(pooled), autocommit=True, prepare_threshold=None) as client:
            for _ in range(6):
                path = client.execute("SHOW search_path").fetchone()
                assert path == ('"$user", public',)
    for database in schemas.values():
        assert len(database.rows("SELECT 1 FROM executions WHERE status = 'completed'")) == 10
        assert_legal(database)


def test_schema_translate_map_of_host_selects_the_tables(
    url: str, schemas: dict[str | None, Database]
) -> None:
    """Without `schema`, also for the function that a prune calls."""
    engine = create_engine(url, execution_options={"schema_translate_map": {None: "jobs"}})
    manager = ExecutionManager(SqlExecutionStore(engine))
    call_every_verb(manager)
    parent = manager.create("a").id
    manager.create("a", parent_id=parent)
    manager.cancel(parent)
    assert manager.prune(older_than=timedelta(0)) == 0
    assert [count_rows(each) > 0 for each in schemas.values()] == [False, True, False]
    engine.dispose()


def test_schema_statements_are_compiled_once_for_all_schemas(url: str) -> None:
    with connect(url, schema="jobs") as manager:
        manager.create("a")
    before = len(compiled._compiled)
    for name in (STRANGE, "jobs", "public"):
        with connect(url, schema=name) as manager:
            manager.create("a")
    assert len(compiled._compiled) == before


def test_schema_in_repr(url: str) -> None:
    with connect(url, schema="jobs") as manager, connect(url) as other:
        assert "schema jobs" in repr(manager)
        assert "schema" not in repr(other).replace("schemas", "")


INVALID = {
    "": "must not be empty",
    "a\0b": r"U\+0000",
    "a\ud800": "surrogate",
    "x" * 64: "at most 63 bytes",
    "ä" * 32: "at most 63 bytes",
    "pg_temp": "reserves",
    "$user": "reserves",
    7: "must be a string",
}


@pytest.mark.parametrize("name", INVALID)
def test_schema_invalid_name_refused_everywhere(url: str, name: Any) -> None:
    engine, asynchronous = create_engine(url), create_async_engine(url)
    for call in (
        lambda: connect(url, schema=name),
        lambda: connect_async(url, schema=name),
        lambda: SqlExecutionStore(engine, schema=name),
        lambda: AsyncSqlExecutionStore(asynchronous, schema=name),
        lambda: migrate.upgrade(engine, schema=name),
        lambda: migrate.upgrade_sql(url, io.StringIO(), schema=name),
        lambda: migrate.check(engine, schema=name),
        lambda: migrate.current(engine, schema=name),
        lambda: doctor.examine(engine, schema=name),
        lambda: tables.for_schema(name),
    ):
        with pytest.raises(InvalidValue, match=f"^schema .*{INVALID[name]}"):
            call()
    engine.dispose()


def test_schema_longest_name_works(empty_url: str) -> None:
    name = "ü" * 31 + "x"
    migrate.upgrade(empty_url, schema=name)
    with connect(empty_url, schema=name) as manager:
        call_every_verb(manager)


def test_schema_on_sqlite_refused_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    engine = create_engine(url)
    asynchronous = create_async_engine(url.replace("sqlite", "sqlite+aiosqlite"))
    for call in (
        lambda: connect(url, schema="jobs"),
        lambda: connect_async(url, schema="jobs"),
        lambda: SqlExecutionStore(engine, schema="jobs"),
        lambda: AsyncSqlExecutionStore(asynchronous, schema="jobs"),
        lambda: migrate.upgrade(url, schema="jobs"),
        lambda: migrate.upgrade_sql(url, schema="jobs"),
        lambda: migrate.check(engine, schema="jobs"),
        lambda: doctor.examine(engine, schema="jobs"),
    ):
        with pytest.raises(InvalidValue, match=r"a file of its own.*No transaction"):
            call()
    for arguments in (["list"], ["migrate"], ["migrate", "--sql"], ["doctor"]):
        assert main([*arguments, "--url", url, "--schema", "jobs"]) == 1
        assert "a file of its own" in capsys.readouterr().err
    assert migrate.current(url) is None


# --- migrations --------------------------------------------------------------------------------


def relations(url: str, schema: str | None) -> set[str]:
    engine = create_engine(url)
    inspector = inspect(engine)
    found = {*inspector.get_table_names(schema), *inspector.get_view_names(schema)}
    engine.dispose()
    return found


def test_upgrade_in_schema_creates_it_and_leaves_others(empty_url: str) -> None:
    for _ in range(2):
        migrate.upgrade(empty_url, schema=STRANGE)
    assert migrate.check(empty_url, schema=STRANGE)
    assert migrate.current(empty_url) is None
    assert migrate.current(empty_url, schema="missing") is None
    assert relations(empty_url, "public") == set()
    assert all(map(migrate.owns, relations(empty_url, STRANGE)))
    assert len(relations(empty_url, STRANGE)) == 11
    migrate.upgrade(empty_url)
    assert relations(empty_url, "public") == relations(empty_url, STRANGE)


def test_upgrade_of_schemas_concurrently(empty_url: str) -> None:
    names = ["a", "b", "a", None]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda name: migrate.upgrade(empty_url, schema=name), names))
    assert all(migrate.check(empty_url, schema=name) for name in names)


def test_upgrade_in_schema_by_concurrent_processes(empty_url: str) -> None:
    upgrade = partial(migrate.upgrade, empty_url, schema="jobs")
    processes = [spawn.Process(target=upgrade) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert migrate.check(empty_url, schema="jobs")


def test_upgrade_in_schema_in_callers_transaction(
    empty_url: str, mode: str, runner: asyncio.Runner
) -> None:
    """The transaction of the caller keeps its search_path, and decides."""

    def upgrade(connection: Connection) -> None:
        connection.execute(text("CREATE SCHEMA own"))
        connection.execute(text("SET LOCAL search_path TO own"))
        migrate.upgrade(connection, schema="jobs")
        connection.execute(text("CREATE TABLE orders (id integer)"))
        assert connection.scalar(text("SHOW search_path")) == "own"
        assert migrate.check(connection, schema="jobs")
        assert not migrate.check(connection)

    async def upgrade_async(ends: str) -> None:
        engine = create_async_engine(empty_url)
        async with engine.connect() as connection:
            await connection.run_sync(upgrade)
            await getattr(connection, ends)()
        await engine.dispose()

    for ends in ("rollback", "commit"):
        if mode == "async":
            runner.run(upgrade_async(ends))
        else:
            engine = create_engine(empty_url)
            with engine.connect() as connection:
                upgrade(connection)
                getattr(connection, ends)()
            engine.dispose()
        assert migrate.check(empty_url, schema="jobs") is (ends == "commit")
    assert relations(empty_url, "own") == {"orders"}


def test_upgrade_in_schema_by_role_without_right_to_create_schemas(empty_url: str) -> None:
    role = f"plain_{secrets.token_hex(4)}"
    with psycopg.connect(dsn(empty_url), autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
        owner.execute(f"CREATE SCHEMA jobs AUTHORIZATION {role}")
        as_role = make_url(empty_url).set(username=role, password="x")
        migrate.upgrade(as_role, schema="jobs")
        assert migrate.check(as_role, schema="jobs")
        with pytest.raises(Exception, match="permission denied"):
            migrate.upgrade(as_role, schema="other")
        owner.execute(f"DROP OWNED BY {role}")
        owner.execute(f"DROP ROLE {role}")


@pytest.mark.parametrize("schema", ["jobs", STRANGE])
def test_printed_sql_for_schema_creates_it(empty_url: str, schema: str) -> None:
    migrate.upgrade(empty_url)
    printed = io.StringIO()
    migrate.upgrade_sql("postgresql://", printed, schema=schema)
    with psycopg.connect(dsn(empty_url), autocommit=True) as connection:
        connection.execute(printed.getvalue().encode())
        path = connection.execute("SHOW search_path").fetchone()
    assert path == ('"$user", public',)
    assert migrate.check(empty_url, schema=schema)
    assert {f.level for f in doctor.examine(empty_url, schema=schema) if f.check != "fsync"} <= {
        "ok",
        "warning",
    }
    with connect(empty_url, schema=schema) as manager:
        call_every_verb(manager)


def test_printed_sql_for_schema_without_its_transaction_refused(empty_url: str) -> None:
    """SET LOCAL has no effect outside a transaction: the tables would be in another schema."""
    printed = io.StringIO()
    migrate.upgrade_sql("postgresql://", printed, schema="jobs")
    with (
        psycopg.connect(dsn(empty_url), autocommit=True) as connection,
        pytest.raises(psycopg.Error, match="This SQL is for the schema jobs"),
    ):
        for statement in printed.getvalue().split(";\n"):
            if statement.strip() not in ("BEGIN", "COMMIT"):
                connection.execute(statement.encode())
    assert relations(empty_url, "public") == set()


def test_alembic_command_in_schema_downgrades_it_alone(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        migrate.upgrade(empty_url, schema=name)
    config = Config(ROOT / "alembic.ini")
    monkeypatch.setenv("EXECUTION_CORE_URL", empty_url)
    monkeypatch.setenv("EXECUTION_CORE_SCHEMA", STRANGE)
    command.check(config)
    command.downgrade(config, "base")
    assert relations(empty_url, STRANGE) == {"execution_core_version"}
    assert migrate.current(empty_url, schema=STRANGE) is None
    assert migrate.check(empty_url)  # the environment is for the commands alone
    assert migrate.check(empty_url, schema="jobs")
    with psycopg.connect(dsn(empty_url)) as connection:
        functions = connection.execute(
            "SELECT count(*) FROM pg_proc WHERE proname LIKE 'execution_core_%'"
        )
        assert functions.fetchone() == (8,)
    command.upgrade(config, "head")
    command.check(config)
    assert migrate.check(empty_url, schema=STRANGE)


class Base(DeclarativeBase):
    """The host's own metadata."""


class HostExecution(Base):
    """A table of the host with the name of one of this library's."""

    __tablename__ = "executions"
    id: Mapped[int] = mapped_column(primary_key=True)


class HostOrder(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    execution_id: Mapped[str | None] = mapped_column(
        String(36).with_variant(UUID(as_uuid=False), "postgresql"),
        ForeignKey(tables.for_schema("jobs").executions.c.id, ondelete="SET NULL"),
    )


@pytest.mark.parametrize("include_schemas", [False, True])
def test_hosts_alembic_with_a_table_of_the_same_name(
    empty_url: str, tmp_path: Path, include_schemas: bool
) -> None:
    """The host migrates its own table executions; autogenerate finds no difference."""
    migrate.upgrade(empty_url, schema="jobs")
    host = tmp_path / "host"
    command.init(Config(tmp_path / "alembic.ini"), str(host))
    (host / "env.py").write_text(
        "from alembic import context\n"
        "options = context.config.attributes\n"
        "context.configure(**options)\n"
        "with context.begin_transaction():\n"
        "    context.run_migrations()\n"
    )
    alembic = Config()
    alembic.set_main_option("script_location", str(host))

    def include_name(name: str | None, kind: str, parents: Any) -> bool:
        return kind != "table" or parents["schema_name"] != "jobs" or not migrate.owns(name)

    engine = create_engine(empty_url)
    with engine.begin() as connection:
        alembic.attributes.update(
            connection=connection,
            target_metadata=Base.metadata,
            include_name=include_name,
            include_schemas=include_schemas,
        )
        command.revision(alembic, "host", autogenerate=True)
        command.upgrade(alembic, "head")
        command.check(alembic)
    assert relations(empty_url, "public") == {"alembic_version", "executions", "orders"}
    manager = ExecutionManager(SqlExecutionStore(engine, schema="jobs"))
    jobs = tables.for_schema("jobs")
    with Session(engine) as session, session.begin():
        execution = manager.within(session).create("a")
        session.add(HostOrder(id=1, execution_id=execution.id))
        session.add(HostExecution(id=7))
        session.flush()
        query = select(jobs.execution_overview.c.type, HostOrder.id).join(
            HostOrder, HostOrder.execution_id == jobs.execution_overview.c.execution_id
        )
        assert session.execute(query).one() == ("a", 1)
    engine.dispose()


# --- foreign tables ----------------------------------------------------------------------------

ADVICE = {
    "sqlite": "use a file of its own for this library; then no transaction can cover both files",
    "postgresql": 'migrate.upgrade(engine, schema="jobs") and execution-core migrate --schema jobs',
}
FOREIGN = {
    "executions": "CREATE TABLE executions (id integer)",
    "execution_logs": "CREATE TABLE execution_logs (id integer)",
    "execution_stats": "CREATE VIEW execution_stats AS SELECT 1 AS one",
}


@pytest.fixture(params=["sqlite", "postgresql"])
def foreign_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/foreign.db"
    return str(request.getfixturevalue("empty_url"))


@pytest.mark.parametrize("name", FOREIGN)
def test_upgrade_beside_foreign_table_refused_and_changes_nothing(
    foreign_url: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = create_engine(foreign_url)
    with engine.begin() as connection:
        connection.execute(text(FOREIGN[name]))
    message = f"already has a relation {name} that this migration did not create"
    for target in (engine, foreign_url):
        with pytest.raises(InvalidValue, match=message) as caught:
            migrate.upgrade(target)
        assert ADVICE[engine.dialect.name] in str(caught.value)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE other (id integer)"))
        with pytest.raises(InvalidValue, match=message):
            migrate.upgrade(connection)
    assert main(["migrate", "--url", foreign_url]) == 1
    assert ADVICE[engine.dialect.name] in capsys.readouterr().err
    inspector = inspect(engine)
    assert {*inspector.get_table_names(), *inspector.get_view_names()} == {name, "other"}
    engine.dispose()


def test_upgrade_beside_foreign_index_refused(foreign_url: str) -> None:
    engine = create_engine(foreign_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE plans (id integer)"))
        connection.execute(text("CREATE INDEX executions ON plans (id)"))
    with pytest.raises(InvalidValue, match="already has a relation executions") as caught:
        migrate.upgrade(engine)
    assert ADVICE[engine.dialect.name] in str(caught.value)
    assert inspect(engine).get_table_names() == ["plans"]
    engine.dispose()


def test_upgrade_in_schema_beside_foreign_table_works(
    empty_url: str, mode: str, runner: asyncio.Runner
) -> None:
    with psycopg.connect(dsn(empty_url), autocommit=True) as connection:
        connection.execute(FOREIGN["executions"])
    migrate.upgrade(empty_url, schema="jobs")
    for binding in BINDINGS:
        with open_manager(empty_url, mode, binding, "jobs", runner) as manager:
            call_every_verb(manager)
    assert relations(empty_url, "public") == {"executions"}
    assert not_ok(empty_url, "jobs") == {}


def test_upgrade_foreign_table_in_a_new_schema_refused(empty_url: str) -> None:
    with psycopg.connect(dsn(empty_url), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA jobs; CREATE TABLE jobs.executions (id integer)")
    engine = create_engine(empty_url)
    with engine.begin() as transaction:
        with pytest.raises(InvalidValue, match="relation executions"):
            migrate.upgrade(transaction, schema="jobs")
        assert transaction.scalar(text("SHOW search_path")) == '"$user", public'
    assert relations(empty_url, "jobs") == {"executions"}
    engine.dispose()


# --- doctor ------------------------------------------------------------------------------------


def not_ok(url: str, schema: str | None) -> dict[str, str]:
    settings = ("fsync", "full_page_writes")  # off in the test server
    return {
        finding.check: finding.message
        for finding in doctor.examine(url, schema=schema)
        if finding.level != "ok" and finding.check not in settings
    }


def test_doctor_examines_the_given_schema_alone(empty_url: str) -> None:
    for name in NAMES:
        migrate.upgrade(empty_url, schema=name)
    assert [not_ok(empty_url, name) for name in NAMES] == [{}, {}, {}]
    with open_schema(empty_url, STRANGE) as broken:
        broken.run("DROP TRIGGER execution_core_record_creation ON executions")
        broken.run("DROP FUNCTION execution_core_in_use")
        broken.run("DROP VIEW execution_stats")
        broken.run("ALTER TABLE executions ALTER worker SET NOT NULL")
        broken.run("INSERT INTO executions (id, type, worker) VALUES (gen_random_uuid(), 'a', 'w')")
    assert {*not_ok(empty_url, STRANGE)} == {"triggers", "functions", "views", "tables", "history"}
    assert [not_ok(empty_url, name) for name in (None, "jobs")] == [{}, {}]
    (found,) = not_ok(empty_url, "missing").values()
    assert found == "no table executions is visible"


# --- the command line --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("given", ["option", "environment"])
@pytest.mark.parametrize("schema", ["jobs", STRANGE])
def test_cli_commands_use_the_given_schema(
    url: str,
    schemas: dict[str | None, Database],
    schema: str,
    given: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    option: list[str] = ["--schema", schema]
    monkeypatch.setenv("EXECUTION_CORE_URL", url)
    if given == "environment":
        option = []
        monkeypatch.setenv("EXECUTION_CORE_SCHEMA", schema)

    def call(name: str, *arguments: str, code: int = 0) -> str:
        capfd.readouterr()
        assert main([name, *option, *arguments]) == code, capfd.readouterr().err
        return capfd.readouterr().out

    assert migrate.revisions()[0] in call("migrate")
    command = f"{sys.executable} -m execution_core"
    inside = f"{command} progress 1 2 && {command} log hello"
    call("run", "--key", "k", "--", "sh", "-c", inside)
    (row,) = schemas[schema].rows("SELECT id, status, progress_current AS done FROM executions")
    id = str(row["id"])
    assert (row["status"], row["done"]) == ("completed", 1)
    assert id in call("list", "--json")
    assert '"count": 1' in call("stats", "--json")
    call("watch", "--json")
    assert "hello" in call("show", id)
    assert "payload" in call("list", "--with", "payload", "--json")
    call("replay", id)
    call("sweep")
    call("doctor")
    call("cancel", str(schemas[schema].rows("SELECT id FROM executions ORDER BY id DESC")[0]["id"]))
    for name, database in schemas.items():
        assert (count_rows(database) > 0) is (name == schema)
    assert "2" in call("prune", "--older-than", "0s")
    assert count_rows(schemas[schema]) == 0


def test_cli_missing_schema_says_what_to_do(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--url", url, "--schema", "missing"]) == 1
    assert "create them with execution-core migrate" in capsys.readouterr().err
    assert main(["list", "--url", url, "--schema", ""]) == 1
    assert "schema must not be empty" in capsys.readouterr().err


# --- tables ------------------------------------------------------------------------------------


def test_tables_for_schema_have_the_names_of_the_module() -> None:
    jobs = tables.for_schema("jobs")
    assert sorted(jobs._fields) == sorted(tables.__all__)
    assert tables.for_schema("jobs") is jobs
    for name in tables.__all__:
        table = getattr(jobs, name)
        assert (table.name, table.schema) == (name, "jobs")
        assert table.c.keys() == getattr(tables, name).c.keys()
    (reference,) = jobs.execution_logs.c.execution_id.foreign_keys
    assert reference.column is jobs.executions.c.id


@pytest.mark.parametrize("schema", ["jobs", STRANGE])
def test_tables_for_schema_in_joins(
    url: str, schemas: dict[str | None, Database], schema: str
) -> None:
    assert schemas
    here = tables.for_schema(schema)
    engine = create_engine(url)
    with connect(url, schema=schema) as manager, connect(url) as other, engine.connect() as session:
        id = manager.create("a").id
        other.create("b")
        joined = select(here.executions.c.id, here.execution_history.c.to_status).join_from(
            here.executions, here.execution_history
        )
        assert session.execute(joined).all() == [(id, "pending")]
        assert session.scalars(select(tables.execution_overview.c.type)).all() == ["b"]
    engine.dispose()
