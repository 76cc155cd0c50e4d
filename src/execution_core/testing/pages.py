# ruff: noqa: S101 - a contract consists of asserts
"""Pages of `list`: newest id first, without gaps or duplicates."""

from itertools import product
from typing import Any

from ..core import transitions
from ..core.models import Execution, ExecutionStatus
from ..core.selections import Page, Selection, check_bounds, check_selection
from .harness import CONCURRENCY, Call, StoreHarness, build_new, call_store, to_text
from .states import DAY, STATES, bring_to


def list_all(harness: StoreHarness, **conditions: Any) -> list[Execution]:
    """Return the executions of a page; by default all."""
    found: list[Execution] = harness.store.list(build_page(**conditions))
    return found


def build_page(**conditions: Any) -> Page:
    """Return a page for `store.list`; by default of all executions."""
    bounds = {"limit": 10_000, "before": None, "after": None, "oldest_first": False}
    given = {name: conditions.pop(name, default) for name, default in bounds.items()}
    return Page(**check_selection(**conditions), **check_bounds(**given))


class PageContract:
    """`list`."""

    def test_list_pages_are_ordered_by_id(self, harness: StoreHarness) -> None:
        """Pages show each execution exactly once, in the order of ids, whatever changed last."""
        creations = [build_new() for _ in range(25)]
        for creation in creations[::2] + creations[1::2][::-1]:
            assert harness.store.create(creation) is not None
        newest = [creation.id for creation in reversed(creations)]
        harness.apply(newest[-1], transitions.start(None))
        assert [each.id for each in list_all(harness)] == newest
        paged: list[str] = []
        while part := list_all(harness, limit=4, before=paged[-1] if paged else None):
            assert len(part) <= 4
            paged += [each.id for each in part]
        assert paged == newest

    def test_list_returns_what_the_page_includes(self, harness: StoreHarness) -> None:
        """The result equals `page.includes` for all combinations of conditions."""
        parent = harness.create(type="parent")
        for number, state in enumerate(STATES):
            bring_to(harness, state)
            harness.create(type=f"type-{number % 2}", parent_id=parent.id)
        executions = list_all(harness)
        assert len(executions) == 2 * len(STATES) + 1
        statuses: tuple[Any, ...] = ([], "pending", ["failed", "running"], [*ExecutionStatus], None)
        types = ("type-1", "work", "none", None)
        parents, limits = (parent.id, executions[0].id, None), (1, 5, 10_000)
        befores = (executions[0].id, executions[7].id, parent.id, None)
        for status, type, of, limit, before in product(statuses, types, parents, limits, befores):
            wanted = build_page(status=status, type=type, parent_id=of, limit=limit, before=before)
            expected = [each for each in executions if wanted.includes(each)][:limit]
            found = harness.store.list(wanted)
            assert [each.id for each in found] == [each.id for each in expected], wanted

    def test_list_and_count_meet_every_condition(self, harness: StoreHarness) -> None:
        """Links, workers, windows, several types and both directions, alone and combined."""
        parent, ended = harness.create(type="parent"), bring_to(harness, "completed")
        for number, state in enumerate(STATES):
            each = bring_to(harness, state)
            harness.wait_past(each.updated_at)
            links = {"parent_id": parent.id, "replay_of": ended.id} if number % 2 else {}
            harness.create(type=f"type-{number % 3}", **links)
        executions = list_all(harness)
        times = sorted(each.created_at for each in executions)
        ends = sorted(each.completed_at for each in executions if each.completed_at)
        ids = [each.id for each in executions]
        conditions: list[dict[str, Any]] = [
            {"replay_of": ended.id},
            {"replay_of": ended.id, "status": ["pending", "running"]},
            {"worker": "host"},
            {"worker": "none"},
            {"type": ["type-0", "type-2"]},
            {"type": ("type-0", "work"), "status": ["failed", "pending"]},
            {"type": []},
            {"created_since": times[4]},
            {"created_until": times[4]},
            {"created_since": times[2], "created_until": times[-3], "status": "pending"},
            {"finished_since": ends[1]},
            {"finished_until": ends[-1], "type": "work"},
            {"finished_since": ends[1], "finished_until": ends[-1], "status": "failed"},
            {"finished_since": ends[0] + DAY},
            {"parent_id": parent.id, "type": ["type-1"], "created_since": times[0] - DAY},
        ]
        bounds: list[dict[str, Any]] = [
            {},
            {"limit": 2},
            {"after": ids[5], "before": ids[1]},
            {"after": ids[-1], "limit": 3},
        ]
        for wanted, bound, oldest_first in product(conditions, bounds, (False, True)):
            page = build_page(**wanted, **bound, oldest_first=oldest_first)
            expected = [each.id for each in executions if page.includes(each)]
            expected = (expected[::-1] if oldest_first else expected)[: page.limit]
            assert [each.id for each in harness.store.list(page)] == expected, page
        for wanted in ({}, *conditions):
            selection = Selection(**check_selection(**wanted))
            assert harness.store.count(selection) == sum(map(selection.includes, executions))

    def test_list_returns_whole_executions(self, harness: StoreHarness) -> None:
        """A listed execution equals the one that is found by its id."""
        for state in STATES:
            bring_to(harness, state)
        for each in list_all(harness):
            assert to_text(each) == to_text(harness.get(each.id))

    def test_list_concurrent_with_writes_omits_nothing(self, harness: StoreHarness) -> None:
        """A page has all matching executions, also while other callers create and change them."""
        ids = [harness.create().id for _ in range(20)]
        wanted = build_page(type="work")
        progress = transitions.update_progress(1, 2, None, None, None)
        calls: list[Call] = []
        for _ in range(CONCURRENCY):
            calls += [call_store("list", wanted), call_store("create", build_new("other"))]
            calls += [call_store("update", ids[0], progress)]
        for found in harness.race(calls)[::3]:
            assert [each.id for each in found] == ids[::-1]
