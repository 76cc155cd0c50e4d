"""The views. Their queries are in the migrations; `views_metadata` keeps them out of Alembic."""

from sqlalchemy import BigInteger, Column, Double, Integer, MetaData, Table, Text

from .column_types import Id, JsonText, Timestamp

views_metadata = MetaData()

execution_overview = Table(
    "execution_overview",
    views_metadata,
    Column("execution_id", Id(), primary_key=True),
    Column("type", Text(), nullable=False),
    Column("status", Text(), nullable=False),
    Column("attempts", Integer(), nullable=False),
    Column("max_attempts", Integer(), nullable=False),
    Column("worker", Text()),
    Column("progress_current", BigInteger()),
    Column("progress_total", BigInteger()),
    Column("progress_percent", Double()),
    Column("progress_message", Text()),
    Column("error_code", Text()),
    Column("error_message", Text()),
    Column("created_at", Timestamp(), nullable=False),
    Column("updated_at", Timestamp(), nullable=False),
    Column("started_at", Timestamp()),
    Column("completed_at", Timestamp()),
    Column("deadline_at", Timestamp()),
    Column("heartbeat_at", Timestamp()),
    Column("duration_seconds", Double()),
    Column("idempotency_key", Text()),
    Column("parent_id", Id()),
    Column("replay_of", Id()),
    Column("silent_seconds", Double()),
    Column("due_at", Timestamp()),
    Column("due_seconds", Double()),
)

execution_attempts = Table(
    "execution_attempts",
    views_metadata,
    Column("execution_id", Id(), primary_key=True),
    Column("type", Text(), nullable=False),
    Column("attempt", Integer(), primary_key=True),
    Column("worker", Text()),
    Column("started_at", Timestamp(), nullable=False),
    Column("ended_at", Timestamp()),
    Column("duration_seconds", Double()),
    Column("outcome", Text(), nullable=False),
    Column("error", JsonText()),
    Column("error_code", Text()),
    Column("error_message", Text()),
)

execution_timeline = Table(
    "execution_timeline",
    views_metadata,
    Column("execution_id", Id(), primary_key=True),
    Column("type", Text(), nullable=False),
    Column("seq", Integer(), primary_key=True),
    Column("from_status", Text()),
    Column("to_status", Text(), nullable=False),
    Column("attempt", Integer(), nullable=False),
    Column("occurred_at", Timestamp(), nullable=False),
    Column("seconds_since_last", Double()),
    Column("worker", Text()),
    Column("reason", Text()),
    Column("error", JsonText()),
    Column("error_code", Text()),
    Column("error_message", Text()),
    Column("actor", Text()),
)

execution_stats = Table(
    "execution_stats",
    views_metadata,
    Column("type", Text(), primary_key=True),
    Column("status", Text(), primary_key=True),
    Column("count", BigInteger(), nullable=False),
    Column("oldest_created_at", Timestamp(), nullable=False),
    Column("average_seconds", Double()),
    Column("longest_seconds", Double()),
)

overdue_executions = Table(
    "overdue_executions",
    views_metadata,
    Column("execution_id", Id(), primary_key=True),
    Column("type", Text(), nullable=False),
    Column("attempt", Integer(), nullable=False),
    Column("worker", Text()),
    Column("started_at", Timestamp(), nullable=False),
    Column("deadline_at", Timestamp(), nullable=False),
    Column("overdue_seconds", Double(), nullable=False),
)

execution_children = Table(
    "execution_children",
    views_metadata,
    Column("parent_id", Id(), primary_key=True),
    Column("total", BigInteger(), nullable=False),
    Column("finished", BigInteger(), nullable=False),
    Column("percent", Double(), nullable=False),
    Column("pending", BigInteger(), nullable=False),
    Column("running", BigInteger(), nullable=False),
    Column("completed", BigInteger(), nullable=False),
    Column("failed", BigInteger(), nullable=False),
    Column("retrying", BigInteger(), nullable=False),
    Column("timed_out", BigInteger(), nullable=False),
    Column("cancelled", BigInteger(), nullable=False),
)

executions_needing_attention = Table(
    "executions_needing_attention",
    views_metadata,
    Column("execution_id", Id(), primary_key=True),
    Column("type", Text(), nullable=False),
    Column("status", Text(), nullable=False),
    Column("reason", Text(), nullable=False),
    Column("action", Text(), nullable=False),
    Column("since_at", Timestamp(), nullable=False),
    Column("since_seconds", Double(), nullable=False),
    Column("attempts", Integer(), nullable=False),
    Column("max_attempts", Integer(), nullable=False),
    Column("worker", Text()),
    Column("idempotency_key", Text()),
    Column("error_code", Text()),
    Column("error_message", Text()),
)
