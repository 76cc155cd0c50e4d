"""How long to wait between attempts."""

import random
from dataclasses import dataclass
from datetime import timedelta

from . import validation
from .errors import InvalidValue


@dataclass(frozen=True, slots=True)
class Backoff:
    """Growing delays between attempts: `Backoff(timedelta(seconds=5), maximum=timedelta(hours=1))`.

    Before attempt n + 1 it waits `initial * factor ** (n - 1)`, `maximum` at most; less by a random
    part of it, `jitter` at most, lest all who failed together come back together.

    Args:
        initial: the delay after the first attempt.
        factor: how much longer each delay is than the one before, 1 or more.
        maximum: the longest delay.
        jitter: 0 (exactly that long) to 1 (anything from no delay at all).

    Raises:
        InvalidValue: one of them makes no sense.
    """

    initial: timedelta
    factor: float = 2.0
    maximum: timedelta = timedelta(hours=1)
    jitter: float = 0.1

    def __post_init__(self) -> None:
        validation.duration("initial", self.initial)
        validation.number("factor", self.factor, 1, 1_000_000)
        validation.number("jitter", self.jitter, 0, 1)
        if validation.duration("maximum", self.maximum) < self.initial:
            raise InvalidValue("maximum", "must not be shorter than initial (1 hour by default)")

    def delay(self, attempt: int) -> timedelta:
        """Return how long to wait after an attempt: `backoff.delay(execution.attempts)`.

        Args:
            attempt: the number of the attempt that failed, from 1 on.
        """
        attempt = validation.integer("attempt", attempt, 1, validation.MAX_INTEGER)
        try:
            times = float(self.factor) ** (attempt - 1)
        except OverflowError:
            times = float("inf")
        longest = self.maximum if times >= self.maximum / self.initial else self.initial * times
        return longest * (1 - self.jitter * random.random())  # noqa: S311 - nobody is to be kept out
