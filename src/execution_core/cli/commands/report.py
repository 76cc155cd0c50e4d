"""`progress`, `checkpoint` and `log`: a command reports to its own execution."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from ...core.models import LogLevel
from ...tracking.manager import ExecutionManager
from ..arguments import AddArgument, Commands, add_command, json_value
from ..database import open_database
from ..output import warn

NOT_SET = 3
EPILOG = (
    "Inside `execution-core run`, the environment variables EXECUTION_CORE_URL,"
    " EXECUTION_CORE_SCHEMA, EXECUTION_ID and EXECUTION_ATTEMPT give the database, its schema, the"
    " execution and the attempt. If this attempt no longer"
    " owns the execution, nothing is written and the exit code is 1."
)

Handler = Callable[[ExecutionManager, argparse.Namespace], int | None]
"""Runs a command for the execution `id` and for the `attempt` that must own it, if any."""


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
    add("value", metavar="VALUE", nargs="?", help="text. Without VALUE, print the checkpoint, or"
        " exit with 3 if it is not set")  # fmt: skip
    add("--json", action="store_true", help="VALUE is JSON; print the checkpoint as JSON")
    add = _add_command(commands, "log", log, "add an entry to the log of an execution")
    add("message", metavar="MESSAGE", help="text of the log entry; - reads standard input, and each"
        " line becomes an entry")  # fmt: skip
    add("--level", metavar="L", default=LogLevel.INFO,
        help=f"{', '.join(LogLevel)} (default: {LogLevel.INFO})")  # fmt: skip
    add("--data", metavar="JSON", type=json_value, help="JSON data of the log entry")


def progress(manager: ExecutionManager, options: argparse.Namespace) -> None:
    """Set the progress."""
    current, total, message = options.current, options.total, options.message
    if current > total > 0:
        options.usage_error(f"CURRENT {current} is more than TOTAL {total}")
    manager.update_progress(options.id, current, total, message=message, attempt=options.attempt)


def checkpoint(manager: ExecutionManager, options: argparse.Namespace) -> int | None:
    """Set or print a checkpoint."""
    key, value = options.key, options.value
    if value is not None:
        try:
            value = json_value(value) if options.json else value
        except argparse.ArgumentTypeError as error:
            options.usage_error(f"VALUE is {error}")
        manager.checkpoint(options.id, key, value, attempt=options.attempt)
        return None
    checkpoints = manager.get(options.id).checkpoints
    if key not in checkpoints:
        return NOT_SET
    found = checkpoints[key]
    plain = isinstance(found, str) and not options.json
    print(found if plain else json.dumps(found, allow_nan=False))
    return None


def log(manager: ExecutionManager, options: argparse.Namespace) -> None:
    """Add an entry to the log."""
    given: Any = {"level": options.level, "data": options.data, "attempt": options.attempt}
    if options.message != "-":
        manager.log(options.id, options.message, **given)
        return
    for line in sys.stdin.buffer:  # as it comes, for a command that still runs
        if text := line.decode(errors="replace").rstrip("\r\n"):
            manager.log(options.id, text, **given)


def _add_command(commands: Commands, name: str, handler: Handler, summary: str) -> AddArgument:
    add = add_command(
        commands,
        name,
        partial(_run, handler),
        help=summary,
        description=f"{summary.capitalize()}.",
        epilog=EPILOG,
    )
    add(
        "--id",
        metavar="ID",
        help="the execution: its id or a unique id prefix (default: $EXECUTION_ID)",
    )
    add("--attempt", metavar="N", type=int, help="refuse unless this attempt"
        " owns the execution (default: without --id, $EXECUTION_ATTEMPT)")  # fmt: skip
    return add


def _run(handler: Handler, options: argparse.Namespace) -> int | None:
    prefix = options.id
    if prefix is None:
        options.id, number = os.environ.get("EXECUTION_ID"), os.environ.get("EXECUTION_ATTEMPT")
        if options.id == "":
            warn("execution-core: nothing was written: this command runs without a record")
            return NOT_SET if handler is checkpoint and options.value is None else None
        if options.id is None:
            options.usage_error(
                "no execution given: use --id, or run this inside execution-core run"
            )
        if options.attempt is None and number:
            try:
                options.attempt = int(number)
            except ValueError:
                options.usage_error(f"EXECUTION_ATTEMPT is {number!r}, not a whole number")
    with open_database(options.url, options.schema) as database:
        if prefix is not None:
            options.id = database.resolve_id(prefix)
        return handler(database.manager, options)
