"""A connection is lost, and other callers write before the outcome is verified."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from execution_core import (
    Execution,
    ExecutionNotFound,
    InvalidStateTransition,
    StaleAttempt,
    connect,
    connect_async,
)
from execution_core.sql.driver.session import ConnectionBroken

from ..conftest import Blocking, Database
from ..support.proxy import Cut, Proxy
from .lost_connections import (
    age_by_a_minute,
)


class InterleavedManager:
    """A manager whose connection is lost; other callers run before it verifies the outcome."""

    def __init__(self, proxy: Proxy, runner: asyncio.Runner, mode: str) -> None:
        self.proxy = proxy
        direct_manager: Any = connect(proxy.url) if mode == "sync" else connect_async(proxy.url)
        self.manager: Any = direct_manager if mode == "sync" else Blocking(direct_manager, runner)
        self.direct = direct_manager._store._bind
        self.name = "rows" if mode == "sync" else "rows_async"

    def call(self, when: Cut, others: Callable[[], object], call: Callable[[Any], Any]) -> Any:
        rows = getattr(self.direct, self.name)

        def sync(query: Any) -> Any:
            try:
                return rows(query)
            except ConnectionBroken:
                setattr(self.direct, self.name, rows)
                others()
                raise

        async def asynchronous(query: Any) -> Any:
            try:
                return await rows(query)
            except ConnectionBroken:
                setattr(self.direct, self.name, rows)
                others()
                raise

        setattr(self.direct, self.name, sync if self.name == "rows" else asynchronous)
        self.proxy.cut(when)
        return call(self.manager)


@pytest.fixture
def interleaved(proxy: Proxy, mode: str, runner: asyncio.Runner) -> Iterator[InterleavedManager]:
    interleaved = InterleavedManager(proxy, runner, mode)
    yield interleaved
    interleaved.manager.close()


def test_lost_connection_later_transitions_answer_is_own_transition(
    interleaved: InterleavedManager, postgres_database: Database
) -> None:
    with connect(postgres_database.url) as other:

        def fail_and_restart(id: str) -> Callable[[], object]:
            def calls() -> None:
                other.fail(id, "late", retryable=True)
                other.start(id, worker="second")

            return calls

        id = other.create("work", max_attempts=3).id
        started: Execution = interleaved.call(
            Cut.AFTER, fail_and_restart(id), lambda m: m.start(id, worker="first")
        )
        assert (started.status, started.attempts, started.worker) == ("running", 1, "first")
        assert (other.get(id).attempts, other.get(id).worker) == (2, "second")
        failed = interleaved.call(
            Cut.AFTER, lambda: other.start(id), lambda m: m.fail(id, "no", retryable=True)
        )
        assert (failed.status, failed.attempts, failed.error.message) == ("retrying", 2, "no")
        # An attempt keeps its own number and raises AttemptLost at its next write.
        id = other.create("work", max_attempts=3).id
        attempt = interleaved.manager.attempt(id)
        interleaved.call(Cut.AFTER, fail_and_restart(id), lambda _: attempt.__enter__())
        assert attempt.number == 1
        with pytest.raises(Exception, match="attempt 2 has taken over"):
            attempt.heartbeat()


@pytest.mark.parametrize("status", ["retrying", "failed"])
def test_lost_connection_same_status_again_answer_is_own_transition(
    interleaved: InterleavedManager, postgres_database: Database, status: str
) -> None:
    """Others bring the execution back to the status that the write left, with other values."""
    with connect(postgres_database.url) as other:
        id = other.create("work", max_attempts=9).id
        other.start(id, worker="first")

        def others() -> None:
            if status == "retrying":
                other.fail(id, "given up")
            other.retry(id)
            if status == "failed":
                other.fail(id, "another failure")

        failed = interleaved.call(
            Cut.AFTER,
            others,
            lambda m: m.fail(
                id,
                "own",
                retryable=status == "retrying",
                retry_after=timedelta(minutes=1) if status == "retrying" else None,
            ),
        )
        assert (failed.status, failed.error.message, failed.worker) == (status, "own", "first")
        delay = failed.due_at and failed.due_at - failed.updated_at
        assert delay == (timedelta(minutes=1) if status == "retrying" else None)
        assert (failed.completed_at is None) == (status == "retrying")
        assert other.get(id).error != failed.error


def test_lost_connection_later_attempt_answer_has_own_times(
    interleaved: InterleavedManager, postgres_database: Database
) -> None:
    with connect(postgres_database.url) as other:
        id = other.create("work", max_attempts=9, timeout=timedelta(hours=1)).id

        def others() -> None:
            other.timeout(id)
            other.retry(id)
            other.start(id)

        started = interleaved.call(Cut.AFTER, others, lambda m: m.start(id))
        assert started.started_at == started.heartbeat_at == started.updated_at
        assert started.deadline_at == started.started_at + timedelta(hours=1)
        assert other.get(id).started_at > started.started_at


def test_lost_connection_sweep_omits_executions_of_later_attempts(
    interleaved: InterleavedManager, postgres_database: Database
) -> None:
    with connect(postgres_database.url) as other:
        ids = [other.create("work", max_attempts=2).id for _ in range(2)]
        for id in ids:
            other.start(id)
        age_by_a_minute(postgres_database)

        def others() -> None:
            other.retry(ids[0])
            other.start(ids[0])
            other.timeout(ids[0])

        swept = interleaved.call(
            Cut.AFTER, others, lambda m: m.sweep(stalled_after=timedelta(seconds=1))
        )
        assert [each.id for each in swept] == ids[1:]


def test_lost_connection_finished_since_answer_has_no_end(
    interleaved: InterleavedManager, postgres_database: Database
) -> None:
    """Whether a verb or a manual UPDATE finished it."""
    manual = "UPDATE executions SET status = 'cancelled', completed_at = updated_at WHERE id = :id"
    with connect(postgres_database.url) as other:
        for end in (other.cancel, lambda id: postgres_database.run(manual, id=id)):
            id = other.create("work").id
            started = interleaved.call(Cut.AFTER, lambda: end(id), lambda m: m.start(id))  # noqa: B023
            assert (started.status, started.completed_at) == ("running", None)
            assert other.get(id).status == "cancelled"
            assert other.get(id).completed_at is not None


def test_lost_connection_claim_returns_rows_that_others_wrote_to(
    interleaved: InterleavedManager, postgres_database: Database
) -> None:
    with connect(postgres_database.url) as other:
        ids = [other.create("work", max_attempts=2).id for _ in range(4)]

        def writes() -> None:
            other.checkpoint(ids[0], "note", "by another")
            other.update_progress(ids[1], 1, 2)
            other.complete(ids[2])  # so the claim must omit it

        claimed = interleaved.call(Cut.AFTER, writes, lambda m: m.claim(limit=3))
        assert [each.id for each in claimed] == ids[:2]
        # The claim is not repeated when others changed all its rows.
        for id in ids[:2]:
            other.complete(id)
        end = lambda: other.fail(ids[3], "no", retryable=True)  # noqa: E731
        assert interleaved.call(Cut.AFTER, end, lambda m: m.claim(limit=1)) == []
        assert (other.get(ids[3]).status, other.get(ids[3]).attempts) == ("retrying", 1)


def test_lost_connection_before_commit_repeat_sees_writes_of_others(
    interleaved: InterleavedManager, postgres_database: Database
) -> None:
    with connect(postgres_database.url) as other:
        id = other.create("work").id
        with pytest.raises(InvalidStateTransition, match="its status is cancelled"):
            interleaved.call(Cut.BEFORE, lambda: other.cancel(id), lambda m: m.start(id))
        id = other.create("work").id
        with pytest.raises(ExecutionNotFound):
            interleaved.call(Cut.AFTER, lambda: other.delete(id), lambda m: m.start(id))


def test_lost_connection_write_without_history_verified_by_value(
    interleaved: InterleavedManager, postgres_database: Database
) -> None:
    """Also after a later write of another caller."""
    sent: list[str] = []
    with connect(postgres_database.url) as other:
        id = other.create("work").id
        other.start(id)

        def writes(when: Cut, others: Callable[[], object], call: Callable[[Any], Any]) -> int:
            """Return the number of writes that were sent."""
            before = interleaved.proxy.writes
            sent.append(interleaved.call(when, others, call).id)
            return interleaved.proxy.writes - before

        beat = lambda: other.heartbeat(id)  # noqa: E731
        assert writes(Cut.AFTER, beat, lambda m: m.update_progress(id, 1, 4)) == 1
        assert writes(Cut.AFTER, beat, lambda m: m.checkpoint(id, "k", [1, {"x": None}])) == 1
        assert writes(Cut.AFTER, beat, lambda m: m.advance(id, 2, 4, key="k", value=None)) == 1
        nothing = lambda: None  # noqa: E731
        age_by_a_minute(postgres_database)
        assert writes(Cut.BEFORE, nothing, lambda m: m.checkpoint(id, "l", None)) == 2
        age_by_a_minute(postgres_database)
        assert writes(Cut.BEFORE, nothing, lambda m: m.update_progress(id, 3, 4)) == 2
        found = other.get(id)
    assert found.checkpoints == {"k": None, "l": None}
    assert found.progress is not None
    assert found.progress.current == 3


def test_lost_connection_value_already_stored_refusals_are_raised(
    interleaved: InterleavedManager, postgres_database: Database
) -> None:
    """A stored value does not show who wrote it, nor that this call was allowed to."""
    nothing = lambda: None  # noqa: E731
    with connect(postgres_database.url) as other:
        for when, others in ((Cut.BEFORE, nothing), (Cut.AFTER, nothing)):
            id = other.create("work", max_attempts=2).id
            other.start(id)
            other.advance(id, 1, 4, key="k", value=1)
            other.fail(id, "no", retryable=True)
            other.start(id)
            age_by_a_minute(postgres_database)
            for call in (
                lambda m: m.checkpoint(id, "k", 1, attempt=1),  # noqa: B023
                lambda m: m.update_progress(id, 1, 4, attempt=1),  # noqa: B023
            ):
                with pytest.raises(StaleAttempt):
                    interleaved.call(when, others, call)
            other.cancel(id)
            age_by_a_minute(postgres_database)
            with pytest.raises(InvalidStateTransition):
                interleaved.call(when, others, lambda m: m.checkpoint(id, "k", 1))  # noqa: B023


def test_lost_connection_equal_value_of_other_type_is_not_own_write(
    interleaved: InterleavedManager, postgres_database: Database
) -> None:
    """In Python True == 1, in JSON they differ."""
    with connect(postgres_database.url) as other:
        id = other.create("work").id
        other.start(id)
        other.checkpoint(id, "k", [1])
        with pytest.raises(OperationalError):
            interleaved.call(
                Cut.BEFORE, lambda: other.heartbeat(id), lambda m: m.checkpoint(id, "k", [True])
            )
        age_by_a_minute(postgres_database)
        before = other.get(id)
        proxy = interleaved.proxy
        proxy.cut(Cut.BEFORE)
        after = interleaved.manager.checkpoint(id, "k", [True])
    assert repr(after.checkpoints) == "{'k': [True]}"
    assert after.heartbeat_at > before.heartbeat_at


@pytest.mark.parametrize("when", [Cut.AFTER, Cut.BEFORE])
def test_lost_connection_value_overwritten_outcome_is_unknown(
    interleaved: InterleavedManager, postgres_database: Database, when: Cut
) -> None:
    """A repeat would undo the later write, or be refused although the first call succeeded."""
    with connect(postgres_database.url) as other:
        id = other.create("work").id
        other.start(id)

        def writes() -> None:
            other.update_progress(id, 2, 4)
            other.checkpoint(id, "k", 2)

        for call in (
            lambda m: m.update_progress(id, 1, 4),
            lambda m: m.checkpoint(id, "k", 1),
            lambda m: m.advance(id, 1, 4, key="k", value=1),
        ):
            with pytest.raises(OperationalError):
                interleaved.call(when, writes, call)
            found = other.get(id)
            assert found.progress is not None
            assert (found.progress.current, found.checkpoints) == (2, {"k": 2})
