"""Record who made a transition, show what needs attention, let children end a parent."""

import sqlalchemy as sa
from alembic import op

Time = sa.Text().with_variant(sa.DateTime(timezone=True), "postgresql")

revision = "execution_core_0002"
down_revision = "execution_core_0001"
branch_labels = None
depends_on = None

WRITE_TOKEN_INDEX = "ix_execution_history_write_token"  # noqa: S105 - no password
STARTED = "to_status IN ('running', 'timed_out')"
STARTED_OR_RETRIED = "to_status IN ('running', 'timed_out', 'retrying')"
FUNCTION = "execution_core_record_transition"
TRIGGERS = {
    "execution_core_record_creation": "INSERT ON executions FOR EACH ROW",
    FUNCTION: "UPDATE ON executions FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status)",
}
COLUMNS = (
    "execution_id, seq, from_status, to_status, attempt, occurred_at, worker, reason, error,"
    " write_token"
)
REASON = "CASE NEW.status WHEN 'cancelled' THEN NEW.metadata ->> 'cancellation_reason' END"
# A manual UPDATE leaves the write_token, and with it the actor, of the write before.
POSTGRESQL = f"""
CREATE FUNCTION {{schema}}.{FUNCTION}() RETURNS trigger
LANGUAGE plpgsql AS $body$
DECLARE
    by_library boolean := TG_OP = 'INSERT';
BEGIN
    IF TG_OP = 'UPDATE' THEN
        by_library := NEW.write_token IS DISTINCT FROM OLD.write_token;
    END IF;
    INSERT INTO {{schema}}.execution_history ({COLUMNS}{{column}})
    VALUES (
        NEW.id,
        CASE TG_OP WHEN 'INSERT' THEN 1 ELSE (
            SELECT coalesce(max(h.seq), 0) + 1 FROM {{schema}}.execution_history AS h
             WHERE h.execution_id = NEW.id
        ) END,
        CASE TG_OP WHEN 'UPDATE' THEN OLD.status END,
        NEW.status,
        NEW.attempts,
        CASE WHEN TG_OP = 'UPDATE' AND NEW.updated_at = OLD.updated_at
             THEN greatest(statement_timestamp(), NEW.updated_at) ELSE NEW.updated_at END,
        NEW.worker,
        {REASON},
        NEW.error,
        CASE WHEN TG_OP = 'UPDATE' AND by_library THEN NEW.write_token END{{value}}
    );
    RETURN NULL;
END
$body$
"""
ACTOR_POSTGRESQL = """,
        coalesce(
            CASE WHEN by_library THEN NEW.actor END,
            nullif(current_setting('execution_core.actor', true), ''),
            CAST(session_user AS text)
        )"""
