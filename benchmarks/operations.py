"""Measure queries and commands on a million executions: `python -m benchmarks.operations`.

Measures the queries of docs/sql.md and the commands of the CLI: how long each takes and which
indexes it reads. `--quick` only checks that everything runs, and writes nothing.
"""

import argparse
import io
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from functools import partial
from statistics import median
from typing import Any, NamedTuple

from sqlalchemy import Engine, create_engine, event
from tests.support.cookbook import PAGE, cookbook, run_query

from execution_core import cli, connect, migrate

from .__main__ import machine
from .databases import Databases, databases
from .table_in_use import fill

BEGIN = "<!-- figures: written by `python -m benchmarks.operations` -->"
END = "<!-- end of figures -->"
HOUR = timedelta(hours=1)
EVER = "2020-01-01 00:00:00.000000"
TABLES = "executions|execution_history|execution_logs|began|ended|last|e|h|l"
"""The tables and the aliases that the views and queries give them."""

# Attempts of the last day take up to a minute; `fill` gives all events of a row the same time.
SPREAD = """
UPDATE executions SET completed_at = {later}
 WHERE completed_at >= (SELECT {day_before} FROM executions)
"""
SPREAD_HISTORY = """
UPDATE execution_history
   SET occurred_at = (SELECT completed_at FROM executions WHERE id = execution_id)
 WHERE seq = 3
   AND execution_id IN (SELECT id FROM executions WHERE completed_at <> started_at)
"""
WARNINGS = """
INSERT INTO execution_logs (execution_id, id, attempt, logged_at, level, message)
SELECT id, id, 1, completed_at, 'warning', 'the card was declined'
  FROM executions WHERE status = 'failed'
"""
DIALECT_SQL = {
    "postgresql": {
        "later": "started_at + random() * interval '1 minute'",
        "day_before": "max(completed_at) - interval '1 day'",
    },
    "sqlite": {
        "later": "strftime('%Y-%m-%d %H:%M:%f000', started_at,"
        " (abs(random() % 60000) / 1000.0) || ' seconds')",
        "day_before": "strftime('%Y-%m-%d %H:%M:%f000', max(completed_at), '-1 day')",
    },
}


class Seeded(NamedTuple):
    """A filled database and the values of the query parameters."""

    url: str
    since: str
    workflow: str
    failed: str


class Figure(NamedTuple):
    """How long a call took and what the database read for it."""

    milliseconds: float
    plan: str


def seed(url: str, rows: int) -> Seeded:
    """Fill a database with finished executions, one per second, and about a thousand live ones."""
    migrate.upgrade(url)
    fill(url, rows)
    kind = "postgresql" if url.startswith("postgresql") else "sqlite"
    for statement in (SPREAD, SPREAD_HISTORY, WARNINGS):
        Databases.query(url, statement.format(**DIALECT_SQL[kind]))
    since = Databases.query(
        url, f"SELECT CAST({DIALECT_SQL[kind]['day_before']} AS text) FROM executions"
    )
    workflow, failed = live(url)
    # Most SQLite databases were never analyzed, so drop the statistics.
    Databases.query(url, "VACUUM ANALYZE" if kind == "postgresql" else "DELETE FROM sqlite_stat1")
    return Seeded(url, since, workflow, failed)


def live(url: str) -> tuple[str, str]:
    """Add 20 workflows of 50 steps in all states; return a workflow and a failed step."""
    with connect(url) as manager:
        for n in range(20):
            workflow = manager.create("workflow", timeout=HOUR)
            manager.start(workflow.id, worker=f"host-{n % 4}")
            for step in range(50):
                key = f"step-{n}-{step}"
                id = manager.create(
                    "step", max_attempts=3, parent_id=workflow.id, idempotency_key=key
                ).id
                if step % 5 == 0:
                    continue
                manager.start(id, worker=f"host-{step % 4}")
                match step % 5:
                    case 1:
                        manager.update_progress(id, 3, 10)
                    case 2:
                        manager.fail(id, OSError("no answer"), retryable=True, retry_after=HOUR)
                    case 3:
                        manager.log(id, "no answer", level="warning")
                        manager.fail(id, OSError("no answer"))
                        manager.replay(id)
                        failed = id
                    case 4:
                        manager.cancel(id, "ada: no longer wanted")
    return workflow.id, failed


