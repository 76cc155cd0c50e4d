"""Two connections, one execution: every order of their steps, at every level of isolation.

Locks are held and seen to be waited for; nothing sleeps, and nothing hangs on luck.
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
    FAMILY,
    PATIENCE,
    STATES,
    TRY_AGAIN,
    Scene,
    Side,
    Stage,
    Stopping,
    ask,
    seen,
)

LEVELS = {
    "postgresql": ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"),
    "sqlite": ("IMMEDIATE", "DEFERRED"),
}
OUTSIDE = ("outside", "outside, asyncio", "outside, SERIALIZABLE by default")
OTHERS = 1
"""In so many other ways each pair meets besides the main ones, in turn."""

Way = tuple[str, str, str]
"""The level of A, the level of B, and when A commits."""

# SQLite has one writer at a time: nothing can come between, and nothing can lock each other.
on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


def ways(name: str) -> tuple[list[Way], list[Way]]:
    """Return the main ways to meet, and all others."""
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


class Theatre:
    """A stage, and the callers that play on it, one of each kind."""

    def __init__(self, database: Database, stack: ExitStack) -> None:
        self.database, self.stack = database, stack
        self.stage = stack.enter_context(closing(Stage(database)))
        self.sides: dict[tuple[str, str], Side] = {}

    def side(self, name: str, level: str, store: type[Stopping] = Stopping) -> Side:
        if (name, level) not in self.sides:
            side = Side(name, self.database, level, store)
            self.sides[name, level] = self.stack.enter_context(closing(side))
        return self.sides[name, level]


@pytest.fixture
def theatre(database: Database) -> Iterator[Theatre]:
    with ExitStack() as stack:
        yield Theatre(database, stack)


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
    ],
    "retrying": [("start", "claim"), ("fail", "start")],
    "failed": [("retry", "retry"), ("retry", "start"), ("prune", "retry"), ("replay", "delete")],
    "completed": [("prune", "replay"), ("prune", "create a child"), ("delete", "replay")],
    FAMILY: [("prune", "retry the child"), ("retry the child", "prune")],
}


@pytest.mark.parametrize("state", STATES)
def test_interleaving_competing_pairs_include_known(database: Database, state: str) -> None:
    """The pure machine finds out by itself, of these at least."""
    assert {*COMPETE[state]} <= {*Scene(database, state).competing()}


@pytest.mark.parametrize("state", STATES)
def test_interleaving_of_two_callers_is_linearizable(
    database: Database, theatre: Theatre, state: str, tell: Callable[[str], None]
) -> None:
    scene = Scene(database, state)
    main, others = ways(database.name)
    turn = cycle(others)
    plays = [
        (pair, way)
        for pair in scene.competing()
        for way in [*main, *(next(turn) for _ in range(OTHERS))]
    ]
    counts: Counter[str] = Counter(plays=len(plays))
    for subject, (pair, way) in zip(scene.subjects(len(plays)), plays, strict=True):
        a, b, when = theatre.side("a", way[0]), theatre.side("b", way[1]), way[2]
        story = theatre.stage.play(a, b, subject, pair, when)
        assert story.is_explained(scene), (way, story)
        collide = scene.has_to_wait(*pair)
        if database.name == "postgresql" and story.meets_open:
            assert story.waited >= collide, (way, story)
            assert not (story.waited and pair[1] in BATCHES), (way, story)
        # A snapshot that is older than what the other one has changed is of no use.
        assert story.put_off >= (collide and b.has_snapshot and when != "rollback"), (way, story)
        assert story.put_off <= b.has_snapshot, (way, story)
        counts.update(waited=story.waited, put_off=story.put_off)
    assert_legal(database)
    tell(f"{database.name}, {state}: " + ", ".join(f"{n} {what}" for what, n in counts.items()))


@pytest.mark.parametrize("state", STATES)
def test_interleaving_during_refusal_lookup_is_linearizable(
    database: Database, theatre: Theatre, state: str
) -> None:
    """B's statement changes nothing; A moves; B looks: B says what was so, or is so, or neither."""
    scene = Scene(database, state)
    levels = ("outside", "READ COMMITTED") if database.name == "postgresql" else ("outside",)
    plays = [(pair, b) for pair in scene.pairs() if scene.refuses(pair[1]) for b in levels]
    for subject, (pair, b) in zip(scene.subjects(len(plays)), plays, strict=True):
        a = theatre.side("a", "outside")
        story = theatre.stage.play(a, theatre.side("b", b), subject, pair, "between")
        assert story.is_explained(scene), (b, story)
    assert_legal(database)


