"""Tracked functions: each call creates an execution and runs its attempts."""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from ..core.steps import run
from .attempt import Attempt
from .decorator import TrackedOptions, TrackedSignature, call_steps

P = ParamSpec("P")
R = TypeVar("R")


class _Stopped(Exception):  # noqa: N818 - a carrier
    def __init__(self, error: StopIteration) -> None:
        super().__init__(error)
        self.error = error


def track(
    manager: Any,
    options: TrackedOptions,
    new_attempt: Callable[[str], Attempt],
    function: Callable[P, R],
) -> Callable[P, R]:
    """Return a function that creates an execution for each call and runs its attempts."""
    signature = TrackedSignature(function, is_async=False)

    @wraps(function)
    def tracked(*args: Any, **kwargs: Any) -> Any:
        def run_attempt(attempt: Attempt) -> Any:
            try:
                with attempt:
                    result: Any = function(*args, **kwargs, **signature.injected(attempt))
                    attempt.result = options.as_json(result)
            except StopIteration as error:  # cannot leave a generator such as the steps
                raise _Stopped(error) from None
            return attempt.result

        signature.check(*args, **kwargs)
        new_execution = options.new_execution(*args, **kwargs)
        try:
            return run(call_steps(manager, new_execution, new_attempt, run_attempt, time.sleep))
        except _Stopped as stopped:
            raise stopped.error from None

    tracked.__signature__ = signature.public  # type: ignore[attr-defined]
    return tracked
