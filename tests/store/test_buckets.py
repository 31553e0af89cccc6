"""What buckets do that the S3 server of the other tests does not: Google's, and careless ones."""

import json
import re
import threading
from collections.abc import Iterator
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from raysegclean.errors import AlreadyExists, Conflict, UnfitEnvironment
from raysegclean.store.objects import Store


class Objects(ThreadingHTTPServer):
    """A bucket in memory. `ignored` are the conditions of puts that it takes no notice of."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Requests)
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, int] = {}
        self.ignored: set[str] = set()
        self.ghosts: set[str] = set()
        """Listed, and deleted by someone else before it can be done again."""

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"


class Requests(BaseHTTPRequestHandler):
    """What Google's XML interface and S3 have in common, as far as these tests need it."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        data = self._body()
        if not self._may_put():
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        self.server.objects[self._key] = data
        self.server.generations[self._key] = sum(self.server.generations.values()) + 1
        self._answer(200, about=self._key)

    def do_GET(self):
        if not self._key:
            self._answer(200, self._listing())
        elif self._key in self.server.objects:
            self._answer(200, self.server.objects[self._key], about=self._key)
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_HEAD(self):
        self.do_GET()

    def do_DELETE(self):
        there = self.server.objects.pop(self._key, None) is not None
        self._answer(204 if there else 404, b"" if there else b"<Error/>")

    def do_POST(self):
        """Delete many, which is how one is deleted from S3 as well."""
        doomed = re.findall(r"<Key>(.*?)</Key>", self._body().decode())
        for key in doomed:
            self.server.objects.pop(key, None)
        told = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in doomed)
        self._answer(200, f"<DeleteResult>{told}</DeleteResult>".encode())

    def log_message(self, *_):
        pass

    @property
    def _key(self):
        return unquote(urlsplit(self.path).path).removeprefix("/bucket").removeprefix("/")

    def _body(self):
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _may_put(self):
        server, key = self.server, self._key
        etag = _etag(server.objects[key]) if key in server.objects else None
        generation = str(server.generations[key]) if etag else "0"
        return all(
            self.headers[name] in (None, wanted) or name in server.ignored
            for name, wanted in (
                ("If-None-Match", None if etag else "*"),
                ("If-Match", etag),
                ("x-goog-if-generation-match", generation),
            )
        )

    def _listing(self):
        prefix = parse_qs(urlsplit(self.path).query).get("prefix", [""])[0]
        keys = sorted(key for key in {*self.server.objects, *self.server.ghosts})
        told = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{_etag(self.server.objects.get(key, b''))}</ETag><Size>1</Size></Contents>"
            for key in keys
            if key.startswith(prefix)
        )
        return f"<ListBucketResult>{told}</ListBucketResult>".encode()

    def _answer(self, status, data=b"", about=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if about is not None:
            self.send_header("ETag", _etag(self.server.objects[about]))
            self.send_header("x-goog-generation", str(self.server.generations[about]))
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _etag(data):
    return f'"{md5(data).hexdigest()}"'


@pytest.fixture
def server() -> Iterator[Objects]:
    with Objects() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def google(server, tmp_path, monkeypatch) -> Store:
    key = {"gcs_base_url": server.endpoint, "disable_oauth": True}
    key |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    (tmp_path / "key.json").write_text(json.dumps(key))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "key.json"))
    monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
    return Store.open("gs://bucket/place")


@pytest.fixture
def lookalike(server, monkeypatch) -> Store:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return Store.open("s3://bucket/place")


def test_deleting_what_is_gone_is_no_error_at_google(google):
    google.delete("never/there")
    google.delete_all("never")


def test_objects_that_another_deletes_meanwhile_do_not_save_the_others(google, server):
    for number in range(3):
        google.put(f"a/{number}", b"x")
    google.put("b", b"x")
    server.ghosts.update(("place/a/00", "place/a/11"))
    google.delete_all("a")
    assert sorted(server.objects) == ["place/b"]


def test_creates_and_swaps_have_one_winner_at_google(google):
    first = google.create("n", b"1")
    with pytest.raises(AlreadyExists):
        google.create("n", b"2")
    second = google.swap("n", b"2", first)
    with pytest.raises(Conflict):
        google.swap("n", b"3", first)
    with pytest.raises(Conflict):
        google.swap("never/written", b"3", second)
    assert google.read("n") == (b"2", second)


def test_a_bucket_that_keeps_to_conditions_is_writable(google, lookalike, server):
    google.check_writable()
    lookalike.check_writable()
    assert server.objects == {}


@pytest.mark.parametrize("ignored", ["If-None-Match", "If-Match"])
def test_a_bucket_that_ignores_conditional_puts_is_refused(lookalike, server, ignored):
    server.ignored.add(ignored)
    says = rf"s3://bucket/place: this bucket ignores conditional puts \({ignored}\).*Use S3"
    with pytest.raises(UnfitEnvironment, match=says):
        lookalike.check_writable()
    assert server.objects == {}
