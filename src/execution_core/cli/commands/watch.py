"""`watch`: the progress, rate and remaining time of running executions."""

import argparse
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from ...core import validation
from ...core.errors import ExecutionNotFound
from ...core.models import ExecutionStatus
from ...core.state_machine import LIVE
from .. import output, queries
from ..arguments import Commands, add_json_flag, add_url, duration, page_limit
from ..database import explain, open_database

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WINDOW: Final = timedelta(seconds=30)
"""A rate is measured over this time."""
BAR_WIDTH: Final = 20
UNLABELLED: Final = ("ID", "TYPE", "STATUS", "DONE", "MESSAGE")
"""Columns whose values are printed without their header in a line."""


def register(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "watch",
        help="watch running executions: progress, rate, time left",
        description="Watch the progress, rate and remaining time of all running executions, or of"
        " one execution until it has finished. A terminal with rich installed shows a live table;"
        " otherwise each change is printed as a line. Ctrl-C stops watching, not the executions.",
        epilog="exit code with ID: 0 if it completed, 1 if it finished otherwise",
    )
    command.add_argument(
        "id", metavar="ID", nargs="?", help="id or unique id prefix (default: all running)"
    )
    add_url(command)
    add_json_flag(command, "print the current state once, as one JSON document")
    command.add_argument(
        "--every",
        metavar="TIME",
        type=duration,
        default=timedelta(seconds=1),
        help="interval between queries (default: 1s)",
    )
    command.add_argument(
        "--limit", type=page_limit, default=20, help="maximum number of executions (default: 20)"
    )
    command.set_defaults(run=run)


@dataclass(frozen=True)
class Snapshot:
    """The state of the watched executions at one time."""

    now: datetime
    executions: queries.Rows
    """Each with `short_id`, `rate_per_second` and `seconds_left`."""
    counts: dict[str, int]
    """The number of live executions by status."""

    def is_finished(self) -> bool:
        """Return whether all executions have finished."""
        return all(row["status"] not in LIVE for row in self.executions)


