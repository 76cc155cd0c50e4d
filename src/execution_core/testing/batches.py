# ruff: noqa: S101 - asserts are what a contract is made of
"""Many at once: claims of what is due, sweeps of what nobody works on any more."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Final

import pytest

from ..core import state_machine, transitions
from ..core.models import Execution
from ..core.selections import BatchTransition, check_batch, check_prune_request
from ..core.transitions import Transition
from .harness import StoreAndManager, StoreHarness, call_store, new, to_text
from .pages import list_ids
from .states import DAY, MOMENT, STATES, bring_to

CLAIM: Final = check_batch(transitions.claim("host"), None, 10_000)
SWEEP: Final = check_batch(transitions.sweep(None), None, 10_000)
STALLED: Final = transitions.sweep(MOMENT)
RIVAL_CLAIMS: Final = 30
DUELS: Final = 12
BATCHES: Final = {"claim": (CLAIM, "pending"), "sweep": (SWEEP, "overdue")}

either_batch = pytest.mark.parametrize("verb", BATCHES)


class BatchContract:
    """`update_many`."""

    def test_those_that_are_due_are_claimed(self, subject: StoreHarness) -> None:
        """As `batch.apply` says: each by its transition, all others untouched."""
        bring_all(subject)
        assert {each.status for each in both(subject, CLAIM)} == {"running"}
        assert both(subject, CLAIM) == []

    def test_those_that_are_overdue_are_swept(self, subject: StoreHarness) -> None:
        """What has a deadline that has passed, and no other."""
        bring_all(subject)
        (swept,) = both(subject, SWEEP)
        assert swept.error == state_machine.TIMEOUT_ERROR
        assert both(subject, SWEEP) == []

    def test_those_that_are_stalled_are_swept(self, subject: StoreHarness) -> None:
        """What gave no sign of life for so long, and no other."""
        bring_all(subject)
        assert both(subject, check_batch(transitions.sweep(DAY), "work", 1)) != []
        assert both(subject, check_batch(transitions.sweep(DAY), None, 100)) == []
        swept = both(subject, check_batch(transitions.sweep(MOMENT), None, 100))
        assert [each.error for each in swept] == [state_machine.STALLED_ERROR] * 2

    def test_a_type_is_asked_for(self, subject: StoreHarness) -> None:
        """Of one type, however many of others are due."""
        mine = [subject.create(type="mine").id for _ in range(3)]
        subject.create(type="other")
        claimed = both(subject, replace(CLAIM, type="mine"))
        assert [each.id for each in claimed] == mine
        assert both(subject, replace(CLAIM, type="none")) == []

    def test_the_longest_due_come_first(self, subject: StoreHarness) -> None:
        """In the order of `due_at`; answered by id, `limit` at a time."""
        ids = [subject.create(start_after=timedelta(0)).id for _ in range(3)]
        ids.append(subject.create(start_after=timedelta(milliseconds=30)).id)
        ids.append(subject.create(start_after=DAY).id)
        again = transitions.fail("again", True, timedelta(0), None)  # noqa: FBT003 - retryable
        for id in (ids[1], ids[4]):  # what is retried comes behind what was due before
            subject.later(subject.now())
            subject.moved(id, transitions.start(None), again)
        due: dict[str, datetime] = {}
        for id in ids:
            due_at = subject.found(id).due_at
            assert due_at is not None, "a waiting execution has no due_at"
            due[id] = due_at
        subject.later(max(due.values()))
        expected = sorted(ids, key=lambda id: (due[id], id))
        claimed = [[each.id for each in both(subject, replace(CLAIM, limit=2))] for _ in range(3)]
        assert claimed == [sorted(expected[n : n + 2]) for n in (0, 2, 4)]

    def test_each_is_claimed_once(self, subject: StoreHarness) -> None:
        """Callers at once never get the same one, and in the end they have got them all."""
        ids = [subject.create().id for _ in range(40)]
        claims = subject.race([call_store("update_many", replace(CLAIM, limit=3))] * RIVAL_CLAIMS)
        claims.append(subject.store.update_many(CLAIM))  # what was in others' hands meanwhile
        assert sorted(each.id for claim in claims for each in claim) == ids
        assert all(len(claim) <= 3 for claim in claims[:RIVAL_CLAIMS])
        assert {each.attempts for each in list_ids(subject)} == {1}

    def test_a_claim_and_a_start_agree(self, subject: StoreHarness) -> None:
        """Whether one asks for it or for any, an attempt begins once."""
        one_of_both(subject, "claim", transitions.start("by hand"))

    def test_a_sweep_and_an_end_agree(self, subject: StoreHarness) -> None:
        """What is completed is not timed out, and what is timed out is not completed."""
        one_of_both(subject, "sweep", transitions.complete("done", 1))

    @either_batch
    def test_no_checkpoint_is_lost_to_many(self, subject: StoreHarness, verb: str) -> None:
        """What is set in the midst of a batch stands, and so does what the batch has made."""
        set_one = transitions.checkpoint("k", 1, None)
        answers, moved = amidst(subject, verb, lambda id: call_store("update", id, set_one))
        after = {each.id: each for each in list_ids(subject)}
        for id, answer in answers.items():
            assert answer is not None or after[id].status == "timed_out"
            assert ("k" in after[id].checkpoints) == (answer is not None)
        target = BATCHES[verb][0].transition.rule.moves[0].target
        assert {id for id, each in after.items() if each.status == target} == {*moved}

    @either_batch
    def test_many_do_not_come_back(self, subject: StoreHarness, verb: str) -> None:
        """What is deleted in the midst of a batch stays so."""
        answers, _ = amidst(subject, verb, lambda id: call_store("delete", id))
        assert {*answers.values()} == {True}
        assert list_ids(subject) == []

    def test_many_are_more_than_a_hundred(self, subject: StoreHarness) -> None:
        """A limit is the caller's, and no other is below it."""
        subject.race([call_store("create", new()) for _ in range(101)])
        subject.later(subject.now())
        assert len(list_ids(subject)) == 101
        assert len(subject.store.update_many(CLAIM)) == 101
        subject.later(subject.now())
        assert len(subject.store.update_many(replace(SWEEP, transition=STALLED))) == 101
        assert (
            subject.store.prune(check_prune_request(timedelta(0), None, None, None, 10_000)) == 101
        )


