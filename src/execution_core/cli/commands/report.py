"""`progress`, `checkpoint` and `log`: a command reports to its own execution."""

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
    "Inside `execution-core run`, the environment variables EXECUTION_CORE_URL, EXECUTION_ID and"
    " EXECUTION_ATTEMPT give the database, the execution and the attempt. If this attempt no longer"
    " owns the execution, nothing is written and the exit code is 1."
)

Handler = Callable[[Database, argparse.Namespace, str, int | None], int]
"""Runs a command for an execution and the attempt that must own it, if any."""


def register(commands: Commands) -> None:
    """Add the commands."""
    add = _add_command(commands, "progress", progress, "set the progress of an execution")
    add("current", metavar="CURRENT", type=int, help="number of units done")
    add("total", metavar="TOTAL", type=int, help="total number of units; 0 if unknown")
    add("--message", metavar="M", help="description of the current step")
    add = _add_command(
        commands, "checkpoint", checkpoint, "set or print a checkpoint of an execution"
    )
    add("key", metavar="KEY", help="name of the checkpoint")
    add("value", metavar="VALUE", nargs="?", help="JSON value; text that is not valid JSON is"
        " stored as a string. Without VALUE, print the checkpoint as JSON, or exit with 3 if it is"
        " not set")  # fmt: skip
    add = _add_command(commands, "log", log, "add an entry to the log of an execution")
    add("message", metavar="MESSAGE", help="text of the log entry")
    add("--level", metavar="L", default=LogLevel.INFO,
        help=f"{', '.join(LogLevel)} (default: {LogLevel.INFO})")  # fmt: skip
    add("--data", metavar="JSON", type=json_value, help="JSON data of the log entry")


def progress(database: Database, options: argparse.Namespace, id: str, attempt: int | None) -> int:
    """Set the progress."""
    database.manager.update_progress(
        id, options.current, options.total, message=options.message, attempt=attempt
    )
    return 0


def checkpoint(
    database: Database, options: argparse.Namespace, id: str, attempt: int | None
) -> int:
    """Set or print a checkpoint."""
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
    """Add an entry to the log."""
    database.manager.log(
        id, options.message, level=options.level, data=options.data, attempt=attempt
    )
    return 0


def _add_command(
    commands: Commands, name: str, handler: Handler, summary: str
) -> Callable[..., argparse.Action]:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary.capitalize()}.", epilog=EPILOG
    )
    add_url(command)
    command.add_argument(
        "--id",
        metavar="ID",
        help="the execution: its id or a unique id prefix (default: $EXECUTION_ID)",
    )
    command.add_argument("--attempt", metavar="N", type=int, help="refuse unless this attempt"
        " owns the execution (default: without --id, $EXECUTION_ATTEMPT)")  # fmt: skip
    command.set_defaults(run=lambda options: _run(handler, options, command.error))
    return command.add_argument


def _run(
    handler: Handler, options: argparse.Namespace, usage_error: Callable[[str], NoReturn]
) -> int:
    id, attempt = options.id, options.attempt
    if id is None:
        id, number = os.environ.get("EXECUTION_ID"), os.environ.get("EXECUTION_ATTEMPT")
        if not id:
            usage_error("no execution given: use --id, or run this inside execution-core run")
        if attempt is None and number:
            try:
                attempt = int(number)
            except ValueError:
                usage_error(f"EXECUTION_ATTEMPT is {number!r}, not a whole number")
    with open_database(options.url) as database:
        if options.id is not None:
            with database.reader.connect() as connection:
                id = queries.resolve_id(connection, id)
        return handler(database, options, id, attempt)


def _json_or_text(text: str) -> Any:
    try:
        return json_value(text)
    except argparse.ArgumentTypeError:
        return text
