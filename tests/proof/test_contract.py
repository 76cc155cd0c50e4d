"""The store contract: the stores of this repository pass it, and broken stores fail it."""

import asyncio
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from examples.redis_store import AsyncRedisStore, RedisStore
from redis import Redis
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.ext.asyncio import create_async_engine as create_host_engine

from execution_core import (
    AsyncSqlExecutionStore,
    ExecutionManager,
    ExecutionStatus,
    SqlExecutionStore,
)
from execution_core.core.state_machine import RULES
from execution_core.sql.driver.engine import create_async_engine, create_sync_engine
from execution_core.testing import AsyncStoreContract, StoreContract
from execution_core.testing.harness import StoreHarness
from execution_core.testing.states import STATES, bring_to, every_transition

from ..conftest import Database
from ..docs.test_docs import FENCED, PAGES, blocks
from ..support import redis_server
from ..support.memory import AsyncMemoryStore, memory_store
from ..support.postgres import Unavailable

ROOT = Path(__file__).parents[2]


class TestMemory(StoreContract):
    @pytest.fixture
    def store(self) -> Any:
        return memory_store()


@pytest.mark.exhaustive
class TestAsyncMemory(AsyncStoreContract):
    @pytest.fixture
    def store(self) -> Any:
        return AsyncMemoryStore()


class SharedStores:
    """All tests of a class use the same two stores: connecting takes longer than most tests.

    Each store has its own engine, as in two processes.
    """

    @pytest.fixture
    def store(self, stores: list[Any], class_database: Database) -> Any:
        class_database.empty()
        return stores[0]

    @pytest.fixture
    def other_store(self, stores: list[Any]) -> Any:
        return stores[1]


@pytest.mark.slow
class TestSql(SharedStores, StoreContract):
    @pytest.fixture(scope="class")
    @classmethod
    def stores(cls, class_database: Database) -> Iterator[list[Any]]:
        engines = [create_sync_engine(class_database.url, exclusive=True) for _ in range(2)]
        yield [*map(SqlExecutionStore, engines)]
        for engine in engines:
            engine.dispose()


class AsyncSharedStores(SharedStores):
    @pytest.fixture(scope="class")
    @classmethod
    def runner(cls) -> Iterator[asyncio.Runner]:
        with asyncio.Runner() as runner:
            yield runner

    @pytest.fixture(scope="class")
    @classmethod
    def stores(cls, class_database: Database, runner: asyncio.Runner) -> Iterator[list[Any]]:
        engines = [cls.create_engine(class_database.url) for _ in range(2)]
        yield [*map(AsyncSqlExecutionStore, engines)]
        for engine in engines:
            runner.run(engine.dispose())

    @staticmethod
    def create_engine(url: str) -> AsyncEngine:
        return create_async_engine(url, exclusive=True)


@pytest.mark.slow
class TestAsyncSql(AsyncSharedStores, AsyncStoreContract):
    pass


@pytest.mark.exhaustive
class TestAsyncpg(AsyncSharedStores, AsyncStoreContract):
    """On the engines of a host; `test_within` runs every verb on such engines in `make test`."""

    @pytest.fixture(scope="class")
    @classmethod
    def class_database(cls, postgres_database: Database) -> Database:
        return postgres_database

    @staticmethod
    def create_engine(url: str) -> AsyncEngine:
        return create_host_engine(make_url(url).set(drivername="postgresql+asyncpg"))


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Return the URL of a Redis; without one the tests are skipped, with the reason."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(redis_server.server())
        except Unavailable as reason:
            pytest.skip(f"NOT RUN: {reason}")
        yield server.url


@pytest.fixture
def space(redis_url: str) -> Iterator[tuple[str, str]]:
    """Return the arguments of a store: a server's URL and a key prefix for this test."""
    prefix = f"contract-{uuid4()}"
    yield redis_url, prefix
    with Redis.from_url(redis_url) as client:
        for key in client.scan_iter(f"{prefix}:*"):
            client.delete(key)


@pytest.mark.exhaustive
class TestRedis(StoreContract):
    """Each store has its own connections, as in two processes."""

    @pytest.fixture
    def store(self, space: tuple[str, str]) -> Iterator[Any]:
        with closing(RedisStore(*space)) as store:
            yield store

    @pytest.fixture
    def other_store(self, space: tuple[str, str]) -> Iterator[Any]:
        with closing(RedisStore(*space)) as store:
            yield store


@pytest.mark.exhaustive
class TestAsyncRedis(AsyncStoreContract):
    @pytest.fixture
    def store(self, space: tuple[str, str], runner: asyncio.Runner) -> Iterator[Any]:
        store = AsyncRedisStore(*space)
        yield store
        runner.run(store.close())

    @pytest.fixture
    def other_store(self, space: tuple[str, str], runner: asyncio.Runner) -> Iterator[Any]:
        store = AsyncRedisStore(*space)
        yield store
        runner.run(store.close())


