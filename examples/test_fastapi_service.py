"""Tests of fastapi_service. Each has a database of its own, and a clock that it sets forward.

Put conftest.py beside them. The plugin of anyio, which FastAPI installs, runs async tests:

    pip install pytest
    pytest test_fastapi_service.py

They call the functions of the service. To test its HTTP interface, use the TestClient of FastAPI.
"""

from collections.abc import AsyncIterator
from datetime import timedelta

import fastapi_service as service
import pytest
from fastapi import Request
from sqlalchemy import select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from execution_core import AsyncExecutionManager, Backoff, IdempotencyConflict, configure_sqlite
from execution_core.testing import ExecutionClock

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def http_request(
    execution_url: str,
    async_execution_manager: AsyncExecutionManager,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Request]:
    """Return a request to the service, which uses the database of the test."""
    url = execution_url.replace("sqlite:", "sqlite+aiosqlite:")
    engine = configure_sqlite(create_async_engine(url))
    async with engine.begin() as connection:
        await connection.run_sync(service.Base.metadata.create_all)
    service.app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
    service.app.state.executions = async_execution_manager

    async def answer_at_once(parcel: int) -> None:
        pass

    monkeypatch.setattr(service, "call_carrier", answer_at_once)
    yield Request({"type": "http", "app": service.app})
    await engine.dispose()


async def place(request: Request, item: str = "lamp") -> service.OrderState:
    return await service.place(service.NewOrder(item=item, parcels=3), "7f3a", request)


async def work(request: Request) -> bool:
    """Ship an order that is due, as the worker does; return whether there was one."""
    executions, sessions = request.app.state.executions, request.app.state.sessions
    claimed = await executions.claim("ship")
    for order in claimed:
        backoff = Backoff(timedelta(seconds=5))
        async with executions.attempt(order, retry_on=OSError, backoff=backoff) as attempt:
            attempt.result = await service.ship(sessions, attempt)
    return bool(claimed)


async def parcels(request: Request) -> list[int]:
    async with request.app.state.sessions() as session:
        return [*await session.scalars(select(service.Parcel.number))]


async def test_place_repeated_request_returns_the_first_order(
    http_request: Request, async_execution_manager: AsyncExecutionManager
) -> None:
    first, second = await place(http_request), await place(http_request)
    assert first.id == second.id
    with pytest.raises(IdempotencyConflict):
        await place(http_request, "chair")
    assert await async_execution_manager.count() == 1


async def test_work_order_is_due_ships_every_parcel(http_request: Request) -> None:
    order = await place(http_request)
    assert await work(http_request)
    state = await service.read(order.id, http_request)
    assert (state.status, state.attempts) == ("completed", 1)
    assert await parcels(http_request) == [1, 2, 3]
    assert not await work(http_request)


async def test_work_carrier_is_down_ships_the_rest_later(
    http_request: Request, execution_clock: ExecutionClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer_to_first(parcel: int) -> None:
        if parcel > 1:
            raise ConnectionError("no answer")

    order = await place(http_request)
    with monkeypatch.context() as patch:
        patch.setattr(service, "call_carrier", answer_to_first)
        with pytest.raises(ConnectionError):
            await work(http_request)
    assert not await work(http_request)  # it is not due

    execution_clock.advance(seconds=5)
    assert await work(http_request)
    state = await service.read(order.id, http_request)
    assert (state.status, state.attempts) == ("completed", 2)
    assert await parcels(http_request) == [1, 2, 3]


async def test_sweep_worker_died_another_worker_ships(
    http_request: Request,
    async_execution_manager: AsyncExecutionManager,
    execution_clock: ExecutionClock,
) -> None:
    order = await place(http_request)
    await async_execution_manager.claim("ship")  # this worker dies
    execution_clock.advance(service.STALLED_AFTER + timedelta(seconds=1))
    await async_execution_manager.sweep(stalled_after=service.STALLED_AFTER, retry=True)
    assert await work(http_request)
    assert (await service.read(order.id, http_request)).attempts == 2
