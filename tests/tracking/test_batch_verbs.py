"""`create_many`, `complete_many` and `fail_many`: the rules of the single verbs, item by item."""

import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from execution_core import (
    Execution,
    ExecutionFailure,
    ExecutionManager,
    ExecutionNotFound,
    ExecutionProblem,
    IdempotencyConflict,
    InvalidStateTransition,
    InvalidValue,
    MaxRetriesExceeded,
    StaleAttempt,
    connect,
)
from execution_core.core.batch_items import CHUNK_CHARACTERS, CHUNK_ROWS
from execution_core.core.validation import new_id

from ..conftest import Clock, Database
from ..core.test_json_values import VALID, json_values, keys
from ..support.history import assert_legal
from ..support.sampling import in_whole

CALLERS = 8
HOUR = timedelta(hours=1)


def comparable(execution: Execution) -> dict[str, Any]:
    """Return an execution as data, without what differs between two creations: its id and times."""
    return execution.model_dump(exclude={"id", "created_at", "updated_at", "due_at", "fingerprint"})


def test_create_many_answers_in_order_with_new_and_existing(any_manager: ExecutionManager) -> None:
    parent = any_manager.create("parent")
    held = any_manager.start(any_manager.create("mail", 2, idempotency_key="b").id)
    items: list[dict[str, Any]] = [
        {"type": "z", "payload": {"n": 1}, "idempotency_key": "c", "max_attempts": 3},
        {"type": "mail", "payload": 2, "idempotency_key": "b"},
        {"type": "plain"},
        {"type": "child", "parent_id": parent.id, "timeout": HOUR, "start_after": HOUR},
        {"type": "z", "payload": {"n": 1}, "idempotency_key": "c", "max_attempts": 3},
        {"type": "meta", "metadata": {"by": "ada"}, "idempotency_key": "a"},
    ]
    created = any_manager.create_many(items)
    assert created[1] == held
    assert created[4] == created[0]
    for item, execution in zip(items, created, strict=True):
        assert any_manager.get(execution.id) == execution
        if execution != held:
            assert execution.status == "pending"
            item.pop("idempotency_key", None)
            single = any_manager.create(**item)
            same = {"idempotency_key": None}
            assert comparable(execution) | same == comparable(single)
            assert execution.due_at is not None
            assert execution.due_at - execution.created_at == item.get("start_after", timedelta(0))
    assert any_manager.create_many(items[:3])[0].idempotency_key is None
    assert any_manager.create_many([]) == []


def test_create_many_refused_item_creates_nothing(any_manager: ExecutionManager) -> None:
    """The refusal names the item; the others of the call are not created either."""
    any_manager.create("mail", 1, idempotency_key="held")
    gone = any_manager.create("gone").id
    any_manager.delete(gone)
    good = {"type": "mail", "payload": 1, "idempotency_key": "good"}
    missing = new_id()
    for bad, problem in (
        ({"type": "mail", "payload": 2, "idempotency_key": "held"}, IdempotencyConflict),
        ({"type": "mail", "payload": 2, "idempotency_key": "good"}, IdempotencyConflict),
        ({"type": "mail", "parent_id": gone}, ExecutionNotFound),
        ({"type": "mail", "parent_id": missing, "idempotency_key": "k"}, ExecutionNotFound),
        ({"type": "mail", "parent_id": "no id"}, ExecutionNotFound),
    ):
        with pytest.raises(problem) as caught:
            any_manager.create_many([good, {"type": "plain"}, bad])
        assert caught.value.__notes__[0] == "This is about items[2] of the call."
        assert any_manager.count() == 1
    held = {"type": "mail", "payload": 1, "idempotency_key": "held", "parent_id": gone}
    (found,) = any_manager.create_many([held])  # the key is looked up before the parent
    assert found.parent_id is None


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, r"items\[1\] has no type"),
        ("mail", r"items\[1\] must be a mapping of arguments of create, not a str"),
        ({"type": "a", "replay_of": "x"}, r"items\[1\] has 'replay_of', which is no argument"),
        ({"type": ""}, r"items\[1\].type must not be empty"),
        ({"type": "a", "payload": {1}}, r"items\[1\].payload contains a set"),
        ({"type": "a", "payload": "\0"}, r"items\[1\].payload must not contain U\+0000"),
        ({"type": "a", "max_attempts": 0}, r"items\[1\].max_attempts must be from 1"),
        ({"type": "a", "timeout": 5}, r"items\[1\].timeout must be a timedelta"),
        ({"type": "a", "metadata": []}, r"items\[1\].metadata must be a JSON object"),
    ],
)
def test_create_many_invalid_item_is_named_and_nothing_created(
    any_manager: ExecutionManager, bad: Any, message: str
) -> None:
    with pytest.raises(InvalidValue, match=message):
        any_manager.create_many([{"type": "good"}, bad])
    assert any_manager.count() == 0
    with pytest.raises(InvalidValue, match="items must be a list, not an int"):
        any_manager.create_many(7)  # type: ignore[arg-type]


