"""Send a signal whose handler raises at a chosen moment of a call, and at every moment."""

import selectors
import signal
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from execution_core import ExecutionProblem

from .injection import Figures, ManagerHarness, Scenario, collect_garbage
from .verbs import Call

POOL = ("sqlalchemy/pool/base.py", "sqlalchemy/pool/impl.py", "sqlalchemy/util/queue.py")


class Interruption(BaseException):
    """An exception that a host's signal handler may raise."""


class OrdinaryInterruption(Exception):
    """The same as an Exception: some workers end a task at its time limit with one."""


SIGNALS: Mapping[int, type[BaseException]] = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGUSR1: Interruption,
    signal.SIGUSR2: OrdinaryInterruption,
}


@contextmanager
def raise_on_signals(signals: Mapping[int, type[BaseException]] = SIGNALS) -> Iterator[None]:
    """Install signal handlers that raise in the main thread."""

    def handle(number: int, _: object) -> None:
        raise signals[number]

    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError instead of waiting forever."""
    with raise_on_signals({signal.SIGALRM: TimeoutError}):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


class SignalAtCall:
    """Send a signal to this thread at the n-th moment at which Python checks for signals.

    Such moments are the begin and the end of a function, in Python or in C. Only moments within a
    call of the function with `code` count; with `folder`, only in files of that folder.
    """

    def __init__(self, code: types.CodeType, folder: str = "") -> None:
        self.code, self.folder = code, folder
        self.events = {"call", "return", "c_return"}
        self.at = self.seen = self._depth = 0
        self.number = signal.SIGUSR1
        self.stack: list[types.CodeType] = []
        """Where the signal arrived, from the innermost function outwards."""
        self.swallowed = False
        """Whether it arrived where exceptions do not propagate, as in a finalizer."""

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

    def arrived_within(self, *places: str) -> bool:
        """Return whether it arrived within any of these functions or files."""
        return any(
            code.co_qualname in places or code.co_filename.endswith(places) for code in self.stack
        )


class SignalTrial:
    """Repeat a call, each time with a signal at another moment."""

    def __init__(
        self,
        harness: ManagerHarness,
        scenario: Scenario,
        calls: Callable[[], SignalAtCall],
        call: Call | None = None,
    ) -> None:
        self.harness, self.scenario, self.calls = harness, scenario, calls
        self.call = call or scenario.verb.call
        self.figures = Figures()
        self.abandons = self.connects = False
        self.call_timeout = 10.0
        self.again()

    def again(self) -> None:
        """Count the moments, after the caches are filled."""
        for _ in range(3):
            self.last = self.signalled(0).seen
            self.scenario.end()

    def at_every(self, step: int, first: int = 0, numbers: Sequence[int] = tuple(SIGNALS)) -> None:
        """Repeat the call with a signal at every `step`-th moment."""
        for n in range(1 + first % step, self.last + 1, step):
            calls = self.signalled(n, numbers[(n // step + first) % len(numbers)])
            if lost := self.harness.in_use:
                assert calls.arrived_within(*POOL), calls.stack
                self.figures["places of SQLAlchemy's pool lost"] += 1
                self.harness.close()
                self.harness = ManagerHarness(self.harness.database, self.harness.kind, "sync")
                collect_garbage()
            self.harness.assert_free()
            self.figures[self.scenario.end()] += 1
            if lost:
                self.again()
        self.make_ready()

    def signalled(self, at: int, number: int = signal.SIGUSR1) -> SignalAtCall:
        """Call once, with a signal at a moment; 0 for none."""
        self.make_ready()
        calls = self.calls()
        calls.at, calls.number = at, signal.Signals(number)
        raised: type[BaseException] | None = None
        try:
            with time_limit(2 * self.call_timeout), calls:
                self.call(self.harness.manager, self.scenario.target)
        except ExecutionProblem:
            pass
        except tuple(SIGNALS.values()) as error:
            raised = type(error)
        except TypeError as error:
            # CPython 3.11 sometimes raises this instead, in the first line of a function that C
            # calls. The row must be right all the same.
            if str(error) != "'traceback' object is not callable":
                raise
            raised = SIGNALS[number]
        if calls.stack and not calls.swallowed and raised is not SIGNALS[number]:
            # SQLAlchemy swallows any Exception while it returns a connection to the pool.
            assert number == signal.SIGUSR2, (raised, calls.stack)
            assert calls.arrived_within(*POOL), (raised, calls.stack)
            self.figures["swallowed by SQLAlchemy's pool"] += 1
        if self.abandons:
            collect_garbage()
        return calls

    def make_ready(self) -> None:
        with time_limit(self.call_timeout):
            self.harness.manager.list(limit=1)
        self.harness.assert_free()
        if self.connects:
            self.harness.disconnect()

    def close(self) -> None:
        self.harness.close()
        self.scenario.close()


class SignallingSelector(selectors.DefaultSelector):
    """A selector that raises the signal `number` once, when the event loop waits."""

    number = 0

    def select(self, timeout: float | None = None) -> Any:
        if self.number:
            number, self.number = self.number, 0
            signal.raise_signal(number)
        return super().select(timeout)
