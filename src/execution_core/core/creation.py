"""A new execution: what it is made of, and whether it repeats an old one."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from . import json_values, validation
from .errors import IdempotencyConflict, InvalidStateTransition
from .json_values import Json
from .models import Execution
from .state_machine import FINISHED
from .transitions import CANCELLATION_REASON

MAX_TRIES: Final = 10
"""How often to try while what stands in the way is gone again before it can be read."""


@dataclass(frozen=True, slots=True)
class NewExecution:
    """A checked execution that is not stored yet."""

    id: str
    type: str
    payload: Json | None
    max_attempts: int
    timeout: timedelta | None
    idempotency_key: str | None
    fingerprint: str | None
    parent_id: str | None
    replay_of: str | None
    metadata: Json
    start_after: timedelta | None

    def apply(self, now: datetime) -> Execution:
        """Return the execution that this creates: what a store without SQL keeps."""
        return Execution(
            id=self.id,
            type=self.type,
            payload=self.payload and self.payload.value,
            max_attempts=self.max_attempts,
            created_at=now,
            updated_at=now,
            timeout=self.timeout,
            idempotency_key=self.idempotency_key,
            fingerprint=self.fingerprint,
            parent_id=self.parent_id,
            replay_of=self.replay_of,
            metadata=self.metadata.value,
            due_at=now + (self.start_after or timedelta(0)),
        )


def new_execution(
    type: str,
    payload: object,
    *,
    max_attempts: int,
    timeout: timedelta | None,
    idempotency_key: str | None,
    parent_id: str | None,
    metadata: object,
    start_after: timedelta | None,
    max_bytes: int,
    replay_of: str | None = None,
) -> NewExecution:
    """Check what a new execution is made of."""
    type = validation.name("type", type)
    checked = None if payload is None else json_values.to_json("payload", payload, max_bytes)
    key = None if idempotency_key is None else validation.name("idempotency_key", idempotency_key)
    return NewExecution(
        id=validation.new_id(),
        type=type,
        payload=checked,
        max_attempts=validation.integer("max_attempts", max_attempts, 1, validation.MAX_INTEGER),
        timeout=None if timeout is None else validation.duration("timeout", timeout),
        idempotency_key=key,
        fingerprint=None if key is None else json_values.fingerprint(type, checked),
        parent_id=None if parent_id is None else validation.execution_id(parent_id),
        replay_of=replay_of,
        metadata=json_values.json_object("metadata", metadata, max_bytes),
        start_after=None if start_after is None else validation.delay("start_after", start_after),
    )


def new_replay(found: Execution, payload: object, max_bytes: int) -> NewExecution:
    """Return what does an execution that is over once more.

    Raises:
        InvalidStateTransition: it is not over.
        InvalidValue: the payload cannot be stored.
    """
    if found.status not in FINISHED:
        raise InvalidStateTransition(found.id, "replay", found.status, None, FINISHED)
    metadata = {k: v for k, v in found.metadata.items() if k != CANCELLATION_REASON}
    return new_execution(
        found.type,
        found.payload if payload is ... else payload,
        max_attempts=found.max_attempts,
        timeout=found.timeout,
        idempotency_key=None,
        parent_id=found.parent_id,
        metadata=metadata,
        start_after=None,
        max_bytes=max_bytes,
        replay_of=found.id,
    )


def check_same_work(creation: NewExecution, found: Execution) -> Execution:
    """Return the execution that holds the key of a creation.

    Raises:
        IdempotencyConflict: it is of another type or payload.
    """
    # A row inserted by hand may have a key and no fingerprint.
    held = found.fingerprint or json_values.fingerprint(
        found.type, None if found.payload is None else json_values.to_json("payload", found.payload)
    )
    if held != creation.fingerprint:
        raise IdempotencyConflict(found.idempotency_key or "", found.id)
    return found
