"""A token for each write, so that one whose answer was lost can be looked for."""

from alembic import op

revision = "execution_core_0005"
down_revision = "execution_core_0004"
branch_labels = None
depends_on = None


def is_postgresql() -> bool:
    """Tell which of the two databases this is."""
    return op.get_context().dialect.name == "postgresql"


TABLES = ("executions", "execution_history")
COLUMNS = "execution_id, seq, from_status, to_status, attempt, occurred_at, worker, reason, error"
REASON = "CASE NEW.status WHEN 'cancelled' THEN NEW.metadata ->> 'cancellation_reason' END"


def record_postgresql(*, tokens: bool) -> str:
    """The function that records a move, with and without its token.

    A hand that moves an execution leaves the token of the write before, which is not the move's.
    """
    column = ", write_token" if tokens else ""
    token = (
        """,
        CASE WHEN TG_OP = 'UPDATE' AND NEW.write_token IS DISTINCT FROM OLD.write_token
             THEN NEW.write_token END"""
        if tokens
        else ""
    )
    return f"""
CREATE OR REPLACE FUNCTION execution_core_record_move() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO execution_history ({COLUMNS}{column})
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
        {REASON},
        NEW.error{token}
    );
    RETURN NULL;
END
$$
"""


def record_sqlite(*, tokens: bool) -> str:
    """The trigger that records a move; that of a creation stays, which has no token."""
    column = ", write_token" if tokens else ""
    token = (
        ",\n                    CASE WHEN NEW.write_token IS NOT OLD.write_token"
        " THEN NEW.write_token END"
        if tokens
        else ""
    )
    return f"""
        CREATE TRIGGER execution_core_record_move
        AFTER UPDATE OF status ON executions WHEN OLD.status IS NOT NEW.status
        BEGIN
            INSERT INTO execution_history ({COLUMNS}{column})
            VALUES (NEW.id,
                    (SELECT coalesce(max(seq), 0) + 1 FROM execution_history
                      WHERE execution_id = NEW.id),
                    OLD.status, NEW.status, NEW.attempts,
                    CASE WHEN NEW.updated_at = OLD.updated_at
                         THEN max(strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), NEW.updated_at)
                         ELSE NEW.updated_at END,
                    NEW.worker, {REASON}, NEW.error{token});
        END"""


def record(*, tokens: bool) -> None:
    """Record moves with or without their tokens from now on."""
    if is_postgresql():
        op.execute(record_postgresql(tokens=tokens))
    else:
        op.execute("DROP TRIGGER execution_core_record_move")
        op.execute(record_sqlite(tokens=tokens))


def upgrade() -> None:
    for table in TABLES:
        kind = "uuid" if is_postgresql() else "TEXT"
        op.execute(f"ALTER TABLE {table} ADD COLUMN write_token {kind}")
        if is_postgresql():
            op.execute(
                f"COMMENT ON COLUMN {table}.write_token IS"
                " 'For the library alone: tells a write from all others.'"
            )
    record(tokens=True)


def downgrade() -> None:
    record(tokens=False)
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} DROP COLUMN write_token")
