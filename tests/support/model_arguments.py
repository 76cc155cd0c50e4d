"""Arguments for random calls: mostly valid, often at a limit, sometimes invalid."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from execution_core import Execution, ExecutionFailure, ExecutionStatus, LogLevel
from execution_core.core.state_machine import (
    FAILED,
    FINISHED,
    LIVE,
    PENDING,
    RETRYING,
    RUNNING,
    TIMED_OUT,
)

Strategy = st.SearchStrategy[Any]
Statuses = tuple[ExecutionStatus, ...]

MILLISECOND = timedelta(milliseconds=1)
HOUR = timedelta(hours=1)
LONGEST = timedelta(days=36_500)


class Relative:
    """An argument that depends on the executions at the time of the call."""

    def resolve(self, id: object, rows: list[Execution], now: datetime) -> Any:
        raise NotImplementedError


def pick(row: int, statuses: Statuses, rows: list[Execution]) -> Execution | None:
    """Return an execution in one of the statuses, or any if there is none."""
    chosen = [each for each in rows if each.status in statuses] or rows
    return chosen[row % len(chosen)] if chosen else None


@dataclass(frozen=True)
class ExistingId(Relative):
    """The id of an existing execution."""

    row: int
    statuses: Statuses
    form: Callable[[str], object]

    def resolve(self, id: object, rows: list[Execution], now: datetime) -> object:
        found = pick(self.row, self.statuses, rows)
        return found and self.form(found.id)


@dataclass(frozen=True)
class Fence(Relative):
    """The number of the current attempt, or one close to it."""

    off: int

    def resolve(self, id: object, rows: list[Execution], now: datetime) -> int:
        return self.off + next((row.attempts for row in rows if row.id == str(id).lower()), 0)


@dataclass(frozen=True)
class Age(Relative):
    """The time since the last update of an execution, or a little more or less."""

    row: int
    statuses: Statuses
    off: timedelta

    def resolve(self, id: object, rows: list[Execution], now: datetime) -> timedelta:
        found = pick(self.row, self.statuses, rows)
        return now - (found.updated_at if found else now) + self.off


class OnTheHour(Relative):
    """The time until the next full hour: several executions become due together."""

    def resolve(self, id: object, rows: list[Execution], now: datetime) -> timedelta:
        return HOUR - (now - datetime.min.replace(tzinfo=UTC)) % HOUR

    def __repr__(self) -> str:
        return "OnTheHour()"


def resolve(passed: dict[str, Any], rows: list[Execution], now: datetime) -> dict[str, Any]:
    """Return the arguments for a call at this time."""

    def one(value: Any) -> Any:
        match value:
            case Relative():
                return value.resolve(id, rows, now)
            case list():
                return [one(each) for each in value]
            case tuple():
                return tuple(map(one, value))
            case dict():
                return {name: one(each) for name, each in value.items()}
        return value

    id = None
    id = one(passed.get("id"))  # other arguments depend on it
    return {name: id if name == "id" else one(value) for name, value in passed.items()}


def mostly(usual: Strategy, odd: Strategy) -> Strategy:
    return st.integers(0, 24).flatmap(lambda n: odd if n == 24 else usual)


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = {"": value} if level % 2 else [value]
    return value


INVALID_TEXTS = [5, True, b"x", "a\0b", "\ud800"]
strange = st.sampled_from(
    ['a"b', "\\", "$.a", "a[0]", "ü", "u\u0308", "\x01\t\n", "\u2028", "😀", "'", "%s", ":a",
     "?", "null", "{}", "\\u0000", "x" * 255]
)  # fmt: skip
texts = strange | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
names = texts.filter(bool)
invalid_names = st.sampled_from(["", "x" * 256, None, *INVALID_TEXTS])

NUMBERS = [0, 1, 1.0, True, 2**53 + 1, -(2**63) - 1, 10**30, 10**400, 1e16, 1e23, -0.0, 5e-324]
scalars = st.none() | st.booleans() | st.integers() | st.sampled_from(NUMBERS) | texts
scalars |= st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
encodable = st.sampled_from(
    [{}, [], nested(200), (1, (2,)), Decimal("1.10"), UUID(int=7), date(2026, 1, 31), HOUR,
     datetime(2026, 1, 31, tzinfo=UTC), LogLevel.INFO, ExecutionFailure(message="m")]
)  # fmt: skip
invalid_json = st.sampled_from(
    [math.nan, [math.inf], b"x", {1}, {1: 2}, nested(201), ["a\0b"], {"a\0b": 1}, "\ud800", ...]
)
documents = mostly(json_values | encodable, invalid_json)
metadata = mostly(
    st.none()
    | st.dictionaries(texts, json_values, max_size=3)
    | st.just({"cancellation_reason": "old", "kept": 1}),
    st.sampled_from([[], "{}", 5, {1: 2}, {"a": math.nan}]),
)
SAME_WORK = [None, {"n": 1}, {"n": 1.0}, {"n": True}, [0.0], [-0.0]]
payloads = st.sampled_from(SAME_WORK) | documents

types = mostly(st.sampled_from(["mail", "ship", 'a"b']), invalid_names)
any_type = mostly(st.none() | st.sampled_from(["mail", "ship"]), invalid_names | names)
keys = st.sampled_from(["k", "K", "k ", '"\\ü'])
idempotency_keys = mostly(st.none() | keys, invalid_names)
actors = mostly(st.none() | names, invalid_names.filter(bool))
extras = mostly(
    st.sampled_from([0, 0, 1, 2, 10_000]), st.sampled_from([-1, 10_001, True, 1.0, "1", None])
)
workers = mostly(st.none() | names, invalid_names)
checkpoint_keys = mostly(st.sampled_from(["a", 'a"b', "a\\b"]) | names, invalid_names)
reasons = mostly(
    st.none() | texts | st.just("x" * 10_000), st.sampled_from(["x" * 10_001, *INVALID_TEXTS])
)

attempts = mostly(
    st.none() | st.sampled_from([Fence(0), Fence(0), Fence(-1), Fence(1), 0, 2**31 - 1]),
    st.sampled_from([-1, 2**31, 2**80, True, "1", 1.0]),
)
max_attempts = mostly(
    st.integers(1, 3) | st.just(2**31 - 1), st.sampled_from([0, -1, 2**31, True, "2", 1.0, None])
)
limits = mostly(
    st.integers(1, 3) | st.just(10_000), st.sampled_from([0, -1, 10_001, 2**80, True, "1", None])
)
counts = mostly(
    st.integers(0, 200) | st.just(2**63 - 1),
    st.sampled_from([-1, 2**63, True, 1.0, "1", None]),
)
percents = mostly(
    st.none() | st.sampled_from([0, -0.0, 100, 33.3, 5e-324]) | st.floats(0, 100),
    st.sampled_from([math.nan, -1, 100.1, True, "5"]),
)
flags = mostly(st.none() | st.booleans(), st.sampled_from([1, "yes"]))

spans = st.sampled_from([MILLISECOND, 2 * MILLISECOND, timedelta(seconds=1), HOUR, LONGEST])
spans |= st.integers(500, 10**12).map(lambda n: timedelta(microseconds=n))
invalid_spans = st.sampled_from(
    [-MILLISECOND, LONGEST + timedelta.resolution, timedelta.max, 5, 1.0, "1h", True]
)
timeouts = mostly(
    st.none() | spans | st.just(timedelta.resolution), invalid_spans | st.just(timedelta(0))
)
delays = mostly(
    st.sampled_from([None, timedelta(0), OnTheHour(), OnTheHour()]) | spans, invalid_spans
)
ENDS = st.sampled_from([timedelta(0), timedelta(0), MILLISECOND, -MILLISECOND])
silences = st.builds(Age, st.integers(0, 9), st.just((RUNNING,)), ENDS)
ages = st.builds(Age, st.integers(0, 9), st.just(FINISHED), ENDS)
stalls = mostly(st.sampled_from([None, MILLISECOND, HOUR]) | silences, invalid_spans)
extremes = st.sampled_from([timedelta(0), LONGEST])
retentions = mostly(extremes | ages, invalid_spans | st.none())
key_retentions = mostly(st.none() | extremes | ages, invalid_spans)

finished = mostly(
    st.none() | st.sampled_from([(), *FINISHED]) | st.lists(st.sampled_from(FINISHED), max_size=3),
    st.sampled_from(["pending", ["failed", "running"], "Failed", 5]),
)
statuses = mostly(
    st.sampled_from([None, (), *ExecutionStatus]) | st.lists(st.sampled_from(ExecutionStatus)),
    st.sampled_from(["RUNNING", "", ["failed", None], 5, [[]]]),
)
failures = st.sampled_from(
    [
        ValueError("no"),
        KeyError(),
        "a\0b\ud800",
        "x" * 10_001,
        ExecutionFailure(message="m", code="c", stack="s"),
        ExecutionFailure(message="m", retryable=True),
        ExecutionFailure.model_construct(message="a\0b", code=5, stack="\ud800", retryable=True),
    ]
)
errors = mostly(texts | failures, st.sampled_from([None, 5, b"x", ValueError]))
messages = mostly(texts | st.sampled_from(["a\0b\ud800", "x" * 10_001]), st.sampled_from([None, 5]))
progress_messages = mostly(st.none() | texts, st.sampled_from(["x" * 10_001, *INVALID_TEXTS]))
levels = mostly(
    st.sampled_from(LogLevel) | st.just("info"), st.sampled_from(["INFO", "", None, []])
)

UNKNOWN_ID = str(UUID(int=2))
UNKNOWN = [UUID(int=1), UNKNOWN_ID, f"{{{UNKNOWN_ID}}}", "", "no-uuid", "ü\0", 5, None]


def ids(*statuses: ExecutionStatus) -> Strategy:
    """Ids of executions, often in a suitable status; sometimes odd or unknown ones."""
    row, often = st.integers(0, 9), st.sampled_from([(), statuses, *((each,) for each in statuses)])
    form = st.sampled_from([str.upper, UUID])
    return mostly(
        st.builds(ExistingId, row, often, st.just(str)),
        st.builds(ExistingId, row, often, form) | st.sampled_from(UNKNOWN),
    )


maybe_ids = st.none() | ids()


def pairs(values: Strategy) -> Strategy:
    """Items for `complete_many` and `fail_many`."""
    return st.lists(st.tuples(ids(RUNNING), values), max_size=4)


items = st.fixed_dictionaries(
    {"type": types, "payload": payloads},
    optional={"idempotency_key": idempotency_keys, "parent_id": maybe_ids, "start_after": delays},
)
progress = {"current": counts, "total": counts, "message": progress_messages, "percent": percents}
objects = st.sampled_from([{"a": {"a": 1}}, {"b": None}, True])
entry = {"key": checkpoint_keys, "value": objects | documents}
fence = {"attempt": attempts}
RETRYABLE = {"error": "no", "retryable": True, "attempt": Fence(0)}
ATTEMPTS = [
    [],
    [("heartbeat", {})],
    [
        ("checkpoint", {"key": "a", "value": {"b": 1}}),
        ("advance", {"current": 1, "total": 2, "key": "a", "value": {"c": {}}}),
        ("fail", RETRYABLE),
    ],
    [("complete", {"result": [1], "attempt": Fence(0)})],
    [("fail", RETRYABLE)],
    [("fail", {**RETRYABLE, "retry_after": MILLISECOND})],
    [("fail", {**RETRYABLE, "retry_after": HOUR}), ("fail", {"error": "given up"})],
    [("fail", {"error": "no"}), ("retry", {})],
    [("timeout", {"attempt": Fence(0)}), ("retry", {})],
    [("cancel", {"reason": "why"})],
    [("fail", {**RETRYABLE, "retry_after": HOUR}), ("cancel", {})],
    [("release", {"attempt": Fence(0)})],
]

# Each call: its weight, and its arguments.
STEPS: dict[str, tuple[int, dict[str, Strategy]]] = {
    "create": (
        6,
        {
            "type": types,
            "payload": payloads,
            "max_attempts": max_attempts,
            "timeout": timeouts,
            "idempotency_key": idempotency_keys,
            "parent_id": st.none() | ids(*LIVE) | ids(*FINISHED),
            "metadata": metadata,
            "start_after": delays,
        },
    ),
    "start": (2, {"id": ids(PENDING, RETRYING), "worker": workers}),
    "claim": (2, {"type": any_type, "limit": limits, "worker": workers}),
    "complete": (1, {"id": ids(RUNNING), "result": documents, **fence}),
    "fail": (
        3,
        {
            "id": ids(RUNNING, RETRYING),
            "error": errors,
            "retryable": flags,
            "retry_after": delays,
            **fence,
        },
    ),
    "timeout": (1, {"id": ids(RUNNING), **fence}),
    "sweep": (
        4,
        {
            "stalled_after": stalls,
            "type": any_type,
            "retry": mostly(st.booleans(), st.sampled_from([None, 1])),
            "limit": limits,
        },
    ),
    "cancel": (2, {"id": ids(*LIVE), "reason": reasons, "by": actors}),
    "retry": (
        4,
        {
            "id": ids(FAILED, FAILED, TIMED_OUT, RETRYING),
            "retry_after": delays,
            "extra_attempts": extras,
            "by": actors,
        },
    ),
    "finish_with_children": (3, {"id": ids(RUNNING), **fence}),
    "cancel_tree": (1, {"id": ids(*LIVE), "reason": reasons, "by": actors}),
    "children": (1, {"id": ids()}),
    "create_many": (2, {"items": mostly(st.lists(items, max_size=4), st.none() | texts)}),
    "complete_many": (1, {"items": pairs(documents), "by": actors}),
    "fail_many": (
        1,
        {"items": pairs(errors), "retryable": flags, "retry_after": delays, "by": actors},
    ),
    "release": (1, {"id": ids(RUNNING), **fence, "by": actors}),
    "replay": (
        1,
        {
            "id": ids(*FINISHED),
            "payload": st.just(...) | documents,
            "keep_checkpoints": mostly(st.booleans(), st.sampled_from([None, 1])),
            "by": actors,
        },
    ),
    "annotate": (1, {"id": ids(), "metadata": metadata}),
    "redact": (1, {"id": ids(*FINISHED)}),
    "heartbeat": (1, {"id": ids(RUNNING), **fence}),
    "update_progress": (1, {"id": ids(*LIVE), **progress, **fence}),
    "checkpoint": (3, {"id": ids(*LIVE), **entry, **fence}),
    "advance": (2, {"id": ids(*LIVE), **progress, **entry, **fence}),
    "log": (
        3,
        {"id": ids(RUNNING), "message": messages, "level": levels, "data": documents, **fence},
    ),
    "logs": (2, {"id": ids(RUNNING), "limit": limits, "before": maybe_ids}),
    "get": (1, {"id": ids()}),
    "find_by_idempotency_key": (1, {"key": mostly(keys, invalid_names)}),
    "list": (
        2,
        {
            "status": statuses,
            "type": any_type,
            "parent_id": maybe_ids,
            "limit": limits,
            "before": maybe_ids,
        },
    ),
    "delete": (1, {"id": ids()}),
    "prune": (
        4,
        {
            "older_than": retentions,
            "status": finished,
            "type": any_type,
            "keys_older_than": key_retentions,
            "limit": limits,
        },
    ),
    # Steps of the test machine:
    "attempt": (8, {"id": ids(PENDING, RETRYING), "course": st.sampled_from(ATTEMPTS)}),
    "wait": (1, {"span": spans}),
    "in_time": (
        4,
        {
            "which": st.integers(0, 9),
            "off": ENDS,
            "verb": st.sampled_from(["claim", "sweep"]),
            "limit": st.sampled_from([1, 10_000]),
        },
    ),
}
steps = st.one_of(
    [
        st.tuples(st.just(name), st.fixed_dictionaries(arguments))
        for name, (weight, arguments) in STEPS.items()
        for _ in range(weight)
    ]
)
