"""Upgrade both schemas in one transaction; run it in each deployment.

    python upgrade.py

execution-core upgrades first: it creates the table to which the foreign key refers, and takes a
lock, so that several runs at once wait for each other.
"""

import asyncio
import os
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, NullPool
from sqlalchemy.ext.asyncio import create_async_engine

from execution_core import migrate


def upgrade(connection: Connection) -> None:
    migrate.upgrade(connection)
    host = Config(Path(__file__).with_name("alembic.ini"))
    host.attributes["connection"] = connection
    command.upgrade(host, "head")


async def main() -> None:
    url = os.environ.get("EXECUTION_CORE_URL", "sqlite+aiosqlite:///host.db")
    async with create_async_engine(url, poolclass=NullPool).begin() as connection:
        await connection.run_sync(upgrade)


if __name__ == "__main__":
    asyncio.run(main())
