"""Every verb in every state: allowed transitions happen, refused ones change nothing."""

from typing import Any

import pytest
from sqlalchemy import text

from execution_core import (
    ExecutionManager,
    ExecutionProblem,
    ExecutionStatus,
    InvalidStateTransition,
    MaxRetriesExceeded,
    StaleAttempt,
)
from execution_core.core import state_machine
from execution_core.core.state_machine import Rule

from ..conftest import Database
from ..support.states import STATES, bring_to

VERBS = {
    "start": lambda m, id: m.start(id),
    "complete": lambda m, id: m.complete(id, [1]),
    "fail": lambda m, id: m.fail(id, "broken"),
    "fail-retryable": lambda m, id: m.fail(id, "broken", retryable=True),
    "timeout": lambda m, id: m.timeout(id),
    "cancel": lambda m, id: m.cancel(id),
    "cancel-reason": lambda m, id: m.cancel(id, "late"),
    "retry": lambda m, id: m.retry(id),
    "retry-extended": lambda m, id: m.retry(id, extra_attempts=1),
    "finish_with_children": lambda m, id: m.finish_with_children(id),
    "release": lambda m, id: m.release(id),
    "progress": lambda m, id: m.update_progress(id, 1, 2),
    "checkpoint": lambda m, id: m.checkpoint(id, "k", 1),
    "advance": lambda m, id: m.advance(id, 1, 2, key="k", value=1),
    "heartbeat": lambda m, id: m.heartbeat(id),
    "annotate": lambda m, id: m.annotate(id, {"k": 1}),
    "redact": lambda m, id: m.redact(id),
}

# Written from the design, not derived from the code. A status: the transition is made, "same":
# accepted and the status stays, "-": InvalidStateTransition, "max": MaxRetriesExceeded.
TABLE = """
                pending    running    running-last completed failed    failed-last retrying  timed_out timed_out-last cancelled
start           running    -          -            -         -         -           running   -         -              -
complete        -          completed  completed    -         -         -           -         -         -              -
fail            -          failed     failed       -         -         -           failed    -         -              -
fail-retryable  -          retrying   failed       -         -         -           failed    -         -              -
timeout         -          timed_out  timed_out    -         -         -           -         -         -              -
cancel          cancelled  cancelled  cancelled    -         -         -           cancelled -         -              -
cancel-reason   cancelled  cancelled  cancelled    -         -         -           cancelled -         -              -
retry           same       -          -            -         retrying  max         same      retrying  max            -
retry-extended  same       -          -            -         retrying  retrying    same      retrying  retrying       -
finish_with_children - completed completed   -         -         -           -         -         -              -
release         -          retrying   retrying     -         -         -           -         -         -              -
progress        same       same       same         -         -         -           same      -         -              -
checkpoint      same       same       same         -         -         -           same      -         -              -
advance         same       same       same         -         -         -           same      -         -              -
heartbeat       -          same       same         -         -         -           -         -         -              -
annotate        same       same       same         same      same      same        same      same      same           same
redact          -          -          -            same      same      same        -         same      same           same
"""  # fmt: skip # noqa: E501

HEAD, *LINES = (line.split() for line in TABLE.strip().splitlines())
CHANGE_NO_STATUS = {verb for verb, *outcomes in LINES if {*outcomes} <= {"same", "-"}}
CHANGE_NO_STATUS.add("finish_with_children")  # it has no children, which end it at once
OUTCOMES = {verb: dict(zip(HEAD, outcomes, strict=True)) for verb, *outcomes in LINES}


def test_transition_table_names_every_state_and_verb() -> None:
    assert list(STATES) == HEAD
    assert [line[0] for line in LINES] == list(VERBS)
    assert {s.removesuffix("-last") for s in HEAD} == {str(s) for s in ExecutionStatus}


def test_transition_table_has_every_rule() -> None:
    """A new verb needs a row of the table; claim, sweep and log have tests of their own."""
    tested = {*VERBS}
    names = {"update_progress": "progress"}
    rules = {names.get(rule.verb, rule.verb) for rule in state_machine.RULES}
    assert rules - {"claim", "sweep", "log"} <= tested
    defined = {each for each in vars(state_machine).values() if isinstance(each, Rule)}
    assert defined == {*state_machine.RULES}


def stored(database: Database) -> Any:
    """Return all rows as the database itself formats them."""
    with database.engine.connect() as connection:
        columns = "*" if database.name == "sqlite" else "t::text"
        return [
            connection.execute(text(f"SELECT {columns} FROM {table} AS t ORDER BY 1")).all()
            for table in ("executions", "execution_history")
        ]


@pytest.mark.parametrize("verb", VERBS)
def test_verb_in_every_state_follows_table(
    database: Database, manager: ExecutionManager, verb: str
) -> None:
    for state, outcome in OUTCOMES[verb].items():
        assert_follows_table(database, manager, verb, state, outcome)


