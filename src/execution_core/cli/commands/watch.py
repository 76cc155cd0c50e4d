"""`watch`: the progress, rate and remaining time of running executions."""

import argparse
import time
from collections import defaultdict, deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from ...core import validation
from ...core.errors import ExecutionNotFound
from ...core.models import ExecutionStatus
from ...core.state_machine import LIVE
from .. import output, progress, queries
from ..arguments import Commands, add_command, add_json_flag, duration, page_limit
from ..database import explain, open_database

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WINDOW: Final = timedelta(seconds=30)
"""A rate is measured over this time."""
SILENT_AFTER: Final = 10
"""From this many seconds without a heartbeat on, the table shows for how long."""
STATE_CHANGES_AFTER: Final = 60
"""From this many seconds without a heartbeat on, a new line is printed."""
BAR_WIDTH: Final = 20
MIN_BAR_WIDTH: Final = 8


def register(commands: Commands) -> None:
    """Add the command."""
    add = add_command(
        commands,
        "watch",
        run,
        help="watch running executions: progress, rate, time left",
        description="Watch the progress, rate and remaining time of all running executions, or of"
        " one execution until it has finished. A terminal with rich installed shows a live table;"
        " otherwise each change is printed as a line. Ctrl-C stops watching, not the executions.",
        epilog="exit code with ID: 0 if it completed, 1 if it finished otherwise",
    )
    add("id", metavar="ID", nargs="?", help="id or unique id prefix (default: all running)")
    add_json_flag(add, "print the current state once, as one JSON document")
    add(
        "--every",
        metavar="TIME",
        type=duration,
        default=timedelta(seconds=1),
        help="interval between queries (default: 1s)",
    )
    add("--limit", type=page_limit, default=20, help="maximum number of executions (default: 20)")


@dataclass(frozen=True)
class Snapshot:
    """The state of the watched executions at one time."""

    now: datetime
    executions: queries.Rows
    """Each with `short_id`, `children`, `rate_per_second`, `seconds_left`, `reason`, `actor`."""
    counts: dict[str, int]
    """The number of live executions by status."""


class RateEstimator:
    """Estimate the rates of executions from earlier snapshots."""

    def __init__(self) -> None:
        self._samples: dict[Hashable, deque[tuple[datetime, int]]] = defaultdict(deque)

    def measure(self, row: dict[str, Any], now: datetime) -> None:
        """Add rate_per_second and seconds_left to the row."""
        rate = left = None
        measured = progress.measure(row)
        if row["status"] == ExecutionStatus.RUNNING and measured is not None:
            current, total, _ = measured
            rate = self._rate(row, current, now)
            if rate and total:
                left = max(0.0, (total - current) / rate)
        row |= {"rate_per_second": rate, "seconds_left": left}

    def _rate(self, row: dict[str, Any], current: int, now: datetime) -> float | None:
        samples = self._samples[row["id"], row["progress_current"] is None]
        if not samples and row["attempts"] == 1:
            samples.append((row["started_at"], 0))
        elif samples and samples[-1][1] > current:
            samples.clear()  # the progress was reset
        elif len(samples) == 1:
            # Its start is unknown: measure from the first change on. Progress often comes in steps,
            # and the time before the watch began is a part of the first step.
            if samples[0][1] == current:
                return None
            samples[0] = (now, current)
        samples.append((now, current))
        while len(samples) > 2 and now - samples[1][0] >= WINDOW:
            samples.popleft()
        since, first = samples[0]
        seconds = (now - since).total_seconds()
        return (current - first) / seconds if seconds > 0 else None


def run(options: argparse.Namespace) -> int:
    """Watch until the execution has finished or until Ctrl-C, or print once with --json."""
    validation.duration("every", options.every)
    with open_database(options.url, options.schema) as database:
        id = None if options.id is None else database.resolve_id(options.id)
        if options.json:
            snapshot = read_snapshot(database.reader, id, options.limit, RateEstimator())
            output.print_json({"counts": snapshot.counts, "executions": snapshot.executions})
            return 0
        snapshots = _poll(options, database.reader, id)
        terminal = output.console()
        try:
            last = _print(snapshots) if terminal is None else _draw(terminal, snapshots)
        except KeyboardInterrupt:
            return 0
    return int(last.executions[0]["status"] != ExecutionStatus.COMPLETED)


def read_snapshot(engine: Engine, id: str | None, limit: int, estimator: RateEstimator) -> Snapshot:
    """Read one execution, or the running ones."""
    running = [ExecutionStatus.RUNNING]
    with engine.connect() as connection:
        now = queries.now(connection)
        query = queries.one(id) if id else queries.page(statuses=running, limit=limit)
        executions = queries.rows(connection, query)
        short = queries.short_ids(connection, [row["id"] for row in executions])
        queries.add_children(connection, executions)
        counted = [] if id else queries.rows(connection, queries.live_counts())
        cancelled = [row["id"] for row in executions if row["status"] == ExecutionStatus.CANCELLED]
        cancellations = {
            each: queries.rows(connection, queries.cancellation(each))[0] for each in cancelled
        }
    if id and not executions:
        raise ExecutionNotFound(id)
    for row in executions:
        row["short_id"] = short[row["id"]]
        row.update(cancellations.get(row["id"], {"reason": None, "actor": None}))
        estimator.measure(row, now)
    return Snapshot(now, executions, {row["status"]: row["count"] for row in counted})


