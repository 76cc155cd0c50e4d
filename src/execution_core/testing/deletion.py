# ruff: noqa: S101 - asserts are what a contract is made of
"""What is deleted is gone, with its log and key; what it leaves behind names it no more."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import pytest

from ..core import transitions
from ..core.models import Execution
from ..core.selections import PruneRequest, check_prune_request
from ..core.store import Returning
from ..core.validation import new_id
from .harness import StoreAndManager, StoreHarness, call_store, new, to_text
from .log_lines import new_entry
from .pages import list_ids
from .states import DAY, STATES, bring_to

NOW: Final = timedelta(0)
ALL: Final = check_prune_request(NOW, None, None, None, 10_000)


either_way = pytest.mark.parametrize("way", ["delete", "prune"])


class DeletionContract:
    """`delete` and `prune`."""

    @pytest.mark.parametrize("situation", STATES)
    def test_what_is_deleted_is_gone(self, subject: StoreHarness, situation: str) -> None:
        """In any status, once; by its id, on every page, and its log with it."""
        kept, gone = subject.create(), bring_to(subject, situation)
        for each in (kept, gone):
            subject.store.log(new_entry(each.id))
        answers = [subject.store.delete(id) for id in (gone.id, gone.id, new_id())]
        assert answers == [True, False, False]
        assert subject.store.find_by_id(gone.id) is None
        assert subject.store.logs(gone.id, 1, None) == []
        assert [to_text(each) for each in list_ids(subject)] == [to_text(kept)]
        assert len(subject.store.logs(kept.id, 9, None)) == 1

    @either_way
    def test_nothing_of_it_is_kept(self, subject: StoreHarness, way: str) -> None:
        """Its key belongs to whoever is the next to ask for it, and its log is gone."""
        first = subject.create(idempotency_key="k")
        assert subject.store.log(new_entry(first.id)) is not None
        remove(subject, way, subject.moved(first.id, transitions.cancel(None)))
        assert subject.store.find_by_idempotency_key("k") is None
        assert subject.store.logs(first.id, 1, None) == []
        second = subject.create(idempotency_key="k")
        assert to_text(subject.store.find_by_idempotency_key("k")) == to_text(second)

    @either_way
    def test_what_named_it_loses_the_link(self, subject: StoreHarness, way: str) -> None:
        """Children lose their parent, replays what they replay, and nothing else changes."""
        gone = bring_to(subject, "completed")
        child = subject.create(parent_id=gone.id, idempotency_key="child")
        child = subject.moved(child.id, transitions.cancel(None))
        replay = subject.create(replay_of=gone.id)
        stranger = subject.create(parent_id=replay.id)
        subject.later(stranger.updated_at)
        remove(subject, way, gone)
        assert to_text(subject.found(child.id)) == to_text(
            child.model_copy(update={"parent_id": None})
        )
        assert to_text(subject.found(replay.id)) == to_text(
            replay.model_copy(update={"replay_of": None})
        )
        assert to_text(subject.found(stranger.id)) == to_text(stranger)
        assert list_ids(subject, parent_id=gone.id) == []
        assert subject.moved(replay.id, transitions.start(None)).replay_of is None

    @pytest.mark.parametrize("link", ["parent_id", "replay_of"])
    def test_nothing_names_what_is_gone(self, subject: StoreHarness, link: str) -> None:
        """What is created while what it names is deleted loses the link, or is not there."""
        ids = [subject.create().id for _ in range(10)]
        answers = subject.race(
            around_deletes(ids, lambda id: call_store("create", new(**{link: id})))
        )
        assert answers[3::7] == [True] * len(ids)
        created = {each.id for each in answers if isinstance(each, Execution)}
        assert {each.id for each in list_ids(subject)} == created
        assert {getattr(each, link) for each in list_ids(subject)} <= {None}

    def test_no_line_outlives_its_execution(self, subject: StoreHarness) -> None:
        """Lines that are added while it is deleted go with it, or are refused."""
        ids = [subject.create().id for _ in range(10)]
        subject.race(around_deletes(ids, lambda id: call_store("log", new_entry(id))))
        assert [each for id in ids for each in subject.store.logs(id, 100, None)] == []

    @pytest.mark.parametrize("returning", ["execution", "status"])
    def test_what_is_deleted_does_not_come_back(
        self, subject: StoreHarness, returning: Returning
    ) -> None:
        """A move that was under way meanwhile answers None, or was the last one."""
        ids = [bring_to(subject, "running").id for _ in range(10)]
        beat = transitions.heartbeat(None)
        subject.race(
            around_deletes(ids, lambda id: call_store("update", id, beat, returning=returning))
        )
        assert list_ids(subject) == []

    def test_what_is_over_is_pruned(self, subject: StoreHarness) -> None:
        """As `pruning.apply` says: by age, status and type; and never a parent of what lives."""
        for situation, (_, steps) in STATES.items():
            bring_to(subject, situation)
            parent = bring_to(subject, "completed")
            child = subject.create(parent_id=parent.id, replay_of=parent.id)
            subject.moved(child.id, *steps)
            keyed = subject.create(type="other", idempotency_key=situation)
            subject.moved(keyed.id, transitions.cancel(None))
        assert pruned(subject, check_prune_request(DAY, None, None, None, 10_000)) == 0
        assert pruned(subject, check_prune_request(NOW, [], None, None, 10_000)) == 0
        assert pruned(subject, check_prune_request(NOW, "failed", "other", None, 10_000)) == 0
        assert (
            pruned(subject, check_prune_request(NOW, ["failed", "timed_out"], None, None, 10_000))
            > 4
        )
        assert pruned(subject, check_prune_request(NOW, None, None, DAY, 10_000)) > 4
        assert pruned(subject, check_prune_request(DAY, None, "other", NOW, 10_000)) == len(STATES)
        pruned(subject, ALL)
        assert pruned(subject, ALL) == 0

    def test_the_oldest_are_pruned_first(self, subject: StoreHarness) -> None:
        """Those first that came to rest first, `limit` at a time, until there are no more."""
        ids = [subject.create().id for _ in range(5)]
        rested = [ids[number] for number in (3, 1, 4, 0, 2)]
        for id in rested:
            subject.later(subject.moved(id, transitions.cancel(None)).updated_at)
        for count, left in ((2, rested[2:]), (2, rested[4:]), (1, []), (0, [])):
            assert subject.store.prune(replace(ALL, limit=2)) == count
            assert {each.id for each in list_ids(subject)} == {*left}

    def test_what_lives_again_is_not_pruned(self, subject: StoreHarness) -> None:
        """A retry and a prune at once: who was retried is there, who was pruned is not."""
        ids = [bring_to(subject, "failed").id for _ in range(30)]
        subject.later(subject.found(ids[-1]).updated_at)
        prune = call_store("prune", replace(ALL, limit=1))
        retry = transitions.retry()
        answers = subject.race(
            [call for id in ids for call in (call_store("update", id, retry), prune)]
        )
        retried = [answer.id for answer in answers[::2] if answer is not None]
        left = [each.id for each in reversed(list_ids(subject)) if each.status == "retrying"]
        assert left == retried
        assert len(ids) == len(list_ids(subject)) + sum(answers[1::2])

    def test_a_parent_of_what_lives_is_not_pruned(self, subject: StoreHarness) -> None:
        """A child and a prune at once: whoever was created with a parent has it."""
        parents = [bring_to(subject, "completed").id for _ in range(20)]
        subject.later(subject.found(parents[-1]).updated_at)
        prune = call_store("prune", replace(ALL, limit=2))
        children = [new("child", parent_id=id) for id in parents]
        calls = [call for child in children for call in (call_store("create", child), prune)]
        created = {each.id: to_text(each) for each in subject.race(calls)[::2] if each is not None}
        left = list_ids(subject, type="child")
        assert {each.id: to_text(each) for each in left} == created
        assert {each.parent_id for each in left} <= {each.id for each in list_ids(subject)}


def remove(subject: StoreHarness, way: str, gone: Execution) -> None:
    """Delete or prune an execution that is over, the only one in its status."""
    if way == "delete":
        assert subject.store.delete(gone.id)
    else:
        assert subject.store.prune(replace(ALL, statuses=(gone.status,))) == 1


def around_deletes(
    ids: Sequence[str], call: Callable[[str], Callable[[StoreAndManager], Any]]
) -> list[Callable[[StoreAndManager], Any]]:
    """Return for each id three calls, its deletion, and three calls more."""
    return [
        each
        for id in ids
        for each in (
            call(id),
            call(id),
            call(id),
            call_store("delete", id),
            call(id),
            call(id),
            call(id),
        )
    ]


def pruned(subject: StoreHarness, pruning: PruneRequest) -> int:
    """Prune, and compare the answer and what is left with the pure function."""
    before = list_ids(subject)
    now = subject.later(max((each.updated_at for each in before), default=subject.now()))
    gone = {each.id for each in pruning.apply(before, now)}
    count = subject.store.prune(pruning)
    assert count == len(gone)
    assert [each.id for each in list_ids(subject)] == [x.id for x in before if x.id not in gone]
    return count
