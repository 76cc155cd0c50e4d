"""Orders."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("item", sa.String, nullable=False),
        sa.Column(
            "execution_id",
            sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql"),
        ),
    )


def downgrade() -> None:
    op.drop_table("orders")
