"""What a migration may change: a column, indexes, a CHECK, a view, and what a trigger writes.

`next_version` copies this file to the migrations, as the revision after the newest one.
"""

import re

from alembic import op

revision = "NEXT"
down_revision = "NEWEST"
branch_labels = None
depends_on = None

TRIGGER = "execution_core_record_transition"
VIEW = "execution_overview"
RECORD = """
UPDATE execution_history SET priority = NEW.priority
 WHERE execution_id = NEW.id
   AND seq = (SELECT max(seq) FROM execution_history WHERE execution_id = NEW.id);
"""


def upgrade() -> None:
    op.execute(
        "ALTER TABLE executions ADD COLUMN priority integer"
        " CONSTRAINT ck_executions_priority_positive CHECK (priority > 0)"
    )
    op.execute("ALTER TABLE execution_history ADD COLUMN priority integer")
    op.execute("CREATE INDEX ix_executions_priority ON executions (priority, id)")
    # The names of indexes are internal: another one may replace it.
    op.execute("DROP INDEX ix_executions_replay_of")
    op.execute("CREATE INDEX ix_executions_replay_of_id ON executions (replay_of, id)")
    replace_in_trigger("RETURN NULL;\nEND" if is_postgresql() else "END", before=RECORD)
    added = ", priority FROM executions"
    replace_in_view(r"\sFROM executions\W*$", added, drop=not is_postgresql())


def downgrade() -> None:
    replace_in_view(r",\s*(executions\.)?priority\s+FROM", " FROM", drop=True)
    replace_in_trigger(RECORD)
    op.execute("DROP INDEX ix_executions_replay_of_id")
    op.execute(
        "CREATE INDEX ix_executions_replay_of ON executions (replay_of) WHERE replay_of IS NOT NULL"
    )
    op.execute("DROP INDEX ix_executions_priority")
    for table in ("execution_history", "executions"):
        op.execute(f"ALTER TABLE {table} DROP COLUMN priority")


def is_postgresql() -> bool:
    return op.get_context().dialect.name == "postgresql"


def read(on_postgresql: str, name: str) -> str:
    """Return the definition of a view or a trigger."""
    on_sqlite = f"SELECT sql FROM sqlite_master WHERE name = '{name}'"
    query = on_postgresql if is_postgresql() else on_sqlite
    return str(op.get_bind().exec_driver_sql(query).scalar_one())


def replace_in_trigger(old: str, *, before: str | None = None) -> None:
    """Remove a text, or put another one before it."""
    sql = read(f"SELECT pg_get_functiondef(CAST('{TRIGGER}' AS regproc))", TRIGGER)
    head, tail = sql.rsplit(old, 1)
    if not is_postgresql():
        op.execute(f"DROP TRIGGER {TRIGGER}")
    op.get_bind().exec_driver_sql(head + (before + old if before else "") + tail)


def replace_in_view(pattern: str, new: str, *, drop: bool) -> None:
    sql = read(f"SELECT pg_get_viewdef('{VIEW}')", VIEW)
    query = re.sub(pattern, new, re.sub(r"^CREATE VIEW \w+ AS|;$", "", sql))
    if drop:
        op.execute(f"DROP VIEW {VIEW}")
    create = "CREATE" if drop else "CREATE OR REPLACE"  # keeps views of the application
    op.get_bind().exec_driver_sql(f"{create} VIEW {VIEW} AS {query}")
