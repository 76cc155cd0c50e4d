"""Carry out what the command of a run reports: see `report_client`, the other end."""

import json
import socketserver
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..arguments import UsageError
from ..commands import report
from ..database import EXPLAINED, Database, explain_failure
from ..report_client import SENT

USAGE_ERROR = 2


class ReportServer(socketserver.ThreadingUnixStreamServer):
    """Serve reports at a Unix socket until this process ends: `ReportServer(…).start()`.

    `environment` is what the command has, and its EXECUTION_CORE_URL leads to this database.
    """

    daemon_threads = True

    def __init__(self, path: str, database: Database, environment: Mapping[str, str]) -> None:
        super().__init__(path, _Handler)
        self._database = database
        self._environment = environment
        self._parser = report.build_parser()

    def start(self) -> None:
        """Serve in a thread."""
        threading.Thread(target=self.serve_forever, name="reports", daemon=True).start()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the exit code and the output of a command; no code if it is not for this run."""
        given = {name: request.get(name) for name in SENT}
        if any(given[name] != value for name, value in self._environment.items() if name in given):
            return {"code": None}
        try:
            options = self._parser.parse_args(request["words"])
            reply = report.complete_options(options, given)
            return (reply or report.carry_out(options, self._database))._asdict()
        except UsageError as error:
            code, message = USAGE_ERROR, str(error)
        except EXPLAINED as error:
            code, message = explain_failure(error, options.url, options.schema)
        return report.Reply(code, err=f"{message}\n")._asdict()


class _Handler(socketserver.StreamRequestHandler):
    server: ReportServer

    def handle(self) -> None:
        with suppress(OSError, ValueError):  # the other end was killed
            request = json.loads(self.rfile.readline())
            self.wfile.write(json.dumps(self.server.answer(request)).encode() + b"\n")
