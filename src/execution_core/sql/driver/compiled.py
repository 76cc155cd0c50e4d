"""A statement compiled for a dialect: its text, its parameters and its result columns."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..statements.queries import Query

Values = Sequence[Any]
Converter = Callable[[Any], Any]


class CompiledQuery(NamedTuple):
    """The SQL text of a statement, and the converters of its parameters and result columns."""

    text: str
    constants: Mapping[str, Any]
    parameters: Sequence[tuple[str, Converter | None]]
    columns: Sequence[tuple[int, Converter]]


def bind_values(compiled: CompiledQuery, query: Query) -> Values:
    """Return the parameters of a query in the order and types that the driver expects."""
    given = query.parameters
    if compiled.constants:
        given = {**compiled.constants, **given}
    return [
        convert(given[name]) if convert else given[name] for name, convert in compiled.parameters
    ]


def convert_rows(compiled: CompiledQuery, rows: Sequence[Values]) -> Sequence[Values]:
    """Return rows of the driver with the values that SQLAlchemy would return."""
    return [_convert_row(row, compiled.columns) for row in rows] if compiled.columns else rows


def _convert_row(row: Values, columns: Sequence[tuple[int, Converter]]) -> Values:
    values = list(row)
    for n, convert in columns:
        if (value := values[n]) is not None:
            values[n] = convert(value)
    return values