def amidst(
    subject: StoreHarness, verb: str, call: Callable[[str], Callable[[StoreAndManager], Any]]
) -> tuple[dict[str, Any], dict[str, Execution]]:
    """Race, for each of some executions, a call with two batches that may move just that one.

    Returns:
        The answers to the calls, and the executions that the batches moved; both by id.
    """
    batch, situation = BATCHES[verb]
    ids = {f"type-{n}": bring_to(subject, situation, f"type-{n}").id for n in range(DUELS)}
    subject.later(subject.now())
    calls = []
    for type, id in ids.items():
        many = call_store("update_many", replace(batch, type=type))
        calls += [many, call(id), many]
    answers = subject.race(calls)
    moved = [each for many in answers[::3] + answers[2::3] for each in many]
    assert len(moved) == len({each.id for each in moved}), "a batch moved what another had moved"
    return dict(zip(ids.values(), answers[1::3], strict=True)), {each.id: each for each in moved}


def one_of_both(subject: StoreHarness, verb: str, transition: Transition) -> None:
    """Race a batch with a transition, only one of which is allowed."""
    answers, moved = amidst(subject, verb, lambda id: call_store("update", id, transition))
    after = {each.id: each for each in list_ids(subject)}
    for id, answer in answers.items():
        assert (answer is None) == (id in moved), (
            f"{verb} and {transition.rule.verb}: one of the two, and not both"
        )
        assert to_text(after[id]) == to_text(answer or moved[id])


def bring_all(subject: StoreHarness) -> None:
    """Make one execution in each situation, and wait until what is to be due is due."""
    last = [bring_to(subject, situation) for situation in STATES][-1]
    subject.later(last.updated_at)


def both(subject: StoreHarness, batch: BatchTransition) -> list[Execution]:
    """Move a batch, and compare everything there is with the pure function."""
    before = {each.id: each for each in list_ids(subject)}
    now = subject.later(max(each.updated_at for each in before.values()))
    moved = subject.store.update_many(batch)
    expected = batch.apply(before.values(), now)
    assert [each.id for each in moved] == [each.id for each in expected]
    for each in moved:
        assert to_text(each) == to_text(batch.transition.apply(before[each.id], each.updated_at))
    after = before | {each.id: each for each in moved}
    assert {each.id: each for each in list_ids(subject)} == after
    return sorted(moved, key=attrgetter("id"))
