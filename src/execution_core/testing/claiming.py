# ruff: noqa: S101 - asserts are what a contract is made of
"""Many at once: claims of what is due, sweeps of what nobody works on any more."""

from dataclasses import replace
from datetime import timedelta
from operator import attrgetter
from typing import Final

from .. import transitions
from ..execution import Execution
from ..store import Batch, batch
from .listing import listed
from .situations import DAY, MOMENT, SITUATIONS, bring_to
from .subject import Subject, ask, seen

CLAIM: Final = batch(transitions.claim("host"), None, 10_000)
SWEEP: Final = batch(transitions.sweep(None), None, 10_000)
RIVAL_CLAIMS: Final = 30


class Claiming:
    """`update_many`."""

    def test_those_that_are_due_are_claimed(self, subject: Subject) -> None:
        """As `batch.apply` says: each by its transition, all others untouched."""
        bring_all(subject)
        assert {each.status for each in both(subject, CLAIM)} == {"running"}
        assert both(subject, CLAIM) == []

    def test_those_that_are_overdue_are_swept(self, subject: Subject) -> None:
        """What has a deadline that has passed, and no other."""
        bring_all(subject)
        (swept,) = both(subject, SWEEP)
        assert swept.error == transitions.TIMEOUT_ERROR
        assert both(subject, SWEEP) == []

    def test_those_that_are_stalled_are_swept(self, subject: Subject) -> None:
        """What gave no sign of life for so long, and no other."""
        bring_all(subject)
        assert both(subject, batch(transitions.sweep(DAY), "work", 1)) != []
        assert both(subject, batch(transitions.sweep(DAY), None, 100)) == []
        swept = both(subject, batch(transitions.sweep(MOMENT), None, 100))
        assert [each.error for each in swept] == [transitions.STALLED_ERROR] * 2

    def test_a_type_is_asked_for(self, subject: Subject) -> None:
        """Of one type, however many of others are due."""
        mine = [subject.create(type="mine").id for _ in range(3)]
        subject.create(type="other")
        claimed = both(subject, replace(CLAIM, type="mine"))
        assert [each.id for each in claimed] == mine
        assert both(subject, replace(CLAIM, type="none")) == []

    def test_the_longest_due_come_first(self, subject: Subject) -> None:
        """By `retry_at`, without one by `created_at`; answered by id, `limit` at a time."""
        ids = [subject.create(start_after=timedelta(0)).id for _ in range(3)]
        ids.append(subject.create(start_after=timedelta(milliseconds=30)).id)
        ids.append(subject.create(start_after=DAY).id)
        again = transitions.fail("again", True, timedelta(0), None)  # noqa: FBT003 - retryable
        for id in (ids[1], ids[4]):  # what is retried comes behind what was due before
            subject.later(subject.now())
            subject.moved(id, transitions.start(None), again)
        due = {id: transitions.due_at(subject.found(id)) for id in ids}
        subject.later(max(due.values()))
        expected = sorted(ids, key=lambda id: (due[id], id))
        claimed = [[each.id for each in both(subject, replace(CLAIM, limit=2))] for _ in range(3)]
        assert claimed == [sorted(expected[n : n + 2]) for n in (0, 2, 4)]

    def test_each_is_claimed_once(self, subject: Subject) -> None:
        """Callers at once never get the same one, and in the end they have got them all."""
        ids = [subject.create().id for _ in range(40)]
        claims = subject.race([ask("update_many", replace(CLAIM, limit=3))] * RIVAL_CLAIMS)
        claims.append(subject.store.update_many(CLAIM))  # what was in others' hands meanwhile
        assert sorted(each.id for claim in claims for each in claim) == ids
        assert all(len(claim) <= 3 for claim in claims[:RIVAL_CLAIMS])
        assert {each.attempts for each in listed(subject)} == {1}

    def test_a_claim_and_a_start_agree(self, subject: Subject) -> None:
        """Whether one asks for it or for any, an attempt begins once."""
        ids = [subject.create(max_attempts=1).id for _ in range(30)]
        claim = ask("update_many", replace(CLAIM, limit=1))
        start = transitions.start("by hand")
        calls = [call for id in ids for call in (ask("update", id, start), claim)]
        answers = subject.race(calls)
        by_hand = [each.id for each in answers[::2] if each is not None]
        claimed = [each.id for claim in answers[1::2] for each in claim]
        assert sorted(by_hand + claimed) == ids
        assert {each.id for each in listed(subject) if each.worker == "by hand"} == {*by_hand}


def bring_all(subject: Subject) -> None:
    """Make one execution in each situation, and wait until what is to be due is due."""
    last = [bring_to(subject, situation) for situation in SITUATIONS][-1]
    subject.later(last.updated_at)


def both(subject: Subject, batch: Batch) -> list[Execution]:
    """Move a batch, and compare everything there is with the pure function."""
    before = {each.id: each for each in listed(subject)}
    now = subject.later(max(each.updated_at for each in before.values()))
    moved = subject.store.update_many(batch)
    expected = batch.apply(before.values(), now)
    assert [each.id for each in moved] == [each.id for each in expected]
    for each in moved:
        assert seen(each) == seen(batch.transition.apply(before[each.id], each.updated_at))
    after = before | {each.id: each for each in moved}
    assert {each.id: each for each in listed(subject)} == after
    return sorted(moved, key=attrgetter("id"))
