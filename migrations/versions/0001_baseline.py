"""Create the tables of executions, their history and their logs, and the views on them."""

import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from execution_core.core.errors import InvalidValue

revision = "execution_core_0001"
down_revision = None
branch_labels = ("execution_core",)
depends_on = None

Id = sa.Text().with_variant(postgresql.UUID(as_uuid=False), "postgresql")
Time = sa.Text().with_variant(sa.DateTime(timezone=True), "postgresql")
Json = sa.Text().with_variant(postgresql.JSONB(), "postgresql")


def is_postgresql() -> bool:
    """Return whether the database is PostgreSQL."""
    return op.get_context().dialect.name == "postgresql"


def by_dialect(postgresql: str, sqlite: str) -> str:
    """Return the text for the database."""
    return postgresql if is_postgresql() else sqlite


def schema() -> str:
    """Return the schema of the tables, quoted: PostgreSQL's functions name it.

    Through search_path, a temporary table of the same name would receive the history.
    """
    if op.get_context().as_sql:
        quoted = op.get_context().dialect.identifier_preparer.quote_schema(printed_schema())
    else:
        quoted = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())")) or "public"
    return quoted.replace(":", "\\:")  # not a parameter


def printed_schema() -> str:
    """Return the schema for which the SQL is printed."""
    return op.get_context().opts.get("execution_core_schema") or "public"


def now() -> str:
    """Return SQL for the time of the statement."""
    return by_dialect("statement_timestamp()", "strftime('%Y-%m-%d %H:%M:%f000', 'now')")


def typed(sql: str, kind: str) -> str:
    """Return SQL for a computed column of a view, with a type that SQLite's readers can see."""
    return by_dialect(sql, f"CAST({sql} AS {kind})")


def seconds(start: str, end: str) -> str:
    """Return SQL for the seconds between two times, rounded to milliseconds."""
    return by_dialect(
        f"round(extract(epoch FROM {end} - {start})::numeric, 3)::double precision",
        f"CAST(round((julianday({end}) - julianday({start})) * 86400.0, 3) AS REAL)",
    )


def in_calendar(time: str) -> str:
    """Return SQL that limits a time to what Python can read."""
    return by_dialect(
        f"{time} BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00'",
        # julianday() accepts 24:00 and February 30. Only a modifier normalises the latter, and
        # only the last days of a month pay for it. The range comes first: 'now' would raise.
        f"{time} IS NULL OR ({time} BETWEEN '0001-01-02' AND '9999-12-30 00:00:00.000000'"
        f" AND ({time} GLOB '????-??-?? ??:??:??.{'[0-9]' * 6}'"
        f" OR {time} GLOB '????-??-?? ??:??:??')"
        f" AND julianday({time}) IS NOT NULL AND substr({time}, 12, 2) < '24'"
        f" AND (substr({time}, 9, 2) < '29'"
        f" OR date(substr({time}, 1, 10), '+0 days') = substr({time}, 1, 10))) IS TRUE",
    )


