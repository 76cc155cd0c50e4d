"""Run one trial of one database, and check the evidence."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import chaos, checker
from .chaos import Plan
from .checker import Violation
from .journal import NOT_DONE, UNKNOWN
from .stores import BROKEN
from .targets import OUTAGES, Fault, Target
from .worker import PAUSE, TASKS

FAULTS: Final = {
    Fault.KILL: 60,
    Fault.TERMINATE: 60,
    Fault.STOP: 4,
    Fault.CRASH: 4,
    Fault.POOLER: 10,
    Fault.FAILOVER: 3,
    Fault.BEFORE: 210,
    Fault.AFTER: 210,
    Fault.RACING: 210,
    Fault.READING: 60,
}
OPERATIONS: Final = 5_000
"""The least number of operations, however slow the machine is."""
QUICK: Final = Plan(
    seconds=4, operations=1000, faults={fault: -(-n // 20) for fault, n in FAULTS.items()}
)
"""A few seconds, to check that the proof runs."""
CONTROL: Final = Plan(seconds=4, operations=1000, slots=20, kinds=(BROKEN,))
"""The same without faults and with a broken store, which must be detected."""
UNANSWERED_PER_FAULT: Final = 3
"""How many unanswered calls one fault explains: a worker has at most two calls in progress."""


@dataclass(frozen=True)
class Trial:
    """The figures and the violations of a trial."""

    database: str
    possible: tuple[Fault, ...]
    """The faults that the database can have."""
    faults: Counter[Fault]
    missing: Counter[Fault]
    """The requested faults that were not injected."""
    outcomes: Counter[str]
    executions: int
    history_rows: int
    violations: list[Violation]
    explained: int = 0
    """How many unknown outcomes and errors the faults explain."""

    @property
    def unanswered(self) -> int:
        """Count the calls whose outcome is unknown, or that failed and changed nothing."""
        return self.outcomes[UNKNOWN] + self.outcomes[NOT_DONE]

    @property
    def kinds(self) -> Counter[str]:
        """Count the violations."""
        return Counter(violation.kind for violation in self.violations)


def trial(target: Target, plan: Plan, seed: int, folder: Path) -> Trial:
    """Run a trial; its journals stay in the folder."""
    evidence = chaos.run(target, plan, seed, folder)
    wanted = Counter({f: n for f, n in plan.faults.items() if f in target.faults})
    return Trial(
        database=target.name,
        possible=target.faults,
        faults=evidence.faults,
        missing=wanted - evidence.faults,
        outcomes=Counter(each.outcome for each in evidence.operations),
        executions=len(evidence.executions),
        history_rows=sum(len(execution.history) for execution in evidence.executions),
        violations=checker.check(evidence.operations, evidence.executions, target.errors),
        explained=explained(plan, evidence.faults, target.down),
    )


def explained(plan: Plan, faults: Counter[Fault], down: float) -> int:
    """Return how many unanswered calls the faults and the server's downtime explain.

    While it is down, each task of each worker makes a call, pauses, and makes the next.
    """
    outages = sum(faults[outage] for outage in OUTAGES)
    calls = plan.workers * TASKS * (outages + down / PAUSE)
    return UNANSWERED_PER_FAULT * faults.total() + int(calls)
