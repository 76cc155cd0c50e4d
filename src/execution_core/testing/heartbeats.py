# ruff: noqa: S101 - a contract consists of asserts
"""The heartbeats of many attempts in one call, if the store has the optional member."""

from ..core import transitions
from ..core.state_machine import COMPLETED, RUNNING
from ..core.validation import new_id
from .harness import CONCURRENCY, StoreHarness, call_store, to_text
from .states import STATES, bring_to


class HeartbeatContract:
    """`heartbeat_many`; skipped if the store does not have it."""

    def test_heartbeat_many_sends_those_of_running_attempts(self, harness: StoreHarness) -> None:
        """Other attempts, and executions that are not running, are unchanged and left out."""
        send = harness.optional_method("heartbeat_many")
        before = [bring_to(harness, state) for state in STATES]
        harness.wait_past(harness.now())
        running = {(each.id, each.attempts) for each in before if each.status is RUNNING}
        others = {(each.id, abs(each.attempts + n)) for each in before for n in (-1, 0, 1)}
        assert send([*others, (new_id(), 1)]) == running
        for each in before:
            after = harness.get(each.id)
            expected = transitions.heartbeat(each.attempts).apply(each, after.updated_at)
            assert to_text(after) == to_text(expected or each)
        assert send([]) == set()

    def test_heartbeat_many_concurrent_with_update_loses_nothing(
        self, harness: StoreHarness
    ) -> None:
        """Heartbeats at the same time overwrite neither a checkpoint nor a result."""
        harness.optional_method("heartbeat_many")
        running = [bring_to(harness, "running") for _ in range(CONCURRENCY)]
        send = call_store("heartbeat_many", [(each.id, each.attempts) for each in running])
        for transition in (transitions.checkpoint("k", 1, 1), transitions.complete("done", 1)):
            updates = [call_store("update", each.id, transition) for each in running]
            answers = harness.race([call for update in updates for call in (send, update)])
            assert None not in answers[1::2]
        for each in running:
            after = harness.get(each.id)
            assert (after.status, after.result) == (COMPLETED, "done")
            assert after.checkpoints == each.checkpoints | {"k": 1}
