"""Workers that all work on the same executions, while everything is made to fail that can be."""

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
from .journal import Journal, Operation, seen
from .stores import KINDS, manager_of
from .subject import Move, Subject
from .targets import PATIENCE, Fault, Target, wait_until
from .worker import Job, Shared, told, work

# Processes that share nothing with this one, from a server that may have done the imports already.
fresh = multiprocessing.get_context("forkserver")

PAGE: Final = 1000


@dataclass(frozen=True)
class Plan:
    """How long and how hard: as many seconds and operations at least, and so many of each fault."""

    seconds: float
    operations: int
    faults: dict[Fault, int] = field(default_factory=dict)
    workers: int = 8
    places: int = 100
    kinds: tuple[str, ...] = KINDS


@dataclass(frozen=True)
class Evidence:
    """What there is to be judged afterwards."""

    operations: list[Operation]
    subjects: list[Subject]
    faults: Counter[Fault]


def run(target: Target, plan: Plan, seed: int, folder: Path) -> Evidence:
    """Let everything loose, and return what came of it; the journals stay in the folder."""
    by_seed = random.Random(seed)
    folder.mkdir()
    with Crew(target, plan, seed, folder).at_work() as crew:
        wait_until(lambda: min(crew.shared.made) > 0, "some workers did not begin")
        begun = time.monotonic()
        faults = [fault for fault in target.faults for _ in range(plan.faults.get(fault, 0))]
        by_seed.shuffle(faults)
        for fault in faults:
            time.sleep(by_seed.uniform(0, 2 * plan.seconds / len(faults)))
            if fault is Fault.KILL:
                crew.kill(by_seed.randrange(plan.workers))
            else:
                target.inflict(fault, by_seed)
        time.sleep(max(0, begun + plan.seconds - time.monotonic()))
        wait_until(
            lambda: target.inflicted() + crew.inflicted() == Counter(faults),
            "some faults did not come about",
        )
        wait_until(lambda: sum(crew.shared.made) >= plan.operations, "too few operations were made")
    target.settle()
    return Evidence(
        operations=journal.read(sorted(folder.glob("*.jsonl"))),
        subjects=list(subjects(target.url)),
        faults=target.inflicted() + crew.inflicted(),
    )


class Crew:
    """Always as many workers, whoever is killed."""

    def __init__(self, target: Target, plan: Plan, seed: int, folder: Path) -> None:
        self.target, self.plan, self.seed, self.folder = target, plan, seed, folder
        self.shared = Shared(
            generations=fresh.RawArray("i", plan.places),
            made=fresh.RawArray("i", plan.workers),
            stop=fresh.RawValue("b", 0),
        )
        self.started: Counter[int] = Counter()
        self.begun_at: dict[int, int] = {}
        self.kills = 0

    @contextmanager
    def at_work(self) -> Iterator["Crew"]:
        """Start them, and let them come to their ends."""
        self._prepare()
        self.processes = [self._start(n) for n in range(self.plan.workers)]
        try:
            yield self
            self.shared.stop.value = 1
            for process in self.processes:
                process.join(PATIENCE)
                self._ended(process, 0)
        finally:
            for process in self.processes:
                process.kill()
                process.join()

    def kill(self, n: int) -> None:
        """Kill one at its work, and start another one in its place."""
        process = self.processes[n]
        wait_until(lambda: self.shared.made[n] > self.begun_at[n], f"{process.name} does nothing")
        process.kill()
        process.join()
        self._ended(process, -9)
        self.kills += 1
        self.processes[n] = self._start(n)

    def inflicted(self) -> Counter[Fault]:
        """Count what has failed so far."""
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
            url=self.target.of_workers,
            journal=self.folder / f"{name}.jsonl",
            seed=f"{self.seed} {name}",
        )
        process = fresh.Process(target=work, name=name, args=(job, self.shared), daemon=True)
        process.start()
        return process

    def _prepare(self) -> None:
        """Create half of the executions; the others are created by all workers at once."""
        own = Journal(self.folder / "parent.jsonl")
        chooser = Chooser(f"{self.seed} parent", self.shared.generations)
        manager = manager_of("host", self.target.url, own)
        for place in range(0, self.plan.places, 2):
            arguments = chooser.new(place)
            with own.operation(own.next_name(), "create", arguments) as operation:
                operation.answers = told(manager.create(**arguments))
        manager.close()


def subjects(url: str) -> Iterator[Subject]:
    """Read every execution, by the library and by SQL."""
    engine = create_engine(url)
    history = execution_history.c
    with engine.connect() as connection, connect(url) as manager:
        written = select(executions.c.id, executions.c.write_token)
        tokens = {id: token for id, token in connection.execute(written)}  # noqa: C416 - of rows
        moves: dict[str, list[Move]] = {id: [] for id in tokens}
        for id, *move in connection.execute(
            select(
                history.execution_id,
                *(history.seq, history.from_status, history.to_status, history.attempt),
                history.write_token,
            ).order_by(history.seq)
        ):
            moves[id].append(Move(*move))
        before = None
        while page := manager.list(limit=PAGE, before=before):
            before = page[-1].id
            for each in page:
                yield Subject(seen(each), tokens[each.id], moves[each.id])
    engine.dispose()