def test_create_many_repeated_key_warns_about_other_options(
    any_manager: ExecutionManager, caplog: pytest.LogCaptureFixture
) -> None:
    item = {"type": "a", "idempotency_key": "k"}
    with caplog.at_level(logging.WARNING, "execution_core"):
        first, second = any_manager.create_many([item, item | {"max_attempts": 9}])
    assert first == second
    assert "keeps max_attempts=1: 9 is ignored" in caplog.text


def test_batch_verbs_use_the_clock_of_the_store(
    clocked_manager: ExecutionManager, clock: Clock
) -> None:
    items: list[dict[str, Any]] = [
        {"type": "a", "start_after": HOUR, "max_attempts": 2},
        {"type": "b"},
    ]
    created = clocked_manager.create_many(items)
    assert {each.created_at for each in created} == {clock.time}
    assert created[0].due_at == clock.time + HOUR
    clock.time += HOUR
    jobs = clocked_manager.claim(limit=2)
    clock.time += HOUR
    failed = clocked_manager.fail_many([(each, "no") for each in jobs], retry_after=HOUR)
    assert {each.updated_at for each in failed if isinstance(each, Execution)} == {clock.time}
    assert [each.due_at for each in failed if isinstance(each, Execution)] == [
        clock.time + HOUR,
        None,
    ]
    assert failed[1] == clocked_manager.get(jobs[1].id)


@pytest.mark.slow
def test_create_many_ten_thousand_are_created_in_order(
    database: Database, manager: ExecutionManager
) -> None:
    items = [
        {"type": "a", "payload": n, "idempotency_key": f"{n % 7}-{n}" if n % 3 else None}
        for n in range(10_000)
    ]
    created = manager.create_many(items)
    assert [each.payload for each in created] == [*range(10_000)]
    assert manager.count() == 10_000
    assert [each.id for each in manager.create_many(items[1:3])] == [
        each.id for each in created[1:3]
    ]
    assert_legal(database)
    claimed = manager.claim(limit=10_000)
    done = manager.complete_many([(each, each.payload) for each in reversed(claimed)])
    assert [each.result for each in done if isinstance(each, Execution)] == [
        each.payload for each in reversed(claimed)
    ]
    assert_legal(database)


