"""The command that looks at a run, or at a model before there is one: inspect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamsparse.cli import options as o
from streamsparse.cli.console import ProgressBars, command, print_json, print_table, say, size_text
from streamsparse.cli.groups import groups_json, show_groups
from streamsparse.errors import StreamsparseError, UsageError

if TYPE_CHECKING:
    from streamsparse.types import ChannelGraph
    from streamsparse.verification import Problem

_EXAMPLE = "streamsparse inspect --model torchvision:resnet50 --groups"

_Run = Annotated[str | None, typer.Argument(metavar="[RUN]", help="Directory of the run (or file:// URL).")]
_Model = Annotated[
    str | None,
    typer.Option("--model", help="Instead of RUN: torchvision:NAME, timm:NAME or MODULE:CALLABLE; no weights."),
]
_Size = Annotated[str | None, typer.Option("--size", help="With --model: SIDE or HEIGHTxWIDTH of its images.")]
_Input = Annotated[
    str | None,
    typer.Option("--input", help="With --model: shape of one image, such as 1x28x28; else the published one."),
]


def inspect(
    run: _Run = None,
    model: _Model = None,
    size: _Size = None,
    image: _Input = None,
    groups: Annotated[
        bool, typer.Option("--groups", help="List the channel groups and what is frozen, and why.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read and check all that RUN holds; exit status 1 if anything is wrong."),
    ] = False,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
) -> None:
    """What RUN holds, what is missing, and how large it is; reads only.

    With --verify: every object of RUN is read and checked against its checksum, its plan and the manifest. Each
    problem is named by its key, with what was expected, what is there and what to do; the exit status is then 1.
    What a killed stage left unfinished is no problem: run that stage again.

    With --groups: which channels can be removed together and which layers are re-estimated then, and which
    channels stay, with the operation and the line of the model that keep them. This needs no run: a model and the
    shape of its images are enough, and weights do not matter.

    Examples:

        streamsparse inspect runs/lenet

        streamsparse inspect runs/lenet --groups --json

        streamsparse inspect runs/lenet --verify

        streamsparse inspect --model torchvision:resnet50 --groups

        streamsparse inspect --model pipelines.lenet:LeNet --input 1x28x28 --groups
    """
    with command(as_json) as bars:
        _check_subject(run, model, size, image, groups)
        _check_verify(model, groups, verify)
        if model is not None:
            shape = _image_shape(model, size, image)
            about: dict[str, Any] = {"model": model, "input": list(shape)}
            observed: list[str] | None = None
            title = f"{model}, one image of {'×'.join(map(str, shape))}"
            if dry_run:
                _show_plan(title, about, as_json)
                return
            graph = _follow(model, shape, bars)
        elif verify:
            _verify(str(run), bars, as_json, dry_run)
            return
        else:
            title = str(run)
            graph, observed, about = _look(title)
    if as_json:
        print_json({**about, **(groups_json(graph, observed) if groups else {})})
    elif groups:
        show_groups(title, graph, observed)
    else:
        _show(title, about)


def _check_subject(run: str | None, model: str | None, size: str | None, image: str | None, groups: bool) -> None:
    if (run is None) == (model is None):
        got = "neither" if run is None else f"RUN '{run}' and --model {model}"
        raise UsageError(
            "Inspect looks at one thing.", expected="RUN, or --model", got=got, remedy=f"try {_EXAMPLE}"
        )
    if model is not None and not groups:
        raise UsageError(
            "A model without a run has channel groups to show, and nothing else.",
            expected="--groups", got="--model alone", remedy=f"try {_EXAMPLE}",
        )  # fmt: skip
    if size is not None and image is not None:
        raise UsageError("The image's size is given twice.", expected="--size or --input", got="both")
    if model is None and (size, image) != (None, None):
        raise UsageError(
            "A run knows the shape of its images.", expected="RUN alone", got="RUN with --size or --input",
            remedy="leave out --size and --input, or give --model instead of RUN",
        )  # fmt: skip


def _check_verify(model: str | None, groups: bool, verify: bool) -> None:
    if verify and (groups or model is not None):
        raise UsageError(
            "A verification is of a run, and of all of it.", expected="RUN --verify",
            got="--verify with " + ("--model" if model is not None else "--groups"), remedy="give one of them",
        )  # fmt: skip


def _verify(run: str, bars: ProgressBars, as_json: bool, dry_run: bool) -> None:
    """Check the whole run and show its problems."""
    from streamsparse.store import Run
    from streamsparse.verification import verify_run

    opened = Run.at(run)
    if dry_run:
        opened.manifest()
        read_bytes = opened.documents.size_bytes("")
        if as_json:
            print_json({"run": run, "plan": {"read_bytes": read_bytes}})
        else:
            say(f"Would read and check {size_text(read_bytes)} of {run}.")
        return
    problems = verify_run(opened, bars)
    about = _look_if_readable(run)
    if as_json:
        print_json({**about, "run": run, "problems": problems})
    else:
        if len(about):
            _show(run, about)
        _show_problems(run, problems)
    if problems:
        raise typer.Exit(1)


def _look_if_readable(run: str) -> dict[str, Any]:
    """What the run holds; nothing where damage, which the problems name, keeps that from being read."""
    try:
        return _look(run)[2]
    except StreamsparseError:
        return {}


def _show_problems(run: str, problems: list[Problem]) -> None:
    if not problems:
        say(f"{run}: verified, no problems.")
        return
    rows = []
    for problem in problems:
        details = [("expected", problem.expected), ("got", problem.got)]
        lines = [problem.summary, *(f"{label}: {text}" for label, text in details if text is not None)]
        rows.append((problem.key, "\n".join(lines), problem.remedy or ""))
    columns = {"where": "left", "problem": "left", "to do": "left"}
    print_table(f"{run}: {len(problems)} problem{'s' if len(problems) > 1 else ''}", columns, rows)


def _image_shape(model: str, size: str | None, image: str | None) -> tuple[int, ...]:
    """Shape of one image: as given, else as the model's published weights take it."""
    from streamsparse.intake.preprocessing import choose_preprocessing

    if image is not None:
        parts = image.lower().split("x")
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            expected = "CHANNELSxHEIGHTxWIDTH, such as 3x224x224"
            raise UsageError("This shape does not parse.", expected=expected, got=image, where="--input")
        return tuple(map(int, parts))
    chosen = choose_preprocessing(model, size=size)
    pixels = chosen.crop or chosen.resize
    if pixels is None:
        raise UsageError(
            "Nothing says how large the model's images are.",
            expected="--input or --size",
            got=f"neither, and no published preprocessing of {model}",
            remedy="give the shape of one image, for example --input 3x224x224",
        )
    return (chosen.channels or 3, pixels[0], pixels[-1])


