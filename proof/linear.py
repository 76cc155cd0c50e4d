"""Is there one order of everything that was done to an execution that explains every answer?

The search is that of Wing and Gong, with Lowe's memory of where it has been. What keeps it short:
the history gives the order of the moves, and whatever writes anything else writes, mostly, a value
of its own, which the next answers show.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .journal import Operation
from .model import Row


@dataclass(eq=False)
class Step:
    """What happened to an execution at one moment between two."""

    operation: Operation | None
    """Whose it is; None for the last look at the row."""
    began: float
    ended: float
    follow: Callable[[Row | None], Row | None]
    """The row afterwards; the very same where nothing changes; None where it cannot be so."""
    place: int | None = None
    """Which move of the history it is."""
    behind: "Step | None" = None
    """What happened before, within the same operation."""
    may_be: bool = False
    """Whether it may not have happened at all."""


def unexplained(steps: list[Step]) -> list[Step]:
    """Return nothing when there is such an order; else what is left over in the best attempt."""
    search = Search(sorted(steps, key=lambda step: step.began))
    return search.run()


class Search:
    """A set of steps is a number here, with a bit for each."""

    def __init__(self, steps: list[Step]) -> None:
        self.steps = steps
        bits = {id(step): 1 << n for n, step in enumerate(steps)}
        self.needed = [bits[id(step.behind)] if step.behind else 0 for step in steps]
        self.must_be = sum(bits[id(step)] for step in steps if not step.may_be)
        self.seen: set[tuple[int, Row | None]] = set()

    def run(self) -> list[Step]:
        """Try every order that could have been, the promising ones first."""
        best = self.must_be
        tries: list[tuple[int, Row | None, int]] = [((1 << len(self.steps)) - 1, None, 0)]
        while tries:
            left, found, place = tries.pop()
            left = self._without_looks(left, found)
            missing = left & self.must_be
            if missing.bit_count() < best.bit_count():
                best = missing
            if not missing:
                break
            if (left, found) not in self.seen:
                self.seen.add((left, found))
                tries += self._next(left, found, place)
        return [step for n, step in enumerate(self.steps) if best >> n & 1]

    def _without_looks(self, left: int, found: Row | None) -> int:
        """Take what changes nothing as soon as it can be: no later moment would be better."""
        looked = True
        while looked:
            looked = False
            for n in self._possible(left):
                if found is not None and self.steps[n].follow(found) is found:
                    left ^= 1 << n
                    looked = True
        return left

    def _next(
        self, left: int, found: Row | None, place: int
    ) -> Iterator[tuple[int, Row | None, int]]:
        for n in self._possible(left):
            step = self.steps[n]
            if step.place not in (None, place):
                continue
            changed = step.follow(found)
            if changed is not None and changed is not found:
                yield left ^ 1 << n, changed, place + (step.place is not None)

    def _possible(self, left: int) -> Iterator[int]:
        """Give the steps that may be next: no other one that is left had ended when they began."""
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
