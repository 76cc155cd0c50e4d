# ruff: noqa: S101 - asserts are what a contract is made of
"""What is read back is what was written: to the type, the digit and the character."""

import math
from datetime import timedelta
from typing import Any, Final

import pytest

from ..core import transitions
from ..core.json_values import MAX_DEPTH, MAX_JSON_BYTES
from ..core.log_lines import new_log_entry
from ..core.models import Execution, ExecutionFailure
from ..core.selections import check_batch, check_prune_request
from ..core.validation import MAX_TIMEOUT
from .harness import StoreHarness, new, to_text
from .pages import list_ids
from .states import MOMENT


def nested(levels: int) -> Any:
    """Return lists and dicts in each other, so deep."""
    value: Any = 1
    for level in range(levels):
        value = {"": value} if level % 2 else [value]
    return value


VALUES: Final[dict[str, Any]] = {
    "false": False,
    "zero": 0,
    "one": 1,
    "one-float": 1.0,
    "true": True,
    "empty-text": "",
    "empty-list": [],
    "empty-dict": {},
    "null-inside": {"a": None, "b": [None, {}], "": ""},
    "big-integers": [2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400],
    "floats": [0.1, 1e16, 1e22, 1e23, 1e-7, 5e-324, 1.7976931348623157e308, 123456789.123456789],
    "numbers-as-texts": ["1", "1.0", "1e5", "NaN", "null", "true"],
    "characters": "ü u\u0308 😀 \u2028 \x7f\x1f\x01\t\r\n \ufeff \uffff / \\u0041 \\\\u0000 '\" %s",
    "keys": dict.fromkeys(["a.b", "a[0]", "$", "$.a", 'a"b', "a\\b", "ü", "", " ", "__proto__"], 1),
    "order": ["b", "a", ["c"], {"z": 1, "a": [3, 2, 1]}],
    "duplicates": [1, 1, [1, 1], "a", "a"],
    "time-like": "2026-01-01T00:00:00Z",
    "deep": nested(MAX_DEPTH - 1),
    "large": {"text": "ü" * 100_000, "list": list(range(10_000))},
}
CHECKPOINT_KEYS: Final = [
    *('a"b', '"', "a.b", ".", "$", "$.a", "a[0]", "[0]", "ü", "u\u0308", "\\", "a\\b", "a\\", "'"),
    *(" ", "\n", "\t", "\x01", "0", "null", "#", "*", "%", "{}", "😀", "__proto__", "a", "A"),
    *("k" * 255, "ü" * 255),
]


