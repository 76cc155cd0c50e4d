"""What a deployment runs: both schemas are brought up to date in one transaction, or neither.

    python upgrade.py

Several at once wait for each other: execution-core's part comes first, and locks.
"""

import os
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from execution_core import migrate


def main() -> None:
    engine = create_engine(os.environ.get("EXECUTION_CORE_URL", "sqlite:///host.db"))
    host = Config(Path(__file__).with_name("alembic.ini"))
    with engine.begin() as connection:
        migrate.upgrade(connection)
        host.attributes["connection"] = connection
        command.upgrade(host, "head")
    engine.dispose()


if __name__ == "__main__":
    main()