# --- several executions -------------------------------------------------------------------------


@on_postgresql
@pytest.mark.parametrize("level", LEVELS["postgresql"])
@pytest.mark.parametrize(("state", "verb"), [("pending", "start"), ("nothing", "create")])
def test_interleaving_in_opposite_order_retries_one(
    database: Database, theatre: Theatre, level: str, state: str, verb: str
) -> None:
    """Each waits for the other: one is told to try again, and the other goes on."""
    scene, stage = Scene(database, state), theatre.stage
    first, second = scene.subjects(2)
    sides = {name: theatre.side(name, level) for name in "ab"}
    a, b = (side.begin() for side in sides.values())
    ask(a, verb, first, "a")
    ask(b, verb, second, "b")
    asked = stage.thread.submit(ask, b, verb, first, "b")
    assert stage.waits(sides["a"], sides["b"], asked)
    answers = {"a": ask(a, verb, second, "a"), "b": asked.result(PATIENCE)}
    winner, loser = sorted(sides, key=lambda name: answers[name] == TRY_AGAIN)
    expected = scene.outcome((winner, verb), (loser, verb))
    assert answers == {winner: expected.answers[winner], loser: TRY_AGAIN}
    assert not sides[loser].end("rollback")
    assert sides[winner].end("commit")
    again = sides[loser].begin()
    for subject in (first, second):
        assert ask(again, verb, subject, loser) == expected.answers[loser]
        assert seen(again, subject) == expected.left
    assert sides[loser].end("commit")
    assert_legal(database)


@on_postgresql
def test_claim_never_waits_for_locks(database: Database, theatre: Theatre) -> None:
    """So none is in a deadlock, whatever the others hold and wait for."""
    stage = theatre.stage
    sides = {name: theatre.side(name, "READ COMMITTED") for name in "ab"}
    sides["c"] = theatre.side("c", "outside")
    managers = {name: side.begin() for name, side in sides.items()}
    jobs = [stage.manager.create("job").id for _ in range(6)]
    claimed: list[tuple[str, str]] = []
    for name in "abcab":
        asked = stage.thread.submit(managers[name].claim, "job")
        claimed += [(each.id, name) for each in asked.result(PATIENCE)]
    of_b = next(id for id, name in claimed if name == "b")
    waiting = stage.thread.submit(managers["a"].start, of_b)
    assert stage.waits(sides["b"], sides["a"], waiting)
    claimed += [(each.id, "b") for each in managers["b"].claim("job", limit=9)]
    assert sides["b"].end("commit")
    with pytest.raises(InvalidStateTransition):
        waiting.result(PATIENCE)
    assert sides["a"].end("commit")
    assert sorted(id for id, _ in claimed) == sorted(jobs)
    assert_legal(database)


# --- the control --------------------------------------------------------------------------------


class ReadThenWrite(Stopping):
    """What a service does that has a status column: it reads a row, decides, and writes it."""

    def update(self, id: str, transition: Transition, *, returning: str = "execution") -> Any:
        found = self.find_by_id(id)
        moved = found and transition.apply(found, datetime.now(UTC))
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
    database: Database, theatre: Theatre, state: str, first: str, second: str
) -> None:
    """SQLite cannot be seen to wait between the two."""
    scene = Scene(database, state)
    (subject,) = scene.subjects(1)
    a, b = (theatre.side(name, "READ COMMITTED", ReadThenWrite) for name in "ab")
    story = theatre.stage.play(a, b, subject, (first, second), "commit")
    assert story.waited
    assert not story.is_explained(scene)
    if {first, second} == {"complete", "cancel"}:
        with pytest.raises(AssertionError):
            assert_legal(database)