def rules() -> dict[str, str]:
    """Return the names and conditions of the invariants of an execution."""
    message = by_dialect("jsonb_typeof(error -> 'message')", "json_type(error, '$.message')")
    text, typeof = by_dialect("string", "text"), by_dialect("jsonb_typeof", "json_type")
    return {
        "status_known": "status IN ('pending', 'running', 'completed', 'failed', 'retrying',"
        " 'timed_out', 'cancelled')",
        "attempts_in_range": "attempts BETWEEN 0 AND max_attempts",
        "max_attempts_positive": "max_attempts >= 1",
        "attempts_fit_status": "CASE status WHEN 'pending' THEN attempts = 0"
        " WHEN 'cancelled' THEN true WHEN 'retrying' THEN attempts > 0 AND attempts < max_attempts"
        " ELSE attempts > 0 END",
        "started_at_when_started": "(attempts > 0) = (started_at IS NOT NULL)",
        "completed_at_when_finished": "(completed_at IS NOT NULL) ="
        " (status IN ('completed', 'failed', 'timed_out', 'cancelled'))",
        "deadline_at_when_limited": "(deadline_at IS NOT NULL) ="
        " (timeout_ms IS NOT NULL AND attempts > 0)",
        "due_at_when_waiting": "due_at IS NOT NULL OR status NOT IN ('pending', 'retrying')",
        "error_fits_status": "CASE WHEN status IN ('failed', 'timed_out') THEN error IS NOT NULL"
        " WHEN status = 'retrying' THEN true ELSE error IS NULL END",
        "error_has_message": f"error IS NULL OR coalesce({message} = '{text}', false)",
        "result_when_completed": "result IS NULL OR status = 'completed'",
        "metadata_is_object": f"{typeof}(metadata) = 'object'",
        "checkpoints_are_object": f"{typeof}(checkpoints) = 'object'",
        "timeout_positive": "timeout_ms > 0",
        "type_length": "length(type) BETWEEN 1 AND 255",
        "idempotency_key_length": "length(idempotency_key) BETWEEN 1 AND 255",
        "worker_length": "length(worker) BETWEEN 1 AND 255",
        "fingerprint_of_key": "fingerprint IS NULL OR idempotency_key IS NOT NULL",
        "parent_is_another": "parent_id <> id",
        "replay_of_another": "replay_of <> id",
        # The casts find PostgreSQL's own operators; for an integer, another schema's could match.
        "progress_whole": "CASE WHEN progress_current IS NULL THEN progress_total IS NULL"
        " AND progress_percent IS NULL AND progress_message IS NULL"
        " ELSE progress_current >= 0 AND progress_total IS NOT NULL AND progress_total >= 0"
        " AND progress_percent IS NOT NULL AND progress_percent BETWEEN"
        " CAST(0 AS double precision) AND CAST(100 AS double precision) END",
    } | {f"{time}_in_calendar": in_calendar(time) for time in TIMES}


TIMES = (
    *("created_at", "updated_at", "started_at", "completed_at", "deadline_at"),
    *("heartbeat_at", "due_at"),
)
UUID = "-".join("[0-9a-f]" * length for length in (8, 4, 4, 4, 12))
INTEGERS = ("attempts", "max_attempts", "timeout_ms", "progress_current", "progress_total")
# On SQLite these rules replace the column types of PostgreSQL.
TYPE_RULES = {
    "payload_is_json": "payload IS NULL OR json_valid(payload)",
    "result_is_json": "result IS NULL OR json_valid(result)",
    "id_is_uuid": f"id GLOB '{UUID}'",
    "integers_are_integers": " AND ".join(
        f"typeof({number}) IN ('integer', 'null')" for number in INTEGERS
    ),
}
LOG_RULES = {
    "level_known": "level IN ('debug', 'info', 'warning', 'error', 'critical')",
    "attempt_counted": "attempt >= 0",
}


def checks(table: str, conditions: Mapping[str, str]) -> list[sa.CheckConstraint]:
    """Return one CHECK for each condition."""
    return [sa.CheckConstraint(sql, op.f(f"ck_{table}_{name}")) for name, sql in conditions.items()]


def create_check(columns: list[sa.Column[Any]]) -> dict[str, str]:
    """Create PostgreSQL's function for the rules, and return the CHECK that calls it.

    PostgreSQL parses and plans every CHECK again for every statement, but the body of a function
    once per session. The arguments are the columns that the rules name: with the whole row,
    PostgreSQL would also read payloads that it keeps outside the row.
    """
    cases = "\n        ".join(
        f"WHEN ({rule}) IS FALSE THEN 'ck_executions_{name}'" for name, rule in rules().items()
    )
    named = [column for column in columns if re.search(rf"\b{column.name}\b", cases)]
    dialect = op.get_context().dialect
    arguments = ", ".join(f"{column.name} {column.type.compile(dialect)}" for column in named)
    function = f"{schema()}.execution_core_check"
    op.execute(f"""
CREATE FUNCTION {function}({arguments})
RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $body$
DECLARE
    violated text := CASE
        {cases}
    END;
BEGIN
    IF violated IS NULL THEN
        RETURN true;
    END IF;
    RAISE check_violation USING
        MESSAGE = 'Cannot write execution ' || CAST(id AS text)
            || ': the row violates check constraint "' || violated || '"',
        HINT = 'The function execution_core_check contains the condition.',
        CONSTRAINT = violated, TABLE = 'executions';
END
$body$
""")
    return {"valid": f"{function}({', '.join(column.name for column in named)})"}


