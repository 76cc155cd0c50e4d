"""Wait for a condition instead of a fixed time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T],
    describe: Callable[[], object] = lambda: "the condition did not become true",
    *,
    timeout: float = 60,
    interval: float = 0.005,
) -> T:
    """Return the first true answer of a condition.

    Raises:
        AssertionError: none came in time; the message is what `describe` returns then.
    """
    limit = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() > limit:
            raise AssertionError(describe())
        time.sleep(interval)
    return answer
