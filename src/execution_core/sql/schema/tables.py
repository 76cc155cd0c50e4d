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

# Their conditions stand in the migrations alone: Alembic compares the names.
CHECKS = (
    *("status_known", "attempts_in_range", "max_attempts_positive", "attempts_fit_status"),
    *("started_at_when_started", "completed_at_when_over", "deadline_at_when_limited"),
    *("timeout_positive", "times_in_calendar", "progress_whole", "result_when_completed"),
    *("error_fits_status", "error_has_message", "metadata_is_object", "checkpoints_are_object"),
    *("type_length", "idempotency_key_length", "fingerprint_of_key", "worker_length"),
    *("parent_is_another", "replay_of_another", "heartbeat_at_in_calendar", "retry_at_in_calendar"),
)
# What PostgreSQL's types see to.
CHECKS_OF_SQLITE = ("id_is_uuid", "integers_are_integers", "payload_is_json", "result_is_json")

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
    Column("replay_of", Id, ForeignKey("executions.id", ondelete="SET NULL")),
    Column("metadata", JsonText, nullable=False, server_default=text("'{}'")),
    Column("checkpoints", JsonText, nullable=False, server_default=text("'{}'")),
    Column("progress_current", BigInteger),
    Column("progress_total", BigInteger),
    Column("progress_percent", Double),
    Column("progress_message", Text),
    Column("worker", Text),
    Column("heartbeat_at", Timestamp),
    Column("retry_at", Timestamp),
    Column("write_token", Id),
    UniqueConstraint("idempotency_key"),
    *(CheckConstraint("…", name=name) for name in CHECKS),
    *(CheckConstraint("…", name=name, info={"only": "sqlite"}) for name in CHECKS_OF_SQLITE),
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
)

CHECKS_OF_LOGS = ("level_known", "attempt_counted")
CHECKS_OF_LOGS_IN_SQLITE = ("id_is_uuid", "logged_at_in_calendar", "data_is_json")

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
    *(CheckConstraint("…", name=name) for name in CHECKS_OF_LOGS),
    *(
        CheckConstraint("…", name=name, info={"only": "sqlite"})
        for name in CHECKS_OF_LOGS_IN_SQLITE
    ),
)
