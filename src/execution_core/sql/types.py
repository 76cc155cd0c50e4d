"""The few column types and expressions that differ between PostgreSQL and SQLite."""

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Dialect, Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from ..execution import ExecutionError
from ..values import Entry, Json

Id = Text().with_variant(postgresql.UUID(as_uuid=False), "postgresql")
"""A UUID; in SQLite its text with dashes, for those who read it."""


class Timestamp(TypeDecorator[datetime]):
    """An aware time: `timestamptz`, or in SQLite the text `2026-01-31T12:00:00.000Z`."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Store as text only where there is no type for it."""
        return dialect.type_descriptor(DateTime(timezone=True) if _postgresql(dialect) else Text())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Refuse a naive time: whose would it be?"""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without a timezone: {value!r}")
        if _postgresql(dialect):
            return value
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Read any ISO 8601 text; one without an offset, written by hand, is in UTC as all are."""
        if value is None:
            return None
        if not _postgresql(dialect):
            value = datetime.fromisoformat(value)
            if value.tzinfo is None:
                return value.replace(tzinfo=UTC)  # type: ignore[no-any-return]
        return value.astimezone(UTC)  # type: ignore[no-any-return]


class _Jsonb(UserDefinedType[Any]):
    """`jsonb` whose parameters are JSON text already; SQLAlchemy's own would encode it again."""

    cache_ok = True
    render_bind_cast = True

    def get_col_spec(self, **kw: Any) -> str:  # noqa: ARG002 - SQLAlchemy's signature
        return "JSONB"


class JsonText(TypeDecorator[Any]):
    """Checked JSON on its way in, any JSON value on its way out. None is NULL."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Store as text only where there is no type for it."""
        return dialect.type_descriptor(_Jsonb() if _postgresql(dialect) else Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Take what `values` has checked; nothing else is JSON here."""
        match value:
            case None:
                return None
            case Json() | Entry():
                return value.text
            case ExecutionError():
                return value.model_dump_json(exclude_none=True)
        raise TypeError(f"not checked to be JSON: {type(value).__name__}")

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Psycopg has read its JSON already; SQLite's is text."""
        return value if value is None or _postgresql(dialect) else json.loads(value)


class database_now(FunctionElement[datetime]):  # noqa: N801 - reads as the function it is
    """The time of the statement by the database's clock."""

    type = Timestamp()
    inherit_cache = True


class deadline(FunctionElement[datetime]):  # noqa: N801
    """`deadline(time, milliseconds)`; NULL without milliseconds."""

    type = Timestamp()
    inherit_cache = True


class merged(FunctionElement[Any]):  # noqa: N801
    """`merged(object, entry, entry with null)`: the JSON object with the entry's key set."""

    type = JsonText()
    inherit_cache = True


@compiles(database_now, "postgresql")
def _now_postgresql(element: Any, compiler: SQLCompiler, **kw: Any) -> str:  # noqa: ARG001
    return "statement_timestamp()"


@compiles(database_now, "sqlite")
def _now_sqlite(element: Any, compiler: SQLCompiler, **kw: Any) -> str:  # noqa: ARG001
    return "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"


@compiles(deadline, "postgresql")
def _deadline_postgresql(element: Any, compiler: SQLCompiler, **kw: Any) -> str:
    start, milliseconds = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"{start} + {milliseconds} * interval '1 millisecond'"


@compiles(deadline, "sqlite")
def _deadline_sqlite(element: Any, compiler: SQLCompiler, **kw: Any) -> str:
    start, milliseconds = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"strftime('%Y-%m-%dT%H:%M:%fZ', {start}, ({milliseconds} / 1000.0) || ' seconds')"


@compiles(merged, "postgresql")
def _merged_postgresql(element: Any, compiler: SQLCompiler, **kw: Any) -> str:
    document, entry, _ = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"{document} || {entry}"


@compiles(merged, "sqlite")
def _merged_sqlite(element: Any, compiler: SQLCompiler, **kw: Any) -> str:
    # json_set drops a key that holds a quote and doubles one that holds a backslash. A merge patch
    # with null removes any key exactly; what remains is text, to which the entry is appended.
    document, entry, null = (compiler.process(clause, **kw) for clause in element.clauses)
    rest = f"json_patch({document}, {null})"
    return (
        f"CASE {rest} WHEN '{{}}' THEN {entry} "
        f"ELSE substr({rest}, 1, length({rest}) - 1) || ',' || substr({entry}, 2) END"
    )


def _postgresql(dialect: Dialect) -> bool:
    return dialect.name == "postgresql"
