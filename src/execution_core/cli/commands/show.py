"""`show`: print one execution in full."""

import argparse
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from ...core.models import Execution, LogEntry
from .. import output, queries
from ..arguments import Commands, add_id, add_json_flag, add_url, page_limit
from ..database import open_database

MAX_VALUE: Final = 1_000
"""Without --full, print at most this many characters of a JSON value."""
MAX_STACK: Final = 10_000


def register(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "show",
        help="show one execution: attempts, timeline, children, log, stack trace",
        description="Show one execution: its attempts, timeline, children, replays and log, its"
        " error with the stack trace, its payload and result (at most the first"
        f" {MAX_VALUE:,} characters of each without --full).",
    )
    add_id(command)
    add_url(command)
    add_json_flag(command)
    command.add_argument("--full", action="store_true", help="print large values in full")
    command.add_argument(
        "--limit",
        type=page_limit,
        default=20,
        help="maximum number of children, replays and log entries, newest first (default: 20)",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print one execution."""
    with open_database(options.url) as database:
        with database.reader.connect() as connection:
            id = queries.resolve_id(connection, options.id)
            now = queries.now(connection)
            children = queries.page(parent_id=id, limit=options.limit)
            related = {
                "attempts": queries.rows(connection, queries.attempts(id)),
                "timeline": queries.rows(connection, queries.timeline(id)),
                "children": queries.rows(connection, children),
                "replays": queries.rows(connection, queries.replays(id, options.limit)),
            }
        execution = database.manager.get(id)
        logs = database.manager.logs(id, limit=options.limit)[::-1]
    if options.json:
        facts = execution.model_dump(exclude={"fingerprint", "timeout"})
        timeout_ms = execution.timeout and execution.timeout // timedelta(milliseconds=1)
        linked = {name: queries.with_id(related[name]) for name in ("children", "replays")}
        output.print_json(
            {"execution": facts | {"timeout_ms": timeout_ms}}
            | related
            | linked
            | {"logs": [entry.model_dump(exclude={"execution_id"}) for entry in logs]}
        )
        return 0
    print_execution(execution, related, logs, now, None if options.full else MAX_VALUE)
    return 0


def print_execution(
    execution: Execution,
    related: dict[str, queries.Rows],
    logs: list[LogEntry],
    now: datetime,
    limit: int | None,
) -> None:
    """Print an execution as text, at most `limit` characters of each value."""
    output.print_facts([fact for fact in _list_facts(execution, now) if fact[1] is not None])
    for name in ("payload", "result", "metadata", "checkpoints"):
        if value := getattr(execution, name):
            text = json.dumps(value, indent=2, ensure_ascii=False)
            output.print_block(name.upper(), text, limit)
    failures = [each for each in related["attempts"] if each["error"]]
    if failures and (stack := failures[-1]["error"].get("stack")):
        title = f"STACK OF ATTEMPT {failures[-1]['attempt']}"
        output.print_block(title, str(stack).rstrip(), None if limit is None else MAX_STACK)
    output.print_table(
        ["ATTEMPT", "STARTED", "TOOK", "OUTCOME", "WORKER", "ERROR"],
        [
            [
                each["attempt"],
                each["started_at"],
                output.format_duration(each["duration_seconds"]),
                each["outcome"],
                each["worker"],
                each["error"] and output.shorten(str(each["error"].get("message")), 60),
            ]
            for each in related["attempts"]
        ],
        title="Attempts",
    )
    output.print_table(
        ["SEQ", "WHEN", "AFTER", "FROM", "TO", "WORKER", "REASON"],
        [
            [
                *(
                    each["seq"],
                    each["occurred_at"],
                    output.format_duration(each["seconds_since_last"]),
                ),
                *(each["from_status"], each["to_status"], each["worker"], each["reason"]),
            ]
            for each in related["timeline"]
        ],
        title="Timeline",
    )
    for name in ("children", "replays"):
        output.print_table(
            ["ID", "TYPE", "STATUS", "ATTEMPT", "AGE"],
            [
                [
                    *(each["execution_id"], each["type"], each["status"]),
                    *(f"{each['attempts']}/{each['max_attempts']}", now - each["created_at"]),
                ]
                for each in related[name]
            ],
            title=name.title(),
        )
    output.print_table(
        ["WHEN", "ATTEMPT", "LEVEL", "MESSAGE", "DATA"],
        [
            [
                *(entry.logged_at, entry.attempt, entry.level.value),
                output.escape(entry.message, lines=True)[:limit],
                entry.data and output.shorten(output.compact(entry.data), 200),
            ]
            for entry in logs
        ],
        title="Log",
    )


def _list_facts(execution: Execution, now: datetime) -> Iterator[tuple[str, Any]]:
    yield "execution", execution.id
    yield "type", execution.type
    yield "status", execution.status.value
    yield "attempt", f"{execution.attempts} of {execution.max_attempts}"
    if execution.error is not None:
        code = f" [{execution.error.code}]" if execution.error.code else ""
        again = ", retryable" if execution.error.retryable else ""
        yield "error", f"{execution.error.message}{code}{again}"
    if (progress := execution.progress) is not None:
        message = f"  {progress.message}" if progress.message else ""
        done = f"{progress.current} of {progress.total}, {progress.percent:.4g}%"
        yield "progress", done + message
    yield "worker", execution.worker
    yield "key", execution.idempotency_key
    yield "parent", execution.parent_id
    yield "replay of", execution.replay_of
    yield "timeout", execution.timeout
    for name in ("created", "started", "heartbeat", "deadline", "due", "completed"):
        time: datetime | None = getattr(execution, f"{name}_at")
        yield name, time and f"{output.format_cell(time)}  {_format_age(now, time)}"


def _format_age(now: datetime, time: datetime) -> str:
    seconds = (now - time).total_seconds()
    return (
        f"{output.format_duration(seconds)} ago"
        if seconds >= 0
        else f"in {output.format_duration(-seconds)}"
    )
