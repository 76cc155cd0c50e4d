"""Tracked functions return what their annotation says, in the first call and in later ones."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from execution_core import ExecutionManager, InvalidValue

from .test_tracked import track

if TYPE_CHECKING:
    from somewhere import Unknown  # type: ignore[import-not-found]

MOMENT = datetime(2026, 1, 31, tzinfo=UTC)
SECRET = "4242-SECRET"


class Receipt(BaseModel, strict=True):
    paid_at: datetime
    total: Decimal
    parts: tuple[int, ...] = ()


@dataclass
class Point:
    x: int


class Plain:
    """Pydantic does not know it."""


RECEIPT = Receipt(paid_at=MOMENT, total=Decimal("1.10"), parts=(1, 2))


def one_receipt() -> Receipt:
    return RECEIPT


def receipts_or_none() -> list[Receipt] | None:
    return [RECEIPT]


def nothing() -> Receipt | None:
    return None


def pair() -> tuple[int, datetime]:
    return 7, MOMENT


def of_string_annotation(order: "Unknown" = None) -> "Later":
    return Later(x=1)


class Later(BaseModel):
    x: int


@pytest.mark.parametrize(
    "function", [one_receipt, receipts_or_none, nothing, pair, of_string_annotation]
)
def test_tracked_calls_return_annotated_type(
    any_manager: ExecutionManager, function: Callable[[], Any]
) -> None:
    call = track(any_manager, "a", idempotency_key=lambda: "k")(function)
    for result in (call(), call()):
        assert (result, type(result)) == (function(), type(function()))
    (job,) = any_manager.list()
    assert (job.attempts, type(job.result)) == (1, type(job.result_as(Any)))


def unannotated():  # type: ignore[no-untyped-def] # noqa: ANN201
    return (1, Point(2))


def anything() -> Any:
    return (1, Point(2))


def none_by_mistake() -> None:
    return (1, Point(2))  # type: ignore[return-value]


def unresolvable() -> "Unknown":
    return (1, Point(2))


def unknown_to_pydantic() -> Plain:
    return (1, Point(2))  # type: ignore[return-value]


def iterable() -> Iterable[Any]:
    return (1, Point(2))


@pytest.mark.parametrize(
    "function",
    [unannotated, anything, none_by_mistake, unresolvable, unknown_to_pydantic, iterable],
)
def test_tracked_without_usable_annotation_returns_json(
    manager: ExecutionManager, function: Callable[[], Any]
) -> None:
    call = track(manager, "a", idempotency_key=lambda: "k")(function)
    assert [call(), call()] == [[1, {"x": 2}], [1, {"x": 2}]]


def test_tracked_misfit_in_first_call_fails_attempt(any_manager: ExecutionManager) -> None:
    @track(any_manager, "a", idempotency_key=lambda: "k", max_attempts=2)
    def work() -> list[int]:
        return answers.pop()  # type: ignore[no-any-return]

    answers: list[Any] = [[1], [1, SECRET]]
    with pytest.raises(InvalidValue, match=r"does not fit list\[int\]: 1 \(int_parsing\)") as bad:
        work()
    (job,) = any_manager.list()
    assert (job.status, job.result) == ("failed", None)
    assert job.error is not None
    assert (job.error.code, job.error.message) == ("execution_core.InvalidValue", str(bad.value))
    assert bad.match(f"result of execution {job.id} ")
    assert job.error.stack is not None
    assert SECRET not in job.error.stack
    assert [work(), work()] == [[1], [1]]


def test_tracked_misfit_of_stored_result_raises(any_manager: ExecutionManager) -> None:
    @track(any_manager, "a", idempotency_key=lambda: "k")
    def work() -> Receipt:
        pytest.fail("it ran")

    job = any_manager.create("a", idempotency_key="k")
    any_manager.start(job.id)
    any_manager.complete(job.id, {"total": SECRET})
    completed = any_manager.get(job.id)
    for _ in range(2):
        with pytest.raises(InvalidValue, match=f"result of execution {job.id} does not fit Rec"):
            work()
    assert any_manager.get(job.id) == completed
