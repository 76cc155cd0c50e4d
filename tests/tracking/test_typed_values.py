"""Typed payloads and results: stored as JSON, read as the caller's types."""

import traceback
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, field_validator

from execution_core import Execution, ExecutionManager, IdempotencyConflict, InvalidValue

SECRET = "4242-SECRET"


class Colour(Enum):
    RED = "red"


class Line(BaseModel):
    price: Decimal
    tags: set[str]


class Order(BaseModel):
    order_id: int
    placed_at: datetime
    day: date
    within: timedelta
    key: UUID
    total: Decimal
    colour: Colour
    pair: tuple[int, str]
    numbers: frozenset[int]
    ratio: float
    note: str | None
    lines: list[Line]
    by_colour: dict[Colour, int]


class StrictOrder(Order, strict=True, extra="forbid"):
    pass


@dataclass
class Point:
    x: int
    at: datetime


class Range(NamedTuple):
    low: Decimal
    high: Decimal | None


VALUES: dict[str, Any] = {
    "order_id": 7,
    "placed_at": datetime(2026, 1, 31, 12, 30, 0, 123456, UTC),
    "day": date(2026, 2, 1),
    "within": timedelta(days=1, milliseconds=5),
    "key": UUID(int=1),
    "total": Decimal("1.10"),
    "colour": Colour.RED,
    "pair": (1, "a"),
    "numbers": frozenset((3,)),
    "ratio": 1.0,
    "note": None,
    "lines": [Line(price=Decimal("0.30"), tags={"new"})],
    "by_colour": {Colour.RED: 2},
}
ORDERS = (Order(**VALUES), StrictOrder(**VALUES))


@pytest.mark.parametrize("order", ORDERS, ids=["lax", "strict"])
def test_create_with_model_returns_it_with_payload_as(
    any_manager: ExecutionManager, order: Order
) -> None:
    created = any_manager.create(order, max_attempts=3, idempotency_key="k")
    assert (created.type, created.max_attempts) == (type(order).__name__, 3)
    assert any_manager.create(type(order).__name__, order, idempotency_key="k").id == created.id
    any_manager.start(created.id)
    any_manager.complete(created.id, order)
    found = any_manager.get(created.id)
    assert isinstance(found.payload, dict)
    for read in (found.payload_as(type(order)), found.result_as(type(order))):
        assert type(read) is type(order)
        assert read == order
    with pytest.raises(IdempotencyConflict):
        any_manager.create(order.model_copy(update={"order_id": 8}), idempotency_key="k")


@pytest.mark.parametrize(
    ("value", "as_type"),
    [
        ([1, 2], list[int]),
        ((1, 2), tuple[int, ...]),
        ([3], set[int]),
        (Point(1, VALUES["placed_at"]), Point),
        (Range(Decimal("1.5"), None), Range),
        (None, Order | None),
        ({"a": Colour.RED}, dict[str, Colour]),
        (10**30, int),
        (1, Annotated[int, Field(gt=0)]),
        ([[[1.5, None, "ü"]]], Any),
    ],
    ids=str,
)
def test_payload_as_reads_any_type_of_pydantic(
    manager: ExecutionManager, value: Any, as_type: Any
) -> None:
    id = manager.create("work", value).id
    read = manager.get(id).payload_as(as_type)
    expected = set(value) if as_type == set[int] else value
    assert (read, type(read)) == (expected, type(expected))


def test_payload_as_reads_as_deep_as_create_stores(manager: ExecutionManager) -> None:
    value: Any = 1
    for _ in range(200):
        value = [value]
    assert manager.create("work", value).payload_as(list[Any]) == value


def test_create_with_model_and_payload_refused(any_manager: ExecutionManager) -> None:
    call: Any = any_manager.create
    with pytest.raises(InvalidValue, match="payload must not be given beside a model"):
        call(ORDERS[0], {"a": 1})
    with pytest.raises(InvalidValue, match="type must be a string, not a ModelMetaclass"):
        call(Order)
    assert any_manager.list() == []


class Card(BaseModel):
    number: str
    limits: dict[str, int] = {}
    kind: Colour = Colour.RED

    @field_validator("number")
    @classmethod
    def check_number(cls, value: str) -> str:
        raise ValueError(f"bad card {value}")


@pytest.mark.parametrize(
    ("value", "as_type", "misfit"),
    [
        ({"number": SECRET}, Card, r"Card: number \(value_error\)"),
        (
            {"number": 1, "kind": SECRET, "limits": {"day": SECRET}},
            Card,
            r"Card: number \(string_type\); limits\.day \(int_parsing\); kind \(enum\)",
        ),
        ({}, Card, r"Card: number \(missing\)"),
        (SECRET, Card, r"Card: \(model_type\)"),
        ([1, SECRET], list[int], r"list\[int\]: 1 \(int_parsing\)"),
        (SECRET, UUID, r"uuid: \(uuid_parsing\)"),
        ([SECRET] * 9, list[int], r"list\[int\]: 0 \(int_parsing\);.* 4 \(.*\) and 4 more"),
        ({"k" * 1000: SECRET}, dict[str, int], rf"dict\[str,int\]: {'k' * 80} \(int_parsing\)"),
    ],
)
def test_payload_as_misfit_is_named_without_values(
    manager: ExecutionManager, value: Any, as_type: Any, misfit: str
) -> None:
    id = manager.create("work", value).id
    manager.start(id)
    job = manager.complete(id, value)
    for name, read in (("payload", job.payload_as), ("result", job.result_as)):
        message = rf"^{name} of execution {id} does not fit {misfit}$"
        with pytest.raises(InvalidValue, match=message) as raised:
            read(as_type)
        shown = "".join(traceback.format_exception(raised.value))
        assert SECRET not in shown  # the traceback of a failed attempt is stored


def execution_with(payload: Any) -> Execution:
    moment = VALUES["placed_at"]
    return Execution(id="a", type="work", payload=payload, created_at=moment, updated_at=moment)


def test_payload_as_of_json_that_pydantic_cannot_read_refused() -> None:
    """Manual SQL can store what `create` refuses."""
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    for payload in (deep, "\ud800"):
        with pytest.raises(InvalidValue, match=r"payload of execution a does .* \(json_invalid\)"):
            execution_with(payload).payload_as(Any)


@pytest.mark.parametrize("as_type", [7, "Order", object(), ExecutionManager, list["Unknown"]])  # type: ignore[name-defined] # noqa: F821
def test_payload_as_unknown_type_refused(as_type: Any) -> None:
    with pytest.raises(InvalidValue, match="as_type must be a type that pydantic can validate"):
        execution_with(1).payload_as(as_type)