SQLITE = f"""
CREATE TRIGGER execution_core_record_creation AFTER INSERT ON executions
BEGIN
    INSERT INTO execution_history ({COLUMNS}{{column}})
    VALUES (NEW.id, 1, NULL, NEW.status, NEW.attempts, NEW.updated_at, NEW.worker,
            {REASON}, NEW.error, NULL{{created_by}});
END;
CREATE TRIGGER {FUNCTION} AFTER UPDATE OF status ON executions
WHEN OLD.status IS NOT NEW.status
BEGIN
    INSERT INTO execution_history ({COLUMNS}{{column}})
    VALUES (NEW.id,
            (SELECT coalesce(max(seq), 0) + 1 FROM execution_history WHERE execution_id = NEW.id),
            OLD.status, NEW.status, NEW.attempts,
            CASE WHEN NEW.updated_at = OLD.updated_at
                 THEN max(strftime('%Y-%m-%d %H:%M:%f000', 'now'), NEW.updated_at)
                 ELSE NEW.updated_at END,
            NEW.worker, {REASON}, NEW.error,
            CASE WHEN NEW.write_token IS NOT OLD.write_token THEN NEW.write_token END
            {{changed_by}});
END
"""
CHANGED_BY_SQLITE = ", CASE WHEN NEW.write_token IS NOT OLD.write_token THEN NEW.actor END"
OUTCOME = (
    "CASE ended.to_status WHEN 'retrying' THEN {retrying}"
    " ELSE coalesce(ended.to_status, 'running') END"
)
RETRYING = (
    "CASE WHEN ended.error IS NULL THEN 'released'"
    " WHEN ended.error ->> 'code' IN ('timeout', 'stalled') THEN 'timed_out' ELSE 'failed' END"
)
# The children first, by an index: they are live most often. UNION ends cycles.
IN_USE = """
CREATE OR REPLACE FUNCTION {schema}.execution_core_in_use(parent uuid) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $body$
DECLARE
    locked bigint;
BEGIN
    IF EXISTS (
        SELECT 1 FROM {schema}.executions AS child
         WHERE child.parent_id = parent AND child.status IN ('pending', 'running', 'retrying')
    ){descendants} THEN
        RETURN true;
    END IF;
    SELECT count(id) INTO locked FROM (
        SELECT linked.id FROM {schema}.executions AS linked
         WHERE linked.parent_id = parent OR linked.replay_of = parent
           FOR NO KEY UPDATE SKIP LOCKED
    ) AS locked_rows;
    RETURN (
        SELECT count(linked.id) <> locked OR count(linked.id) FILTER (
                   WHERE linked.parent_id = parent
                     AND linked.status IN ('pending', 'running', 'retrying')
               ) > 0
          FROM {schema}.executions AS linked
         WHERE linked.parent_id = parent OR linked.replay_of = parent
    );
END
$body$
"""
DESCENDANTS = """ OR EXISTS (
        WITH RECURSIVE below(id, status) AS (
            SELECT child.id, child.status FROM {schema}.executions AS child
             WHERE child.parent_id = parent
            UNION
            SELECT child.id, child.status
              FROM below JOIN {schema}.executions AS child ON child.parent_id = below.id
        )
        SELECT 1 FROM below WHERE status IN ('pending', 'running', 'retrying')
    )"""
REDACT = "execution_core_redact"
REDACTED = "NEW.redacted_at IS NOT NULL AND OLD.redacted_at IS DISTINCT FROM NEW.redacted_at"
REDACT_POSTGRESQL = f"""
CREATE FUNCTION {{schema}}.{REDACT}() RETURNS trigger
LANGUAGE plpgsql AS $body$
BEGIN
    DELETE FROM {{schema}}.execution_logs WHERE execution_id = NEW.id;
    UPDATE {{schema}}.execution_history
       SET error = (error - 'stack') || '{{{{"message": "redacted"}}}}'
     WHERE execution_id = NEW.id AND error IS NOT NULL;
    RETURN NULL;
END
$body$
"""
REDACT_SQLITE = f"""
CREATE TRIGGER {REDACT} AFTER UPDATE OF redacted_at ON executions
WHEN NEW.redacted_at IS NOT NULL AND OLD.redacted_at IS NOT NEW.redacted_at
BEGIN
    DELETE FROM execution_logs WHERE execution_id = NEW.id;
    UPDATE execution_history
       SET error = json_set(json_remove(error, '$.stack'), '$.message', 'redacted')
     WHERE execution_id = NEW.id AND error IS NOT NULL;
END
"""
AWAITING_INDEX = "ix_executions_awaits_children_since"
AWAITING = sa.text("status = 'running' AND awaits_children_since IS NOT NULL")
STATUSES = ("pending", "running", "completed", "failed", "retrying", "timed_out", "cancelled")
FINISHED = "c.status IN ('completed', 'failed', 'timed_out', 'cancelled')"
MEANINGS = {
    "executions.awaits_children_since": "When it left the end of its attempt to its children;"
    " NULL unless it did.",
    "executions.redacted_at": "When its data was removed; NULL unless it was.",
    "executions.actor": "Internal: who made the last transition, as the caller named them.",
    "execution_history.actor": "Who made the transition: as the caller named them, or the setting"
    " execution_core.actor, or the database's session user.",
    "execution_timeline.actor": "Who made the transition.",
    "execution_attempts.outcome": "running, completed, failed, timed_out, released or cancelled.",
}
ATTENTION = {
    None: "One row for each execution that an operator should look at.",
    "execution_id": "The execution: executions.id.",
    "type": "The kind of work.",
    "status": "pending, running, retrying, failed or timed_out.",
    "reason": "failed, timed_out, overdue, silent, unclaimed or waiting.",
    "action": "What to do first: inspect, retry, sweep or wait.",
    "since_at": "Since when.",
    "since_seconds": "Time since then.",
    "attempts": "Number of starts.",
    "max_attempts": "Maximum number of attempts.",
    "worker": "Name of the worker that runs it or ran it last.",
    "idempotency_key": "Its idempotency key.",
    "error_code": "Short name of the last failure.",
    "error_message": "Message of the last failure.",
}
CHILDREN: dict[str | None, str] = {
    None: "One row for each execution that has children.",
    "parent_id": "The execution: executions.id.",
    "total": "Number of its children.",
    "finished": "Number of those that are completed, failed, timed out or cancelled.",
    "percent": "Share of those that have finished, 0 to 100.",
    **{status: f"Number of those that are {status}." for status in STATUSES},
}


