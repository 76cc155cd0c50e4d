"""Run contenders alternately, each in its own process, round after round.

`python -m benchmarks.interleaving MODULE URL OPTIONS` is such a process: it reads numbers from
standard input, runs that many lifecycles and prints the seconds they took. All processes but one
are stopped, so that the threads and the polling of the others use no CPU.
"""

import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

TIME_LIMIT = 300


@dataclass(frozen=True)
class Contender:
    """A name for the table, the module that runs the lifecycles, and its options."""

    name: str
    module: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """The name and version that the module reports."""
        return str(importlib.import_module(f"benchmarks.contenders.{self.module}").version())


class Runner:
    """The process of a contender, stopped outside its turns."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._read()  # wait until it is ready

    def run(self, count: int) -> float:
        """Run a number of lifecycles and return the seconds they took."""
        os.kill(self._process.pid, signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> float:
        assert self._process.stdout is not None
        signal.alarm(TIME_LIMIT)
        line = self._process.stdout.readline()
        signal.alarm(0)
        if not line:
            raise RuntimeError(f"a contender exited early: {self._process.args!r}")
        os.kill(self._process.pid, signal.SIGSTOP)
        return float(line)


@contextmanager
def running(contender: Contender, url: str) -> Iterator[Runner]:
    """Start a contender on its own empty database."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.interleaving", contender.module, url,
         json.dumps(contender.options)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield Runner(process)
        assert process.stdin is not None
        process.stdin.close()
        os.kill(process.pid, signal.SIGCONT)
        process.wait(30)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def run_alternating(runners: Sequence[Runner], *, count: int, rounds: int) -> list[list[float]]:
    """Return the seconds of each contender in each round; a warm-up round is not counted."""
    seconds: list[list[float]] = [[] for _ in runners]
    for turn in range(-1, rounds):
        order = range(len(runners))
        for n in order if turn % 2 else reversed(order):
            elapsed = runners[n].run(count)
            if turn >= 0:
                seconds[n].append(elapsed)
    return seconds


def ratio(base: Sequence[float], other: Sequence[float]) -> float:
    """Return the speed of the other relative to the base: the median over the rounds."""
    return statistics.median(b / o for b, o in zip(base, other, strict=True))


def main() -> None:
    """Run as many lifecycles as each line of standard input asks for."""
    module, url, options = sys.argv[1:]
    contender = importlib.import_module(f"benchmarks.contenders.{module}")
    with contender.lifecycles(url, **json.loads(options)) as run:
        print(0.0, flush=True)
        for line in sys.stdin:
            print(run(int(line)), flush=True)


if __name__ == "__main__":
    main()
