"""Invalid arguments are refused before they reach a store, the same for every store."""

import json
import math
import traceback
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from execution_core import (
    ExecutionFailure,
    ExecutionManager,
    InvalidValue,
)
from execution_core.core.json_values import to_json

INVALID: list[tuple[str, Any]] = [
    ("type", lambda m, id: m.create("")),
    ("type", lambda m, id: m.create("x" * 256)),
    ("type", lambda m, id: m.create("a\0")),
    ("type", lambda m, id: m.create("\ud800")),
    ("type", lambda m, id: m.create(None)),
    ("type", lambda m, id: m.create(b"a")),
    ("max_attempts", lambda m, id: m.create("a", max_attempts=0)),
    ("max_attempts", lambda m, id: m.create("a", max_attempts=-1)),
    ("max_attempts", lambda m, id: m.create("a", max_attempts=2**31)),
    ("max_attempts", lambda m, id: m.create("a", max_attempts=10**9999)),
    ("max_attempts", lambda m, id: m.create("a", max_attempts=1.0)),
    ("max_attempts", lambda m, id: m.create("a", max_attempts=True)),
    ("max_attempts", lambda m, id: m.create("a", max_attempts=None)),
    ("timeout", lambda m, id: m.create("a", timeout=30)),
    ("timeout", lambda m, id: m.create("a", timeout=timedelta(0))),
    ("timeout", lambda m, id: m.create("a", timeout=timedelta(seconds=-1))),
    ("timeout", lambda m, id: m.create("a", timeout=timedelta.max)),
    ("idempotency_key", lambda m, id: m.create("a", idempotency_key="")),
    ("idempotency_key", lambda m, id: m.create("a", idempotency_key="k" * 256)),
    ("idempotency_key", lambda m, id: m.create("a", idempotency_key="\0")),
    ("idempotency_key", lambda m, id: m.create("a", idempotency_key=7)),
    ("metadata", lambda m, id: m.create("a", metadata=[1])),
    ("metadata", lambda m, id: m.create("a", metadata="text")),
    ("worker", lambda m, id: m.start(id, worker="")),
    ("worker", lambda m, id: m.start(id, worker="w" * 256)),
    ("worker", lambda m, id: m.start(id, worker="\0")),
    ("worker", lambda m, id: m.start(id, worker=7)),
    ("attempt", lambda m, id: m.complete(id, attempt="1")),
    ("attempt", lambda m, id: m.complete(id, attempt=True)),
    ("attempt", lambda m, id: m.complete(id, attempt=-1)),
    ("attempt", lambda m, id: m.complete(id, attempt=2**40)),
    ("attempt", lambda m, id: m.fail(id, "x", attempt=1.5)),
    ("attempt", lambda m, id: m.timeout(id, attempt="1")),
    ("error", lambda m, id: m.fail(id, None)),
    ("error", lambda m, id: m.fail(id, {"message": "x"})),
    ("retryable", lambda m, id: m.fail(id, "x", retryable="yes")),
    ("reason", lambda m, id: m.cancel(id, "\0")),
    ("reason", lambda m, id: m.cancel(id, ["x"])),
    ("current", lambda m, id: m.update_progress(id, -1, 1)),
    ("current", lambda m, id: m.update_progress(id, 1.5, 2)),
    ("current", lambda m, id: m.update_progress(id, 2**63, 2)),
    ("total", lambda m, id: m.update_progress(id, 0, -1)),
    ("total", lambda m, id: m.update_progress(id, 0, None)),
    ("percent", lambda m, id: m.update_progress(id, 0, 1, percent=100.1)),
    ("percent", lambda m, id: m.update_progress(id, 0, 1, percent=-1)),
    ("percent", lambda m, id: m.update_progress(id, 0, 1, percent=math.nan)),
    ("percent", lambda m, id: m.update_progress(id, 0, 1, percent="50")),
    ("message", lambda m, id: m.update_progress(id, 0, 1, message="\0")),
    ("message", lambda m, id: m.update_progress(id, 0, 1, message=7)),
    ("message", lambda m, id: m.update_progress(id, 0, 1, message="m" * 10_001)),
    ("reason", lambda m, id: m.cancel(id, "r" * 10_001)),
    ("key", lambda m, id: m.checkpoint(id, "", 1)),
    ("key", lambda m, id: m.checkpoint(id, "k" * 256, 1)),
    ("key", lambda m, id: m.checkpoint(id, "a\0b", 1)),
    ("key", lambda m, id: m.checkpoint(id, "\ud800", 1)),
    ("key", lambda m, id: m.checkpoint(id, 1, 1)),
    ("key", lambda m, id: m.find_by_idempotency_key("\0")),
    ("status", lambda m, id: m.list(status="done")),
    ("status", lambda m, id: m.list(status=["pending", "\ud800"])),
    ("status", lambda m, id: m.list(status=7)),
    ("type", lambda m, id: m.list(type="\0")),
    ("limit", lambda m, id: m.list(limit=0)),
    ("limit", lambda m, id: m.list(limit=10_001)),
    ("limit", lambda m, id: m.list(limit=True)),
]


