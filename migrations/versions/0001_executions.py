"""Executions, their history, and the views on both."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "execution_core_0001"
down_revision = None
branch_labels = ("execution_core",)
depends_on = None

Id = sa.Text().with_variant(postgresql.UUID(as_uuid=False), "postgresql")
Time = sa.Text().with_variant(sa.DateTime(timezone=True), "postgresql")
Json = sa.Text().with_variant(postgresql.JSONB(), "postgresql")


def is_postgresql() -> bool:
    """Tell which of the two databases this is; Alembic also loads this file without one."""
    return op.get_context().dialect.name == "postgresql"


def now() -> str:
    """SQL for the time of the statement."""
    return "statement_timestamp()" if is_postgresql() else "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"


def seconds(start: str, end: str) -> str:
    """SQL for the seconds between two times, as a number with milliseconds."""
    if is_postgresql():
        return f"round(extract(epoch FROM {end} - {start})::numeric, 3)::double precision"
    return f"round((julianday({end}) - julianday({start})) * 86400.0, 3)"


CHECKS = {
    "status_known": "status IN ('pending', 'running', 'completed', 'failed', 'retrying',"
    " 'timed_out', 'cancelled')",
    "attempts_in_range": "attempts BETWEEN 0 AND max_attempts",
    "max_attempts_positive": "max_attempts >= 1",
    "attempts_fit_status": "CASE status WHEN 'pending' THEN attempts = 0"
    " WHEN 'cancelled' THEN true WHEN 'retrying' THEN attempts > 0 AND attempts < max_attempts"
    " ELSE attempts > 0 END",
    "started_at_when_started": "(attempts > 0) = (started_at IS NOT NULL)",
    "completed_at_when_over": "(completed_at IS NOT NULL) ="
    " (status IN ('completed', 'failed', 'timed_out', 'cancelled'))",
    "deadline_at_when_limited": "(deadline_at IS NOT NULL) ="
    " (timeout_ms IS NOT NULL AND attempts > 0)",
    "error_fits_status": "CASE WHEN status IN ('failed', 'timed_out') THEN error IS NOT NULL"
    " WHEN status = 'retrying' THEN true ELSE error IS NULL END",
    "result_when_completed": "result IS NULL OR status = 'completed'",
    "timeout_positive": "timeout_ms > 0",
    "type_length": "length(type) BETWEEN 1 AND 255",
    "idempotency_key_length": "length(idempotency_key) BETWEEN 1 AND 255",
    "worker_length": "length(worker) BETWEEN 1 AND 255",
    "fingerprint_of_key": "fingerprint IS NULL OR idempotency_key IS NOT NULL",
    "parent_is_another": "parent_id <> id",
    "progress_whole": "CASE WHEN progress_current IS NULL THEN progress_total IS NULL"
    " AND progress_percent IS NULL AND progress_message IS NULL"
    " ELSE progress_current >= 0 AND progress_total IS NOT NULL AND progress_total >= 0"
    " AND progress_percent IS NOT NULL AND progress_percent BETWEEN 0 AND 100 END",
}

TIMES = ("created_at", "updated_at", "started_at", "completed_at", "deadline_at")

CHECKS_POSTGRESQL = CHECKS | {
    "error_has_message": "error IS NULL"
    " OR coalesce(jsonb_typeof(error -> 'message') = 'string', false)",
    "metadata_is_object": "jsonb_typeof(metadata) = 'object'",
    "checkpoints_are_object": "jsonb_typeof(checkpoints) = 'object'",
    "times_in_calendar": " AND ".join(
        f"({time} IS NULL OR {time} BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00')"
        for time in TIMES
    ),
}

HEX = "[0-9a-f]"
UUID = "-".join(HEX * length for length in (8, 4, 4, 4, 12))
INTEGERS = ("attempts", "max_attempts", "timeout_ms", "progress_current", "progress_total")

# What PostgreSQL's types see to has to be said in SQLite. One column to a CHECK where it is large:
# SQLite evaluates those whose columns a statement writes.
CHECKS_SQLITE = CHECKS | {
    "error_has_message": "error IS NULL OR coalesce(json_type(error, '$.message') = 'text', false)",
    "metadata_is_object": "json_type(metadata) = 'object'",
    "checkpoints_are_object": "json_type(checkpoints) = 'object'",
    "payload_is_json": "payload IS NULL OR json_valid(payload)",
    "result_is_json": "result IS NULL OR json_valid(result)",
    "id_is_uuid": f"id GLOB '{UUID}'",
    "times_in_calendar": " AND ".join(
        f"({time} IS NULL OR {time} GLOB '????-??-??T??:??:??.???Z'"
        f" AND julianday({time}) IS NOT NULL)"
        for time in TIMES
    ),
    "integers_are_integers": " AND ".join(
        f"typeof({number}) IN ('integer', 'null')" for number in INTEGERS
    ),
}


def checks() -> dict[str, str]:
    """The names and conditions of the CHECKs."""
    return CHECKS_POSTGRESQL if is_postgresql() else CHECKS_SQLITE


def views() -> dict[str, str]:
    """The names and queries of the views."""
    return {
        "execution_attempts": f"""
        SELECT e.id AS execution_id, e.type, began.attempt, began.worker,
               began.occurred_at AS started_at, ended.occurred_at AS ended_at,
               {seconds("began.occurred_at", "ended.occurred_at")} AS duration_seconds,
               CASE ended.to_status WHEN 'retrying' THEN 'failed'
                    ELSE coalesce(ended.to_status, 'running') END AS outcome,
               ended.error
          FROM execution_history AS began
          JOIN executions AS e ON e.id = began.execution_id
          LEFT JOIN execution_history AS ended
            ON ended.execution_id = began.execution_id AND ended.seq = began.seq + 1
         WHERE began.to_status = 'running'""",
        "execution_timeline": f"""
        SELECT h.execution_id, e.type, h.seq, h.from_status, h.to_status, h.attempt, h.occurred_at,
               {seconds("last.occurred_at", "h.occurred_at")} AS seconds_since_last,
               h.worker, h.reason, h.error
          FROM execution_history AS h
          JOIN executions AS e ON e.id = h.execution_id
          LEFT JOIN execution_history AS last
            ON last.execution_id = h.execution_id AND last.seq = h.seq - 1""",
        "execution_stats": f"""
        SELECT type, status, count(*) AS count, min(created_at) AS oldest_created_at,
               avg(duration_seconds) AS average_seconds, max(duration_seconds) AS longest_seconds
          FROM (SELECT type, status, created_at,
                       CASE WHEN status = 'running' THEN {seconds("started_at", now())}
                            ELSE {seconds("started_at", "completed_at")} END AS duration_seconds
                  FROM executions) AS measured
         GROUP BY type, status""",
        "overdue_executions": f"""
        SELECT id AS execution_id, type, attempts AS attempt, worker, started_at, deadline_at,
               {seconds("deadline_at", now())} AS overdue_seconds
          FROM executions
         WHERE status = 'running' AND deadline_at < {now()}""",
    }


HISTORY_COLUMNS = (
    "execution_id, seq, from_status, to_status, attempt, occurred_at, worker, reason, error"
)

# A hand that moves an execution without touching updated_at still gets a true time. The row lock of
# the move makes the highest seq plus one safe. The path is pinned, so that a move by a qualified
# name finds the history from any schema.
RECORD_POSTGRESQL = f"""
CREATE FUNCTION execution_core_record_move() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO execution_history ({HISTORY_COLUMNS})
    VALUES (
        NEW.id,
        CASE TG_OP WHEN 'INSERT' THEN 1 ELSE (
            SELECT coalesce(max(seq), 0) + 1 FROM execution_history WHERE execution_id = NEW.id
        ) END,
        CASE TG_OP WHEN 'UPDATE' THEN OLD.status END,
        NEW.status,
        NEW.attempts,
        CASE WHEN TG_OP = 'UPDATE' AND NEW.updated_at = OLD.updated_at
             THEN greatest(statement_timestamp(), NEW.updated_at) ELSE NEW.updated_at END,
        NEW.worker,
        CASE NEW.status WHEN 'cancelled' THEN NEW.metadata ->> 'cancellation_reason' END,
        NEW.error
    );
    RETURN NULL;
