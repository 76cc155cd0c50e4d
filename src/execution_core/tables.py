"""The tables and views as SQLAlchemy Tables, for joins, queries and foreign keys.

    from sqlalchemy import select
    from execution_core import tables

    failed = select(tables.executions).where(tables.executions.c.status == "failed")

Ids are texts, times are aware and in UTC, and JSON is parsed, on both databases. The library alone
writes these tables. To look into a JSON column: `type_coerce(tables.executions.c.payload, JSON)`.
"""

from .sql.schema.tables import execution_history, execution_logs, executions
from .sql.schema.views import (
    execution_attempts,
    execution_overview,
    execution_stats,
    execution_timeline,
    overdue_executions,
)

__all__ = [
    "execution_attempts",
    "execution_history",
    "execution_logs",
    "execution_overview",
    "execution_stats",
    "execution_timeline",
    "executions",
    "overdue_executions",
]
