"""APScheduler creates a report on time; execution-core makes it once, on one of several hosts.

    pip install 'apscheduler<4' 'execution-core[postgresql]'
    export EXECUTION_CORE_URL=postgresql+psycopg://localhost/mine
    python apscheduler_jobs.py      # on two hosts, so that one of them can fail

The scheduled time is the idempotency key of the execution. Both schedulers create the report at
that time, and get the same execution. The worker of one of them makes it. If that process dies, the
other one makes the next attempt.
"""

import logging
import os
import time
from datetime import UTC, datetime, timedelta
from typing import Final

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from sqlalchemy import create_engine, text

from execution_core import (
    Attempt,
    ExecutionManager,
    SqlExecutionStore,
    configure_sqlite,
    migrate,
)
from execution_core.worker import Worker

STALLED_AFTER: Final = timedelta(seconds=float(os.environ.get("STALLED_AFTER", "60")))
EVERY_MINUTE: Final = CronTrigger(second=os.environ.get("SECOND", "0"), timezone=UTC)
GRACE: Final = 1
"""Seconds that a report may be created late: fewer than the seconds between two reports."""

engine = create_engine(os.environ.get("EXECUTION_CORE_URL", "sqlite:///reports.db"))
if engine.dialect.name == "sqlite":
    configure_sqlite(engine)
manager = ExecutionManager(SqlExecutionStore(engine))


def create_report() -> None:
    # APScheduler 3 does not pass the scheduled time to the job, so ask the trigger.
    earliest = datetime.now(UTC) - timedelta(seconds=GRACE)
    scheduled = EVERY_MINUTE.get_next_fire_time(None, earliest).isoformat()
    manager.create(
        "report", {"scheduled": scheduled}, idempotency_key=f"report-{scheduled}", max_attempts=3
    )


def make_report(attempt: Attempt) -> None:
    scheduled = attempt.execution.payload["scheduled"]
    for part in attempt.each(range(10)):
        time.sleep(0.05)  # stands for a slow query
        with engine.begin() as connection:
            connection.execute(
                text("INSERT INTO report_parts VALUES (:scheduled, :part, :attempt)"),
                {"scheduled": scheduled, "part": part, "attempt": attempt.number},
            )


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    with engine.begin() as connection:
        migrate.upgrade(connection)
        connection.execute(
            text("CREATE TABLE IF NOT EXISTS report_parts (scheduled TEXT, part INT, attempt INT)")
        )
    scheduler = BackgroundScheduler(timezone=UTC)
    scheduler.add_job(create_report, EVERY_MINUTE, misfire_grace_time=GRACE)
    scheduler.start()
    Worker(
        manager,
        {"report": make_report},
        heartbeat=STALLED_AFTER / 10,
        stalled_after=STALLED_AFTER,
    ).run()  # until SIGTERM
    scheduler.shutdown()


if __name__ == "__main__":
    main()
