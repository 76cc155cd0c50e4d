"""A worker process: it calls the verbs of `choices.VERBS` on executions that all workers share."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from .choices import Chooser
from .journal import NOT_DONE, UNKNOWN, Journal, Json, Operation, as_json
from .stores import manager_of

TASKS: Final = 2
"""The number of tasks of an asyncio worker."""
PAUSE: Final = 0.1
"""Seconds to wait after an error, so that a server that is down is not called continuously."""


class Shared(NamedTuple):
    """Shared memory without locks: a killed worker would never release one."""

    generations: Any
    """The generation of each slot's execution, as a hint."""
    made: Any
    """The number of operations of each worker."""
    stop: Any
    """Whether the workers must stop."""


@dataclass(frozen=True)
class Job:
    """The parameters of a worker."""

    number: int
    kind: str
    url: str
    journal: Path
    seed: str


def work(job: Job, shared: Shared) -> None:
    """Work until `shared.stop` is set."""
    worker = Worker(job, shared)
    if "async" in job.kind:
        asyncio.run(worker.work_in_asyncio())
    else:
        worker.work()


class Worker:
    """A manager, its journal and its choices."""

    def __init__(self, job: Job, shared: Shared) -> None:
        self.number, self.shared = job.number, shared
        self.journal = Journal(job.journal)
        self.chooser = Chooser(job.seed, shared.generations)
        self.manager = manager_of(job.kind, job.url, self.journal)

    def work(self) -> None:
        """Make operations sequentially."""
        while not self.shared.stop.value:
            with self.operation() as (operation, call):
                operation.answers = returned_executions(call())
            if operation.outcome in (UNKNOWN, NOT_DONE):
                time.sleep(PAUSE)
        self.manager.close()

    async def work_in_asyncio(self) -> None:
        """Make operations in several tasks."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(TASKS):
                tasks.create_task(self._task())
        await self.manager.close()

    async def _task(self) -> None:
        while not self.shared.stop.value:
            with self.operation() as (operation, call):
                operation.answers = returned_executions(await call())
            if operation.outcome in (UNKNOWN, NOT_DONE):
                await asyncio.sleep(PAUSE)

    @contextmanager
    def operation(self) -> Iterator[tuple[Operation, Callable[[], Any]]]:
        """Choose an operation, journal it, and remember its result."""
        name = self.journal.next_name()
        slot, verb, arguments = self.chooser.next(name)
        with self.journal.operation(name, verb, arguments) as operation:
            yield operation, partial(getattr(self.manager, verb), **arguments)
        self.chooser.learn(slot, operation)
        self.shared.made[self.number] += 1


def returned_executions(answer: Any) -> list[Json]:
    """Return the executions in the answer of a verb."""
    return [as_json(each) for each in (answer if isinstance(answer, list) else [answer])]
