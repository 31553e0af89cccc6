"""A real S3 server for tests: moto in a process of its own, on a free port.

Import the fixtures `s3_server` and `s3_bucket` in a conftest.py; the latter gives a fresh `s3://`
URI per test and sets the AWS_* variables, which child processes inherit. Data are held in the
server's memory. It is `moto_server` with one difference: writes are served one at a time, because
moto checks If-Match and stores in two steps, where S3 does both in one.
"""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator

import pytest

__all__ = ["s3_bucket", "s3_server"]

_START_S = 60.0


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Yield the endpoint of a running server."""
    port = _free_port()
    pytest.importorskip("moto.server", reason="moto is missing: pip install 'moto[s3,server]'")
    command = [sys.executable, __file__, str(port)]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _wait(endpoint, server)
        yield endpoint
    finally:
        server.terminate()
        server.wait(timeout=10)


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return `s3://<new bucket>/archive` and point AWS_* at the server while the test runs."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    request = urllib.request.Request(f"{s3_server}/{bucket}", method="PUT")
    urllib.request.urlopen(request, timeout=10).close()
    return f"s3://{bucket}/archive"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(endpoint: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"moto_server ended with {server.returncode}")
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api/data.json", timeout=2).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("moto_server did not answer in 60 s")


def _serve(port: int) -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    app, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def serve(environ, start_response):
        if environ["REQUEST_METHOD"] == "GET":
            return app(environ, start_response)
        with one_at_a_time:
            return list(app(environ, start_response))

    run_simple("127.0.0.1", port, serve, threaded=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
