"""A TCP proxy in front of a PostgreSQL, on loopback: it counts bytes and cuts connections."""

import re
import socket
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import Final

from sqlalchemy import make_url

READY: Final = re.compile(rb"Z\0\0\0\x05[ITE]\Z")
WRITES: Final = re.compile(rb"(WITH .*\)\s)?\s*(INSERT|UPDATE|DELETE)", re.DOTALL)
POOLED: Final = b"behind-a-pooler"
PROCESS: Final = re.compile(rb"K\0\0\0\x0c(....)", re.DOTALL)
"""The server's message at the login with the number of its process."""
CHANGED: Final = re.compile(rb"C\0\0\0.(INSERT 0|UPDATE|DELETE) [1-9]", re.DOTALL)
"""The server's message for a statement that has changed a row, and committed."""


class Cut(StrEnum):
    """When a connection is cut."""

    BEFORE = "before the server gets a write"
    AFTER = "after a write has committed, before its client gets the answer"
    RACING = "as soon as a write is on its way to the server"
    READING = "before the server gets a read"


class Proxy:
    """The proxy at `proxy.url`. `proxy.cut(Cut.AFTER)` cuts at the next such write."""

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self._server = (parsed.host or "127.0.0.1", parsed.port or 5432)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        port = self._listener.getsockname()[1]
        own = parsed.set(host="127.0.0.1", port=port)
        self.url = own.render_as_string(hide_password=False)
        self.pooled_url = own.update_query_dict(
            {"application_name": POOLED.decode()}
        ).render_as_string(hide_password=False)
        """With this URL the proxy hides the number of the server process, as a pooler does."""
        self.bytes_seen = self.writes = 0
        self.leaves_open = False
        """Whether the server seems to leave a transaction open after each statement."""
        self.admits = threading.Event()
        """While it is not set, new connections wait for an answer."""
        self.admits.set()
        self.refuses = False
        """Whether new connections are closed at once."""
        self.cuts: Counter[Cut] = Counter()
        self._wanted: dict[bool, deque[Cut]] = {True: deque(), False: deque()}
        self._open: set[socket.socket] = set()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def cut(self, when: Cut) -> None:
        """Cut the connection that writes next, or reads next."""
        self._wanted[when is not Cut.READING].append(when)

    @property
    def waiting(self) -> int:
        """How many requested cuts have not been made yet."""
        return sum(map(len, self._wanted.values()))

    @property
    def open_connections(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """Cut all connections, and accept no more."""
        self.admits.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        self._cut_all()

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Cut all connections, and refuse new ones."""
        self.refuses = True
        self._cut_all()
        yield
        self.refuses = False

    def _cut_all(self) -> None:
        for each in list(self._open):
            shut(each)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            self.admits.wait()
            if self.refuses:
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:
                return
            ends = {client, server}
            self._open |= ends
            with server:
                connection = Connection(self, client, server)
                back = threading.Thread(target=connection.forward_answers, daemon=True)
                back.start()
                connection.forward_requests()
                back.join()
            if connection.cut:
                self.put_back(connection.cut)
            self._open -= ends

    def take_cut(self, statement: bytes) -> Cut | None:
        """Return the cut for a connection that sends this statement, if one is requested."""
        writes = WRITES.match(statement) is not None
        self.writes += writes
        try:
            return self._wanted[writes].popleft()
        except IndexError:
            return None

    def put_back(self, when: Cut) -> None:
        """Cut another connection instead: this one died, or changed nothing."""
        self._wanted[when is not Cut.READING].appendleft(when)


class Connection:
    """A client's connection, and the connection to the server that belongs to it."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy, self.client, self.server = proxy, client, server
        self.prepared: dict[bytes, bytes] = {}
        self.cut: Cut | None = None  # requested and not made yet
        self.hides_process = False
        self.held = b""  # the answer that is held back

    def forward_requests(self) -> None:
        """Forward what the client sends."""
        with suppress(OSError):
            while data := self.client.recv(65_536):
                self.proxy.bytes_seen += len(data)
                self.hides_process |= POOLED in data
                if statement := executed(data, self.prepared):
                    self.cut = self.proxy.take_cut(statement)
                if self.cut in (Cut.BEFORE, Cut.READING):
                    self._done()
                    break
                self.server.sendall(data)
                if self.cut is Cut.RACING:
                    self._done()
                    self.server.shutdown(
                        socket.SHUT_WR
                    )  # the server ends the connection after the statement
                    return
        shut(self.server)

    def forward_answers(self) -> None:
        """Forward what the server sends."""
        with suppress(OSError):
            while data := self.server.recv(65_536):
                self.proxy.bytes_seen += len(data)
                if self.hides_process and (found := PROCESS.search(data)):
                    at = found.start(1)
                    data = data[:at] + b"\0\0\0\1" + data[at + 4 :]
                    self.hides_process = False
                if self.proxy.leaves_open:
                    data = READY.sub(b"Z\0\0\0\x05T", data)
                if self.cut is Cut.AFTER:
                    self.held += data
                    if not READY.search(self.held):
                        continue
                    if CHANGED.search(self.held):
                        self._done()
                        break
                    self.proxy.put_back(self.cut)
                    data, self.held, self.cut = self.held, b"", None
                self.client.sendall(data)
        shut(self.client)
        shut(self.server)

    def _done(self) -> None:
        if self.cut:
            self.proxy.cuts[self.cut] += 1
        self.cut = None
        shut(self.client)


def executed(data: bytes, prepared: dict[bytes, bytes]) -> bytes:
    """Return the SQL that a message executes, or nothing.

    A prepared statement is sent once, and then only its name.
    """
    statement, at = b"", 0
    while len(data) >= at + 5 and data[at]:  # a startup message begins with a zero
        kind, end = data[at], at + 1 + int.from_bytes(data[at + 1 : at + 5])
        body = data[at + 5 : end]
        if kind == ord("P"):
            name, sql, _ = body.split(b"\0", 2)
            prepared[name] = sql
        elif kind == ord("B"):
            statement = prepared.get(body.split(b"\0", 2)[1], b"")
        elif kind == ord("Q"):
            statement = body
        at = end
    return statement


def shut(end: socket.socket) -> None:
    """Shut a connection down in both directions, so that blocked readers return."""
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxied(url: str) -> Iterator[Proxy]:
    """Start a proxy in front of the PostgreSQL of a URL."""
    proxy = Proxy(url)
    try:
        yield proxy
    finally:
        proxy.close()
