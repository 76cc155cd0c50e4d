"""The view execution_stats: correct for all kinds of rows; SQLite reads only an index."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from statistics import mean
from typing import Any

import pytest
from sqlalchemy import text

from execution_core import connect

from ..conftest import Database
from ..support.rows import insert

BASE_TIME = datetime(2026, 1, 31, 23, 59, 59, 999000, tzinfo=UTC)
NEVER = None
# Type, status, and the seconds at which it was created, started and finished.
ROWS = [
    ("a", "completed", 0, 0.001, 1.251),
    ("a", "completed", -86_400, 0.5, 0.5),
    ("a", "completed", 5, 1.5, 4.833),
    ("a", "completed", 6, 0.029, 31_556_952.03),
    ("a", "failed", 7, 1, 1.999),
    ("a", "failed", 8, 10, 9.5),  # a manual UPDATE: it finished before it started
    ("a", "cancelled", 9, 1, 2),
    ("a", "cancelled", 10, NEVER, 2),
    ("b", "cancelled", 11, NEVER, 3),
    ("b", "timed_out", 12, 0.7, 60.7),
    ("b", "retrying", 13, 1, NEVER),
    ("b", "pending", 14, NEVER, NEVER),
    ("b", "running", 15, 2, NEVER),
    ("a", "running", 16, 3, NEVER),
    ("a", "running", 17, 4.25, NEVER),
]


def fill(database: Database) -> None:
    for n, (type_, status, created, started, ended) in enumerate(ROWS):
        row = {
            "id": f"0198a000-0000-7000-8000-{n:012}",
            "type": type_,
            "status": status,
            "created_at": format_time(created),
            "started_at": format_time(started),
            "completed_at": format_time(ended),
            "attempts": int(started is not NEVER),
            "max_attempts": 2,
            "error": '{"message": "no"}' if status in ("failed", "timed_out") else None,
        }
        insert(database, row)


def format_time(seconds: float | None) -> str | None:
    if seconds is NEVER:
        return None
    time = BASE_TIME + timedelta(seconds=seconds)
    return f"{time:%Y-%m-%d %H:%M:%S.%f}"


def expected(now: datetime) -> dict[tuple[str, str], tuple[Any, ...]]:
    groups = defaultdict(list)
    for type_, status, created, started, ended in ROWS:
        groups[type_, status].append((created, started, ended))
    return {
        of: (
            len(rows),
            BASE_TIME + timedelta(seconds=min(created for created, _, _ in rows)),
            pytest.approx(mean(durations), rel=1e-12, abs=slack) if durations else None,
            pytest.approx(max(durations), rel=1e-12, abs=slack) if durations else None,
        )
        for of, rows in groups.items()
        for slack in [30 if of[1] == "running" else 0]
        for durations in [list(durations_of(of[1], rows, (now - BASE_TIME).total_seconds()))]
    }


def durations_of(status: str, rows: list[Any], now: float) -> Iterator[float]:
    for _, started, ended in rows:
        end = now if status == "running" else ended
        if started is not NEVER and end is not NEVER:
            yield round(end - started, 3)


def to_utc(time: Any) -> datetime:
    """A time of either database: SQLite's texts are in UTC."""
    found = datetime.fromisoformat(str(time))
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def stats(database: Database, where: str = "") -> dict[tuple[str, str], tuple[Any, ...]]:
    rows = database.rows(f"SELECT * FROM execution_stats {where}")
    assert len({(row["type"], row["status"]) for row in rows}) == len(rows)
    return {
        (row["type"], row["status"]): (
            row["count"],
            to_utc(row["oldest_created_at"]),
            row["average_seconds"],
            row["longest_seconds"],
        )
        for row in rows
    }


def test_stats_view_counts_and_measures_every_kind_of_row(database: Database) -> None:
    fill(database)
    assert stats(database) == expected(datetime.now(UTC))


def test_stats_view_filtered_returns_the_same_rows(database: Database) -> None:
    fill(database)
    whole = {of: row for of, row in stats(database).items() if of[1] != "running"}
    for type_ in "ab":
        found = stats(database, f"WHERE type = '{type_}' AND status <> 'running'")
        assert found == {of: row for of, row in whole.items() if of[0] == type_}
    assert stats(database, "WHERE status = 'failed'") == {("a", "failed"): whole["a", "failed"]}
    assert stats(database, "WHERE type = 'c'") == {}


def test_stats_view_after_manual_changes_is_correct(database: Database) -> None:
    """The index follows every statement, also manual ones."""
    with connect(database.url) as manager:
        ids = [manager.create("a", max_attempts=3).id for _ in range(3)]
        assert {of: row[0] for of, row in stats(database).items()} == {("a", "pending"): 3}
        for id in ids:
            manager.start(id)
            manager.complete(id)
    started = "started_at = '2026-01-01 00:00:00.000000'"
    for n, id in enumerate(ids):
        ended = f"completed_at = '2026-01-01 00:00:0{n}.500000'"
        database.run(f"UPDATE executions SET {started}, {ended} WHERE id = :id", id=id)
    assert stats(database)["a", "completed"][2:] == (1.5, 2.5)
    database.run("UPDATE executions SET type = 'b' WHERE id = :id", id=ids[2])
    database.run("DELETE FROM executions WHERE id = :id", id=ids[1])
    database.run(
        "UPDATE executions SET created_at = '2025-01-01 00:00:00.000000' WHERE id = :id", id=ids[0]
    )
    found = stats(database)
    assert {of: row[0] for of, row in found.items()} == {
        ("a", "completed"): 1, ("b", "completed"): 1
    }  # fmt: skip
    assert found["a", "completed"][1:] == (datetime(2025, 1, 1, tzinfo=UTC), 0.5, 0.5)
    assert found["b", "completed"][2:] == (2.5, 2.5)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("analyzed", [False, True])
def test_stats_view_on_sqlite_reads_only_the_index(database: Database, analyzed: bool) -> None:
    """SQLite only: PostgreSQL has no such index: it reads the whole table, which is as fast."""
    fill(database)
    if analyzed:
        database.run("ANALYZE")
    for where, how in (("", "SCAN"), ("WHERE type = 'a'", "SEARCH")):
        with database.engine.connect() as connection:
            plan = connection.execute(
                text(f"EXPLAIN QUERY PLAN SELECT * FROM execution_stats {where}")
            )
            reads = [line for *_, line in plan if " executions " in line]
        covering = f"{how} executions USING COVERING INDEX ix_executions_type_status_id_times"
        assert [line.removesuffix(" (type=?)") for line in reads] == [covering]
