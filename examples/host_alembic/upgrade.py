"""Upgrade both schemas in one transaction; run it in each deployment.

    python upgrade.py

Several runs at once wait for each other: execution-core upgrades first and takes a lock.
"""

import os
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import NullPool, create_engine

from execution_core import migrate


def main() -> None:
    url = os.environ.get("EXECUTION_CORE_URL", "sqlite:///host.db")
    host = Config(Path(__file__).with_name("alembic.ini"))
    with create_engine(url, poolclass=NullPool).begin() as connection:
        migrate.upgrade(connection)
        host.attributes["connection"] = connection
        command.upgrade(host, "head")


if __name__ == "__main__":
    main()
