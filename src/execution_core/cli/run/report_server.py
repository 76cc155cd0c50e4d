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
            reply = report.complete_from(options, given)
            return (reply or report.carry_out(options, self._database))._asdict()
        except UsageError as error:
            code, message = USAGE_ERROR, str(error)
        except SystemExit:  # the help, which belongs to the other process
            return {"code": None}
        except EXPLAINED as error:
            code, message = explain_failure(error, options.url, options.schema)
        return report.Reply(code, err=message)._asdict()


class _Handler(socketserver.StreamRequestHandler):
    server: ReportServer

    def handle(self) -> None:
        # The other end was killed, or is not `report_client`.
        with suppress(OSError, ValueError, RecursionError):
            request = json.loads(self.rfile.readline())
            reply = self.server.answer(request) if _is_request(request) else {"code": None}
            self.wfile.write(json.dumps(reply).encode() + b"\n")


def _is_request(request: object) -> bool:
    """Return whether a JSON value has the form that `report_client` sends."""
    if not isinstance(request, dict) or not isinstance(request.get("words"), list):
        return False
    values = [*request["words"], *(request.get(name) or "" for name in SENT)]
    return all(isinstance(value, str) for value in values)
