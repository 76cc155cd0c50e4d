"""Executions in every state that the state machine distinguishes, and every transition."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

from ..core import transitions
from ..core.models import Execution, ExecutionFailure
from ..core.transitions import Transition
from .harness import StoreHarness

DAY: Final = timedelta(days=1)
MOMENT: Final = timedelta(milliseconds=1)

_start = transitions.start("host")
_progressed = transitions.advance(
    transitions.update_progress(1, 3, "ü", None, None),
    transitions.checkpoint("last", {"n": 1}, None),
)
_fail_retryable = transitions.fail("once more", True, None, None)  # noqa: FBT003 - retryable
_fail_delayed = transitions.fail("later", True, DAY, None)  # noqa: FBT003
_fail_final = transitions.fail("no", False, None, None)  # noqa: FBT003
_timeout = transitions.timeout(None)
_retry = transitions.retry()

# With max_attempts=2; "last" means that both attempts are used.
STATES: Final[dict[str, tuple[dict[str, Any], tuple[Transition, ...]]]] = {
    "pending": ({}, (_progressed,)),
    "delayed": ({"start_after": DAY}, ()),
    "running": ({"timeout": DAY}, (_start, _progressed)),
    "running-last": ({}, (_start, _fail_retryable, _start)),
    "awaiting": ({}, (_start, transitions.finish_with_children(None))),
    "overdue": ({"timeout": MOMENT}, (_start,)),
    "completed": ({}, (_start, transitions.complete({"done": True}, None))),
    "failed": ({}, (_start, _fail_final)),
    "failed-last": ({}, (_start, _fail_retryable, _start, _fail_final)),
    "retrying": ({}, (_start, _progressed, _fail_retryable)),
    "retrying-delayed": ({}, (_start, _fail_delayed)),
    "timed_out": ({}, (_start, _timeout)),
    "timed_out-last": ({}, (_start, _timeout, _retry, _start, _timeout)),
    "cancelled": ({}, (transitions.cancel("changed my mind"),)),
}


def bring_to(harness: StoreHarness, state: str, type: str = "work") -> Execution:
    """Return an execution in a state."""
    options, steps = STATES[state]
    created = harness.create(type=type, payload={"n": 1}, metadata={"kept": True}, **options)
    return harness.apply(created.id, *steps)


def every_transition(attempts: int) -> Iterator[Transition]:
    """Return transitions of every rule; those with a fencing token for several attempts."""
    yield from (transitions.start(None), transitions.start("ü" * 255), transitions.claim("host"))
    yield from (transitions.cancel(None), transitions.cancel('"late"'))
    yield from (transitions.retry(), transitions.retry(DAY), transitions.retry(None, 3))
    yield transitions.end_with_children()
    yield from (transitions.annotate({'"ü"': None, "kept": [1.0]}), transitions.redact())
    for silence in (None, MOMENT, DAY):
        yield from (transitions.sweep(silence, retry=retry) for retry in (False, True))
    for attempt in (None, *{attempts, attempts + 1, max(0, attempts - 1)}):
        yield from transitions_of_attempt(attempt)


def transitions_of_attempt(attempt: int | None) -> Iterator[Transition]:
    """Return every transition that an attempt can make."""
    progress = transitions.update_progress(2**62, 2**63 - 1, "half\nway", None, attempt)
    checkpoint = transitions.checkpoint("last", {"deep": {"m": [2.0, None]}}, attempt)
    yield from (progress, checkpoint, transitions.advance(progress, checkpoint))
    yield from (transitions.heartbeat(attempt), transitions.log(attempt))
    yield transitions.finish_with_children(attempt)
    yield from (transitions.complete(None, attempt), transitions.complete([{"ü": 1}], attempt))
    yield from (transitions.timeout(attempt), transitions.release(attempt))
    error = ExecutionFailure(message="broken", code="E1", stack="line\n" * 100)
    for retryable, delay in ((False, None), (True, None), (True, DAY)):
        yield transitions.fail(error, retryable, delay, attempt)
