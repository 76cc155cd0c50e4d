"""`migrate`: create or upgrade the schema."""

import argparse

from ...sql.driver.engine import MIGRATION_LOCK_TIMEOUT
from ..arguments import Commands, add_command, duration
from ..database import mask_password


def register(commands: Commands) -> None:
    """Add the command."""
    add = add_command(
        commands,
        "migrate",
        run,
        help="create the schema or upgrade it",
        description="Create the schema or upgrade it to the newest revision. A schema that is up to"
        " date is not changed.",
    )
    add(
        "--sql",
        action="store_true",
        help="print the SQL for an empty database instead of executing it",
    )
    add(
        "--lock-timeout",
        metavar="DURATION",
        type=duration,
        default=MIGRATION_LOCK_TIMEOUT,
        help="how long to wait for a lock on a table of PostgreSQL (default: 10s)",
    )


def run(options: argparse.Namespace) -> None:
    """Migrate, or print the SQL."""
    from ... import migrate  # noqa: PLC0415 - imports Alembic, a third of the start-up time

    if options.sql:
        migrate.upgrade_sql(options.url, schema=options.schema)
    else:
        schema = options.schema
        migrate.upgrade(options.url, schema=schema, lock_timeout=options.lock_timeout)
        revision = migrate.current(options.url, schema=schema)
        print(f"{mask_password(options.url)} is at {revision}")
