"""A batch over thousands of files: killed halfway with SIGKILL and resumed without loss.

    python examples/demo.py [--url URL] [--files N]

The main process creates the execution, starts a worker and kills it. It sweeps until the sweep
finds the execution without heartbeats, retries it, starts a second worker and shows what the
database contains. A worker parses the files of Python's standard library. Each of its transactions
contains the results of some files *and* the checkpoint after them, so no kill can separate the two.
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
STALLED_AFTER: Final = timedelta(seconds=1)  # several heartbeat intervals

# A table of the application, in the same database.
parsed_files = Table(
    "demo_parsed_files",
    MetaData(),
    Column("path", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("functions", Integer),
    Column("attempt", Integer, nullable=False),
)


def main() -> int:
    options = argparse.ArgumentParser(description="Track a batch that is killed halfway.")
    options.add_argument(
        "--url",
        default="sqlite:///.demo/executions.db",
        help="the database; its table demo_parsed_files is replaced",
    )
    options.add_argument("--files", type=int, default=4000, help="maximum number of files")
    options.add_argument("--work", metavar="ID", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    engine = create_engine(chosen.url)
    if engine.dialect.name == "sqlite":
        configure_sqlite(engine)
    manager = ExecutionManager(SqlExecutionStore(engine))
    if chosen.work:
        work(engine, manager, chosen.work)
        return 0
    return run(engine, manager, chosen.url, chosen.files)


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
    return sorted(found)[: payload["limit"]]


def parse(path: Path) -> dict[str, Any]:
    source = path.read_bytes()
    try:
        with warnings.catch_warnings(action="ignore"):
            nodes = ast.walk(ast.parse(source))
        functions = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes)
    except (SyntaxError, ValueError):  # Python's test data contains invalid files
        functions = None
    return {
        "path": str(path),
        "sha256": hashlib.sha256(source).hexdigest(),
        "functions": functions,
    }


# --- the main process -------------------------------------------------------------------------


def run(engine: Engine, manager: ExecutionManager, url: str, limit: int) -> int:
    console = Console()
    prepare(engine)
    folders = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")]
    created = manager.create("parse-sources", {"folders": folders, "limit": limit}, max_attempts=3)
    console.print(f"[bold]1.[/] Created execution {created.id} in {engine.url!r}")

    console.print("[bold]2.[/] A worker runs it until it is killed halfway:")
    worker = spawn(url, created.id)
    follow(manager, created.id, worker, until=50)
    worker.send_signal(signal.SIGKILL)
    code = worker.wait()
    killed = manager.get(created.id)
    console.print(
        f"[bold]3.[/] The worker was ended by {signal.Signals(-code).name}. The execution is still"
        f" [yellow]{killed.status}[/], attempt {killed.attempts},"
        f" with a checkpoint after {killed.checkpoints['files_done']} files."
    )

    swept = sweep(manager, created.id)
    reason = swept.error.message if swept.error else ""
    console.print(f"[bold]4.[/] A sweep found it: “{reason}”.")
    console.print(f"   It is [yellow]{swept.status}[/] now. A second worker:")
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
    """Migrate the schema and create an empty table for the results."""
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
    """Show the progress in the database until it reaches `until` percent or the worker exits."""
    columns = (
        BarColumn(40),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(TextColumn("  "), *columns) as bar:
        task = bar.add_task("", total=None)
        while True:
            exited = worker.poll() is not None
            execution = manager.get(id)
            if (progress := execution.progress) is not None:
                bar.update(
                    task,
                    completed=progress.current,
                    total=progress.total,
                    description=progress.message or "",
                )
                if progress.percent >= until and not exited and until < 100:
                    return execution
            if exited:
                return execution
            time.sleep(0.05)


def sweep(manager: ExecutionManager, id: str) -> Execution:
    """Sweep and retry, as a service does every few seconds, until the execution is found."""
    found = {}
    while id not in found:
        time.sleep(0.1)
        for swept in manager.sweep(stalled_after=STALLED_AFTER, type="parse-sources", retry=True):
            found[swept.id] = swept
    return found[id]


def show(engine: Engine, console: Console, id: str) -> None:
    """Print two views; plain SQL, without the library."""
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
    """Check in the results that each file was parsed exactly once."""
    with engine.connect() as connection:
        query = "SELECT count(*) AS rows, count(DISTINCT path) AS files FROM demo_parsed_files"
        rows, files = connection.execute(text(query)).one()
        share = "SELECT attempt, count(*) FROM demo_parsed_files GROUP BY attempt ORDER BY attempt"
        parts = ", ".join(f"{n} in attempt {a}" for a, n in connection.execute(text(share)))
    total = len(source_files(done.payload))
    complete = rows == files == total
    verdict = "[green]each exactly once[/]" if complete else "[red]NOT each exactly once[/]"
    console.print(f"[bold]6.[/] {rows} results for {total} files, {verdict}: {parts}.")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
