"""`show`: print one execution in full."""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from ...core.errors import ExecutionNotFound
from ...core.models import Execution, ExecutionStatus
from ...sql.schema.views import execution_attempts, execution_timeline
from .. import output, progress, queries
from ..arguments import Commands, add_command, add_id, add_json_flag, page_limit
from ..database import open_database

MAX_VALUE: Final = 1_000
"""Without --full, print at most this many characters of a JSON value."""
MAX_LINKED: Final = 20
MAX_TREE: Final = 1_000
INDENT: Final = "  "
MAX_DEPTH: Final = 20
"""A tree is indented up to this depth."""
MAX_STACK: Final = 10_000


def register(commands: Commands) -> None:
    """Add the command."""
    add = add_command(
        commands,
        "show",
        run,
        help="show one execution: attempts, timeline, children, log, stack trace",
        description="Show one execution: its attempts, timeline, children, replays and log, its"
        " error with the stack trace, its payload and result (at most the first"
        f" {MAX_VALUE:,} characters of each without --full).",
    )
    add_id(add)
    add_json_flag(add)
    add("--full", action="store_true", help="print large values in full")
    add(
        "--limit",
        type=page_limit,
        help="maximum number of children, replays and log entries, newest first (default:"
        f" {MAX_LINKED}); with --tree, of executions, upper levels first (default: {MAX_TREE:,})",
    )
    add(
        "--tree",
        action="store_true",
        help="show it and all executions below it, one per line, indented; in a pipe with a column"
        " DEPTH; with --json as a flat list in the same order, each with depth and parent_id",
    )


def run(options: argparse.Namespace) -> None:
    """Print one execution, or the tree below it."""
    if options.tree:
        if options.full:
            options.usage_error("--tree does not take --full")
        _run_tree(options)
        return
    limit = options.limit or MAX_LINKED
    with open_database(options.url, options.schema) as database:
        id = database.resolve_id(options.id)
        execution = database.manager.get(id)
        logs = database.manager.logs(id, limit=limit)[::-1]
        with database.reader.connect() as connection:
            now = queries.now(connection)
            selects = {
                "attempts": queries.history(execution_attempts, id, "attempt"),
                "timeline": queries.history(execution_timeline, id, "seq"),
                "children": queries.page(parent_id=id, limit=limit),
                "replays": queries.replays(id, limit),
            }
            related = {name: queries.rows(connection, query) for name, query in selects.items()}
            counts = queries.children_counts(connection, [id]).get(id)
    log = [entry.model_dump(exclude={"execution_id"}) for entry in logs]
    if options.json:
        facts = execution.model_dump(exclude={"fingerprint", "timeout"})
        facts["timeout_ms"] = execution.timeout and execution.timeout // timedelta(milliseconds=1)
        document = {"execution": facts} | related | {"children_counts": counts, "logs": log}
        output.print_json(document)
    else:
        limit = None if options.full else MAX_VALUE
        print_execution(execution, related | {"log": log}, counts, now, limit)


def print_execution(
    execution: Execution,
    related: dict[str, queries.Rows],
    counts: output.Row | None,
    now: datetime,
    limit: int | None,
) -> None:
    """Print an execution as text, at most `limit` characters of each value."""
    facts = _list_facts(execution, counts, now)
    output.print_facts(fact for fact in facts if fact[1] is not None)
    for name in ("payload", "result", "metadata", "checkpoints"):
        if value := getattr(execution, name):
            text = json.dumps(value, indent=2, ensure_ascii=False)
            output.print_block(name.upper(), text, limit)
    failures = [each for each in related["attempts"] if each["error"]]
    if failures and (stack := failures[-1]["error"].get("stack")):
        title = f"STACK OR OUTPUT OF ATTEMPT {failures[-1]['attempt']}"
        output.print_block(title, str(stack).rstrip(), None if limit is None else MAX_STACK)
    linked: output.Columns = {
        "ID": "id",
        "TYPE": "type",
        "STATUS": "status",
        "ATTEMPT": output.format_attempt,
        "AGE": lambda row: now - row["created_at"],
    }
    tables: dict[str, output.Columns] = {
        "attempts": {
            "ATTEMPT": "attempt",
            "STARTED": "started_at",
            "TOOK": "duration_seconds",
            "OUTCOME": "outcome",
            "WORKER": "worker",
            "ERROR": lambda row: output.shorten(row["error_message"], 60),
        },
        "timeline": {
            "SEQ": "seq",
            "WHEN": "occurred_at",
            "AFTER": "seconds_since_last",
            "FROM": "from_status",
            "TO": "to_status",
            "WORKER": "worker",
            "BY": "actor",
            "REASON": "reason",
        },
        "children": linked,
        "replays": linked,
    }
    for name, columns in tables.items():
        title, shown = name.title(), len(related[name])
        if name == "children" and counts and shown < counts["total"]:
            title += f" (the newest {shown:,} of {counts['total']:,}: --tree shows more)"
        output.print_table(columns, related[name], title=title)
    _print_log(related["log"], limit)


