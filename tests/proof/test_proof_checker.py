"""The checker of `make proof` is not to be believed without proof either.

What really happened, on both databases, is found right; each falsehood about it is reported.
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
from proof.stores import manager_of
from proof.subject import Subject

from execution_core import migrate
from proof import chaos, journal, worker

MOMENT = 1_000  # nanoseconds


@dataclass
class Story:
    """One execution, and all that was done to it, one after the other."""

    operations: list[Operation]
    subject: Subject

    def op(self, verb: str, nth: int = 0) -> Operation:
        return [each for each in self.operations if each.verb == verb][nth]

    def move(self, nth: int, **changes: Any) -> None:
        self.subject.history[nth] = self.subject.history[nth]._replace(**changes)

    def token(self, verb: str, nth: int = 0) -> str:
        (token,) = self.op(verb, nth).tokens
        return token

    def kinds(self) -> set[str]:
        return {violation.kind for violation in check(self.operations, [self.subject])}


NEW: Json = {
    "type": "a",
    "payload": {"n": 1},
    "idempotency_key": "key",
    "max_attempts": 5,
    "timeout": timedelta(seconds=60),
    "metadata": {"kept": 1},
}
ADVANCED: Json = {"current": 30, "total": 100, "message": "w-17", "percent": 30.0}
TOLD: list[tuple[str, Json]] = [
    ("start", {"worker": "w-2"}),
    ("update_progress", {"current": 10, "total": 100, "message": "w-3", "percent": 10.0}),
    ("checkpoint", {"key": "k", "value": "w-4", "attempt": 1}),
    ("complete", {"result": "w-5", "attempt": 7}),  # refused: stale
    ("fail", {"error": "w-6", "retryable": True, "retry_after": None, "attempt": 1}),
    ("complete", {"result": "w-7"}),  # refused: retrying
    ("retry", {}),  # already_done_in
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
def told(
    request: pytest.FixtureRequest,
    empty_postgres: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Story:
    folder = tmp_path_factory.mktemp("story")
    postgresql = request.param == "postgresql"
    url = empty_postgres("story") if postgresql else f"sqlite:///{folder}/story.db"
    migrate.upgrade(url)
    own = Journal(folder / "w.jsonl")
    manager = manager_of("host", url, own)
    with own.operation(own.next_name(), "create", NEW) as operation:
        execution = manager.create(**NEW)
        operation.answers = [journal.seen(execution)]
    for verb, given in TOLD:
        arguments = given if verb in ("claim", "create") else {"id": execution.id, **given}
        with own.operation(own.next_name(), verb, arguments) as operation:
            operation.answers = worker.told(getattr(manager, verb)(**arguments))
    manager.close()
    (subject,) = chaos.subjects(url)
    return Story(journal.read([folder / "w.jsonl"]), subject)


@pytest.fixture
def story(told: Story) -> Story:
    return deepcopy(told)


ILLEGAL, LOST, UNDONE, STRANGE, MISCOUNTED, UNEXPLAINED, MISTIMED, ERRORS = KINDS


def test_checker_accepts_recorded_run(story: Story) -> None:
    assert [each.outcome for each in story.operations].count(REFUSED) == 4
    assert len(story.subject.history) == 8
    assert story.kinds() == set()


def gap(story: Story) -> None:
    story.move(3, seq=9)


def missing_move(story: Story) -> None:
    del story.subject.history[4]


def no_history(story: Story) -> None:
    story.subject.history.clear()


def no_arrow(story: Story) -> None:
    story.move(2, to_status="cancelled")
    story.move(3, from_status="cancelled")


def ends_elsewhere(story: Story) -> None:
    story.subject.found["status"] = "failed"


def started_by_nobody(story: Story) -> None:
    story.move(1, token="018f0000-0000-7000-8000-000000000000")


def moved_by_hand(story: Story) -> None:
    story.move(1, token=None)


def created_by_nobody(story: Story) -> None:
    del story.operations[0]


def moved_by_a_heartbeat(story: Story) -> None:
    story.move(1, token=story.token("heartbeat"))


def moved_by_another_verb(story: Story) -> None:
    story.move(4, token=story.token("complete", -1))


def moved_after_its_end(story: Story) -> None:
    """The second start is said to have made the first one's move, and the other way round."""
    first, second = story.token("start"), story.token("start", 1)
    story.move(1, token=second)
    story.move(6, token=first)


