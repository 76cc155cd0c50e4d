# ruff: noqa: S101 - a contract consists of asserts
"""Log entries: added if their transition applies, read newest first."""

from typing import Any

import pytest

from ..core import transitions
from ..core.json_values import MAX_JSON_BYTES
from ..core.log_lines import NewLogEntry, new_log_entry
from ..core.models import LogEntry, LogLevel
from ..core.selections import LogPage
from ..core.validation import new_id
from .harness import CONCURRENCY, StoreHarness, call_store, to_text
from .states import STATES, bring_to


def new_entry(
    id: str, message: str = "m", attempt: int | None = None, **options: Any
) -> NewLogEntry:
    """Return a new log entry for `store.log`."""
    defaults = {"level": "info", "data": None, "max_bytes": MAX_JSON_BYTES}
    return new_log_entry(id, message, attempt=attempt, **defaults | options)


def log_page(
    id: str,
    limit: int,
    *,
    before: str | None = None,
    after: str | None = None,
    oldest_first: bool = False,
) -> LogPage:
    """Return a page of a log for `store.logs`."""
    return LogPage(
        execution_id=id, limit=limit, before=before, after=after, oldest_first=oldest_first
    )


class LogContract:
    """`log` and `logs`."""

    @pytest.mark.parametrize("state", STATES)
    def test_log_adds_entry_if_transition_applies(self, harness: StoreHarness, state: str) -> None:
        """The result equals `new.apply`: with an attempt, only while it is running."""
        before = bring_to(harness, state)
        harness.wait_past(before.updated_at)
        added: list[LogEntry] = []
        for attempt in (None, before.attempts, before.attempts + 1, max(0, before.attempts - 1)):
            new = new_entry(before.id, "ü" * 10_000, attempt, level="error", data={"n": attempt})
            entry = harness.store.log(new)
            expected = new.apply(before, entry.logged_at if entry else before.updated_at)
            case = f"an entry by attempt {attempt}, status {state}, attempt {before.attempts}"
            assert to_text(entry) == to_text(expected), case
            added += [entry] if entry else []
        found = harness.store.logs(log_page(before.id, 100))
        assert [to_text(each) for each in found] == [to_text(each) for each in added[::-1]]
        # A log entry is neither a heartbeat nor a transition.
        assert to_text(harness.get(before.id)) == to_text(before)

    def test_log_unknown_execution_returns_none(self, harness: StoreHarness) -> None:
        """The entry is refused with None and not stored."""
        id = new_id()
        assert harness.store.logs(log_page(id, 100)) == []
        assert harness.store.log(new_entry(id)) is None
        assert harness.store.logs(log_page(id, 100)) == []

    def test_logs_between_two_entries_in_both_directions(self, harness: StoreHarness) -> None:
        """`after` and `before` exclude their entries; `oldest_first` turns the order around."""
        id = harness.create().id
        entries = [new_entry(id, "~{é") for _ in range(6)]
        for each in entries:
            harness.store.log(each)
        ids = [each.id for each in entries]
        for limit in (2, 100):
            bounds: dict[str, Any] = {"after": ids[0], "before": ids[5]}
            oldest = harness.store.logs(log_page(id, limit, oldest_first=True, **bounds))
            newest = harness.store.logs(log_page(id, limit, **bounds))
            assert [each.id for each in oldest] == ids[1:5][:limit]
            assert [each.id for each in newest] == ids[1:5][::-1][:limit]

    def test_update_that_deletes_log_leaves_logs_of_others(self, harness: StoreHarness) -> None:
        """A rule with `deletes_log` deletes the log; a refused one deletes nothing."""
        running, ended, other = (
            bring_to(harness, state) for state in ("running", "failed", "failed")
        )
        for each in (running, ended, other):
            assert harness.store.log(new_entry(each.id)) is not None
        redact = transitions.redact()
        assert redact.rule.deletes_log
        assert harness.store.update(running.id, redact) is None
        assert harness.store.update(ended.id, redact) is not None
        left = [len(harness.store.logs(log_page(each.id, 100))) for each in (running, ended, other)]
        assert left == [1, 0, 1]

    def test_logs_pages_are_ordered_by_id(self, harness: StoreHarness) -> None:
        """Pages show each entry exactly once, in the order of ids, not of storing."""
        id, other = harness.create().id, harness.create().id
        entries = [new_entry(id, str(number)) for number in range(25)]
        for each in entries[::2] + entries[1::2][::-1]:
            assert harness.store.log(each) is not None
            harness.store.log(new_entry(other))
        newest = [each.id for each in reversed(entries)]
        assert [each.id for each in harness.store.logs(log_page(id, 100))] == newest
        paged: list[str] = []
        while part := harness.store.logs(log_page(id, 4, before=paged[-1] if paged else None)):
            assert len(part) <= 4
            paged += [each.id for each in part]
        assert paged == newest
        assert len(harness.store.logs(log_page(other, 100))) == len(entries)

    def test_logs_return_levels_as_enum(self, harness: StoreHarness) -> None:
        """Each level is a member of LogLevel."""
        id = harness.create().id
        for level in LogLevel:
            harness.store.log(new_entry(id, level=level))
        assert [each.level for each in harness.store.logs(log_page(id, 9))] == [*LogLevel][::-1]
        assert all(isinstance(each.level, LogLevel) for each in harness.store.logs(log_page(id, 9)))

    def test_log_concurrent_loses_no_entry(self, harness: StoreHarness) -> None:
        """Concurrent entries are all stored."""
        execution = bring_to(harness, "running")
        entries = [new_entry(execution.id, str(n), 1) for n in range(CONCURRENCY * 10)]
        answers = harness.race([call_store("log", each) for each in entries])
        assert [answer and answer.id for answer in answers] == [each.id for each in entries]
        found = harness.store.logs(log_page(execution.id, 1000))
        assert sorted(each.message for each in found) == sorted(each.message for each in entries)
