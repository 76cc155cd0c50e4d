# ruff: noqa: S101 - a contract consists of asserts
"""Single transitions: guards, fencing tokens and races; no lost update."""

from typing import Any, Final

import pytest

from ..core import transitions
from ..core.models import Execution
from ..core.state_machine import RUNNING
from ..core.store import Returning
from ..core.transitions import Transition
from ..core.validation import new_id
from .harness import CONCURRENCY, StoreHarness, build_new, call_store, to_text
from .log_lines import new_entry
from .states import STATES, bring_to, every_transition, transitions_of_attempt

RETURNING: Final = ("execution", "status")
ROUNDS: Final = 10

every_state = pytest.mark.parametrize("state", STATES)
every_returning = pytest.mark.parametrize("returning", RETURNING)


class TransitionContract:
    """`update`."""

    @every_state
    @every_returning
    def test_update_allowed_applies_transition(
        self, harness: StoreHarness, state: str, returning: Returning
    ) -> None:
        """Each allowed transition changes exactly what its `apply` changes."""
        model = bring_to(harness, state)
        now = harness.wait_past(model.updated_at)
        allowed = [each for each in every_transition(model.attempts) if each.apply(model, now, ())]
        before = [bring_to(harness, state) for _ in allowed]
        harness.wait_past(before[-1].updated_at if before else now)
        for each, transition in zip(before, allowed, strict=True):
            answer = harness.store.update(each.id, transition, returning=returning)
            after = harness.get(each.id)
            expected = transition.apply(each, after.updated_at, ())
            case = describe(transition, each)
            assert answer is not None, f"{case} is allowed, but returned None"
            assert to_text(after) == to_text(expected), case
            if returning == "execution":
                assert to_text(answer) == to_text(after), case
            else:
                assert answer is after.status, case  # the ExecutionStatus itself

    @every_state
    @every_returning
    def test_update_refused_changes_nothing(
        self, harness: StoreHarness, state: str, returning: Returning
    ) -> None:
        """A refused transition returns None and does not change `updated_at`."""
        before = bring_to(harness, state)
        now = harness.wait_past(before.updated_at)
        refused = [x for x in every_transition(before.attempts) if not x.apply(before, now, ())]
        assert refused
        for transition in refused:
            assert_refused(harness, returning, before, transition)

    @every_returning
    def test_update_by_stale_attempt_changes_nothing(
        self, harness: StoreHarness, returning: Returning
    ) -> None:
        """Transitions with the fencing token of an earlier attempt are refused."""
        second = bring_to(harness, "running-last")
        for transition in transitions_of_attempt(second.attempts - 1):
            assert_refused(harness, returning, second, transition)

    @every_returning
    def test_update_unknown_execution_returns_none(
        self, harness: StoreHarness, returning: Returning
    ) -> None:
        """No transition creates an execution."""
        id = new_id()
        for transition in every_transition(0):
            answer = harness.store.update(id, transition, returning=returning)
            assert answer is None, f"{transition.rule.verb} of an unknown execution succeeded"
        assert harness.store.find_by_id(id) is None

    @every_returning
    def test_start_concurrent_has_one_winner(
        self, harness: StoreHarness, returning: Returning
    ) -> None:
        """Of concurrent starts exactly one succeeds; the others return None."""
        ids = [harness.create().id for _ in range(ROUNDS)]
        starts = [transitions.start(f"w{n}") for n in range(CONCURRENCY)]
        answers = harness.race(
            [call_store("update", id, start, returning=returning) for id in ids for start in starts]
        )
        for number, id in enumerate(ids):
            won = winners(answers[number * CONCURRENCY :][:CONCURRENCY])
            found = harness.get(id)
            assert (len(won), found.attempts) == (1, 1)
            assert found.worker == f"w{won[0]}"

    def test_finish_concurrent_has_one_winner(self, harness: StoreHarness) -> None:
        """An execution finishes once, with the values of the one call that succeeded."""
        ends = [
            transitions.complete("done", 1),
            transitions.fail("no", False, None, 1),  # noqa: FBT003 - retryable
            transitions.timeout(1),
            transitions.cancel("enough"),
        ] * (CONCURRENCY // 4)
        ids = [bring_to(harness, "running").id for _ in range(ROUNDS)]
        answers = harness.race([call_store("update", id, end) for id in ids for end in ends])
        for number, id in enumerate(ids):
            mine = answers[number * CONCURRENCY :][:CONCURRENCY]
            (winner,) = winners(mine)
            assert to_text(harness.get(id)) == to_text(mine[winner])

    def test_start_concurrent_counts_each_attempt_once(self, harness: StoreHarness) -> None:
        """Concurrent starts and failures number all attempts without gaps or duplicates."""
        id = harness.create(max_attempts=1000).id
        again = transitions.fail("again", True, None, None)  # noqa: FBT003 - retryable
        steps = [transitions.start(None), again] * (ROUNDS * CONCURRENCY // 2)
        answers = harness.race([call_store("update", id, step) for step in steps])
        started = [each.attempts for each in answers if each and each.status is RUNNING]
        assert sorted(started) == list(range(1, len(started) + 1))
        assert harness.get(id).attempts == len(started)

    def test_checkpoint_concurrent_keys_loses_no_write(self, harness: StoreHarness) -> None:
        """Concurrent writes of different keys, progress and heartbeats are all kept."""
        id = bring_to(harness, "running").id
        keys = [f'{number}."{number}"' for number in range(ROUNDS * CONCURRENCY)]
        progress = transitions.update_progress(1, 2, None, None, 1)
        calls = [call_store("update", id, progress)] * CONCURRENCY
        for number, key in enumerate(keys):
            checkpoint = transitions.checkpoint(key, {"n": number}, 1)
            calls.append(call_store("update", id, checkpoint, returning=RETURNING[number % 2]))
        assert None not in harness.race(calls)
        expected = {key: {"n": number} for number, key in enumerate(keys)}
        assert harness.get(id).checkpoints == expected | {"last": {"n": 1}}

    def test_checkpoint_concurrent_same_key_keeps_one_value(self, harness: StoreHarness) -> None:
        """Concurrent values for one key: one whole value stays, and each answer has its own."""
        id = harness.create().id
        values = [{str(n): n} for n in range(CONCURRENCY * 2)]
        writes = [transitions.checkpoint("k", value, None) for value in values]
        answers = harness.race([call_store("update", id, write) for write in writes])
        assert [each.checkpoints for each in answers] == [{"k": value} for value in values]
        assert harness.get(id).checkpoints in [each.checkpoints for each in answers]

    def test_times_of_two_stores_never_decrease(self, harness: StoreHarness) -> None:
        """Both stores use one clock: a later write never has an earlier time."""
        times: list[Any] = []
        for number in range(20):
            sides = (harness.store, harness.other)
            here, there = sides if number % 2 else sides[::-1]
            created = here.create(build_new())
            started = there.update(created.id, transitions.start(None))
            logged = here.log(new_entry(created.id))
            done = there.update(created.id, transitions.complete(None, 1))
            assert None not in (started, logged, done)
            times += [created.created_at, started.started_at, logged.logged_at, done.completed_at]
        assert times == sorted(times)


def assert_refused(
    harness: StoreHarness, returning: Returning, before: Execution, transition: Transition
) -> None:
    """Assert that a transition returns None and changes nothing."""
    case = describe(transition, before)
    answer = harness.store.update(before.id, transition, returning=returning)
    assert answer is None, f"{case} is refused, but succeeded"
    assert to_text(harness.get(before.id)) == to_text(before), (
        f"{case} was refused, but changed the execution"
    )


def describe(transition: Transition, before: Execution) -> str:
    """Describe a transition and the execution it is for."""
    fence = "" if transition.attempt is None else f" by attempt {transition.attempt}"
    return f"{transition.rule.verb}{fence}, status {before.status}, attempt {before.attempts},"


def winners(answers: list[Any]) -> list[int]:
    """Return the indices of the calls that succeeded."""
    return [number for number, answer in enumerate(answers) if answer is not None]
