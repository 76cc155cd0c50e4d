"""Choose a worker's next operation: by seed, by time, and by the answers so far."""

import random
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from .journal import Json, Operation
from .model import FINAL

PREFERENCE_SECONDS: Final = 0.1
"""Seconds for which all workers prefer the same execution."""
TIMED_TYPE, STALLED_TYPE = "timed", "silent"
"""Types: executions of one are swept by deadline, of the other by missing heartbeats."""
VERBS: Final = {
    "create": 4,
    "get": 4,
    "start": 14,
    "claim": 4,
    "heartbeat": 8,
    "update_progress": 14,
    "checkpoint": 14,
    "advance": 6,
    "complete": 2,
    "fail": 10,
    "timeout": 5,
    "cancel": 1,
    "retry": 10,
    "release": 3,
    "sweep": 3,
}
"""How often each is chosen."""
REPEATED_VALUE, REPEATED_SHARE = "again", 0.2
"""A value that several operations write, and how often: it may already be stored."""
FENCED: Final = (
    *("heartbeat", "update_progress", "checkpoint", "advance"),
    *("complete", "fail", "timeout", "release"),
)


@dataclass
class RememberedExecution:
    """What a worker remembers about the execution of a slot."""

    id: str
    attempts: int = 0


class Chooser:
    """Choose operations for a worker, or for its tasks.

    There is a fixed number of slots with one execution each. When an execution has finished, the
    first `create` with the key of the next generation replaces it.
    """

    def __init__(self, seed: str, generations: Any) -> None:
        self._random = random.Random(seed)
        self._generations = generations  # shared by all workers, as a hint
        self._remembered: dict[int, RememberedExecution] = {}

    def next(self, name: str) -> tuple[int, str, Json]:
        """Return a slot, a verb and its arguments.

        Values to be written contain the operation's name, or are `AGAIN`.
        """
        preferred = int(time.monotonic() / PREFERENCE_SECONDS)
        slot = preferred if self._chance(0.5) else self._random.randrange(10**6)
        slot %= len(self._generations)
        (verb,) = self._random.choices([*VERBS], [*VERBS.values()])
        if verb in ("claim", "sweep"):
            return slot, verb, self._batch_arguments(verb, name)
        if verb == "create" or slot not in self._remembered:
            return slot, "create", self.new(slot)
        return slot, verb, self._arguments(self._remembered[slot], verb, name)

    def learn(self, slot: int, operation: Operation) -> None:
        """Remember what an operation returned."""
        for row in operation.answers:
            at, generation = row["payload"]["slot"], row["payload"]["generation"]
            self._remembered[at] = RememberedExecution(row["id"], row["attempts"])
            used_up = row["attempts"] == row["max_attempts"]
            ended = used_up and row["status"] in ("failed", "timed_out") and self._chance(0.5)
            if row["status"] in FINAL or ended:
                self._remembered.pop(at)
                self._generations[at] = max(self._generations[at], generation + 1)
        problem = operation.problem
        if problem.get("code") == "IDEMPOTENCY_CONFLICT":
            self._remembered[slot] = RememberedExecution(problem["execution_id"])
        elif problem.get("from_status") in FINAL or problem.get("code") == "MAX_RETRIES_EXCEEDED":
            self._remembered.pop(slot, None)  # create will find it, or create its successor

    def new(self, slot: int) -> Json:
        """Return the arguments that create the execution of a slot."""
        generation = self._generations[slot]
        payload = {"slot": slot, "generation": generation}
        if self._chance(0.03):
            payload["other"] = 1  # other work under the same key
        return {
            "type": TIMED_TYPE if slot % 2 else STALLED_TYPE,
            "payload": payload,
            "max_attempts": 3 if slot % 5 == 0 else 1000,
            "timeout": timedelta(milliseconds=500) if slot % 2 else None,
            "idempotency_key": f"{slot}/{generation}",
            "metadata": {"kept": slot},
        }

    def _batch_arguments(self, verb: str, name: str) -> Json:
        if verb == "claim":
            return {"worker": name, "limit": self._random.randint(1, 3)}
        sweep = {"limit": 5, "retry": self._chance(0.5)}
        if self._chance(0.5):
            return {"type": TIMED_TYPE, **sweep}
        return {"type": STALLED_TYPE, "stalled_after": timedelta(milliseconds=300), **sweep}

    def _arguments(self, remembered: RememberedExecution, verb: str, name: str) -> Json:
        given: Json = {"id": remembered.id}
        if verb in FENCED and self._chance(0.5):
            stale = self._chance(0.1) and remembered.attempts > 0
            given["attempt"] = remembered.attempts - stale
        match verb:
            case "start":
                given["worker"] = name
            case "update_progress" | "checkpoint" | "advance":
                given |= self._progress(name) if verb != "checkpoint" else {}
                given |= self._checkpoint(name) if verb != "update_progress" else {}
            case "complete":
                given["result"] = name
            case "fail":
                given |= {"error": name, "retryable": self._chance(0.7)}
                if given["retryable"]:
                    given["retry_after"] = self._delay()
            case "retry":
                given["extra_attempts"] = 1 if self._chance(0.3) else 0
                given["retry_after"] = self._delay() if self._chance(0.3) else None
            case "cancel":
                given["reason"] = name if self._chance(0.5) else None
        return given

    def _delay(self) -> timedelta:
        return timedelta(milliseconds=self._random.randrange(200))

    def _progress(self, name: str) -> Json:
        repeats = self._chance(REPEATED_SHARE)
        current = 50 if repeats else self._random.randrange(101)
        progress = {"current": current, "total": 100, "percent": float(current)}
        return progress | {"message": REPEATED_VALUE if repeats else name}

    def _checkpoint(self, name: str) -> Json:
        value = REPEATED_VALUE if self._chance(REPEATED_SHARE) else name
        return {"key": f"key-{self._random.randrange(6)}", "value": value}

    def _chance(self, share: float) -> bool:
        return self._random.random() < share
