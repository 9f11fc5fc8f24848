"""The layout of a run, version 2. Every key of the store is named here and nowhere else.

    RUN/
      manifest.json                                   what was captured: model, data, channel graph, versions, seeds
      clearing.json                                   while the run is being removed; see `Run.clear`
      model/weights.safetensors                       the original weights, so that a run is complete in itself
      activations/STREAM/shard-IIII-of-NNNN/
        plan.json                                     arrays, batches, dtype, codec; written before any array
        LAYER@CALL/input, LAYER@CALL/output           Zarr v3 arrays (images, ...), chunks of whole images
        commits/batch-BBBBBBBB.json                   written last: the batch is whole in every array
        discarded/batch-BBBBBBBB.json                 its chunks are deleted, for it is in sums that are kept
        waiting.json                                  while the capture waits for room in its window
      partials/STREAM/shard-IIII-of-NNNN/
        a/LAYER/, b/LAYER/                            records: sums of a capture that dumps nothing, in turn
        progress.json                                 which of the two counts, and how many batches are in it
      partials/STREAM/convergence.json                what a capture that stops by itself found at its looks
      partials/STREAM/sums-DIGEST/
        plan.json                                     how an accumulation cut its layers, to go on with after a kill
        LAYER/BLOCK/lane-NNNN/BATCHES-WRITING/        record: growing sums, and the batches that are in them; the
                                                      one with the most batches counts
      statistics/STREAM/LAYER/                        record: sums by fold, float64
      solution/fronts/GROUP/                          record: best support for every count, errors
      solution/fronts-with-lists/GROUP/DIGEST/        the same with positions that stay or go, by their digest
      solution/sensitivities.json                     how the effect of cutting each group was last measured
      solution/sensitivities/GROUP.json               losses at some counts, for one front and one such request
      solution/measured/DIGEST/                       losses of whole cut networks that `improve` measured
      solution/weights/GENERATION/LAYER/              record: re-estimated weight and bias
      solution/weights/GENERATION/@buffers/           record: BatchNorm statistics that were estimated anew
      solution/solution.json                          plan, errors and GENERATION; replaced as one step, so that
                                                      a kill leaves the solution before or the one after
      checkpoints/NAME/model.safetensors, config.json the latter written last
      evaluations/NAME.json                           original and checkpoint side by side
      latencies/DEVICE.json                           seconds of every layer at a few widths
      timings/STAGE.json                              seconds and memory of a stage when it last found work to do
      report/                                         on a local disk: what `report` wrote unless told elsewhere
      locks/NAME/ID-exclusive.json, ID-shared.json    in a bucket only: who holds the lock, see `store.leases`

A *stream* is one pass of a model over the images: `original`, or `refit-STAGE-DIGEST` for a stage of a sequential
refit, which has statistics alone.
A *record* is `GENERATION/ARRAY`, Zarr arrays, and a `record.json` that names the generation that counts.
Arrays of activations are filled with NaN where a chunk is missing, and captured values are finite, so a lost
chunk is never read as zeros.
"""

from __future__ import annotations

from urllib.parse import quote, unquote

SCHEMA_VERSION = 2

MANIFEST = "manifest.json"
CLEARING = "clearing.json"
ROOT_GROUP = "zarr.json"
"""Written by zarr beside the manifest, with the first array."""
WEIGHTS = "model/weights.safetensors"
PLAN = "plan.json"
RECORD = "record.json"
COMMITS = "commits"
DISCARDED = "discarded"
WAITING = "waiting.json"
SOLUTION = "solution/solution.json"
SOLUTION_WEIGHTS = "solution/weights"
SENSITIVITIES = "solution/sensitivities.json"
LATENCIES = "latencies"
TIMINGS = "timings"
REPORT = "report"
CONTENTS = (
    "activations", "partials", "statistics", "solution", "checkpoints", "evaluations", LATENCIES, TIMINGS, REPORT,
    "model",
)  # fmt: skip
"""Everything in a run but its locks and the documents beside its manifest."""
ORIGINAL_STREAM = "original"
BEGUN_IN_BUCKET = ("locks", "model")
"""What a run in a bucket that was killed before its manifest may hold."""


def part(name: str) -> str:
    """A layer, group or stream name as one safe component of a key; `name_of` is the inverse."""
    quoted = quote(name, safe="")
    if not quoted.strip("."):  # "", "." and ".." mean something else to a file system
        return quoted.replace(".", "%2E") or "%"
    return quoted


def name_of(component: str) -> str:
    """The name that `part` made this component from."""
    return "" if component == "%" else unquote(component)


def shard_prefix(stream: str, index: int, count: int) -> str:
    return f"activations/{part(stream)}/shard-{index:04d}-of-{count:04d}"


def partials_prefix(stream: str, index: int, count: int) -> str:
    return f"partials/{part(stream)}/shard-{index:04d}-of-{count:04d}"


def convergence_key(stream: str) -> str:
    return f"partials/{part(stream)}/convergence.json"


def sums_prefix(stream: str, digest: str) -> str:
    return f"partials/{part(stream)}/sums-{digest}"


def lane_key(sums: str, layer: str, block: str, lane: int) -> str:
    return f"{sums}/{part(layer)}/{block}/lane-{lane:04d}"


def array_key(shard: str, layer: str, call: int, side: str) -> str:
    return f"{shard}/{part(layer)}@{call}/{side}"


def commit_key(shard: str, batch: int) -> str:
    return f"{shard}/{COMMITS}/batch-{batch:08d}.json"


def lease_prefix(name: str) -> str:
    return f"locks/{part(name)}"


def lease_key(name: str, identifier: str, *, shared: bool) -> str:
    return f"{lease_prefix(name)}/{identifier}-{'shared' if shared else 'exclusive'}.json"


def is_shared_lease(key: str) -> bool:
    return key.endswith("-shared.json")


def discarded_key(shard: str, batch: int) -> str:
    return f"{shard}/{DISCARDED}/batch-{batch:08d}.json"


def statistics_key(stream: str, layer: str) -> str:
    return f"statistics/{part(stream)}/{part(layer)}"


def front_key(group: str) -> str:
    return f"solution/fronts/{part(group)}"


def listed_front_key(group: str, digest: str) -> str:
    return f"solution/fronts-with-lists/{part(group)}/{digest}"


def sensitivity_key(group: str) -> str:
    return f"solution/sensitivities/{part(group)}.json"


def measured_key(digest: str) -> str:
    return f"solution/measured/{digest[:16]}"


def weights_key(generation: str, layer: str) -> str:
    return f"{SOLUTION_WEIGHTS}/{generation}/{part(layer)}"


def buffers_key(generation: str) -> str:
    """No layer's: `part` never makes an @."""
    return f"{SOLUTION_WEIGHTS}/{generation}/@buffers"


def checkpoint_prefix(name: str) -> str:
    return f"checkpoints/{part(name)}"


def evaluation_key(name: str) -> str:
    return f"evaluations/{part(name)}.json"


def latencies_key(device: str) -> str:
    return f"{LATENCIES}/{part(device)}.json"


def timing_key(stage: str) -> str:
    return f"{TIMINGS}/{part(stage)}.json"
