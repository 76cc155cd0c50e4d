"""What every store promises, as tests that anyone runs against their own: it needs pytest.

A few lines give a store the whole suite:

    import pytest
    from execution_core.testing import StoreContract

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self):
            return MyStore()

Each scenario gets an empty store. What it asserts is behaviour: a transition's pure `apply` is the
oracle, and callers at once, in threads or in tasks, are the judges.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

# What fails is to be shown with its values, as in a test file.
for _name in ("claiming", "creating", "deleting", "exactness", "listing", "logs", "moving"):
    pytest.register_assert_rewrite(f"{__name__}.{_name}")

from .batches import BatchContract  # noqa: E402 - after they are registered
from .creation import CreationContract  # noqa: E402
from .deletion import DeletionContract  # noqa: E402
from .harness import StoreHarness  # noqa: E402
from .log_lines import LogContract  # noqa: E402
from .pages import PageContract  # noqa: E402
from .round_trips import RoundTripContract  # noqa: E402
from .transitions import TransitionContract  # noqa: E402

__all__ = ["AsyncStoreContract", "StoreContract"]


class StoreContract(
    CreationContract,
    TransitionContract,
    RoundTripContract,
    PageContract,
    BatchContract,
    LogContract,
    DeletionContract,
):
    """The contract of an `ExecutionStore`: `class TestMyStore(StoreContract)`."""

    @pytest.fixture
    def store(self) -> Any:
        """Return the store under test, an empty one: for the subclass to say."""
        raise NotImplementedError("give the test class a fixture `store` that returns yours")

    @pytest.fixture
    def other_store(self, store: Any) -> Any:
        """Return another store over the same data, as another process has it; or the same one."""
        return store

    @pytest.fixture
    def subject(self, store: Any, other_store: Any) -> StoreHarness:
        """Return what the scenarios are about: both stores, whatever their mode."""
        return StoreHarness(store, other_store, None)


class AsyncStoreContract(StoreContract):
    """The same for an `AsyncExecutionStore`, in the one loop of the fixture `runner`.

    class TestMyStore(AsyncStoreContract):
        @pytest.fixture
        def store(self, runner):
            store = MyStore()
            yield store
            runner.run(store.close())
    """

    @pytest.fixture
    def runner(self) -> Iterator[asyncio.Runner]:
        """Return the runner of the one loop in which the store is used."""
        with asyncio.Runner() as runner:
            yield runner

    @pytest.fixture
    def subject(self, store: Any, other_store: Any, runner: asyncio.Runner) -> StoreHarness:
        """Return what the scenarios are about: both stores, whatever their mode."""
        return StoreHarness(store, other_store, runner)
