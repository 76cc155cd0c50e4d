"""A process that does what `choices.VERBS` names, to executions that all others work on as well."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from .choices import Chooser
from .journal import UNKNOWN, Journal, Json, Operation, seen
from .stores import manager_of

TASKS: Final = 2
"""How many tasks a worker for asyncio has."""
PAUSE: Final = 0.1
"""Seconds after an error: a server that is down is not to be asked all the time."""


class Shared(NamedTuple):
    """Memory of all workers, without locks: one that is killed would keep his."""

    generations: Any
    """For each place, which generation its execution is of, as a hint."""
    made: Any
    """For each worker, how many operations it has made."""
    stop: Any
    """Whether it is over."""


@dataclass(frozen=True)
class Job:
    """What a worker is to do it with."""

    number: int
    kind: str
    url: str
    journal: Path
    seed: str


def work(job: Job, shared: Shared) -> None:
    """Work until it is told to stop."""
    worker = Worker(job, shared)
    if "async" in job.kind:
        asyncio.run(worker.work_in_asyncio())
    else:
        worker.work()


class Worker:
    """A manager, and what it is used for."""

    def __init__(self, job: Job, shared: Shared) -> None:
        self.number, self.shared = job.number, shared
        self.journal = Journal(job.journal)
        self.chooser = Chooser(job.seed, shared.generations)
        self.manager = manager_of(job.kind, job.url, self.journal)

    def work(self) -> None:
        """Make one operation after the other."""
        while not self.shared.stop.value:
            with self.operation() as (operation, call):
                operation.answers = told(call())
            if operation.outcome == UNKNOWN:
                time.sleep(PAUSE)
        self.manager.close()

    async def work_in_asyncio(self) -> None:
        """Make some at once."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(TASKS):
                tasks.create_task(self._task())
        await self.manager.close()

    async def _task(self) -> None:
        while not self.shared.stop.value:
            with self.operation() as (operation, call):
                operation.answers = told(await call())
            if operation.outcome == UNKNOWN:
                await asyncio.sleep(PAUSE)

    @contextmanager
    def operation(self) -> Iterator[tuple[Operation, Callable[[], Any]]]:
        """Choose one and keep its journal; learn from what becomes of it."""
        name = self.journal.next_name()
        place, verb, arguments = self.chooser.next(name)
        with self.journal.operation(name, verb, arguments) as operation:
            yield operation, partial(getattr(self.manager, verb), **arguments)
        self.chooser.learn(place, operation)
        self.shared.made[self.number] += 1


def told(answer: Any) -> list[Json]:
    """Return the executions that a verb has answered."""
    return [seen(each) for each in (answer if isinstance(answer, list) else [answer])]
