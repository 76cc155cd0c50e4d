"""Run workers on the same executions, and inject faults meanwhile."""

import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy import create_engine, select

from execution_core import connect
from execution_core.sql.schema.tables import execution_history, executions

from . import journal
from .choices import Chooser
from .journal import Journal, Operation, as_json
from .observed import HistoryRow, ObservedExecution
from .stores import KINDS, manager_of
from .targets import TIMEOUT, Fault, Target, wait_until
from .worker import Job, Shared, returned_executions, work

# Processes that share nothing with this one, from a fork server that may have imported already.
fork_server = multiprocessing.get_context("forkserver")

PAGE: Final = 1000


@dataclass(frozen=True)
class Plan:
    """The least duration and number of operations, and how many faults of each kind."""

    seconds: float
    operations: int
    faults: dict[Fault, int] = field(default_factory=dict)
    workers: int = 8
    slots: int = 100
    kinds: tuple[str, ...] = KINDS


@dataclass(frozen=True)
class Evidence:
    """All that the checker judges."""

    operations: list[Operation]
    executions: list[ObservedExecution]
    faults: Counter[Fault]


def run(target: Target, plan: Plan, seed: int, folder: Path) -> Evidence:
    """Run the workers with faults, and return the evidence; the journals stay in the folder."""
    random_source = random.Random(seed)
    folder.mkdir()
    with WorkerPool(target, plan, seed, folder).at_work() as pool:
        wait_until(lambda: min(pool.shared.made) > 0, "some workers did not start")
        begun = time.monotonic()
        faults = [fault for fault in target.faults for _ in range(plan.faults.get(fault, 0))]
        random_source.shuffle(faults)
        for fault in faults:
            time.sleep(random_source.uniform(0, 2 * plan.seconds / len(faults)))
            if fault is Fault.KILL:
                pool.kill(random_source.randrange(plan.workers))
            else:
                target.inject(fault, random_source)
        time.sleep(max(0, begun + plan.seconds - time.monotonic()))
        wait_until(
            lambda: target.injected() + pool.injected() == Counter(faults),
            "some faults were not injected",
        )
        wait_until(lambda: sum(pool.shared.made) >= plan.operations, "too few operations were made")
    target.settle()
    return Evidence(
        operations=journal.read(sorted(folder.glob("*.jsonl"))),
        executions=list(read_executions(target.url)),
        faults=target.injected() + pool.injected(),
    )


class WorkerPool:
    """A constant number of worker processes: a killed one is replaced."""

    def __init__(self, target: Target, plan: Plan, seed: int, folder: Path) -> None:
        self.target, self.plan, self.seed, self.folder = target, plan, seed, folder
        self.shared = Shared(
            generations=fork_server.RawArray("i", plan.slots),
            made=fork_server.RawArray("i", plan.workers),
            stop=fork_server.RawValue("b", 0),
        )
        self.started: Counter[int] = Counter()
        self.begun_at: dict[int, int] = {}
        self.kills = 0

    @contextmanager
    def at_work(self) -> Iterator["WorkerPool"]:
        """Start the workers, and stop them at the end."""
        self._prepare()
        self.processes = [self._start(n) for n in range(self.plan.workers)]
        try:
            yield self
            self.shared.stop.value = 1
            for process in self.processes:
                process.join(TIMEOUT)
                self._ended(process, 0)
        finally:
            for process in self.processes:
                process.kill()
                process.join()

    def kill(self, n: int) -> None:
        """Kill a worker during its work, and start another in its place."""
        process = self.processes[n]
        wait_until(
            lambda: self.shared.made[n] > self.begun_at[n],
            f"worker {process.name} makes no operations",
        )
        process.kill()
        process.join()
        self._ended(process, -9)
        self.kills += 1
        self.processes[n] = self._start(n)

    def injected(self) -> Counter[Fault]:
        """Count the faults injected so far."""
        return Counter({Fault.KILL: self.kills})

    def _ended(self, process: Any, expected: int) -> None:
        if process.exitcode != expected:
            raise RuntimeError(f"worker {process.name} ended with {process.exitcode}, see above")

    def _start(self, n: int) -> Any:
        self.started[n] += 1
        self.begun_at[n] = self.shared.made[n]
        name = f"w{n}.{self.started[n]}"
        job = Job(
            number=n,
            kind=self.plan.kinds[n % len(self.plan.kinds)],
            url=self.target.workers_url,
            journal=self.folder / f"{name}.jsonl",
            seed=f"{self.seed} {name}",
        )
        process = fork_server.Process(target=work, name=name, args=(job, self.shared), daemon=True)
        process.start()
        return process

    def _prepare(self) -> None:
        """Create half of the executions; all workers create the others at the same time."""
        own = Journal(self.folder / "parent.jsonl")
        chooser = Chooser(f"{self.seed} parent", self.shared.generations)
        manager = manager_of("host", self.target.url, own)
        for slot in range(0, self.plan.slots, 2):
            arguments = chooser.new(slot)
            with own.operation(own.next_name(), "create", arguments) as operation:
                operation.answers = returned_executions(manager.create(**arguments))
        manager.close()


def read_executions(url: str) -> Iterator[ObservedExecution]:
    """Read every execution, with the library and with SQL."""
    engine = create_engine(url)
    history = execution_history.c
    with engine.connect() as connection, connect(url) as manager:
        written = select(executions.c.id, executions.c.write_token)
        tokens = {id: token for id, token in connection.execute(written)}  # noqa: C416 - of rows
        histories: dict[str, list[HistoryRow]] = {id: [] for id in tokens}
        for id, *row in connection.execute(
            select(
                history.execution_id,
                *(history.seq, history.from_status, history.to_status, history.attempt),
                history.write_token,
            ).order_by(history.seq)
        ):
            histories[id].append(HistoryRow(*row))
        before = None
        while page := manager.list(limit=PAGE, before=before):
            before = page[-1].id
            for each in page:
                yield ObservedExecution(as_json(each), tokens[each.id], histories[each.id])
    engine.dispose()
