"""A FastAPI service that takes orders and ships them.

    pip install fastapi uvicorn 'execution-core[postgresql,asyncio]'
    EXECUTION_CORE_URL=postgresql+psycopg://localhost/mine uvicorn fastapi_service:app
    curl localhost:8000/orders -H 'Idempotency-Key: 7f3a' --json '{"item": "lamp", "parcels": 3}'
    curl localhost:8000/orders/1

One transaction creates an order and the execution that ships it. A repeated request gets the order
of the first request. Any number of these processes can run: each claims due executions and retries
the executions of a process that died.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Final

from fastapi import FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy import ForeignKey, String, func, select
from sqlalchemy.dialects.postgresql import UUID
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from execution_core import (
    AsyncAttempt,
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    Execution,
    ExecutionProblem,
    ExecutionProblemCode,
    ExecutionStatus,
    ProgressInfo,
    configure_sqlite,
    migrate,
)
from execution_core.worker import AsyncWorker

URL: Final = os.environ.get("EXECUTION_CORE_URL", "sqlite+aiosqlite:///orders.db")
STALLED_AFTER: Final = timedelta(seconds=float(os.environ.get("STALLED_AFTER", "60")))

Sessions = async_sessionmaker[AsyncSession]


# --- the tables of the service ----------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    item: Mapped[str]
    parcels: Mapped[int]
    # What ships it, or did so last. The type of executions.id, so that SQL can join the tables.
    execution_id: Mapped[str] = mapped_column(
        String(36).with_variant(UUID(as_uuid=False), "postgresql"), unique=True
    )


class Parcel(Base):
    __tablename__ = "parcels"

    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)


# --- the worker -------------------------------------------------------------------------------


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    engine = create_async_engine(URL)
    if engine.dialect.name == "sqlite":
        configure_sqlite(engine)
    async with engine.begin() as connection:  # processes that start together wait here
        await connection.run_sync(migrate.upgrade)
        await connection.run_sync(Base.metadata.create_all)  # your own migrations
    app.state.sessions = sessions = async_sessionmaker(engine, expire_on_commit=False)
    app.state.executions = executions = AsyncExecutionManager(AsyncSqlExecutionStore(engine))
    worker = AsyncWorker(
        executions,
        {"ship": partial(ship, sessions)},
        retry_on=OSError,
        heartbeat=STALLED_AFTER / 10,
        stalled_after=STALLED_AFTER,
        signals=False,  # uvicorn handles them, and ends the lifespan
    )
    running = asyncio.create_task(worker.run())
    yield
    worker.stop()
    await running  # what it ships now, it ships to the end
    await engine.dispose()


async def ship(sessions: Sessions, attempt: AsyncAttempt) -> dict[str, Any]:
    execution = attempt.execution
    async with sessions.begin() as session:
        # By the key in the metadata, which a replay of the execution has as well.
        query = select(Order).where(Order.key == execution.metadata["order"])
        order = (await session.scalars(query)).one()
        order.execution_id = execution.id
        parcels = select(func.count()).where(Parcel.order_id == order.id)
        shipped = (await session.scalars(parcels)).one()
    for number in range(shipped + 1, order.parcels + 1):
        await call_carrier(number)
        async with sessions.begin() as session:  # the row and the progress commit together
            session.add(Parcel(order_id=order.id, number=number))
            await attempt.within(session).update_progress(number, order.parcels)
    return {"shipped": order.parcels}


async def call_carrier(parcel: int) -> None:  # noqa: ARG001
    await asyncio.sleep(0.05)  # stands for a request


# --- requests ---------------------------------------------------------------------------------

app = FastAPI(lifespan=lifespan)


class NewOrder(BaseModel):
    item: str = Field(min_length=1)
    parcels: int = Field(ge=1, le=1000)


class OrderState(BaseModel):
    id: int
    item: str
    status: ExecutionStatus
    attempts: int
    progress: ProgressInfo | None
    error: str | None


@app.post("/orders", status_code=202)
async def place(
    new: NewOrder,
    idempotency_key: Annotated[str, Header(min_length=1, max_length=200)],
    request: Request,
) -> OrderState:
    sessions, executions = request.app.state.sessions, request.app.state.executions
    async with sessions.begin() as session:
        # The payload is the request: with it, `create` distinguishes a repeat from a conflict.
        execution = await executions.within(session).create(
            "ship",
            new,
            idempotency_key=f"order-{idempotency_key}",
            metadata={"order": idempotency_key},
            max_attempts=5,
        )
        order = await session.scalar(select(Order).where(Order.key == idempotency_key))
        if order is None:  # otherwise an earlier request created it with the execution
            order = Order(key=idempotency_key, execution_id=execution.id, **new.model_dump())
            session.add(order)
    return state(order, execution)


@app.get("/orders/{id}")
async def read(id: int, request: Request) -> OrderState:
    async with request.app.state.sessions() as session:
        order = await session.get(Order, id)
    if order is None:
        raise HTTPException(404)
    return state(order, await request.app.state.executions.get(order.execution_id))


def state(order: Order, execution: Execution) -> OrderState:
    return OrderState(
        id=order.id,
        item=order.item,
        status=execution.status,
        attempts=execution.attempts,
        progress=execution.progress,
        error=execution.error.message if execution.error else None,
    )


@app.exception_handler(ExecutionProblem)
async def refuse(_: Request, problem: ExecutionProblem) -> JSONResponse:
    codes = {ExecutionProblemCode.NOT_FOUND: 404, ExecutionProblemCode.INVALID_VALUE: 422}
    answer = {"code": problem.code, "detail": str(problem)}
    return JSONResponse(answer, codes.get(problem.code, 409))
