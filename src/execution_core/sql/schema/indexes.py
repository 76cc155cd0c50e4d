"""The indexes of the tables in `schema`, for Alembic to compare; no statement needs to know them.

Apart, because naming a database in an index makes SQLAlchemy import all of its dialect.
"""

from sqlalchemy import Index, Text, func

from .expressions import unindexed
from .tables import executions, metadata

__all__ = ["metadata"]

Index("ix_executions_status_id", executions.c.status, executions.c.id)
# What may be claimed, in the order in which it is claimed; nothing else is in them.
_DUE = func.coalesce(executions.c.retry_at, executions.c.created_at)
_WAITING = unindexed(executions.c.status, type_=Text()).in_(["pending", "retrying"])
Index(
    "ix_executions_due",
    _DUE,
    executions.c.id,
    postgresql_where=_WAITING,
    sqlite_where=_WAITING,
)
Index(
    "ix_executions_type_due",
    executions.c.type,
    _DUE,
    executions.c.id,
    postgresql_where=_WAITING,
    sqlite_where=_WAITING,
)
_BY_TYPE = (executions.c.type, executions.c.status, executions.c.id)
Index("ix_executions_type_status_id", *_BY_TYPE, info={"only": "postgresql"})
# With the times, SQLite answers all of execution_stats from it.
Index(
    "ix_executions_type_status_id_times",
    *_BY_TYPE,
    executions.c.created_at,
    executions.c.started_at,
    executions.c.completed_at,
    info={"only": "sqlite"},
)
Index(
    "ix_executions_parent_id_status_id",
    executions.c.parent_id,
    executions.c.status,
    executions.c.id,
    postgresql_where=executions.c.parent_id.is_not(None),
    sqlite_where=executions.c.parent_id.is_not(None),
)
Index(
    "ix_executions_replay_of",
    executions.c.replay_of,
    postgresql_where=executions.c.replay_of.is_not(None),
    sqlite_where=executions.c.replay_of.is_not(None),
)
Index(
    "ix_executions_completed_at",
    executions.c.completed_at,
    postgresql_where=executions.c.completed_at.is_not(None),
    sqlite_where=executions.c.completed_at.is_not(None),
)
Index(
    "ix_executions_deadline_at",
    executions.c.deadline_at,
    postgresql_where=executions.c.status == "running",
    sqlite_where=executions.c.status == "running",
)