def assert_follows_table(
    database: Database, manager: ExecutionManager, verb: str, state: str, outcome: str
) -> None:
    before = bring_to(manager, state)
    events = len(database.history(before.id))
    rows = stored(database)
    if outcome in ("-", "max"):
        refused = InvalidStateTransition if outcome == "-" else MaxRetriesExceeded
        with pytest.raises(refused) as caught:
            VERBS[verb](manager, before.id)
        problem: Any = caught.value
        assert problem.execution_id == before.id
        if isinstance(caught.value, InvalidStateTransition):
            assert caught.value.from_status == before.status
            assert (caught.value.to_status is None) == (verb in CHANGE_NO_STATUS)
        assert stored(database) == rows
    else:
        after = VERBS[verb](manager, before.id)
        assert after.status == (before.status if outcome == "same" else outcome)
        assert after == manager.get(before.id)
        history = database.history(before.id)
        assert history[-1][1] == after.status
        assert len(history) == events + (outcome != "same")


@pytest.mark.parametrize("any_manager", ["memory"], indirect=True)
@pytest.mark.parametrize("verb", VERBS)
def test_verb_on_memory_store_follows_table(any_manager: ExecutionManager, verb: str) -> None:
    refusals = {"-": InvalidStateTransition, "max": MaxRetriesExceeded}
    for state, outcome in OUTCOMES[verb].items():
        before = bring_to(any_manager, state)
        if outcome in refusals:
            with pytest.raises(refusals[outcome]):
                VERBS[verb](any_manager, before.id)
            assert any_manager.get(before.id) == before
        else:
            after = VERBS[verb](any_manager, before.id)
            assert after.status == (before.status if outcome == "same" else outcome)


FENCED: dict[str, Any] = {
    "complete": lambda m, id, attempt: m.complete(id, attempt=attempt),
    "fail": lambda m, id, attempt: m.fail(id, "broken", attempt=attempt),
    "fail-retryable": lambda m, id, attempt: m.fail(id, "x", retryable=True, attempt=attempt),
    "timeout": lambda m, id, attempt: m.timeout(id, attempt=attempt),
    "release": lambda m, id, attempt: m.release(id, attempt=attempt),
    "progress": lambda m, id, attempt: m.update_progress(id, 1, 2, attempt=attempt),
    "checkpoint": lambda m, id, attempt: m.checkpoint(id, "k", 1, attempt=attempt),
    "advance": lambda m, id, attempt: m.advance(id, 1, 2, key="k", value=1, attempt=attempt),
    "heartbeat": lambda m, id, attempt: m.heartbeat(id, attempt=attempt),
}


@pytest.mark.parametrize("verb", FENCED)
def test_fence_with_stale_attempt_refuses(any_manager: ExecutionManager, verb: str) -> None:
    second = bring_to(any_manager, "running-last")
    for stale in (0, 1, 3):
        with pytest.raises(StaleAttempt) as caught:
            FENCED[verb](any_manager, second.id, stale)
        assert (caught.value.attempt, caught.value.current_attempt) == (stale, 2)
        assert any_manager.get(second.id) == second
    assert FENCED[verb](any_manager, second.id, 2).attempts == 2


@pytest.mark.parametrize("state", ["pending", "retrying", "timed_out", "cancelled"])
def test_fence_when_not_running_refuses(any_manager: ExecutionManager, state: str) -> None:
    """Between two attempts, too: the first attempt has ended and does not own the second."""
    before = bring_to(any_manager, state)
    for call in FENCED.values():
        with pytest.raises(InvalidStateTransition) as caught:
            call(any_manager, before.id, before.attempts)
        assert caught.value.sources == ("running",)
        assert any_manager.get(before.id) == before


def test_complete_after_finish_raises_invalid_transition(any_manager: ExecutionManager) -> None:
    done = bring_to(any_manager, "completed")
    with pytest.raises(InvalidStateTransition):
        any_manager.complete(done.id, attempt=1)


def test_start_of_retrying_clears_last_attempt(any_manager: ExecutionManager) -> None:
    retrying = bring_to(any_manager, "retrying")
    assert retrying.error is not None
    assert retrying.worker == "host"
    assert retrying.completed_at is None
    again = any_manager.start(retrying.id)
    assert again.attempts == 2
    assert again.error is None
    assert again.worker is None
    assert retrying.started_at is not None
    assert again.started_at is not None
    assert again.started_at >= retrying.started_at
    assert again.deadline_at is None


@pytest.mark.parametrize("state", ["completed", "failed", "timed_out", "cancelled"])
def test_finish_sets_completed_at(any_manager: ExecutionManager, state: str) -> None:
    finished = bring_to(any_manager, state)
    assert finished.completed_at == finished.updated_at


@pytest.mark.parametrize("state", ["failed", "timed_out"])
def test_retry_clears_outcome_and_keeps_attempts(any_manager: ExecutionManager, state: str) -> None:
    finished = bring_to(any_manager, state)
    again = any_manager.retry(finished.id)
    assert (again.error, again.completed_at, again.attempts) == (None, None, 1)


def test_timeout_records_timeout_error(any_manager: ExecutionManager) -> None:
    error = bring_to(any_manager, "timed_out").error
    assert error is not None
    assert error.model_dump(exclude_none=True) == {
        "message": "Execution timed out",
        "code": "timeout",
        "retryable": True,
    }


def test_refusal_message_names_status_and_verb(any_manager: ExecutionManager) -> None:
    done = bring_to(any_manager, "completed")
    with pytest.raises(ExecutionProblem) as caught:
        any_manager.start(done.id)
    assert str(caught.value) == (
        f"Cannot start execution {done.id}: its status is completed, not pending or retrying."
    )
    assert caught.value.code == "INVALID_STATE_TRANSITION"
