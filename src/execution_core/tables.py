"""The tables and views as SQLAlchemy Tables, for joins, queries and foreign keys.

    from sqlalchemy import select
    from execution_core import tables

    failed = select(tables.executions).where(tables.executions.c.status == "failed")

`for_schema("jobs")` has the same tables in a schema of PostgreSQL.

Ids are texts, times are aware and in UTC, and JSON is parsed, on both databases. The library alone
writes these tables. To look into a JSON column: `type_coerce(tables.executions.c.payload, JSON)`.
"""

from functools import cache
from typing import NamedTuple

from sqlalchemy import MetaData, Table

from .sql.driver.url import schema_name
from .sql.schema.tables import execution_history, execution_logs, executions
from .sql.schema.views import (
    execution_attempts,
    execution_children,
    execution_overview,
    execution_stats,
    execution_timeline,
    executions_needing_attention,
    overdue_executions,
)

__all__ = [
    "execution_attempts",
    "execution_children",
    "execution_history",
    "execution_logs",
    "execution_overview",
    "execution_stats",
    "execution_timeline",
    "executions",
    "executions_needing_attention",
    "overdue_executions",
]


class Tables(NamedTuple):
    """The tables and views of a schema, by the names that they have in this module."""

    execution_attempts: Table
    execution_children: Table
    execution_history: Table
    execution_logs: Table
    execution_overview: Table
    execution_stats: Table
    execution_timeline: Table
    executions: Table
    executions_needing_attention: Table
    overdue_executions: Table


@cache
def for_schema(schema: str) -> Tables:
    """Return the tables and views of a schema of PostgreSQL: `for_schema("jobs").executions`.

    A repeated call returns the same Tables.

    Raises:
        InvalidValue: PostgreSQL cannot have a schema of this name.
    """
    schema, metadata, names = schema_name(schema), MetaData(), globals()
    return Tables(*(names[name].to_metadata(metadata, schema=schema) for name in Tables._fields))
