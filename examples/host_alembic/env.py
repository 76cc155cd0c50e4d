"""The env.py of the host: `include_name` is the only addition for execution-core."""

import os
from typing import Any

from alembic import context
from models import Base
from sqlalchemy import Connection, NullPool, create_engine

from execution_core import migrate


def include_name(name: str | None, kind: str, _: Any) -> bool:
    """Ignore the tables of execution-core; autogenerate would drop them."""
    return kind != "table" or not migrate.owns(name)


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_name=include_name,
        render_as_batch=True,
    )
    with context.begin_transaction():
        context.run_migrations()


if (connection := context.config.attributes.get("connection")) is not None:
    run(connection)  # in the transaction of upgrade.py
else:
    url = os.environ.get("EXECUTION_CORE_URL", "sqlite:///host.db")
    with create_engine(url, poolclass=NullPool).begin() as connection:
        run(connection)
