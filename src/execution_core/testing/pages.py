# ruff: noqa: S101 - asserts are what a contract is made of
"""Pages: newest id first, without gaps or repeats, and nothing that was not asked for."""

from itertools import product
from typing import Any

from ..core import transitions
from ..core.models import Execution, ExecutionStatus
from ..core.selections import Page, check_page
from .harness import CONCURRENCY, StoreHarness, call_store, new, to_text
from .states import STATES, bring_to


def list_ids(subject: StoreHarness, **conditions: Any) -> list[Execution]:
    """Return a page; of everything where nothing else is said."""
    usual = {"status": None, "type": None, "parent_id": None, "limit": 10_000, "before": None}
    return subject.store.list(check_page(**usual | conditions))


class PageContract:
    """`list`."""

    def test_ids_order_the_list(self, subject: StoreHarness) -> None:
        """Not the time of storing, nor of the last change: who pages sees each exactly once."""
        creations = [new() for _ in range(25)]
        for creation in creations[::2] + creations[1::2][::-1]:
            assert subject.store.create(creation) is not None
        newest = [creation.id for creation in reversed(creations)]
        subject.moved(newest[-1], transitions.start(None))
        assert [each.id for each in list_ids(subject)] == newest
        paged: list[str] = []
        while part := list_ids(subject, limit=4, before=paged[-1] if paged else None):
            assert len(part) <= 4
            paged += [each.id for each in part]
        assert paged == newest

    def test_a_page_has_what_it_includes(self, subject: StoreHarness) -> None:
        """All conditions hold at once: status, type, parent, and where it begins."""
        parent = subject.create(type="parent")
        for number, situation in enumerate(STATES):
            bring_to(subject, situation)
            subject.create(type=f"type-{number % 2}", parent_id=parent.id)
        everyone = list_ids(subject)
        assert len(everyone) == 2 * len(STATES) + 1
        statuses: tuple[Any, ...] = (
            [],
            "pending",
            ["failed", "running"],
            list(ExecutionStatus),
            None,
        )
        types = ("type-1", "work", "none", None)
        parents, limits = (parent.id, everyone[0].id, None), (1, 5, 10_000)
        befores = (everyone[0].id, everyone[7].id, parent.id, None)
        for status, type, of, limit, before in product(statuses, types, parents, limits, befores):
            wanted = check_page(status, type, of, limit, before)
            expected = [each for each in everyone if wanted.includes(each)][:limit]
            found = subject.store.list(wanted)
            assert [each.id for each in found] == [each.id for each in expected], wanted

    def test_what_is_listed_is_what_is_found(self, subject: StoreHarness) -> None:
        """Whole executions, as they stand."""
        for situation in STATES:
            bring_to(subject, situation)
        for each in list_ids(subject):
            assert to_text(each) == to_text(subject.found(each.id))

    def test_pages_hold_while_others_write(self, subject: StoreHarness) -> None:
        """What stood there before and was not deleted is on every page that asks for it."""
        ids = [subject.create().id for _ in range(20)]
        wanted = Page(statuses=None, type="work", parent_id=None, limit=10_000, before=None)
        progress = transitions.update_progress(1, 2, None, None, None)
        calls = [
            call
            for _ in range(CONCURRENCY)
            for call in (
                call_store("list", wanted),
                call_store("create", new("other")),
                call_store("update", ids[0], progress),
            )
        ]
        for found in subject.race(calls)[::3]:
            assert [each.id for each in found] == ids[::-1]
