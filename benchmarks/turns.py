"""Who runs when: contenders in processes of their own, one after the other, round after round.

`python -m benchmarks.turns MODULE URL OPTIONS` is such a process: for each number that it reads it
runs as many lifecycles, and writes the seconds they took. Those whose turn it is not are stopped,
so that their threads and their polling cost nobody anything.
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
    """A name for the table, the module that runs it, and the module's options."""

    name: str
    module: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """What the module says it is."""
        return str(importlib.import_module(f"benchmarks.contenders.{self.module}").version())


class Runner:
    """A contender's process, stopped but for its turns."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._read()  # it is ready

    def run(self, count: int) -> float:
        """Let it run a number of lifecycles, and return the seconds they took."""
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
            raise RuntimeError(f"a contender ended: {self._process.args!r}")
        os.kill(self._process.pid, signal.SIGSTOP)
        return float(line)


@contextmanager
def running(contender: Contender, url: str) -> Iterator[Runner]:
    """Start a contender over an empty database of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.turns", contender.module, url,
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
    """Return the seconds that each contender took in each round; a round before is not counted."""
    taken: list[list[float]] = [[] for _ in runners]
    for turn in range(-1, rounds):
        order = range(len(runners))
        for n in order if turn % 2 else reversed(order):
            seconds = runners[n].run(count)
            if turn >= 0:
                taken[n].append(seconds)
    return taken


def ratio(base: Sequence[float], other: Sequence[float]) -> float:
    """How fast the other one is beside the base: the median over the rounds."""
    return statistics.median(b / o for b, o in zip(base, other, strict=True))


def main() -> None:
    """Run lifecycles as standard input says."""
    module, url, options = sys.argv[1:]
    contender = importlib.import_module(f"benchmarks.contenders.{module}")
    with contender.lifecycles(url, **json.loads(options)) as run:
        print(0.0, flush=True)
        for line in sys.stdin:
            print(run(int(line)), flush=True)


if __name__ == "__main__":
    main()