def test_arguments_invalid_are_refused(any_manager: ExecutionManager) -> None:
    before = any_manager.start(any_manager.create("a", {"kept": 1}).id)
    for argument, call in INVALID:
        with pytest.raises(InvalidValue) as caught:
            call(any_manager, before.id)
        assert caught.value.argument == argument
        assert len(str(caught.value)) < 200
    assert any_manager.list() == [before]


@pytest.mark.parametrize(
    "text",
    ["'; DROP TABLE executions; --", 'a"b', "%s", ":x", "a.b", "$", "a[0]", "ü", "\\", "\n", "{}"],
)
def test_arguments_special_text_is_stored_unchanged(
    any_manager: ExecutionManager, text: str
) -> None:
    m = any_manager
    created = m.create(text, text, idempotency_key=text, metadata={text: text})
    assert m.create(text, text, idempotency_key=text) == created
    assert m.start(created.id, worker=text).worker == text
    progress = m.update_progress(created.id, 0, 1, message=text).progress
    assert progress is not None
    assert progress.message == text
    m.checkpoint(created.id, "other", 1)
    assert m.checkpoint(created.id, text, text).checkpoints == {"other": 1, text: text}
    assert m.checkpoint(created.id, text, [text]).checkpoints == {"other": 1, text: [text]}
    assert m.cancel(created.id, text).metadata == {text: text, "cancellation_reason": text}
    assert [e.id for e in m.list(type=text)] == [created.id]


TIMEOUTS = [
    (timedelta(microseconds=1), 1),
    (timedelta(microseconds=1600), 2),
    (timedelta(days=36_500), None),
]


@pytest.mark.parametrize(("timeout", "milliseconds"), TIMEOUTS)
def test_timeout_is_rounded_to_milliseconds(
    any_manager: ExecutionManager, timeout: timedelta, milliseconds: int | None
) -> None:
    expected = timeout if milliseconds is None else timedelta(milliseconds=milliseconds)
    created = any_manager.create("a", timeout=timeout)
    assert created.timeout == expected
    started = any_manager.start(created.id)
    assert started.started_at is not None
    assert started.deadline_at == started.started_at + expected


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class LongText(Exception):
    def __str__(self) -> str:
        return "x" * 5_000_000


class Detailed(ExecutionFailure, frozen=True, arbitrary_types_allowed=True):
    detail: str
    more: object


