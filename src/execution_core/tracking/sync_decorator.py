"""Functions whose calls are executions."""

import time
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ..core.errors import InvalidStateTransition
from ..core.state_machine import COMPLETED, FAILED, TIMED_OUT
from .attempt import Attempt
from .decorator import TrackedOptions, TrackedSignature, after_lost_race, as_json, seconds_until_due

if TYPE_CHECKING:
    from .manager import ExecutionManager

P = ParamSpec("P")
R = TypeVar("R")


def tracked(
    manager: "ExecutionManager",
    tracking: TrackedOptions,
    attempt_at: Callable[[str], Attempt],
    function: Callable[P, R],
) -> Callable[P, R]:
    """Return a function each call of which is an execution."""
    signature = TrackedSignature(function, asynchronous=False)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        signature.check(*args, **kwargs)
        execution = manager.create(**tracking.creation(*args, **kwargs))
        wait = seconds_until_due(execution)
        while execution.status is not COMPLETED:
            attempt = attempt_at(execution.id)
            try:
                if execution.status in (FAILED, TIMED_OUT):
                    execution = manager.retry(execution.id)
                time.sleep(wait)
                with attempt:
                    result = function(*args, **kwargs, **signature.keywords(attempt))
                    attempt.result = as_json(result, tracking.max_bytes)
            except Exception as error:
                if attempt.retry_after is not None:
                    wait = attempt.retry_after.total_seconds()
                elif isinstance(error, InvalidStateTransition) and not attempt.started:
                    execution = after_lost_race(error, manager.get(execution.id))
                    wait = seconds_until_due(execution)
                else:
                    raise
            else:
                return attempt.result
        return execution.result

    call.__signature__ = signature.shown  # type: ignore[attr-defined]
    return call
