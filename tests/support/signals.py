"""Signals at chosen moments, whose handlers raise; and a call that is tried at each of them."""

import selectors
import signal
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from execution_core import ExecutionProblem

from .injection import Figures, Subject, World, collect_garbage
from .verbs import Call

POOL = ("sqlalchemy/pool/base.py", "sqlalchemy/pool/impl.py", "sqlalchemy/util/queue.py")


class Interruption(BaseException):
    """What a host's handler may raise."""


class OrdinaryInterruption(Exception):
    """What it may raise as well: some workers tell a task so that its time is over."""


SIGNALS: Mapping[int, type[BaseException]] = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGUSR1: Interruption,
    signal.SIGUSR2: OrdinaryInterruption,
}


@contextmanager
def raising(signals: Mapping[int, type[BaseException]] = SIGNALS) -> Iterator[None]:
    """Have signals raise, wherever the main thread is."""

    def handle(number: int, _: object) -> None:
        raise signals[number]

    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def in_seconds(seconds: float) -> Iterator[None]:
    """Raise where a thread would wait for ever."""
    with raising({signal.SIGALRM: TimeoutError}):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


class Calls:
    """Sends a signal to this thread at the n-th moment at which Python may look for one.

    That is when a function begins or has ended, be it Python's or C's. Counted is what belongs to a
    call of the function that `code` is of; with `folder`, only in what stands there.
    """

    def __init__(self, code: types.CodeType, folder: str = "") -> None:
        self.code, self.folder = code, folder
        self.events = {"call", "return", "c_return"}
        self.at = self.seen = self._depth = 0
        self.number = signal.SIGUSR1
        self.stack: list[types.CodeType] = []
        """Where the signal came, from the innermost function on."""
        self.swallowed = False
        """Whether it came where Python lets no exception out, as in a finalizer."""

    def __enter__(self) -> Self:
        self._hook, sys.unraisablehook = sys.unraisablehook, self._swallow
        sys.setprofile(self._see)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        sys.unraisablehook = self._hook

    def _swallow(self, _: object) -> None:
        self.swallowed = True

    def _see(self, frame: types.FrameType, event: str, _: object) -> None:
        if frame.f_code is self.code:
            self._depth += {"call": 1, "return": -1}.get(event, 0)
        if self._depth and event in self.events and self.folder in frame.f_code.co_filename:
            self.seen += 1
            if self.seen == self.at:
                self._signal(frame)

    def _signal(self, frame: types.FrameType | None) -> None:
        sys.setprofile(None)
        while frame:
            self.stack.append(frame.f_code)
            frame = frame.f_back
        signal.raise_signal(self.number)

    def came_within(self, *places: str) -> bool:
        """Tell whether it came within any of these functions or files."""
        return any(
            code.co_qualname in places or code.co_filename.endswith(places) for code in self.stack
        )


class Trial:
    """A call that is made over and over, each time with a signal at another moment."""

    def __init__(
        self, subject: Subject, world: World, calls: Callable[[], Calls], call: Call | None = None
    ) -> None:
        self.subject, self.world, self.calls = subject, world, calls
        self.call = call or world.verb.call
        self.figures = Figures()
        self.abandons = self.connects = False
        self.patience = 10.0
        self.again()

    def again(self) -> None:
        """Count the moments, once all that is done once has been done."""
        for _ in range(3):
            self.last = self.signalled(0).seen
            self.world.end()

    def at_every(self, step: int, first: int = 0, numbers: Sequence[int] = tuple(SIGNALS)) -> None:
        """Send one signal after the other."""
        for n in range(1 + first % step, self.last + 1, step):
            calls = self.signalled(n, numbers[(n // step + first) % len(numbers)])
            if lost := self.subject.in_use:
                assert calls.came_within(*POOL), calls.stack
                self.figures["places of SQLAlchemy's pool lost"] += 1
                self.subject.close()
                self.subject = Subject(self.subject.database, self.subject.kind, "sync")
                collect_garbage()
            self.subject.assert_free()
            self.figures[self.world.end()] += 1
            if lost:
                self.again()
        self.make_ready()

    def signalled(self, at: int, number: int = signal.SIGUSR1) -> Calls:
        """Make the call."""
        self.make_ready()
        calls = self.calls()
        calls.at, calls.number = at, signal.Signals(number)
        raised: type[BaseException] | None = None
        try:
            with in_seconds(2 * self.patience), calls:
                self.call(self.subject.manager, self.world.target)
        except ExecutionProblem:
            pass
        except tuple(SIGNALS.values()) as error:
            raised = type(error)
        if calls.stack and not calls.swallowed and raised is not SIGNALS[number]:
            # SQLAlchemy lets no Exception out where a connection is given back.
            assert number == signal.SIGUSR2, (raised, calls.stack)
            assert calls.came_within(*POOL), (raised, calls.stack)
            self.figures["swallowed by SQLAlchemy's pool"] += 1
        if self.abandons:
            collect_garbage()
        return calls

    def make_ready(self) -> None:
        with in_seconds(self.patience):
            self.subject.manager.list(limit=1)
        self.subject.assert_free()
        if self.connects:
            self.subject.disconnect()

    def close(self) -> None:
        self.subject.close()
        self.world.close()


class Selector(selectors.DefaultSelector):
    """What a loop waits with: a signal comes there, once it is told to."""

    number = 0

    def select(self, timeout: float | None = None) -> Any:
        if self.number:
            number, self.number = self.number, 0
            signal.raise_signal(number)
        return super().select(timeout)
