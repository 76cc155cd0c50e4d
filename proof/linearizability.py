"""Search for one order of all operations on an execution that explains every answer.

The search is that of Wing and Gong, with Lowe's cache of visited states. Two things keep it short:
the history gives the order of the transitions, and other writes mostly write unique values, which
later answers show.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .journal import Operation
from .model import Row


@dataclass(eq=False)
class Step:
    """An effect on, or a read of, an execution at one moment in an interval."""

    operation: Operation | None
    """The operation; None for the final read of the row."""
    began: float
    ended: float
    apply: Callable[[Row | None], Row | None]
    """Return the row afterwards: the same object if nothing changes, None if it is impossible."""
    position: int | None = None
    """The index of its transition in the history."""
    after: "Step | None" = None
    """The preceding step of the same operation."""
    optional: bool = False
    """Whether it may not have happened."""


def unexplained(steps: list[Step]) -> list[Step]:
    """Return an empty list if there is such an order; else the rest of the best attempt."""
    search = Search(sorted(steps, key=lambda step: step.began))
    return search.run()


class Search:
    """The search; a set of steps is an integer with one bit per step."""

    def __init__(self, steps: list[Step]) -> None:
        self.steps = steps
        bits = {id(step): 1 << n for n, step in enumerate(steps)}
        self.needed = [bits[id(step.after)] if step.after else 0 for step in steps]
        self.required = sum(bits[id(step)] for step in steps if not step.optional)
        self.seen: set[tuple[int, Row | None]] = set()

    def run(self) -> list[Step]:
        """Try every possible order, the promising ones first."""
        best = self.required
        stack: list[tuple[int, Row | None, int]] = [((1 << len(self.steps)) - 1, None, 0)]
        while stack:
            left, found, position = stack.pop()
            left = self._apply_reads(left, found)
            missing = left & self.required
            if missing.bit_count() < best.bit_count():
                best = missing
            if not missing:
                break
            if (left, found) not in self.seen:
                self.seen.add((left, found))
                stack += self._next(left, found, position)
        return [step for n, step in enumerate(self.steps) if best >> n & 1]

    def _apply_reads(self, left: int, found: Row | None) -> int:
        """Apply steps that change nothing as soon as possible: a later moment is no better."""
        applied = True
        while applied:
            applied = False
            for n in self._possible(left):
                if found is not None and self.steps[n].apply(found) is found:
                    left ^= 1 << n
                    applied = True
        return left

    def _next(
        self, left: int, found: Row | None, position: int
    ) -> Iterator[tuple[int, Row | None, int]]:
        for n in self._possible(left):
            step = self.steps[n]
            if step.position not in (None, position):
                continue
            changed = step.apply(found)
            if changed is not None and changed is not found:
                yield left ^ 1 << n, changed, position + (step.position is not None)

    def _possible(self, left: int) -> Iterator[int]:
        """Yield the steps that may come next: no remaining one had ended before they began."""
        limit, rest = math.inf, left
        while rest:
            lowest = rest & -rest
            n = lowest.bit_length() - 1
            step = self.steps[n]
            if step.began > limit:
                return
            limit = min(limit, step.ended)
            if not self.needed[n] & left:
                yield n
            rest ^= lowest
