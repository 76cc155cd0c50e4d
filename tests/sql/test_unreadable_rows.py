"""Rows with JSON that Python cannot read: manual SQL and processes with other limits write them."""

import logging
import sys
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from execution_core import ExecutionManager, InvalidValue

from ..conftest import Database

LONG = "9" * 5000
DEEP = "[" * 3000 + "]" * 3000


@pytest.fixture
def unlimited_digits() -> Iterator[None]:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    yield
    sys.set_int_max_str_digits(limit)


def with_unreadable_payload(
    database: Database, manager: ExecutionManager, document: str
) -> tuple[list[str], str]:
    """Create three readable executions, the second of four being unreadable."""
    if database.name == "sqlite" and document == DEEP:
        pytest.skip("SQLite's json_valid refuses it")
    ids = [manager.create("work", {"n": n}, max_attempts=2).id for n in range(4)]
    value = f"'{document}'" if database.name == "sqlite" else f"'{document}'::jsonb"
    database.run(f"UPDATE executions SET payload = {value} WHERE id = :id", id=ids[1])
    return [ids[0], *ids[2:]], ids[1]


@pytest.mark.parametrize("document", [LONG, DEEP], ids=["long", "deep"])
def test_claim_and_sweep_answer_the_readable_executions(
    database: Database, manager: ExecutionManager, document: str, caplog: pytest.LogCaptureFixture
) -> None:
    readable, bad = with_unreadable_payload(database, manager, document)
    with caplog.at_level(logging.WARNING, "execution_core"):
        assert [each.id for each in manager.claim(limit=10)] == readable
        assert bad in caplog.text
        assert "payload of" in caplog.text
        caplog.clear()
        time.sleep(0.01)
        swept = manager.sweep(stalled_after=timedelta(milliseconds=1))
    assert [each.id for each in swept] == readable
    assert bad in caplog.text
    assert database.history(bad)[-1] == ("running", "timed_out")


@pytest.mark.parametrize("document", [LONG, DEEP], ids=["long", "deep"])
def test_unreadable_execution_is_named_by_reads_and_writes(
    database: Database, manager: ExecutionManager, document: str
) -> None:
    _, bad = with_unreadable_payload(database, manager, document)
    for read in (lambda: manager.get(bad), manager.list):
        with pytest.raises(InvalidValue, match=f"payload of {bad} cannot be read by Python"):
            read()
    with pytest.raises(InvalidValue, match=f"payload of {bad} cannot be read") as caught:
        manager.start(bad)
    assert "The call took effect" in caught.value.__notes__[0]
    with pytest.raises(InvalidValue, match=f"payload of {bad} cannot be read"):
        manager.cancel(bad)
    assert database.history(bad)[-1] == ("running", "cancelled")


def test_create_refuses_integers_that_others_cannot_read(
    manager: ExecutionManager, unlimited_digits: None
) -> None:
    text = {"text": LONG, "escaped": '"' + LONG}
    assert manager.create("work", text).payload == text
    for value in (10**5000, [{"n": -(10**5000)}]):
        with pytest.raises(InvalidValue, match="an integer of over 4300 digits"):
            manager.create("work", value)
