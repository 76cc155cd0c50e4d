"""Conditions and directions of `list`, `count` and `logs`."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from execution_core import ExecutionManager, ExecutionNotFound, InvalidValue

from ..support.states import bring_to

NOW = datetime(2026, 1, 31, tzinfo=UTC)


def test_list_and_count_by_every_condition(any_manager: ExecutionManager) -> None:
    m = any_manager
    parent = m.create("parent")
    mails = [m.create("mail", parent_id=parent.id) for _ in range(3)]
    m.start(mails[0].id, worker="host-1")
    done = m.complete(mails[0].id)
    replay = m.replay(done.id)
    assert done.completed_at is not None
    expected: list[tuple[dict[str, Any], list[Any]]] = [
        ({"type": "mail"}, [*mails, replay]),
        ({"type": ["mail", "parent"], "status": "pending"}, [parent, *mails[1:], replay]),
        ({"type": ()}, []),
        ({"parent_id": parent.id, "worker": "host-1"}, mails[:1]),
        ({"replay_of": done.id}, [replay]),
        ({"created_since": mails[1].created_at, "type": "mail"}, [*mails[1:], replay]),
        ({"created_until": mails[1].created_at}, [parent, mails[0]]),
        ({"finished_since": done.completed_at}, mails[:1]),
        ({"finished_until": done.completed_at}, []),
        (
            {"finished_since": done.completed_at.astimezone(timezone(timedelta(hours=9)))},
            mails[:1],
        ),
    ]
    for conditions, found in expected:
        ids = [each.id for each in found]
        if len({each.created_at for each in mails}) == 3 or "created" not in str(conditions):
            assert [each.id for each in m.list(oldest_first=True, **conditions)] == ids, conditions
            assert [each.id for each in m.list(**conditions)] == ids[::-1], conditions
            assert m.count(**conditions) == len(ids), conditions


def test_list_pages_forward_and_backward(any_manager: ExecutionManager) -> None:
    ids = [any_manager.create("a").id for _ in range(7)]
    forward: list[str] = []
    while page := any_manager.list(oldest_first=True, after=(forward or [None])[-1], limit=3):  # type: ignore[list-item]
        forward += [each.id for each in page]
    assert forward == ids
    assert [each.id for each in any_manager.list(after=ids[2], before=ids[5])] == ids[3:5][::-1]


def test_logs_can_be_followed(any_manager: ExecutionManager) -> None:
    id = bring_to(any_manager, "running").id
    for number in range(3):
        any_manager.log(id, str(number))
    seen = any_manager.logs(id, oldest_first=True, limit=2)
    any_manager.log(id, "3")
    seen += any_manager.logs(id, oldest_first=True, after=seen[-1].id)
    assert [each.message for each in seen] == ["0", "1", "2", "3"]
    assert any_manager.logs(id, after=seen[-1].id) == []


@pytest.mark.parametrize(
    "conditions",
    [
        {"created_since": NOW.replace(tzinfo=None)},
        {"created_until": "2026-01-31"},
        {"finished_since": 5},
        {"finished_until": NOW.date()},
        {"worker": ""},
        {"type": ["a", ""]},
        {"type": [5]},
        {"type": b"a"},
        {"status": "gone"},
    ],
    ids=str,
)
def test_list_and_count_invalid_conditions_refused(
    any_manager: ExecutionManager, conditions: dict[str, Any]
) -> None:
    for call in (any_manager.list, any_manager.count):
        with pytest.raises(InvalidValue, match=f"^{next(iter(conditions))} "):
            call(**conditions)


@pytest.mark.parametrize("bounds", [{"after": "x"}, {"oldest_first": 1}, {"oldest_first": None}])
def test_list_and_logs_invalid_bounds_refused(
    any_manager: ExecutionManager, bounds: dict[str, Any]
) -> None:
    id = any_manager.create("a").id
    with pytest.raises(InvalidValue, match=f"^{next(iter(bounds))} "):
        any_manager.list(**bounds)
    with pytest.raises(InvalidValue, match=f"^{next(iter(bounds))} "):
        any_manager.logs(id, **bounds)


def test_list_by_an_invalid_id_is_not_found(any_manager: ExecutionManager) -> None:
    for name in ("parent_id", "replay_of"):
        with pytest.raises(ExecutionNotFound):
            any_manager.list(**{name: "no-uuid"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "moment", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
)
def test_list_at_the_ends_of_the_calendar(any_manager: ExecutionManager, moment: datetime) -> None:
    any_manager.create("a")
    early = moment.year == 1
    assert any_manager.count(created_since=moment) == early
    assert any_manager.count(created_until=moment) == (not early)
    west = moment.replace(tzinfo=timezone(timedelta(hours=-5 if moment.year > 1 else 5)))
    with pytest.raises(InvalidValue, match=r"^created_since must be in the years 1 to 9999"):
        any_manager.count(created_since=west)