def is_postgresql() -> bool:
    """Return whether the database is PostgreSQL."""
    return op.get_context().dialect.name == "postgresql"


def by_dialect(postgresql: str, sqlite: str) -> str:
    """Return the text for the database."""
    return postgresql if is_postgresql() else sqlite


def schema() -> str:
    """Return the schema of the tables, quoted, as in the first revision."""
    context = op.get_context()
    if context.as_sql:
        name = context.opts.get("execution_core_schema") or "public"
        quoted = context.dialect.identifier_preparer.quote_schema(name)
    else:
        quoted = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())")) or "public"
    return quoted.replace(":", "\\:")  # not a parameter


def typed(sql: str, kind: str) -> str:
    """Return SQL for a computed column of a view, with a type that SQLite's readers can see."""
    return by_dialect(sql, f"CAST({sql} AS {kind})")


def seconds(start: str, end: str) -> str:
    """Return SQL for the seconds between two times, rounded to milliseconds."""
    return by_dialect(
        f"round(extract(epoch FROM {end} - {start})::numeric, 3)::double precision",
        f"CAST(round((julianday({end}) - julianday({start})) * 86400.0, 3) AS REAL)",
    )


def ago(time: str) -> str:
    """Return SQL for the time of the statement minus a duration such as `15 minutes`."""
    return by_dialect(
        f"(statement_timestamp() - interval '{time}')",
        f"strftime('%Y-%m-%d %H:%M:%f000', 'now', '-{time}')",
    )


def parts_of(error: str) -> str:
    """Return SQL for the columns error_code and error_message."""
    code, message = (typed(f"{error} ->> '{part}'", "TEXT") for part in ("code", "message"))
    return f"{code} AS error_code, {message} AS error_message"


def attempts_view(retrying: str) -> str:
    """Return the query of execution_attempts; `retrying` is the outcome if that status follows."""
    outcome = OUTCOME.format(retrying=retrying)
    return f"""
        SELECT e.id AS execution_id, e.type, began.attempt, began.worker,
               began.occurred_at AS started_at, ended.occurred_at AS ended_at,
               {seconds("began.occurred_at", "ended.occurred_at")} AS duration_seconds,
               {typed(outcome, "TEXT")} AS outcome,
               ended.error, {parts_of("ended.error")}
          FROM execution_history AS began
          JOIN executions AS e ON e.id = began.execution_id
          LEFT JOIN execution_history AS ended
            ON ended.execution_id = began.execution_id AND ended.seq = began.seq + 1
         WHERE began.to_status = 'running'"""


def timeline_view(actor: str) -> str:
    """Return the query of execution_timeline, with or without the column actor."""
    return f"""
        SELECT h.execution_id, e.type, h.seq, h.from_status, h.to_status, h.attempt, h.occurred_at,
               {seconds("last.occurred_at", "h.occurred_at")} AS seconds_since_last,
               h.worker, h.reason, h.error, {parts_of("h.error")}{actor}
          FROM execution_history AS h
          JOIN executions AS e ON e.id = h.execution_id
          LEFT JOIN execution_history AS last
            ON last.execution_id = h.execution_id AND last.seq = h.seq - 1"""


