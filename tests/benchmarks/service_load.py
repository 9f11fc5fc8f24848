"""Clients of the service's benchmark, each kind in a process of its own so that none waits for another.

    python -m tests.benchmarks.service_load download URL COUNT      COUNT downloads at the same time, each hashed
    python -m tests.benchmarks.service_load listen URL COUNT        COUNT event streams, until standard input ends
    python -m tests.benchmarks.service_load probe URL SECONDS       one request after the other, 20 ms apart

Only the standard library, and sockets without a client library between: it is the server that is to be measured.
Each ends with one line of JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import sys
import time
from urllib.parse import urlsplit

INTERVAL_SECONDS = 0.02
CONNECT_SECONDS = 60.0


async def _open(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, dict[str, str]]:
    """Send a GET; returns the streams and the answer's headers, `status` among them."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=2**20)
    writer.write(f"GET {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
    return reader, writer, {**headers, "status": head[0].split()[1]}


async def download(url: str) -> int:
    """Bytes of one whole download whose digest agrees; 0 if anything went wrong."""
    try:
        reader, writer, headers = await _open(url)
        digest, received = hashlib.sha256(), 0
        while piece := await reader.read(2**18):
            digest.update(piece)
            received += len(piece)
        writer.close()
    except (OSError, asyncio.IncompleteReadError):
        return 0
    whole = received == int(headers.get("content-length", -1)) and headers["etag"] == f'"{digest.hexdigest()}"'
    return received if whole else 0


async def downloads(url: str, count: int) -> dict[str, object]:
    """So many at the same time."""
    started = time.perf_counter()
    found = await asyncio.gather(*(download(url) for _ in range(count)))
    good = [size for size in found if size]
    seconds = time.perf_counter() - started
    return {"downloads": len(good), "failed": count - len(good), "bytes": sum(good), "seconds": seconds}


async def listen(url: str, opened: asyncio.Semaphore) -> tuple[int, bool]:
    """Events of one stream until it is cancelled or ends; whether their numbers had no gap."""
    last, whole = 0, True
    try:
        reader, writer, headers = await _open(url)
        opened.release()
        whole = headers["status"] == "200"
        async for line in reader:
            if line.startswith(b"id: "):
                number = int(line[4:])
                whole &= number == last + 1
                last = number
        writer.close()
    except asyncio.CancelledError:
        pass
    except OSError:
        whole = False
    return last, whole


async def listeners(url: str, count: int) -> dict[str, object]:
    """So many streams, until standard input ends; says "open" once all are."""
    opened = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(listen(url, opened)) for _ in range(count)]
    for _ in range(count):
        await asyncio.wait_for(opened.acquire(), CONNECT_SECONDS)
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    found = await asyncio.gather(*tasks)
    return {
        "streams": count, "least_events": min(last for last, _ in found),
        "most_events": max(last for last, _ in found), "broken": sum(not whole for _, whole in found),
    }  # fmt: skip


def probe(url: str, seconds: float) -> dict[str, object]:
    """How long /healthz takes, on one connection, milliseconds."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    took: list[float] = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        took.append(1e3 * (time.perf_counter() - started))
        time.sleep(INTERVAL_SECONDS)
    took.sort()
    shares = {name: took[min(len(took) - 1, int(share * len(took)))] for name, share in _SHARES.items()}
    return {"probes": len(took), **shares}


_SHARES = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}


def main() -> None:
    """One kind of client."""
    kind, url, amount = sys.argv[1:]
    if kind == "probe":
        found = probe(url, float(amount))
    else:
        found = asyncio.run({"download": downloads, "listen": listeners}[kind](url, int(amount)))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