def indexes() -> dict[str, tuple[list[str], str | None]]:
    """Return the names, columns and conditions of the indexes of `executions`."""
    waiting = "status IN ('pending', 'retrying')"
    return {
        "ix_executions_status_id": (["status", "id"], None),
        "ix_executions_due": (["due_at", "id"], waiting),
        "ix_executions_type_due": (["type", "due_at", "id"], waiting),
        "ix_executions_parent_id_status_id": (
            ["parent_id", "status", "id"],
            "parent_id IS NOT NULL",
        ),
        "ix_executions_replay_of": (["replay_of"], "replay_of IS NOT NULL"),
        "ix_executions_completed_at": (["completed_at"], "completed_at IS NOT NULL"),
        "ix_executions_deadline_at": (["deadline_at"], "status = 'running'"),
    } | (
        {"ix_executions_type_status_id": (["type", "status", "id"], None)}
        if is_postgresql()
        # With the times, SQLite answers all of execution_stats from this index. It is written no
        # more often: each of these times changes together with the status.
        else {
            "ix_executions_type_status_id_times": (
                ["type", "status", "id", "created_at", "started_at", "completed_at"],
                None,
            )
        }
    )


HISTORY_COLUMNS = (
    "execution_id, seq, from_status, to_status, attempt, occurred_at, worker, reason, error,"
    " write_token"
)
REASON = "CASE NEW.status WHEN 'cancelled' THEN NEW.metadata ->> 'cancellation_reason' END"
# The row lock of the UPDATE makes the highest seq plus one unique. A manual UPDATE leaves the
# updated_at and the write_token of the write before, which are not those of the transition.
RECORD_POSTGRESQL = f"""
CREATE FUNCTION {{schema}}.execution_core_record_transition() RETURNS trigger
LANGUAGE plpgsql AS $body$
BEGIN
    INSERT INTO {{schema}}.execution_history ({HISTORY_COLUMNS})
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
        CASE WHEN TG_OP = 'UPDATE' AND NEW.write_token IS DISTINCT FROM OLD.write_token
             THEN NEW.write_token END
    );
    RETURN NULL;
END
$body$
"""
# VOLATILE: each statement sees what was committed before it. A deletion sets parent_id and
# replay_of of other rows to NULL; to lock these rows first prevents deadlocks. A row that another
# transaction has locked counts as in use.
IN_USE_POSTGRESQL = """
CREATE FUNCTION {schema}.execution_core_in_use(parent uuid) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $body$
DECLARE
    locked bigint;
BEGIN
    IF EXISTS (
        SELECT 1 FROM {schema}.executions AS child
         WHERE child.parent_id = parent AND child.status IN ('pending', 'running', 'retrying')
    ) THEN
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
FUNCTIONS = ("record_transition", "in_use", "check")
RECORD_TRIGGERS = {
    "execution_core_record_creation": "INSERT ON executions FOR EACH ROW",
    "execution_core_record_transition": "UPDATE ON executions FOR EACH ROW"
    " WHEN (OLD.status IS DISTINCT FROM NEW.status)",
}
TRIGGERS_SQLITE = {
    "execution_core_record_creation": f"""INSERT ON executions
        BEGIN
            INSERT INTO execution_history ({HISTORY_COLUMNS})
            VALUES (NEW.id, 1, NULL, NEW.status, NEW.attempts, NEW.updated_at, NEW.worker,
                    {REASON}, NEW.error, NULL);
        END""",
    "execution_core_record_transition": f"""UPDATE OF status ON executions
        WHEN OLD.status IS NOT NEW.status
        BEGIN
            INSERT INTO execution_history ({HISTORY_COLUMNS})
            VALUES (NEW.id,
                    (SELECT coalesce(max(seq), 0) + 1 FROM execution_history
                      WHERE execution_id = NEW.id),
                    OLD.status, NEW.status, NEW.attempts,
                    CASE WHEN NEW.updated_at = OLD.updated_at
                         THEN max(strftime('%Y-%m-%d %H:%M:%f000', 'now'), NEW.updated_at)
                         ELSE NEW.updated_at END,
                    NEW.worker, {REASON}, NEW.error,
                    CASE WHEN NEW.write_token IS NOT OLD.write_token THEN NEW.write_token END);
        END""",
    # For connections without PRAGMA foreign_keys = ON.
    "execution_core_delete_dependents": """DELETE ON executions
        BEGIN
            DELETE FROM execution_history WHERE execution_id = OLD.id;
            DELETE FROM execution_logs WHERE execution_id = OLD.id;
            UPDATE executions SET parent_id = NULL WHERE parent_id = OLD.id;
            UPDATE executions SET replay_of = NULL WHERE replay_of = OLD.id;
        END""",
}


def triggers() -> dict[str, str]:
    """Return the names and definitions of the triggers, after the word AFTER."""
    if not is_postgresql():
        return TRIGGERS_SQLITE
    function = f"EXECUTE FUNCTION {schema()}.execution_core_record_transition()"
    return {name: f"{event} {function}" for name, event in RECORD_TRIGGERS.items()}


def parts_of(error: str) -> str:
    """Return SQL for the columns error_code and error_message."""
    code, message = (typed(f"{error} ->> '{part}'", "TEXT") for part in ("code", "message"))
    return f"{code} AS error_code, {message} AS error_message"


def views() -> dict[str, str]:
    """Return the names and queries of the views."""
    running = (
        "(CASE WHEN status = 'running' THEN CASE WHEN heartbeat_at >= started_at THEN heartbeat_at"
        f" ELSE {by_dialect('greatest', 'max')}(started_at, updated_at) END END)"
    )
    waiting = "(CASE WHEN status IN ('pending', 'retrying') THEN due_at END)"
    end = f"CASE WHEN status = 'running' THEN {now()} ELSE completed_at END"
    # To whole milliseconds first: SQLite rounds to decimals through text, several times slower.
    outcome = (
        "CASE ended.to_status WHEN 'retrying' THEN 'failed'"
        " ELSE coalesce(ended.to_status, 'running') END"
    )
    durations, average, longest = (
        seconds("started_at", f"({end})"),
        by_dialect("avg(duration)", "CAST(avg(round(duration * 86400000.0)) / 1000.0 AS REAL)"),
        by_dialect("max(duration)", "CAST(round(max(duration) * 86400000.0) / 1000.0 AS REAL)"),
    )
    if not is_postgresql():
        durations = f"julianday({end}) - julianday(started_at)"
    return {
        "execution_overview": f"""
        SELECT id AS execution_id, type, status, attempts, max_attempts, worker,
               progress_current, progress_total, progress_percent, progress_message,
               {parts_of("error")},
               created_at, updated_at, started_at, completed_at, deadline_at, heartbeat_at,
               {seconds("started_at", f"({end})")} AS duration_seconds,
               idempotency_key, parent_id, replay_of,
               {seconds(running, now())} AS silent_seconds,
               {typed(waiting, "TEXT")} AS due_at,
               {seconds(waiting, now())} AS due_seconds
          FROM executions""",
        "execution_attempts": f"""
        SELECT e.id AS execution_id, e.type, began.attempt, began.worker,
               began.occurred_at AS started_at, ended.occurred_at AS ended_at,
               {seconds("began.occurred_at", "ended.occurred_at")} AS duration_seconds,
               {typed(outcome, "TEXT")} AS outcome,
               ended.error, {parts_of("ended.error")}
          FROM execution_history AS began
          JOIN executions AS e ON e.id = began.execution_id
          LEFT JOIN execution_history AS ended
            ON ended.execution_id = began.execution_id AND ended.seq = began.seq + 1
         WHERE began.to_status = 'running'""",
        "execution_timeline": f"""
        SELECT h.execution_id, e.type, h.seq, h.from_status, h.to_status, h.attempt, h.occurred_at,
               {seconds("last.occurred_at", "h.occurred_at")} AS seconds_since_last,
               h.worker, h.reason, h.error, {parts_of("h.error")}
          FROM execution_history AS h
          JOIN executions AS e ON e.id = h.execution_id
          LEFT JOIN execution_history AS last
            ON last.execution_id = h.execution_id AND last.seq = h.seq - 1""",
        "execution_stats": f"""
        SELECT type, status, {typed("count(id)", "INTEGER")} AS count,
               {typed("min(created_at)", "TEXT")} AS oldest_created_at,
               {average} AS average_seconds, {longest} AS longest_seconds
          FROM (SELECT id, type, status, created_at, {durations} AS duration
                  FROM executions) AS measured
         GROUP BY type, status""",
        "overdue_executions": f"""
        SELECT id AS execution_id, type, attempts AS attempt, worker, started_at, deadline_at,
               {seconds("deadline_at", now())} AS overdue_seconds
          FROM executions
         WHERE status = 'running' AND deadline_at < {now()}""",
    }


# The comments that PostgreSQL stores: of each table and view, and of the columns listed below it.
RELATIONS = {
    "executions": """One row for each execution, as it is now.
        id type status payload result error attempts max_attempts created_at updated_at started_at
        completed_at deadline_at heartbeat_at due_at timeout_ms idempotency_key fingerprint
        parent_id replay_of metadata checkpoints progress_current progress_total progress_percent
        progress_message worker write_token""",
    "execution_history": """One row for each transition, the creation first. A trigger writes it.
        execution_id seq from_status to_status attempt occurred_at worker reason error
        write_token""",
    "execution_logs": """One row for each log entry.
        execution_id id attempt logged_at level message data""",
    "execution_overview": """One row for each execution, without payload, result and other data.
        execution_id type status attempts max_attempts worker progress_current progress_total
        progress_percent progress_message error_code error_message created_at updated_at started_at
        completed_at deadline_at heartbeat_at duration_seconds idempotency_key parent_id replay_of
        silent_seconds due_at due_seconds""",
    "execution_attempts": """One row for each attempt.
        execution_id type attempt worker started_at ended_at duration_seconds outcome error
        error_code error_message""",
    "execution_timeline": """One row for each transition, with the time since the one before.
        execution_id type seq from_status to_status attempt occurred_at seconds_since_last worker
        reason error error_code error_message""",
    "execution_stats": """One row for each type and status. It reads the whole table.
        type status count oldest_created_at average_seconds longest_seconds""",
    "overdue_executions": """One row for each running execution that is past its deadline.
        execution_id type attempt worker started_at deadline_at overdue_seconds""",
}
STARTS = "Number of starts at that time: 0 before the first attempt."
# By column. Where a column means something else in one relation, by relation and column.
MEANINGS = {
    "execution_id": "The execution: executions.id.",
    "id": "UUIDv7: ids sort by time of creation.",
    "type": "The kind of work.",
    "status": "pending, running, retrying, completed, failed, timed_out or cancelled.",
    "payload": "Input of the work: any JSON value.",
    "result": "Output of the work: any JSON value; NULL unless completed.",
    "error": "Failure of the attempt: message; code, stack and retryable where known.",
    "error_code": "Short name of the failure, such as the class of the exception.",
    "error_message": "Message of the failure.",
    "attempts": "Number of starts: the number of the current or last attempt.",
    "max_attempts": "Maximum number of attempts.",
    "attempt": "Number of the attempt, from 1.",
    "execution_history.attempt": STARTS,
    "execution_timeline.attempt": STARTS,
    "execution_logs.attempt": STARTS,
    "created_at": "Time of creation.",
    "updated_at": "Time of the last change.",
    "started_at": "Start of the current or last attempt.",
    "execution_attempts.started_at": "Start of the attempt.",
    "ended_at": "End of the attempt; NULL while it runs.",
    "completed_at": "Time of completion, final failure, timeout or cancellation.",
    "deadline_at": "Deadline of the current or last attempt; NULL without a timeout.",
    "heartbeat_at": "Last heartbeat.",
    "due_at": "Earliest time of a claim. Set while pending or retrying.",
    "execution_overview.due_at": "Earliest time of a claim; NULL unless pending or retrying.",
    "timeout_ms": "Maximum run time of one attempt, in milliseconds.",
    "idempotency_key": "Unique key: a repeated creation returns this execution.",
    "fingerprint": "Internal: distinguishes a repeated creation from a conflicting one.",
    "parent_id": "The execution that this one is a part of.",
    "replay_of": "The execution that this one repeats.",
    "metadata": "Data of the application: a JSON object. cancellation_reason is the library's.",
    "checkpoints": "Data that an attempt leaves for the next one: a JSON object.",
    "progress_current": "Units of work done.",
    "progress_total": "Units of work in total.",
    "progress_percent": "Progress in percent: 0 to 100.",
    "progress_message": "Progress in words.",
    "worker": "Name of the worker that runs it or ran it last.",
    "execution_attempts.worker": "Name of the worker that started the attempt.",
    "write_token": "Internal: identifies the last write, to find it after a lost connection.",
    "seq": "Number of the transition within its execution, from 1.",
    "from_status": "Status before; NULL for the creation.",
    "to_status": "Status after.",
    "occurred_at": "Time of the transition.",
    "reason": "Reason of the cancellation.",
    "logged_at": "Time of the log entry.",
    "level": "debug, info, warning, error or critical.",
    "message": "Text of the log entry.",
    "data": "Structured data of the log entry: any JSON value.",
    "duration_seconds": "From start to end of the current or last attempt; to now while it runs.",
    "execution_attempts.duration_seconds": "From start to end; NULL while it runs.",
    "silent_seconds": "While running: since the start or the last heartbeat, the later of the two.",
    "due_seconds": "While pending or retrying: since due_at; negative before due_at.",
    "outcome": "running, completed, failed, timed_out or cancelled.",
    "seconds_since_last": "Since the transition before.",
    "count": "Number of executions.",
    "oldest_created_at": "Earliest created_at.",
    "average_seconds": "Average duration_seconds.",
    "longest_seconds": "Longest duration_seconds.",
    "overdue_seconds": "Time since the deadline.",
}


def comment() -> None:
    """Store the comments."""
    for relation, described in RELATIONS.items():
        meaning, *columns = described.splitlines()
        comments = {f"{'VIEW' if relation in views() else 'TABLE'} {relation}": meaning}
        for column in " ".join(columns).split():
            own = MEANINGS.get(f"{relation}.{column}")
            comments[f"COLUMN {relation}.{column}"] = own or MEANINGS[column]
        for target, text in comments.items():
            op.execute(f"COMMENT ON {target} IS {literal(text)}")


def literal(text: str) -> str:
    """Return SQL for a text."""
    return "'" + text.replace("'", "''").replace(":", "\\:") + "'"


def refuse_foreign_tables() -> None:
    """Refuse a database in which another application uses the names."""
    if op.get_context().as_sql:
        return
    # A table cannot have the name of an index or of a sequence either.
    relations = by_dialect(
        "SELECT relname FROM pg_class JOIN pg_namespace AS namespace"
        " ON namespace.oid = relnamespace WHERE nspname = current_schema()",
        "SELECT lower(name) FROM sqlite_master",
    )
    taken = {*op.get_bind().scalars(sa.text(relations))}
    for name in RELATIONS:
        if name in taken:
            advice = by_dialect(
                "use a schema of its own for this library, as in migrate.upgrade(engine,"
                ' schema="jobs") and execution-core migrate --schema jobs',
                "use a file of its own for this library; then no transaction can cover both files",
            )
            raise InvalidValue(
                "target",
                f"already has a relation {name} that this migration did not create: {advice}",
            )


def refuse_encoding() -> None:
    """Refuse a database that cannot store every text."""
    if op.get_context().as_sql or not is_postgresql():
        return
    encoding = op.get_bind().scalar(sa.text("SHOW server_encoding"))
    if encoding != "UTF8":
        raise InvalidValue(
            "target",
            f"is a database with ENCODING {encoding}, which cannot store every text: create one"
            " with ENCODING 'UTF8'",
        )


def upgrade() -> None:
    refuse_encoding()
    refuse_foreign_tables()
    clock, empty = sa.text(f"({now()})"), sa.text("'{}'")
    columns: list[sa.Column[Any]] = [
        sa.Column("id", Id, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False, server_default="pending"),
        sa.Column("payload", Json),
        sa.Column("result", Json),
        sa.Column("error", Json),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("max_attempts", sa.Integer, nullable=False, server_default="1"),
        sa.Column("created_at", Time, nullable=False, server_default=clock),
        sa.Column("updated_at", Time, nullable=False, server_default=clock),
        sa.Column("started_at", Time),
        sa.Column("completed_at", Time),
        sa.Column("deadline_at", Time),
        sa.Column("heartbeat_at", Time),
        sa.Column("due_at", Time, server_default=clock),
        sa.Column("timeout_ms", sa.BigInteger),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("fingerprint", sa.Text),
        sa.Column("parent_id", Id),
        sa.Column("replay_of", Id),
        sa.Column("metadata", Json, nullable=False, server_default=empty),
        sa.Column("checkpoints", Json, nullable=False, server_default=empty),
        sa.Column("progress_current", sa.BigInteger),
        sa.Column("progress_total", sa.BigInteger),
        sa.Column("progress_percent", sa.Double),
        sa.Column("progress_message", sa.Text),
        sa.Column("worker", sa.Text),
        sa.Column("write_token", Id),
    ]
    if is_postgresql() and op.get_context().as_sql:
        # The functions name the schema, so it must be the one that receives the tables.
        name = printed_schema()
        advice = f"This SQL is for the schema {name}: set search_path to {name}"
        op.execute(
            f"SELECT CAST(CASE current_schema() WHEN {literal(name)} THEN '1' ELSE"
            f" {literal(advice)} END AS integer)"
        )
    conditions = create_check(columns) if is_postgresql() else rules() | TYPE_RULES
    op.create_table(
        "executions",
        *columns,
        sa.PrimaryKeyConstraint("id", name="pk_executions"),
        sa.UniqueConstraint("idempotency_key", name="uq_executions_idempotency_key"),
        *(
            sa.ForeignKeyConstraint(
                [column], ["executions.id"], f"fk_executions_{column}", ondelete="SET NULL"
            )
            for column in ("parent_id", "replay_of")
        ),
        *checks("executions", conditions),
    )
    for name, (indexed, where) in indexes().items():
        condition = None if where is None else sa.text(where)
        op.create_index(
            name, "executions", indexed, postgresql_where=condition, sqlite_where=condition
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
        sa.Column("write_token", Id),
        sa.PrimaryKeyConstraint("execution_id", "seq", name="pk_execution_history"),
        of_execution("execution_history"),
    )
    log_rules = LOG_RULES
    if not is_postgresql():
        log_rules = LOG_RULES | {
            "id_is_uuid": TYPE_RULES["id_is_uuid"],
            "logged_at_in_calendar": in_calendar("logged_at"),
            "data_is_json": "data IS NULL OR json_valid(data)",
        }
    op.create_table(
        "execution_logs",
        sa.Column("execution_id", Id, nullable=False),
        sa.Column("id", Id, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("logged_at", Time, nullable=False, server_default=clock),
        sa.Column("level", sa.Text, nullable=False, server_default="info"),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("data", Json),
        sa.PrimaryKeyConstraint("execution_id", "id", name="pk_execution_logs"),
        of_execution("execution_logs"),
        *checks("execution_logs", log_rules),
    )
    if is_postgresql():
        # A row takes at most 2 KB of its page (PostgreSQL moves larger values out). With 30 % of
        # 8 KB free, the next version of a row finds room on the page and the indexes stay as they
        # are when no indexed column changes, as in a heartbeat, a progress or a checkpoint.
        op.execute("ALTER TABLE executions SET (fillfactor = 70)")
        # Finds a lost claim or sweep, whose executions are not known. SQLite loses no connections.
        op.create_index(
            "ix_execution_history_write_token",
            "execution_history",
            ["write_token"],
            postgresql_where=sa.text("to_status IN ('running', 'timed_out')"),
        )
        for function in (RECORD_POSTGRESQL, IN_USE_POSTGRESQL):
            op.execute(function.format(schema=schema()))
    for name, definition in triggers().items():
        op.execute(f"CREATE TRIGGER {name} AFTER {definition}")
    for name, query in views().items():
        op.execute(f"CREATE VIEW {name} AS {query}")
    if is_postgresql():
        comment()


def of_execution(table: str) -> sa.ForeignKeyConstraint:
    """Return the foreign key by which rows are deleted with their execution."""
    return sa.ForeignKeyConstraint(
        ["execution_id"], ["executions.id"], f"fk_{table}_execution_id", ondelete="CASCADE"
    )


def downgrade() -> None:
    for name in views():
        op.execute(f"DROP VIEW {name}")
    if not is_postgresql():
        # Dropping executions would fire the trigger for each of its rows.
        for name in TRIGGERS_SQLITE:
            op.execute(f"DROP TRIGGER {name}")
    for table in ("execution_logs", "execution_history", "executions"):
        op.drop_table(table)
    if is_postgresql():
        for function in FUNCTIONS:
            op.execute(f"DROP FUNCTION execution_core_{function}")
