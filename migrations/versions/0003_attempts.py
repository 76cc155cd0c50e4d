"""Signs of life, and executions that wait for their time."""

import sqlalchemy as sa
from alembic import op

revision = "execution_core_0003"
down_revision = "execution_core_0002"
branch_labels = None
depends_on = None


def is_postgresql() -> bool:
    """Tell which of the two databases this is."""
    return op.get_context().dialect.name == "postgresql"


def in_calendar(time: str) -> str:
    """SQL that holds a column to the times that Python can read."""
    if is_postgresql():
        return f"{time} BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00'"
    return (
        f"{time} BETWEEN '0001-01-02' AND '9999-12-30'"
        f" AND strftime('%Y-%m-%dT%H:%M:%fZ', {time}, '+0 days') = {time}"  # no February 30
    )


COLUMNS = ("heartbeat_at", "retry_at")
DUE = "coalesce(retry_at, created_at)"
WAITING = "status IN ('pending', 'retrying')"
WAITING_SQLITE = (
    f"+{WAITING}"  # with a plus, SQLite does not prefer its index by status to this one
)
INDEXES: dict[str, list[str | sa.TextClause]] = {
    "ix_executions_due": [sa.text(DUE), "id"],
    "ix_executions_type_due": ["type", sa.text(DUE), "id"],
}


def upgrade() -> None:
    kind = "timestamptz" if is_postgresql() else "TEXT"
    for column in COLUMNS:
        # In SQLite its CHECK is part of the column: any other way copies the whole table.
        op.execute(
            f"ALTER TABLE executions ADD COLUMN {column} {kind}"
            f" CONSTRAINT ck_executions_{column}_in_calendar"
            f" CHECK ({column} IS NULL OR coalesce({in_calendar(column)}, false))"
        )
    for name, expressions in INDEXES.items():
        op.create_index(
            name,
            "executions",
            expressions,
            postgresql_where=sa.text(WAITING),
            sqlite_where=sa.text(WAITING_SQLITE),
        )


def downgrade() -> None:
    for name in INDEXES:
        op.drop_index(name, "executions")
    for column in COLUMNS:
        op.execute(f"ALTER TABLE executions DROP COLUMN {column}")
