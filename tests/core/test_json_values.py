"""JSON values: what is refused, and what comes back exactly as it was stored."""

import asyncio
import enum
import json
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from execution_core import (
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    ExecutionManager,
    InvalidValue,
    SqlExecutionStore,
)
from execution_core.core.json_values import to_json
from execution_core.sql.driver.engine import create_async_engine

from ..conftest import Blocking, Database
from ..support.sampling import in_whole


class Point(BaseModel):
    x: int
    when: datetime


@dataclass
class Pair:
    left: Any
    right: Any


class Shade(enum.Enum):
    RED = "red"


class Name(str, enum.Enum):  # noqa: UP042 - the test is about such a class
    ADA = "ada"


def reference_cycle() -> list[Any]:
    loop: list[Any] = []
    loop.append({"again": loop})
    return loop


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def shared_references() -> Any:
    value: Any = []
    for _ in range(60):
        value = [value, value]
    return value


NOT_JSON = {
    "nan": math.nan,
    "infinity": math.inf,
    "minus infinity, deep": {"a": [1, {"b": -math.inf}]},
    "nan in a dataclass": Pair(math.nan, 1),
    "bytes": b"x",
    "bytearray": bytearray(b"x"),
    "bytes deep": {"a": [b"x"]},
    "set": {1, 2},
    "frozenset": frozenset((1,)),
    "integer key": {1: "a"},
    "none key, deep": [{"a": {None: 1}}],
    "bool key": {True: 1},
    "object": object(),
    "function": nested,
    "class": Pair,
    "generator": (n for n in [1]),
    "cycle": reference_cycle(),
    "too deep": nested(201),
    "absurdly deep": nested(100_000),
    "too deep in a dataclass": Pair(nested(500), 1),
    "nul": "a\0b",
    "nul key": {"a\0b": 1},
    "nul behind a backslash": "\\\0",
    "lone surrogate": ["\ud800"],
    "lone surrogate key": {"\udfff": 1},
    "too many digits": 10**5000,
    "too large": "x" * (16 * 2**20),
    "too large in bytes": "ü" * (8 * 2**20),
}


def test_json_invalid_value_is_refused(any_manager: ExecutionManager) -> None:
    for bad in NOT_JSON.values():
        assert_refused(any_manager, bad)
        any_manager.delete(any_manager.list()[0].id)


def assert_refused(any_manager: ExecutionManager, bad: Any) -> None:
    running = any_manager.create("a", {"kept": 1})
    before = any_manager.start(running.id)
    calls: dict[str, Callable[[], object]] = {
        "payload": lambda: any_manager.create("b", bad),
        "metadata": lambda: any_manager.create("b", metadata={"m": bad}),
        "result": lambda: any_manager.complete(running.id, bad),
        "value": lambda: any_manager.checkpoint(running.id, "k", bad),
    }
    for argument, call in calls.items():
        with pytest.raises(InvalidValue) as caught:
            call()
        assert caught.value.argument == argument
        assert str(caught.value).startswith(f"{argument} ")
        assert len(str(caught.value)) < 300
    assert any_manager.list() == [before]


