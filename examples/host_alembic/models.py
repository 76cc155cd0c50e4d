"""The tables of the host."""

from sqlalchemy import String
from sqlalchemy.dialects.postgresql import UUID
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    # The type of executions.id, so that SQL can join the two tables.
    execution_id: Mapped[str | None] = mapped_column(
        String(36).with_variant(UUID(as_uuid=False), "postgresql")
    )
