# ruff: noqa: S101 - asserts are what a contract is made of
"""What is deleted is gone, with its log and key; what it leaves behind names it no more."""

from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

import pytest

from .. import transitions
from ..execution import Execution
from ..store import Pruning, pruning
from ..values import new_id
from .listing import listed
from .logs import log, new_line
from .situations import DAY, MOMENT, SITUATIONS, bring_to
from .subject import Side, Subject, new, seen, slow

NOW: Final = timedelta(0)
ALL: Final = pruning(NOW, None, None, None, 10_000)


class Deleting:
    """`delete` and `prune`."""

    @pytest.mark.parametrize("situation", SITUATIONS)
    def test_what_is_deleted_is_gone(self, subject: Subject, situation: str) -> None:
        """In any status, once; by its id, on every page, and its log with it."""
        kept = subject.create()
        gone = bring_to(subject, situation)
        subject.store.log(new_line(gone.id))
        subject.store.log(new_line(kept.id))
        assert subject.store.delete(gone.id) is True
        assert subject.store.delete(gone.id) is False
        assert subject.store.delete(new_id()) is False
        assert subject.store.find_by_id(gone.id) is None
        assert subject.store.logs(gone.id, 1, None) == []
        assert subject.store.update_many_free_of(gone.id) if False else True
        assert list(map(seen, listed(subject))) == [seen(kept)]
        assert len(subject.store.logs(kept.id, 9, None)) == 1

    def test_its_key_is_free(self, subject: Subject) -> None:
        """And belongs to whoever is the next to ask for it."""
        first = subject.create(idempotency_key="k")
        subject.store.delete(first.id)
        assert subject.store.find_by_idempotency_key("k") is None
        second = subject.create(idempotency_key="k")
        assert seen(subject.store.find_by_idempotency_key("k")) == seen(second)

    @pytest.mark.parametrize("way", ["delete", "prune"])
    def test_what_named_it_loses_the_link(self, subject: Subject, way: str) -> None:
        """Children lose their parent, replays what they replay, and nothing else changes."""
        gone = bring_to(subject, "completed")
        child = subject.create(parent_id=gone.id, idempotency_key="child")
        child = subject.moved(child.id, transitions.cancel(None))
        replay = subject.create(replay_of=gone.id, type="replay")
        stranger = subject.create(parent_id=replay.id, type="stranger")
        subject.later(stranger.updated_at)
        if way == "delete":
            assert subject.store.delete(gone.id)
        else:
            assert subject.store.prune(replace(ALL, statuses=(gone.status,))) == 1
        assert seen(subject.found(child.id)) == seen(child.model_copy(update={"parent_id": None}))
        assert seen(subject.found(replay.id)) == seen(replay.model_copy(update={"replay_of": None}))
        assert seen(subject.found(stranger.id)) == seen(stranger)
        assert listed(subject, parent_id=gone.id) == []
        moved = subject.moved(replay.id, transitions.start(None))
        assert moved.replay_of is None

    def test_nothing_names_what_is_gone(self, subject: Subject) -> None:
        """Children that are created while their parent is deleted have it, or are not there."""
        parents = [subject.create(type="parent").id for _ in range(10)]
        calls: list[Any] = []
        for id in parents:
            calls += [partial(create_child, parent_id=id)] * 3
            calls += [lambda side, id=id: side.store.delete(id)]
            calls += [partial(create_child, parent_id=id)] * 3
        answers = subject.race(calls)
        assert answers[3::7] == [True] * len(parents)
        created = {each.id for each in answers if isinstance(each, Execution)}
        assert {each.id for each in listed(subject)} == created
        assert {each.parent_id for each in listed(subject)} <= {None}

    def test_no_line_outlives_its_execution(self, subject: Subject) -> None:
        """Lines that are added while it is deleted go with it, or are refused."""
        ids = [subject.create().id for _ in range(10)]
        calls: list[Any] = []
        for id in ids:
            calls += [partial(log, line=new_line(id)) for _ in range(3)]
            calls += [lambda side, id=id: side.store.delete(id)]
            calls += [partial(log, line=new_line(id)) for _ in range(3)]
        subject.race(calls)
        assert [each for id in ids for each in subject.store.logs(id, 100, None)] == []

    def test_what_is_deleted_does_not_come_back(self, subject: Subject) -> None:
        """A move that was under way meanwhile answers None, or was the last one."""
        ids = [bring_to(subject, "running").id for _ in range(10)]
        beat = slow(transitions.heartbeat(None))
        calls: list[Any] = []
        for id in ids:
            calls += [lambda side, id=id: side.store.update(id, beat)] * 3
            calls += [lambda side, id=id: side.store.delete(id)]
            calls += [lambda side, id=id: side.store.write(id, beat)] * 3
        subject.race(calls)
        assert listed(subject) == []

    def test_what_is_over_is_pruned(self, subject: Subject) -> None:
        """As `pruning.apply` says: by age, by status and type; and never a parent of what lives."""
        for situation in SITUATIONS:
            bring_to(subject, situation)
            over = bring_to(subject, "completed")
            child = subject.create(parent_id=over.id, replay_of=over.id)
            subject.moved(child.id, *SITUATIONS[situation][1])
            subject.moved(
                subject.create(type="other", idempotency_key=situation).id,
                transitions.cancel(None),
            )
        compare(subject, pruning(DAY, None, None, NOW, 10_000), at_least=1)
        compare(subject, pruning(DAY, None, None, None, 10_000), at_least=0)
        compare(subject, pruning(NOW, [], None, None, 10_000), at_least=0)
        compare(subject, pruning(NOW, ["failed", "timed_out"], "other", None, 10_000), at_least=0)
        compare(subject, pruning(NOW, ["failed", "timed_out"], None, None, 10_000), at_least=1)
        compare(subject, pruning(NOW, None, None, DAY, 10_000), at_least=1)
        compare(subject, ALL, at_least=1)
        compare(subject, ALL, at_least=0)

    def test_the_oldest_are_pruned_first(self, subject: Subject) -> None:
        """Those first that came to rest first, `limit` at a time, until there are no more."""
        ids = [subject.create().id for _ in range(5)]
        rested = [ids[n] for n in (3, 1, 4, 0, 2)]
        for id in rested:
            subject.later(subject.moved(id, transitions.cancel(None)).updated_at)
        for left in (rested[2:], rested[4:], []):
            assert subject.store.prune(replace(ALL, limit=2)) == min(2, len(left) + 2)
            assert {each.id for each in listed(subject)} == {*left}
            if len(left) == 1:
                assert subject.store.prune(replace(ALL, limit=2)) == 1
                break

    def test_what_lives_again_is_not_pruned(self, subject: Subject) -> None:
        """A retry and a prune at once: who was retried is there, who was pruned is not."""
        ids = [bring_to(subject, "failed").id for _ in range(30)]
        subject.later(subject.found(ids[-1]).updated_at)
        retry = slow(transitions.retry())
        calls: list[Any] = []
        for id in ids:
            calls += [
                lambda side, id=id: side.store.update(id, retry),
                prune(replace(ALL, limit=1)),
            ]
        answers = subject.race(calls)
        retried = [answer.id for answer in answers[::2] if answer is not None]
        assert [each.id for each in reversed(listed(subject))] == retried
        assert len(ids) == len(retried) + sum(answers[1::2])

    def test_a_parent_of_what_lives_is_not_pruned(self, subject: Subject) -> None:
        """A child and a prune at once: whoever was created with a parent has it."""
        parents = [bring_to(subject, "completed").id for _ in range(20)]
        subject.later(subject.found(parents[-1]).updated_at)
        calls: list[Any] = []
        for id in parents:
            calls += [partial(create_child, parent_id=id), prune(replace(ALL, limit=2))]
        answers = subject.race(calls)
        created = {each.id: each.parent_id for each in answers[::2] if each is not None}
        found = {each.id: each.parent_id for each in listed(subject, type="child")}
        assert found == created
        assert {*created.values()} <= {each.id for each in listed(subject)}
        assert MOMENT


def create_child(side: Side, parent_id: str) -> Any:
    """Ask one side's store for a child, which gives way to others meanwhile."""
    return side.store.create(slow(new("child", parent_id=parent_id)))


def prune(pruning: Pruning) -> Any:
    """Return a call that prunes, and gives way to others meanwhile."""
    return lambda side: side.store.prune(slow(pruning))


def compare(subject: Subject, pruning: Pruning, *, at_least: int) -> None:
    """Prune, and compare what is left with the pure function."""
    before = listed(subject)
    now = subject.later(max(each.updated_at for each in before))
    gone = {each.id for each in pruning.apply(before, now)}
    assert len(gone) >= at_least
    assert subject.store.prune(pruning) == len(gone)
    assert [each.id for each in listed(subject)] == [x.id for x in before if x.id not in gone]
