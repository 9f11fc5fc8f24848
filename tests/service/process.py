"""A service in a process of its own, to be killed: `python -m tests.service.process ROOT JOBS`; prints its URL."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace

from streamsparse.service.app import create_app
from streamsparse.service.serving import Server
from streamsparse.service.settings import Settings
from tests.service.live import MODEL, QUICK


def main() -> None:
    """Serve until standard input ends."""
    root, jobs = sys.argv[1], int(sys.argv[2])
    timing = replace(QUICK, lease_seconds=20.0)  # a dead process is noticed at once, not by its lease
    settings = Settings(root, port=0, jobs=jobs, warm=False, timing=timing, allow_models=(MODEL,), threads=1)
    server = Server(create_app(settings), settings)
    print(server.url, flush=True)

    def watch() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=watch, daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
