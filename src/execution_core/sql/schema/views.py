"""The views, for those who read: what the command line shows. The migrations create them."""

from sqlalchemy import BigInteger, Double, Integer, Text, column, table

from .column_types import Id, JsonText, Timestamp

execution_overview = table(
    "execution_overview",
    column("execution_id", Id()),
    column("type", Text()),
    column("status", Text()),
    column("attempts", Integer()),
    column("max_attempts", Integer()),
    column("worker", Text()),
    column("progress_current", BigInteger()),
    column("progress_total", BigInteger()),
    column("progress_percent", Double()),
    column("progress_message", Text()),
    column("error_code", Text()),
    column("error_message", Text()),
    column("created_at", Timestamp()),
    column("updated_at", Timestamp()),
    column("started_at", Timestamp()),
    column("completed_at", Timestamp()),
    column("deadline_at", Timestamp()),
    column("heartbeat_at", Timestamp()),
    column("retry_at", Timestamp()),
    column("duration_seconds", Double()),
    column("idempotency_key", Text()),
    column("parent_id", Id()),
    column("replay_of", Id()),
)

execution_attempts = table(
    "execution_attempts",
    column("execution_id", Id()),
    column("attempt", Integer()),
    column("worker", Text()),
    column("started_at", Timestamp()),
    column("ended_at", Timestamp()),
    column("duration_seconds", Double()),
    column("outcome", Text()),
    column("error", JsonText()),
)

execution_timeline = table(
    "execution_timeline",
    column("execution_id", Id()),
    column("seq", Integer()),
    column("from_status", Text()),
    column("to_status", Text()),
    column("attempt", Integer()),
    column("occurred_at", Timestamp()),
    column("seconds_since_last", Double()),
    column("worker", Text()),
    column("reason", Text()),
)
