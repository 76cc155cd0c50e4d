"""`progress`, `checkpoint` and `log`: what a command that `run` runs reports about itself."""

import argparse
import json
import os
from collections.abc import Callable
from typing import Any, NoReturn

from ...core.models import LogLevel
from .. import queries
from ..arguments import Commands, add_url, json_value
from ..database import Database, open_database

NOT_SET = 3
EPILOG = (
    "In a command that `execution-core run` runs, EXECUTION_CORE_URL, EXECUTION_ID and"
    " EXECUTION_ATTEMPT say what this is about. An attempt that no longer owns the execution is"
    " refused, with exit code 1, and changes nothing."
)

Report = Callable[[Database, argparse.Namespace, str, int | None], int]
"""Reports to a database, about an execution and the attempt that must own it, if any."""


def register(commands: Commands) -> None:
    """Add the commands."""
    add = _added(commands, "progress", progress, "report how far an execution is")
    add("current", metavar="CURRENT", type=int, help="how much is done")
    add("total", metavar="TOTAL", type=int, help="of how much; 0 when that is unknown")
    add("--message", metavar="M", help="what is being done")
    add = _added(commands, "checkpoint", checkpoint, "set or print a checkpoint of an execution")
    add("key", metavar="KEY", help="its name")
    add("value", metavar="VALUE", nargs="?", help="any JSON value; what is no JSON is a text."
        " Without it the checkpoint is printed as JSON; not set: exit code 3")  # fmt: skip
    add = _added(commands, "log", log, "add a line to the log of an execution")
    add("message", metavar="MESSAGE", help="the line")
    add("--level", metavar="L", default=LogLevel.INFO,
        help=f"{', '.join(LogLevel)} (default: {LogLevel.INFO})")  # fmt: skip
    add("--data", metavar="JSON", type=json_value, help="what belongs to it")


def progress(database: Database, options: argparse.Namespace, id: str, attempt: int | None) -> int:
    """Replace the progress."""
    database.manager.update_progress(
        id, options.current, options.total, message=options.message, attempt=attempt
    )
    return 0


def checkpoint(
    database: Database, options: argparse.Namespace, id: str, attempt: int | None
) -> int:
    """Set a checkpoint, or print it."""
    key = options.key
    if options.value is not None:
        database.manager.checkpoint(id, key, _json_or_text(options.value), attempt=attempt)
        return 0
    checkpoints = database.manager.get(id).checkpoints
    if key not in checkpoints:
        return NOT_SET
    print(json.dumps(checkpoints[key], allow_nan=False))
    return 0


def log(database: Database, options: argparse.Namespace, id: str, attempt: int | None) -> int:
    """Add a line to the log."""
    database.manager.log(
        id, options.message, level=options.level, data=options.data, attempt=attempt
    )
    return 0


def _added(
    commands: Commands, name: str, report: Report, summary: str
) -> Callable[..., argparse.Action]:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary.capitalize()}.", epilog=EPILOG
    )
    add_url(command)
    command.add_argument(
        "--id",
        metavar="ID",
        help="the execution, or the beginning of its id (default: $EXECUTION_ID)",
    )
    command.add_argument("--attempt", metavar="N", type=int, help="the attempt that must own it"
        " (default: with $EXECUTION_ID, $EXECUTION_ATTEMPT)")  # fmt: skip
    command.set_defaults(run=lambda options: _reported(report, options, command.error))
    return command.add_argument


def _reported(
    report: Report, options: argparse.Namespace, misused: Callable[[str], NoReturn]
) -> int:
    id, attempt = options.id, options.attempt
    if id is None:
        id, number = os.environ.get("EXECUTION_ID"), os.environ.get("EXECUTION_ATTEMPT")
        if not id:
            misused("no execution is named: give --id, or call it in what execution-core run runs")
        if attempt is None and number:
            try:
                attempt = int(number)
            except ValueError:
                misused(f"EXECUTION_ATTEMPT is {number!r}, which is no number")
    with open_database(options.url) as database:
        if options.id is not None:
            with database.reader.connect() as connection:
                id = queries.resolve_id(connection, id)
        return report(database, options, id, attempt)


def _json_or_text(text: str) -> Any:
    try:
        return json_value(text)
    except argparse.ArgumentTypeError:
        return text
