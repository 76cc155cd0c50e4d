"""`progress`, `checkpoint` and `log`: a command reports to its own execution."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ...core.models import LogLevel
from ...tracking.manager import ExecutionManager
from ..arguments import AddArgument, Commands, Parser, add_command, json_value
from ..database import Database, open_database
from ..output import warn

NOT_SET = 3
EPILOG = (
    "Inside `execution-core run`, the environment variables EXECUTION_CORE_URL,"
    " EXECUTION_CORE_SCHEMA, EXECUTION_ID and EXECUTION_ATTEMPT give the database, its schema, the"
    " execution and the attempt. If this attempt no longer"
    " owns the execution, nothing is written and the exit code is 1."
)
NO_RECORD = "this command runs without a record"


class Reply(NamedTuple):
    """What a command prints, and its exit code."""

    code: int = 0
    out: str = ""
    err: str = ""


Handler = Callable[[ExecutionManager, argparse.Namespace], Reply]
"""Carries out a command for the execution `id` and the `attempt` that must own it, if any."""


def register(commands: Commands) -> None:
    """Add the commands."""
    add = _add_command(commands, "progress", "set the progress of an execution")
    add("current", metavar="CURRENT", type=int, help="number of units done")
    add("total", metavar="TOTAL", type=int, help="total number of units; 0 if unknown")
    add("--message", metavar="M", help="description of the current step")
    add = _add_command(commands, "checkpoint", "set or print a checkpoint of an execution")
    add("key", metavar="KEY", help="name of the checkpoint")
    add("value", metavar="VALUE", nargs="?", help="text. Without VALUE, print the checkpoint, or"
        " exit with 3 if it is not set")  # fmt: skip
    add("--json", action="store_true", help="VALUE is JSON; print the checkpoint as JSON")
    add = _add_command(commands, "log", "add an entry to the log of an execution")
    add("message", metavar="MESSAGE", help="text of the log entry; - reads standard input, and each"
        " line becomes an entry")  # fmt: skip
    add("--level", metavar="L", default=LogLevel.INFO,
        help=f"{', '.join(LogLevel)} (default: {LogLevel.INFO})")  # fmt: skip
    add("--data", metavar="JSON", type=json_value, help="JSON data of the log entry")


def build_parser() -> argparse.ArgumentParser:
    """Return a parser for these commands alone."""
    parser = Parser(prog="execution-core")
    register(parser.add_subparsers(dest="command", required=True, metavar="COMMAND"))
    return parser


def progress(manager: ExecutionManager, options: argparse.Namespace) -> Reply:
    """Set the progress."""
    current, total, message = options.current, options.total, options.message
    if current > total > 0:
        options.usage_error(f"CURRENT {current} is more than TOTAL {total}")
    manager.update_progress(options.id, current, total, message=message, attempt=options.attempt)
    return Reply()


def checkpoint(manager: ExecutionManager, options: argparse.Namespace) -> Reply:
    """Set or return a checkpoint."""
    key, value = options.key, options.value
    if value is not None:
        try:
            value = json_value(value) if options.json else value
        except argparse.ArgumentTypeError as error:
            options.usage_error(f"VALUE is {error}")
        manager.checkpoint(options.id, key, value, attempt=options.attempt)
        return Reply()
    checkpoints = manager.get(options.id).checkpoints
    if key not in checkpoints:
        return Reply(NOT_SET)
    found = checkpoints[key]
    plain = isinstance(found, str) and not options.json
    return Reply(out=f"{found if plain else json.dumps(found, allow_nan=False)}\n")


def log(manager: ExecutionManager, options: argparse.Namespace) -> Reply:
    """Add an entry to the log."""
    given: Any = {"level": options.level, "data": options.data, "attempt": options.attempt}
    manager.log(options.id, options.message, **given)
    return Reply()


def complete_from(
    options: argparse.Namespace, environment: Mapping[str, str | None]
) -> Reply | None:
    """Take what is not given from the environment; return the reply if there is no record."""
    options.prefix = options.id
    if options.prefix is not None:
        return None
    id, number = environment.get("EXECUTION_ID"), environment.get("EXECUTION_ATTEMPT")
    if id is None:
        options.usage_error("no execution given: use --id, or run this inside execution-core run")
    if not id:  # see `run --run-anyway`
        reads = options.command == "checkpoint" and options.value is None
        return Reply(
            NOT_SET if reads else 0, err=f"execution-core: nothing was written: {NO_RECORD}"
        )
    options.id = id
    if options.attempt is None and number:
        try:
            options.attempt = int(number)
        except ValueError:
            options.usage_error(f"EXECUTION_ATTEMPT is {number!r}, not a whole number")
    return None


def carry_out(options: argparse.Namespace, database: Database) -> Reply:
    """Run a parsed command with complete options."""
    if options.prefix is not None:
        options.id = database.resolve_id(options.prefix)
    handlers: dict[str, Handler] = {"progress": progress, "checkpoint": checkpoint, "log": log}
    return handlers[options.command](database.manager, options)


def _add_command(commands: Commands, name: str, summary: str) -> AddArgument:
    description = f"{summary.capitalize()}."
    add = add_command(commands, name, _run, help=summary, description=description, epilog=EPILOG)
    add(
        "--id",
        metavar="ID",
        help="the execution: its id or a unique id prefix (default: $EXECUTION_ID)",
    )
    add("--attempt", metavar="N", type=int, help="refuse unless this attempt"
        " owns the execution (default: without --id, $EXECUTION_ATTEMPT)")  # fmt: skip
    return add


def _run(options: argparse.Namespace) -> int:
    lines = options.command == "log" and options.message == "-"
    reply = complete_from(options, os.environ)
    if reply is None:
        with open_database(options.url, options.schema) as database:
            if lines:
                for options.message in _read_lines():
                    reply = carry_out(options, database)
            else:
                reply = carry_out(options, database)
    elif lines:
        for _ in _read_lines():  # what writes into the pipe is not to fail
            pass
    reply = reply or Reply()
    sys.stdout.write(reply.out)
    if reply.err:
        warn(reply.err)
    return reply.code


def _read_lines() -> Iterator[str]:
    """Yield the lines of standard input as they come, for a command that still runs."""
    for line in sys.stdin.buffer:
        if text := line.decode(errors="replace").rstrip("\r\n"):
            yield text
