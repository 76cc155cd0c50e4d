"""Control flow written once for sync and async: generators that yield requests, and two drivers.

A generator of steps decides what to ask next. It yields a request and is sent the answer, or the
error is raised where it yielded. `run` and `run_async` carry the requests out.
"""

from collections.abc import Callable, Generator
from functools import wraps
from inspect import getmembers, isfunction
from operator import call
from typing import Any, TypeVar, cast

T = TypeVar("T")
Steps = Generator[Callable[[], Any], Any, T]
"""Steps whose requests are functions without parameters."""


def run(steps: Generator[Any, Any, T], answer: Callable[[Any], Any] = call) -> T:
    """Carry out steps and return their result: `run(verbs.get(store, id))`."""
    try:
        request = next(steps)
        while True:
            try:
                reply = answer(request)
            except BaseException as error:  # noqa: BLE001 - raised in the steps
                request = steps.throw(error)
            else:
                request = steps.send(reply)
    except StopIteration as end:
        return cast("T", end.value)


async def run_async(steps: Generator[Any, Any, T], answer: Callable[[Any], Any] = call) -> T:
    """Carry out steps whose requests are awaited, and return their result."""
    try:
        request = next(steps)
        while True:
            try:
                reply = await answer(request)
            except BaseException as error:  # noqa: BLE001 - raised in the steps
                request = steps.throw(error)
            else:
                request = steps.send(reply)
    except StopIteration as end:
        return cast("T", end.value)


def with_coroutines(*plain: str) -> Callable[[type[T]], type[T]]:
    """Make the inherited public methods of an async class coroutine functions, but for `plain`.

    They return coroutines already. As coroutine functions they check their arguments when they are
    awaited, and `inspect.iscoroutinefunction` recognises them.
    """

    def decorate(cls: type[T]) -> type[T]:
        for name, method in getmembers(cls, isfunction):
            if not name.startswith("_") and name not in plain and name not in vars(cls):
                setattr(cls, name, _to_coroutine(method))
        return cls

    return decorate


def _to_coroutine(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    async def awaited(*args: Any, **kwargs: Any) -> Any:
        return await method(*args, **kwargs)

    return awaited
