"""How a command reaches the database of its run: a URL without the password, and a socket."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, make_url

from ...sql.driver.url import parse_url, sqlite_file
from ..database import Database
from ..report_client import SOCKET
from ..streams import write_warning
from .report_server import ReportServer


@contextmanager
def share_database(
    database: Database, url: str, schema: str | None
) -> Iterator[tuple[dict[str, str], str | None]]:
    """Give the environment for the command, and a folder to delete if this process is killed.

    The environment of a command is easily printed, and so stored with its output. A password is
    therefore in a file of PostgreSQL's format in the folder, which exists until `run` ends.
    """
    folder = None
    try:
        folder = tempfile.mkdtemp(prefix="execution-core-")
    except OSError as error:
        write_warning(f"No folder for the password and the socket: {error}")
    try:
        environment = {
            "EXECUTION_CORE_URL": _share_url(url, folder),
            "EXECUTION_CORE_SCHEMA": schema or "",
        }
        if folder is not None:
            with suppress(OSError):  # its path is too long: reports use the URL, which is slower
                socket = str(Path(folder, "socket"))
                ReportServer(socket, database, environment).start()
                environment[SOCKET] = socket
        yield environment, folder
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _share_url(url: str, folder: str | None) -> str:
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _make_absolute(url, parsed)
    password = parsed.query.get("password", parsed.password)
    if password is None:
        return url
    shared = parsed._replace(password=None).difference_update_query(["password"])
    file = folder and _write_password(str(password), Path(folder, "password"))
    if file is not None:
        shared = shared.update_query_dict({"passfile": file})
    return shared.render_as_string(hide_password=False)


def _write_password(password: str, file: Path) -> str | None:
    """Write a file that only this user may read, and return its name."""
    if {"\r", "\n"} & {*password}:
        write_warning("The command does not get the database's password, which has a line break")
        return None
    escaped = password.replace("\\", r"\\").replace(":", r"\:")
    try:
        file.touch(mode=0o600)
        file.write_text(f"*:*:*:*:{escaped}\n")
    except OSError as error:
        write_warning(f"The command does not get the database's password: {error}")
        return None
    return str(file)


def _make_absolute(url: str, parsed: URL) -> str:
    """Return a URL that stays valid when the command changes its working directory."""
    if (file := sqlite_file(parsed)) is None:
        return url
    path = str(file.absolute())
    if str(parsed.database).startswith("file:"):
        path = f"file:{quote(path)}"
    return make_url(url).set(database=path).render_as_string(hide_password=False)
