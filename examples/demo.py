"""A batch over thousands of real files, killed half way with SIGKILL, and resumed without a loss.

    python examples/demo.py [--url URL] [--files N]

One process watches: it creates the execution, starts a worker, kills it, sweeps until it finds the
execution without a sign of life, allows another attempt, starts a second worker, and shows what the
database then says. The worker parses Python's own library, file by file. Each of its transactions
holds the results of some files *and* the checkpoint behind them: no kill can come between the two.
"""

import argparse
import ast
import hashlib
import os
import signal
import subprocess
import sys
import sysconfig
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Grid
from sqlalchemy import Column, Engine, Integer, MetaData, Table, Text, create_engine, insert, text

from execution_core import Execution, ExecutionManager, SqlExecutionStore, configure_sqlite, migrate

BATCH: Final = 20
HEARTBEAT: Final = timedelta(seconds=0.2)
STALLED_AFTER: Final = timedelta(seconds=1)  # some heartbeats

# The host's own table, in the same database.
parsed_files = Table(
    "demo_parsed_files",
    MetaData(),
    Column("path", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("functions", Integer),
    Column("attempt", Integer, nullable=False),
)


def main() -> int:
    options = argparse.ArgumentParser(description="Track a batch that is killed half way.")
    options.add_argument(
        "--url",
        default="sqlite:///.demo/executions.db",
        help="the database; its table demo_parsed_files is made anew",
    )
    options.add_argument("--files", type=int, default=4000, help="how many files at most")
    options.add_argument("--work", metavar="ID", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    engine = create_engine(chosen.url)
    if engine.dialect.name == "sqlite":
        configure_sqlite(engine)
    manager = ExecutionManager(SqlExecutionStore(engine))
    if chosen.work:
        work(engine, manager, chosen.work)
        return 0
    return watch(engine, manager, chosen.url, chosen.files)


# --- the worker -------------------------------------------------------------------------------


def work(engine: Engine, manager: ExecutionManager, id: str) -> None:
    with manager.attempt(id, worker=f"pid {os.getpid()}", heartbeat=HEARTBEAT) as attempt:
        paths = source_files(attempt.execution.payload)
        done = attempt.checkpoints.get("files_done", 0)
        while done < len(paths):
            batch = paths[done : done + BATCH]
            rows = [parse(path) | {"attempt": attempt.number} for path in batch]
            done += len(batch)
            with engine.begin() as connection:
                connection.execute(insert(parsed_files), rows)
                attempt.within(connection).advance(
                    done, len(paths), key="files_done", value=done, message=batch[-1].name
                )
        with engine.connect() as connection:
            query = "SELECT count(*) AS files, sum(functions) AS functions FROM demo_parsed_files"
            attempt.result = dict(connection.execute(text(query)).mappings().one())


def source_files(payload: dict[str, Any]) -> list[Path]:
    found = {path for folder in payload["folders"] for path in Path(folder).rglob("*.py")}
    return sorted(found)[: payload["most"]]


def parse(path: Path) -> dict[str, Any]:
    source = path.read_bytes()
    try:
        with warnings.catch_warnings(action="ignore"):
            nodes = ast.walk(ast.parse(source))
        functions = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes)
    except (SyntaxError, ValueError):  # some of Python's own test data is broken on purpose
        functions = None
    return {
        "path": str(path),
        "sha256": hashlib.sha256(source).hexdigest(),
        "functions": functions,
    }


# --- the watcher ------------------------------------------------------------------------------


def watch(engine: Engine, manager: ExecutionManager, url: str, most: int) -> int:
    console = Console()
    prepare(engine)
    folders = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")]
    created = manager.create("parse-sources", {"folders": folders, "most": most}, max_attempts=3)
    console.print(f"[bold]1.[/] Created execution {created.id} in {engine.url!r}")

    console.print("[bold]2.[/] A worker runs it, until it is killed half way:")
    worker = spawn(url, created.id)
    follow(manager, created.id, worker, until=50)
    worker.send_signal(signal.SIGKILL)
    code = worker.wait()
    left = manager.get(created.id)
    console.print(
        f"[bold]3.[/] The worker ended by {signal.Signals(-code).name}. The execution still says"
        f" [yellow]{left.status}[/], attempt {left.attempts},"
        f" with {left.checkpoints['files_done']} files behind its checkpoint."
    )

    lost = sweep(engine, manager, created.id)
    reason = lost.error.message if lost.error else ""
    console.print(f"[bold]4.[/] A sweep found it: [yellow]{lost.status}[/], “{reason}”.")
    console.print(
        f"   It may run again: [yellow]{manager.get(lost.id).status}[/]. A second worker:"
    )
    worker = spawn(url, created.id)
    follow(manager, created.id, worker)
    if worker.wait() != 0:
        console.print("[red]The second worker failed.[/]")
        return 1
    done = manager.get(created.id)
    console.print(f"[bold]5.[/] [green]{done.status}[/] in attempt {done.attempts}: {done.result}")
    show(engine, console, created.id)
    return check(engine, console, done)


def prepare(engine: Engine) -> None:
    """Start afresh, in a schema that the migrations have made."""
    if engine.url.database and engine.dialect.name == "sqlite":
        Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
    migrate.upgrade(engine)
    parsed_files.drop(engine, checkfirst=True)
    parsed_files.create(engine)


def spawn(url: str, id: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, "--url", url, "--work", id])


