"""Every page of a list by its index, and room for updates on every page of the table."""

import sqlalchemy as sa
from alembic import op

revision = "execution_core_0002"
down_revision = "execution_core_0001"
branch_labels = None
depends_on = None


def is_postgresql() -> bool:
    """Tell which of the two databases this is."""
    return op.get_context().dialect.name == "postgresql"


INDEXES = {
    "ix_executions_type_id": (["type", "id"], None),
    "ix_executions_parent_id": (["parent_id", "id"], "parent_id IS NOT NULL"),
}
# With the status between, what failed of a type is found without reading all that did not.
INDEXES_BY_STATUS = {
    "ix_executions_type_status_id": (["type", "status", "id"], None),
    "ix_executions_parent_id_status_id": (
        ["parent_id", "status", "id"],
        "parent_id IS NOT NULL",
    ),
}

Indexes = dict[str, tuple[list[str], str | None]]


def replace_indexes(old: Indexes, new: Indexes) -> None:
    """Drop some indexes and create others."""
    for name in old:
        op.drop_index(name, "executions")
    for name, (columns, condition) in new.items():
        where = None if condition is None else sa.text(condition)
        op.create_index(name, "executions", columns, postgresql_where=where, sqlite_where=where)


def upgrade() -> None:
    replace_indexes(INDEXES, INDEXES_BY_STATUS)
    # A row takes at most 2 KB of its page (what is larger, PostgreSQL keeps elsewhere). With 30 %
    # of 8 KB free there is room for one more version of any row, so that an update that touches no
    # index, such as a progress or a checkpoint, stays on its page and leaves the indexes alone.
    if is_postgresql():
        op.execute("ALTER TABLE executions SET (fillfactor = 70)")


def downgrade() -> None:
    if is_postgresql():
        op.execute("ALTER TABLE executions RESET (fillfactor)")
    replace_indexes(INDEXES_BY_STATUS, INDEXES)
