"""The column types that differ between PostgreSQL and SQLite."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from pydantic_core import from_json
from sqlalchemy import ColumnElement, DateTime, Dialect, MetaData, Table, Text, Uuid
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from ...core.json_values import Json, JsonMembers
from ...core.models import ExecutionFailure

IN_USE: Final = Table("execution_core_in_use", MetaData())
"""The function of that name: as a Table, SQLAlchemy qualifies it with the schema of the tables."""


class Expression(FunctionElement[Any]):
    """SQL with a template for each database."""

    postgresql: str
    sqlite: str

    def __init__(self, *clauses: ColumnElement[Any], type_: TypeEngine[Any] | None = None) -> None:
        super().__init__(*clauses)
        if type_ is not None:
            self.type = type_


@compiles(Expression)
def _compile(element: Expression, compiler: SQLCompiler, **kw: Any) -> str:
    template: str = getattr(element, compiler.dialect.name)
    rendered = (
        # asyncpg refuses a parameter that the text does not contain.
        compiler.process(clause, **kw) if f"{{{n}}}" in template else ""
        for n, clause in enumerate(element.clauses)
    )
    return template.format(*rendered, in_use=compiler.preparer.format_table(IN_USE))


class as_text(Expression):  # noqa: N801 - reads as the function it is
    """A column as text, so that the driver settings of a host's engine make no difference."""

    inherit_cache = True
    postgresql = "{0}::text"
    sqlite = "{0}"


class Id(TypeDecorator[str]):
    """A UUID as text with dashes: `uuid` on PostgreSQL, text on SQLite."""

    impl = Text().with_variant(Uuid(as_uuid=False), "postgresql")
    cache_ok = True

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Select the text."""
        return as_text(column, type_=Text())

    def result_processor(self, dialect: Dialect, coltype: object) -> None:
        """Return the text unchanged."""


class Timestamp(TypeDecorator[datetime]):
    """An aware time: `timestamptz`, or in SQLite the UTC text `2026-01-31 12:00:00.000000`.

    SQLAlchemy's and Django's DateTime write the same text, and it compares correctly with
    `datetime('now', '-3 hours')`.
    """

    impl = Text().with_variant(DateTime(timezone=True), "postgresql")
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        """Write an aware time as text on SQLite."""
        return None if _postgresql(dialect) else _format_time

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:  # noqa: ARG002
        """Return the time in UTC, in any time zone of the connection."""
        return _in_utc if _postgresql(dialect) else _read_time


class ClockTime(Timestamp):
    """The time of an injected clock, in SQLite's own precision: whole milliseconds."""

    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        """Cut a time to milliseconds on SQLite, as its date functions compute."""
        return None if _postgresql(dialect) else _format_milliseconds


class _Jsonb(UserDefinedType[Any]):
    """`jsonb` whose parameters are JSON text; SQLAlchemy's JSONB would encode them again."""

    cache_ok = True
    render_bind_cast = True

    def get_col_spec(self, **kw: Any) -> str:  # noqa: ARG002 - SQLAlchemy's signature
        return "JSONB"


class JsonText(TypeDecorator[Any]):
    """JSON as text in both directions; None is NULL.

    The library binds checked values alone. To query a JSON column, use `type_coerce(column, JSON)`.
    """

    impl = Text().with_variant(_Jsonb(), "postgresql")
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], str | None]:  # noqa: ARG002
        """Accept checked values alone."""
        return json_text

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Select the text."""
        return as_text(column, type_=self)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:  # noqa: ARG002
        """Parse the text."""
        return _read_json


def _postgresql(dialect: Dialect) -> bool:
    return dialect.name == "postgresql"


def _format_time(value: datetime | None) -> str | None:
    if value is None:
        return None
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def _format_milliseconds(value: datetime | None) -> str | None:
    text = _format_time(value)
    return text and f"{text[:-3]}000"


def _read_time(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(f"{value}Z")


def _in_utc(value: datetime | None) -> datetime | None:
    return None if value is None else value.astimezone(UTC)


def json_text(value: object) -> str | None:
    """Return a checked JSON value as the text that is stored."""
    match value:
        case None:
            return None
        case Json() | JsonMembers():
            return value.text
        case ExecutionFailure():
            return value.model_dump_json(exclude_none=True)
    raise TypeError(f"not a checked JSON value: {type(value).__name__}")


class UnreadableJson(NamedTuple):
    """A JSON value that Python cannot read, such as an integer of 5,000 digits."""

    reason: str


class StoredJson(JsonText):
    """`JsonText` for the rows of the library: one unreadable value does not hide other rows."""

    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:  # noqa: ARG002
        """Parse the text; return an `UnreadableJson` where that is impossible."""
        return _read_json_if_possible


def _read_json_if_possible(value: str | None) -> Any:
    try:
        return _read_json(value)
    except (ValueError, RecursionError) as error:
        return UnreadableJson(str(error))


def _read_json(value: str | None) -> Any:
    if value is None:
        return None
    try:
        return from_json(value)
    except ValueError:  # nested deeper than this parser allows, or with a lone surrogate
        return json.loads(value)
