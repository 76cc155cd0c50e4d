"""The checker of `make proof`: it accepts a recorded run and reports each falsification of it.

The run is recorded on both databases.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from proof.checker import KINDS, check
from proof.journal import DONE, NOT_DONE, REFUSED, UNKNOWN, Journal, Json, Operation
from proof.observed import ObservedExecution
from proof.stores import manager_of

from execution_core import migrate
from proof import chaos, journal, worker

MOMENT = 1_000  # nanoseconds


@dataclass
class RecordedRun:
    """One execution, and all operations on it, in sequence."""

    operations: list[Operation]
    execution: ObservedExecution

    def op(self, verb: str, nth: int = 0) -> Operation:
        return [each for each in self.operations if each.verb == verb][nth]

    def change_row(self, nth: int, **changes: Any) -> None:
        self.execution.history[nth] = self.execution.history[nth]._replace(**changes)

    def token(self, verb: str, nth: int = 0) -> str:
        (token,) = self.op(verb, nth).tokens
        return token

    def kinds(self) -> set[str]:
        return {violation.kind for violation in check(self.operations, [self.execution])}


NEW: Json = {
    "type": "a",
    "payload": {"n": 1},
    "idempotency_key": "key",
    "max_attempts": 5,
    "timeout": timedelta(seconds=60),
    "metadata": {"kept": 1},
}
ADVANCED: Json = {"current": 30, "total": 100, "message": "w-17", "percent": 30.0}
OPERATIONS: list[tuple[str, Json]] = [
    ("start", {"worker": "w-2"}),
    ("update_progress", {"current": 10, "total": 100, "message": "w-3", "percent": 10.0}),
    ("checkpoint", {"key": "k", "value": "w-4", "attempt": 1}),
    ("complete", {"result": "w-5", "attempt": 7}),  # refused: stale
    ("fail", {"error": "w-6", "retryable": True, "retry_after": None, "attempt": 1}),
    ("complete", {"result": "w-7"}),  # refused: retrying
    ("retry", {}),  # retrying: due now
    ("claim", {"worker": "w-9", "limit": 3}),
    ("update_progress", {"current": 20, "total": 100, "message": "w-10", "percent": 20.0}),
    ("heartbeat", {"attempt": 2}),
    ("get", {}),
    ("timeout", {"attempt": 2}),
    ("retry", {}),
    ("start", {"worker": "w-15"}),
    ("checkpoint", {"key": "k", "value": "w-16"}),
    ("advance", ADVANCED | {"key": "j", "value": "w-17"}),
    ("complete", {"result": "w-18"}),
    ("start", {"worker": "w-19"}),  # refused: completed
    ("get", {}),
    ("create", NEW),  # found
    ("create", NEW | {"payload": {"n": 2}}),  # refused: other work
]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def recorded(
    request: pytest.FixtureRequest,
    empty_postgres: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> RecordedRun:
    folder = tmp_path_factory.mktemp("story")
    postgresql = request.param == "postgresql"
    url = empty_postgres("story") if postgresql else f"sqlite:///{folder}/story.db"
    migrate.upgrade(url)
    own = Journal(folder / "w.jsonl")
    manager = manager_of("host", url, own)
    with own.operation(own.next_name(), "create", NEW) as operation:
        created = manager.create(**NEW)
        operation.answers = [journal.as_json(created)]
    for verb, given in OPERATIONS:
        arguments = given if verb in ("claim", "create") else {"id": created.id, **given}
        with own.operation(own.next_name(), verb, arguments) as operation:
            operation.answers = worker.returned_executions(getattr(manager, verb)(**arguments))
    manager.close()
    (execution,) = chaos.read_executions(url)
    return RecordedRun(journal.read([folder / "w.jsonl"]), execution)


@pytest.fixture
def run(recorded: RecordedRun) -> RecordedRun:
    return deepcopy(recorded)


INVALID, LOST, UNDONE, UNOWNED, MISCOUNTED, UNEXPLAINED, MISTIMED, ERRORS = KINDS


def test_checker_accepts_recorded_run(run: RecordedRun) -> None:
    assert [each.outcome for each in run.operations].count(REFUSED) == 4
    assert len(run.execution.history) == 8
    assert run.kinds() == set()


def skip_seq(run: RecordedRun) -> None:
    run.change_row(3, seq=9)


def remove_row(run: RecordedRun) -> None:
    del run.execution.history[4]


def remove_history(run: RecordedRun) -> None:
    run.execution.history.clear()


def change_to_unknown_transition(run: RecordedRun) -> None:
    run.change_row(2, to_status="cancelled")
    run.change_row(3, from_status="cancelled")


def change_final_status(run: RecordedRun) -> None:
    run.execution.found["status"] = "failed"


def start_with_unknown_token(run: RecordedRun) -> None:
    run.change_row(1, token="018f0000-0000-7000-8000-000000000000")


def start_without_token(run: RecordedRun) -> None:
    run.change_row(1, token=None)


def remove_create(run: RecordedRun) -> None:
    del run.operations[0]


def start_with_token_of_heartbeat(run: RecordedRun) -> None:
    run.change_row(1, token=run.token("heartbeat"))


def fail_with_token_of_complete(run: RecordedRun) -> None:
    run.change_row(4, token=run.token("complete", -1))


def exchange_tokens_of_starts(run: RecordedRun) -> None:
    """Exchange the tokens of the two starts."""
    first, second = run.token("start"), run.token("start", 1)
    run.change_row(1, token=second)
    run.change_row(6, token=first)


def start_twice_with_one_token(run: RecordedRun) -> None:
    run.change_row(6, token=run.token("start"))


def remove_answer(run: RecordedRun) -> None:
    run.op("claim").answers = []


def remove_answer_of_cut(run: RecordedRun) -> None:
    """It had to verify its write, and no other operation overlaps."""
    run.op("claim").answers, run.op("claim").cut = [], True


def refuse_but_change(run: RecordedRun) -> None:
    run.change_row(7, token=run.token("complete", 1))


def report_not_done_but_change(run: RecordedRun) -> None:
    """Its outcome was: connection lost, nothing done."""
    run.op("timeout").outcome = NOT_DONE


def refuse_but_write(run: RecordedRun) -> None:
    operation = run.op("checkpoint", 1)
    operation.outcome, operation.problem = REFUSED, {"code": "STALE_ATTEMPT"}
    operation.answers = []


def report_not_done_but_write_last(run: RecordedRun) -> None:
    operation = run.op("heartbeat")
    operation.outcome = NOT_DONE
    run.execution.token = run.token("heartbeat")


def count_extra_attempt(run: RecordedRun) -> None:
    run.execution.found["attempts"] += 1


def count_attempt_twice(run: RecordedRun) -> None:
    run.change_row(6, attempt=2)


def lose_checkpoint(run: RecordedRun) -> None:
    for operation in run.operations[-5:]:
        for answer in operation.answers:
            answer["checkpoints"]["k"] = "w-4"
    run.execution.found["checkpoints"]["k"] = "w-4"


def lose_checkpoint_at_end(run: RecordedRun) -> None:
    run.execution.found["checkpoints"] = {}


def restore_old_progress(run: RecordedRun) -> None:
    """An overwritten progress appears again."""
    for answer in (answer for each in run.operations[11:] for answer in each.answers):
        answer["progress"] = run.op("update_progress").answers[0]["progress"]
    run.execution.found["progress"] = run.op("update_progress").answers[0]["progress"]


def lose_checkpoint_of_advance(run: RecordedRun) -> None:
    """The advance and later reads lack its checkpoint."""
    for row in (run.execution.found, *(a for each in run.operations[16:] for a in each.answers)):
        row["checkpoints"].pop("j")


def lose_progress_of_advance(run: RecordedRun) -> None:
    before = run.op("update_progress", 1).answers[0]["progress"]
    for row in (run.execution.found, *(a for each in run.operations[16:] for a in each.answers)):
        row["progress"] = before


def read_old_row(run: RecordedRun) -> None:
    run.op("get").answers = run.op("claim").answers


def read_other_result(run: RecordedRun) -> None:
    run.op("get", 1).answers[0]["result"] = "w-5"


def answer_with_other_worker(run: RecordedRun) -> None:
    run.op("claim").answers[0]["worker"] = "w-2"


def lose_metadata(run: RecordedRun) -> None:
    run.execution.found["metadata"] = {}


def return_other_work(run: RecordedRun, **asked: Any) -> None:
    run.op("create", 1).arguments |= asked or {"payload": {"n": 3}}


def return_other_type(run: RecordedRun) -> None:
    return_other_work(run, type="b")


def return_other_key(run: RecordedRun) -> None:
    return_other_work(run, idempotency_key="other")


def refuse_same_work(run: RecordedRun) -> None:
    run.op("create", 2).arguments["payload"] = {"n": 1}


def refuse_without_reason(run: RecordedRun) -> None:
    """The attempt was current all the time."""
    run.op("complete").arguments["attempt"] = 1


def refuse_with_wrong_reason(run: RecordedRun) -> None:
    run.op("complete", 1).problem["from_status"] = "failed"


def refuse_as_race_without_rival(run: RecordedRun) -> None:
    run.op("complete", 1).problem["code"] = "CONCURRENT_UPDATE"


def return_too_early_status(run: RecordedRun) -> None:
    run.op("retry").answers[0]["status"] = "failed"


def remove_heartbeat(run: RecordedRun) -> None:
    before = run.op("update_progress", 1).answers[0]
    run.op("heartbeat").answers[0]["heartbeat_at"] = before["started_at"]


def lose_heartbeat(run: RecordedRun) -> None:
    """The heartbeat was acknowledged, and later answers show the old one."""
    for operation in run.operations[11:13]:
        operation.answers[0]["heartbeat_at"] = operation.answers[0]["started_at"]


def claim_too_early(run: RecordedRun) -> None:
    for waiting in (run.op("fail"), run.op("retry", 0), run.op("retry", 1)):
        waiting.answers[0]["due_at"] = "2999-01-01T00:00:00Z"


def sweep_before_deadline(run: RecordedRun) -> None:
    run.op("timeout").verb = "sweep"
    run.op("sweep").arguments = {"type": "a"}


def sweep_without_deadline(run: RecordedRun) -> None:
    sweep_before_deadline(run)
    run.op("sweep").answers[0]["deadline_at"] = None


def sweep_with_heartbeat(run: RecordedRun) -> None:
    sweep_before_deadline(run)
    run.op("sweep").arguments["stalled_after"] = "PT30S"


def raise_database_error(run: RecordedRun) -> None:
    make_unknown(run, run.op("start"))
    run.op("start").problem = {"error": "IntegrityError: (sqlite3.IntegrityError) CHECK failed"}


def show_unknown_too_early(run: RecordedRun) -> None:
    """An unknown operation cannot be visible before it began."""
    operation = run.op("update_progress", 1)
    operation.outcome, operation.ended, operation.answers = UNKNOWN, math.inf, []
    operation.began = run.op("get").ended + MOMENT


FALSIFICATIONS: list[tuple[Callable[[RecordedRun], None], str]] = [
    *(
        (each, INVALID)
        for each in (
            skip_seq,
            remove_row,
            remove_history,
            change_to_unknown_transition,
            change_final_status,
        )
    ),
    *(
        (each, LOST)
        for each in (
            start_with_unknown_token,
            start_with_token_of_heartbeat,
            start_twice_with_one_token,
        )
    ),
    *((each, UNDONE) for each in (refuse_but_change, report_not_done_but_change, refuse_but_write)),
    (report_not_done_but_write_last, UNDONE),
    *((each, UNOWNED) for each in (start_with_unknown_token, start_without_token, remove_create)),
    *((each, UNOWNED) for each in (start_with_token_of_heartbeat, fail_with_token_of_complete)),
    *((each, UNOWNED) for each in (exchange_tokens_of_starts, remove_answer)),
    (remove_answer_of_cut, UNOWNED),
    *((each, MISTIMED) for each in (remove_heartbeat, lose_heartbeat)),
    *((each, MISTIMED) for each in (claim_too_early, sweep_before_deadline)),
    *((each, MISTIMED) for each in (sweep_without_deadline, sweep_with_heartbeat)),
    (raise_database_error, ERRORS),
    *((each, MISCOUNTED) for each in (count_extra_attempt, count_attempt_twice)),
    *(
        (each, UNEXPLAINED)
        for each in (lose_checkpoint, lose_checkpoint_at_end, restore_old_progress)
    ),
    *((each, UNEXPLAINED) for each in (lose_checkpoint_of_advance, lose_progress_of_advance)),
    *((each, UNEXPLAINED) for each in (read_old_row, read_other_result, answer_with_other_worker)),
    *((each, UNEXPLAINED) for each in (lose_metadata, refuse_without_reason)),
    *((each, UNEXPLAINED) for each in (refuse_with_wrong_reason, refuse_as_race_without_rival)),
    *((each, UNEXPLAINED) for each in (return_other_work, return_other_type)),
    *((each, UNEXPLAINED) for each in (return_other_key, refuse_same_work)),
    *((each, UNEXPLAINED) for each in (return_too_early_status, show_unknown_too_early)),
    *((each, UNEXPLAINED) for each in (exchange_tokens_of_starts, count_extra_attempt)),
]


@pytest.mark.parametrize(
    ("falsify", "kind"), FALSIFICATIONS, ids=[f"{f.__name__}, {k}" for f, k in FALSIFICATIONS]
)
def test_checker_reports_falsified_run(
    run: RecordedRun, falsify: Callable[[RecordedRun], None], kind: str
) -> None:
    falsify(run)
    assert kind in run.kinds()
    if kind == UNEXPLAINED and falsify not in (exchange_tokens_of_starts, count_extra_attempt):
        assert run.kinds() == {kind}  # no other check finds it


def test_checker_reports_missing_execution(run: RecordedRun) -> None:
    assert {violation.kind for violation in check(run.operations, [])} == {LOST}
    (violation,) = check(run.operations[:1], [])
    assert violation.execution_id == run.execution.id


def make_unknown(run: RecordedRun, *operations: Operation) -> None:
    for each in operations:
        each.outcome, each.ended, each.answers = UNKNOWN, math.inf, []


def unknown_and_effective(run: RecordedRun) -> None:
    make_unknown(run, run.op("start"), run.op("checkpoint", 1), run.op("create"))


def unknown_and_not_effective(run: RecordedRun) -> None:
    extra = Operation("x-1", "checkpoint", {"id": run.execution.id, "key": "k", "value": "x-1"}, 5)
    moved = Operation("x-2", "cancel", {"id": run.execution.id, "reason": "x-2"}, 5)
    extra.tokens, moved.tokens = {"x": 6}, {"y": 6}
    run.operations += [extra, moved]


def add_unknown_write(run: RecordedRun, key: str) -> None:
    """An unknown operation may have written a value that another one wrote too."""
    arguments = {"id": run.execution.id, "key": key, "value": "w-4"}
    began = run.op("checkpoint", 1).ended + MOMENT
    run.operations.append(Operation("x-1", "checkpoint", arguments, began))


def unknown_write_visible(run: RecordedRun) -> None:
    for row in (run.execution.found, *(a for each in run.operations[16:] for a in each.answers)):
        row["checkpoints"]["k"] = "w-4"
    add_unknown_write(run, "k")


def unknown_write_not_visible(run: RecordedRun) -> None:
    add_unknown_write(run, "another")


def overlap_writes(run: RecordedRun) -> None:
    """Two overlapping operations may have taken effect in the other order."""
    first, second = run.op("update_progress"), run.op("checkpoint")
    first.ended = second.ended
    second.answers[0]["progress"], first.answers[0]["checkpoints"] = None, {"k": "w-4"}


def overlap_read(run: RecordedRun) -> None:
    """A read that began early enough may return the earlier row."""
    read = run.op("get")
    read.began = run.op("claim").began
    read.answers = run.op("retry").answers


def refuse_during_next_attempt(run: RecordedRun) -> None:
    """It met another attempt; when it read the row for the reason, that one was running."""
    refused = run.op("complete", 1)
    refused.ended = run.op("claim").ended + MOMENT
    refused.problem = {"code": "CONCURRENT_UPDATE", "execution_id": run.execution.id}


def sweep_when_due(run: RecordedRun) -> None:
    timeout = run.op("timeout")
    timeout.verb, timeout.arguments = "sweep", {"type": "a"}
    timeout.answers[0]["deadline_at"] = timeout.answers[0]["started_at"]


def verify_late(run: RecordedRun) -> None:
    """It had to verify: fields outside the history have their values at that time."""
    claim = run.op("claim")
    claim.cut, claim.ended = True, run.op("update_progress", 1).ended + MOMENT
    claim.answers[0]["progress"] = run.op("update_progress", 1).answers[0]["progress"]


def overtake_before_verification(run: RecordedRun) -> None:
    claim = run.op("claim")
    claim.cut, claim.answers, claim.ended = True, [], run.op("timeout").began + MOMENT


@pytest.mark.parametrize(
    "adjust",
    [
        *(unknown_write_visible, unknown_write_not_visible),
        *(unknown_and_effective, unknown_and_not_effective, overlap_writes, overlap_read),
        *(sweep_when_due, refuse_during_next_attempt),
        *(verify_late, overtake_before_verification),
    ],
)
def test_checker_accepts_possible_run(
    run: RecordedRun, adjust: Callable[[RecordedRun], None]
) -> None:
    adjust(run)
    assert check(run.operations, [run.execution]) == []


def test_journal_of_killed_worker_ends_unknown(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    own = Journal(path)
    for _ in range(2):
        with own.operation(own.next_name(), "get", {"id": "x"}):
            pass
    text = path.read_text()
    path.write_text(text[:-30])
    first, second = journal.read([path])
    assert (first.outcome, second.outcome) == (DONE, UNKNOWN)
    assert second.ended == math.inf