def _show_plan(title: str, about: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({"plan": about})
    else:
        say(f"Would follow {title}.")


def _follow(model: str, shape: tuple[int, ...], bars: Any) -> ChannelGraph:
    import torch

    from streamsparse.intake.models import build_model
    from streamsparse.network import find_groups

    return find_groups(build_model(model, trust_code=True), torch.zeros(1, *shape), on_event=bars)


def _look(run: str) -> tuple[ChannelGraph, list[str], dict[str, Any]]:
    """A run's graph, its captured layers, and what it holds."""
    from streamsparse.inspection import inspect_run
    from streamsparse.intake.captured import read_captured
    from streamsparse.store import Run

    opened = Run.at(run)
    about = {"run": run, **inspect_run(opened)}  # first: it says what is wrong with a damaged manifest
    captured = read_captured(opened)
    return captured.graph, captured.manifest["layers"], about


def _show(run: str, found: dict[str, Any]) -> None:
    rows = [
        (stage["stage"], stage["state"], stage["detail"], size_text(stage["bytes"])) for stage in found["stages"]
    ]
    about = found["manifest"]
    data = f"{about['data']['images']:,} images of {about['data']['spec'] or 'given data'}"
    title = f"{run}: {about['model']['class']}, {data}, begun {about['created']}"
    print_table(title, {"stage": "left", "state": "left", "": "left", "size": "right"}, rows)
