"""The work of one task: loop over its batches, one at a time, and add in place."""

from __future__ import annotations

import torch

from streamsparse.accumulate.plan import Task
from streamsparse.kernels.folds import FoldSums, empty_folds, finish_folds, update_folds
from streamsparse.store import Run

_DTYPES = {"float64": torch.float64, "float32": torch.float32}


def sum_batches(task: Task) -> FoldSums:
    """Sums by fold over the task's batches, float64.

    Raises:
        CorruptDataError: a chunk is damaged or missing.
        NonFiniteError: activations that are not finite.
    """
    return sum_from(Run.at(task.run_url), task)


def sum_from(run: Run, task: Task) -> FoldSums:
    """`sum_batches` with a run that is open already."""
    reader = run.reader(task.stream)
    geometry = task.layer.geometry
    sums = empty_folds(geometry, task.settings.folds)
    product_dtype = _DTYPES[task.settings.product_dtype]
    for batch in task.batches:
        for call in range(task.layer.calls):
            inputs = torch.from_numpy(reader.read(batch, geometry.layer, call, "input"))
            outputs = torch.from_numpy(reader.read(batch, geometry.layer, call, "output"))
            update_folds(sums, inputs, outputs, geometry, batch.first_image, product_dtype)
    return finish_folds(sums, geometry)
