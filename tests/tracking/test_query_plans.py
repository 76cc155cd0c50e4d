"""Claims, sweeps and prunes read what they change, however many rows have finished."""

import re
from collections.abc import Callable
from datetime import timedelta

import pytest

from execution_core.core import transitions, validation
from execution_core.core.selections import check_batch, check_prune_request
from execution_core.sql.recovery.queries import find_batch_write
from execution_core.sql.statements import queries

from ..conftest import Database
from ..support.query_plans import explain, insert_rows

HOUR = timedelta(hours=1)


BATCH_VERBS = {
    "claim": (transitions.claim("host"), None, "ix_executions_due"),
    "claim of a type": (transitions.claim("host"), "b", "ix_executions_type_due"),
    "sweep": (transitions.sweep(None), None, "ix_executions_(status_id|deadline_at)"),
    "sweep of the stalled": (
        transitions.sweep(HOUR),
        None,
        "ix_executions_(status_id|deadline_at)",
    ),
}


def test_claim_and_sweep_plans_ignore_finished_rows(
    database: Database, tell: Callable[[str], None]
) -> None:
    """Beside 20,000 finished executions as many rows are read as beside 4,000.

    Also when PostgreSQL's statistics are older than the rows to claim or to sweep. A sweep reads
    running executions: by deadline, or in SQLite by status. The plans are reported.
    """

    def rows_read(finished: int, statistics: str = "") -> dict[str, int]:
        return {name: rows_of(name, finished, statistics) for name in BATCH_VERBS}

    def rows_of(name: str, finished: int, statistics: str) -> int:
        transition, type, index = BATCH_VERBS[name]
        query = queries.update_many(check_batch(transition, type, 5), validation.new_id(), None)
        plan, rows = explain(database, query)
        assert "Seq Scan" not in plan, plan
        assert not re.search(r"SCAN executions(?! USING)", plan), plan
        assert statistics or re.search(rf"\b{index}\b", plan), plan
        shown = f"{rows} rows read" if database.name == "postgresql" else "by this plan"
        tell(f"{database.name}: {name} beside {finished} finished{statistics}, {shown}:\n{plan}")
        return rows

    def analyze() -> None:
        if database.name == "postgresql":
            database.run("ANALYZE executions")

    insert_rows(database, "completed", 4_000)
    analyze()
    insert_rows(database, "pending", 800)  # half of them not due yet, few of type b
    insert_rows(database, "running", 100)
    stale = rows_read(4_000, ", statistics of these alone")
    analyze()
    fresh = rows_read(4_000)
    insert_rows(database, "completed", 16_000)
    assert rows_read(20_000, ", statistics of 4000") == fresh
    analyze()
    assert rows_read(20_000) == fresh
    # At worst all that are due, never the finished ones.
    assert max(stale.values()) <= 400 + 5


@pytest.mark.slow
def test_prune_plan_reads_only_deleted_rows(
    database: Database, tell: Callable[[str], None]
) -> None:
    """By the index on completed_at, whether the rows are old enough or not."""
    insert_rows(database, "running", 100)
    insert_rows(database, "completed", 20_000)
    if database.name == "postgresql":
        database.run("ANALYZE executions")
    for days, found in ((30, 5), (30_000, 0)):
        old = check_prune_request(timedelta(days=days), None, None, timedelta(days=days + 1), 5)
        plan, rows = explain(database, queries.prune(old, None))
        tell(f"{database.name}: a prune of {found} beside 20000 finished, {rows} rows:\n{plan}")
        assert "Seq Scan" not in plan
        assert not re.search(r"SCAN executions(?! USING)", plan), plan
        assert re.search(r"\bix_executions_completed_at\b", plan), plan
        assert rows <= 2 * found


def test_lost_batch_lookup_plan_reads_only_its_rows(postgres_database: Database) -> None:
    """By the index on the token. SQLite has none: it loses no connections."""
    postgres_database.empty()
    insert_rows(postgres_database, "running", 4_000)
    postgres_database.run("UPDATE execution_history SET write_token = gen_random_uuid()")
    postgres_database.run("ANALYZE execution_history")
    for transition, *_ in BATCH_VERBS.values():
        query = find_batch_write(validation.new_id(), transition.rule)
        plan, rows = explain(postgres_database, query, "execution_history")
        assert rows == 0, plan
