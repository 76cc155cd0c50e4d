"""The sync and the async classes have the same methods with the same parameters."""

import inspect
from typing import Any

import pytest

from execution_core import (
    AsyncAttempt,
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    Attempt,
    ExecutionManager,
    SqlExecutionStore,
    connect,
    connect_async,
)
from execution_core.stores import AsyncExecutionStore, ExecutionStore
from execution_core.tracking import async_decorator, sync_decorator

PAIRS = [
    (ExecutionManager, AsyncExecutionManager),
    (Attempt, AsyncAttempt),
    (SqlExecutionStore, AsyncSqlExecutionStore),
    (ExecutionStore, AsyncExecutionStore),
]
SYNC_IN_BOTH = {"within", "attempt", "tracked"}  # they do no I/O


def public(kind: type) -> dict[str, Any]:
    functions = inspect.getmembers(kind, inspect.isfunction)
    return {name: function for name, function in functions if not name.startswith("_")}


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(("sync", "asynchronous"), PAIRS)
def test_twins_have_equal_signatures(sync: type, asynchronous: type) -> None:
    sync_methods, async_methods = public(sync), public(asynchronous)
    assert list(sync_methods) == list(async_methods)
    for name in sync_methods:
        assert parameters(sync_methods[name]) == parameters(async_methods[name]), name
        assert inspect.iscoroutinefunction(async_methods[name]) == (name not in SYNC_IN_BOTH), name
        assert sync_methods[name].__doc__, name
        assert async_methods[name].__doc__, name


def test_connect_functions_have_equal_parameters() -> None:
    assert parameters(connect) == parameters(connect_async)


def test_docstring_of_every_verb_shows_a_call() -> None:
    for kind in (ExecutionManager, AsyncExecutionManager):
        for name, function in public(kind).items():
            assert f"manager.{name}(" in function.__doc__, f"{kind.__name__}.{name}"
