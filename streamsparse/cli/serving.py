"""Commands about the HTTP service: serve, download."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from streamsparse.cli import options as o
from streamsparse.cli.console import command, print_json, say, size_text
from streamsparse.errors import StorageError, UsageError

TOKEN_VARIABLE = "STREAMSPARSE_TOKEN"


def serve(
    root: Annotated[
        str, typer.Option("--root", help="Directory, or s3://BUCKET/PREFIX, whose children are the runs.")
    ] = "runs",
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; another than the loopback needs --tokens.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8765,
    jobs: Annotated[
        int, typer.Option("--jobs", min=0, help="Jobs at the same time; 0: answer only, beside services that work.")
    ] = 1,
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            help="Where jobs are kept: sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME; several services on "
            "one database share its queue. Left out: SQLite in ROOT/.streamsparse.",
        ),
    ] = None,
    scheduler: o.Scheduler = None,
    threads: o.Threads = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", help="NAME=SPEC: a data set that clients may evaluate on by its name, such as "
            "val=imagefolder:/data/val; repeatable.",
        ),
    ] = None,
    data_root: o.DataRoot = None,
    allow_model: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-model", help="MODULE:CALLABLE whose code you trust, exactly as the runs name it; models of "
            "torchvision and timm are always allowed. Repeatable.",
        ),
    ] = None,
    allow_url: Annotated[
        list[str] | None,
        typer.Option("--allow-url", help="Prefix outside ROOT from which runs may be registered; repeatable."),
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option("--tokens", help="File of bearer tokens; see --new-token.")
    ] = None,
    new_token: Annotated[
        str | None,
        typer.Option("--new-token", metavar="NAME", help="Make a token, print it once, keep its hash in --tokens."),
    ] = None,
    scopes: Annotated[
        str, typer.Option("--scopes", help="Of --new-token: read, submit (jobs, uploads), admin (deletions).")
    ] = "read,submit",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond the loopback without tokens: anyone may do anything.")
    ] = False,
    public_host: Annotated[
        list[str] | None,
        typer.Option("--public-host", help="Name in the address bar, behind a proxy; repeatable."),
    ] = None,
    rate: Annotated[
        float, typer.Option("--rate", min=0.1, help="Requests per second of one token or address, in the long run.")
    ] = 50.0,
    upload_limit: Annotated[
        str, typer.Option("--upload-limit", help="Of a statistics archive that a client sends.")
    ] = "4GiB",
    event_days: Annotated[
        float,
        typer.Option(
            "--event-days", min=0.0, help="Days that a job's events are kept after its end; its last one and its "
            "result stay. At most 500 of one that has ended are kept, and 10,000 of one that runs.",
        ),
    ] = 30.0,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
) -> None:  # fmt: skip
    """Serve the runs in ROOT over HTTP: submit jobs, watch them, choose a budget, download checkpoints.

    On a laptop `streamsparse serve` is all there is to it: runs in ./runs, jobs in this process' children, a
    dashboard on http://127.0.0.1:8765, reachable from this machine alone. The API is described at /openapi.json.

    Jobs are kept in a database: a service that is killed takes them up again when it is back, and its stages go on
    from what was committed. Two services on one database share the queue; no run is worked on twice at once.

    For a team: make a token for everybody, and listen on the network behind a proxy that adds TLS.

    Examples:

        streamsparse serve

        streamsparse serve --root /shared/runs --scheduler tcp://10.0.0.1:8786 \\
            --data val=imagefolder:/data/imagenet/val

        streamsparse serve --tokens tokens.txt --new-token anna --scopes read,submit

        streamsparse serve --tokens tokens.txt --host 0.0.0.0 --public-host prune.example.org

        streamsparse serve --root s3://bucket/runs \\
            --database postgresql+psycopg://service@db/streamsparse --tokens tokens.txt --host 0.0.0.0
    """
    with command(as_json):
        if new_token is not None:
            _make_token(tokens, new_token, scopes, as_json)
            return
        from streamsparse.service.settings import Limits, Retention, Settings

        limit_bytes = o.parse_bytes(upload_limit, "--upload-limit")
        limits = Limits(requests_per_second=rate, burst=max(1, round(10 * rate)), upload_bytes=limit_bytes or 0)
        settings = Settings(
            root=root, host=host, port=port, database=database, tokens=tokens, insecure=insecure,
            public_hosts=tuple(public_host or ()), jobs=jobs, data=parse_data(data), data_root=data_root,
            allow_models=tuple(allow_model or ()), allow_urls=tuple(allow_url or ()), scheduler=scheduler,
            threads=threads, limits=limits, retention=Retention(ended_days=event_days),
        )  # fmt: skip
        if dry_run:
            print_json({"root": root, "host": host, "port": port, "jobs": jobs, "data": dict(settings.data)})
            return
        from streamsparse.service.app import create_app
        from streamsparse.service.logs import log_as_json
        from streamsparse.service.serving import Server

        log_as_json()
        server = Server(create_app(settings), settings)
        if as_json:
            print_json({"url": server.url, "root": root})
        else:
            say(f"Serving {root} at {server.url}  (API: {server.url}/openapi.json). Ctrl-C stops.")
        server.serve_forever()


def download(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="URL of a checkpoint, or with --server RUN/NAME.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory to make; it must not exist.")],
    server: Annotated[
        str | None, typer.Option("--server", help="Of RUN/NAME, such as http://127.0.0.1:8765.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help=f"Holds the bearer token; left out, {TOKEN_VARIABLE} does, if set."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with what a broken download left beside DIR.")
    ] = True,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
) -> None:
    """Download a checkpoint from a service into a directory that `streamsparse.load` reads.

    Every file is checked against its SHA-256, and the directory appears whole or not at all. A download that
    breaks off goes on where it was when the command is typed again.

    Examples:

        streamsparse download --server http://127.0.0.1:8765 lenet/pruned --out pruned

        streamsparse download http://127.0.0.1:8765/api/v1/runs/lenet/checkpoints/pruned --out pruned
    """
    from streamsparse.client import Client

    with command(as_json) as bars:
        url, run, name = parse_checkpoint(checkpoint, server)
        with Client(url, read_token(token_file)) as client:
            if dry_run:
                about = client.checkpoint(run, name)
                print_json({"run": run, "checkpoint": name, "files": about["files"]})
                return
            from streamsparse.events import Advanced, Started

            done = 0

            def show(present: int, total: int) -> None:
                nonlocal done
                if done == 0:
                    bars(Started("download", total, "bytes"))
                bars(Advanced("download", present - done))
                done = present

            found = client.download(run, name, out, resume=resume, on_bytes=show)
    files = {file.name: file.stat().st_size for file in sorted(found.iterdir())}
    if as_json:
        print_json({"run": run, "checkpoint": name, "directory": str(out), "files": files})
    else:
        say(f"{out}: {size_text(sum(files.values()))} in {len(files)} files, digests checked.")


def parse_checkpoint(text: str, server: str | None) -> tuple[str, str, str]:
    """A checkpoint's URL, or RUN/NAME of a server -> (server, run, name).

    Raises:
        UsageError: it is neither.
    """
    name = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
    if server is not None:
        short = re.fullmatch(f"({name})/({name})", text)
        if short:
            return server, short[1], short[2]
    else:
        whole = re.fullmatch(f"(https?://[^/?#]+)/api/v1/runs/({name})/checkpoints/({name})/?", text)
        if whole:
            return whole[1], whole[2], whole[3]
    raise UsageError(
        "This names no checkpoint.", got=text, where="CHECKPOINT",
        expected="URL/api/v1/runs/RUN/checkpoints/NAME, or --server URL RUN/NAME",
    )  # fmt: skip


def read_token(path: Path | None) -> str | None:
    """The token in a file, else in the environment; never on the command line, where everybody sees it.

    Raises:
        StorageError: the file cannot be read.
    """
    if path is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        return path.read_text().strip()
    except OSError as error:
        raise StorageError("The token cannot be read.", got=error.strerror, where=path) from error


def parse_data(texts: list[str] | None) -> dict[str, str]:
    """`["val=imagefolder:/data/val"]` -> {"val": "imagefolder:/data/val"}.

    Raises:
        UsageError: no name or no specification.
    """
    pairs = [text.partition("=") for text in texts or ()]
    if any(not name or not spec for name, _, spec in pairs):
        raise UsageError("This data set does not parse.", expected="NAME=SPEC", got=texts, where="--data")
    return {name: spec for name, _, spec in pairs}


def _make_token(path: Path | None, name: str, scopes: str, as_json: bool) -> None:
    from streamsparse.service.auth import new_token, parse_scopes

    if path is None:
        raise UsageError("A token needs a file to be known by.", expected="--tokens FILE", got="--new-token alone")
    token = new_token(path, name, parse_scopes(scopes))
    if as_json:
        print_json({"name": name, "token": token, "scopes": scopes.split(",")})
    else:
        say(f"{token}\nThis is the only time it is shown; {path} keeps its hash.")