def test_redis_store_deletes_every_key(space: tuple[str, str]) -> None:
    url, prefix = space
    with closing(RedisStore(*space)) as store, Redis.from_url(url) as client:
        manager = ExecutionManager(store)
        parent = manager.create("batch", idempotency_key="k").id
        for retryable in (True, False):
            child = manager.create("item", parent_id=parent, max_attempts=2)
            manager.start(child.id)
            manager.log(child.id, "begun")
            manager.fail(child.id, "no", retryable=retryable)
        manager.start(manager.replay(child.id).id)
        groups = [client.zcard(f"{prefix}:{group}") for group in ("waiting", "running", "finished")]
        assert (groups, client.zcard(f"{prefix}:ids")) == ([2, 1, 1], 4)
        manager.delete(parent)
        for each in manager.list(status=["running", "retrying"]):
            manager.fail(each.id, "given up")
        assert manager.prune(timedelta(0)) == 3
        assert [*client.scan_iter(f"{prefix}:*")] == []


IMPORTS = """
import pytest
from execution_core.testing import AsyncStoreContract, StoreContract
from tests.support import broken_stores
from tests.support.memory import AsyncMemoryStore, memory_store
"""
SUITE = """
class Test{name}({contract}):
    @pytest.fixture
    def store(self):
        return {store}
"""


def suite(name: str, store: str, contract: str = "StoreContract") -> str:
    return SUITE.format(name=name, store=store, contract=contract)


RACES = {
    "test_start_concurrent_has_one_winner",
    "test_checkpoint_concurrent_keys_loses_no_write",
}
BROKEN = {
    "ReadThenWrite": RACES,
    "AsyncReadThenWrite": RACES,
    "FenceIgnored": {"test_update_by_stale_attempt_changes_nothing"},
    "KeyOverwritten": {
        "test_create_with_held_key_returns_none",
        "test_create_concurrent_with_one_key_has_one_winner",
    },
    "MergedDeep": {"test_checkpoint_replaces_the_whole_value"},
    "RefusalTouches": {"test_update_refused_changes_nothing"},
    "BatchUnguarded": {
        "test_claim_concurrent_returns_each_execution_once",
        "test_sweep_concurrent_with_complete_has_one_winner",
        "test_update_many_concurrent_with_checkpoint_keeps_both",
        "test_update_many_concurrent_with_delete_restores_nothing",
    },
    "HeartbeatUnguarded": {"test_heartbeat_many_sends_those_of_running_attempts"},
    "HistoryEmpty": {
        "test_history_is_complete_sequence_of_transitions",
        "test_attempts_are_those_that_were_started",
    },
    "PruneKeepsLog": {"test_removal_frees_key_and_log"},
}
"""Each broken store, and the scenarios of the contract that must fail with it."""


def broken_suite(name: str) -> str:
    contract = "AsyncStoreContract" if name.startswith("Async") else "StoreContract"
    return suite(name, f"broken_stores.{name}()", contract)


def failed(folder: Path, text: str, *scenarios: str) -> set[tuple[str, str]]:
    """Run a suite as a user does, or some scenarios of it; return each failed class and method."""
    (folder / "test_store.py").write_text(text)
    chosen = [f"test_store.py::{scenario}" for scenario in scenarios] or ["test_store.py"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rf", "-W", "error", "--tb=line", *chosen],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert re.search(r"^\d+ (failed|passed)", ran.stdout, re.MULTILINE), ran.stdout + ran.stderr
    assert "error" not in ran.stdout.splitlines()[-1]
    return set(re.findall(r"^FAILED test_store.py::(\w+)::(\w+)", ran.stdout, re.MULTILINE))


def test_contract_broken_stores_fail_expected_scenarios(tmp_path: Path) -> None:
    expected = {(f"Test{name}", each) for name, scenarios in BROKEN.items() for each in scenarios}
    text = IMPORTS + "".join(map(broken_suite, BROKEN))
    assert failed(tmp_path, text, *map("::".join, sorted(expected))) == expected


@pytest.mark.exhaustive
def test_contract_store_of_docs_passes(tmp_path: Path) -> None:
    assert failed(tmp_path, "\n".join(blocks("stores.md"))) == set()


def test_stores_page_quotes_the_sources() -> None:
    sources = (
        "examples/redis_store.py",
        "tests/proof/test_contract.py",
        "src/execution_core/testing/__init__.py",
    )
    code = [textwrap.dedent((ROOT / source).read_text()) for source in sources]
    shown = [
        block
        for language, block in FENCED.findall(PAGES["stores.md"].read_text())
        if language in ("py", "lua")
    ]
    assert len(shown) == 4
    for block in shown:
        assert any(textwrap.indent(block, " " * n) in text for n in (0, 4, 8) for text in code), (
            block
        )


def test_contract_covers_every_rule_and_status() -> None:
    assert {*RULES} <= {transition.rule for transition in every_transition(1)}
    harness = StoreHarness(memory_store(), memory_store(), None)
    assert {bring_to(harness, each).status for each in STATES} == {*ExecutionStatus}


def test_contract_scenario_names_are_unique() -> None:
    named = [
        name for kind in StoreContract.__mro__ for name in vars(kind) if name.startswith("test_")
    ]
    assert len(named) == len({*named}) > 40