def follow(
    manager: ExecutionManager, id: str, worker: subprocess.Popen[bytes], until: float = 100
) -> Execution:
    """Show the progress that the database tells, until it is far enough or the worker has ended."""
    columns = (
        BarColumn(40),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(TextColumn("  "), *columns) as bar:
        task = bar.add_task("", total=None)
        while True:
            ended = worker.poll() is not None
            execution = manager.get(id)
            if (progress := execution.progress) is not None:
                bar.update(
                    task,
                    completed=progress.current,
                    total=progress.total,
                    description=progress.message or "",
                )
                if progress.percent >= until and not ended and until < 100:
                    return execution
            if ended:
                return execution
            time.sleep(0.05)


def sweep(engine: Engine, manager: ExecutionManager, id: str) -> Execution:
    """Do what a service does every few seconds, until it has found what the dead left behind."""
    found = {}
    while id not in found:
        time.sleep(0.1)
        with engine.begin() as connection:  # no crash leaves one timed out without its retry
            tracked = manager.within(connection)
            for lost in tracked.sweep(stalled_after=STALLED_AFTER, type="parse-sources"):
                found[lost.id] = lost
                if lost.attempts < lost.max_attempts:
                    tracked.retry(lost.id)
    return found[id]


def show(engine: Engine, console: Console, id: str) -> None:
    """Print what two of the views say: nothing here needs the library."""
    for view, columns, order in (
        (
            "execution_timeline",
            "seq, from_status, to_status, attempt, worker, seconds_since_last",
            "seq",
        ),
        (
            "execution_attempts",
            "attempt, worker, duration_seconds, outcome, error ->> 'message' AS error",
            "attempt",
        ),
    ):
        query = f"SELECT {columns} FROM {view} WHERE execution_id = :id ORDER BY {order}"  # noqa: S608
        with engine.connect() as connection:
            rows = connection.execute(text(query), {"id": id})
            grid = Grid(*rows.keys(), title=view, title_justify="left")
            for row in rows:
                grid.add_row(*("" if value is None else str(value) for value in row))
        console.print(grid)


def check(engine: Engine, console: Console, done: Execution) -> int:
    """Prove from the results themselves that no file was done twice and none was left out."""
    with engine.connect() as connection:
        query = "SELECT count(*) AS rows, count(DISTINCT path) AS files FROM demo_parsed_files"
        rows, files = connection.execute(text(query)).one()
        share = "SELECT attempt, count(*) FROM demo_parsed_files GROUP BY attempt ORDER BY attempt"
        parts = ", ".join(f"{n} in attempt {a}" for a, n in connection.execute(text(share)))
    total = len(source_files(done.payload))
    right = rows == files == total
    verdict = "[green]each exactly once[/]" if right else "[red]NOT each exactly once[/]"
    console.print(f"[bold]6.[/] {rows} results for {total} files, {verdict}: {parts}.")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