END
$$
"""

TRIGGERS_POSTGRESQL = {
    "execution_core_record_creation": """
        AFTER INSERT ON executions
        FOR EACH ROW EXECUTE FUNCTION execution_core_record_move()""",
    "execution_core_record_move": """
        AFTER UPDATE OF status ON executions
        FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status)
        EXECUTE FUNCTION execution_core_record_move()""",
}

REASON = "CASE NEW.status WHEN 'cancelled' THEN NEW.metadata ->> 'cancellation_reason' END"

TRIGGERS_SQLITE = {
    "execution_core_record_creation": f"""
        AFTER INSERT ON executions
        BEGIN
            INSERT INTO execution_history ({HISTORY_COLUMNS})
            VALUES (NEW.id, 1, NULL, NEW.status, NEW.attempts, NEW.updated_at, NEW.worker,
                    {REASON}, NEW.error);
        END""",
    "execution_core_record_move": f"""
        AFTER UPDATE OF status ON executions WHEN OLD.status IS NOT NEW.status
        BEGIN
            INSERT INTO execution_history ({HISTORY_COLUMNS})
            VALUES (NEW.id,
                    (SELECT coalesce(max(seq), 0) + 1 FROM execution_history
                      WHERE execution_id = NEW.id),
                    OLD.status, NEW.status, NEW.attempts,
                    CASE WHEN NEW.updated_at = OLD.updated_at
                         THEN max(strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), NEW.updated_at)
                         ELSE NEW.updated_at END,
                    NEW.worker, {REASON}, NEW.error);
        END""",
    # For hosts that leave foreign keys off.
    "execution_core_forget": """
        AFTER DELETE ON executions
        BEGIN
            DELETE FROM execution_history WHERE execution_id = OLD.id;
            UPDATE executions SET parent_id = NULL WHERE parent_id = OLD.id;
        END""",
}


def triggers() -> dict[str, str]:
    """The names and bodies of the triggers."""
    return TRIGGERS_POSTGRESQL if is_postgresql() else TRIGGERS_SQLITE


def upgrade() -> None:
    op.create_table(
        "executions",
        sa.Column("id", Id, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False, server_default="pending"),
        sa.Column("payload", Json),
        sa.Column("result", Json),
        sa.Column("error", Json),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("max_attempts", sa.Integer, nullable=False, server_default="1"),
        sa.Column("created_at", Time, nullable=False, server_default=sa.text(f"({now()})")),
        sa.Column("updated_at", Time, nullable=False, server_default=sa.text(f"({now()})")),
        sa.Column("started_at", Time),
        sa.Column("completed_at", Time),
        sa.Column("deadline_at", Time),
        sa.Column("timeout_ms", sa.BigInteger),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("fingerprint", sa.Text),
        sa.Column("parent_id", Id),
        sa.Column("metadata", Json, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("checkpoints", Json, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("progress_current", sa.BigInteger),
        sa.Column("progress_total", sa.BigInteger),
        sa.Column("progress_percent", sa.Double),
        sa.Column("progress_message", sa.Text),
        sa.Column("worker", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_executions"),
        sa.UniqueConstraint("idempotency_key", name="uq_executions_idempotency_key"),
        sa.ForeignKeyConstraint(
            ["parent_id"],
            ["executions.id"],
            name="fk_executions_parent_id",
            ondelete="SET NULL",
        ),
        *(
            sa.CheckConstraint(rule, op.f(f"ck_executions_{name}"))
            for name, rule in checks().items()
        ),
    )
    op.create_index("ix_executions_status_id", "executions", ["status", "id"])
    op.create_index("ix_executions_type_id", "executions", ["type", "id"])
    for name, columns, where in (
        ("ix_executions_parent_id", ["parent_id", "id"], "parent_id IS NOT NULL"),
        ("ix_executions_deadline_at", ["deadline_at"], "status = 'running'"),
    ):
        op.create_index(
            name,
            "executions",
            columns,
            postgresql_where=sa.text(where),
            sqlite_where=sa.text(where),
        )
    op.create_table(
        "execution_history",
        sa.Column("execution_id", Id, nullable=False),
        sa.Column("seq", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("from_status", sa.Text),
        sa.Column("to_status", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("occurred_at", Time, nullable=False),
        sa.Column("worker", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("error", Json),
        sa.PrimaryKeyConstraint("execution_id", "seq", name="pk_execution_history"),
        sa.ForeignKeyConstraint(
            ["execution_id"],
            ["executions.id"],
            name="fk_execution_history_execution_id",
            ondelete="CASCADE",
        ),
    )
    if is_postgresql():
        op.execute(RECORD_POSTGRESQL)
    for name, body in triggers().items():
        op.execute(f"CREATE TRIGGER {name} {body}")
    for name, query in views().items():
        op.execute(f"CREATE VIEW {name} AS {query}")


def downgrade() -> None:
    for name in views():
        op.execute(f"DROP VIEW {name}")
    # Before the tables: dropping executions would set off the trigger on its rows in SQLite.
    for name in triggers():
        op.execute(f"DROP TRIGGER {name}" + (" ON executions" if is_postgresql() else ""))
    if is_postgresql():
        op.execute("DROP FUNCTION execution_core_record_move()")
    op.drop_table("execution_history")
    op.drop_table("executions")
