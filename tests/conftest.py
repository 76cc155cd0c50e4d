"""Databases and managers for the tests: both databases, sync and async."""

import asyncio
import inspect
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any, Self

import pytest
from sqlalchemy import Engine, NullPool, create_engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine as create_host_engine

from execution_core import (
    AsyncAttempt,
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    ExecutionManager,
    SqlExecutionStore,
    connect,
    connect_async,
    migrate,
)
from execution_core.sql.driver.engine import create_async_engine, create_sync_engine

from .support import postgres, sampling
from .support.memory import AsyncMemoryStore, memory_store

pytest_plugins = ["pytester", "execution_core.testing.plugin"]

SERVER = pytest.StashKey[postgres.Server]()
STACK = pytest.StashKey[ExitStack]()


def pytest_configure(config: pytest.Config) -> None:
    """Start one server per run; xdist's workers get its address."""
    if hasattr(config, "workerinput"):
        config.stash[SERVER] = postgres.Server(*config.workerinput["postgres"])
        return
    config.stash[STACK] = ExitStack()
    try:
        config.stash[SERVER] = config.stash[STACK].enter_context(postgres.server())
    except postgres.Unavailable as problem:
        raise pytest.UsageError(str(problem)) from problem


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    server = node.config.stash[SERVER]
    node.workerinput["postgres"] = (server.url, server.source)


def pytest_unconfigure(config: pytest.Config) -> None:
    if stack := config.stash.get(STACK, None):
        stack.close()


def pytest_report_header(config: pytest.Config) -> str:
    server = config.stash[SERVER]
    return f"PostgreSQL {server.version} from {server.source}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if sampling.is_possible(item)]
    items[:], left_out = sampling.select(items)
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """A function that prints a measured figure at the end of the run."""
    return lambda line: record_property("measured", line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        line
        for report in terminalreporter.getreports("passed")
        for name, line in report.user_properties
        if name == "measured"
    ]
    if lines:
        terminalreporter.section("measured, not asserted")
        terminalreporter.write_line("\n".join(lines))


@dataclass(frozen=True)
class Database:
    """A migrated and empty database, and an engine that bypasses the library."""

    name: str
    url: str
    engine: Engine

    def rows(self, statement: str, **parameters: Any) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(text(statement), parameters)]

    def run(self, statement: str, **parameters: Any) -> int:
        with self.engine.begin() as connection:
            return connection.execute(text(statement), parameters).rowcount

    def empty(self) -> None:
        """Delete all executions. TRUNCATE takes 40 ms, which is longer than most tests take."""
        many = self.rows("SELECT 1 FROM executions LIMIT 1 OFFSET 500")
        truncate = many and self.name == "postgresql"
        self.run("TRUNCATE executions CASCADE" if truncate else "DELETE FROM executions")

    def history(self, id: str) -> list[tuple[str | None, str]]:
        rows = self.rows(
            "SELECT from_status, to_status FROM execution_history"
            " WHERE execution_id = :id ORDER BY seq",
            id=id,
        )
        return [(row["from_status"], row["to_status"]) for row in rows]


