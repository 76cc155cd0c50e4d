"""Call a memory store and both databases in the same way, and compare their answers.

All share one clock, in whole milliseconds, and get the same ids, in no order. Answers, refusals and
rows must be equal in type and in every digit, with one exception: PostgreSQL's jsonb has no
negative zero.
"""

import uuid
from collections.abc import Callable
from dataclasses import fields, replace
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
    IdempotencyConflict,
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
    """The clock of all stores; for the memory store it replaces `datetime`."""

    def begin(self) -> None:
        self.time = datetime(2026, 1, 31, 23, 59, 59, 900_000, UTC)

    def now(self, zone: tzinfo) -> datetime:
        return self.time.astimezone(zone)

    def read(self) -> datetime:
        return self.time


class Ids:
    """UUIDs in no order, as from hosts with different clocks; the same for each store."""

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
        for each in databases:  # once: a store caches its compiled statements
            sql = SqlExecutionStore(each.engine, clock=self.clock.read)
            self.managers[each.name] = ExecutionManager(sql)

    def begin(self) -> None:
        """Delete everything and reset the clock."""
        self.clock.begin()
        self.ids.begin()
        self.managers["memory"] = ExecutionManager(self.memory())
        for database in self.databases:
            database.run("DELETE FROM executions")

    def ask(self, call: Call) -> Any:
        """Call every store; return the common answer or exception."""
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
        """Return all executions, which must be equal in every store."""
        rows: list[Execution] = self.ask(lambda manager: manager.list(limit=EVERYTHING))
        return rows


def answer(call: Call, manager: ExecutionManager) -> Any:
    try:
        return call(manager)
    except ExecutionProblem as problem:
        return problem


def assert_same(found: Any, expected: Any, name: str) -> None:
    signed = name != "postgresql"
    if isinstance(found, IdempotencyConflict) and not signed:
        # Two payloads may differ only in the sign of a zero, which jsonb does not store.
        differs = {"fingerprint": "payload", "type": "type and payload"}.get(found.differs)
        if differs is not None and differs == getattr(expected, "differs", None):
            found = replace(found, differs=differs)
    assert normalized(found, signed_zero=signed) == normalized(expected, signed_zero=signed), name


def normalized(value: Any, *, signed_zero: bool) -> Any:
    """Return a form that differs wherever values differ, in type or digits too."""

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
    """The transitions observed in the rows: the history that the databases must contain."""

    def __init__(self) -> None:
        self.transitions: dict[str, list[dict[str, Any]]] = {}

    def observe(self, rows: list[Execution]) -> list[tuple[str | None, str]]:
        """Return the transitions since the last call; deleted executions have none."""
        self.transitions = {row.id: self.transitions.get(row.id, []) for row in rows}
        seen = []
        for row in rows:
            transitions = self.transitions[row.id]
            was = transitions[-1]["to_status"] if transitions else None
            if row.status != was:
                transitions.append(expected_entry(row, len(transitions) + 1, was))
                seen.append((was, str(row.status)))
            if row.redacted_at == row.updated_at:  # just now: later errors keep their texts
                for each in transitions:
                    each["error"] = redacted(each["error"])
        return seen

    def assert_recorded(self, database: Database) -> None:
        transitions = [
            transition
            for _, transitions in sorted(self.transitions.items())
            for transition in transitions
        ]
        columns = execution_history.c
        compared = [column for column in columns if column.name not in ("write_token", "actor")]
        query = select(*compared).order_by(columns.execution_id, columns.seq)
        with database.engine.connect() as connection:
            found = [dict(row._mapping) for row in connection.execute(query)]
        assert_same(found, transitions, database.name)


def redacted(error: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return an error of the history without its texts."""
    if error is None:
        return None
    return {k: v for k, v in error.items() if k != "stack"} | {"message": "redacted"}


def expected_entry(row: Execution, seq: int, was: str | None) -> dict[str, Any]:
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