class UnreadableCause(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no cause for you")


FAILURES = {
    "nul": ValueError("a\0b"),
    "lone surrogate": ValueError("a\ud800b"),
    "megabytes": ValueError("x" * 5_000_000),
    "unprintable": Unprintable(),
    "long text": LongText(),
    "unreadable cause": UnreadableCause("no cause"),
    "text with nul": "a\0b",
    "text with a surrogate": "\udfff",
    "text of megabytes": "y" * 5_000_000,
    "empty text": "",
    "a copy": ExecutionFailure(message="x").model_copy(update={"message": "a\0b"}),
    "a subclass": Detailed(message="a\ud800b", detail="\0", more=object()),
    "another type": ExecutionFailure.model_construct(message=5, code=7),
    "everything in an error": ExecutionFailure(
        message="\0" * 99_999, code="\ud800" * 999, stack="\0z" * 10**6
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_fail_with_unstorable_text_is_recorded(any_manager: ExecutionManager, name: str) -> None:
    error: Any = FAILURES[name]
    if isinstance(error, Exception):
        try:
            raise error
        except Exception as raised:
            error = raised
    id = any_manager.create("a").id
    any_manager.start(id)
    failed = any_manager.fail(id, error)
    assert failed.status == "failed"
    assert failed == any_manager.get(id)
    assert failed.error is not None
    assert len(failed.error.model_dump_json()) < 1_000_000
    json.dumps(failed.error.model_dump()).encode("ascii")
    if name in ("nul", "text with nul", "lone surrogate", "a copy", "a subclass"):
        assert failed.error.message == "a\ufffdb"


def test_failure_long_texts_are_truncated() -> None:
    error = ExecutionFailure(
        message="m" * 20_000, code="c" * 300, stack="first" + "s" * 200_000 + "last"
    )
    assert error.stack is not None
    assert error.code is not None
    assert (len(error.message), len(error.code), len(error.stack)) == (10_000, 255, 100_000)
    assert error.stack.endswith("slast")


def test_failure_omits_parameters_of_statements() -> None:
    """The error of a statement is often in the middle of a chain, or in a group."""
    engine = create_engine("sqlite://")
    card = "-".join(("4111", "1111"))  # not as a whole in the source, which a traceback shows

    def fail() -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql("INSERT INTO nowhere VALUES (?)", (card,))

    def chained() -> None:
        try:
            fail()
        except DBAPIError as error:
            raise ValueError("not stored") from error

    def grouped() -> None:
        try:
            fail()
        except DBAPIError as error:
            raise ExceptionGroup("several", [error]) from None

    for raises in (fail, chained, grouped):
        with pytest.raises((DBAPIError, ValueError, ExceptionGroup)) as caught:
            raises()
        failure = ExecutionFailure.from_exception(caught.value)
        assert card not in f"{failure.message}{failure.stack}"
        assert "INSERT INTO nowhere" in str(failure.stack)
        assert card in "".join(traceback.format_exception(caught.value))  # unchanged


def test_arguments_at_limits_are_accepted(manager: ExecutionManager) -> None:
    longest = "ü" * 255
    created = manager.create(longest, idempotency_key=longest, max_attempts=2**31 - 1)
    started = manager.start(created.id, worker=longest)
    assert manager.checkpoint(created.id, longest, 1, attempt=1).checkpoints == {longest: 1}
    manager.update_progress(created.id, 2**63 - 1, 2**63 - 1, message="m" * 10_000, percent=100)
    assert manager.list(limit=10_000, type=longest)[0].worker == started.worker == longest
    assert len(to_json("v", "x" * (16 * 2**20 - 2)).text) == 16 * 2**20


class LyingText(str):
    """A text whose methods return wrong answers."""

    def __contains__(self, part: object) -> bool:
        return False

    def encode(self, *args: Any) -> bytes:
        return b""

    def __getitem__(self, part: Any) -> str:
        raise RuntimeError


class LyingNumber(int):
    def __int__(self) -> int:
        return 2**70


def test_arguments_of_subclasses_are_normalized(manager: ExecutionManager) -> None:
    for text in ("a\0b", "\ud800"):
        with pytest.raises(InvalidValue):
            manager.create(LyingText(text))
    assert manager.create("a", max_attempts=LyingNumber(3)).max_attempts == 3
    id = manager.create("a").id
    manager.start(id)
    failed = manager.fail(id, LyingText("a\0b"))
    assert failed.error is not None
    assert failed.error.message == "a\ufffdb"


def test_list_with_300000_statuses_works(manager: ExecutionManager) -> None:
    assert manager.list(status=["pending"] * 300_000) == []
    with pytest.raises(InvalidValue) as caught:
        manager.list(status="x" * 2_000_000)
    assert len(str(caught.value)) < 200
