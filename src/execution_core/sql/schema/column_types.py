"""The few column types and expressions that differ between PostgreSQL and SQLite."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json
from sqlalchemy import ColumnElement, DateTime, Dialect, Text, Uuid
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from ...core.json_values import Json, JsonMember
from ...core.models import ExecutionFailure


class Expression(FunctionElement[Any]):
    """SQL that is spelt once for each database."""

    postgresql: str
    sqlite: str

    def __init__(self, *clauses: ColumnElement[Any], type_: TypeEngine[Any] | None = None) -> None:
        super().__init__(*clauses)
        if type_ is not None:
            self.type = type_


@compiles(Expression)
def _compile(element: Expression, compiler: SQLCompiler, **kw: Any) -> str:
    spelling: str = getattr(element, compiler.dialect.name)
    return spelling.format(*(compiler.process(clause, **kw) for clause in element.clauses))


class as_text(Expression):  # noqa: N801 - reads as the function it is
    """A column as text.

    Out of PostgreSQL too: what the driver makes of a uuid or jsonb is for the host's engine to set.
    """

    inherit_cache = True
    postgresql = "{0}::text"
    sqlite = "{0}"


class Id(TypeDecorator[str]):
    """A UUID, read as its text with dashes; in SQLite that text itself."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Store as text only where there is no type for it."""
        return dialect.type_descriptor(Uuid(as_uuid=False) if _postgresql(dialect) else Text())

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Read the text."""
        return as_text(column, type_=Text())

    def result_processor(self, dialect: Dialect, coltype: object) -> None:
        """Leave it as it was read."""


class Timestamp(TypeDecorator[datetime]):
    """An aware time: `timestamptz`, or in SQLite the text `2026-01-31T12:00:00.000Z`."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Store as text only where there is no type for it."""
        return dialect.type_descriptor(DateTime(timezone=True) if _postgresql(dialect) else Text())

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        """Spell an aware time as SQLite's date functions read it."""
        return None if _postgresql(dialect) else _format_time

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:  # noqa: ARG002
        """Read it in UTC, whatever the connection's timezone is."""
        return _in_utc if _postgresql(dialect) else _read_time


class _Jsonb(UserDefinedType[Any]):
    """`jsonb` whose parameters are JSON text already; SQLAlchemy's own would encode it again."""

    cache_ok = True
    render_bind_cast = True

    def get_col_spec(self, **kw: Any) -> str:  # noqa: ARG002 - SQLAlchemy's signature
        return "JSONB"


class JsonText(TypeDecorator[Any]):
    """Checked JSON on its way in, any JSON on its way out, as text both ways. None is NULL."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Store as text only where there is no type for it."""
        return dialect.type_descriptor(_Jsonb() if _postgresql(dialect) else Text())

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], str | None]:  # noqa: ARG002
        """Take what `values` has checked; nothing else is JSON here."""
        return _checked_text

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Read the text."""
        return as_text(column, type_=self)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:  # noqa: ARG002
        """Read it as everybody else's JSON is read."""
        return _read_json


def _postgresql(dialect: Dialect) -> bool:
    return dialect.name == "postgresql"


def _format_time(value: datetime | None) -> str | None:
    if value is None:
        return None
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _read_time(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value).astimezone(UTC)


def _in_utc(value: datetime | None) -> datetime | None:
    return None if value is None else value.astimezone(UTC)


def _checked_text(value: object) -> str | None:
    match value:
        case None:
            return None
        case Json() | JsonMember():
            return value.text
        case ExecutionFailure():
            return value.model_dump_json(exclude_none=True)
    raise TypeError(f"not checked to be JSON: {type(value).__name__}")


def _read_json(value: str | None) -> Any:
    if value is None:
        return None
    try:
        return from_json(value)
    except ValueError:  # what Python's own reader takes as well: deeper, or with half a surrogate
        return json.loads(value)
