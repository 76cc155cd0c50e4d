"""What a worker does next: by its seed, by whose turn it is, and by what it was answered so far."""

import random
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from .journal import Json, Operation
from .model import OVER

TURN: Final = 0.1
"""Seconds for which one execution is everybody's favourite: it is its turn."""
TIMED, SILENT = "timed", "silent"
"""Types: those of the one are swept by their deadlines, of the other by their silence."""
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
    "sweep": 3,
}
"""How often each is chosen."""
AGAIN, REPEATED = "again", 0.2
"""What several operations write, and how often: it may stand already, by another one."""
FENCED: Final = (
    *("heartbeat", "update_progress", "checkpoint", "advance"),
    *("complete", "fail", "timeout"),
)


@dataclass
class Known:
    """What a worker remembers of the execution in a place."""

    id: str
    attempts: int = 0


class Chooser:
    """Chooses for a worker, or for the tasks of one.

    There are so many places, with an execution each. When one is over, a create with the next
    generation's key replaces it: that of whoever comes first.
    """

    def __init__(self, seed: str, generations: Any) -> None:
        self._random = random.Random(seed)
        self._generations = generations  # of all workers, as a hint
        self._known: dict[int, Known] = {}

    def next(self, name: str) -> tuple[int, str, Json]:
        """Return a place, a verb and its arguments.

        What is written holds the operation's name, or is `AGAIN`.
        """
        favourite = int(time.monotonic() / TURN)
        place = favourite if self._chance(0.5) else self._random.randrange(10**6)
        place %= len(self._generations)
        (verb,) = self._random.choices([*VERBS], [*VERBS.values()])
        if verb in ("claim", "sweep"):
            return place, verb, self._of_many(verb, name)
        if verb == "create" or place not in self._known:
            return place, "create", self.new(place)
        return place, verb, self._of_one(self._known[place], verb, name)

    def learn(self, place: int, operation: Operation) -> None:
        """Remember what is known now."""
        for row in operation.answers:
            at, generation = row["payload"]["place"], row["payload"]["generation"]
            self._known[at] = Known(row["id"], row["attempts"])
            used_up = row["attempts"] == row["max_attempts"]
            if row["status"] in OVER or (used_up and row["status"] in ("failed", "timed_out")):
                self._known.pop(at)
                self._generations[at] = max(self._generations[at], generation + 1)
        problem = operation.problem
        if problem.get("code") == "IDEMPOTENCY_CONFLICT":
            self._known[place] = Known(problem["execution_id"])
        elif problem.get("from_status") in OVER or problem.get("code") == "MAX_RETRIES_EXCEEDED":
            self._known.pop(place, None)  # to be created again, or found and replaced

    def new(self, place: int) -> Json:
        """Return what the execution of a place is made of."""
        generation = self._generations[place]
        payload = {"place": place, "generation": generation}
        if self._chance(0.03):
            payload["other"] = 1  # other work under the same key
        return {
            "type": TIMED if place % 2 else SILENT,
            "payload": payload,
            "max_attempts": 3 if place % 5 == 0 else 1000,
            "timeout": timedelta(milliseconds=500) if place % 2 else None,
            "idempotency_key": f"{place}/{generation}",
            "metadata": {"kept": place},
        }

    def _of_many(self, verb: str, name: str) -> Json:
        if verb == "claim":
            return {"worker": name, "limit": self._random.randint(1, 3)}
        if self._chance(0.5):
            return {"type": TIMED, "limit": 5}
        return {"type": SILENT, "limit": 5, "stalled_after": timedelta(milliseconds=300)}

    def _of_one(self, known: Known, verb: str, name: str) -> Json:
        given: Json = {"id": known.id}
        if verb in FENCED and self._chance(0.5):
            late = self._chance(0.1) and known.attempts > 0
            given["attempt"] = known.attempts - late
        match verb:
            case "start":
                given["worker"] = name
            case "update_progress":
                given |= self._progress(name)
            case "checkpoint":
                given |= self._checkpoint(name)
            case "advance":
                given |= self._progress(name) | self._checkpoint(name)
            case "complete":
                given["result"] = name
            case "fail":
                given |= {"error": name, "retryable": self._chance(0.7)}
                given["retry_after"] = timedelta(milliseconds=self._random.randrange(200))
            case "cancel":
                given["reason"] = name if self._chance(0.5) else None
        return given

    def _progress(self, name: str) -> Json:
        repeats = self._chance(REPEATED)
        current = 50 if repeats else self._random.randrange(101)
        progress = {"current": current, "total": 100, "percent": float(current)}
        return progress | {"message": AGAIN if repeats else name}

    def _checkpoint(self, name: str) -> Json:
        value = AGAIN if self._chance(REPEATED) else name
        return {"key": f"key-{self._random.randrange(6)}", "value": value}

    def _chance(self, share: float) -> bool:
        return self._random.random() < share
