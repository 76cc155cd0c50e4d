"""The worker processes of `proof.trees`, and what they do for each execution."""

import logging
import os
import signal
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Final

from execution_core import Attempt, Backoff, ExecutionManager, connect
from execution_core.worker import Worker

from .chaos import fork_server
from .targets import TIMEOUT

HEARTBEAT: Final = timedelta(seconds=0.5)
STALLED: Final = 6 * HEARTBEAT
DEFECT, OUTAGE = "defect", "outage"


@dataclass(frozen=True)
class Plan:
    """The size of the tree, the workers, and the faults."""

    batches: int = 200
    items: int = 100
    workers: int = 8
    kills: int = 20
    cancellations: int = 5


def do_root(attempt: Attempt, manager: ExecutionManager, plan: Plan) -> None:
    """Create the batches; with keys, so that another attempt creates no others."""
    id = attempt.execution.id
    options = {"type": "batch", "parent_id": id, "max_attempts": 100}
    manager.create_many(
        {**options, "payload": n, "idempotency_key": f"{id} {n}"} for n in range(plan.batches)
    )
    attempt.finish_with_children()


def do_batch(attempt: Attempt, manager: ExecutionManager, plan: Plan) -> None:
    """Create the items of a batch, in one statement."""
    id, number = attempt.execution.id, attempt.execution.payload
    options = {"type": "item", "parent_id": id, "max_attempts": 100}
    manager.create_many(
        {**options, "payload": [n, fault_of(number, n)], "idempotency_key": f"{id} {n}"}
        for n in range(plan.items)
    )
    attempt.finish_with_children()


def fault_of(batch: int, item: int) -> str | None:
    """Return how an item fails: one of every tenth batch for good, others at the first attempt."""
    if batch % 10 == 0 and item == 7:
        return DEFECT
    return OUTAGE if batch % 5 == 1 and item % 10 == 3 else None


def do_item(attempt: Attempt) -> int:
    """Return the square of a number, unless the item fails."""
    number, fault = attempt.execution.payload
    if fault == DEFECT:
        raise ValueError(fault)
    if fault == OUTAGE and attempt.execution.attempts == 1:
        raise ConnectionError(fault)
    return int(number) ** 2


def work(url: str, plan: Plan, name: str) -> None:
    """Run a worker until SIGTERM."""
    logging.getLogger("execution_core").setLevel(logging.ERROR)  # failures are part of the plan
    with connect(url) as manager:
        Worker(
            manager,
            {
                "root": partial(do_root, manager=manager, plan=plan),
                "batch": partial(do_batch, manager=manager, plan=plan),
                "item": do_item,
            },
            worker=name,
            heartbeat=HEARTBEAT,
            stalled_after=STALLED,
            retry_on=ConnectionError,
            backoff=Backoff(timedelta(milliseconds=10)),
            poll=timedelta(seconds=0.2),
        ).run()


class Workers:
    """A constant number of worker processes: a killed one is replaced."""

    def __init__(self, url: str, plan: Plan) -> None:
        self.url, self.plan, self.started = url, plan, 0
        self.processes = [self._start() for _ in range(plan.workers)]

    def kill(self, n: int) -> None:
        """Kill one, and start another."""
        self._end(self.processes[n], signal.SIGKILL, -signal.SIGKILL)
        self.processes[n] = self._start()

    def index(self, name: str | None) -> int:
        """Return the number of the process with this name."""
        return [process.name for process in self.processes].index(name)

    def stop(self) -> None:
        """Let all of them return."""
        for process in self.processes:
            self._end(process, signal.SIGTERM, 0, -signal.SIGTERM)  # it may not have begun yet

    def abandon(self) -> None:
        """Kill what still runs."""
        for process in self.processes:
            process.kill()
            process.join()

    def _start(self) -> Any:
        self.started += 1
        name = f"worker {self.started}"
        process = fork_server.Process(
            target=work, name=name, args=(self.url, self.plan, name), daemon=True
        )
        process.start()
        return process

    def _end(self, process: Any, number: int, *expected: int) -> None:
        os.kill(process.pid, number)
        process.join(TIMEOUT)
        if process.exitcode not in expected:
            raise RuntimeError(f"{process.name} ended with {process.exitcode}, see above")
