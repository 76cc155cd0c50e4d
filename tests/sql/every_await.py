"""Repeat a call and interrupt it at each of its awaits."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from execution_core import Execution

from ..support.injection import (
    Figures,
    ManagerHarness,
    Scenario,
    collect_garbage,
    with_timeout,
)
from ..support.interruptions import (
    AwaitInterrupter,
    Interrupt,
    cancel_after_result,
    cancel_while_waiting,
)
from ..support.sampling import WHOLE
from ..support.signals import Interruption
from ..support.verbs import VERBS, Call, Verb

KIND_NAMES = ("own", "host", "listening")
KINDS = pytest.mark.parametrize("kind", KIND_NAMES)

WAYS = pytest.mark.parametrize("way", [cancel_while_waiting, cancel_after_result])


def verbs_of(kind: str, kinds: int = len(KIND_NAMES)) -> list[Verb]:
    """Return all verbs; in `make test` each of the kinds gets another share of them."""
    verbs = list(VERBS.values())
    return verbs if WHOLE else verbs[KIND_NAMES.index(kind) :: kinds]


async def at_every_await(
    subject: ManagerHarness,
    world: Scenario,
    ways: Callable[[int], dict[int, Interrupt]],
    figures: Figures,
    *,
    ready: Callable[[], Any] | None = None,
    call: Call | None = None,
    abandons: bool = False,
    every: int = 1,
    first: int = 0,
) -> None:
    """Repeat a call; interrupt the n-th repetition at its n-th await.

    With `abandons`, the call may leave connections to the garbage collector. In `make test` only
    every `every`-th await is tried, from a different first one for each call.
    """
    call, awaits = call or world.verb.call, AwaitInterrupter()

    async def make_ready() -> None:
        await with_timeout(subject.manager.list(limit=1))
        subject.assert_free()
        if ready:
            await ready()

    for _ in range(2):  # so that caches are filled
        await make_ready()
        await awaits.run(call(subject.manager, world.target), {})
        world.end()
    last = awaits.seen
    for n in range(1, last + 1) if WHOLE else range(1 + first % every, last + 1, every):
        await make_ready()
        end = await awaits.run(call(subject.manager, world.target), ways(n))
        raised = isinstance(end, asyncio.CancelledError | Interruption)
        assert raised or not awaits.interrupted, f"{end!r} at await {n}"
        end = None  # release the traceback and its frames
        if abandons:
            collect_garbage()
        subject.assert_free()
        figures[world.end()] += 1
        figures["interrupted twice"] += awaits.interrupted == 2
    figures["awaits"] += last
    await make_ready()


HOUR = timedelta(hours=1)


def block(manager: Any, job: Execution) -> None:
    with manager.attempt(job if job.status == "running" else job.id) as attempt:
        for _ in attempt.each("ab"):
            pass
        attempt.log("half way")
        attempt.result = 7


async def async_block(manager: Any, job: Execution) -> None:
    given = job if job.status == "running" else job.id
    async with manager.attempt(given, heartbeat=HOUR) as attempt:
        async for _ in attempt.each("ab"):
            pass
        await attempt.log("half way")
        attempt.result = 7
