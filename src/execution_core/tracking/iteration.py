"""An iteration that resumes after its last checkpoint, item by item or in chunks."""

from collections.abc import Mapping, Reversible, Sized
from collections.abc import Set as AbstractSet
from typing import Any

from ..core import validation
from ..core.errors import InvalidValue


class CheckpointedIteration:
    """Counts the items that are done, and decides when to record the position."""

    def __init__(self, items: object, key: str, every: int, checkpoints: Mapping[str, Any]) -> None:
        self._key = validation.name("checkpoint", key)
        self._every = validation.integer("every", every, 1, validation.MAX_INTEGER)
        if isinstance(items, AbstractSet) and not isinstance(items, Reversible):
            # An ordered collection, such as a view of a dict, can be reversed.
            raise InvalidValue(
                "items",
                f"is {validation.type_name(items)}, whose order differs from process to process:"
                " pass a list, such as sorted(items)",
            )
        self._total = _length(items)
        self.done = 0
        """How many items are done: so many are skipped at the start."""
        if key in checkpoints:
            last = checkpoints[key]
            whole = isinstance(last, int) and not isinstance(last, bool)
            if not whole or not 0 <= last < validation.MAX_BIG_INTEGER:
                raise InvalidValue("checkpoint", f"{key!r} holds {last!r:.80}, not an index")
            self.done = last + 1
        self._begun = self._recorded = self.done
        if self._total is not None:
            self.check_length(self._total)

    def check_length(self, length: int) -> None:
        """Refuse fewer items than the checkpoint says are done: they are not the same items."""
        if length < self._begun:
            raise InvalidValue(
                "items",
                f"has {length} items, but the checkpoint {self._key!r} says that {self._begun} are"
                " done: pass the same items in the same order to every attempt",
            )

    def item_done(self) -> dict[str, Any] | None:
        """Count an item; return the arguments of `advance` if the position is due, else None."""
        self.done += 1
        return self._position() if self.done - self._recorded >= self._every else None

    def exhausted(self) -> dict[str, Any] | None:
        """Return the arguments of the last `advance`, or None if everything is recorded."""
        total_found = self._total is None and self.done > self._begun
        if total_found:
            self._total = self.done
        return self._position() if total_found or self.done > self._recorded else None

    def position_after(self, count: int) -> dict[str, Any]:
        """Return the arguments of `advance` once so many more items are done."""
        done, total = self.done + count, self._total or 0
        return {"current": done, "total": total, "key": self._key, "value": done - 1}

    def chunk_done(self, count: int) -> None:
        """Count the items of a chunk, which has recorded its position itself."""
        self.done += count
        self._recorded = self.done

    def _position(self) -> dict[str, Any]:
        self._recorded = self.done
        return self.position_after(0)


def _length(items: object) -> int | None:
    try:
        return len(items) if isinstance(items, Sized) else None
    except OverflowError:  # of range(10**20)
        return None
