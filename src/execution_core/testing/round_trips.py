# ruff: noqa: S101 - a contract consists of asserts
"""Round trips: values are read exactly as they were written."""

import math
from datetime import timedelta
from typing import Any, Final

import pytest

from ..core import transitions
from ..core.json_values import MAX_DEPTH
from ..core.models import ExecutionFailure
from ..core.selections import check_batch
from ..core.validation import MAX_TIMEOUT
from .harness import StoreHarness, build_prune, to_text
from .log_lines import log_page, new_entry
from .pages import list_all
from .states import MOMENT


def nested(levels: int) -> Any:
    """Return lists and dicts nested to this depth."""
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
    def test_value_round_trip_is_exact(self, harness: StoreHarness, value: Any) -> None:
        """Payload, metadata, checkpoint, result and log data return the same JSON."""
        id = harness.create(payload=value, metadata={"k": value}).id
        steps = (transitions.start(None), transitions.checkpoint("k", value, 1))
        read = harness.apply(id, *steps, transitions.complete(value, 1))
        values = {"payload": value, "result": value, "metadata": {"k": value}}
        expected = read.model_copy(update={**values, "checkpoints": {"k": value}})
        assert to_text(read) == to_text(expected)
        assert to_text(list_all(harness)[0]) == to_text(read)
        logged = new_entry(id, data=value)
        entry = harness.store.log(logged)
        assert entry is not None
        (found,) = harness.store.logs(log_page(id, 1))
        assert to_text(found) == to_text(entry) == to_text(logged.apply(read, entry.logged_at))

    def test_negative_zero_round_trip_is_a_float(self, harness: StoreHarness) -> None:
        """PostgreSQL drops the sign of -0.0; the value must stay a float."""
        found = harness.get(harness.create(payload=-0.0).id)
        assert isinstance(found.payload, float)
        assert found.payload == 0

    def test_unset_fields_are_none_or_empty(self, harness: StoreHarness) -> None:
        """Unset metadata and checkpoints are empty objects, other fields None."""
        found = harness.get(harness.create().id)
        assert (found.payload, found.result, found.error, found.progress) == (None,) * 4
        assert (found.metadata, found.checkpoints) == ({}, {})

    def test_checkpoint_with_any_key_is_distinct(self, harness: StoreHarness) -> None:
        """Keys with quotes, dots, wildcards and control characters stay distinct."""
        id = harness.create().id
        for turn in (1, 2):
            for number, key in enumerate(CHECKPOINT_KEYS):
                harness.apply(id, transitions.checkpoint(key, [turn, number], None))
        expected = {key: [2, number] for number, key in enumerate(CHECKPOINT_KEYS)}
        assert harness.get(id).checkpoints == expected

    def test_checkpoint_replaces_the_whole_value(self, harness: StoreHarness) -> None:
        """Values are not merged, and None is a value."""
        id = harness.create().id
        harness.apply(id, transitions.checkpoint("other", {"kept": True}, None))
        for value in ({"a": {"b": 1}}, {"a": {"c": 2}}, {}, [1, 2], [3], None, {"a": None}, 0):
            found = harness.apply(id, transitions.checkpoint("k", value, None))
            assert found.checkpoints == {"k": value, "other": {"kept": True}}

    def test_cancel_reason_keeps_other_metadata(self, harness: StoreHarness) -> None:
        """A reason sets one key of the metadata; the others are unchanged."""
        id = harness.create(metadata={"deep": {"a": [1]}, "cancellation_reason": {"old": 1}}).id
        found = harness.apply(id, transitions.cancel('customer "withdrew"'))
        reason = {"cancellation_reason": 'customer "withdrew"'}
        assert found.metadata == {"deep": {"a": [1]}} | reason

    def test_text_round_trip_is_exact(self, harness: StoreHarness) -> None:
        """Types, workers, messages and errors return every character at full length."""
        long = "ü\\\"'\n\t😀" * 30
        created = harness.create(type=long, timeout=MAX_TIMEOUT)
        error = ExecutionFailure(message=long, code=long, stack="ü" * 100_000, retryable=True)
        found = harness.apply(
            created.id,
            transitions.start(long),
            transitions.update_progress(0, 1, long * 40, None, 1),
            transitions.fail(error, None, None, 1),
        )
        assert found.progress is not None
        assert (found.type, found.worker) == (long, long)
        assert (found.error, found.progress.message) == (error, long * 40)

    @pytest.mark.parametrize("milliseconds", [1, 1_001, 86_399_999, MAX_TIMEOUT // MOMENT])
    def test_duration_round_trip_is_exact(self, harness: StoreHarness, milliseconds: int) -> None:
        """Durations and the times computed from them are exact to the millisecond."""
        span = timedelta(milliseconds=milliseconds)
        created = harness.get(harness.create(timeout=span, start_after=span).id)
        assert (created.timeout, created.due_at) == (span, created.created_at + span)
        found = harness.apply(created.id, transitions.start(None))
        assert found.started_at is not None
        assert found.deadline_at == found.started_at + span
        again = transitions.fail("again", True, span, 1)  # noqa: FBT003 - retryable
        found = harness.apply(created.id, again)
        assert found.due_at == found.updated_at + span

    def test_duration_is_not_rounded_down(self, harness: StoreHarness) -> None:
        """1.5 seconds are not treated as 1 second in delays, deadlines, sweeps and prunes."""
        span = timedelta(seconds=1.5)
        first = harness.create(start_after=span).created_at
        for timeout in (span, None):
            harness.apply(harness.create(timeout=timeout).id, transitions.start(None))
        harness.apply(harness.create().id, transitions.cancel(None))
        harness.wait_past(first + timedelta(seconds=1))
        changed = [
            to_text(each)
            for transition in (transitions.claim(None), transitions.sweep(span))
            for each in harness.store.update_many(check_batch(transition, None, 10))
        ]
        pruned = harness.store.prune(build_prune(span))
        late = harness.now() >= first + span  # on a slow machine they may be due
        assert late or (changed, pruned) == ([], 0)

    @pytest.mark.parametrize("percent", [0, 0.1, 33.33, 99.99, 100])
    def test_progress_round_trip_is_exact(self, harness: StoreHarness, percent: float) -> None:
        """Counts have 64 bits, and the percentage is exact."""
        id = harness.create().id
        progress = transitions.update_progress(2**53 + 1, 2**63 - 1, None, percent, None)
        found = harness.apply(id, progress).progress
        assert found is not None
        assert (found.current, found.total, found.message) == (2**53 + 1, 2**63 - 1, None)
        assert isinstance(found.percent, float)
        assert math.isclose(found.percent, percent, rel_tol=0)

    def test_times_are_in_utc(self, harness: StoreHarness) -> None:
        """Every time is aware, with the offset 0."""
        id = harness.create(timeout=timedelta(1), start_after=timedelta(1)).id
        delayed = harness.get(id)
        ended = harness.apply(id, transitions.start(None), transitions.complete(None, 1))
        times = [delayed.due_at, ended.created_at, ended.updated_at, ended.started_at]
        times += [ended.completed_at, ended.deadline_at, ended.heartbeat_at]
        assert [time and time.utcoffset() for time in times] == [timedelta(0)] * len(times)
