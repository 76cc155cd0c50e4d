"""Measure lifecycles per second of execution-core and of alternatives."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

from .databases import Databases
from .interleaving import Contender, Runner, ratio, run_alternating, running


@dataclass(frozen=True)
class Group:
    """Contenders that do the same work. The first is the base of all ratios.

    The second is the same as the first: how far its ratio is from 1 shows the noise.
    """

    title: str
    database: str
    contenders: Sequence[Contender]
    durable: bool = True


def plain_sql(module: str, **options: Any) -> list[Contender]:
    """Return the base of the ratios and its control."""
    return [Contender(name, module, options) for name in ("plain SQL", "plain SQL, again")]


GROUPS = (
    Group(
        "PostgreSQL, one caller",
        "postgresql",
        [
            *plain_sql("plain_sql_psycopg"),
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
            *plain_sql("plain_sql_psycopg"),
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
            *plain_sql("plain_sql_asyncio"),
            Contender("execution-core, connect_async", "library_asyncio", {"own": True}),
            Contender("execution-core, the host's engine", "library_asyncio"),
        ],
    ),
    Group(
        "PostgreSQL, asyncio, 8 tasks",
        "postgresql",
        [
            *plain_sql("plain_sql_asyncio", tasks=8),
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
            *plain_sql("plain_sql_sqlite", synchronous="NORMAL"),
            Contender("execution-core", "library", {"synchronous": "NORMAL"}),
        ],
    ),
    Group(
        "SQLite, WAL, synchronous = FULL",
        "sqlite",
        [
            *plain_sql("plain_sql_sqlite"),
            Contender("execution-core", "library"),
            Contender("DBOS", "dbos_transact"),
        ],
    ),
)


def measure(databases: Databases, *, count: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Measure one group after another."""
    for group in GROUPS:
        urls = [
            databases.postgresql(durable=group.durable)
            if group.database == "postgresql"
            else databases.sqlite()
            for _ in group.contenders
        ]
        with ExitStack() as stack:
            runners = [
                stack.enter_context(running(contender, url))
                for contender, url in zip(group.contenders, urls, strict=True)
            ]
            seconds_of = run_alternating(runners, count=count, rounds=rounds)
            rows = [
                {
                    "name": contender.name,
                    "version": contender.version,
                    "per_second": round(count / median(seconds), 1),
                    "ratio": round(ratio(seconds_of[0], seconds), 3),
                    "ratios": sorted(
                        round(b / s, 3) for b, s in zip(seconds_of[0], seconds, strict=True)
                    ),
                    **(server_cost(databases, runner) if group.database == "postgresql" else {}),
                }
                for contender, seconds, runner in zip(
                    group.contenders, seconds_of, runners, strict=True
                )
            ]
        for url in urls:
            databases.drop(url)
        yield {"title": group.title, "count": count, "rounds": rounds, "rows": rows}


def server_cost(databases: Databases, runner: Runner, count: int = 200) -> dict[str, float]:
    """Return the transactions and the bytes of WAL of one lifecycle."""
    url = databases.server.url
    state = "SELECT pg_current_xact_id()::text || ' ' || (pg_current_wal_insert_lsn() - '0/0')"
    before = [int(number) for number in databases.query(url, state).split()]
    runner.run(count)
    after = [int(number) for number in databases.query(url, state).split()]
    return {
        "commits": round((after[0] - before[0] - 1) / count, 1),
        "wal_bytes": round((after[1] - before[1]) / count),
    }
