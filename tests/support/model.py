"""One machine, three ways: a memory store and both databases, asked the same side by side.

All have one clock, in whole milliseconds, and are given the same ids, in no order. So the answers,
the refusals and the rows are the same to the type and the digit, with one exception: PostgreSQL's
jsonb has no negative zero.
"""

import uuid
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import select

from execution_core import (
    ConcurrentUpdate,
    Execution,
    ExecutionManager,
    ExecutionProblem,
    SqlExecutionStore,
)
from execution_core.core import validation
from execution_core.sql.schema.tables import execution_history

from ..conftest import Database
from .memory import memory_store

MILLISECOND = timedelta(milliseconds=1)
EVERYTHING = 10_000  # the largest page

Call = Callable[[ExecutionManager], Any]


class Clock:
    """The time of all stores; to the README's it is its `datetime`."""

    def begin(self) -> None:
        self.time = datetime(2026, 1, 31, 23, 59, 59, 900_000, UTC)

    def now(self, zone: tzinfo) -> datetime:
        return self.time.astimezone(zone)

    def read(self) -> datetime:
        return self.time


class Ids:
    """UUIDs in no order, as from hosts whose clocks disagree; the same for each store."""

    def begin(self) -> None:
        self.first = self.made = 0

    def again(self) -> None:
        self.made = self.first

    def keep(self) -> None:
        self.first = self.made

    def new(self) -> str:
        self.made += 1
        return str(uuid.uuid5(uuid.NAMESPACE_OID, str(self.made)))


class SideBySide:
    """Managers over all stores: `sides.ask(lambda manager: manager.get(id))`."""

    def __init__(self, databases: list[Database], monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.ids = Clock(), Ids()
        self.databases = databases
        self.managers: dict[str, ExecutionManager] = {}
        store: Any = memory_store()
        self.memory = type(store)
        monkeypatch.setitem(self.memory.create.__globals__, "datetime", self.clock)
        monkeypatch.setattr(validation, "new_id", self.ids.new)
        for each in databases:  # once: what a statement is compiled to, a store keeps
            sql = SqlExecutionStore(each.engine, clock=self.clock.read)
            self.managers[each.name] = ExecutionManager(sql)

    def begin(self) -> None:
        """Begin from nothing."""
        self.clock.begin()
        self.ids.begin()
        self.managers["memory"] = ExecutionManager(self.memory())
        for database in self.databases:
            database.run("DELETE FROM executions")

    def ask(self, call: Call) -> Any:
        """Return the answer that all give, or the problem that all raise."""
        answers = {}
        for name, manager in self.managers.items():
            self.ids.again()
            answers[name] = answer(call, manager)
        self.ids.keep()
        expected = answers.pop("memory")
        assert not isinstance(expected, ConcurrentUpdate)  # there is no other writer
        for name, found in answers.items():
            assert_same(found, expected, name)
        return expected

    def rows(self) -> list[Execution]:
        """Return everything there is, which is the same everywhere."""
        rows: list[Execution] = self.ask(lambda manager: manager.list(limit=EVERYTHING))
        return rows


def answer(call: Call, manager: ExecutionManager) -> Any:
    try:
        return call(manager)
    except ExecutionProblem as problem:
        return problem


def assert_same(found: Any, expected: Any, name: str) -> None:
    signed = name != "postgresql"
    assert told(found, signed_zero=signed) == told(expected, signed_zero=signed), name


def told(value: Any, *, signed_zero: bool) -> Any:
    """Return what differs wherever values differ, in their type or their digits, too."""

    def each(part: Any) -> Any:
        match part:
            case dict():
                return {key: each(child) for key, child in part.items()}
            case list() | tuple():
                return [each(child) for child in part]
            case BaseModel():
                return [type(part), {name: each(child) for name, child in part}]
            case ExecutionProblem():
                facts = [getattr(part, fact.name) for fact in fields(part)]  # type: ignore[arg-type]
                return [type(part), str(part), each(facts)]
            case float() if part == 0 and not signed_zero:
                return "0.0"
        return repr(part)

    return each(value)


class History:
    """The moves that the rows have shown, and what the databases are to have recorded of them."""

    def __init__(self) -> None:
        self.moves: dict[str, list[dict[str, Any]]] = {}

    def see(self, rows: list[Execution]) -> list[tuple[str | None, str]]:
        """Return the moves since the last look; what is gone has no history."""
        self.moves = {row.id: self.moves.get(row.id, []) for row in rows}
        seen = []
        for row in rows:
            moves = self.moves[row.id]
            was = moves[-1]["to_status"] if moves else None
            if row.status != was:
                moves.append(recorded(row, len(moves) + 1, was))
                seen.append((was, str(row.status)))
        return seen

    def assert_recorded(self, database: Database) -> None:
        moves = [move for _, moves in sorted(self.moves.items()) for move in moves]
        columns = execution_history.c
        told = [column for column in columns if column is not columns.write_token]
        query = select(*told).order_by(columns.execution_id, columns.seq)
        with database.engine.connect() as connection:
            found = [dict(row._mapping) for row in connection.execute(query)]
        assert_same(found, moves, database.name)


def recorded(row: Execution, seq: int, was: str | None) -> dict[str, Any]:
    reason = row.metadata.get("cancellation_reason") if row.status == "cancelled" else None
    return {
        "execution_id": row.id,
        "seq": seq,
        "from_status": was,
        "to_status": str(row.status),
        "attempt": row.attempts,
        "occurred_at": row.updated_at,
        "worker": row.worker,
        "reason": reason,
        "error": row.error and row.error.model_dump(exclude_none=True),
    }
