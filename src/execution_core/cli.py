"""The command line: `execution-core`."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from . import migrate
from .errors import ExecutionProblem
from .sql.engines import DEFAULT_URL


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 refused or failed, 2 misused."""
    options = _parser().parse_args(arguments)
    try:
        if options.sql:
            migrate.upgrade_sql(options.url)
        else:
            migrate.upgrade(options.url)
            # The repr of a URL hides its password.
            print(f"{make_url(options.url)!r} is at {migrate.current(options.url)}")
    except ExecutionProblem as problem:
        return _refused(str(problem))
    except DBAPIError as error:
        return _refused(f"{make_url(options.url)!r}: {error.orig}")
    return 0


def _refused(reason: str) -> int:
    print(f"execution-core: {reason.strip()}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="execution-core", description="Operate the executions that a service tracks."
    )
    parser.add_argument("--version", action="version", version=version("execution-core"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    upgrade = commands.add_parser(
        "migrate",
        help="create the schema, or bring it up to date",
        description="Create the schema, or bring it up to date. On a database that is up to date"
        " nothing happens.",
    )
    upgrade.add_argument(
        "--url",
        default=os.environ.get("EXECUTION_CORE_URL") or DEFAULT_URL,
        help="the database, as a SQLAlchemy URL of PostgreSQL or SQLite"
        f" (default: $EXECUTION_CORE_URL, else {DEFAULT_URL})",
    )
    upgrade.add_argument(
        "--sql",
        action="store_true",
        help="print the SQL for an empty database instead of running it",
    )
    return parser
