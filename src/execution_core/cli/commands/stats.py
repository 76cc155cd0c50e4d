"""`stats`: counts, success rates and durations."""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from ...core.models import ExecutionStatus
from .. import output, queries
from ..arguments import Commands, add_json_flag, add_url
from ..database import open_database

MAX_FINISHED: Final = 10_000


def register(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "stats",
        help="count executions by type and status; success rates and durations",
        description="Count all executions by type and status, which reads a whole index. For the"
        f" {MAX_FINISHED:,} executions that finished last, print how many completed and how long"
        " their last attempts took.",
    )
    add_url(command)
    add_json_flag(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the statistics."""
    with open_database(options.url) as database, database.reader.connect() as connection:
        counted = queries.rows(connection, queries.counts())
        finished = summarize(queries.rows(connection, queries.last_finished(MAX_FINISHED)))
    if options.json:
        output.print_json({"counts": counted, "recently_finished": finished})
        return 0
    if not counted:
        output.warn("no executions")
    output.print_table(
        ["TYPE", *(status.upper() for status in ExecutionStatus)],
        _count_by_type(counted),
        title="All",
    )
    output.print_table(
        ["TYPE", "FINISHED", "COMPLETED", "P50", "P95", "LONGEST", "SINCE"],
        [
            [
                output.shorten(each["type"], 30),
                each["finished"],
                f"{100 * each['completed'] / each['finished']:.4g}%",
                *(
                    output.format_duration(each[f"{name}_seconds"])
                    for name in ("p50", "p95", "longest")
                ),
                each["since"],
            ]
            for each in finished
        ],
        title=f"The last {MAX_FINISHED:,} finished",
    )
    return 0


def _count_by_type(counted: queries.Rows) -> list[list[output.Cell]]:
    by_type: dict[str, dict[str, int]] = defaultdict(dict)
    for row in counted:
        by_type[row["type"]][row["status"]] = row["count"]
    return [
        [output.shorten(type, 30), *(found.get(status) for status in ExecutionStatus)]
        for type, found in by_type.items()
    ]


def summarize(finished: queries.Rows) -> list[dict[str, Any]]:
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