class RateEstimator:
    """Estimate the rates of executions from earlier snapshots."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[tuple[datetime, int]]] = defaultdict(deque)

    def measure(self, row: dict[str, Any], now: datetime) -> None:
        """Add rate_per_second and seconds_left to the row."""
        rate = left = None
        current, total = row["progress_current"], row["progress_total"]
        if row["status"] == ExecutionStatus.RUNNING and current is not None:
            rate = self._rate(row, current, now)
            if rate and total:
                left = max(0.0, (total - current) / rate)
        row |= {"rate_per_second": rate, "seconds_left": left}

    def _rate(self, row: dict[str, Any], current: int, now: datetime) -> float | None:
        samples = self._samples[row["execution_id"]]
        new = not samples
        if samples and samples[-1][1] > current:
            samples.clear()  # the progress was reset
        samples.append((now, current))
        while len(samples) > 2 and now - samples[0][0] > WINDOW:
            samples.popleft()
        since, first = samples[0]
        if new and row["attempts"] == 1:
            since, first = row["started_at"], 0  # without an earlier sample, measure from its start
        seconds = (now - since).total_seconds()
        return (current - first) / seconds if seconds > 0 else None


def run(options: argparse.Namespace) -> int:
    """Watch until the execution has finished or until Ctrl-C, or print once with --json."""
    validation.duration("every", options.every)
    with open_database(options.url) as database:
        id = None
        if options.id is not None:
            with database.reader.connect() as connection:
                id = queries.resolve_id(connection, options.id)
        if options.json:
            snapshot = read_snapshot(database.reader, id, options.limit, RateEstimator())
            executions = queries.with_id(snapshot.executions)
            output.print_json({"counts": snapshot.counts, "executions": executions})
            return 0
        try:
            return _watch(options, database.reader, id)
        except KeyboardInterrupt:
            return 0


def read_snapshot(engine: Engine, id: str | None, limit: int, estimator: RateEstimator) -> Snapshot:
    """Read one execution, or the running ones.

    Raises:
        ExecutionNotFound: the execution does not exist.
    """
    running = [ExecutionStatus.RUNNING]
    with engine.connect() as connection:
        now = queries.now(connection)
        query = queries.one(id) if id else queries.page(statuses=running, limit=limit)
        executions = queries.rows(connection, query)
        short = queries.short_ids(connection, [row["execution_id"] for row in executions])
        counted = [] if id else queries.rows(connection, queries.live_counts())
    if id and not executions:
        raise ExecutionNotFound(id)
    for row in executions:
        row["short_id"] = short[row["execution_id"]]
        estimator.measure(row, now)
    return Snapshot(now, executions, {row["status"]: row["count"] for row in counted})


def _watch(options: argparse.Namespace, engine: Engine, id: str | None) -> int:
    snapshots = _poll(options, engine, id)
    terminal = output.console()
    last = _draw(terminal, snapshots) if terminal is not None else _print(snapshots)
    if id is None:
        return 0
    return int(last.executions[0]["status"] != ExecutionStatus.COMPLETED)


def _poll(options: argparse.Namespace, engine: Engine, id: str | None) -> Iterator[Snapshot]:
    estimator = RateEstimator()
    reachable = True
    while True:
        try:
            snapshot = read_snapshot(engine, id, options.limit, estimator)
        except DBAPIError as error:
            if reachable:
                output.warn(f"execution-core: {explain(error, options.url)}; trying again")
            reachable = False
        else:
            reachable = True
            yield snapshot
            if id is not None and snapshot.is_finished():
                return
        time.sleep(options.every.total_seconds())


def _print(snapshots: Iterator[Snapshot]) -> Snapshot:
    printed: dict[str, tuple[Any, ...]] = {}
    for snapshot in snapshots:
        for row in snapshot.executions:
            state = (
                row["status"],
                row["attempts"],
                row["progress_current"],
                row["progress_message"],
            )
            if printed.get(row["execution_id"]) != state:
                printed[row["execution_id"]] = state
                words = [output.format_cell(snapshot.now)]
                for header, cell in zip(HEADERS, _to_cells(row), strict=True):
                    word = output.format_cell(cell)
                    if word != output.EMPTY:
                        words.append(word if header in UNLABELLED else f"{header.lower()} {word}")
                print(*words, sep="  ", flush=True)
    return snapshot


def _draw(terminal: "Console", snapshots: Iterator[Snapshot]) -> Snapshot:
    from rich.live import Live  # noqa: PLC0415 - an optional extra

    with Live(console=terminal, auto_refresh=False) as live:
        for snapshot in snapshots:
            live.update(render(snapshot, terminal.width), refresh=True)
    return snapshot


def render(snapshot: Snapshot, width: int) -> "RenderableType":
    """Build a rich table with progress bars and as many columns as fit the width."""
    from rich import box  # noqa: PLC0415
    from rich.cells import cell_len  # noqa: PLC0415
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    words = [[output.format_cell(cell) for cell in _to_cells(row)] for row in snapshot.executions]
    room = width - BAR_WIDTH - 4
    chosen = []
    for number, header in enumerate(HEADERS):
        needed = max(len(header), *(cell_len(row[number]) for row in words), 0) + 3
        if needed <= room or number == 0:
            chosen.append(number)
            room -= needed
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number in chosen:
        table.add_column(HEADERS[number], no_wrap=True)
        if number == 0:
            table.add_column("", width=BAR_WIDTH)
    for row, cells in zip(snapshot.executions, words, strict=True):
        id, *others = (output.style_cell(cells[number]) for number in chosen)
        table.add_row(id, _bar(row), *others)
    counted = [f"{count:,} {status}" for status, count in sorted(snapshot.counts.items())]
    title = "  ".join([output.format_cell(snapshot.now), *counted])
    hidden = snapshot.counts.get(ExecutionStatus.RUNNING, 0) - len(snapshot.executions)
    more = Text(f"and {hidden:,} more: increase --limit to show them", style="dim")
    return Group(Text(title, style="bold"), table, *([more] if hidden > 0 else []))


def _bar(row: dict[str, Any]) -> "RenderableType":
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    current, total = row["progress_current"], row["progress_total"]
    if not total:
        return Text(output.EMPTY)
    return ProgressBar(total=total, completed=current, width=BAR_WIDTH)


# The most important first: a narrow terminal shows only the first ones that fit.
HEADERS: Final = (
    *("ID", "TYPE", "STATUS", "DONE", "RATE", "LEFT", "MESSAGE", "RUNS FOR", "WORKER", "ATTEMPT"),
)


def _to_cells(row: dict[str, Any]) -> list[output.Cell]:
    current, total, percent = (row[f"progress_{part}"] for part in ("current", "total", "percent"))
    message = row["progress_message"] or row["error_message"]
    return [
        row["short_id"],
        output.shorten(row["type"], 24),
        row["status"],
        None if current is None else f"{current:,}/{total:,} {percent:.4g}%",
        _format_rate(row["rate_per_second"]),
        output.format_duration(row["seconds_left"]),
        message and output.shorten(message, 40),
        output.format_duration(row["duration_seconds"]),
        row["worker"] and output.shorten(row["worker"], 24),
        f"{row['attempts']}/{row['max_attempts']}",
    ]


def _format_rate(per_second: float | None) -> str | None:
    if per_second is None:
        return None
    return f"{per_second:,.0f}/s" if per_second >= 100 else f"{per_second:.2g}/s"
