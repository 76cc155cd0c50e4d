"""Celery delivers and retries; execution-core records and prevents duplicate work.

    pip install celery 'execution-core[postgresql]'
    export EXECUTION_CORE_URL=postgresql+psycopg://localhost/mine CELERY_BROKER_URL=amqp://localhost
    celery --app celery_tasks worker --beat
    celery --app celery_tasks call celery_tasks.bill --args '["2026-02", ["ada", "grace"]]'

The id of a task is the idempotency key of its execution. With `acks_late` Celery delivers a task
again when its worker is lost, and a broker can deliver a task twice. All deliveries have the same
id: a later one resumes at the checkpoint of an earlier one, comes back later while that one is
running, and does nothing if it has completed. It needs no `execution_core.worker`, because Celery
starts the functions.
"""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from celery import Celery, Task
from celery.signals import worker_init
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from execution_core import (
    AlreadyRunning,
    AttemptLost,
    ExecutionManager,
    SqlExecutionStore,
    configure_sqlite,
    migrate,
)

STALLED_AFTER: Final = timedelta(seconds=float(os.environ.get("STALLED_AFTER", "60")))

app = Celery("celery_tasks", broker=os.environ.get("CELERY_BROKER_URL", "filesystem://"))
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,  # the execution stores the result
    beat_schedule={"sweep": {"task": "celery_tasks.sweep", "schedule": STALLED_AFTER / 3}},
)
if app.conf.broker_url == "filesystem://":  # to try it without a server: a folder
    folders = dict.fromkeys(("data_folder_in", "data_folder_out", "control_folder"), "celery-queue")
    app.conf.broker_transport_options = folders
    Path("celery-queue").mkdir(exist_ok=True)

engine = create_engine(os.environ.get("EXECUTION_CORE_URL", "sqlite:///invoices.db"))
if engine.dialect.name == "sqlite":
    configure_sqlite(engine)
executions = ExecutionManager(SqlExecutionStore(engine))


@worker_init.connect
def prepare(**_: Any) -> None:
    with engine.begin() as connection:
        migrate.upgrade(connection)
        connection.execute(
            text("CREATE TABLE IF NOT EXISTS invoices (month TEXT, customer TEXT, attempt INTEGER)")
        )
    engine.dispose()  # Celery forks after this; the processes must not share a connection


@app.task(
    bind=True, autoretry_for=(OSError, OperationalError), retry_backoff=True, max_retries=None
)
def bill(self: Task, month: str, customers: list[str]) -> None:
    """Celery decides when to retry; `max_attempts` decides how often."""
    tracked = executions.tracked(
        "bill",
        idempotency_key=lambda *_: self.request.id,
        payload=lambda month, customers: {"month": month, "customers": customers},
        max_attempts=5,
        worker=f"{self.request.hostname}:{os.getpid()}",
        heartbeat=STALLED_AFTER / 10,
    )
    try:
        tracked(make_invoices)(month, customers)
    except (AlreadyRunning, AttemptLost) as problem:
        # Another delivery is running it, or its worker died: then a sweep ends that attempt.
        raise self.retry(exc=problem, countdown=STALLED_AFTER.total_seconds()) from problem


def make_invoices(month: str, customers: list[str], *, attempt: Any = None) -> dict[str, int]:
    done = attempt.checkpoints.get("invoices", 0)
    for number, customer in enumerate(customers[done:], done + 1):
        time.sleep(0.05)  # stands for a remote call
        invoice = {"month": month, "customer": customer, "attempt": attempt.number}
        with engine.begin() as connection:  # the row and the checkpoint commit together
            connection.execute(
                text("INSERT INTO invoices VALUES (:month, :customer, :attempt)"), invoice
            )
            attempt.within(connection).advance(number, len(customers), key="invoices", value=number)
    return {"invoices": len(customers)}


@app.task
def sweep() -> None:
    """End the attempts of dead workers; the next delivery starts the next attempt."""
    executions.sweep(stalled_after=STALLED_AFTER, type="bill")
