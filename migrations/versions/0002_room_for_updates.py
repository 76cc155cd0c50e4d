"""Room on every page for another version of a row."""

from alembic import op

revision = "execution_core_0002"
down_revision = "execution_core_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A row takes at most 2 KB of its page (what is larger, PostgreSQL keeps elsewhere). With 30 %
    # of 8 KB free there is room for one more version of any row, so that an update that touches no
    # index, such as a progress or a checkpoint, stays on its page and leaves the indexes alone.
    if op.get_context().dialect.name == "postgresql":
        op.execute("ALTER TABLE executions SET (fillfactor = 70)")


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute("ALTER TABLE executions RESET (fillfactor)")
