"""Draw the pictures of the documentation: a terminal with `watch`, and one with `show`.

    python tools/pictures.py [FOLDER]

Workers run on a temporary database. The command line runs in a pseudo-terminal, and its output
becomes docs/watch.svg and docs/show.svg.
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
# Each frame starts with the sequences that erase the previous one.
REDRAW: Final = re.compile(r"(?:\r?\x1b\[2K|\x1b\[1A)+")
# The web fonts that rich would make a browser load.
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
    """Create an execution that failed twice, with everything that `show` prints."""
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
        raise ConnectionResetError(f"the bank closed the connection for order {order}")

    for worker in ("worker-1.example", "worker-2.example"):
        try:
            with manager.attempt(job.id, worker=worker, retry_on=OSError) as attempt:
                attempt.log("requesting the payment", data={"order": 4711})
                attempt.advance(1, 2, key="authorised", value=True, message="authorised")
                attempt.log("no answer for 10 seconds", level="warning")
                charge(4711)
        except ConnectionResetError:
            pass
    return job.id


def draw(path: Path, url: str, arguments: list[str], seconds: float | None = None) -> None:
    """Run the command line in a terminal, for some seconds or until it ends; draw the screen."""
    screen = record(lambda: [str(PROGRAM), *arguments], url, seconds)
    last = REDRAW.split(screen)[-1] if seconds else screen
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ execution-core {' '.join(arguments)}", style="bold"))
    console.print(Text.from_ansi(last.replace("\r\n", "\n").rstrip()))
    title = f"execution-core {arguments[0]}"
    form = FONTS.sub("", CONSOLE_SVG_FORMAT)
    console.save_svg(str(path), title=title, code_format=form, unique_id=f"terminal-{arguments[0]}")
    print(path)


def record(command: Callable[[], list[str]], url: str, seconds: float | None) -> str:
    """Return everything that a program wrote to a terminal."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "EXECUTION_CORE_URL": url}
    running = subprocess.Popen(
        command(), stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    )
    os.close(terminal)
    if seconds is not None:
        threading.Timer(seconds, lambda: running.send_signal(signal.SIGINT)).start()
    written = b""
    try:
        while part := os.read(controller, 65536):
            written += part
    except OSError:  # the terminal is closed
        pass
    os.close(controller)
    running.wait()
    # Remove the path of the repository.
    return written.decode().replace(f"{Path(__file__).parents[1]}/", "")


if __name__ == "__main__":
    main()
