"""Two connections, one execution: every order of their steps, at every isolation level.

The tests hold locks and observe who waits for them; nothing depends on timing.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from itertools import cycle
from typing import Any

import pytest
from sqlalchemy import Connection, update

from execution_core import Execution, InvalidStateTransition
from execution_core.core import json_values
from execution_core.sql.schema.tables import executions
from execution_core.stores import Transition

from ..conftest import Database
from ..support.history import assert_legal
from ..support.interleaving import (
    BATCHES,
    STATES,
    TIMEOUT,
    TRY_AGAIN,
    WITH_CHILD,
    Caller,
    InitialState,
    Interleaver,
    PausingStore,
    call,
    read_all,
)
from ..support.sampling import sampled

LEVELS = {
    "postgresql": ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"),
    "sqlite": ("IMMEDIATE", "DEFERRED"),
}
OUTSIDE = ("outside", "outside, asyncio", "outside, SERIALIZABLE by default")
OTHERS = 1
"""How many of the other ways each pair runs in, besides the main ones, in turn."""

Way = tuple[str, str, str]
"""The level of A, the level of B, and when A commits."""

# SQLite has one writer at a time: no interleaving, no deadlock.
on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


def ways(name: str) -> tuple[list[Way], list[Way]]:
    """Return the main ways to interleave, and all others."""
    levels = LEVELS[name]
    outside = OUTSIDE if name == "postgresql" else OUTSIDE[:2]
    main = [(level, level, "commit") for level in levels] + [(levels[0], "outside", "commit")]
    everything = [
        (a, b, when)
        for a in (*levels, "outside")
        for b in (*levels, *outside)
        for when in (("before",) if a == "outside" else ("commit", "rollback", "before"))
    ]
    return main, [way for way in everything if way not in main]


class Callers:
    """An interleaver, and one caller of each kind."""

    def __init__(self, database: Database, stack: ExitStack) -> None:
        self.database, self.stack = database, stack
        self.interleaver = stack.enter_context(closing(Interleaver(database)))
        self.callers_by_name: dict[tuple[str, str], Caller] = {}

    def caller(self, name: str, level: str, store: type[PausingStore] = PausingStore) -> Caller:
        if (name, level) not in self.callers_by_name:
            caller = Caller(name, self.database, level, store)
            self.callers_by_name[name, level] = self.stack.enter_context(closing(caller))
        return self.callers_by_name[name, level]


@pytest.fixture
def callers(database: Database) -> Iterator[Callers]:
    with ExitStack() as stack:
        yield Callers(database, stack)


COMPETE = {
    "nothing": [("create", "create")],
    "pending": [
        *(("start", "start"), ("start", "cancel"), ("claim", "claim"), ("claim", "start")),
        *(("claim", "cancel"), ("delete", "start"), ("delete", "create")),
    ],
    "running": [
        *(("complete", "timeout"), ("complete", "cancel"), ("fail", "complete")),
        *(("sweep", "complete"), ("progress", "complete"), ("checkpoint", "checkpoint")),
        *(("own checkpoint", "own checkpoint"), ("advance", "checkpoint")),
        *(("delete", "complete"), ("log", "delete"), ("complete", "log as attempt")),
        ("complete", "create a child"),
    ],
    "retrying": [("start", "claim"), ("fail", "start")],
    "failed": [("retry", "retry"), ("retry", "start"), ("prune", "retry"), ("replay", "delete")],
    "completed": [("prune", "replay"), ("delete", "replay")],
    WITH_CHILD: [("prune", "retry the child"), ("retry the child", "prune")],
}


@pytest.mark.parametrize("state", STATES)
def test_interleaving_competing_pairs_include_known(database: Database, state: str) -> None:
    """The pure machine derives the pairs; these must be among them."""
    assert {*COMPETE[state]} <= {*InitialState(database, state).competing()}


@pytest.mark.parametrize("state", STATES)
def test_interleaving_of_two_callers_is_linearizable(
    database: Database, callers: Callers, state: str, tell: Callable[[str], None]
) -> None:
    initial = InitialState(database, state)
    main, others = ways(database.name)
    turn = cycle(others)
    every_run = [
        (pair, way)
        for pair in initial.competing()
        for way in [*main, *(next(turn) for _ in range(OTHERS))]
    ]
    runs = sampled(every_run, 2 * len(main))  # half of the pairs, each in a different way
    counts: Counter[str] = Counter(runs=len(runs))
    for target, (pair, way) in zip(initial.targets(len(runs)), runs, strict=True):
        a, b, when = callers.caller("a", way[0]), callers.caller("b", way[1]), way[2]
        result = callers.interleaver.run(a, b, target, pair, when)
        assert result.is_explained(initial), (way, result)
        collide = initial.has_to_wait(*pair)
        if database.name == "postgresql" and result.overlaps:
            assert result.waited >= collide, (way, result)
            assert not (result.waited and pair[1] in BATCHES), (way, result)
        # A snapshot older than the other caller's change cannot be written with.
        assert result.retried >= (collide and b.has_snapshot and when != "rollback"), (way, result)
        assert result.retried <= b.has_snapshot, (way, result)
        counts.update(waited=result.waited, retried=result.retried)
    assert_legal(database)
    tell(f"{database.name}, {state}: " + ", ".join(f"{n} {what}" for what, n in counts.items()))


@pytest.mark.parametrize("state", STATES)
def test_interleaving_during_refusal_lookup_is_linearizable(
    database: Database, callers: Callers, state: str
) -> None:
    """B's statement is refused; A changes the row; B looks up the reason."""
    initial = InitialState(database, state)
    levels = ("outside", "READ COMMITTED") if database.name == "postgresql" else ("outside",)
    refused = [(pair, b) for pair in initial.pairs() if initial.refuses(pair[1]) for b in levels]
    runs = sampled(refused, 5)
    for target, (pair, b) in zip(initial.targets(len(runs)), runs, strict=True):
        a = callers.caller("a", "outside")
        result = callers.interleaver.run(a, callers.caller("b", b), target, pair, "between")
        assert result.is_explained(initial), (b, result)
    assert_legal(database)


