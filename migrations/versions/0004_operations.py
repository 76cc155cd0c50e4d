"""Logs, replays, retention, and what people read without what they must not."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "execution_core_0004"
down_revision = "execution_core_0003"
branch_labels = None
depends_on = None

Id = sa.Text().with_variant(postgresql.UUID(as_uuid=False), "postgresql")
Time = sa.Text().with_variant(sa.DateTime(timezone=True), "postgresql")
Json = sa.Text().with_variant(postgresql.JSONB(), "postgresql")


def is_postgresql() -> bool:
    """Tell which of the two databases this is."""
    return op.get_context().dialect.name == "postgresql"


def now() -> str:
    """SQL for the time of the statement."""
    return "statement_timestamp()" if is_postgresql() else "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"


def seconds(start: str, end: str) -> str:
    """SQL for the seconds between two times, as a number with milliseconds."""
    if is_postgresql():
        return f"round(extract(epoch FROM {end} - {start})::numeric, 3)::double precision"
    return f"round((julianday({end}) - julianday({start})) * 86400.0, 3)"


HEX = "[0-9a-f]"
UUID = "-".join(HEX * length for length in (8, 4, 4, 4, 12))

CHECKS = {
    "level_known": "level IN ('debug', 'info', 'warning', 'error', 'critical')",
    "attempt_counted": "attempt >= 0",
}
CHECKS_SQLITE = CHECKS | {
    "id_is_uuid": f"id GLOB '{UUID}'",
    "logged_at_in_calendar": "coalesce(logged_at BETWEEN '0001-01-02' AND '9999-12-30'"
    " AND strftime('%Y-%m-%dT%H:%M:%fZ', logged_at, '+0 days') = logged_at, false)",
    "data_is_json": "data IS NULL OR json_valid(data)",
}

INDEXES = {
    "ix_executions_replay_of": ("replay_of", "replay_of IS NOT NULL"),
    # For retention, and for what was finished in the last hour or day.
    "ix_executions_completed_at": ("completed_at", "completed_at IS NOT NULL"),
}

# Each statement of a function sees what was committed before it, and not only before the statement
# that called it. What names the execution will lose the link, and so is locked here: a child may be
# retried meanwhile, and whoever waited for it could wait for each other. In other hands is in use.
IN_USE = """
CREATE FUNCTION execution_core_in_use(parent uuid) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT AS $$
DECLARE
    held bigint;
BEGIN
    IF EXISTS (
        SELECT 1 FROM executions AS child
         WHERE child.parent_id = parent AND child.status IN ('pending', 'running', 'retrying')
    ) THEN
        RETURN true;
    END IF;
    PERFORM 1 FROM executions AS linked
      WHERE linked.parent_id = parent OR linked.replay_of = parent
        FOR NO KEY UPDATE SKIP LOCKED;
    GET DIAGNOSTICS held = ROW_COUNT;
    RETURN (
        SELECT count(*) <> held OR count(*) FILTER (
                   WHERE linked.parent_id = parent
                     AND linked.status IN ('pending', 'running', 'retrying')
               ) > 0
          FROM executions AS linked
         WHERE linked.parent_id = parent OR linked.replay_of = parent
    );
END
$$
"""

# For hosts that leave foreign keys off.
FORGET = """
CREATE TRIGGER execution_core_forget AFTER DELETE ON executions
BEGIN
    DELETE FROM execution_history WHERE execution_id = OLD.id;
    DELETE FROM execution_logs WHERE execution_id = OLD.id;
    UPDATE executions SET parent_id = NULL WHERE parent_id = OLD.id;
    UPDATE executions SET replay_of = NULL WHERE replay_of = OLD.id;
END
"""
FORGET_BEFORE = """
CREATE TRIGGER execution_core_forget AFTER DELETE ON executions
BEGIN
    DELETE FROM execution_history WHERE execution_id = OLD.id;
    UPDATE executions SET parent_id = NULL WHERE parent_id = OLD.id;