def attention_view() -> str:
    """Return the query of executions_needing_attention. Each part reads one index."""
    retryable = by_dialect("e.error ->> 'retryable' = 'true'", "e.error ->> 'retryable' = 1")
    now = by_dialect("statement_timestamp()", "strftime('%Y-%m-%d %H:%M:%f000', 'now')")
    busy = (
        "EXISTS (SELECT 1 FROM executions AS other"
        " WHERE other.type = e.type AND other.status = 'running')"
    )
    parts = {
        # A replayed one has been looked at.
        "e.status": (
            f"CASE WHEN e.status = 'timed_out' OR {retryable} THEN 'retry' ELSE 'inspect' END",
            "e.completed_at",
            (
                f"e.status IN ('failed', 'timed_out') AND e.completed_at > {ago('7 days')}"
                " AND NOT EXISTS (SELECT 1 FROM executions AS other WHERE other.replay_of = e.id)"
            ),
        ),
        "'overdue'": (
            "'sweep'",
            "e.deadline_at",
            f"e.status = 'running' AND e.deadline_at < {ago('5 minutes')}",
        ),
        # Of those that send heartbeats.
        "'silent'": (
            "'inspect'",
            "e.heartbeat_at",
            (
                f"e.status = 'running' AND e.heartbeat_at > e.started_at"
                f" AND e.heartbeat_at < {ago('15 minutes')} AND e.awaits_children_since IS NULL"
                f" AND (e.deadline_at IS NULL OR e.deadline_at >= {ago('5 minutes')})"
            ),
        ),
        f"CASE WHEN {busy} THEN 'waiting' ELSE 'unclaimed' END": (
            f"CASE WHEN {busy} THEN 'wait' ELSE 'inspect' END",
            "e.due_at",
            (
                f"e.status IN ('pending', 'retrying') AND e.due_at < {ago('15 minutes')}"
                f" AND (e.due_at < {ago('1 hour')} OR NOT {busy})"
            ),
        ),
    }
    return " UNION ALL ".join(
        f"""
        SELECT e.id AS execution_id, e.type, e.status, {typed(reason, "TEXT")} AS reason,
               {typed(action, "TEXT")} AS action, {since} AS since_at,
               {seconds(since, now)} AS since_seconds, e.attempts, e.max_attempts, e.worker,
               e.idempotency_key, {parts_of("e.error")}
          FROM executions AS e
         WHERE {condition}"""
        for reason, (action, since, condition) in parts.items()
    )


def children_view() -> str:
    """Return the query of execution_children: for one parent it reads one part of an index."""

    def number(condition: str) -> str:
        return typed(f"count(*) FILTER (WHERE {condition})", "BIGINT")

    share = f"100.0 * count(*) FILTER (WHERE {FINISHED}) / count(*)"
    percent = by_dialect(f"({share})::double precision", f"CAST({share} AS REAL)")
    counts = ", ".join(f"{number(f'c.status = {status!r}')} AS {status}" for status in STATUSES)
    return f"""
        SELECT c.parent_id, {number("true")} AS total, {number(FINISHED)} AS finished,
               {percent} AS percent, {counts}
          FROM executions AS c
         WHERE c.parent_id IS NOT NULL
         GROUP BY c.parent_id"""


def replace_view(name: str, query: str, *, drop: bool) -> None:
    """Replace the query of a view; PostgreSQL keeps views of the application that read it."""
    drop = drop or not is_postgresql()
    if drop:
        op.execute(f"DROP VIEW {name}")
    op.execute(f"CREATE {'' if drop else 'OR REPLACE '}VIEW {name} AS {query}")


