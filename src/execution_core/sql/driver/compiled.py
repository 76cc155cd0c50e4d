"""A statement compiled for a dialect: its text, its parameters and its result columns."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..statements.queries import Query

Values = Sequence[Any]
Converter = Callable[[Any], Any]


class CompiledQuery(NamedTuple):
    """A statement in the words of a dialect, and what converts its values on their way."""

    text: str
    constants: Mapping[str, Any]
    parameters: Sequence[tuple[str, Converter | None]]
    columns: Sequence[tuple[int, Converter]]


def bind_values(spelled: CompiledQuery, query: Query) -> Values:
    """Return a query's values as the driver takes them."""
    given = query.parameters
    if spelled.constants:
        given = {**spelled.constants, **given}
    return [
        convert(given[name]) if convert else given[name] for name, convert in spelled.parameters
    ]


def convert_rows(spelled: CompiledQuery, found: Sequence[Values]) -> Sequence[Values]:
    """Return rows as SQLAlchemy would return them."""
    return [_convert_row(row, spelled.columns) for row in found] if spelled.columns else found


def _convert_row(row: Values, columns: Sequence[tuple[int, Converter]]) -> Values:
    values = list(row)
    for n, convert in columns:
        if (value := values[n]) is not None:
            values[n] = convert(value)
    return values
