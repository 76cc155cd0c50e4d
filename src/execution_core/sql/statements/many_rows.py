"""Statements for many rows whose values differ: one parameter with a JSON array for all rows.

Each is made from the values and conditions of the statement for one row: a column of the array
takes the place of each parameter. JSON travels as text inside it, so that it stays exact.
"""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final, NamedTuple, TypeGuard

from sqlalchemy import (
    CTE,
    BindParameter,
    Column,
    ColumnElement,
    Select,
    Subquery,
    Text,
    and_,
    bindparam,
    cast,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.sql.visitors import iterate, replacement_traverse
from sqlalchemy.types import TypeEngine

from ...core.state_machine import Rule
from ..schema.column_types import JsonText, json_text
from ..schema.expressions import by_code_point, checked_last, in_array, in_few, json_elements
from ..schema.tables import executions
from .builders import LIVE_SQL, new_values
from .rows import ROW
from .transition_sql import (
    assignments,
    clock_parameter,
    id_parameter,
    time_expressions,
    value_parameter,
    where_clause,
)

columns = executions.c
_COMMON: Final = (clock_parameter().key, value_parameter(columns.write_token).key)
"""The parameters that are the same for all rows."""


class RowSource(NamedTuple):
    """The rows that a statement is given: their columns are the parameters of a single row."""

    table: CTE | Subquery
    types: Mapping[str, TypeEngine[Any]]

    @property
    def columns(self) -> Any:
        """The columns, by the names of the parameters."""
        return self.table.c

    def fill(self, clause: Any) -> Any:
        """Return a clause with a column of the rows in place of each parameter."""
        return replacement_traverse(clause, {}, self._column)

    def contain(self, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        """Return whether a column of a table has one of the values of a column of the rows."""
        return in_few(column, _scalar(select(self.columns[name])))

    def _column(self, element: Any, **_: Any) -> Any:
        return self.columns[element.key] if _is_of_row(element) else None

    def encode(self, rows: Iterable[Mapping[str, Any]]) -> str:
        """Return the parameter `rows`: for each row an array of its values."""
        table = [
            [
                json_text(row[name]) if isinstance(type, JsonText) else row[name]
                for name, type in self.types.items()
            ]
            for row in rows
        ]
        return json.dumps(table, ensure_ascii=False, separators=(",", ":"))


class ManyRowsStatement(NamedTuple):
    """A statement, and the rows that it is given."""

    statement: Any  # Select | ReturningInsert | ReturningUpdate
    rows: RowSource


def row_source(clauses: Iterable[Any], *, several_uses: bool = True) -> RowSource:
    """Return rows with a column for each parameter of some clauses."""
    parts = [part for clause in clauses for part in iterate(clause) if _is_of_row(part)]
    types: dict[str, TypeEngine[Any]] = {part.key: part.type for part in parts}
    given = json_elements(bindparam("rows", type_=Text)).table_valued("value", name="given")
    values = (
        cast(given.c.value.op("->>")(literal_column(str(n))), type).label(name)
        for n, (name, type) in enumerate(types.items())
    )
    found = select(*values)
    # Python's sqlite3 begins no transaction for a statement that begins with WITH.
    table = found.cte("new_rows") if several_uses else found.subquery("new_rows")
    return RowSource(table, types)


def _is_of_row(element: object) -> TypeGuard[BindParameter[Any]]:
    # A parameter with a value of its own is a constant of the rule.
    return isinstance(element, BindParameter) and element.required and element.key not in _COMMON


@cache
def select_many_statement(column: Column[Any]) -> ManyRowsStatement:
    """Return the SELECT of the executions with one of many values in a column."""
    rows = row_source([bindparam("value", type_=column.type)])
    return ManyRowsStatement(select(*ROW).where(rows.contain(column, "value")), rows)


@cache
def insert_many_statement(
    linked: tuple[str, ...], *, clocked: bool, locks_rows: bool
) -> ManyRowsStatement:
    """Return the INSERT of new executions, some with links, in the order of their keys.

    Callers with the same keys wait for each other in this order, so that there is no deadlock.
    """
    # Imported here because it is slow to import. SQLite compiles its ON CONFLICT as well.
    from sqlalchemy.dialects.postgresql import insert as upsert  # noqa: PLC0415

    new = new_values(clocked=clocked)
    new |= {columns[link]: value_parameter(columns[link]) for link in linked}
    rows = row_source(new.values(), several_uses=locks_rows)
    check = _check_and_lock_link if locks_rows else _check_link
    guard = (check(rows, value_parameter(columns[link]).key) for link in linked)
    found = (
        select(*(rows.fill(value) for value in new.values()))
        .select_from(rows.table)
        .where(true(), *guard)  # SQLite's grammar needs a WHERE before ON CONFLICT
        .order_by(by_code_point(rows.columns.new_idempotency_key))
    )
    statement = (
        upsert(executions)
        .from_select(list(new), found, include_defaults=False)
        .on_conflict_do_nothing(index_elements=[columns.idempotency_key])
        .returning(*ROW)
    )
    return ManyRowsStatement(statement, rows)


def _check_and_lock_link(rows: RowSource, name: str) -> ColumnElement[bool]:
    """Return whether a row has no such link, or the linked row may be linked; it is locked.

    A failed foreign key would abort the caller's whole transaction.
    """
    lock = _in_order_of_ids(rows, name, "status").with_for_update(read=True, key_share=True)
    id, linked = rows.columns[name], lock.cte(f"locked_{name}").c
    return or_(id.is_(None), id.in_(select(linked.id).where(_may_be_linked(rows, name, linked))))


def _check_link(rows: RowSource, name: str) -> ColumnElement[bool]:
    """Return whether a row has no such link, or the linked row may be linked."""
    id, linked = rows.columns[name], executions.alias(name).c
    allowed = linked.id == id, _may_be_linked(rows, name, linked)
    return or_(id.is_(None), select(linked.id).where(*allowed).exists())


def _may_be_linked(rows: RowSource, name: str, linked: Any) -> ColumnElement[bool]:
    """Return whether a parent is live; a replay, which repeats finished work, may have any."""
    if name != value_parameter(columns.parent_id).key:
        return true()
    is_replay = getattr(rows.columns, value_parameter(columns.replay_of).key, None)
    live = linked.status.in_(LIVE_SQL)
    return live if is_replay is None else or_(live, is_replay.is_not(None))


def _in_order_of_ids(rows: RowSource, name: str, *others: str) -> Select[Any]:
    # Callers lock rows in one order, so that there is no deadlock.
    table = executions.alias("locked").c
    found = select(table.id, *(table[other] for other in others))
    return found.where(rows.contain(table.id, name)).order_by(table.id)


@cache
def update_each_statement(
    rule: Rule, *, for_attempt: bool, clocked: bool, locks_rows: bool
) -> ManyRowsStatement:
    """Return the conditional UPDATE of a rule for given executions, each with its own values."""
    now, not_before = time_expressions(clocked=clocked)
    changes = assignments(rule.moves, now, not_before)
    guard = where_clause(rule, now, for_attempt=for_attempt)
    rows = row_source([*changes.values(), *guard], several_uses=locks_rows)
    by_id, *conditions = map(rows.fill, guard)
    chosen = [by_id, checked_last(and_(*conditions))]
    if locks_rows:
        # Locked in the order of their ids before the first one is changed.
        locked = _in_order_of_ids(rows, id_parameter().key).with_for_update(key_share=True)
        chosen.append(in_array(columns.id, _scalar(locked)))
    statement = (
        update(executions)
        .where(*chosen)
        .values({column: rows.fill(value) for column, value in changes.items()})
        .returning(*ROW)
    )
    return ManyRowsStatement(statement, rows)


def _scalar(found: Select[Any]) -> ColumnElement[Any]:
    return found.correlate(None).scalar_subquery()
