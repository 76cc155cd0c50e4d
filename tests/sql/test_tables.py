"""`execution_core.tables`: the tables and views in the queries and models of a host."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Engine,
    ForeignKey,
    Integer,
    String,
    func,
    insert,
    inspect,
    select,
    type_coerce,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from execution_core import ExecutionManager, connect, tables
from execution_core.sql.driver.engine import create_async_engine

from ..conftest import Database
from ..support.states import STATES, bring_to


class Base(DeclarativeBase):
    """The host's own metadata."""


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String)
    execution_id: Mapped[str] = mapped_column(ForeignKey(tables.executions.c.id))


@pytest.fixture
def orders(database: Database) -> Iterator[Engine]:
    Base.metadata.create_all(database.engine)
    yield database.engine
    Base.metadata.drop_all(database.engine)


@pytest.mark.parametrize("name", tables.__all__)
def test_tables_have_the_columns_of_the_database(database: Database, name: str) -> None:
    columns = [column["name"] for column in inspect(database.engine).get_columns(name)]
    assert [column.name for column in getattr(tables, name).c] == columns


@pytest.mark.parametrize("name", tables.__all__)
def test_tables_read_typed_values(database: Database, name: str) -> None:
    """Every value has the Python type of its column, on both databases."""
    with connect(database.url) as manager:
        for state in STATES:
            bring_to(manager, state)
        overdue = manager.start(manager.create("a", timeout=timedelta(milliseconds=1)).id)
        manager.log(overdue.id, "a", data={"n": 1})
        manager.create("child", parent_id=overdue.id)
    time.sleep(0.005)
    table = getattr(tables, name)
    with database.engine.connect() as connection:
        rows = connection.execute(select(table)).mappings().all()
    assert rows
    for row in rows:
        for column in table.c:
            value = row[column.name]
            if value is None:
                assert column.nullable, column
            elif column.name.endswith("_at"):
                assert isinstance(value, datetime), column
                assert value.tzinfo is UTC, column
            elif column.name.endswith("_seconds"):
                assert isinstance(value, float), column
            elif isinstance(column.type, Integer):
                assert type(value) is int, column


def test_tables_join_a_hosts_model(orders: Engine, manager: ExecutionManager) -> None:
    """A foreign key of an ORM model, a join, and a filter by a time and by JSON."""
    done, waiting = bring_to(manager, "completed"), manager.create("ship", {"order": 17})
    e = tables.executions.c
    with Session(orders) as session, session.begin():
        session.add_all(
            [
                Order(id=1, name="ada", execution_id=done.id),
                Order(id=2, name="bob", execution_id=waiting.id),
            ]
        )
        session.flush()
        joined = select(Order.name, e.status).join(tables.executions, e.id == Order.execution_id)
        assert session.execute(joined.order_by(Order.id)).all() == [
            ("ada", "completed"),
            ("bob", "pending"),
        ]
        recent = joined.where(e.created_at > datetime.now(UTC) - timedelta(hours=1))
        assert len(session.execute(recent).all()) == 2
        payload = type_coerce(e.payload, JSON)
        ordered = select(e.id).where(payload["order"].as_integer() == 17)
        assert session.scalars(ordered).all() == [waiting.id]


def test_tables_in_async_session(
    orders: Engine, manager: ExecutionManager, database: Database
) -> None:
    id = bring_to(manager, "failed").id

    async def count() -> Any:
        engine = create_async_engine(database.url)
        overview = tables.execution_overview.c
        async with AsyncSession(engine) as session:
            query = select(func.count()).where(overview.status == "failed")
            found = await session.scalar(query.where(overview.execution_id == id))
        await engine.dispose()
        return found

    assert asyncio.run(count()) == 1


def test_tables_time_just_read_is_found(database: Database) -> None:
    """Also with microseconds, which a host may write."""
    with connect(database.url) as manager:
        id = manager.create("a").id
    e = tables.executions.c
    time = "2026-01-01 00:00:00.123456" + ("+00" if database.name == "postgresql" else "")
    database.run(f"UPDATE executions SET due_at = '{time}' WHERE id = :id", id=id)
    with database.engine.connect() as connection:
        due_at = connection.scalar(select(e.due_at))
        assert connection.scalars(select(e.id).where(e.due_at == due_at)).all() == [id]
    with connect(database.url) as manager:
        assert manager.get(id).due_at == due_at


def test_tables_foreign_key_refuses_unknown_execution(orders: Engine) -> None:
    with pytest.raises(Exception, match=r"(?i)foreign key"), orders.begin() as connection:
        connection.execute(
            insert(Order).values(
                id=3, name="eve", execution_id="0198a000-0000-7000-8000-000000000009"
            )
        )
