"""Make the embedded MNIST files: `uv run python -m pipelines.embed_mnist IDX_DIRECTORY [--out DIRECTORY]`.

Takes the original IDX files (raw or gzip), keeps all test images and the first 20,000 training images, and
writes them as xz-compressed IDX files. Prints the SHA-256 digest of each file and of what is inside it: the
compressed bytes may differ between versions of liblzma, the content may not.
"""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from pipelines.idx import format_idx
from pipelines.mnist import EMBEDDED_TRAINING_IMAGES, load_mnist

DATA = Path(__file__).resolve().parent / "data"


def embed(source: Path, target: Path) -> list[Path]:
    """Write the four embedded files into `target`.

    Args:
        source: a directory with the complete MNIST, as `pipelines.mnist.load_mnist` takes it.
        target: an existing directory; files of the same names are replaced.

    Returns:
        The paths written: training images and labels, test images and labels.

    Raises:
        DataError: `source` holds no MNIST, or a corrupt one.
    """
    train_images, train_labels = load_mnist("train", data_root=source)
    test_images, test_labels = load_mnist("test", data_root=source)
    count = EMBEDDED_TRAINING_IMAGES
    return [
        _write(target / f"train-{count}-images-idx3-ubyte.xz", train_images[:count]),
        _write(target / f"train-{count}-labels-idx1-ubyte.xz", train_labels[:count].astype(np.uint8)),
        _write(target / "t10k-images-idx3-ubyte.xz", test_images),
        _write(target / "t10k-labels-idx1-ubyte.xz", test_labels.astype(np.uint8)),
    ]


def _write(path: Path, array: NDArray[np.uint8]) -> Path:
    preset = 9 | lzma.PRESET_EXTREME
    path.write_bytes(lzma.compress(format_idx(array), lzma.FORMAT_XZ, lzma.CHECK_SHA256, preset))
    return path


def main(
    source: Annotated[Path, typer.Argument(help="Directory with the four IDX files, raw or .gz.")],
    out: Annotated[Path, typer.Option(help="Where the embedded files go.", show_default="pipelines/data")] = DATA,
) -> None:
    """Compress MNIST into the files that come with the package.

    Example: uv run python -m pipelines.embed_mnist ~/data/MNIST/raw
    """
    for path in embed(source, out):
        compressed = path.read_bytes()
        typer.echo(f"{path.name}  {len(compressed)} bytes")
        typer.echo(f"  file    {hashlib.sha256(compressed).hexdigest()}")
        typer.echo(f"  content {hashlib.sha256(lzma.decompress(compressed)).hexdigest()}")


if __name__ == "__main__":
    typer.run(main)