def replace_triggers(*, with_actor: bool) -> None:
    """Replace the triggers that write the history."""
    column = ", actor" if with_actor else ""
    if is_postgresql():
        for name in TRIGGERS:
            op.execute(f"DROP TRIGGER {name} ON executions")
        op.execute(f"DROP FUNCTION {FUNCTION}")
        value = ACTOR_POSTGRESQL if with_actor else ""
        op.execute(POSTGRESQL.format(schema=schema(), column=column, value=value))
        for name, event in TRIGGERS.items():
            function = f"EXECUTE FUNCTION {schema()}.{FUNCTION}()"
            op.execute(f"CREATE TRIGGER {name} AFTER {event} {function}")
        return
    created_by, changed_by = (", NEW.actor", CHANGED_BY_SQLITE) if with_actor else ("", "")
    triggers = SQLITE.format(column=column, created_by=created_by, changed_by=changed_by)
    for name, definition in zip(TRIGGERS, triggers.split("END;\n"), strict=True):
        op.execute(f"DROP TRIGGER {name}")
        op.execute(definition if definition.rstrip().endswith("END") else f"{definition}END")


def replace_in_use(descendants: str) -> None:
    """Replace the function by which a prune keeps the ancestors of live executions."""
    if is_postgresql():
        named = descendants.format(schema=schema())
        op.execute(IN_USE.format(schema=schema(), descendants=named))


def create_redaction() -> None:
    """Create the trigger that deletes the log and the texts of errors in the history."""
    if is_postgresql():
        op.execute(REDACT_POSTGRESQL.format(schema=schema()))
        op.execute(
            f"CREATE TRIGGER {REDACT} AFTER UPDATE ON executions FOR EACH ROW WHEN ({REDACTED})"
            f" EXECUTE FUNCTION {schema()}.{REDACT}()"
        )
    else:
        op.execute(REDACT_SQLITE)


def replace_index(condition: str) -> None:
    """Replace the index that finds a lost claim or sweep."""
    if is_postgresql():
        op.drop_index(WRITE_TOKEN_INDEX, "execution_history")
        op.create_index(
            WRITE_TOKEN_INDEX,
            "execution_history",
            ["write_token"],
            postgresql_where=sa.text(condition),
        )


def comment(target: str, text: str) -> None:
    """Store a comment."""
    literal = text.replace("'", "''")
    op.execute(f"COMMENT ON {target} IS '{literal}'")


def upgrade() -> None:
    for table in ("executions", "execution_history"):
        op.add_column(table, sa.Column("actor", sa.Text))
    for column in ("redacted_at", "awaits_children_since"):
        op.add_column("executions", sa.Column(column, Time))
    op.create_index(
        AWAITING_INDEX,
        "executions",
        ["awaits_children_since"],
        postgresql_where=AWAITING,
        sqlite_where=AWAITING,
    )
    replace_triggers(with_actor=True)
    create_redaction()
    replace_in_use(DESCENDANTS)
    replace_index(STARTED_OR_RETRIED)
    replace_view("execution_attempts", attempts_view(RETRYING), drop=False)
    actor = typed("h.actor", "TEXT") + " AS actor"
    replace_view("execution_timeline", timeline_view(f", {actor}"), drop=False)
    op.execute(f"CREATE VIEW executions_needing_attention AS {attention_view()}")
    op.execute(f"CREATE VIEW execution_children AS {children_view()}")
    if is_postgresql():
        for column, text in MEANINGS.items():
            comment(f"COLUMN {column}", text)
        views = {"executions_needing_attention": ATTENTION, "execution_children": CHILDREN}
        for view, meanings in views.items():
            for name, text in meanings.items():
                comment(f"COLUMN {view}.{name}" if name else f"VIEW {view}", text)


def downgrade() -> None:
    op.execute("DROP VIEW execution_children")
    op.execute("DROP VIEW executions_needing_attention")
    replace_view("execution_timeline", timeline_view(""), drop=True)
    replace_view("execution_attempts", attempts_view("'failed'"), drop=True)
    replace_index(STARTED)
    replace_triggers(with_actor=False)
    replace_in_use("")
    op.execute(f"DROP TRIGGER {REDACT}" + by_dialect(" ON executions", ""))
    if is_postgresql():
        op.execute(f"DROP FUNCTION {REDACT}")
    op.drop_index(AWAITING_INDEX, "executions")
    for column in ("awaits_children_since", "redacted_at"):
        op.drop_column("executions", column)
    for table in ("execution_history", "executions"):
        op.drop_column(table, "actor")