def test_create_many_large_payloads_are_split_into_chunks(any_manager: ExecutionManager) -> None:
    """A payload that is larger than a chunk is sent alone."""
    lengths = [CHUNK_CHARACTERS // 2, 10, CHUNK_CHARACTERS + 10, 10, CHUNK_CHARACTERS // 2, 10]
    items = [{"type": "a", "payload": "ü" * length} for length in lengths]
    assert [len(each.payload) for each in any_manager.create_many(items)] == lengths


def test_create_many_values_are_as_exact_as_by_create(any_manager: ExecutionManager) -> None:
    values = [value for value, _ in VALID.values()]
    values += [-0.0, 1e300, -(2**63), 2**64, 5e-324, "\\u0000", {"\\": "\x01\x7f\u2028\U0001f600"}]
    items = [{"type": "a", "payload": each, "metadata": {"m": each}} for each in values]
    created = any_manager.create_many(items)
    for value, execution in zip(values, created, strict=True):
        single = any_manager.create("a", value, metadata={"m": value})
        assert repr(execution.payload) == repr(single.payload)
        assert repr(execution.metadata) == repr(single.metadata)
        any_manager.start(execution.id)
        any_manager.start(single.id)
    done = any_manager.complete_many(
        [(each.id, value) for each, value in zip(created, values, strict=True)]
    )
    for completed, value in zip(done, values, strict=True):
        assert isinstance(completed, Execution)
        single = any_manager.complete(any_manager.start(any_manager.create("a").id).id, value)
        assert repr(completed.result) == repr(single.result)


@pytest.mark.slow
@settings(
    max_examples=in_whole(150, 60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(written=st.lists(st.tuples(keys, json_values), min_size=2, max_size=6))
def test_batch_verbs_random_keys_and_values_are_exact(
    manager: ExecutionManager, written: list[tuple[str, Any]]
) -> None:
    created = manager.create_many([{"type": key, "payload": value} for key, value in written])
    failed: list[Any] = []
    for (key, value), execution in zip(written, created, strict=True):
        assert execution.type == key
        assert repr(execution.payload) == repr(manager.create(key, value).payload)
        failed.append((manager.start(execution.id, worker=key), ExecutionFailure(message=key)))
    answers = manager.fail_many(failed)
    assert answers == [manager.get(each.id) for each in created]
    assert [each.error.message for each in answers if isinstance(each, Execution) and each.error]


def test_complete_many_answers_each_item(any_manager: ExecutionManager) -> None:
    """A problem is the one that `complete` raises, in the order of the items."""
    first, lost, plain, pending = (
        any_manager.create("work", max_attempts=5, start_after=HOUR if n == 3 else None)
        for n in range(4)
    )
    jobs = {each.id: each for each in any_manager.claim(limit=10)}
    any_manager.fail(lost.id, "again", retryable=True)
    any_manager.start(lost.id)
    unknown = new_id()
    answers = any_manager.complete_many(
        [
            (pending.id, 0),
            (jobs[lost.id], 1),
            (jobs[first.id], {"n": 2}),
            (unknown, 3),
            (plain.id, None),
            (first.id, 5),
            ("no id", 6),
        ],
        by="ada",
    )
    kinds = [type(each) for each in answers]
    assert kinds == [
        *(InvalidStateTransition, StaleAttempt, Execution, ExecutionNotFound, Execution),
        *(InvalidStateTransition, ExecutionNotFound),
    ]
    for id, attempt, answer in (
        (pending.id, None, answers[0]),
        (lost.id, 1, answers[1]),
        (unknown, None, answers[3]),
        ("no id", None, answers[6]),
    ):
        with pytest.raises(ExecutionProblem) as caught:
            any_manager.complete(id, 0, attempt=attempt)
        assert str(caught.value) == str(answer)
    assert "its status is completed, not running" in str(answers[5])
    assert answers[2] == any_manager.get(first.id)
    assert (answers[2].result, answers[2].attempts) == ({"n": 2}, 1)
    assert any_manager.get(plain.id).result is None
    assert any_manager.complete_many([]) == []


def test_complete_many_same_execution_twice_first_allowed_wins(
    any_manager: ExecutionManager,
) -> None:
    stale = any_manager.start(any_manager.create("a", max_attempts=2).id)
    any_manager.fail(stale.id, "again", retryable=True)
    current = any_manager.start(stale.id)
    answers = any_manager.complete_many([(stale, 1), (current, 2), (current.id, 3)])
    assert [type(each) for each in answers] == [StaleAttempt, Execution, InvalidStateTransition]
    assert any_manager.get(stale.id).result == 2
    job = any_manager.start(any_manager.create("a", max_attempts=2).id)
    retried, refused = any_manager.fail_many([(job, "a"), (job.id, "b")], retryable=True)
    assert isinstance(retried, Execution)
    assert retried.status == "retrying"
    assert isinstance(refused, InvalidStateTransition)
    assert any_manager.get(job.id) == retried


def test_fail_many_mixes_retryable_and_final_errors(any_manager: ExecutionManager) -> None:
    """Each execution has its own error; those without an attempt left have failed."""
    for n in range(6):
        any_manager.create("work", max_attempts=1 if n == 4 else 2)
    jobs = any_manager.claim(limit=10)
    errors: list[Any] = [
        ExecutionFailure(message="0", retryable=True),
        "1",
        ValueError("2"),
        ExecutionFailure(message="3", code="E", retryable=True),
        ExecutionFailure(message="4", retryable=True),
        "5",
    ]
    mixed = [*zip(jobs, errors, strict=True)]
    answers = any_manager.fail_many([*mixed[:5], (jobs[5].id, errors[5])], by="ada")
    assert answers == [any_manager.get(each.id) for each in jobs]
    found = [any_manager.get(each.id) for each in jobs]
    assert [each.status for each in found] == [
        *("retrying", "failed", "failed", "retrying", "failed", "failed")
    ]
    assert [each.error and each.error.message for each in found] == [*"012345"]
    assert found[2].error is not None
    assert "ValueError" in (found[2].error.stack or "")
    again = any_manager.fail_many([(each.id, "given up") for each in jobs])
    assert [type(each) for each in again] == [
        *(Execution, InvalidStateTransition, InvalidStateTransition),
        *(Execution, InvalidStateTransition, InvalidStateTransition),
    ]
    with pytest.raises(MaxRetriesExceeded):
        any_manager.start(jobs[4].id) if any_manager.retry(jobs[4].id) else None


def test_fail_many_retry_after_delays_each(any_manager: ExecutionManager) -> None:
    jobs = [any_manager.start(any_manager.create("a", max_attempts=2).id) for _ in range(3)]
    for each in any_manager.fail_many([(job, "later") for job in jobs], retry_after=HOUR):
        assert isinstance(each, Execution)
        assert each.due_at == each.updated_at + HOUR
    for options in ({"retryable": False, "retry_after": HOUR}, {"retry_after": 5}):
        with pytest.raises(InvalidValue, match=r"^retry_after "):
            any_manager.fail_many([(jobs[0], "no")], **options)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([7], r"items\[0\] must be a pair of an execution, or its id, and its result"),
        ([("a", 1, 2)], r"items\[0\] must be a pair"),
        ([("a", 1), ("b", {1})], r"items\[1\].result contains a set"),
    ],
)
def test_complete_many_invalid_item_is_named_and_nothing_changed(
    any_manager: ExecutionManager, items: list[Any], message: str
) -> None:
    job = any_manager.start(any_manager.create("a").id)
    with pytest.raises(InvalidValue, match=message):
        any_manager.complete_many([(job, 1), *items][-2:] if items[1:] else items)
    assert any_manager.get(job.id) == job
    with pytest.raises(InvalidValue, match=r"items\[0\].error must be an ExecutionFailure"):
        any_manager.fail_many([(job, 7)])  # type: ignore[list-item]
    with pytest.raises(InvalidValue, match="by must not be empty"):
        any_manager.complete_many([(job, 1)], by="")


def test_batch_verbs_record_history_and_actor(
    database: Database, manager: ExecutionManager
) -> None:
    manager.create_many([{"type": "a", "max_attempts": 2}] * 3)
    jobs = manager.claim(limit=3)
    manager.fail_many([(jobs[0], "no"), (jobs[1], "again")], retryable=True, by="ada")
    manager.complete_many([(jobs[2], 1), (jobs[1], 1)], by="bob")
    expected = [(None, "pending"), ("pending", "running"), ("running", "retrying")]
    assert [database.history(each.id) for each in jobs[:2]] == [expected] * 2
    assert database.history(jobs[2].id)[-1] == ("running", "completed")
    actors = database.rows("SELECT actor FROM execution_history WHERE seq = 3 ORDER BY actor")
    assert [row["actor"] for row in actors] == ["ada", "ada", "bob"]
    assert_legal(database)


@pytest.mark.slow
def test_create_many_by_eight_callers_creates_each_key_once(database: Database) -> None:
    """All get the same executions, in any order of their items, without a deadlock."""
    names = [f"key-{n}" for n in range(CHUNK_ROWS + 20)]

    def call(number: int) -> list[str]:
        order = names[number * 7 :] + names[: number * 7]
        items = [{"type": "a", "payload": key, "idempotency_key": key} for key in order]
        with connect(database.url) as manager:
            created = manager.create_many(items if number % 2 else items[::-1])
        return sorted(each.id for each in created)

    with ThreadPoolExecutor(CALLERS) as threads:
        answers = [*threads.map(call, range(CALLERS))]
    assert all(answer == answers[0] for answer in answers)
    assert len(set(answers[0])) == len(names)
    assert database.rows("SELECT count(*) AS n FROM executions")[0]["n"] == len(names)
    assert_legal(database)


@pytest.mark.slow
def test_complete_many_beside_other_verbs_ends_each_once(database: Database) -> None:
    """Calls in opposite orders, single cancels and sweeps: each execution has one end."""
    with connect(database.url) as manager:
        manager.create_many([{"type": "a", "max_attempts": 1}] * 300)
        jobs = manager.claim(limit=300)

        def end(number: int) -> list[Any]:
            order = jobs if number % 2 else jobs[::-1]
            match number:
                case 0 | 1 | 2:
                    return manager.complete_many([(each, number) for each in order])
                case 3 | 4:
                    return manager.fail_many([(each, "no") for each in order])
                case 5:
                    moment = timedelta(milliseconds=1)
                    return [
                        each
                        for _ in range(10)
                        for each in manager.sweep(stalled_after=moment, limit=20)
                    ]
            ended: list[Any] = []
            for each in order[::3]:
                try:
                    ended.append(manager.cancel(each.id))
                except InvalidStateTransition as problem:
                    ended.append(problem)
            return ended

        with ThreadPoolExecutor(CALLERS) as threads:
            answers = [each for some in threads.map(end, range(CALLERS)) for each in some]
    ended = [each for each in answers if isinstance(each, Execution)]
    assert sorted(each.id for each in ended) == sorted(each.id for each in jobs)
    problems = {type(each) for each in answers if not isinstance(each, Execution)}
    assert problems <= {InvalidStateTransition}
    with connect(database.url) as manager:
        assert all(manager.get(each.id) == each for each in ended)
    assert_legal(database)
