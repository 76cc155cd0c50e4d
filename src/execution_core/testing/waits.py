# ruff: noqa: S101 - a contract consists of asserts
"""What the waits of a manager ask the store, if it has the optional member."""

import pytest

from ..core.state_machine import LIVE
from ..core.validation import new_id
from .harness import StoreHarness
from .states import STATES, bring_to


class WaitContract:
    """`find_unfinished`; skipped if the store does not have it."""

    def test_find_unfinished_returns_those_that_are_live(self, harness: StoreHarness) -> None:
        """With `children`, those that have a live child, in any status of their own."""
        if not hasattr(harness.store, "find_unfinished"):
            pytest.skip("the store has no find_unfinished, which is optional")
        find = harness.store.find_unfinished
        found = [bring_to(harness, state) for state in STATES]
        ids = [*(each.id for each in found), new_id()]
        live = {each.id for each in found if each.status in LIVE}
        assert find(ids) == live
        assert find([]) == find(ids, children=True) == set()
        original = harness.create()  # a replay may have a parent that has finished
        for parent in found:
            assert find([parent.id]) == live & {parent.id}
            child = harness.create(parent_id=parent.id, replay_of=original.id)
            assert find(ids, children=True) == {parent.id}
            assert harness.store.delete(child.id)
