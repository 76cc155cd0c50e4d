"""The tables and their constraints, as the newest migration creates them.

Only Alembic creates them. Statements are built from these tables, and `alembic check` compares them
with a database. Triggers and the queries of views are in the migrations.
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from .column_types import Id, JsonText, Timestamp
from .expressions import database_now

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

# The names of the CHECKs; their conditions are in the migrations. Alembic compares names only.
# On PostgreSQL one CHECK calls a function, which names the broken one of CHECKS in its error.
CHECKS = (
    *("status_known", "attempts_in_range", "max_attempts_positive", "attempts_fit_status"),
    *("started_at_when_started", "completed_at_when_finished", "deadline_at_when_limited"),
    *("due_at_when_waiting", "error_fits_status", "error_has_message", "result_when_completed"),
    *("metadata_is_object", "checkpoints_are_object", "timeout_positive", "progress_whole"),
    *("type_length", "idempotency_key_length", "worker_length", "fingerprint_of_key"),
    *("parent_is_another", "replay_of_another"),
    *("created_at_in_calendar", "updated_at_in_calendar", "started_at_in_calendar"),
    *("completed_at_in_calendar", "deadline_at_in_calendar", "heartbeat_at_in_calendar"),
    "due_at_in_calendar",
)
# These replace the column types of PostgreSQL.
SQLITE_CHECKS = ("id_is_uuid", "integers_are_integers", "payload_is_json", "result_is_json")

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
    Column("heartbeat_at", Timestamp),
    Column("due_at", Timestamp, server_default=database_now()),
    Column("timeout_ms", BigInteger),
    Column("idempotency_key", Text),
    Column("fingerprint", Text),
    Column("parent_id", Id, ForeignKey("executions.id", ondelete="SET NULL")),
    Column("replay_of", Id, ForeignKey("executions.id", ondelete="SET NULL")),
    Column("metadata", JsonText, nullable=False, server_default=text("'{}'")),
    Column("checkpoints", JsonText, nullable=False, server_default=text("'{}'")),
    Column("progress_current", BigInteger),
    Column("progress_total", BigInteger),
    Column("progress_percent", Double),
    Column("progress_message", Text),
    Column("worker", Text),
    Column("write_token", Id),
    Column("actor", Text),
    Column("redacted_at", Timestamp),
    Column("awaits_children_since", Timestamp),
    UniqueConstraint("idempotency_key"),
    CheckConstraint("…", name="valid", info={"only": "postgresql"}),
    *(
        CheckConstraint("…", name=name, info={"only": "sqlite"})
        for name in (*CHECKS, *SQLITE_CHECKS)
    ),
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
    Column("write_token", Id),
    Column("actor", Text),
)

LOG_CHECKS = ("level_known", "attempt_counted")
SQLITE_LOG_CHECKS = ("id_is_uuid", "logged_at_in_calendar", "data_is_json")

execution_logs = Table(
    "execution_logs",
    metadata,
    Column("execution_id", Id, ForeignKey("executions.id", ondelete="CASCADE"), primary_key=True),
    Column("id", Id, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("logged_at", Timestamp, nullable=False, server_default=database_now()),
    Column("level", Text, nullable=False, server_default="info"),
    Column("message", Text, nullable=False),
    Column("data", JsonText),
    *(CheckConstraint("…", name=name) for name in LOG_CHECKS),
    *(CheckConstraint("…", name=name, info={"only": "sqlite"}) for name in SQLITE_LOG_CHECKS),
)
