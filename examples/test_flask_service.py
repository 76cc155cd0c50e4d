"""Tests of flask_service. Each has a database of its own, and a clock that it sets forward.

Put conftest.py beside them:

    pip install pytest
    pytest test_flask_service.py
"""

from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from typing import Any, Final

import flask_service as service
import pytest
from flask.testing import FlaskClient
from sqlalchemy import create_engine, func, select

from execution_core import AttemptLost, ExecutionManager, configure_sqlite
from execution_core.testing import ExecutionClock

FEBRUARY: Final = {"title": "February"}


@pytest.fixture
def client(
    execution_url: str, execution_manager: ExecutionManager, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FlaskClient]:
    """Return a client of the service, which uses the database of the test."""
    engine = configure_sqlite(create_engine(execution_url))
    monkeypatch.setattr(service, "engine", engine)
    monkeypatch.setattr(service, "executions", execution_manager)
    monkeypatch.setattr(service, "compute", lambda _: None)
    service.sessions.remove()
    service.sessions.configure(bind=engine)
    yield service.create_app().test_client()
    service.sessions.remove()
    engine.dispose()


def state(client: FlaskClient) -> Any:
    return client.get("/reports/2026-02").get_json()


def test_put_repeated_request_creates_one_report(
    client: FlaskClient, execution_manager: ExecutionManager
) -> None:
    for _ in range(2):
        assert client.put("/reports/2026-02", json=FEBRUARY).status_code == 202
    (execution,) = execution_manager.list()
    assert execution.status == "pending"


def test_put_other_title_is_refused(client: FlaskClient) -> None:
    client.put("/reports/2026-02", json=FEBRUARY)
    refused = client.put("/reports/2026-02", json={"title": "Other"})
    assert refused.status_code == 409
    assert refused.get_json()["code"] == "IDEMPOTENCY_CONFLICT"
    with service.sessions.begin():
        assert service.sessions.scalars(select(service.Report.title)).all() == ["February"]


@pytest.mark.parametrize("month", ["2026-13", "x"])
def test_put_invalid_month_is_not_found(client: FlaskClient, month: str) -> None:
    assert client.put(f"/reports/{month}", json=FEBRUARY).status_code == 404


def test_delete_twice_second_is_refused(
    client: FlaskClient, execution_manager: ExecutionManager
) -> None:
    client.put("/reports/2026-02", json=FEBRUARY)
    assert client.delete("/reports/2026-02").get_json()["status"] == "cancelled"
    assert client.delete("/reports/2026-02").status_code == 409
    assert not make_due_reports(execution_manager)


def test_report_cancelled_during_the_work_stops(
    client: FlaskClient, execution_manager: ExecutionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.put("/reports/2026-02", json=FEBRUARY)
    monkeypatch.setattr(service, "compute", lambda _: client.delete("/reports/2026-02"))
    assert make_due_reports(execution_manager)
    assert state(client)["status"] == "cancelled"
    assert lines() == 1


def test_report_database_is_down_next_attempt_resumes(
    client: FlaskClient, execution_manager: ExecutionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_down(day: date) -> None:
        if day.day == 20:
            raise ConnectionError

    client.put("/reports/2026-02", json=FEBRUARY)
    with monkeypatch.context() as patch:
        patch.setattr(service, "compute", is_down)
        make_due_reports(execution_manager)
    assert state(client)["status"] == "retrying"
    assert state(client)["progress"]["current"] == 19
    make_due_reports(execution_manager)
    assert state(client)["result"] == {"days": 28}
    assert lines(attempt=2) == 9


def test_report_worker_died_sweep_lets_another_worker_make_it(
    client: FlaskClient, execution_manager: ExecutionManager, execution_clock: ExecutionClock
) -> None:
    client.put("/reports/2026-02", json=FEBRUARY)
    execution_manager.claim("report")  # this worker dies
    execution_manager.sweep(stalled_after=service.STALLED_AFTER, retry=True)
    assert not make_due_reports(execution_manager)

    execution_clock.advance(2 * service.STALLED_AFTER)
    execution_manager.sweep(stalled_after=service.STALLED_AFTER, retry=True)
    assert make_due_reports(execution_manager)
    assert (state(client)["status"], state(client)["attempts"]) == ("completed", 2)


def make_due_reports(manager: ExecutionManager) -> bool:
    """Make a report that is due, as a worker does; return whether there was one."""
    claimed = manager.claim("report")
    for job in claimed:
        with (
            suppress(AttemptLost, ConnectionError),
            manager.attempt(job, retry_on=OSError) as attempt,
        ):
            attempt.result = service.make(attempt)
    return bool(claimed)


def lines(**conditions: int) -> int:
    """Return the number of lines of the report, or of those that an attempt has made."""
    with service.sessions.begin():
        query = select(func.count()).select_from(service.ReportLine).filter_by(**conditions)
        return int(service.sessions.scalar(query))
