"""A TCP proxy on loopback that counts what goes through it."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import make_url


@contextmanager
def counting(url: str) -> Iterator[tuple[str, Callable[[], int]]]:
    """Yield the URL of a PostgreSQL behind a proxy, and what has gone either way in bytes."""
    parsed = make_url(url)
    server = (parsed.host or "127.0.0.1", parsed.port or 5432)
    bytes_seen = [0]
    listener = socket.create_server(("127.0.0.1", 0))
    sockets = [listener]

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                bytes_seen[0] += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            upstream = socket.create_connection(server)
            sockets.extend((client, upstream))
            for ends in ((client, upstream), (upstream, client)):
                threading.Thread(target=pump, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    port = listener.getsockname()[1]
    proxied = parsed.set(host="127.0.0.1", port=port)
    try:
        yield proxied.render_as_string(hide_password=False), lambda: bytes_seen[0]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        for each in sockets:
            each.close()
