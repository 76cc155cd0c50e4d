"""`stats`: counts, success rates and durations."""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from ...core.models import ExecutionStatus
from .. import output, queries
from ..arguments import Commands, add_command, add_json_flag
from ..database import open_database

MAX_FINISHED: Final = 10_000


def register(commands: Commands) -> None:
    """Add the command."""
    add = add_command(
        commands,
        "stats",
        run,
        help="count executions by type and status; success rates and durations",
        description="Count all executions by type and status, which reads a whole index. For the"
        f" {MAX_FINISHED:,} executions that finished last, print how many completed and how long"
        " their last attempts took. An attempt that a sweep or a late `complete` has ended lasts"
        " until then.",
    )
    add_json_flag(add)


def run(options: argparse.Namespace) -> None:
    """Print the statistics."""
    with (
        open_database(options.url, options.schema) as database,
        database.reader.connect() as connection,
    ):
        counted = queries.rows(connection, queries.counts())
        finished = summarize(queries.rows(connection, queries.last_finished(MAX_FINISHED)))
    if options.json:
        output.print_json({"counts": counted, "recently_finished": finished})
        return
    if not counted:
        output.warn("no executions")
    by_type: dict[str, dict[str, Any]] = defaultdict(lambda: dict.fromkeys(ExecutionStatus))
    for row in counted:
        by_type[row["type"]] |= {"type": row["type"], row["status"]: row["count"]}
    statuses = {status.upper(): status.value for status in ExecutionStatus}
    output.print_table({"TYPE": "type"} | statuses, list(by_type.values()), title="All")
    summary: output.Columns = {
        "TYPE": "type",
        "FINISHED": "finished",
        "COMPLETED": lambda row: output.format_percent(100 * row["completed"] / row["finished"]),
        "P50": "p50_seconds",
        "P95": "p95_seconds",
        "LONGEST": "longest_seconds",
        "SINCE": "since",
    }
    output.print_table(summary, finished, title=f"The last {MAX_FINISHED:,} finished")


def summarize(finished: queries.Rows) -> queries.Rows:
    """Summarize finished executions by type."""
    by_type: dict[str, queries.Rows] = defaultdict(list)
    for row in finished:
        by_type[row["type"]].append(row)
    summaries = []
    for type, rows in sorted(by_type.items()):
        durations = sorted(r["duration_seconds"] for r in rows if r["duration_seconds"] is not None)
        summaries.append(
            {
                "type": type,
                "finished": len(rows),
                "completed": sum(row["status"] == ExecutionStatus.COMPLETED for row in rows),
                "p50_seconds": percentile(durations, 50),
                "p95_seconds": percentile(durations, 95),
                "longest_seconds": percentile(durations, 100),
                "since": min(row["completed_at"] for row in rows),
            }
        )
    return summaries


def percentile(ordered: Sequence[float], percent: int) -> float | None:
    """Return the nearest-rank percentile of ordered numbers, None if there are none."""
    return ordered[-(-len(ordered) * percent // 100) - 1] if ordered else None
