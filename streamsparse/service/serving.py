"""From settings to a listening server."""

from __future__ import annotations

import gc
import socket

import uvicorn
from fastapi import FastAPI

from streamsparse.errors import StorageError
from streamsparse.service.settings import Settings

KEEP_ALIVE_SECONDS = 30
GOODBYE_SECONDS = 3
"""For answers on their way when the service stops; event streams end then, and their clients come back."""
_BACKLOG = 2048


class Server(uvicorn.Server):
    """A server that says where it listens."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        """Bind, so that the address is known before the first request; `run` begins to answer.

        Raises:
            StorageError: the address is taken, or not this machine's.
        """
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=GOODBYE_SECONDS,
                backlog=_BACKLOG,
            )
        )
        self._app, self._socket = app, _bound(settings)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def serve_forever(self) -> None:
        """Answer until a signal, or `should_exit`."""
        self._app.openapi()  # FastAPI works out its routes when they are first looked at
        gc.collect()
        gc.freeze()  # a full collection walks all that torch and Dask imported: 0.2 s in the middle of a request
        try:
            self.run(sockets=[self._socket])
        finally:
            gc.unfreeze()


def _bound(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # the protocol is named, for asyncio turns off Nagle's delay of 40 ms on such sockets alone
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((settings.host.strip("[]"), settings.port))
        found.listen(_BACKLOG)  # whoever is told the address may come at once, and waits for the first answer
    except OSError as error:
        found.close()
        raise StorageError(
            "The service cannot listen there.", expected="a free port of this machine",
            got=f"{settings.host}:{settings.port}: {error.strerror}", where="--host, --port",
            remedy="choose another --port; 0 takes a free one",
        ) from error  # fmt: skip
    return found
