"""The tables and their constraints, as the newest migration leaves them.

Alembic alone creates them; this is what statements are built from, and what `alembic check`
compares with a database. Triggers and views stand in the migrations.
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from .types import Id, JsonText, Timestamp, database_now

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

executions = Table(
    "executions",
    metadata,
    Column("id", Id, primary_key=True),
    Column("type", Text, nullable=False),
    Column("status", Text, nullable=False, server_default="pending"),
    Column("payload", JsonText),
    Column("result", JsonText),
    Column("error", JsonText),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("max_attempts", Integer, nullable=False, server_default="1"),
    Column("created_at", Timestamp, nullable=False, server_default=database_now()),
    Column("updated_at", Timestamp, nullable=False, server_default=database_now()),
    Column("started_at", Timestamp),
    Column("completed_at", Timestamp),
    Column("deadline_at", Timestamp),
    Column("timeout_ms", BigInteger),
    Column("idempotency_key", Text),
    Column("fingerprint", Text),
    Column("parent_id", Id, ForeignKey("executions.id", ondelete="SET NULL")),
    Column("metadata", JsonText, nullable=False, server_default=text("'{}'")),
    Column("checkpoints", JsonText, nullable=False, server_default=text("'{}'")),
    Column("progress_current", BigInteger),
    Column("progress_total", BigInteger),
    Column("progress_percent", Double),
    Column("progress_message", Text),
    Column("worker", Text),
    UniqueConstraint("idempotency_key"),
    CheckConstraint(
        "status IN ('pending', 'running', 'completed', 'failed', 'retrying', 'timed_out',"
        " 'cancelled')",
        name="status_known",
    ),
    CheckConstraint("attempts BETWEEN 0 AND max_attempts", name="attempts_in_range"),
    CheckConstraint("max_attempts >= 1", name="max_attempts_positive"),
    CheckConstraint(
        "CASE status WHEN 'pending' THEN attempts = 0 WHEN 'cancelled' THEN true"
        " ELSE attempts > 0 END",
        name="attempts_fit_status",
    ),
    CheckConstraint("(attempts > 0) = (started_at IS NOT NULL)", name="started_at_when_started"),
    CheckConstraint(
        "(completed_at IS NOT NULL) ="
        " (status IN ('completed', 'failed', 'timed_out', 'cancelled'))",
        name="completed_at_when_over",
    ),
    CheckConstraint(
        "CASE WHEN status IN ('failed', 'timed_out') THEN error IS NOT NULL"
        " WHEN status = 'retrying' THEN true ELSE error IS NULL END",
        name="error_fits_status",
    ),
    CheckConstraint("error IS NULL OR (error ->> 'message') IS NOT NULL", name="error_has_message"),
    CheckConstraint("result IS NULL OR status = 'completed'", name="result_when_completed"),
    CheckConstraint("deadline_at IS NULL OR started_at IS NOT NULL", name="deadline_when_started"),
    CheckConstraint("timeout_ms > 0", name="timeout_positive"),
    CheckConstraint("length(type) BETWEEN 1 AND 255", name="type_length"),
    CheckConstraint("length(idempotency_key) BETWEEN 1 AND 255", name="idempotency_key_length"),
    CheckConstraint(
        "fingerprint IS NULL OR idempotency_key IS NOT NULL", name="fingerprint_of_key"
    ),
    CheckConstraint("parent_id <> id", name="parent_is_another"),
    # In SQLite the function is json_type, and payload and result must be valid JSON besides.
    CheckConstraint(
        "jsonb_typeof(metadata) = 'object' AND jsonb_typeof(checkpoints) = 'object'", name="json"
    ),
    CheckConstraint(
        "CASE WHEN progress_current IS NULL THEN progress_total IS NULL"
        " AND progress_percent IS NULL AND progress_message IS NULL"
        " ELSE progress_current >= 0 AND progress_total IS NOT NULL AND progress_total >= 0"
        " AND progress_percent IS NOT NULL AND progress_percent BETWEEN 0 AND 100 END",
        name="progress_whole",
    ),
)

Index("ix_executions_status_id", executions.c.status, executions.c.id)
Index("ix_executions_type_id", executions.c.type, executions.c.id)
Index(
    "ix_executions_parent_id",
    executions.c.parent_id,
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

execution_history = Table(
    "execution_history",
    metadata,
    Column("execution_id", Id, ForeignKey("executions.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("from_status", Text),
    Column("to_status", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("occurred_at", Timestamp, nullable=False),
    Column("worker", Text),
    Column("reason", Text),
    Column("error", JsonText),
)