def questions(seeded: Seeded) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield every question of the page and a call that runs its query."""
    engine = create_engine(seeded.url)
    values = {"since": seeded.since, "id": seeded.workflow, "key": "step-3-7", "type": "type-3"}
    of = {
        "What happened in each attempt of an execution?": {"id": seeded.failed},
        "Which replays does an execution have?": {"id": seeded.failed},
        "What happened to an execution, and when?": {"id": seeded.failed},
        "What did an execution log?": {"id": seeded.failed},
        "How many executions finish per day?": {"since": EVER},
    }
    with engine.connect() as connection:
        for question, query in cookbook().items():
            given = values | of.get(question, {})
            yield question, partial(run_query, connection, query, **given)
        whole = "SELECT * FROM execution_stats"
        yield "All of `execution_stats`", partial(run_query, connection, whole)
    engine.dispose()


def commands(seeded: Seeded) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield every command and a call that runs it in this process."""
    for command in (
        "list",
        "list --status failed --status timed_out",
        "list --type type-3",
        "list --type type-3 --status failed",
        "list --type none",
        "list --finished-within 1s",
        f"show {seeded.failed}",
        "stats",
        "sweep --stalled-after 1h",
    ):
        arguments = [*command.split(), "--url", seeded.url]
        shown = command.replace(seeded.failed, "ID")
        yield f"`{shown}`", partial(run, arguments)
    with connect(seeded.url) as manager:
        day = timedelta(days=1)
        yield "`prune`, nothing to delete", partial(manager.prune, 3650 * day)
        yield "`prune`, a batch of 1,000", partial(manager.prune, day)


def run(arguments: list[str]) -> None:
    """Run a command of the CLI without output."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        if code := cli.main(arguments):
            raise RuntimeError(f"{arguments} returned exit code {code}")


def measure(call: Callable[[], Any]) -> Figure:
    """Return the median time of 5 calls, after one call that records the query plans."""
    with explained() as plan:
        call()
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return Figure(1000 * median(seconds), ", ".join(dict.fromkeys(plan)))


@contextmanager
def explained() -> Iterator[list[str]]:
    """Explain every statement before it runs; yield the list of what the plans read."""
    read: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if re.match(r"\s*(SELECT|WITH|UPDATE|DELETE)", statement):
            if connection.dialect.name == "postgresql":
                cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
                read.extend(scans_of_postgresql(cursor.fetchone()[0][0]["Plan"]))
            else:
                cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
                read.extend(scans_of_sqlite(line for *_, line in cursor.fetchall()))

    event.listen(Engine, "before_cursor_execute", explain)
    try:
        yield read
    finally:
        event.remove(Engine, "before_cursor_execute", explain)


def scans_of_postgresql(plan: dict[str, Any]) -> Iterator[str]:
    """Yield the indexes that a PostgreSQL plan searches, and what it scans."""
    for part in plan.get("Plans", ()):
        yield from scans_of_postgresql(part)
    match plan["Node Type"]:
        case "Seq Scan":
            yield f"scan of {plan['Relation Name']}"
        case "Index Scan" | "Index Only Scan" | "Bitmap Index Scan":
            yield f"{'' if 'Index Cond' in plan else 'scan of '}`{plan['Index Name']}`"


def scans_of_sqlite(lines: Iterable[str]) -> Iterator[str]:
    """Yield the same for the lines of a SQLite query plan."""
    for line in lines:
        if found := re.match(r"(SCAN|SEARCH) \w+ USING (?:COVERING )?INDEX (\w+)", line):
            name = re.sub(r"sqlite_autoindex_(\w+)_1", r"pk_\1", found[2])
            name = name.replace("sqlite_autoindex_executions_2", "uq_executions_idempotency_key")
            yield f"{'' if found[1] == 'SEARCH' else 'scan of '}`{name}`"
        elif re.fullmatch(f"SCAN ({TABLES})", line):
            yield line.replace("SCAN", "scan of")


def table(title: str, figures: dict[str, dict[str, Figure]]) -> str:
    """Return the figures of both databases as a Markdown table."""
    headings = [title, "PostgreSQL, ms", "SQLite, ms", "what PostgreSQL reads", "what SQLite reads"]
    lines = [headings, ["---", "---:", "---:", "---", "---"]]
    for name, of in figures.items():
        times = [f"{of[kind].milliseconds:,.2f}" for kind in DIALECT_SQL]
        lines.append([name, *times, *(of[kind].plan for kind in DIALECT_SQL)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure on both databases, print the tables and write them into docs/sql.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operations", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10,000 rows; nothing is written")
    quick = parser.parse_args().quick
    rows = 10_000 if quick else 1_000_000
    figures: dict[str, dict[str, dict[str, Figure]]] = {"question": {}, "command": {}}
    with databases() as available:
        environment = machine(available)
        for kind in DIALECT_SQL:
            seeded = seed(getattr(available, kind)(), rows)
            for title, calls in (("question", questions(seeded)), ("command", commands(seeded))):
                for name, call in calls:
                    figures[title].setdefault(name, {})[kind] = measure(call)
            available.drop(seeded.url)
    tables = "\n\n".join(table(title, each) for title, each in figures.items())
    output = f"{rows:,} finished executions. {environment}.\n\n{tables}"
    print(output)
    if not quick:
        between = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
        block = f"{BEGIN}\n\n{output}\n\n{END}"
        PAGE.write_text(between.sub(lambda _: block, PAGE.read_text()))


if __name__ == "__main__":
    main()
