# ruff: noqa: S101 - a contract consists of asserts
"""Many executions with their own values in one call, if the store has the optional members."""

from collections import defaultdict
from typing import Any

import pytest

from ..core import transitions
from ..core.validation import new_id
from .creation import KEYS
from .harness import CONCURRENCY, StoreHarness, build_new, call_store, to_text
from .states import DAY, bring_to, every_transition


class ManyRowsContract:
    """`create_many`, `update_each` and `find_many`; skipped if the store does not have them."""

    def test_create_many_stores_what_create_stores(self, harness: StoreHarness) -> None:
        """The answers are in order: None for a held key and for a missing link."""
        require(harness, "create_many")
        parent, old = harness.create(idempotency_key="held"), bring_to(harness, "completed")
        gone = harness.create()
        harness.store.delete(gone.id)
        links = {"parent_id": parent.id, "replay_of": old.id}
        full = {"max_attempts": 5, "timeout": DAY, "start_after": DAY, "metadata": {"by": "ada"}}
        stored = [
            build_new("z", {"order": [7, 2.0]}, idempotency_key="k2", **links, **full),
            build_new("a"),
            build_new("a", "k", idempotency_key="k1", checkpoints={"last": [2.0, None]}),
        ]
        refused = [
            build_new(idempotency_key="held"),
            build_new(parent_id=gone.id, idempotency_key="k3"),
            build_new(replay_of=new_id()),
        ]
        given = [new for pair in zip(stored, refused, strict=True) for new in pair]
        answers = harness.store.create_many(given)
        assert answers[1::2] == [None] * 3
        for new, created in zip(stored, answers[::2], strict=True):
            assert created is not None
            assert to_text(created) == to_text(new.apply(created.created_at))
            assert to_text(harness.other.find_by_id(new.id)) == to_text(created)
        assert not any(harness.store.find_by_id(new.id) for new in refused)

    def test_create_many_concurrent_creates_each_key_once(self, harness: StoreHarness) -> None:
        """Concurrent callers with the same keys, in different orders, create each once."""
        require(harness, "create_many")
        keys = [f"key-{number}" for number in range(20)]
        news = [
            [build_new(idempotency_key=key) for key in (keys if n % 2 else reversed(keys))]
            for n in range(CONCURRENCY)
        ]
        answers = harness.race([call_store("create_many", each) for each in news])
        created = {each.idempotency_key: each for answer in answers for each in answer if each}
        assert sum(each is not None for answer in answers for each in answer) == len(keys)
        for key in keys:
            assert to_text(harness.store.find_by_idempotency_key(key)) == to_text(created[key])

    @pytest.mark.parametrize("state", ["pending", "running", "running-last", "retrying", "failed"])
    def test_update_each_applies_each_transition(self, harness: StoreHarness, state: str) -> None:
        """As `update` does: those that are not allowed return None and change nothing."""
        require(harness, "update_each")
        model = bring_to(harness, state)
        by_rule: dict[Any, list[Any]] = defaultdict(list)
        for transition in every_transition(model.attempts):
            by_rule[transition.rule].append(transition)
        for same_rule in by_rule.values():
            before = [bring_to(harness, state) for _ in same_rule]
            harness.wait_past(before[-1].updated_at)
            changes = [(x.id, each) for x, each in zip(before, same_rule, strict=True)]
            unknown = (new_id(), same_rule[0])
            *answers, none = harness.store.update_each([*changes, unknown])
            assert none is None, "a transition of an unknown execution succeeded"
            for each, (_, transition), answer in zip(before, changes, answers, strict=True):
                after = harness.get(each.id)
                expected = transition.apply(each, after.updated_at, ())
                assert to_text(answer) == to_text(expected), transition
                assert to_text(after) == to_text(expected or each), transition

    def test_update_each_concurrent_has_one_winner(self, harness: StoreHarness) -> None:
        """Of calls for the same executions in different orders, one changes each of them."""
        require(harness, "update_each")
        running = [bring_to(harness, "running").id for _ in range(20)]
        calls = []
        for number in range(CONCURRENCY):
            complete = transitions.complete(number, 1)
            order = running if number % 2 else running[::-1]
            calls.append(call_store("update_each", [(id, complete) for id in order]))
        calls += [call_store("update", id, transitions.cancel("enough")) for id in running]
        answers = harness.race(calls)
        changed = [each for answer in answers[:CONCURRENCY] for each in answer if each]
        changed += [each for each in answers[CONCURRENCY:] if each]
        assert sorted(each.id for each in changed) == sorted(running)
        for each in changed:
            assert to_text(harness.get(each.id)) == to_text(each)

    def test_find_many_returns_those_that_exist(self, harness: StoreHarness) -> None:
        """By id and by key; keys are compared exactly."""
        require(harness, "find_many")
        held = {key: harness.create(idempotency_key=key) for key in KEYS}
        harness.create()
        by_key = harness.store.find_many("idempotency_key", [*KEYS, "unknown"])
        ids = [each.id for each in held.values()]
        by_id = harness.store.find_many("id", [new_id(), *ids])
        for found in (by_key, by_id):
            assert {to_text(each) for each in found} == {*map(to_text, held.values())}
            assert len(found) == len(held)
        assert harness.store.find_many("id", [new_id()]) == []


def require(harness: StoreHarness, member: str) -> None:
    """Skip the test if the store lacks an optional member."""
    if not hasattr(harness.store, member):
        pytest.skip(f"the store has no {member}, which is optional")
