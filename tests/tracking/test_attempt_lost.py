"""Blocks learn that their attempt is lost: by an event, or because their task is cancelled."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest

from execution_core import (
    AsyncExecutionManager,
    AttemptLost,
    ExecutionManager,
    InvalidValue,
    connect,
    connect_async,
)

from ..conftest import Database
from ..support.attempts import LOSSES
from ..support.heartbeats import EVERY

FOREVER = 30


@pytest.mark.parametrize("loss", LOSSES)
def test_attempt_lost_is_set_by_heartbeat(database: Database, loss: str) -> None:
    with connect(database.url) as manager, pytest.raises(AttemptLost):
        job = manager.create("a", max_attempts=2)
        with manager.attempt(job.id, heartbeat=EVERY) as attempt:
            time.sleep(0.05)
            assert not attempt.lost.is_set()
            LOSSES[loss][0](manager, job.id)
            assert attempt.lost.wait(FOREVER)


def test_attempt_lost_is_set_by_write(manager: ExecutionManager) -> None:
    job = manager.create("a")
    with pytest.raises(AttemptLost), manager.attempt(job.id) as attempt:
        attempt.checkpoint("k", 1)
        assert not attempt.lost.is_set()
        manager.cancel(job.id)
        with pytest.raises(AttemptLost):
            attempt.checkpoint("k", 2)
        assert attempt.lost.is_set()
    (claimed,) = [manager.start(manager.create("a").id)]
    manager.cancel(claimed.id)
    attempt = manager.attempt(claimed)
    with pytest.raises(AttemptLost), attempt:
        pytest.fail("it was entered")
    assert attempt.lost.is_set()


class LateHeartbeats:
    """Lets the first call for heartbeats wait until the end of the block is recorded."""

    def __init__(self, store: Any) -> None:
        self.asked, self._ended = threading.Event(), threading.Event()
        self.found = list[set[Any]]()
        self._heartbeat_many, self._update = store.heartbeat_many, store.update
        is_async = asyncio.iscoroutinefunction(store.update)
        store.heartbeat_many = self.send_async if is_async else self.send
        store.update = self.update_async if is_async else self.update

    def update(self, *args: Any, **options: Any) -> Any:
        answer = self._update(*args, **options)
        if self.asked.is_set():
            self._ended.set()
        return answer

    async def update_async(self, *args: Any, **options: Any) -> Any:
        answer = await self._update(*args, **options)
        if self.asked.is_set():
            self._ended.set()
        return answer

    def send(self, attempts: Any) -> Any:
        self.asked.set()
        assert self._ended.wait(FOREVER)
        self.found.append(self._heartbeat_many(attempts))
        return self.found[-1]

    async def send_async(self, attempts: Any) -> Any:
        self.asked.set()
        assert await asyncio.to_thread(self._ended.wait, FOREVER)
        self.found.append(await self._heartbeat_many(attempts))
        return self.found[-1]


def test_attempt_that_ends_while_a_heartbeat_is_sent_is_not_lost(
    database: Database, mode: str
) -> None:
    """The heartbeat finds it completed: neither the event is set, nor the task cancelled."""

    async def run() -> None:
        async with connect_async(database.url) as manager:
            late, job = LateHeartbeats(manager._store), await manager.create("a")
            async with manager.attempt(job.id, heartbeat=EVERY, cancel_task=True) as attempt:
                await asyncio.to_thread(late.asked.wait, FOREVER)
            assert late.found == [set()]
            assert not attempt.lost.is_set()

    if mode == "async":
        asyncio.run(run())
        return
    with connect(database.url) as manager:
        late, job = LateHeartbeats(manager._store), manager.create("a")
        with manager.attempt(job.id, heartbeat=EVERY) as attempt:
            late.asked.wait(FOREVER)
        assert late.found == [set()]
        assert not attempt.lost.is_set()


def test_cancel_task_invalid_options_refused(manager: ExecutionManager, mode: str) -> None:
    every = timedelta(seconds=1)
    expected = "cancel_task needs " + ("heartbeat" if mode == "async" else "asyncio")
    with pytest.raises(InvalidValue, match=expected):
        manager.attempt("0198a000-0000-7000-8000-000000000001", cancel_task=True)
    with pytest.raises(InvalidValue, match="cancel_task must be True or False"):
        manager.attempt(
            "0198a000-0000-7000-8000-000000000001",
            heartbeat=every,
            cancel_task=1,  # type: ignore[arg-type]
        )


@asynccontextmanager
async def lost_block(manager: AsyncExecutionManager, **options: Any) -> AsyncIterator[Any]:
    """Enter a block whose attempt is lost soon."""
    job = await manager.create("a", max_attempts=2)
    async with manager.attempt(job.id, heartbeat=EVERY, cancel_task=True, **options) as attempt:
        await manager.cancel(job.id)
        yield attempt


def run_scenario(database: Database, scenario: Callable[[AsyncExecutionManager], Any]) -> None:
    """Run it in a task, and check that no request to cancel is left."""

    async def run() -> None:
        async with connect_async(database.url) as manager:
            await scenario(manager)
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            await asyncio.sleep(0.02)

    asyncio.run(asyncio.wait_for(run(), FOREVER))


@pytest.mark.parametrize("loss", LOSSES)
def test_cancel_task_lost_block_raises_attempt_lost(database: Database, loss: str) -> None:
    async def scenario(manager: AsyncExecutionManager) -> None:
        job = await manager.create("a", max_attempts=2)
        with connect(database.url) as other:
            with pytest.raises(AttemptLost) as caught:
                async with manager.attempt(job.id, heartbeat=EVERY, cancel_task=True) as attempt:
                    losing = asyncio.create_task(asyncio.to_thread(LOSSES[loss][0], other, job.id))
                    await asyncio.sleep(FOREVER)
            await losing
        assert attempt.lost.is_set()
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        codes = "SELECT count(*) AS n FROM execution_history WHERE CAST(error AS text) LIKE :like"
        assert database.rows(codes, like="%interrupted%") == [{"n": 0}]

    run_scenario(database, scenario)


def test_cancel_task_swallowed_cancellation_still_ends_lost(database: Database) -> None:
    """The block goes on, with timeouts that work; its end finds the loss again."""

    async def scenario(manager: AsyncExecutionManager) -> None:
        with pytest.raises(AttemptLost):
            async with lost_block(manager):
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(FOREVER)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await asyncio.sleep(FOREVER)
        with pytest.raises(ValueError, match="mine"):
            async with lost_block(manager):
                try:
                    await asyncio.sleep(FOREVER)
                except asyncio.CancelledError:
                    raise ValueError("mine") from None

    run_scenario(database, scenario)


def test_cancel_task_cancelled_from_outside_stays_cancelled(database: Database) -> None:
    """Before, with and after the loss."""

    async def block(manager: AsyncExecutionManager, blocks: list[Any]) -> None:
        async with lost_block(manager) as attempt:
            blocks.append(attempt)
            await asyncio.sleep(FOREVER)

    async def scenario(manager: AsyncExecutionManager) -> None:
        for order in ("outside first", "loss first"):
            blocks = list[Any]()
            task = asyncio.create_task(block(manager, blocks))
            while not blocks:
                await asyncio.sleep(0)
            if order == "loss first":
                await blocks[0].lost.wait()
            task.cancel()
            if order == "outside first":
                blocks[0]._cancellation.on_loss()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelling() == 1

    run_scenario(database, scenario)


def test_cancel_task_timeouts_around_and_inside(database: Database) -> None:
    async def scenario(manager: AsyncExecutionManager) -> None:
        with pytest.raises(AttemptLost):
            async with asyncio.timeout(FOREVER), lost_block(manager):
                async with asyncio.timeout(FOREVER):
                    await asyncio.sleep(FOREVER)
        with pytest.raises(TimeoutError):  # both at once
            async with asyncio.timeout(FOREVER) as outer, lost_block(manager) as attempt:
                await waiting_for(attempt, outer)
        with pytest.raises(AttemptLost):
            async with lost_block(manager) as attempt, asyncio.timeout(FOREVER) as inner:
                await waiting_for(attempt, inner)

    async def waiting_for(attempt: Any, timeout: asyncio.Timeout) -> None:
        """Let the timeout expire in the iteration of the loop that finds the loss."""
        on_loss = attempt._cancellation.on_loss

        def both() -> None:
            timeout._on_timeout()  # type: ignore[attr-defined]
            on_loss()

        attempt._heartbeat.on_loss = both
        await asyncio.sleep(FOREVER)

    run_scenario(database, scenario)


@pytest.mark.parametrize("lost", [["outer"], ["inner"], ["outer", "inner"]])
def test_cancel_task_nested_blocks_lost_one_raises(database: Database, lost: list[str]) -> None:
    async def scenario(manager: AsyncExecutionManager) -> None:
        jobs = {name: await manager.create(name, max_attempts=2) for name in ("outer", "inner")}
        with pytest.raises(AttemptLost) as caught:
            async with (
                manager.attempt(jobs["outer"].id, heartbeat=EVERY, cancel_task=True) as one,
                manager.attempt(jobs["inner"].id, heartbeat=EVERY, cancel_task=True) as two,
            ):
                for each in (one, two) if len(lost) == 2 else ():
                    each._heartbeat.is_leaving = True  # type: ignore[union-attr]  # not yet found
                for name in lost:
                    await manager.cancel(jobs[name].id)
                for each in (one, two) if len(lost) == 2 else ():
                    each._cancellation.on_loss()
                await asyncio.sleep(FOREVER)
        assert caught.value.execution_id == jobs[lost[0]].id
        if lost == ["outer"]:
            inner = await manager.get(jobs["inner"].id)
            assert (inner.status, inner.error and inner.error.code) == ("retrying", "interrupted")
        if lost == ["inner"]:
            assert (await manager.get(jobs["outer"].id)).status == "failed"

    run_scenario(database, scenario)


def test_cancel_task_in_loops_and_task_groups(database: Database) -> None:
    """In a loop over `each`, while it writes; and the other tasks of a group are cancelled."""
    cancelled = list[int]()

    async def child(n: int) -> None:
        try:
            await asyncio.sleep(FOREVER)
        except asyncio.CancelledError:
            cancelled.append(n)
            raise

    async def scenario(manager: AsyncExecutionManager) -> None:
        with pytest.raises(AttemptLost):
            async with lost_block(manager) as attempt:
                async for _ in attempt.each(range(10**6), every=10**6):
                    await asyncio.sleep(0)
        with pytest.raises(AttemptLost):
            async with lost_block(manager), asyncio.TaskGroup() as group:
                for n in range(2):
                    group.create_task(child(n))
        assert sorted(cancelled) == [0, 1]

    run_scenario(database, scenario)


def test_cancel_task_of_block_entered_by_another_task(database: Database) -> None:
    """The task that enters the block is cancelled, not the one that made the attempt."""

    async def work(attempt: Any, begun: asyncio.Event) -> None:
        async with attempt:
            begun.set()
            await asyncio.sleep(FOREVER)

    async def scenario(manager: AsyncExecutionManager) -> None:
        job, begun = await manager.create("a"), asyncio.Event()
        attempt = manager.attempt(job.id, heartbeat=EVERY, cancel_task=True)
        task = asyncio.create_task(work(attempt, begun))
        await begun.wait()
        await manager.cancel(job.id)
        with pytest.raises(AttemptLost):
            await task
        assert not task.cancelled()

    run_scenario(database, scenario)


def test_cancel_task_loss_found_while_leaving_does_not_cancel(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor a loss that is found before the block has begun: then its first await is cancelled."""

    async def scenario(manager: AsyncExecutionManager) -> None:
        with pytest.raises(AttemptLost) as caught:
            async with lost_block(manager) as attempt:
                attempt._heartbeat.is_leaving = True  # no call may be faster
                asyncio.get_running_loop().call_soon(attempt._cancellation.on_loss)
        assert caught.value.__cause__ is None
        job = await manager.create("a")
        attempt = manager.attempt(job.id, heartbeat=timedelta(hours=1), cancel_task=True)
        attempt.lost.set()
        with pytest.raises(AttemptLost):
            async with attempt:
                await manager.cancel(job.id)

    run_scenario(database, scenario)
    assert caplog.text == ""
