"""`list`: executions, newest first."""

import argparse
from datetime import datetime, timedelta

from ...core import validation
from ...core.models import ExecutionStatus
from .. import output, progress, queries
from ..arguments import Commands, add_choices, add_command, add_json_flag, duration, page_limit
from ..database import open_database


def register(commands: Commands) -> None:
    """Add the command."""
    add = add_command(
        commands,
        "list",
        run,
        help="list executions, newest first",
        description="List executions, newest first. Payloads, results and stack traces are printed"
        " only with --with.",
    )
    add_json_flag(add)
    add_choices(add, "--status", ExecutionStatus, "only executions with this status")
    add("--type", help="only executions of this type")
    add("--key", metavar="K", help="only the execution with this idempotency key")
    add("--parent", metavar="ID", help="only children of this execution")
    for option, which in (
        ("--newer-than", "created less than AGE ago, e.g. 2h"),
        ("--older-than", "created more than AGE ago, e.g. 7d"),
        ("--finished-within", "finished less than AGE ago"),
    ):
        add(option, metavar="AGE", type=duration, help=which)
    add("--attention", action="store_true", help="only executions that need attention, with the"
        " reason and what to do first; with --status, --type and --limit alone")  # fmt: skip
    add("--limit", type=page_limit, default=25, help="maximum number of executions (default: 25)")
    add("--before", metavar="ID", help="continue after this execution: the next page")
    extra = ("payload", "result", "metadata", "checkpoints", "stack")
    add_choices(add, "--with", extra, "also print this field")


def run(options: argparse.Namespace) -> None:
    """Print one page."""
    if options.attention:
        _print_attention(options)
        return
    extra = getattr(options, "with")
    with (
        open_database(options.url, options.schema) as database,
        database.reader.connect() as connection,
    ):
        now = queries.now(connection)

        def time_of(age: timedelta | None) -> datetime | None:
            return None if age is None else now - validation.delay("age", age)

        def full_id(id: str | None) -> str | None:
            return None if id is None else queries.resolve_id(connection, id)

        page = queries.page(
            statuses=options.status,
            type=None if options.type is None else validation.name("type", options.type),
            parent_id=full_id(options.parent),
            key=options.key,
            created=(time_of(options.newer_than), time_of(options.older_than)),
            finished_since=time_of(options.finished_within),
            before=full_id(options.before),
            limit=options.limit,
        )
        found = queries.rows(connection, page)
        queries.add_columns(connection, found, extra)
        ids = queries.short_ids(connection, [row["id"] for row in found])
        if not options.json:
            queries.add_children(connection, found)
    more = found[-1]["id"] if len(found) == options.limit else None
    if options.json:
        output.print_json({"executions": found, "next_before": more})
        return
    for row in found:
        row |= {name: output.shorten_json(row[name]) for name in extra}
    columns: output.Columns = {
        "ID": lambda row: ids[row["id"]],
        "TYPE": "type",
        "KEY": lambda row: output.shorten(row["idempotency_key"], 40),
        "STATUS": "status",
        "ATTEMPT": output.format_attempt,
        "PROGRESS": _format_progress,
        "AGE": lambda row: now - row["created_at"],
        "SILENT": progress.silent_seconds,
        "WORKER": "worker",
        "ERROR": lambda row: output.shorten(row["error_message"], 60),
        **{name.upper(): name for name in extra},
    }
    output.print_table(columns, found)
    if not found:
        output.warn("no executions")
    elif more is not None:
        output.warn(f"there may be more executions: add --before {ids[more]}")


def _format_progress(row: output.Row) -> str | None:
    """Return the percentage; none if it is completed: its last report may be lower."""
    if row["status"] == ExecutionStatus.COMPLETED or (done := progress.measure(row)) is None:
        return None
    return output.format_percent(done[2])


def _print_attention(options: argparse.Namespace) -> None:
    others = ("key", "parent", "newer_than", "older_than", "finished_within", "before", "with")
    if wrong := next((name for name in others if getattr(options, name)), None):
        option = wrong.replace("_", "-")
        options.usage_error(f"--attention takes --status, --type and --limit, not --{option}")
    with (
        open_database(options.url, options.schema) as database,
        database.reader.connect() as connection,
    ):
        page = queries.attention(
            statuses=options.status,
            type=None if options.type is None else validation.name("type", options.type),
            limit=options.limit,
        )
        found = queries.rows(connection, page)
        ids = queries.short_ids(connection, [row["id"] for row in found])
    if options.json:
        output.print_json({"executions": found})
        return
    columns: output.Columns = {
        "ID": lambda row: ids[row["id"]],
        "TYPE": "type",
        "KEY": lambda row: output.shorten(row["idempotency_key"], 40),
        "REASON": "reason",
        "ACTION": _describe_action,
        "FOR": "since_seconds",
        "ATTEMPT": output.format_attempt,
        "WORKER": "worker",
        "ERROR": lambda row: output.shorten(row["error_message"], 60),
    }
    output.print_table(columns, found)
    if not found:
        output.note("nothing needs attention")
    elif len(found) == options.limit:
        output.warn("there may be more: increase --limit")


def _describe_action(row: output.Row) -> str:
    """Return what to do first; with `retry --extra-attempts 1` if all attempts are used."""
    used = row["action"] == "retry" and row["attempts"] >= row["max_attempts"]
    return "retry, 1 extra" if used else str(row["action"])
