"""Optional formats beside the checkpoint: `model.pt2` (torch.export) and `model.onnx`.

Both are made from synthetic inputs, because an exported program stores its example inputs, and with a free batch
dimension. Each is checked against the model before its bytes are returned. They are written for others: neither
is ever loaded by streamsparse, as `torch.export.load` may fall back to unpickling.
"""

from __future__ import annotations

import copy
import importlib
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamsparse.errors import ModelError, UsageError
from streamsparse.network.running import ExampleInputs, evaluating, quietly, run

ONNX_TOLERANCE = 1e-4  # largest difference, relative to the largest output
_BATCH = 2  # torch.export takes sizes 0 and 1 for constants


def export_pt2(model: nn.Module, example_inputs: ExampleInputs) -> bytes:
    """The model in evaluation mode as a `torch.export` program with a free batch dimension.

    Args:
        model: one input or several, with the batch first; left as it is.
        example_inputs: (batch, ...), of which only shape, dtype and device are used.

    Raises:
        ModelError: the model cannot be exported, or the program computes something else.
    """
    inputs = synthetic_inputs(example_inputs)
    program = _program(model, inputs)
    _check("model.pt2", _outputs(program.module(), inputs), _outputs(model, inputs), tolerance=1e-6)
    stream = io.BytesIO()
    torch.export.save(program, stream)
    return stream.getvalue()


def export_onnx(model: nn.Module, example_inputs: ExampleInputs) -> bytes:
    """The model in evaluation mode as ONNX with a free batch dimension, checked with onnxruntime.

    The weights are part of the file. Args as for `export_pt2`.

    Raises:
        UsageError: the optional extra `export` is not installed.
        ModelError: the model cannot be exported, is beyond ONNX's 2 GB, or computes something else there.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    inputs = tuple(tensor.cpu() for tensor in synthetic_inputs(example_inputs))
    model = copy.deepcopy(model).cpu()
    content = _onnx_bytes(model, inputs)
    for batch in (1, 3):
        resized = tuple(torch.cat([tensor] * 2)[:batch] for tensor in inputs)
        found = tuple(torch.from_numpy(values) for values in _run_onnx(content, resized))
        _check(f"model.onnx, batch of {batch}", found, _outputs(model, resized), ONNX_TOLERANCE)
    return content


def synthetic_inputs(example_inputs: ExampleInputs) -> tuple[Tensor, ...]:
    """Random inputs of the same shape (batch of 2), dtype and device; nothing of the user's images is in them."""
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.rand((_BATCH, *tensor.shape[1:]), generator=generator).to(tensor.device, tensor.dtype)
        for tensor in inputs
    )


def _program(model: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in inputs)
    try:
        with evaluating(model), quietly("torch.onnx"):
            return torch.export.export(model, inputs, dynamic_shapes=shapes)
    except Exception as error:  # the exporter raises whatever the traced code meets
        raise _failed("torch.export", error) from error


def _onnx_bytes(model: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    program = _program(model, inputs)
    try:
        with evaluating(model), quietly("torch.onnx"), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            exported = torch.onnx.export(program, inputs, dynamo=True, verbose=False)
            if exported is None:
                raise RuntimeError("the exporter returned nothing")
            exported.save(path, external_data=False)
            return path.read_bytes()
    except Exception as error:  # the exporter raises whatever its passes meet
        raise _failed("torch.onnx", error) from error


def _run_onnx(content: bytes, inputs: tuple[Tensor, ...]) -> list[np.ndarray[Any, Any]]:
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [np.asarray(values) for values in session.run(None, feeds)]
    except Exception as error:  # onnxruntime's own exceptions have no common type
        raise _failed("onnxruntime", error) from error


def _outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The model's tensors, flattened out of whatever it returns."""
    modes = evaluating(model) if not isinstance(model, torch.fx.GraphModule) else torch.no_grad()
    with modes:
        leaves = torch.utils._pytree.tree_leaves(run(model, inputs))
    return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))


def _check(where: str, found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (found, expected)]
    difference = max((_difference(*pair) for pair in zip(found, expected, strict=False)), default=0.0)
    if shapes[0] != shapes[1] or not difference <= tolerance:
        raise ModelError(
            "The exported model does not compute what the model does.",
            expected=f"outputs {shapes[1]}, relative difference at most {tolerance}",
            got=f"outputs {shapes[0]}, relative difference {difference:.2e}",
            where=where,
            remedy="Use the safetensors checkpoint; leave this format out.",
        )


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    scale = expected.double().abs().max().clamp(min=1e-30)
    return float(((found.double() - expected.double()).abs().max() / scale).item())


def _require(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UsageError(
                "The ONNX format needs an optional extra.",
                expected=", ".join(packages),
                got=error,
                where="--format onnx",
                remedy="Install it: pip install 'streamsparse[export]'.",
            ) from error


def _failed(exporter: str, error: Exception) -> ModelError:
    return ModelError(
        f"The model cannot be exported by {exporter}.",
        expected="a model that can be traced with a free batch dimension",
        got=(str(error).strip().splitlines() or [type(error).__name__])[0],
        where=exporter,
        remedy="Use the safetensors checkpoint; leave this format out.",
    )
