"""Measure the time of imports and the memory of a process."""

import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

from execution_core import InvalidStateTransition, connect, migrate

from .contenders import PAYLOAD, RESULT
from .databases import Databases

BASE = "import sqlalchemy, pydantic"
IMPORTS = (
    BASE,
    "import execution_core",
    "import sqlalchemy; from pydantic import BaseModel",
    "from execution_core import ExecutionManager, SqlExecutionStore",
    "from execution_core import connect",
    "from execution_core import connect_async",
)


def imports(*, rounds: int) -> Iterator[dict[str, Any]]:
    """Time imports in fresh interpreters, alternating; the first is also the last, as control."""
    order = (*IMPORTS, BASE)
    seconds: list[list[float]] = [[] for _ in order]
    for _ in range(rounds):
        for n, statement in enumerate(order):
            seconds[n].append(import_seconds(statement))
    for n, statement in enumerate(order):
        yield {
            "statement": statement + (" (again)" if n == len(IMPORTS) else ""),
            "milliseconds": round(1000 * median(seconds[n]), 1),
            "ratio": round(
                median(s / base for s, base in zip(seconds[n], seconds[0], strict=True)), 3
            ),
        }


def import_seconds(statement: str) -> float:
    """Return the seconds that an import takes in a new interpreter."""
    timed = (
        f"import time; begun = time.perf_counter()\n{statement}\nprint(time.perf_counter() - begun)"
    )
    done = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True)
    return float(done.stdout)


def memory(databases: Databases, *, minutes: float) -> dict[str, Any]:
    """Measure the memory of a process with a manager, on both databases at the same time."""
    urls = {"postgresql": databases.postgresql(), "sqlite": databases.sqlite()}
    processes = {
        kind: subprocess.Popen(
            [sys.executable, "-m", "benchmarks.footprint", url, str(60 * minutes)],
            stdout=subprocess.PIPE, text=True,
        )
        for kind, url in urls.items()
    }  # fmt: skip
    figures: dict[str, Any] = {"minutes": minutes}
    for kind, process in processes.items():
        output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the load process on {kind} failed")
        calls, *samples = map(int, output.split())
        lists, load = samples[: len(samples) // 2], samples[len(samples) // 2 :]
        figures[kind] = {
            "calls": calls,
            "list_growth": growth(lists),
            "load_growth": growth(load),
            "list_kib": lists,
            "load_kib": load,
        }
        databases.drop(urls[kind])
    return figures


def growth(samples: list[int]) -> float:
    """Return the ratio of the last quarter to the second; the first quarter is the warm-up."""
    quarter = len(samples) // 4
    return round(median(samples[-quarter:]) / median(samples[quarter : 2 * quarter]), 3)


def resident() -> int:
    """Return the resident memory of this process in KiB, as Linux reports it."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def use(url: str, seconds: float, samples: int = 40) -> None:
    """List 1,000 executions repeatedly, then call the verbs; print the resident KiB in between."""
    migrate.upgrade(url)
    with connect(url) as manager:
        for n in range(1000):
            manager.create(f"listed-{n % 3}", PAYLOAD)
        calls = 1000
        sizes = []
        for _ in range(samples):
            for _ in range(5):
                assert len(manager.list(limit=1000)) == 1000
                calls += 1
            sizes.append(resident())
        begun = time.monotonic()
        for sample in range(1, samples + 1):
            while time.monotonic() - begun < seconds * sample / samples:
                created = manager.create("load", PAYLOAD, max_attempts=2)
                manager.start(created.id, worker="host-1")
                manager.update_progress(created.id, 1, 2, message="half")
                manager.checkpoint(created.id, "last", PAYLOAD)
                manager.complete(created.id, RESULT)
                try:
                    manager.start(created.id)
                except InvalidStateTransition:
                    calls += 1
                manager.list(status=["pending", "completed"], limit=5)
                manager.delete(created.id)
                calls += 7
            sizes.append(resident())
    print(calls, *sizes)


if __name__ == "__main__":
    use(sys.argv[1], float(sys.argv[2]))
