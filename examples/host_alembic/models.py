"""The host's own tables."""

from sqlalchemy import String
from sqlalchemy.dialects.postgresql import UUID
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    # As executions.id is stored, so that SQL can join the two.
    execution_id: Mapped[str | None] = mapped_column(
        String(36).with_variant(UUID(as_uuid=False), "postgresql")
    )
