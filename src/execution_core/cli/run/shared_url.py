"""The database URL that a command gets: absolute, and without the password."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, make_url

from ...sql.driver.url import parse_url, sqlite_file
from ..streams import write_warning


@contextmanager
def share_url(url: str) -> Iterator[tuple[str, str | None]]:
    """Give a URL for the command, and the file that contains its password, if it has one.

    The environment of a command is easily printed, and so stored with its output. A password is
    therefore in a file of PostgreSQL's format, which exists until `run` ends.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        yield _make_absolute(url, parsed), None
        return
    password = parsed.query.get("password", parsed.password)
    if password is None:
        yield url, None
        return
    file = _write_password(str(password))
    shared = parsed._replace(password=None).difference_update_query(["password"])
    if file is not None:
        shared = shared.update_query_dict({"passfile": file})
    try:
        yield shared.render_as_string(hide_password=False), file
    finally:
        if file is not None:
            with suppress(OSError):
                Path(file).unlink()


def _write_password(password: str) -> str | None:
    """Write a file that only this user may read, and return its name."""
    reason = "it has a line break"
    if not {"\r", "\n"} & {*password}:
        escaped = password.replace("\\", r"\\").replace(":", r"\:")
        try:
            descriptor, file = tempfile.mkstemp(prefix="execution-core-")
            with os.fdopen(descriptor, "w") as opened:
                opened.write(f"*:*:*:*:{escaped}\n")
        except OSError as error:
            reason = f"no file for it: {error.strerror}"
        else:
            return file
    write_warning(f"The command does not get the password of the database: {reason}")
    return None


def _make_absolute(url: str, parsed: URL) -> str:
    """Return a URL that stays valid when the command changes its working directory."""
    if (file := sqlite_file(parsed)) is None:
        return url
    path = str(file.absolute())
    if str(parsed.database).startswith("file:"):
        path = f"file:{quote(path)}"
    return make_url(url).set(database=path).render_as_string(hide_password=False)
