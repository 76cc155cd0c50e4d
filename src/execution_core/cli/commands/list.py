"""`list`: executions, newest first."""

import argparse
from datetime import datetime, timedelta
from typing import Any

from ...core import validation
from ...core.models import ExecutionStatus
from .. import output, queries
from ..arguments import Commands, add_choices, add_json_flag, add_url, duration, page_limit
from ..database import open_database


def register(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "list",
        help="list executions, newest first",
        description="List executions, newest first. Payloads, results and stack traces are printed"
        " only with --with.",
    )
    add_url(command)
    add_json_flag(command)
    add_choices(
        command, "--status", ExecutionStatus, "only executions with this status; may be repeated"
    )
    command.add_argument("--type", help="only executions of this type")
    command.add_argument("--parent", metavar="ID", help="only children of this execution")
    command.add_argument(
        "--newer-than", metavar="AGE", type=duration, help="created less than AGE ago, e.g. 2h"
    )
    command.add_argument(
        "--older-than", metavar="AGE", type=duration, help="created more than AGE ago, e.g. 7d"
    )
    command.add_argument(
        "--finished-within", metavar="AGE", type=duration, help="finished less than AGE ago"
    )
    command.add_argument(
        "--limit", type=page_limit, default=25, help="maximum number of executions (default: 25)"
    )
    command.add_argument(
        "--before", metavar="ID", help="continue after this execution: the next page"
    )
    extra = ("payload", "result", "metadata", "checkpoints", "stack")
    add_choices(command, "--with", extra, "also print this field; may be repeated")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print one page."""
    extra = getattr(options, "with")
    with open_database(options.url) as database, database.reader.connect() as connection:
        now = queries.now(connection)

        def time_of(age: timedelta | None) -> datetime | None:
            return None if age is None else now - validation.delay("age", age)

        def full_id(id: str | None) -> str | None:
            return None if id is None else queries.resolve_id(connection, id)

        found = queries.rows(
            connection,
            queries.page(
                statuses=options.status,
                type=None if options.type is None else validation.name("type", options.type),
                parent_id=full_id(options.parent),
                created=(time_of(options.newer_than), time_of(options.older_than)),
                finished_since=time_of(options.finished_within),
                before=full_id(options.before),
                limit=options.limit,
            ),
        )
        queries.add_columns(connection, found, extra)
        ids = queries.short_ids(connection, [row["execution_id"] for row in found])
    more = found[-1]["execution_id"] if len(found) == options.limit else None
    if options.json:
        output.print_json({"executions": queries.with_id(found), "next_before": more})
        return 0
    headers = ["ID", "TYPE", "STATUS", "ATTEMPT", "PROGRESS", "AGE", "WORKER", "ERROR"]
    output.print_table(
        [*headers, *(name.upper() for name in extra)],
        [_to_cells(row, ids[row["execution_id"]], now, extra) for row in found],
    )
    if not found:
        output.warn("no executions")
    elif more is not None:
        output.warn(f"there may be more executions: add --before {ids[more]}")
    return 0


def _to_cells(row: dict[str, Any], id: str, now: Any, extra: list[str]) -> list[output.Cell]:
    percent = row["progress_percent"]
    return [
        id,
        output.shorten(row["type"], 30),
        row["status"],
        f"{row['attempts']}/{row['max_attempts']}",
        None if percent is None else f"{percent:.4g}%",
        now - row["created_at"],
        None if row["worker"] is None else output.shorten(row["worker"], 30),
        None if row["error_message"] is None else output.shorten(row["error_message"], 60),
        *(output.shorten(output.compact(row[name]), 200) for name in extra),
    ]
