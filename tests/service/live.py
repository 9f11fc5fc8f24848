"""Real services on real sockets, over runs of small networks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from streamsparse.accumulate import AccumulateSettings, accumulate
from streamsparse.capture import CaptureSettings, Subject, capture
from streamsparse.service.app import create_app
from streamsparse.service.context import Service
from streamsparse.service.serving import Server
from streamsparse.service.settings import Settings, Timing
from streamsparse.solve import solve
from streamsparse.store import Run
from streamsparse.write.stage import write
from tests.small import SmallNet, build, random_images

MODEL = "tests.small:SmallNet"
QUICK = Timing(
    lease_seconds=30.0,
    heartbeat_seconds=0.5,
    poll_seconds=0.1,
    first_retry_seconds=0.2,
    longest_retry_seconds=1.0,
    cluster_seconds=15.0,
)


def make_run(path: Path, *, solved: bool = True, model: str | None = MODEL) -> Run:
    """A captured run of SmallNet, by default with statistics, fronts, a solution and a checkpoint."""
    run = Run.at(path)
    subject = Subject(model=model)
    capture(
        build(SmallNet),
        random_images(40),
        run,
        settings=CaptureSettings("float32", batch_images=10),
        subject=subject,
    )
    if solved:
        accumulate(run, settings=AccumulateSettings(folds=4), executor="serial")
        solve(run, budget="params=0.5")
        write(run)
    return run


@dataclass(frozen=True)
class Live:
    """A service that runs in a thread of this process."""

    url: str
    service: Service
    http: httpx.Client

    def json(self, method: str, path: str, expected: int = 200, **request: Any) -> Any:
        """The JSON of an answer that has this status."""
        answer = self.http.request(method, path, **request)
        assert answer.status_code == expected, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def wait(self, job: str, seconds: float = 240.0, states: tuple[str, ...] = ()) -> dict[str, Any]:
        """The job once it has ended, or is in one of these states."""
        wanted = states or ("succeeded", "failed", "cancelled")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found: dict[str, Any] = self.json("GET", f"/api/v1/jobs/{job}")
            if found["state"] in wanted:
                return found
            time.sleep(0.05)
        raise AssertionError(f"still {found['state']}: {found}")


@contextmanager
def serving(root: Path | str, headers: Mapping[str, str] | None = None, **settings: Any) -> Iterator[Live]:
    """A service over ROOT on a free port of the loopback."""
    options: dict[str, Any] = {
        "port": 0,
        "jobs": 1,
        "warm": False,
        "timing": QUICK,
        "allow_models": (MODEL,),
        "threads": 1,
    } | settings
    app = create_app(Settings(str(root), **options))
    server = Server(app, app.state.service.settings)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        with httpx.Client(base_url=server.url, timeout=30.0, headers=dict(headers or {})) as http:
            yield Live(server.url, app.state.service, http)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