def _print_log(entries: queries.Rows, limit: int | None) -> None:
    """Print log entries, not as a table: a message may have many lines."""
    for number, entry in enumerate(entries):
        if not number:
            print("\nLog")
        head = entry["logged_at"], entry["attempt"], entry["level"]
        first, *more = output.escape(entry["message"][:limit], lines=True).splitlines() or [""]
        print("  ".join([*map(output.format_cell, head), first]))
        if entry["data"] is not None:
            more.append(str(output.shorten_json(entry["data"])))
        for line in more:
            print(f"    {line}")


def _list_facts(
    execution: Execution, counts: output.Row | None, now: datetime
) -> Iterator[tuple[str, Any]]:
    yield "execution", execution.id
    yield "type", execution.type
    yield "status", execution.status
    yield "attempt", f"{execution.attempts} of {execution.max_attempts}"
    if execution.error is not None:
        code = f" [{execution.error.code}]" if execution.error.code else ""
        again = ", retryable" if execution.error.retryable else ""
        yield "error", f"{execution.error.message}{code}{again}"
    if (own := execution.progress) is not None:
        message = f"  {own.message}" if own.message else ""
        yield "progress", f"{own.current} of {own.total}, {own.percent:.4g}%{message}"
    if counts is not None:
        awaits = execution.awaits_children_since and execution.status is ExecutionStatus.RUNNING
        yield "children", progress.describe_children(counts) + ("; they end it" if awaits else "")
    yield "worker", execution.worker
    yield "key", execution.idempotency_key
    yield "parent", execution.parent_id
    yield "replay of", execution.replay_of
    yield "timeout", execution.timeout
    for name in ("created", "started", "heartbeat", "deadline", "due", "completed"):
        if (time := getattr(execution, f"{name}_at")) is not None:
            past, age = time <= now, output.format_cell(abs(now - time))
            if name == "completed" and execution.status is not ExecutionStatus.COMPLETED:
                name = "ended"  # noqa: PLW2901
            yield name, f"{output.format_cell(time)}  " + (f"{age} ago" if past else f"in {age}")


def _run_tree(options: argparse.Namespace) -> None:
    limit = options.limit or MAX_TREE
    with open_database(options.url, options.schema) as database:
        id = database.resolve_id(options.id)
        with database.reader.connect() as connection:
            found = order_tree(queries.rows(connection, queries.tree(id, limit + 1)), id)
            more = len(found) > limit
            found = found[:limit]
            queries.add_children(connection, found)
            ids = queries.short_ids(connection, [row["id"] for row in found])
    if options.json:
        output.print_json({"executions": found, "more": more})
        return
    indented = sys.stdout.isatty()
    columns: output.Columns = {
        **({} if indented else {"DEPTH": "depth"}),
        "TYPE": lambda row: INDENT * min(row["depth"] * indented, MAX_DEPTH) + row["type"],
        "STATUS": "status",
        "DONE": progress.format_done,
        "ID": lambda row: ids[row["id"]],
        "ERROR": lambda row: output.shorten(row["error_message"], 60) or ("" if indented else None),
    }
    output.print_lines(columns, found)
    if more:
        output.warn(f"there are more than {limit:,} executions: increase --limit")


def order_tree(found: queries.Rows, root: str) -> queries.Rows:
    """Return the rows in the order of a tree, each below its parent, with its `depth`."""
    by_id = {row["id"]: row for row in found}
    if root not in by_id:  # deleted a moment ago
        raise ExecutionNotFound(root)
    children: dict[str, list[str]] = defaultdict(list)
    for id in sorted(by_id.keys() - {root}, reverse=True):
        children[by_id[id]["parent_id"]].append(id)
    ordered, waiting = [], [(root, 0)]
    while waiting:
        id, depth = waiting.pop()
        ordered.append(by_id[id] | {"depth": depth})
        waiting += [(child, depth + 1) for child in children[id]]
    return ordered
