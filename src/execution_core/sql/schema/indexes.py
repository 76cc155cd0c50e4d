"""The indexes of the tables, for Alembic to compare.

They are not in `tables`: an index that names a database makes SQLAlchemy import its dialect.
"""

from sqlalchemy import Index

from .tables import executions, metadata

__all__ = ["metadata"]

Index("ix_executions_status_id", executions.c.status, executions.c.id)
# In the order of claims. Only executions that can be claimed are in these two.
_WAITING = executions.c.status.in_(["pending", "retrying"])
Index(
    "ix_executions_due",
    executions.c.due_at,
    executions.c.id,
    postgresql_where=_WAITING,
    sqlite_where=_WAITING,
)
Index(
    "ix_executions_type_due",
    executions.c.type,
    executions.c.due_at,
    executions.c.id,
    postgresql_where=_WAITING,
    sqlite_where=_WAITING,
)
_BY_TYPE = (executions.c.type, executions.c.status, executions.c.id)
Index("ix_executions_type_status_id", *_BY_TYPE, info={"only": "postgresql"})
# With the times, SQLite answers all of execution_stats from this index.
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
