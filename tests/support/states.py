"""Bring an execution into any state that the state machine distinguishes."""

from collections.abc import Callable

from execution_core import Execution, ExecutionManager

Steps = tuple[Callable[[ExecutionManager, str], Execution], ...]

start = lambda m, id: m.start(id, worker="host")  # noqa: E731
fail = lambda m, id: m.fail(id, "no", retryable=False)  # noqa: E731
fail_retryable = lambda m, id: m.fail(id, "no", retryable=True)  # noqa: E731
retry = lambda m, id: m.retry(id)  # noqa: E731
timeout = lambda m, id: m.timeout(id)  # noqa: E731

STATES: dict[str, Steps] = {
    "pending": (),
    "running": (start,),
    "running-last": (start, fail_retryable, start),
    "completed": (start, lambda m, id: m.complete(id, {"done": True})),
    "failed": (start, fail),
    "failed-last": (start, fail_retryable, start, fail),
    "retrying": (start, fail_retryable),
    "timed_out": (start, timeout),
    "timed_out-last": (start, timeout, retry, start, timeout),
    "cancelled": (lambda m, id: m.cancel(id, "changed my mind"),),
}
"""The steps into each state, with two attempts allowed; "last": both are used."""


def bring_to(manager: ExecutionManager, state: str) -> Execution:
    """Create an execution and bring it into a state."""
    execution = manager.create("work", {"n": 1}, max_attempts=2, metadata={"kept": True})
    for step in STATES[state]:
        execution = step(manager, execution.id)
    return execution
