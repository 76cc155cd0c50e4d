"""Delays between attempts."""

import random
from dataclasses import dataclass
from datetime import timedelta

from . import validation
from .errors import InvalidValue


@dataclass(frozen=True, slots=True)
class Backoff:
    """Growing delays between attempts: `Backoff(timedelta(seconds=5), maximum=timedelta(hours=1))`.

    The delay after attempt n is `initial * factor ** (n - 1)`, at most `maximum`. A random part of
    it, at most `jitter`, is subtracted, so that executions that failed together do not retry
    together.

    Args:
        initial: the delay after the first attempt.
        factor: the ratio of each delay to the one before, 1 or more.
        maximum: the longest delay.
        jitter: from 0 (exact delays) to 1 (any delay from 0 on).

    Raises:
        InvalidValue: an argument is out of range.
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
        """Return the delay after a failed attempt: `backoff.delay(execution.attempts)`.

        Args:
            attempt: the number of the attempt that failed; the first is 1.
        """
        attempt = validation.integer("attempt", attempt, 1, validation.MAX_INTEGER)
        try:
            ratio = float(self.factor) ** (attempt - 1)
        except OverflowError:
            ratio = float("inf")
        delay = self.maximum if ratio >= self.maximum / self.initial else self.initial * ratio
        return delay * (1 - self.jitter * random.random())  # noqa: S311 - not for cryptography