END
"""


ERROR = (
    ",\n               {0}.error ->> 'code' AS error_code, {0}.error ->> 'message' AS error_message"
)


def changed_views(*, errors: bool) -> dict[str, str]:
    """The names and queries of the views that get the error in parts, with and without them."""
    ended, h = (ERROR.format("ended"), ERROR.format("h")) if errors else ("", "")
    return {
        "execution_attempts": f"""
        SELECT e.id AS execution_id, e.type, began.attempt, began.worker,
               began.occurred_at AS started_at, ended.occurred_at AS ended_at,
               {seconds("began.occurred_at", "ended.occurred_at")} AS duration_seconds,
               CASE ended.to_status WHEN 'retrying' THEN 'failed'
                    ELSE coalesce(ended.to_status, 'running') END AS outcome,
               ended.error{ended}
          FROM execution_history AS began
          JOIN executions AS e ON e.id = began.execution_id
          LEFT JOIN execution_history AS ended
            ON ended.execution_id = began.execution_id AND ended.seq = began.seq + 1
         WHERE began.to_status = 'running'""",
        "execution_timeline": f"""
        SELECT h.execution_id, e.type, h.seq, h.from_status, h.to_status, h.attempt, h.occurred_at,
               {seconds("last.occurred_at", "h.occurred_at")} AS seconds_since_last,
               h.worker, h.reason, h.error{h}
          FROM execution_history AS h
          JOIN executions AS e ON e.id = h.execution_id
          LEFT JOIN execution_history AS last
            ON last.execution_id = h.execution_id AND last.seq = h.seq - 1""",
    }


def overview() -> str:
    """The query of the new view: what a list shows of an execution, and nothing of its data."""
    later = "greatest" if is_postgresql() else "max"
    sign_of_life = (
        "CASE WHEN heartbeat_at >= started_at THEN heartbeat_at"
        f" ELSE {later}(started_at, updated_at) END"
    )
    due = "coalesce(retry_at, created_at)"
    return f"""
        SELECT id AS execution_id, type, status, attempts, max_attempts, worker,
               progress_current, progress_total, progress_percent, progress_message,
               error ->> 'code' AS error_code, error ->> 'message' AS error_message,
               created_at, updated_at, started_at, completed_at, deadline_at, heartbeat_at,
               retry_at,
               CASE WHEN status = 'running' THEN {seconds("started_at", now())}
                    ELSE {seconds("started_at", "completed_at")} END AS duration_seconds,
               idempotency_key, parent_id, replay_of,
               CASE WHEN status = 'running' THEN {seconds(f"({sign_of_life})", now())}
                    END AS silent_seconds,
               CASE WHEN status IN ('pending', 'retrying') THEN {due} END AS due_at,
               CASE WHEN status IN ('pending', 'retrying') THEN {seconds(due, now())}
                    END AS due_seconds
          FROM executions"""


# What PostgreSQL shows of each table and view, and of the columns that follow.
RELATIONS = {
    "executions": """One row for each execution, as it stands now.
        id type status payload result error attempts max_attempts created_at updated_at started_at
        completed_at deadline_at timeout_ms idempotency_key fingerprint parent_id replay_of metadata
        checkpoints progress_current progress_total progress_percent progress_message worker
        heartbeat_at retry_at""",
    "execution_history": """One row for each move, the creation first; written by a trigger alone.
        execution_id seq from_status to_status attempt occurred_at worker reason error""",
    "execution_logs": """One row for each line that was logged.
        execution_id id attempt logged_at level message data""",
    "execution_overview": """One row for each execution, with nothing of its data.
        execution_id type status attempts max_attempts worker progress_current progress_total
        progress_percent progress_message error_code error_message created_at updated_at started_at
        completed_at deadline_at heartbeat_at retry_at duration_seconds idempotency_key parent_id
        replay_of silent_seconds due_at due_seconds""",
    "execution_attempts": """One row for each attempt.
        execution_id type attempt worker started_at ended_at duration_seconds outcome error
        error_code error_message""",
    "execution_timeline": """One row for each move, with the time since the one before.
        execution_id type seq from_status to_status attempt occurred_at seconds_since_last worker
        reason error error_code error_message""",
    "execution_stats": """One row for each type and status. It reads the whole table.
        type status count oldest_created_at average_seconds longest_seconds""",
    "overdue_executions": """One row for each running execution that is past its deadline.
        execution_id type attempt worker started_at deadline_at overdue_seconds""",
}
# By column; where one means something else in a table, by table and column.
MEANINGS = {
    "execution_id": "The execution: executions.id.",
    "id": "A UUIDv7: ids sort by the time of creation.",
    "type": "What kind of work it is.",
    "status": "pending, running, retrying, completed, failed, timed_out or cancelled.",
    "payload": "What to do: any JSON value.",
    "result": "What came of it: any JSON value, once completed.",
    "error": "Why the attempt failed: message; code, stack and retryable where they are known.",
    "error_code": "The short name of the error, such as the class of the exception.",
    "error_message": "What the error says.",
    "attempts": "How often it was started: the number of the current or last attempt.",
    "max_attempts": "How often it may be started.",
    "attempt": "The number of the attempt, from 1.",
    "execution_history.attempt": "How often it had been started: 0 before the first attempt.",
    "execution_timeline.attempt": "How often it had been started: 0 before the first attempt.",
    "execution_logs.attempt": "How often it had been started: 0 before the first attempt.",
    "created_at": "When it was created.",
    "updated_at": "When it last changed.",
    "started_at": "When the current or last attempt started.",
    "execution_attempts.started_at": "When the attempt started.",
    "ended_at": "When the attempt ended; NULL while it runs.",
    "completed_at": "When it came to rest: completed, failed, timed out or cancelled.",
    "deadline_at": "When the current or last attempt is overdue.",
    "heartbeat_at": "When an attempt last gave a sign of life.",
    "retry_at": "While it waits: not to be claimed before; NULL: at any time.",
    "timeout_ms": "How long one attempt may take, in milliseconds.",
    "idempotency_key": "What makes its creation safe to repeat.",
    "fingerprint": "For the library alone: tells a repeated creation from another one.",
    "parent_id": "The execution that this one belongs to.",
    "replay_of": "The execution that this one does again.",
    "metadata": "The host's own: a JSON object; cancellation_reason says why it was cancelled.",
    "checkpoints": "What an attempt leaves for the next one: a JSON object.",
    "progress_current": "How much of it is done.",
    "progress_total": "How much there is to do.",
    "progress_percent": "How far it is: 0 to 100.",
    "progress_message": "How far it is, in words.",
    "worker": "Who runs, or last ran it, by a name of its own.",
    "execution_attempts.worker": "Who started the attempt.",
    "seq": "Counts the moves of an execution, from 1.",
    "from_status": "The status before; NULL for the creation.",
    "to_status": "The status after.",
    "occurred_at": "When it moved.",
    "reason": "Why it was cancelled.",
    "logged_at": "When it was logged.",
    "level": "debug, info, warning, error or critical.",
    "message": "The line.",
    "data": "What belongs to it: any JSON value.",
    "duration_seconds": "From start to end, of the current or last attempt; to now while it runs.",
    "execution_attempts.duration_seconds": "From start to end; NULL while it runs.",
    "silent_seconds": "While it runs: since its start or last sign of life, whichever is later.",
    "due_at": "While it waits: from when on it is claimed.",
    "due_seconds": "While it waits: since due_at; below 0 it has to wait for so long.",
    "outcome": "running, completed, failed, timed_out or cancelled.",
    "seconds_since_last": "Since the move before.",
    "count": "How many there are.",
    "oldest_created_at": "When the oldest of them was created.",
    "average_seconds": "Their duration_seconds on average.",
    "longest_seconds": "Their longest duration_seconds.",
    "overdue_seconds": "How long ago its deadline was.",
}


TABLES = ("executions", "execution_history", "execution_logs")


def comment(*, on: bool) -> None:
    """Set all comments, or take them away."""
    for relation, described in RELATIONS.items():
        meaning, *columns = described.splitlines()
        said = {f"{'TABLE' if relation in TABLES else 'VIEW'} {relation}": meaning}
        for column in " ".join(columns).split():
            own = MEANINGS.get(f"{relation}.{column}")
            said[f"COLUMN {relation}.{column}"] = own or MEANINGS[column]
        for what, text in said.items():
            quoted = text.replace("'", "''")
            op.execute(f"COMMENT ON {what} IS " + (f"'{quoted}'" if on else "NULL"))


def upgrade() -> None:
    # In SQLite all of it is part of the column: any other way copies the whole table.
    op.execute(
        f"ALTER TABLE executions ADD COLUMN replay_of {'uuid' if is_postgresql() else 'TEXT'}"
        " CONSTRAINT ck_executions_replay_of_another CHECK (replay_of <> id)"
        " CONSTRAINT fk_executions_replay_of REFERENCES executions (id) ON DELETE SET NULL"
    )
    for name, (column, where) in INDEXES.items():
        condition = sa.text(where)
        op.create_index(
            name, "executions", [column], postgresql_where=condition, sqlite_where=condition
        )
    op.create_table(
        "execution_logs",
        sa.Column("execution_id", Id, nullable=False),
        sa.Column("id", Id, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("logged_at", Time, nullable=False, server_default=sa.text(f"({now()})")),
        sa.Column("level", sa.Text, nullable=False, server_default="info"),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("data", Json),
        sa.PrimaryKeyConstraint("execution_id", "id", name="pk_execution_logs"),
        sa.ForeignKeyConstraint(
            ["execution_id"],
            ["executions.id"],
            name="fk_execution_logs_execution_id",
            ondelete="CASCADE",
        ),
        *(
            sa.CheckConstraint(rule, op.f(f"ck_execution_logs_{name}"))
            for name, rule in (CHECKS if is_postgresql() else CHECKS_SQLITE).items()
        ),
    )
    if is_postgresql():
        op.execute(IN_USE)
    else:
        op.execute("DROP TRIGGER execution_core_forget")
        op.execute(FORGET)
        for name in changed_views(errors=True):
            op.execute(f"DROP VIEW {name}")
    # Replaced where that can be done: views of the host's own may be built upon them.
    create = "CREATE OR REPLACE VIEW" if is_postgresql() else "CREATE VIEW"
    for name, query in changed_views(errors=True).items():
        op.execute(f"{create} {name} AS {query}")
    op.execute(f"CREATE VIEW execution_overview AS {overview()}")
    if is_postgresql():
        comment(on=True)


def downgrade() -> None:
    if is_postgresql():
        comment(on=False)
    op.execute("DROP VIEW execution_overview")
    for name, query in changed_views(errors=False).items():
        op.execute(f"DROP VIEW {name}")
        op.execute(f"CREATE VIEW {name} AS {query}")
    if is_postgresql():
        op.execute("DROP FUNCTION execution_core_in_use(uuid)")
    else:
        op.execute("DROP TRIGGER execution_core_forget")
        op.execute(FORGET_BEFORE)
    op.drop_table("execution_logs")
    for name in INDEXES:
        op.drop_index(name, "executions")
    op.execute("ALTER TABLE executions DROP COLUMN replay_of")