class RoundTripContract:
    """Values, texts, durations and keys."""

    @pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
    def test_a_value_comes_back(self, subject: StoreHarness, value: Any) -> None:
        """As payload, metadata, checkpoint, result and data of a line: the same JSON."""
        creation = new(payload=value, metadata={"k": value})
        created = subject.store.create(creation)
        assert created is not None
        subject.moved(
            created.id,
            transitions.start(None),
            transitions.checkpoint("k", value, 1),
            transitions.complete(value, 1),
        )
        logged = new_log_entry(
            created.id, "m", "info", value, attempt=None, max_bytes=MAX_JSON_BYTES
        )
        entry = subject.store.log(logged)
        read = subject.found(created.id)
        expected = creation.apply(created.created_at).model_copy(
            update={"checkpoints": {"k": value}, "result": value}
        )
        kept = {"payload", "metadata", "checkpoints", "result"}
        assert text(read, kept) == text(expected, kept)
        assert to_text(list_ids(subject)[0]) == to_text(read)
        (found,) = subject.store.logs(created.id, 1, None)
        assert entry is not None
        assert to_text(found) == to_text(entry) == to_text(logged.apply(read, entry.logged_at))

    def test_minus_zero_is_a_zero(self, subject: StoreHarness) -> None:
        """Its sign may be lost, as PostgreSQL loses it; that it is a float may not."""
        found = subject.found(subject.create(payload=-0.0).id)
        assert isinstance(found.payload, float)
        assert found.payload == 0

    def test_nothing_is_nothing(self, subject: StoreHarness) -> None:
        """Without a payload there is None; without metadata and checkpoints, empty objects."""
        found = subject.found(subject.create().id)
        assert (found.payload, found.result, found.error, found.progress) == (None,) * 4
        assert (found.metadata, found.checkpoints) == ({}, {})

    def test_checkpoint_keys(self, subject: StoreHarness) -> None:
        """Whatever a key is made of, it is one key, and none is another."""
        id = subject.create().id
        for turn in (1, 2):
            for number, key in enumerate(CHECKPOINT_KEYS):
                subject.moved(id, transitions.checkpoint(key, [turn, number], None))
        expected = {key: [2, number] for number, key in enumerate(CHECKPOINT_KEYS)}
        assert subject.found(id).checkpoints == expected

    def test_a_checkpoint_replaces_the_whole_value(self, subject: StoreHarness) -> None:
        """Nothing is merged deep, and None is a value like any other."""
        id = subject.create().id
        subject.moved(id, transitions.checkpoint("other", {"kept": True}, None))
        for value in ({"a": {"b": 1}}, {"a": {"c": 2}}, {}, [1, 2], [3], None, {"a": None}, 0):
            found = subject.moved(id, transitions.checkpoint("k", value, None))
            assert found.checkpoints == {"k": value, "other": {"kept": True}}

    def test_a_reason_joins_the_metadata(self, subject: StoreHarness) -> None:
        """One key is set there as well, and the others are left alone."""
        id = subject.create(metadata={"deep": {"a": [1]}, "cancellation_reason": {"old": 1}}).id
        found = subject.moved(id, transitions.cancel('customer "withdrew"'))
        reason = {"cancellation_reason": 'customer "withdrew"'}
        assert found.metadata == {"deep": {"a": [1]}} | reason

    def test_texts_come_back(self, subject: StoreHarness) -> None:
        """Types, workers, messages and errors: every character, at full length."""
        long = "ü\\\"'\n\t😀" * 30
        created = subject.create(type=long, timeout=MAX_TIMEOUT)
        error = ExecutionFailure(message=long, code=long, stack="ü" * 100_000, retryable=True)
        found = subject.moved(
            created.id,
            transitions.start(long),
            transitions.update_progress(0, 1, long * 40, None, 1),
            transitions.fail(error, None, None, 1),
        )
        assert found.progress is not None
        assert (found.type, found.worker) == (long, long)
        assert (found.error, found.progress.message) == (error, long * 40)

    @pytest.mark.parametrize("milliseconds", [1, 1_001, 86_399_999, MAX_TIMEOUT // MOMENT])
    def test_durations_come_back(self, subject: StoreHarness, milliseconds: int) -> None:
        """In whole milliseconds; and what they are added to is exact as well."""
        span = timedelta(milliseconds=milliseconds)
        created = subject.found(subject.create(timeout=span, start_after=span).id)
        assert (created.timeout, created.due_at) == (span, created.created_at + span)
        found = subject.moved(created.id, transitions.start(None))
        assert found.started_at is not None
        assert found.deadline_at == found.started_at + span
        again = transitions.fail("again", True, span, 1)  # noqa: FBT003 - retryable
        found = subject.moved(created.id, again)
        assert found.due_at == found.updated_at + span

    def test_nothing_comes_early(self, subject: StoreHarness) -> None:
        """A second and a half is not one: as a delay, a deadline, a silence or an age."""
        span = timedelta(seconds=1.5)
        first = subject.create(start_after=span).created_at
        for timeout in (span, None):
            subject.moved(subject.create(timeout=timeout).id, transitions.start(None))
        subject.moved(subject.create().id, transitions.cancel(None))
        subject.later(first + timedelta(seconds=1))
        moved = [
            to_text(each)
            for transition in (transitions.claim(None), transitions.sweep(span))
            for each in subject.store.update_many(check_batch(transition, None, 10))
        ]
        pruned = subject.store.prune(check_prune_request(span, None, None, None, 10))
        late = subject.now() >= first + span  # a slow machine: they may have been due
        assert late or (moved, pruned) == ([], 0)

    @pytest.mark.parametrize("percent", [0, 0.1, 33.33, 99.99, 100])
    def test_progress_comes_back(self, subject: StoreHarness, percent: float) -> None:
        """Counts of 64 bits, and a percentage to the last digit."""
        id = subject.create().id
        progress = transitions.update_progress(2**53 + 1, 2**63 - 1, None, percent, None)
        found = subject.moved(id, progress).progress
        assert found is not None
        assert (found.current, found.total, found.message) == (2**53 + 1, 2**63 - 1, None)
        assert isinstance(found.percent, float)
        assert math.isclose(found.percent, percent, rel_tol=0)

    def test_times_are_in_utc(self, subject: StoreHarness) -> None:
        """Every time is aware, and its offset is none."""
        id = subject.create(timeout=timedelta(1), start_after=timedelta(1)).id
        delayed = subject.found(id)
        ended = subject.moved(id, transitions.start(None), transitions.complete(None, 1))
        times = [delayed.due_at, ended.created_at, ended.updated_at, ended.started_at]
        times += [ended.completed_at, ended.deadline_at, ended.heartbeat_at]
        assert [time and time.utcoffset() for time in times] == [timedelta(0)] * len(times)


def text(execution: Execution, fields: set[str]) -> str | None:
    """Return some fields of an execution as a text that differs where they differ."""
    return to_text(execution.model_copy(update=dict.fromkeys(set(Execution.model_fields) - fields)))
