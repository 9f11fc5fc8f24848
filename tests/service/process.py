"""A service in a process of its own, to be killed or loaded: prints its URL, serves until standard input ends.

python -m tests.service.process ROOT JOBS [plain|load|hostile] [--port PORT] [--scheduler ADDRESS] [--database URL]
"""

from __future__ import annotations

import argparse
import sys
import threading

from streamsparse.service.app import create_app
from streamsparse.service.serving import Server
from streamsparse.service.settings import Limits, Settings
from tests.service.hostile import LIMITS
from tests.service.live import MODEL, QUICK

MODES = {"plain": Limits(), "load": Limits(requests_per_second=1e6, burst=10**6), "hostile": LIMITS}


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("jobs", type=int)
    parser.add_argument("mode", choices=MODES, nargs="?", default="plain")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--scheduler")
    parser.add_argument("--database")
    asked = parser.parse_args()
    settings = Settings(
        asked.root,
        port=asked.port,
        jobs=asked.jobs,
        warm=False,
        timing=QUICK,
        allow_models=() if asked.mode == "hostile" else (MODEL,),
        scheduler=asked.scheduler,
        database=asked.database,
        threads=1,
        limits=MODES[asked.mode],
    )
    server = Server(create_app(settings), settings)
    print(server.url, flush=True)

    def watch() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=watch, daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
