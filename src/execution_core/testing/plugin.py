"""Fixtures of pytest for services: a migrated database and a manager for each test.

Enable them in the `conftest.py` at the root of your tests:

    pytest_plugins = ["execution_core.testing.plugin"]

Each test gets a copy of a SQLite file, which is migrated once in each process of pytest-xdist.
"""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .. import migrate
from ..sql.driver.engine import create_async_engine, create_sync_engine
from ..sql.store import SqlExecutionStore
from ..tracking.async_manager import AsyncExecutionManager
from ..tracking.manager import ExecutionManager
from .clock import ExecutionClock


@pytest.fixture(scope="session")
def execution_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the migrated SQLite file that each test copies.

    Override it to add the tables of your service: request it in a fixture of the same name and
    scope, change the file, and return its path.
    """
    path = tmp_path_factory.mktemp("execution_template") / "executions.db"
    migrate.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def execution_url(execution_template: Path, tmp_path: Path) -> str:
    """Return the URL of the test's own migrated SQLite file, without executions."""
    path = shutil.copyfile(execution_template, tmp_path / "executions.db")
    return f"sqlite:///{path}"


@pytest.fixture
def execution_clock() -> ExecutionClock:
    """Return the clock of the test's managers: `execution_clock.advance(hours=1)`."""
    return ExecutionClock()


@pytest.fixture
def execution_manager(
    execution_url: str, execution_clock: ExecutionClock
) -> Iterator[ExecutionManager]:
    """Return a manager over the file of `execution_url`, with the time of `execution_clock`."""
    engine = create_sync_engine(execution_url)
    yield ExecutionManager(SqlExecutionStore(engine, clock=execution_clock))
    engine.dispose()


@pytest.fixture
def async_execution_manager(
    execution_url: str, execution_clock: ExecutionClock
) -> Iterator[AsyncExecutionManager]:
    """Return `execution_manager` for asyncio, over the same file and with the same time.

    A test may use it in any event loop: with anyio, with pytest-asyncio, or in `asyncio.run`.
    """
    from ..sql.async_store import AsyncSqlExecutionStore  # noqa: PLC0415 - slow to import

    engine = create_async_engine(execution_url)
    yield AsyncExecutionManager(AsyncSqlExecutionStore(engine, clock=execution_clock))
    # With a loop factory, the runner does not replace the loop of a plugin as the current one.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(engine.dispose())
