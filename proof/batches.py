"""Load a CSV file with a worker that is killed again and again.

With `attempt.chunks` each row must be in the table once. A control commits its rows later than
`attempt.each` writes the checkpoint of them; the check must find the rows that it loses. Without
kills, the loop is compared with the same loop without the library.
"""

import csv
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from signal import SIGKILL
from statistics import median
from typing import Any, Final

from sqlalchemy import Engine, text

from execution_core import Attempt, ExecutionManager, SqlExecutionStore

from . import checker
from .chaos import fork_server, read_executions
from .parts import Part, main, opened
from .report import Column
from .targets import TIMEOUT, wait_until

SIZE: Final = 1000
"""The rows of a transaction."""
LONGEST: Final = 0.015
"""Seconds from the start of a chunk to the kill, at most: about a chunk on PostgreSQL."""
MARGIN: Final = 20 * SIZE
"""Rows at the end during which no kill begins, so that each one meets a worker."""
CREATE: Final = text("CREATE TABLE loaded (id INTEGER, name TEXT, price INTEGER)")
INSERT: Final = text("INSERT INTO loaded VALUES (:id, :name, :price)")
COUNT: Final = text("SELECT count(*), count(DISTINCT id), min(id), max(id), sum(price) FROM loaded")

Loop = Callable[[Attempt, Iterable[Any], Engine, Any], None]


@dataclass(frozen=True)
class Plan:
    """How many rows are loaded, and how often the worker is killed."""

    rows: int = 200_000
    kills: int = 20
    control_rows: int = 40_000
    control_kills: int = 5
    measured_rows: int = 100_000
    rounds: int = 5


QUICK: Final = Plan(
    rows=30_000, kills=5, control_rows=30_000, control_kills=3, measured_rows=10_000, rounds=1
)


@dataclass(frozen=True)
class Load:
    """What is wrong after a load under kills."""

    kills_in_chunks: int
    """The kills that met the worker in the transaction of a chunk."""
    missing: int
    repeated: int
    violations: list[str]


def load_in_chunks(attempt: Attempt, rows: Iterable[Any], engine: Engine, place: Any) -> None:
    """Insert each row once; `place` is the first row of the chunk in progress, else 0."""
    for chunk in attempt.chunks(rows, size=SIZE):
        with chunk.begin(engine) as connection:
            place.value = int(chunk[0]["id"])
            connection.execute(INSERT, chunk)
        place.value = 0


def load_with_each(attempt: Attempt, rows: Iterable[Any], engine: Engine, place: Any) -> None:
    """Lose rows: the checkpoint covers some that are not committed yet."""
    waiting: list[Any] = []
    for row in attempt.each(rows, every=100):
        waiting.append(row)
        place.value = int(waiting[0]["id"])
        if len(waiting) == SIZE:
            load_plainly(waiting, engine)
            waiting = []
    load_plainly(waiting, engine)


def load_plainly(rows: Iterable[Any], engine: Engine) -> None:
    """Insert the rows in the same transactions, without the library."""
    remaining = iter(rows)
    while chunk := list(islice(remaining, SIZE)):
        with engine.begin() as connection:
            connection.execute(INSERT, chunk)


def work(url: str, path: Path, id: str, loop: Loop, place: Any) -> None:
    """Make one attempt, in a process of its own."""
    with (
        opened(url) as engine,
        rows_of(path) as rows,
        ExecutionManager(SqlExecutionStore(engine)).attempt(id) as attempt,
    ):
        loop(attempt, rows, engine, place)


def load_under_kills(
    url: str, path: Path, loop: Loop, choices: random.Random, *, rows: int, kills: int
) -> Load:
    """Load a file with a worker that is killed at random moments, and check what it has loaded."""
    write_csv(path, rows)
    place, in_chunks = fork_server.RawValue("i", 0), 0
    with opened(url) as engine:
        create_table(engine)
        manager = ExecutionManager(SqlExecutionStore(engine))
        id = manager.create("load", {"rows": rows}, max_attempts=kills + 1).id
        start = partial(started, (url, path, id, loop, place))
        for first in sorted(choices.sample(range(1, rows - MARGIN, SIZE), kills)):
            place.value = 0
            with start(-SIGKILL) as process:
                wait_until(lambda: place.value >= first, "the worker loads nothing")  # noqa: B023
                time.sleep(choices.uniform(0, LONGEST))
                process.kill()
            in_chunks += place.value != 0
            manager.timeout(id)
            manager.retry(id)
        with start(0):
            pass
        with engine.connect() as connection:
            count, distinct, *facts = connection.execute(COUNT).one()
        violations = [each.message for each in checker.check_histories(read_executions(url))]
        found = manager.get(id)
    if (found.status, found.attempts) != ("completed", kills + 1):
        violations.append(f"the execution is {found.status} after {found.attempts} attempts")
    if distinct == rows and facts != [1, rows, sum(map(price, range(1, rows + 1)))]:
        violations.append(f"the rows are not those of the file: {facts}")
    return Load(in_chunks, rows - distinct, count - distinct, violations)


