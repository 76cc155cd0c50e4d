# ruff: noqa: S101 - a contract consists of asserts
"""The history of an execution and its attempts, if the store has the optional members."""

from ..core.state_machine import PENDING, RUNNING
from ..core.validation import new_id
from .harness import StoreHarness
from .states import STATES, bring_to


class HistoryContract:
    """`history` and `attempts`; skipped if the store does not have them."""

    def test_history_is_complete_sequence_of_transitions(self, harness: StoreHarness) -> None:
        """It begins with the creation, has no gaps, and ends with the status of the execution."""
        history = harness.optional_method("history")
        for execution in [bring_to(harness, state) for state in STATES]:
            entries = history(execution.id)
            statuses = [each.to_status for each in entries]
            assert (statuses[:1], statuses[-1:]) == ([PENDING], [execution.status])
            assert [each.from_status for each in entries] == [None, *statuses[:-1]]
            assert [each.seq for each in entries] == [*range(1, len(entries) + 1)]
            starts = [each.attempt for each in entries if each.to_status is RUNNING]
            assert starts == [*range(1, execution.attempts + 1)]
            assert (entries[-1].error, entries[-1].worker) == (execution.error, execution.worker)
            assert {each.execution_id for each in entries} == {execution.id}
        assert history(new_id()) == []

    def test_attempts_are_those_that_were_started(self, harness: StoreHarness) -> None:
        """In their order; the last one has no end and the outcome `running` while it runs."""
        attempts = harness.optional_method("attempts")
        for execution in [bring_to(harness, state) for state in STATES]:
            records = attempts(execution.id)
            assert [each.attempt for each in records] == [*range(1, execution.attempts + 1)]
            running = [each.attempt for each in records if each.outcome == "running"]
            assert running == ([execution.attempts] if execution.status is RUNNING else [])
            assert [each.attempt for each in records if each.ended_at is None] == running
            last = [(each.started_at, each.worker) for each in records[-1:]]
            assert last == [(execution.started_at, execution.worker)] * (execution.attempts > 0)
        assert attempts(new_id()) == []
