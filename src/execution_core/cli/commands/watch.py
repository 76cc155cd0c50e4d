"""`watch`: what runs now, how far it is, how fast it gets there."""

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
"""Over how long a rate is taken."""
BAR: Final = 20
UNNAMED: Final = ("ID", "TYPE", "STATUS", "DONE", "SAYS")
"""What needs no name where a line is printed."""


def register(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "watch",
        help="watch what runs: progress, rate, time left",
        description="Watch what runs: progress, rate and time left; or one execution, until it is"
        " over. In a terminal, with rich installed, it is drawn in place; elsewhere a line is"
        " printed for each change. Ends with Ctrl-C.",
        epilog="exit code with ID: 0 when it completed, 1 when it ended otherwise",
    )
    command.add_argument("id", metavar="ID", nargs="?", help="one execution (default: all)")
    add_url(command)
    add_json_flag(command, "print what it would show now, as one JSON document, and end")
    command.add_argument(
        "--every",
        metavar="TIME",
        type=duration,
        default=timedelta(seconds=1),
        help="how often to look (default: 1s)",
    )
    command.add_argument(
        "--limit", type=page_limit, default=20, help="how many at most (default: 20)"
    )
    command.set_defaults(run=run)


@dataclass(frozen=True)
class Snapshot:
    """What is seen at one time."""

    now: datetime
    executions: queries.Rows
    """Each with `short_id`, `rate_per_second` and `seconds_left`."""
    counts: dict[str, int]
    """How many are not over, by status."""

    def is_over(self) -> bool:
        """Tell whether nothing in it can change any more."""
        return all(row["status"] not in LIVE for row in self.executions)


