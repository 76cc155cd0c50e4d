# ruff: noqa: S101 - asserts are what a contract is made of
"""Lines beside an execution: added by whoever may, read newest first, and gone with it."""

from typing import Any

import pytest

from ..core.json_values import MAX_JSON_BYTES
from ..core.log_lines import NewLogEntry, new_log_entry
from ..core.models import LogEntry, LogLevel
from ..core.validation import new_id
from .harness import CONCURRENCY, StoreHarness, call_store, to_text
from .states import STATES, bring_to


def new_entry(
    id: str, message: str = "m", attempt: int | None = None, **options: Any
) -> NewLogEntry:
    """Return a line that is not stored yet."""
    usual = {"level": "info", "data": None, "max_bytes": MAX_JSON_BYTES}
    return new_log_entry(id, message, attempt=attempt, **usual | options)


class LogContract:
    """`log` and `logs`."""

    @pytest.mark.parametrize("situation", STATES)
    def test_a_line_is_added_by_whoever_may(self, subject: StoreHarness, situation: str) -> None:
        """As `line.apply` says: by anybody, or by the attempt that is running."""
        before = bring_to(subject, situation)
        subject.later(before.updated_at)
        entries: list[LogEntry] = []
        for attempt in (None, before.attempts, before.attempts + 1, max(0, before.attempts - 1)):
            new = new_entry(before.id, "ü" * 10_000, attempt, level="error", data={"n": attempt})
            entry = subject.store.log(new)
            expected = new.apply(before, entry.logged_at if entry else before.updated_at)
            case = f"a line by attempt {attempt}, from {before.status} in attempt {before.attempts}"
            assert to_text(entry) == to_text(expected), case
            entries += [entry] if entry else []
        found = subject.store.logs(before.id, 100, None)
        assert [to_text(each) for each in found] == [to_text(each) for each in entries[::-1]]
        assert to_text(subject.found(before.id)) == to_text(
            before
        )  # nobody was alive, nothing moved

    def test_what_is_not_there_has_no_log(self, subject: StoreHarness) -> None:
        """A line is None, and is not kept for later."""
        id = new_id()
        assert subject.store.logs(id, 100, None) == []
        assert subject.store.log(new_entry(id)) is None
        assert subject.store.logs(id, 100, None) == []

    def test_ids_order_the_log(self, subject: StoreHarness) -> None:
        """Not the time of storing: who pages sees each exactly once, and nobody else's."""
        id, other = subject.create().id, subject.create().id
        lines = [new_entry(id, str(number)) for number in range(25)]
        for each in lines[::2] + lines[1::2][::-1]:
            assert subject.store.log(each) is not None
            subject.store.log(new_entry(other))
        newest = [each.id for each in reversed(lines)]
        assert [each.id for each in subject.store.logs(id, 100, None)] == newest
        paged: list[str] = []
        while part := subject.store.logs(id, 4, paged[-1] if paged else None):
            assert len(part) <= 4
            paged += [each.id for each in part]
        assert paged == newest
        assert len(subject.store.logs(other, 100, None)) == len(lines)

    def test_levels_come_back(self, subject: StoreHarness) -> None:
        """Each as the member of its enum that it was."""
        id = subject.create().id
        for level in LogLevel:
            subject.store.log(new_entry(id, level=level))
        assert [each.level for each in subject.store.logs(id, 9, None)] == [*LogLevel][::-1]
        assert all(isinstance(each.level, LogLevel) for each in subject.store.logs(id, 9, None))

    def test_no_line_is_lost(self, subject: StoreHarness) -> None:
        """However many log at once, and while the execution moves."""
        execution = bring_to(subject, "running")
        lines = [new_entry(execution.id, str(n), 1) for n in range(CONCURRENCY * 10)]
        answers = subject.race([call_store("log", each) for each in lines])
        assert [answer and answer.id for answer in answers] == [each.id for each in lines]
        found = subject.store.logs(execution.id, 1000, None)
        assert sorted(each.message for each in found) == sorted(each.message for each in lines)