def _poll(options: argparse.Namespace, engine: Engine, id: str | None) -> Iterator[Snapshot]:
    estimator = RateEstimator()
    reachable = True
    while True:
        try:
            snapshot = read_snapshot(engine, id, options.limit, estimator)
        except DBAPIError as error:
            if reachable:
                output.warn(
                    f"execution-core: {explain(error, options.url, options.schema)}; trying again"
                )
            reachable = False
        else:
            reachable = True
            yield snapshot
            if id is not None and snapshot.executions[0]["status"] not in LIVE:
                return
        time.sleep(options.every.total_seconds())


def _print(snapshots: Iterator[Snapshot]) -> Snapshot:
    """Print a line for each execution whose state has changed."""
    printed: dict[str, tuple[Any, ...]] = {}
    print(output.join_cells(["TIME", *COLUMNS]), flush=True)
    for snapshot in snapshots:
        for row in snapshot.executions:
            if printed.get(row["id"]) == (state := _state(row)):
                continue
            printed[row["id"]] = state
            cells = [snapshot.now, *output.to_cells(COLUMNS, row)]
            print(output.join_cells(map(output.format_cell, cells)), flush=True)
    return snapshot


def _state(row: output.Row) -> tuple[Any, ...]:
    """Return what has to change for a new line."""
    is_silent = (progress.silent_seconds(row) or 0) >= STATE_CHANGES_AFTER
    done = progress.measure(row)
    return row["status"], row["attempts"], done, row["progress_message"], is_silent


def _draw(terminal: "Console", snapshots: Iterator[Snapshot]) -> Snapshot:
    from rich.live import Live  # noqa: PLC0415 - an optional extra

    with Live(console=terminal, auto_refresh=False) as live:
        for snapshot in snapshots:
            live.update(render(snapshot, terminal.width), refresh=True)
    return snapshot


def render(snapshot: Snapshot, width: int) -> "RenderableType":
    """Build a rich table with progress bars and as many columns as fit the width."""
    from rich import box  # noqa: PLC0415
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table_rows = [output.to_cells(COLUMNS, row) for row in snapshot.executions]
    cells = {
        header: [output.style_cell(row[number]) for row in table_rows]
        for number, header in enumerate(COLUMNS)
    }
    if all(cell.plain == output.EMPTY for cell in cells["SILENT"]):
        del cells["SILENT"]  # the other columns need its room
    needed = {
        header: max(len(header), *(cell.cell_len for cell in column), 0) + 3
        for header, column in cells.items()
    }
    important = sum(needed.get(header, 0) for header in ("ID", "TYPE", "STATUS", "SILENT", "DONE"))
    bar = min(BAR_WIDTH, width - important - 4)
    room = width - (bar + 4 if bar >= MIN_BAR_WIDTH else 0)
    columns: list[Sequence[RenderableType]] = []
    for header, column in cells.items():
        if needed[header] > room and columns:
            break
        room -= needed[header]
        table.add_column(header, no_wrap=True, style="yellow" if header == "SILENT" else None)
        columns.append(column)
        if header == "ID" and bar >= MIN_BAR_WIDTH:
            table.add_column("", width=bar)
            columns.append([_bar(row) for row in snapshot.executions])
    for row in zip(*columns, strict=True):
        table.add_row(*row)
    counted = [f"{count:,} {status}" for status, count in sorted(snapshot.counts.items())]
    title = "  ".join([output.format_cell(snapshot.now), *counted])
    below: list[RenderableType] = []
    hidden = snapshot.counts.get(ExecutionStatus.RUNNING, 0) - len(snapshot.executions)
    if hidden > 0:
        more = f"and {hidden:,} more: increase --limit to show them"
        below.append(Text(more, style="dim"))
    if len(snapshot.executions) == 1 and "MESSAGE" not in (each.header for each in table.columns):
        message = _format_message(snapshot.executions[0])
        below += [] if message is None else [Text(message)]
    return Group(Text(title, style="bold"), table, *below)


def _bar(row: output.Row) -> "RenderableType":
    from rich.progress_bar import ProgressBar  # noqa: PLC0415

    current, total, _ = progress.measure(row) or (0, 0, 0)
    return ProgressBar(total=total, completed=current) if total else output.EMPTY


def _format_silent(row: output.Row) -> float | None:
    seconds = progress.silent_seconds(row)
    return seconds if seconds is not None and seconds >= SILENT_AFTER else None


def _format_message(row: output.Row) -> str | None:
    """Return who cancelled it and why, its error, its message, or the counts of its children."""
    if row["status"] == ExecutionStatus.CANCELLED:
        by = f"by {row['actor']}" if row["actor"] else None
        return output.shorten(": ".join(filter(None, [by, row["reason"]])) or None, 60)
    children = row["children"] and progress.describe_children(row["children"])
    return output.shorten(row["error_message"] or row["progress_message"] or children, 40)


def _format_rate(row: output.Row) -> str | None:
    rate = row["rate_per_second"]
    if rate is None:
        return None
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.2g}/s"


# The most important first: a narrow terminal shows only the first ones that fit.
COLUMNS: Final[output.Columns] = {
    "ID": "short_id",
    "TYPE": lambda row: output.shorten(row["type"], 24),
    "STATUS": "status",
    "SILENT": _format_silent,
    "DONE": progress.format_done,
    "RATE": _format_rate,
    "LEFT": "seconds_left",
    "MESSAGE": _format_message,
    "RUNS FOR": "duration_seconds",
    "WORKER": lambda row: output.shorten(row["worker"], 24),
    "ATTEMPT": output.format_attempt,
}
