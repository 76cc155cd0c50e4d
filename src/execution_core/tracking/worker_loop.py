"""What the sync and the async worker share: options, and every decision, as steps."""

import logging
import os
import random
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Any, Final, Generic, TypeVar, cast

from ..core import validation
from ..core.backoff import Backoff
from ..core.errors import AttemptLost, InvalidValue
from ..core.models import Execution, ExecutionFailure
from ..core.steps import Steps
from .attempt_options import Exceptions
from .decorator import check_function

logger: Final = logging.getLogger("execution_core")
_RETRY: Final = Backoff(timedelta(seconds=5))
_OUTAGE: Final = Backoff(timedelta(milliseconds=500), maximum=timedelta(seconds=10), jitter=0.5)

ManagerT = TypeVar("ManagerT")
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class WorkerLoop(Generic[ManagerT, FunctionT]):
    """The options, the state and the steps of a worker (see `core.steps`)."""

    # Defined by both workers; these are functions or coroutine functions, but for `_wake_up`.
    _manager_class: type[ManagerT]
    _is_async: bool
    _wakes_class: type[Any]
    _begin: Callable[[Execution], Any]
    _wait: Callable[[float], Any]
    _end: Callable[[], Any]
    _wake_up: Callable[[], None]

    def __init__(
        self,
        manager: ManagerT,
        functions: Mapping[str, FunctionT],
        *,
        concurrency: int = 8,
        worker: str | None = None,
        heartbeat: timedelta = timedelta(seconds=10),
        retry_on: Exceptions = Exception,
        backoff: Backoff | None = _RETRY,
        stalled_after: timedelta | None = None,
        poll: timedelta = timedelta(seconds=1),
        grace: timedelta = timedelta(seconds=30),
        signals: bool = True,
    ) -> None:
        if not isinstance(manager, self._manager_class):
            raise InvalidValue("manager", f"must be an {self._manager_class.__name__}")
        if not isinstance(functions, Mapping) or not functions:
            raise InvalidValue("functions", 'must map types to functions: {"ship": ship}')
        others = f"{'' if self._is_async else 'Async'}Worker takes others"
        for type_, function in functions.items():
            argument = f"functions[{validation.name('functions', type_)!r}]"
            check_function(argument, function, is_async=self._is_async, others=others)
        self._manager = cast("Any", manager)
        self._functions = dict(functions)
        self._types = deque(functions)
        self._concurrency = validation.integer("concurrency", concurrency, 1, validation.MAX_PAGE)
        default = f"{socket.gethostname()}:{os.getpid()}"
        self._worker = validation.name("worker", default if worker is None else worker)
        self._heartbeat = validation.duration("heartbeat", heartbeat)
        self._attempt = partial(
            self._manager.attempt, retry_on=retry_on, backoff=backoff, heartbeat=heartbeat
        )
        self._attempt(validation.new_id())  # refuses invalid options now, not at the first attempt
        silence = 6 * self._heartbeat if stalled_after is None else stalled_after
        self._stalled_after = validation.duration("stalled_after", silence)
        if self._stalled_after < 2 * self._heartbeat:
            raise InvalidValue("stalled_after", "must be at least two heartbeat intervals")
        poll = validation.duration("poll", poll)
        self._idle = Backoff(min(timedelta(milliseconds=50), poll), maximum=poll, jitter=0.5)
        self._grace = validation.delay("grace", grace).total_seconds()
        self._signals = validation.flag("signals", signals)
        self._wakes: Any = self._wakes_class()
        self._running: dict[tuple[str, int], Any] = {}  # the threads or tasks of attempts
        self._entered = self._stopping = False
        self._claim_at = self._sweep_at = 0.0
        self._idle_rounds = self._failures = 0

    def stop(self) -> None:
        """Claim nothing more and let `run` return: `worker.stop()`.

        It does not wait. Any thread, a signal handler, and a function of the worker may call it.
        """
        self._stopping = True
        self._wake_up()

    @contextmanager
    def _enter(self) -> Iterator[None]:
        """Handle signals during the run, if this is the main thread."""
        if self._entered:
            raise RuntimeError("A worker runs once: create another one")
        self._entered = True
        former: dict[int, Any] = {}
        if self._signals and threading.current_thread() is threading.main_thread():
            for each in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(each) not in (None, signal.SIG_IGN):  # not Python's; nohup's
                    former[each] = signal.signal(each, lambda *_: self.stop())
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _run_steps(self) -> Steps[None]:
        try:
            self._put_off_sweep()
            while not self._stopping:
                try:
                    yield from self._turn_steps()
                except InvalidValue:
                    raise
                except Exception as error:  # noqa: BLE001 - the database may answer again
                    self._put_off(error)
                until = min(self._sweep_at, self._claim_at) if self._free() else self._sweep_at
                yield partial(self._wait, max(0.0, until - monotonic()))
            began = monotonic()
            while self._running and (left := began + self._grace - monotonic()) > 0:
                yield partial(self._wait, left)
        finally:
            yield self._end

    def _turn_steps(self) -> Steps[None]:
        """Sweep and claim, if it is time to."""
        if monotonic() >= self._sweep_at:
            for type_ in self._functions:
                options = {"stalled_after": self._stalled_after, "type": type_, "retry": True}
                for each in (yield from self._ask_steps(partial(self._manager.sweep, **options))):
                    message = "Execution %s (%s) was overdue or silent: it is %s"
                    logger.info(message, each.id, each.type, each.status)
            self._put_off_sweep()
        if monotonic() >= self._claim_at and self._free():
            yield from self._claim_steps()

    def _claim_steps(self) -> Steps[None]:
        """Claim as many executions as there are free slots, and begin them."""
        self._types.rotate(-1)  # another type is first
        found = more = False
        for type_ in tuple(self._types):
            if self._stopping or not (free := self._free()):
                break
            options = {"limit": free, "worker": self._worker}
            claim = partial(self._manager.claim, type_, **options)
            claimed = deque((yield from self._ask_steps(claim)))
            found, more = found or bool(claimed), more or len(claimed) == free
            try:
                while claimed and not self._stopping:
                    yield partial(self._begin, claimed[0])
                    claimed.popleft()
            finally:
                for each in claimed:
                    yield from self._release_steps(each)
        self._idle_rounds = 1 if found else self._idle_rounds + 1
        pause = self._idle.delay(self._idle_rounds).total_seconds()
        self._claim_at = monotonic() + (0 if more else pause)

    def _release_steps(self, execution: Execution) -> Steps[None]:
        id, attempt = key = execution.id, execution.attempts
        self._running.pop(key, None)  # its thread could not be started
        try:
            yield partial(self._manager.release, id, attempt=attempt)
        except Exception as error:  # noqa: BLE001 - a sweep will find it
            logger.warning("Execution %s could not be released: %s", id, _line(error))

    def _ask_steps(self, call: Callable[[], Any]) -> Steps[list[Execution]]:
        answer: list[Execution] = yield call
        if self._failures:
            logger.info("Worker %s: the database answers again", self._worker)
            self._failures = 0
            self._put_off_sweep()  # attempts could send no heartbeats: let them send one first
        return answer

    def _put_off(self, error: Exception) -> None:
        if not self._failures:
            message = "Worker %s cannot claim or sweep, and tries again until it can: %s"
            logger.warning(message, self._worker, _line(error))
        self._failures += 1
        self._claim_at = monotonic() + _OUTAGE.delay(self._failures).total_seconds()
        self._put_off_sweep()

    def _put_off_sweep(self) -> None:
        # Random, so that workers that start together do not sweep together.
        pause = self._heartbeat.total_seconds() * random.uniform(1.5, 3)  # noqa: S311
        self._sweep_at = monotonic() + pause

    def _free(self) -> int:
        return self._concurrency - len(self._running)

    def _warn_of_running(self) -> None:
        """Log which functions still run when `run` returns: a sweep will take their executions."""
        for id, attempt in list(self._running):
            message = "Attempt %d of execution %s still runs after the grace time of its worker"
            logger.warning(message, attempt, id)

    def _finish(self, execution: Execution, error: BaseException | None) -> None:
        """Log how an attempt ended, and free its slot."""
        id, attempt = key = execution.id, execution.attempts
        try:
            if isinstance(error, AttemptLost) and (error.execution_id, error.attempt) == key:
                logger.info("%s", error)
            elif error is not None:
                message = "Attempt %d of execution %s (%s) failed: %s"
                logger.warning(message, attempt, id, execution.type, _line(error))
        finally:
            self._running.pop(key, None)
            self._wake_up()
        if isinstance(error, KeyboardInterrupt):  # of an event loop that leaves it to Python
            self.stop()


def _line(error: BaseException) -> str:
    """Return the class and the first line of an exception."""
    failure, name = ExecutionFailure.from_exception(error), type(error).__name__
    text = "" if failure.message == failure.code else f": {failure.message}"
    return f"{name}{text}".partition("\n")[0]
