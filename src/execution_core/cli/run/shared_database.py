"""How a command reaches the database of its run: a URL without the password, and a socket."""

import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sqlalchemy import URL, make_url

from ...sql.driver.url import parse_url, sqlite_file
from ..database import Database
from ..report_client import SOCKET
from ..streams import write_warning
from .report_server import ReportServer

PASSWORD_FILE: Final = "password"  # noqa: S105 - its name
PREFIX: Final = "execution-core-run-"
SOCKET_FILE: Final = "socket"
ABANDONED_AFTER: Final = 60.0
"""A younger folder may be one whose socket does not listen yet."""


@dataclass(frozen=True)
class SharedDatabase:
    """What a command gets: `with share_database(…) as shared, shared.password(): …`."""

    environment: dict[str, str]
    folder: str | None
    """A folder to delete if this process is killed."""
    secret: str | None = None

    @contextmanager
    def password(self) -> Iterator[None]:
        """Have the password in a file that only this user may read."""
        if self.secret is None or self.folder is None:
            yield
            return
        file = Path(self.folder, PASSWORD_FILE)
        escaped = self.secret.replace("\\", r"\\").replace(":", r"\:")
        try:
            file.touch(mode=0o600)
            # psycopg encodes a password in UTF-8, and libpq sends the bytes of the file.
            file.write_text(f"*:*:*:*:{escaped}\n", encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            write_warning(f"The command does not get the password of the database: {error}")
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


@contextmanager
def share_database(database: Database, url: str, schema: str | None) -> Iterator[SharedDatabase]:
    """Give a command the database of its run, until `run` ends.

    The environment of a command is easily printed, and so stored with its output. A password is
    therefore in a file of PostgreSQL's format.
    """
    folder = None
    try:
        _delete_abandoned_folders()
        folder = tempfile.mkdtemp(prefix=PREFIX)
    except OSError as error:
        write_warning(f"No folder for the password and the socket: {error}")
    try:
        shared, secret = _share_url(url, folder)
        environment = {"EXECUTION_CORE_URL": shared, "EXECUTION_CORE_SCHEMA": schema or ""}
        if folder is not None:
            with suppress(OSError):  # its path is too long: reports use the URL, which is slower
                path = str(Path(folder, SOCKET_FILE))
                ReportServer(path, database, environment).start()
                environment[SOCKET] = path
        yield SharedDatabase(environment, folder, secret)
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _delete_abandoned_folders() -> None:
    """Delete what runs left behind that were killed together with their watchdogs."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            if time.time() - folder.stat().st_mtime < ABANDONED_AFTER:
                continue
            try:
                connection.connect(str(folder / SOCKET_FILE))
            except ConnectionRefusedError:  # nobody listens any more
                shutil.rmtree(folder, ignore_errors=True)


def _share_url(url: str, folder: str | None) -> tuple[str, str | None]:
    """Return the URL for the command, and the password that it does not contain."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _make_absolute(url, parsed), None
    password = parsed.query.get("password", parsed.password)
    if password is None and "sslpassword" not in parsed.query:
        return url, None
    shared = parsed._replace(password=None, drivername=url.partition(":")[0])
    shared, secret = shared.difference_update_query(["password", "sslpassword"]), None
    if {"\r", "\n"} & {*str(password or "")}:
        write_warning("The command does not get the password of the database: it has a line break")
    elif password is not None and folder is not None:
        secret = str(password)
        shared = shared.update_query_dict({"passfile": str(Path(folder, PASSWORD_FILE))})
    return shared.render_as_string(hide_password=False), secret


def _make_absolute(url: str, parsed: URL) -> str:
    """Return a URL that stays valid when the command changes its working directory."""
    if (file := sqlite_file(parsed)) is None:
        return url
    path = str(file.absolute())
    if str(parsed.database).startswith("file:"):
        path = f"file:{quote(path)}"
    return make_url(url).set(database=path).render_as_string(hide_password=False)