def moved_twice(story: Story) -> None:
    story.move(6, token=story.token("start"))


def move_that_was_not_told(story: Story) -> None:
    story.op("claim").answers = []


def move_that_was_not_found_out(story: Story) -> None:
    """It had to ask, and nobody else came between."""
    story.op("claim").answers, story.op("claim").cut = [], True


def refused_and_moved(story: Story) -> None:
    story.move(7, token=story.token("complete", 1))


def lost_and_moved(story: Story) -> None:
    """It was told: the connection is lost, nothing was done."""
    story.op("timeout").outcome = NOT_DONE


def refused_and_written(story: Story) -> None:
    operation = story.op("checkpoint", 1)
    operation.outcome, operation.problem = REFUSED, {"code": "STALE_ATTEMPT"}
    operation.answers = []


def lost_and_last_written(story: Story) -> None:
    operation = story.op("heartbeat")
    operation.outcome = NOT_DONE
    story.subject.token = story.token("heartbeat")


def one_attempt_more(story: Story) -> None:
    story.subject.found["attempts"] += 1


def one_attempt_counted_twice(story: Story) -> None:
    story.move(6, attempt=2)


def lost_checkpoint(story: Story) -> None:
    for operation in story.operations[-5:]:
        for answer in operation.answers:
            answer["checkpoints"]["k"] = "w-4"
    story.subject.found["checkpoints"]["k"] = "w-4"


def lost_at_the_end(story: Story) -> None:
    story.subject.found["checkpoints"] = {}


def written_twice(story: Story) -> None:
    """A progress comes back after another one was written over it."""
    for answer in (answer for each in story.operations[11:] for answer in each.answers):
        answer["progress"] = story.op("update_progress").answers[0]["progress"]
    story.subject.found["progress"] = story.op("update_progress").answers[0]["progress"]


def half_an_advance(story: Story) -> None:
    """It is answered, and read later, without its checkpoint."""
    for row in (story.subject.found, *(a for each in story.operations[16:] for a in each.answers)):
        row["checkpoints"].pop("j")


def the_other_half_of_an_advance(story: Story) -> None:
    before = story.op("update_progress", 1).answers[0]["progress"]
    for row in (story.subject.found, *(a for each in story.operations[16:] for a in each.answers)):
        row["progress"] = before


def read_from_the_past(story: Story) -> None:
    story.op("get").answers = story.op("claim").answers


def another_result(story: Story) -> None:
    story.op("get", 1).answers[0]["result"] = "w-5"


def another_worker(story: Story) -> None:
    story.op("claim").answers[0]["worker"] = "w-2"


def metadata_lost(story: Story) -> None:
    story.subject.found["metadata"] = {}


def answered_with_other_work(story: Story, **asked: Any) -> None:
    story.op("create", 1).arguments |= asked or {"payload": {"n": 3}}


def answered_with_another_type(story: Story) -> None:
    answered_with_other_work(story, type="b")


def answered_with_another_key(story: Story) -> None:
    answered_with_other_work(story, idempotency_key="other")


def refused_the_same_work(story: Story) -> None:
    story.op("create", 2).arguments["payload"] = {"n": 1}


def refused_for_nothing(story: Story) -> None:
    """The attempt was its own all the time."""
    story.op("complete").arguments["attempt"] = 1


def refused_for_another_reason(story: Story) -> None:
    story.op("complete", 1).problem["from_status"] = "failed"


def refused_as_racing_alone(story: Story) -> None:
    story.op("complete", 1).problem["code"] = "CONCURRENT_UPDATE"


