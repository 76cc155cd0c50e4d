# ruff: noqa: S101 - a contract consists of asserts
"""New executions: found as created, one per key, never without their parent."""

from functools import partial
from typing import Any, Final

import pytest

from ..core.errors import IdempotencyConflict, InvalidValue
from ..core.validation import new_id
from .harness import CONCURRENCY, StoreAndManager, StoreHarness, build_new, call_store, to_text
from .states import DAY, STATES, bring_to

KEYS: Final = [
    *("a", "A", "a ", " a", "aa", "ü", "u\u0308", "a:b", "a*b", "a%", "a_", "a'b", 'a"b', "a\\b"),
    *("{a}", "a\nb", "None", "null", "0", "00", "😀", "k" * 255, "ü" * 255),
]


class CreationContract:
    """`create`, `find_by_id` and `find_by_idempotency_key`."""

    def test_create_returns_what_find_returns(self, harness: StoreHarness) -> None:
        """Both stores find the execution of `new.apply`, by id and by key."""
        parent, old = harness.create(), bring_to(harness, "completed")
        links = {"parent_id": parent.id, "replay_of": old.id}
        times = {"timeout": DAY, "start_after": DAY}
        given = {"idempotency_key": "ship-7", "max_attempts": 5, "metadata": {"by": "ada"}}
        given["checkpoints"] = {"last": [2.0, None]}  # of the execution that it repeats
        creation = build_new("ship", {"order": 7}, **links, **times, **given)
        created = harness.store.create(creation)
        assert created is not None
        assert to_text(created) == to_text(creation.apply(created.created_at))
        for store in (harness.store, harness.other):
            assert to_text(store.find_by_id(created.id)) == to_text(created)
            assert to_text(store.find_by_idempotency_key("ship-7")) == to_text(created)

    def test_find_unknown_returns_none(self, harness: StoreHarness) -> None:
        """An unknown id and an unknown key are not errors."""
        assert harness.store.find_by_id(new_id()) is None
        assert harness.store.find_by_idempotency_key("unused") is None

    def test_find_by_key_keeps_similar_keys_distinct(self, harness: StoreHarness) -> None:
        """Keys are compared exactly: case, spaces, Unicode form and wildcards matter."""
        held = {key: harness.create(idempotency_key=key).id for key in KEYS}
        for key, id in held.items():
            found = harness.store.find_by_idempotency_key(key)
            assert found is not None
            assert (found.id, found.idempotency_key) == (id, key)

    @pytest.mark.parametrize("state", STATES)
    def test_create_with_held_key_returns_none(self, harness: StoreHarness, state: str) -> None:
        """A second create returns None and changes nothing, whatever status the first has."""
        options, steps = STATES[state]
        held = harness.create(payload=1, idempotency_key="k", **options)
        held = harness.apply(held.id, *steps)
        harness.wait_past(held.updated_at)
        for payload in (1, 2):
            other = build_new(payload=payload, idempotency_key="k")
            assert harness.store.create(other) is None
            assert harness.store.find_by_id(other.id) is None
            assert to_text(harness.store.find_by_idempotency_key("k")) == to_text(held)
        assert len(harness.manager.list()) == 1

    def test_create_concurrent_with_one_key_has_one_winner(self, harness: StoreHarness) -> None:
        """Of concurrent creates with one key, exactly one returns its execution."""
        keys = [f"key-{number}" for number in range(10)]
        answers = harness.race(
            [
                call_store("create", build_new(payload=n, idempotency_key=key))
                for key in keys
                for n in range(CONCURRENCY)
            ]
        )
        for number, key in enumerate(keys):
            (created,) = filter(None, answers[number * CONCURRENCY :][:CONCURRENCY])
            assert to_text(harness.store.find_by_idempotency_key(key)) == to_text(created)
        assert len(harness.manager.list()) == len(keys)

    def test_manager_create_concurrent_returns_one_execution(self, harness: StoreHarness) -> None:
        """Through a manager, all concurrent callers receive the same execution."""

        def call(side: StoreAndManager) -> Any:
            return side.manager.create("pay", {"order": 7}, idempotency_key="pay-7")

        answers = harness.race([call] * (CONCURRENCY * 4))
        assert {to_text(each) for each in answers} == {to_text(harness.manager.list()[0])}
        assert len(harness.manager.list()) == 1
        with pytest.raises(IdempotencyConflict):
            harness.manager.create("pay", {"order": 8}, idempotency_key="pay-7")

    @pytest.mark.parametrize("link", ["parent_id", "replay_of"])
    def test_create_with_missing_link_returns_none(self, harness: StoreHarness, link: str) -> None:
        """A create without its parent returns None and does not use the key."""
        gone = harness.create()
        harness.store.delete(gone.id)
        for id in (gone.id, new_id()):
            child = build_new(idempotency_key="k", **{link: id})
            assert harness.store.create(child) is None
            assert harness.store.find_by_id(child.id) is None
        assert harness.store.find_by_idempotency_key("k") is None
        assert getattr(harness.create(idempotency_key="k"), link) is None

    def test_manager_create_repeated_ignores_deleted_parent(self, harness: StoreHarness) -> None:
        """The manager looks for the key before it looks for the parent."""
        parent = harness.create()
        child = harness.create(parent_id=parent.id, idempotency_key="k")
        harness.store.delete(parent.id)
        repeat = harness.manager.create("work", parent_id=parent.id, idempotency_key="k")
        assert repeat.id == child.id

    def test_manager_with_invalid_value_stores_nothing(self, harness: StoreHarness) -> None:
        """The manager refuses an invalid value, and no part of it is stored."""
        id = harness.create().id
        before = to_text(harness.get(id))
        manager = harness.manager
        bad: Any
        for bad in (float("nan"), {1: 2}, b"", "\0", "\ud800", {"a": {1, 2}}):
            for call in (
                partial(manager.create, "a", bad),
                partial(manager.create, "a", metadata={"k": bad}),
                partial(manager.complete, id, bad),
                partial(manager.checkpoint, id, "k", bad),
                partial(manager.log, id, "m", data=bad),
            ):
                with pytest.raises(InvalidValue):
                    call()
        assert [to_text(each) for each in harness.manager.list()] == [before]

    def test_manager_full_lifecycle_completes(self, harness: StoreHarness) -> None:
        """A manager and an attempt's block work with this store from create to replay."""
        manager = harness.manager
        job = manager.create("import", {"rows": 3}, max_attempts=2)
        with pytest.raises(OSError, match="no answer"), manager.attempt(job.id, retry_on=OSError):
            raise OSError("no answer")
        with manager.attempt(job.id, worker="host") as attempt:
            attempt.log("begun", data={"rows": 3})
            for _ in attempt.each("abc"):
                pass
            attempt.result = {"rows": 3}
        done = manager.get(job.id)
        assert (done.status, done.result, done.attempts) == ("completed", {"rows": 3}, 2)
        assert done.progress is not None
        assert done.progress.percent == 100
        assert [entry.message for entry in manager.logs(job.id)] == ["begun"]
        assert manager.replay(job.id).replay_of == job.id
