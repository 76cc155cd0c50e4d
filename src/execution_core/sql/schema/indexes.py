"""The indexes of the tables, for Alembic to compare.

They are not in `tables`: an index that names a database makes SQLAlchemy import its dialect.
"""

from typing import Any

from sqlalchemy import ColumnElement, Index

from .tables import execution_history, executions, metadata

__all__ = ["metadata"]


def _partial(condition: ColumnElement[bool]) -> dict[str, Any]:
    return {"postgresql_where": condition, "sqlite_where": condition}


c = executions.c
Index("ix_executions_status_id", c.status, c.id)
# In the order of claims. Only executions that can be claimed are in these two.
_WAITING = _partial(c.status.in_(["pending", "retrying"]))
Index("ix_executions_due", c.due_at, c.id, **_WAITING)
Index("ix_executions_type_due", c.type, c.due_at, c.id, **_WAITING)
_BY_TYPE = (c.type, c.status, c.id)
Index("ix_executions_type_status_id", *_BY_TYPE, info={"only": "postgresql"})
# With the times, SQLite answers all of execution_stats from this index.
_TIMES = (c.created_at, c.started_at, c.completed_at)
Index("ix_executions_type_status_id_times", *_BY_TYPE, *_TIMES, info={"only": "sqlite"})
_CHILDREN = _partial(c.parent_id.is_not(None))
Index("ix_executions_parent_id_status_id", c.parent_id, c.status, c.id, **_CHILDREN)
Index(
    "ix_executions_awaits_children_since",
    c.awaits_children_since,
    **_partial((c.status == "running") & c.awaits_children_since.is_not(None)),
)
Index("ix_executions_replay_of", c.replay_of, **_partial(c.replay_of.is_not(None)))
Index("ix_executions_completed_at", c.completed_at, **_partial(c.completed_at.is_not(None)))
Index("ix_executions_deadline_at", c.deadline_at, **_partial(c.status == "running"))
# Of claims and sweeps: the only writes that are looked up without the id of an execution.
h = execution_history.c
Index(
    "ix_execution_history_write_token",
    h.write_token,
    postgresql_where=h.to_status.in_(["running", "timed_out", "retrying"]),
    info={"only": "postgresql"},
)
