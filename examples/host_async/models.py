"""The tables of the host. Each order refers to the execution that ships it."""

from sqlalchemy import ForeignKey, MetaData, String
from sqlalchemy.dialects.postgresql import UUID
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from execution_core import tables

# The type of executions.id. Without a type of its own, the column would get the library's, which
# autogenerate writes with an import of an internal module.
ExecutionId = String(36).with_variant(UUID(as_uuid=False), "postgresql")


class Base(DeclarativeBase):
    # Names for Alembic, which changes a constraint or an index by its name.
    metadata = MetaData(
        naming_convention={
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
        }
    )


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    # The column itself: "executions.id" would be a table of Base.metadata.
    execution_id: Mapped[str | None] = mapped_column(
        ExecutionId, ForeignKey(tables.executions.c.id, ondelete="SET NULL"), index=True
    )
