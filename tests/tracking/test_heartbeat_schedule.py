"""When the heartbeats of a store's attempts are due, and in which calls they are sent."""

from collections.abc import Iterable
from datetime import timedelta
from itertools import chain
from typing import Any

import pytest

from execution_core import Execution, ExecutionManager
from execution_core.core.steps import run
from execution_core.tracking import heartbeats
from execution_core.tracking.heartbeats import Heartbeat, HeartbeatSchedule

from ..support.memory import memory_store

Key = tuple[str, int]


class Store:
    """The memory store, in which the heartbeats of some executions fail."""

    def __init__(self) -> None:
        self.memory = memory_store()
        self.manager = ExecutionManager(self.memory)
        self.broken = set[str]()
        self.is_down = False
        self.calls = list[list[str]]()

    def start(self, name: str) -> Execution:
        return self.manager.start(self.manager.create(name).id)

    def find_by_id(self, id: str) -> Any:
        return self.memory.find_by_id(id)

    def update(self, id: str, transition: Any, *, returning: Any) -> Any:
        self.check([id])
        return self.memory.update(id, transition, returning=returning)

    def check(self, ids: Iterable[str]) -> None:
        found = [self.memory.find_by_id(id) for id in ids]
        self.calls.append(sorted(each.type for each in found if each))
        if self.is_down or self.broken & {*self.calls[-1]}:
            raise ValueError("broken")


class StoreOfMany(Store):
    def heartbeat_many(self, attempts: list[Key]) -> set[Key]:
        self.check(id for id, _ in attempts)
        found = {key: self.memory.find_by_id(key[0]) for key in attempts}
        return {key for key, each in found.items() if each and each.status == "running"}


class Schedule:
    """Heartbeats by a clock that the test sets."""

    def __init__(self, store: Store, *, alone: bool = False) -> None:
        self.store, self.now = store, 1000.0
        self.kept = list[Heartbeat]()
        """What refers to the heartbeats."""
        clock = lambda: self.now  # noqa: E731
        self.heartbeats = HeartbeatSchedule[Heartbeat](store, clock, alone=alone)

    def add(self, *names: str, seconds: float = 1) -> list[Heartbeat]:
        interval = timedelta(seconds=seconds)
        added = [Heartbeat(self.store.start(name), interval, lambda: None) for name in names]
        for each in added:
            self.heartbeats.add(each)
        self.kept += added
        return added

    def calls_at(self, seconds: float, *failed: Heartbeat) -> list[list[str]]:
        """Return the calls at a time, each as the types of the executions.

        Only `failed` are to be taken out of the schedule, because their calls fail.
        """
        self.now = 1000 + seconds
        self.store.calls.clear()
        found = list[Heartbeat]()
        while batch := self.heartbeats.take_due():
            found += run(self.heartbeats.send_steps(batch))
        assert set(found) == set(failed)
        for each in found:
            self.heartbeats.discard(each)
        return list(self.store.calls)


def test_heartbeat_intervals_mixed_are_sent_together() -> None:
    schedule = Schedule(StoreOfMany())
    schedule.add("fast")
    schedule.now += 0.3
    schedule.add("slow", seconds=30)
    assert schedule.heartbeats.next_due() == 1001
    for second in range(1, 91):
        both = ["fast", "slow"] if second % 30 == 0 else ["fast"]
        assert schedule.calls_at(second - 0.1) == []
        assert schedule.calls_at(second) == [both]
        assert schedule.heartbeats.next_due() == 1001 + second


def test_heartbeat_late_call_skips_missed_times() -> None:
    schedule = Schedule(StoreOfMany())
    schedule.add("a")
    assert schedule.calls_at(3.5) == [["a"]]
    assert schedule.heartbeats.next_due() == 1004


def test_heartbeats_beyond_the_limit_of_a_call_need_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heartbeats, "MAX_BATCH", 2)
    schedule = Schedule(StoreOfMany())
    schedule.add(*"abcde")
    calls = schedule.calls_at(1)
    assert sorted(map(len, calls)) == [1, 2, 2]
    assert sorted(chain(*calls)) == [*"abcde"]


@pytest.mark.parametrize("kind", [Store, StoreOfMany])
def test_heartbeat_alone_is_sent_until_its_attempt_is_lost(kind: type[Store]) -> None:
    """By `update`, of the store without `heartbeat_many` as well."""
    schedule = Schedule(kind(), alone=True)
    (lost,) = schedule.add("a")
    assert schedule.calls_at(1) == [["a"]]
    schedule.store.is_down = True
    assert schedule.calls_at(2) == [["a"]]
    schedule.store.is_down = False
    schedule.store.manager.cancel(lost.key[0])
    assert schedule.calls_at(3) == [["a"]]
    assert schedule.calls_at(4) == []


def test_heartbeats_that_fail_are_found_among_others(caplog: pytest.LogCaptureFixture) -> None:
    """Such as those of rows that a trigger of the host refuses. The others are sent at once."""
    schedule = Schedule(StoreOfMany())
    bad, worse, *_ = schedule.add("bad", "worse", *"abc")
    schedule.store.broken |= {"bad", "worse"}
    together, probe, *single = schedule.calls_at(1, bad, worse)
    assert (together, probe) == (["a", "b", "bad", "c", "worse"], [])
    assert {*map(tuple, single)} == {("a",), ("b",), ("c",), ("bad",), ("worse",), ()}
    for each in (bad, worse):
        assert f"A heartbeat of attempt 1 of execution {each.key[0]} could not" in caplog.text
    assert schedule.calls_at(2) == [["a", "b", "c"]]


def test_heartbeats_while_store_is_down_are_tried_once(caplog: pytest.LogCaptureFixture) -> None:
    """One call for each attempt would take long if each waits for a timeout."""
    schedule = Schedule(StoreOfMany())
    schedule.add(*"abcde")
    schedule.store.is_down = True
    for second in range(1, 4):
        assert schedule.calls_at(second) == [[*"abcde"], []]
        assert schedule.heartbeats.next_due() == 1001 + second
    assert "and of 4 others could not be recorded" in caplog.text
    schedule.store.is_down = False
    assert schedule.calls_at(4) == [[*"abcde"]]


def test_heartbeats_when_store_fails_during_single_calls_are_sent_together() -> None:
    """Then it is not known which of them are bad."""
    schedule = Schedule(StoreOfMany())
    schedule.add(*"abcde")
    schedule.store.broken.add("a")
    schedule.now += 1
    run(schedule.heartbeats.send_steps(schedule.heartbeats.take_due()))
    schedule.store.is_down = True
    assert len(schedule.calls_at(1)) == 4
    schedule.store.is_down = False
    schedule.store.broken.clear()
    assert schedule.calls_at(2) == [[*"abcde"]]


def test_heartbeat_of_collected_attempt_is_not_sent() -> None:
    schedule = Schedule(StoreOfMany())
    schedule.add("a", "b")
    del schedule.kept[0]
    assert schedule.calls_at(1) == [["b"]]
    schedule.kept.clear()
    assert schedule.heartbeats.next_due() is None
