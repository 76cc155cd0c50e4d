"""Iterate with checkpoints: `attempt.each`."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import pytest

from execution_core import (
    ExecutionManager,
    InvalidValue,
    connect_async,
)

from ..conftest import Database
from ..support.attempts import Outage


def crash_after(attempt: Any, items: Any, count: int, **options: Any) -> list[Any]:
    """Process that many items, and raise in the next one."""
    done: list[Any] = []
    for item in attempt.each(items, **options):
        if len(done) == count:
            raise Outage
        done.append(item)
    return done


class GetItemSequence:
    """Neither a list nor an iterator: Python iterates it with `__getitem__`."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        if index >= self.n:
            raise IndexError
        return index


KINDS: dict[str, Callable[[int], Any]] = {
    "list": lambda n: list(range(n)),
    "range": range,
    "sequence": GetItemSequence,
    "generator": lambda n: (k for k in range(n)),
    "dict": lambda n: dict.fromkeys(range(n)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_after_crash_resumes_after_checkpoint(
    any_manager: ExecutionManager, kind: str
) -> None:
    for every, crash in product([1, 4, 100], [0, 1, 4, 7, 11]):
        assert_resumes(any_manager, kind, every, crash)


def assert_resumes(any_manager: ExecutionManager, kind: str, every: int, crash: int) -> None:
    job = any_manager.create("a", max_attempts=2)
    options: Any = {"checkpoint": "at", "every": every}
    with pytest.raises(Outage), any_manager.attempt(job.id, retry_on=Outage) as attempt:
        crash_after(attempt, KINDS[kind](12), crash, **options)
    covered = crash // every * every
    left = any_manager.get(job.id)
    assert left.checkpoints == ({"at": covered - 1} if covered else {})
    assert (left.progress.current if left.progress else 0) == covered
    with any_manager.attempt(job.id) as attempt:
        assert list(attempt.each(KINDS[kind](12), **options)) == list(range(covered, 12))
        assert attempt.checkpoints == {"at": 11}
    done = any_manager.get(job.id)
    assert done.checkpoints == {"at": 11}
    assert done.progress is not None
    assert (done.progress.current, done.progress.total, done.progress.percent) == (12, 12, 100)


def test_each_unknown_length_reports_total_at_end(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a")
    with any_manager.attempt(job.id) as attempt:
        seen = []
        for _ in attempt.each(iter("abc"), every=1):
            progress = any_manager.get(job.id).progress
            seen.append(progress and (progress.current, progress.total, progress.percent))
    assert seen == [None, (1, 0, 0), (2, 0, 0)]
    progress = any_manager.get(job.id).progress
    assert progress is not None
    assert (progress.current, progress.total, progress.percent) == (3, 3, 100)


NO_ITEMS_LEFT: list[Callable[[], Any]] = [
    *(
        lambda: [1, 2],
        lambda: iter([1, 2]),
        lambda: range(10**20)[:2],
        {1: "", 2: ""}.keys,
    )
]


@pytest.mark.parametrize("items", NO_ITEMS_LEFT)
def test_each_without_items_left_writes_nothing(
    any_manager: ExecutionManager, items: Callable[[], Any]
) -> None:
    job = any_manager.create("a")
    any_manager.checkpoint(job.id, "at", 1)
    with any_manager.attempt(job.id) as attempt:
        before = any_manager.get(job.id)
        assert list(attempt.each(items(), checkpoint="at")) == []
        assert any_manager.get(job.id) == before


@pytest.mark.parametrize("items", [list, lambda: [1], lambda: iter(()), lambda: iter([1])])
def test_each_fewer_items_than_done_refused(
    any_manager: ExecutionManager, items: Callable[[], Any]
) -> None:
    """A query of the rows that are left would skip as many of them as are done."""
    job = any_manager.create("a")
    any_manager.checkpoint(job.id, "at", 1)
    with (
        pytest.raises(InvalidValue, match=r"items has \d items, but .* 'at' says that 2 are done"),
        any_manager.attempt(job.id) as attempt,
    ):
        list(attempt.each(items(), checkpoint="at"))
    assert any_manager.get(job.id).status == "failed"


class UnorderedMapping(Mapping[int, int]):
    """A mapping without a promise about its order."""

    def __getitem__(self, key: int) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        return iter([1, 2])

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize(
    "items", [{1, 2}, frozenset([1, 2]), UnorderedMapping().keys()], ids=lambda v: type(v).__name__
)
def test_each_collection_without_order_refused(any_manager: ExecutionManager, items: Any) -> None:
    job = any_manager.create("a")
    with (
        pytest.raises(InvalidValue, match="whose order differs from process to process"),
        any_manager.attempt(job.id) as attempt,
    ):
        list(attempt.each(items))
    assert any_manager.get(job.id).status == "failed"


def test_each_length_beyond_ssize_is_unknown(any_manager: ExecutionManager) -> None:
    with any_manager.attempt(any_manager.create("a").id) as attempt:
        assert next(iter(attempt.each(range(10**20)))) == 0


def test_each_left_early_keeps_previous_checkpoint(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a")
    with any_manager.attempt(job.id) as attempt:
        for item in attempt.each("abcd"):
            if item == "c":
                break
        assert attempt.checkpoints == {"last_index": 1}
        # A second loop must not take that checkpoint as its own and skip items.
        with pytest.raises(InvalidValue, match="'last_index' belongs to another loop"):
            attempt.each("efgh")
        assert list(attempt.each("efgh", checkpoint="other")) == ["e", "f", "g", "h"]


@pytest.mark.parametrize("stored", ["seven", -1, True, None, 1.5, 2**63, [1]], ids=repr)
def test_each_checkpoint_not_an_index_is_refused(
    any_manager: ExecutionManager, stored: Any
) -> None:
    job = any_manager.create("a")
    any_manager.checkpoint(job.id, "last_index", stored)
    with (
        pytest.raises(InvalidValue, match=r"'last_index' holds .*, not an index"),
        any_manager.attempt(job.id) as attempt,
    ):
        attempt.each([1])


def test_each_async_iterable_resumes_after_crash(database: Database) -> None:
    async def numbers() -> Any:
        for n in range(5):
            await asyncio.sleep(0)
            yield n

    async def run() -> None:
        async with connect_async(database.url) as manager:
            job = await manager.create("a", max_attempts=2)
            with pytest.raises(Outage):
                async with manager.attempt(job.id, retry_on=Outage) as attempt:
                    async for n in attempt.each(numbers()):
                        if n == 3:
                            raise Outage
            async with manager.attempt(job.id) as attempt:
                assert [n async for n in attempt.each(numbers())] == [3, 4]

    asyncio.run(run())
