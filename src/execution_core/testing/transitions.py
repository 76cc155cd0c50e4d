# ruff: noqa: S101 - asserts are what a contract is made of
"""Guards, fences and races: no illegal move, and no lost update."""

from typing import Any, Final

import pytest

from ..core import transitions
from ..core.models import Execution, ExecutionStatus
from ..core.store import Returning
from ..core.transitions import Transition
from ..core.validation import new_id
from .harness import CONCURRENCY, StoreHarness, call_store, new, to_text
from .log_lines import new_entry
from .states import STATES, bring_to, every_transition, transitions_of_attempt

RETURNING: Final = ("execution", "status")
ROUNDS: Final = 10

every_state = pytest.mark.parametrize("situation", STATES)
every_returning = pytest.mark.parametrize("returning", RETURNING)


class TransitionContract:
    """`update`."""

    @every_state
    @every_returning
    def test_what_is_allowed_is_done(
        self, subject: StoreHarness, situation: str, returning: Returning
    ) -> None:
        """Each transition changes what its `apply` changes, and not a thing besides."""
        model = bring_to(subject, situation)
        now = subject.later(model.updated_at)
        allowed = [each for each in every_transition(model.attempts) if each.apply(model, now)]
        before = [bring_to(subject, situation) for _ in allowed]
        subject.later(before[-1].updated_at if before else now)
        for each, transition in zip(before, allowed, strict=True):
            answer = subject.store.update(each.id, transition, returning=returning)
            after = subject.found(each.id)
            expected = transition.apply(each, after.updated_at)
            case = describe(transition, each)
            assert answer is not None, f"{case} is allowed, and answered None"
            assert to_text(after) == to_text(expected), case
            if returning == "execution":
                assert to_text(answer) == to_text(after), case
            else:
                assert answer is after.status, case  # an ExecutionStatus, and nothing but that

    @every_state
    @every_returning
    def test_what_is_refused_changes_nothing(
        self, subject: StoreHarness, situation: str, returning: Returning
    ) -> None:
        """A guard or a fence that does not match is None, and `updated_at` stands as it was."""
        before = bring_to(subject, situation)
        now = subject.later(before.updated_at)
        refused = [x for x in every_transition(before.attempts) if not x.apply(before, now)]
        assert refused
        for transition in refused:
            refuses(subject, returning, before, transition)

    @every_returning
    def test_a_late_attempt_changes_nothing(
        self, subject: StoreHarness, returning: Returning
    ) -> None:
        """What the first attempt still has to say is not for the second one to bear."""
        second = bring_to(subject, "running-last")
        for transition in transitions_of_attempt(second.attempts - 1):
            refuses(subject, returning, second, transition)

    @every_returning
    def test_what_is_not_there_does_not_move(
        self, subject: StoreHarness, returning: Returning
    ) -> None:
        """No transition makes an execution."""
        id = new_id()
        for transition in every_transition(0):
            answer = subject.store.update(id, transition, returning=returning)
            assert answer is None, f"{transition.rule.verb} of what is not there was let through"
        assert subject.store.find_by_id(id) is None

    @every_returning
    def test_one_of_many_starts_wins(self, subject: StoreHarness, returning: Returning) -> None:
        """Of all callers one moves the execution, and the others are told that they did not."""
        ids = [subject.create().id for _ in range(ROUNDS)]
        answers = subject.race(
            [
                call_store("update", id, transitions.start(f"w{n}"), returning=returning)
                for id in ids
                for n in range(CONCURRENCY)
            ]
        )
        for number, id in enumerate(ids):
            won = winners(answers[number * CONCURRENCY :][:CONCURRENCY])
            found = subject.found(id)
            assert (len(won), found.attempts) == (1, 1)
            assert found.worker == f"w{won[0]}"

    def test_one_of_many_ends_wins(self, subject: StoreHarness) -> None:
        """An execution comes to rest once, as the one caller said who was let through."""
        ends = [
            transitions.complete("done", 1),
            transitions.fail("no", False, None, 1),  # noqa: FBT003 - retryable
            transitions.timeout(1),
            transitions.cancel("enough"),
        ] * (CONCURRENCY // 4)
        ids = [bring_to(subject, "running").id for _ in range(ROUNDS)]
        answers = subject.race([call_store("update", id, end) for id in ids for end in ends])
        for number, id in enumerate(ids):
            mine = answers[number * CONCURRENCY :][:CONCURRENCY]
            (winner,) = winners(mine)
            assert to_text(subject.found(id)) == to_text(mine[winner])

    def test_an_attempt_is_counted_once(self, subject: StoreHarness) -> None:
        """Starts and failures at once: attempts are told apart by their numbers, none is lost."""
        id = subject.create(max_attempts=1000).id
        again = transitions.fail("again", True, None, None)  # noqa: FBT003 - retryable
        moves = [transitions.start(None), again] * (ROUNDS * CONCURRENCY // 2)
        answers = subject.race([call_store("update", id, move) for move in moves])
        started = [
            answer.attempts
            for answer in answers
            if answer is not None and answer.status is ExecutionStatus.RUNNING
        ]
        assert sorted(started) == list(range(1, len(started) + 1))
        assert subject.found(id).attempts == len(started)

    def test_no_checkpoint_is_lost(self, subject: StoreHarness) -> None:
        """Writers of different keys never lose each other's, nor a progress or a sign of life."""
        id = bring_to(subject, "running").id
        keys = [f'{number}."{number}"' for number in range(ROUNDS * CONCURRENCY)]
        progress = transitions.update_progress(1, 2, None, None, 1)
        calls = [call_store("update", id, progress)] * CONCURRENCY
        for number, key in enumerate(keys):
            checkpoint = transitions.checkpoint(key, {"n": number}, 1)
            calls.append(call_store("update", id, checkpoint, returning=RETURNING[number % 2]))
        assert None not in subject.race(calls)
        expected = {key: {"n": number} for number, key in enumerate(keys)}
        assert subject.found(id).checkpoints == expected | {"last": {"n": 1}}

    def test_the_last_of_many_checkpoints_stands(self, subject: StoreHarness) -> None:
        """Of many values for one key there is one, whole; and every answer has its own."""
        id = subject.create().id
        calls = [
            call_store("update", id, transitions.checkpoint("k", {str(n): n}, None))
            for n in range(CONCURRENCY * 2)
        ]
        answers = subject.race(calls)
        assert [each.checkpoints for each in answers] == [
            {"k": {str(n): n}} for n in range(CONCURRENCY * 2)
        ]
        assert subject.found(id).checkpoints in [each.checkpoints for each in answers]

    def test_time_never_goes_back(self, subject: StoreHarness) -> None:
        """One clock for both stores and all that they write: what is later is not earlier."""
        times: list[Any] = []
        for number in range(20):
            sides = (subject.store, subject.other)
            here, there = sides if number % 2 else sides[::-1]
            created = here.create(new())
            assert created is not None
            started = there.update(created.id, transitions.start(None))
            logged = here.log(new_entry(created.id))
            done = there.update(created.id, transitions.complete(None, 1))
            assert started is not None
            assert logged is not None
            assert done is not None
            times += [created.created_at, started.started_at, logged.logged_at, done.completed_at]
        assert times == sorted(times)


def refuses(
    subject: StoreHarness, returning: Returning, before: Execution, transition: Transition
) -> None:
    """Ask for a transition that is not allowed: None, and nothing has changed."""
    case = describe(transition, before)
    answer = subject.store.update(before.id, transition, returning=returning)
    assert answer is None, f"{case} was let through"
    assert to_text(subject.found(before.id)) == to_text(before), (
        f"{case} was refused, and left a trace"
    )


def describe(transition: Transition, before: Execution) -> str:
    """Say which verb is asked for, by whom, and of what."""
    fence = "" if transition.attempt is None else f" by attempt {transition.attempt}"
    return f"{transition.rule.verb}{fence}, from {before.status} in attempt {before.attempts},"


def winners(answers: list[Any]) -> list[int]:
    """Return the numbers of those who were let through."""
    return [number for number, answer in enumerate(answers) if answer is not None]
