"""What tests need, with pytest: the contract of a store, and the fixtures of `plugin` for services.

Run the contract against your own store:

    import pytest
    from execution_core.testing import StoreContract

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self):
            return MyStore()

Each test gets an empty store. It compares the store with the pure `apply` of the requests, and
makes concurrent calls, in threads or in tasks.
"""

import asyncio
from collections.abc import Iterator
from pkgutil import iter_modules
from typing import Any

import pytest

# A failing assert shows its values, as in a test file.
for _module in iter_modules(__path__):
    pytest.register_assert_rewrite(f"{__name__}.{_module.name}")

from .batches import BatchContract  # noqa: E402 - after the registration
from .clock import ExecutionClock  # noqa: E402
from .creation import CreationContract  # noqa: E402
from .deletion import DeletionContract  # noqa: E402
from .harness import StoreHarness  # noqa: E402
from .heartbeats import HeartbeatContract  # noqa: E402
from .history import HistoryContract  # noqa: E402
from .log_lines import LogContract  # noqa: E402
from .many_rows import ManyRowsContract  # noqa: E402
from .pages import PageContract  # noqa: E402
from .round_trips import RoundTripContract  # noqa: E402
from .transitions import TransitionContract  # noqa: E402
from .waits import WaitContract  # noqa: E402

__all__ = ["AsyncStoreContract", "ExecutionClock", "StoreContract"]


class StoreContract(
    CreationContract,
    TransitionContract,
    RoundTripContract,
    PageContract,
    BatchContract,
    HeartbeatContract,
    ManyRowsContract,
    HistoryContract,
    WaitContract,
    LogContract,
    DeletionContract,
):
    """The contract of an `ExecutionStore`: `class TestMyStore(StoreContract)`."""

    @pytest.fixture
    def store(self) -> Any:
        """Return an empty store; each subclass overrides this fixture."""
        raise NotImplementedError(
            "the test class needs a fixture `store` that returns an empty store"
        )

    @pytest.fixture
    def other_store(self, store: Any) -> Any:
        """Return another store over the same data, as in another process; by default the same."""
        return store

    @pytest.fixture
    def runner(self) -> Any:
        """Return None: the store is used without an event loop."""

    @pytest.fixture
    def harness(self, store: Any, other_store: Any, runner: asyncio.Runner | None) -> StoreHarness:
        """Return the harness of both stores, sync or async."""
        return StoreHarness(store, other_store, runner)


class AsyncStoreContract(StoreContract):
    """The contract of an `AsyncExecutionStore`, in the event loop of the fixture `runner`.

    class TestMyStore(AsyncStoreContract):
        @pytest.fixture
        def store(self, runner):
            store = MyStore()
            yield store
            runner.run(store.close())
    """

    @pytest.fixture
    def runner(self) -> Iterator[asyncio.Runner]:
        """Return the runner of the event loop in which the store is used."""
        with asyncio.Runner() as runner:
            yield runner
