# ruff: noqa: S101 - asserts are what a contract is made of
"""New executions: found as they were made, once for each key, never without their parent."""

from functools import partial
from typing import Any, Final

import pytest

from ..core.errors import IdempotencyConflict, InvalidValue
from ..core.validation import new_id
from .harness import CONCURRENCY, StoreAndManager, StoreHarness, call_store, new, to_text
from .states import DAY, STATES, bring_to

KEYS: Final = [
    *("a", "A", "a ", " a", "aa", "ü", "u\u0308", "a:b", "a*b", "a%", "a_", "a'b", 'a"b', "a\\b"),
    *("{a}", "a\nb", "None", "null", "0", "00", "😀", "k" * 255, "ü" * 255),
]


class CreationContract:
    """`create`, `find_by_id` and `find_by_idempotency_key`."""

    def test_what_is_created_is_found(self, subject: StoreHarness) -> None:
        """By its id and by its key, in either store, as `creation.apply` makes it."""
        parent, old = subject.create(), bring_to(subject, "completed")
        creation = new(
            "ship",
            {"order": 7},
            idempotency_key="ship-7",
            max_attempts=5,
            timeout=DAY,
            metadata={"by": "ada"},
            parent_id=parent.id,
            replay_of=old.id,
            start_after=DAY,
        )
        created = subject.store.create(creation)
        assert created is not None
        assert to_text(created) == to_text(creation.apply(created.created_at))
        for store in (subject.store, subject.other):
            assert to_text(store.find_by_id(created.id)) == to_text(created)
            assert to_text(store.find_by_idempotency_key("ship-7")) == to_text(created)

    def test_what_is_not_there_is_none(self, subject: StoreHarness) -> None:
        """Neither an id nor a key that nobody holds is an error."""
        assert subject.store.find_by_id(new_id()) is None
        assert subject.store.find_by_idempotency_key("nobody's") is None

    def test_keys_are_told_apart(self, subject: StoreHarness) -> None:
        """A key is its characters: no case, space, form or pattern makes two of them one."""
        held = {key: subject.create(idempotency_key=key).id for key in KEYS}
        for key, id in held.items():
            found = subject.store.find_by_idempotency_key(key)
            assert found is not None
            assert (found.id, found.idempotency_key) == (id, key)

    @pytest.mark.parametrize("situation", STATES)
    def test_a_key_that_is_taken_stays_so(self, subject: StoreHarness, situation: str) -> None:
        """Whatever became of the first, a second one is None and changes nothing."""
        options, steps = STATES[situation]
        held = subject.create(payload=1, idempotency_key="k", **options)
        held = subject.moved(held.id, *steps)
        subject.later(held.updated_at)
        for payload in (1, 2):
            other = new(payload=payload, idempotency_key="k")
            assert subject.store.create(other) is None
            assert subject.store.find_by_id(other.id) is None
            assert to_text(subject.store.find_by_idempotency_key("k")) == to_text(held)
        assert len(subject.manager.list()) == 1

    def test_one_of_many_creates_wins(self, subject: StoreHarness) -> None:
        """One key, many callers: one execution, and one who is told that it is its own."""
        keys = [f"key-{number}" for number in range(10)]
        creations = [
            new(payload=n, idempotency_key=key) for key in keys for n in range(CONCURRENCY)
        ]
        answers = subject.race([call_store("create", each) for each in creations])
        for number, key in enumerate(keys):
            created = [
                each for each in answers[number * CONCURRENCY :][:CONCURRENCY] if each is not None
            ]
            assert len(created) == 1
            assert to_text(subject.store.find_by_idempotency_key(key)) == to_text(created[0])
        assert len(subject.manager.list()) == len(keys)

    def test_many_callers_get_one_execution(self, subject: StoreHarness) -> None:
        """Through a manager everybody is answered, with the same."""

        def call(side: StoreAndManager) -> Any:
            return side.manager.create("pay", {"order": 7}, idempotency_key="pay-7")

        answers = subject.race([call] * (CONCURRENCY * 4))
        assert {to_text(each) for each in answers} == {to_text(subject.manager.list()[0])}
        assert len(subject.manager.list()) == 1
        with pytest.raises(IdempotencyConflict):
            subject.manager.create("pay", {"order": 8}, idempotency_key="pay-7")

    @pytest.mark.parametrize("link", ["parent_id", "replay_of"])
    def test_what_is_named_must_exist(self, subject: StoreHarness, link: str) -> None:
        """Without its parent a creation is None, and does not use up its key."""
        gone = subject.create()
        subject.store.delete(gone.id)
        for id in (gone.id, new_id()):
            child = new(idempotency_key="k", **{link: id})
            assert subject.store.create(child) is None
            assert subject.store.find_by_id(child.id) is None
        assert subject.store.find_by_idempotency_key("k") is None
        assert getattr(subject.create(idempotency_key="k"), link) is None

    def test_a_repeat_needs_no_parent(self, subject: StoreHarness) -> None:
        """Of what stands in the way, the key is what the manager asks for first."""
        parent = subject.create()
        child = subject.create(parent_id=parent.id, idempotency_key="k")
        subject.store.delete(parent.id)
        repeat = subject.manager.create("work", parent_id=parent.id, idempotency_key="k")
        assert repeat.id == child.id

    def test_a_bad_value_is_not_stored(self, subject: StoreHarness) -> None:
        """The manager refuses it; nothing of it is there afterwards."""
        id = subject.create().id
        before = to_text(subject.found(id))
        manager = subject.manager
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
        assert [to_text(each) for each in subject.manager.list()] == [before]

    def test_a_whole_life(self, subject: StoreHarness) -> None:
        """As a service lives it, with a manager and an attempt's block."""
        manager = subject.manager
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
        assert [line.message for line in manager.logs(job.id)] == ["begun"]
        assert manager.replay(job.id).replay_of == job.id
