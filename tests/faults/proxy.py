"""A proxy between us and an S3 server that does to requests what networks and servers do.

`Proxy.plan(Fault(...))` says to which requests; several faults can be planned. What the server was
asked, and what was done to it, is in `Proxy.seen`.
"""

import http.client
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

__all__ = ["Fault", "Proxy"]


@dataclass
class Fault:
    """What is done to the requests whose method and path match.

    `how`: "reset" (the connection, before the server is asked), "lost" (the server does it, its
    answer does not arrive), "cut" (half of the answer arrives), "late" (after `delay_s`), or a
    status such as "503", which the proxy answers itself; "503 lost" after the server did it.
    """

    how: str
    key: str = ""
    """A regular expression that is searched in the path with its query."""
    method: str = ""
    """All methods when empty."""
    times: int = 1
    """How often at most; -1: always."""
    every: int = 1
    """Only every nth of the requests that match."""
    delay_s: float = 0.2
    matched: int = field(default=0, init=False)
    done: int = field(default=0, init=False)

    def hits(self, method: str, path: str) -> bool:
        """Return whether this request is hit, and count it."""
        if self.method not in ("", method) or not re.search(self.key, path):
            return False
        self.matched += 1
        if self.done == self.times or self.matched % self.every:
            return False
        self.done += 1
        return True


class Proxy(ThreadingHTTPServer):
    """Forwards to `upstream`, an endpoint such as http://127.0.0.1:1234."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.place = urlsplit(upstream).netloc
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str, str]] = []
        """Method, path and what was done to each request."""
        self._guard = threading.Lock()

    def plan(self, *faults: Fault) -> None:
        """Do these from now on, and no others; forget what was seen."""
        with self._guard:
            self.faults, self.seen = list(faults), []

    def how(self, method: str, path: str) -> tuple[str, float]:
        """Return what is to be done to a request."""
        with self._guard:
            hit = next((fault for fault in self.faults if fault.hits(method, path)), None)
            self.seen.append((method, path, hit.how if hit else ""))
            return (hit.how, hit.delay_s) if hit else ("", 0.0)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that left."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        how, delay_s = self.server.how(self.command, self.path)
        if how == "late":
            time.sleep(delay_s)
        if how == "reset":
            self._reset()
        elif how.isdigit():
            self._say(int(how))
        else:
            self._forward(body, how)

    do_GET = _serve  # noqa: N815  (the names that the standard library calls)
    do_PUT = do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815

    def _forward(self, body: bytes, how: str) -> None:
        upstream = http.client.HTTPConnection(self.server.place, timeout=60)
        try:
            # The host stays the one that was asked, because it is signed.
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        if how == "lost":
            self._reset()
        elif how.endswith(" lost"):
            self._say(int(how.split(maxsplit=1)[0]))
        else:
            self._pass_on(answer, data, half=how == "cut")

    def _pass_on(self, answer: http.client.HTTPResponse, data: bytes, *, half: bool) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        told = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", told or str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if half else data)
        if half:
            self._reset()

    def _say(self, status: int) -> None:
        codes = {409: "ConditionalRequestConflict", 412: "PreconditionFailed", 503: "SlowDown"}
        text = f"<Error><Code>{codes.get(status, 'Fault')}</Code></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _reset(self) -> None:
        self.wfile.flush()
        at_once = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Say nothing."""
