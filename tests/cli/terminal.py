"""Run the program in a pseudo-terminal."""

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("execution-core")
_CONTROL_SEQUENCE = re.compile(r"\x1b\[[\d;?]*[a-zA-Z]")


def run_in_terminal(
    *arguments: str, columns: int = 100, until: str | None = None
) -> tuple[int, str]:
    """Run the program until it ends; interrupt it once it has printed the text `until`."""
    controller, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(columns)}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [PROGRAM, *arguments], stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    )
    os.close(terminal)
    output, waiting = b"", until is not None
    try:
        while part := os.read(controller, 65536):
            output += part
            if waiting and str(until) in output.decode(errors="replace"):
                process.send_signal(signal.SIGINT)
                waiting = False
    except OSError:  # the terminal is closed
        pass
    os.close(controller)
    return process.wait(), output.decode()


def remove_control_sequences(output: str) -> str:
    """Return the text that a terminal would show."""
    return _CONTROL_SEQUENCE.sub("", output)
