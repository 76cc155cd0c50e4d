"""Random calls of every verb give the same answers with SQL as with the pure state machine.

The runs are random with EXECUTION_CORE_PROOF=1, as in `make proof`, and otherwise always the same;
`make test` makes a few of them.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from execution_core import (
    Execution,
    ExecutionManager,
    ExecutionNotFound,
    ExecutionProblem,
    IdempotencyConflict,
    InvalidStateTransition,
    InvalidValue,
    MaxRetriesExceeded,
    StaleAttempt,
)

from ..conftest import open_database
from ..support import model_arguments
from ..support.history import ALLOWED_TRANSITIONS, assert_legal
from ..support.model import EVERYTHING, MILLISECOND, History, SideBySide
from ..support.sampling import in_whole

PROOF = "EXECUTION_CORE_PROOF" in os.environ
SETTINGS = settings(
    max_examples=500 if PROOF else in_whole(60, 20),
    stateful_step_count=50 if PROOF else 40,
    derandomize=not PROOF,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
REFUSALS = (
    *(ExecutionNotFound, InvalidStateTransition, MaxRetriesExceeded, StaleAttempt),
    *(IdempotencyConflict, InvalidValue),
)


def sweep_all(manager: ExecutionManager, *, limit: Any, **options: Any) -> Any:
    """Sweep until nothing is left: with a limit, any of the candidates may be swept."""
    sizes, swept = [], []
    while found := manager.sweep(limit=limit, **options):
        assert [each.id for each in found] == sorted(each.id for each in found)
        sizes.append(len(found))
        swept += found
    return sizes, sorted(swept, key=lambda each: each.id)


class Machine(RuleBasedStateMachine):
    """All calls of a manager; time advances before each step."""

    def __init__(self, sides: SideBySide, figures: Counter[Any]) -> None:
        super().__init__()
        self.sides, self.figures = sides, figures
        self.history = History()
        self.rows: list[Execution] = []
        self.agreed = True

    @initialize()
    def begin(self) -> None:
        self.sides.begin()
        for n in (1, 2, 9):
            passed = {
                "timeout": n * model_arguments.HOUR,
                "start_after": model_arguments.OnTheHour(),
            }
            self.ask("create", type="mail", max_attempts=n, **passed)
        # Refusals that random calls seldom meet.
        failed = self.ask("create", type="ship", idempotency_key="k")
        self.ask("create", type="ship", payload=1, idempotency_key="k")
        self.attempt(failed.id, [("fail", model_arguments.RETRYABLE), ("retry", {})])

    @rule(step=model_arguments.steps)
    def step(self, step: tuple[str, dict[str, Any]]) -> None:
        # A single rule: with many, each run would disable half of them and reach few states.
        name, passed = step
        own = ("attempt", "prune", "logs", "wait", "in_time")
        call = getattr(self, name) if name in own else partial(self.ask, name)
        call(**passed)

    def attempt(self, id: Any, course: list[tuple[str, dict[str, Any]]]) -> None:
        """Make a whole attempt, as workers do: random single verbs seldom get that far."""
        started = self.ask("start", id=id)
        if isinstance(started, Execution):
            for name, passed in course:
                self.ask(name, id=started.id, **passed)

    def prune(self, **passed: Any) -> None:
        ends = [row.completed_at for row in self.rows if row.completed_at]
        if len(set(ends)) < len(ends):  # swept together: any of these may be pruned first
            passed["limit"] = EVERYTHING
        self.ask("prune", **passed)

    def logs(self, **passed: Any) -> None:
        page = self.ask("logs", **passed)
        if isinstance(page, list) and page:
            self.ask("logs", id=page[-1].execution_id, limit=1, before=page[0].id)

    def wait(self, span: timedelta) -> None:
        self.sides.clock.time += span // MILLISECOND * MILLISECOND

    def in_time(self, which: int, off: timedelta, verb: str, limit: int) -> None:
        """Claim or sweep exactly at a due time or deadline, or close to it."""
        next = self.sides.clock.time + MILLISECOND
        moments = [at for row in self.rows for at in (row.deadline_at, row.due_at) if at]
        if ahead := sorted(at for at in moments if at + off > next):
            self.wait(ahead[which % len(ahead)] + off - next)
        self.ask(verb, limit=limit)

    def teardown(self) -> None:
        if not self.agreed:  # the stores differ already: a second error would hide the first
            return
        for row in self.rows:
            self.sides.ask(partial(ExecutionManager.logs, id=row.id, limit=EVERYTHING))
        for database in self.sides.databases:
            self.history.assert_recorded(database)
            assert_legal(database)
        self.figures["runs"] += 1

    def ask(self, name: str, **passed: Any) -> Any:
        self.agreed = False
        self.sides.clock.time += MILLISECOND
        call: Any = sweep_all if name == "sweep" else getattr(ExecutionManager, name)
        resolved = model_arguments.resolve(passed, self.rows, self.sides.clock.time)
        found = self.sides.ask(lambda manager: call(manager, **resolved))
        self.rows = self.sides.rows()
        transitions = self.history.observe(self.rows)
        self.agreed = True
        kind = type(found) if isinstance(found, ExecutionProblem) else "done"
        self.figures.update([kind, *transitions])
        return found


def test_model_sql_stores_match_pure_transitions(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tell: Callable[[str], None],
) -> None:
    figures: Counter[Any] = Counter()
    began = time.monotonic()
    with ExitStack() as stack:
        databases = [
            stack.enter_context(open_database(kind, request)) for kind in ("sqlite", "postgresql")
        ]
        sides = SideBySide(databases, monkeypatch)
        machine: Any = partial(Machine, sides, figures)
        run_state_machine_as_test(machine, settings=SETTINGS)
    refused = ", ".join(f"{figures[problem]} {problem.__name__}" for problem in REFUSALS)
    tell(
        f"side by side: {figures['runs']} runs, {figures['done']} equal answers, equal refusals:"
        f" {refused}, in {time.monotonic() - began:.0f} s"
    )
    # The test shows nothing about transitions and refusals that did not occur.
    assert {*ALLOWED_TRANSITIONS, *REFUSALS} <= figures.keys()
