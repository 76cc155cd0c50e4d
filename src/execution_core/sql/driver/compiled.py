"""A statement compiled for a dialect: its text, its parameters and its result columns."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from sqlalchemy import Dialect

from ..statements.queries import Query, Rows, Statement

_FLOAT8: Final = 701  # the type code of the only column whose converter needs one
_ANY_SCHEMA: Final = "{schema}"
"""Stands for the schema in a compiled text, so that all schemas share what was compiled."""
Converter = Callable[[Any], Any]


class CompiledQuery(NamedTuple):
    """The SQL text of a statement, and the converters of its parameters and result columns."""

    text: str
    constants: Mapping[str, Any]
    parameters: Sequence[tuple[str, Converter | None]]
    columns: Sequence[tuple[int, Converter]]

    def bind(self, query: Query) -> Sequence[Any]:
        """Return the parameters of a query in the order and types that the driver expects."""
        given = query.parameters
        if self.constants:
            given = {**self.constants, **given}
        return [
            convert(given[name]) if convert else given[name] for name, convert in self.parameters
        ]

    def convert(self, rows: Rows) -> Rows:
        """Return rows of the driver with the values that SQLAlchemy would return."""
        return [self._convert_row(row) for row in rows] if self.columns else rows

    def _convert_row(self, row: Sequence[Any]) -> Sequence[Any]:
        values = list(row)
        for n, convert in self.columns:
            if (value := values[n]) is not None:
                values[n] = convert(value)
        return values


_compiled: dict[tuple[Statement, type[Dialect], bool], CompiledQuery] = {}


def compile_query(
    query: Query, dialect_type: type[Dialect], schema: str | None = None
) -> CompiledQuery:
    """Compile the statement of a query, once for all engines of a dialect and for all schemas."""
    qualified = schema is not None
    key = query.statement, dialect_type, qualified
    compiled = _compiled.get(key)
    if compiled is None:
        compiled = _compiled.setdefault(key, _compile(query, dialect_type, qualified))
    if schema is None:
        return compiled
    return compiled._replace(text=compiled.text.replace(_quote(_ANY_SCHEMA), _quote(schema)))


def _quote(schema: str) -> str:
    """Quote a name for the drivers of PostgreSQL, to which a single % begins a parameter."""
    return '"' + schema.replace('"', '""').replace("%", "%%") + '"'


def _compile(query: Query, dialect_type: type[Dialect], qualified: bool) -> CompiledQuery:
    statement, create_dialect = query.statement, cast("Callable[..., Dialect]", dialect_type)
    # Positional parameters: the driver need not look up names.
    style = "qmark" if dialect_type.name == "sqlite" else "format"
    dialect = create_dialect(paramstyle=style)
    schemas: dict[str, Any] = {"schema_translate_map": {None: _ANY_SCHEMA}} if qualified else {}
    compiled: Any = statement.compile(dialect=dialect, render_schema_translate=qualified, **schemas)
    parameters = [
        (name, compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
        for name in compiled.positiontup
    ]
    converters = [
        column.type.dialect_impl(dialect).result_processor(dialect, _FLOAT8)
        for column in statement.exported_columns
    ]
    columns = [(n, convert) for n, convert in enumerate(converters) if convert]
    constants = {  # such as the OFFSET 0 that SQLAlchemy adds to LIMIT on SQLite
        name: compiled.params[name] for name, _ in parameters if name not in query.parameters
    }
    return CompiledQuery(str(compiled), constants, parameters, columns)
