"""APScheduler starts a report on time; execution-core runs it once, on one of several schedulers.

    pip install 'apscheduler<4' 'execution-core[postgresql]'
    export EXECUTION_CORE_URL=postgresql+psycopg://localhost/mine
    python apscheduler_jobs.py      # on two hosts, so that one of them can fail

The scheduled time is the idempotency key of the execution. Both schedulers start the job at that
time: one makes the report, the other finds it running or completed. If a scheduler dies during a
report, the other one makes the next attempt.
"""

import logging
import os
import signal
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.triggers.cron import CronTrigger
from sqlalchemy import create_engine, text

from execution_core import (
    AlreadyRunning,
    ExecutionManager,
    SqlExecutionStore,
    configure_sqlite,
    migrate,
)

STALLED_AFTER: Final = timedelta(seconds=float(os.environ.get("STALLED_AFTER", "60")))
EVERY_MINUTE: Final = CronTrigger(second=os.environ.get("SECOND", "0"), timezone=UTC)
GRACE: Final = 1
"""Seconds that a report may start late: fewer than the seconds between two reports."""

engine = create_engine(os.environ.get("EXECUTION_CORE_URL", "sqlite:///reports.db"))
if engine.dialect.name == "sqlite":
    configure_sqlite(engine)
manager = ExecutionManager(SqlExecutionStore(engine))


def start_report() -> None:
    # APScheduler 3 does not pass the scheduled time to the job, so ask the trigger.
    earliest = datetime.now(UTC) - timedelta(seconds=GRACE)
    scheduled = EVERY_MINUTE.get_next_fire_time(None, earliest)
    with suppress(AlreadyRunning):  # on the other scheduler
        make_report(scheduled.isoformat())


@manager.tracked(
    "report",
    idempotency_key=lambda scheduled: f"report-{scheduled}",
    payload=lambda scheduled: {"scheduled": scheduled},
    max_attempts=3,
    worker=f"{socket.gethostname()}:{os.getpid()}",
    heartbeat=STALLED_AFTER / 10,
)
def make_report(scheduled: str, *, attempt: Any = None) -> None:
    for part in attempt.each(range(10)):
        time.sleep(0.05)  # stands for a slow query
        with engine.begin() as connection:
            connection.execute(
                text("INSERT INTO report_parts VALUES (:scheduled, :part, :attempt)"),
                {"scheduled": scheduled, "part": part, "attempt": attempt.number},
            )


def retry_stalled() -> None:
    """Retry the reports of a scheduler that died."""
    manager.sweep(stalled_after=STALLED_AFTER, type="report")
    for report in manager.list(type="report", status="timed_out"):
        if report.attempts < report.max_attempts:
            with suppress(AlreadyRunning):
                make_report(report.payload["scheduled"])


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    with engine.begin() as connection:
        migrate.upgrade(connection)
        connection.execute(
            text("CREATE TABLE IF NOT EXISTS report_parts (scheduled TEXT, part INT, attempt INT)")
        )
    scheduler = BlockingScheduler(timezone=UTC)
    scheduler.add_job(start_report, EVERY_MINUTE, misfire_grace_time=GRACE)
    scheduler.add_job(retry_stalled, "interval", seconds=STALLED_AFTER.total_seconds() / 3)
    signal.signal(signal.SIGTERM, lambda *_: scheduler.shutdown())  # waits for running jobs
    scheduler.start()


if __name__ == "__main__":
    main()
