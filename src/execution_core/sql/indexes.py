"""The indexes of the tables in `schema`, for Alembic to compare; no statement needs to know them.

Apart, because naming a database in an index makes SQLAlchemy import all of its dialect.
"""

from sqlalchemy import Index

from .schema import executions, metadata

__all__ = ["metadata"]

Index("ix_executions_status_id", executions.c.status, executions.c.id)
Index("ix_executions_type_status_id", executions.c.type, executions.c.status, executions.c.id)
Index(
    "ix_executions_parent_id_status_id",
    executions.c.parent_id,
    executions.c.status,
    executions.c.id,
    postgresql_where=executions.c.parent_id.is_not(None),
    sqlite_where=executions.c.parent_id.is_not(None),
)
Index(
    "ix_executions_deadline_at",
    executions.c.deadline_at,
    postgresql_where=executions.c.status == "running",
    sqlite_where=executions.c.status == "running",
)