@pytest.fixture(scope="session")
def empty_postgres(request: pytest.FixtureRequest) -> Iterator[Callable[[str], str]]:
    """A function that creates an empty PostgreSQL database and returns its URL."""
    admin = request.config.stash[SERVER].url
    engine = create_engine(admin, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    made: list[str] = []

    def create(suffix: str) -> str:
        # A number: a fixture of a module is set up again if the worker takes other tests between.
        name = f"test_{os.getpid()}_{suffix}_{len(made)}"
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        made.append(name)
        return make_url(admin).set(database=name).render_as_string(hide_password=False)

    yield create
    with engine.connect() as connection:
        for name in made:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def postgres_database(empty_postgres: Callable[[str], str]) -> Iterator[Database]:
    url = empty_postgres("main")
    migrate.upgrade(url)
    engine = create_sync_engine(url)
    yield Database("postgresql", url, engine)
    engine.dispose()


@contextmanager
def open_database(
    kind: str, request: pytest.FixtureRequest, folder: Path | None = None
) -> Iterator[Database]:
    if kind == "postgresql":
        postgres_database: Database = request.getfixturevalue("postgres_database")
        postgres_database.empty()
        yield postgres_database
        return
    path = (folder or request.getfixturevalue("tmp_path")) / "executions.db"
    shutil.copy(request.getfixturevalue("execution_template"), path)
    engine = create_sync_engine(f"sqlite:///{path}")
    yield Database("sqlite", f"sqlite:///{path}", engine)
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    with open_database(request.param, request) as database:
        yield database


@pytest.fixture(scope="class", params=["sqlite", "postgresql"])
def class_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """A database for all tests of a class; each test empties it."""
    folder = tmp_path_factory.mktemp("database")
    with open_database(request.param, request, folder) as database:
        yield database


class Blocking:
    """A sync wrapper of an async object: one test then covers the sync and the async API."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self.target = target
        self.runner = runner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.target, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            unwrapped = [each.target if isinstance(each, Blocking) else each for each in args]
            answer = method(*unwrapped, **kwargs)
            if inspect.isawaitable(answer):
                return self.runner.run(answer)  # type: ignore[arg-type]
            if isinstance(answer, AsyncAttempt):
                return BlockingAttempt(answer, self.runner)
            return Blocking(answer, self.runner) if name == "within" else answer

        return call if callable(method) else method


class BlockingAttempt(Blocking):
    """A sync wrapper of an async attempt. Heartbeats are sent only while a call runs."""

    def __enter__(self) -> Self:
        self.runner.run(self.target.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        self.runner.run(self.target.__aexit__(*error))

    def __setattr__(self, name: str, value: Any) -> None:
        own = name in ("target", "runner")
        super().__setattr__(name, value) if own else setattr(self.target, name, value)

    def each(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        return self._each(self.target.each(*args, **kwargs))

    def chunks(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        chunks = self._each(self.target.chunks(*args, **kwargs))
        return (BlockingChunk(chunk, self.runner) for chunk in chunks)

    def _each(self, items: Any) -> Iterator[Any]:
        while True:
            try:
                item = self.runner.run(anext(items))
            except StopAsyncIteration:
                return
            yield item


class BlockingChunk(list[Any]):
    """A sync wrapper of an async chunk, whose transaction is wrapped as well."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        super().__init__(target)
        self.target, self.runner = target, runner

    @contextmanager
    def begin(self, factory: Any) -> Iterator[Any]:
        block = self.target.begin(factory)
        transaction = self.runner.run(block.__aenter__())
        try:
            yield Blocking(transaction, self.runner)
        except BaseException as error:
            if not self.runner.run(block.__aexit__(type(error), error, error.__traceback__)):
                raise
        else:
            self.runner.run(block.__aexit__(None, None, None))


@pytest.fixture(params=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@contextmanager
def open_manager(url: str, mode: str, runner: asyncio.Runner) -> Iterator[ExecutionManager]:
    manager: Any = connect(url) if mode == "sync" else Blocking(connect_async(url), runner)
    yield manager
    manager.close()


@contextmanager
def open_asyncpg_manager(url: str, runner: asyncio.Runner, **options: Any) -> Iterator[Any]:
    """A manager on the engine of a host that uses asyncpg."""
    engine = create_host_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    store = AsyncSqlExecutionStore(engine, **options)
    yield Blocking(AsyncExecutionManager(store), runner)
    runner.run(engine.dispose())


@pytest.fixture
def manager(database: Database, mode: str, runner: asyncio.Runner) -> Iterator[ExecutionManager]:
    """A manager over each database, sync and async."""
    with open_manager(database.url, mode, runner) as manager:
        yield manager


class Clock:
    """A clock that the test sets: `clock.time += HOUR`."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 31, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def now(self, zone: tzinfo) -> datetime:
        """Return the time: the memory store uses the clock as its `datetime`."""
        return self.time.astimezone(zone)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql", "memory"])
def clocked_manager(
    request: pytest.FixtureRequest,
    mode: str,
    runner: asyncio.Runner,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[ExecutionManager]:
    """A manager over each store, sync and async, whose time is `clock`."""
    blocking: Any
    if request.param == "memory":
        store: Any = memory_store() if mode == "sync" else AsyncMemoryStore()
        memory = store if mode == "sync" else store.store
        monkeypatch.setitem(type(memory).create.__globals__, "datetime", clock)
        blocking = mode == "async" and Blocking(AsyncExecutionManager(store), runner)
        yield blocking or ExecutionManager(store)
        return
    with open_database(request.param, request) as database:
        if mode == "sync":
            yield ExecutionManager(SqlExecutionStore(database.engine, clock=clock))
            return
        engine = create_async_engine(database.url)
        blocking = Blocking(
            AsyncExecutionManager(AsyncSqlExecutionStore(engine, clock=clock)), runner
        )
        yield blocking
        runner.run(engine.dispose())


ASYNCPG = pytest.param("asyncpg", marks=pytest.mark.exhaustive)


@pytest.fixture(params=["sqlite", "postgresql", "memory", ASYNCPG])
def any_manager(
    request: pytest.FixtureRequest, mode: str, runner: asyncio.Runner
) -> Iterator[ExecutionManager]:
    """The same, a manager over the memory store, and one on a host's engine with asyncpg."""
    if request.param == "memory":
        blocking: Any = Blocking(AsyncExecutionManager(AsyncMemoryStore()), runner)
        yield ExecutionManager(memory_store()) if mode == "sync" else blocking
        return
    if request.param == "asyncpg":
        with (
            open_database("postgresql", request) as database,
            open_asyncpg_manager(database.url, runner) as manager,
        ):
            yield manager
        return
    with (
        open_database(request.param, request) as database,
        open_manager(database.url, mode, runner) as manager,
    ):
        yield manager
