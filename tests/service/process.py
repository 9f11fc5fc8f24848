"""A service in a process of its own, to be killed or loaded: prints its URL, serves until standard input ends.

python -m tests.service.process ROOT JOBS [plain|load|hostile]
"""

from __future__ import annotations

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
    root, jobs, mode = sys.argv[1], int(sys.argv[2]), (sys.argv[3:] or ["plain"])[0]
    models = () if mode == "hostile" else (MODEL,)
    settings = Settings(
        root,
        port=0,
        jobs=jobs,
        warm=False,
        timing=QUICK,
        allow_models=models,
        threads=1,
        limits=MODES[mode],
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
