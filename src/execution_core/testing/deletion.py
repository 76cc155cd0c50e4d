# ruff: noqa: S101 - a contract consists of asserts
"""Deletion: of the execution, its log and its key, and of the links to it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import pytest

from ..core import transitions
from ..core.models import Execution
from ..core.selections import PruneRequest
from ..core.store import Returning
from ..core.validation import new_id
from .harness import Call, StoreHarness, build_new, build_prune, call_store, to_text
from .log_lines import log_page, new_entry
from .pages import list_all
from .states import DAY, STATES, bring_to

NOW: Final = timedelta(0)
ALL: Final = build_prune(NOW)

delete_or_prune = pytest.mark.parametrize("way", ["delete", "prune"])


class DeletionContract:
    """`delete` and `prune`."""

    @pytest.mark.parametrize("state", STATES)
    def test_delete_removes_execution_and_log(self, harness: StoreHarness, state: str) -> None:
        """An execution in any status is deleted once, with its log."""
        kept, gone = harness.create(), bring_to(harness, state)
        for each in (kept, gone):
            harness.store.log(new_entry(each.id))
        answers = [harness.store.delete(id) for id in (gone.id, gone.id, new_id())]
        assert answers == [True, False, False]
        assert harness.store.find_by_id(gone.id) is None
        assert harness.store.logs(log_page(gone.id, 1)) == []
        assert [to_text(each) for each in list_all(harness)] == [to_text(kept)]
        assert len(harness.store.logs(log_page(kept.id, 9))) == 1

    @delete_or_prune
    def test_removal_frees_key_and_log(self, harness: StoreHarness, way: str) -> None:
        """Its key can be used again, and its log is empty."""
        first = harness.create(idempotency_key="k")
        assert harness.store.log(new_entry(first.id)) is not None
        remove(harness, way, harness.apply(first.id, transitions.cancel(None)))
        assert harness.store.find_by_idempotency_key("k") is None
        assert harness.store.logs(log_page(first.id, 1)) == []
        second = harness.create(idempotency_key="k")
        assert to_text(harness.store.find_by_idempotency_key("k")) == to_text(second)

    @delete_or_prune
    def test_removal_clears_only_links(self, harness: StoreHarness, way: str) -> None:
        """Children lose their `parent_id`, replays their `replay_of`, and nothing else changes."""
        gone = harness.create()
        child = harness.create(parent_id=gone.id, idempotency_key="child")
        child = harness.apply(child.id, transitions.start(None), transitions.complete(None, None))
        gone = harness.apply(gone.id, transitions.cancel(None))
        replay = harness.create(replay_of=gone.id)
        stranger = harness.create(parent_id=replay.id)
        harness.wait_past(stranger.updated_at)
        remove(harness, way, gone)
        for each, link in ((child, "parent_id"), (replay, "replay_of")):
            assert to_text(harness.get(each.id)) == to_text(each.model_copy(update={link: None}))
        assert to_text(harness.get(stranger.id)) == to_text(stranger)
        assert list_all(harness, parent_id=gone.id) == []
        assert harness.apply(replay.id, transitions.start(None)).replay_of is None

    @pytest.mark.parametrize("link", ["parent_id", "replay_of"])
    def test_delete_concurrent_with_create_leaves_no_link(
        self, harness: StoreHarness, link: str
    ) -> None:
        """An execution created during the deletion of its parent has no link, or is not created."""
        ids = [harness.create().id for _ in range(10)]
        answers = race_deletes(
            harness, ids, lambda id: call_store("create", build_new(**{link: id}))
        )
        assert answers[3::7] == [True] * len(ids)
        created = {each.id for each in answers if isinstance(each, Execution)}
        assert {each.id for each in list_all(harness)} == created
        assert {getattr(each, link) for each in list_all(harness)} <= {None}

    def test_delete_concurrent_with_log_leaves_no_entry(self, harness: StoreHarness) -> None:
        """Log entries added during the deletion are deleted too, or refused."""
        ids = [harness.create().id for _ in range(10)]
        race_deletes(harness, ids, lambda id: call_store("log", new_entry(id)))
        assert [each for id in ids for each in harness.store.logs(log_page(id, 100))] == []

    @pytest.mark.parametrize("returning", ["execution", "status"])
    def test_delete_concurrent_with_update_restores_nothing(
        self, harness: StoreHarness, returning: Returning
    ) -> None:
        """A concurrent update returns None, or commits before the deletion."""
        ids = [bring_to(harness, "running").id for _ in range(10)]
        beat = transitions.heartbeat(None)
        race_deletes(harness, ids, lambda id: call_store("update", id, beat, returning=returning))
        assert list_all(harness) == []

    def test_prune_removes_what_the_request_selects(self, harness: StoreHarness) -> None:
        """The result equals `request.apply`; no ancestor of a live execution is ever deleted."""
        for state, (_, steps) in STATES.items():
            bring_to(harness, state)
            parent = harness.create()
            middle = harness.apply(harness.create(parent_id=parent.id).id, transitions.cancel(None))
            harness.apply(parent.id, transitions.cancel(None))
            child = harness.create(parent_id=middle.id, replay_of=parent.id)
            harness.apply(child.id, *steps)
            keyed = harness.create(type="other", idempotency_key=state)
            harness.apply(keyed.id, transitions.cancel(None))
        assert prune_and_compare(harness, build_prune(DAY)) == 0
        assert prune_and_compare(harness, build_prune(NOW, status=[])) == 0
        assert prune_and_compare(harness, build_prune(NOW, status="failed", type="other")) == 0
        assert prune_and_compare(harness, build_prune(NOW, status=["failed", "timed_out"])) > 4
        assert prune_and_compare(harness, build_prune(NOW, keys_older_than=DAY)) > 4
        old_or_keyed = build_prune(DAY, type="other", keys_older_than=NOW)
        assert prune_and_compare(harness, old_or_keyed) == len(STATES)
        prune_and_compare(harness, ALL)
        assert prune_and_compare(harness, ALL) == 0

    def test_prune_with_limit_removes_oldest_first(self, harness: StoreHarness) -> None:
        """Executions that finished first are deleted first, at most `limit` per call."""
        ids = [harness.create().id for _ in range(5)]
        rested = [ids[number] for number in (3, 1, 4, 0, 2)]
        for id in rested:
            harness.wait_past(harness.apply(id, transitions.cancel(None)).updated_at)
        for count, left in ((2, rested[2:]), (2, rested[4:]), (1, []), (0, [])):
            assert harness.store.prune(replace(ALL, limit=2)) == count
            assert {each.id for each in list_all(harness)} == {*left}

    def test_prune_concurrent_with_retry_keeps_retried(self, harness: StoreHarness) -> None:
        """An execution is either retried or pruned."""
        ids = [bring_to(harness, "failed").id for _ in range(30)]
        harness.wait_past(harness.get(ids[-1]).updated_at)
        prune = call_store("prune", replace(ALL, limit=1))
        retry = transitions.retry()
        calls = [call for id in ids for call in (call_store("update", id, retry), prune)]
        answers = harness.race(calls)
        retried = [answer.id for answer in answers[::2] if answer is not None]
        left = [each.id for each in reversed(list_all(harness)) if each.status == "retrying"]
        assert left == retried
        assert len(ids) == len(list_all(harness)) + sum(answers[1::2])

    def test_prune_concurrent_with_create_keeps_parents(self, harness: StoreHarness) -> None:
        """A parent that gets a child during the prune is kept."""
        parents = [bring_to(harness, "completed").id for _ in range(20)]
        harness.wait_past(harness.get(parents[-1]).updated_at)
        prune = call_store("prune", replace(ALL, limit=2))
        original = harness.create().id  # a replay may have a parent that has finished
        children = [build_new("child", parent_id=id, replay_of=original) for id in parents]
        calls = [call for child in children for call in (call_store("create", child), prune)]
        created = {each.id: to_text(each) for each in harness.race(calls)[::2] if each is not None}
        left = list_all(harness, type="child")
        assert {each.id: to_text(each) for each in left} == created
        assert {each.parent_id for each in left} <= {each.id for each in list_all(harness)}


def remove(harness: StoreHarness, way: str, gone: Execution) -> None:
    """Delete or prune a finished execution, the only one in its status."""
    if way == "delete":
        assert harness.store.delete(gone.id)
    else:
        assert harness.store.prune(replace(ALL, statuses=(gone.status,))) == 1


def race_deletes(harness: StoreHarness, ids: list[str], call: Callable[[str], Call]) -> list[Any]:
    """Race three calls, the deletion and three more calls for each id."""
    calls: list[Call] = []
    for id in ids:
        before, after = ([call(id) for _ in range(3)] for _ in range(2))
        calls += [*before, call_store("delete", id), *after]
    return harness.race(calls)


def prune_and_compare(harness: StoreHarness, pruning: PruneRequest) -> int:
    """Prune, and compare the count and the remaining executions with the pure function."""
    before = list_all(harness)
    now = harness.wait_past(max((each.updated_at for each in before), default=harness.now()))
    gone = {each.id for each in pruning.apply(before, now)}
    count: int = harness.store.prune(pruning)
    assert count == len(gone)
    assert [each.id for each in list_all(harness)] == [x.id for x in before if x.id not in gone]
    return count