class RateEstimator:
    """How fast executions get on, by what was seen of them."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[tuple[datetime, int]]] = defaultdict(deque)

    def measure(self, row: dict[str, Any], now: datetime) -> None:
        """Add to a row how many it does in a second, and how many seconds are left."""
        rate = left = None
        current, total = row["progress_current"], row["progress_total"]
        if row["status"] == ExecutionStatus.RUNNING and current is not None:
            rate = self._rate(row, current, now)
            if rate and total:
                left = max(0.0, (total - current) / rate)
        row |= {"rate_per_second": rate, "seconds_left": left}

    def _rate(self, row: dict[str, Any], current: int, now: datetime) -> float | None:
        seen = self._seen[row["execution_id"]]
        new = not seen
        if seen and seen[-1][1] > current:
            seen.clear()  # it began anew
        seen.append((now, current))
        while len(seen) > 2 and now - seen[0][0] > WINDOW:
            seen.popleft()
        since, first = seen[0]
        if new and row["attempts"] == 1:
            since, first = row["started_at"], 0  # nothing else is known of it yet
        seconds = (now - since).total_seconds()
        return (current - first) / seconds if seconds > 0 else None


def run(options: argparse.Namespace) -> int:
    """Watch until there is nothing to see any more, or somebody presses Ctrl-C."""
    validation.duration("every", options.every)
    with open_database(options.url) as database:
        id = None
        if options.id is not None:
            with database.reader.connect() as connection:
                id = queries.resolve_id(connection, options.id)
        if options.json:
            frame = look(database.reader, id, options.limit, RateEstimator())
            output.print_json({"counts": frame.counts, "executions": frame.executions})
            return 0
        try:
            return _watch(options, database.reader, id)
        except KeyboardInterrupt:
            return 0


def look(engine: Engine, id: str | None, most: int, pace: RateEstimator) -> Snapshot:
    """Read what is to be seen.

    Raises:
        ExecutionNotFound: the one to be watched is gone.
    """
    running = [ExecutionStatus.RUNNING]
    with engine.connect() as connection:
        now = queries.now(connection)
        query = queries.one(id) if id else queries.page(statuses=running, limit=most)
        executions = queries.rows(connection, query)
        short = queries.short_ids(connection, [row["execution_id"] for row in executions])
        counted = [] if id else queries.rows(connection, queries.live_counts())
    if id and not executions:
        raise ExecutionNotFound(id)
    for row in executions:
        row["short_id"] = short[row["execution_id"]]
        pace.measure(row, now)
    return Snapshot(now, executions, {row["status"]: row["count"] for row in counted})


def _watch(options: argparse.Namespace, engine: Engine, id: str | None) -> int:
    frames = _frames(options, engine, id)
    terminal = output.console()
    last = _draw(terminal, frames) if terminal is not None else _print(frames)
    if id is None:
        return 0
    return int(last.executions[0]["status"] != ExecutionStatus.COMPLETED)


def _frames(options: argparse.Namespace, engine: Engine, id: str | None) -> Iterator[Snapshot]:
    pace = RateEstimator()
    away = False
    while True:
        try:
            frame = look(engine, id, options.limit, pace)
        except DBAPIError as error:
            if not away:
                output.warn(f"execution-core: {explain(error, options.url)}; trying again")
            away = True
        else:
            away = False
            yield frame
            if id is not None and frame.is_over():
                return
        time.sleep(options.every.total_seconds())


def _print(frames: Iterator[Snapshot]) -> Snapshot:
    said: dict[str, tuple[Any, ...]] = {}
    for frame in frames:
        for row in frame.executions:
            state = (
                row["status"],
                row["attempts"],
                row["progress_current"],
                row["progress_message"],
            )
            if said.get(row["execution_id"]) != state:
                said[row["execution_id"]] = state
                words = [output.format_cell(frame.now)]
                for header, cell in zip(HEADERS, _cells(row), strict=True):
                    word = output.format_cell(cell)
                    if word != output.NOTHING:
                        words.append(word if header in UNNAMED else f"{header.lower()} {word}")
                print(*words, sep="  ", flush=True)
    return frame


def _draw(terminal: "Console", frames: Iterator[Snapshot]) -> Snapshot:
    from rich.live import Live  # noqa: PLC0415 - an optional extra

    with Live(console=terminal, auto_refresh=False) as live:
        for frame in frames:
            live.update(render(frame, terminal.width), refresh=True)
    return frame


def render(frame: Snapshot, width: int) -> "RenderableType":
    """Return a frame as a table of rich's, with bars; as many columns as there is room for."""
    from rich import box  # noqa: PLC0415
    from rich.cells import cell_len  # noqa: PLC0415
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    words = [[output.format_cell(cell) for cell in _cells(row)] for row in frame.executions]
    room = width - BAR - 4
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
            table.add_column("", width=BAR)
    for row, cells in zip(frame.executions, words, strict=True):
        id, *others = (output.styled(cells[number]) for number in chosen)
        table.add_row(id, _bar(row), *others)
    counted = [f"{count:,} {status}" for status, count in sorted(frame.counts.items())]
    title = "  ".join([output.format_cell(frame.now), *counted])
    hidden = frame.counts.get(ExecutionStatus.RUNNING, 0) - len(frame.executions)
    more = [Text(f"and {hidden:,} more: --limit shows them", style="dim")] if hidden > 0 else []
    return Group(Text(title, style="bold"), table, *more)


def _bar(row: dict[str, Any]) -> "RenderableType":
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    if not row["progress_total"]:
        return Text(output.NOTHING)
    return ProgressBar(total=row["progress_total"], completed=row["progress_current"], width=BAR)


# The most important first: of these a narrow terminal shows as many as it can.
HEADERS: Final = (
    *("ID", "TYPE", "STATUS", "DONE", "RATE", "LEFT", "SAYS", "RUNS FOR", "WORKER", "ATTEMPT"),
)


def _cells(row: dict[str, Any]) -> list[output.Cell]:
    current, total, percent = (row[f"progress_{part}"] for part in ("current", "total", "percent"))
    message = row["progress_message"] or row["error_message"]
    return [
        row["short_id"],
        output.shorten(row["type"], 24),
        row["status"],
        None if current is None else f"{current:,}/{total:,} {percent:.4g}%",
        _rate(row["rate_per_second"]),
        output.format_duration(row["seconds_left"]),
        message and output.shorten(message, 40),
        output.format_duration(row["duration_seconds"]),
        row["worker"] and output.shorten(row["worker"], 24),
        f"{row['attempts']}/{row['max_attempts']}",
    ]


def _rate(per_second: float | None) -> str | None:
    if per_second is None:
        return None
    return f"{per_second:,.0f}/s" if per_second >= 100 else f"{per_second:.2g}/s"