# --- several executions ---


@on_postgresql
@pytest.mark.parametrize("level", LEVELS["postgresql"])
@pytest.mark.parametrize(("state", "verb"), [("pending", "start"), ("nothing", "create")])
def test_interleaving_in_opposite_order_retries_one(
    database: Database, callers: Callers, level: str, state: str, verb: str
) -> None:
    """Each waits for the other: one is refused with "try again", the other continues."""
    initial, interleaver = InitialState(database, state), callers.interleaver
    first, second = initial.targets(2)
    callers_by_name = {name: callers.caller(name, level) for name in "ab"}
    a, b = (caller.begin() for caller in callers_by_name.values())
    call(a, verb, first, "a")
    call(b, verb, second, "b")
    asked = interleaver.thread.submit(call, b, verb, first, "b")
    assert interleaver.waits(callers_by_name["a"], callers_by_name["b"], asked)
    answers = {"a": call(a, verb, second, "a"), "b": asked.result(TIMEOUT)}
    winner, loser = sorted(callers_by_name, key=lambda name: answers[name] == TRY_AGAIN)
    expected = initial.outcome((winner, verb), (loser, verb))
    assert answers == {winner: expected.answers[winner], loser: TRY_AGAIN}
    assert not callers_by_name[loser].end("rollback")
    assert callers_by_name[winner].end("commit")
    again = callers_by_name[loser].begin()
    for target in (first, second):
        assert call(again, verb, target, loser) == expected.answers[loser]
        assert read_all(again, target) == expected.left
    assert callers_by_name[loser].end("commit")
    assert_legal(database)


@on_postgresql
def test_claim_never_waits_for_locks(database: Database, callers: Callers) -> None:
    """Therefore a claim is never part of a deadlock."""
    interleaver = callers.interleaver
    callers_by_name = {name: callers.caller(name, "READ COMMITTED") for name in "ab"}
    callers_by_name["c"] = callers.caller("c", "outside")
    managers = {name: caller.begin() for name, caller in callers_by_name.items()}
    jobs = [interleaver.manager.create("job").id for _ in range(6)]
    claimed: list[tuple[str, str]] = []
    for name in "abcab":
        asked = interleaver.thread.submit(managers[name].claim, "job")
        claimed += [(each.id, name) for each in asked.result(TIMEOUT)]
    of_b = next(id for id, name in claimed if name == "b")
    waiting = interleaver.thread.submit(managers["a"].start, of_b)
    assert interleaver.waits(callers_by_name["b"], callers_by_name["a"], waiting)
    claimed += [(each.id, "b") for each in managers["b"].claim("job", limit=9)]
    assert callers_by_name["b"].end("commit")
    with pytest.raises(InvalidStateTransition):
        waiting.result(TIMEOUT)
    assert callers_by_name["a"].end("commit")
    assert sorted(id for id, _ in claimed) == sorted(jobs)
    assert_legal(database)


# --- the control ---


class ReadThenWrite(PausingStore):
    """The control: reads a row, decides, and writes it, without a condition."""

    def update(self, id: str, transition: Transition, *, returning: str = "execution") -> Any:
        found = self.find_by_id(id)
        moved = found and transition.apply(found, datetime.now(UTC), ())
        if moved:
            assert isinstance(self._bind, Connection)
            row = update(executions).where(executions.c.id == id).values(as_row(moved))
            self._bind.execute(row)
        return moved if moved is None or returning == "execution" else moved.status


def as_row(execution: Execution) -> dict[str, Any]:
    unchanged = {"id", "type", "payload", "timeout", "created_at", "progress"}
    row = {name: value for name, value in execution if name not in unchanged}
    for name in ("result", "metadata", "checkpoints"):
        row[name] = None if row[name] is None else json_values.to_json(name, row[name])
    if execution.progress:
        row |= {f"progress_{name}": value for name, value in execution.progress}
    return row


@on_postgresql
@pytest.mark.parametrize(
    ("state", "first", "second"),
    [
        ("pending", "start", "start"),
        ("pending", "start", "cancel"),
        ("running", "complete", "timeout"),
        ("running", "complete", "cancel"),
        ("running", "fail", "complete"),
        ("running", "sweep", "complete"),
        ("running", "progress", "complete"),
        ("running", "own checkpoint", "own checkpoint"),
        ("running", "own checkpoint", "advance"),
        ("retrying", "start", "start"),
        ("retrying", "claim", "start"),
    ],
)
def test_interleaving_control_read_then_write_is_detected(
    database: Database, callers: Callers, state: str, first: str, second: str
) -> None:
    """On PostgreSQL: SQLite does not show that a caller waits."""
    initial = InitialState(database, state)
    (target,) = initial.targets(1)
    a, b = (callers.caller(name, "READ COMMITTED", ReadThenWrite) for name in "ab")
    result = callers.interleaver.run(a, b, target, (first, second), "commit")
    assert result.waited
    assert not result.is_explained(initial)
    if {first, second} == {"complete", "cancel"}:
        with pytest.raises(AssertionError):
            assert_legal(database)
