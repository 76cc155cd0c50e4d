"""The sync and the async API are twins: the same verbs, parameters and docstrings."""

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
OWN = {"each", "within"}
"""Functions that an async class may write again, since their types differ."""


def public(kind: type) -> dict[str, Any]:
    functions = inspect.getmembers(kind, inspect.isfunction)
    return {name: function for name, function in functions if not name.startswith("_")}


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(("sync", "colourful"), PAIRS)
def test_twins_have_equal_signatures(sync: type, colourful: type) -> None:
    ours, theirs = public(sync), public(colourful)
    assert list(ours) == list(theirs)
    for name in ours:
        assert parameters(ours[name]) == parameters(theirs[name]), name


@pytest.mark.parametrize(("sync", "asynchronous"), PAIRS)
def test_twins_have_the_same_docstrings(sync: type, asynchronous: type) -> None:
    ours, theirs = public(sync), public(asynchronous)
    for name in ours:
        assert ours[name].__doc__, name
        doc = (theirs[name].__doc__ or "").replace("async for", "for")
        assert doc == ours[name].__doc__, name


def test_connect_functions_have_equal_parameters() -> None:
    assert parameters(connect) == parameters(connect_async)


def test_docstring_of_every_verb_shows_a_call() -> None:
    for kind in (ExecutionManager, AsyncExecutionManager):
        for name, function in public(kind).items():
            assert f"manager.{name}(" in function.__doc__, f"{kind.__name__}.{name}"
