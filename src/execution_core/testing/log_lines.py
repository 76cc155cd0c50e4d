# ruff: noqa: S101 - asserts are what a contract is made of
"""Lines beside an execution: added by whoever may, read newest first, and gone with it."""

from typing import Any

import pytest

from ..core.json_values import MAX_JSON_BYTES
from ..core.log_lines import Line, line
from ..core.models import LogEntry, LogLevel
from ..core.validation import new_id
from .harness import RIVALS, Subject, ask, seen
from .states import SITUATIONS, bring_to


def new_line(id: str, message: str = "m", attempt: int | None = None, **options: Any) -> Line:
    """Return a line that is not stored yet."""
    usual = {"level": "info", "data": None, "max_bytes": MAX_JSON_BYTES}
    return line(id, message, attempt=attempt, **usual | options)


class Logs:
    """`log` and `logs`."""

    @pytest.mark.parametrize("situation", SITUATIONS)
    def test_a_line_is_added_by_whoever_may(self, subject: Subject, situation: str) -> None:
        """As `line.apply` says: by anybody, or by the attempt that is running."""
        before = bring_to(subject, situation)
        subject.later(before.updated_at)
        entries: list[LogEntry] = []
        for attempt in (None, before.attempts, before.attempts + 1, max(0, before.attempts - 1)):
            new = new_line(before.id, "ü" * 10_000, attempt, level="error", data={"n": attempt})
            entry = subject.store.log(new)
            expected = new.apply(before, entry.logged_at if entry else before.updated_at)
            case = f"a line by attempt {attempt}, from {before.status} in attempt {before.attempts}"
            assert seen(entry) == seen(expected), case
            entries += [entry] if entry else []
        found = subject.store.logs(before.id, 100, None)
        assert [seen(each) for each in found] == [seen(each) for each in entries[::-1]]
        assert seen(subject.found(before.id)) == seen(before)  # nobody was alive, nothing moved

    def test_what_is_not_there_has_no_log(self, subject: Subject) -> None:
        """A line is None, and is not kept for later."""
        id = new_id()
        assert subject.store.logs(id, 100, None) == []
        assert subject.store.log(new_line(id)) is None
        assert subject.store.logs(id, 100, None) == []

    def test_ids_order_the_log(self, subject: Subject) -> None:
        """Not the time of storing: who pages sees each exactly once, and nobody else's."""
        id, other = subject.create().id, subject.create().id
        lines = [new_line(id, str(number)) for number in range(25)]
        for each in lines[::2] + lines[1::2][::-1]:
            assert subject.store.log(each) is not None
            subject.store.log(new_line(other))
        newest = [each.id for each in reversed(lines)]
        assert [each.id for each in subject.store.logs(id, 100, None)] == newest
        paged: list[str] = []
        while part := subject.store.logs(id, 4, paged[-1] if paged else None):
            assert len(part) <= 4
            paged += [each.id for each in part]
        assert paged == newest
        assert len(subject.store.logs(other, 100, None)) == len(lines)

    def test_levels_come_back(self, subject: Subject) -> None:
        """Each as the member of its enum that it was."""
        id = subject.create().id
        for level in LogLevel:
            subject.store.log(new_line(id, level=level))
        assert [each.level for each in subject.store.logs(id, 9, None)] == [*LogLevel][::-1]
        assert all(isinstance(each.level, LogLevel) for each in subject.store.logs(id, 9, None))

    def test_no_line_is_lost(self, subject: Subject) -> None:
        """However many log at once, and while the execution moves."""
        execution = bring_to(subject, "running")
        lines = [new_line(execution.id, str(n), 1) for n in range(RIVALS * 10)]
        answers = subject.race([ask("log", each) for each in lines])
        assert [answer and answer.id for answer in answers] == [each.id for each in lines]
        found = subject.store.logs(execution.id, 1000, None)
        assert sorted(each.message for each in found) == sorted(each.message for each in lines)
