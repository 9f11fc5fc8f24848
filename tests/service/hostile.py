"""Requests that must be refused with 4xx, whatever they try; also sent by `tests.benchmarks.service`.

Every target goes onto the wire as it stands here: no client library straightens it.
"""

from __future__ import annotations

import gzip
import http.client
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from streamsparse.service.settings import Limits

LIMITS = Limits(body_bytes=64 * 1024, upload_bytes=2**20, unpacked_bytes=4 * 2**20, unpacked_files=200)
"""Of the service that is attacked, so that what is too large stays small."""

JSON = {"Content-Type": "application/json"}
TAR = {"Content-Type": "application/x-tar"}
RUN = "/api/v1/runs/small"


@dataclass(frozen=True)
class Hostile:
    """A request that must be refused.

    Attributes:
        name: what it tries.
        method, target: as on the request line.
        headers, body: sent as they are; a Host header here replaces the right one.
    """

    name: str
    method: str
    target: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def send(url: str, hostile: Hostile) -> int:
    """The status of the answer."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    try:
        connection.putrequest(hostile.method, hostile.target, skip_host="Host" in hostile.headers)
        for name, value in hostile.headers.items():
            connection.putheader(name, value)
        if hostile.body and "Content-Length" not in hostile.headers:
            connection.putheader("Content-Length", str(len(hostile.body)))
        connection.endheaders()
        with suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent
            connection.send(hostile.body)
        return connection.getresponse().status
    finally:
        connection.close()


def _paths() -> Iterator[Hostile]:
    names = {
        "parent": "..", "parent, encoded": "%2e%2e", "parent, twice encoded": "%252e%252e",
        "traversal": "../../../../etc/passwd", "traversal, encoded": "..%2f..%2f..%2fetc%2fpasswd",
        "absolute": "%2Fetc%2Fpasswd", "backslashes": "..%5c..%5cwindows", "NUL": "small%00",
        "newline": "small%0d%0aX:1", "state directory": ".streamsparse", "empty": "%20",
        "overlong UTF-8": "%c0%ae%c0%ae", "not UTF-8": "%ff%fe",
        "long": "a" * 3000, "template": "%7B%7B7*7%7D%7D", "SQL": "'%20OR%201=1--", "link": "link", "file": "file",
    }  # fmt: skip
    for what, name in names.items():
        yield Hostile(f"run: {what}", "GET", f"/api/v1/runs/{name}")
    for what in ("..%2f..%2fmanifest.json", "%2e%2e", "link.safetensors", ".hidden", "config.json%00", "a%2fb"):
        yield Hostile(f"file: {what}", "GET", f"{RUN}/checkpoints/pruned/files/{what}")
    yield Hostile("checkpoint: parent", "GET", f"{RUN}/checkpoints/..%2f..%2f/files/manifest.json")
    yield Hostile("checkpoint: link", "GET", f"{RUN}/checkpoints/linked/files/config.json")
    yield Hostile("report of a link", "GET", "/api/v1/runs/link/report")
    yield Hostile("static: traversal", "GET", "/..%2f..%2fapp.py")
    yield Hostile("static: dots", "GET", "/../settings.py")
    yield Hostile("job: traversal", "GET", "/api/v1/jobs/..%2f..%2f1/log")


def _urls() -> Iterator[Hostile]:
    urls = {
        "file": "file:///etc", "file, short": "file:/etc", "metadata service": "http://169.254.169.254/latest/",
        "own port": "http://127.0.0.1:22/", "gopher": "gopher://127.0.0.1/", "other bucket": "s3://secrets/runs",
        "bucket with user": "s3://user:pass@bucket/run", "bucket with query": "s3://bucket/run?endpoint=http://x",
        "bucket, one slash": "s3:/bucket/run", "memory": "memory://", "absolute": "/etc", "parent": "../outside",
        "parent inside": "small/../../outside", "root itself": ".", "state": ".streamsparse", "link": "link",
        "home": "~/runs", "NUL": "small\u0000", "newline": "small\nx", "surrogate": "\ud800", "long": "a" * 5000,
        "UNC": "\\\\host\\share",
    }  # fmt: skip
    for what, url in urls.items():
        body = json.dumps({"id": "mine", "url": url}).encode()
        yield Hostile(f"register: {what}", "POST", "/api/v1/runs", JSON, body)
    body = json.dumps({"id": "../mine", "url": "small"}).encode()
    yield Hostile("register: name with a path", "POST", "/api/v1/runs", JSON, body)


def _bodies() -> Iterator[Hostile]:
    plan = f"{RUN}/plan"
    texts = {
        "not JSON": b"{", "nested": b"[" * 5000 + b"]" * 5000,
        "nested in a field": b'{"keep":' + b'{"a":' * 200 + b"1",
        "NaN": b'{"budget":"params=0.5","min_channels":NaN}', "huge number": b'{"round_to":1' + b"0" * 5000 + b"}",
        "infinite": b'{"min_channels":1e999}', "not UTF-8": b'{"budget":"\xff\xfe"}',
        "surrogate": b'{"budget":"\\ud800"}',
        "unknown field": b'{"__class__":"os.system","budget":"params=0.5"}', "list": b"[]", "null": b"null",
        "code as a budget": b'{"budget":"__import__(\'os\')=1"}',
        "shell as a budget": b'{"budget":"params=0.5;id"}',
        "path as a device": b'{"budget":"latency=0.5@../../etc/passwd"}', "negative": b'{"round_to":-1}',
        "unknown group": b'{"channels":{"no-such":1}}', "position out of range": b'{"drop":{"conv1":[99999]}}',
        "too large": b'{"leave":["' + b"a" * 70000 + b'"]}',
    }  # fmt: skip
    for what, body in texts.items():
        yield Hostile(f"plan: {what}", "POST", plan, JSON, body)
    yield Hostile("claims to be huge", "POST", plan, {**JSON, "Content-Length": str(10**12)}, b"{}")
    yield Hostile("length that is none", "POST", plan, {**JSON, "Content-Length": "-5"})
    jobs = {
        "module as a model": {"kind": "write", "parameters": {"model": "os:system"}},
        "path as a name": {"kind": "write", "parameters": {"name": "../../evil"}},
        "dot as a name": {"kind": "write", "parameters": {"name": ".."}},
        "pickle as a format": {"kind": "write", "parameters": {"formats": ["pickle"]}},
        "path as data": {"kind": "evaluate", "parameters": {"data": "imagefolder:/etc"}},
        "code as data": {"kind": "evaluate", "parameters": {"data": "os:getcwd"}},
        "data that is not there": {"kind": "evaluate", "parameters": {"data": "mnist"}},
        "scheduler of a client": {"kind": "accumulate", "parameters": {"scheduler": "tcp://10.0.0.1:8786"}},
        "unknown kind": {"kind": "shell", "parameters": {"command": "id"}},
        "key with a newline": {"kind": "verify"},
    }
    for what, job in jobs.items():
        headers = {**JSON, "Idempotency-Key": "a b\tc"} if what.startswith("key") else JSON
        yield Hostile(f"job: {what}", "POST", f"{RUN}/jobs", headers, json.dumps(job).encode())


def _sites() -> Iterator[Hostile]:
    body = json.dumps({"kind": "verify"}).encode()
    jobs = f"{RUN}/jobs"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    yield Hostile("rebinding", "GET", "/api/v1/runs", {"Host": "evil.example:8765"})
    yield Hostile("rebinding, numeric", "GET", "/api/v1/runs", {"Host": "10.0.0.1"})
    yield Hostile("host with a user", "GET", "/api/v1/runs", {"Host": "localhost@evil.example"})
    yield Hostile("foreign origin", "POST", jobs, {**JSON, "Origin": "https://evil.example"}, body)
    yield Hostile("origin null", "POST", jobs, {**JSON, "Origin": "null"}, body)
    yield Hostile("cross-site fetch", "POST", jobs, {**JSON, "Sec-Fetch-Site": "cross-site"}, body)
    yield Hostile("form", "POST", jobs, form, b"kind=verify")
    yield Hostile("plain text", "POST", jobs, {"Content-Type": "text/plain"}, body)
    yield Hostile("no type", "POST", jobs, {}, body)
    yield Hostile("form that deletes", "POST", f"{RUN}/deletion", form, b"x=1")
    yield Hostile("deletion without a token", "DELETE", RUN)
    yield Hostile("deletion with a made-up token", "DELETE", RUN, {"Deletion-Token": "9999999999.00"})
    yield Hostile("made-up method", "BREW", RUN)
    yield Hostile("range beyond the end", "GET", f"{RUN}/checkpoints/pruned/archive", {"Range": "bytes=99999999-"})
    yield Hostile("event id that is none", "GET", "/api/v1/jobs/0000000000000000/events", {"Last-Event-ID": "-1"})
    yield Hostile("ticket for another path", "POST", "/api/v1/tickets", JSON, b'{"path":"/api/v1/jobs"}')


def _tar(build: Callable[[tarfile.TarFile], None], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as opened:  # type: ignore[call-overload]
        build(opened)
    return buffer.getvalue()


def _member(name: str, content: bytes = b"{}", **fields: object) -> bytes:
    def build(opened: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for field_name, value in fields.items():
            setattr(info, field_name, value)
        opened.addfile(info, io.BytesIO(content))

    return _tar(build)


def _many(count: int) -> bytes:
    def build(opened: tarfile.TarFile) -> None:
        for number in range(count):
            opened.addfile(tarfile.TarInfo(f"statistics/{number}"))

    return _tar(build)


def _zip(name: str, content: bytes = b"{}", attributes: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        info = zipfile.ZipInfo(name)
        info.external_attr = attributes
        opened.writestr(info, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _archives() -> Iterator[Hostile]:
    link = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
    hard = {"type": tarfile.LNKTYPE, "linkname": "../../../etc/passwd"}
    zeros = bytes(8 * 2**20)
    manifest = {"schema": 2, "model": {"spec": "os:system", "class": "x", "digest": ""}}
    contents = {
        "not an archive": b"hello" * 100, "empty": b"", "tar slip": _member("../../evil"),
        "tar slip, deep": _member("statistics/../../../evil"), "tar: absolute": _member("/tmp/evil"),
        "tar: link": _member("statistics/a", b"", **link), "tar: hard link": _member("statistics/a", b"", **hard),
        "tar: device": _member("statistics/a", b"", type=tarfile.CHRTYPE),
        "tar: FIFO": _member("statistics/a", b"", type=tarfile.FIFOTYPE),
        "tar: other files": _member("checkpoints/pruned/config.json"),
        "tar: hidden": _member(".streamsparse/service.db"), "tar: NUL": _member("statistics/a\\\0b"),
        "tar: newline": _member("statistics/a\nb"), "tar: backslashes": _member("..\\..\\evil"),
        "tar: too many files": _many(300), "tar: cut short": _member("statistics/a", bytes(5000))[:2000],
        "gzip bomb": gzip.compress(_member("statistics/a", zeros)), "zip bomb": _zip("statistics/a", zeros),
        "zip slip": _zip("../../evil"), "zip: absolute": _zip("/tmp/evil"),
        "zip: link": _zip("statistics/a", b"/etc/passwd", 0o120777 << 16),
        "no manifest": _member("statistics/a"), "manifest that is none": _member("manifest.json", b"[1]"),
        "manifest of code": _member("manifest.json", json.dumps(manifest).encode()),
        "manifest of another layout": _member("manifest.json", b'{"schema": 99}'),
        "array larger than its bytes": _member("statistics/x/zarr.json", _ARRAY),
        "array of pickles": _member("statistics/x/zarr.json", _ARRAY.replace(b'"bytes"', b'"pickle"')),
    }  # fmt: skip
    for what, body in contents.items():
        yield Hostile(f"archive: {what}", "PUT", "/api/v1/runs/mine/archive", TAR, body)
    large = {**TAR, "Content-Length": str(10**11)}
    yield Hostile("archive: claims to be huge", "PUT", "/api/v1/runs/mine/archive", large, b"x")
    yield Hostile("archive: too large", "PUT", "/api/v1/runs/mine/archive", TAR, bytes(2**20 + 1))
    yield Hostile("archive: over a run", "PUT", f"{RUN}/archive", TAR, _member("manifest.json"))
    yield Hostile("archive: path as a name", "PUT", "/api/v1/runs/..%2fx/archive", TAR, _member("manifest.json"))
    yield Hostile("archive: as JSON", "PUT", "/api/v1/runs/mine/archive", JSON, b"{}")


_ARRAY = json.dumps(
    {
        "zarr_format": 3, "node_type": "array", "shape": [10**6, 10**6], "data_type": "float64",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**6, 10**6]}},
        "codecs": [{"name": "bytes"}], "fill_value": 0,
    }
).encode()  # fmt: skip

HOSTILE: tuple[Hostile, ...] = (*_paths(), *_urls(), *_bodies(), *_sites(), *_archives())
