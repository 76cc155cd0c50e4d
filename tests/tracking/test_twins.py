"""Sync and async are twins: the same names, the same parameters."""

import inspect
from typing import Any

import pytest

from execution_core import (
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    ExecutionManager,
    SqlExecutionStore,
    connect,
    connect_async,
)
from execution_core.stores import AsyncExecutionStore, ExecutionStore

PAIRS = [
    (ExecutionManager, AsyncExecutionManager),
    (SqlExecutionStore, AsyncSqlExecutionStore),
    (ExecutionStore, AsyncExecutionStore),
]
SYNCHRONOUS = {"within", "attempt", "tracked"}  # they wait for nothing themselves


def public(kind: type) -> dict[str, Any]:
    functions = inspect.getmembers(kind, inspect.isfunction)
    return {name: function for name, function in functions if not name.startswith("_")}


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(("sync", "colourful"), PAIRS)
def test_twins(sync: type, colourful: type) -> None:
    ours, theirs = public(sync), public(colourful)
    assert list(ours) == list(theirs)
    for name in ours:
        assert parameters(ours[name]) == parameters(theirs[name]), name
        assert inspect.iscoroutinefunction(theirs[name]) == (name not in SYNCHRONOUS), name
        assert ours[name].__doc__, name
        assert theirs[name].__doc__, name


def test_the_functions_that_connect() -> None:
    assert parameters(connect) == parameters(connect_async)


def test_every_public_verb_says_how_it_is_used() -> None:
    for kind in (ExecutionManager, AsyncExecutionManager):
        for name, function in public(kind).items():
            assert f"manager.{name}(" in function.__doc__, f"{kind.__name__}.{name}"
