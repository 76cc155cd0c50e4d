"""Lifecycles per second, beside what else there is."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

from .databases import Databases
from .turns import Contender, Runner, ratio, run_alternating, running


@dataclass(frozen=True)
class Group:
    """Contenders at the same work; the first is what the others are measured by, and so is again.

    The second, the same as the first, is the control: how far it is from 1 is noise.
    """

    title: str
    database: str
    contenders: Sequence[Contender]
    durable: bool = True


def by_hand(module: str, **options: Any) -> list[Contender]:
    """What is measured by, and the control."""
    return [Contender(name, module, options) for name in ("plain SQL", "plain SQL, again")]


GROUPS = (
    Group(
        "PostgreSQL, one caller",
        "postgresql",
        [
            *by_hand("by_hand_psycopg"),
            Contender("execution-core, connect", "library", {"own": True}),
            Contender("execution-core, the host's engine", "library"),
            Contender("pgbench, the same statements", "pgbench"),
            Contender("DBOS", "dbos_transact"),
            Contender("Procrastinate", "procrastinate_jobs"),
            Contender("Procrastinate, both at once", "procrastinate_jobs", {"beside": True}),
            Contender("PgQueuer, one by one", "pgqueuer_jobs", {"batch": 1}),
            Contender("PgQueuer, batches of 10", "pgqueuer_jobs"),
        ],
    ),
    Group(
        "PostgreSQL, one caller, synchronous_commit = off: without waiting for the disk",
        "postgresql",
        [
            *by_hand("by_hand_psycopg"),
            Contender("execution-core, connect", "library", {"own": True}),
            Contender("execution-core, the host's engine", "library"),
            Contender("pgbench, the same statements", "pgbench"),
            Contender("DBOS", "dbos_transact"),
            Contender("Procrastinate", "procrastinate_jobs"),
            Contender("PgQueuer, one by one", "pgqueuer_jobs", {"batch": 1}),
        ],
        durable=False,
    ),
    Group(
        "PostgreSQL, asyncio, one task",
        "postgresql",
        [
            *by_hand("by_hand_asyncio"),
            Contender("execution-core, connect_async", "library_asyncio", {"own": True}),
            Contender("execution-core, the host's engine", "library_asyncio"),
        ],
    ),
    Group(
        "PostgreSQL, asyncio, 8 tasks",
        "postgresql",
        [
            *by_hand("by_hand_asyncio", tasks=8),
            Contender(
                "execution-core, connect_async", "library_asyncio", {"own": True, "tasks": 8}
            ),
            Contender("execution-core, the host's engine", "library_asyncio", {"tasks": 8}),
        ],
    ),
    Group(
        "SQLite, WAL, synchronous = NORMAL",
        "sqlite",
        [
            *by_hand("by_hand_sqlite", synchronous="NORMAL"),
            Contender("execution-core", "library", {"synchronous": "NORMAL"}),
        ],
    ),
    Group(
        "SQLite, WAL, synchronous = FULL",
        "sqlite",
        [
            *by_hand("by_hand_sqlite"),
            Contender("execution-core", "library"),
            Contender("DBOS", "dbos_transact"),
        ],
    ),
)


def measure(databases: Databases, *, count: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Measure one group after the other."""
    for group in GROUPS:
        made = [
            databases.postgresql(durable=group.durable)
            if group.database == "postgresql"
            else databases.sqlite()
            for _ in group.contenders
        ]
        with ExitStack() as stack:
            runners = [
                stack.enter_context(running(contender, url))
                for contender, url in zip(group.contenders, made, strict=True)
            ]
            taken = run_alternating(runners, count=count, rounds=rounds)
            rows = [
                {
                    "name": contender.name,
                    "version": contender.version,
                    "per_second": round(count / median(seconds), 1),
                    "ratio": round(ratio(taken[0], seconds), 3),
                    "ratios": sorted(
                        round(b / s, 3) for b, s in zip(taken[0], seconds, strict=True)
                    ),
                    **(written(databases, runner) if group.database == "postgresql" else {}),
                }
                for contender, seconds, runner in zip(group.contenders, taken, runners, strict=True)
            ]
        for url in made:
            databases.drop(url)
        yield {"title": group.title, "count": count, "rounds": rounds, "rows": rows}


def written(databases: Databases, runner: Runner, count: int = 200) -> dict[str, float]:
    """Tell what a lifecycle of a contender's costs the server: transactions, and bytes of WAL."""
    url = databases.server.url
    state = "SELECT pg_current_xact_id()::text || ' ' || (pg_current_wal_insert_lsn() - '0/0')"
    before = [int(number) for number in databases.query(url, state).split()]
    runner.run(count)
    after = [int(number) for number in databases.query(url, state).split()]
    return {
        "commits": round((after[0] - before[0] - 1) / count, 1),
        "wal_bytes": round((after[1] - before[1]) / count),
    }
