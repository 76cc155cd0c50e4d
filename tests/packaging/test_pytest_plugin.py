"""The fixtures of `execution_core.testing.plugin`, in a run of pytest as a service has it."""

from datetime import timedelta
from typing import Any

import pytest

from execution_core import ExecutionManager, InvalidValue, connect
from execution_core.testing import ExecutionClock

CONFTEST = """
import gc
import pytest
from sqlalchemy import create_engine, text
from execution_core.testing import ExecutionClock  # imported before the plugin is

pytest_plugins = ["execution_core.testing.plugin"]

@pytest.fixture(scope="session")
def execution_template(execution_template):
    engine = create_engine(f"sqlite:///{execution_template}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (item TEXT)"))
    engine.dispose()
    return execution_template

@pytest.fixture(scope="session", autouse=True)
def every_connection_is_closed(tmp_path_factory):
    gc.disable()  # it would close those that a fixture has left open
    yield
    gc.enable()
    # The last connection to a file deletes its write-ahead log.
    assert not [*tmp_path_factory.getbasetemp().rglob("*-wal")]

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
TESTS = """
import asyncio
import pytest
from sqlalchemy import text

def insert_order(connection):
    connection.execute(text("INSERT INTO orders VALUES ('lamp')"))
    return connection.scalar(text("SELECT count(*) FROM orders"))

@pytest.mark.parametrize("n", range(3))
def test_sync(n, execution_manager, execution_url):
    engine = create_engine(execution_url)
    with engine.begin() as connection:
        assert insert_order(connection) == 1
        execution_manager.within(connection).create("ship", idempotency_key="k")
    assert len(execution_manager.list()) == 1
    engine.dispose()

@pytest.mark.anyio
@pytest.mark.parametrize("n", range(3))
async def test_anyio(n, async_execution_manager, execution_clock):
    jobs = await asyncio.gather(*(async_execution_manager.create("a") for _ in range(9)))
    execution_clock.advance(hours=1)
    retried = await async_execution_manager.create("b", start_after=timedelta(hours=1))
    assert len(await async_execution_manager.claim(limit=20)) == 9
    execution_clock.advance(hours=1)
    assert [job.id for job in await async_execution_manager.claim()] == [retried.id]

def test_several_loops(async_execution_manager, execution_manager):
    for number in range(3):
        asyncio.run(async_execution_manager.create("a"))
    assert len(execution_manager.list()) == 3
"""


def test_plugin_in_processes_of_xdist_gives_each_test_a_database(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    imports = "from datetime import timedelta\nfrom sqlalchemy import create_engine\n"
    pytester.makepyfile(imports + TESTS)
    ran = pytester.runpytest_subprocess("-n", "2", "-W", "error")
    ran.assert_outcomes(passed=7)


def test_clock_of_managers_advances_and_store_without_clock_finds_the_work(
    execution_manager: ExecutionManager,
    execution_clock: ExecutionClock,
    execution_url: str,
) -> None:
    assert execution_clock().microsecond % 1000 == 0  # as SQLite's own clock
    with connect(execution_url) as of_service:
        for _ in range(30):  # within the same milliseconds
            execution_manager.create("a")
            assert len(of_service.claim("a")) == 1
            of_service.create("b")
            assert len(execution_manager.claim("b")) == 1
        job = of_service.create("c", max_attempts=2, timeout=timedelta(minutes=5))
        of_service.start(job.id)
        execution_clock.advance(minutes=4)
        assert execution_manager.sweep(type="c") == []
        execution_clock.advance(timedelta(minutes=1, seconds=1))
        assert len(execution_manager.sweep(type="c", retry=True)) == 1
        assert execution_manager.start(job.id).updated_at > of_service.get(job.id).created_at
        assert of_service.complete(job.id).status == "completed"
        assert of_service.list(status="running", type="c") == []


@pytest.mark.parametrize(
    ("duration", "parts"),
    [
        (None, {}),
        (timedelta(0), {}),
        (timedelta(hours=-1), {}),
        (None, {"hours": -1}),
        (60, {}),
        (timedelta(hours=1), {"hours": 1}),
    ],
)
def test_clock_advance_invalid_duration_is_refused(duration: Any, parts: dict[str, float]) -> None:
    clock = ExecutionClock()
    before = clock.now
    with pytest.raises(InvalidValue, match="duration"):
        clock.advance(duration, **parts)
    assert timedelta(0) <= clock() - before < timedelta(seconds=30)
