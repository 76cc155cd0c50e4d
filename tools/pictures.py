"""Make the pictures of the documentation: a terminal with `watch`, and one with `show`.

    python tools/pictures.py [FOLDER]

A real service of a few workers runs over a database of its own; the real command line runs in a
pseudo-terminal, and what it wrote there becomes docs/watch.svg and docs/show.svg.
"""

import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from execution_core import ExecutionManager, connect, migrate

COLUMNS: Final = 132
LINES: Final = 50
PROGRAM: Final = Path(sys.executable).with_name("execution-core")
# Every frame begins by going back over the one before it.
REDRAWN: Final = re.compile(r"(?:\r?\x1b\[2K|\x1b\[1A)+")
# The fonts that rich would have a browser fetch.
FONTS: Final = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs")
    with tempfile.TemporaryDirectory() as temporary:
        url = f"sqlite:///{temporary}/executions.db"
        migrate.upgrade(url)
        with connect(url) as manager:
            stop = threading.Event()
            workers = [
                threading.Thread(target=work, args=(manager, stop, *job))
                for job in (
                    ("import-orders", 48_200, 0.0004),
                    ("resize-images", 900, 0.02),
                    ("nightly-report", 0, 0.3),
                    ("reindex", 12_000, 0.002),
                )
            ]
            for n in range(7):
                manager.create("send-mail", {"to": f"customer-{n}"}, max_attempts=3)
            failed = fail(manager)
            for worker in workers:
                worker.start()
            time.sleep(2)
            draw(folder / "watch.svg", url, ["watch"], seconds=7)
            stop.set()
            for worker in workers:
                worker.join()
        draw(folder / "show.svg", url, ["show", failed])


def work(
    manager: ExecutionManager, stop: threading.Event, type: str, total: int, pause: float
) -> None:
    job = manager.create(type, timeout=timedelta(minutes=10))
    with manager.attempt(job.id, worker="worker-1.example") as attempt:
        done = 0
        every = max(1, int(0.2 / pause))
        while not stop.is_set():
            time.sleep(pause * every)
            done += every
            message = f"item {done:,}" if total else "collecting"
            attempt.update_progress(min(done, total), total, message=message)


def fail(manager: ExecutionManager) -> str:
    """Make one that failed twice, with all that `show` has to show."""
    job = manager.create(
        "charge-card",
        {"order": 4711, "amount": "129.90", "currency": "EUR"},
        max_attempts=2,
        timeout=timedelta(seconds=30),
        idempotency_key="charge-4711",
        metadata={"tenant": "acme"},
    )
    manager.create("send-receipt", {"order": 4711}, parent_id=job.id)

    def charge(order: int) -> None:
        raise ConnectionResetError(f"the bank hung up on order {order}")

    for worker in ("worker-1.example", "worker-2.example"):
        try:
            with manager.attempt(job.id, worker=worker, retry_on=OSError) as attempt:
                attempt.log("asking the bank", data={"order": 4711})
                attempt.advance(1, 2, key="authorised", value=True, message="authorised")
                attempt.log("no answer for 10 seconds", level="warning")
                charge(4711)
        except ConnectionResetError:
            pass
    return job.id


def draw(path: Path, url: str, arguments: list[str], seconds: float | None = None) -> None:
    """Run the command line in a terminal, for some seconds or to its end; draw what is left."""
    screen = record(lambda: [str(PROGRAM), *arguments], url, seconds)
    last = REDRAWN.split(screen)[-1] if seconds else screen
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ execution-core {' '.join(arguments)}", style="bold"))
    console.print(Text.from_ansi(last.replace("\r\n", "\n").rstrip()))
    title = f"execution-core {arguments[0]}"
    form = FONTS.sub("", CONSOLE_SVG_FORMAT)
    console.save_svg(str(path), title=title, code_format=form, unique_id=f"terminal-{arguments[0]}")
    print(path)


def record(command: Callable[[], list[str]], url: str, seconds: float | None) -> str:
    """Return all that a program wrote to a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "EXECUTION_CORE_URL": url}
    running = subprocess.Popen(
        command(), stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    if seconds is not None:
        threading.Timer(seconds, lambda: running.send_signal(signal.SIGINT)).start()
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    running.wait()
    # Where the repository lies is nobody's business.
    return written.decode().replace(f"{Path(__file__).parents[1]}/", "")


if __name__ == "__main__":
    main()
