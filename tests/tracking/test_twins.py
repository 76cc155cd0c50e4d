"""The sync and the async API are twins: the same verbs, parameters and docstrings."""

import asyncio
import inspect
from typing import Any

import pytest

from execution_core import (
    AsyncAttempt,
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    Attempt,
    ExecutionManager,
    InvalidValue,
    SqlExecutionStore,
    connect,
    connect_async,
)
from execution_core.stores import AsyncExecutionStore, ExecutionStore

from ..support.memory import AsyncMemoryStore, memory_store

PAIRS = [
    (ExecutionManager, AsyncExecutionManager),
    (Attempt, AsyncAttempt),
    (SqlExecutionStore, AsyncSqlExecutionStore),
    (ExecutionStore, AsyncExecutionStore),
]
PLAIN = {"within", "attempt", "tracked", "each", "chunks", "current_transaction"}
"""Functions of the async API that are not coroutine functions."""
OWN = {"each", "chunks", "within"}
"""Functions that an async class may write again, since their types differ."""


def public(kind: type) -> dict[str, Any]:
    functions = inspect.getmembers(kind, inspect.isfunction)
    return {name: function for name, function in functions if not name.startswith("_")}


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(("sync", "asynchronous"), PAIRS)
def test_twins_have_the_same_functions(sync: type, asynchronous: type) -> None:
    ours, theirs = public(sync), public(asynchronous)
    assert list(ours) == list(theirs)
    for name in ours:
        assert parameters(ours[name]) == parameters(theirs[name]), name


@pytest.mark.parametrize(("sync", "asynchronous"), PAIRS)
def test_twins_have_the_same_docstrings(sync: type, asynchronous: type) -> None:
    ours, theirs = public(sync), public(asynchronous)
    for name in ours:
        assert ours[name].__doc__, name
        doc = (theirs[name].__doc__ or "").replace("async for", "for").replace("async with", "with")
        assert doc == ours[name].__doc__, name


@pytest.mark.parametrize(("sync", "asynchronous"), PAIRS[:3])
def test_twins_share_every_verb(sync: type, asynchronous: type) -> None:
    """A method that is defined twice could become different in the two classes."""
    ours, theirs = public(sync), public(asynchronous)
    assert {name for name in ours if ours[name] is not inspect.unwrap(theirs[name])} <= OWN


@pytest.mark.parametrize("kind", [AsyncExecutionManager, AsyncAttempt, AsyncSqlExecutionStore])
def test_twins_async_verbs_are_coroutine_functions(kind: type) -> None:
    """Frameworks and mocks ask for it."""
    for name, function in public(kind).items():
        assert inspect.iscoroutinefunction(function) == (name not in PLAIN), name


def test_async_verb_checks_arguments_when_awaited() -> None:
    async def run() -> None:
        call = AsyncExecutionManager(AsyncMemoryStore()).create("")
        with pytest.raises(InvalidValue):
            await call

    asyncio.run(run())


@pytest.mark.parametrize("kind", [ExecutionManager, AsyncExecutionManager])
@pytest.mark.parametrize("store", [None, "sqlite://", object()])
def test_manager_without_store_refused(kind: Any, store: Any) -> None:
    with pytest.raises(InvalidValue, match="store must be an ExecutionStore, not "):
        kind(store)


def test_async_manager_with_sync_store_raises() -> None:
    async def run() -> None:
        manager: Any = AsyncExecutionManager(memory_store())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="await"):
            await manager.create("a")

    asyncio.run(run())


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u:secret@h/d",
        "postgresql+psycopg://u@h/d?password=secret",
        "postgresql+psycopg://u@h/d?sslpassword=secret",
    ],
)
def test_repr_names_database_without_password(url: str) -> None:
    for manager in (connect(url), connect_async(url)):
        attempt = manager.attempt("0198a000-0000-7000-8000-000000000001")
        for shown in (repr(manager), repr(attempt)):
            assert "@h/d" in shown
            assert "secret" not in shown
        assert "0198a000-0000-7000-8000-000000000001" in repr(attempt)


@pytest.mark.parametrize(
    ("sync", "asynchronous"),
    [(connect, connect_async), (ExecutionManager._track, AsyncExecutionManager._track)],
)
def test_twin_functions_have_the_same_parameters(sync: Any, asynchronous: Any) -> None:
    assert parameters(sync) == parameters(asynchronous)


@pytest.mark.parametrize("kind", [ExecutionManager, AsyncExecutionManager, Attempt, AsyncAttempt])
def test_twins_public_verbs_have_an_example(kind: type) -> None:
    receiver = "attempt" if "Attempt" in kind.__name__ else "manager"
    for name, function in public(kind).items():
        assert f"{receiver}.{name}(" in function.__doc__, f"{kind.__name__}.{name}"