def settled_too_early(story: Story) -> None:
    story.op("retry").answers[0]["status"] = "failed"


def no_sign_of_life(story: Story) -> None:
    before = story.op("update_progress", 1).answers[0]
    story.op("heartbeat").answers[0]["heartbeat_at"] = before["started_at"]


def sign_of_life_that_is_lost(story: Story) -> None:
    """Whoever gave it was told so, and it is as before afterwards."""
    for operation in story.operations[11:13]:
        operation.answers[0]["heartbeat_at"] = operation.answers[0]["started_at"]


def claimed_too_early(story: Story) -> None:
    story.op("fail").answers[0]["due_at"] = "2999-01-01T00:00:00Z"


def swept_before_its_deadline(story: Story) -> None:
    story.op("timeout").verb = "sweep"
    story.op("sweep").arguments = {"type": "a"}


def swept_without_a_deadline(story: Story) -> None:
    swept_before_its_deadline(story)
    story.op("sweep").answers[0]["deadline_at"] = None


def swept_alive(story: Story) -> None:
    swept_before_its_deadline(story)
    story.op("sweep").arguments["stalled_after"] = "PT30S"


def an_error_of_the_database(story: Story) -> None:
    unknown(story, story.op("start"))
    story.op("start").problem = {"error": "IntegrityError: (sqlite3.IntegrityError) CHECK failed"}


def unknown_but_seen_too_early(story: Story) -> None:
    """Whatever came of it, it cannot be seen before it began."""
    operation = story.op("update_progress", 1)
    operation.outcome, operation.ended, operation.answers = UNKNOWN, math.inf, []
    operation.began = story.op("get").ended + MOMENT


FALSEHOODS: list[tuple[Callable[[Story], None], str]] = [
    *((each, ILLEGAL) for each in (gap, missing_move, no_history, no_arrow, ends_elsewhere)),
    *((each, LOST) for each in (started_by_nobody, moved_by_a_heartbeat, moved_twice)),
    *((each, UNDONE) for each in (refused_and_moved, lost_and_moved, refused_and_written)),
    (lost_and_last_written, UNDONE),
    *((each, STRANGE) for each in (started_by_nobody, moved_by_hand, created_by_nobody)),
    *((each, STRANGE) for each in (moved_by_a_heartbeat, moved_by_another_verb)),
    *((each, STRANGE) for each in (moved_after_its_end, move_that_was_not_told)),
    (move_that_was_not_found_out, STRANGE),
    *((each, MISTIMED) for each in (no_sign_of_life, sign_of_life_that_is_lost)),
    *((each, MISTIMED) for each in (claimed_too_early, swept_before_its_deadline)),
    *((each, MISTIMED) for each in (swept_without_a_deadline, swept_alive)),
    (an_error_of_the_database, ERRORS),
    *((each, MISCOUNTED) for each in (one_attempt_more, one_attempt_counted_twice)),
    *((each, UNEXPLAINED) for each in (lost_checkpoint, lost_at_the_end, written_twice)),
    *((each, UNEXPLAINED) for each in (half_an_advance, the_other_half_of_an_advance)),
    *((each, UNEXPLAINED) for each in (read_from_the_past, another_result, another_worker)),
    *((each, UNEXPLAINED) for each in (metadata_lost, refused_for_nothing)),
    *((each, UNEXPLAINED) for each in (refused_for_another_reason, refused_as_racing_alone)),
    *((each, UNEXPLAINED) for each in (answered_with_other_work, answered_with_another_type)),
    *((each, UNEXPLAINED) for each in (answered_with_another_key, refused_the_same_work)),
    *((each, UNEXPLAINED) for each in (settled_too_early, unknown_but_seen_too_early)),
    *((each, UNEXPLAINED) for each in (moved_after_its_end, one_attempt_more)),
]