@contextmanager
def started(arguments: tuple[Any, ...], exit_code: int) -> Iterator[Any]:
    """Start a worker process, and wait for it at the end."""
    process = fork_server.Process(target=work, args=arguments, daemon=True)
    process.start()
    try:
        yield process
        process.join(TIMEOUT)
        if process.exitcode != exit_code:
            raise RuntimeError(f"the worker ended with {process.exitcode}, see above")
    finally:
        process.kill()
        process.join()


def measure(url: str, path: Path, rounds: int, rows: int) -> dict[str, list[float]]:
    """Return the rows per second of both loops, which take turns."""
    write_csv(path, rows)
    speeds: dict[str, list[float]] = {"chunks": [], "plain": []}
    with opened(url) as engine:
        manager = ExecutionManager(SqlExecutionStore(engine))
        for n in range(rounds):
            for name in sorted(speeds, reverse=n % 2 == 1):
                create_table(engine)
                place = fork_server.RawValue("i", 0)
                with manager.attempt(manager.create("load").id) as attempt, rows_of(path) as items:
                    begun = time.perf_counter()
                    if name == "chunks":
                        load_in_chunks(attempt, items, engine, place)
                    else:
                        load_plainly(items, engine)
                    speeds[name].append(rows / (time.perf_counter() - begun))
    return speeds


def run(database: str, url: str, seed: int, folder: Path, plan: Plan) -> Column:
    """Load under kills, make the control, and measure."""
    choices, path = random.Random(f"{seed} {database}"), folder / "rows.csv"
    load = load_under_kills(url, path, load_in_chunks, choices, rows=plan.rows, kills=plan.kills)
    control = load_under_kills(
        url, path, load_with_each, choices, rows=plan.control_rows, kills=plan.control_kills
    )
    speeds = measure(url, path, plan.rounds, plan.measured_rows)
    ratios = [a / b for a, b in zip(speeds["chunks"], speeds["plain"], strict=True)]
    failures = [*load.violations, *(f"control: {each}" for each in control.violations)]
    if load.missing or load.repeated:
        failures.append(f"{load.missing} rows are missing, {load.repeated} are repeated")
    if not load.kills_in_chunks:
        failures.append("no kill met a worker in a chunk")
    if not control.missing:
        failures.append("the control lost no rows")
    figures = {
        "rows": f"{plan.rows:,}",
        "kills (SIGKILL), each followed by timeout and retry": f"{plan.kills}",
        "  in the transaction of a chunk": f"{load.kills_in_chunks}",
        "rows missing": f"{load.missing:,}",
        "rows repeated": f"{load.repeated:,}",
        "invalid histories": f"{len(load.violations)}",
        "control: rows": f"{plan.control_rows:,}",
        "control: kills": f"{plan.control_kills}",
        "control: rows missing": f"{control.missing:,}",
        "rows per second, attempt.chunks": f"{median(speeds['chunks']):,.0f}",
        "rows per second, the same loop without the library": f"{median(speeds['plain']):,.0f}",
        "ratio, median": f"{median(ratios):.2f}",
        "ratio, smallest-largest": f"{min(ratios):.2f}-{max(ratios):.2f}",
    }
    return Column(database, figures, failures)


def create_table(engine: Engine) -> None:
    """Create an empty table without a constraint: a row that is loaded twice must show."""
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS loaded"))
        connection.execute(CREATE)


def price(id: int) -> int:
    """Return the price in a row."""
    return id * 7919 % 10_007


def write_csv(path: Path, rows: int) -> None:
    """Write a file with the ids 1 to `rows`."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "name", "price"])
        writer.writerows([id, f"item {id}", price(id)] for id in range(1, rows + 1))


@contextmanager
def rows_of(path: Path) -> Iterator[Iterable[dict[str, str]]]:
    """Read a file."""
    with path.open(newline="") as file:
        yield csv.DictReader(file)


PART: Final = Part(
    "batches",
    "A CSV file, loaded in chunks by a killed worker",
    lambda name, url, seed, folder, quick: run(name, url, seed, folder, QUICK if quick else Plan()),
)

if __name__ == "__main__":
    sys.exit(main(PART, __doc__))
