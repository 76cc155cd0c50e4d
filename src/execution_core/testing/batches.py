# ruff: noqa: S101 - a contract consists of asserts
"""Batch transitions: claims of due executions, sweeps of overdue and stalled ones."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from operator import attrgetter
from typing import Any, Final

import pytest

from ..core import state_machine, transitions
from ..core.models import Execution
from ..core.selections import BatchTransition, check_batch
from ..core.transitions import Transition
from .harness import Call, StoreHarness, build_new, build_prune, call_store, to_text
from .pages import list_all
from .states import DAY, MOMENT, STATES, bring_to

CLAIM: Final = check_batch(transitions.claim("host"), None, 10_000)
SWEEP: Final = check_batch(transitions.sweep(None), None, 10_000)
STALLED: Final = transitions.sweep(MOMENT)
CONCURRENT_CLAIMS: Final = 30
RACES: Final = 12
BATCHES: Final = {"claim": (CLAIM, "pending"), "sweep": (SWEEP, "overdue")}

claim_or_sweep = pytest.mark.parametrize("verb", BATCHES)


class BatchContract:
    """`update_many`."""

    def test_claim_moves_only_due_executions(self, harness: StoreHarness) -> None:
        """The result equals `batch.apply`: all other executions are unchanged."""
        create_every_state(harness)
        assert {each.status for each in apply_and_compare(harness, CLAIM)} == {"running"}
        assert apply_and_compare(harness, CLAIM) == []

    def test_sweep_times_out_only_overdue_executions(self, harness: StoreHarness) -> None:
        """Only executions whose deadline has passed are timed out."""
        create_every_state(harness)
        (swept,) = apply_and_compare(harness, SWEEP)
        assert swept.error == state_machine.TIMEOUT_ERROR
        assert apply_and_compare(harness, SWEEP) == []

    def test_sweep_times_out_only_stalled_executions(self, harness: StoreHarness) -> None:
        """Only executions without a heartbeat for that long are timed out."""
        create_every_state(harness)
        assert apply_and_compare(harness, check_batch(transitions.sweep(DAY), "work", 1)) != []
        assert apply_and_compare(harness, check_batch(transitions.sweep(DAY), None, 100)) == []
        swept = apply_and_compare(harness, check_batch(transitions.sweep(MOMENT), None, 100))
        assert [each.error for each in swept] == [state_machine.STALLED_ERROR] * 2

    def test_claim_with_type_returns_only_that_type(self, harness: StoreHarness) -> None:
        """Due executions of other types do not count towards the limit."""
        mine = [harness.create(type="mine").id for _ in range(3)]
        harness.create(type="other")
        claimed = apply_and_compare(harness, replace(CLAIM, type="mine"))
        assert [each.id for each in claimed] == mine
        assert apply_and_compare(harness, replace(CLAIM, type="none")) == []

    def test_claim_with_limit_returns_earliest_due_first(self, harness: StoreHarness) -> None:
        """Due times order the selection; each answer is sorted by id."""
        ids = [harness.create(start_after=timedelta(0)).id for _ in range(3)]
        ids.append(harness.create(start_after=timedelta(milliseconds=30)).id)
        ids.append(harness.create(start_after=DAY).id)
        again = transitions.fail("again", True, timedelta(0), None)  # noqa: FBT003 - retryable
        # A retried execution is due later than those that were due before.
        for id in (ids[1], ids[4]):
            harness.wait_past(harness.now())
            harness.apply(id, transitions.start(None), again)
        due: dict[str, Any] = {id: harness.get(id).due_at for id in ids}
        assert None not in due.values(), "a waiting execution has no due_at"
        harness.wait_past(max(due.values()))
        expected = sorted(ids, key=lambda id: (due[id], id))
        for n in (0, 2, 4):
            claimed = apply_and_compare(harness, replace(CLAIM, limit=2))
            assert [each.id for each in claimed] == sorted(expected[n : n + 2])

    def test_claim_concurrent_returns_each_execution_once(self, harness: StoreHarness) -> None:
        """Concurrent callers never get the same execution, and together they get all."""
        ids = [harness.create().id for _ in range(40)]
        claim = call_store("update_many", replace(CLAIM, limit=3))
        claims = harness.race([claim] * CONCURRENT_CLAIMS)
        claims.append(harness.store.update_many(CLAIM))  # rows that others had locked meanwhile
        assert sorted(each.id for claim in claims for each in claim) == ids
        assert all(len(claim) <= 3 for claim in claims[:CONCURRENT_CLAIMS])
        assert {each.attempts for each in list_all(harness)} == {1}

    def test_claim_concurrent_with_start_has_one_winner(self, harness: StoreHarness) -> None:
        """A claim and a start of the same execution begin one attempt."""
        assert_one_winner(harness, "claim", transitions.start("host"))

    def test_sweep_concurrent_with_complete_has_one_winner(self, harness: StoreHarness) -> None:
        """An execution is either completed or timed out."""
        assert_one_winner(harness, "sweep", transitions.complete("done", 1))

    @claim_or_sweep
    def test_update_many_concurrent_with_checkpoint_keeps_both(
        self, harness: StoreHarness, verb: str
    ) -> None:
        """A checkpoint during a batch is kept, and so is the transition of the batch."""
        write = transitions.checkpoint("k", 1, None)
        answers, changed = race_batches(harness, verb, lambda id: call_store("update", id, write))
        after = {each.id: each for each in list_all(harness)}
        for id, answer in answers.items():
            assert answer is not None or after[id].status == "timed_out"
            assert ("k" in after[id].checkpoints) == (answer is not None)
        target = BATCHES[verb][0].transition.rule.moves[0].target
        assert {id for id, each in after.items() if each.status == target} == {*changed}

    @claim_or_sweep
    def test_update_many_concurrent_with_delete_restores_nothing(
        self, harness: StoreHarness, verb: str
    ) -> None:
        """An execution that is deleted during a batch stays deleted."""
        answers, _ = race_batches(harness, verb, lambda id: call_store("delete", id))
        assert {*answers.values()} == {True}
        assert list_all(harness) == []

    def test_update_many_over_a_hundred_changes_all(self, harness: StoreHarness) -> None:
        """No limit of the store is below the limit of the caller."""
        harness.race([call_store("create", build_new()) for _ in range(101)])
        harness.wait_past(harness.now())
        assert len(list_all(harness)) == 101
        assert len(harness.store.update_many(CLAIM)) == 101
        harness.wait_past(harness.now())
        assert len(harness.store.update_many(replace(SWEEP, transition=STALLED))) == 101
        assert harness.store.prune(build_prune(timedelta(0))) == 101


def race_batches(
    harness: StoreHarness, verb: str, call: Callable[[str], Call]
) -> tuple[dict[str, Any], dict[str, Execution]]:
    """For each of some executions, race a call with two batches that select only it.

    Return the answers to the calls, and the executions that the batches changed; both by id.
    """
    batch, state = BATCHES[verb]
    ids = {f"type-{n}": bring_to(harness, state, f"type-{n}").id for n in range(RACES)}
    harness.wait_past(harness.now())
    calls = []
    for type, id in ids.items():
        many = call_store("update_many", replace(batch, type=type))
        calls += [many, call(id), many]
    answers = harness.race(calls)
    changed = [each for many in answers[::3] + answers[2::3] for each in many]
    by_id = {each.id: each for each in changed}
    assert len(changed) == len(by_id), "two batches changed the same execution"
    return dict(zip(ids.values(), answers[1::3], strict=True)), by_id


def assert_one_winner(harness: StoreHarness, verb: str, transition: Transition) -> None:
    """Race a batch with a transition; the state machine allows only one of them."""
    answers, changed = race_batches(harness, verb, lambda id: call_store("update", id, transition))
    after = {each.id: each for each in list_all(harness)}
    for id, answer in answers.items():
        case = f"either {verb} or {transition.rule.verb} must succeed, and not both"
        assert (answer is None) == (id in changed), case
        assert to_text(after[id]) == to_text(answer or changed[id])


def create_every_state(harness: StoreHarness) -> None:
    """Create one execution in each state, and wait until short delays have passed."""
    last = [bring_to(harness, state) for state in STATES][-1]
    harness.wait_past(last.updated_at)


def apply_and_compare(harness: StoreHarness, batch: BatchTransition) -> list[Execution]:
    """Apply a batch, and compare all executions with the pure function."""
    before = {each.id: each for each in list_all(harness)}
    now = harness.wait_past(max(each.updated_at for each in before.values()))
    changed = harness.store.update_many(batch)
    expected = batch.apply(before.values(), now)
    assert [each.id for each in changed] == [each.id for each in expected]
    for each in changed:
        assert to_text(each) == to_text(
            batch.transition.apply(before[each.id], each.updated_at, ())
        )
    after = before | {each.id: each for each in changed}
    assert {each.id: each for each in list_all(harness)} == after
    return sorted(changed, key=attrgetter("id"))