@pytest.mark.parametrize(
    ("falsehood", "kind"), FALSEHOODS, ids=[f"{f.__name__}, {k}" for f, k in FALSEHOODS]
)
def test_checker_reports_falsified_run(
    story: Story, falsehood: Callable[[Story], None], kind: str
) -> None:
    falsehood(story)
    assert kind in story.kinds()
    if kind == UNEXPLAINED and falsehood not in (moved_after_its_end, one_attempt_more):
        assert story.kinds() == {kind}  # nothing else finds it


def test_checker_reports_missing_execution(story: Story) -> None:
    assert {violation.kind for violation in check(story.operations, [])} == {LOST}
    (violation,) = check(story.operations[:1], [])
    assert violation.execution_id == story.subject.id


def unknown(story: Story, *operations: Operation) -> None:
    for each in operations:
        each.outcome, each.ended, each.answers = UNKNOWN, math.inf, []


def unknown_and_done(story: Story) -> None:
    unknown(story, story.op("start"), story.op("checkpoint", 1), story.op("create"))


def unknown_and_not_done(story: Story) -> None:
    extra = Operation("x-1", "checkpoint", {"id": story.subject.id, "key": "k", "value": "x-1"}, 5)
    moved = Operation("x-2", "cancel", {"id": story.subject.id, "reason": "x-2"}, 5)
    extra.tokens, moved.tokens = {"x": 6}, {"y": 6}
    story.operations += [extra, moved]


def written_again(story: Story, key: str) -> None:
    """By one that nobody knows of, what another one has written as well."""
    arguments = {"id": story.subject.id, "key": key, "value": "w-4"}
    began = story.op("checkpoint", 1).ended + MOMENT
    story.operations.append(Operation("x-1", "checkpoint", arguments, began))


def unknown_and_done_again(story: Story) -> None:
    for row in (story.subject.found, *(a for each in story.operations[16:] for a in each.answers)):
        row["checkpoints"]["k"] = "w-4"
    written_again(story, "k")


def unknown_and_not_done_again(story: Story) -> None:
    written_again(story, "another")


def at_the_same_time(story: Story) -> None:
    """Two that overlap may have taken effect in the other order."""
    first, second = story.op("update_progress"), story.op("checkpoint")
    first.ended = second.ended
    second.answers[0]["progress"], first.answers[0]["checkpoints"] = None, {"k": "w-4"}


def read_at_the_same_time(story: Story) -> None:
    """One that began early enough may have read what was before."""
    read = story.op("get")
    read.began = story.op("claim").began
    read.answers = story.op("retry").answers


def refused_by_one_and_told_by_another(story: Story) -> None:
    """It met another attempt, and when it looked for the reason, it was running."""
    refused = story.op("complete", 1)
    refused.ended = story.op("claim").ended + MOMENT
    refused.problem = {"code": "CONCURRENT_UPDATE", "execution_id": story.subject.id}


def swept_when_it_was_due(story: Story) -> None:
    timeout = story.op("timeout")
    timeout.verb, timeout.arguments = "sweep", {"type": "a"}
    timeout.answers[0]["deadline_at"] = timeout.answers[0]["started_at"]


def cut_and_told_late(story: Story) -> None:
    """It had to ask: what the history does not know is told as it was then."""
    claim = story.op("claim")
    claim.cut, claim.ended = True, story.op("update_progress", 1).ended + MOMENT
    claim.answers[0]["progress"] = story.op("update_progress", 1).answers[0]["progress"]


def cut_and_taken_before_it_was_told(story: Story) -> None:
    claim = story.op("claim")
    claim.cut, claim.answers, claim.ended = True, [], story.op("timeout").began + MOMENT


@pytest.mark.parametrize(
    "truth",
    [
        *(unknown_and_done_again, unknown_and_not_done_again),
        *(unknown_and_done, unknown_and_not_done, at_the_same_time, read_at_the_same_time),
        *(swept_when_it_was_due, refused_by_one_and_told_by_another),
        *(cut_and_told_late, cut_and_taken_before_it_was_told),
    ],
)
def test_checker_accepts_possible_run(story: Story, truth: Callable[[Story], None]) -> None:
    truth(story)
    assert check(story.operations, [story.subject]) == []


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
