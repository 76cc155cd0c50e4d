"""`migrate`: the schema."""

import argparse

from ..arguments import Commands, add_url
from ..database import mask_password


def register(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "migrate",
        help="create the schema, or bring it up to date",
        description="Create the schema, or bring it up to date. On a database that is up to date"
        " nothing happens.",
    )
    add_url(command)
    command.add_argument(
        "--sql",
        action="store_true",
        help="print the SQL for an empty database instead of running it",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Migrate, or print how."""
    from ... import migrate  # noqa: PLC0415 - brings Alembic, a third of the time that a start takes

    if options.sql:
        migrate.upgrade_sql(options.url)
    else:
        migrate.upgrade(options.url)
        print(f"{mask_password(options.url)} is at {migrate.current(options.url)}")
    return 0
