"""The env.py of a host with asyncio: `include_name` is the only addition for execution-core."""

import asyncio
import os
from typing import Any

from alembic import context
from models import Base
from sqlalchemy import Connection, NullPool
from sqlalchemy.ext.asyncio import create_async_engine

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


async def main() -> None:
    url = os.environ.get("EXECUTION_CORE_URL", "sqlite+aiosqlite:///host.db")
    async with create_async_engine(url, poolclass=NullPool).begin() as connection:
        await connection.run_sync(run)


if (given := context.config.attributes.get("connection")) is not None:
    run(given)  # in the transaction of upgrade.py, whose event loop runs already
else:
    asyncio.run(main())
