"""The two drivers of steps."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from execution_core import connect
from execution_core.core.steps import Steps, run, run_async

from ..conftest import Database


def drive(mode: str, steps: Steps[Any]) -> Any:
    return run(steps) if mode == "sync" else asyncio.run(run_async(steps))


def answering(mode: str, value: Any) -> Callable[[], Any]:
    """A request with an answer, which is a coroutine for the async driver."""

    async def answer() -> Any:
        return value

    return answer if mode == "async" else lambda: value


def test_steps_get_answers_and_return_result(mode: str) -> None:
    def steps() -> Steps[int]:
        one: int = yield answering(mode, 1)
        two: int = yield answering(mode, 2)
        return one + two

    assert drive(mode, steps()) == 3


def test_steps_async_request_is_awaited() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 7

    def steps() -> Steps[int]:
        found: int = yield answer
        return found

    assert asyncio.run(run_async(steps())) == 7


def test_steps_see_errors_at_their_yield(mode: str) -> None:
    def steps() -> Steps[str]:
        try:
            yield lambda: 1 / 0
        except ZeroDivisionError:
            answer: str = yield answering(mode, "recovered")
            return answer
        return "not reached"

    assert drive(mode, steps()) == "recovered"


@pytest.mark.parametrize("error", [KeyError("k"), KeyboardInterrupt()])
def test_steps_error_not_handled_propagates(mode: str, error: BaseException) -> None:
    def fail() -> None:
        raise error

    def steps() -> Steps[None]:
        yield fail

    with pytest.raises(type(error)) as caught:
        drive(mode, steps())
    assert caught.value is error
    assert error.__context__ is None


def test_tracked_function_stop_iteration_propagates(database: Database) -> None:
    """A StopIteration cannot leave a generator; callers get it all the same."""
    empty: Iterator[int] = iter(())
    with connect(database.url) as manager:

        @manager.tracked("work")
        def work() -> int:
            return next(empty)

        with pytest.raises(StopIteration):
            work()
        (execution,) = manager.list()
        assert execution.error is not None
        assert (execution.status, execution.error.code) == ("failed", "StopIteration")
