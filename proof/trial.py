"""One trial of one database: let everything loose on it, and judge what came of it."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import chaos, checker
from .chaos import Plan
from .checker import Violation
from .stores import BROKEN
from .targets import CRASHES, Fault, Target
from .worker import PAUSE, TASKS

FAULTS: Final = {
    Fault.KILL: 60,
    Fault.TERMINATE: 60,
    Fault.STOP: 4,
    Fault.CRASH: 4,
    Fault.BEFORE: 210,
    Fault.AFTER: 210,
    Fault.RACING: 210,
    Fault.READING: 60,
}
OPERATIONS: Final = 5_000
"""So many at least, however slow the machine is."""
QUICK: Final = Plan(
    seconds=4, operations=1000, faults={fault: -(-n // 20) for fault, n in FAULTS.items()}
)
"""Some seconds, to see that it runs."""
CONTROL: Final = Plan(seconds=4, operations=1000, places=20, kinds=(BROKEN,))
"""The same without faults and with a store that is wrong: it must be found out."""
OF_A_FAULT: Final = 3
"""How many calls a fault may leave unknown: it is of one worker, who has two under way at most."""


@dataclass(frozen=True)
class Trial:
    """What was done, and what was wrong with it."""

    database: str
    possible: tuple[Fault, ...]
    """The faults that the database can have at all."""
    faults: Counter[Fault]
    missing: Counter[Fault]
    """Those that were asked for and did not come about."""
    outcomes: Counter[str]
    executions: int
    moves: int
    violations: list[Violation]
    explained: int = 0
    """How many unknown outcomes the faults explain."""

    @property
    def kinds(self) -> Counter[str]:
        """Count the violations."""
        return Counter(violation.kind for violation in self.violations)


def trial(target: Target, plan: Plan, seed: int, folder: Path) -> Trial:
    """Make one; its journals stay in the folder."""
    evidence = chaos.run(target, plan, seed, folder)
    wanted = Counter({f: n for f, n in plan.faults.items() if f in target.faults})
    return Trial(
        database=target.name,
        possible=target.faults,
        faults=evidence.faults,
        missing=wanted - evidence.faults,
        outcomes=Counter(each.outcome for each in evidence.operations),
        executions=len(evidence.subjects),
        moves=sum(len(subject.history) for subject in evidence.subjects),
        violations=checker.check(evidence.operations, evidence.subjects, target.errors),
        explained=explained(plan, evidence.faults, target.down),
    )


def explained(plan: Plan, faults: Counter[Fault], down: float) -> int:
    """Return how many unknown outcomes faults explain, and the seconds that the server was down.

    Nobody can ask it then: each task of each worker makes one call after the other, and a pause.
    """
    crashes = sum(faults[crash] for crash in CRASHES)
    calls = plan.workers * TASKS * (crashes + down / PAUSE)
    return OF_A_FAULT * faults.total() + int(calls)
