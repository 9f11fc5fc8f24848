"""Where a report's figures come from: stages, evaluations, provenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamsparse.errors import CorruptDataError
from streamsparse.report.facts import Measured, StageFacts, TimedBatch
from streamsparse.report.wording import plural
from streamsparse.reporting.evidence import Evidence
from streamsparse.store import Run, layout
from streamsparse.store.timings import stage_records
from streamsparse.types import Costs

STAGES = (
    "capture", "accumulate", "latency", "solve", "solve with lists", "sensitivity", "improve", "refit", "write",
    "evaluate",
)  # fmt: skip
_EVALUATION_REMEDY = "delete it, and run `streamsparse evaluate` again"


def stage_facts(run: Run) -> tuple[StageFacts, ...]:
    """What the run's stages took, in the order of the stages; shards of a capture one by one."""

    def place(stage: str) -> tuple[int, str]:
        first = stage if stage in STAGES else stage.partition(" ")[0]
        return (STAGES.index(first) if first in STAGES else len(STAGES)), stage

    return tuple(
        StageFacts(
            stage=record.stage,
            seconds=record.seconds,
            peak_bytes=record.peak_bytes,
            finished=record.finished or "",
            machine=record.machine,
            reused=record.reused,
        )
        for record in sorted(stage_records(run), key=lambda record: place(record.stage))
    )


def measured_facts(evidence: Evidence) -> tuple[tuple[Measured, ...], dict[str, float]]:
    """All evaluations, those of the present solution first, then newest first; and its layers' measured errors.

    Raises:
        CorruptDataError: an evaluation is not readable.
    """
    run = evidence.run
    names = [name for name in run.documents.names("evaluations") if name.endswith(".json")]
    documents = [(f"evaluations/{name}", run.documents.read_json(f"evaluations/{name}")) for name in names]
    found: list[tuple[bool, Measured]] = []
    errors: dict[str, float] = {}
    for key, document in documents:
        if document is None:
            continue
        try:
            own = _errors_of_solution(evidence, document)
            found.append((bool(own), _measured(document)))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CorruptDataError(
                "An evaluation is not readable.", expected="what `evaluate` writes", got=repr(error), where=key,
                remedy=_EVALUATION_REMEDY,
            ) from error  # fmt: skip
        errors = own or errors
    newest = sorted(found, key=lambda pair: pair[1].finished, reverse=True)
    return tuple(one for _, one in sorted(newest, key=lambda pair: not pair[0])), errors


def _errors_of_solution(evidence: Evidence, document: Mapping[str, Any]) -> dict[str, float]:
    """Measured errors by layer, if the predicted ones beside them are exactly those of the present solution."""
    if evidence.solution is None:
        return {}
    predicted = {error.layer: error.held_out_error for error in evidence.solution.layers}
    pairs = document["layer_errors"]
    same = {layer: pair[0] for layer, pair in pairs.items()} == predicted
    return {layer: float(pair[1]) for layer, pair in pairs.items()} if same else {}


def _measured(document: Mapping[str, Any]) -> Measured:
    comparison = document["comparison"]
    return Measured(
        checkpoint=document["name"],
        images=int(comparison["images"]),
        data=document.get("data", ""),
        original_accuracy=comparison["original_accuracy"],
        pruned_accuracy=comparison["pruned_accuracy"],
        agreement=comparison["agreement"],
        divergence=comparison["divergence"],
        costs=Costs(**document["pruned_costs"]),
        finished=document.get("finished", ""),
        **_timed(document.get("latency")),
    )


def _timed(latency: Mapping[str, Any] | None) -> dict[str, Any]:
    """Fields of `Measured` from the batches that were timed."""
    if latency is None:
        return {"original_seconds": None, "pruned_seconds": None}
    columns = latency["batch_sizes"], latency["original_seconds"], latency["pruned_seconds"]
    smallest, *larger = sorted(
        (
            TimedBatch(images, before / images, after / images)
            for images, before, after in zip(*columns, strict=True)
        ),
        key=lambda timed: timed.images,
    )
    return {
        "original_seconds": smallest.original_seconds,
        "pruned_seconds": smallest.pruned_seconds,
        "batch_images": smallest.images,
        "larger_batches": tuple(larger),
        "device": f"{latency['device']}, {plural(latency['threads'], 'CPU thread')}",
    }


def provenance(evidence: Evidence) -> tuple[tuple[str, str], ...]:
    """What went in, in reading order."""
    manifest, described = evidence.captured.manifest, _described(evidence)
    model, data, storage = manifest["model"], manifest["data"], manifest.get("storage", {})
    sources = data.get("sources")
    entries: list[tuple[str, object]] = [
        ("model", model["spec"] or model["class"]),
        ("model class", model["class"]),
        ("weights digest (SHA-256)", model["digest"]),
        (
            "calibration data",
            f"{len(sources)} captures, merged" if sources else data["spec"] or "given by a program",
        ),
        ("calibration images", f"{data['images']:,} of {data['length']:,}"),
        ("image shape", "×".join(map(str, data["shape"]))),
        ("sample digest (SHA-256)", data["digest"]),
        ("seed of the sample", ", ".join(str(source["seed"]) for source in sources or [data])),
        ("sink", manifest["sink"]),
        ("activations", _storage(manifest["sink"], storage)),
        ("folds", described.get("folds")),
        ("dtype of products", described.get("products")),
        ("captured", manifest.get("created")),
        ("run layout", layout.SCHEMA_VERSION),
        *((f"{name} at the capture", number) for name, number in manifest.get("versions", {}).items()),
    ]
    return tuple((what, str(value)) for what, value in entries if value not in (None, ""))


def _described(evidence: Evidence) -> Mapping[str, Any]:
    """How the first summed layer's statistics were made: all are made alike."""
    return next((evidence.statistics.description(layer) or {} for layer in evidence.summed), {})


def _storage(sink: str, storage: Mapping[str, Any]) -> str:
    if sink != "activations":
        return "summed on the device, none stored"
    lossy = f" ({storage['loss']})" if storage.get("loss") else ""
    return f"{storage['dtype']}, {storage['codec']}{lossy}" if storage else ""