VALID = {
    "none": (None, None),
    "literal escape": ("\\u0000 \\\\u0000", "\\u0000 \\\\u0000"),
    "quotes": ("'; DROP TABLE executions; --", "'; DROP TABLE executions; --"),
    "controls": ("\x01\x1f\x7f\u2028", "\x01\x1f\x7f\u2028"),
    "astral": ("\U0001f600\uffff", "\U0001f600\uffff"),
    "format": ("%s %(a)s :a {b} ? $1", "%s %(a)s :a {b} ? $1"),
    "empty key": ({"": {"": ""}}, {"": {"": ""}}),
    "odd keys": ({'a"b': 1, "\\": 2, "$.x": 3}, {'a"b': 1, "\\": 2, "$.x": 3}),
    "large integer": (2**80, 2**80),
    "floats": ([0.1, 1e-7, 1e16, 1.5e300, 2.0, "1e+23"], [0.1, 1e-7, 1e16, 1.5e300, 2.0, "1e+23"]),
    "tuple": ((1, (2,)), [1, [2]]),
    "datetime": (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
    "uuid": (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "decimal": ({"price": Decimal("1.10")}, {"price": "1.10"}),
    "enum": ([Shade.RED, Name.ADA], ["red", "ada"]),
    "dataclass": (
        Pair(1, Pair(Decimal(2), None)),
        {"left": 1, "right": {"left": "2", "right": None}},
    ),
    "model": (
        Point(x=1, when=datetime(2026, 1, 2, tzinfo=UTC)),
        {"x": 1, "when": "2026-01-02T00:00:00Z"},
    ),
    "timedelta": (timedelta(seconds=90), "PT1M30S"),
    "deep": (nested(199), nested(199)),
    "2 MB": ("x" * 2_000_000, "x" * 2_000_000),
}


@pytest.mark.parametrize("name", VALID)
def test_json_value_round_trips(any_manager: ExecutionManager, name: str) -> None:
    value, stored = VALID[name]
    id = any_manager.create("a", value, metadata={"m": value}).id
    any_manager.start(id)
    any_manager.checkpoint(id, "k", value)
    any_manager.complete(id, value)
    read = any_manager.get(id)
    assert read.payload == read.result == stored
    assert read.metadata == {"m": stored}
    assert read.checkpoints == {"k": stored}


def test_json_size_limit_applies_to_every_verb(database: Database, runner: asyncio.Runner) -> None:
    store = SqlExecutionStore(database.engine)
    async_engine = create_async_engine(database.url)
    async_store = AsyncSqlExecutionStore(async_engine)
    async_manager: Any = AsyncExecutionManager(async_store, max_json_bytes=10)
    for manager in (
        ExecutionManager(store, max_json_bytes=10),
        Blocking(async_manager, runner),
    ):
        id = manager.start(manager.create("a", "x" * 8, metadata={"a": 123}).id).id
        with pytest.raises(InvalidValue, match="payload is larger than 10 bytes of JSON"):
            manager.create("a", "x" * 9)
        with pytest.raises(InvalidValue, match="metadata is larger than 10 bytes of JSON"):
            manager.create("a", metadata={"a": 12345})
        with pytest.raises(InvalidValue, match="result is larger than 10 bytes of JSON"):
            manager.complete(id, "x" * 9)
        with pytest.raises(InvalidValue, match="value is larger than 10 bytes of JSON"):
            manager.checkpoint(id, "k", "x" * 9)
        manager.checkpoint(id, "k", "x" * 8)
        manager.complete(id, "x" * 8)
    with (
        database.engine.connect() as connection,
        pytest.raises(InvalidValue, match="larger than 10"),
    ):
        ExecutionManager(store, max_json_bytes=10).within(connection).create("a", "x" * 9)
    for bad in (0, -1, None, "16", math.nan):
        with pytest.raises(InvalidValue, match="max_json_bytes"):
            ExecutionManager(store, max_json_bytes=bad)  # type: ignore[arg-type]
    runner.run(async_engine.dispose())


def test_json_large_text_with_exponents_is_parsed_in_linear_time() -> None:
    """The pattern must not backtrack: this would take minutes."""
    digits = [10**4299] * 200
    assert to_json("v", ["e+", 1e300, *digits]).value == ["e+", 1e300, *digits]
    assert to_json("v", "e+" + "x" * 10**7).value == "e+" + "x" * 10**7


def test_json_dataclass_content_is_checked() -> None:
    for bad in ({"b", "a"}, b"x", {1: "a", "1": "b"}, (n for n in [1]), [{None: 1}]):
        with pytest.raises(InvalidValue):
            to_json("v", Pair(Pair(1, bad), 2))


def test_json_shared_references_stop_at_size_limit() -> None:
    """Without visiting the 2 ** 60 lists that the value would have as JSON."""
    for limit in (10_000, 2**40):
        with pytest.raises(InvalidValue, match=f"larger than {limit} bytes"):
            to_json("value", shared_references(), limit)
    same = {"a": [1]}
    assert to_json("value", [same] * 1000).value == [same] * 1000


def test_create_mutable_payload_is_copied(any_manager: ExecutionManager) -> None:
    payload = {"items": [1]}
    created = any_manager.create("a", payload)
    payload["items"].append(2)
    assert any_manager.get(created.id).payload == {"items": [1]}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


keys = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20
)


@pytest.mark.slow
@settings(
    max_examples=in_whole(150, 60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(written=st.lists(st.tuples(keys, json_values), min_size=1, max_size=5))
def test_checkpoint_random_keys_and_values_are_exact(
    manager: ExecutionManager, written: list[tuple[str, Any]]
) -> None:
    id = manager.create("a").id
    for key, value in written:
        after = manager.checkpoint(id, key, value)
    assert after.checkpoints == dict(written)
    assert as_text(after.checkpoints) == as_text(dict(written))


def as_text(value: Any) -> str:
    # True == 1 == 1.0 in Python, but not in JSON. PostgreSQL keeps no negative zero.
    return json.dumps(value, sort_keys=True).replace("-0.0", "0.0")


@settings(max_examples=300)
@given(json_values)
def test_json_random_value_round_trips(value: Any) -> None:
    assert json.dumps(to_json("value", value).value) == json.dumps(value)
