"""A Flask service with separate worker processes that make reports.

    pip install flask 'execution-core[postgresql]'
    export EXECUTION_CORE_URL=postgresql+psycopg://localhost/mine
    flask --app flask_service run       # handles requests
    flask --app flask_service work      # makes reports; run any number of these
    curl -X PUT localhost:5000/reports/2026-02 --json '{"title": "February"}'
    curl localhost:5000/reports/2026-02

A month has one report: a repeated request gets the same one. Cancelling it stops the block of its
worker. If a worker dies, another one resumes its report.
"""

import logging
import os
import time
from calendar import monthrange
from datetime import date, timedelta
from typing import Any, Final

from flask import Blueprint, Flask, abort, request
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, scoped_session, sessionmaker

from execution_core import (
    Attempt,
    Execution,
    ExecutionManager,
    ExecutionProblem,
    ExecutionProblemCode,
    SqlExecutionStore,
    configure_sqlite,
    migrate,
)
from execution_core.worker import Worker

STALLED_AFTER: Final = timedelta(seconds=float(os.environ.get("STALLED_AFTER", "60")))

engine = create_engine(os.environ.get("EXECUTION_CORE_URL", "sqlite:///reports.db"))
if engine.dialect.name == "sqlite":
    configure_sqlite(engine)
sessions = scoped_session(sessionmaker(engine))
executions = ExecutionManager(SqlExecutionStore(engine))
reports = Blueprint("reports", __name__, cli_group=None)

Answer = tuple[dict[str, Any], int]


class Base(DeclarativeBase):
    pass


class Report(Base):
    __tablename__ = "reports"

    month: Mapped[date] = mapped_column(primary_key=True)
    title: Mapped[str]


class ReportLine(Base):
    __tablename__ = "report_lines"

    day: Mapped[date] = mapped_column(primary_key=True)
    attempt: Mapped[int]


def create_app() -> Flask:
    with engine.begin() as connection:  # processes that start together wait here
        migrate.upgrade(connection)
        Base.metadata.create_all(connection)  # your own migrations
    engine.dispose()  # a server may fork after this; processes must not share a connection
    app = Flask(__name__)
    app.register_blueprint(reports)
    app.register_error_handler(ExecutionProblem, refuse)
    app.teardown_appcontext(lambda _: sessions.remove())
    return app


# --- requests ---------------------------------------------------------------------------------


@reports.put("/reports/<month>")
def create(month: str) -> Answer:
    first, title = first_day(month), str(request.get_json()["title"])
    with sessions.begin():
        execution = executions.within(sessions).create(
            "report",
            {"first_day": first, "title": title},
            idempotency_key=f"report-{first}",
            max_attempts=5,
        )
        sessions.merge(Report(month=first, title=title))
    return state(execution), 202


@reports.get("/reports/<month>")
def read(month: str) -> Answer:
    return state(find(month)), 200


@reports.delete("/reports/<month>")
def cancel(month: str) -> Answer:
    return state(executions.cancel(find(month).id, "no longer wanted")), 200


def first_day(month: str) -> date:
    try:
        return date.fromisoformat(f"{month}-01")
    except ValueError:
        abort(404)


def find(month: str) -> Execution:
    return executions.find_by_idempotency_key(f"report-{first_day(month)}") or abort(404)


def state(execution: Execution) -> dict[str, Any]:
    return execution.model_dump(mode="json", include={"status", "attempts", "progress", "result"})


def refuse(problem: ExecutionProblem) -> Answer:
    codes = {ExecutionProblemCode.NOT_FOUND: 404, ExecutionProblemCode.INVALID_VALUE: 422}
    return {"code": problem.code, "detail": str(problem)}, codes.get(problem.code, 409)


# --- the worker -------------------------------------------------------------------------------


@reports.cli.command("work")
def work() -> None:
    """Make reports until SIGTERM, and those that have begun to the end."""
    logging.basicConfig(level=logging.INFO)
    Worker(
        executions,
        {"report": make},
        retry_on=OSError,
        heartbeat=STALLED_AFTER / 10,
        stalled_after=STALLED_AFTER,
    ).run()


def make(attempt: Attempt) -> dict[str, int]:
    first = date.fromisoformat(attempt.execution.payload["first_day"])
    days = [first.replace(day=n + 1) for n in range(monthrange(first.year, first.month)[1])]
    for day in attempt.each(days):
        compute(day)
        with sessions.begin():
            # After a crash the last day may be computed again: so replace, do not add.
            sessions.merge(ReportLine(day=day, attempt=attempt.number))
    return {"days": len(days)}


def compute(day: date) -> None:  # noqa: ARG001
    time.sleep(0.05)  # stands for a slow query
