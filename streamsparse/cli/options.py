"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamsparse.errors import UsageError

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import Dataset

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Directory of the run, or s3://BUCKET/PREFIX.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done and touch nothing.")]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="torchvision:NAME, timm:NAME or MODULE:CALLABLE; options as in torchvision:vgg16?num_classes=10.",
    ),
]
Weights = Annotated[
    str, typer.Option("--weights", help="Trained weights: .safetensors, or .pt without pickled objects.")
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="mnist, fashion-mnist, cifar10, imagefolder:PATH, npz:PATH, zarr:PATH or MODULE:CALLABLE.",
    ),
]
DataRoot = Annotated[
    str | None, typer.Option("--data-root", help="Where named data sets lie (torchvision's layout).")
]
Normalize = Annotated[
    str | None,
    typer.Option(
        "--normalize",
        help="MEAN,STD of values in [0, 1]; channels separated by /: 0.485/0.456/0.406,0.229/0.224/0.225.",
    ),
]
Size = Annotated[str | None, typer.Option("--size", help="SIDE or HEIGHTxWIDTH in pixels.")]
Images = Annotated[int, typer.Option("--images", min=1, help="Calibration images to sample.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the sample.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images per forward pass and committed batch.")]
Dtype = Annotated[
    str, typer.Option("--dtype", help="Of stored activations: float16 (overflow is checked) or float32.")
]
Codec = Annotated[
    str,
    typer.Option(
        "--codec",
        help="zstd[:LEVEL], gzip[:LEVEL], blosc:NAME[:LEVEL][:SHUFFLE] or none; bitround:BITS+CODEC rounds first, "
        "which loses digits. A checksum is always added.",
    ),
]
Sink = Annotated[
    str,
    typer.Option("--sink", help="activations, or statistics: sum on the device and dump nothing."),
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads of the numerics; all cores if left out.")
]
Folds = Annotated[int, typer.Option("--folds", help="Folds by sample, for held-out errors.")]
ExecutorKind = Annotated[
    str, typer.Option("--executor", help="auto, serial, threads or processes (a local Dask cluster).")
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Local threads or processes; one per core if left out.")
]
Scheduler = Annotated[str | None, typer.Option("--scheduler", help="Address of a Dask scheduler: tcp://HOST:PORT.")]
MemoryLimit = Annotated[str | None, typer.Option("--memory-limit", help="Per worker, such as 2GiB.")]
Products = Annotated[
    str,
    typer.Option("--products", help="Matrix products in float32, float64, tf32 or bfloat16; sums are float64."),
]
BUDGET_HELP = (
    "params=X, macs=X or bytes=X (a fraction up to 1, or absolute), sparsity=X, latency=X@DEVICE (a fraction, or "
    "5ms; see `streamsparse latency`); max-loss=X: fewest parameters "
    "whose predicted loss of the network (nats) is within X; max-error=X: fewest channels whose held-out error "
    "is, in every group."
)
BudgetOption = Annotated[str | None, typer.Option("--budget", help=BUDGET_HELP)]
Budgets = Annotated[
    list[str] | None,
    typer.Option("--budget", help=BUDGET_HELP + " Several: a table of what each would give; nothing is decided."),
]
Channels = Annotated[
    str | None, typer.Option("--channels", help="Channels to keep by hand: GROUP=COUNT,GROUP=COUNT,...")
]
MethodOption = Annotated[str, typer.Option("--method", help="entropic (the paper's), elimination, or best of all.")]
Stages = Annotated[
    int | None,
    typer.Option("--stages", min=1, help="Passes of the sequential refit; one per layer if left out, 1: none."),
]
Name = Annotated[str, typer.Option("--name", help="Name of the checkpoint in the run.")]

DEFAULT_IMAGES = 2000

CapturedData = Annotated[str | None, typer.Option("--data", help="The capture's data; as in the run if left out.")]


def parse_shard(text: str) -> tuple[int, int]:
    """`I/N` with I from 1 to N -> (I - 1, N)."""
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise UsageError("This shard does not parse.", expected="I/N with 1 ≤ I ≤ N", got=text, where="--shard")
    return int(first) - 1, int(second)


def parse_channels(text: str | None) -> dict[str, int] | None:
    """`conv1=8,fc1=40` -> {"conv1": 8, "fc1": 40}."""
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",") if part]
    if not pairs or any(not name or not count.isdecimal() for name, _, count in pairs):
        raise UsageError(
            "These channel counts do not parse.", expected="GROUP=COUNT,...", got=text, where="--channels",
            remedy="for example --channels conv1=8,fc1=40",
        )  # fmt: skip
    return {name: int(count) for name, _, count in pairs}


def parse_bytes(text: str | None, option: str = "--memory-limit") -> int | None:
    """`2GiB` -> 2147483648."""
    if text is None:
        return None
    from dask.utils import parse_bytes as parse

    try:
        return int(parse(text))
    except ValueError as error:
        raise UsageError(
            "This amount of memory does not parse.",
            expected="such as 512MiB or 2GiB",
            got=text,
            where=option,
        ) from error


def load_data(
    spec: str, model: str, *, data_root: str | None, split: str, normalize: str | None, size: str | None
) -> Dataset[Any]:
    """The data set, preprocessed as the options say, else as the model's published weights expect."""
    from streamsparse.intake.data import open_data
    from streamsparse.intake.preprocessing import choose_preprocessing

    preprocessing = choose_preprocessing(model, normalize=normalize, size=size)
    return open_data(spec, data_root=data_root, split=split, preprocessing=preprocessing, trust_code=True)


def captured_data(manifest: dict[str, Any], spec: str | None) -> Dataset[Any]:
    """The training split of the data that a run was captured over, or of `spec`, preprocessed as it was then."""
    known = {"data_root": None, "normalize": None, "size": None} | manifest["data"]["options"]
    spec = spec or manifest["data"]["spec"] or ""
    return load_data(spec, manifest["model"]["spec"] or "", split="train", **known)


def load_model(model: str, weights: str) -> nn.Module:
    """The trained model, in evaluation mode."""
    from streamsparse.intake.models import build_model
    from streamsparse.intake.weights import load_weights

    built = build_model(model, trust_code=True)
    load_weights(built, weights)
    return built.eval()


def use_threads(threads: int | None) -> None:
    """Limit torch's and BLAS's threads for the rest of the process."""
    if threads is None:
        return
    import numpy  # noqa: F401  its BLAS must be loaded to be limited
    import torch
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads)
    torch.set_num_threads(threads)
